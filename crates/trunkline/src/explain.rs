//! The delivery contract in force, as data: what this bus promises, and where an event would go.

mod written;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use trunkline_core::engine::{
    ConsumerRef, ConsumerState, Durability, Fact, Inspection, Reach, Retention, Seq, StreamState,
};
use trunkline_core::plan::is_ours;
use trunkline_core::{Error, ErrorKind, EventType, Filter, Name, Result, Subject, Timestamp};

use crate::bus::Bus;
use crate::event::{Class, EventInfo};

/// What a bus promises, as it is configured and stands now; made by [`Bus::explain`].
///
/// It is written as JSON with stable names; what is named after a unit is a number of that unit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explanation {
    /// The engine's short name.
    pub engine: String,
    /// What the engine knows of itself and of the server behind it, without credentials. In JSON it
    /// is one object.
    pub facts: Vec<Fact>,
    /// What a stored event survives: `process` is nothing, then `crash`, then `power`.
    pub durability: Durability,
    /// Who can share the bus: `process`, `host` or `network`.
    pub reach: Reach,
    /// Bytes of one encoded message at most, headers included.
    pub max_message_bytes: usize,
    /// Events of one batch at most.
    pub max_batch: usize,
    /// What this program writes as `source` of its events.
    pub source: String,
    /// The first tokens of each class of subjects.
    pub roots: RootTerms,
    /// The event types that are accepted; none means every valid one.
    pub catalogue: Option<Vec<String>>,
    /// Every stream, by name.
    pub streams: Vec<StreamTerms>,
    /// Every consumer, by stream and name.
    pub consumers: Vec<ConsumerTerms>,
    /// The stream that keeps what could not be handled.
    pub dead_letters: Name,
    /// Types that were asked for, else those of the catalogue.
    pub types: Vec<TypeTerms>,
}

/// The first tokens of subjects.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RootTerms {
    /// Durable events; none means that their subjects have no root.
    pub events: Option<String>,
    /// Commands.
    pub commands: String,
    /// Ephemeral events.
    pub live: String,
    /// Dead letters.
    pub dlq: String,
}

/// A stream, its limits, and how it stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StreamTerms {
    /// Its name.
    pub name: Name,
    /// The subjects that it stores.
    pub subjects: Vec<Filter>,
    /// What happens at a limit: `discard_old`, `refuse_when_full`, or `work_queue`, which also
    /// removes what is acknowledged.
    pub retention: Retention,
    /// Events at most.
    pub max_events: Option<u64>,
    /// Bytes at most.
    pub max_bytes: Option<u64>,
    /// How long events are kept.
    pub max_age: Option<Duration>,
    /// Bytes of one message at most.
    pub max_message_bytes: usize,
    /// How long an id is remembered, so that a repeat is stored once.
    pub duplicate_window: Duration,
    /// Copies that there are.
    pub replicas: usize,
    /// Copies that this program asks for; none where it asks for none, or the engine has no other
    /// host to keep one.
    pub replicas_declared: Option<usize>,
    /// Whether Trunkline made it. What others made is never changed.
    pub ours: bool,
    /// Events in it.
    pub events: u64,
    /// Bytes in it, as far as the engine knows them.
    pub bytes: u64,
    /// The first sequence stored.
    pub first: Seq,
    /// The sequence that the next event will have.
    pub tail: Seq,
    /// When its first stored event was stored.
    pub first_at: Option<Timestamp>,
}

/// A consumer of one stream, and how it stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumerTerms {
    /// Its name. A consumer may read several streams; it then stands here once for each.
    pub name: Name,
    /// The stream.
    pub stream: Name,
    /// What it gets of the stream.
    pub filters: Vec<Filter>,
    /// Where it started.
    pub start: String,
    /// How long a delivery is leased before it goes to somebody else.
    pub ack_wait: Duration,
    /// Deliveries under a lease at once, over all members.
    pub max_in_flight: usize,
    /// Matching events not under a lease and not acknowledged.
    pub pending: u64,
    /// Events under a lease.
    pub in_flight: u64,
    /// The sequence up to which everything is acknowledged.
    pub floor: Seq,
    /// Sequences that retention removed before they were acknowledged, at most.
    pub expired_at_most: u64,
}

/// Where events of a type go, and who gets them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TypeTerms {
    /// The type.
    pub event_type: String,
    /// How it travels: `durable`, `ephemeral` or `command`.
    pub class: Class,
    /// Its subject, root included; a filter if a field of the event is part of it.
    pub subject: Filter,
    /// The stream that stores it.
    pub stream: Option<Name>,
    /// Why it would be refused, if it would be.
    pub refused: Option<String>,
    /// The durable consumers that get it.
    pub consumers: Vec<Name>,
}

impl Bus {
    /// The delivery contract in force: what a stored event survives, limits, streams and what
    /// happens when they are full, consumers, and where the types of the catalogue go.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> trunkline::Result<()> {
    /// use trunkline::Bus;
    /// use trunkline::core::engine::Durability;
    ///
    /// let bus = Bus::connect("memory:").await?;
    /// assert_eq!(bus.explain().await?.durability, Durability::Process);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`inspect`](Bus::inspect).
    pub async fn explain(&self) -> Result<Explanation> {
        let infos: Vec<EventInfo> = self.catalogue().cloned().collect();
        let found = self.inspect().await?;
        let terms = infos.iter().map(|info| self.terms(info, None, &found));
        let types = terms.collect::<Result<_>>()?;
        Ok(self.explanation(found, types))
    }

    /// As [`explain`](Bus::explain), for these types in place of those of the catalogue.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEventType`], and those of [`inspect`](Bus::inspect).
    pub async fn explain_types(&self, types: &[impl AsRef<str>]) -> Result<Explanation> {
        let found = self.inspect().await?;
        let mut terms = Vec::with_capacity(types.len());
        for event_type in types {
            let event_type = EventType::new(event_type.as_ref())?;
            let known = self.inner.catalogue.types.get(event_type.as_str());
            terms.push(match known {
                Some(entry) => self.terms(&entry.info, None, &found)?,
                None => {
                    let refused = self.inner.catalogue.check(&event_type).err();
                    let info = EventInfo {
                        version: 1,
                        class: Class::Durable,
                        filter: event_type.subject().clone().into(),
                        keyed: false,
                        event_type,
                    };
                    self.terms(&info, refused, &found)?
                }
            });
        }
        Ok(self.explanation(found, terms))
    }

    /// Deletes a consumer with its progress: on one stream, or on every stream that it reads.
    /// Gives where it was. Members that run are told that it is gone and stop.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchConsumer`] when there is none of that name, and the engine's own.
    pub async fn delete_consumer(
        &self,
        name: &Name,
        stream: Option<&Name>,
    ) -> Result<Vec<ConsumerRef>> {
        let found = self.inspect().await?.consumers.into_iter();
        let at: Vec<ConsumerRef> = found
            .map(|state| state.spec.at)
            .filter(|at| at.consumer == *name && stream.is_none_or(|stream| at.stream == *stream))
            .collect();
        if at.is_empty() {
            let place = stream.map_or_else(
                || "any stream".to_owned(),
                |stream| format!("stream {stream}"),
            );
            return Err(Error::new(
                ErrorKind::NoSuchConsumer,
                format!("there is no consumer {name} on {place}"),
            ));
        }
        for at in &at {
            self.remove_consumer(at).await?;
        }
        Ok(at)
    }

    fn explanation(&self, found: Inspection, types: Vec<TypeTerms>) -> Explanation {
        let engine = self.engine();
        let (capabilities, limits) = (engine.capabilities(), engine.limits());
        let settings = &self.inner.settings;
        let known = &self.inner.catalogue.types;
        let root = |root: &Subject| root.to_string();
        let (streams, consumers) = standing(found, &settings.copies);
        Explanation {
            engine: engine.name().to_owned(),
            facts: engine.facts(),
            durability: capabilities.durability,
            reach: capabilities.reach,
            max_message_bytes: limits.max_message,
            max_batch: limits.max_batch,
            source: settings.source.to_string(),
            roots: RootTerms {
                events: settings.roots.events.as_ref().map(root),
                commands: root(&settings.roots.commands),
                live: root(&settings.roots.live),
                dlq: root(&settings.roots.dlq),
            },
            catalogue: (!known.is_empty()).then(|| known.keys().map(ToString::to_string).collect()),
            streams,
            consumers,
            dead_letters: settings.dead_letters.clone(),
            types,
        }
    }

    fn terms(
        &self,
        info: &EventInfo,
        refused: Option<Error>,
        found: &Inspection,
    ) -> Result<TypeTerms> {
        let subject = info.filter.below(self.inner.root(info.class))?;
        let stream = self.inner.stream_of(&subject).cloned();
        let refused = refused.map(|error| error.message().to_owned()).or_else(|| {
            let lost = stream.is_none() && info.class != Class::Ephemeral;
            lost.then(|| format!("no stream stores {subject}; give one a filter that covers it"))
        });
        let gets = |consumer: &&ConsumerState| {
            stream.as_ref() == Some(&consumer.spec.at.stream)
                && consumer
                    .spec
                    .filters
                    .iter()
                    .any(|filter| filter.overlaps(&subject))
        };
        let consumers = found.consumers.iter().filter(gets);
        Ok(TypeTerms {
            event_type: info.event_type.as_str().to_owned(),
            class: info.class,
            consumers: consumers
                .map(|consumer| consumer.spec.at.consumer.clone())
                .collect(),
            subject,
            stream,
            refused,
        })
    }
}

/// Every stream by name and every consumer by stream and name, with the copies that are asked for.
pub(crate) fn standing(
    found: Inspection,
    copies: &BTreeMap<Name, usize>,
) -> (Vec<StreamTerms>, Vec<ConsumerTerms>) {
    let mut streams: Vec<StreamTerms> = found.streams.into_iter().map(StreamTerms::from).collect();
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    for stream in &mut streams {
        stream.replicas_declared = copies.get(&stream.name).copied();
    }
    let consumers = found.consumers.into_iter().map(ConsumerTerms::from);
    let mut consumers: Vec<ConsumerTerms> = consumers.collect();
    consumers.sort_by(|a, b| (&a.stream, &a.name).cmp(&(&b.stream, &b.name)));
    (streams, consumers)
}

impl From<StreamState> for StreamTerms {
    fn from(state: StreamState) -> Self {
        let ours = is_ours(&state.spec);
        let spec = state.spec;
        Self {
            name: spec.name,
            subjects: spec.subjects,
            retention: spec.retention,
            max_events: spec.max_events,
            max_bytes: spec.max_bytes,
            max_age: spec.max_age,
            max_message_bytes: spec.max_message,
            duplicate_window: spec.duplicate_window,
            replicas: spec.replicas,
            replicas_declared: None,
            ours,
            events: state.events,
            bytes: state.bytes,
            first: state.first,
            tail: state.tail,
            first_at: state.first_at,
        }
    }
}

impl From<ConsumerState> for ConsumerTerms {
    fn from(ConsumerState { spec, backlog }: ConsumerState) -> Self {
        Self {
            name: spec.at.consumer,
            stream: spec.at.stream,
            filters: spec.filters,
            start: spec.start.to_string(),
            ack_wait: spec.ack_wait,
            max_in_flight: spec.max_in_flight,
            pending: backlog.pending,
            in_flight: backlog.in_flight,
            floor: backlog.floor,
            expired_at_most: backlog.expired_at_most,
        }
    }
}
