//! What streams and consumers there are, and changing that.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Boxed;
use super::consume::ConsumerRef;
use super::log::{Position, Seq};
use crate::error::Result;
use crate::name::Name;
use crate::subject::{Filter, Subject};
use crate::time::Timestamp;

/// A stream as it should be, or is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// Its name.
    pub name: Name,
    /// The subjects that it stores. No two streams may overlap.
    pub subjects: Vec<Filter>,
    /// When events leave it.
    pub retention: Retention,
    /// Events at most; none means no limit.
    pub max_events: Option<u64>,
    /// Bytes at most; none means no limit.
    pub max_bytes: Option<u64>,
    /// How long events are kept; none means for ever.
    pub max_age: Option<Duration>,
    /// Bytes of one message at most.
    pub max_message: usize,
    /// How long an id is remembered, so that a repeat is stored once.
    pub duplicate_window: Duration,
    /// Copies that are asked for, each on another host. An engine makes as many as it has peers
    /// for, so that on a lone server there is one; what was inspected has as many as there are.
    pub replicas: usize,
    /// Who made it, as key and value. Ours says so, and only ours is ever changed.
    pub metadata: BTreeMap<String, String>,
}

/// When events leave a stream, besides its age limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// At a limit the oldest leave, read or not.
    DiscardOld,
    /// At a limit new ones are refused with [`ErrorKind::StreamFull`](crate::ErrorKind::StreamFull).
    RefuseWhenFull,
    /// An event leaves when its consumer has acknowledged it; at a limit new ones are refused.
    WorkQueue,
}

/// A shared consumer as it should be, or is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerSpec {
    /// The stream and its own name.
    pub at: ConsumerRef,
    /// What it gets of the stream. Never empty: a consumer without a filter gets what nobody meant.
    pub filters: Vec<Filter>,
    /// Where it starts when it is made.
    pub start: Position,
    /// How long a delivery is leased before it goes to somebody else.
    pub ack_wait: Duration,
    /// Deliveries under a lease at once, over all members.
    pub max_in_flight: usize,
}

/// A stream and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Its configuration.
    pub spec: StreamSpec,
    /// Events in it.
    pub events: u64,
    /// Bytes in it, as far as the engine knows them.
    pub bytes: u64,
    /// The first sequence stored; equal to `tail` when empty.
    pub first: Seq,
    /// The sequence that the next event will have.
    pub tail: Seq,
    /// When its first stored event was stored.
    pub first_at: Option<Timestamp>,
}

/// A consumer and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerState {
    /// Its configuration.
    pub spec: ConsumerSpec,
    /// What it has before it.
    pub backlog: Backlog,
}

/// What a consumer has before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Matching events not under a lease and not acknowledged.
    pub pending: u64,
    /// Events under a lease.
    pub in_flight: u64,
    /// The sequence up to which everything is acknowledged.
    pub floor: Seq,
    /// Sequences that retention removed before they were acknowledged.
    pub expired_at_most: u64,
}

/// Everything that there is.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// Streams by name.
    pub streams: Vec<StreamState>,
    /// Consumers by stream and name.
    pub consumers: Vec<ConsumerState>,
}

/// One subject of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectCount {
    /// The subject.
    pub subject: Subject,
    /// Events stored on it.
    pub events: u64,
}

/// One change of the topology.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// Makes a stream that does not exist.
    CreateStream(StreamSpec),
    /// Gives a stream that exists other subjects, limits, replicas or metadata. Its events and the
    /// progress of its consumers stay, but for what is above a new limit, which leaves as its
    /// retention says: past its age at once, above a count or size only where the oldest leave.
    /// What is stored on subjects that it has no more can be read still.
    ///
    /// [`ErrorKind::NoSuchStream`](crate::ErrorKind::NoSuchStream) when there is none of that name,
    /// [`ErrorKind::Overlap`](crate::ErrorKind::Overlap) when another stream has some of its
    /// subjects, and [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) when it would become
    /// a work queue or cease to be one: that takes a new stream.
    UpdateStream(StreamSpec),
    /// Removes a stream with its events and consumers.
    DeleteStream(Name),
    /// Makes a consumer that does not exist.
    CreateConsumer(ConsumerSpec),
    /// Gives a consumer that exists other filters or limits; its progress stays.
    UpdateConsumer(ConsumerSpec),
    /// Removes a consumer with its progress.
    DeleteConsumer(ConsumerRef),
}

/// What streams and consumers there are, and changing that.
pub trait Topology: Send + Sync {
    /// Everything that there is.
    fn inspect(&self) -> Boxed<'_, Result<Inspection>>;

    /// Makes changes in order and stops at the first that fails. Making what is there already,
    /// and is the same, succeeds; what differs is [`ErrorKind::Drift`](crate::ErrorKind::Drift).
    fn apply(&self, changes: Vec<Change>) -> Boxed<'_, Result<()>>;

    /// What a consumer has before it.
    fn backlog<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Backlog>>;

    /// When a stream was made, where others than Trunkline may delete it and make another of its name:
    /// by that somebody who kept a place in it can tell. None where nobody can.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchStream`](crate::ErrorKind::NoSuchStream), and the engine's own.
    fn made_at<'a>(&'a self, stream: &'a Name) -> Boxed<'a, Result<Option<Timestamp>>> {
        let _ = stream;
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Subjects stored in a stream that match, at most `max`, in order.
    fn subjects<'a>(
        &'a self,
        stream: &'a Name,
        filter: &'a Filter,
        max: usize,
    ) -> Boxed<'a, Result<Vec<SubjectCount>>>;
}

/// Whether a stream that was made then is the one that is known. Of a time that another server of a
/// cluster tells, or that was kept with fewer digits, less than a second says nothing; nor does a stream
/// that is older than it was, because it came back from a backup.
pub fn is_same_stream(known: Option<Timestamp>, made_at: Option<Timestamp>) -> bool {
    known
        .zip(made_at)
        .is_none_or(|(known, made_at)| made_at.since(known) < Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_was_made_later_is_another() {
        let known = Some("2026-01-01T00:00:00.5Z");
        for (known, made_at, same) in [
            (known, Some("2026-01-01T00:00:00.5Z"), true),
            (known, Some("2026-01-01T00:00:00.500000123Z"), true),
            (known, Some("2026-01-01T00:00:01.5Z"), false),
            (known, Some("2027-01-01T00:00:00Z"), false),
            // From a backup.
            (known, Some("2025-12-31T00:00:00Z"), true),
            (known, None, true),
            (None, Some("2026-01-01T00:00:00Z"), true),
        ] {
            let at = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            assert_eq!(
                is_same_stream(at(known), at(made_at)),
                same,
                "{known:?} {made_at:?}"
            );
        }
    }
}
