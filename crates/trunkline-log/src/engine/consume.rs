//! Shared consumers: the ledger of core over the stream's events.
//!
//! Events are read ahead of what is lent, a chunk at a time by one member for all of them, so that no
//! lock is held while files are read and none is read twice.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use trunkline_core::engine::{
    Admission, Admitted, Backlog, Batch, Boxed, Consume, ConsumerRef, ConsumerSpec, Credit,
    Delivery, Feed, Fetched, Link, Membership, Retention, Seq, Settle, Settler, StoredEvent, Token,
};
use trunkline_core::ledger::{Ledger, Settled};
use trunkline_core::local::{Parked, Waiter, until_closed};
use trunkline_core::matcher::Key;
use trunkline_core::plan::legal::no_such_consumer;
use trunkline_core::{Error, ErrorKind, Filter, Result};

use super::committer::{Job, answer};
use super::log::reading;
use super::streams::OpenStream;
use super::{Bus, LogEngine, closed};
use crate::journal::KnownConsumer;
use crate::selection::Selection;
use crate::stream::ranges::Ranges;

/// What is read ahead at once.
const AHEAD: Credit = Credit {
    items: 256,
    bytes: 1 << 20,
};

/// Ranges of acknowledgements that share a record, which must fit into a group of the journal.
const OWED_AT_ONCE: usize = 16_384;

/// One shared consumer of a stream.
pub(super) struct Consumer {
    at: ConsumerRef,
    waiter: Arc<Waiter>,
    inner: Mutex<Inner>,
}

struct Inner {
    spec: ConsumerSpec,
    selection: Selection,
    ledger: Ledger,
    /// Read, and not lent yet: in order, at or above the ledger's next.
    ready: VecDeque<StoredEvent>,
    /// Where reading ahead goes on.
    ahead: Seq,
    /// Whether a member reads ahead at the moment.
    is_reading: bool,
    /// Whether everything had been read when it was last looked; the waiter notes what came since.
    caught_up: bool,
    /// How often what is selected changed, so that what was read before is not taken for it.
    generation: u64,
    gone: bool,
    keys: Vec<(Filter, Key)>,
    /// Acknowledged, and not known to be written down: whatever is written next has it.
    owed: Ranges,
}

/// What a consumer has acknowledged and that is to be written down.
pub(super) struct Owed {
    /// From the first to before the second.
    pub(super) ranges: Vec<(Seq, Seq)>,
    /// What is settled in addition, first and last.
    pub(super) stretches: Vec<(Seq, Seq)>,
    pub(super) lost: u64,
}

/// What a member is to do.
enum Plan<'a> {
    Done(Fetched),
    /// Events that come again: look them up.
    Again(Vec<(Token, u32)>),
    /// Read ahead from there.
    Read(Seq, Selection, u64),
    /// Wait, until then at the latest.
    Wait(Parked<'a>, Option<std::time::Instant>),
}

impl Consumer {
    /// One that was just made, and looks at `next` first.
    pub(super) fn begin(spec: ConsumerSpec, next: Seq, stream: &OpenStream) -> Self {
        let ledger = Ledger::new(next, spec.ack_wait);
        Self::with(spec, ledger, stream)
    }

    /// One that was there before this process.
    pub(super) fn restored(known: KnownConsumer, stream: &OpenStream) -> Self {
        let KnownConsumer {
            spec,
            mut settled,
            lost,
        } = known;
        if stream.interest().spec.retention == Retention::WorkQueue {
            // What is done has left, so whatever is there is not: also what was acknowledged when it could
            // not leave, or came back because its leaving was not synced.
            settled = Settled::up_to(stream.reader.standing().first.saturating_sub(1));
        }
        let ledger = Ledger::restore(settled, lost, spec.ack_wait);
        Self::with(spec, ledger, stream)
    }

    fn with(spec: ConsumerSpec, ledger: Ledger, stream: &OpenStream) -> Self {
        let waiter = Arc::new(Waiter::default());
        let mut interest = stream.interest();
        Self {
            at: spec.at.clone(),
            inner: Mutex::new(Inner {
                selection: Selection::new(&spec.filters, &interest.stored),
                ahead: ledger.next(),
                keys: interest.register(&spec.filters, &waiter),
                spec,
                ledger,
                ready: VecDeque::new(),
                is_reading: false,
                caught_up: false,
                generation: 0,
                gone: false,
                owed: Ranges::default(),
            }),
            waiter,
        }
    }

    pub(super) fn at(&self) -> &ConsumerRef {
        &self.at
    }

    /// Some of what is to be written down, which then is the caller's: whoever cannot gives it
    /// [back](Self::owe). None when there is nothing.
    pub(super) fn take_owed(&self) -> Option<Owed> {
        let mut inner = self.inner.lock();
        let ranges = inner.owed.take_first(OWED_AT_ONCE);
        if ranges.is_empty() {
            return None;
        }
        let ledger = &inner.ledger;
        // Everything in a range is settled, so that the stretch around its first is around all of it.
        let stretches: BTreeSet<_> = ranges
            .iter()
            .filter_map(|(first, _)| ledger.settled_around(*first))
            .collect();
        Some(Owed {
            stretches: stretches.into_iter().collect(),
            lost: ledger.lost_at_most(),
            ranges,
        })
    }

    /// Has these written down with what comes next.
    pub(super) fn owe(&self, ranges: Vec<(Seq, Seq)>) {
        let mut inner = self.inner.lock();
        for (first, end) in ranges {
            inner.owed.insert(first, end);
        }
    }

    pub(super) fn spec(&self) -> ConsumerSpec {
        self.inner.lock().spec.clone()
    }

    /// Takes over other filters and limits; progress stays.
    pub(super) fn update(&self, spec: ConsumerSpec, stream: &OpenStream) {
        {
            let mut interest = stream.interest();
            let mut inner = self.inner.lock();
            inner.pass_others(&self.waiter, interest.noted);
            interest.unregister(&inner.keys);
            inner.keys = interest.register(&spec.filters, &self.waiter);
            let selection = Selection::new(&spec.filters, &interest.stored);
            inner.select(selection);
            inner.ledger.set_lease(spec.ack_wait);
            inner.spec = spec;
        }
        self.waiter.wake_all();
    }

    /// Takes over what its stream stores now.
    pub(super) fn select_anew(&self, stored: &[Filter]) {
        let mut inner = self.inner.lock();
        let selection = Selection::new(&inner.spec.filters, stored);
        inner.select(selection);
    }

    /// Takes it out of its stream; who waits for it learns that it is gone.
    pub(super) fn retire(&self, stream: &OpenStream) {
        stream.interest().unregister(&self.inner.lock().keys);
        self.end();
    }

    /// Lets who waits for it learn that it is gone.
    pub(super) fn end(&self) {
        self.inner.lock().gone = true;
        self.waiter.wake_all();
    }

    pub(super) fn backlog(&self, stream: &OpenStream) -> Result<Backlog> {
        let (selection, next, ahead, mut backlog) = {
            let inner = self.inner.lock();
            let ledger = &inner.ledger;
            let backlog = Backlog {
                pending: ledger.returned() as u64,
                in_flight: ledger.in_flight() as u64,
                floor: ledger.floor(),
                expired_at_most: ledger.lost_at_most(),
            };
            let ahead: Vec<_> = ledger.settled_ahead().collect();
            (inner.selection.clone(), ledger.next(), ahead, backlog)
        };
        let count = |from| stream.reader.count(&selection, from);
        let mut unseen = count(next)?;
        for (from, to) in ahead {
            let settled = count(from)?.saturating_sub(count(to.saturating_add(1))?);
            unseen = unseen.saturating_sub(settled);
        }
        backlog.pending += unseen;
        Ok(backlog)
    }

    /// What a member is to do next. What is lent is in `out`.
    fn plan(
        &self,
        stream: &OpenStream,
        credit: Credit,
        out: &mut Vec<Delivery>,
        now: std::time::Instant,
    ) -> Plan<'_> {
        let interest = stream.interest();
        let mut inner = self.inner.lock();
        if inner.gone || interest.deleted {
            return Plan::Done(Fetched::Gone);
        }
        inner.ledger.expire(now);
        inner.pass_others(&self.waiter, interest.noted);
        let standing = stream.reader.standing();
        if let Some(gap) = inner.ledger.trim(standing.first) {
            return Plan::Done(Fetched::Gap(gap));
        }
        let in_flight = inner.ledger.in_flight();
        let room = credit
            .items
            .min(inner.spec.max_in_flight.saturating_sub(in_flight));
        let again: Vec<_> = (0..room)
            .map_while(|_| inner.ledger.lend_again(now))
            .collect();
        if !again.is_empty() {
            if again.len() == credit.items {
                self.waiter.wake(); // There may be more, and another member may be idle.
            }
            return Plan::Again(again);
        }
        let first_lease = inner.ledger.next_end().is_none();
        let lent = inner.lend(
            stream,
            Credit {
                items: room,
                ..credit
            },
            now,
            out,
        );
        if lent > 0 {
            let more = !inner.ready.is_empty() || inner.ahead < standing.tail;
            drop(inner);
            if first_lease {
                // Whoever parked while nothing was leased waits for no lease to end.
                self.waiter.wake_all();
            } else if more {
                self.waiter.wake(); // Another member may be idle.
            }
            return Plan::Done(Fetched::Deliveries(lent));
        }
        let end = inner.ledger.next_end();
        if room == 0 || inner.is_reading {
            return Plan::Wait(self.waiter.park(), end);
        }
        let ahead = inner.ahead.max(inner.ledger.next());
        if ahead < standing.tail {
            inner.is_reading = true;
            return Plan::Read(ahead, inner.selection.clone(), inner.generation);
        }
        // What is noted still was read already, and wakes for nothing: but only once, where looking again
        // until it is noted would be busy for as long as the disk takes to go on to another segment.
        inner.caught_up = true;
        self.waiter.forget();
        Plan::Wait(self.waiter.park(), end)
    }

    /// Takes what was read ahead.
    fn read(&self, events: Vec<StoredEvent>, next: Seq, generation: u64) {
        let mut inner = self.inner.lock();
        if inner.generation == generation {
            inner.ready.extend(events);
            inner.ahead = inner.ahead.max(next);
            if inner.ready.is_empty() {
                let ahead = inner.ahead;
                inner.ledger.pass(ahead);
            }
        }
    }

    /// Hands over events that were lent again; those that are gone are done.
    fn deliver_again(
        &self,
        stream: &OpenStream,
        again: Vec<(Token, u32)>,
        max_bytes: usize,
        out: &mut Vec<Delivery>,
        now: std::time::Instant,
    ) -> Result<usize> {
        let before = out.len();
        let (mut bytes, mut is_full) = (0_usize, false);
        let mut failed = Ok(());
        for (token, delivered_hint) in again {
            let event = match &failed {
                Ok(()) if !is_full => stream.reader.event(token.seq),
                _ => Ok(None),
            };
            let size = |event: &StoredEvent| event.body.rough_bytes() + event.headers.bytes();
            let settle = match event {
                Ok(Some(event)) if out.len() > before && bytes + size(&event) > max_bytes => {
                    is_full = true;
                    Settle::GiveBack
                }
                Ok(None) if is_full => Settle::GiveBack,
                Ok(Some(event)) => {
                    bytes += size(&event);
                    out.push(Delivery {
                        token,
                        event,
                        delivered_hint,
                    });
                    continue;
                }
                Ok(None) if failed.is_ok() => Settle::Ack,
                Ok(None) => Settle::GiveBack,
                Err(error) => {
                    failed = Err(error);
                    Settle::GiveBack
                }
            };
            // It is ours: nobody else knows of this lease yet.
            let _ = self.inner.lock().ledger.settle(token, settle, now);
        }
        let added = out.len() - before;
        if is_full {
            self.waiter.wake(); // Another member may be idle.
        }
        if added == 0 {
            failed.map(|()| 0)
        } else {
            Ok(added)
        }
    }
}

impl Inner {
    /// Passes over what came since everything had been read and concerned others.
    fn pass_others(&mut self, waiter: &Waiter, noted: Seq) {
        if std::mem::take(&mut self.caught_up) {
            let to = waiter.first_noted().unwrap_or(noted);
            self.ahead = self.ahead.max(to);
            if self.ready.is_empty() {
                self.ledger.pass(to);
            }
        }
    }

    /// What was read by another selection is read again.
    fn select(&mut self, selection: Selection) {
        self.selection = selection;
        self.generation += 1;
        self.ready.clear();
        self.ahead = self.ledger.next();
        self.caught_up = false;
    }

    /// Leases what was read, up to the credit, and says how many those are.
    fn lend(
        &mut self,
        stream: &OpenStream,
        credit: Credit,
        now: std::time::Instant,
        out: &mut Vec<Delivery>,
    ) -> usize {
        let (before, mut bytes) = (out.len(), 0);
        while out.len() - before < credit.items
            && let Some(event) = self.ready.front()
        {
            let size = event.body.rough_bytes();
            if out.len() > before && bytes + size > credit.bytes {
                break;
            }
            let Some(event) = self.ready.pop_front() else {
                break;
            };
            // It may have been settled before a restart, or removed since it was read.
            let is_new = event.seq >= self.ledger.next()
                && self.ledger.settled_before(event.seq).is_none()
                && stream.reader.is_live(event.seq);
            if !is_new {
                self.ledger.pass(event.seq.saturating_add(1));
                continue;
            }
            bytes += size;
            let (token, delivered_hint) = self.ledger.lend(event.seq, now);
            out.push(Delivery {
                token,
                event,
                delivered_hint,
            });
        }
        if self.ready.is_empty() {
            let ahead = self.ahead;
            self.ledger.pass(ahead);
        }
        out.len() - before
    }
}

impl Consume for LogEngine {
    fn open<'a>(&'a self, at: &'a ConsumerRef) -> Boxed<'a, Result<Membership>> {
        let open = || {
            let stream = self.stream(&at.stream)?;
            let consumer = stream.consumer(&at.consumer);
            let consumer = consumer.ok_or_else(|| no_such_consumer(at))?;
            let feed: Box<dyn Feed> = Box::new(LogFeed {
                bus: Arc::clone(&self.bus),
                link: self.link.subscribe(),
                stream,
                consumer: Arc::clone(&consumer),
            });
            let settler: Arc<dyn Settler> = Arc::new(LogSettler {
                bus: Arc::clone(&self.bus),
                link: self.link.subscribe(),
                consumer,
            });
            Ok((feed, settler))
        };
        Box::pin(std::future::ready(open()))
    }
}

struct LogFeed {
    bus: Arc<Bus>,
    link: watch::Receiver<Link>,
    stream: Arc<OpenStream>,
    consumer: Arc<Consumer>,
}

/// Reading ahead, which ends even if whoever reads is dropped.
struct Ahead<'a>(&'a Consumer);

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().is_reading = false;
        self.0.waiter.wake_all();
    }
}

impl Feed for LogFeed {
    fn fetch<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<Delivery>,
    ) -> Boxed<'a, Result<Fetched>> {
        Box::pin(async move {
            let Self {
                bus,
                link,
                stream,
                consumer,
            } = self;
            loop {
                if *link.borrow() == Link::Closed {
                    return Ok(Fetched::Closed);
                }
                bus.age(stream).await?;
                let now = Instant::now().into_std();
                let (parked, end) = match consumer.plan(stream, credit, out, now) {
                    Plan::Done(fetched) => return Ok(fetched),
                    Plan::Again(again) => {
                        match consumer.deliver_again(stream, again, credit.bytes, out, now)? {
                            0 => continue,
                            added => return Ok(Fetched::Deliveries(added)),
                        }
                    }
                    Plan::Read(from, selection, generation) => {
                        let ahead = Ahead(consumer);
                        let reader = stream.reader.clone();
                        let is_recent = reader.is_recent(from);
                        let (events, next) = reading(is_recent, move || {
                            let mut events = Vec::new();
                            let next = reader.read(from, &selection, AHEAD, &mut events)?;
                            Ok((events, next))
                        })
                        .await?;
                        consumer.read(events, next, generation);
                        drop(ahead);
                        continue;
                    }
                    Plan::Wait(parked, end) => (parked, end),
                };
                let lease_ends = async {
                    match end {
                        Some(end) => tokio::time::sleep_until(end.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = parked.wait() => {}
                    () = lease_ends => {}
                    () = until_closed(link.clone()) => return Ok(Fetched::Closed),
                }
            }
        })
    }
}

struct LogSettler {
    bus: Arc<Bus>,
    link: watch::Receiver<Link>,
    consumer: Arc<Consumer>,
}

impl Settler for LogSettler {
    fn settle(
        &self,
        batch: Batch<(Token, Settle)>,
        confirm: bool,
    ) -> Admitted<'_, Vec<Result<()>>> {
        Admitted::waiting(async move {
            if *self.link.borrow() == Link::Closed {
                return Err(closed());
            }
            let (results, has_acks) = {
                let mut inner = self.consumer.inner.lock();
                if inner.gone {
                    return Err(Error::new(
                        ErrorKind::NoSuchConsumer,
                        format!("consumer {} was deleted", self.consumer.at.consumer),
                    ));
                }
                let now = Instant::now().into_std();
                let mut has_acks = false;
                let results: Vec<_> = batch
                    .into_iter()
                    .map(|(token, settle)| {
                        inner.ledger.settle(token, settle, now)?;
                        if settle == Settle::Ack {
                            has_acks = true;
                            // With the ledger, so that nothing that it has settled is ever forgotten.
                            inner.owed.insert(token.seq, token.seq.saturating_add(1));
                        }
                        Ok(())
                    })
                    .collect();
                (results, has_acks)
            };
            self.consumer.waiter.wake(); // There may be room in flight, or something to deliver again.
            if !has_acks {
                return Ok(Admission::waiting(async { Ok(results) }));
            }
            let consumer = Arc::clone(&self.consumer);
            let job = |reply| Job::Settle { consumer, reply };
            let queued = self.bus.committer.queue(0, job).await?;
            Ok(Admission::waiting(async move {
                if confirm {
                    answer(queued).await?;
                }
                Ok(results)
            }))
        })
    }
}
