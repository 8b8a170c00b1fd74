//! Handlers: plain async functions, the event first, then extractors.

mod untyped;

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use tokio::sync::watch;
use trunkline_core::engine::Boxed;
use trunkline_core::{Data, Envelope, Error, ErrorKind, Name, Result};

use crate::bus::Bus;
use crate::consumer::outputs::Outputs;
use crate::dead_letter::Buried;
use crate::event::{Event, EventInfo};
use crate::extract::FromDelivery;
use crate::failure::{Disposition, Failure};
use crate::raw::Incoming;

pub use untyped::{DeadLetterHandler, RawHandler};
pub(crate) use untyped::{RawRegistration, of_dead_letters};

/// An event on its way into a handler.
#[derive(Clone, Debug)]
pub struct Delivered {
    pub(crate) incoming: Arc<Incoming>,
    /// What a consumer gave up, where that is what is handled.
    pub(crate) dead_letter: Option<Arc<Buried>>,
    pub(crate) attempt: u32,
    pub(crate) epoch: Option<Epoch>,
    pub(crate) member: Arc<MemberContext>,
    pub(crate) outputs: Arc<Outputs>,
}

/// One ownership of a partition, by which a store tells its owner from a former one: it keeps the
/// highest epoch that it has seen and refuses writes of a lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// How often the consumer was reset.
    pub generation: u64,
    /// The revision at which the partition was claimed.
    pub revision: u64,
}

/// What is the same for every event of one member.
#[derive(Debug)]
pub(crate) struct MemberContext {
    pub(crate) consumer: Name,
    pub(crate) bus: Bus,
    /// How often the consumer was reset, where an event has no epoch that says so.
    pub(crate) generation: u64,
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Delivered {
    /// The event as it came.
    pub fn incoming(&self) -> &Arc<Incoming> {
        &self.incoming
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The consumer.
    pub fn consumer(&self) -> &Name {
        &self.member.consumer
    }

    /// The bus.
    pub fn bus(&self) -> &Bus {
        &self.member.bus
    }

    /// Under which ownership of its partition the event runs; none in a consumer that shares events
    /// without order.
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// How many durable events the handler has staged so far; they are stored after every layer has
    /// said Ok.
    pub fn outputs(&self) -> usize {
        self.outputs.durable()
    }

    /// How often the consumer was reset.
    pub(crate) fn generation(&self) -> u64 {
        self.epoch
            .map_or(self.member.generation, |epoch| epoch.generation)
    }

    pub(crate) async fn stopping(&self) {
        // An error means that the consumer is gone, which is as stopped as it gets.
        let _ = self
            .member
            .stopping
            .clone()
            .wait_for(|stopping| *stopping)
            .await;
    }
}

/// A function that handles events of one type.
///
/// It is async; its first argument is the event, as `E` or (free of decoding in memory) as
/// `Arc<E>`; up to seven more are extractors ([`FromDelivery`]); all are owned. It returns `()`
/// or `Result<(), F>`, where any error will do.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "not a handler",
    note = "a handler is an async fn: first the event (`E` or `Arc<E>`), then up to seven extractors \
            (`Context`, `State<T>`, `Meta`, `Attempt`, `Raw`), all owned, never references",
    note = "it returns `()` or `Result<(), F>` with any error `F`, and its future must be `Send`: \
            hold no `Rc`, `RefCell` borrow or std `MutexGuard` across an `.await`"
)]
pub trait Handler<Args>: Send + Sync + 'static {
    /// The type of event that it handles.
    type Event: Event;

    /// Runs it.
    fn call(&self, delivered: Delivered) -> Boxed<'static, Result<(), Failure>>;

    /// Whether a bus can ever give it what it asks for.
    ///
    /// # Errors
    /// Why not, and what to do.
    fn check(bus: &Bus) -> Result<()>;
}

/// The first argument of a handler.
#[diagnostic::on_unimplemented(
    message = "the first argument of a handler must be an event, not `{Self}`",
    label = "not an event",
    note = "take the event as `E` or `Arc<E>`, where `E` has `#[derive(Event)]`; extractors come after it"
)]
pub trait EventArgument: Sized + Send {
    /// The type of event.
    type Event: Event;

    /// Takes the event out of its envelope.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] when the data is not what the type expects.
    fn from_envelope(envelope: &Envelope) -> Result<Self>;
}

impl<E: Event> EventArgument for E {
    type Event = E;

    fn from_envelope(envelope: &Envelope) -> Result<Self> {
        match envelope.data() {
            Data::Value(value) => decode(value.encode()?.as_bytes(), envelope),
            _ => decode_data(envelope),
        }
    }
}

impl<E: Event> EventArgument for Arc<E> {
    type Event = E;

    fn from_envelope(envelope: &Envelope) -> Result<Self> {
        decode_shared(envelope)
    }
}

/// The event, shared if it is a value of this process, else decoded.
pub(crate) fn decode_shared<E: Event>(envelope: &Envelope) -> Result<Arc<E>> {
    match envelope.data() {
        Data::Value(value) => match value.downcast() {
            Some(event) => Ok(event),
            None => decode(value.encode()?.as_bytes(), envelope).map(Arc::new),
        },
        _ => decode_data(envelope).map(Arc::new),
    }
}

fn decode_data<E: Event>(envelope: &Envelope) -> Result<E> {
    match envelope.data() {
        // A unit struct is written as `null`, which a sender may as well leave out.
        Data::None => decode(b"null", envelope),
        // Also JSON that came without its media type, as other SDKs' binary mode sends it.
        data => decode(&data.to_bytes()?, envelope),
    }
}

fn decode<E: Event>(json: &[u8], envelope: &Envelope) -> Result<E> {
    serde_json::from_slice(json).map_err(|error| {
        let version = envelope
            .version()
            .map_or_else(String::new, |version| format!(" (version {version})"));
        Error::new(
            ErrorKind::Decode,
            format!(
                "the data of event {}{version} is not a {} of version {}",
                envelope.id(),
                E::TYPE,
                E::VERSION
            ),
        )
        .caused_by(error)
    })
}

/// A newer version that does not fit waits for a program that knows it; anything else never will.
fn undecodable<E: Event>(envelope: &Envelope, error: Error) -> Failure {
    match envelope.version() {
        Some(version) if version > E::VERSION => {
            Failure::new(Disposition::Transient, "unsupported_version", error)
        }
        _ => Failure::new(Disposition::Permanent, "undecodable", error),
    }
}

/// What a handler may return.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "not an outcome",
    note = "return `()` or `Result<(), F>`, where `F` is any error, a `String`, or `Failure`"
)]
pub trait Outcome {
    /// As a result.
    ///
    /// # Errors
    /// The handler's own.
    fn into_result(self) -> Result<(), Failure>;
}

impl Outcome for () {
    fn into_result(self) -> Result<(), Failure> {
        Ok(())
    }
}

impl<F: Into<Failure>> Outcome for Result<(), F> {
    fn into_result(self) -> Result<(), Failure> {
        self.map_err(Into::into)
    }
}

macro_rules! handler {
    ($($argument:ident)*) => {
        #[allow(non_snake_case, reason = "type parameters name the arguments, where there are any")]
        impl<Function, Running, First, $($argument,)*> Handler<(First, $($argument,)*)> for Function
        where
            Function: Fn(First, $($argument,)*) -> Running + Send + Sync + 'static,
            Running: Future + Send + 'static,
            Running::Output: Outcome,
            First: EventArgument,
            $($argument: FromDelivery + Send,)*
        {
            type Event = First::Event;

            fn call(&self, delivered: Delivered) -> Boxed<'static, Result<(), Failure>> {
                let envelope = &delivered.incoming.envelope;
                let event = match First::from_envelope(envelope) {
                    Ok(event) => event,
                    Err(error) => {
                        let failure = undecodable::<First::Event>(envelope, error);
                        return Box::pin(std::future::ready(Err(failure)));
                    }
                };
                $(let $argument = match $argument::from_delivery(&delivered) {
                    Ok(argument) => argument,
                    Err(failure) => return Box::pin(std::future::ready(Err(failure))),
                };)*
                let running = self(event, $($argument,)*);
                Box::pin(async move { running.await.into_result() })
            }

            fn check(bus: &Bus) -> Result<()> {
                let _ = bus;
                $($argument::check(bus)?;)*
                Ok(())
            }
        }
    };
}

handler!();
handler!(A2);
handler!(A2 A3);
handler!(A2 A3 A4);
handler!(A2 A3 A4 A5);
handler!(A2 A3 A4 A5 A6);
handler!(A2 A3 A4 A5 A6 A7);
handler!(A2 A3 A4 A5 A6 A7 A8);

/// A handler whose arguments are forgotten.
pub(crate) trait Handles: Send + Sync {
    fn check(&self, bus: &Bus) -> Result<()>;
    fn call(&self, delivered: Delivered) -> Boxed<'static, Result<(), Failure>>;
}

/// A handler of one type of event.
pub(crate) trait Registered: Handles {
    fn info(&self) -> Result<EventInfo>;
}

pub(crate) struct Registration<H, Args> {
    handler: H,
    args: PhantomData<fn(Args)>,
}

impl<H, Args> Registration<H, Args> {
    pub(crate) fn new(handler: H) -> Self {
        Self {
            handler,
            args: PhantomData,
        }
    }
}

impl<H: Handler<Args>, Args> Registered for Registration<H, Args> {
    fn info(&self) -> Result<EventInfo> {
        EventInfo::of::<H::Event>()
    }
}

impl<H: Handler<Args>, Args> Handles for Registration<H, Args> {
    fn check(&self, bus: &Bus) -> Result<()> {
        bus.destination::<H::Event>()?;
        H::check(bus)
    }

    fn call(&self, delivered: Delivered) -> Boxed<'static, Result<(), Failure>> {
        self.handler.call(delivered)
    }
}
