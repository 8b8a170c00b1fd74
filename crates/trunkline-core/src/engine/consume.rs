//! Shared durable consumers: the engine remembers who has what, under leases.

use std::sync::Arc;

use super::log::{Gap, Seq, StoredEvent};
use super::{Admitted, Batch, Boxed, Credit};
use crate::error::Result;
use crate::name::Name;

/// Names a consumer of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConsumerRef {
    /// The stream.
    pub stream: Name,
    /// The consumer.
    pub consumer: Name,
}

/// What a member of a consumer works with: the receiving and the acknowledging end.
pub type Membership = (Box<dyn Feed>, Arc<dyn Settler>);

/// Shared durable consumers.
pub trait Consume: Send + Sync {
    /// Joins a consumer that exists. All who open it share its events, each event to one of them.
    fn open<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Membership>>;
}

/// The receiving end. Dropping it gives nothing back: leases run out, or are settled.
pub trait Feed: Send {
    /// Waits for events and adds them to `out`, each under a lease of the consumer's ack wait.
    ///
    /// # Cancel safety
    /// Dropping the future leases nothing that was not added.
    fn fetch<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<Delivery>,
    ) -> Boxed<'a, Result<Fetched>>;
}

/// What a fetch came upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// That many deliveries were added.
    Deliveries(usize),
    /// Retention removed these before they were handled.
    Gap(Gap),
    /// The consumer or its stream was deleted.
    Gone,
    /// The engine is closed.
    Closed,
}

/// One event under a lease.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What settles it.
    pub token: Token,
    /// The event.
    pub event: StoredEvent,
    /// How often the engine has delivered it, this time included. A hint, never a counter: it
    /// also rises for what was given back unstarted, and may lose increments in a crash.
    pub delivered_hint: u32,
}

/// Names one delivery of one event; a later delivery of the same event has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// The event's place.
    pub seq: Seq,
    /// Which delivery of it.
    pub lease: u64,
}

/// What is to become of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Done; never deliver it again.
    Ack,
    /// Not done; deliver it again at once.
    GiveBack,
    /// Still at work; the lease starts anew.
    Extend,
}

/// The acknowledging end, shared by whoever works.
pub trait Settler: Send + Sync {
    /// Settles deliveries. What is yielded has one result for each, in its place;
    /// [`ErrorKind::StaleLease`](crate::ErrorKind::StaleLease) means that it is somebody else's by now.
    ///
    /// With `confirm` the answer is the engine's own; without it may come before the engine has
    /// acted.
    fn settle(&self, batch: Batch<(Token, Settle)>, confirm: bool)
    -> Admitted<'_, Vec<Result<()>>>;
}
