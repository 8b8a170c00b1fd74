//! Connecting: a URL, some options, and a topology that is checked before the first event.

mod engine;

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use trunkline_core::engine::{Change, Engine, Inspection, LinkOptions, StreamSpec, StreamState};
use trunkline_core::plan::{Declaration, Placement, Plan, Roots, plan};
use trunkline_core::{Clock, Error, ErrorKind, Filter, Name, Result, Subject, SystemClock};

use crate::bus::{Bus, Catalogue, root};
use crate::consumer::Consumers;
use crate::event::{Class, Event};
use crate::layer::{HandleLayer, PublishLayer};
use crate::lifecycle::log_link;

/// The connection to be, made by [`Bus::connect`]. Await it.
#[must_use = "nothing happens until it is awaited"]
pub struct Connect {
    target: Target,
    clock: Arc<dyn Clock>,
    source: String,
    prefix: Option<String>,
    streams: Vec<StreamSpec>,
    topology: TopologyMode,
    listener_capacity: usize,
    drain_deadline: Duration,
    link: LinkOptions,
    consumers: Consumers,
    catalogue: Catalogue,
    publish_layers: Vec<Arc<dyn PublishLayer>>,
    handle_layers: Vec<Arc<dyn HandleLayer>>,
    /// The first thing that was wrong, told when awaited.
    fault: Option<Error>,
}

enum Target {
    Url(String),
    Engine(Arc<dyn Engine>),
}

/// What connecting may do to streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TopologyMode {
    /// Makes what is missing; changes nothing that exists.
    #[default]
    Ensure,
    /// Makes nothing; what is missing is an error.
    Verify,
    /// Declares nothing: takes the streams that exist as they are, whatever a program would have
    /// declared, and compares nothing. For tools that attach to a bus which others own.
    AsFound,
}

/// What a bus was told, once checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) source: SmolStr,
    pub(crate) roots: Roots,
    pub(crate) listener_capacity: usize,
    pub(crate) drain_deadline: Duration,
    pub(crate) dead_letters: Name,
    /// What consumers were told by the configuration.
    pub(crate) consumers: Consumers,
}

impl Connect {
    pub(crate) fn new(url: String) -> Self {
        Self::to(Target::Url(url))
    }

    /// Uses an engine that exists already: one's own, or one wrapped by a test.
    pub fn with_engine(engine: Arc<dyn Engine>) -> Self {
        Self::to(Target::Engine(engine))
    }

    fn to(target: Target) -> Self {
        Self {
            target,
            clock: Arc::new(SystemClock),
            source: "/trunkline".to_owned(),
            prefix: None,
            streams: Vec::new(),
            topology: TopologyMode::default(),
            listener_capacity: 10_000,
            drain_deadline: Duration::from_secs(25),
            link: LinkOptions::default(),
            consumers: Consumers::default(),
            catalogue: Catalogue::default(),
            publish_layers: Vec::new(),
            handle_layers: Vec::new(),
            fault: None,
        }
    }

    /// What this program writes as `source` of its events; name the service, as in `/billing`.
    /// `/trunkline` unless set.
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = source.into();
        self
    }

    /// The first tokens of durable subjects: `events` unless set, none if empty. Without a prefix
    /// the stream's subjects are those of the registered types, one by one.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Registers an event type. A bus that has any registered refuses all others, and checks at
    /// once that each is stored where it should be and nowhere else.
    pub fn event<E: Event>(mut self) -> Self {
        if let Err(error) = self.catalogue.add::<E>() {
            self.fault.get_or_insert(error);
        }
        self
    }

    /// Declares a stream; a later one of the same name replaces an earlier one.
    ///
    /// `COMMANDS` and `EVENTS_DLQ` take the place of the default ones. All others are for durable
    /// events: they, together, take the place of the one called `EVENTS`. A specification of one
    /// of these three names without subjects stores what the default one would.
    pub fn stream(mut self, spec: StreamSpec) -> Self {
        self.streams.retain(|other| other.name != spec.name);
        self.streams.push(spec);
        self
    }

    /// Whether missing streams are made. They are unless set.
    pub fn topology(mut self, mode: TopologyMode) -> Self {
        self.topology = mode;
        self
    }

    /// Ephemeral events that a subscription keeps until they are received; beyond it the oldest
    /// are lost, and it learns of that. 10 000 unless set.
    pub fn listener_capacity(mut self, events: usize) -> Self {
        self.listener_capacity = events;
        self
    }

    /// How long [`run`](Bus::run) and [`close`](Bus::close) let handlers finish. 25 s unless set.
    pub fn drain_deadline(mut self, deadline: Duration) -> Self {
        self.drain_deadline = deadline;
        self
    }

    /// How patiently an engine over a network connects, asks and connects again.
    /// [`LinkOptions::default`] unless set.
    pub fn link(mut self, link: LinkOptions) -> Self {
        self.link = link;
        self
    }

    /// What consumers are told besides what the code says.
    #[cfg(feature = "config")]
    pub(crate) fn consumers(mut self, consumers: Consumers) -> Self {
        self.consumers = consumers;
        self
    }

    /// Puts a layer around everything that is published; the first added is the outermost.
    pub fn publish_layer(mut self, layer: impl PublishLayer) -> Self {
        self.publish_layers.push(Arc::new(layer));
        self
    }

    /// Puts a layer around every handler of every consumer; the first added is the outermost.
    pub fn handle_layer(mut self, layer: impl HandleLayer) -> Self {
        self.handle_layers.push(Arc::new(layer));
        self
    }

    /// Takes the time from another clock; tests use a virtual one.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    async fn connect(self) -> Result<Bus> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let settings = Settings {
            source: checked_source(&self.source)?,
            roots: roots(self.prefix.as_deref())?,
            listener_capacity: self.listener_capacity.max(1),
            drain_deadline: self.drain_deadline,
            dead_letters: Name::new(DEAD_LETTERS)?,
            consumers: self.consumers,
        };
        let engine = match self.target {
            Target::Url(url) => engine::open(&url, &self.clock, self.link).await?,
            Target::Engine(engine) => engine,
        };
        let found = engine.topology().inspect().await?;
        let mut streams = match self.topology {
            TopologyMode::AsFound => nothing_declared(&self.streams)?,
            TopologyMode::Ensure | TopologyMode::Verify => {
                let own: Vec<Name> = self.streams.iter().map(|spec| spec.name.clone()).collect();
                let mut declared = declare(&settings, self.streams, &self.catalogue)?;
                keep_as_found(&mut declared.streams, &own, &found);
                let missing = checked_plan(&declared, &found, self.topology)?;
                engine.topology().apply(missing).await?;
                declared.streams
            }
        };
        log_link(engine.link(), engine.name());
        let dead_letters = settings.dead_letters.clone();
        for state in found.streams {
            if !streams.iter().any(|spec| spec.name == state.spec.name) {
                streams.push(state.spec);
            }
        }
        streams.retain(|spec| spec.name != dead_letters);
        tracing::info!(
            engine = engine.name(),
            durability = ?engine.capabilities().durability,
            source = %settings.source,
            "connected to the bus"
        );
        Ok(Bus::new(
            engine,
            self.clock,
            settings,
            self.catalogue,
            streams,
            self.publish_layers,
            self.handle_layers,
        ))
    }
}

impl IntoFuture for Connect {
    type Output = Result<Bus>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Bus>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.connect())
    }
}

pub(crate) fn checked_source(source: &str) -> Result<SmolStr> {
    if source.is_empty()
        || source.len() > 200
        || source.chars().any(|c| c.is_whitespace() || c.is_control())
    {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "source {source:?} is not 1 to 200 characters without white space; name the service, as in /billing"
            ),
        ));
    }
    Ok(source.into())
}

pub(crate) fn roots(prefix: Option<&str>) -> Result<Roots> {
    let mut roots = Roots::default();
    match prefix {
        None => {}
        Some("") => roots.events = None,
        Some(prefix) => roots.events = Some(Subject::new(prefix.trim_end_matches('.'))?),
    }
    roots.check()?;
    Ok(roots)
}

/// The stream of durable events, of commands, and of dead letters.
pub(crate) const EVENTS: &str = "EVENTS";
pub(crate) const COMMANDS: &str = "COMMANDS";
pub(crate) const DEAD_LETTERS: &str = "EVENTS_DLQ";

/// The stream of that name as it is declared where nobody says otherwise. One for durable events
/// has no subjects without a root, and none under any name but `EVENTS`.
pub(crate) fn default_stream(name: Name, roots: &Roots) -> Result<StreamSpec> {
    let below = |root: &Subject| Ok::<_, Error>(vec![Filter::new(format!("{root}.>"))?]);
    Ok(match name.as_str() {
        COMMANDS => StreamSpec::work_queue(name, below(&roots.commands)?),
        DEAD_LETTERS => StreamSpec::dead_letters(name, below(&roots.dlq)?),
        EVENTS => {
            let subjects = roots.events.as_ref().map(below).transpose()?;
            StreamSpec::new(name, subjects.unwrap_or_default())
        }
        _ => StreamSpec::new(name, Vec::new()),
    })
}

/// # Errors
/// [`ErrorKind::InvalidConfig`] for a stream that is declared all the same: it would be ignored.
fn nothing_declared(own: &[StreamSpec]) -> Result<Vec<StreamSpec>> {
    match own.first() {
        None => Ok(Vec::new()),
        Some(spec) => Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "stream {} is declared, but the topology is to be taken as found; leave out one of the two",
                spec.name
            ),
        )),
    }
}

/// A stream that exists and that this program does not declare itself is taken as it is, as long as
/// it stores what the default one would: its limits are for others to say.
fn keep_as_found(declared: &mut [StreamSpec], own: &[Name], found: &Inspection) {
    for spec in declared {
        let stores_all = |found: &StreamSpec| {
            let stored = |subjects: &Filter| found.subjects.iter().any(|by| by.covers(subjects));
            spec.subjects.iter().all(stored) && found.retention == spec.retention
        };
        let same_name = |state: &&StreamState| state.spec.name == spec.name;
        if !own.contains(&spec.name)
            && let Some(state) = found.streams.iter().find(same_name)
            && stores_all(&state.spec)
        {
            *spec = state.spec.clone();
        }
    }
}

/// What is missing, to be made.
fn checked_plan(
    declared: &Declaration,
    found: &Inspection,
    mode: TopologyMode,
) -> Result<Vec<Change>> {
    let Plan { changes, drift, .. } = plan(declared, found)?;
    if let Some(drift) = drift.first() {
        return Err(Error::new(
            ErrorKind::Drift,
            format!(
                "stream {} exists and differs: {}; change the declaration, or the stream on purpose",
                drift.stream,
                drift.differences.join("; ")
            ),
        ));
    }
    if mode == TopologyMode::Verify
        && let Some(missing) = changes.first()
    {
        return Err(Error::new(
            ErrorKind::NoSuchStream,
            format!("the topology is only to be verified, but this is missing: {missing:?}"),
        ));
    }
    Ok(changes)
}

fn declare(
    settings: &Settings,
    own: Vec<StreamSpec>,
    catalogue: &Catalogue,
) -> Result<Declaration> {
    let mut declaration = Declaration::default();
    let roots = &settings.roots;
    let mut unrooted = Vec::new();
    for entry in catalogue.types.values() {
        let info = &entry.info;
        let filter = info.filter.below(root(roots, info.class))?;
        if info.class == Class::Durable && roots.events.is_none() {
            unrooted.push(filter.clone());
        }
        let placement = Placement {
            event_type: info.event_type.as_str().to_owned(),
            filter,
        };
        match info.class {
            Class::Ephemeral => declaration.unstored.push(placement),
            Class::Durable | Class::Command => declaration.stored.push(placement),
        }
    }
    let (mut events, mut others): (Vec<_>, Vec<_>) = own
        .into_iter()
        .partition(|spec| ![COMMANDS, DEAD_LETTERS].contains(&spec.name.as_str()));
    if events.is_empty() {
        events.push(default_stream(Name::new(EVENTS)?, roots)?);
    }
    for name in [COMMANDS, DEAD_LETTERS] {
        if !others.iter().any(|spec| spec.name.as_str() == name) {
            others.push(default_stream(Name::new(name)?, roots)?);
        }
    }
    for mut spec in events.into_iter().chain(others) {
        if spec.subjects.is_empty() {
            spec.subjects = default_stream(spec.name.clone(), roots)?.subjects;
        }
        if spec.subjects.is_empty() && spec.name.as_str() == EVENTS {
            // Without a root the types say what is stored, and without types nothing is.
            if unrooted.is_empty() {
                continue;
            }
            spec.subjects.clone_from(&unrooted);
        }
        if spec.subjects.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "stream {} has no subjects; give it those that it is to store, as events.order.>",
                    spec.name
                ),
            ));
        }
        declaration.streams.push(spec);
    }
    declaration.unstored.push(Placement {
        event_type: "(every ephemeral type)".to_owned(),
        filter: Filter::new(format!("{}.>", roots.live))?,
    });
    Ok(declaration)
}
