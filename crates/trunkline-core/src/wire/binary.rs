//! Binary mode: attributes in `ce-` headers, data as the body.

use std::borrow::Cow;

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use smol_str::SmolStr;

use super::structured::{MAX_ATTRIBUTES, few_extensions, once, set, twice, version_one};
use super::{essence, invalid, is_json, is_utf8};
use crate::envelope::{Attribute, Data, Envelope, EventId, JsonText};
use crate::error::Result;
use crate::headers::Headers;

/// What a header's value cannot hold as it is (HTTP binding, 3.1.3.2); everything beyond ASCII is
/// encoded anyway.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Reads one event from `ce-` headers (in any case, values percent-encoded) and its body.
///
/// The data's media type is `content-type`, or `ce-datacontenttype` as the NATS binding's draft
/// has it. JSON data is checked, text is kept as text. Headers without the prefix are not part of
/// the event.
///
/// # Errors
/// [`ErrorKind::InvalidEvent`](crate::ErrorKind::InvalidEvent) with the header at fault.
pub fn decode<'a>(
    headers: impl Iterator<Item = (&'a str, &'a str)>,
    body: &Bytes,
) -> Result<Envelope> {
    let mut id = None;
    let mut source = None;
    let mut event_type = None;
    let mut specversion = None;
    let mut content_type = None;
    let mut declared_type = None;
    let mut others: Vec<(SmolStr, SmolStr)> = Vec::new();
    for (name, value) in headers {
        if name.eq_ignore_ascii_case("content-type") {
            once(
                &mut content_type,
                "content-type",
                SmolStr::new(value.trim()),
            )?;
            continue;
        }
        let Some((prefix, name)) = name.split_at_checked(3) else {
            continue;
        };
        if !prefix.eq_ignore_ascii_case("ce-") {
            continue;
        }
        let name = SmolStr::from(name.to_ascii_lowercase());
        let value = text(&name, value)?;
        match name.as_str() {
            "id" => once(&mut id, &name, EventId::new(value)?)?,
            "source" => once(&mut source, &name, value)?,
            "type" => once(&mut event_type, &name, value)?,
            "specversion" => once(&mut specversion, &name, value)?,
            "datacontenttype" => once(&mut declared_type, &name, value)?,
            "data" | "data_base64" => {
                return Err(invalid(format!(
                    "header `ce-{name}` is not an attribute; the data is the body"
                )));
            }
            _ if others.iter().any(|(other, _)| *other == name) => return Err(twice(&name)),
            _ if others.len() == MAX_ATTRIBUTES => {
                return Err(invalid(format!("more than {MAX_ATTRIBUTES} attributes")));
            }
            _ => others.push((name, value)),
        }
    }
    version_one(specversion.as_deref())?;
    let missing = |name| invalid(format!("header `ce-{name}` is missing"));
    // What names the attribute goes first: `content-type` may be some client's default.
    let content_type = declared_type
        .or(content_type)
        .filter(|content_type| !content_type.is_empty());
    let mut event = Envelope::new(
        id.ok_or_else(|| missing("id"))?,
        source.ok_or_else(|| missing("source"))?,
        event_type.ok_or_else(|| missing("type"))?,
        data(content_type.as_deref(), body)?,
    )?;
    if let Some(content_type) = content_type {
        event.set_content_type(content_type);
    }
    for (name, value) in others {
        set(&mut event, &name, &Attribute::Text(value))?;
    }
    few_extensions(event)
}

/// Writes the event as `ce-` headers and a body that is the data alone.
///
/// None for what only structured mode can say, so that it would be read as something else: bytes or
/// text whose media type is JSON, text of another charset than UTF-8, data that is there and empty,
/// and attributes whose names no header can have. The type of an own attribute is lost: to a reader
/// it is a string. JSON without a media type gets one, because bytes without one are not JSON.
///
/// # Errors
/// [`ErrorKind::Encode`](crate::ErrorKind::Encode) when a shared value's serializer fails.
pub fn encode(event: &Envelope) -> Result<Option<(Headers, Bytes)>> {
    let media = match (event.content_type(), event.data()) {
        (None, Data::Json(_) | Data::Value(_)) => Some("application/json"),
        (media, _) => media,
    };
    let sayable = match event.data() {
        Data::None => true,
        Data::Json(_) | Data::Value(_) => media.is_none_or(is_utf8),
        Data::Text(text) => !text.is_empty() && media.is_none_or(plain),
        Data::Binary(bytes) => {
            !bytes.is_empty() && !media.is_some_and(|media| is_json(Some(media)))
        }
    };
    if !sayable {
        return Ok(None);
    }
    let body = event.data().to_bytes()?;
    Ok(attributes(event, media).ok().map(|headers| (headers, body)))
}

/// Whether text of this media type can be the body.
fn plain(media: &str) -> bool {
    is_utf8(media) && !is_json(Some(media))
}

/// The headers of an event, in the order in which structured mode has its attributes.
fn attributes(event: &Envelope, media: Option<&str>) -> Result<Headers> {
    let mut headers = Headers::new();
    let mut set = |name: &str, value: &str| {
        let value = utf8_percent_encode(value, ENCODED);
        headers.restore(
            &smol_str::format_smolstr!("ce-{name}"),
            &smol_str::format_smolstr!("{value}"),
        )
    };
    set("specversion", "1.0")?;
    set("id", &smol_str::format_smolstr!("{}", event.id()))?;
    set("source", event.source())?;
    set("type", event.event_type())?;
    let time = event.time().map(|time| smol_str::format_smolstr!("{time}"));
    let version = event
        .version()
        .map(|version| smol_str::format_smolstr!("{version}"));
    let id = |id: Option<&EventId>| id.map(|id| smol_str::format_smolstr!("{id}"));
    let known = [
        ("time", time.as_deref()),
        ("subject", event.subject()),
        ("datacontenttype", media),
        ("dataschema", event.schema()),
        ("dataversion", version.as_deref()),
        ("partitionkey", event.key()),
        ("correlationid", id(event.correlation()).as_deref()),
        ("causationid", id(event.causation()).as_deref()),
        ("traceparent", event.traceparent()),
        ("tracestate", event.tracestate()),
    ]
    .map(|(name, value)| (name, value.map(SmolStr::new)));
    for (name, value) in known {
        if let Some(value) = value {
            set(name, &value)?;
        }
    }
    for (name, value) in event.extensions() {
        match value {
            Attribute::Text(value) => set(name, value)?,
            Attribute::Boolean(value) => set(name, &smol_str::format_smolstr!("{value}"))?,
            Attribute::Integer(value) => set(name, &smol_str::format_smolstr!("{value}"))?,
        }
    }
    // Readers that come from HTTP look here; as a media type it is not encoded.
    if let Some(media) = media {
        headers.restore("content-type", media)?;
    }
    Ok(headers)
}

/// A header's value: first without quotes, then percent-decoded once (HTTP binding, 3.1.3.2).
fn text(name: &str, value: &str) -> Result<SmolStr> {
    percent_decode_str(&unquoted(value.trim_ascii()))
        .decode_utf8()
        .map(SmolStr::from)
        .map_err(|error| invalid(format!("header `ce-{name}` is not UTF-8")).caused_by(error))
}

/// Older producers put a value in double quotes, with a backslash before what is to be kept.
fn unquoted(value: &str) -> Cow<'_, str> {
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    match quoted {
        None => value.into(),
        Some(inner) if !inner.contains('\\') => inner.into(),
        Some(inner) => {
            let mut chars = inner.chars();
            let next = || match chars.next() {
                Some('\\') => chars.next(),
                other => other,
            };
            std::iter::from_fn(next).collect::<String>().into()
        }
    }
}

fn data(content_type: Option<&str>, body: &Bytes) -> Result<Data> {
    if body.is_empty() {
        return Ok(Data::None);
    }
    // Without a media type nothing may be assumed; of another charset we know only the bytes.
    let Some(content_type) = content_type.filter(|content_type| is_utf8(content_type)) else {
        return Ok(Data::Binary(body.clone()));
    };
    let is_text = || {
        let start = essence(content_type).as_bytes().get(..5);
        start.is_some_and(|start| start.eq_ignore_ascii_case(b"text/"))
    };
    if is_json(Some(content_type)) {
        return JsonText::new(body).map(Data::Json);
    }
    match std::str::from_utf8(body) {
        Ok(text) if is_text() => Ok(Data::Text(text.into())),
        _ => Ok(Data::Binary(body.clone())),
    }
}
