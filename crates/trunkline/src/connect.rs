//! Connecting: a URL, some options, and a topology that is checked before the first event.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use trunkline_core::engine::{Engine, StreamSpec};
use trunkline_core::plan::{Declaration, Placement, Plan, Roots, plan};
use trunkline_core::{Clock, Error, ErrorKind, Filter, Name, Result, Subject, SystemClock};

use crate::bus::{Bus, Catalogue, root};
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
}

/// What a bus was told, once checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) source: SmolStr,
    pub(crate) roots: Roots,
    pub(crate) listener_capacity: usize,
    pub(crate) drain_deadline: Duration,
    pub(crate) dead_letters: Name,
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

    /// Declares a stream for durable events, in place of the one called `EVENTS`.
    pub fn stream(mut self, spec: StreamSpec) -> Self {
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
            dead_letters: Name::new("EVENTS_DLQ")?,
        };
        let engine = match self.target {
            Target::Url(url) => open(&url, &self.clock)?,
            Target::Engine(engine) => engine,
        };
        let declared = declare(&settings, self.streams, &self.catalogue)?;
        let found = engine.topology().inspect().await?;
        let Plan { changes, drift, .. } = plan(&declared, &found)?;
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
        if self.topology == TopologyMode::Verify
            && let Some(missing) = changes.first()
        {
            return Err(Error::new(
                ErrorKind::NoSuchStream,
                format!("the topology is only to be verified, but this is missing: {missing:?}"),
            ));
        }
        engine.topology().apply(changes).await?;
        log_link(engine.link(), engine.name());
        let dead_letters = settings.dead_letters.clone();
        let mut streams = declared.streams;
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

fn checked_source(source: &str) -> Result<SmolStr> {
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

fn roots(prefix: Option<&str>) -> Result<Roots> {
    let mut roots = Roots::default();
    match prefix {
        None => {}
        Some("") => roots.events = None,
        Some(prefix) => roots.events = Some(Subject::new(prefix.trim_end_matches('.'))?),
    }
    roots.check()?;
    Ok(roots)
}

fn open(url: &str, clock: &Arc<dyn Clock>) -> Result<Arc<dyn Engine>> {
    let scheme = url.split(':').next().unwrap_or_default();
    // What is no scheme may be anything, also a password.
    let named = scheme
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"+-".contains(&byte));
    let shown = if named {
        scheme
    } else {
        "something else than a scheme"
    };
    match scheme {
        #[cfg(feature = "memory")]
        "memory" => {
            let options = trunkline_memory::MemoryOptions::from_url(url)?;
            Ok(Arc::new(trunkline_memory::MemoryEngine::connect(
                options,
                Arc::clone(clock),
            )?))
        }
        #[cfg(not(feature = "memory"))]
        "memory" => {
            let _ = clock;
            Err(Error::new(
                ErrorKind::InvalidUrl,
                "this build has no engine for `memory:`; compile `trunkline` with its feature `memory`",
            ))
        }
        // Only the scheme: the rest of a URL may hold a password.
        _ => Err(Error::new(
            ErrorKind::InvalidUrl,
            format!(
                "there is no engine for URLs that begin with {shown:?}; this build knows `memory:` and `memory:name`"
            ),
        )),
    }
}

fn declare(
    settings: &Settings,
    own: Vec<StreamSpec>,
    catalogue: &Catalogue,
) -> Result<Declaration> {
    let mut declaration = Declaration {
        streams: own,
        ..Declaration::default()
    };
    let roots = &settings.roots;
    let below = |root: &Subject| Filter::new(format!("{root}.>"));
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
    if declaration.streams.is_empty() {
        let subjects = match &roots.events {
            Some(root) => vec![below(root)?],
            None => unrooted,
        };
        if !subjects.is_empty() {
            declaration
                .streams
                .push(StreamSpec::new(Name::new("EVENTS")?, subjects));
        }
    }
    declaration.streams.push(StreamSpec::work_queue(
        Name::new("COMMANDS")?,
        vec![below(&roots.commands)?],
    ));
    declaration.streams.push(StreamSpec::dead_letters(
        settings.dead_letters.clone(),
        vec![below(&roots.dlq)?],
    ));
    declaration.unstored.push(Placement {
        event_type: "(every ephemeral type)".to_owned(),
        filter: below(&roots.live)?,
    });
    Ok(declaration)
}
