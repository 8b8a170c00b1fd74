//! Structured mode: the event as one JSON object.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::display::Base64Display;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;
use smol_str::SmolStr;

use super::{invalid, is_json};
use crate::envelope::{Attribute, Data, Envelope, EventId, JsonText};
use crate::error::{Error, ErrorKind, Result};

/// Writes the event as one JSON object, data last, JSON data byte for byte.
///
/// # Errors
/// [`ErrorKind::Encode`] when a shared value's serializer fails.
pub fn encode(event: &Envelope) -> Result<Bytes> {
    let mut out = Vec::with_capacity(NAMES + event.rough_bytes());
    match event.data() {
        // Where it is to stay: what a value takes is known only when it is written.
        Data::Value(value) if is_json(event.content_type()) => {
            attributes(event, &mut out).map_err(unwritable)?;
            out.extend_from_slice(DATA);
            value.encode_into(&mut out)?;
            out.push(b'}');
        }
        _ => write(event, &mut out)?,
    }
    Ok(out.into())
}

/// What the names and the punctuation of an event take, about.
const NAMES: usize = 384;
/// What stands before data that is JSON.
const DATA: &[u8] = br#","data":"#;

fn unwritable(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Encode, "the event cannot be written").caused_by(error)
}

/// How many bytes [`encode`] would give, without keeping them.
///
/// # Errors
/// [`ErrorKind::Encode`] when a shared value's serializer fails.
pub fn encoded_len(event: &Envelope) -> Result<usize> {
    struct Count(usize);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    write(event, &mut count)?;
    Ok(count.0)
}

fn write(event: &Envelope, out: &mut impl Write) -> Result<()> {
    let value = match event.data() {
        Data::Value(value) => Some(value.encode()?),
        _ => None,
    };
    (|| {
        attributes(event, out)?;
        let json = is_json(event.content_type());
        match event.data() {
            Data::None => {}
            Data::Json(data) => written(out, data, json)?,
            Data::Value(_) => value.iter().try_for_each(|data| written(out, data, json))?,
            Data::Text(data) if !json => text(out, "data", Some(data.as_str()))?,
            // As a string in `data` it would be taken for a JSON string.
            Data::Text(data) => base64(out, data.as_bytes())?,
            Data::Binary(bytes) => base64(out, bytes)?,
        }
        out.write_all(b"}")
    })()
    .map_err(unwritable)
}

/// Everything but the data and the end.
fn attributes(event: &Envelope, out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(br#"{"specversion":"1.0""#)?;
    id(out, "id", Some(event.id()))?;
    text(out, "source", Some(event.source()))?;
    text(out, "type", Some(event.event_type()))?;
    if let Some(time) = event.time() {
        // It has nothing that needs escaping.
        write!(out, r#","time":"{time}""#)?;
    }
    text(out, "subject", event.subject())?;
    text(out, "datacontenttype", event.content_type())?;
    text(out, "dataschema", event.schema())?;
    if let Some(version) = event.version() {
        name(out, "dataversion")?;
        match i32::try_from(version) {
            Ok(version) => serde_json::to_writer(&mut *out, &version)?,
            // An integer of CloudEvents has 32 bits with its sign; a larger one goes as text.
            Err(_) => write!(out, r#""{version}""#)?,
        }
    }
    text(out, "partitionkey", event.key())?;
    id(out, "correlationid", event.correlation())?;
    id(out, "causationid", event.causation())?;
    text(out, "traceparent", event.traceparent())?;
    text(out, "tracestate", event.tracestate())?;
    for (name, value) in event.extensions() {
        // What was read under any name is written again under it.
        out.write_all(b",")?;
        serde_json::to_writer(&mut *out, name)?;
        out.write_all(b":")?;
        match value {
            Attribute::Text(value) => serde_json::to_writer(&mut *out, value)?,
            Attribute::Boolean(value) => serde_json::to_writer(&mut *out, value)?,
            Attribute::Integer(value) => serde_json::to_writer(&mut *out, value)?,
        }
    }
    Ok(())
}

/// JSON goes as it is where the media type is JSON, and else as a string: a reader goes by the type.
fn written(out: &mut impl Write, data: &JsonText, json: bool) -> std::io::Result<()> {
    match std::str::from_utf8(data.as_bytes()) {
        Ok(data) if !json => text(out, "data", Some(data)),
        _ => {
            out.write_all(DATA)?;
            out.write_all(data.as_bytes())
        }
    }
}

fn base64(out: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    let encoded = Base64Display::new(bytes, &BASE64_STANDARD);
    write!(out, r#","data_base64":"{encoded}""#)
}

/// A name of ours, which needs no escaping.
fn name(out: &mut impl Write, name: &str) -> std::io::Result<()> {
    out.write_all(b",\"")?;
    out.write_all(name.as_bytes())?;
    out.write_all(b"\":")
}

fn text(out: &mut impl Write, of: &str, value: Option<&str>) -> std::io::Result<()> {
    let Some(value) = value else {
        return Ok(());
    };
    name(out, of)?;
    serde_json::to_writer(out, value).map_err(Into::into)
}

fn id(out: &mut impl Write, of: &str, id: Option<&EventId>) -> std::io::Result<()> {
    let mut room = [0; EventId::UUID_BYTES];
    text(out, of, id.map(|id| id.text(&mut room)))
}

/// Reads one event. Attribute names are matched without case, unknown ones are kept.
///
/// The data is checked to be JSON and shares the memory of `bytes`; nothing of it is decoded.
///
/// # Errors
/// [`ErrorKind::InvalidEvent`] with the attribute, or the line and column, at fault.
pub fn decode(bytes: &Bytes) -> Result<Envelope> {
    // Once for all of it: of bytes each string would be looked at again.
    let fields = match std::str::from_utf8(bytes) {
        Ok(text) => serde_json::from_str::<Fields<'_>>(text),
        // It says where.
        Err(_) => serde_json::from_slice(bytes),
    };
    let fields = fields.map_err(|error| invalid("not a CloudEvent in JSON").caused_by(error))?;
    let mut id = None;
    let mut source = None;
    let mut event_type = None;
    let mut data: Option<&RawValue> = None;
    let mut base64: Option<Cow<'_, str>> = None;
    let mut others: SmallVec<[_; 8]> = SmallVec::new();
    let mut content_type = None;
    let mut specversion = None;
    for (name, value) in fields.0 {
        let name = match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => name,
        };
        // An absent attribute, says the JSON format; but `data` may be an explicit null.
        if value.get() == "null" && name != "data" {
            continue;
        }
        match &*name {
            "specversion" => once(&mut specversion, &name, string(&name, value)?)?,
            "id" => once(&mut id, &name, EventId::new(string(&name, value)?)?)?,
            "source" => once(&mut source, &name, string(&name, value)?)?,
            "type" => once(&mut event_type, &name, string(&name, value)?)?,
            "datacontenttype" => once(&mut content_type, &name, string(&name, value)?)?,
            "data" => once(&mut data, &name, value)?,
            "data_base64" => once(&mut base64, &name, string(&name, value)?)?,
            _ if others.iter().any(|(other, _)| *other == name) => return Err(twice(&name)),
            _ => others.push((name, value)),
        }
    }
    version_one(specversion.as_deref())?;
    let content_type = content_type.filter(|content_type| !content_type.is_empty());
    let json = is_json(content_type.as_deref());
    let data = match (data, base64) {
        (None, None) => Data::None,
        // Some producers write all members, and null for the one that they do not use.
        (data, Some(base64)) if data.is_none_or(|data| data.get() == "null") => Data::Binary(
            BASE64_STANDARD
                .decode(base64.as_bytes())
                .map_err(|error| invalid("attribute `data_base64` is not Base64").caused_by(error))?
                .into(),
        ),
        (_, Some(_)) => {
            return Err(invalid(
                "the event has data twice: keep one of `data` and `data_base64`",
            ));
        }
        (Some(value), None) if !json && value.get() == "null" => Data::None,
        (Some(value), None) if !json && value.get().starts_with('"') => {
            Data::Text(string("data", value)?.into())
        }
        (Some(value), None) => {
            Data::Json(JsonText::trusted(bytes.slice_ref(value.get().as_bytes())))
        }
    };
    let missing = |name| invalid(format!("attribute `{name}` is missing"));
    let mut event = Envelope::new(
        id.ok_or_else(|| missing("id"))?,
        source.ok_or_else(|| missing("source"))?,
        event_type.ok_or_else(|| missing("type"))?,
        data,
    )?;
    if let Some(content_type) = content_type {
        event.set_content_type(content_type.into());
    }
    for (name, value) in others {
        if value.get().starts_with('"') {
            let text = string(&name, value)?;
            set_text(&mut event, &name, &text, || {
                Attribute::Text(text.as_ref().into())
            })?;
        } else {
            set(&mut event, &name, &attribute(&name, value)?)?;
        }
    }
    few_extensions(event)
}

/// Refuses an event that could no longer be read once every known attribute is set too.
pub(super) fn few_extensions(event: Envelope) -> Result<Envelope> {
    match event.extensions().count() {
        0..=Envelope::MAX_EXTENSIONS => Ok(event),
        count => Err(invalid(format!(
            "the event has {count} extension attributes, the limit is {}",
            Envelope::MAX_EXTENSIONS
        ))),
    }
}

/// Refuses every version of the specification but 1.x.
pub(super) fn version_one(specversion: Option<&str>) -> Result<()> {
    match specversion {
        Some(version) if version == "1.0" || version.starts_with("1.") => Ok(()),
        Some(version) => Err(invalid(format!(
            "`specversion` is {version:?}; only \"1.0\" is known"
        ))),
        None => Err(invalid(
            "attribute `specversion` is missing; it must be \"1.0\"",
        )),
    }
}

/// Sets an optional attribute by its lower-case name. Both modes read through here.
///
/// What other producers write under a name that we know, but in a form that we do not, is kept as
/// it came: versions such as "1.2", empty correlation ids, times of the year 1.
pub(super) fn set(event: &mut Envelope, name: &str, value: &Attribute) -> Result<()> {
    match value {
        Attribute::Text(text) => set_text(event, name, text, || value.clone()),
        Attribute::Integer(number) => set_text(event, name, &number.to_string(), || value.clone()),
        Attribute::Boolean(truth) => set_text(event, name, &truth.to_string(), || value.clone()),
    }
}

/// As [`set`], for what is given as text and made a value only where it is kept as one.
fn set_text(
    event: &mut Envelope,
    name: &str,
    text: &str,
    value: impl FnOnce() -> Attribute,
) -> Result<()> {
    match name {
        "time" => match text.parse() {
            Ok(time) => event.set_time(time),
            Err(_) if is_time(text) => event.insert_extension(name.into(), value()),
            Err(error) => return Err(error.at("attribute `time`")),
        },
        "subject" => event.set_subject(text.into()),
        "dataschema" => event.set_schema(text.into()),
        "partitionkey" => event.set_key(text.into()),
        "traceparent" => event.set_traceparent(text.into()),
        "tracestate" => event.set_tracestate(text.into()),
        "correlationid" => match EventId::new(text) {
            Ok(id) => event.set_correlation(id),
            Err(_) => event.insert_extension(name.into(), value()),
        },
        "causationid" => match EventId::new(text) {
            Ok(id) => event.set_causation(id),
            Err(_) => event.insert_extension(name.into(), value()),
        },
        "dataversion" => match version(text) {
            Some(version) => event.set_version(version),
            None => event.insert_extension(name.into(), value()),
        },
        _ => event.insert_extension(name.into(), value()),
    }
    Ok(())
}

/// Only what is written again as it came: not "007".
fn version(text: &str) -> Option<u32> {
    let canonical = text == "0" || text.starts_with(|c: char| matches!(c, '1'..='9'));
    text.parse().ok().filter(|_| canonical)
}

/// Whether this is a date, a time and an offset, if of a year or precision that we cannot hold.
fn is_time(text: &str) -> bool {
    let shortened = match text.split_once('.') {
        Some((whole, fraction)) => {
            let offset = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            smol_str::format_smolstr!("{whole}{offset}")
        }
        None => text.into(),
    };
    jiff::fmt::temporal::Pieces::parse(shortened.as_str())
        .is_ok_and(|pieces| pieces.time().is_some() && pieces.offset().is_some())
}

pub(super) fn once<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(twice(name)),
    }
}

pub(super) fn twice(name: &str) -> Error {
    invalid(format!("attribute `{name}` is given twice"))
}

fn string<'a>(name: &str, value: &'a RawValue) -> Result<Cow<'a, str>> {
    // What has no escapes is what stands between the quotes; that it is a string was seen already.
    let quoted = value.get().strip_prefix('"');
    if let Some(text) = quoted.and_then(|text| text.strip_suffix('"'))
        && !text.contains('\\')
    {
        return Ok(Cow::Borrowed(text));
    }
    serde_json::from_str(value.get())
        .map(Cow::Owned)
        .map_err(|error| {
            let found = abridged(value);
            invalid(format!("attribute `{name}` must be a string, not {found}")).caused_by(error)
        })
}

/// A value that is no string.
fn attribute(name: &str, value: &RawValue) -> Result<Attribute> {
    let integer = || {
        value.get().parse().map(Attribute::Integer).map_err(|_| {
            invalid(format!(
                "attribute `{name}` must be a string, a boolean or a 32-bit integer, not {}; \
                 an object belongs into `data`",
                abridged(value)
            ))
        })
    };
    match value.get() {
        "true" => Ok(Attribute::Boolean(true)),
        "false" => Ok(Attribute::Boolean(false)),
        _ => integer(),
    }
}

fn abridged(value: &RawValue) -> SmolStr {
    match value.get().chars().nth(40) {
        None => value.get().into(),
        Some(_) => value.get().chars().take(40).chain(['…']).collect(),
    }
}

/// The members of the object in order, values not decoded.
pub(super) struct Fields<'a>(pub(super) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object with the attributes of a CloudEvent")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(12);
                while let Some(member) = map.next_entry_seed(Name, PhantomData)? {
                    if members.len() == MAX_ATTRIBUTES {
                        return Err(serde::de::Error::custom(format!(
                            "more than {MAX_ATTRIBUTES} attributes"
                        )));
                    }
                    members.push(member);
                }
                Ok(Fields(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// A member's name, which is borrowed unless it has escapes.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(name.to_owned()))
    }
}

/// The most members that one event may have: what is read before anything is known of it.
pub(super) const MAX_ATTRIBUTES: usize = 96;
