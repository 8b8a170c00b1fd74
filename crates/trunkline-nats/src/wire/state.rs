//! Whether the connection stands, as the client's events say.

use std::sync::Arc;

use async_nats::{ClientError, Event, ServerError};
use tokio::sync::watch;
use trunkline_core::Clock;
use trunkline_core::engine::Link;

use crate::denied::Denied;

/// What the client's events say.
pub(crate) struct State {
    pub(crate) link: watch::Sender<Link>,
    /// Rises with each connection, so that readers notice that theirs is another.
    pub(crate) connections: watch::Sender<u64>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) place: String,
    /// Whether the first loss of the connection is the end: the client has no word for that.
    pub(super) once: bool,
}

impl State {
    /// Takes over what the client says of its connection.
    pub(super) fn happened(&self, event: &Event, denied: &Denied) {
        match event {
            Event::Connected => {
                // What was asked on the way from one connection to the other is lost as well.
                if *self.connections.borrow() > 0 {
                    denied.interrupt();
                }
                let back = self.link.send_if_modified(|link| match link {
                    Link::Disconnected { .. } => {
                        *link = Link::Connected;
                        true
                    }
                    Link::Connected | Link::Closed => false,
                });
                self.connections.send_modify(|count| *count += 1);
                if back {
                    tracing::debug!(url = %self.place, "connected again");
                }
            }
            Event::Disconnected => {
                match self.once {
                    true => drop(self.link.send_replace(Link::Closed)),
                    false => self.lost("the connection was lost"),
                }
                // Answers on the way were lost with their connection: whoever waits asks again, or
                // says that nobody knows.
                denied.interrupt();
            }
            Event::LameDuckMode => {
                tracing::warn!(url = %self.place, "the NATS server is about to stop (lame duck); another is looked for");
            }
            Event::Closed | Event::ClientError(ClientError::MaxReconnects) => {
                self.link.send_replace(Link::Closed);
                denied.interrupt();
            }
            Event::ClientError(ClientError::Other(text)) => self.not_back(text),
            Event::ServerError(ServerError::Other(text)) if denied.heard(text) => {}
            Event::ServerError(ServerError::AuthorizationViolation) => {
                self.lost("the server refuses the credentials");
            }
            Event::SlowConsumer(_) => {
                tracing::error!(url = %self.place, "this process reads too slowly: the client dropped messages");
            }
            Event::Draining => {}
            other if *self.link.borrow() == Link::Closed => {
                tracing::debug!(url = %self.place, event = %other, "NATS reports after the end");
            }
            other => tracing::warn!(url = %self.place, event = %other, "NATS reports"),
        }
    }

    /// An attempt to connect again failed.
    fn not_back(&self, why: &str) {
        if matches!(*self.link.borrow(), Link::Disconnected { .. }) {
            self.lost(&format!("cannot connect again: {why}"));
        }
        tracing::debug!(url = %self.place, why, "cannot connect again");
    }

    fn lost(&self, reason: &str) {
        self.link.send_if_modified(|link| match link {
            Link::Connected => {
                *link = Link::Disconnected {
                    since: self.clock.now(),
                    reason: reason.to_owned(),
                };
                true
            }
            Link::Disconnected { reason: said, .. } if said != reason => {
                reason.clone_into(said);
                true
            }
            Link::Disconnected { .. } | Link::Closed => false,
        });
    }
}
