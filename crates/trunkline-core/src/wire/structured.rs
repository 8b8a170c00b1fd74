//! Structured mode: the event as one JSON object.

use std::fmt;
use std::io::Write;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use smol_str::SmolStr;

use super::{invalid, is_json};
use crate::envelope::{Attribute, Data, Envelope, EventId, JsonText};
use crate::error::{Error, ErrorKind, Result};

/// Writes the event as one JSON object, data last, JSON data byte for byte.
///
/// # Errors
/// [`ErrorKind::Encode`] when a shared value's serializer fails.
pub fn encode(event: &Envelope) -> Result<Bytes> {
    let mut out = Vec::with_capacity(512);
    write(event, &mut out)?;
    Ok(out.into())
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
        out.write_all(br#"{"specversion":"1.0""#)?;
        display(out, "id", Some(event.id()))?;
        text(out, "source", Some(event.source()))?;
        text(out, "type", Some(event.event_type()))?;
        display(out, "time", event.time().as_ref())?;
        text(out, "subject", event.subject())?;
        text(out, "datacontenttype", event.content_type())?;
        text(out, "dataschema", event.schema())?;
        if let Some(version) = event.version() {
            write!(out, r#","dataversion":{version}"#)?;
        }
        text(out, "partitionkey", event.key())?;
        display(out, "correlationid", event.correlation())?;
        display(out, "causationid", event.causation())?;
        text(out, "traceparent", event.traceparent())?;
        text(out, "tracestate", event.tracestate())?;
        for (name, value) in event.extensions() {
            match value {
                Attribute::Text(value) => text(out, name, Some(value))?,
                Attribute::Boolean(value) => json(out, name, value)?,
                Attribute::Integer(value) => json(out, name, value)?,
            }
        }
        match event.data() {
            Data::None => {}
            Data::Json(json) => raw(out, json)?,
            Data::Value(_) => value.iter().try_for_each(|json| raw(out, json))?,
            Data::Text(data) => text(out, "data", Some(data))?,
            Data::Binary(bytes) => {
                write!(out, r#","data_base64":"{}""#, BASE64_STANDARD.encode(bytes))?
            }
        }
        out.write_all(b"}")
    })()
    .map_err(|error: std::io::Error| {
        Error::new(ErrorKind::Encode, "the event cannot be written").caused_by(error)
    })
}

fn raw(out: &mut impl Write, data: &JsonText) -> std::io::Result<()> {
    out.write_all(br#","data":"#)?;
    out.write_all(data.as_bytes())
}

fn text(out: &mut impl Write, name: &str, value: Option<&str>) -> std::io::Result<()> {
    value.map_or(Ok(()), |value| json(out, name, value))
}

/// Ids and times are short; most need no escaping, but an id is any text.
fn display(
    out: &mut impl Write,
    name: &str,
    value: Option<&impl fmt::Display>,
) -> std::io::Result<()> {
    value.map_or(Ok(()), |value| {
        json(out, name, &*smol_str::format_smolstr!("{value}"))
    })
}

fn json(
    out: &mut impl Write,
    name: &str,
    value: &(impl serde::Serialize + ?Sized),
) -> std::io::Result<()> {
    out.write_all(b",")?;
    serde_json::to_writer(&mut *out, name)?;
    out.write_all(b":")?;
    serde_json::to_writer(out, value).map_err(Into::into)
}

/// Reads one event. Attribute names are matched without case, unknown ones are kept.
///
/// The data is checked to be JSON and shares the memory of `bytes`; nothing of it is decoded.
///
/// # Errors
/// [`ErrorKind::InvalidEvent`] with the attribute, or the line and column, at fault.
pub fn decode(bytes: &Bytes) -> Result<Envelope> {
    let fields: Fields<'_> = serde_json::from_slice(bytes)
        .map_err(|error| invalid("not a CloudEvent in JSON").caused_by(error))?;
    let mut id = None;
    let mut source = None;
    let mut event_type = None;
    let mut data = None;
    let mut others = Vec::new();
    let mut content_type = None;
    let mut specversion = None;
    for (name, value) in fields.0 {
        let name: SmolStr = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            name.to_ascii_lowercase().into()
        } else {
            name
        };
        if value.get() == "null" {
            continue; // An absent attribute, says the JSON format.
        }
        match name.as_str() {
            "specversion" => once(&mut specversion, &name, string(&name, value)?)?,
            "id" => once(&mut id, &name, EventId::new(string(&name, value)?)?)?,
            "source" => once(&mut source, &name, string(&name, value)?)?,
            "type" => once(&mut event_type, &name, string(&name, value)?)?,
            "datacontenttype" => once(&mut content_type, &name, string(&name, value)?)?,
            "data" | "data_base64" => {
                if data.replace((name, value)).is_some() {
                    return Err(invalid(
                        "the event has data twice: keep one of `data` and `data_base64`",
                    ));
                }
            }
            _ => others.push((name, value)),
        }
    }
    version_one(specversion.as_deref())?;
    let data = match data {
        None => Data::None,
        Some((name, value)) if name == "data_base64" => Data::Binary(
            BASE64_STANDARD
                .decode(string(&name, value)?.as_bytes())
                .map_err(|error| invalid("attribute `data_base64` is not Base64").caused_by(error))?
                .into(),
        ),
        Some((name, value))
            if !is_json(content_type.as_deref()) && value.get().starts_with('"') =>
        {
            Data::Text(string(&name, value)?)
        }
        Some((_, value)) => Data::Json(JsonText::trusted(bytes.slice_ref(value.get().as_bytes()))),
    };
    let missing = |name| invalid(format!("attribute `{name}` is missing"));
    let mut event = Envelope::new(
        id.ok_or_else(|| missing("id"))?,
        source.ok_or_else(|| missing("source"))?,
        event_type.ok_or_else(|| missing("type"))?,
        data,
    )?;
    if let Some(content_type) = content_type {
        event = event.with_content_type(content_type);
    }
    for (name, value) in others {
        let value = attribute(&name, value)?;
        event = set(event, name, value)?;
    }
    Ok(event)
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
pub(super) fn set(mut event: Envelope, name: SmolStr, value: Attribute) -> Result<Envelope> {
    let text = match &value {
        Attribute::Text(text) => text.clone(),
        Attribute::Integer(number) => smol_str::format_smolstr!("{number}"),
        Attribute::Boolean(truth) => smol_str::format_smolstr!("{truth}"),
    };
    Ok(match name.as_str() {
        "time" => event.with_time(
            text.parse()
                .map_err(|error: Error| error.at("attribute `time`"))?,
        ),
        "subject" => event.with_subject(text),
        "dataschema" => event.with_schema(text),
        "partitionkey" => event.with_key(text),
        "correlationid" => {
            event.with_correlation(EventId::new(text).map_err(|error| error.at("`correlationid`"))?)
        }
        "causationid" => {
            event.with_causation(EventId::new(text).map_err(|error| error.at("`causationid`"))?)
        }
        "traceparent" => event.with_traceparent(text),
        "tracestate" => event.with_tracestate(text),
        // Other producers use the name for versions such as "1.2", which are theirs to keep.
        "dataversion" if text.parse::<u32>().is_ok() => {
            event.with_version(text.parse().unwrap_or_default())
        }
        _ => {
            event.insert_extension(name, value);
            event
        }
    })
}

fn once<T>(slot: &mut Option<T>, name: &str, value: T) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(invalid(format!("attribute `{name}` is given twice"))),
    }
}

fn string(name: &str, value: &RawValue) -> Result<SmolStr> {
    serde_json::from_str(value.get()).map_err(|_| {
        invalid(format!(
            "attribute `{name}` must be a string, not {}",
            abridged(value)
        ))
    })
}

fn attribute(name: &str, value: &RawValue) -> Result<Attribute> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Scalar {
        Boolean(bool),
        Integer(i32),
        Text(SmolStr),
    }
    match serde_json::from_str(value.get()) {
        Ok(Scalar::Boolean(value)) => Ok(Attribute::Boolean(value)),
        Ok(Scalar::Integer(value)) => Ok(Attribute::Integer(value)),
        Ok(Scalar::Text(value)) => Ok(Attribute::Text(value)),
        Err(_) => Err(invalid(format!(
            "attribute `{name}` must be a string, a boolean or a 32-bit integer, not {}; \
             an object belongs into `data`",
            abridged(value)
        ))),
    }
}

fn abridged(value: &RawValue) -> SmolStr {
    match value.get().chars().nth(40) {
        None => value.get().into(),
        Some(_) => value.get().chars().take(40).chain(['…']).collect(),
    }
}

/// The members of the object in order, values not decoded.
struct Fields<'a>(Vec<(SmolStr, &'a RawValue)>);

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
                while let Some(member) = map.next_entry()? {
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

/// The most attributes that one event may have.
const MAX_ATTRIBUTES: usize = 96;
