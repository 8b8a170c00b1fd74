//! What a handler can ask for beside the event.

use std::any::Any;
use std::ops::Deref;
use std::sync::Arc;

use trunkline_core::engine::Seq;
use trunkline_core::{Envelope, Headers, Name, Result, Subject, Timestamp};

use crate::bus::Bus;
use crate::consumer::idempotency_key;
use crate::event::{Event, Stored, Unstored};
use crate::failure::Failure;
use crate::handler::{Delivered, Epoch};
use crate::publish::{Sending, Stage};
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

    /// The bus. What is published through it is sent at once, whatever becomes of the event; what
    /// follows from the event is better [staged](Context::publish).
    pub fn bus(&self) -> &Bus {
        self.delivered.bus()
    }

    /// Under which ownership of its partition the handler runs; none in a consumer that shares events
    /// without order. A store that keeps the highest epoch and refuses lower ones is safe from a
    /// handler that goes on after its partition was taken over.
    pub fn epoch(&self) -> Option<Epoch> {
        self.delivered.epoch()
    }

    /// A text of at most 128 characters that is the same whenever this consumer handles this event:
    /// after a crash, in another member, and for an event that was published twice. A reset of the
    /// consumer changes it.
    ///
    /// Written into a unique column in the transaction that has the handler's effect, it makes the
    /// effect happen exactly once: the second time the transaction fails, and the handler returns Ok.
    pub fn idempotency_key(&self) -> String {
        let incoming = self.delivered.incoming();
        let consumer = self.delivered.consumer();
        idempotency_key(consumer, self.delivered.generation(), &incoming.envelope)
    }

    /// Stages a durable event or a command: it is stored after the handler has returned Ok and before
    /// the event that it handles is settled, in the order of staging. If the handler fails, panics or
    /// is cancelled it is dropped. The event handled is its cause, and it correlates with what that
    /// correlates with.
    ///
    /// Its id comes from the consumer, the event handled and its own content, so that an event which
    /// is handled again after a crash stores the same output once within the duplicate window, and
    /// loses no other one. An [`id`](Sending::id) of one's own replaces it.
    ///
    /// If it cannot be stored, the run has failed with the reason `outputs_not_stored` and the event is
    /// tried again. A run has at most 1 000 outputs and 8 MiB of their data; beyond it becomes a dead
    /// letter with the reason `outputs_over_limit`, whatever its handler returns.
    ///
    /// # Errors
    /// When it is awaited: those of [`Bus::publisher`] and of encoding; [`ErrorKind::OverLimit`];
    /// [`ErrorKind::RunOver`] once the handler has returned. `Ok` has the id that it will be stored
    /// with.
    ///
    /// [`ErrorKind::OverLimit`]: trunkline_core::ErrorKind::OverLimit
    /// [`ErrorKind::RunOver`]: trunkline_core::ErrorKind::RunOver
    pub fn publish<E: Event>(&self, event: E) -> Sending<E, Stage>
    where
        E::Delivery: Stored,
    {
        Sending::staged(&self.delivered, event)
    }

    /// Stages an ephemeral event: it is sent after the handler has returned Ok and its durable outputs
    /// are stored, to whoever listens then. One that cannot be sent is logged and dropped.
    ///
    /// # Errors
    /// When it is awaited, those of [`publish`](Context::publish).
    pub fn emit<E: Event>(&self, event: E) -> Sending<E, Stage>
    where
        E::Delivery: Unstored,
    {
        Sending::staged(&self.delivered, event)
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
