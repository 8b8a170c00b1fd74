//! Messages of NATS and events of ours, one into the other.

use async_nats::{HeaderMap, HeaderName, HeaderValue, Message};
use base64::Engine as _;
use trunkline_core::engine::{Seq, StoredEvent};
use trunkline_core::wire::{self, Body};
use trunkline_core::{Headers, Result, Subject, Timestamp};

use crate::api::internal;

const CONTENT_TYPE: &str = "content-type";
/// What a subject is called that has no place here: too many tokens or bytes for ours.
const UNSPEAKABLE: &str = "trunkline.unspeakable-subject";

/// Headers as NATS writes them.
pub(crate) fn to_nats(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter() {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            map.append(name, value);
        }
    }
    map
}

/// Whether a stored event is structured, and its headers do not say so.
pub(crate) fn is_structured(headers: &Headers, body: &Body) -> bool {
    matches!(body, Body::Event(_))
        && headers.get(CONTENT_TYPE).is_none()
        && !wire::is_binary(headers)
}

/// Adds that an event is structured.
pub(crate) fn say_structured(map: &mut HeaderMap) {
    map.insert(HeaderName::from_static(CONTENT_TYPE), wire::STRUCTURED);
}

/// The publisher's headers: without the server's and the client's own, and without saying that a
/// structured event is one, which is the rule.
pub(crate) fn from_nats(map: Option<&HeaderMap>) -> Headers {
    let mut headers = Headers::new();
    let Some(map) = map else {
        return headers;
    };
    let mut own: Vec<(&str, &HeaderValue)> = map
        .iter()
        .flat_map(|(name, values)| {
            values
                .iter()
                .map(move |value| (AsRef::<str>::as_ref(name), value))
        })
        .filter(|(name, value)| {
            let nats = name
                .get(..5)
                .is_some_and(|head| head.eq_ignore_ascii_case("nats-"));
            let rule =
                name.eq_ignore_ascii_case(CONTENT_TYPE) && value.as_str() == wire::STRUCTURED;
            !nats && !rule
        })
        .collect();
    // The client keeps headers in no order; ours are equal if they are in the same one.
    own.sort_by_key(|(name, _)| *name);
    for (name, value) in own {
        if let Err(error) = headers.restore(name, value.as_str()) {
            tracing::debug!(header = name, %error, "a header of a foreign publisher is left out");
        }
    }
    headers
}

/// A value of the server's or of ours, by its exact name.
pub(crate) fn header<'a>(map: Option<&'a HeaderMap>, name: &'static str) -> Option<&'a str> {
    map.and_then(|map| map.get(name)).map(HeaderValue::as_str)
}

/// A subject of ours, whatever it is on the wire.
pub(crate) fn subject(text: &str) -> Subject {
    Subject::new(text).unwrap_or_else(|error| {
        tracing::warn!(subject = text, %error, "a subject has no place here");
        #[expect(clippy::expect_used, reason = "a literal that a test makes")]
        Subject::new(UNSPEAKABLE).expect("a legal subject")
    })
}

/// What a delivery's reply subject says of it:
/// `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>[.<random>]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) delivered: u32,
    pub(crate) seq: Seq,
    pub(crate) consumer_seq: u64,
    pub(crate) at: Timestamp,
    /// Events that match and were not delivered yet.
    pub(crate) pending: u64,
}

impl Place {
    pub(crate) fn of(message: &Message) -> Option<Self> {
        Self::read(message.reply.as_ref()?.as_str())
    }

    fn read(reply: &str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let dots = rest.bytes().filter(|byte| *byte == b'.').count();
        let skip = match dots + 1 {
            7 => 2,
            9.. => 4,
            _ => return None,
        };
        let mut tokens = rest.split('.').skip(skip);
        let mut number = || tokens.next()?.parse::<u64>().ok();
        Some(Self {
            delivered: u32::try_from(number()?).unwrap_or(u32::MAX),
            seq: number()?,
            consumer_seq: number()?,
            at: Timestamp::from_nanos(i64::try_from(number()?).ok()?),
            pending: number()?,
        })
    }
}

/// An event as a consumer delivers it.
pub(crate) fn delivered(message: Message, place: &Place) -> StoredEvent {
    StoredEvent {
        seq: place.seq,
        at: place.at,
        subject: subject(&message.subject),
        headers: from_nats(message.headers.as_ref()),
        body: Body::Bytes(message.payload),
    }
}

/// An event as a direct get gives it: its place is in headers, its subject too.
pub(crate) fn direct(message: Message) -> Option<StoredEvent> {
    let map = message.headers.as_ref();
    Some(StoredEvent {
        seq: header(map, "Nats-Sequence")?.parse().ok()?,
        at: header(map, "Nats-Time-Stamp")?.parse().ok()?,
        subject: subject(header(map, "Nats-Subject")?),
        headers: from_nats(map),
        body: Body::Bytes(message.payload),
    })
}

/// Headers as the JetStream API gives them: encoded, as they stand on the wire.
///
/// # Errors
/// [`trunkline_core::ErrorKind::Internal`] for what is not so encoded.
pub(crate) fn decoded_headers(text: &str) -> Result<HeaderMap> {
    let bytes = decoded(text)?;
    let mut map = HeaderMap::new();
    // The first line says what follows.
    for line in String::from_utf8_lossy(&bytes).split("\r\n").skip(1) {
        if let Some((name, value)) = line.split_once(':')
            && let (Ok(name), Ok(value)) = (
                name.parse::<HeaderName>(),
                value.trim().parse::<HeaderValue>(),
            )
        {
            map.append(name, value);
        }
    }
    Ok(map)
}

/// Bytes as the JetStream API gives them.
///
/// # Errors
/// [`trunkline_core::ErrorKind::Internal`] for what is not so encoded.
pub(crate) fn decoded(text: &str) -> Result<Vec<u8>> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    decoded.map_err(|error| internal("read a stored message", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_reply_subject_are_read() {
        let place = Place {
            delivered: 2,
            seq: 17,
            consumer_seq: 9,
            at: Timestamp::from_nanos(1_700_000_000_000_000_000),
            pending: 3,
        };
        for reply in [
            "$JS.ACK.EVENTS.work.2.17.9.1700000000000000000.3",
            "$JS.ACK.hub.ACCHASH.EVENTS.work.2.17.9.1700000000000000000.3",
            "$JS.ACK._.ACCHASH.EVENTS.work.2.17.9.1700000000000000000.3.x7f",
        ] {
            assert_eq!(Place::read(reply), Some(place), "{reply}");
        }
        assert_eq!(Place::read("_INBOX.x"), None);
        assert_eq!(Place::read("$JS.ACK.EVENTS.work.2.17"), None);
        Subject::new(UNSPEAKABLE).unwrap();
    }

    #[test]
    fn what_is_the_servers_own_is_not_the_publishers() {
        let mut map = HeaderMap::new();
        map.insert("Nats-Msg-Id", "7");
        map.insert("content-type", wire::STRUCTURED);
        map.insert("b", "2");
        map.insert("a", "1");
        let headers = from_nats(Some(&map));
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
    }
}
