//! One running member: fetches, runs, settles, and hands over cleanly when it stops.

mod job;
mod source;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use trunkline_core::engine::{Batch, Credit, Delivery, Fetched, Settle, Token};
use trunkline_core::random::random;
use trunkline_core::{Error, ErrorKind, Name, Result};

use super::policy::{Counters, SNOOZED, Verdict};
use super::pool::{Appetite, Ended, Job, Pool, Vitals};
use super::retry::LONGEST_DELAY;
use super::turn::Turn;
use super::{Control, MAX_WAITING, Shared, StopReport, dead_letter};
use crate::failure::Failure;
use crate::handler::MemberContext;
use job::Hands;
use source::fetch;

pub(super) use source::Source;

/// How much longer each time an event that this member cannot have at work waits before another
/// member may have it, and how long at most.
const HAND_ON: Duration = Duration::from_secs(1);
const LONGEST_HAND_ON: Duration = Duration::from_secs(30);
/// How long to leave an engine alone that cannot be reached, or is otherwise about to recover.
const PAUSE: Duration = Duration::from_secs(1);
/// How long after its deadline a stop still waits for an engine that does not answer.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long to wait before a dead letter that could not be stored is tried again, at most.
const LONGEST_DEAD_LETTER_WAIT: Duration = Duration::from_secs(30);

pub(super) struct Member {
    shared: Arc<Shared>,
    sources: Vec<Source>,
    control: watch::Receiver<Control>,
    stopping: watch::Sender<bool>,
    /// Which source is asked first next time, so that a busy one does not starve another.
    turn: usize,
    pool: Pool<Turn>,
    /// Bytes of the largest event that there may be.
    largest: usize,
    /// Between two attempts, by when they are due; the number keeps equal times apart.
    waiting: BTreeMap<(Instant, u64), Turn>,
    waits: u64,
    /// Given up, but their dead letters are not stored yet. Nothing is fetched meanwhile.
    dead: VecDeque<(Turn, Failure)>,
    dead_wait: Duration,
    dead_due: Instant,
    /// Not before then is the engine told what was decided, or asked for more: it failed a moment
    /// ago, and not for good.
    settle_due: Instant,
    fetch_due: Instant,
}

enum Next {
    Control,
    Finished,
    Fetched(usize, Result<Fetched>),
    Due,
    Renew,
}

impl Member {
    pub(super) fn new(
        shared: Arc<Shared>,
        sources: Vec<Source>,
        control: watch::Receiver<Control>,
    ) -> Self {
        let stopping = watch::Sender::new(false);
        let context = MemberContext {
            consumer: shared.name.clone(),
            bus: shared.bus.clone(),
            generation: 0,
            stopping: stopping.subscribe(),
        };
        let hands = Hands {
            shared: Arc::clone(&shared),
            context: Arc::new(context),
        };
        let name = shared.name.clone();
        Self {
            turn: 0,
            largest: shared.bus.inner.engine.limits().max_message,
            pool: Pool::new(hands, name, &shared.policy, control.clone()),
            shared,
            sources,
            control,
            stopping,
            waiting: BTreeMap::new(),
            waits: 0,
            dead: VecDeque::new(),
            dead_wait: Duration::from_secs(1),
            dead_due: Instant::now(),
            settle_due: Instant::now(),
            fetch_due: Instant::now(),
        }
    }

    /// What tells how the member is, for as long as it is.
    pub(super) fn vitals(&self) -> Weak<dyn Vitals> {
        self.pool.vitals()
    }

    pub(super) async fn run(mut self) -> StopReport {
        let failed = self.work().await.err();
        if let Some(error) = &failed {
            tracing::error!(consumer = %self.shared.name, %error, "the member ends; its consumer needs another");
        }
        let deadline = self.control.borrow().stop.unwrap_or(Duration::ZERO);
        let report = StopReport {
            failed,
            ..self.drain(deadline).await
        };
        tracing::info!(
            consumer = %self.shared.name, finished = report.finished, given_back = report.given_back,
            cancelled = report.cancelled, stuck = report.stuck, "member stopped"
        );
        report
    }

    /// Works until it is told to stop.
    async fn work(&mut self) -> Result<()> {
        let mut renewal = tokio::time::interval(self.shared.ack_wait / 3);
        renewal.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.start_due();
            self.bury().await;
            self.flush().await?;
            let credit = self.credit();
            let due = self.next_due();
            let next = tokio::select! {
                biased;
                changed = self.control.changed() => {
                    changed.map_err(|_| Error::new(ErrorKind::Closed, "nobody holds this member any more"))?;
                    Next::Control
                }
                () = self.pool.changed() => Next::Finished,
                () = sleep_until(due) => Next::Due,
                _ = renewal.tick() => Next::Renew,
                (source, fetched) = fetch(&mut self.sources, self.turn, credit), if credit.items > 0 => {
                    Next::Fetched(source, fetched)
                }
            };
            match next {
                Next::Control => {
                    if self.control.borrow_and_update().stop.is_some() {
                        return Ok(());
                    }
                    self.pool.start();
                }
                Next::Finished => {
                    self.finished();
                }
                Next::Fetched(source, fetched) => {
                    self.turn = source + 1;
                    match fetched {
                        Err(error) if error.retryable() => {
                            tracing::warn!(
                                consumer = %self.shared.name, stream = %self.sources[source].stream, %error,
                                again_in = ?PAUSE, "nothing could be fetched"
                            );
                            self.fetch_due = Instant::now() + PAUSE;
                        }
                        fetched => self.fetched(source, fetched?)?,
                    }
                }
                Next::Due => {}
                Next::Renew => self.renew().await,
            }
        }
    }

    /// How much to fetch: enough to keep the handlers busy while the next batch comes.
    fn credit(&self) -> Credit {
        let (events, bytes) = self.control.borrow().window();
        let held = self.pool.held();
        let room = Credit {
            items: events.saturating_sub(held.events),
            bytes: bytes.saturating_sub(held.bytes),
        };
        // Half a window at least, so that a fetch is worth its while. A fetch gives one event even if
        // that is larger than the credit, so the largest that there may be must fit, or be alone.
        let is_worth = room.items >= events.div_ceil(2)
            && (held.events == 0 || room.bytes >= self.largest.max(bytes.div_ceil(2)));
        let is_blocked = Instant::now() < self.fetch_due
            || !self.dead.is_empty()
            || self.waiting.len() >= MAX_WAITING;
        let items = match self.pool.appetite() {
            _ if is_blocked => 0,
            Appetite::None => 0,
            Appetite::One => room.items.min(1),
            Appetite::Any if is_worth => room.items,
            Appetite::Any => 0,
        };
        Credit { items, ..room }
    }

    fn fetched(&mut self, source: usize, fetched: Fetched) -> Result<()> {
        let from = &mut self.sources[source];
        match fetched {
            Fetched::Deliveries(_) => {
                // What comes again although it is still at work here, its lease having ended, is for
                // others: a handler that blocks its thread would block the next one too.
                let pool = &self.pool;
                let is_at_work = |again: &mut Delivery| {
                    let is_same =
                        |job: &Turn| (job.source, job.event.seq) == (source, again.event.seq);
                    again.delivered_hint > 1 && pool.is_running(is_same)
                };
                let at_work: Vec<_> = from.fetched.extract_if(.., is_at_work).collect();
                let turn = |delivery| Turn::new(source, delivery);
                self.pool.push(from.fetched.drain(..).map(turn));
                for mut turn in at_work.into_iter().map(turn) {
                    turn.for_others = true;
                    let delay = hand_on(&turn);
                    self.wait(turn, delay);
                }
                Ok(())
            }
            Fetched::Gap(gap) => {
                tracing::warn!(
                    consumer = %self.shared.name, stream = %from.stream, from = gap.from, to = gap.to,
                    "retention removed events before they were handled; at most {} are expired", gap.at_most()
                );
                if let Some(observe) = &self.shared.on_gap {
                    observe(&from.stream, gap);
                }
                Ok(())
            }
            Fetched::Gone => Err(Error::new(
                ErrorKind::NoSuchConsumer,
                format!(
                    "consumer {} was deleted from stream {}",
                    self.shared.name, from.stream
                ),
            )),
            Fetched::Closed => Err(Error::new(
                ErrorKind::Closed,
                "the bus was closed under the member",
            )),
        }
    }

    /// Puts what is due for another attempt before what has not had its first, as far as there is
    /// room in the window; the rest stays where it is.
    fn start_due(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.waiting.first_entry()
            && entry.key().0 <= now
        {
            let (key, turn) = entry.remove_entry();
            if turn.for_others {
                self.settle(&turn, Settle::GiveBack);
            } else if self.fits(&turn) {
                self.pool.push_front(turn);
            } else {
                self.waiting.insert(key, turn);
                break;
            }
        }
    }

    /// Whether there is room in the window for one that waits.
    fn fits(&self, turn: &Turn) -> bool {
        let (events, bytes) = self.control.borrow().window();
        let held = self.pool.held();
        held.events == 0 || (held.events < events && held.bytes + turn.bytes() <= bytes)
    }

    /// Decides what becomes of the turns that have finished, and says how many those are.
    fn finished(&mut self) -> usize {
        let mut count = 0;
        for (turn, ended) in self.pool.take_finished() {
            match ended {
                Ended::Well => self.settle(&turn, Settle::Ack),
                Ended::Failed(failure) => self.failed(turn, failure),
                // Its lease is gone or was let go: another member has the event, or will.
                Ended::Cancelled => continue,
            }
            count += 1;
        }
        count
    }

    fn settle(&mut self, turn: &Turn, settle: Settle) {
        self.sources[turn.source]
            .settling
            .push((turn.token, settle));
    }

    fn failed(&mut self, mut turn: Turn, failure: Failure) {
        let now = self.shared.bus.inner.clock.now();
        turn.for_others = failure.is_for_others();
        let counters = Counters {
            // Who hands an event on does not see what others counted; the engine does, roughly.
            failures: match turn.for_others {
                true => turn.delivered_hint.saturating_sub(1),
                false => turn.failures,
            },
            starts: 0,
        };
        let policy = &self.shared.policy;
        let verdict = policy.judge(Some(&failure), counters, now, random());
        let (delay, counts, reason, error) = match &verdict {
            Verdict::Again {
                delay,
                counts,
                reason,
                error,
            } => (Some(*delay), *counts, reason, error),
            Verdict::Dead { reason, error } => (None, true, reason, error),
        };
        if counts {
            turn.failed(now);
        } else if *reason != SNOOZED {
            turn.last_failure = Some(now);
        }
        // A type that nobody here knows is known to another member, or will be: sooner at first.
        let delay = match delay {
            Some(delay) if turn.for_others && !counts => Some(delay.min(hand_on(&turn))),
            delay => delay,
        };
        if *reason != SNOOZED {
            turn.tried(now, &failure);
            let stream = &self.sources[turn.source].stream;
            let (event_id, event_type) = id_and_type(&self.shared, stream, &turn);
            tracing::warn!(
                consumer = %self.shared.name, %stream, seq = turn.event.seq, event_id, event_type,
                attempt = turn.failures, reason, error, again_in = ?delay, "handling failed"
            );
        }
        match delay {
            Some(delay) => self.wait(turn, delay),
            None => self.dead.push_back((turn, failure)),
        }
    }

    /// Keeps a turn until it is due.
    fn wait(&mut self, turn: Turn, delay: Duration) {
        self.waits += 1;
        self.waiting
            .insert((Instant::now() + delay, self.waits), turn);
    }

    /// Stores the dead letters that are due and settles their events.
    async fn bury(&mut self) {
        while Instant::now() >= self.dead_due
            && let Some((turn, failure)) = self.dead.pop_front()
        {
            let stream = &self.sources[turn.source].stream;
            let inner = &self.shared.bus.inner;
            match dead_letter::store(inner, &self.shared.name, stream, &turn, &failure).await {
                Ok(subject) => {
                    let (event_id, event_type) = id_and_type(&self.shared, stream, &turn);
                    tracing::error!(
                        consumer = %self.shared.name, %stream, seq = turn.event.seq, event_id,
                        event_type, failures = turn.failures, reason = failure.reason(),
                        error = failure.chain(), %subject, "given up; stored as a dead letter"
                    );
                    self.dead_wait = Duration::from_secs(1);
                    self.settle(&turn, Settle::Ack);
                }
                Err(error) => {
                    tracing::error!(
                        consumer = %self.shared.name, stream = %inner.settings.dead_letters, %error,
                        again_in = ?self.dead_wait,
                        "a dead letter cannot be stored; nothing is fetched until it is"
                    );
                    self.dead.push_front((turn, failure));
                    self.dead_due = Instant::now() + self.dead_wait;
                    self.dead_wait = (2 * self.dead_wait).min(LONGEST_DEAD_LETTER_WAIT);
                }
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let now = Instant::now();
        // One that is due and does not fit waits until something has finished.
        let first = self.waiting.first_key_value();
        let retry =
            first.filter(|((due, _), turn)| *due > now || turn.for_others || self.fits(turn));
        let retry = retry.map(|((due, _), _)| *due);
        let dead = (!self.dead.is_empty()).then_some(self.dead_due);
        let unsettled = self
            .sources
            .iter()
            .any(|source| !source.settling.is_empty());
        let settle = unsettled.then_some(self.settle_due);
        let fetch = (now < self.fetch_due).then_some(self.fetch_due);
        [retry, dead, settle, fetch].into_iter().flatten().min()
    }

    /// Tells the engine what was decided: every source, also when one of them fails. What could not
    /// be told is kept, unless there is no hope: an engine that is away for a while must not cost a
    /// member what its handlers did.
    async fn flush(&mut self) -> Result<()> {
        let mut flushed = Ok(());
        if Instant::now() < self.settle_due {
            return flushed;
        }
        for source in &mut self.sources {
            if source.settling.is_empty() {
                continue;
            }
            let batch = std::mem::take(&mut source.settling);
            match source
                .settler
                .settle(batch.clone(), false)
                .completed()
                .await
            {
                Err(error) if error.retryable() => {
                    tracing::warn!(
                        consumer = %self.shared.name, stream = %source.stream, %error, again_in = ?PAUSE,
                        "what was decided could not be settled"
                    );
                    source.settling = batch;
                    self.settle_due = Instant::now() + PAUSE;
                }
                Err(error) => flushed = Err(error),
                Ok(settled) => {
                    for error in settled.into_iter().filter_map(Result::err) {
                        tracing::warn!(
                            consumer = %self.shared.name, stream = %source.stream, %error, "settled too late"
                        );
                    }
                }
            }
        }
        flushed
    }

    /// Renews the lease on everything that this member holds.
    async fn renew(&mut self) {
        let mut held: Vec<Batch<(Token, Settle)>> = vec![Batch::new(); self.sources.len()];
        let mut hold = |turn: &Turn| held[turn.source].push((turn.token, Settle::Extend));
        self.pool.each(&mut hold);
        self.waiting
            .values()
            .chain(self.dead.iter().map(|(turn, _)| turn))
            .for_each(hold);
        let mut lost = Vec::new();
        for (index, (source, held)) in self.sources.iter_mut().zip(held).enumerate() {
            if held.is_empty() {
                continue;
            }
            match source.settler.settle(held.clone(), false).completed().await {
                Err(error) => {
                    tracing::warn!(consumer = %self.shared.name, stream = %source.stream, %error, "leases were not renewed");
                }
                Ok(renewed) => {
                    let is_lost = |renewed: &Result<()>| matches!(renewed, Err(error) if error.kind() == ErrorKind::StaleLease);
                    let renewed = held.iter().zip(renewed);
                    let gone = renewed.filter(|(_, renewed)| is_lost(renewed));
                    lost.extend(gone.map(|((token, _), _)| (index, *token)));
                }
            }
        }
        if !lost.is_empty() {
            self.lose(&lost);
        }
    }

    /// Drops the turns whose leases have ended: their events are somebody else's, who must not find
    /// this member at work on them, nor be told of its failures.
    fn lose(&mut self, lost: &[(usize, Token)]) {
        let is_lost = |turn: &Turn| lost.contains(&(turn.source, turn.token));
        tracing::warn!(
            consumer = %self.shared.name, events = lost.len(),
            "leases have ended, so other members get their events; what runs of them is cancelled"
        );
        self.pool.cancel(is_lost);
        self.waiting.retain(|_, turn| !is_lost(turn));
        self.dead.retain(|(turn, _)| !is_lost(turn));
    }

    /// Lets what runs finish, gives back the rest, and says what it did.
    async fn drain(&mut self, deadline: Duration) -> StopReport {
        self.stopping.send_replace(true);
        let mut report = StopReport::default();
        let waiting = std::mem::take(&mut self.waiting);
        for turn in self
            .pool
            .take_queue()
            .into_iter()
            .chain(waiting.into_values())
        {
            report.given_back += 1;
            self.settle(&turn, Settle::GiveBack);
        }
        let mut renewal = tokio::time::interval(self.shared.ack_wait / 3);
        let end = Instant::now() + deadline.min(LONGEST_DELAY);
        loop {
            report.finished += self.finished();
            self.flush_by(end).await;
            if self.pool.is_idle() {
                break;
            }
            tokio::select! {
                biased;
                () = self.pool.changed() => {}
                () = tokio::time::sleep_until(end) => break,
                _ = renewal.tick() => {
                    // What is not renewed in time comes again, which a stop must not wait for.
                    let _ = timeout_at(end, self.renew()).await;
                }
            }
        }
        report.stuck = self.pool.cancel_all(Instant::now() + LAST_WORDS).await;
        for (turn, ended) in self.pool.take_finished() {
            report.finished += 1;
            match ended {
                Ended::Well => self.settle(&turn, Settle::Ack),
                Ended::Failed(failure) => self.failed(turn, failure),
                Ended::Cancelled => {
                    report.finished -= 1;
                    report.cancelled += 1;
                    self.settle(&turn, Settle::GiveBack);
                }
            }
        }
        // What failed meanwhile waits for an attempt that another member will make, and a dead
        // letter that could not be stored is that member's to store.
        let end = end.min(Instant::now()) + LAST_WORDS;
        if timeout_at(end, self.bury()).await.is_err() {
            tracing::warn!(consumer = %self.shared.name, "a dead letter could not be stored before the stop; its event comes again");
        }
        let waiting = std::mem::take(&mut self.waiting).into_values();
        let dead = std::mem::take(&mut self.dead)
            .into_iter()
            .map(|(turn, _)| turn);
        for turn in waiting.chain(dead) {
            report.given_back += 1;
            self.settle(&turn, Settle::GiveBack);
        }
        self.settle_due = Instant::now();
        self.flush_by(end).await;
        report
    }

    /// As [`flush`](Self::flush), for as long as there is time. What the engine was not told by then
    /// is delivered again when its lease ends.
    async fn flush_by(&mut self, end: Instant) {
        match timeout_at(end, self.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(consumer = %self.shared.name, %error, "what was decided could not be settled");
            }
            Err(_) => {
                tracing::warn!(
                    consumer = %self.shared.name,
                    "what was decided could not be settled before the stop; it may come again"
                );
            }
        }
    }
}

/// How long to keep an event that is for other members: a little at first.
fn hand_on(turn: &Turn) -> Duration {
    HAND_ON
        .saturating_mul(turn.delivered_hint)
        .min(LONGEST_HAND_ON)
}

/// For the log.
fn id_and_type(shared: &Shared, stream: &Name, turn: &Turn) -> (String, String) {
    let event = shared.bus.envelope(stream, &turn.event);
    let none = |_| ("(no CloudEvent)".to_owned(), "(no CloudEvent)".to_owned());
    event.map_or_else(none, |event| {
        (event.id().to_string(), event.event_type().to_owned())
    })
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
