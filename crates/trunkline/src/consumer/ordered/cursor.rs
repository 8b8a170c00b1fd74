//! How far a partition got: everything up to the floor, and some above it.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_core::engine::Seq;

use super::record::{Counts, Progress};

/// The settled sequences of a partition.
///
/// ```text
///  settled      open      settled   open      settled   not read, but known to be settled
///  1 … floor │ floor+1 │  a … b   │ b+1 │   c … read  │  d … e
/// ```
///
/// Everything that the reader has passed and that is not open is settled: sequences of other partitions,
/// and those that no filter matches, are nobody's here. So what is kept grows with what is open, and
/// not with what was done above it.
#[derive(Clone, Debug, Default)]
pub(super) struct Cursor {
    floor: Seq,
    /// Settled and not read again yet: first → last of each run. Runs never touch.
    ahead: BTreeMap<Seq, Seq>,
    /// What this partition has taken and not settled.
    open: BTreeSet<Seq>,
    /// Up to where the reader has looked.
    read: Seq,
    pub(super) counts: Counts,
}

impl Cursor {
    pub(super) fn new(progress: &Progress) -> Self {
        Self {
            floor: progress.floor,
            ahead: progress.done.iter().copied().collect(),
            open: BTreeSet::new(),
            read: progress.floor,
            counts: progress.counts,
        }
    }

    pub(super) fn floor(&self) -> Seq {
        self.floor
    }

    /// Up to where the reader has looked.
    pub(super) fn read(&self) -> Seq {
        self.read
    }

    /// How much it has taken and not settled.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// The last sequence of one that was just made that is settled.
    pub(super) fn last_settled(&self) -> Seq {
        let ahead = self.ahead.last_key_value();
        ahead.map_or(self.floor, |(_, last)| self.floor.max(*last))
    }

    pub(super) fn is_done(&self, seq: Seq) -> bool {
        if seq <= self.read {
            return !self.open.contains(&seq);
        }
        let before = self.ahead.range(..=seq).next_back();
        before.is_some_and(|(_, last)| *last >= seq)
    }

    /// The reader has come to an event of this partition, which stays open until it is settled.
    pub(super) fn take(&mut self, seq: Seq) {
        self.open.insert(seq);
        self.passed(seq);
    }

    /// The reader has looked at everything up to this sequence.
    pub(super) fn passed(&mut self, seq: Seq) {
        self.read = self.read.max(seq);
        self.raise();
    }

    /// An event is settled; its effect on the floor is at once.
    pub(super) fn settle(&mut self, seq: Seq) {
        self.open.remove(&seq);
        if !self.is_done(seq) {
            self.insert(seq);
        }
        self.raise();
    }

    fn insert(&mut self, seq: Seq) {
        let mut first = seq;
        let mut last = seq;
        if let Some((&before, &end)) = self.ahead.range(..seq).next_back()
            && end + 1 == seq
        {
            first = before;
        }
        if let Some(&after) = self.ahead.get(&(seq + 1)) {
            last = after;
            self.ahead.remove(&(seq + 1));
        }
        self.ahead.insert(first, last);
    }

    /// Everything below the first open event is settled.
    fn raise(&mut self) {
        // What follows what was read, and is known to be settled, need not be read.
        while let Some(entry) = self.ahead.first_entry()
            && *entry.key() <= self.read + 1
        {
            self.read = self.read.max(entry.remove());
        }
        let below = self.open.first().map_or(self.read, |open| open - 1);
        self.floor = self.floor.max(below);
    }

    pub(super) fn progress(&self) -> Progress {
        let mut done = Vec::with_capacity(self.open.len() + self.ahead.len());
        let mut next = self.floor + 1;
        for open in self.open.iter().copied().chain([self.read + 1]) {
            if next < open {
                done.push((next, open - 1));
            }
            next = open + 1;
        }
        done.extend(self.ahead.iter().map(|(first, last)| (*first, *last)));
        Progress {
            floor: self.floor,
            done,
            suspects: 0,
            counts: self.counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_below_the_first_event_that_is_not_settled() {
        let mut cursor = Cursor::new(&Progress::default());
        let check = |cursor: &Cursor, floor, done: &[(Seq, Seq)]| {
            let progress = cursor.progress();
            assert_eq!((progress.floor, &progress.done[..]), (floor, done));
        };
        for seq in [2, 4, 5, 9] {
            cursor.take(seq);
        }
        // 1 is nobody's, nor are 3 and 6 to 8.
        check(&cursor, 1, &[(3, 3), (6, 8)]);
        cursor.settle(4);
        check(&cursor, 1, &[(3, 4), (6, 8)]);
        cursor.settle(5);
        check(&cursor, 1, &[(3, 8)]);
        cursor.settle(2);
        check(&cursor, 8, &[]);
        cursor.settle(9);
        check(&cursor, 9, &[]);
        cursor.passed(20);
        check(&cursor, 20, &[]);
    }

    #[test]
    fn what_was_settled_above_the_floor_is_known_to_a_successor() {
        let progress = Progress {
            floor: 3,
            done: vec![(6, 7), (9, 9)],
            ..Progress::default()
        };
        let mut cursor = Cursor::new(&progress);
        assert!(cursor.is_done(3) && cursor.is_done(6) && cursor.is_done(7) && cursor.is_done(9));
        assert!(!cursor.is_done(4) && !cursor.is_done(8) && !cursor.is_done(10));
        cursor.take(4);
        cursor.passed(5);
        cursor.settle(4);
        assert_eq!(cursor.progress().floor, 7);
        cursor.take(8);
        cursor.settle(8);
        assert_eq!(cursor.progress().floor, 9);
    }

    #[test]
    fn what_is_kept_does_not_grow_with_what_is_done_above_an_open_event() {
        let mut cursor = Cursor::new(&Progress::default());
        cursor.take(1);
        // Of sixteen partitions, so that no two of them are next to each other.
        for seq in (16..160_000).step_by(16) {
            cursor.take(seq);
            cursor.settle(seq);
        }
        cursor.passed(160_000);
        let progress = cursor.progress();
        assert_eq!((progress.floor, progress.done), (0, vec![(2, 160_000)]));
    }

    /// Against a set of numbers, in any order.
    #[test]
    fn any_order_of_settling_ends_at_the_same_floor() {
        for seed in 0..500_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut random = |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let mut cursor = Cursor::new(&Progress::default());
            let mut open: Vec<Seq> = Vec::new();
            let mut settled = BTreeSet::new();
            let mut at = 0;
            for _ in 0..60 {
                if random(2) == 0 {
                    at += 1 + random(3);
                    cursor.take(at);
                    open.push(at);
                } else if !open.is_empty() {
                    let index = usize::try_from(random(open.len() as u64)).unwrap();
                    let seq = open.swap_remove(index);
                    settled.insert(seq);
                    cursor.settle(seq);
                }
                let first_open = open.iter().min().copied();
                // A successor skips what is settled and nothing that is open.
                let successor = Cursor::new(&cursor.progress());
                assert!(
                    settled.iter().all(|seq| successor.is_done(*seq)),
                    "seed {seed}"
                );
                assert!(
                    !open.iter().any(|seq| successor.is_done(*seq)),
                    "seed {seed}"
                );
                if let Some(first) = first_open {
                    assert!(cursor.floor() < first, "seed {seed}");
                }
            }
        }
    }
}
