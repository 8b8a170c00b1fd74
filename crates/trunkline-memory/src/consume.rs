//! Shared consumers: the ledger of core over the stream's events.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use trunkline_core::engine::{
    Admitted, Backlog, Batch, Boxed, Consume, ConsumerRef, ConsumerSpec, Credit, Delivery, Feed,
    Fetched, Link, Membership, Retention, Settle, Settler, Token,
};
use trunkline_core::ledger::Ledger;
use trunkline_core::matcher::Key;
use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

use crate::selection::Selection;
use crate::stream::Stream;
use crate::{Bus, MemoryEngine, closed};
use trunkline_core::local::Waiter;
use trunkline_core::local::until_closed;

/// One shared consumer of a stream.
pub(crate) struct Consumer {
    pub(crate) spec: ConsumerSpec,
    selection: Selection,
    ledger: Ledger,
    waiter: Arc<Waiter>,
    /// Whether it had looked at everything when it last looked; the waiter notes what came since.
    caught_up: bool,
    keys: Vec<(Filter, Key)>,
}

impl Consumer {
    pub(crate) fn new(spec: ConsumerSpec, stream: &mut Stream) -> Self {
        let selection = Selection::new(&spec.filters, &stream.stored);
        let (next, _) = stream.start(spec.start, &selection);
        let waiter = Arc::new(Waiter::default());
        let keys = stream.register(&spec.filters, &waiter);
        Self {
            ledger: Ledger::new(next, spec.ack_wait),
            spec,
            selection,
            waiter,
            caught_up: false,
            keys,
        }
    }

    /// Passes over what came since it had looked at everything and concerned others.
    fn pass_others(&mut self, stream: &Stream) {
        if std::mem::take(&mut self.caught_up) {
            self.ledger
                .pass(self.waiter.first_noted().unwrap_or(stream.tail()));
        }
    }

    /// Takes over other filters and limits; progress stays.
    pub(crate) fn update(&mut self, spec: ConsumerSpec, stream: &mut Stream) {
        self.pass_others(stream);
        stream.unregister(&self.keys);
        self.keys = stream.register(&spec.filters, &self.waiter);
        self.selection = Selection::new(&spec.filters, &stream.stored);
        self.ledger.set_lease(spec.ack_wait);
        self.spec = spec;
        self.waiter.wake();
    }

    /// Takes over what its stream stores now.
    pub(crate) fn select_anew(&mut self, stored: &[Filter]) {
        self.selection = Selection::new(&self.spec.filters, stored);
    }

    /// Takes it out of its stream; who waits for it learns that it is gone.
    pub(crate) fn retire(self, stream: &mut Stream) {
        stream.unregister(&self.keys);
        self.waiter.wake_all();
    }

    pub(crate) fn backlog(&self, stream: &Stream) -> Backlog {
        let unseen = stream.count(&self.selection, self.ledger.next());
        Backlog {
            pending: unseen + self.ledger.returned() as u64,
            in_flight: self.ledger.in_flight() as u64,
            floor: self.ledger.floor(),
            expired_at_most: self.ledger.lost_at_most(),
        }
    }

    /// Leases what there is, up to the credit.
    fn lend(
        &mut self,
        stream: &Stream,
        credit: Credit,
        now: Instant,
        out: &mut Vec<Delivery>,
    ) -> Fetched {
        let now = now.into_std();
        self.ledger.expire(now);
        self.pass_others(stream);
        if let Some(gap) = self.ledger.trim(stream.first()) {
            return Fetched::Gap(gap);
        }
        let room = credit.items.min(
            self.spec
                .max_in_flight
                .saturating_sub(self.ledger.in_flight()),
        );
        let (before, mut bytes) = (out.len(), 0);
        while out.len() - before < room {
            let (seq, again) = match self.ledger.first_returned() {
                Some(seq) => (seq, true),
                None => match stream.next_match(&self.selection, self.ledger.next()) {
                    Ok(seq) => (seq, false),
                    Err(end) => {
                        self.ledger.pass(end);
                        break;
                    }
                },
            };
            let event = stream.event(seq);
            let size = event.as_ref().map_or(0, |event| event.body.rough_bytes());
            if out.len() > before && bytes + size > credit.bytes {
                break;
            }
            let lent = if again {
                self.ledger.lend_again(now)
            } else {
                Some(self.ledger.lend(seq, now))
            };
            match (lent, event) {
                (Some((token, delivered_hint)), Some(event)) => {
                    bytes += size;
                    out.push(Delivery {
                        token,
                        event,
                        delivered_hint,
                    });
                }
                // Somebody removed the event from the stream: there is nothing left to do.
                (Some((token, _)), None) => drop(self.ledger.settle(token, Settle::Ack, now)),
                (None, _) => break,
            }
        }
        Fetched::Deliveries(out.len() - before)
    }

    /// Whether a fetch would find something at once.
    fn has_more(&self, stream: &Stream) -> bool {
        self.ledger.in_flight() < self.spec.max_in_flight
            && (self.ledger.returned() > 0 || self.ledger.next() < stream.tail())
    }
}

impl Consume for MemoryEngine {
    fn open<'a>(&'a self, at: &'a ConsumerRef) -> Boxed<'a, Result<Membership>> {
        let open = || {
            let stream = self.stream(&at.stream)?;
            let waiter = match stream.lock().consumers.get(&at.consumer) {
                Some(consumer) => Arc::clone(&consumer.waiter),
                None => {
                    return Err(Error::new(
                        ErrorKind::NoSuchConsumer,
                        format!(
                            "there is no consumer {} on stream {}",
                            at.consumer, at.stream
                        ),
                    ));
                }
            };
            let feed: Box<dyn Feed> = Box::new(MemoryFeed {
                bus: Arc::clone(&self.bus),
                link: self.link.subscribe(),
                stream: Arc::clone(&stream),
                consumer: at.consumer.clone(),
                waiter,
            });
            let settler: Arc<dyn Settler> = Arc::new(MemorySettler {
                link: self.link.subscribe(),
                stream,
                consumer: at.consumer.clone(),
            });
            Ok((feed, settler))
        };
        Box::pin(std::future::ready(open()))
    }
}

struct MemoryFeed {
    bus: Arc<Bus>,
    link: watch::Receiver<Link>,
    stream: Arc<Mutex<Stream>>,
    consumer: Name,
    waiter: Arc<Waiter>,
}

impl Feed for MemoryFeed {
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
                consumer: name,
                waiter,
            } = self;
            loop {
                if *link.borrow() == Link::Closed {
                    return Ok(Fetched::Closed);
                }
                let (parked, lease_end) = {
                    let mut guard = stream.lock();
                    let stream = &mut *guard;
                    stream.expire(bus.clock.now());
                    // Out of the stream for the while, so that both can be used at once.
                    let Some(mut consumer) = stream.consumers.remove(name) else {
                        return Ok(Fetched::Gone);
                    };
                    if !Arc::ptr_eq(&consumer.waiter, waiter) {
                        // Deleted and made again under the same name: not the one that was opened.
                        stream.consumers.insert(name.clone(), consumer);
                        return Ok(Fetched::Gone);
                    }
                    let first_lease = consumer.ledger.next_end().is_none();
                    let fetched = consumer.lend(stream, credit, Instant::now(), out);
                    let more = consumer.has_more(stream);
                    if consumer.ledger.next() >= stream.tail() {
                        consumer.caught_up = true;
                        consumer.waiter.forget();
                    }
                    let lease_end = consumer.ledger.next_end();
                    stream.consumers.insert(name.clone(), consumer);
                    if fetched != Fetched::Deliveries(0) {
                        drop(guard);
                        if first_lease {
                            // Whoever parked while nothing was leased waits for no lease to end.
                            waiter.wake_all();
                        } else if more {
                            waiter.wake(); // Another member may be idle.
                        }
                        return Ok(fetched);
                    }
                    if more && credit.items > 0 {
                        (None, None)
                    } else {
                        (Some(waiter.park()), lease_end)
                    }
                };
                let Some(parked) = parked else {
                    tokio::task::yield_now().await;
                    continue;
                };
                let lease_ends = async {
                    match lease_end {
                        Some(end) => tokio::time::sleep_until(end.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = parked.wait() => {}
                    () = lease_ends => {}
                    () = until_closed(link.clone()) => return Ok(Fetched::Closed),
                }
            }
        })
    }
}

struct MemorySettler {
    link: watch::Receiver<Link>,
    stream: Arc<Mutex<Stream>>,
    consumer: Name,
}

impl MemorySettler {
    fn settle_now(&self, batch: Batch<(Token, Settle)>) -> Result<Vec<Result<()>>> {
        if *self.link.borrow() == Link::Closed {
            return Err(closed());
        }
        let mut guard = self.stream.lock();
        let stream = &mut *guard;
        let Some(consumer) = stream.consumers.get_mut(&self.consumer) else {
            return Err(Error::new(
                ErrorKind::NoSuchConsumer,
                format!("consumer {} was deleted", self.consumer),
            ));
        };
        let (now, mut done) = (Instant::now().into_std(), Vec::new());
        let results = batch
            .into_iter()
            .map(|(token, settle)| {
                consumer.ledger.settle(token, settle, now)?;
                if settle == Settle::Ack {
                    done.push(token.seq);
                }
                Ok(())
            })
            .collect();
        let waiter = Arc::clone(&consumer.waiter);
        if stream.spec.retention == Retention::WorkQueue {
            for seq in done {
                stream.remove(seq);
            }
        }
        drop(guard);
        waiter.wake(); // There may be room in flight, or something to deliver again.
        Ok(results)
    }
}

impl Settler for MemorySettler {
    fn settle(
        &self,
        batch: Batch<(Token, Settle)>,
        _confirm: bool,
    ) -> Admitted<'_, Vec<Result<()>>> {
        Admitted::done(self.settle_now(batch))
    }
}
