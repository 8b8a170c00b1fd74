//! How an engine that is not in this process is reached, and how long one waits for it.

use std::time::Duration;

/// Time-outs and patience of a connection. Engines inside the process need none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkOptions {
    /// How long one attempt to connect may take, its handshake included. 5 s by default.
    pub connect_timeout: Duration,
    /// How long an answer may take, the time without a connection included; then the outcome is
    /// unknown, or, of what was never sent, that it did not happen. 5 s by default.
    pub request_timeout: Duration,
    /// As `request_timeout`, for storing events. It must be shorter than a stream's duplicate
    /// window, so that an event may be published again with its id. 10 s by default.
    pub publish_timeout: Duration,
    /// How long the first connection is tried; for ever if `None`. 10 s by default.
    pub first_connect: Option<Duration>,
    /// How long to wait between two attempts to reconnect, and up to a fifth more. The first attempt
    /// comes at once. 2 s by default.
    pub reconnect_wait: Duration,
    /// How many attempts to reconnect before the link is closed for good; for ever if `None`, which
    /// is the default.
    pub reconnect_attempts: Option<u32>,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            publish_timeout: Duration::from_secs(10),
            first_connect: Some(Duration::from_secs(10)),
            reconnect_wait: Duration::from_secs(2),
            reconnect_attempts: None,
        }
    }
}
