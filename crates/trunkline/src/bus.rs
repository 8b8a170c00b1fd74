//! The bus: one handle, not generic, cheap to clone.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use smol_str::SmolStr;
use tokio::sync::watch;
use trunkline_core::engine::{Engine, Inspection, Link, StreamSpec};
use trunkline_core::plan::Roots;
use trunkline_core::{Clock, Error, ErrorKind, EventType, Filter, Name, Result, Subject};

use crate::connect::{Connect, Settings};
use crate::consumer::{Consumer, ConsumerHandle};
use crate::event::{Class, Event, EventInfo};
use crate::layer::{HandleLayer, PublishLayer};
use crate::publish::{Destination, Publisher};
use crate::raw::RawPlace;

/// A connection to an event bus.
///
/// Clones share the connection. Engines differ in what they promise, never in how they are used:
/// the URL given to [`connect`](Bus::connect) chooses one.
#[derive(Clone)]
pub struct Bus {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Settings,
    pub(crate) catalogue: Catalogue,
    /// Every stream that stores events or commands.
    pub(crate) streams: Vec<StreamSpec>,
    pub(crate) publish_layers: Vec<Arc<dyn PublishLayer>>,
    pub(crate) handle_layers: Vec<Arc<dyn HandleLayer>>,
    pub(crate) consumers: Mutex<Vec<ConsumerHandle>>,
    /// Why the first member that ended by itself did.
    pub(crate) failed: watch::Sender<Option<Error>>,
    /// Held while the bus drains and closes.
    pub(crate) closing: tokio::sync::Mutex<()>,
    states: RwLock<FxHashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
    destinations: RwLock<FxHashMap<TypeId, Arc<Destination>>>,
    pub(crate) raw_places: RwLock<FxHashMap<SmolStr, RawPlace>>,
}

impl Bus {
    /// Connects to the bus behind a URL: `memory:` (a fresh one), `memory:name` (shared by name
    /// within the process), `http://127.0.0.1:7400` (one that a running `trunkline up` has). Await it,
    /// or set options first.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> trunkline::Result<()> {
    /// use trunkline::Bus;
    ///
    /// let bus = Bus::connect("memory:").source("/billing").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidUrl`] for a URL that this build has no engine for;
    /// [`ErrorKind::Drift`], [`ErrorKind::NotStored`] or [`ErrorKind::Overlap`] when the streams
    /// are not, or cannot be, as declared; for a bus in another process also
    /// [`ErrorKind::Disconnected`], [`ErrorKind::WrongProtocol`], [`ErrorKind::WrongVersion`] and
    /// [`ErrorKind::NotPermitted`].
    pub fn connect(url: impl Into<String>) -> Connect {
        Connect::new(url.into())
    }

    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        catalogue: Catalogue,
        streams: Vec<StreamSpec>,
        publish_layers: Vec<Arc<dyn PublishLayer>>,
        handle_layers: Vec<Arc<dyn HandleLayer>>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                engine,
                clock,
                settings,
                catalogue,
                streams,
                publish_layers,
                handle_layers,
                consumers: Mutex::default(),
                failed: watch::Sender::default(),
                closing: tokio::sync::Mutex::default(),
                states: RwLock::default(),
                destinations: RwLock::default(),
                raw_places: RwLock::default(),
            }),
        }
    }

    /// The engine below, for tools and tests of the seam.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.inner.engine
    }

    /// What this bus writes as `source` of its events.
    pub fn source(&self) -> &str {
        &self.inner.settings.source
    }

    /// The event types that this bus knows, or none if it accepts every type.
    pub fn catalogue(&self) -> impl Iterator<Item = &EventInfo> {
        self.inner.catalogue.types.values().map(|entry| &entry.info)
    }

    /// Whether the engine can be reached, and every change of it.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.inner.engine.link()
    }

    /// What streams and consumers there are and how they stand.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], and the engine's own.
    pub async fn inspect(&self) -> Result<Inspection> {
        let mut inspection = self.inner.engine.topology().inspect().await?;
        inspection.consumers.extend(self.ordered_consumers().await?);
        Ok(inspection)
    }

    /// Makes a value available to handlers as [`State<T>`](crate::State); one for each type.
    pub fn state<T: Any + Send + Sync>(&self, value: T) -> &Self {
        self.inner
            .states
            .write()
            .insert(TypeId::of::<T>(), Arc::new(value));
        self
    }

    pub(crate) fn get_state<T: Any + Send + Sync>(&self) -> Result<Arc<T>> {
        let value = self.inner.states.read().get(&TypeId::of::<T>()).cloned();
        value.and_then(|value| value.downcast().ok()).ok_or_else(|| {
            Error::new(
                ErrorKind::MissingState,
                format!(
                    "a handler asks for State<{}>; call `bus.state(…)` with one before the consumer starts",
                    std::any::type_name::<T>()
                ),
            )
        })
    }

    /// A durable consumer of that name. Members in other processes share its events.
    ///
    /// The name and everything else is checked by [`start`](Consumer::start).
    pub fn consumer(&self, name: impl Into<String>) -> Consumer {
        Consumer::new(self.clone(), name.into())
    }

    /// The resolved way for events of one type: what [`publish`](Bus::publish) and
    /// [`emit`](Bus::emit) look up, kept.
    ///
    /// # Errors
    /// [`ErrorKind::NotInCatalogue`], [`ErrorKind::NotStored`] or [`ErrorKind::Overlap`] when
    /// events of the type cannot go anywhere on this bus.
    pub fn publisher<E: Event>(&self) -> Result<Publisher<E>> {
        Ok(Publisher::new(self.clone(), self.destination::<E>()?))
    }

    pub(crate) fn destination<E: Event>(&self) -> Result<Arc<Destination>> {
        if let Some(known) = self.inner.destinations.read().get(&TypeId::of::<E>()) {
            return Ok(Arc::clone(known));
        }
        let info = EventInfo::of::<E>()?;
        self.inner.catalogue.check(&info.event_type)?;
        let destination = Arc::new(Destination::new(&self.inner, info, E::SUBJECT.literal()?)?);
        self.inner
            .destinations
            .write()
            .insert(TypeId::of::<E>(), Arc::clone(&destination));
        Ok(destination)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("engine", &self.inner.engine.name())
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// The root of a class of events.
    pub(crate) fn root(&self, class: Class) -> Option<&Subject> {
        root(&self.settings.roots, class)
    }

    /// The stream that stores everything that the filter matches.
    pub(crate) fn stream_of(&self, filter: &Filter) -> Option<&Name> {
        let covers = |stream: &&StreamSpec| {
            stream
                .subjects
                .iter()
                .any(|subjects| subjects.covers(filter))
        };
        self.streams.iter().find(covers).map(|stream| &stream.name)
    }
}

pub(crate) fn root(roots: &Roots, class: Class) -> Option<&Subject> {
    match class {
        Class::Durable => roots.events.as_ref(),
        Class::Command => Some(&roots.commands),
        Class::Ephemeral => Some(&roots.live),
    }
}

/// The event types that a bus was told of. An empty one accepts every type.
#[derive(Default)]
pub(crate) struct Catalogue {
    pub(crate) types: BTreeMap<SmolStr, CatalogueEntry>,
}

pub(crate) struct CatalogueEntry {
    pub(crate) info: EventInfo,
    /// Decodes the data as the type: what is malformed is refused before it is stored, and the
    /// rest shows its subject and key.
    pub(crate) read: fn(&[u8]) -> Result<Reading>,
}

/// What an event's data says of where it goes: its subject without the root, and its key.
pub(crate) type Reading = (Subject, Option<SmolStr>);

impl Catalogue {
    pub(crate) fn add<E: Event>(&mut self) -> Result<()> {
        let info = EventInfo::of::<E>()?;
        let entry = CatalogueEntry {
            info: info.clone(),
            read: read::<E>,
        };
        match self.types.insert(E::TYPE.into(), entry) {
            Some(other) if other.info != info => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "two types are registered as {:?}, and they differ; give each a name of its own",
                    E::TYPE
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses a type outside the catalogue, if there is one.
    pub(crate) fn check(&self, event_type: &EventType) -> Result<()> {
        if self.types.is_empty() || self.types.contains_key(event_type.as_str()) {
            return Ok(());
        }
        let known: Vec<_> = self.types.keys().map(SmolStr::as_str).collect();
        Err(Error::new(
            ErrorKind::NotInCatalogue,
            format!(
                "{event_type:?} is not in this bus's catalogue, which has {}",
                known.join(", ")
            ),
        ))
    }

    /// Refuses a filter that matches no type of the catalogue, and names one that would.
    pub(crate) fn check_filter(&self, filter: &Filter) -> Result<()> {
        let known = || self.types.values().map(|entry| &entry.info.filter);
        if self.types.is_empty() || known().any(|types| types.overlaps(filter)) {
            return Ok(());
        }
        let hint = match filter.nearest(known()) {
            Some(near) => format!("{near} would"),
            None => format!("the catalogue has {:?}", known().collect::<Vec<_>>()),
        };
        Err(Error::new(
            ErrorKind::MatchesNothing,
            format!(
                "filter {filter} matches no event type of this bus; {hint}; `*` is one token, `>` one or more"
            ),
        ))
    }
}

fn read<E: Event>(data: &[u8]) -> Result<Reading> {
    let event: E = serde_json::from_slice(data).map_err(|error| {
        Error::new(ErrorKind::Decode, format!("the data is not a {}", E::TYPE)).caused_by(error)
    })?;
    Ok((E::SUBJECT.subject(&event)?, event.key().map(SmolStr::from)))
}
