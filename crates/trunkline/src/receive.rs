//! Receiving in a loop: streams that report lag as a value and do not end at it.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use smallvec::{SmallVec, smallvec};
use trunkline_core::engine::{
    Boxed, Credit, Follow, Followed, Gap, Heard, Listener, Message, StoredEvent,
};
use trunkline_core::{Error, Name, Result};

use crate::bus::Bus;
use crate::event::Event;
use crate::extract::Meta;
use crate::handler::decode_shared;
use crate::raw::{Decoding, Incoming};

/// How much a reader takes from its engine at once.
const CREDIT: Credit = Credit {
    items: 256,
    bytes: 8 << 20,
};

/// What a subscription gives.
#[derive(Debug)]
#[non_exhaustive]
pub enum Item<T> {
    /// An event.
    Event(T),
    /// The subscription was too slow and lost at least that many ephemeral events.
    Lagged {
        /// A lower bound of the events lost.
        at_least: u64,
    },
    /// Retention removed stored events before they were read.
    Gap {
        /// The stream.
        stream: Name,
        /// The sequences that are missing.
        gap: Gap,
    },
    /// What was stored is gone, and the stream began anew, with other events under the same sequences: the
    /// bus was restarted and keeps nothing on disk, or somebody deleted the stream on its server. What
    /// it has comes next.
    Reset {
        /// The stream.
        stream: Name,
    },
    /// The connection was lost and is back; ephemeral events in between are gone.
    Resumed,
    /// An event that is no CloudEvent, or not of the type; the subscription goes on.
    Invalid(Error),
}

impl<T> Item<T> {
    /// The event as something else, or why it cannot be that; none for an event that is not wanted.
    pub(crate) fn convert<U>(
        self,
        convert: impl FnOnce(T) -> Option<Result<U>>,
    ) -> Option<Item<U>> {
        Some(match self {
            Item::Event(event) => convert(event)?.map_or_else(Item::Invalid, Item::Event),
            Item::Lagged { at_least } => Item::Lagged { at_least },
            Item::Gap { stream, gap } => Item::Gap { stream, gap },
            Item::Reset { stream } => Item::Reset { stream },
            Item::Resumed => Item::Resumed,
            Item::Invalid(error) => Item::Invalid(error),
        })
    }
}

/// A typed event with its metadata. It derefs to the event.
#[derive(Debug)]
pub struct Received<E> {
    /// The event, shared with whoever else received it in this process.
    pub event: Arc<E>,
    /// What came with it.
    pub meta: Meta,
}

impl<E> Deref for Received<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.event
    }
}

/// Events in order, without end. Dropping it unsubscribes; while it is held, so is its connection,
/// until somebody closes the bus.
///
/// It is a [`Stream`], and [`recv`](Subscription::recv) reads it without any other crate.
pub struct Subscription<T> {
    /// Keeps the connections for as long as somebody reads; more than one after
    /// [`and`](Subscription::and).
    buses: SmallVec<[Bus; 1]>,
    readers: Vec<Reader>,
    /// Which reader is asked first next time, so that a busy stream does not starve another.
    turn: usize,
    convert: fn(Incoming) -> Option<Result<T>>,
    item: PhantomData<fn() -> T>,
}

impl Subscription<Incoming> {
    pub(crate) fn raw(bus: Bus, readers: Vec<Reader>) -> Self {
        Self {
            buses: smallvec![bus],
            readers,
            turn: 0,
            convert: |incoming| Some(Ok(incoming)),
            item: PhantomData,
        }
    }
}

impl<E: Event> Subscription<Received<E>> {
    pub(crate) fn typed(bus: Bus, readers: Vec<Reader>) -> Self {
        Self {
            buses: smallvec![bus],
            readers,
            turn: 0,
            convert: receive::<E>,
            item: PhantomData,
        }
    }
}

/// Another type on the same subject is not this subscription's business.
fn receive<E: Event>(incoming: Incoming) -> Option<Result<Received<E>>> {
    if incoming.envelope.event_type() != E::TYPE {
        return None;
    }
    Some(
        decode_shared::<E>(&incoming.envelope).map(|event| Received {
            event,
            meta: Meta::new(incoming),
        }),
    )
}

impl<T> Subscription<T> {
    /// Both as one: whatever comes first. What both would give comes twice.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> trunkline::Result<()> {
    /// use trunkline::{Bus, Filter, Start};
    ///
    /// let bus = Bus::connect("memory:").await?;
    /// let all = Filter::all();
    /// let everything = bus.follow(&all, Start::New).await?.and(bus.listen(&all).await?);
    /// # drop(everything);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.readers.extend(other.readers);
        self.buses.extend(other.buses);
        self
    }

    /// The next item; `None` once the bus is closed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<Item<T>> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Waits for an item, then adds to `out` what else is ready, at most `max`; gives how many.
    /// None once the bus is closed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv_many(&mut self, max: usize, out: &mut Vec<Item<T>>) -> usize {
        std::future::poll_fn(|cx| {
            let before = out.len();
            while out.len() - before < max {
                match self.poll_recv(cx) {
                    Poll::Ready(Some(item)) => out.push(item),
                    Poll::Pending if out.len() == before => return Poll::Pending,
                    Poll::Pending | Poll::Ready(None) => break,
                }
            }
            Poll::Ready(out.len() - before)
        })
        .await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item<T>>> {
        let mut open = false;
        for step in 0..self.readers.len() {
            let index = (self.turn + step) % self.readers.len();
            loop {
                match self.readers[index].poll(cx) {
                    Poll::Pending => {
                        open = true;
                        break;
                    }
                    Poll::Ready(None) => break,
                    Poll::Ready(Some(item)) => {
                        let Some(item) = item.convert(self.convert) else {
                            continue;
                        };
                        self.turn = index + usize::from(self.readers[index].is_drained());
                        return Poll::Ready(Some(item));
                    }
                }
            }
        }
        if open {
            Poll::Pending
        } else {
            Poll::Ready(None)
        }
    }
}

impl<T> Stream for Subscription<T> {
    type Item = Item<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item<T>>> {
        self.poll_recv(cx)
    }
}

impl<T> fmt::Debug for Subscription<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("readers", &self.readers.len())
            .finish_non_exhaustive()
    }
}

/// One engine reader, polled: it is asked for a batch whenever the last one is used up.
pub(crate) enum Reader {
    Stored {
        stream: Name,
        asked: Asked<Box<dyn Follow>, StoredEvent, Result<Followed>>,
        decoding: Arc<Decoding>,
    },
    Live {
        asked: Asked<Box<dyn Listener>, Message, Heard>,
        decoding: Arc<Decoding>,
    },
}

impl Reader {
    pub(crate) fn stored(stream: Name, follow: Box<dyn Follow>, decoding: &Arc<Decoding>) -> Self {
        Self::Stored {
            decoding: Arc::clone(decoding),
            stream,
            asked: Asked::new(follow),
        }
    }

    pub(crate) fn live(listener: Box<dyn Listener>, decoding: &Arc<Decoding>) -> Self {
        Self::Live {
            decoding: Arc::clone(decoding),
            asked: Asked::new(listener),
        }
    }

    fn is_drained(&self) -> bool {
        match self {
            Self::Stored { asked, .. } => asked.received.is_empty(),
            Self::Live { asked, .. } => asked.received.is_empty(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item<Incoming>>> {
        match self {
            Self::Stored {
                stream,
                asked,
                decoding,
            } => {
                let item = ready!(asked.poll_stored(cx, stream));
                Poll::Ready(item.and_then(|item| {
                    item.convert(|event| Some(Incoming::stored(decoding, stream, event)))
                }))
            }
            Self::Live { asked, decoding } => loop {
                if let Some(message) = asked.received.pop_front() {
                    return Poll::Ready(Some(event_or_invalid(Incoming::live(decoding, message))));
                }
                let answer = ready!(asked.poll(cx, |mut listener, mut out| {
                    Box::pin(async move {
                        let answer = listener.receive(CREDIT.items, &mut out).await;
                        (listener, out, answer)
                    })
                }));
                let item = match answer {
                    // Nothing was asked, so that nobody answers means nothing.
                    Some(Heard::Messages(_) | Heard::NoResponders) => continue,
                    Some(Heard::Lagged { at_least }) => Some(Item::Lagged { at_least }),
                    Some(Heard::Resumed) => Some(Item::Resumed),
                    Some(Heard::Closed) | None => {
                        asked.state = State::Ended;
                        None
                    }
                };
                return Poll::Ready(item);
            },
        }
    }
}

fn event_or_invalid(incoming: Result<Incoming>) -> Item<Incoming> {
    match incoming {
        Ok(incoming) => Item::Event(incoming),
        Err(error) => Item::Invalid(error),
    }
}

/// A reader that is asked for a batch, with what it gave last.
pub(crate) struct Asked<R, I, A> {
    state: State<R, I, A>,
    received: VecDeque<I>,
}

/// The reader at rest, or the future that has it and gives it back with what it read.
enum State<R, I, A> {
    Idle(R),
    Busy(Boxed<'static, (R, Vec<I>, A)>),
    Ended,
}

impl<R, I, A> Asked<R, I, A> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            state: State::Idle(reader),
            received: VecDeque::new(),
        }
    }

    /// Asks, or goes on waiting for the answer. `None` once ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        ask: impl FnOnce(R, Vec<I>) -> Boxed<'static, (R, Vec<I>, A)>,
    ) -> Poll<Option<A>> {
        let mut busy = match std::mem::replace(&mut self.state, State::Ended) {
            // The emptied buffer is used again; turning one into the other moves nothing.
            State::Idle(reader) => ask(reader, std::mem::take(&mut self.received).into()),
            State::Busy(busy) => busy,
            State::Ended => return Poll::Ready(None),
        };
        match busy.as_mut().poll(cx) {
            Poll::Pending => {
                self.state = State::Busy(busy);
                Poll::Pending
            }
            Poll::Ready((reader, out, answer)) => {
                self.state = State::Idle(reader);
                self.received = out.into();
                Poll::Ready(Some(answer))
            }
        }
    }
}

impl Asked<Box<dyn Follow>, StoredEvent, Result<Followed>> {
    /// The next of what is stored, or what came in its place. `None` once ended.
    pub(crate) fn poll_stored(
        &mut self,
        cx: &mut Context<'_>,
        stream: &Name,
    ) -> Poll<Option<Item<StoredEvent>>> {
        loop {
            if let Some(event) = self.received.pop_front() {
                return Poll::Ready(Some(Item::Event(event)));
            }
            let answer = ready!(self.poll(cx, |mut follow, mut out| {
                Box::pin(async move {
                    let answer = follow.next(CREDIT, &mut out).await;
                    (follow, out, answer)
                })
            }));
            let item = match answer {
                Some(Ok(Followed::Events { .. })) => continue,
                Some(Ok(Followed::Gap(gap))) => Some(Item::Gap {
                    stream: stream.clone(),
                    gap,
                }),
                Some(Ok(Followed::Reset)) => Some(Item::Reset {
                    stream: stream.clone(),
                }),
                // An engine mends its own readers; what it cannot mend ends this one, said aloud.
                Some(Err(error)) => {
                    self.state = State::Ended;
                    Some(Item::Invalid(error))
                }
                Some(Ok(Followed::Closed)) | None => {
                    self.state = State::Ended;
                    None
                }
            };
            return Poll::Ready(item);
        }
    }
}
