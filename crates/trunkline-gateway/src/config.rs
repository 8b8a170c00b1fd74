//! What a door can be told.

use serde::Deserialize;

/// The settings of a door. Unknown keys are refused when it is read from a file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DoorConfig {
    /// Values of `Host` to serve besides loopback and the address listened on: `bus.lan` for any
    /// port, or `bus.lan:7400`. None by default.
    pub allow_hosts: Vec<String>,
    /// Origins whose web pages may use the door, as `https://console.lan`. None by default: only
    /// pages from the door itself.
    pub allow_origins: Vec<String>,
    /// The most bytes that a request may have. 16 MiB by default.
    pub max_body_bytes: usize,
    /// The most events that a request may have. 10 000 by default.
    pub max_events: usize,
    /// How long a stream of server-sent events is silent before it gets a comment, in
    /// milliseconds; proxies and clients tell by it that the connection lives. 15 000 by default.
    pub keep_alive_ms: u64,
    /// How long requests under way get to finish when the door closes, in milliseconds.
    /// 25 000 by default.
    pub drain_deadline_ms: u64,
}

impl Default for DoorConfig {
    fn default() -> Self {
        Self {
            allow_hosts: Vec::new(),
            allow_origins: Vec::new(),
            max_body_bytes: 16 << 20,
            max_events: 10_000,
            keep_alive_ms: 15_000,
            drain_deadline_ms: 25_000,
        }
    }
}
