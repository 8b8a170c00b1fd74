//! What tools that know nothing of Trunkline see of a consumer whose progress is in the state group.
//!
//! The tools of a server, its exporters and autoscalers ask the server how far its consumers are. It
//! knows that of shared consumers. Of one that reads the log itself it knows nothing, unless something
//! of its name stands there and is moved along: a gauge, which nobody reads through.

use super::Boxed;
use super::consume::ConsumerRef;
use super::log::Seq;
use crate::error::Result;
use crate::subject::Filter;

/// How the gauge of a consumer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gauge {
    /// There is none.
    Absent,
    /// It is there.
    Shown,
    /// It is there and somebody paused it with a tool of the server, which stops nothing: nobody
    /// reads through it.
    Paused,
    /// Something that is no gauge has its name, and is left alone.
    Taken,
    /// The stream must have none: there an event leaves once every consumer has it, and a gauge would
    /// keep it for ever.
    Unfit,
}

/// Gauges on the engine's own server.
pub trait Gauges: Send + Sync {
    /// Lets the consumer's gauge show what matches above `floor`. Makes it if there is none.
    ///
    /// Gives how it stood before: after [`Gauge::Absent`], [`Gauge::Shown`] and [`Gauge::Paused`] it
    /// shows what it should; after the others nothing was done.
    fn set<'a>(
        &'a self,
        consumer: &'a ConsumerRef,
        filters: &'a [Filter],
        floor: Seq,
    ) -> Boxed<'a, Result<Gauge>>;

    /// How the consumer's gauge stands.
    fn look<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Gauge>>;

    /// Removes the consumer's gauge, if there is one, and nothing else.
    fn remove<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<()>>;
}
