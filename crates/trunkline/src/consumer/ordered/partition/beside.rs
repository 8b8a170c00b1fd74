//! Events beside the main flow: what failed and waits for another run, what follows it, and what is
//! given up.

use std::time::Duration;

use bytes::Bytes;
use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::Result;
use trunkline_core::engine::{Op, Seq, StoredEvent};

use super::super::body;
use super::super::record::{Record as _, Side, SideState, millis};
use super::lane::{Lane, PARKED_AFTER};
use super::write::{Change, Then};
use super::{Beside, Ended, Fault, MAX_KEPT_BYTES, Partition};

impl Partition {
    /// Takes on what was handed over: its record is stored a moment ago. While the partition is given up
    /// only its dead letter can still be stored; all else is for the next owner, who finds it.
    pub(in super::super) fn adopt(
        &mut self,
        seq: Seq,
        side: Side,
        event: Option<&StoredEvent>,
        now: Instant,
    ) {
        let waits = self.stopping && side.state != SideState::Dying;
        if waits || self.sides.contains_key(&seq) {
            return;
        }
        let due = match side.state {
            SideState::Waiting { delay_ms } => now + Duration::from_millis(delay_ms),
            _ => now,
        };
        let side = Side {
            handed: false,
            ..side
        };
        let lane = Lane::new(side.key.clone(), seq);
        self.join_beside(&lane, seq, now);
        let beside = Beside {
            side: side.clone(),
            lane,
            running: false,
            is_dealt_with: false,
        };
        self.sides.insert(seq, beside);
        if let Some(event) = event {
            self.keep(event);
        }
        self.resume(seq, &side, due, now);
    }

    pub(super) fn side_finished(&mut self, seq: Seq, ended: Ended, now: Instant) -> Result<()> {
        let Some(beside) = self.sides.get_mut(&seq) else {
            return Ok(());
        };
        beside.running = false;
        match ended {
            Ended::Done => {
                self.running -= 1;
                self.cursor.counts.handled += 1;
                self.resolve(seq, Vec::new(), Then::Nothing, now)
            }
            Ended::Again {
                delay,
                counts,
                fault,
            } => {
                self.running -= 1;
                let side = &mut beside.side;
                side.failures += u32::from(counts);
                side.starts = 0;
                side.failed(fault.at, &fault.reason, &fault.error, &fault.causes);
                side.state = SideState::Waiting {
                    delay_ms: millis(delay),
                };
                self.stage_side(seq, Then::Wait(delay), now)
            }
            Ended::Dead(fault) => {
                beside.side.failures += 1;
                beside.side.starts = 0;
                self.dies(seq, &fault, now)
            }
            Ended::Cancelled => {
                self.running -= 1;
                beside.side.starts = 0;
                beside.side.state = SideState::Waiting { delay_ms: 0 };
                self.stage_side(seq, Then::Nothing, now)
            }
        }
    }

    /// It was announced and will not begin, so that this start does not count; those before it do.
    pub(super) fn unannounce(&mut self, seq: Seq, now: Instant) -> Result<()> {
        self.running -= 1;
        if let Some(beside) = self.sides.get_mut(&seq) {
            beside.running = false;
            beside.side.starts = beside.side.starts.saturating_sub(1);
            beside.side.state = SideState::Waiting { delay_ms: 0 };
        }
        self.stage_side(seq, Then::Nothing, now)
    }

    pub(super) fn dies(&mut self, seq: Seq, fault: &Fault, now: Instant) -> Result<()> {
        if let Some(beside) = self.sides.get_mut(&seq) {
            beside.side.state = SideState::Dying;
            beside
                .side
                .failed(fault.at, &fault.reason, &fault.error, &fault.causes);
        }
        self.stage_side(seq, Then::Bury, now)
    }

    /// Its dead letter is stored; `ops` say so. Where keys are held it stays in front of its key.
    pub(in super::super) fn buried(
        &mut self,
        seq: Seq,
        mut ops: Vec<Op>,
        now: Instant,
    ) -> Result<()> {
        self.running -= 1;
        let Some(beside) = self.sides.get_mut(&seq) else {
            return Ok(());
        };
        if beside.side.replays.is_none() {
            self.cursor.counts.dead += 1;
        }
        // Nothing follows what has no key.
        if !self.holds_keys || beside.is_dealt_with || beside.lane.key().is_none() {
            return self.resolve(seq, ops, Then::Nothing, now);
        }
        let side = &mut beside.side;
        side.state = SideState::Dead;
        side.starts = 0;
        side.replays = None;
        // The entry has the event from now on.
        let pieces = std::mem::take(&mut side.pieces);
        self.forget(seq);
        self.delete_body(seq, pieces, &mut ops)?;
        ops.extend(self.put_side(seq)?);
        self.stage(Change::new(seq, ops, Then::Nothing), now);
        Ok(())
    }

    /// From now on what follows a dead letter of its key waits for it.
    pub(in super::super) fn hold_keys(&mut self) {
        self.holds_keys = true;
    }

    /// Whether the key of this event waits for its dead letter to be dealt with.
    pub(in super::super) fn holds(&self, seq: Seq) -> bool {
        self.side(seq)
            .is_some_and(|side| side.state == SideState::Dead)
    }

    /// What would not go on, or be held again, if its dead letter was dealt with unnoticed.
    pub(in super::super) fn awaits_operators(&self) -> Vec<Seq> {
        let of_dead = |(seq, beside): (&Seq, &Beside)| {
            let side = &beside.side;
            let is = side.state == SideState::Dead || side.replays.is_some();
            is.then_some(*seq)
        };
        self.sides.iter().filter_map(of_dead).collect()
    }

    /// A dead letter was dealt with: what waits for it goes on. If it is about to run or runs, that
    /// ends as it does, and holds nothing whatever comes of it.
    pub(in super::super) fn let_go(&mut self, seq: Seq, now: Instant) -> Result<()> {
        match self.sides.get_mut(&seq) {
            Some(beside) if beside.side.state != SideState::Dead => {
                beside.is_dealt_with = true;
                Ok(())
            }
            _ => self.resolve(seq, Vec::new(), Then::Nothing, now),
        }
    }

    /// Nothing waits for a dead letter any more.
    pub(in super::super) fn let_all_go(&mut self, now: Instant) -> Result<()> {
        let mut held = self.awaits_operators();
        held.retain(|seq| self.holds(*seq));
        held.into_iter().try_for_each(|seq| self.let_go(seq, now))
    }

    /// A dead letter was run again and is done; `ops` say so, and its entry may go.
    pub(in super::super) fn replayed(
        &mut self,
        seq: Seq,
        ops: Vec<Op>,
        now: Instant,
    ) -> Result<()> {
        self.running -= 1;
        let entry = self.side(seq).and_then(|side| side.replays);
        self.resolve(seq, ops, entry.map_or(Then::Nothing, Then::Unbury), now)
    }

    /// Runs a dead letter again: in its place if its key was held for it, otherwise behind everything
    /// of its key that is here.
    pub(in super::super) fn replay(
        &mut self,
        event: &StoredEvent,
        key: Option<SmolStr>,
        entry: Seq,
        now: Instant,
    ) -> Result<()> {
        if self.holds(event.seq) {
            return self.replay_in_place(event, entry, now);
        }
        if self.sides.contains_key(&event.seq) || self.held.contains_key(&event.seq) {
            return Ok(());
        }
        let lane = Lane::new(key, event.seq);
        // What is queued came before what will follow it beside the main flow, and goes there first.
        self.park(&lane, now)?;
        self.put_beside(event, &lane, Then::Nothing, now, |side| {
            side.replays = Some(entry);
        })?;
        self.advance(&lane);
        Ok(())
    }

    fn replay_in_place(&mut self, event: &StoredEvent, entry: Seq, now: Instant) -> Result<()> {
        let seq = event.seq;
        let pieces = body::encode(event, self.max_value)?;
        let Some(beside) = self.sides.get_mut(&seq) else {
            return Ok(());
        };
        let lane = beside.lane.clone();
        beside.side = Side::new(lane.key(), pieces.len());
        beside.side.replays = Some(entry);
        let ops = self.put_whole(seq, pieces)?;
        self.stage(Change::new(seq, ops, Then::Nothing), now);
        if self.lanes.is_front(&lane, seq) {
            self.ready.push_front(seq);
        }
        Ok(())
    }

    /// What is known of an event beside the main flow.
    pub(in super::super) fn side(&self, seq: Seq) -> Option<&Side> {
        self.sides.get(&seq).map(|beside| &beside.side)
    }

    /// Removes a side record for good and lets the next of its key come forward.
    pub(super) fn resolve(
        &mut self,
        seq: Seq,
        mut ops: Vec<Op>,
        then: Then,
        now: Instant,
    ) -> Result<()> {
        let Some(beside) = self.sides.remove(&seq) else {
            return Ok(());
        };
        self.forget(seq);
        let slot = beside.lane.slot();
        ops.push(body::delete(self.keys.side(
            self.layout.generation,
            slot,
            seq,
        )?));
        self.delete_body(seq, beside.side.pieces, &mut ops)?;
        self.stage(Change::new(seq, ops, then), now);
        self.lanes.done(&beside.lane, seq);
        self.advance(&beside.lane);
        Ok(())
    }

    /// Keeps an event in memory if there is room; otherwise its record has it, as it has it anyway.
    fn keep(&mut self, event: &StoredEvent) {
        let bytes = event.body.rough_bytes();
        if self.kept_bytes + bytes <= MAX_KEPT_BYTES && !self.kept.contains_key(&event.seq) {
            self.kept_bytes += bytes;
            self.kept.insert(event.seq, event.clone());
        }
    }

    fn forget(&mut self, seq: Seq) {
        if let Some(event) = self.kept.remove(&seq) {
            self.kept_bytes -= event.body.rough_bytes();
        }
    }

    fn delete_body(&self, seq: Seq, pieces: usize, ops: &mut Vec<Op>) -> Result<()> {
        for piece in 0..pieces {
            let key = self.keys.piece(self.layout.generation, seq, piece)?;
            ops.push(body::delete(key));
        }
        Ok(())
    }

    /// Makes a side record of an event of the main flow. What is queued behind it follows after a while.
    pub(super) fn leave_main_flow(
        &mut self,
        seq: Seq,
        then: Then,
        now: Instant,
        say: impl FnOnce(&mut Side),
    ) -> Result<()> {
        let Some(held) = self.held.remove(&seq) else {
            return Ok(());
        };
        self.held_bytes -= held.in_hand.event.body.rough_bytes();
        self.lanes.leave(&held.lane, seq);
        self.put_beside(&held.in_hand.event, &held.lane, then, now, say)
    }

    /// Makes followers of what is queued behind side records of its key.
    pub(super) fn park(&mut self, lane: &Lane, now: Instant) -> Result<()> {
        for seq in self.lanes.take_queued(lane) {
            if let Some(held) = self.held.remove(&seq) {
                self.held_bytes -= held.in_hand.event.body.rough_bytes();
                self.put_beside(&held.in_hand.event, lane, Then::Nothing, now, |_| {})?;
            }
        }
        Ok(())
    }

    /// A side record joins its key; if it is the first, what follows is looked after in time.
    pub(super) fn join_beside(&mut self, lane: &Lane, seq: Seq, now: Instant) {
        if self.lanes.put_beside(lane, seq, now) && !self.stopping {
            self.parking.push_back((now + PARKED_AFTER, lane.clone()));
        }
    }

    pub(super) fn put_beside(
        &mut self,
        event: &StoredEvent,
        lane: &Lane,
        then: Then,
        now: Instant,
        say: impl FnOnce(&mut Side),
    ) -> Result<()> {
        let seq = event.seq;
        let pieces = body::encode(event, self.max_value)?;
        let mut side = Side::new(lane.key(), pieces.len());
        say(&mut side);
        self.join_beside(lane, seq, now);
        let beside = Beside {
            side,
            lane: lane.clone(),
            running: false,
            is_dealt_with: false,
        };
        self.sides.insert(seq, beside);
        self.keep(event);
        let ops = self.put_whole(seq, pieces)?;
        self.stage(Change::settling(seq, ops, then), now);
        Ok(())
    }

    /// A side record with the body that it is about.
    fn put_whole(&self, seq: Seq, pieces: Vec<Bytes>) -> Result<Vec<Op>> {
        let mut ops = Vec::with_capacity(pieces.len() + 1);
        for (at, piece) in pieces.into_iter().enumerate() {
            let key = self.keys.piece(self.layout.generation, seq, at)?;
            ops.push(body::put(key, piece));
        }
        ops.extend(self.put_side(seq)?);
        Ok(ops)
    }

    /// A side record as it is now.
    fn put_side(&self, seq: Seq) -> Result<Option<Op>> {
        let Some(Beside { side, lane, .. }) = self.sides.get(&seq) else {
            return Ok(None);
        };
        let key = self.keys.side(self.layout.generation, lane.slot(), seq)?;
        Ok(Some(body::put(key, side.encode()?)))
    }

    pub(super) fn stage_side(&mut self, seq: Seq, then: Then, now: Instant) -> Result<()> {
        if let Some(op) = self.put_side(seq)? {
            self.stage(Change::new(seq, vec![op], then), now);
        }
        Ok(())
    }
}
