//! What this member owns, claims and gives up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::engine::Expectation;
use trunkline_core::{Error, ErrorKind, Result};

use super::super::assign::{self, advise};
use super::super::claim::Free;
use super::super::earlier::is_abandoned;
use super::super::membership::{Says, View};
use super::super::partition::Partition;
use super::super::record::{Layout, Mode, Ownership};
use super::Member;
use super::burials::Gone;
use super::handovers::Handovers;
use super::runs::RunId;
use super::standing::Taken;
use super::tasks::Done;

/// How long a partition beyond one's share must have been free before one claims it.
const SPARE_AFTER: Duration = Duration::from_millis(700);
/// How long others must have lacked a share before one gives a partition up to them.
const RELEASE_AFTER: Duration = Duration::from_secs(1);
/// How long to wait after somebody else was faster.
const AGAIN_AFTER: Duration = Duration::from_millis(300);

/// Why a partition is not simply owned or free.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hold {
    /// With the lease of that number.
    Claiming(u64),
    /// The record that says so is being written.
    Releasing,
    /// Not to be claimed before then.
    NotBefore(Instant),
    /// Free and beyond our share, since then.
    Spare(Instant),
    /// Ours, and others have lacked a share since then.
    Wanted(Instant),
}

impl Member {
    /// Takes note of what has changed around it.
    pub(super) fn see(&mut self, now: Instant) -> Result<()> {
        let view = self.membership.view.borrow_and_update().clone();
        if let Some(fault) = view.fault {
            return Err(fault);
        }
        if let Some((definition, rev)) = &view.definition {
            let known = self.membership.says.borrow().definition;
            if self.definition.as_ref() != Some(definition) || known != *rev {
                self.redefine(definition, *rev)?;
            }
        } else if view.complete {
            return Err(Error::new(
                ErrorKind::NoSuchConsumer,
                format!(
                    "consumer {} was deleted from stream {}",
                    self.shared.name, self.place.stream
                ),
            ));
        }
        let begins = self.place.lease.begins();
        if begins || self.lapse_due().is_some_and(|lapse| lapse <= now) {
            self.lapse();
        }
        if begins {
            self.place.lease.seen(view.beats);
        }
        Ok(())
    }

    fn redefine(&mut self, definition: &super::Definition, rev: u64) -> Result<()> {
        if definition.mode == Mode::Shared && definition.generation != self.joined {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "consumer {} was reset while nobody heard of this member; start it again",
                    self.shared.name
                ),
            ));
        }
        if self
            .definition
            .as_ref()
            .is_some_and(|known| known.layout() != definition.layout())
        {
            tracing::info!(
                consumer = %self.shared.name, stream = %self.place.stream, layout = %definition.layout(),
                "the consumer was reset or divided anew; the member begins again with it"
            );
            for partition in 0..u16::from(u8::MAX) + 1 {
                self.lose(partition);
            }
            self.reader.close();
        }
        let known = self.definition.as_ref().map(super::Definition::layout);
        if known != Some(definition.layout()) {
            self.layouts.push((rev, definition.layout()));
            self.listen_for_replays(definition.layout())?;
            if definition.mode == Mode::Shared {
                let (store, layout) = (self.place.store.clone(), definition.layout());
                self.handovers = Some(Handovers::watch(store, &self.place.keys, layout)?);
            }
        }
        let filters = definition.filters()?;
        if *self.filters != filters[..] {
            self.filters = filters.into();
            self.reader.close();
        }
        self.definition = Some(definition.clone());
        let rests = !definition.paused.is_empty();
        self.place.lease.rest(rests);
        if rests {
            self.put_back();
        }
        self.membership.says.send_modify(|says| {
            *says = Says {
                definition: rev,
                ..*says
            };
        });
        Ok(())
    }

    /// When the lease ends, while there is something to lose.
    pub(super) fn lapse_due(&self) -> Option<Instant> {
        let until = self.place.lease.until();
        until.filter(|_| !self.partitions.is_empty())
    }

    /// The lease has passed: others may own what was ours. Nothing of it may go on.
    fn lapse(&mut self) {
        if self.partitions.is_empty() {
            return;
        }
        tracing::warn!(
            consumer = %self.shared.name, stream = %self.place.stream, member = %self.place.me,
            partitions = self.partitions.len(),
            "the engine has not answered for so long that others may have taken over; what runs is cancelled"
        );
        let lost: Vec<u16> = self.partitions.keys().copied().collect();
        for partition in lost {
            self.lose(partition);
        }
    }

    /// Drops a partition that is not ours any more, or may not be.
    pub(super) fn lose(&mut self, partition: u16) {
        self.runs.cancel(partition);
        self.partitions.remove(&partition);
        self.holds.remove(&partition);
    }

    pub(super) fn claims_are_under_way(&self) -> bool {
        self.holds
            .values()
            .any(|hold| matches!(hold, Hold::Claiming(_)))
    }

    /// Gives up the partitions whose handlers are stuck. Their keys would stay closed for as long as
    /// this process lives; who is next counts what was running as started.
    fn resign_stuck(&mut self) {
        for run in self.runs.stuck() {
            if let Some(partition) = self.mine(run).filter(|one| !one.stopping) {
                partition.stop();
                tracing::warn!(
                    consumer = %self.shared.name, stream = %self.place.stream, partition = run.partition,
                    seq = run.seq, "a partition is given up because a handler of it is stuck"
                );
            }
        }
    }

    /// Claims what it should own and gives up what others should.
    pub(super) fn own(&mut self, now: Instant) -> Result<()> {
        let view = self.membership.view.borrow().clone();
        let Some(definition) = self.definition.clone() else {
            return Ok(());
        };
        if !view.complete || !self.place.lease.holds(now) {
            return Ok(());
        }
        let layout = definition.layout();
        self.notice_losses(&view, layout);
        self.sweep(&view, layout, now);
        if definition.is_changing() {
            for partition in self.partitions.values_mut() {
                partition.stop();
            }
            self.release_quiet(layout);
            return Ok(());
        }
        let alive: BTreeSet<SmolStr> = view
            .members
            .iter()
            .filter(|(member, seen)| {
                !seen.heartbeat.leaving && (**member == self.place.me || !view.is_dead(member, now))
            })
            .map(|(member, _)| member.clone())
            .collect();
        let partitions: BTreeMap<u16, assign::Seen> = (0..layout.partitions)
            .map(|id| (id, self.standing(&view, layout, id, now)))
            .collect();
        let advice = advise(&self.place.me, &alive, &partitions);
        for id in advice.claim {
            if !self.is_held_back(id, now) {
                self.claim(&view, layout, id)?;
            }
        }
        // Alone it would only stop the other keys too.
        if alive.len() > 1 {
            self.resign_stuck();
        }
        self.forget_holds(&advice.spare, &advice.release, now);
        for id in advice.spare {
            match self.holds.get(&id) {
                Some(Hold::Spare(since)) if now.duration_since(*since) >= SPARE_AFTER => {
                    self.claim(&view, layout, id)?;
                }
                None => {
                    self.holds.insert(id, Hold::Spare(now));
                }
                Some(_) => {}
            }
        }
        for id in advice.release {
            match self.holds.get(&id) {
                Some(Hold::Wanted(since)) if now.duration_since(*since) >= RELEASE_AFTER => {
                    if let Some(partition) = self.partitions.get_mut(&id) {
                        partition.stop();
                    }
                }
                None => {
                    self.holds.insert(id, Hold::Wanted(now));
                }
                Some(_) => {}
            }
        }
        self.release_quiet(layout);
        Ok(())
    }

    /// What was spare or wanted and is not any more begins anew next time.
    fn forget_holds(&mut self, spare: &[u16], release: &[u16], now: Instant) {
        self.holds.retain(|id, hold| match hold {
            Hold::Spare(_) => spare.contains(id),
            Hold::Wanted(_) => release.contains(id),
            Hold::NotBefore(until) => *until > now,
            Hold::Claiming(_) | Hold::Releasing => true,
        });
    }

    fn is_held_back(&mut self, id: u16, now: Instant) -> bool {
        match self.holds.get(&id) {
            Some(Hold::NotBefore(until)) if *until > now => true,
            Some(Hold::Claiming(_) | Hold::Releasing) => true,
            _ => false,
        }
    }

    /// Somebody else's name is on what we hold: it is lost, whatever our writes will say.
    fn notice_losses(&mut self, view: &View, layout: Layout) {
        let lost: Vec<u16> = self
            .partitions
            .values()
            .filter(|one| {
                let owner = view.owner(layout, one.id);
                owner.is_some_and(|(_, rev)| *rev > one.epoch)
                    && !matches!(self.holds.get(&one.id), Some(Hold::Releasing))
            })
            .map(|one| one.id)
            .collect();
        for id in lost {
            tracing::warn!(
                consumer = %self.shared.name, stream = %self.place.stream, partition = id,
                "another member has taken a partition over"
            );
            self.lose(id);
        }
    }

    /// How a partition stands, as far as this member is concerned.
    fn standing(&self, view: &View, layout: Layout, id: u16, now: Instant) -> assign::Seen {
        let me = &self.place.me;
        if self.partitions.contains_key(&id)
            || matches!(self.holds.get(&id), Some(Hold::Claiming(_)))
        {
            return assign::Seen::Owned(me.clone());
        }
        match view.owner(layout, id) {
            Some((owner, _)) if owner.state == Ownership::Owned && owner.member == *me => {
                // Ours without our doing anything for it: to be claimed anew, once nothing that
                // was started for it is left.
                match self.runs.has_any_of(id) {
                    true => assign::Seen::Owned(me.clone()),
                    false => assign::Seen::Free,
                }
            }
            Some((owner, _))
                if owner.state == Ownership::Owned && !view.is_dead(&owner.member, now) =>
            {
                assign::Seen::Owned(owner.member.clone())
            }
            // It was closed by what we have not heard of yet: it is not to be had any more.
            Some((owner, rev))
                if owner.state == Ownership::Closed
                    && *rev > self.membership.says.borrow().definition =>
            {
                assign::Seen::Owned(SmolStr::default())
            }
            // What was started for any key of it may be stuck here, also since before the consumer was
            // divided.
            _ if self.runs.has_any_of(id) || self.runs_since_before(layout, id) => {
                assign::Seen::Owned(me.clone())
            }
            _ => assign::Seen::Free,
        }
    }

    /// Whether a handler that was started in an earlier layout, for a slot of this partition, has
    /// not ended.
    fn runs_since_before(&self, layout: Layout, id: u16) -> bool {
        let Some((_, before)) = self.layouts.split_last() else {
            return false;
        };
        let left = |run: RunId| {
            // The layout of a run is the last one that was there when its partition was claimed.
            let since = self
                .layouts
                .partition_point(|(since, _)| *since < run.epoch);
            let of = since.checked_sub(1).and_then(|at| before.get(at));
            of.is_some_and(|(_, of)| of.sharing(layout, id).any(|one| one == run.partition))
        };
        self.runs.running().any(left)
    }

    fn claim(&mut self, view: &View, layout: Layout, id: u16) -> Result<()> {
        let Some(definition) = self.definition.clone() else {
            return Ok(());
        };
        let defined = self.membership.says.borrow().definition;
        let owner = view.owner(layout, id).cloned();
        let judged = match &owner {
            Some((owner, _))
                if owner.state == Ownership::Owned && owner.member != self.place.me =>
            {
                let heartbeat = view.members.get(&owner.member);
                let expect =
                    heartbeat.map_or(Expectation::Absent, |seen| Expectation::Rev(seen.rev));
                Some((self.place.keys.member(&owner.member)?, expect))
            }
            _ => None,
        };
        let free = Free {
            partition: id,
            owner,
            judged,
            is_abandoned: is_abandoned(&definition, id, |layout, id| {
                view.owner(layout, id).map(|(owner, _)| owner)
            }),
        };
        self.holds
            .insert(id, Hold::Claiming(self.place.lease.number()));
        let (place, filters) = (Arc::clone(&self.place), Arc::clone(&self.filters));
        self.tasks.spawn(async move {
            let claimed = place.claim((&definition, defined), &filters, free).await;
            Done::Claim(layout, id, claimed)
        });
        Ok(())
    }

    /// A claim has ended.
    pub(super) fn claimed(
        &mut self,
        layout: Layout,
        id: u16,
        claimed: Option<super::super::partition::Claimed>,
        now: Instant,
    ) -> Result<()> {
        let Some(definition) = &self.definition else {
            return Ok(());
        };
        // It was claimed as part of something that is no more.
        if definition.layout() != layout {
            return Ok(());
        }
        let Some(claimed) = claimed else {
            self.holds.insert(id, Hold::NotBefore(now + AGAIN_AFTER));
            return Ok(());
        };
        // Without the lease under which it was claimed it is not ours to begin; it will be claimed anew.
        let lease = &self.place.lease;
        match self.holds.remove(&id) {
            Some(Hold::Claiming(number)) if number == lease.number() && lease.holds(now) => {}
            _ => return Ok(()),
        }
        let mut partition = Partition::new(
            id,
            self.place.keys.clone(),
            layout,
            self.shared.bus.inner.engine.limits().max_value,
            claimed,
            now,
        );
        partition.lagging = self.reader.is_open() && partition.cursor().read() + 1 < self.reader.at;
        match self.shared.hold_key {
            true => partition.hold_keys(),
            // It was told so once, and is not any more.
            false => partition.let_all_go(now)?,
        }
        if self.stopping.borrow().to_owned() {
            partition.stop();
        }
        tracing::debug!(
            consumer = %self.shared.name, stream = %self.place.stream, partition = id,
            epoch = partition.epoch, from = partition.cursor().floor() + 1, beside = partition.sides(),
            "a partition is claimed"
        );
        // A replay whose record was found was taken on by an owner before: it is not taken on twice.
        let epoch = partition.epoch;
        for seq in partition.awaits_operators() {
            if !partition.holds(seq) {
                self.taken.insert(seq, Taken { rev: epoch, epoch });
            }
        }
        self.partitions.insert(id, partition);
        self.look_after_held(id, Gone::IsSettled);
        Ok(())
    }

    /// Writes down that partitions are given up in which nothing is left to do.
    pub(super) fn release_quiet(&mut self, layout: Layout) {
        let stuck = self.runs.stuck();
        let stuck_of = |one: &Partition| {
            let of = |run: &&RunId| run.partition == one.id && run.epoch == one.epoch;
            stuck.iter().filter(of).count()
        };
        let quiet: Vec<(u16, usize)> = self
            .partitions
            .values()
            .map(|one| (one, stuck_of(one)))
            .filter(|(one, stuck)| one.stopping && one.is_quiet_but_for(*stuck))
            .map(|(one, stuck)| (one.id, stuck))
            .collect();
        for (id, stuck) in quiet {
            if matches!(self.holds.get(&id), Some(Hold::Releasing))
                || self.runs.count_of(id) > stuck
            {
                continue;
            }
            if let Some(partition) = self.partitions.get(&id) {
                self.holds.insert(id, Hold::Releasing);
                let (place, epoch) = (Arc::clone(&self.place), partition.epoch);
                let (progress, abandoned) = (partition.progress(), stuck > 0);
                self.tasks.spawn(async move {
                    let release = place.release(layout, id, epoch, &progress, abandoned);
                    let released = release.await;
                    Done::Release(id, epoch, released)
                });
            }
        }
    }

    /// Removes the heartbeats of dead members that own nothing any more.
    fn sweep(&mut self, view: &View, layout: Layout, now: Instant) {
        for (member, seen) in &view.members {
            if *member == self.place.me
                || !view.is_dead(member, now)
                || self.swept.contains(&seen.rev)
            {
                continue;
            }
            let owns = |id| {
                let owner = view.owner(layout, id);
                owner.is_some_and(|(owner, _)| {
                    owner.state == Ownership::Owned && owner.member == *member
                })
            };
            if (0..layout.partitions).any(owns) {
                continue;
            }
            self.swept.insert(seen.rev);
            let (place, member, rev) = (Arc::clone(&self.place), member.clone(), seen.rev);
            self.tasks
                .spawn(async move { Done::Sweep(rev, place.sweep(&member, rev).await) });
        }
    }
}
