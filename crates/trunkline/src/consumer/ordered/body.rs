//! The body of an event that left the main flow, as the bucket keeps it: whole, whatever retention
//! does to the stream meanwhile, in pieces no larger than the engine takes.
//!
//! ```text
//! bytes   0…3            4 … 4+n        4+n …
//!         n, u32 LE      head, JSON     the message's bytes
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use trunkline_core::engine::{Credit, Expectation, Op, Position, Seq, StateKey, StoredEvent};
use trunkline_core::wire::Body;
use trunkline_core::{Error, ErrorKind, Headers, Result, Subject, Timestamp};

use super::claim::Place;

#[derive(Serialize, Deserialize)]
struct Head {
    seq: Seq,
    /// Nanoseconds since 1970.
    at: i64,
    subject: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
}

/// The pieces of an event.
pub(super) fn encode(event: &StoredEvent, max_piece: usize) -> Result<Vec<Bytes>> {
    let head = Head {
        seq: event.seq,
        at: event.at.as_nanos(),
        subject: event.subject.to_string(),
        headers: event
            .headers
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    };
    let head = serde_json::to_vec(&head).map_err(|error| {
        Error::new(
            ErrorKind::Internal,
            "a side record's body cannot be written",
        )
        .caused_by(error)
    })?;
    let message = event.body.to_bytes()?;
    let mut whole = BytesMut::with_capacity(4 + head.len() + message.len());
    whole.put_u32_le(u32::try_from(head.len()).unwrap_or(u32::MAX));
    whole.put_slice(&head);
    whole.put_slice(&message);
    let mut whole = whole.freeze();
    let mut pieces = Vec::with_capacity(whole.len() / max_piece + 1);
    while whole.len() > max_piece {
        pieces.push(whole.split_to(max_piece));
    }
    pieces.push(whole);
    Ok(pieces)
}

fn decode(pieces: &[Bytes]) -> Option<StoredEvent> {
    let mut whole = Bytes::from(pieces.concat());
    let length = whole
        .first_chunk::<4>()
        .map(|head| u32::from_le_bytes(*head))?;
    let end = usize::try_from(length).ok()?.checked_add(4)?;
    let head: Head = serde_json::from_slice(whole.get(4..end)?).ok()?;
    let mut headers = Headers::new();
    for (name, value) in &head.headers {
        headers.restore(name, value).ok()?;
    }
    Some(StoredEvent {
        seq: head.seq,
        at: Timestamp::from_nanos(head.at),
        subject: Subject::new(head.subject).ok()?,
        headers,
        body: Body::Bytes(whole.split_off(end)),
    })
}

/// Reads an event back; from the stream if not all of its pieces are there.
///
/// # Errors
/// [`ErrorKind::Damaged`] when it is in neither, and the engine's own.
pub(super) async fn load(
    place: &Place,
    generation: u64,
    seq: Seq,
    pieces: usize,
) -> Result<StoredEvent> {
    match load_pieces(place, generation, seq, pieces).await {
        Err(error) if error.kind() == ErrorKind::Damaged => {
            let from = Position::Seq(seq);
            let log = place.store.engine.log();
            let page = log.read(&place.stream, from, &[], Credit::items(1)).await?;
            let mut events = page.events.into_iter();
            events.find(|event| event.seq == seq).ok_or(error)
        }
        loaded => loaded,
    }
}

async fn load_pieces(
    place: &Place,
    generation: u64,
    seq: Seq,
    pieces: usize,
) -> Result<StoredEvent> {
    let (engine, bucket, keys) = (&place.store.engine, &place.store.bucket, &place.keys);
    let prefix = keys.body(generation, seq)?;
    let (mut found, mut after) = (Vec::with_capacity(pieces), None);
    loop {
        let page = engine
            .state()
            .scan(
                bucket,
                Some(&prefix),
                after.as_ref(),
                0,
                Credit::items(pieces.max(1)),
            )
            .await?;
        found.extend(page.entries.into_iter().map(|entry| entry.value));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let damaged = || {
        Error::new(
            ErrorKind::Damaged,
            format!(
                "the body of event {seq}, kept in {pieces} pieces below {prefix}, cannot be read"
            ),
        )
    };
    if found.len() != pieces {
        return Err(damaged());
    }
    decode(&found).ok_or_else(damaged)
}

pub(super) fn put(key: StateKey, value: Bytes) -> Op {
    Op::Put {
        key,
        value,
        expect: Expectation::Any,
        ttl: None,
    }
}

pub(super) fn delete(key: StateKey) -> Op {
    Op::Delete {
        key,
        expect: Expectation::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_as_it_was_kept_in_one_piece_or_many() {
        let mut headers = Headers::new();
        headers.add("tenant", "ü").unwrap();
        let event = StoredEvent {
            seq: 7,
            at: Timestamp::from_nanos(5),
            subject: Subject::new("events.order.placed").unwrap(),
            headers,
            body: Body::Bytes(Bytes::from_static(b"not\0json")),
        };
        for (max_piece, count) in [(10_000, 1), (10, 5)] {
            let pieces = encode(&event, max_piece).unwrap();
            assert!(pieces.len() >= count, "{}", pieces.len());
            let read = decode(&pieces).unwrap();
            assert_eq!(
                (read.seq, read.at, &read.subject),
                (7, event.at, &event.subject)
            );
            assert_eq!(read.headers.get("tenant"), Some("ü"));
            assert_eq!(read.body.to_bytes().unwrap(), b"not\0json"[..]);
        }
        assert!(decode(&[Bytes::from_static(b"\xff\xff\xff\xff")]).is_none());
        assert!(decode(&[]).is_none());
    }
}
