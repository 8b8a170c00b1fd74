//! Taking a partition over, and what has to be known before its first event runs.

use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use tokio::sync::Mutex;
use tokio::time::Instant;
use trunkline_core::engine::{Entry, Expectation, Op, Rev, Seq, StateKey};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result, Timestamp};

use super::body::put;
use super::earlier::Earlier;
use super::membership::Lease;
use super::partition::{Claimed, Lane};
use super::record::{
    Definition, Keys, Layout, Mode, Owner, Ownership, Progress, Record as _, Side, SideState,
    slot_and_seq,
};
use super::store::{Known, Store};

/// What every part of a member needs to reach its records.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) store: Store,
    pub(super) keys: Keys,
    pub(super) stream: Name,
    /// When the stream was made, where the engine tells.
    pub(super) made_at: Option<Timestamp>,
    pub(super) me: SmolStr,
    pub(super) lease: Arc<Lease>,
    pub(super) sides: Arc<Sides>,
}

/// The side records of all partitions as claims found them. There may be very many, and whoever claims
/// one partition mostly claims others with it, so that one scan is for all of them.
#[derive(Debug, Default)]
pub(super) struct Sides(Mutex<Option<Found>>);

#[derive(Debug)]
struct Found {
    generation: u64,
    /// Nothing is missing that was written by then.
    rev: Rev,
    entries: Vec<Entry>,
}

impl Sides {
    /// Nobody claims at the moment.
    pub(super) fn forget(&self) {
        if let Ok(mut found) = self.0.try_lock() {
            *found = None;
        }
    }
}

/// How a partition stands that is to be claimed.
#[derive(Clone, Debug)]
pub(super) struct Free {
    pub(super) partition: u16,
    /// Its owner's record, if it ever had one.
    pub(super) owner: Option<(Owner, Rev)>,
    /// The heartbeat by which the owner was judged dead, or that there is none; nothing for a
    /// partition that was released.
    pub(super) judged: Option<(StateKey, Expectation)>,
    /// Whether whoever worked for it left without having said how far it got.
    pub(super) is_abandoned: bool,
}

impl Place {
    /// Claims a partition and reads how it stands. None if somebody was faster.
    pub(super) async fn claim(
        &self,
        (definition, defined): (&Definition, Rev),
        filters: &[Filter],
        free: Free,
    ) -> Result<Option<Claimed>> {
        let layout = definition.layout();
        let claim = Store::commit_id();
        let key = self.keys.owner(layout, free.partition)?;
        let owner = Owner {
            state: Ownership::Owned,
            member: self.me.clone(),
            claim: claim.clone(),
            abandoned: false,
        };
        let at = self.keys.progress(layout, free.partition)?;
        let known = self.store.get(&at, 0).await?;
        let mut progress = match &known {
            Some(entry) => Progress::decode(&at, &entry.value)?,
            None => Progress {
                floor: definition.start - 1,
                ..Progress::default()
            },
        };
        let earlier = Earlier::read(&self.store, &self.keys, definition, defined).await?;
        progress.floor = progress
            .floor
            .max(earlier.floor(layout.slots(free.partition)));
        let earlier = earlier.of(layout, free.partition, progress.floor);
        // An owner that gave the partition up may not have come to all that one before it left in doubt.
        let suspects = progress.suspects.max(earlier.suspects());
        let expect = |rev: Option<Rev>| rev.map_or(Expectation::Absent, Expectation::Rev);
        let ops = vec![
            Op::Put {
                key: key.clone(),
                value: owner.encode()?,
                expect: expect(free.owner.as_ref().map(|(_, rev)| *rev)),
                ttl: None,
            },
            Op::Put {
                key: at.clone(),
                value: progress.encode()?,
                expect: expect(known.map(|entry| entry.rev)),
                ttl: None,
            },
        ];
        let fences = free.judged.into_iter().collect();
        let answer = self.store.commit(claim.clone(), fences, ops).await?;
        if answer == Known::Conflict {
            return Ok(None);
        }
        // Whatever the answer said, this is how it stands, and by whose clock.
        let seen = Instant::now();
        let at_least = match &answer {
            Known::Done(revs) => revs.first().copied().unwrap_or(0),
            _ => 0,
        };
        let Some(entry) = self.store.get(&key, at_least).await? else {
            return Ok(None);
        };
        if Owner::decode(&key, &entry.value)?.claim != claim {
            return Ok(None);
        }
        let epoch = entry.rev;
        if !matches!(answer, Known::Done(_)) || !self.lease.holds(Instant::now()) {
            // The claim is old news: only a write under its own fence shows that it still holds.
            let confirm = vec![put(at, progress.encode()?)];
            if !self
                .fenced(layout, free.partition, epoch, Store::commit_id(), confirm)
                .await?
            {
                return Ok(None);
            }
        }
        let sides = self.sides(layout, free.partition, epoch).await?;
        let due = |side: &Side, stored: Timestamp| match side.state {
            SideState::Waiting { delay_ms } => {
                let passed = entry.at.since(stored);
                seen + Duration::from_millis(delay_ms).saturating_sub(passed)
            }
            _ => seen,
        };
        let mine =
            |(owner, _): &(Owner, Rev)| owner.state == Ownership::Owned && owner.member == self.me;
        let lapsed = free.owner.as_ref().is_some_and(mine);
        let unclean = free.is_abandoned && !lapsed;
        let reads = definition.mode == Mode::Ordered;
        let tail = match reads {
            true => {
                let from = progress.floor + 1;
                self.store.tail(&self.stream, filters, from).await?
            }
            false => progress.floor + 1,
        };
        if progress.floor >= tail {
            return Err(Error::new(
                ErrorKind::Drift,
                format!(
                    "the consumer has handled stream {} up to event {}, and the stream ends before {tail}: \
                     it was made again with other events; give the consumer another name, or reset it",
                    self.stream, progress.floor
                ),
            ));
        }
        let sides = sides
            .into_iter()
            .map(|(seq, mut side, stored)| {
                // What we were running ourselves we also stopped, so that this start counts for nothing.
                // Any other start had no outcome: one that releases a partition has written every end
                // of its own runs before, and what it was not running it has left as it found it.
                if side.state == SideState::Running && lapsed {
                    side.starts = side.starts.saturating_sub(1);
                }
                let due = due(&side, stored);
                side.handed = false;
                (seq, side, due)
            })
            .collect();
        Ok(Some(Claimed {
            epoch,
            progress,
            earlier,
            sides,
            suspects: if unclean && reads { tail - 1 } else { suspects },
            reads,
        }))
    }

    /// The side records of one partition, in order, as they stand at that revision or later.
    async fn sides(
        &self,
        layout: Layout,
        partition: u16,
        at_least: Rev,
    ) -> Result<Vec<(Seq, Side, Timestamp)>> {
        let generation = layout.generation;
        let mut found = self.sides.0.lock().await;
        let serves = |found: &Found| found.generation == generation && found.rev >= at_least;
        if !found.as_ref().is_some_and(serves) {
            *found = None;
            let prefix = self.keys.sides(generation)?;
            let (entries, rev) = self.store.all_and_rev(&prefix, at_least).await?;
            *found = Some(Found {
                generation,
                rev,
                entries,
            });
        }
        let mut sides = Vec::new();
        for entry in found.iter().flat_map(|found| &found.entries) {
            let Some((slot, seq)) = slot_and_seq(&entry.key) else {
                continue;
            };
            if layout.partition(slot) == partition {
                let side = Side::decode(&entry.key, &entry.value)?;
                debug_assert_eq!(Lane::new(side.key.clone(), seq).slot(), slot);
                sides.push((seq, side, entry.at));
            }
        }
        sides.sort_unstable_by_key(|(seq, ..)| *seq);
        Ok(sides)
    }

    /// Writes under the fence of an owner; whether that still owned.
    pub(super) async fn fenced(
        &self,
        layout: Layout,
        partition: u16,
        epoch: Rev,
        id: SmolStr,
        ops: Vec<Op>,
    ) -> Result<bool> {
        let fence = (self.keys.owner(layout, partition)?, Expectation::Rev(epoch));
        let known = self.store.commit(id, vec![fence], ops).await?;
        Ok(known != Known::Conflict)
    }

    /// Gives a partition up; its progress goes with it. It is abandoned if something of it may still be
    /// at work.
    pub(super) async fn release(
        &self,
        layout: Layout,
        partition: u16,
        epoch: Rev,
        progress: &Progress,
        abandoned: bool,
    ) -> Result<()> {
        let id = Store::commit_id();
        let owner = Owner {
            state: Ownership::Released,
            member: self.me.clone(),
            claim: id.clone(),
            abandoned,
        };
        let ops = vec![
            Op::Put {
                key: self.keys.owner(layout, partition)?,
                value: owner.encode()?,
                expect: Expectation::Rev(epoch),
                ttl: None,
            },
            put(self.keys.progress(layout, partition)?, progress.encode()?),
        ];
        // If somebody else owns it by now, there is nothing to give up.
        self.store.commit(id, Vec::new(), ops).await.map(drop)
    }

    /// Forgets a member that is dead, at the heartbeat by which it was judged.
    pub(super) async fn sweep(&self, member: &str, rev: Rev) -> Result<()> {
        let delete = Op::Delete {
            key: self.keys.member(member)?,
            expect: Expectation::Rev(rev),
        };
        self.store
            .commit(Store::commit_id(), Vec::new(), vec![delete])
            .await
            .map(drop)
    }
}

/// Finds what the consumer is, makes it if there is none, and adds to it what this member handles.
/// Gives the revision, and how it is laid out.
pub(super) async fn define(
    store: &Store,
    keys: &Keys,
    wanted: &Definition,
    filters: &[Filter],
    made_at: Option<Timestamp>,
) -> Result<(Rev, Layout)> {
    let key = keys.definition()?;
    let mut layout = wanted.layout();
    let change = |found: Option<&Entry>| {
        let Some(entry) = found else {
            return wanted.encode().map(Some);
        };
        let mut definition = Definition::decode(&key, &entry.value)?;
        if definition.mode != wanted.mode {
            return Err(Error::new(
                ErrorKind::Drift,
                "the consumer's members share its events otherwise: all of them handle keys in order, or all say \
                 `.unordered()`; to change that, give the consumer another name, or stop them and delete it, which forgets \
                 how far it got",
            ));
        }
        if !definition.is_of_stream(made_at) {
            return Err(Error::new(
                ErrorKind::Drift,
                "the stream was deleted and made again since the consumer began: its place means nothing in the new \
                 one; say where to begin there with `trunkline consumers reset NAME --to first`",
            ));
        }
        let mut changed = definition.add(filters)?;
        layout = definition.layout();
        // Of a version that did not know of it.
        if definition.stream_made_at.is_none() && wanted.stream_made_at.is_some() {
            definition.stream_made_at.clone_from(&wanted.stream_made_at);
            changed = true;
        }
        if changed {
            definition.encode().map(Some)
        } else {
            Ok(None)
        }
    };
    let rev = store.update(&key, change).await?.unwrap_or(0);
    Ok((rev, layout))
}
