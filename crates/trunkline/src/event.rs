//! What makes a Rust type an event.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use smol_str::SmolStr;
use trunkline_core::subject::encode_token;
use trunkline_core::{Error, ErrorKind, EventType, Filter, Result, Subject};

/// A type whose values are events. Derive it:
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use trunkline::Event;
///
/// #[derive(Event, Serialize, Deserialize)]
/// #[event(type = "order.placed", key = "order_id")] // version = 1, durable
/// struct OrderPlaced {
///     order_id: String,
///     total_cents: u64,
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event",
    label = "not an event",
    note = "add `#[derive(Event, Serialize, Deserialize)]` and `#[event(type = \"…\")]` to `{Self}`"
)]
pub trait Event: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// How it travels: [`Durable`], [`Ephemeral`] or [`Command`].
    type Delivery: Delivery;

    /// The event type, for example `order.placed`.
    const TYPE: &'static str;

    /// The version of the data's shape, `dataversion` on the wire.
    const VERSION: u32;

    /// Where events of the type go, without the root. One literal per token of the type, unless
    /// the type names a subject of its own.
    const SUBJECT: Template;

    /// Whether [`key`](Event::key) gives one.
    const KEYED: bool;

    /// The key within which events keep their order.
    fn key(&self) -> Option<Cow<'_, str>>;

    /// The text of a field that the template names.
    fn field(&self, name: &str) -> Option<Cow<'_, str>>;
}

/// A subject with places for fields: `agent.message.{role}.{kind}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template(pub &'static [Token]);

/// One token of a [`Template`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Text that is always the same.
    Literal(&'static str),
    /// The value of a field, percent-encoded where need be.
    Field(&'static str),
}

impl Template {
    /// The filter that matches every subject of the template.
    pub(crate) fn filter(&self) -> Result<Filter> {
        let tokens = self.0.iter().map(|token| match token {
            Token::Literal(text) => text,
            Token::Field(_) => "*",
        });
        Filter::new(tokens.collect::<Vec<_>>().join("."))
    }

    /// The subject of every event, if no field is in it.
    pub(crate) fn literal(&self) -> Result<Option<Subject>> {
        Ok(self.filter()?.literal())
    }

    /// The subject of one event.
    pub(crate) fn subject<E: Event>(&self, event: &E) -> Result<Subject> {
        let mut tokens = Vec::with_capacity(self.0.len());
        for token in self.0 {
            tokens.push(match token {
                Token::Literal(text) => Cow::Borrowed(*text),
                Token::Field(name) => match event.field(name).filter(|text| !text.is_empty()) {
                    Some(text) => Cow::Owned(encode_token(&text)),
                    None => {
                        return Err(Error::new(
                            ErrorKind::InvalidSubject,
                            format!(
                                "field `{name}` of {} is empty, but its subject needs it",
                                E::TYPE
                            ),
                        ));
                    }
                },
            });
        }
        Subject::new(tokens.join("."))
    }
}

/// How events of a type travel. Sealed: there are three ways.
pub trait Delivery: sealed::Sealed + 'static {
    /// The way as a value.
    const CLASS: Class;
}

/// Stored; every consumer gets it at least once.
#[derive(Clone, Copy, Debug)]
pub struct Durable;

/// Not stored; whoever listens gets it at most once.
#[derive(Clone, Copy, Debug)]
pub struct Ephemeral;

/// Stored until its one consumer has done it.
#[derive(Clone, Copy, Debug)]
pub struct Command;

/// [`Delivery`] as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// See [`Durable`].
    Durable,
    /// See [`Ephemeral`].
    Ephemeral,
    /// See [`Command`].
    Command,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Durable => "durable",
            Class::Ephemeral => "ephemeral",
            Class::Command => "command",
        })
    }
}

impl Delivery for Durable {
    const CLASS: Class = Class::Durable;
}

impl Delivery for Ephemeral {
    const CLASS: Class = Class::Ephemeral;
}

impl Delivery for Command {
    const CLASS: Class = Class::Command;
}

/// Deliveries that `publish` takes.
#[diagnostic::on_unimplemented(
    message = "an event with `Delivery = {Self}` is not stored, so it cannot be published or consumed durably",
    label = "this event is ephemeral",
    note = "use `emit` to send it and `subscribe` to receive it, or remove `ephemeral` from its `#[event(…)]`"
)]
pub trait Stored: Delivery {}

impl Stored for Durable {}
impl Stored for Command {}

/// Deliveries that `emit` takes.
#[diagnostic::on_unimplemented(
    message = "an event with `Delivery = {Self}` is stored, so it cannot be emitted",
    label = "this event is durable",
    note = "use `publish` to send it, or add `ephemeral` to its `#[event(…)]`"
)]
pub trait Unstored: Delivery {}

impl Unstored for Ephemeral {}

/// Deliveries that `subscribe` takes: everybody who subscribes gets every event.
#[diagnostic::on_unimplemented(
    message = "an event with `Delivery = {Self}` goes to its one consumer and cannot be subscribed to",
    label = "this event is a command",
    note = "handle it with `bus.consumer(\"…\").on(handler)`, or remove `command` from its `#[event(…)]`"
)]
pub trait Broadcast: Delivery {}

impl Broadcast for Durable {}
impl Broadcast for Ephemeral {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Durable {}
    impl Sealed for super::Ephemeral {}
    impl Sealed for super::Command {}
}

/// Types that can be a key or a token of a subject: their text is the same in every language.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a key or part of a subject",
    label = "no key text",
    note = "use a string, an integer or a `Uuid`; for an `Option`, decide what a missing key means and store that"
)]
pub trait KeyText {
    /// Strings as they are, integers in decimal, UUIDs in lower case.
    fn key_text(&self) -> Cow<'_, str>;
}

macro_rules! key_text {
    (as str: $($text:ty)*; as decimal: $($number:ty)*) => {
        $(impl KeyText for $text {
            fn key_text(&self) -> Cow<'_, str> {
                Cow::Borrowed(self.as_ref())
            }
        })*
        $(impl KeyText for $number {
            fn key_text(&self) -> Cow<'_, str> {
                Cow::Owned(self.to_string())
            }
        })*
    };
}

key_text! {
    as str: str String Box<str> std::sync::Arc<str> Cow<'_, str> SmolStr;
    as decimal: u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize
}

impl KeyText for uuid::Uuid {
    fn key_text(&self) -> Cow<'_, str> {
        Cow::Owned(self.hyphenated().to_string())
    }
}

/// A type of event as a value: what a catalogue and the topology need to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventInfo {
    /// The event type.
    pub event_type: EventType,
    /// The version of its data.
    pub version: u32,
    /// How it travels.
    pub class: Class,
    /// Its subjects, without the root.
    pub filter: Filter,
    /// Whether its events have a key.
    pub keyed: bool,
}

impl EventInfo {
    /// What there is to know of `E`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEventType`] or [`ErrorKind::InvalidFilter`] for an implementation by
    /// hand with an illegal type or template; the derive refuses those at compile time.
    pub fn of<E: Event>() -> Result<Self> {
        Ok(Self {
            event_type: EventType::new(E::TYPE)?,
            version: E::VERSION,
            class: E::Delivery::CLASS,
            filter: E::SUBJECT.filter()?,
            keyed: E::KEYED,
        })
    }
}
