//! Binary mode: attributes in `ce-` headers, data as the body.

use std::borrow::Cow;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use smol_str::SmolStr;

use super::structured::{MAX_ATTRIBUTES, few_extensions, once, set, twice, version_one};
use super::{essence, invalid, is_json, is_utf8};
use crate::envelope::{Attribute, Data, Envelope, EventId, JsonText};
use crate::error::Result;

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
        event = event.with_content_type(content_type);
    }
    for (name, value) in others {
        event = set(event, name, Attribute::Text(value))?;
    }
    few_extensions(event)
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
