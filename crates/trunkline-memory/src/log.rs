//! Stored events: appending, reading, following.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use trunkline_core::engine::{
    Admitted, Append, AppendMode, Batch, Boxed, Credit, Engine, Follow, Followed, Link, Log,
    Outcome, Page, Position, Removal, Seq, StoredEvent,
};
use trunkline_core::matcher::Key;
use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

use crate::selection::Selection;
use crate::stream::{Stream, Wakes};
use crate::{Bus, MemoryEngine};
use trunkline_core::local::Waiter;
use trunkline_core::local::until_closed;

impl MemoryEngine {
    fn append_now(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Result<Vec<Outcome>> {
        let stream = self.stream(stream)?;
        let max_batch = self.limits().max_batch;
        if batch.len() > max_batch {
            return Err(Error::new(
                ErrorKind::OverLimit,
                format!(
                    "the batch has {} items, the limit is {max_batch}; split it",
                    batch.len()
                ),
            ));
        }
        // Sizes are checked and bodies encoded before the lock is taken: that is the slow part.
        let max_message = stream.lock().spec.max_message;
        let checked: Batch<_> = batch
            .into_iter()
            .map(|append| {
                let body = self.admit(&append.headers, append.body, max_message)?;
                Ok(Append { body, ..append })
            })
            .collect();
        let mut wakes = Wakes::new();
        let outcomes = {
            let mut stream = stream.lock();
            // Under the lock, so that store times never fall.
            let now = self.bus.clock.now();
            stream.append(checked, mode, now, &mut wakes)
        };
        wakes.iter().for_each(|waiter| waiter.wake());
        Ok(outcomes)
    }
}

impl Log for MemoryEngine {
    fn append(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>> {
        Admitted::done(self.append_now(stream, batch, mode))
    }

    fn read<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
        max: Credit,
    ) -> Boxed<'a, Result<Page>> {
        let read = || {
            let stream = self.stream(stream)?;
            let mut stream = stream.lock();
            stream.expire(self.bus.clock.now());
            let selection = Selection::new(filters, &stream.stored);
            let (start, lasts) = stream.start(from, &selection);
            let mut events: Vec<_> = lasts
                .iter()
                .filter_map(|seq| stream.event(*seq))
                .take(max.items)
                .collect();
            let next = stream.read(&selection, start, max, &mut events);
            // Asking for the first event is content with whatever is first.
            let gap = if from == Position::First {
                None
            } else {
                stream.gap(start)
            };
            Ok(Page {
                events,
                next,
                tail: stream.tail(),
                gap,
            })
        };
        Box::pin(std::future::ready(read()))
    }

    fn follow<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
    ) -> Boxed<'a, Result<Box<dyn Follow>>> {
        let follow = || {
            let shared = self.stream(stream)?;
            let mut stream = shared.lock();
            stream.expire(self.bus.clock.now());
            let selection = Selection::new(filters, &stream.stored);
            let (next, lasts) = stream.start(from, &selection);
            let waiter = Arc::new(Waiter::default());
            let keys = stream.register(filters, &waiter);
            let follower: Box<dyn Follow> = Box::new(MemoryFollow {
                bus: Arc::clone(&self.bus),
                link: self.link.subscribe(),
                stream: Arc::clone(&shared),
                selection,
                generation: stream.generation,
                next,
                lasts: lasts.into(),
                waiter,
                caught_up: false,
                keys,
            });
            Ok(follower)
        };
        Box::pin(std::future::ready(follow()))
    }

    fn remove<'a>(&'a self, stream: &'a Name, what: Removal) -> Boxed<'a, Result<u64>> {
        let removed = self
            .stream(stream)
            .map(|stream| stream.lock().remove_all(&what));
        Box::pin(std::future::ready(removed))
    }
}

struct MemoryFollow {
    bus: Arc<Bus>,
    link: watch::Receiver<Link>,
    stream: Arc<Mutex<Stream>>,
    selection: Selection,
    /// Of the stream's subjects, as the selection knows them.
    generation: u64,
    next: Seq,
    /// For a reading that begins with each subject's last event: those, before `next`.
    lasts: VecDeque<Seq>,
    waiter: Arc<Waiter>,
    /// Whether it had seen everything when it last looked; the waiter notes what came since.
    caught_up: bool,
    keys: Vec<(Filter, Key)>,
}

impl Follow for MemoryFollow {
    fn next<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<StoredEvent>,
    ) -> Boxed<'a, Result<Followed>> {
        Box::pin(async move {
            let Self {
                bus,
                link,
                stream,
                selection,
                generation,
                next,
                lasts,
                waiter,
                caught_up,
                keys,
            } = self;
            loop {
                if *link.borrow() == Link::Closed {
                    return Ok(Followed::Closed);
                }
                let parked = {
                    let mut stream = stream.lock();
                    if stream.deleted {
                        return Ok(Followed::Closed);
                    }
                    stream.expire(bus.clock.now());
                    if *generation != stream.generation {
                        let filters: Vec<_> =
                            keys.iter().map(|(filter, _)| filter.clone()).collect();
                        *selection = Selection::new(&filters, &stream.stored);
                        *generation = stream.generation;
                    }
                    if std::mem::take(caught_up) {
                        *next = waiter.first_noted().unwrap_or(stream.tail()).max(*next);
                    }
                    let before = out.len();
                    if !lasts.is_empty() {
                        let mut bytes = 0;
                        while out.len() - before < credit.items
                            && (bytes < credit.bytes || out.len() == before)
                            && let Some(seq) = lasts.pop_front()
                        {
                            if let Some(event) = stream.event(seq) {
                                bytes += event.body.rough_bytes() + event.headers.bytes();
                                out.push(event);
                            }
                        }
                    } else if let Some(gap) = stream.gap(*next) {
                        *next = stream.first();
                        return Ok(Followed::Gap(gap));
                    } else {
                        *next = stream.read(selection, *next, credit, out);
                    }
                    let added = out.len() - before;
                    if added > 0 {
                        return Ok(Followed::Events {
                            added,
                            behind: stream.tail().saturating_sub(*next),
                        });
                    }
                    if *next < stream.tail() || !lasts.is_empty() {
                        None
                    } else {
                        *caught_up = true;
                        waiter.forget();
                        Some(waiter.park())
                    }
                };
                match parked {
                    None => tokio::task::yield_now().await,
                    Some(parked) => tokio::select! {
                        biased;
                        () = parked.wait() => {}
                        () = until_closed(link.clone()) => return Ok(Followed::Closed),
                    },
                }
            }
        })
    }
}

impl Drop for MemoryFollow {
    fn drop(&mut self) {
        self.stream.lock().unregister(&self.keys);
    }
}
