//! Dead letters as they come, for whoever is to be told.

use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use trunkline_core::engine::{Follow, Followed, Position, Seq, StoredEvent};
use trunkline_core::{Filter, Name, Result, Timestamp};

use super::{Entry, Id, read_entry};
use crate::bus::Bus;
use crate::receive::{Asked, Item};

/// An entry with its place in the dead-letter stream. It derefs to the entry.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Buried {
    /// The event and its story.
    pub entry: Entry,
    /// Its place in the dead-letter stream; one after it is where to go on.
    pub seq: Seq,
    /// When it was stored there.
    pub at: Timestamp,
}

impl Buried {
    /// What it is called.
    pub fn id(&self) -> Id {
        Id::Event {
            consumer: self.entry.consumer.clone(),
            stream: self.entry.stream.clone(),
            seq: self.entry.seq,
            generation: Some(self.entry.generation),
        }
    }
}

impl Deref for Buried {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

/// Dead letters in the order in which they were stored, without end: made by
/// [`follow`](super::DeadLetters::follow). While it is held, so is its connection.
///
/// What is stored there and is no dead letter comes as [`Item::Invalid`], and it goes on.
pub struct Following {
    bus: Bus,
    stream: Name,
    asked: Asked<Box<dyn Follow>, StoredEvent, Result<Followed>>,
}

impl Following {
    pub(super) async fn open(bus: &Bus, from: Position) -> Result<Self> {
        let stream = bus.inner.settings.dead_letters.clone();
        let below = [Filter::all().below(Some(&bus.inner.settings.roots.dlq))?];
        let log = bus.inner.engine.log();
        let follow = log.follow(&stream, from, &below).await?;
        Ok(Self {
            bus: bus.clone(),
            stream,
            asked: Asked::new(follow),
        })
    }

    /// The next item; `None` once the bus is closed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<Item<Buried>> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item<Buried>>> {
        let Self { bus, stream, asked } = self;
        let item = ready!(asked.poll_stored(cx, stream));
        let buried = |stored: StoredEvent| {
            let (seq, at) = (stored.seq, stored.at);
            read_entry(&bus.inner, &stored).map(|entry| Buried { entry, seq, at })
        };
        Poll::Ready(item.and_then(|item| item.convert(|stored| Some(buried(stored)))))
    }
}

impl Stream for Following {
    type Item = Item<Buried>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item<Buried>>> {
        self.poll_recv(cx)
    }
}

impl fmt::Debug for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Following")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}
