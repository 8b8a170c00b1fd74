//! One running member: fetches, runs, settles, and hands over cleanly when it stops.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use trunkline_core::engine::{Batch, Credit, Delivery, Feed, Fetched, Settle, Settler, Token};
use trunkline_core::random::random;
use trunkline_core::{Error, ErrorKind, Name, Result};

use super::pool::Pool;
use super::retry::LONGEST_DELAY;
use super::turn::Turn;
use super::{Control, MAX_WAITING, Shared, StopReport, dead_letter};
use crate::failure::{Disposition, Failure, disposition};
use crate::handler::MemberContext;

/// Events that may wait for their turn, however few run at once.
const MIN_WINDOW: usize = 256;
/// Bytes of fetched events that wait for their turn at most.
const MAX_QUEUED_BYTES: usize = 16 << 20;
/// How long an event of a type that this member does not know waits, once the policy has no more
/// delays.
const WAIT_FOR_OTHERS: Duration = Duration::from_secs(30);
/// How long to leave an engine alone that cannot be reached, or is otherwise about to recover.
const PAUSE: Duration = Duration::from_secs(1);
/// How long after its deadline a stop still waits for an engine that does not answer.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long to wait before a dead letter that could not be stored is tried again, at most.
const LONGEST_DEAD_LETTER_WAIT: Duration = Duration::from_secs(30);

/// Where a member gets its events from: one consumer of one stream.
pub(super) struct Source {
    pub(super) stream: Name,
    feed: Box<dyn Feed>,
    settler: Arc<dyn Settler>,
    fetched: Vec<Delivery>,
    /// Decided and not yet told to the engine.
    settling: Batch<(Token, Settle)>,
}

impl Source {
    pub(super) fn new(stream: Name, feed: Box<dyn Feed>, settler: Arc<dyn Settler>) -> Self {
        Self {
            stream,
            feed,
            settler,
            fetched: Vec::new(),
            settling: Batch::new(),
        }
    }
}

pub(super) struct Member {
    shared: Arc<Shared>,
    sources: Vec<Source>,
    control: watch::Receiver<Control>,
    report: watch::Sender<Option<StopReport>>,
    stopping: watch::Sender<bool>,
    concurrency: usize,
    /// Which source is asked first next time, so that a busy one does not starve another.
    turn: usize,
    pool: Pool,
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
        report: watch::Sender<Option<StopReport>>,
    ) -> Self {
        let concurrency = control.borrow().concurrency;
        let stopping = watch::Sender::new(false);
        let context = MemberContext {
            consumer: shared.name.clone(),
            bus: shared.bus.clone(),
            stopping: stopping.subscribe(),
        };
        Self {
            concurrency,
            turn: 0,
            pool: Pool::new(Arc::clone(&shared), Arc::new(context), control.clone()),
            shared,
            sources,
            control,
            report,
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

    pub(super) async fn run(mut self) {
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
            cancelled = report.cancelled, "member stopped"
        );
        self.report.send_replace(Some(report));
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
                () = self.pool.finished() => Next::Finished,
                () = sleep_until(due) => Next::Due,
                _ = renewal.tick() => Next::Renew,
                (source, fetched) = fetch(&mut self.sources, self.turn, credit), if credit.items > 0 => {
                    Next::Fetched(source, fetched)
                }
            };
            match next {
                Next::Control => {
                    let Control { stop, concurrency } = self.control.borrow_and_update().clone();
                    if stop.is_some() {
                        return Ok(());
                    }
                    self.concurrency = concurrency;
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
        let window = (2 * self.concurrency).max(MIN_WINDOW);
        let (queued, queued_bytes) = self.pool.queued();
        let blocked = Instant::now() < self.fetch_due
            || !self.dead.is_empty()
            || self.waiting.len() >= MAX_WAITING
            || queued_bytes >= MAX_QUEUED_BYTES;
        // Half a window at least, so that a fetch is worth its while.
        let room = window.saturating_sub(queued);
        let items = if blocked || room < window / 2 {
            0
        } else {
            room
        };
        Credit {
            items,
            bytes: MAX_QUEUED_BYTES - queued_bytes.min(MAX_QUEUED_BYTES),
        }
    }

    fn fetched(&mut self, source: usize, fetched: Fetched) -> Result<()> {
        let from = &mut self.sources[source];
        match fetched {
            Fetched::Deliveries(_) => {
                self.pool.push(
                    from.fetched
                        .drain(..)
                        .map(|delivery| Turn::new(source, delivery)),
                );
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

    /// Puts what is due for another attempt before what has not had its first.
    fn start_due(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.waiting.first_entry()
            && entry.key().0 <= now
        {
            let turn = entry.remove();
            if turn.for_others {
                self.settle(&turn, Settle::GiveBack);
            } else {
                self.pool.push_front(turn);
            }
        }
    }

    /// Decides what becomes of the turns that have finished, and says how many those are.
    fn finished(&mut self) -> usize {
        let finished = self.pool.take_finished();
        let count = finished.len();
        for (turn, result) in finished {
            match result {
                Ok(()) => self.settle(&turn, Settle::Ack),
                Err(failure) => self.failed(turn, failure),
            }
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
        let disposition = disposition(&failure, &self.shared.rules);
        let delay = match disposition {
            Disposition::Transient if failure.is_for_others() => {
                turn.failed(now);
                turn.for_others = true;
                self.delay_for_others(&turn, &failure)
            }
            Disposition::Snooze(delay) => Some(delay),
            Disposition::Throttled(delay) => {
                turn.last_failure = Some(now);
                Some(delay)
            }
            Disposition::Permanent => {
                turn.failed(now);
                None
            }
            Disposition::Transient => {
                turn.failed(now);
                self.shared.retry.delay(turn.failures, random())
            }
        };
        let delay = delay.map(|delay| delay.min(LONGEST_DELAY));
        if !matches!(disposition, Disposition::Snooze(_)) {
            let stream = &self.sources[turn.source].stream;
            let (event_id, event_type) = id_and_type(&self.shared, stream, &turn);
            tracing::warn!(
                consumer = %self.shared.name, %stream, seq = turn.event.seq, event_id, event_type, attempt = turn.failures,
                reason = failure.reason(), error = failure.chain(), again_in = ?delay, "handling failed"
            );
        }
        match delay {
            Some(delay) => {
                self.waits += 1;
                self.waiting
                    .insert((Instant::now() + delay, self.waits), turn);
            }
            None => self.dead.push_back((turn, failure)),
        }
    }

    /// How long an event that this member has no use for waits before another member may have it.
    /// A type that nobody here knows waits for one who does, however long that takes; a version
    /// that fits nobody is given up in the end.
    fn delay_for_others(&self, turn: &Turn, failure: &Failure) -> Option<Duration> {
        let delay = self.shared.retry.delay(turn.delivered_hint, random());
        match failure.reason() {
            "unsupported_type" => Some(delay.unwrap_or(WAIT_FOR_OTHERS)),
            _ => delay,
        }
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
        let retry = self.waiting.first_key_value().map(|((due, _), _)| *due);
        let dead = (!self.dead.is_empty()).then_some(self.dead_due);
        let unsettled = self
            .sources
            .iter()
            .any(|source| !source.settling.is_empty());
        let settle = unsettled.then_some(self.settle_due);
        let fetch = (Instant::now() < self.fetch_due).then_some(self.fetch_due);
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
        for (source, held) in self.sources.iter_mut().zip(held) {
            if held.is_empty() {
                continue;
            }
            if let Err(error) = source.settler.settle(held, false).completed().await {
                tracing::warn!(consumer = %self.shared.name, stream = %source.stream, %error, "leases were not renewed");
            }
        }
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
                () = self.pool.finished() => {}
                () = tokio::time::sleep_until(end) => break,
                _ = renewal.tick() => {
                    // What is not renewed in time comes again, which a stop must not wait for.
                    let _ = timeout_at(end, self.renew()).await;
                }
            }
        }
        for turn in self.pool.cancel().await {
            report.cancelled += 1;
            self.settle(&turn, Settle::GiveBack);
        }
        report.finished += self.finished();
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

/// Waits for whichever source has something first; source `first` is asked first.
async fn fetch(sources: &mut [Source], first: usize, credit: Credit) -> (usize, Result<Fetched>) {
    let count = sources.len();
    let mut fetches: Vec<_> = sources
        .iter_mut()
        .map(|source| source.feed.fetch(credit, &mut source.fetched))
        .collect();
    std::future::poll_fn(|cx| {
        for index in (0..count).map(|step| (first + step) % count) {
            if let Poll::Ready(fetched) = fetches[index].as_mut().poll(cx) {
                return Poll::Ready((index, fetched));
            }
        }
        Poll::Pending
    })
    .await
}
