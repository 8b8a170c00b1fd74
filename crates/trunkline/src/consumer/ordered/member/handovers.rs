//! Handing an event that failed under a lease over to the owner of its partition.
//!
//! Whoever has the lease starts it anew, and if it still has it, writes a side record that expects to
//! be the first and says that it was handed over. The owner, if that is somebody else, hears of it by a
//! watch and takes it on with a write under its fence that expects the record as it was heard of: so an
//! old tale of a record that is done with changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use trunkline_core::engine::{
    Expectation, Op, Rev, Seq, Settle, Settler, StateKey, StoredEvent, Token, Watched,
};
use trunkline_core::{ErrorKind, Result};

use super::super::body;
use super::super::claim::Place;
use super::super::partition::Lane;
use super::super::record::{Keys, Layout, Ownership, Record as _, Side, SideState, slot_and_seq};
use super::super::store::{Known, Store};
use super::burials::bury;
use super::leases;
use super::tasks::Done;
use super::{Member, PAUSE};

/// Changes and bytes in one write at most; a single event may have more.
const MAX_OPS: usize = 200;
const MAX_BYTES: usize = 512 << 10;
/// Events that wait to be written, or that were heard of and are not taken on yet. Beyond it a member
/// fetches nothing.
const MAX_WAITING: usize = 10_000;
/// What was heard and waits to be looked at.
const MAX_HEARD: usize = 1_000;

/// An event that goes on beside the main flow.
#[derive(Clone, Debug)]
pub(super) struct Handover {
    pub(super) token: Token,
    pub(super) event: StoredEvent,
    pub(super) side: Side,
}

/// What a watch tells of side records.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are the large one, and each is there for a moment"
)]
pub(super) enum Heard {
    /// It begins, and tells of all that there are: what it does not tell of is gone.
    Anew,
    Stands {
        slot: u8,
        seq: Seq,
        /// Handed over and not taken on; none if it stands otherwise, or is gone.
        handed: Option<(Rev, Side)>,
    },
}

/// What was handed over, as far as it was heard of.
#[derive(Debug)]
pub(super) struct Handovers {
    heard: mpsc::Receiver<Heard>,
    task: AbortHandle,
    /// Those that nobody has taken on yet.
    open: BTreeMap<Seq, (u8, Rev, Side)>,
    /// Partitions whose handovers are being taken on.
    taking: BTreeSet<u16>,
    /// What this member itself is handing over to partitions of its own.
    own: BTreeSet<Seq>,
    /// What it gave up and handed over to others, who have not taken it on yet.
    dying: BTreeMap<Seq, (Layout, Side)>,
}

impl Drop for Handovers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Handovers {
    pub(super) fn watch(store: Store, keys: &Keys, layout: Layout) -> Result<Self> {
        let (tell, heard) = mpsc::channel(MAX_HEARD);
        let prefix = keys.sides(layout.generation)?;
        let task = tokio::spawn(async move {
            loop {
                match watch(&store, &prefix, &tell).await {
                    Err(error) if error.kind() == ErrorKind::Closed => return,
                    Err(error) => {
                        tracing::warn!(prefix = %prefix, %error, again_in = ?PAUSE, "side records could not be watched");
                    }
                    Ok(()) => return,
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Ok(Self {
            heard,
            task: task.abort_handle(),
            open: BTreeMap::new(),
            taking: BTreeSet::new(),
            own: BTreeSet::new(),
            dying: BTreeMap::new(),
        })
    }
}

/// Waits for news of handovers; for ever if nobody watches.
///
/// # Cancel safety
/// Dropping the future loses nothing.
pub(super) async fn next(handovers: &mut Option<Handovers>) -> Heard {
    let heard = match handovers {
        Some(handovers) => handovers.heard.recv().await,
        None => None,
    };
    match heard {
        Some(heard) => heard,
        None => std::future::pending().await,
    }
}

/// Tells of every side record until nobody listens.
async fn watch(store: &Store, prefix: &StateKey, tell: &mpsc::Sender<Heard>) -> Result<()> {
    let state = store.engine.state();
    let mut watch = state.watch(&store.bucket, Some(prefix), 0).await?;
    if tell.send(Heard::Anew).await.is_err() {
        return Ok(());
    }
    loop {
        let (key, handed) = match watch.next().await? {
            Watched::CaughtUp(_) => continue,
            Watched::Put(entry) => {
                // What is of a newer version is for its own members.
                let side = Side::decode(&entry.key, &entry.value).ok();
                let handed = side.filter(|side| side.handed);
                (entry.key, handed.map(|side| (entry.rev, side)))
            }
            Watched::Deleted { key, .. } | Watched::Expired { key, .. } => (key, None),
        };
        let Some((slot, seq)) = slot_and_seq(&key) else {
            continue;
        };
        if tell
            .send(Heard::Stands { slot, seq, handed })
            .await
            .is_err()
        {
            return Ok(());
        }
    }
}

impl Member {
    /// Whether so much is to be handed over that nothing may come to it.
    pub(super) fn handovers_are_full(&self) -> bool {
        let own = self.intake.as_ref().map_or(0, |one| one.handovers.len());
        let open = self.handovers.as_ref().map_or(0, |one| one.open.len());
        own + open >= MAX_WAITING
    }

    pub(super) fn heard_of_handover(&mut self, heard: Heard) {
        let Some(handovers) = &mut self.handovers else {
            return;
        };
        match heard {
            Heard::Anew => handovers.open.clear(),
            Heard::Stands { slot, seq, handed } => match handed {
                Some((rev, side)) => {
                    handovers.open.insert(seq, (slot, rev, side));
                }
                None => {
                    handovers.dying.remove(&seq);
                    handovers.open.remove(&seq);
                }
            },
        }
    }

    /// Writes what failed under leases beside the main flow, as much as there is at once.
    pub(super) fn hand_over(&mut self) -> Result<()> {
        let Some(layout) = self.definition.as_ref().map(super::Definition::layout) else {
            return Ok(());
        };
        let Some(intake) = &mut self.intake else {
            return Ok(());
        };
        if !intake.handing.is_empty() || intake.handovers.is_empty() {
            return Ok(());
        }
        let max_value = self.shared.bus.inner.engine.limits().max_value;
        let (mut writes, mut ops, mut bytes) = (Vec::new(), 0, 0);
        while ops < MAX_OPS
            && bytes < MAX_BYTES
            && let Some(handover) = intake.handovers.pop_front()
        {
            let mut write = Draft::new(&self.place.keys, layout, handover, max_value)?;
            let token = write.handover.token;
            let id = layout.partition(Lane::new(None, token.seq).slot());
            if let Some(partition) = self.partitions.get(&id)
                && let Some(handovers) = &mut self.handovers
            {
                write.epoch = Some(partition.epoch);
                handovers.own.insert(token.seq);
            }
            ops += write.ops.len();
            bytes += write.handover.event.body.rough_bytes();
            intake.handing.push(token);
            writes.push(write);
        }
        let (place, settler) = (Arc::clone(&self.place), Arc::clone(&intake.settler));
        self.tasks.spawn(async move {
            let written = async {
                let (writes, lost) = leased(settler.as_ref(), writes).await?;
                let stored = store(&place.store, writes).await?;
                Ok(HandedOver { stored, lost })
            };
            Done::HandedOver(layout, written.await)
        });
        Ok(())
    }

    /// They are stored, now or by an earlier delivery: whoever owns their partitions has them.
    pub(super) fn handed_over(&mut self, layout: Layout, written: HandedOver, now: Instant) {
        let HandedOver { stored, lost } = written;
        if let Some(intake) = &mut self.intake {
            intake.handing.clear();
            intake.lose(&lost);
        }
        if let Some(handovers) = &mut self.handovers {
            handovers
                .own
                .retain(|seq| lost.iter().all(|token| token.seq != *seq));
        }
        if !lost.is_empty() {
            tracing::warn!(
                consumer = %self.shared.name, stream = %self.place.stream, events = lost.len(),
                "leases had ended when their events failed, so what other members do with them counts"
            );
        }
        for Stored {
            handover,
            is_new,
            epoch,
        } in stored
        {
            let Handover { token, event, side } = handover;
            if let Some(intake) = &mut self.intake {
                intake.settle(token, Settle::Ack);
            }
            if let Some(handovers) = &mut self.handovers {
                handovers.own.remove(&token.seq);
            }
            // It was ours all the time, so nobody else can have taken it on; else we will hear of it.
            let id = layout.partition(Lane::new(None, token.seq).slot());
            if let Some(partition) = self.partitions.get_mut(&id)
                && is_new
                && Some(partition.epoch) == epoch
            {
                partition.adopt(token.seq, side, Some(&event), now);
            } else if is_new && side.state == SideState::Dying {
                if *self.stopping.borrow() {
                    self.bury_for_others(layout, token.seq, side);
                } else if let Some(handovers) = &mut self.handovers {
                    handovers.dying.insert(token.seq, (layout, side));
                }
            }
        }
    }

    /// Stores the dead letters of what was handed over and nobody has taken on.
    pub(super) fn bury_dying(&mut self) {
        let handovers = self.handovers.as_mut();
        let dying = handovers.map(|handovers| std::mem::take(&mut handovers.dying));
        for (seq, (layout, side)) in dying.unwrap_or_default() {
            let id = layout.partition(Lane::new(None, seq).slot());
            let is_ours = self.partitions.get(&id);
            if is_ours.is_none_or(|one| one.side(seq).is_none()) {
                self.bury_for_others(layout, seq, side);
            }
        }
    }

    /// Stores the dead letter of an event that somebody will find dying, if nobody has its partition now:
    /// this member may be the last for a while. Whoever finds the event finds its dead letter too.
    fn bury_for_others(&mut self, layout: Layout, seq: Seq, side: Side) {
        let id = layout.partition(Lane::new(None, seq).slot());
        let is_owned = {
            let view = self.membership.view.borrow();
            let owner = view.owner(layout, id);
            owner.is_some_and(|(owner, _)| {
                owner.state == Ownership::Owned
                    && owner.member != self.place.me
                    && !view.is_dead(&owner.member, Instant::now())
            })
        };
        let Some(intake) = self.intake.as_mut().filter(|_| !is_owned) else {
            return;
        };
        intake.burying += 1;
        let (place, shared) = (Arc::clone(&self.place), Arc::clone(&self.shared));
        let dead = self.dead(layout);
        self.tasks.spawn(async move {
            let noted = async {
                let burial = bury(&shared, &place, layout, &dead, (seq, 0), &side).await?;
                if !burial.ops.is_empty() {
                    let id = Store::commit_id();
                    place.store.commit(id, Vec::new(), burial.ops).await?;
                }
                Ok(())
            };
            Done::BuriedForOthers(noted.await)
        });
    }

    /// Takes on what others handed over to partitions of ours.
    pub(super) fn take_on(&mut self) {
        let Some(layout) = self.definition.as_ref().map(super::Definition::layout) else {
            return;
        };
        let Some(handovers) = &mut self.handovers else {
            return;
        };
        let partitions = &self.partitions;
        // What this member handed over to itself it has already.
        handovers.open.retain(|seq, (slot, ..)| {
            let partition = partitions.get(&layout.partition(*slot));
            partition.is_none_or(|one| one.side(*seq).is_none())
        });
        let mut found: BTreeMap<u16, Vec<(Seq, Rev, Side)>> = BTreeMap::new();
        for (seq, (slot, rev, side)) in &handovers.open {
            let id = layout.partition(*slot);
            let has_room = |id| {
                partitions
                    .get(id)
                    .is_some_and(|one| !one.stopping && one.has_room())
            };
            let some = found.get(&id).map_or(0, Vec::len);
            let is_busy = handovers.taking.contains(&id) || handovers.own.contains(seq);
            if some < MAX_OPS && has_room(&id) && !is_busy {
                let one = (*seq, *rev, side.clone());
                found.entry(id).or_default().push(one);
            }
        }
        for (id, found) in found {
            let Some(partition) = self.partitions.get(&id) else {
                continue;
            };
            handovers.taking.insert(id);
            let (place, epoch) = (Arc::clone(&self.place), partition.epoch);
            self.tasks.spawn(async move {
                let taken = take(&place, layout, id, epoch, found).await;
                Done::TakenOn(id, epoch, taken)
            });
        }
    }

    /// They are ours, or somebody was faster; they are not heard of again either way.
    pub(super) fn taken_on(&mut self, id: u16, epoch: Rev, taken: Taken, now: Instant) {
        if let Some(handovers) = &mut self.handovers {
            handovers.taking.remove(&id);
            for (seq, rev) in &taken.looked_at {
                handovers.dying.remove(seq);
                // It may have been handed over anew since.
                if handovers
                    .open
                    .get(seq)
                    .is_some_and(|(_, known, _)| known == rev)
                {
                    handovers.open.remove(seq);
                }
            }
        }
        if let Some(partition) = self.partitions.get_mut(&id)
            && partition.epoch == epoch
        {
            for (seq, side) in taken.taken {
                partition.adopt(seq, side, None, now);
            }
        }
    }
}

/// One handover as it is to be written.
struct Draft {
    handover: Handover,
    ops: Vec<Op>,
    /// Of its partition, if that is ours.
    epoch: Option<Rev>,
}

/// What became of handovers.
pub(super) struct HandedOver {
    stored: Vec<Stored>,
    /// Others have these by now.
    lost: Vec<Token>,
}

/// One handover that is written.
struct Stored {
    handover: Handover,
    /// Whether it is the first, and not there by an earlier delivery.
    is_new: bool,
    epoch: Option<Rev>,
}

impl Draft {
    fn new(keys: &Keys, layout: Layout, mut handover: Handover, max_value: usize) -> Result<Self> {
        let seq = handover.token.seq;
        let pieces = body::encode(&handover.event, max_value)?;
        handover.side.pieces = pieces.len();
        let slot = Lane::new(None, seq).slot();
        // It is the first that says so, or another delivery was faster.
        let mut ops = vec![Op::Put {
            key: keys.side(layout.generation, slot, seq)?,
            value: handover.side.encode()?,
            expect: Expectation::Absent,
            ttl: None,
        }];
        for (at, piece) in pieces.into_iter().enumerate() {
            ops.push(body::put(keys.piece(layout.generation, seq, at)?, piece));
        }
        Ok(Self {
            handover,
            ops,
            epoch: None,
        })
    }

    fn stored(self, is_new: bool) -> Stored {
        Stored {
            handover: self.handover,
            is_new,
            epoch: self.epoch,
        }
    }
}

/// Those that are still ours, for as long as a lease that starts anew, and the deliveries that are not:
/// a process that stood still fails what it had at work when it goes on, and others may have done it.
async fn leased(settler: &dyn Settler, mut writes: Vec<Draft>) -> Result<(Vec<Draft>, Vec<Token>)> {
    let tokens = writes.iter().map(|write| write.handover.token).collect();
    let lost = leases::lost_of(settler, tokens).await?;
    writes.retain(|write| !lost.contains(&write.handover.token));
    Ok((writes, lost.into_iter().collect()))
}

/// Stores them, all at once or, if one of them is there already, one after another.
async fn store(store: &Store, writes: Vec<Draft>) -> Result<Vec<Stored>> {
    if writes.is_empty() {
        return Ok(Vec::new());
    }
    let ops = writes.iter().flat_map(|write| write.ops.clone()).collect();
    let all = store.commit(Store::commit_id(), Vec::new(), ops).await?;
    if all != Known::Conflict {
        return Ok(writes.into_iter().map(|write| write.stored(true)).collect());
    }
    if let [_] = writes[..] {
        return Ok(writes
            .into_iter()
            .map(|write| write.stored(false))
            .collect());
    }
    let mut stored = Vec::with_capacity(writes.len());
    for write in writes {
        let ops = write.ops.clone();
        let one = store.commit(Store::commit_id(), Vec::new(), ops).await?;
        stored.push(write.stored(one != Known::Conflict));
    }
    Ok(stored)
}

/// What came of taking handovers on.
pub(super) struct Taken {
    looked_at: Vec<(Seq, Rev)>,
    taken: Vec<(Seq, Side)>,
}

async fn take(
    place: &Place,
    layout: Layout,
    id: u16,
    epoch: Rev,
    found: Vec<(Seq, Rev, Side)>,
) -> Result<Taken> {
    let looked_at = found.iter().map(|(seq, rev, _)| (*seq, *rev)).collect();
    let own = |(seq, rev, side): (Seq, Rev, Side)| {
        let side = Side {
            handed: false,
            ..side
        };
        let op = Op::Put {
            key: place
                .keys
                .side(layout.generation, Lane::new(None, seq).slot(), seq)?,
            value: side.encode()?,
            expect: Expectation::Rev(rev),
            ttl: None,
        };
        Ok((seq, side, op))
    };
    let changes: Vec<(Seq, Side, Op)> = found.into_iter().map(own).collect::<Result<_>>()?;
    let ops = changes.iter().map(|(.., op)| op.clone()).collect();
    let commit = |ops| place.fenced(layout, id, epoch, Store::commit_id(), ops);
    let mut taken = Vec::with_capacity(changes.len());
    if commit(ops).await? {
        taken.extend(changes.into_iter().map(|(seq, side, _)| (seq, side)));
    } else {
        for (seq, side, op) in changes {
            if commit(vec![op]).await? {
                taken.push((seq, side));
            }
        }
    }
    Ok(Taken { looked_at, taken })
}
