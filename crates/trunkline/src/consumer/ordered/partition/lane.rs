//! Lanes: the events of one key, one at a time and in order.

use std::collections::VecDeque;
use std::time::Duration;

use rustc_hash::FxHashMap;
use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::engine::Seq;
use trunkline_core::key;

/// One key's queue in one consumer. An event without a key has one for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in super::super) enum Lane {
    Key(SmolStr),
    Alone(Seq),
}

impl Lane {
    pub(in super::super) fn new(key: Option<SmolStr>, seq: Seq) -> Self {
        key.map_or(Lane::Alone(seq), Lane::Key)
    }

    pub(super) fn key(&self) -> Option<SmolStr> {
        match self {
            Lane::Key(key) => Some(key.clone()),
            Lane::Alone(_) => None,
        }
    }

    /// Where it belongs. What has no key is spread by its sequence.
    pub(in super::super) fn slot(&self) -> u8 {
        match self {
            Lane::Key(text) => key::slot(text),
            Lane::Alone(seq) => {
                let [low, ..] = seq.to_le_bytes();
                low
            }
        }
    }
}

/// The lanes of a partition. One that has nothing is not kept.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: FxHashMap<Lane, Queue>,
}

/// For how long what follows a side record of its key waits in memory. Most of what fails works a
/// moment later, and then nothing of it was written.
pub(super) const PARKED_AFTER: Duration = Duration::from_secs(3);

#[derive(Debug, Default)]
struct Queue {
    /// Its side records, in order. They come before what is queued, and after a while all that follows
    /// joins them.
    beside: VecDeque<Seq>,
    /// Since when there are any.
    beside_since: Option<Instant>,
    /// Its events of the main flow, in order.
    queued: VecDeque<Seq>,
    /// What has come forward and is not done with: ready, running, waiting or dying.
    front: Option<Seq>,
}

impl Lanes {
    /// Whether what follows has waited in memory for long enough.
    pub(super) fn is_to_park(&self, lane: &Lane, now: Instant) -> bool {
        let since = self.lanes.get(lane).and_then(|queue| queue.beside_since);
        since.is_some_and(|since| since + PARKED_AFTER <= now)
    }

    pub(super) fn push(&mut self, lane: &Lane, seq: Seq) {
        self.queue(lane).queued.push_back(seq);
    }

    /// Behind what is beside the main flow already; before it, if it has come forward, because it came
    /// before all of that. Gives whether it is the only one.
    pub(super) fn put_beside(&mut self, lane: &Lane, seq: Seq, now: Instant) -> bool {
        let queue = self.queue(lane);
        let is_first = queue.beside_since.is_none();
        queue.beside_since.get_or_insert(now);
        if queue.front == Some(seq) {
            queue.beside.push_front(seq);
        } else {
            queue.beside.push_back(seq);
        }
        is_first
    }

    fn queue(&mut self, lane: &Lane) -> &mut Queue {
        self.lanes.entry(lane.clone()).or_default()
    }

    /// The next of the lane, if nothing of it is at work; from then on it is.
    pub(super) fn next(&mut self, lane: &Lane) -> Option<Seq> {
        let queue = self.lanes.get_mut(lane)?;
        if queue.front.is_some() {
            return None;
        }
        let next = queue.beside.front().or(queue.queued.front()).copied();
        queue.front = next;
        if next.is_none() {
            self.lanes.remove(lane);
        }
        next
    }

    /// Brings this event forward, if it is the first of its lane.
    pub(super) fn begin(&mut self, lane: &Lane, seq: Seq) -> bool {
        let Some(queue) = self.lanes.get_mut(lane) else {
            return false;
        };
        let first = queue.front.is_none() && queue.beside.front() == Some(&seq);
        if first {
            queue.front = Some(seq);
        }
        first
    }

    /// Whether this event is the one that has come forward.
    pub(super) fn is_front(&self, lane: &Lane, seq: Seq) -> bool {
        let queue = self.lanes.get(lane);
        queue.is_some_and(|queue| queue.front == Some(seq))
    }

    /// This event, which had come forward, is done with.
    pub(super) fn done(&mut self, lane: &Lane, seq: Seq) {
        if let Some(queue) = self.lanes.get_mut(lane) {
            queue.beside.retain(|beside| *beside != seq);
            if queue.beside.is_empty() {
                queue.beside_since = None;
            }
            if queue.queued.front() == Some(&seq) {
                queue.queued.pop_front();
            }
            if queue.front == Some(seq) {
                queue.front = None;
            }
        }
    }

    /// Takes what is queued in the main flow and has not come forward.
    pub(super) fn take_queued(&mut self, lane: &Lane) -> VecDeque<Seq> {
        let Some(queue) = self.lanes.get_mut(lane) else {
            return VecDeque::new();
        };
        let front = queue.front;
        let mut queued = std::mem::take(&mut queue.queued);
        queue
            .queued
            .extend(queued.iter().copied().filter(|seq| Some(*seq) == front));
        queued.retain(|seq| Some(*seq) != front);
        queued
    }

    /// This event leaves the main flow. It stays the one that has come forward.
    pub(super) fn leave(&mut self, lane: &Lane, seq: Seq) {
        if let Some(queue) = self.lanes.get_mut(lane) {
            queue.queued.retain(|queued| *queued != seq);
        }
    }
}
