//! What a consumer had settled before it was divided into another number of partitions.
//!
//! How far the partitions of an earlier layout got stays where they wrote it, and is never written
//! again. An event belongs to one slot, and a slot to one partition of each layout:
//!
//! ```text
//!              slot  0   1   2   3   4   5   6   7  …
//!  P8 (earlier)      0   1   2   3   4   5   6   7        8 floors, 8 × what was done above
//!  P4 (earlier)      0   1   2   3   0   1   2   3
//!  P2 (now)          0   1   0   1   0   1   0   1        begins at the lowest of its slots
//! ```
//!
//! An event is settled if its partition in any of the layouts has settled it. So a partition begins
//! above what is settled of all its slots, and passes over what is settled of some. Nothing has to be
//! known of the order of the layouts, and one that comes back goes on with what it had written.

use std::collections::BTreeMap;

use trunkline_core::engine::{Rev, Seq};
use trunkline_core::{Result, Timestamp};

use super::cursor::Cursor;
use super::record::{Definition, Keys, Layout, Owner, Ownership, Progress, Record as _};
use super::store::Store;

/// How far the partitions of earlier layouts got.
#[derive(Clone, Debug, Default)]
pub(in crate::consumer) struct Earlier {
    layouts: Vec<(Layout, BTreeMap<u16, Cursor>)>,
    /// The last sequence that any of them has settled.
    last_settled: Seq,
    /// The last of what any of them left in doubt.
    suspects: Seq,
}

/// Up to where a consumer has settled everything, as its partitions wrote it down.
pub(super) async fn floor(store: &Store, keys: &Keys, definition: &Definition) -> Result<Seq> {
    let mut all = Earlier::default();
    for layout in definition.earlier().chain([definition.layout()]) {
        all.add(layout, &progresses(store, keys, layout, 0).await?);
    }
    Ok(all.floor(0..=u8::MAX).max(definition.start - 1))
}

impl Earlier {
    /// Reads what earlier layouts left, as it stands at the revision of the definition or later.
    pub(in crate::consumer) async fn read(
        store: &Store,
        keys: &Keys,
        definition: &Definition,
        at_least: Rev,
    ) -> Result<Self> {
        let mut earlier = Self::default();
        for layout in definition.earlier() {
            let progresses = progresses(store, keys, layout, at_least).await?;
            earlier.add(layout, &progresses);
        }
        Ok(earlier)
    }

    pub(in crate::consumer) fn add(&mut self, layout: Layout, progresses: &[(u16, Progress)]) {
        let mut cursors = BTreeMap::new();
        for (partition, progress) in progresses {
            let cursor = Cursor::new(progress);
            self.suspects = self.suspects.max(progress.suspects);
            self.last_settled = self.last_settled.max(cursor.last_settled());
            cursors.insert(*partition, cursor);
        }
        self.layouts.push((layout, cursors));
    }

    /// What concerns one partition of a layout, above its floor.
    pub(super) fn of(mut self, layout: Layout, partition: u16, floor: Seq) -> Self {
        for (earlier, cursors) in &mut self.layouts {
            let shared: Vec<u16> = earlier.sharing(layout, partition).collect();
            cursors.retain(|one, cursor| shared.contains(one) && cursor.last_settled() > floor);
        }
        self.layouts.retain(|(_, cursors)| !cursors.is_empty());
        let cursors = self
            .layouts
            .iter()
            .flat_map(|(_, cursors)| cursors.values());
        self.last_settled = cursors.map(Cursor::last_settled).max().unwrap_or(0);
        self
    }

    pub(super) fn suspects(&self) -> Seq {
        self.suspects
    }

    pub(super) fn is_empty(&self) -> bool {
        self.layouts.is_empty()
    }

    /// The last sequence that any of them has settled.
    pub(super) fn last_settled(&self) -> Seq {
        self.last_settled
    }

    fn cursors(&self, slot: u8) -> impl Iterator<Item = &Cursor> {
        let layouts = self.layouts.iter();
        layouts.filter_map(move |(layout, cursors)| cursors.get(&layout.partition(slot)))
    }

    /// Whether an event of that slot is settled.
    pub(super) fn is_settled(&self, slot: u8, seq: Seq) -> bool {
        self.cursors(slot).any(|cursor| cursor.is_done(seq))
    }

    /// Up to where everything of these slots is settled; 0 if nothing is known of one.
    pub(in crate::consumer) fn floor(&self, slots: impl Iterator<Item = u8>) -> Seq {
        let floor = |slot| self.cursors(slot).map(Cursor::floor).max().unwrap_or(0);
        slots.map(floor).min().unwrap_or(0)
    }
}

/// How far the partitions of a layout got, those that have begun.
async fn progresses(
    store: &Store,
    keys: &Keys,
    layout: Layout,
    at_least: Rev,
) -> Result<Vec<(u16, Progress)>> {
    let progresses = progresses_and_times(store, keys, layout, at_least).await?;
    let without_time = |(partition, progress, _)| (partition, progress);
    Ok(progresses.into_iter().map(without_time).collect())
}

/// How far the partitions of a layout got, those that have begun, and when that was written.
pub(in crate::consumer) async fn progresses_and_times(
    store: &Store,
    keys: &Keys,
    layout: Layout,
    at_least: Rev,
) -> Result<Vec<(u16, Progress, Timestamp)>> {
    let entries = store.all(&keys.progresses(layout)?, at_least).await?;
    let mut progresses = Vec::with_capacity(entries.len());
    for entry in entries {
        let partition = entry.key.as_str().rsplit('.').next();
        if let Some(partition) = partition.and_then(|text| text.parse().ok()) {
            let progress = Progress::decode(&entry.key, &entry.value)?;
            progresses.push((partition, progress, entry.at));
        }
    }
    Ok(progresses)
}

/// Whether the last who worked for a partition left without having said how far it got, so that
/// whatever is not settled may have been running.
///
/// One that nobody has owned since the consumer was divided is as those were that it was made of.
pub(in crate::consumer) fn is_abandoned<'a>(
    definition: &Definition,
    partition: u16,
    owner: impl Fn(Layout, u16) -> Option<&'a Owner>,
) -> bool {
    let layout = definition.layout();
    match owner(layout, partition).map(|owner| (owner.state, owner.abandoned)) {
        Some((Ownership::Owned, _)) => true,
        Some((Ownership::Released, abandoned)) => abandoned,
        Some((Ownership::Closed, _)) | None => {
            definition.earlier().next_back().is_some_and(|last| {
                last.sharing(layout, partition)
                    .any(|one| owner(last, one).is_some_and(|owner| owner.abandoned))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::record::Mode;
    use super::*;

    fn layout(partitions: u16) -> Layout {
        Layout {
            generation: 0,
            partitions,
        }
    }

    fn progress(floor: Seq, done: &[(Seq, Seq)]) -> Progress {
        Progress {
            floor,
            done: done.to_vec(),
            ..Progress::default()
        }
    }

    /// Partitions that grow in number go on where the one was that they were part of; of those that
    /// are put together each event counts by its own.
    #[test]
    fn a_partition_begins_where_the_lowest_of_its_slots_is() {
        let mut earlier = Earlier::default();
        earlier.add(
            layout(2),
            &[(0, progress(10, &[(12, 13)])), (1, progress(20, &[]))],
        );
        for partition in 0..8 {
            let even = partition % 2 == 0;
            let floor = earlier.floor(layout(8).slots(partition));
            assert_eq!(floor, if even { 10 } else { 20 });
            let of = earlier.clone().of(layout(8), partition, floor);
            assert_eq!(
                (of.is_empty(), of.last_settled()),
                if even { (false, 13) } else { (true, 0) }
            );
        }
        let floor = earlier.floor(layout(1).slots(0));
        assert_eq!(floor, 10);
        let earlier = earlier.of(layout(1), 0, floor);
        let settled = |slot| (9..=21).filter(move |seq| earlier.is_settled(slot, *seq));
        assert_eq!(settled.clone()(4).collect::<Vec<_>>(), [9, 10, 12, 13]);
        assert_eq!(settled(5).collect::<Vec<_>>(), (9..=20).collect::<Vec<_>>());
    }

    #[test]
    fn what_no_partition_ever_got_to_is_not_settled() {
        let mut earlier = Earlier::default();
        earlier.add(layout(4), &[(0, progress(7, &[])), (2, progress(9, &[]))]);
        assert_eq!(earlier.floor(layout(2).slots(0)), 7);
        assert_eq!(earlier.floor(layout(2).slots(1)), 0);
        assert_eq!(earlier.floor(layout(1).slots(0)), 0);
        assert!(!earlier.is_settled(1, 1) && earlier.is_settled(0, 7) && !earlier.is_settled(0, 8));
    }

    /// Against a model that knows what was settled of every event: whatever the numbers of partitions
    /// were, one after another, what is handled in the end is everything, and nothing twice.
    #[test]
    fn whatever_the_numbers_were_each_event_is_settled_once() {
        for seed in 0..400_u64 {
            let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut random = |below: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % below
            };
            let events: Vec<u8> = (0..200 + random(200))
                .map(|_| u8::try_from(random(256)).unwrap())
                .collect();
            let mut written: BTreeMap<u16, BTreeMap<u16, Progress>> = BTreeMap::new();
            let mut settled: BTreeSet<Seq> = BTreeSet::new();
            let rounds = 1 + random(6);
            for round in 0..=rounds {
                // The last round finishes everything.
                let ends = round == rounds;
                let now = layout(1 << random(9));
                let mut earlier = Earlier::default();
                for (partitions, progresses) in &written {
                    if *partitions != now.partitions {
                        let progresses: Vec<_> = progresses
                            .iter()
                            .map(|(id, one)| (*id, one.clone()))
                            .collect();
                        earlier.add(layout(*partitions), &progresses);
                    }
                }
                for partition in 0..now.partitions {
                    // Some are never claimed.
                    if !ends && random(5) == 0 {
                        continue;
                    }
                    let known = written.entry(now.partitions).or_default();
                    let mut progress = known.get(&partition).cloned().unwrap_or_default();
                    let floor = earlier.floor(now.slots(partition));
                    progress.floor = progress.floor.max(floor);
                    let earlier = earlier.clone().of(now, partition, progress.floor);
                    let mut cursor = Cursor::new(&progress);
                    let reads = if ends {
                        events.len() as u64
                    } else {
                        random(events.len() as u64)
                    };
                    let mut open = Vec::new();
                    for seq in cursor.read() + 1..=reads {
                        let slot = events[usize::try_from(seq - 1).unwrap()];
                        let mine = now.partition(slot) == partition;
                        if mine && !cursor.is_done(seq) && !earlier.is_settled(slot, seq) {
                            assert!(!settled.contains(&seq), "seed {seed}: {seq} again");
                            cursor.take(seq);
                            open.push(seq);
                        }
                        if random(2) == 0 {
                            cursor.passed(seq);
                        }
                    }
                    for seq in open {
                        if ends || random(3) > 0 {
                            settled.insert(seq);
                            cursor.settle(seq);
                        }
                    }
                    known.insert(partition, cursor.progress());
                }
            }
            assert_eq!(settled.len(), events.len(), "seed {seed}: events are lost");
        }
    }

    #[test]
    fn what_nobody_claimed_since_is_as_it_was_left() {
        let definition = |partitions: u16, earlier: &[u16]| Definition {
            mode: Mode::Ordered,
            generation: 0,
            partitions,
            earlier: earlier.to_vec(),
            start: 1,
            stream_made_at: None,
            filters: Vec::new(),
            paused: Vec::new(),
        };
        let owner = |state, abandoned| Owner {
            state,
            member: "m".into(),
            claim: "c".into(),
            abandoned,
        };
        let owners = BTreeMap::from([
            ((4, 0), owner(Ownership::Owned, false)),
            ((4, 1), owner(Ownership::Released, false)),
            ((8, 0), owner(Ownership::Closed, true)),
            ((8, 1), owner(Ownership::Closed, false)),
            ((8, 6), owner(Ownership::Closed, true)),
            // Closed before the consumer was divided into 8.
            ((2, 1), owner(Ownership::Closed, true)),
        ]);
        let check = |partitions, earlier: &[u16], partition| {
            let definition = definition(partitions, earlier);
            is_abandoned(&definition, partition, |layout, partition| {
                owners.get(&(layout.partitions, partition))
            })
        };
        assert!(check(4, &[], 0) && !check(4, &[], 1) && !check(4, &[], 2));
        assert!(check(4, &[2, 8], 2), "6 of 8 was left, which has its slots");
        assert!(!check(4, &[2, 8], 3));
        assert!(check(16, &[8], 8) && !check(16, &[8], 9) && check(16, &[8], 14));
        assert!(!check(2, &[8], 1), "what an earlier time left is long over");
    }
}
