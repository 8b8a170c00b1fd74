//! Connecting: a URL, some options, and a topology that is checked before the first event.

mod declared;
mod engine;
#[cfg(feature = "log")]
mod file;
mod nats;

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use trunkline_core::engine::{Change, Engine, Fact, LinkOptions, Reach, StreamSpec};
use trunkline_core::plan::{Growth, Plan, Roots};
use trunkline_core::wire::Legacy;
use trunkline_core::{Clock, Error, ErrorKind, Name, Result, SystemClock};

pub use nats::Nats;

use crate::bus::{Bus, Catalogue};
use crate::consumer::{Consumers, Idempotency};
use crate::event::Event;
use crate::layer::{HandleLayer, PublishLayer};
use crate::lifecycle::log_link;
use crate::raw::Decoding;
use crate::topology::Topology;

pub(crate) use declared::{BUCKET, DEAD_LETTERS, Declared, checked_source, roots};
#[cfg(feature = "config")]
pub(crate) use declared::{COMMANDS, EVENTS, default_stream};

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
    legacy: Vec<Legacy>,
    link: LinkOptions,
    nats: Nats,
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
    /// Where consumers keep what they know of their events.
    pub(crate) bucket: Name,
    /// The copies that each stream should have, on an engine that could make some.
    pub(crate) copies: BTreeMap<Name, usize>,
    /// What consumers were told by the configuration.
    pub(crate) consumers: Consumers,
    /// How what comes is read.
    pub(crate) decoding: Arc<Decoding>,
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
            legacy: Vec::new(),
            link: LinkOptions::default(),
            nats: Nats::default(),
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

    /// Envelopes from before CloudEvents that are read as well, each message in the first of these forms
    /// that it has: for streams that other programs fill. None unless set, and then such a message is
    /// no event. What is published is a CloudEvent whatever this says.
    pub fn legacy(mut self, forms: impl IntoIterator<Item = Legacy>) -> Self {
        self.legacy = forms.into_iter().collect();
        self
    }

    /// How patiently an engine over a network connects, asks and connects again.
    /// [`LinkOptions::default`] unless set.
    pub fn link(mut self, link: LinkOptions) -> Self {
        self.link = link;
        self
    }

    /// Who to be at a NATS server, and how to reach it. What the URL says of a user goes before it;
    /// other engines do not look at it.
    pub fn nats(mut self, nats: Nats) -> Self {
        self.nats = nats;
        self
    }

    /// What consumers are told besides what the code says.
    #[cfg(feature = "config")]
    pub(crate) fn consumers(mut self, consumers: Consumers) -> Self {
        self.consumers = consumers;
        self
    }

    /// Makes every consumer of the bus [idempotent](crate::Consumer::idempotent) that does not say
    /// otherwise itself.
    pub fn idempotent(mut self, ttl: Duration) -> Self {
        let defaults = Arc::make_mut(&mut self.consumers.defaults);
        defaults.idempotency = Some(Idempotency::For(ttl));
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

    /// Connects to look at, plan and change streams, in place of using them. Nothing is made or
    /// refused until it is asked for; what is declared here, by streams and by registered types, is
    /// what [`Topology::plan`] compares with.
    ///
    /// # Errors
    /// Those of [`Bus::connect`], but for those about streams that exist.
    pub async fn manage(self) -> Result<Topology> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let roots = roots(self.prefix.as_deref())?;
        let declared = Declared::new(&roots, self.streams, &self.catalogue, self.topology)?;
        let engine = self.target.open(&self.clock, self.link, &self.nats).await?;
        Ok(Topology::new(engine, declared))
    }

    async fn connect(self) -> Result<Bus> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let roots = roots(self.prefix.as_deref())?;
        let source = checked_source(&self.source)?;
        let declared = Declared::new(&roots, self.streams, &self.catalogue, self.topology)?;
        let engine = self.target.open(&self.clock, self.link, &self.nats).await?;
        let reach = engine.capabilities().reach;
        let found = engine.topology().inspect().await?;
        let (mut plan, mut streams) = declared.plan(&found, reach)?;
        let missing = missing(&plan, self.topology)?;
        let is_made = !missing.is_empty();
        engine.topology().apply(missing).await?;
        if is_made && reach == Reach::Network {
            // Whether there were hosts for the copies of what was made.
            plan = declared.plan(&engine.topology().inspect().await?, reach)?.0;
        }
        tell_growth(&plan);
        log_link(engine.link(), engine.name());
        let dead_letters = Name::new(DEAD_LETTERS)?;
        for state in found.streams {
            if !streams.iter().any(|spec| spec.name == state.spec.name) {
                streams.push(state.spec);
            }
        }
        streams.retain(|spec| spec.name != dead_letters);
        tracing::info!(
            engine = engine.name(),
            durability = ?engine.capabilities().durability,
            facts = ?one_line(&engine.facts()),
            source = %source,
            "connected to the bus"
        );
        let decoding = Arc::new(Decoding {
            legacy: self.legacy,
            roots: roots.clone(),
        });
        let settings = Settings {
            source,
            roots,
            listener_capacity: self.listener_capacity.max(1),
            drain_deadline: self.drain_deadline,
            dead_letters,
            bucket: Name::new(BUCKET)?,
            copies: declared.copies(reach),
            decoding,
            consumers: self.consumers,
        };
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

impl Target {
    async fn open(
        self,
        clock: &Arc<dyn Clock>,
        link: LinkOptions,
        nats: &Nats,
    ) -> Result<Arc<dyn Engine>> {
        match self {
            Target::Url(url) => engine::open(&url, clock, link, nats).await,
            Target::Engine(engine) => Ok(engine),
        }
    }
}

/// Facts for the log.
fn one_line(facts: &[Fact]) -> String {
    let fact = |fact: &Fact| format!("{}: {}", fact.name, fact.value);
    facts.iter().map(fact).collect::<Vec<_>>().join(", ")
}

impl IntoFuture for Connect {
    type Output = Result<Bus>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<Bus>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.connect())
    }
}

/// What is missing, to be made.
fn missing(plan: &Plan, mode: TopologyMode) -> Result<Vec<Change>> {
    if let Some(drift) = plan.drift().next() {
        let (name, rows) = (drift.name(), &drift.differences);
        let rows: Vec<String> = rows.iter().map(ToString::to_string).collect();
        let advice = match drift.is_ours() {
            true => "`trunkline topology plan` compares, `trunkline topology apply` changes it"
                .to_owned(),
            false => format!(
                "others made it, and `trunkline topology apply --adopt {name}` changes it all the same"
            ),
        };
        return Err(Error::new(
            ErrorKind::Drift,
            format!(
                "stream {name} exists and differs: {}; declare it as it is, or change it on purpose: {advice}",
                rows.join("; ")
            ),
        ));
    }
    if mode == TopologyMode::Verify
        && let Some(missing) = plan.changes.first()
    {
        return Err(Error::new(
            ErrorKind::NoSuchStream,
            format!("the topology is only to be verified, but this is missing: {missing:?}"),
        ));
    }
    Ok(plan.changes.clone())
}

/// Says which streams have fewer copies than they should. They work, so it is no error.
fn tell_growth(plan: &Plan) {
    for existing in plan.existing.iter().filter(|existing| existing.is_ours()) {
        if let Some(Growth { found, declared }) = existing.growth {
            tracing::warn!(
                "stream {} runs with {found} of {declared} copies; `trunkline topology apply` grows it once there are peers",
                existing.name()
            );
        }
    }
}
