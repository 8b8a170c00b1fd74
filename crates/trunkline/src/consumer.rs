//! Durable consumers: what they are told, and the members that run them.
//!
//! A consumer is a durable name; a member is one running instance of it. Members share the
//! consumer's events: by key, each key in order, or each event to whoever is free. What fails leaves the
//! main flow in both, and goes on in records of the state bucket.

mod dead_letters;
mod declared;
mod handle;
mod hold;
mod idempotent;
mod leased;
mod operate;
mod ordered;
pub(crate) mod outputs;
pub(crate) mod partitions;
mod policy;
mod pool;
mod receiver;
mod retry;
mod settings;
mod turn;
mod untyped;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use smol_str::SmolStr;
use tokio::sync::watch;
use tokio::task::JoinSet;
use trunkline_core::engine::Position;
use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

use crate::bus::Bus;
use crate::event::{Class, Event, Stored};
use crate::failure::Classify;
use crate::handler::{Handler, Handles, RawHandler, RawRegistration, Registered, Registration};
use crate::layer::HandleLayer;
use hold::Holding;
use idempotent::Idempotent;
use ordered::Ordered;

pub use crate::failure::{Panicked, TimedOut};
pub use declared::{Declare, Declared};
pub use handle::{ConsumerHandle, StopReport};
use handle::{Control, check_window, supervise};
pub use idempotent::Idempotency;
pub(crate) use idempotent::idempotency_key;
pub use operate::{Beside, ConsumerStatus, Divided, MemberStatus, WaitingFor};
pub use policy::{Breaker, Counters, Policy, Verdict};
pub use pool::{BreakerState, Health, Stuck};
pub use receiver::{Receiver, Work};
#[cfg(feature = "config")]
pub(crate) use retry::LONGEST_DELAY;
pub use retry::Retry;
pub use settings::ConsumerSettings;
pub(crate) use settings::Consumers;
use untyped::Wanted;

/// The events that a member holds at most by itself, however few run at once.
const MIN_WINDOW: usize = 256;
/// The most events that a member may be told to hold; no more of a consumer are under a lease at once.
pub(crate) const MAX_WINDOW: usize = 20_000;
/// The most bytes that a member may be told to hold.
pub(crate) const MAX_WINDOW_BYTES: usize = 1 << 30;

/// A durable consumer to be, made by [`Bus::consumer`].
///
/// By default: from the first stored event, 16 at once, 5 attempts (see [`Retry`]) of 5 minutes at
/// most, then a dead letter; a pause when half of the runs fail (see [`Breaker`]); a lease of 30 s,
/// renewed.
#[must_use = "a consumer does nothing until it is started"]
pub struct Consumer {
    bus: Bus,
    name: String,
    handlers: Vec<Arc<dyn Registered>>,
    raw: Vec<RawRegistration>,
    dead_letters: Vec<Arc<dyn Handles>>,
    layers: Vec<Arc<dyn HandleLayer>>,
    from: Position,
    concurrency: usize,
    window_events: Option<usize>,
    window_bytes: usize,
    partitions: Option<u16>,
    policy: Policy,
    ack_wait: Duration,
    sharing: Sharing,
    holding: Holding,
    idempotency: Idempotency,
    /// Whether runs wait for somebody whom no time-out could cancel.
    is_untimed: bool,
}

/// How members are to share the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// By key where there are keys.
    ByType,
    /// By key, or not at all.
    Ordered,
    /// Whoever is free.
    Unordered,
}

impl Consumer {
    pub(crate) fn new(bus: Bus, name: String) -> Self {
        let mut consumer = Self {
            layers: bus.inner.handle_layers.clone(),
            bus,
            name,
            handlers: Vec::new(),
            raw: Vec::new(),
            dead_letters: Vec::new(),
            from: Position::First,
            concurrency: 1,
            window_events: None,
            window_bytes: 0,
            partitions: None,
            policy: Policy::default(),
            ack_wait: Duration::ZERO,
            sharing: Sharing::ByType,
            holding: Holding::No,
            idempotency: Idempotency::Off,
            is_untimed: false,
        };
        consumer.change(&ConsumerSettings::built_in());
        let defaults = Arc::clone(&consumer.bus.inner.settings.consumers.defaults);
        consumer.change(&defaults);
        consumer.holding = consumer.holding.where_ordered();
        consumer.with_default_partitions()
    }

    /// Changes what is said and leaves the rest.
    fn change(&mut self, said: &ConsumerSettings) {
        self.from = said.start.unwrap_or(self.from);
        self.concurrency = said.concurrency.unwrap_or(self.concurrency);
        self.window_events = said.window_events.unwrap_or(self.window_events);
        self.window_bytes = said.window_bytes.unwrap_or(self.window_bytes);
        self.partitions = said.partitions.or(self.partitions);
        self.ack_wait = said.ack_wait.unwrap_or(self.ack_wait);
        self.idempotency = said.idempotency.unwrap_or(self.idempotency);
        self.holding = said.hold_key.map_or(self.holding, Holding::said);
        self.policy.change(said);
    }

    /// Handles a type of event with an async function; call it once for each type.
    pub fn on<Args: 'static, H>(mut self, handler: H) -> Self
    where
        H: Handler<Args>,
        <H::Event as Event>::Delivery: Stored,
    {
        self.handlers.push(Arc::new(Registration::new(handler)));
        self
    }

    /// Handles every durable event that the filter matches, whatever its type, with an async function
    /// that gets it as it came. The filter is over the types' subjects, without the root; call it
    /// once for each filter.
    ///
    /// A handler of the event's own type goes before it, and of two filters that match the one that
    /// was given first. Events of one key are handled one after another, unless the consumer is
    /// [`unordered`](Self::unordered); an event without a key waits for no other.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use trunkline::{Attempt, Bus, Filter, Incoming};
    ///
    /// async fn archive(event: Arc<Incoming>, Attempt(attempt): Attempt) {
    ///     println!("{} at attempt {attempt}", event.envelope.event_type());
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> trunkline::Result<()> {
    /// let bus = Bus::connect("memory:").await?;
    /// let orders = Filter::new("order.>")?;
    /// bus.consumer("archive").on_raw(orders, archive).start().await?;
    /// # bus.close().await
    /// # }
    /// ```
    pub fn on_raw<Args: 'static>(mut self, filter: Filter, handler: impl RawHandler<Args>) -> Self {
        self.raw.push(RawRegistration::new(filter, handler));
        self
    }

    /// Where it starts when it is made: at the first stored event unless set. Later starts go on
    /// where it was.
    pub fn from(mut self, from: Position) -> Self {
        self.from = from;
        self
    }

    /// How many handlers run at once in this member, for each stream that it reads. 16 unless set.
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// Gives up the order of keys: every event goes to whichever member is free, as those of types
    /// without a key do.
    pub fn unordered(mut self) -> Self {
        self.sharing = Sharing::Unordered;
        self
    }

    /// Insists on the order of keys, which types with a key have anyhow: a consumer that cannot keep
    /// it does not start.
    pub fn ordered(mut self) -> Self {
        self.sharing = Sharing::Ordered;
        self
    }

    /// How many events this member holds at most, those that run included. Unless set: 256, or twice
    /// the concurrency if that is more; in key order 2 048 of each partition that the member owns.
    pub fn window_events(mut self, events: usize) -> Self {
        self.window_events = Some(events);
        self
    }

    /// How many bytes the events that this member holds have at most. 16 MiB unless set; an event that
    /// is larger than that is held alone.
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.window_bytes = bytes;
        self
    }

    /// What becomes of events whose handlers fail, in place of what was said before. The methods
    /// below change parts of it.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// How often and when a failed event is tried again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.policy = self.policy.retry(retry);
        self
    }

    /// How often and when an event is tried again that failed with an error of this type; see
    /// [`Policy::retry_for`].
    pub fn retry_for<E: std::error::Error + 'static>(mut self, retry: Retry) -> Self {
        self.policy = self.policy.retry_for::<E>(retry);
        self
    }

    /// How long a handler may run: 5 minutes unless set, `None` for ever. After that it is cancelled
    /// at its next await, and the event is tried again by the policy. It does not bound how long a
    /// [`receiver`](Consumer::receiver) may hold an event.
    pub fn time_out(mut self, time_out: impl Into<Option<Duration>>) -> Self {
        self.policy = self.policy.time_out(time_out);
        self
    }

    /// When this member stops for a while because too much fails; `None` for never.
    pub fn breaker(mut self, breaker: impl Into<Option<Breaker>>) -> Self {
        self.policy = self.policy.breaker(breaker);
        self
    }

    /// Lets runs take as long as they take, whatever the policy says.
    fn untimed(mut self) -> Self {
        self.is_untimed = true;
        self
    }

    /// How long the engine waits for a member that went silent before its events go to others.
    /// 30 s unless set; a live member renews in time. Members of one consumer share the
    /// longest that any of them was started with.
    pub fn ack_wait(mut self, ack_wait: Duration) -> Self {
        self.ack_wait = ack_wait;
        self
    }

    /// Handles an event that comes twice once: one that this consumer has done within `ttl` is
    /// acknowledged unseen. An event is known by its source and id together. Off unless set, here, by
    /// [`Connect::idempotent`](crate::Connect::idempotent) or by the configuration.
    ///
    /// Every event leaves a key in the bus's state for that long, and costs two small writes. It must be
    /// no shorter than all attempts of an event may take, and at most 30 days. What crashes after its
    /// effect and before its key was written runs again; where that matters, store
    /// [`Context::idempotency_key`](crate::Context::idempotency_key) with the effect.
    pub fn idempotent(mut self, ttl: Duration) -> Self {
        self.idempotency = Idempotency::For(ttl);
        self
    }

    /// Runs every event that is delivered, whatever the bus says of every consumer.
    pub fn not_idempotent(mut self) -> Self {
        self.idempotency = Idempotency::Off;
        self
    }

    /// Lets errors of this type, anywhere in a chain of causes, say what is to become of the event.
    pub fn classify<F: Classify>(mut self) -> Self {
        self.policy = self.policy.classify::<F>();
        self
    }

    /// Puts a layer around the handlers of this consumer, inside those of the bus.
    pub fn layer(mut self, layer: impl HandleLayer) -> Self {
        self.layers.push(Arc::new(layer));
        self
    }

    /// Starts a member of the consumer, making the consumer first if there is none.
    ///
    /// The bus owns it: dropping the handle does not stop it.
    ///
    /// # Errors
    /// [`ErrorKind::NoHandler`], [`ErrorKind::MissingState`], [`ErrorKind::InvalidName`],
    /// [`ErrorKind::InvalidConfig`] and others for what can never work;
    /// [`ErrorKind::Overlap`] when another consumer has the same commands already.
    pub async fn start(self) -> Result<ConsumerHandle> {
        self.start_with(None).await
    }

    /// Starts a member and receives its events of one type in a loop, in place of handlers.
    ///
    /// # Errors
    /// Those of [`start`](Consumer::start).
    pub async fn receiver<E: Event>(self) -> Result<Receiver<E>>
    where
        E::Delivery: Stored,
    {
        Receiver::start(self).await
    }

    async fn start_with(mut self, on_gap: Option<GapObserver>) -> Result<ConsumerHandle> {
        let name = Name::new(&self.name)?;
        // What the configuration says of this very consumer goes before what the code says, so
        // that operators need no build to change it.
        let named = self.bus.inner.settings.consumers.named.get(&name).cloned();
        if let Some(said) = named {
            self.change(&said);
        }
        if self.is_untimed {
            self.policy = self.policy.time_out(None);
        }
        self.check(&name)?;
        let mut handlers = BTreeMap::new();
        let mut wanted: BTreeMap<Name, Wanted> = BTreeMap::new();
        for handler in &self.handlers {
            handler.check(&self.bus)?;
            let info = handler.info()?;
            let filter = info.filter.below(self.bus.inner.root(info.class))?;
            let stream = self.bus.inner.stream_of(&filter).ok_or_else(|| {
                Error::new(
                    ErrorKind::NotStored,
                    format!("no stream stores {:?}", info.event_type),
                )
            })?;
            let wanted = wanted.entry(stream.clone()).or_default();
            wanted.filters.push(filter);
            if info.keyed && info.class == Class::Command {
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!(
                        "consumer {name} handles the command {:?}, which has a key: whoever is free handles a command, \
                         in no order; take the key away, or make it an event",
                        info.event_type
                    ),
                ));
            }
            let has_order = info.keyed && info.class == Class::Durable;
            if self.sharing == Sharing::Ordered && !has_order {
                return Err(Error::new(
                    ErrorKind::InvalidConfig,
                    format!(
                        "consumer {name} is to keep the order of keys, and {:?} has no key; give the type a key, or \
                         give it a consumer of its own",
                        info.event_type
                    ),
                ));
            }
            wanted.ordered |= has_order && self.sharing != Sharing::Unordered;
            if handlers
                .insert(SmolStr::from(info.event_type.as_str()), Arc::clone(handler))
                .is_some()
            {
                return Err(Error::new(
                    ErrorKind::NoHandler,
                    format!(
                        "consumer {name} has two handlers for {:?}; give it one",
                        info.event_type
                    ),
                ));
            }
        }
        let raw = self.want_raw(&mut wanted)?;
        let dead_letters = self.want_dead_letters(&name, &mut wanted)?;
        let hold_key = self.holds_keys(&name, &wanted)?;
        let duplicates = Arc::new(AtomicU64::new(0));
        let idempotent = match self.idempotency {
            Idempotency::Off => None,
            Idempotency::For(ttl) => {
                let counted = Arc::clone(&duplicates);
                let made = Idempotent::new(&self.bus, &name, ttl, self.ack_wait, counted);
                Some(made.await?)
            }
        };
        let shared = Arc::new(Shared {
            bus: self.bus.clone(),
            name: name.clone(),
            handlers,
            raw,
            dead_letters,
            layers: std::mem::take(&mut self.layers),
            policy: self.policy.clone(),
            idempotent,
            on_gap,
            hold_key,
            unburied: AtomicUsize::new(0),
        });
        let control = watch::Sender::new(Control {
            stop: None,
            concurrency: self.concurrency,
            window_events: self.window_events,
            window_bytes: self.window_bytes,
        });
        let (mut parts, mut vitals) = (JoinSet::new(), Vec::new());
        for (stream, Wanted { filters, ordered }) in wanted {
            let intake = match ordered {
                true => None,
                false => Some(self.open(&name, &stream, &filters).await?),
            };
            let (shared, control) = (Arc::clone(&shared), control.subscribe());
            let made = (self.from, self.partitions);
            let member = Ordered::join(shared, stream, &filters, made, control, intake).await?;
            vitals.push(member.vitals());
            parts.spawn(member.run());
        }
        let (report, ended) = watch::channel(None);
        let control = Arc::new(control);
        let told = (report, self.bus.inner.failed.clone());
        tokio::spawn(supervise(parts, name.clone(), Arc::clone(&control), told));
        let handle = ConsumerHandle {
            name,
            control,
            vitals: vitals.into(),
            ended,
            duplicates,
            drain_deadline: self.bus.inner.settings.drain_deadline,
        };
        let mut running = self.bus.inner.consumers.lock();
        running.retain(ConsumerHandle::is_running);
        running.push(handle.clone());
        drop(running);
        Ok(handle)
    }

    fn check(&self, name: &Name) -> Result<()> {
        let refuse = |kind, fault: &str| Err(Error::new(kind, format!("consumer {name} {fault}")));
        if self.handlers.is_empty() && self.raw.is_empty() && self.dead_letters.is_empty() {
            return refuse(
                ErrorKind::NoHandler,
                "has no handler; give it one with `.on(handler)`",
            );
        }
        if name.as_str() == ordered::CONTROL {
            return refuse(
                ErrorKind::InvalidName,
                "has a name that the records of all consumers begin with; choose another",
            );
        }
        if self.concurrency == 0 || self.concurrency > 10_000 {
            return refuse(
                ErrorKind::InvalidConfig,
                "must run between 1 and 10 000 handlers at once",
            );
        }
        if self.ack_wait > Duration::from_secs(24 * 60 * 60) {
            return refuse(
                ErrorKind::InvalidConfig,
                "has an ack wait of more than a day",
            );
        }
        if self.ack_wait < Duration::from_secs(1) {
            return refuse(
                ErrorKind::InvalidConfig,
                "has an ack wait below 1 s, which leaves no time to renew leases",
            );
        }
        let idempotency = match self.idempotency {
            Idempotency::Off => Ok(()),
            Idempotency::For(ttl) => idempotent::check(ttl, &self.policy),
        };
        check_window(self.window_events, self.window_bytes)
            .and(self.partitions.map_or(Ok(()), partitions::check))
            .and_then(|()| self.policy.check())
            .and(idempotency)
            .map_err(|error| error.at(format!("consumer {name}")))
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("name", &self.name)
            .field(
                "handlers",
                &(self.handlers.len() + self.raw.len() + self.dead_letters.len()),
            )
            .field("concurrency", &self.concurrency)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

type GapObserver = Box<dyn Fn(&Name, trunkline_core::engine::Gap) + Send + Sync>;

/// What the parts of one member have in common.
struct Shared {
    bus: Bus,
    name: Name,
    handlers: BTreeMap<SmolStr, Arc<dyn Registered>>,
    /// Of whatever type; the filters with the root.
    raw: Vec<(Filter, Arc<dyn Handles>)>,
    /// Of dead letters.
    dead_letters: Option<Arc<dyn Handles>>,
    layers: Vec<Arc<dyn HandleLayer>>,
    policy: Policy,
    idempotent: Option<Idempotent>,
    on_gap: Option<GapObserver>,
    /// Whether what follows a dead letter of its key waits for it.
    hold_key: bool,
    /// Dead letters that cannot be stored at the moment.
    unburied: AtomicUsize,
}

impl Shared {
    /// Whether what is given up can be stored. While it cannot, nothing is read that might be given up.
    fn buries(&self) -> bool {
        self.unburied.load(Ordering::Relaxed) == 0
    }
}
