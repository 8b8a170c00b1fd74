//! What a partition writes: side records as they change, and the cursor with every write.

use std::time::Duration;

use rustc_hash::FxHashMap;
use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::Result;
use trunkline_core::engine::{Op, Seq, StateKey, StoredEvent};

use super::super::body;
use super::super::record::{Record as _, Side, SideState};
use super::{Partition, Run};

/// Changes in one write at most; what is more goes into the next.
const MAX_OPS: usize = 200;
/// Bytes of values in one write, after which no further change joins it.
const MAX_BYTES: usize = 512 << 10;
/// How long a completion waits for others while there is more to do, and when there is not.
const COMMIT_EVERY: Duration = Duration::from_millis(50);
const COMMIT_IDLE: Duration = Duration::from_millis(10);
/// How often the floor is written when nothing but the reader moved it.
const FLOOR_EVERY: Duration = Duration::from_secs(5);

/// What is to happen when a change is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Then {
    Nothing,
    Run,
    Wait(Duration),
    Bury,
    /// Remove this entry from the dead letters: it is resolved.
    Unbury(Seq),
}

/// Changes that belong together, about one event.
pub(super) struct Change {
    seq: Seq,
    ops: Vec<Op>,
    bytes: usize,
    /// Whether the event is settled in the cursor by it: it goes on beside the main flow.
    settles: bool,
    then: Then,
}

impl Change {
    pub(super) fn new(seq: Seq, ops: Vec<Op>, then: Then) -> Self {
        let value = |op: &Op| match op {
            Op::Put { value, .. } => value.len(),
            Op::Delete { .. } => 0,
        };
        Self {
            seq,
            bytes: ops.iter().map(value).sum(),
            ops,
            settles: false,
            then,
        }
    }

    pub(super) fn settling(seq: Seq, ops: Vec<Op>, then: Then) -> Self {
        Self {
            settles: true,
            ..Self::new(seq, ops, then)
        }
    }

    /// Nothing to be written, but something to be done.
    pub(super) fn then(seq: Seq, then: Then) -> Self {
        Self::new(seq, Vec::new(), then)
    }
}

/// A write to be made under the fence of the owner.
#[derive(Debug)]
pub(in super::super) struct Write {
    pub(in super::super) id: SmolStr,
    pub(in super::super) ops: Vec<Op>,
    /// Of its values.
    pub(in super::super) bytes: usize,
}

/// What is to be done now that a write is stored.
#[derive(Debug)]
pub(in super::super) enum Next {
    /// With its event, if that is in hand.
    Run(Run, Option<StoredEvent>),
    Bury(Seq),
    Unbury {
        seq: Seq,
        entry: Seq,
    },
}

impl Partition {
    pub(super) fn stage(&mut self, change: Change, now: Instant) {
        self.dirty_since.get_or_insert(now);
        self.staged.push_back(change);
    }

    /// Whether there is more to write than how far it got.
    pub(in super::super) fn has_changes(&self) -> bool {
        !self.staged.is_empty()
    }

    /// Whether it is stored how the last run of an event ended.
    pub(in super::super) fn is_told(&self, seq: Seq) -> bool {
        let ended = |side: &Side| side.state != SideState::Running;
        let writing = self.writing.iter().flatten();
        self.side(seq).is_none_or(ended)
            && !self.staged.iter().any(|change| change.seq == seq)
            && !writing.into_iter().any(|(of, _)| *of == seq)
    }

    /// When there will be something to write or to start, if nothing happens before. Changes wait for
    /// nothing but the end of a write that is under way, here or in the member.
    pub(in super::super) fn next_due(&self) -> Option<Instant> {
        let write = match (&self.writing, self.dirty_since) {
            _ if self.has_changes() => None,
            (None, Some(since)) => Some(since + self.patience()),
            (None, None) if self.cursor.floor() > self.written_floor => {
                Some(self.written_at + FLOOR_EVERY)
            }
            _ => None,
        };
        let due = self.due.first().map(|(due, _)| *due);
        let park = self.parking.front().map(|(due, _)| *due);
        [write, due, park].into_iter().flatten().min()
    }

    /// The next write, if it is time for one and none is under way. `id` makes it known again.
    pub(in super::super) fn write(
        &mut self,
        now: Instant,
        id: impl FnOnce() -> SmolStr,
    ) -> Result<Option<Write>> {
        if self.writing.is_some() || !self.wants_write(now) {
            return Ok(None);
        }
        let (mut ops, mut thens, mut bytes) = (Vec::<Op>::new(), Vec::new(), 0);
        // A commit changes a key once: what a later change makes of it stands.
        let mut places: FxHashMap<StateKey, usize> = FxHashMap::default();
        while let Some(change) = self.staged.front()
            && (ops.is_empty() || (ops.len() + change.ops.len() < MAX_OPS && bytes < MAX_BYTES))
            && let Some(change) = self.staged.pop_front()
        {
            bytes += change.bytes;
            for op in change.ops {
                match places.get(op.key()) {
                    Some(place) => ops[*place] = op,
                    None => {
                        places.insert(op.key().clone(), ops.len());
                        ops.push(op);
                    }
                }
            }
            if change.settles && self.reads {
                self.cursor.settle(change.seq);
            }
            thens.push((change.seq, change.then));
        }
        let key = self.keys.progress(self.layout, self.id)?;
        let progress = self.progress().encode()?;
        bytes += progress.len();
        ops.push(body::put(key, progress));
        self.in_write = std::mem::take(&mut self.uncommitted);
        self.in_write_since = self.dirty_since.take();
        if !self.staged.is_empty() {
            self.dirty_since = Some(now);
        }
        self.written_floor = self.cursor.floor();
        self.written_at = now;
        self.writing = Some(thens);
        Ok(Some(Write {
            id: id(),
            ops,
            bytes,
        }))
    }

    fn wants_write(&self, now: Instant) -> bool {
        let Some(since) = self.dirty_since else {
            let moved = self.cursor.floor() > self.written_floor;
            let late = now.duration_since(self.written_at) >= FLOOR_EVERY;
            return moved && (late || self.stopping);
        };
        !self.staged.is_empty() || now.duration_since(since) >= self.patience()
    }

    /// How long a completion may wait for others to join its write.
    fn patience(&self) -> Duration {
        match (self.stopping, self.is_idle()) {
            (true, true) => Duration::ZERO,
            (_, true) => COMMIT_IDLE,
            (_, false) => COMMIT_EVERY,
        }
    }

    /// The write under way is stored: what it makes possible.
    pub(in super::super) fn written(&mut self, now: Instant) -> Result<Vec<Next>> {
        self.in_write = 0;
        self.in_write_since = None;
        let mut next = Vec::new();
        for (seq, then) in self.writing.take().unwrap_or_default() {
            match then {
                Then::Nothing => {}
                Then::Wait(delay) if !self.stopping => {
                    self.due.insert((now + delay, seq));
                }
                Then::Wait(_) => {}
                Then::Bury => next.push(Next::Bury(seq)),
                Then::Unbury(entry) => next.push(Next::Unbury { seq, entry }),
                Then::Run if self.stopping => self.unannounce(seq, now)?,
                Then::Run => {
                    if let Some(beside) = self.sides.get(&seq) {
                        let run = Run {
                            seq,
                            pieces: beside.side.pieces,
                            generation: self.layout.generation,
                            failures: beside.side.failures,
                        };
                        next.push(Next::Run(run, self.kept.get(&seq).cloned()));
                    }
                }
            }
        }
        Ok(next)
    }
}
