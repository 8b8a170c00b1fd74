//! Live messages: at most once, nothing stored.

use std::sync::Arc;

use super::{Admitted, Batch, Boxed};
use crate::error::Result;
use crate::headers::Headers;
use crate::name::Name;
use crate::subject::{Filter, Subject};
use crate::wire::Body;

/// One live message.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where it goes.
    pub subject: Subject,
    /// Where an answer is expected, if one is.
    pub reply: Option<Subject>,
    /// Headers beside the body.
    pub headers: Headers,
    /// The content.
    pub body: Body,
}

/// At most once, nothing stored. Requests are built on `reply`.
pub trait Live: Send + Sync {
    /// Sends messages in order, in which each filter of a listener hears them. A slow listener loses its own oldest and nobody waits for it.
    fn send(&self, batch: Batch<Message>) -> Admitted<'_, ()>;

    /// A way to one subject, looked up once and then fast. It stays right as listeners come and go.
    fn route(&self, subject: &Subject) -> Arc<dyn Route>;

    /// Listens to whatever matches one of the filters, each message once. Of listeners with the
    /// same `share` each message goes to one, and each of them gets its part in order; which one
    /// gets it is the engine's choice, and nothing to build upon. Of what is not received in time, the oldest beyond `capacity` is lost.
    fn listen(
        &self,
        filters: &[Filter],
        share: Option<&Name>,
        capacity: usize,
    ) -> Boxed<'_, Result<Box<dyn Listener>>>;
}

/// A way to one subject.
pub trait Route: Send + Sync {
    /// Sends one message to the route's subject; the message's own subject is that one.
    fn send(&self, message: Message) -> Admitted<'_, ()>;
}

/// The receiving end. Dropping it ends the subscription.
pub trait Listener: Send {
    /// Waits for something and adds messages to `out`, at most `max`.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    fn receive<'a>(&'a mut self, max: usize, out: &'a mut Vec<Message>) -> Boxed<'a, Heard>;
}

/// What a listener heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// That many messages were added.
    Messages(usize),
    /// Nobody listens where this listener's request went.
    NoResponders,
    /// This listener was too slow and lost at least that many messages.
    Lagged {
        /// A lower bound of the messages lost.
        at_least: u64,
    },
    /// The connection was lost and is back; messages in between are gone.
    Resumed,
    /// The engine is closed.
    Closed,
}
