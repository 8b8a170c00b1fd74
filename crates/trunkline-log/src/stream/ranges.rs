//! Sets of sequences, kept as ranges.

use std::collections::BTreeMap;

use trunkline_core::engine::Seq;

/// A set of sequences. What lies side by side is one range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges {
    /// Start and end (exclusive); they neither overlap nor touch.
    ranges: BTreeMap<Seq, Seq>,
}

impl Ranges {
    /// Adds `start..end`.
    pub(crate) fn insert(&mut self, start: Seq, end: Seq) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        if let Some((before, before_end)) = self.ranges.range(..=start).next_back()
            && *before_end >= start
        {
            start = *before;
            end = end.max(*before_end);
        }
        while let Some((next, next_end)) = self.ranges.range(start..=end).next() {
            let (next, next_end) = (*next, *next_end);
            end = end.max(next_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
    }

    pub(crate) fn contains(&self, seq: Seq) -> bool {
        self.skip(seq) != seq
    }

    /// The first sequence from `seq` on that is not in the set.
    pub(crate) fn skip(&self, seq: Seq) -> Seq {
        let before = self.ranges.range(..=seq).next_back();
        before.map_or(seq, |(_, end)| seq.max(*end))
    }

    /// How many of `start..end` are in the set.
    pub(crate) fn count(&self, start: Seq, end: Seq) -> u64 {
        self.within(start, end)
            .map(|(start, end)| end - start)
            .sum()
    }

    /// The parts of the set within `start..end`, in order.
    pub(crate) fn within(&self, start: Seq, end: Seq) -> impl Iterator<Item = (Seq, Seq)> {
        let before = self.ranges.range(..start).next_back();
        let after = (start < end).then(|| self.ranges.range(start..end));
        let all = before.into_iter().chain(after.into_iter().flatten());
        all.map(move |(from, to)| ((*from).max(start), (*to).min(end)))
            .filter(|(from, to)| from < to)
    }

    /// Takes everything below `seq` out.
    pub(crate) fn forget_below(&mut self, seq: Seq) {
        while let Some((start, end)) = self.ranges.first_key_value() {
            let (start, end) = (*start, *end);
            if start >= seq {
                break;
            }
            self.ranges.remove(&start);
            if end > seq {
                self.ranges.insert(seq, end);
            }
        }
    }

    /// Takes the first ranges out, so many at most.
    pub(crate) fn take_first(&mut self, most: usize) -> Vec<(Seq, Seq)> {
        std::iter::from_fn(|| self.ranges.pop_first())
            .take(most)
            .collect()
    }

    /// How many ranges there are.
    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Seq, Seq)> {
        self.ranges.iter().map(|(start, end)| (*start, *end))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sim::Random;

    #[test]
    fn ranges_are_the_set_that_they_stand_for() {
        let mut random = Random::new(1);
        for _ in 0..300 {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for _ in 0..30 {
                let (start, len) = (random.below(60), random.below(8));
                ranges.insert(start, start + len);
                set.extend(start..start + len);
                if random.below(8) == 0 {
                    let below = random.below(30);
                    ranges.forget_below(below);
                    set.retain(|seq| *seq >= below);
                }
                let (a, b) = (random.below(70), random.below(70));
                assert_eq!(ranges.contains(a), set.contains(&a));
                let free = (a..).find(|seq| !set.contains(seq)).unwrap();
                assert_eq!(ranges.skip(a), free);
                let within = if a < b {
                    set.range(a..b).count() as u64
                } else {
                    0
                };
                assert_eq!(ranges.count(a, b), within);
                let all: Vec<_> = ranges.iter().flat_map(|(start, end)| start..end).collect();
                assert!(all.iter().eq(&set), "{ranges:?} {set:?}");
                let (mut rest, most) = (ranges.clone(), random.index(4));
                let taken = rest.take_first(most);
                assert_eq!(taken.len(), most.min(ranges.len()));
                assert!(taken.into_iter().chain(rest.iter()).eq(ranges.iter()));
                let starts = set.iter().filter(|seq| !set.contains(&seq.wrapping_sub(1)));
                assert_eq!(ranges.len(), starts.count());
            }
        }
    }
}
