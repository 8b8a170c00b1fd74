//! Stored events in order.
//!
//! ```text
//!   trimmed away      stored                       not yet written
//!   1 … first-1   │   first ………………………………… last   │   last+1 = tail
//!                 │                               │
//!   reading here gives a Gap up to first-1        reading here waits (follow) or is empty (read)
//! ```
//!
//! An empty stream has `first` = `tail`; a stream that was never written has both at 1.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use smol_str::SmolStr;

use super::{Admitted, Batch, Boxed, Credit};
use crate::envelope::EventId;
use crate::error::{Error, ErrorKind, Result};
use crate::headers::Headers;
use crate::name::Name;
use crate::subject::{Filter, Subject};
use crate::time::Timestamp;
use crate::wire::Body;

/// The place of an event in its stream: from 1, never reused.
pub type Seq = u64;

/// An event to be stored.
#[derive(Clone, Debug)]
pub struct Append {
    /// Where it goes; the stream must store this subject.
    pub subject: Subject,
    /// Whose order it keeps: when an item fails, later items of its key in the batch are refused
    /// as [`ErrorKind::BehindFailed`], except for items that are malformed or too large, which
    /// harm nobody.
    pub key: Option<SmolStr>,
    /// Its identity: within the stream's duplicate window the same id is stored once.
    pub id: Option<EventId>,
    /// What must hold for it to be stored.
    pub expect: Expect,
    /// Headers beside the body.
    pub headers: Headers,
    /// The content.
    pub body: Body,
}

/// What must hold of a subject for an event to be stored on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The stream holds no event of this subject.
    Absent,
    /// The subject's last event has this sequence.
    Last(Seq),
}

/// How the items of an append stand to one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendMode {
    /// Each has its own outcome.
    Each,
    /// All are stored, side by side, or none.
    Atomic,
}

/// What became of one item of an append.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Stored, and as durable as the engine promises.
    Stored {
        /// Its place.
        seq: Seq,
        /// Whether this id had been stored before and was not stored again.
        duplicate: bool,
    },
    /// Certainly not stored.
    Refused(Error),
    /// Perhaps stored; repeat it with the same id.
    Unknown(Error),
}

/// A stored event.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Its place.
    pub seq: Seq,
    /// When it was stored, by the engine's clock.
    pub at: Timestamp,
    /// Where it was published.
    pub subject: Subject,
    /// Headers beside the body.
    pub headers: Headers,
    /// The content.
    pub body: Body,
}

/// Where reading starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Position {
    /// The oldest stored event.
    First,
    /// Only what is stored from now on.
    New,
    /// This sequence, or the first after it.
    Seq(Seq),
    /// The first event stored at or after this time.
    Time(Timestamp),
    /// The last so many events that match the filters.
    Last(NonZeroU64),
    /// The last event of each subject that matches the filters.
    LastPerSubject,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::First => f.write_str("first"),
            Position::New => f.write_str("new"),
            Position::Seq(seq) => write!(f, "{seq}"),
            Position::Time(time) => write!(f, "{time}"),
            Position::Last(count) => write!(f, "last:{count}"),
            Position::LastPerSubject => f.write_str("last-per-subject"),
        }
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let count = |count: &str| count.parse().ok().map(Position::Last);
        let position = match text {
            "first" => Some(Position::First),
            "new" => Some(Position::New),
            "last-per-subject" => Some(Position::LastPerSubject),
            _ => match text.strip_prefix("last:") {
                Some(last) => count(last),
                None => text
                    .parse()
                    .ok()
                    .map(Position::Seq)
                    .or_else(|| text.parse().ok().map(Position::Time)),
            },
        };
        position.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidPosition,
                format!("{text:?} is no position: use first, new, last:N, last-per-subject, a sequence or an RFC 3339 time"),
            )
        })
    }
}

/// Events that are gone: retention removed them before they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first sequence that is missing.
    pub from: Seq,
    /// The last sequence that is missing.
    pub to: Seq,
}

impl Gap {
    /// How many sequences are missing. With a filter that many events at most are.
    pub fn at_most(&self) -> u64 {
        self.to - self.from + 1
    }
}

/// A stretch of a stream.
#[derive(Clone, Debug)]
pub struct Page {
    /// The events that match, in order.
    pub events: Vec<StoredEvent>,
    /// Where the next page begins.
    pub next: Seq,
    /// The sequence that the next event stored will have.
    pub tail: Seq,
    /// What was missing at the start.
    pub gap: Option<Gap>,
}

/// What is to be removed from a stream.
#[derive(Clone, Debug)]
pub enum Removal {
    /// Everything below this sequence.
    Before(Seq),
    /// One event.
    Seq(Seq),
    /// Every event whose subject matches.
    Matching(Filter),
}

/// Stored events in order.
pub trait Log: Send + Sync {
    /// Stores a batch in order. What is yielded has one [`Outcome`] for each item, in its place.
    ///
    /// Items that are malformed or too large are refused and harm nobody else. In
    /// [`AppendMode::Atomic`] one refusal refuses all.
    fn append(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>>;

    /// Reads what matches one of the filters, without waiting.
    ///
    /// Of [`Position::LastPerSubject`] it gives the first page only, lowest sequences first; who wants
    /// all of them follows.
    fn read<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
        max: Credit,
    ) -> Boxed<'a, Result<Page>>;

    /// Reads on and on: in order, without gaps or repeats, nothing to acknowledge, cheap to open
    /// and to drop. It makes no durable consumer.
    fn follow<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
    ) -> Boxed<'a, Result<Box<dyn Follow>>>;

    /// Removes events and says how many.
    fn remove<'a>(&'a self, stream: &'a Name, what: Removal) -> Boxed<'a, Result<u64>>;
}

/// A reader that waits for more.
pub trait Follow: Send {
    /// Waits for events and adds them to `out`.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: what was not added is given next time.
    fn next<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<StoredEvent>,
    ) -> Boxed<'a, Result<Followed>>;
}

/// What a follower came upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// That many events were added. `behind` sequences are stored that it has not looked at yet.
    Events {
        /// Events added.
        added: usize,
        /// Sequences between the reader and the tail.
        behind: u64,
    },
    /// Retention removed these before they were read.
    Gap(Gap),
    /// What was stored is gone and the stream began anew, with other events under the same
    /// sequences; the reader goes on with its first. A bus in another process that keeps nothing on
    /// disk does so when it was restarted, and a server on which somebody deleted the stream.
    Reset,
    /// The engine is closed or the stream deleted.
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written() {
        for text in [
            "first",
            "new",
            "17",
            "last:5",
            "last-per-subject",
            "2026-01-31T12:00:00Z",
        ] {
            assert_eq!(text.parse::<Position>().unwrap().to_string(), text);
        }
        for bad in ["", "last:0", "last:", "-1", "yesterday"] {
            assert_eq!(
                bad.parse::<Position>().unwrap_err().kind(),
                ErrorKind::InvalidPosition,
                "{bad:?}"
            );
        }
    }
}
