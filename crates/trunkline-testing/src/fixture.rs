//! Events of each kind, ready to be published.

use std::borrow::Cow;

use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use trunkline::Event;
use trunkline::event::{Command, Durable, Ephemeral, KeyText, Template, Token};

/// A durable event with a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderPlaced {
    /// The key.
    pub order: String,
    /// Which of its events.
    pub n: u32,
}

/// A durable event without a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// Which of its events.
    pub n: u32,
}

/// A durable event whose subject has a field in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zoned {
    /// The last token of the subject.
    pub zone: String,
    /// Which of its events.
    pub n: u32,
}

/// An ephemeral event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Which of its events.
    pub n: u32,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ship {
    /// Which of its commands.
    pub n: u32,
}

/// A durable event that cannot be encoded: it travels only where values are shared.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Unwritable {
    /// Which of its events.
    pub n: u32,
}

impl Serialize for Unwritable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("this event is made not to be encoded"))
    }
}

// By hand, so that the contract does not stand on the derive.
macro_rules! event {
    ($event:ident: $delivery:ident $type:literal, $subject:expr, key $key:expr, field $field:expr) => {
        impl Event for $event {
            type Delivery = $delivery;
            const TYPE: &'static str = $type;
            const VERSION: u32 = 1;
            const SUBJECT: Template = Template($subject);
            const KEYED: bool = {
                let key: Option<fn(&$event) -> &String> = $key;
                key.is_some()
            };

            fn key(&self) -> Option<Cow<'_, str>> {
                let key: Option<fn(&$event) -> &String> = $key;
                key.map(|key| key(self).key_text())
            }

            fn field(&self, name: &str) -> Option<Cow<'_, str>> {
                let field: Option<(&str, fn(&$event) -> &String)> = $field;
                field
                    .filter(|(known, _)| *known == name)
                    .map(|(_, field)| field(self).key_text())
            }
        }
    };
}

const ROOT: Token = Token::Literal("testing");

event!(OrderPlaced: Durable "testing.order.placed",
    &[ROOT, Token::Literal("order"), Token::Literal("placed")], key Some(|event| &event.order), field None);
event!(Noted: Durable "testing.noted", &[ROOT, Token::Literal("noted")], key None, field None);
event!(Zoned: Durable "testing.zoned",
    &[ROOT, Token::Literal("zoned"), Token::Field("zone")], key None, field Some(("zone", |event| &event.zone)));
event!(Moved: Ephemeral "testing.moved", &[ROOT, Token::Literal("moved")], key None, field None);
event!(Ship: Command "testing.ship", &[ROOT, Token::Literal("ship")], key None, field None);
event!(Unwritable: Durable "testing.unwritable", &[ROOT, Token::Literal("unwritable")], key None, field None);
