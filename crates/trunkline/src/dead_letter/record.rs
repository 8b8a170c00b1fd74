//! How a dead letter stands: the value of its key.
//!
//! ```text
//!                 ┌────────── dead again, with the history ─────────┐
//!                 ▼                                                 │
//!   buried ──► dead ── an operator asks, by compare-and-set ──► replaying ──► replayed
//!                 │                                                 :
//!                 └──► discarded ◄ ─ ─ only where nobody serves it ─┘
//! ```
//!
//! Operators write this key and nothing else. Whoever owns the event watches it, runs the event and
//! writes what came of it.

mod json;

use std::fmt;
use std::str::FromStr;

use smol_str::SmolStr;
use trunkline_core::engine::Seq;
use trunkline_core::{Envelope, Error, ErrorKind, Result, Timestamp};

use super::entry::Entry;
use super::text::abridged;

/// Bytes of the error and its causes in one line.
const MAX_ERROR_BYTES: usize = 1 << 10;
/// Bytes of the error of a replay that is over.
const MAX_REPLAY_ERROR_BYTES: usize = 256;
/// Replays that are kept.
const MAX_HISTORY: usize = 5;
/// Bytes of what an operator says, and of words that come from outside.
const MAX_WORD_BYTES: usize = 256;
/// A longer key is in the event only.
const MAX_KEY_BYTES: usize = 1 << 10;

/// How a dead letter stands, and its story in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// How it stands.
    pub state: State,
    /// Where its entry is in the dead-letter stream.
    pub entry: Seq,
    /// What tells the event's stream from another of its name, where the engine knows.
    pub incarnation: Option<SmolStr>,
    /// The key whose order the event keeps; none either if it has more than 1 KiB.
    pub key: Option<SmolStr>,
    /// The event's id; none if it is no event.
    pub event_id: Option<SmolStr>,
    /// The event's type; none if it is no event.
    pub event_type: Option<SmolStr>,
    /// Why it was given up last, in a word.
    pub reason: SmolStr,
    /// The last error and its causes in one line.
    pub error: String,
    /// How often a handler said no, replays included.
    pub failures: u32,
    /// When it failed first.
    pub first_failure: Timestamp,
    /// When it failed last.
    pub last_failure: Timestamp,
    /// How often it was replayed, this time included.
    pub replays: u32,
    /// The last five replays that are over, oldest first.
    pub history: Vec<Replay>,
}

/// How a dead letter stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Nobody dealt with it yet.
    Dead,
    /// Somebody asked for it to be run again, and it has not come to an end.
    Replaying {
        /// Who asked.
        by: SmolStr,
        /// When.
        at: Timestamp,
    },
    /// Run again, and done.
    Replayed {
        /// When.
        at: Timestamp,
    },
    /// Given up for good.
    Discarded {
        /// Who did.
        by: SmolStr,
        /// When.
        at: Timestamp,
        /// Why.
        reason: String,
    },
}

/// The name of a [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stands {
    /// See [`State::Dead`].
    Dead,
    /// See [`State::Replaying`].
    Replaying,
    /// See [`State::Replayed`].
    Replayed,
    /// See [`State::Discarded`].
    Discarded,
}

/// A replay that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Who asked for it.
    pub by: SmolStr,
    /// When.
    pub at: Timestamp,
    /// When it was over.
    pub ended: Timestamp,
    /// Why the event was given up again, and the error; none if it was done.
    pub failed: Option<(SmolStr, String)>,
}

impl Record {
    /// That of an entry which was just stored, or which nobody noted down. Of an event that can be
    /// read it has the id and type.
    pub fn dead(entry: &Entry, seq: Seq, event: Option<&Envelope>) -> Self {
        let key = entry.key.clone();
        Self {
            state: State::Dead,
            entry: seq,
            incarnation: entry.incarnation.clone(),
            key: key.filter(|key| key.len() <= MAX_KEY_BYTES),
            event_id: event.map(|event| SmolStr::from(event.id().to_string())),
            event_type: event.map(|event| word(event.event_type())),
            reason: word(&entry.reason),
            error: abridged(&entry.chain(), MAX_ERROR_BYTES).to_owned(),
            failures: entry.failures,
            first_failure: entry.first_failure,
            last_failure: entry.last_failure,
            replays: 0,
            history: Vec::new(),
        }
    }

    /// Asked to be run again; none unless it is dead.
    #[must_use]
    pub fn replaying(&self, by: &str, at: Timestamp) -> Option<Self> {
        let dead = self.state == State::Dead;
        dead.then(|| Self {
            state: State::Replaying { by: word(by), at },
            replays: self.replays.saturating_add(1),
            ..self.clone()
        })
    }

    /// Run again and done; none unless it is being replayed.
    #[must_use]
    pub fn replayed(&self, at: Timestamp) -> Option<Self> {
        Some(Self {
            state: State::Replayed { at },
            history: self.history_with(at, None)?,
            ..self.clone()
        })
    }

    /// Run again and given up again, after so many more failures; none unless it is being replayed.
    #[must_use]
    pub fn dead_again(
        &self,
        at: Timestamp,
        reason: &str,
        error: &str,
        failures: u32,
    ) -> Option<Self> {
        Some(Self {
            state: State::Dead,
            history: self.history_with(at, Some((reason, error)))?,
            reason: word(reason),
            error: abridged(error, MAX_ERROR_BYTES).to_owned(),
            failures: self.failures.saturating_add(failures),
            last_failure: at,
            ..self.clone()
        })
    }

    /// Given up for good; none unless it is dead, or is being replayed and that is to be given up
    /// as well.
    #[must_use]
    pub fn discarded(&self, discard: &Discard, by: &str, at: Timestamp) -> Option<Self> {
        let may = match self.state {
            State::Dead => true,
            State::Replaying { .. } => discard.also_replaying,
            State::Replayed { .. } | State::Discarded { .. } => false,
        };
        may.then(|| Self {
            state: State::Discarded {
                by: word(by),
                at,
                reason: abridged(&discard.reason, MAX_WORD_BYTES).to_owned(),
            },
            ..self.clone()
        })
    }

    /// The history with the replay that is over now.
    fn history_with(&self, ended: Timestamp, failed: Option<(&str, &str)>) -> Option<Vec<Replay>> {
        let State::Replaying { by, at } = &self.state else {
            return None;
        };
        let mut history = self.history.clone();
        history.push(Replay {
            by: by.clone(),
            at: *at,
            ended,
            failed: failed.map(|(reason, error)| {
                let error = abridged(error, MAX_REPLAY_ERROR_BYTES).to_owned();
                (word(reason), error)
            }),
        });
        history.drain(..history.len().saturating_sub(MAX_HISTORY));
        Some(history)
    }

    /// Whether nothing more is to come.
    pub fn is_resolved(&self) -> bool {
        matches!(self.state.stands(), Stands::Replayed | Stands::Discarded)
    }
}

/// Giving up a dead letter for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discard {
    reason: String,
    also_replaying: bool,
}

impl Discard {
    /// Because of that, in at most 256 bytes.
    pub fn because(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            also_replaying: false,
        }
    }

    /// Also one that somebody asked to replay. For a consumer of which no member runs any more: if
    /// one does, the event may be handled all the same.
    #[must_use]
    pub fn also_replaying(mut self) -> Self {
        self.also_replaying = true;
        self
    }
}

fn word(text: &str) -> SmolStr {
    abridged(text, MAX_WORD_BYTES).into()
}

impl State {
    /// Its name.
    pub fn stands(&self) -> Stands {
        match self {
            State::Dead => Stands::Dead,
            State::Replaying { .. } => Stands::Replaying,
            State::Replayed { .. } => Stands::Replayed,
            State::Discarded { .. } => Stands::Discarded,
        }
    }
}

impl Stands {
    /// Every state there is.
    pub const ALL: [Stands; 4] = [
        Stands::Dead,
        Stands::Replaying,
        Stands::Replayed,
        Stands::Discarded,
    ];

    /// As it is written everywhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Stands::Dead => "dead",
            Stands::Replaying => "replaying",
            Stands::Replayed => "replayed",
            Stands::Discarded => "discarded",
        }
    }
}

impl fmt::Display for Stands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Stands {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|known| known.as_str() == text);
        known.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("{text:?} is no state: use dead, replaying, replayed or discarded"),
            )
        })
    }
}

#[cfg(test)]
mod tests;
