//! The runner of a member: as many workers as handlers may run at once, fed from one queue.
//!
//! A worker takes the next job as soon as it is done with the last, and ends when there is none:
//! an event costs no task of its own, and an idle member has none. What decides whether a job may
//! start is in one place, [`Inner::room`]: the concurrency, a job that runs alone, the breaker. After one
//! that ran alone nothing starts until the pool is [opened](Pool::open).
//!
//! **Invariant:** a job that was pushed comes back exactly once: from [`Pool::take_finished`],
//! [`Pool::take_queue`] or [`Pool::cancel`], however its run ended. Only one whose handler never gives
//! its thread back stays here.

mod health;
mod worker;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, Sleep, timeout_at};
use trunkline_core::Name;
use trunkline_core::engine::Seq;

use super::Control;
use super::policy::{Circuit, Policy};
use crate::failure::Failure;

pub(super) use health::Vitals;
pub use health::{BreakerState, Health, Stuck};

/// How long after it was cancelled, or should have been, a handler may go on before it counts as
/// stuck: it blocks its thread, and nothing but the end of its process ends it.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// What a pool runs.
pub(super) trait Job: Send + 'static {
    /// What every run needs and no job brings.
    type Hands: Send + Sync + 'static;
    /// What a run takes from its job, which stays with the pool.
    type Input: Send;

    fn input(&self) -> Self::Input;

    /// Runs its handler.
    fn run(
        input: Self::Input,
        hands: &Self::Hands,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Whether a run that ended so speaks against the handler, or what is behind it.
    fn is_trouble(failure: &Failure, hands: &Self::Hands) -> bool;

    /// The bytes of its event.
    fn bytes(&self) -> usize;

    /// Whether nothing may run beside it.
    fn runs_alone(&self) -> bool;

    /// Whether a place was [kept](Pool::keep_place) for it. It goes before all that has none.
    fn has_place(&self) -> bool;

    /// Which event it is.
    fn place(&self, hands: &Self::Hands) -> (Name, Seq);
}

/// A job that its handler is done with.
pub(super) type Finished<J> = (J, Ended);

/// How a run ended.
#[derive(Debug)]
pub(super) enum Ended {
    Well,
    Failed(Failure),
    /// It was cancelled: its event may be somebody else's by now, so how its handler ended does not
    /// matter any more.
    Cancelled,
}

/// What the pool and its workers have in common.
struct Common<J: Job> {
    hands: J::Hands,
    name: Name,
    time_out: Option<Duration>,
    stuck_after: Duration,
    inner: Mutex<Inner<J>>,
    /// Has the present limit, so that a lower one holds at once, whatever the member is at.
    control: watch::Receiver<Control>,
    /// Told when something has finished.
    finished: Notify,
}

struct Inner<J> {
    /// Those that have a place first.
    queue: VecDeque<J>,
    places: Places,
    /// The events in the queue, those that run, and those that have finished and were not taken.
    held: usize,
    held_bytes: usize,
    /// What each worker is at, by its slot; a free slot holds nothing.
    slots: Vec<Slot<J>>,
    workers: usize,
    running: usize,
    /// Whether what runs does so alone, or what ran last did and nobody has opened the pool since.
    is_alone: bool,
    circuit: Option<Circuit>,
    finished: Vec<Finished<J>>,
}

struct Slot<J> {
    worker: Option<AbortHandle>,
    run: Option<Run<J>>,
}

/// A job under way.
struct Run<J> {
    job: J,
    since: Instant,
    is_probe: bool,
    cancelled: Option<Instant>,
    /// It was found stuck.
    is_given_up: bool,
}

impl<J> Run<J> {
    /// When it is stuck if it is still there then.
    fn stuck_at<W: Job>(&self, common: &Common<W>) -> Option<Instant> {
        let timed_out = common.time_out.map(|time_out| self.since + time_out);
        let end = [self.cancelled, timed_out].into_iter().flatten().min()?;
        Some(end + common.stuck_after)
    }
}

impl<J: Job> Inner<J> {
    /// How many jobs of the queue may start now, of which `limit` may run at once.
    fn room(&self, limit: usize) -> usize {
        if self.is_alone {
            return 0;
        }
        let room = match self.queue.front() {
            None => 0,
            Some(first) if first.runs_alone() => usize::from(self.running == 0),
            Some(_) => {
                let free = limit.saturating_sub(self.running + self.places.taken());
                let free = self.places.queued + self.places.leave(free);
                free.min(self.queue.len())
            }
        };
        match &self.circuit {
            Some(circuit) => circuit.room(room),
            None => room,
        }
    }

    /// Queues a job behind those of its kind: with a place, or without.
    fn push(&mut self, job: J) {
        self.held += 1;
        self.held_bytes += job.bytes();
        if job.has_place() {
            let at = self.places.queued;
            self.places.use_up(job.runs_alone());
            self.queue.insert(at, job);
        } else {
            self.queue.push_back(job);
        }
    }

    fn let_go(&mut self, job: &J) {
        self.held -= 1;
        self.held_bytes -= job.bytes();
    }
}

/// Places that are kept for jobs to come: what is written down before it runs must be sure to run then.
#[derive(Debug, Default)]
struct Places {
    /// Kept, and the job is not there yet.
    kept: usize,
    /// One of them is for a job that runs alone, so that nothing may begin meanwhile.
    alone: bool,
    /// Jobs of the queue that have one: its first.
    queued: usize,
    /// A place was asked for and there was none, for a job that runs alone or for another: the next
    /// that becomes free is left for it.
    wished: Option<bool>,
}

impl Places {
    fn taken(&self) -> usize {
        self.kept + self.queued
    }

    /// What others may have of the places that are free.
    fn leave(&self, free: usize) -> usize {
        match self.wished {
            _ if self.alone => 0,
            Some(true) => 0,
            Some(false) => free.saturating_sub(1),
            None => free,
        }
    }

    /// The job is there that a place was kept for.
    fn use_up(&mut self, alone: bool) {
        self.kept = self.kept.saturating_sub(1);
        self.alone &= !alone;
        self.queued += 1;
    }
}

/// Whether more jobs are of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Appetite {
    /// As many as there is room for.
    Any,
    /// One, for the breaker to try.
    One,
    /// None: the breaker is open, or what it tries is in hand.
    None,
}

pub(super) struct Pool<J: Job> {
    common: Arc<Common<J>>,
    tasks: JoinSet<()>,
    /// Rings when the breaker's pause ends, or a handler should have ended.
    timer: Pin<Box<Sleep>>,
    /// When to look for handlers that are stuck.
    look: Option<Instant>,
}

impl<J: Job> Pool<J> {
    /// For the consumer of that name.
    pub(super) fn new(
        hands: J::Hands,
        name: Name,
        policy: &Policy,
        control: watch::Receiver<Control>,
    ) -> Self {
        Self::with_patience(hands, name, policy, control, STUCK_AFTER)
    }

    fn with_patience(
        hands: J::Hands,
        name: Name,
        policy: &Policy,
        control: watch::Receiver<Control>,
        stuck_after: Duration,
    ) -> Self {
        let time_out = policy.longest_run();
        let inner = Inner {
            queue: VecDeque::new(),
            places: Places::default(),
            held: 0,
            held_bytes: 0,
            slots: Vec::new(),
            workers: 0,
            running: 0,
            is_alone: false,
            circuit: policy.stops_at().map(Circuit::new),
            finished: Vec::new(),
        };
        let common = Arc::new(Common {
            hands,
            name,
            time_out,
            stuck_after,
            inner: Mutex::new(inner),
            control,
            finished: Notify::new(),
        });
        let now = Instant::now();
        Self {
            common,
            tasks: JoinSet::new(),
            timer: Box::pin(tokio::time::sleep_until(now)),
            // Nothing runs yet, so nothing can be stuck before.
            look: time_out.map(|time_out| now + time_out + stuck_after),
        }
    }

    /// What tells how the pool is, for as long as it is.
    pub(super) fn vitals(&self) -> Weak<dyn Vitals> {
        let common: Arc<dyn Vitals> = Arc::clone(&self.common) as _;
        Arc::downgrade(&common)
    }

    /// Queues jobs behind those that wait; what has a place before what has none.
    pub(super) fn push(&mut self, jobs: impl Iterator<Item = J>) {
        let mut inner = self.common.inner.lock();
        jobs.for_each(|job| inner.push(job));
        drop(inner);
        self.start();
    }

    /// Keeps a place for a job that is about to be pushed, or to be given up. Where there is none, the
    /// next that becomes free is left for whoever asks again.
    pub(super) fn keep_place(&mut self, alone: bool) -> bool {
        let limit = self.common.control.borrow().concurrency;
        let mut inner = self.common.inner.lock();
        let at_work = inner.running + inner.places.taken();
        // One that runs alone has the member from when its place is kept until the pool is opened.
        let is_alone = inner.places.alone
            || inner.is_alone
            || inner.queue.front().is_some_and(Job::runs_alone);
        let is_free = match alone {
            true => at_work == 0 && !inner.is_alone,
            false => at_work < limit && !is_alone,
        };
        match is_free {
            true => {
                inner.places.kept += 1;
                inner.places.alone |= alone;
                inner.places.wished = None;
            }
            false => inner.places.wished = Some(alone),
        }
        is_free
    }

    /// Gives up a place that was kept.
    pub(super) fn give_up_place(&mut self, alone: bool) {
        let mut inner = self.common.inner.lock();
        inner.places.kept = inner.places.kept.saturating_sub(1);
        inner.places.alone &= !alone;
        drop(inner);
        self.start();
    }

    /// Lets others start after a job that ran alone: it is written down how that ended.
    pub(super) fn open(&mut self) {
        self.common.inner.lock().is_alone = false;
        self.start();
    }

    /// Nobody waits for a place any more.
    pub(super) fn stop_wishing(&mut self) {
        if self.common.inner.lock().places.wished.take().is_some() {
            self.start();
        }
    }

    /// Starts as many workers as there is work for and the limits allow; to be called when one of
    /// them is raised.
    pub(super) fn start(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        let limit = self.common.control.borrow().concurrency;
        let mut inner = self.common.inner.lock();
        // A worker that has just begun is at nothing yet.
        let wanted = inner.running + inner.room(limit);
        while inner.workers < wanted {
            let free = |slot: &Slot<J>| slot.worker.is_none();
            let slot = inner.slots.iter().position(free);
            let slot = slot.unwrap_or_else(|| {
                inner.slots.push(Slot {
                    worker: None,
                    run: None,
                });
                inner.slots.len() - 1
            });
            let work = worker::work(Arc::clone(&self.common), slot);
            inner.slots[slot].worker = Some(self.tasks.spawn(work));
            inner.workers += 1;
        }
    }

    /// Whether more jobs are of use.
    pub(super) fn appetite(&self) -> Appetite {
        let inner = self.common.inner.lock();
        match &inner.circuit {
            Some(circuit) if circuit.is_closed() => Appetite::Any,
            None => Appetite::Any,
            // What is queued is tried first.
            Some(circuit) if inner.queue.is_empty() && circuit.room(1) == 1 => Appetite::One,
            Some(_) => Appetite::None,
        }
    }

    /// Takes every job that waits and has no place.
    pub(super) fn take_queue(&mut self) -> VecDeque<J> {
        let mut inner = self.common.inner.lock();
        let first = inner.places.queued;
        let queue = inner.queue.split_off(first);
        queue.iter().for_each(|job| inner.let_go(job));
        queue
    }

    /// Takes what has finished since the last call.
    pub(super) fn take_finished(&mut self) -> Vec<Finished<J>> {
        let mut inner = self.common.inner.lock();
        let finished = std::mem::take(&mut inner.finished);
        finished.iter().for_each(|(job, _)| inner.let_go(job));
        let is_waiting = !inner.queue.is_empty();
        drop(inner);
        // After a probe there are fewer workers than may be.
        if is_waiting {
            self.start();
        }
        finished
    }

    /// Waits until something has finished, or a pause of the breaker has ended.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) {
        let until = {
            let inner = self.common.inner.lock();
            if !inner.finished.is_empty() {
                return;
            }
            inner.circuit.as_ref().and_then(Circuit::until)
        };
        let Some(due) = [until, self.look].into_iter().flatten().min() else {
            return self.common.finished.notified().await;
        };
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            () = self.timer.as_mut() => self.look(),
            () = self.common.finished.notified() => {}
        }
    }

    /// Ends the breaker's pause if it is over, and reports handlers that are stuck.
    fn look(&mut self) {
        let now = Instant::now();
        let common = &self.common;
        let mut inner = common.inner.lock();
        if let Some(circuit) = &mut inner.circuit {
            circuit.look(now);
        }
        let mut stuck = Vec::new();
        let mut alone = false;
        if self.look.is_some_and(|look| look <= now) {
            let next = |time_out| now + time_out + common.stuck_after;
            self.look = common.time_out.map(next);
            for run in inner.slots.iter_mut().filter_map(|slot| slot.run.as_mut()) {
                match run.stuck_at(common) {
                    Some(at) if at > now => {
                        self.look = Some(self.look.map_or(at, |look| look.min(at)));
                    }
                    Some(_) if !run.is_given_up => {
                        run.is_given_up = true;
                        alone |= run.job.runs_alone();
                        stuck.push((run.job.place(&common.hands), now - run.since));
                    }
                    _ => {}
                }
            }
        }
        // For ever is too long to wait for.
        inner.is_alone &= !alone;
        drop(inner);
        for ((stream, seq), running_for) in stuck {
            tracing::error!(
                consumer = %common.name, %stream, seq, ?running_for,
                "a handler is stuck: it was to end and does not give its thread back; its event is let \
                 go, its place is lost until the process is started anew"
            );
        }
        self.start();
    }

    /// Whether such a job runs.
    pub(super) fn is_running(&self, which: impl Fn(&J) -> bool) -> bool {
        let inner = self.common.inner.lock();
        let mut runs = inner.slots.iter().filter_map(|slot| slot.run.as_ref());
        runs.any(|run| which(&run.job))
    }

    /// Calls `each` with every job that was given up because its handler is stuck.
    pub(super) fn each_stuck(&self, mut each: impl FnMut(&J)) {
        let inner = self.common.inner.lock();
        let runs = inner.slots.iter().filter_map(|slot| slot.run.as_ref());
        runs.filter(|run| run.is_given_up)
            .for_each(|run| each(&run.job));
    }

    /// Calls `each` with every job in hand whose lease is to be kept.
    pub(super) fn each(&self, mut each: impl FnMut(&J)) {
        let inner = self.common.inner.lock();
        inner.queue.iter().for_each(&mut each);
        inner
            .slots
            .iter()
            .filter_map(|slot| slot.run.as_ref())
            .filter(|run| !run.is_given_up)
            .for_each(|run| each(&run.job));
        inner.finished.iter().for_each(|(job, _)| each(job));
    }

    /// Cancels jobs that are its owner's no more: gives those that wait, and ends those that run at
    /// their next await. They then come as [`Ended::Cancelled`].
    pub(super) fn cancel(&mut self, which: impl Fn(&J) -> bool) -> VecDeque<J> {
        let now = Instant::now();
        let mut guard = self.common.inner.lock();
        let inner = &mut *guard;
        for slot in &mut inner.slots {
            if let (Some(worker), Some(run)) = (&slot.worker, &mut slot.run)
                && run.cancelled.is_none()
                && which(&run.job)
            {
                run.cancelled = Some(now);
                worker.abort();
                let stuck = now + self.common.stuck_after;
                self.look = Some(self.look.map_or(stuck, |look| look.min(stuck)));
            }
        }
        let (taken, kept): (VecDeque<J>, _) = std::mem::take(&mut inner.queue)
            .into_iter()
            .partition(&which);
        inner.queue = kept;
        inner.places.queued -= taken.iter().filter(|job| job.has_place()).count();
        taken.iter().for_each(|job| inner.let_go(job));
        taken
    }

    /// Whether no worker is at anything. One may still be there that holds nothing, which ends without
    /// a word.
    pub(super) fn is_idle(&self) -> bool {
        self.common.inner.lock().running == 0
    }

    /// Cancels everything that runs, when nothing waits any more, and waits for its end until `end` at
    /// most. Gives how many are still there; the others come from
    /// [`take_finished`](Self::take_finished).
    pub(super) async fn cancel_all(&mut self, end: Instant) -> usize {
        self.tasks.abort_all();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        // What is left then is counted below.
        let _ = timeout_at(end, ended).await;
        self.common.inner.lock().running
    }
}

#[cfg(test)]
mod tests;
