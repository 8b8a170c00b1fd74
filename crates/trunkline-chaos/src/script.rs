//! What the handler of each event does, and what is to become of the event therefore.

use std::time::Duration;

use trunkline::Retry;

use crate::dice::Dice;

/// How often an event is tried at most.
pub(crate) const ATTEMPTS: u32 = 4;

/// Events of such lanes are handled at once: they are what clients do when all is well again.
pub(crate) const AFTER: &str = "after";

/// The policy of both consumers.
pub(crate) fn retry() -> Retry {
    Retry::list([200, 400, 800].map(Duration::from_millis))
}

/// What the handler of one event does, on whatever worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// How long a run takes.
    pub(crate) work: Duration,
    pub(crate) ending: Ending,
}

/// How its runs end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Works,
    /// The first attempts fail, so many of them.
    Fails(u32),
    NeverWorks,
    /// It says that it will never work.
    Permanent,
}

impl Script {
    /// The script of the event with this number in its lane.
    pub(crate) fn of(seed: u64, lane: &str, n: u32) -> Self {
        let mut dice = Dice::about(seed, lane, n);
        if lane.contains(AFTER) {
            let (work, ending) = (Duration::ZERO, Ending::Works);
            return Self { work, ending };
        }
        let ending = match dice.from(0, 1_000) {
            0..10 => Ending::Permanent,
            10..20 => Ending::NeverWorks,
            20..60 => Ending::Fails(1),
            60..75 => Ending::Fails(2),
            75..80 => Ending::Fails(ATTEMPTS - 1),
            _ => Ending::Works,
        };
        // Longer than a lease is, and longer than an event may keep the floor of its partition down.
        let (low, high) = match dice.from(0, 1_000) {
            0 if ending == Ending::Works => (11_000, 11_500),
            1..4 if ending == Ending::Works => (4_000, 6_000),
            4..44 => (200, 800),
            44..300 => (5, 40),
            _ => (0, 3),
        };
        Self {
            work: Duration::from_millis(dice.from(low, high)),
            ending,
        }
    }

    /// Whether this attempt works.
    pub(crate) fn works(self, attempt: u32) -> bool {
        match self.ending {
            Ending::Works => true,
            Ending::Fails(times) => attempt > times,
            Ending::NeverWorks | Ending::Permanent => false,
        }
    }

    /// Whether its event ends as a dead letter.
    pub(crate) fn dies(self) -> bool {
        matches!(self.ending, Ending::NeverWorks | Ending::Permanent)
    }

    /// Whether a failure of this attempt is the last one.
    pub(crate) fn gives_up_at(self, attempt: u32) -> bool {
        match self.ending {
            Ending::Permanent => true,
            Ending::NeverWorks => attempt >= ATTEMPTS,
            Ending::Works | Ending::Fails(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_a_function_of_the_event_and_every_ending_occurs() {
        let scripts = |seed| (0..5_000).map(move |n| Script::of(seed, "k.p0.1", n));
        assert!(scripts(3).eq(scripts(3)));
        assert!(!scripts(3).eq(scripts(4)));
        for ending in [
            Ending::Works,
            Ending::Fails(1),
            Ending::Fails(3),
            Ending::NeverWorks,
            Ending::Permanent,
        ] {
            assert!(
                scripts(3).any(|script| script.ending == ending),
                "{ending:?}"
            );
        }
        assert!(scripts(3).any(|script| script.work > Duration::from_secs(10)));
        let after = |n| Script::of(3, "k.after.w1", n);
        assert!((0..5_000).all(|n| after(n).works(1)));
    }

    #[test]
    fn every_event_comes_to_an_end_within_its_attempts() {
        for n in 0..5_000 {
            let script = Script::of(1, "u.p1.0", n);
            let ends = (1..=ATTEMPTS)
                .find(|attempt| script.works(*attempt) || script.gives_up_at(*attempt));
            assert!(ends.is_some(), "{script:?}");
            assert_eq!(script.dies(), !script.works(ATTEMPTS));
        }
    }
}
