//! What an ordered consumer keeps in the state bucket: the keys, and their values as JSON.
//!
//! ```text
//! control.<consumer>.<stream>.def               Definition   what the consumer is, the same for all members
//! control.<consumer>.<stream>.m.<member>        Heartbeat    a member lives as long as this changes
//! control.<consumer>.<stream>.o.<g>.P<P>.<pp>   Owner        whose a partition is; its revision is the epoch
//! <consumer>.<stream>.<g>.P<P>.<pp>             Progress     how far a partition got
//! <consumer>.<stream>.<g>.s.<slot>.<seq>        Side         an event that left the main flow
//! <consumer>.<stream>.<g>.b.<seq>.<n>           piece n of the body of such an event
//! ```
//!
//! Members watch what is below `control`, where nothing changes with every event, and a tool finds every
//! consumer there. So no consumer may be called that.
//!
//! A value says with `v` which version of this page it was written by; one that is unknown is refused,
//! because what is not understood must not be overwritten.

mod keys;

use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use smol_str::{SmolStr, format_smolstr};
use trunkline_core::engine::{Rev, Seq, StateKey, is_same_stream};
use trunkline_core::{Error, ErrorKind, Filter, Result, Timestamp};

pub(in crate::consumer) use keys::{About, CONTROL, Keys, Layout, slot_and_seq};

/// The version of what is written here.
const VERSION: u32 = 1;
/// Bytes of an error text in a record at most, so that a record stays below 1 KiB.
const MAX_ERROR_BYTES: usize = 120;
/// Causes that are kept, and bytes of each.
const MAX_CAUSES: usize = 2;
const MAX_CAUSE_BYTES: usize = 50;
/// Attempts that are kept, and bytes of the error of each.
const MAX_ATTEMPTS: usize = 3;
const MAX_ATTEMPT_BYTES: usize = 30;

/// The reason for which a consumer is paused that is about to be reset, or divided into other
/// partitions: its members give up what they own as soon as nothing of it runs, and claim nothing.
pub(in crate::consumer) const CHANGING: &str = "being reset or divided";

/// A value of the bucket.
pub(in crate::consumer) trait Record: Serialize + DeserializeOwned {
    /// What it is called in an error.
    const WHAT: &'static str;

    /// As it is stored.
    fn encode(&self) -> Result<Bytes> {
        let versioned = Versioned {
            v: VERSION,
            record: self,
        };
        serde_json::to_vec(&versioned)
            .map(Bytes::from)
            .map_err(|error| {
                Error::new(
                    ErrorKind::Internal,
                    format!("a {} cannot be written", Self::WHAT),
                )
                .caused_by(error)
            })
    }

    /// Reads what is stored under `key`.
    ///
    /// # Errors
    /// [`ErrorKind::WrongVersion`] for a version that this program does not know,
    /// [`ErrorKind::Damaged`] for what is no record at all.
    fn decode(key: &StateKey, value: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct OnlyVersion {
            v: u32,
        }
        let damaged = |error| {
            Error::new(
                ErrorKind::Damaged,
                format!("the {} under {key} cannot be read", Self::WHAT),
            )
            .caused_by(error)
        };
        let OnlyVersion { v } = serde_json::from_slice(value).map_err(damaged)?;
        if v != VERSION {
            return Err(Error::new(
                ErrorKind::WrongVersion,
                format!(
                    "the {} under {key} was written in version {v}; this program knows version {VERSION}: \
                     use one that is as new as the others of this consumer",
                    Self::WHAT
                ),
            ));
        }
        serde_json::from_slice(value).map_err(damaged)
    }
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u32,
    #[serde(flatten)]
    record: &'a T,
}

/// What a consumer is, the same for all its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::consumer) struct Definition {
    pub(in crate::consumer) mode: Mode,
    /// Raised by a reset: what an older generation kept is not looked at any more.
    pub(in crate::consumer) generation: u64,
    /// A power of two up to 256.
    pub(in crate::consumer) partitions: u16,
    /// Every other number that it had in this generation, the last one last. How far it got by
    /// then stays where it was written, and what was settled there is passed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::consumer) earlier: Vec<u16>,
    /// The sequence below which nothing is wanted.
    pub(in crate::consumer) start: Seq,
    /// When the stream was made in which it has its place, where the engine tells: in another of that
    /// name the place means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::consumer) stream_made_at: Option<SmolStr>,
    /// Everything that some member has a handler for.
    pub(in crate::consumer) filters: Vec<SmolStr>,
    /// Why it is paused; it runs when there is no reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::consumer) paused: Vec<SmolStr>,
}

/// How the members of a consumer share its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::consumer) enum Mode {
    /// By key, each key in order.
    Ordered,
    /// Whoever is free.
    Shared,
}

impl Record for Definition {
    const WHAT: &'static str = "definition of a consumer";
}

impl Definition {
    pub(in crate::consumer) fn layout(&self) -> Layout {
        Layout {
            generation: self.generation,
            partitions: self.partitions,
        }
    }

    pub(in crate::consumer) fn is_changing(&self) -> bool {
        self.paused.iter().any(|reason| reason == CHANGING)
    }

    /// How it was divided before, in this generation, the last one last.
    pub(in crate::consumer) fn earlier(&self) -> impl DoubleEndedIterator<Item = Layout> {
        let generation = self.generation;
        self.earlier.iter().map(move |&partitions| Layout {
            generation,
            partitions,
        })
    }

    pub(in crate::consumer) fn filters(&self) -> Result<Vec<Filter>> {
        self.filters.iter().map(Filter::new).collect()
    }

    /// Whether its place is in the stream that was made then.
    pub(in crate::consumer) fn is_of_stream(&self, made_at: Option<Timestamp>) -> bool {
        let known = self.stream_made_at.as_ref().and_then(|at| at.parse().ok());
        is_same_stream(known, made_at)
    }

    /// Adds what is not covered yet; whether anything was.
    pub(in crate::consumer) fn add(&mut self, filters: &[Filter]) -> Result<bool> {
        let known = self.filters()?;
        let new = |filter: &&Filter| !known.iter().any(|known| known.covers(filter));
        let before = self.filters.len();
        self.filters.extend(
            filters
                .iter()
                .filter(new)
                .map(|filter| format_smolstr!("{filter}")),
        );
        Ok(self.filters.len() > before)
    }
}

/// What a member says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::consumer) struct Heartbeat {
    /// Counts up.
    pub(in crate::consumer) beat: u64,
    /// The revision of the definition by which it works.
    pub(in crate::consumer) definition: Rev,
    /// Whether it means to leave and wants no partitions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::consumer) leaving: bool,
}

impl Record for Heartbeat {
    const WHAT: &'static str = "heartbeat of a member";
}

/// Whose a partition is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::consumer) struct Owner {
    pub(in crate::consumer) state: Ownership,
    /// Who owns it, or did.
    pub(in crate::consumer) member: SmolStr,
    /// The commit that made it so, by which a claim whose answer was lost knows itself again.
    pub(in crate::consumer) claim: SmolStr,
    /// Of one that is closed: whether it had an owner by then, who may have been running anything. Of
    /// one that was released: whether a handler of it was stuck.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::consumer) abandoned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::consumer) enum Ownership {
    Owned,
    /// Given up in good order: nothing ran when it was.
    Released,
    /// Ended from outside, with its whole layout: nobody owns it any more, nor will, unless the
    /// consumer is divided like that again.
    Closed,
}

impl Record for Owner {
    const WHAT: &'static str = "owner of a partition";
}

/// How far a partition got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::consumer) struct Progress {
    /// Everything up to this sequence is settled.
    pub(in crate::consumer) floor: Seq,
    /// What is settled above it, as first and last of each run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::consumer) done: Vec<(Seq, Seq)>,
    /// An owner died that may have been running anything above the floor up to here. 0 if there is no such
    /// event left.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(in crate::consumer) suspects: Seq,
    #[serde(default)]
    pub(in crate::consumer) counts: Counts,
}

fn is_zero(seq: &Seq) -> bool {
    *seq == 0
}

impl Record for Progress {
    const WHAT: &'static str = "progress of a partition";
}

/// What became of a partition's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::consumer) struct Counts {
    pub(in crate::consumer) handled: u64,
    pub(in crate::consumer) dead: u64,
    /// Sequences at most that retention removed before they were handled.
    #[serde(default)]
    pub(in crate::consumer) expired_at_most: u64,
    /// Events of keyed types that came without a key.
    #[serde(default)]
    pub(in crate::consumer) unkeyed: u64,
}

/// An event that left the main flow: it failed, or it is behind one of its key that did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::consumer) struct Side {
    /// None for an event without a key, which has a lane of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::consumer) key: Option<SmolStr>,
    #[serde(flatten)]
    pub(in crate::consumer) state: SideState,
    /// How often its handler said no.
    #[serde(default)]
    pub(in crate::consumer) failures: u32,
    /// Runs since the last outcome that was committed.
    #[serde(default)]
    pub(in crate::consumer) starts: u32,
    /// In how many pieces its body is kept.
    pub(in crate::consumer) pieces: usize,
    /// Written by whoever had the event under a lease; the owner of its partition has not taken it on yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in crate::consumer) handed: bool,
    /// The entry of the dead letter that is run again, if that is what this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::consumer) replays: Option<Seq>,
    /// When and why it failed, the last few times, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::consumer) attempts: Vec<(SmolStr, SmolStr, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::consumer) first_failure: Option<SmolStr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::consumer) last_failure: Option<SmolStr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::consumer) reason: Option<SmolStr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::consumer) error: Option<String>,
    /// What that was caused by, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in crate::consumer) causes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(in crate::consumer) enum SideState {
    /// Behind another of its key.
    Following,
    /// Due that long after this record was stored.
    Waiting { delay_ms: u64 },
    /// Being run by the owner that wrote this.
    Running,
    /// Given up; its dead letter is about to be stored.
    Dying,
    /// Its dead letter is stored, and what follows it of its key waits until that is dealt with.
    Dead,
}

impl Record for Side {
    const WHAT: &'static str = "side record";
}

impl Side {
    pub(in crate::consumer) fn new(key: Option<SmolStr>, pieces: usize) -> Self {
        Self {
            key,
            state: SideState::Following,
            failures: 0,
            starts: 0,
            pieces,
            handed: false,
            replays: None,
            attempts: Vec::new(),
            first_failure: None,
            last_failure: None,
            reason: None,
            error: None,
            causes: Vec::new(),
        }
    }

    /// Of an event of a shared consumer, for the owner of its partition.
    pub(in crate::consumer) fn handed(state: SideState) -> Self {
        Self {
            state,
            handed: true,
            ..Self::new(None, 0)
        }
    }

    /// Writes down why and when it failed.
    pub(in crate::consumer) fn failed(
        &mut self,
        at: Timestamp,
        reason: &str,
        error: &str,
        causes: &[String],
    ) {
        let at = format_smolstr!("{at}");
        self.first_failure.get_or_insert_with(|| at.clone());
        if self.attempts.len() == MAX_ATTEMPTS {
            self.attempts.remove(0);
        }
        let short = abridged(error, MAX_ATTEMPT_BYTES).to_owned();
        self.attempts.push((at.clone(), reason.into(), short));
        self.last_failure = Some(at);
        self.reason = Some(reason.into());
        self.error = Some(abridged(error, MAX_ERROR_BYTES).to_owned());
        let causes = causes.iter().take(MAX_CAUSES);
        let short = causes.map(|cause| abridged(cause, MAX_CAUSE_BYTES).to_owned());
        self.causes = short.collect();
    }
}

/// A delay as records have it.
pub(in crate::consumer) fn millis(delay: Duration) -> u64 {
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
}

/// The text up to that many bytes, cut at a character.
fn abridged(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> StateKey {
        StateKey::new("a.b").unwrap()
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let side = Side {
            state: SideState::Waiting { delay_ms: 1_200 },
            failures: 1,
            ..Side::new(Some("ü".into()), 1)
        };
        let written = side.encode().unwrap();
        assert_eq!(
            std::str::from_utf8(&written).unwrap(),
            r#"{"v":1,"key":"ü","state":"waiting","delay_ms":1200,"failures":1,"starts":0,"pieces":1}"#
        );
        assert_eq!(Side::decode(&key(), &written).unwrap(), side);
        let progress = Progress {
            floor: 7,
            done: vec![(9, 12)],
            ..Progress::default()
        };
        let written = progress.encode().unwrap();
        assert_eq!(Progress::decode(&key(), &written).unwrap(), progress);
    }

    #[test]
    fn a_record_of_another_version_or_none_at_all_is_refused() {
        let refused = |value: &[u8]| Owner::decode(&key(), value).unwrap_err().kind();
        assert_eq!(refused(br#"{"v":2,"anything":1}"#), ErrorKind::WrongVersion);
        assert_eq!(refused(b"no record"), ErrorKind::Damaged);
        assert_eq!(refused(br#"{"v":1}"#), ErrorKind::Damaged);
    }

    #[test]
    fn a_record_stays_below_a_kibibyte_whatever_the_error() {
        let mut side = Side::new(Some("k".repeat(200).into()), 1);
        for _ in 0..10 {
            let long = "ü".repeat(10_000);
            let causes = vec![long.clone(); 5];
            side.failed(
                Timestamp::from_nanos(1),
                "unsupported_version",
                &long,
                &causes,
            );
        }
        assert!(side.encode().unwrap().len() < 1_024);
    }

    #[test]
    fn filters_grow_by_what_is_not_covered() {
        let filter = |text: &str| Filter::new(text).unwrap();
        let mut definition = Definition {
            mode: Mode::Ordered,
            generation: 0,
            partitions: 16,
            earlier: Vec::new(),
            start: 1,
            stream_made_at: None,
            filters: vec!["events.order.>".into()],
            paused: Vec::new(),
        };
        assert!(!definition.add(&[filter("events.order.placed")]).unwrap());
        assert!(definition.add(&[filter("events.user.made")]).unwrap());
        assert_eq!(definition.filters.len(), 2);
    }
}
