//! What is mis-wired on a NATS server, ours or not, in order of harm.
//!
//! ```text
//! examine(client) ──► Snapshot ──► judge ──► Vec<Finding>
//! asks, with limits    plain data    pure     in order of harm, each with its remedy
//! ```
//!
//! **Invariant:** nothing here changes anything on the server, and a judgement rests on nothing but
//! the snapshot: what could not be seen is listed there and never guessed.

pub mod rules;
pub mod snapshot;

mod near;

mod judge;

mod gather;

pub use gather::{Denials, Options, examine};
pub use judge::judge;
pub use rules::{RULES, Rule};
pub use snapshot::Snapshot;

use serde::Serialize;

/// How bad it is; what loses data comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Events are lost, or never reach those that they are for.
    Losing,
    /// Events are kept, but something stands still.
    Stalling,
    /// Work is done more often than it should be.
    Wasting,
    /// Nothing is wrong until something else happens.
    Risking,
}

impl Severity {
    /// Every severity, the most harmful first.
    pub const ALL: [Self; 4] = [Self::Losing, Self::Stalling, Self::Wasting, Self::Risking];

    /// One word, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Losing => "losing",
            Self::Stalling => "stalling",
            Self::Wasting => "wasting",
            Self::Risking => "risking",
        }
    }

    /// What it means, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Losing => "events are lost or never arrive",
            Self::Stalling => "something stands still",
            Self::Wasting => "work is done more often than it should be",
            Self::Risking => "it holds until something else fails",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// The rule that found it, for example `TD-01`.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: `stream EVENTS`, `consumer EVENTS/billing`, `subject order.placed`.
    pub object: String,
    /// What is seen.
    pub what: String,
    /// What comes of it.
    pub consequence: String,
    /// The command that mends it, or what to change where no command can.
    pub remedy: String,
}
