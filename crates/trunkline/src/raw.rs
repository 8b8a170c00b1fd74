//! Events without a Rust type, for doors, tools and bridges.

use std::sync::Arc;

use trunkline_core::engine::{Message, Position, Seq, StoredEvent};
use trunkline_core::plan::Roots;
use trunkline_core::wire::{self, Legacy, Place};
use trunkline_core::{
    Data, Envelope, Error, ErrorKind, EventType, Filter, Headers, Name, Result, Subject, Timestamp,
};

use crate::bus::{Bus, CatalogueEntry, Inner, Reading};
use crate::event::Class;
use crate::publish::{Outgoing, Published, check_headers, checked_key, send_prepared};
use crate::receive::{Reader, Subscription};

/// An event that came in, its data not decoded.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The event.
    pub envelope: Arc<Envelope>,
    /// Headers beside it.
    pub headers: Headers,
    /// Where it was published, root included.
    pub subject: Subject,
    /// Where it is stored; none for an ephemeral event.
    pub stored: Option<Stored>,
}

/// Where and when an event was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The stream.
    pub stream: Name,
    /// The place in there.
    pub seq: Seq,
    /// When, by the engine's clock.
    pub at: Timestamp,
}

impl Incoming {
    pub(crate) fn stored(decoding: &Decoding, stream: &Name, event: StoredEvent) -> Result<Self> {
        let envelope = decoding.stored(stream, &event)?;
        Ok(Self::decoded(envelope, stream, event))
    }

    /// A stored event that was decoded already.
    pub(crate) fn decoded(envelope: Arc<Envelope>, stream: &Name, event: StoredEvent) -> Self {
        Self {
            envelope,
            headers: wire::beside(event.headers),
            subject: event.subject,
            stored: Some(Stored {
                stream: stream.clone(),
                seq: event.seq,
                at: event.at,
            }),
        }
    }

    pub(crate) fn live(decoding: &Decoding, message: Message) -> Result<Self> {
        let envelope = decoding.live(&message)?;
        Ok(Self {
            envelope,
            headers: wire::beside(message.headers),
            subject: message.subject,
            stored: None,
        })
    }
}

/// How bytes that came become events.
#[derive(Debug)]
pub(crate) struct Decoding {
    /// Forms other than CloudEvents that are read, the first that fits.
    pub(crate) legacy: Vec<Legacy>,
    pub(crate) roots: Roots,
}

impl Decoding {
    /// A stored event's attributes and data.
    pub(crate) fn stored(&self, stream: &Name, event: &StoredEvent) -> Result<Arc<Envelope>> {
        let place = Place {
            subject: self.below(&event.subject, &event.headers),
            stored: Some((stream, event.seq)),
            at: Some(event.at),
        };
        event.body.to_event_or(&event.headers, &self.legacy, &place)
    }

    fn live(&self, message: &Message) -> Result<Arc<Envelope>> {
        let place = Place {
            subject: self.below(&message.subject, &message.headers),
            stored: None,
            at: None,
        };
        let (body, headers) = (&message.body, &message.headers);
        body.to_event_or(headers, &self.legacy, &place)
    }

    /// A subject without its root; of a dead letter, that of the event that it was.
    fn below<'a>(&self, subject: &'a Subject, headers: &'a Headers) -> &'a str {
        let original = subject
            .without(Some(&self.roots.dlq))
            .and(headers.get("Trunkline-Subject"));
        let text = original.unwrap_or(subject.as_str());
        let roots = [&self.roots.commands, &self.roots.live];
        let mut roots = self.roots.events.iter().chain(roots);
        let rest = roots.find_map(|root| text.strip_prefix(root.as_str())?.strip_prefix('.'));
        rest.unwrap_or(text)
    }
}

/// An event to be published without a Rust type.
#[derive(Clone, Debug)]
pub struct RawEvent {
    /// The event; its type decides where it goes.
    pub envelope: Envelope,
    /// Headers beside it.
    pub headers: Headers,
}

impl From<Envelope> for RawEvent {
    fn from(envelope: Envelope) -> Self {
        Self {
            envelope,
            headers: Headers::new(),
        }
    }
}

/// A stretch of stored events.
#[derive(Clone, Debug)]
pub struct Range {
    /// The stream.
    pub stream: Name,
    /// The events that match, in order; what is no CloudEvent keeps its place and its error.
    pub events: Vec<(Seq, Result<Incoming>)>,
    /// Where the next stretch begins.
    pub next: Seq,
    /// The sequence that the next event stored will have.
    pub tail: Seq,
    /// What retention had removed at the start.
    pub gap: Option<trunkline_core::engine::Gap>,
}

impl Bus {
    /// Publishes events in order, whatever their types; each has its own outcome, in its place.
    ///
    /// With a catalogue the data must fit the type, and ephemeral types are sent instead of
    /// stored; without one every valid type is accepted and stored.
    pub async fn publish_raw(&self, events: Vec<RawEvent>) -> Vec<Published> {
        let prepare = |event: RawEvent| {
            let id = event.envelope.id().clone();
            self.inner.prepare(event).map_err(|error| error.about(id))
        };
        send_prepared(&self.inner, events.into_iter().map(prepare).collect()).await
    }

    /// The streams that store durable events matching the filter, which is over event types'
    /// subjects, without the root.
    ///
    /// # Errors
    /// [`ErrorKind::MatchesNothing`] when no type of the catalogue, or no stream, can match.
    pub fn streams_matching(&self, filter: &Filter) -> Result<Vec<Name>> {
        self.inner.catalogue.check_filter(filter)?;
        let below = filter.below(self.inner.root(Class::Durable))?;
        let commands = Filter::new(format!("{}.>", self.inner.settings.roots.commands))?;
        let stores = |subjects: &Filter| subjects.overlaps(&below) && !commands.covers(subjects);
        let streams = self
            .inner
            .streams
            .iter()
            .filter(|spec| spec.subjects.iter().any(stores));
        let names: Vec<Name> = streams.map(|spec| spec.name.clone()).collect();
        if names.is_empty() {
            return Err(Error::new(
                ErrorKind::MatchesNothing,
                format!("no stream of this bus stores anything that {filter} matches"),
            ));
        }
        Ok(names)
    }

    /// Follows stored events that match the filter, from a position on and without end.
    /// It makes no durable consumer and disturbs none.
    ///
    /// # Errors
    /// Those of [`streams_matching`](Bus::streams_matching).
    pub async fn follow(&self, filter: &Filter, from: Position) -> Result<Subscription<Incoming>> {
        self.follow_any(std::slice::from_ref(filter), from).await
    }

    /// As [`follow`](Bus::follow), for events that match one of several filters, each event once.
    ///
    /// # Errors
    /// Those of [`streams_matching`](Bus::streams_matching), for every filter, and
    /// [`ErrorKind::InvalidFilter`] for none at all.
    pub async fn follow_any(
        &self,
        filters: &[Filter],
        from: Position,
    ) -> Result<Subscription<Incoming>> {
        let names = self.streams_matching_any(filters)?;
        let from = names.into_iter().map(|name| (name, from)).collect();
        self.follow_streams_any(filters, from).await
    }

    /// As [`follow`](Bus::follow), with a position for each stream: how a reader resumes.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchStream`] and the engine's own.
    pub async fn follow_streams(
        &self,
        filter: &Filter,
        from: Vec<(Name, Position)>,
    ) -> Result<Subscription<Incoming>> {
        self.follow_streams_any(std::slice::from_ref(filter), from)
            .await
    }

    pub(crate) async fn follow_streams_any(
        &self,
        filters: &[Filter],
        from: Vec<(Name, Position)>,
    ) -> Result<Subscription<Incoming>> {
        let below = self.below(Class::Durable, filters)?;
        let mut readers = Vec::with_capacity(from.len());
        for (stream, position) in from {
            let follow = self
                .inner
                .engine
                .log()
                .follow(&stream, position, &below)
                .await?;
            readers.push(Reader::stored(
                stream,
                follow,
                &self.inner.settings.decoding,
            ));
        }
        Ok(Subscription::raw(self.clone(), readers))
    }

    /// Listens to ephemeral events that match the filter, from now on.
    ///
    /// # Errors
    /// [`ErrorKind::MatchesNothing`] when no type of the catalogue can match.
    pub async fn listen(&self, filter: &Filter) -> Result<Subscription<Incoming>> {
        self.listen_any(std::slice::from_ref(filter)).await
    }

    /// As [`listen`](Bus::listen), for events that match one of several filters, each event once.
    ///
    /// # Errors
    /// Those of [`listen`](Bus::listen), for every filter, and [`ErrorKind::InvalidFilter`] for
    /// none at all.
    pub async fn listen_any(&self, filters: &[Filter]) -> Result<Subscription<Incoming>> {
        for filter in some(filters)? {
            self.inner.catalogue.check_filter(filter)?;
        }
        let below = self.below(Class::Ephemeral, filters)?;
        let capacity = self.inner.settings.listener_capacity;
        let listener = self
            .inner
            .engine
            .live()
            .listen(&below, None, capacity)
            .await?;
        Ok(Subscription::raw(
            self.clone(),
            vec![Reader::live(listener, &self.inner.settings.decoding)],
        ))
    }

    /// The streams of all filters, each once.
    pub(crate) fn streams_matching_any(&self, filters: &[Filter]) -> Result<Vec<Name>> {
        let mut names: Vec<Name> = Vec::new();
        for filter in some(filters)? {
            for name in self.streams_matching(filter)? {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    pub(crate) fn below(&self, class: Class, filters: &[Filter]) -> Result<Vec<Filter>> {
        let root = self.inner.root(class);
        filters.iter().map(|filter| filter.below(root)).collect()
    }

    /// Reads a stretch of one stream, without waiting: at most `max` events that match.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchStream`] and the engine's own.
    pub async fn read(
        &self,
        stream: &Name,
        filter: &Filter,
        from: Position,
        max: usize,
    ) -> Result<Range> {
        self.read_any(stream, std::slice::from_ref(filter), from, max)
            .await
    }

    pub(crate) async fn read_any(
        &self,
        stream: &Name,
        filters: &[Filter],
        from: Position,
        max: usize,
    ) -> Result<Range> {
        let below = self.below(Class::Durable, filters)?;
        let credit = trunkline_core::engine::Credit {
            items: max,
            bytes: 16 << 20,
        };
        let page = self
            .inner
            .engine
            .log()
            .read(stream, from, &below, credit)
            .await?;
        let decoding = &self.inner.settings.decoding;
        let event = |event: StoredEvent| (event.seq, Incoming::stored(decoding, stream, event));
        Ok(Range {
            stream: stream.clone(),
            events: page.events.into_iter().map(event).collect(),
            next: page.next,
            tail: page.tail,
            gap: page.gap,
        })
    }

    /// For a filter that matches no stored event: the nearest one that would.
    ///
    /// # Errors
    /// The engine's own.
    pub async fn nearest_filter(&self, filter: &Filter) -> Result<Option<Filter>> {
        let root = self.inner.root(Class::Durable);
        let mut known = Vec::new();
        for stream in &self.inner.streams {
            let subjects = self
                .inner
                .engine
                .topology()
                .subjects(&stream.name, &Filter::all(), 10_000)
                .await?;
            let types = subjects
                .iter()
                .filter_map(|count| count.subject.without(root));
            known.extend(types.filter_map(|subject| Filter::new(subject).ok()));
        }
        if known.iter().any(|types| types.overlaps(filter)) {
            return Ok(None);
        }
        Ok(filter.nearest(known.iter()))
    }

    /// A stored event's attributes and data, its data not decoded: a CloudEvent, or what this bus was
    /// told to [read as well](crate::Connect::legacy).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] for bytes that are neither.
    pub fn envelope(&self, stream: &Name, event: &StoredEvent) -> Result<Arc<Envelope>> {
        self.inner.settings.decoding.stored(stream, event)
    }

    /// The subject of a stored event without the root of durable events.
    pub fn type_subject<'a>(&self, subject: &'a Subject) -> &'a str {
        subject
            .without(self.inner.root(Class::Durable))
            .unwrap_or(subject.as_str())
    }
}

impl Inner {
    fn prepare(
        &self,
        RawEvent {
            mut envelope,
            headers,
        }: RawEvent,
    ) -> Result<Outgoing> {
        check_headers(&headers)?;
        if envelope.time().is_none() {
            envelope = envelope.with_time(self.clock.now());
        }
        let place = match self.catalogue.types.get(envelope.event_type()) {
            None => self.raw_place(envelope.event_type())?,
            Some(entry) => {
                let (subject, key) = read(entry, &envelope)?;
                if let (None, Some(key)) = (envelope.key(), key) {
                    envelope = envelope.with_key(key);
                }
                let subject = subject.below(self.root(entry.info.class))?;
                let stored = entry.info.class != Class::Ephemeral;
                let stream = stored
                    .then(|| self.stored_in(&subject, envelope.event_type()))
                    .transpose()?;
                RawPlace { subject, stream }
            }
        };
        if let Some(key) = envelope.ordering_key() {
            checked_key(key)?;
        }
        Ok(Outgoing {
            envelope: Arc::new(envelope),
            headers,
            subject: place.subject,
            stream: place.stream,
            is_output: false,
        })
    }

    /// Where events of a type without a catalogue go. Kept, because most events have a type that
    /// came before; not beyond a limit, because types come from outside.
    fn raw_place(&self, event_type: &str) -> Result<RawPlace> {
        const MAX_KEPT: usize = 10_000;
        if let Some(place) = self.raw_places.read().get(event_type) {
            return Ok(place.clone());
        }
        let checked = EventType::new(event_type)?;
        self.catalogue.check(&checked)?;
        let subject = checked.subject().below(self.root(Class::Durable))?;
        let place = RawPlace {
            stream: Some(self.stored_in(&subject, event_type)?),
            subject,
        };
        let mut kept = self.raw_places.write();
        if kept.len() < MAX_KEPT {
            kept.insert(event_type.into(), place.clone());
        }
        Ok(place)
    }

    fn stored_in(&self, subject: &Subject, event_type: &str) -> Result<Name> {
        self.stream_of(&subject.clone().into()).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::NotStored,
                format!("no stream stores {subject}, so {event_type:?} would be lost; give a stream a filter that covers it"),
            )
        })
    }
}

/// No filter matches nothing; an engine might take it for everything.
fn some(filters: &[Filter]) -> Result<&[Filter]> {
    if filters.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidFilter,
            "there is no filter; `>` matches every type",
        ));
    }
    Ok(filters)
}

/// Where an event goes, root included.
#[derive(Clone)]
pub(crate) struct RawPlace {
    subject: Subject,
    stream: Option<Name>,
}

fn read(entry: &CatalogueEntry, envelope: &Envelope) -> Result<Reading> {
    let newer = envelope
        .version()
        .is_some_and(|version| version > entry.info.version);
    match envelope.data() {
        // `null` is what a unit type is written as, and as good a stand-in for no data as any.
        Data::None => (entry.read)(b"null"),
        data => (entry.read)(&data.to_bytes()?),
    }
    .map_err(|error| {
        if newer {
            error.at("a newer version than this program knows")
        } else {
            error
        }
    })
}
