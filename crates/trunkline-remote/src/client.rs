//! The connecting end: an engine whose work is done by another process.

mod calls;
mod driver;
mod groups;
mod inbox;
mod readers;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use trunkline_core::engine::{
    Boxed, Capabilities, Consume, Engine, Fact, Gauges, Limits, Link, LinkOptions, Live, Log,
    State, Topology,
};
use trunkline_core::{Clock, Result};

use crate::dial::{Dial, HttpDial};
use calls::Connection;

/// How long closing waits for the end of the connection once everything is answered.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);

/// A bus in another process.
///
/// What is under way when the connection breaks goes on over the next one, each call done once and
/// each event given once, as long as the server lives and the client is back within 10 s. When the
/// server itself went away, readers are opened again where they were, and calls that cannot be
/// repeated safely end with an unknown outcome.
pub struct RemoteEngine {
    shared: Arc<Connection>,
}

impl RemoteEngine {
    /// Connects to the bus behind `http://HOST[:PORT]`, waiting for it as the options say.
    ///
    /// # Errors
    /// [`InvalidUrl`]; [`Disconnected`] when nobody answered in time; [`WrongProtocol`],
    /// [`WrongVersion`] and [`NotPermitted`] at once, because waiting would not help.
    ///
    /// [`InvalidUrl`]: trunkline_core::ErrorKind::InvalidUrl
    /// [`Disconnected`]: trunkline_core::ErrorKind::Disconnected
    /// [`WrongProtocol`]: trunkline_core::ErrorKind::WrongProtocol
    /// [`WrongVersion`]: trunkline_core::ErrorKind::WrongVersion
    /// [`NotPermitted`]: trunkline_core::ErrorKind::NotPermitted
    pub async fn connect(url: &str, options: LinkOptions, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::connect_by(Arc::new(HttpDial::new(url)?), options, clock).await
    }

    /// As [`connect`](Self::connect), by a way of one's own.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect), and the way's.
    pub async fn connect_by(
        dial: Arc<dyn Dial>,
        options: LinkOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let shared = driver::start(dial, options, clock).await?;
        Ok(Self {
            shared: Arc::new(Connection::new(shared)),
        })
    }

    /// What the connection leads to, without credentials.
    pub fn place(&self) -> &str {
        self.shared.dial.place()
    }

    /// What the engine at the other end is called.
    pub fn behind(&self) -> &str {
        &self.shared.behind
    }

    async fn close_gently(&self) {
        let shared = &self.shared;
        shared.core.lock().closed = true;
        let answered = async {
            loop {
                let idle = shared.idle.notified();
                if !shared.core.lock().is_awaited() {
                    return;
                }
                idle.await;
            }
        };
        let longest = shared
            .options
            .publish_timeout
            .max(shared.options.request_timeout);
        // Whoever dropped the future of a call does not mind its outcome.
        let _ = tokio::time::timeout(longest, answered).await;
        shared.leave();
        let mut link = self.link();
        let _ =
            tokio::time::timeout(GOODBYE_WITHIN, link.wait_for(|link| *link == Link::Closed)).await;
        shared.finish();
    }
}

impl Engine for RemoteEngine {
    fn name(&self) -> &'static str {
        "remote"
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities
    }

    fn limits(&self) -> Limits {
        self.shared.limits
    }

    fn facts(&self) -> Vec<Fact> {
        let mut facts = vec![Fact::new("url", self.place())];
        facts.extend(self.shared.core.lock().facts.iter().cloned());
        facts
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.shared.link.subscribe()
    }

    fn live(&self) -> &dyn Live {
        self
    }

    fn log(&self) -> &dyn Log {
        self
    }

    fn consume(&self) -> &dyn Consume {
        self
    }

    fn state(&self) -> &dyn State {
        self
    }

    fn topology(&self) -> &dyn Topology {
        self
    }

    fn gauges(&self) -> Option<&dyn Gauges> {
        // Whoever is connected to the server itself sets them.
        None
    }

    fn close(&self) -> Boxed<'_, ()> {
        Box::pin(self.close_gently())
    }
}

impl fmt::Debug for RemoteEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteEngine")
            .field("place", &self.place())
            .field("behind", &self.behind())
            .finish_non_exhaustive()
    }
}
