//! Binary mode: attributes in `ce-` headers, data as the body.

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use smol_str::SmolStr;

use super::structured::{set, version_one};
use super::{invalid, is_json};
use crate::envelope::{Attribute, Data, Envelope, EventId, JsonText};
use crate::error::Result;

/// Reads one event from `ce-` headers (in any case, values percent-encoded) and its body.
///
/// `content-type` is the data's media type; JSON data is checked, text is kept as text. Headers
/// without the prefix are not part of the event.
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
    let mut others = Vec::new();
    for (name, value) in headers {
        if name.eq_ignore_ascii_case("content-type") {
            content_type = Some(SmolStr::new(value));
            continue;
        }
        let Some((prefix, name)) = name.split_at_checked(3) else {
            continue;
        };
        if !prefix.eq_ignore_ascii_case("ce-") {
            continue;
        }
        let name = SmolStr::from(name.to_ascii_lowercase());
        let value = SmolStr::from(percent_decode_str(value).decode_utf8().map_err(|error| {
            invalid(format!("header `ce-{name}` is not UTF-8")).caused_by(error)
        })?);
        match name.as_str() {
            "id" => id = Some(EventId::new(value)?),
            "source" => source = Some(value),
            "type" => event_type = Some(value),
            "specversion" => specversion = Some(value),
            _ => others.push((name, value)),
        }
    }
    version_one(specversion.as_deref())?;
    let missing = |name| invalid(format!("header `ce-{name}` is missing"));
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
    Ok(event)
}

fn data(content_type: Option<&str>, body: &Bytes) -> Result<Data> {
    if body.is_empty() {
        return Ok(Data::None);
    }
    match content_type {
        Some(_) if is_json(content_type) => JsonText::new(body).map(Data::Json),
        _ => match std::str::from_utf8(body) {
            Ok(text) if content_type.is_some_and(|media| media.starts_with("text/")) => {
                Ok(Data::Text(text.into()))
            }
            _ => Ok(Data::Binary(body.clone())),
        },
    }
}
