//! How an event looks outside this process: CloudEvents 1.0, structured or binary.
//!
//! `WIRE.md` states it for other languages, with the test vectors that this module is held to.

mod binary;
mod legacy;
mod structured;

use std::sync::Arc;

use bytes::Bytes;

use crate::envelope::{Data, Envelope};
use crate::error::{Error, ErrorKind, Result};
use crate::headers::Headers;

pub use binary::{decode as decode_binary, encode as encode_binary};
pub use legacy::{Legacy, Place, decode as decode_legacy};
pub use structured::{decode as decode_structured, encode as encode_structured, encoded_len};

/// The media type of one structured event.
pub const STRUCTURED: &str = "application/cloudevents+json";
/// The media type of a JSON array of structured events.
pub const BATCH: &str = "application/cloudevents-batch+json";

/// How events are written where messages have headers. Both modes are read, whichever is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContentMode {
    /// One JSON object, which any client reads without a header.
    #[default]
    Structured,
    /// Attributes as `ce-` headers and the data alone as the body: less for large data, and for
    /// data that JSON could only hold as Base64. What this mode cannot say is written structured.
    Binary,
}

/// A message's content: bytes, or an event that need not be encoded inside this process.
#[derive(Clone, Debug)]
pub enum Body {
    /// As it came, or as it must be kept.
    Bytes(Bytes),
    /// Shared; encoded (structured) only by engines that leave the process.
    Event(Arc<Envelope>),
}

impl Body {
    /// The bytes, encoding the event if it is not encoded yet.
    ///
    /// # Errors
    /// [`ErrorKind::Encode`] when a shared value's serializer fails.
    pub fn to_bytes(&self) -> Result<Bytes> {
        match self {
            Body::Bytes(bytes) => Ok(bytes.clone()),
            Body::Event(event) => encode_structured(event),
        }
    }

    /// As [`to_event`](Self::to_event), and what is no CloudEvent in one of these forms.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] for bytes that are no CloudEvent in either mode and have none of
    /// the forms, or that have one and cannot be an event.
    pub fn to_event_or(
        &self,
        headers: &Headers,
        forms: &[Legacy],
        place: &Place<'_>,
    ) -> Result<Arc<Envelope>> {
        let fault = match self.to_event(headers) {
            Ok(event) => return Ok(event),
            Err(fault) => fault,
        };
        let Body::Bytes(bytes) = self else {
            return Err(fault);
        };
        match decode_legacy(forms, headers, bytes, place)? {
            Some(event) => Ok(Arc::new(event)),
            None => Err(fault),
        }
    }

    /// What leaves the process: headers and bytes, the event encoded in that mode if it is not
    /// encoded yet. Headers that name a media type say how their event is to be read, so that it
    /// is structured then.
    ///
    /// # Errors
    /// [`ErrorKind::Encode`] when a shared value's serializer fails.
    pub fn to_message(&self, headers: &Headers, mode: ContentMode) -> Result<(Headers, Bytes)> {
        let own = headers.get("content-type").is_none();
        if let (Body::Event(event), ContentMode::Binary, true) = (self, mode, own)
            && let Some((mut all, body)) = encode_binary(event)?
        {
            for (name, value) in headers.iter() {
                all.restore(name, value)?;
            }
            return Ok((all, body));
        }
        Ok((headers.clone(), self.to_bytes()?))
    }

    /// About how many bytes this takes in memory. A shared value counts with its own size only.
    pub fn rough_bytes(&self) -> usize {
        match self {
            Body::Bytes(bytes) => bytes.len(),
            Body::Event(event) => event.rough_bytes(),
        }
    }

    /// The encoded size with headers, if that is above `limit`.
    ///
    /// A value that is shared and not encoded has no size yet, so it is never above.
    ///
    /// # Errors
    /// None today; encoding something that is only counted may fail for other writers.
    pub fn size_above(&self, headers: &Headers, limit: usize) -> Result<Option<usize>> {
        let size = match self {
            Body::Bytes(bytes) => bytes.len(),
            // JSON escapes make at most six bytes of one, so a small event need not be counted.
            Body::Event(event) if event.rough_bytes() < limit / 8 => return Ok(None),
            Body::Event(event) if matches!(event.data(), Data::Value(_)) => return Ok(None),
            Body::Event(event) => encoded_len(event)?,
        } + headers.bytes();
        Ok((size > limit).then_some(size))
    }

    /// The event, decoding attributes but not data.
    ///
    /// The mode is told by `content-type` and `ce-` headers; without either the body must be
    /// structured.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] for bytes that are no CloudEvent in either mode.
    pub fn to_event(&self, headers: &Headers) -> Result<Arc<Envelope>> {
        let bytes = match self {
            Body::Event(event) => return Ok(Arc::clone(event)),
            Body::Bytes(bytes) => bytes,
        };
        if is_binary(headers) {
            return decode_binary(headers.iter(), bytes).map(Arc::new);
        }
        decode_structured(bytes).map(Arc::new)
    }
}

/// Whether these headers hold the attributes of an event whose data is the body.
pub fn is_binary(headers: &Headers) -> bool {
    let structured = headers.get("content-type").is_some_and(is_structured);
    !structured && headers.get("ce-specversion").is_some()
}

/// The headers beside an event: without those that are the event's own attributes.
pub fn beside(headers: Headers) -> Headers {
    if !is_binary(&headers) {
        return headers;
    }
    let attribute = |name: &str| {
        let start = name.get(..3).unwrap_or_default();
        start.eq_ignore_ascii_case("ce-") || name.eq_ignore_ascii_case("content-type")
    };
    headers.without(attribute)
}

/// Whether a media type announces one structured event in JSON, parameters aside.
///
/// The NATS binding's draft also names `application/cloudevents` alone, which can only be JSON.
pub fn is_structured(content_type: &str) -> bool {
    [STRUCTURED, "application/cloudevents"]
        .iter()
        .any(|known| essence(content_type).eq_ignore_ascii_case(known))
}

/// A media type without its parameters.
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Whether data of this media type is JSON; data without a type is.
fn is_json(content_type: Option<&str>) -> bool {
    let Some(content_type) = content_type else {
        return true;
    };
    let end = essence(content_type).as_bytes().last_chunk::<5>();
    end.is_some_and(|end| end.eq_ignore_ascii_case(b"/json") || end.eq_ignore_ascii_case(b"+json"))
}

/// Whether bytes of this media type are UTF-8: no charset says otherwise.
fn is_utf8(content_type: &str) -> bool {
    let charset = content_type
        .split(';')
        .skip(1)
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
        .map(|(_, value)| value.trim().trim_matches('"').to_ascii_lowercase());
    charset.is_none_or(|charset| matches!(charset.as_str(), "utf-8" | "utf8" | "us-ascii"))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidEvent, message)
}
