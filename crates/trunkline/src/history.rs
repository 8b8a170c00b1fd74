//! The past of a bus: what is stored, up to the end as it was when reading began.

use std::collections::VecDeque;
use std::fmt;

use trunkline_core::engine::{Position, Seq};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result, Timestamp};

use crate::bus::Bus;
use crate::event::Class;
use crate::raw::{Incoming, Range};
use crate::receive::{Item, Subscription};

/// The most events of one page.
const PAGE_EVENTS: usize = 256;
/// The most subjects whose last events are read at once.
const MAX_LASTS: usize = 10_000;

/// Stored events from a position on, page by page, up to the end as it was when
/// [`history`](Bus::history) was called. It ends; a [`follow`](Bus::follow) does not.
///
/// Of several streams one is read after the other.
#[must_use = "nothing is read until a page is asked for"]
pub struct History {
    bus: Bus,
    filters: Vec<Filter>,
    rest: VecDeque<Stretch>,
    /// Where each stream ended when this was made.
    ends: Vec<(Name, Seq)>,
    until: Option<End>,
    progress: Progress,
}

/// Where a history ends before the end of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// After this sequence, in every stream.
    Seq(Seq),
    /// After what was stored at this time.
    Time(Timestamp),
}

/// How far a history was read, in sequences looked at. Of a filter's events there are fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Sequences looked at.
    pub done: u64,
    /// Sequences there are.
    pub total: u64,
}

struct Stretch {
    /// The first page, read when the history was made: only it knows where `last:N` begins.
    first: Option<Range>,
    stream: Name,
    next: Seq,
    tail: Seq,
}

impl Bus {
    /// Reads stored events that match one of the filters, from a position on, up to the end as it
    /// is now.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> trunkline::Result<()> {
    /// use trunkline::{Bus, Filter, Item, Start};
    ///
    /// let bus = Bus::connect("memory:").await?;
    /// let mut history = bus.history(&[Filter::all()], Start::First).await?;
    /// while let Some(page) = history.next_page().await? {
    ///     for item in page {
    ///         if let Item::Event(event) = item {
    ///             println!("{}", event.envelope.event_type());
    ///         }
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`streams_matching`](Bus::streams_matching) for every filter;
    /// [`ErrorKind::OverLimit`] for [`Position::LastPerSubject`] of more than 10 000 subjects, or
    /// more than the engine gives in one page: follow those; and the engine's own.
    pub async fn history(&self, filters: &[Filter], from: Position) -> Result<History> {
        let mut history = History {
            bus: self.clone(),
            filters: filters.to_vec(),
            rest: VecDeque::new(),
            ends: Vec::new(),
            until: None,
            progress: Progress::default(),
        };
        for stream in self.streams_matching_any(filters)? {
            let range = match from {
                Position::LastPerSubject => self.lasts(&stream, filters).await?,
                _ => self.read_any(&stream, filters, from, PAGE_EVENTS).await?,
            };
            let begin = range.events.first().map_or(range.next, |(seq, _)| *seq);
            history.ends.push((stream.clone(), range.tail));
            let stretch = Stretch {
                next: begin,
                tail: range.tail,
                first: Some(range),
                stream,
            };
            history.progress.total += stretch.left();
            history.rest.push_back(stretch);
        }
        Ok(history)
    }

    /// The last event of each subject, all of them or an error.
    async fn lasts(&self, stream: &Name, filters: &[Filter]) -> Result<Range> {
        let mut subjects = Vec::new();
        for filter in self.below(Class::Durable, filters)? {
            let topology = self.inner.engine.topology();
            subjects.extend(topology.subjects(stream, &filter, MAX_LASTS + 1).await?);
        }
        subjects.sort_by(|a, b| a.subject.cmp(&b.subject));
        subjects.dedup_by(|a, b| a.subject == b.subject);
        let mut range = self
            .read_any(stream, filters, Position::LastPerSubject, MAX_LASTS)
            .await?;
        if range.events.len() < subjects.len() {
            return Err(Error::new(
                ErrorKind::OverLimit,
                format!(
                    "stream {stream} has {} subjects that match, and {} is what one page gives; narrow the filter, or follow",
                    subjects.len(),
                    range.events.len()
                ),
            ));
        }
        // Nothing comes after them but what is newer than this history.
        range.next = range.tail;
        Ok(range)
    }
}

impl History {
    /// Leaves out every stream but this one.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchStream`] when it is none of those that the filters reach.
    pub fn only(mut self, stream: &Name) -> Result<Self> {
        self.rest.retain(|stretch| stretch.stream == *stream);
        self.ends.retain(|(name, _)| name == stream);
        if self.ends.is_empty() {
            return Err(Error::new(
                ErrorKind::NoSuchStream,
                format!("{stream} is no stream of durable events that the filters reach"),
            ));
        }
        self.progress = Progress {
            done: 0,
            total: self.rest.iter().map(Stretch::left).sum(),
        };
        Ok(self)
    }

    /// Ends it earlier, `end` included.
    pub fn until(mut self, end: End) -> Self {
        self.until = Some(end);
        if let End::Seq(last) = end {
            for stretch in &mut self.rest {
                stretch.tail = stretch.tail.min(last.saturating_add(1));
            }
            let left: u64 = self.rest.iter().map(Stretch::left).sum();
            self.progress.total = self.progress.done + left;
        }
        self
    }

    /// The next events, with gaps and what is no event in their places; `None` at the end.
    ///
    /// # Errors
    /// The engine's own. Asked again, it goes on where it failed.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Item<Incoming>>>> {
        while let Some(stretch) = self.rest.front_mut() {
            let range = match stretch.first.take() {
                Some(range) => range,
                None if stretch.next >= stretch.tail => {
                    self.rest.pop_front();
                    continue;
                }
                None => {
                    let from = Position::Seq(stretch.next);
                    self.bus
                        .read_any(&stretch.stream, &self.filters, from, PAGE_EVENTS)
                        .await?
                }
            };
            if range.next <= stretch.next && stretch.next < range.tail && range.events.is_empty() {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!(
                        "reading {} stands still at {}",
                        stretch.stream, stretch.next
                    ),
                ));
            }
            let looked_at = range.next.min(stretch.tail);
            self.progress.done += looked_at.saturating_sub(stretch.next);
            stretch.next = range.next;
            let page = stretch.items(range, self.until);
            if !page.is_empty() {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// How far it was read.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Goes on with what was stored since this history was made, without end.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchStream`] and the engine's own.
    pub async fn follow(self) -> Result<Subscription<Incoming>> {
        let from = self.ends.into_iter();
        let from = from.map(|(stream, tail)| (stream, Position::Seq(tail)));
        self.bus
            .follow_streams_any(&self.filters, from.collect())
            .await
    }
}

impl Stretch {
    fn left(&self) -> u64 {
        self.tail.saturating_sub(self.next)
    }

    fn items(&mut self, range: Range, until: Option<End>) -> Vec<Item<Incoming>> {
        let mut items = Vec::with_capacity(range.events.len());
        let stream = &self.stream;
        items.extend(range.gap.map(|gap| Item::Gap {
            stream: stream.clone(),
            gap,
        }));
        for (seq, event) in range.events {
            if seq >= self.tail {
                break;
            }
            match event {
                Ok(event) => {
                    let at = event.stored.as_ref().map(|stored| stored.at);
                    if let (Some(End::Time(end)), Some(at)) = (until, at)
                        && at > end
                    {
                        // Store times never fall, so nothing after it is wanted either.
                        self.tail = self.next;
                        break;
                    }
                    items.push(Item::Event(event));
                }
                Err(error) => {
                    let place = format!("event {seq} of {stream}");
                    items.push(Item::Invalid(error.at(place)));
                }
            }
        }
        items
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History")
            .field("filters", &self.filters)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}
