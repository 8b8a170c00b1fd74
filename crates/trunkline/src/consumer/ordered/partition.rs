//! One partition in the hands of its owner: a machine without input or output.
//!
//! It is told of events, of handlers that ended, of writes that were stored and of the time; it says
//! what to start, what to write and what to bury. Nothing is in it that another member could not
//! find again in the records, but for what finished since the last write.
//!
//! ```text
//!            offer                 start              finished: done
//!  reader ─────────► lane: queue ────────► running ──────────────────► settled (cursor)
//!                          │                 │ failed, or long at work, or a suspect
//!                          │ its key has     ▼
//!                          └──────────────► side record: following → waiting → running
//!                            one for long         │ given up             │ done: removed
//!                                                 ▼                      ▼
//!                                            dying → dead letter    next of its key
//! ```
//!
//! Where keys are held, the record of a dead letter stays in front of its key until somebody has
//! dealt with it.
//!
//! **Invariant:** a write that makes a side record carries the cursor in which its event is settled,
//! and no cursor that settles it is written before.

mod beside;
mod lane;
mod write;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rustc_hash::FxHashMap;
use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::engine::{Rev, Seq, StoredEvent};
use trunkline_core::{Result, Timestamp};

use super::cursor::Cursor;
use super::earlier::Earlier;
use super::record::{Keys, Layout, Progress, Side, SideState, millis};
use crate::consumer::turn::InHand;
use lane::{Lanes, PARKED_AFTER};
use write::Change;

pub(super) use lane::Lane;
pub(super) use write::{Next, Then, Write};

/// Events of one partition that are read and not settled at most: their record has 64 KiB.
const WINDOW: usize = 2_048;
/// Completions that may wait for their commit.
const MAX_UNCOMMITTED: usize = 512;
/// How long a completion may wait for its commit before nothing new is started.
const LONGEST_UNCOMMITTED: Duration = Duration::from_millis(500);
/// Runs without an outcome after which an event is given up, because it takes its process with it.
const MAX_STARTS: u32 = 5;
/// From this start on an event runs alone in its member, so that no neighbour is blamed.
const ALONE_FROM: u32 = 3;
/// Bytes of events beside the main flow that one partition keeps in memory, so that their next run need not
/// read them.
const MAX_KEPT_BYTES: usize = 1 << 20;
/// Side records of one partition at most. At the limit it stops reading.
pub(in crate::consumer) const MAX_SIDES: usize = 10_000;

/// What a claim found.
pub(super) struct Claimed {
    pub(super) epoch: Rev,
    pub(super) progress: Progress,
    /// What was settled above that before the consumer was divided like this.
    pub(super) earlier: Earlier,
    /// The side records of the partition, in order, and when each that waits is due.
    pub(super) sides: Vec<(Seq, Side, Instant)>,
    /// What an owner that died may have been running: everything above the floor up to here. Its
    /// first run is committed before it begins. 0 if the last owner left in good order.
    pub(super) suspects: Seq,
    /// Whether the partition reads the stream itself.
    pub(super) reads: bool,
}

/// What the partition wants to be run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) seq: Seq,
    /// In how many pieces its side record keeps it, and under which generation; none in the main flow.
    pub(super) pieces: usize,
    pub(super) generation: u64,
    pub(super) failures: u32,
}

/// What starting the next event came to.
#[derive(Debug)]
pub(super) enum Start {
    /// Run it now. The permit is used.
    Run(Run, InHand),
    /// It is to be run once the write that says so is stored. The permit is used.
    AfterWrite,
    /// It will not be run any more: it took its process with it too often. The permit is free.
    GivenUp,
}

/// What became of a run.
#[derive(Debug)]
pub(super) enum Ended {
    Done,
    Again {
        delay: Duration,
        /// Whether it counts as a failure.
        counts: bool,
        fault: Fault,
    },
    Dead(Fault),
    /// It was stopped by us, which is nobody's fault.
    Cancelled,
}

/// Why a run failed.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) at: Timestamp,
    pub(super) reason: SmolStr,
    pub(super) error: String,
    /// What the error was caused by, the nearest first.
    pub(super) causes: Vec<String>,
}

pub(super) struct Partition {
    pub(super) id: u16,
    pub(super) epoch: Rev,
    keys: Keys,
    layout: Layout,
    /// Bytes of one value of the bucket at most.
    max_value: usize,
    cursor: Cursor,
    /// Whether it reads the stream, and its cursor says how far. Of a shared consumer the engine does.
    reads: bool,
    /// Passed over; empty once the reader is past all of it.
    earlier: Earlier,
    suspects: Seq,
    lanes: Lanes,
    /// Events of the main flow that are not settled.
    held: FxHashMap<Seq, Held>,
    held_bytes: usize,
    sides: FxHashMap<Seq, Beside>,
    /// The events of some of them.
    kept: FxHashMap<Seq, StoredEvent>,
    kept_bytes: usize,
    /// What may start, in the order in which it may.
    ready: VecDeque<Seq>,
    due: BTreeSet<(Instant, Seq)>,
    /// When what follows side records of a key is to join them.
    parking: VecDeque<(Instant, Lane)>,
    /// What was started and has not ended, runs that wait for their write included.
    running: usize,
    staged: VecDeque<Change>,
    writing: Option<Vec<(Seq, Then)>>,
    /// Completions that no write has taken, and when the first of them was.
    uncommitted: usize,
    dirty_since: Option<Instant>,
    /// The same of the write under way.
    in_write: usize,
    in_write_since: Option<Instant>,
    /// When the floor was last written, although nothing but the reader moved it.
    written_at: Instant,
    written_floor: Seq,
    /// Behind the member's reader: it reads for itself until it has caught up.
    pub(super) lagging: bool,
    /// Whether what follows a dead letter of its key waits for it.
    holds_keys: bool,
    pub(super) stopping: bool,
}

struct Held {
    in_hand: InHand,
    lane: Lane,
    running: bool,
}

struct Beside {
    side: Side,
    lane: Lane,
    running: bool,
    /// Whether an operator has dealt with its dead letter, so that nothing is to wait for it any more.
    is_dealt_with: bool,
}

impl Partition {
    pub(super) fn new(
        id: u16,
        keys: Keys,
        layout: Layout,
        max_value: usize,
        claimed: Claimed,
        now: Instant,
    ) -> Self {
        let reads = claimed.reads;
        let mut cursor = Cursor::new(&claimed.progress);
        let mut lanes = Lanes::default();
        let (mut sides, mut parking) = (FxHashMap::default(), VecDeque::new());
        for (seq, side, _) in &claimed.sides {
            let lane = Lane::new(side.key.clone(), *seq);
            if lanes.put_beside(&lane, *seq, now) {
                parking.push_back((now + PARKED_AFTER, lane.clone()));
            }
            if reads {
                cursor.settle(*seq);
            }
            let beside = Beside {
                side: side.clone(),
                lane,
                running: false,
                is_dealt_with: false,
            };
            sides.insert(*seq, beside);
        }
        let mut partition = Self {
            id,
            epoch: claimed.epoch,
            keys,
            layout,
            max_value,
            written_floor: cursor.floor(),
            cursor,
            reads,
            earlier: claimed.earlier,
            suspects: claimed.suspects,
            lanes,
            held: FxHashMap::default(),
            held_bytes: 0,
            sides,
            kept: FxHashMap::default(),
            kept_bytes: 0,
            ready: VecDeque::new(),
            due: BTreeSet::new(),
            parking,
            running: 0,
            staged: VecDeque::new(),
            writing: None,
            uncommitted: 0,
            dirty_since: None,
            in_write: 0,
            in_write_since: None,
            written_at: now,
            lagging: false,
            holds_keys: false,
            stopping: false,
        };
        for (seq, side, due) in claimed.sides {
            partition.resume(seq, &side, due, now);
        }
        partition
    }

    /// Goes on with a side record as it was found.
    fn resume(&mut self, seq: Seq, side: &Side, due: Instant, now: Instant) {
        // Only the first of a key can be anything but a follower.
        match side.state {
            _ if !self.lanes.begin(&Lane::new(side.key.clone(), seq), seq) => {}
            SideState::Waiting { .. } => {
                self.due.insert((due, seq));
            }
            SideState::Following | SideState::Running => self.ready.push_back(seq),
            SideState::Dead => {}
            SideState::Dying => {
                self.running += 1;
                self.stage(Change::then(seq, Then::Bury), now);
            }
        }
    }

    /// How far it got, and what of that its next owner has to be careful with.
    pub(super) fn progress(&self) -> Progress {
        let is_left = self.suspects > self.cursor.floor();
        Progress {
            suspects: if is_left { self.suspects } else { 0 },
            ..self.cursor.progress()
        }
    }

    pub(super) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    pub(super) fn sides(&self) -> usize {
        self.sides.len()
    }

    /// Events of the main flow that it has and that are not done.
    pub(super) fn held_events(&self) -> usize {
        self.held.len()
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether it can take another event.
    pub(super) fn has_room(&self) -> bool {
        self.open() < WINDOW && self.sides.len() + self.staged.len() < MAX_SIDES
    }

    /// Events that are not settled, held or about to be written beside the main flow: the record of its
    /// progress grows with them, and has to fit into a value.
    fn open(&self) -> usize {
        self.cursor.open().max(self.held.len())
    }

    /// Whether it has taken so little that reading for it is worth while.
    pub(super) fn has_much_room(&self) -> bool {
        self.open() < WINDOW / 2 && self.has_room()
    }

    /// An event that the reader came to; one that is settled already is passed over.
    pub(super) fn offer(
        &mut self,
        in_hand: InHand,
        key: Option<SmolStr>,
        now: Instant,
    ) -> Result<()> {
        let seq = in_hand.event.seq;
        if self.cursor.is_done(seq) || seq <= self.cursor.read() {
            return Ok(());
        }
        let lane = Lane::new(key, seq);
        if !self.earlier.is_empty() {
            // Like what belongs to others: the floor rises without it.
            if self.earlier.is_settled(lane.slot(), seq) {
                return Ok(());
            }
            // What comes later was settled by nobody.
            if seq > self.earlier.last_settled() {
                self.earlier = Earlier::default();
            }
        }
        self.cursor.take(seq);
        if matches!(lane, Lane::Alone(_)) {
            self.cursor.counts.unkeyed += 1;
        }
        if self.lanes.is_to_park(&lane, now) {
            self.park(&lane, now)?;
            return self.put_beside(&in_hand.event, &lane, Then::Nothing, now, |_| {});
        }
        self.held_bytes += in_hand.event.body.rough_bytes();
        self.lanes.push(&lane, seq);
        let held = Held {
            in_hand,
            lane: lane.clone(),
            running: false,
        };
        self.held.insert(seq, held);
        self.advance(&lane);
        Ok(())
    }

    /// The reader has looked at everything up to this sequence.
    pub(super) fn passed(&mut self, seq: Seq) {
        self.cursor.passed(seq);
    }

    /// Retention removed these before they were read; what is beside the main flow is kept.
    pub(super) fn expired(&mut self, from: Seq, to: Seq) {
        let from = from.max(self.cursor.read() + 1);
        if from <= to {
            self.cursor.counts.expired_at_most += to - from + 1;
            self.cursor.passed(to);
        }
    }

    /// Lets the next of a lane come forward, if nothing of it is at work.
    fn advance(&mut self, lane: &Lane) {
        if let Some(next) = self.lanes.next(lane) {
            match self.side(next).map(|side| side.state) {
                None => self.ready.push_back(next),
                // It stays in front until it is dealt with.
                Some(SideState::Dead) => {}
                // What has waited long goes before what was never tried.
                Some(_) => self.ready.push_front(next),
            }
        }
    }

    /// What is due by now may start, and what has followed others for long joins them.
    pub(super) fn wake(&mut self, now: Instant) -> Result<()> {
        while let Some((_, lane)) = self.parking.pop_front_if(|(due, _)| *due <= now) {
            if self.lanes.is_to_park(&lane, now) {
                self.park(&lane, now)?;
            }
        }
        while let Some(first) = self.due.first().copied()
            && first.0 <= now
        {
            self.due.pop_first();
            self.ready.push_front(first.1);
        }
        Ok(())
    }

    /// What may start now, and whether it must have the member for itself.
    pub(super) fn next_start(&self, now: Instant) -> Option<(Seq, Alone)> {
        let since = self.in_write_since.or(self.dirty_since);
        let late = since.is_some_and(|since| now.duration_since(since) >= LONGEST_UNCOMMITTED);
        if self.stopping || late || self.uncommitted + self.in_write >= MAX_UNCOMMITTED {
            return None;
        }
        let next = *self.ready.front()?;
        let starts = self.sides.get(&next).map_or(0, |beside| beside.side.starts);
        Some((next, Alone((ALONE_FROM - 1..MAX_STARTS).contains(&starts))))
    }

    /// Starts what [`next_start`](Self::next_start) told of.
    pub(super) fn start(&mut self, at: Timestamp, now: Instant) -> Result<Option<(Seq, Start)>> {
        let Some(seq) = self.ready.pop_front() else {
            return Ok(None);
        };
        if let Some(beside) = self.sides.get_mut(&seq) {
            self.running += 1;
            if beside.side.starts >= MAX_STARTS {
                let fault = Fault {
                    at,
                    reason: "crash_loop".into(),
                    error: format!("its process ended {MAX_STARTS} times while it ran"),
                    causes: Vec::new(),
                };
                self.dies(seq, &fault, now)?;
                return Ok(Some((seq, Start::GivenUp)));
            }
            beside.running = true;
            beside.side.starts += 1;
            beside.side.state = SideState::Running;
            self.stage_side(seq, Then::Run, now)?;
            return Ok(Some((seq, Start::AfterWrite)));
        }
        let Some(held) = self.held.get_mut(&seq) else {
            return Ok(None);
        };
        self.running += 1;
        held.running = true;
        if seq <= self.suspects {
            self.leave_main_flow(seq, Then::Run, now, |side| {
                side.state = SideState::Running;
                side.starts = 1;
            })?;
            if let Some(beside) = self.sides.get_mut(&seq) {
                beside.running = true;
            }
            return Ok(Some((seq, Start::AfterWrite)));
        }
        let run = Run {
            seq,
            pieces: 0,
            generation: self.layout.generation,
            failures: 0,
        };
        Ok(Some((seq, Start::Run(run, held.in_hand.clone()))))
    }

    /// A handler has been at work for so long that the rest must not wait for it.
    pub(super) fn outlasts(&mut self, seq: Seq, now: Instant) -> Result<()> {
        if self.held.contains_key(&seq) {
            self.leave_main_flow(seq, Then::Nothing, now, |side| {
                side.state = SideState::Running;
                side.starts = 1;
            })?;
            if let Some(beside) = self.sides.get_mut(&seq) {
                beside.running = true;
            }
        }
        Ok(())
    }

    /// A run has ended.
    pub(super) fn finished(&mut self, seq: Seq, ended: Ended, now: Instant) -> Result<()> {
        if self.sides.contains_key(&seq) {
            return self.side_finished(seq, ended, now);
        }
        match ended {
            Ended::Done => {
                self.running -= 1;
                if let Some(held) = self.held.remove(&seq) {
                    self.held_bytes -= held.in_hand.event.body.rough_bytes();
                    self.lanes.done(&held.lane, seq);
                    self.cursor.settle(seq);
                    self.cursor.counts.handled += 1;
                    self.completed(now);
                    self.advance(&held.lane);
                }
                Ok(())
            }
            Ended::Cancelled => {
                self.running -= 1;
                if let Some(held) = self.held.get_mut(&seq) {
                    held.running = false;
                }
                Ok(())
            }
            Ended::Again {
                delay,
                counts,
                fault,
            } => {
                self.running -= 1;
                self.leave_main_flow(seq, Then::Wait(delay), now, |side| {
                    side.state = SideState::Waiting {
                        delay_ms: millis(delay),
                    };
                    side.failures = u32::from(counts);
                    side.failed(fault.at, &fault.reason, &fault.error, &fault.causes);
                })
            }
            Ended::Dead(fault) => self.leave_main_flow(seq, Then::Bury, now, |side| {
                side.state = SideState::Dying;
                side.failures = 1;
                side.failed(fault.at, &fault.reason, &fault.error, &fault.causes);
            }),
        }
    }

    fn completed(&mut self, now: Instant) {
        self.uncommitted += 1;
        self.dirty_since.get_or_insert(now);
    }

    /// Events in hand that have not started.
    pub(super) fn unstarted(&self) -> usize {
        self.held.values().filter(|held| !held.running).count()
    }

    /// Gives up what has not started; what runs may end.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
        self.ready.clear();
        self.due.clear();
        self.parking.clear();
    }

    /// Whether nothing runs but what is stuck, and nothing is to be written any more.
    pub(super) fn is_quiet_but_for(&self, stuck: usize) -> bool {
        self.running == stuck
            && self.staged.is_empty()
            && self.writing.is_none()
            && self.dirty_since.is_none()
    }

    /// Whether there is nothing to do but to wait for events.
    fn is_idle(&self) -> bool {
        self.running == 0 && self.ready.is_empty()
    }
}

/// Whether an event must have its member for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Alone(pub(super) bool);
