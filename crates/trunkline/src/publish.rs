//! Publishing what is stored, emitting what is not.

mod hand_over;

use std::future::{Future, IntoFuture, Ready, ready};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

use smol_str::SmolStr;
use trunkline_core::engine::{Route, Seq};
use trunkline_core::envelope::ValueType;
use trunkline_core::error::Cause;
use trunkline_core::{
    Attribute, Data, Envelope, Error, ErrorKind, EventId, Headers, Name, Result, SharedValue,
    Subject, Timestamp,
};

use crate::bus::{Bus, Inner};
use crate::consumer::outputs::Said;
use crate::event::{Class, Event, EventInfo, Stored, Unstored};
use crate::extract::Meta;
use crate::handler::Delivered;

pub(crate) use hand_over::{send_all, send_prepared};

use hand_over::SendOne;

/// The most bytes that a key may have.
pub(crate) const MAX_KEY_BYTES: usize = 256;

/// Where a stored event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Its id.
    pub id: EventId,
    /// The stream that stores it.
    pub stream: Name,
    /// Its place in there.
    pub seq: Seq,
    /// Whether this id had been stored before and was not stored again.
    pub duplicate: bool,
}

/// What became of one event of a batch.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Published {
    /// Stored, and as durable as the engine promises.
    Stored(Receipt),
    /// Sent to whoever listens; it is not stored.
    Sent(EventId),
    /// Certainly not stored. The error has the event's id.
    Refused(Error),
    /// Perhaps stored. The error has the event's id: publish again with it.
    Unknown(Error),
}

impl Published {
    /// The receipt of a stored event.
    ///
    /// # Errors
    /// The error of one that was refused or is unknown; [`ErrorKind::WrongVerb`] for one that was sent.
    pub fn stored(self) -> Result<Receipt> {
        match self {
            Published::Stored(receipt) => Ok(receipt),
            Published::Refused(error) | Published::Unknown(error) => Err(error),
            Published::Sent(id) => Err(Error::new(
                ErrorKind::WrongVerb,
                "the event is ephemeral: it was sent, not stored",
            )
            .about(id)),
        }
    }
}

/// An event on its way out, as layers see it.
#[derive(Debug)]
pub struct Outgoing {
    /// The event; `Arc::make_mut` changes it, and copies nothing while nobody else has it.
    pub envelope: Arc<Envelope>,
    /// Headers beside it.
    pub headers: Headers,
    pub(crate) subject: Subject,
    pub(crate) stream: Option<Name>,
    pub(crate) is_output: bool,
}

impl Outgoing {
    /// Where it goes, root included.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The stream that will store it; none for an ephemeral event.
    pub fn stream(&self) -> Option<&Name> {
        self.stream.as_ref()
    }

    /// Whether a handler staged it through its context.
    pub fn is_output(&self) -> bool {
        self.is_output
    }
}

/// Where the events of one type go, looked up once.
pub(crate) struct Destination {
    info: EventInfo,
    event_type: SmolStr,
    stream: Option<Name>,
    /// Root included, if every event of the type has the same.
    subject: Option<Subject>,
    route: Option<Arc<dyn Route>>,
}

impl Destination {
    pub(crate) fn new(inner: &Inner, info: EventInfo, literal: Option<Subject>) -> Result<Self> {
        let root = inner.root(info.class);
        let filter = info.filter.below(root)?;
        let stream = match (info.class, inner.stream_of(&filter)) {
            (Class::Ephemeral, None) => None,
            (Class::Ephemeral, Some(stream)) => {
                return Err(Error::new(
                    ErrorKind::Overlap,
                    format!(
                        "ephemeral type {:?} on {filter} would be stored by stream {stream}",
                        info.event_type
                    ),
                ));
            }
            (_, Some(stream)) => Some(stream.clone()),
            (_, None) => {
                return Err(Error::new(
                    ErrorKind::NotStored,
                    format!(
                        "no stream stores the events of {:?} on {filter}; give one a filter that covers it",
                        info.event_type
                    ),
                ));
            }
        };
        let subject = literal.map(|subject| subject.below(root)).transpose()?;
        let route = subject
            .as_ref()
            .filter(|_| stream.is_none())
            .map(|subject| inner.engine.live().route(subject));
        Ok(Self {
            event_type: info.event_type.as_str().into(),
            info,
            stream,
            subject,
            route,
        })
    }

    pub(crate) fn info(&self) -> &EventInfo {
        &self.info
    }

    pub(crate) fn stream(&self) -> Option<&Name> {
        self.stream.as_ref()
    }

    fn outgoing<E: Event>(
        &self,
        inner: &Inner,
        event: Arc<E>,
        options: Options,
    ) -> Result<Outgoing> {
        let subject = match &self.subject {
            Some(subject) => subject.clone(),
            None => E::SUBJECT
                .subject(&*event)?
                .below(inner.root(self.info.class))?,
        };
        let Options {
            id,
            key,
            time,
            correlation,
            headers,
            rare,
            fault,
        } = options;
        if let Some(fault) = fault {
            return Err(fault);
        }
        check_headers(&headers)?;
        let key = match key.or_else(|| event.key().map(SmolStr::from)) {
            Some(key) => Some(checked_key(key)?),
            None => None,
        };
        let now = inner.clock.now();
        let mut envelope = Arc::new(Envelope::root(
            id.unwrap_or_else(|| EventId::generate(now)),
            inner.settings.source.clone(),
            self.event_type.clone(),
            time.unwrap_or(now),
            self.info.version,
            key,
            Data::Value(SharedValue::new(
                event,
                const { &ValueType::of::<E>(encode::<E>) },
            )),
        ));
        if correlation.is_some() || rare.is_some() {
            let mut own = Arc::unwrap_or_clone(envelope);
            if let Some(id) = correlation {
                own = own.with_correlation(id);
            }
            if let Some(set) = rare {
                own = set(own)?;
            }
            envelope = Arc::new(own);
        }
        Ok(Outgoing {
            envelope,
            headers,
            subject,
            stream: self.stream.clone(),
            is_output: false,
        })
    }
}

pub(crate) fn checked_key(key: SmolStr) -> Result<SmolStr> {
    if key.len() <= MAX_KEY_BYTES {
        return Ok(key);
    }
    let message = format!(
        "a key has {} bytes, the limit is {MAX_KEY_BYTES}",
        key.len()
    );
    Err(Error::new(ErrorKind::OverLimit, message))
}

/// Refuses headers that have a meaning on the wire, where they would change how an event is read.
pub(crate) fn check_headers(headers: &Headers) -> Result<()> {
    let reserved = |name: &str| {
        let name = name.to_ascii_lowercase();
        name == "content-type"
            || ["ce-", "nats-", "trunkline-"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
    };
    match headers.iter().find(|(name, _)| reserved(name)) {
        None => Ok(()),
        Some((name, _)) => Err(Error::new(
            ErrorKind::InvalidHeader,
            format!(
                "header {name:?} is reserved: `content-type`, `ce-`, `nats-` and `trunkline-` have a meaning of their own"
            ),
        )),
    }
}

fn encode<E: Event>(
    value: &(dyn std::any::Any + Send + Sync),
    out: &mut Vec<u8>,
) -> Result<(), Cause> {
    match value.downcast_ref::<E>() {
        Some(event) => serde_json::to_writer(out, event).map_err(Into::into),
        None => Err("the shared value has another type".into()), // `SharedValue::new` pairs the two.
    }
}

#[derive(Default)]
struct Options {
    id: Option<EventId>,
    key: Option<SmolStr>,
    time: Option<Timestamp>,
    correlation: Option<EventId>,
    headers: Headers,
    /// What most events do not have, one step after another.
    rare: Option<Box<dyn FnOnce(Envelope) -> Result<Envelope> + Send>>,
    fault: Option<Error>,
}

/// An event about to be published or emitted: set what it should carry, then await it.
///
/// Made by [`Bus::publish`] and [`Bus::emit`], and to be sent later by those of
/// [`Context`](crate::Context).
#[must_use = "nothing is sent until it is awaited"]
pub struct Sending<E, V> {
    bus: Bus,
    event: Arc<E>,
    options: Options,
    verb: V,
}

/// The verb of [`Bus::publish`].
#[derive(Debug)]
pub struct Publish;

/// The verb of [`Bus::emit`].
#[derive(Debug)]
pub struct Emit;

/// The verb of [`Context::publish`](crate::Context::publish) and of
/// [`Context::emit`](crate::Context::emit).
#[derive(Debug)]
pub struct Stage {
    delivered: Delivered,
}

impl<E: Event, V> Sending<E, V> {
    fn new(bus: &Bus, event: E, verb: V) -> Self {
        Self {
            bus: bus.clone(),
            event: Arc::new(event),
            options: Options::default(),
            verb,
        }
    }

    /// Adds a header beside the event.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        if let Err(error) = self.options.headers.add(name, value) {
            self.options.fault.get_or_insert(error);
        }
        self
    }

    /// Sets the id; a repeat with the same id within the duplicate window is stored once.
    pub fn id(mut self, id: EventId) -> Self {
        self.options.id = Some(id);
        self
    }

    /// Sets the key in place of the one that the type gives.
    pub fn key(mut self, key: impl Into<SmolStr>) -> Self {
        self.options.key = Some(key.into());
        self
    }

    /// Sets when it happened; now unless set.
    pub fn time(mut self, time: Timestamp) -> Self {
        self.options.time = Some(time);
        self
    }

    /// Sets the correlation id; an event correlates with itself unless set.
    pub fn correlation(mut self, id: EventId) -> Self {
        self.options.correlation = Some(id);
        self
    }

    /// Says that handling another event led to this one: that is its cause, and what that
    /// correlates with, this does too.
    pub fn caused_by(self, cause: &Meta) -> Self {
        self.caused_by_event(cause)
    }

    fn caused_by_event(mut self, cause: &Envelope) -> Self {
        let id = cause.id().clone();
        self.options.correlation = Some(cause.correlation().unwrap_or(&id).clone());
        self.set(move |envelope| Ok(envelope.with_causation(id)))
    }

    /// Sets the CloudEvents `subject`: what within the source the event is about.
    pub fn subject(self, subject: impl Into<SmolStr>) -> Self {
        let subject = subject.into();
        self.set(move |envelope| Ok(envelope.with_subject(subject)))
    }

    /// Sets an attribute of one's own: a name of 1 to 20 characters of `a-z 0-9`.
    pub fn attribute(self, name: impl Into<String>, value: Attribute) -> Self {
        let name = name.into();
        self.set(move |envelope| envelope.with_extension(&name, value))
    }

    fn set(mut self, step: impl FnOnce(Envelope) -> Result<Envelope> + Send + 'static) -> Self {
        self.options.rare = Some(match self.options.rare.take() {
            Some(before) => Box::new(|envelope| step(before(envelope)?)),
            None => Box::new(step),
        });
        self
    }

    async fn run(self) -> Result<Published> {
        let destination = self.bus.destination::<E>()?;
        let prepared = destination.outgoing(&self.bus.inner, self.event, self.options);
        SendOne::new(&self.bus.inner, destination.route.as_deref(), prepared).await
    }
}

impl<E: Event> Sending<E, Stage> {
    pub(crate) fn staged(delivered: &Delivered, event: E) -> Self {
        let verb = Stage {
            delivered: delivered.clone(),
        };
        Self::new(delivered.bus(), event, verb).caused_by_event(&delivered.incoming().envelope)
    }

    fn stage(self) -> Result<EventId> {
        let said = Said {
            id: self.options.id.is_some(),
            time: self.options.time.is_some(),
        };
        let destination = self.bus.destination::<E>()?;
        let outgoing = destination.outgoing(&self.bus.inner, self.event, self.options)?;
        let delivered = &self.verb.delivered;
        let outputs = &delivered.outputs;
        outputs.stage(delivered.consumer(), delivered.incoming(), outgoing, said)
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

impl<E: Event> IntoFuture for Sending<E, Publish> {
    type Output = Result<Receipt>;
    type IntoFuture = Answer<Receipt>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.run().await?.stored() })
    }
}

impl<E: Event> IntoFuture for Sending<E, Emit> {
    type Output = Result<EventId>;
    type IntoFuture = Answer<EventId>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { sent(self.run().await?) })
    }
}

impl<E: Event> IntoFuture for Sending<E, Stage> {
    type Output = Result<EventId>;
    type IntoFuture = Ready<Result<EventId>>;

    fn into_future(self) -> Self::IntoFuture {
        ready(self.stage())
    }
}

fn sent(published: Published) -> Result<EventId> {
    match published {
        Published::Sent(id) => Ok(id),
        Published::Stored(receipt) => Err(Error::new(
            ErrorKind::WrongVerb,
            "the event is durable: it was stored, not sent",
        )
        .about(receipt.id)),
        Published::Refused(error) | Published::Unknown(error) => Err(error),
    }
}

impl Bus {
    /// Publishes a durable event or a command. `Ok` means stored.
    ///
    /// # Errors
    /// With the event's id: [`ErrorKind::TooLarge`], [`ErrorKind::StreamFull`] and others mean
    /// that it is not stored; [`ErrorKind::TimedOut`] that it may be, so publish again with that id.
    ///
    /// # Cancel safety
    /// Dropped while it is awaited, the event is stored or not stored, never half.
    pub fn publish<E: Event>(&self, event: E) -> Sending<E, Publish>
    where
        E::Delivery: Stored,
    {
        Sending::new(self, event, Publish)
    }

    /// Emits an ephemeral event to whoever listens now. Nobody may.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`], [`ErrorKind::Closed`] and those of encoding.
    ///
    /// # Cancel safety
    /// Dropped while it is awaited, the event is sent or not sent, never half.
    pub fn emit<E: Event>(&self, event: E) -> Sending<E, Emit>
    where
        E::Delivery: Unstored,
    {
        Sending::new(self, event, Emit)
    }

    /// Publishes events in order; each has its own outcome, in its place. When one is not stored,
    /// later ones of its key are refused, so that the key's order holds; others are unharmed.
    ///
    /// # Errors
    /// Only when none could be tried: [`ErrorKind::Closed`], [`ErrorKind::NotStored`] and the like.
    pub async fn publish_batch<E: Event>(
        &self,
        events: impl IntoIterator<Item = E>,
    ) -> Result<Vec<Published>>
    where
        E::Delivery: Stored,
    {
        self.publisher::<E>()?.publish_batch(events).await
    }
}

/// The resolved way for events of one type; made by [`Bus::publisher`].
pub struct Publisher<E> {
    bus: Bus,
    destination: Arc<Destination>,
    event: PhantomData<fn(E)>,
}

impl<E> Clone for Publisher<E> {
    fn clone(&self) -> Self {
        Self {
            bus: self.bus.clone(),
            destination: Arc::clone(&self.destination),
            event: PhantomData,
        }
    }
}

impl<E: Event> Publisher<E> {
    pub(crate) fn new(bus: Bus, destination: Arc<Destination>) -> Self {
        Self {
            bus,
            destination,
            event: PhantomData,
        }
    }

    /// As [`Bus::publish`].
    ///
    /// # Errors
    /// Those of [`Bus::publish`].
    pub fn publish(&self, event: E) -> impl Future<Output = Result<Receipt>> + Send
    where
        E::Delivery: Stored,
    {
        let sending = self.send(event);
        async { sending.await?.stored() }
    }

    /// As [`Bus::emit`].
    ///
    /// # Errors
    /// Those of [`Bus::emit`].
    pub fn emit(&self, event: E) -> impl Future<Output = Result<EventId>> + Send
    where
        E::Delivery: Unstored,
    {
        let sending = self.send(event);
        async { sent(sending.await?) }
    }

    fn send(&self, event: E) -> SendOne<'_> {
        // Shared before the future exists, so that the value is moved once and not from state to
        // state.
        let prepared =
            self.destination
                .outgoing(&self.bus.inner, Arc::new(event), Options::default());
        SendOne::new(&self.bus.inner, self.destination.route.as_deref(), prepared)
    }

    /// As [`Bus::publish_batch`].
    ///
    /// # Errors
    /// Those of [`Bus::publish_batch`].
    pub async fn publish_batch(&self, events: impl IntoIterator<Item = E>) -> Result<Vec<Published>>
    where
        E::Delivery: Stored,
    {
        let outgoing = |event| {
            self.destination
                .outgoing(&self.bus.inner, Arc::new(event), Options::default())
        };
        let prepared = events.into_iter().map(outgoing).collect();
        Ok(send_prepared(&self.bus.inner, prepared).await)
    }
}
