//! Events on their way out: read bit by bit, written as server-sent events or as lines.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Stream, stream};
use serde_json::json;
use tokio::sync::watch;
use trunkline::core::wire::encode_structured;
use trunkline::{
    Bus, Error, ErrorKind, Filter, Gap, Incoming, Item, Name, Result, Seq, Start, Subscription,
};

use crate::door::Door;
use crate::problem::Fault;
use crate::start::{Place, Seen};

/// The most events that are read ahead of a client.
const PAGE_EVENTS: usize = 256;
/// What is written at once, about.
const CHUNK_BYTES: usize = 64 << 10;

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Server-sent events, each with an id to resume from.
    Sse,
    /// A structured event on each line. A line that has no `specversion` is no event: it has one
    /// member, `gap`, `invalid` or `reset`.
    Lines,
}

impl Format {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream",
            Self::Lines => "application/x-ndjson",
        }
    }
}

/// What a reader comes upon.
#[derive(Debug)]
pub(crate) enum Found {
    Event(Box<Incoming>),
    /// Retention removed events before they were read.
    Gap {
        stream: Name,
        gap: Gap,
    },
    /// Something stored is no event, or a stream could not be read on.
    Invalid {
        place: Option<(Name, Seq)>,
        error: Error,
    },
    /// The stream was made anew: what the reader had seen is not of this one.
    Reset {
        stream: Name,
        /// The place that the reader named, if that is how it came out.
        asked: Option<Seq>,
        next: Seq,
    },
}

/// Where the events come from.
pub(crate) enum Source {
    Range(RangeReader),
    Follow(Subscription<Incoming>),
}

impl Source {
    async fn next(&mut self) -> Result<Option<Found>> {
        match self {
            Self::Range(range) => range.next().await,
            Self::Follow(subscription) => loop {
                match subscription.recv().await {
                    None => return Ok(None),
                    Some(item) => match found(item) {
                        Some(found) => return Ok(Some(found)),
                        None => continue,
                    },
                }
            },
        }
    }

    /// The next one if it is there already.
    fn ready(&mut self) -> Option<Found> {
        match self {
            Self::Range(range) => range.page.pop_front(),
            Self::Follow(subscription) => {
                subscription.recv().now_or_never().flatten().and_then(found)
            }
        }
    }
}

fn found(item: Item<Incoming>) -> Option<Found> {
    match item {
        Item::Event(event) => Some(Found::Event(Box::new(event))),
        Item::Gap { stream, gap } => Some(Found::Gap { stream, gap }),
        // A bus in another process began anew, while somebody read on.
        Item::Reset { stream } => Some(Found::Reset {
            stream,
            asked: None,
            next: 1,
        }),
        Item::Invalid(error) => Some(Found::Invalid { place: None, error }),
        // Stored events are neither lost by a slow reader nor by a lost connection.
        _ => None,
    }
}

/// Reads each stream from its place to where it ended when the reader came, page by page.
pub(crate) struct RangeReader {
    bus: Bus,
    filter: Filter,
    rest: VecDeque<Place>,
    page: VecDeque<Found>,
}

impl RangeReader {
    pub(crate) fn new(bus: Bus, filter: Filter, places: Vec<Place>) -> Self {
        Self {
            bus,
            filter,
            rest: places.into(),
            page: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> Result<Option<Found>> {
        loop {
            if let Some(found) = self.page.pop_front() {
                return Ok(Some(found));
            }
            let Some(place) = self.rest.front_mut() else {
                return Ok(None);
            };
            if place.next >= place.tail {
                self.rest.pop_front();
                continue;
            }
            let range = self
                .bus
                .read(
                    &place.stream,
                    &self.filter,
                    Start::Seq(place.next),
                    PAGE_EVENTS,
                )
                .await?;
            if range.next <= place.next {
                let fault = format!("reading {} stands still at {}", place.stream, place.next);
                return Err(Error::new(ErrorKind::Internal, fault));
            }
            place.next = range.next;
            let stream = &place.stream;
            self.page.extend(range.gap.map(|gap| Found::Gap {
                stream: stream.clone(),
                gap,
            }));
            let before_tail = range
                .events
                .into_iter()
                .take_while(|(seq, _)| *seq < place.tail);
            self.page
                .extend(before_tail.map(|(seq, event)| match event {
                    Ok(event) => Found::Event(Box::new(event)),
                    Err(error) => Found::Invalid {
                        place: Some((stream.clone(), seq)),
                        error,
                    },
                }));
        }
    }
}

/// A response's body in the making.
pub(crate) struct Feed {
    format: Format,
    seen: Seen,
    /// Events that may still be written, if there is a limit.
    left: Option<u64>,
    keep_alive: Duration,
    closing: watch::Receiver<bool>,
    out: Vec<u8>,
}

impl Feed {
    pub(crate) fn new(format: Format, seen: Seen, limit: Option<NonZeroU64>, door: &Door) -> Self {
        let mut feed = Self {
            format,
            seen,
            left: limit.map(NonZeroU64::get),
            keep_alive: Duration::from_millis(door.shared.config.keep_alive_ms),
            closing: door.closing(),
            out: Vec::new(),
        };
        if format == Format::Sse {
            // Without data it is no event, but it sets the id: a client that loses the connection
            // before the first event resumes where it began, and not at what is new by then.
            feed.out
                .extend_from_slice(format!("id: {}\n\n", feed.seen).as_bytes());
        }
        feed
    }

    /// Says something to people that programs do not see.
    pub(crate) fn remark(&mut self, text: &str) {
        if self.format == Format::Sse {
            self.out
                .extend_from_slice(format!(": {text}\n\n").as_bytes());
        }
    }

    /// Writes something ahead of what the source gives.
    pub(crate) fn first(&mut self, found: &Found) {
        self.write(found);
    }

    /// The chunks of the body. A failure breaks the body off, so that nobody takes it for whole.
    pub(crate) fn stream(
        self,
        source: Source,
    ) -> impl Stream<Item = Result<Bytes>> + Send + 'static {
        stream::unfold(Some((self, source)), |state| async {
            let (mut feed, mut source) = state?;
            if !feed.out.is_empty() {
                let chunk = Bytes::from(std::mem::take(&mut feed.out));
                return Some((Ok(chunk), Some((feed, source))));
            }
            match feed.chunk(&mut source).await {
                Ok(None) => None,
                Ok(Some(chunk)) => Some((Ok(chunk), Some((feed, source)))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Waits for something to write and writes what is ready with it.
    async fn chunk(&mut self, source: &mut Source) -> Result<Option<Bytes>> {
        if self.left == Some(0) {
            return Ok(None);
        }
        let first = match source {
            Source::Range(range) => range.next().await?,
            Source::Follow(_) => tokio::select! {
                found = source.next() => found?,
                _ = self.closing.wait_for(|closing| *closing) => None,
                () = tokio::time::sleep(self.keep_alive), if self.format == Format::Sse => {
                    return Ok(Some(Bytes::from_static(b":\n\n")));
                }
            },
        };
        let Some(first) = first else { return Ok(None) };
        self.write(&first);
        while self.out.len() < CHUNK_BYTES
            && self.left != Some(0)
            && let Some(found) = source.ready()
        {
            self.write(&found);
        }
        Ok(Some(std::mem::take(&mut self.out).into()))
    }

    fn write(&mut self, found: &Found) {
        match found {
            Found::Event(incoming) => {
                let stored = incoming.stored.as_ref();
                if let Some(stored) = stored {
                    self.seen.set(&stored.stream, stored.seq);
                }
                match encode_structured(&incoming.envelope) {
                    Ok(event) => {
                        self.left = self.left.map(|left| left.saturating_sub(1));
                        self.data(None, &event);
                    }
                    Err(error) => {
                        self.invalid(stored.map(|stored| (&stored.stream, stored.seq)), &error);
                    }
                }
            }
            Found::Gap { stream, gap } => {
                self.seen.set(stream, gap.to);
                self.note(
                    "gap",
                    &json!({"stream": stream.as_str(), "from": gap.from, "to": gap.to}),
                );
            }
            Found::Invalid { place, error } => {
                if let Some((stream, seq)) = place {
                    self.seen.set(stream, *seq);
                }
                self.invalid(place.as_ref().map(|(stream, seq)| (stream, *seq)), error);
            }
            Found::Reset {
                stream,
                asked,
                next,
            } => {
                self.seen.set(stream, next - 1);
                self.note(
                    "reset",
                    &json!({"stream": stream.as_str(), "asked": asked, "next": next}),
                );
            }
        }
    }

    fn invalid(&mut self, place: Option<(&Name, Seq)>, error: &Error) {
        let mut what = json!(Fault::from(error));
        if let Some((stream, seq)) = place {
            what["stream"] = json!(stream.as_str());
            what["seq"] = json!(seq);
        }
        self.note("invalid", &what);
    }

    /// Writes something that is no event, so that nobody takes it for one.
    fn note(&mut self, name: &str, what: &serde_json::Value) {
        match self.format {
            Format::Sse => self.data(Some(name), what.to_string().as_bytes()),
            Format::Lines => self.data(None, json!({name: what}).to_string().as_bytes()),
        }
    }

    fn data(&mut self, event: Option<&str>, json: &[u8]) {
        let out = &mut self.out;
        if self.format == Format::Sse {
            if let Some(event) = event {
                out.extend_from_slice(format!("event: {event}\n").as_bytes());
            }
            out.extend_from_slice(format!("id: {}\ndata: ", self.seen).as_bytes());
        }
        // A line break of JSON is never inside a string, so a space means the same.
        out.extend(json.iter().map(|byte| {
            if matches!(byte, b'\n' | b'\r') {
                b' '
            } else {
                *byte
            }
        }));
        out.extend_from_slice(if self.format == Format::Sse {
            b"\n\n"
        } else {
            b"\n"
        });
    }
}
