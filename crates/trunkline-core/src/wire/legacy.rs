//! Envelopes of programs from before CloudEvents, read and never written.
//!
//! A form is tried only where a configuration names it, and only on what does not call itself a
//! CloudEvent. The data stays the bytes that it was; members that the form has no name for become
//! attributes, so that nothing is lost.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;
use smol_str::{SmolStr, format_smolstr};

use super::structured::{Fields, few_extensions, set};
use super::{invalid, is_binary, is_structured};
use crate::envelope::{Attribute, Data, Envelope, EventId, JsonText};
use crate::error::{Error, ErrorKind, Result};
use crate::headers::Headers;
use crate::name::Name;
use crate::time::Timestamp;

/// A form of envelope from before CloudEvents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Legacy {
    /// `{"metadata": {"eventId", "eventType", "timestamp", …}, "payload": …}`.
    MetadataPayload,
    /// `{"eventId", "eventType" or "type", "timestamp", …, "data": …}`.
    FlatData,
    /// A Rust enum as serde writes it: `{"JobCreated": {…}}`, or `{"type": "JobCreated", …}`.
    Tagged,
    /// `{"id", "sender", "content", "message_type", …}`: the message itself is the data.
    MessageFields,
}

impl Legacy {
    /// Every form, with its name in a configuration.
    pub const ALL: [(&'static str, Legacy); 4] = [
        ("metadata-payload", Legacy::MetadataPayload),
        ("flat-data", Legacy::FlatData),
        ("tagged", Legacy::Tagged),
        ("message-fields", Legacy::MessageFields),
    ];
}

impl fmt::Display for Legacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Self::ALL.iter().find(|(_, form)| form == self);
        f.write_str(known.map_or("", |(name, _)| name))
    }
}

impl FromStr for Legacy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL.iter().find(|(name, _)| *name == text);
        known.map(|(_, form)| *form).ok_or_else(|| {
            let names = Self::ALL.map(|(name, _)| name).join(", ");
            Error::new(
                ErrorKind::InvalidConfig,
                format!("{text:?} is no legacy form; write some of {names}"),
            )
        })
    }
}

/// What is known of a message besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its subject without the root: the event's type, where the message does not say it.
    pub subject: &'a str,
    /// Where it is stored; none for an ephemeral one.
    pub stored: Option<(&'a Name, u64)>,
    /// When it was stored: the event's time, where the message does not say it.
    pub at: Option<Timestamp>,
}

/// Reads one message in the first of these forms that it has.
///
/// None for what calls itself a CloudEvent, and for what has none of the forms. A message without
/// an id gets one from its place and its bytes, so that it has the same one whenever it is read, and
/// as a dead letter too.
///
/// # Errors
/// [`ErrorKind::InvalidEvent`] for what has one of the forms and cannot be an event.
pub fn decode(
    forms: &[Legacy],
    headers: &Headers,
    bytes: &Bytes,
    place: &Place<'_>,
) -> Result<Option<Envelope>> {
    let claims = is_binary(headers) || headers.get("content-type").is_some_and(is_structured);
    if forms.is_empty() || claims {
        return Ok(None);
    }
    let Some(fields) = object(bytes) else {
        return Ok(None);
    };
    if fields.iter().any(|(name, _)| name == "specversion") {
        return Ok(None);
    }
    let found = forms.iter().find_map(|form| split(*form, &fields, bytes));
    found
        .map(|found| found.event(headers, bytes, place))
        .transpose()
}

type Members<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

fn object(bytes: &[u8]) -> Option<Members<'_>> {
    let Fields(fields) = serde_json::from_slice(bytes).ok()?;
    Some(fields)
}

fn member<'a>(members: &[(Cow<'_, str>, &'a RawValue)], names: &[&str]) -> Option<&'a RawValue> {
    let found = names
        .iter()
        .find_map(|wanted| members.iter().find(|(name, _)| name == *wanted));
    found.map(|(_, value)| *value)
}

fn text(value: &RawValue) -> Option<String> {
    String::deserialize(value)
        .ok()
        .filter(|text| !text.is_empty())
}

/// A message, taken apart.
struct Found<'a> {
    members: Members<'a>,
    names: Names,
    /// The type, if it is no member.
    tag: Option<SmolStr>,
    data: Option<&'a RawValue>,
}

/// The members that mean what an attribute means; whichever comes first counts.
struct Names {
    id: &'static [&'static str],
    event_type: &'static [&'static str],
    time: &'static [&'static str],
    source: &'static [&'static str],
    /// Members that are the data, and no attributes.
    inside: &'static [&'static str],
}

const ID: &[&str] = &["eventId", "event_id", "id"];
const TYPE: &[&str] = &["eventType", "event_type", "type"];
const TIME: &[&str] = &["timestamp", "occurredAt", "occurred_at", "time"];

fn split<'a>(form: Legacy, fields: &Members<'a>, bytes: &'a Bytes) -> Option<Found<'a>> {
    let names = Names {
        id: ID,
        event_type: TYPE,
        time: TIME,
        source: &["source"],
        inside: &[],
    };
    // The message as it is.
    let whole = || serde_json::from_slice::<&RawValue>(bytes).ok();
    match form {
        Legacy::MetadataPayload => Some(Found {
            members: object(member(fields, &["metadata"])?.get().as_bytes())?,
            names,
            tag: None,
            data: Some(member(fields, &["payload"])?),
        }),
        Legacy::FlatData => {
            member(fields, TYPE).and_then(text)?;
            Some(Found {
                members: fields.clone(),
                names: Names {
                    inside: &["data"],
                    ..names
                },
                tag: None,
                data: Some(member(fields, &["data"])?),
            })
        }
        Legacy::Tagged => {
            // What `id` and `source` mean is the variant's own affair.
            let names = Names {
                id: &["eventId", "event_id"],
                event_type: &["type"],
                source: &[],
                ..names
            };
            if let [(tag, inner)] = fields.as_slice()
                && is_variant(tag)
            {
                return Some(Found {
                    members: known(object(inner.get().as_bytes()).unwrap_or_default()),
                    names,
                    tag: Some(SmolStr::new(tag)),
                    data: Some(inner),
                });
            }
            let tag = member(fields, &["type"]).and_then(text)?;
            is_variant(&tag).then(|| Found {
                members: known(fields.clone()),
                names,
                tag: Some(tag.into()),
                data: whole(),
            })
        }
        Legacy::MessageFields => {
            member(fields, &["sender"]).and_then(text)?;
            member(fields, &["content"])?;
            Some(Found {
                members: fields.clone(),
                names: Names {
                    event_type: &["message_type", "messageType"],
                    source: &["sender"],
                    // It is data, not what is said of it.
                    inside: &["content", "metadata"],
                    ..names
                },
                tag: None,
                data: whole(),
            })
        }
    }
}

/// Whether this is the name of a variant: a Rust type's.
fn is_variant(tag: &str) -> bool {
    tag.starts_with(|c: char| c.is_ascii_uppercase())
        && tag.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Of a variant's fields those that say something of the event; all of them stay in the data.
fn known(fields: Members<'_>) -> Members<'_> {
    let says = |name: &str| {
        ["eventId", "event_id", "type"].contains(&name)
            || TIME.contains(&name)
            || attribute_of(name).is_some()
    };
    fields.into_iter().filter(|(name, _)| says(name)).collect()
}

/// The attribute that a member of any form is.
fn attribute_of(name: &str) -> Option<&'static str> {
    Some(match name {
        "correlationId" | "correlation_id" => "correlationid",
        "causationId" | "causation_id" => "causationid",
        "version" => "dataversion",
        _ => return None,
    })
}

impl Found<'_> {
    fn event(self, headers: &Headers, bytes: &Bytes, place: &Place<'_>) -> Result<Envelope> {
        let value = |names| member(&self.members, names).and_then(text);
        let id = member(&self.members, self.names.id).and_then(scalar);
        let id = match id.filter(|id| !id.is_empty()) {
            Some(id) => EventId::new(id)?,
            None => made(headers, bytes, place)?,
        };
        let event_type = self.tag.map(String::from);
        let event_type = event_type.or_else(|| value(self.names.event_type));
        let event_type = event_type.unwrap_or_else(|| typed(place.subject));
        let source = value(self.names.source).unwrap_or_else(|| "/legacy".to_owned());
        let data = self.data.map_or(Data::None, |data| {
            let data = bytes.slice_ref(data.get().as_bytes());
            Data::Json(JsonText::trusted(data))
        });
        let mut event = Envelope::new(id, source, event_type, data)?;
        let mut time = None;
        for (name, value) in &self.members {
            let names = [self.names.id, self.names.event_type, self.names.source];
            let taken = names.iter().any(|names| names.contains(&&**name));
            if value.get() == "null" || taken || self.names.inside.contains(&&**name) {
                continue;
            }
            if self.names.time.contains(&&**name) && time.is_none() {
                time = point(value);
                if time.is_some() {
                    continue;
                }
            }
            let (name, value) = (extension(name), attribute(value));
            if event.extensions().any(|(other, _)| other == name) {
                return Err(invalid(format!(
                    "two members of the message would be attribute `{name}`"
                )));
            }
            set(&mut event, &name, &value)?;
        }
        if let Some(time) = time.or(event.time()).or(place.at) {
            event = event.with_time(time);
        }
        few_extensions(event)
    }
}

/// The type that a subject below its root stands for.
fn typed(subject: &str) -> String {
    let decoded = percent_decode_str(subject).decode_utf8();
    decoded.map_or_else(|_| subject.to_owned(), Into::into)
}

/// The id of a message that has none: where it is stored, and a hash of what it says, in case that
/// the stream is made anew. A dead letter says where its original is.
fn made(headers: &Headers, bytes: &[u8], place: &Place<'_>) -> Result<EventId> {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let original = headers
        .get("Trunkline-Stream")
        .zip(headers.get("Trunkline-Seq"))
        .map(|(stream, seq)| format!("{stream}:{seq}:"));
    let stored = || place.stored.map(|(stream, seq)| format!("{stream}:{seq}:"));
    let at = original.or_else(stored).unwrap_or_default();
    EventId::new(format!("legacy:{at}{hash:016x}"))
}

/// An RFC 3339 time, one without an offset (which is UTC), or seconds or milliseconds since 1970.
fn point(value: &RawValue) -> Option<Timestamp> {
    if let Some(text) = text(value) {
        let text = text.trim().replacen(' ', "T", 1);
        let parsed = text.parse().ok();
        return parsed.or_else(|| format!("{text}Z").parse().ok());
    }
    let (whole, fraction) = value.get().split_once('.').unwrap_or((value.get(), ""));
    let whole: i64 = whole.parse().ok()?;
    if whole.abs() >= 100_000_000_000 {
        return whole.checked_mul(1_000_000).map(Timestamp::from_nanos);
    }
    let digits = format!("{:0<9}", fraction.get(..9).unwrap_or(fraction));
    let nanos: i64 = digits.parse().ok()?;
    let seconds = whole.checked_mul(1_000_000_000)?;
    Some(Timestamp::from_nanos(seconds.checked_add(nanos)?))
}

/// A text, a number or a truth as text.
fn scalar(value: &RawValue) -> Option<String> {
    match value.get().as_bytes().first() {
        Some(b'"') => String::deserialize(value).ok(),
        Some(b'{' | b'[' | b'n') | None => None,
        _ => Some(value.get().to_owned()),
    }
}

/// What has no place as an attribute is one as its JSON text.
fn attribute(value: &RawValue) -> Attribute {
    match value.get() {
        "true" => Attribute::Boolean(true),
        "false" => Attribute::Boolean(false),
        json => match json.parse() {
            Ok(number) => Attribute::Integer(number),
            Err(_) => Attribute::Text(scalar(value).unwrap_or_else(|| json.to_owned()).into()),
        },
    }
}

/// The attribute of a member: its name in lower case, letters and digits only; never one that
/// would be taken for something else.
fn extension(name: &str) -> SmolStr {
    if let Some(known) = attribute_of(name) {
        return known.into();
    }
    let kept = name.chars().filter(char::is_ascii_alphanumeric);
    let kept: String = kept.map(|c| c.to_ascii_lowercase()).take(20).collect();
    match kept.as_str() {
        "" | "id" | "type" | "source" | "time" | "data" | "database64" | "specversion"
        | "datacontenttype" | "dataschema" | "dataversion" => format_smolstr!("legacy{kept}"),
        _ => kept.into(),
    }
}
