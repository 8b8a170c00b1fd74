//! What the handler of each event does, and what is to become of the event therefore.

use std::time::Duration;

use super::hub::Hub;

/// What the handler of one event does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// It succeeds after that long.
    Works(Duration),
    /// Its first attempts fail, so many of them; then it succeeds.
    Fails(u32),
    /// As [`Fails`](Self::Fails), by a panic.
    Panics(u32),
    /// Every attempt fails.
    NeverWorks,
    /// It says that it will never work.
    Permanent,
    /// Its process dies at its first starts, so many of them; then it succeeds.
    Kills(u32),
}

/// How often an event may start without an outcome before it is given up.
const MAX_STARTS: u32 = 5;

impl Script {
    /// Draws one. Only where processes may die, some kill theirs.
    pub(crate) fn draw(hub: &Hub, attempts: u32, may_kill: bool) -> Self {
        let millis = |low, high| Duration::from_millis(hub.pick(low..=high));
        let times = |hub: &Hub| {
            u32::try_from(hub.pick(1..=u64::from(attempts.saturating_sub(1).max(1)))).unwrap_or(1)
        };
        match hub.pick(0..1_000) {
            0..50 if attempts > 1 => Script::Fails(times(hub)),
            50..70 if attempts > 1 => Script::Panics(times(hub)),
            70..90 => Script::NeverWorks,
            90..110 => Script::Permanent,
            110..130 if may_kill => Script::Kills(1),
            130..138 if may_kill => Script::Kills(2),
            // More often than anybody lets it, since not every start of it is known to its successors.
            138..140 if may_kill => Script::Kills(MAX_STARTS + 3),
            140..150 => Script::Works(millis(1_000, 12_000)),
            150..250 => Script::Works(millis(50, 500)),
            250..550 => Script::Works(millis(1, 20)),
            _ => Script::Works(Duration::ZERO),
        }
    }

    /// Why its event ends as a dead letter, if it does.
    pub(crate) fn dead(self) -> Option<&'static str> {
        match self {
            Script::NeverWorks | Script::Permanent => Some("failed"),
            Script::Kills(times) if times >= MAX_STARTS => Some("crash_loop"),
            _ => None,
        }
    }

    /// How often its handler runs when nothing goes wrong that is not in the script.
    pub(crate) fn runs(self, attempts: u32) -> u32 {
        match self {
            Script::Works(_) | Script::Permanent => 1,
            Script::Fails(times) | Script::Panics(times) | Script::Kills(times) => times + 1,
            Script::NeverWorks => attempts,
        }
    }
}
