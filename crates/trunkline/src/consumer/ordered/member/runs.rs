//! The handlers that run for partitions, and the permits that they hold.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::watch;
use tokio::time::Instant;
use trunkline_core::engine::{Rev, Seq, StoredEvent, Token};
use trunkline_core::{ErrorKind, Name};

use super::super::body;
use super::super::claim::Place;
use super::super::partition::{Run, Start};
use super::PAUSE;
use super::burials::persist_written;
use crate::consumer::pool::{Appetite, Ended, Job, Pool, Vitals};
use crate::consumer::turn::{self, InHand};
use crate::consumer::{Control, Shared};
use crate::failure::{Disposition, Failure};
use crate::handler::{Epoch, MemberContext};

/// How long a handler runs before what is behind it goes on without it.
const LONG: Duration = Duration::from_secs(10);

/// One run of a partition, by what it was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RunId {
    pub(super) partition: u16,
    pub(super) epoch: Rev,
    pub(super) seq: Seq,
}

/// On whose behalf something runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Which {
    /// A partition's.
    Owned(RunId),
    /// Whoever has the lease of this delivery.
    Leased(Token),
}

impl Which {
    fn token(self) -> Option<Token> {
        match self {
            Self::Leased(token) => Some(token),
            Self::Owned(_) => None,
        }
    }

    fn is_of(self, partition: u16) -> bool {
        matches!(self, Self::Owned(run) if run.partition == partition)
    }
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
    which: Which,
    run: Run,
    /// The event, once it is there: at once if the member has it, from its record otherwise.
    in_hand: Arc<OnceLock<InHand>>,
    /// Its bytes as long as it is in hand: none of what is still in its record.
    bytes: usize,
    alone: bool,
}

impl Job for Turn {
    type Hands = Hands;
    type Input = (Which, Run, Arc<OnceLock<InHand>>);

    fn input(&self) -> Self::Input {
        (self.which, self.run, Arc::clone(&self.in_hand))
    }

    async fn run((which, run, cell): Self::Input, hands: &Hands) -> Result<(), Failure> {
        let place = &hands.place;
        let in_hand = match cell.get() {
            Some(in_hand) => in_hand,
            None => {
                let load = || body::load(place, run.generation, run.seq, run.pieces);
                let loaded = persist_written(load).await.map_err(|error| {
                    let disposition = match error.kind() {
                        ErrorKind::Damaged => Disposition::Permanent,
                        _ => Disposition::Throttled(PAUSE),
                    };
                    Failure::new(disposition, "unreadable", error)
                })?;
                cell.get_or_init(|| loaded.into())
            }
        };
        // Since it was decided that this starts, it was perhaps written down and read.
        if !place.lease.lets_start(Instant::now()) {
            let late = "the lease had passed, or the consumer was paused, before the handler began";
            let disposition = Disposition::Snooze(Duration::ZERO);
            return Err(Failure::new(disposition, "failed", late));
        }
        // Under a lease of the engine there is no epoch: nobody owns what whoever is free gets.
        let epoch = match which {
            Which::Leased(_) => None,
            Which::Owned(id) => Some(Epoch {
                generation: run.generation,
                revision: id.epoch,
            }),
        };
        turn::run(
            &hands.shared,
            &place.stream,
            in_hand.clone(),
            run.failures + 1,
            epoch,
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

    /// What a partition starts has written down that it runs, or is the next of its key.
    fn has_place(&self) -> bool {
        matches!(self.which, Which::Owned(_))
    }

    fn place(&self, hands: &Hands) -> (Name, Seq) {
        (hands.place.stream.clone(), self.run.seq)
    }
}

pub(super) struct Runs {
    pool: Pool<Turn>,
    /// What has begun and is not in the pool yet: all of a step goes there at once, for workers would
    /// take one by one away from under the member, each with a lock and a wake-up.
    begun: Vec<Turn>,
    /// Runs of partitions that have not ended.
    running: FxHashSet<RunId>,
    /// Permits of runs that wait for the write that says that they run, and whether they run alone.
    announced: FxHashMap<RunId, bool>,
    /// It ran alone and has ended, and the pool is shut since.
    ended_alone: Option<RunId>,
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
            pool: Pool::new(hands, name, &policy, control),
            begun: Vec::new(),
            running: FxHashSet::default(),
            announced: FxHashMap::default(),
            ended_alone: None,
            long: VecDeque::new(),
        }
    }

    pub(super) fn vitals(&self) -> Weak<dyn Vitals> {
        self.pool.vitals()
    }

    /// Whether nothing runs on behalf of a partition, nor is about to.
    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.announced.is_empty()
    }

    /// Takes a permit for what a partition is about to start; one that must run alone takes all of them.
    /// What gets none is to ask again: the next that is free is left for it.
    pub(super) fn permit(&mut self, alone: bool) -> bool {
        let may = match self.pool.appetite() {
            Appetite::Any => true,
            Appetite::One => self.is_empty(),
            Appetite::None => false,
        };
        may && self.pool.keep_place(alone)
    }

    /// Nothing is to be started for a partition.
    pub(super) fn want_no_permit(&mut self) {
        self.pool.stop_wishing();
    }

    /// What runs, and what has been cancelled and has not ended yet.
    pub(super) fn running(&self) -> impl Iterator<Item = RunId> {
        self.running.iter().copied()
    }

    /// Whether anything of a partition runs, or has been cancelled and has not ended yet.
    pub(super) fn has_any_of(&self, partition: u16) -> bool {
        self.count_of(partition) > 0
    }

    /// How much of a partition runs, or has been cancelled and has not ended yet.
    pub(super) fn count_of(&self, partition: u16) -> usize {
        let of = |run: &&RunId| run.partition == partition;
        self.running.iter().filter(of).count()
    }

    /// The runs of partitions whose handlers are stuck.
    pub(super) fn stuck(&self) -> Vec<RunId> {
        let mut stuck = Vec::new();
        self.pool.each_stuck(|turn| {
            if let Which::Owned(run) = turn.which {
                stuck.push(run);
            }
        });
        stuck
    }

    /// Uses a permit for what a partition started, or gives it back. It runs from
    /// [`go`](Self::go) on.
    pub(super) fn begin(&mut self, id: RunId, start: Start, alone: bool, now: Instant) {
        match start {
            Start::Run(run, in_hand) => self.push(id, run, Some(in_hand), alone, now),
            Start::AfterWrite => {
                self.announced.insert(id, alone);
            }
            Start::GivenUp => self.pool.give_up_place(alone),
        }
    }

    /// Gives a permit back for which there was nothing to start.
    pub(super) fn give_back(&mut self, alone: bool) {
        self.pool.give_up_place(alone);
    }

    /// Queues what the engine leased to this member, behind what partitions have started.
    pub(super) fn push_leased(&mut self, delivered: impl Iterator<Item = (Token, StoredEvent)>) {
        let turn = |(token, event): (Token, StoredEvent)| Turn {
            which: Which::Leased(token),
            run: Run {
                seq: token.seq,
                pieces: 0,
                generation: 0,
                failures: 0,
            },
            bytes: event.body.rough_bytes(),
            in_hand: Arc::new(OnceLock::from(InHand::from(event))),
            alone: false,
        };
        self.pool.push(delivered.map(turn));
    }

    /// Takes back what was leased and has not begun.
    pub(super) fn take_leased(&mut self) -> Vec<Token> {
        let queue = self.pool.take_queue().into_iter();
        queue.filter_map(|turn| turn.which.token()).collect()
    }

    /// Cancels what runs of deliveries whose leases have ended, and drops what waits of them.
    pub(super) fn lose_leased(&mut self, is_lost: impl Fn(Token) -> bool) {
        self.pool
            .cancel(|turn| turn.which.token().is_some_and(&is_lost));
    }

    /// Calls `each` with every delivery in hand whose lease is to be kept.
    pub(super) fn each_leased(&self, mut each: impl FnMut(Token)) {
        self.pool.each(|turn| {
            if let Some(token) = turn.which.token() {
                each(token);
            }
        });
    }

    /// Whether a handler is at an event.
    pub(super) fn has_at_work(&self, seq: Seq) -> bool {
        self.pool.is_running(|turn| turn.run.seq == seq)
    }

    /// Drops what waits of an event that came under a lease, which has ended since.
    pub(super) fn drop_leased(&mut self, seq: Seq) -> Vec<Token> {
        let is_of = |turn: &Turn| turn.which.token().is_some_and(|token| token.seq == seq);
        let dropped = self.pool.cancel(is_of).into_iter();
        dropped.filter_map(|turn| turn.which.token()).collect()
    }

    pub(super) fn appetite(&self) -> Appetite {
        self.pool.appetite()
    }

    /// Whether no handler is at work.
    pub(super) fn is_idle(&self) -> bool {
        self.pool.is_idle()
    }

    /// Cancels all that runs, and waits for its end until `end` at most. Gives how many are still there.
    pub(super) async fn cancel_all(&mut self, end: Instant) -> usize {
        self.pool.cancel_all(end).await
    }

    /// Runs what was announced; its permit it has.
    pub(super) fn run(&mut self, id: RunId, run: Run, event: Option<StoredEvent>, now: Instant) {
        let alone = self.announced.remove(&id).unwrap_or(false);
        self.push(id, run, event.map(InHand::from), alone, now);
        self.go();
    }

    fn push(&mut self, id: RunId, run: Run, in_hand: Option<InHand>, alone: bool, now: Instant) {
        let turn = Turn {
            which: Which::Owned(id),
            run,
            bytes: in_hand
                .as_ref()
                .map_or(0, |one| one.event.body.rough_bytes()),
            in_hand: Arc::new(in_hand.map_or_else(OnceLock::new, OnceLock::from)),
            alone,
        };
        self.running.insert(id);
        self.long.push_back((now + LONG, id));
        self.begun.push(turn);
    }

    /// Hands all that was begun to the pool; to be called once nothing more is to begin for now.
    pub(super) fn go(&mut self) {
        if !self.begun.is_empty() {
            self.pool.push(self.begun.drain(..));
        }
    }

    /// Lets as many run as may by now.
    pub(super) fn adjust(&mut self) {
        self.pool.start();
    }

    /// What ran alone and has ended: nothing starts until it is known how it ended, for whatever may end
    /// this process would be blamed on it once more.
    pub(super) fn ended_alone(&self) -> Option<RunId> {
        self.ended_alone
    }

    /// That is known by now.
    pub(super) fn open(&mut self) {
        self.ended_alone = None;
        self.pool.open();
    }

    /// What was announced and will not run gives its permit back.
    pub(super) fn forget(&mut self, partition: u16) {
        let pool = &mut self.pool;
        self.announced.retain(|id, alone| {
            let keep = id.partition != partition;
            if !keep {
                pool.give_up_place(*alone);
            }
            keep
        });
    }

    /// Cancels what runs of a partition, at its next await; what had not begun is answered.
    pub(super) fn cancel(&mut self, partition: u16) -> Vec<RunId> {
        self.forget(partition);
        let waiting = self.pool.cancel(|turn| turn.which.is_of(partition));
        let owned = |turn: Turn| match turn.which {
            Which::Owned(id) => Some(id),
            Which::Leased(_) => None,
        };
        let waiting: Vec<RunId> = waiting.into_iter().filter_map(owned).collect();
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
    pub(super) fn take(&mut self) -> Vec<(Which, Ran)> {
        let finished = self.pool.take_finished();
        let mut ran = Vec::with_capacity(finished.len());
        for (turn, ended) in finished {
            if let Which::Owned(id) = &turn.which {
                self.running.remove(id);
                if turn.alone {
                    self.ended_alone = Some(*id);
                }
            }
            let came_to = match ended {
                Ended::Well => Ran::Ok,
                Ended::Failed(failure) => {
                    let event = turn.in_hand.get().map(|one| one.event.clone());
                    Ran::Failed(event, failure)
                }
                Ended::Cancelled => Ran::Cancelled,
            };
            ran.push((turn.which, came_to));
        }
        ran
    }
}
