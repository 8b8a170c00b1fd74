//! What a handler can ask for beside the event.

use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;

use trunkline_core::engine::Seq;
use trunkline_core::{Envelope, Headers, Name, Result, Subject, Timestamp};

use crate::bus::Bus;
use crate::failure::Failure;
use crate::handler::Delivered;
use crate::raw::Incoming;

/// An argument of a handler, after the event. Implement it for what your handlers need often.
#[diagnostic::on_unimplemented(
    message = "a handler cannot ask for `{Self}`",
    label = "not an extractor",
    note = "after the event come `Context`, `State<T>`, `Meta`, `Attempt`, `Raw` or types that implement \
            `FromDelivery`; all are owned"
)]
pub trait FromDelivery: Sized {
    /// Takes what it needs from a delivery.
    ///
    /// # Errors
    /// What the handler is not run for; it is treated as the handler's own failure.
    fn from_delivery(delivered: &Delivered) -> Result<Self, Failure>;

    /// Whether a bus can ever give it; asked once, before the consumer starts.
    ///
    /// # Errors
    /// Why not, and what to do.
    fn check(bus: &Bus) -> Result<()>;
}

/// What came with an event. It derefs to its [`Envelope`].
#[derive(Clone, Debug)]
pub struct Meta(Incoming);

impl Meta {
    pub(crate) fn new(incoming: Incoming) -> Self {
        Self(incoming)
    }

    /// Headers beside the event.
    pub fn headers(&self) -> &Headers {
        &self.0.headers
    }

    /// The subject on which it was published, root included.
    pub fn published_on(&self) -> &Subject {
        &self.0.subject
    }

    /// The stream that stores it; none for an ephemeral event.
    pub fn stream(&self) -> Option<&Name> {
        self.0.stored.as_ref().map(|stored| &stored.stream)
    }

    /// Its place in the stream; none for an ephemeral event.
    pub fn seq(&self) -> Option<Seq> {
        self.0.stored.as_ref().map(|stored| stored.seq)
    }

    /// When it was stored, by the engine's clock; none for an ephemeral event.
    pub fn stored_at(&self) -> Option<Timestamp> {
        self.0.stored.as_ref().map(|stored| stored.at)
    }
}

impl Deref for Meta {
    type Target = Envelope;

    fn deref(&self) -> &Envelope {
        &self.0.envelope
    }
}

impl FromDelivery for Meta {
    fn from_delivery(delivered: &Delivered) -> Result<Self, Failure> {
        Ok(Self(Incoming::clone(delivered.incoming())))
    }

    fn check(_: &Bus) -> Result<()> {
        Ok(())
    }
}

/// Which attempt this is, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt(pub u32);

impl FromDelivery for Attempt {
    fn from_delivery(delivered: &Delivered) -> Result<Self, Failure> {
        Ok(Self(delivered.attempt()))
    }

    fn check(_: &Bus) -> Result<()> {
        Ok(())
    }
}

/// The event as it came, data not decoded.
#[derive(Clone, Debug)]
pub struct Raw(pub Arc<Incoming>);

impl FromDelivery for Raw {
    fn from_delivery(delivered: &Delivered) -> Result<Self, Failure> {
        Ok(Self(Arc::clone(delivered.incoming())))
    }

    fn check(_: &Bus) -> Result<()> {
        Ok(())
    }
}

/// A value that the bus was given with [`Bus::state`]; it derefs to it.
#[derive(Debug)]
pub struct State<T>(pub Arc<T>);

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Any + Send + Sync> FromDelivery for State<T> {
    fn from_delivery(delivered: &Delivered) -> Result<Self, Failure> {
        delivered.bus().get_state().map(Self).map_err(Failure::from)
    }

    fn check(bus: &Bus) -> Result<()> {
        bus.get_state::<T>().map(drop)
    }
}

/// The circumstances in which a handler runs.
#[derive(Clone, Debug)]
pub struct Context {
    delivered: Delivered,
}

impl Context {
    /// What came with the event.
    pub fn meta(&self) -> Meta {
        Meta(Incoming::clone(self.delivered.incoming()))
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.delivered.attempt()
    }

    /// The consumer.
    pub fn consumer(&self) -> &Name {
        self.delivered.consumer()
    }

    /// The bus, for publishing what follows from the event: say so with
    /// [`caused_by`](crate::Sending::caused_by).
    pub fn bus(&self) -> &Bus {
        self.delivered.bus()
    }

    /// Waits until the consumer is stopping. A long handler can then finish early.
    pub async fn stopping(&self) {
        self.delivered.stopping().await;
    }
}

impl FromDelivery for Context {
    fn from_delivery(delivered: &Delivered) -> Result<Self, Failure> {
        Ok(Self {
            delivered: delivered.clone(),
        })
    }

    fn check(_: &Bus) -> Result<()> {
        Ok(())
    }
}
