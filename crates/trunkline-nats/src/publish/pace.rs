//! Whether a group goes as one atomic batch or one by one, by what either took before.
//!
//! One by one is a stream of small writes: cheap where the server writes to its cache, and dear where
//! it syncs each of them. A batch costs the server files of its own, about two milliseconds, and one
//! sync for all. No client may see how a server is configured, so this one measures.

use std::time::Duration;

/// Every so many groups that go as a batch, one goes one by one, to see whether it is still slower.
const LOOK_AGAIN: u32 = 64;
/// Groups of fewer events tell how long a round takes, and nothing of its events.
const FEW: usize = 8;
/// Groups of as many tell what an event takes: the round is a small part of it.
const MANY: usize = 32;
/// An event that takes longer than this many seconds was synced to a disk.
const SYNCED: f64 = 100e-6;
/// How much a new measurement counts, against all before.
const WEIGHT: f64 = 0.2;

/// A group, as far as its cost depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) items: usize,
    /// How often one waits for the answers of others, because it has the key of one of them.
    pub(super) rounds: usize,
}

/// What things took, in seconds.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// A round of events that go one by one.
    round: f64,
    /// Each of these events, besides.
    each: f64,
    /// A batch, however few are in it, besides a round.
    batch: f64,
    /// Groups that went as a batch since one went otherwise.
    batches: u32,
}

/// Each event of a batch, besides. It hardly depends on the disk.
const EACH_OF_BATCH: f64 = 8e-6;

impl Default for Pace {
    fn default() -> Self {
        Self {
            round: 500e-6,
            each: 5e-6,
            batch: 2_000e-6,
            batches: 0,
        }
    }
}

impl Pace {
    /// Whether the group goes as a batch.
    pub(super) fn is_batch(&mut self, shape: Shape) -> bool {
        let (items, rounds) = (real(shape.items), real(shape.rounds));
        // Both need one round; what they need besides is compared, so that a server which is busy with
        // others does not look like one that syncs.
        let alone = (rounds - 1.0) * self.round + items * self.each;
        let together = self.batch + items * EACH_OF_BATCH;
        let dear = rounds > 1.0 || self.each > SYNCED;
        if shape.items < 2 || !dear || alone <= together || self.batches >= LOOK_AGAIN {
            self.batches = 0;
            return false;
        }
        self.batches += 1;
        true
    }

    /// Learns from a group that was stored.
    pub(super) fn took(&mut self, shape: Shape, as_batch: bool, time: Duration) {
        let (items, time) = (real(shape.items), time.as_secs_f64());
        if as_batch {
            learn(&mut self.batch, time - self.round - items * EACH_OF_BATCH);
        } else if shape.rounds == 1 && shape.items < FEW {
            learn(&mut self.round, time);
        } else if shape.rounds == 1 && shape.items >= MANY {
            learn(&mut self.each, (time - self.round) / items);
        }
    }
}

fn learn(known: &mut f64, measured: f64) {
    *known += WEIGHT * (measured.clamp(1e-7, 1.0) - *known);
}

fn real(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(items: usize, rounds: usize) -> Shape {
        Shape { items, rounds }
    }

    #[test]
    fn a_server_that_syncs_each_write_is_given_batches() {
        let mut pace = Pace::default();
        assert!(!pace.is_batch(shape(64, 1)));
        for _ in 0..20 {
            pace.took(shape(64, 1), false, Duration::from_millis(25));
        }
        assert!(pace.is_batch(shape(64, 1)));
        assert!(
            !pace.is_batch(shape(2, 1)),
            "two writes are less than a batch"
        );
        let batches = (0..200).filter(|_| pace.is_batch(shape(64, 1))).count();
        assert!((190..200).contains(&batches), "it looks again now and then");
    }

    #[test]
    fn a_server_that_does_not_is_given_them_only_where_keys_repeat() {
        let mut pace = Pace::default();
        for _ in 0..20 {
            // However busy it is.
            pace.took(shape(5, 1), false, Duration::from_millis(10));
            pace.took(shape(1_000, 1), false, Duration::from_millis(15));
        }
        assert!(!pace.is_batch(shape(5, 1)));
        assert!(!pace.is_batch(shape(1_000, 1)));
        assert!(pace.is_batch(shape(1_000, 150)), "150 round trips are more");
    }
}
