//! Events beside the main flow: what failed and waits for another run, what follows it, and what is
//! given up.

use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::Result;
use trunkline_core::engine::{Op, Seq, StoredEvent};

use super::super::body;
use super::super::record::{Record as _, Side, SideState, millis};
use super::lane::Lane;
use super::write::{Change, Then};
use super::{Beside, Ended, Fault, Partition};

impl Partition {
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

    pub(super) fn dies(&mut self, seq: Seq, fault: &Fault, now: Instant) -> Result<()> {
        if let Some(beside) = self.sides.get_mut(&seq) {
            beside.side.state = SideState::Dying;
            beside
                .side
                .failed(fault.at, &fault.reason, &fault.error, &fault.causes);
        }
        self.stage_side(seq, Then::Bury, now)
    }

    /// Its dead letter is stored; `ops` say so.
    pub(in super::super) fn buried(&mut self, seq: Seq, ops: Vec<Op>, now: Instant) -> Result<()> {
        self.running -= 1;
        if self.side(seq).is_some_and(|side| side.replays.is_none()) {
            self.cursor.counts.dead += 1;
        }
        self.resolve(seq, ops, Then::Nothing, now)
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

    /// Runs a dead letter again, behind everything of its key that is here.
    pub(in super::super) fn replay(
        &mut self,
        event: &StoredEvent,
        key: Option<SmolStr>,
        entry: Seq,
        now: Instant,
    ) -> Result<()> {
        if self.sides.contains_key(&event.seq) || self.held.contains_key(&event.seq) {
            return Ok(());
        }
        let lane = Lane::new(key, event.seq);
        // What is queued came before what will follow it beside the main flow, and goes there first.
        for seq in self.lanes.take_queued(&lane) {
            if let Some(held) = self.held.remove(&seq) {
                self.held_bytes -= held.event.body.rough_bytes();
                self.put_beside(&held.event, &held.lane, Then::Nothing, now, |_| {})?;
            }
        }
        self.put_beside(event, &lane, Then::Nothing, now, |side| {
            side.replays = Some(entry);
        })?;
        self.advance(&lane);
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
        let slot = beside.lane.slot();
        ops.push(body::delete(self.keys.side(
            self.layout.generation,
            slot,
            seq,
        )?));
        for piece in 0..beside.side.pieces {
            ops.push(body::delete(self.keys.piece(
                self.layout.generation,
                seq,
                piece,
            )?));
        }
        self.stage(Change::new(seq, ops, then), now);
        self.lanes.done(&beside.lane, seq);
        self.advance(&beside.lane);
        Ok(())
    }

    /// Makes a side record of an event of the main flow, and followers of what is queued behind it.
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
        self.held_bytes -= held.event.body.rough_bytes();
        let queued = self.lanes.leave(&held.lane, seq);
        self.put_beside(&held.event, &held.lane, then, now, say)?;
        for seq in queued {
            if let Some(held) = self.held.remove(&seq) {
                self.held_bytes -= held.event.body.rough_bytes();
                self.put_beside(&held.event, &held.lane, Then::Nothing, now, |_| {})?;
            }
        }
        Ok(())
    }

    pub(super) fn put_beside(
        &mut self,
        event: &StoredEvent,
        lane: &Lane,
        then: Then,
        now: Instant,
        say: impl FnOnce(&mut Side),
    ) -> Result<()> {
        let (seq, generation) = (event.seq, self.layout.generation);
        let pieces = body::encode(event, self.max_value)?;
        let mut side = Side::new(lane.key(), pieces.len());
        say(&mut side);
        let mut ops = Vec::with_capacity(pieces.len() + 1);
        for (at, piece) in pieces.into_iter().enumerate() {
            ops.push(body::put(self.keys.piece(generation, seq, at)?, piece));
        }
        ops.push(self.put_side(seq, lane, &side)?);
        self.lanes.put_beside(lane, seq);
        let beside = Beside {
            side,
            lane: lane.clone(),
            running: false,
        };
        self.sides.insert(seq, beside);
        self.stage(Change::settling(seq, ops, then), now);
        Ok(())
    }

    pub(super) fn put_side(&self, seq: Seq, lane: &Lane, side: &Side) -> Result<Op> {
        let key = self.keys.side(self.layout.generation, lane.slot(), seq)?;
        Ok(body::put(key, side.encode()?))
    }

    pub(super) fn stage_side(&mut self, seq: Seq, then: Then, now: Instant) -> Result<()> {
        if let Some(beside) = self.sides.get(&seq) {
            let op = self.put_side(seq, &beside.lane, &beside.side)?;
            self.stage(Change::new(seq, vec![op], then), now);
        }
        Ok(())
    }
}
