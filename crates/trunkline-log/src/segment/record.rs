//! What stands in the groups of a segment: a head, then events or ranges that were removed.

use bytes::Bytes;
use siphasher::sip128::SipHasher13;
use trunkline_core::engine::{Seq, StoredEvent};
use trunkline_core::wire::Body;
use trunkline_core::{Error, ErrorKind, EventId, Headers, Result, Subject, Timestamp};

use crate::frame::Fields;

/// Kind of a group with events.
pub(crate) const EVENTS: u8 = 1;
/// Kind of the first group of a segment: how the stream stood when the segment was begun.
pub(crate) const STATE: u8 = 2;
/// Kind of a group with sequences that were removed.
pub(crate) const REMOVED: u8 = 3;

/// Bytes at the start of the content of every group.
pub(crate) const HEAD_LEN: usize = 32;

const HAS_ID: u8 = 1;
const HAS_HEADERS: u8 = 2;

/// Keys of the hash of ids. They are part of the format.
const ID_KEYS: (u64, u64) = (0x7472_756e_6b6c_696e, 0x652d_6576_656e_7473);

/// What every group begins with: how the stream stands once it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The sequence of its first event; of a group without events, that of the next.
    pub(crate) seq: Seq,
    /// When its events were stored; never before those of the group before.
    pub(crate) at: Timestamp,
    /// The first sequence of the stream.
    pub(crate) first: Seq,
    /// Bytes of the events that the stream has.
    pub(crate) bytes: u64,
}

impl Head {
    pub(crate) fn encode(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        bytes[..8].copy_from_slice(&self.seq.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.at.as_nanos().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.to_le_bytes());
        bytes[24..].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(content: &[u8]) -> Option<Self> {
        let head = Fields(content.get(..HEAD_LEN)?);
        Some(Self {
            seq: head.u64(0),
            at: Timestamp::from_nanos(head.u64(8).cast_signed()),
            first: head.u64(16),
            bytes: head.u64(24),
        })
    }
}

/// What an id is remembered by: 128 bits, so that two ids never share one by chance.
pub(crate) fn fingerprint(id: &EventId) -> u128 {
    let mut room = [0; EventId::UUID_BYTES];
    let text = id.text(&mut room).as_bytes();
    SipHasher13::new_with_keys(ID_KEYS.0, ID_KEYS.1)
        .hash(text)
        .as_u128()
}

/// Bytes of a record that is about to be written.
pub(crate) fn record_len(
    subject: &Subject,
    id: Option<u128>,
    headers: &Headers,
    body: usize,
) -> usize {
    let subject = subject.as_str().len();
    let mut len = 4 + 1 + varint_len(subject as u64) + subject + body;
    if id.is_some() {
        len += 16;
    }
    if !headers.is_empty() {
        len += varint_len(headers.len() as u64);
        for (name, value) in headers.iter() {
            len += varint_len(name.len() as u64) + name.len();
            len += varint_len(value.len() as u64) + value.len();
        }
    }
    len
}

pub(crate) fn encode_record(
    out: &mut Vec<u8>,
    subject: &Subject,
    id: Option<u128>,
    headers: &Headers,
    body: &[u8],
) {
    let start = out.len();
    let mut flags = 0;
    if id.is_some() {
        flags |= HAS_ID;
    }
    if !headers.is_empty() {
        flags |= HAS_HEADERS;
    }
    out.extend_from_slice(&[0, 0, 0, 0, flags]);
    if let Some(id) = id {
        out.extend_from_slice(&id.to_le_bytes());
    }
    put_text(out, subject.as_str());
    if !headers.is_empty() {
        put_varint(out, headers.len() as u64);
        for (name, value) in headers.iter() {
            put_text(out, name);
            put_text(out, value);
        }
    }
    out.extend_from_slice(body);
    // Messages are bounded far below 4 GiB before they come here.
    let len = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&len.to_le_bytes());
}

/// One event as it stands in a group, not taken apart further than it must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    /// Bytes that it takes.
    pub(crate) size: usize,
    pub(crate) subject: &'a str,
    pub(crate) id: Option<u128>,
    headers: &'a [u8],
    header_count: u64,
    body: &'a [u8],
}

/// The events of a group, one after another.
#[derive(Clone, Debug)]
pub(crate) struct Records<'a>(&'a [u8]);

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It contradicts itself, although its checksum is right.
    Malformed,
    /// It has flags that this version does not know.
    Newer(u8),
}

impl<'a> Records<'a> {
    pub(crate) fn new(content: &'a [u8]) -> Self {
        Self(content.get(HEAD_LEN..).unwrap_or(&[]))
    }

    /// Passes over one event without looking at it; none at the end.
    pub(crate) fn skip(&mut self) -> Option<()> {
        let size = 4 + Fields(self.0.get(..4)?).u32(0) as usize;
        self.0 = self.0.get(size..)?;
        Some(())
    }

    pub(crate) fn next_record(&mut self) -> Result<Option<Record<'a>>, Fault> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let parse = |bytes: &'a [u8]| {
            let mut rest = bytes;
            let len = Fields(take(&mut rest, 4)?).u32(0) as usize;
            let mut record = take(&mut rest, len)?;
            let flags = *take(&mut record, 1)?.first()?;
            Some((rest, record, flags, 4 + len))
        };
        let (rest, mut record, flags, size) = parse(self.0).ok_or(Fault::Malformed)?;
        if flags & !(HAS_ID | HAS_HEADERS) != 0 {
            return Err(Fault::Newer(flags));
        }
        let mut parse = || {
            let mut id = None;
            if flags & HAS_ID != 0 {
                let bytes: [u8; 16] = take(&mut record, 16)?.try_into().ok()?;
                id = Some(u128::from_le_bytes(bytes));
            }
            let subject = take_text(&mut record)?;
            let (mut headers, mut header_count) = (&[][..], 0);
            if flags & HAS_HEADERS != 0 {
                header_count = take_varint(&mut record)?;
                let start = record;
                for _ in 0..header_count {
                    take_text(&mut record)?;
                    take_text(&mut record)?;
                }
                headers = &start[..start.len() - record.len()];
            }
            Some(Record {
                size,
                subject,
                id,
                headers,
                header_count,
                body: record,
            })
        };
        let record = parse().ok_or(Fault::Malformed)?;
        self.0 = rest;
        Ok(Some(record))
    }
}

impl Record<'_> {
    /// The event, its body a slice of `content`, in which this record was found.
    pub(crate) fn event(
        &self,
        seq: Seq,
        at: Timestamp,
        subject: Subject,
        content: &Bytes,
    ) -> Result<StoredEvent> {
        let mut headers = Headers::new();
        let mut rest = self.headers;
        for _ in 0..self.header_count {
            let (Some(name), Some(value)) = (take_text(&mut rest), take_text(&mut rest)) else {
                return Err(Error::new(ErrorKind::Damaged, "a header is cut off"));
            };
            headers.restore(name, value)?;
        }
        Ok(StoredEvent {
            seq,
            at,
            subject,
            headers,
            body: Body::Bytes(content.slice_ref(self.body)),
        })
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub(crate) fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *take(bytes, 1)?.first()?;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        value |= part << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

pub(crate) fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn take_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let len = usize::try_from(take_varint(bytes)?).ok()?;
    std::str::from_utf8(take(bytes, len)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let subject = Subject::new("orders.placed").unwrap();
        let mut headers = Headers::new();
        headers.add("Tenant", "größe").unwrap();
        headers.add("x", "").unwrap();
        let mut out = vec![0; HEAD_LEN];
        let cases = [
            (None, Headers::new(), &b""[..]),
            (Some(7), headers.clone(), b"body"),
            (Some(u128::MAX), Headers::new(), &[5; 300]),
        ];
        for (id, headers, body) in &cases {
            let before = out.len();
            encode_record(&mut out, &subject, *id, headers, body);
            assert_eq!(
                out.len() - before,
                record_len(&subject, *id, headers, body.len())
            );
        }
        let content = Bytes::from(out);
        let mut records = Records::new(&content);
        for (id, headers, body) in cases {
            let record = records.next_record().unwrap().unwrap();
            assert_eq!((record.id, record.subject), (id, "orders.placed"));
            let at = Timestamp::from_nanos(3);
            let event = record.event(9, at, subject.clone(), &content).unwrap();
            assert_eq!(event.headers, headers);
            assert_eq!(event.body.to_bytes().unwrap(), body);
        }
        assert!(records.next_record().unwrap().is_none());
    }

    #[test]
    fn every_cut_and_flip_of_a_record_is_a_fault_or_a_record_within_the_bytes() {
        let subject = Subject::new("a.b").unwrap();
        let mut headers = Headers::new();
        headers.add("name", "value").unwrap();
        let mut out = vec![0; HEAD_LEN];
        encode_record(&mut out, &subject, Some(1), &headers, b"0123456789");
        for cut in HEAD_LEN + 1..out.len() {
            assert_eq!(
                Records::new(&out[..cut]).next_record().unwrap_err(),
                Fault::Malformed
            );
        }
        for at in HEAD_LEN..out.len() {
            for bit in 0..8 {
                let mut flipped = out.clone();
                flipped[at] ^= 1 << bit;
                let content = Bytes::from(flipped);
                if let Ok(Some(record)) = Records::new(&content).next_record() {
                    let at = Timestamp::from_nanos(0);
                    let _ = record.event(1, at, subject.clone(), &content);
                }
            }
        }
        out[HEAD_LEN + 4] |= 0x40;
        assert_eq!(
            Records::new(&out).next_record().unwrap_err(),
            Fault::Newer(0x43)
        );
    }

    #[test]
    fn varints_are_read_as_they_were_written() {
        for value in [
            0,
            1,
            127,
            128,
            300,
            u64::from(u32::MAX),
            u64::MAX - 1,
            u64::MAX,
        ] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value));
            assert_eq!(take_varint(&mut &out[..]), Some(value));
        }
        assert_eq!(take_varint(&mut &[0xff; 11][..]), None);
        assert_eq!(take_varint(&mut &[0x80][..]), None);
    }
}
