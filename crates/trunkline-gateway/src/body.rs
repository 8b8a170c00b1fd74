//! What a request's body holds: events in one of the shapes that CloudEvents knows, or bare JSON.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;
use trunkline::core::envelope::JsonText;
use trunkline::core::wire::{BATCH, decode_binary, decode_structured, essence, is_structured};
use trunkline::core::{Clock, SystemClock};
use trunkline::{Data, Envelope, Error, ErrorKind, EventId, Result};

use crate::config::DoorConfig;

/// What `POST /v1/events` takes in its query. The type is for bare JSON, and the others go with it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Query {
    #[serde(rename = "type")]
    event_type: Option<String>,
    source: Option<String>,
    key: Option<String>,
}

/// How the body is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One structured event.
    Structured,
    /// A JSON array of structured events.
    Batch,
    /// A structured event on each line.
    Lines,
    /// Attributes in headers, the body is the data.
    Binary,
    /// The body is the data, the attributes are made.
    Bare,
    /// Each line is the data of an event, the attributes are made.
    BareLines,
}

impl Shape {
    /// # Errors
    /// [`ErrorKind::UnsupportedMediaType`].
    pub(crate) fn of(headers: &HeaderMap, query: &Query) -> Result<Self> {
        let content_type = match headers.get(header::CONTENT_TYPE) {
            Some(value) => str::from_utf8(value.as_bytes()).unwrap_or_default(),
            None => "",
        };
        let attributes = headers.keys().any(|name| name.as_str().starts_with("ce-"));
        let bare = query.event_type.is_some();
        let media_type = essence(content_type).to_ascii_lowercase();
        match media_type.as_str() {
            _ if is_structured(content_type) => Ok(Self::Structured),
            BATCH => Ok(Self::Batch),
            "application/x-ndjson" | "application/ndjson" if bare => Ok(Self::BareLines),
            "application/x-ndjson" | "application/ndjson" => Ok(Self::Lines),
            _ if attributes => Ok(Self::Binary),
            "application/json" if bare => Ok(Self::Bare),
            "application/json" => Err(Error::new(
                ErrorKind::UnsupportedMediaType,
                "bare JSON needs a type: add ?type=… to the URL or `ce-` headers, or send application/cloudevents+json",
            )),
            _ => Err(Error::new(
                ErrorKind::UnsupportedMediaType,
                format!("content type {media_type:?} without `ce-` headers is no event"),
            )),
        }
    }
}

/// The whole body.
///
/// # Errors
/// [`ErrorKind::TooLarge`] above the limit, [`ErrorKind::InvalidEvent`] if it breaks off.
pub(crate) async fn collect(headers: &HeaderMap, body: Body, max_bytes: usize) -> Result<Bytes> {
    let too_large = || {
        Error::new(
            ErrorKind::TooLarge,
            format!("the body is larger than the limit of {max_bytes} bytes"),
        )
    };
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    if headers.contains_key(header::EXPECT)
        && announced.is_some_and(|length: usize| length > max_bytes)
    {
        return Err(too_large()); // The client waits for leave, so it has sent nothing yet.
    }
    let mut whole = BytesMut::with_capacity(announced.unwrap_or(0).min(max_bytes));
    let mut received = 0_usize;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            Error::new(ErrorKind::InvalidEvent, "the body broke off").caused_by(error)
        })?;
        received += chunk.len();
        if received <= max_bytes {
            whole.extend_from_slice(&chunk);
        } else if received / 4 > max_bytes {
            break;
        } else {
            // Discarded and not refused at once: a client that is still sending would see its
            // connection reset before it reads why.
            whole = BytesMut::new();
        }
    }
    if received > max_bytes {
        Err(too_large())
    } else {
        Ok(whole.freeze())
    }
}

/// Reads a body of a request that is refused by what it says before, up to the limit. A body that is
/// left unread costs the connection, and with it all that a client has in mind for it.
pub(crate) async fn discard(headers: &HeaderMap, body: Body, max_bytes: usize) {
    if headers.contains_key(header::EXPECT) {
        return; // The client waits for leave, so it has sent nothing yet.
    }
    let mut received = 0_usize;
    let mut chunks = body.into_data_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        received += chunk.len();
        if received > max_bytes {
            break;
        }
    }
}

/// The events of a body, each in its place, those that are none as errors.
///
/// # Errors
/// [`ErrorKind::OverLimit`] for too many, [`ErrorKind::InvalidEvent`] for a batch that is no array.
pub(crate) fn events(
    shape: Shape,
    headers: &HeaderMap,
    query: &Query,
    bus_source: &str,
    body: &Bytes,
    config: &DoorConfig,
) -> Result<Vec<Result<Envelope>>> {
    let bare = |data: Bytes| bare(query, bus_source, &data);
    match shape {
        Shape::Structured => Ok(vec![decode_structured(body)]),
        Shape::Binary => Ok(vec![binary(headers, body)]),
        Shape::Bare => Ok(vec![bare(body.clone())]),
        Shape::Batch => batch(body, config.max_events),
        Shape::Lines => lines(body, config.max_events, |line| decode_structured(&line)),
        Shape::BareLines => lines(body, config.max_events, bare),
    }
}

fn binary(headers: &HeaderMap, body: &Bytes) -> Result<Envelope> {
    let text = |(name, value): (&header::HeaderName, &header::HeaderValue)| match str::from_utf8(
        value.as_bytes(),
    ) {
        Ok(value) => Ok((name.as_str().to_owned(), value.to_owned())),
        Err(error) => Err(Error::new(
            ErrorKind::InvalidEvent,
            format!("header `{name}` is not UTF-8"),
        )
        .caused_by(error)),
    };
    let ours = |(name, _): &(&header::HeaderName, _)| {
        name.as_str().starts_with("ce-") || *name == header::CONTENT_TYPE
    };
    let headers: Vec<_> = headers
        .iter()
        .filter(ours)
        .map(text)
        .collect::<Result<_>>()?;
    decode_binary(
        headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
        body,
    )
}

fn bare(query: &Query, bus_source: &str, data: &Bytes) -> Result<Envelope> {
    let data = Data::Json(JsonText::new(data)?);
    // Only a part of the id; the event's time is taken by the bus, from its own clock.
    let id = EventId::generate(SystemClock.now());
    let source = query.source.as_deref().unwrap_or(bus_source);
    let event_type = query.event_type.as_deref().unwrap_or_default();
    let event = Envelope::new(id, source, event_type, data)?.with_own_correlation();
    Ok(match &query.key {
        Some(key) => event.with_key(key.as_str()),
        None => event,
    })
}

fn lines(
    body: &Bytes,
    max_events: usize,
    event: impl Fn(Bytes) -> Result<Envelope>,
) -> Result<Vec<Result<Envelope>>> {
    let lines = || {
        let numbered = body.split(|byte| *byte == b'\n').enumerate();
        numbered
            .map(|(index, line)| (index + 1, line.trim_ascii()))
            .filter(|(_, line)| !line.is_empty())
    };
    if lines().nth(max_events).is_some() {
        return Err(too_many(max_events));
    }
    // Each event has its own copy, so that one of them does not keep the whole body in memory.
    let read = |(number, line)| {
        event(Bytes::copy_from_slice(line)).map_err(|error| error.at(format_args!("line {number}")))
    };
    Ok(lines().map(read).collect())
}

fn batch(body: &Bytes, max_events: usize) -> Result<Vec<Result<Envelope>>> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let elements = reader
        .deserialize_seq(Elements { max_events })
        .and_then(|elements| reader.end().map(|()| elements));
    let elements = elements.map_err(|error| {
        Error::new(
            ErrorKind::InvalidEvent,
            "the body is not a JSON array of events",
        )
        .caused_by(error)
    })?;
    let elements = elements.ok_or_else(|| too_many(max_events))?;
    let read = |(index, element): (usize, &RawValue)| {
        let event = decode_structured(&Bytes::copy_from_slice(element.get().as_bytes()));
        event.map_err(|error| error.at(format_args!("event {}", index + 1)))
    };
    Ok(elements.into_iter().enumerate().map(read).collect())
}

/// The elements of an array as text, or none if there are too many: a body of `[1,1,1,…` must not
/// take many times its size.
struct Elements {
    max_events: usize,
}

impl<'de> Visitor<'de> for Elements {
    type Value = Option<Vec<&'de RawValue>>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(
        self,
        mut seq: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element::<&RawValue>()? {
            if elements.len() < self.max_events {
                elements.push(element);
                continue;
            }
            while seq
                .next_element::<serde::de::IgnoredAny>()
                .map_err(A::Error::custom)?
                .is_some()
            {}
            return Ok(None);
        }
        Ok(Some(elements))
    }
}

fn too_many(max_events: usize) -> Error {
    Error::new(
        ErrorKind::OverLimit,
        format!("the request has more than {max_events} events; split it"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_told_by_content_type_then_attributes_then_type() {
        let check =
            |content_type: &str, attribute: bool, event_type: bool, expected: Option<Shape>| {
                let mut headers = HeaderMap::new();
                headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
                if attribute {
                    headers.insert("ce-specversion", "1.0".parse().unwrap());
                }
                let query = Query {
                    event_type: event_type.then(|| "a.b".to_owned()),
                    ..Query::default()
                };
                let shape = Shape::of(&headers, &query);
                assert_eq!(
                    shape.as_ref().ok(),
                    expected.as_ref(),
                    "{content_type} {attribute} {event_type}"
                );
            };
        check(
            "application/cloudevents+json; charset=utf-8",
            true,
            true,
            Some(Shape::Structured),
        );
        check(
            "Application/CloudEvents-Batch+JSON",
            true,
            false,
            Some(Shape::Batch),
        );
        check("application/x-ndjson", false, false, Some(Shape::Lines));
        check("application/x-ndjson", false, true, Some(Shape::BareLines));
        check("application/json", true, true, Some(Shape::Binary));
        check("application/json", false, true, Some(Shape::Bare));
        check("application/json", false, false, None);
        check("image/png", true, false, Some(Shape::Binary));
        check("image/png", false, true, None);
        check("", true, false, Some(Shape::Binary));
        check("application/x-www-form-urlencoded", false, true, None);
    }

    #[test]
    fn a_bad_line_refuses_only_itself_and_is_named() {
        let body = Bytes::from_static(b"1\r\n\n{\"half\": \n\xff\n4");
        let query = Query {
            event_type: Some("a.b".to_owned()),
            ..Query::default()
        };
        let events = lines(&body, 4, |line| bare(&query, "/s", &line)).unwrap();
        let told: Vec<_> = events
            .iter()
            .map(|event| {
                event
                    .as_ref()
                    .map_err(|error| error.message()[..6].to_owned())
                    .is_ok()
            })
            .collect();
        assert_eq!(told, [true, false, false, true]);
        assert!(
            events[1]
                .as_ref()
                .unwrap_err()
                .message()
                .starts_with("line 3: ")
        );
        assert!(
            events[2]
                .as_ref()
                .unwrap_err()
                .message()
                .starts_with("line 4: ")
        );
        assert_eq!(
            lines(&body, 3, |line| bare(&query, "/s", &line))
                .unwrap_err()
                .kind(),
            ErrorKind::OverLimit
        );
    }

    #[test]
    fn a_batch_is_one_array_of_limited_length() {
        let kind = |body: &'static str| {
            batch(&Bytes::from_static(body.as_bytes()), 2)
                .map(|events| events.len())
                .map_err(|error| error.kind())
        };
        assert_eq!(kind("[]"), Ok(0));
        assert_eq!(kind(" [1, {}] "), Ok(2));
        assert_eq!(kind("[1, 2, 3]"), Err(ErrorKind::OverLimit));
        for bad in ["", "{}", "[1", "[1] 2", "[1, 2, 3", "[1, 2, 3,]"] {
            assert_eq!(kind(bad), Err(ErrorKind::InvalidEvent), "{bad}");
        }
    }
}
