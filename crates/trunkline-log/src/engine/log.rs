//! Stored events: appending, reading, following.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;
use trunkline_core::engine::{
    Admission, Admitted, Append, AppendMode, Batch, Boxed, Credit, Engine, Follow, Followed, Gap,
    Link, Log, Outcome, Page, Position, Removal, Seq, StoredEvent,
};
use trunkline_core::local::{Waiter, until_closed};
use trunkline_core::matcher::Key;
use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

use super::committer::{Job, answer};
use super::streams::OpenStream;
use super::{Bus, LogEngine, encoded};
use crate::selection::Selection;
use crate::stream::Reader;

impl Bus {
    /// Has events leave that are past their age. If they cannot, that is no reason not to read.
    pub(super) async fn age(&self, stream: &OpenStream) -> Result<()> {
        let aged = async {
            if !stream.is_due(self.clock.now())? {
                return Ok(());
            }
            let stream = stream.name.clone();
            self.committer.ask(|reply| Job::Age { stream, reply }).await
        };
        match aged.await {
            Err(error) if error.kind() != ErrorKind::Closed => {
                tracing::debug!(stream = %stream.name, %error, "events past their age stay");
                Ok(())
            }
            aged => aged,
        }
    }
}

/// Reads files beside the runtime, unless what is asked for was written a moment ago and so is in
/// memory: then handing it over would be dearer than reading it.
pub(super) async fn reading<T: Send + 'static>(
    is_recent: bool,
    read: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if is_recent {
        return read();
    }
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|error| {
            Err(Error::new(ErrorKind::Internal, "a reading ended early").caused_by(error))
        })
}

/// Takes events one by one as far as the credit goes: how many sequences were looked up, and the bytes of
/// what was found.
fn look_up(
    reader: &Reader,
    seqs: &[Seq],
    credit: Credit,
    out: &mut Vec<StoredEvent>,
) -> Result<(usize, usize)> {
    let mut bytes = 0;
    for (number, seq) in seqs.iter().enumerate() {
        if out.len() == credit.items {
            return Ok((number, bytes));
        }
        let Some(event) = reader.event(*seq)? else {
            continue;
        };
        let size = event.body.rough_bytes();
        if !out.is_empty() && bytes + size > credit.bytes {
            return Ok((number, bytes));
        }
        bytes += size;
        out.push(event);
    }
    Ok((seqs.len(), bytes))
}

/// What a reader at `from` has missed.
pub(super) fn gap(from: Seq, first: Seq) -> Option<Gap> {
    (from < first).then(|| Gap {
        from,
        to: first - 1,
    })
}

impl Log for LogEngine {
    fn append(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>> {
        let name = stream.clone();
        Admitted::waiting(async move {
            let max_message = self.stream(&name)?.interest().spec.max_message;
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
            let checked = batch.into_iter().map(|append| {
                let body = encoded(&append.headers, &append.body, max_message)?;
                Ok(Append { body, ..append })
            });
            let batch: Batch<Result<Append>> = checked.collect();
            let bytes = batch.iter().flatten().map(|item| item.body.rough_bytes());
            let job = |bytes, batch| {
                self.bus.committer.queue(bytes, |reply| Job::Append {
                    stream: name,
                    batch,
                    mode,
                    reply,
                })
            };
            let queued = job(bytes.sum(), batch).await?;
            Ok(Admission::waiting(answer(queued)))
        })
    }

    fn read<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
        max: Credit,
    ) -> Boxed<'a, Result<Page>> {
        Box::pin(async move {
            let stream = self.stream(stream)?;
            self.bus.age(&stream).await?;
            let selection = Selection::new(filters, &stream.interest().stored);
            let reader = stream.reader.clone();
            reading(false, move || {
                let (start, lasts) = reader.start(from, &selection)?;
                let mut events = Vec::new();
                let (given, bytes) = look_up(&reader, &lasts, max, &mut events)?;
                let first = reader.standing().first;
                let mut next = start;
                // It stops to let others read; whoever asks for a page has nobody to go on for.
                let mut is_done = given < lasts.len();
                while !is_done {
                    let room = Credit {
                        items: max.items.saturating_sub(events.len()),
                        bytes: max.bytes.saturating_sub(bytes),
                    };
                    next = reader.read(next, &selection, room, &mut events)?;
                    is_done =
                        !events.is_empty() || room.items == 0 || next >= reader.standing().tail;
                }
                // Asking for the first event is content with whatever is first.
                let gap = match from {
                    Position::First => None,
                    _ => gap(start, first),
                };
                Ok(Page {
                    events,
                    next,
                    tail: reader.standing().tail,
                    gap,
                })
            })
            .await
        })
    }

    fn follow<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
    ) -> Boxed<'a, Result<Box<dyn Follow>>> {
        Box::pin(async move {
            let stream = self.stream(stream)?;
            self.bus.age(&stream).await?;
            let waiter = Arc::new(Waiter::default());
            let (keys, selection, generation) = {
                let mut interest = stream.interest();
                let selection = Selection::new(filters, &interest.stored);
                let keys = interest.register(filters, &waiter);
                (keys, selection, interest.generation)
            };
            // Registered before it looks, and taken out again if looking fails.
            let mut follow = LogFollow {
                bus: Arc::clone(&self.bus),
                link: self.link.subscribe(),
                stream,
                selection,
                generation,
                next: 0,
                lasts: VecDeque::new(),
                waiter,
                caught_up: false,
                keys,
            };
            let (reader, selection) = (follow.stream.reader.clone(), follow.selection.clone());
            let is_new = from == Position::New;
            let (next, lasts) = reading(is_new, move || reader.start(from, &selection)).await?;
            follow.next = next;
            follow.lasts = lasts.into();
            let follow: Box<dyn Follow> = Box::new(follow);
            Ok(follow)
        })
    }

    fn remove<'a>(&'a self, stream: &'a Name, what: Removal) -> Boxed<'a, Result<u64>> {
        Box::pin(async move {
            let stream = self.stream(stream)?.name.clone();
            let job = |reply| Job::Remove {
                stream,
                what,
                reply,
            };
            self.bus.committer.ask(job).await
        })
    }
}

struct LogFollow {
    bus: Arc<Bus>,
    link: watch::Receiver<Link>,
    stream: Arc<OpenStream>,
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

impl LogFollow {
    /// What there is to know before files are read.
    fn look(&mut self) -> Option<Followed> {
        let interest = self.stream.interest();
        if interest.deleted {
            return Some(Followed::Closed);
        }
        if self.generation != interest.generation {
            let filters: Vec<_> = self.keys.iter().map(|(filter, _)| filter.clone()).collect();
            self.selection = Selection::new(&filters, &interest.stored);
            self.generation = interest.generation;
        }
        if std::mem::take(&mut self.caught_up) {
            let noted = self.waiter.first_noted().unwrap_or(interest.noted);
            self.next = self.next.max(noted);
        }
        drop(interest);
        let first = self.stream.reader.standing().first;
        if self.lasts.is_empty()
            && let Some(gap) = gap(self.next, first)
        {
            self.next = first;
            return Some(Followed::Gap(gap));
        }
        None
    }

    /// Events from where it stands, and where it stands then: nothing of it changes before they are
    /// given, so that whoever drops the future finds them again.
    async fn read(&self, credit: Credit) -> Result<(Vec<StoredEvent>, Seq, usize)> {
        let reader = self.stream.reader.clone();
        let (next, selection) = (self.next, self.selection.clone());
        let lasts: Vec<Seq> = self.lasts.iter().copied().take(credit.items).collect();
        let is_recent = lasts.is_empty() && reader.is_recent(next);
        reading(is_recent, move || {
            let mut events = Vec::new();
            let (given, _) = look_up(&reader, &lasts, credit, &mut events)?;
            let next = match lasts.is_empty() {
                true => reader.read(next, &selection, credit, &mut events)?,
                false => next,
            };
            Ok((events, next, given))
        })
        .await
    }
}

impl Follow for LogFollow {
    fn next<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<StoredEvent>,
    ) -> Boxed<'a, Result<Followed>> {
        Box::pin(async move {
            loop {
                if *self.link.borrow() == Link::Closed {
                    return Ok(Followed::Closed);
                }
                self.bus.age(&self.stream).await?;
                if let Some(found) = self.look() {
                    return Ok(found);
                }
                let (mut events, next, given) = self.read(credit).await?;
                self.next = next;
                self.lasts.drain(..given.min(self.lasts.len()));
                let added = events.len();
                if added > 0 {
                    out.append(&mut events);
                    let tail = self.stream.reader.standing().tail;
                    return Ok(Followed::Events {
                        added,
                        behind: tail.saturating_sub(self.next),
                    });
                }
                let parked = {
                    let interest = self.stream.interest();
                    let tail = self.stream.reader.standing().tail;
                    // What is published and noted later was read already, and wakes for nothing; looking
                    // until it is noted would be busy for as long as going on to a new segment takes.
                    let all_seen = self.lasts.is_empty()
                        && self.next >= tail
                        && !interest.deleted
                        && interest.generation == self.generation;
                    all_seen.then(|| {
                        self.caught_up = true;
                        self.waiter.forget();
                        self.waiter.park()
                    })
                };
                match parked {
                    None => tokio::task::yield_now().await,
                    Some(parked) => tokio::select! {
                        () = parked.wait() => {}
                        () = until_closed(self.link.clone()) => return Ok(Followed::Closed),
                    },
                }
            }
        })
    }
}

impl Drop for LogFollow {
    fn drop(&mut self) {
        self.stream.interest().unregister(&self.keys);
    }
}
