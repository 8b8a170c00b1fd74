//! Which events go together: the queue of one stream, and what flies.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustc_hash::FxHashSet;
use smol_str::SmolStr;
use tokio::sync::mpsc;
use trunkline_core::engine::Outcome;
use trunkline_core::{Error, ErrorKind};

use super::pace::{Pace, Shape};
use super::{Item, OVERHEAD, Target, Unit, flight};
use crate::wire::Wire;

/// Groups on their way at once: one is stored while the next is sent. More would be smaller.
const FLIGHTS: usize = 2;
/// Events of one group: what an atomic batch may have.
const GROUP: usize = 1_000;
/// Bytes of one group, so that its answer does not take longer than a heartbeat.
const GROUP_BYTES: usize = 4 << 20;
/// Events that may be stepped over while a group is made, because their key flies already.
const SKIPPED: usize = 2_048;

/// A group on its way.
pub(super) struct Group {
    pub(super) items: Vec<Item>,
    /// Whether they are stored together or not at all.
    pub(super) whole: bool,
    /// Whether they are tried as one atomic batch, if not.
    pub(super) together: bool,
    pub(super) shape: Shape,
}

/// Takes what is queued, for as long as there is a publisher.
pub(super) async fn run(
    wire: Arc<Wire>,
    target: Target,
    mut units: mpsc::UnboundedReceiver<Vec<Unit>>,
) {
    let target = Arc::new(target);
    let mut queue = Queue::default();
    let mut pace = Pace::default();
    let mut flights = FuturesUnordered::new();
    let mut open = true;
    while open || !flights.is_empty() {
        tokio::select! {
            unit = units.recv(), if open => match unit {
                None => open = false,
                Some(batch) => {
                    queue.waiting.extend(batch);
                    while let Ok(batch) = units.try_recv() {
                        queue.waiting.extend(batch);
                    }
                }
            },
            Some(landed) = flights.next(), if !flights.is_empty() => {
                let landed: Landed = landed;
                if let Some((shape, as_batch, time)) = landed.took {
                    pace.took(shape, as_batch, time);
                }
                queue.landed(&landed);
            }
        }
        while flights.len() < FLIGHTS
            && let Some(mut group) = queue.take()
        {
            group.together = target.atomic && !group.whole && pace.is_batch(group.shape);
            flights.push(flight::fly(Arc::clone(&wire), Arc::clone(&target), group));
        }
    }
}

/// What became of a group: which keys it had, and which of them failed.
pub(super) struct Landed {
    pub(super) keys: Vec<SmolStr>,
    pub(super) appends: FxHashSet<usize>,
    pub(super) failed: HashSet<SmolStr>,
    /// How long it took, and whether as a batch; none if it did not go smoothly.
    pub(super) took: Option<(Shape, bool, Duration)>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Unit>,
    flying: HashSet<SmolStr>,
    /// The appends that have events on their way: those behind them follow when these have landed,
    /// so that a batch is stored in order.
    flying_appends: FxHashSet<usize>,
}

impl Queue {
    /// The next group: from the front, leaving out what waits for its key.
    fn take(&mut self) -> Option<Group> {
        let mut group = Group {
            items: Vec::new(),
            whole: false,
            together: false,
            shape: Shape {
                items: 0,
                rounds: 0,
            },
        };
        let mut skipped: Vec<Unit> = Vec::new();
        let mut blocked: HashSet<SmolStr> = HashSet::new();
        let mut blocked_appends: FxHashSet<usize> = FxHashSet::default();
        let mut bytes = 0;
        while group.items.len() < GROUP && bytes < GROUP_BYTES && skipped.len() < SKIPPED {
            let Some(unit) = self.waiting.pop_front() else {
                break;
            };
            let waits = unit
                .items()
                .iter()
                .filter_map(|item| item.event.key.as_ref())
                .any(|key| self.flying.contains(key) || blocked.contains(key));
            let append = unit.append();
            let waits =
                waits || self.flying_appends.contains(&append) || blocked_appends.contains(&append);
            let alone = unit.is_alone();
            if waits || alone && !group.items.is_empty() {
                blocked_appends.insert(append);
                blocked.extend(
                    unit.items()
                        .iter()
                        .filter_map(|item| item.event.key.clone()),
                );
                skipped.push(unit);
                continue;
            }
            bytes += unit
                .items()
                .iter()
                .map(|item| item.event.body.len() + OVERHEAD)
                .sum::<usize>();
            match unit {
                Unit::One(item) => group.items.push(item),
                Unit::Whole(items) => {
                    group.items = items;
                    group.whole = true;
                }
            }
            if alone {
                break;
            }
        }
        for unit in skipped.into_iter().rev() {
            self.waiting.push_front(unit);
        }
        if group.items.is_empty() {
            return None;
        }
        group.shape = shape(&group.items);
        let keys = group.items.iter().filter_map(|item| item.event.key.clone());
        self.flying.extend(keys);
        self.flying_appends
            .extend(group.items.iter().map(Item::append));
        Some(group)
    }

    /// What is queued behind an event that failed would come before its repetition.
    fn landed(&mut self, landed: &Landed) {
        for key in &landed.keys {
            self.flying.remove(key);
        }
        for append in &landed.appends {
            self.flying_appends.remove(append);
        }
        if landed.failed.is_empty() {
            return;
        }
        let behind = |item: &Item| {
            item.event
                .key
                .as_ref()
                .filter(|key| landed.failed.contains(*key))
                .cloned()
        };
        self.waiting.retain(|unit| {
            let Some(key) = unit.items().iter().find_map(behind) else {
                return true;
            };
            for item in unit.items() {
                item.settle(Outcome::Refused(behind_failed(&key)));
            }
            false
        });
    }
}

impl Unit {
    fn items(&self) -> &[Item] {
        match self {
            Unit::One(item) => std::slice::from_ref(item),
            Unit::Whole(items) => items,
        }
    }

    /// What it was appended with.
    fn append(&self) -> usize {
        self.items().first().map_or(0, Item::append)
    }

    /// Whether it shares its group with nobody: it would share its refusal as well.
    fn is_alone(&self) -> bool {
        match self {
            Unit::One(item) => item.event.expect != trunkline_core::engine::Expect::Any,
            Unit::Whole(_) => true,
        }
    }
}

/// How many go side by side, and how often one waits for its key.
fn shape(items: &[Item]) -> Shape {
    let (mut rounds, mut keys) = (1, HashSet::new());
    for key in items.iter().filter_map(|item| item.event.key.as_ref()) {
        if !keys.insert(key) {
            rounds += 1;
            keys.clear();
            keys.insert(key);
        }
    }
    Shape {
        items: items.len(),
        rounds,
    }
}

pub(super) fn behind_failed(key: &str) -> Error {
    Error::new(
        ErrorKind::BehindFailed,
        format!("an earlier event of key {key:?} was not stored, so this one was held back"),
    )
}
