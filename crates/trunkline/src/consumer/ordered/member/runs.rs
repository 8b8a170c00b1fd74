//! The handlers that run for partitions, and the permits that they hold.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::watch;
use tokio::time::Instant;
use trunkline_core::Name;
use trunkline_core::engine::{Rev, Seq, StoredEvent};

use super::super::body;
use super::super::claim::Place;
use super::super::partition::{Run, Start};
use super::PAUSE;
use crate::consumer::pool::{Appetite, Ended, Job, Pool, Vitals};
use crate::consumer::{Control, Shared, turn};
use crate::failure::{Disposition, Failure};
use crate::handler::{Epoch, MemberContext};

/// How long a handler runs before what is behind it goes on without it.
const LONG: Duration = Duration::from_secs(10);

/// One run, by what it was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RunId {
    pub(super) partition: u16,
    pub(super) epoch: Rev,
    pub(super) seq: Seq,
}

/// What a run came to.
#[derive(Debug)]
pub(super) enum Ran {
    Ok,
    /// With its event, if that could be read.
    Failed(Option<StoredEvent>, Failure),
    Cancelled,
}

/// What the runs of a member have in common.
struct Hands {
    shared: Arc<Shared>,
    place: Place,
    context: Arc<MemberContext>,
}

struct Turn {
    id: RunId,
    run: Run,
    /// The event, once it is there: at once for one of the main flow, from its record for another.
    event: Arc<OnceLock<StoredEvent>>,
    /// Its bytes as long as it is in hand: none of what is still in its record.
    bytes: usize,
    alone: bool,
}

impl Job for Turn {
    type Hands = Hands;
    type Input = (RunId, Run, Arc<OnceLock<StoredEvent>>);

    fn input(&self) -> Self::Input {
        (self.id, self.run, Arc::clone(&self.event))
    }

    async fn run((id, run, known): Self::Input, hands: &Hands) -> Result<(), Failure> {
        let place = &hands.place;
        let event = match known.get() {
            Some(event) => event,
            None => {
                let (store, keys) = (&place.store, &place.keys);
                let (generation, seq) = (run.generation, run.seq);
                let loaded = body::load(
                    &*store.engine,
                    &store.bucket,
                    keys,
                    generation,
                    seq,
                    run.pieces,
                )
                .await;
                let unread =
                    |error| Failure::new(Disposition::Throttled(PAUSE), "unreadable", error);
                let loaded = loaded.map_err(unread)?;
                known.get_or_init(|| loaded)
            }
        };
        if !place.lease.holds(Instant::now()) {
            let late = "the lease had passed before the handler began";
            return Err(Failure::new(
                Disposition::Snooze(Duration::ZERO),
                "failed",
                late,
            ));
        }
        let epoch = Epoch {
            generation: run.generation,
            revision: id.epoch,
        };
        turn::run(
            &hands.shared,
            place.stream.clone(),
            event.clone(),
            run.failures + 1,
            Some(epoch),
            &hands.context,
        )
        .await
    }

    fn is_trouble(failure: &Failure, hands: &Hands) -> bool {
        hands.shared.policy.is_trouble(failure)
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn runs_alone(&self) -> bool {
        self.alone
    }

    fn place(&self, hands: &Hands) -> (Name, Seq) {
        (hands.place.stream.clone(), self.id.seq)
    }
}

pub(super) struct Runs {
    pool: Pool<Turn>,
    control: watch::Receiver<Control>,
    running: FxHashSet<RunId>,
    /// Permits of runs that wait for the write that says that they run, and whether they run alone.
    announced: FxHashMap<RunId, bool>,
    /// When each run becomes a long one, in the order of their starts.
    long: VecDeque<(Instant, RunId)>,
}

impl Runs {
    pub(super) fn new(
        shared: Arc<Shared>,
        place: Place,
        context: Arc<MemberContext>,
        control: watch::Receiver<Control>,
    ) -> Self {
        let (name, policy) = (shared.name.clone(), shared.policy.clone());
        let hands = Hands {
            shared,
            place,
            context,
        };
        Self {
            pool: Pool::new(hands, name, &policy, control.clone()),
            control,
            running: FxHashSet::default(),
            announced: FxHashMap::default(),
            long: VecDeque::new(),
        }
    }

    pub(super) fn vitals(&self) -> Weak<dyn Vitals> {
        self.pool.vitals()
    }

    /// Permits in use.
    fn taken(&self) -> usize {
        self.running.len() + self.announced.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.taken() == 0
    }

    /// How many permits there are to be had.
    pub(super) fn free(&self) -> usize {
        let limit = self.control.borrow().concurrency;
        let free = limit.saturating_sub(self.taken());
        match self.pool.appetite() {
            _ if self.announced.values().any(|alone| *alone) => 0,
            Appetite::Any => free,
            Appetite::One => usize::from(self.is_empty()),
            Appetite::None => 0,
        }
    }

    /// What runs, and what has been cancelled and has not ended yet.
    pub(super) fn running(&self) -> impl Iterator<Item = RunId> {
        self.running.iter().copied()
    }

    /// Whether anything of a partition runs, or has been cancelled and has not ended yet.
    pub(super) fn has_any_of(&self, partition: u16) -> bool {
        self.running.iter().any(|run| run.partition == partition)
    }

    /// Takes a permit for what a partition started.
    pub(super) fn begin(&mut self, id: RunId, start: Start, alone: bool, now: Instant) {
        match start {
            Start::Run(run, event) => self.push(id, run, Some(event), alone, now),
            Start::AfterWrite => {
                self.announced.insert(id, alone);
            }
            Start::GivenUp => {}
        }
    }

    /// Runs what was announced; its permit it has.
    pub(super) fn run(&mut self, id: RunId, run: Run, now: Instant) {
        let alone = self.announced.remove(&id).unwrap_or(false);
        self.push(id, run, None, alone, now);
    }

    fn push(&mut self, id: RunId, run: Run, event: Option<StoredEvent>, alone: bool, now: Instant) {
        let turn = Turn {
            id,
            run,
            bytes: event.as_ref().map_or(0, |event| event.body.rough_bytes()),
            event: Arc::new(event.map_or_else(OnceLock::new, OnceLock::from)),
            alone,
        };
        self.running.insert(id);
        self.long.push_back((now + LONG, id));
        self.pool.push(std::iter::once(turn));
    }

    /// Lets as many run as may by now.
    pub(super) fn adjust(&mut self) {
        self.pool.start();
    }

    /// What was announced and will not run gives its permit back.
    pub(super) fn forget(&mut self, partition: u16) {
        self.announced.retain(|id, _| id.partition != partition);
    }

    /// Cancels what runs of a partition, at its next await; what had not begun is answered.
    pub(super) fn cancel(&mut self, partition: u16) -> Vec<RunId> {
        self.forget(partition);
        let waiting = self.pool.cancel(|turn| turn.id.partition == partition);
        let waiting: Vec<RunId> = waiting.into_iter().map(|turn| turn.id).collect();
        for id in &waiting {
            self.running.remove(id);
        }
        waiting
    }

    /// The runs that have become long ones by now.
    pub(super) fn outlasting(&mut self, now: Instant) -> Vec<RunId> {
        let mut long = Vec::new();
        while let Some((due, id)) = self.long.front()
            && (*due <= now || !self.running.contains(id))
        {
            if self.running.contains(id) {
                long.push(*id);
            }
            self.long.pop_front();
        }
        long
    }

    pub(super) fn next_outlasting(&self) -> Option<Instant> {
        self.long.front().map(|(due, _)| *due)
    }

    /// Waits until a run has ended.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) {
        self.pool.changed().await;
    }

    /// The runs that have ended.
    pub(super) fn take(&mut self) -> Vec<(RunId, Ran)> {
        let finished = self.pool.take_finished();
        let mut ran = Vec::with_capacity(finished.len());
        for (turn, ended) in finished {
            self.running.remove(&turn.id);
            let event = turn.event.get().cloned();
            let came_to = match ended {
                Ended::Well => Ran::Ok,
                Ended::Failed(failure) => Ran::Failed(event, failure),
                Ended::Cancelled => Ran::Cancelled,
            };
            ran.push((turn.id, came_to));
        }
        ran
    }
}
