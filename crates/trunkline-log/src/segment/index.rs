//! What a segment has: in memory while it is written, in a file beside it once it is sealed.

use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use smol_str::SmolStr;
use trunkline_core::Timestamp;
use trunkline_core::engine::Seq;

use super::bloom;
use super::record::{put_varint, take_varint};
use crate::frame::{FILE_HEADER_LEN, Fields, FileHeader, FileKind, GroupHeader, OpenGroup};

/// Kinds of the groups of an index file.
pub(crate) const SUMMARY: u8 = 1;
pub(crate) const PLACES: u8 = 2;
pub(crate) const SIZES: u8 = 3;
pub(crate) const SUBJECTS: u8 = 4;
pub(crate) const SUBJECT_BLOOM: u8 = 5;
pub(crate) const IDS: u8 = 6;
pub(crate) const ID_BLOOM: u8 = 7;
pub(crate) const ID_PAGES: u8 = 8;
/// How many kinds follow the summary.
pub(crate) const SECTIONS: usize = 7;

/// Between two places of an index file lie at least so many bytes.
const PLACE_EVERY: u64 = 4 << 10;

/// And at most so much time, in which the events that follow a place were stored.
pub(crate) const PLACE_FOR: Duration = Duration::from_secs(1);

const PLACE_LEN: usize = 24;
pub(crate) const ID_LEN: usize = 20;
/// Bytes of the table of ids that are read and checked at once.
pub(crate) const ID_PAGE_BYTES: usize = 200 * ID_LEN;
const FENCE_LEN: usize = 12;

/// Where a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) seq: Seq,
    pub(crate) offset: u64,
    pub(crate) at: Timestamp,
}

/// What the segment has that is being written.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// The sequence of the segment's first event.
    pub(crate) base: Seq,
    /// Bytes of each event.
    pub(crate) sizes: Vec<u32>,
    /// Every group of events.
    pub(crate) places: Vec<Place>,
    /// The events of each subject, counted from the base.
    pub(crate) subjects: FxHashMap<SmolStr, Vec<u32>>,
}

impl Index {
    pub(crate) fn new(base: Seq) -> Self {
        Self {
            base,
            ..Self::default()
        }
    }

    pub(crate) fn push(&mut self, subject: &str, size: u32) {
        let number = u32::try_from(self.sizes.len()).unwrap_or(u32::MAX);
        self.sizes.push(size);
        match self.subjects.get_mut(subject) {
            Some(numbers) => numbers.push(number),
            None => {
                self.subjects.insert(SmolStr::new(subject), vec![number]);
            }
        }
    }

    pub(crate) fn end(&self) -> Seq {
        self.base + self.sizes.len() as u64
    }

    /// The last group that begins at or before `seq`.
    pub(crate) fn place(&self, seq: Seq) -> Option<Place> {
        let after = self.places.partition_point(|place| place.seq <= seq);
        self.places.get(after.checked_sub(1)?).copied()
    }

    /// The last group that was stored before `time`.
    pub(crate) fn place_before(&self, time: Timestamp) -> Option<Place> {
        let after = self.places.partition_point(|place| place.at < time);
        self.places.get(after.checked_sub(1)?).copied()
    }
}

/// A sealed segment in a few numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) events: u64,
    /// Where its events end.
    pub(crate) data_end: u64,
    pub(crate) first_at: Timestamp,
    pub(crate) last_at: Timestamp,
    /// Bytes of its events.
    pub(crate) bytes: u64,
    /// Ids in it.
    pub(crate) ids: u64,
    /// Where the sections stand in the index file.
    pub(crate) sections: [u64; SECTIONS],
}

impl Summary {
    const LEN: usize = 48 + 8 * SECTIONS;

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::LEN);
        out.extend_from_slice(&self.events.to_le_bytes());
        out.extend_from_slice(&self.data_end.to_le_bytes());
        out.extend_from_slice(&self.first_at.as_nanos().to_le_bytes());
        out.extend_from_slice(&self.last_at.as_nanos().to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.ids.to_le_bytes());
        for offset in self.sections {
            out.extend_from_slice(&offset.to_le_bytes());
        }
        out
    }

    pub(crate) fn decode(content: &[u8]) -> Option<Self> {
        let fields = Fields(content.get(..Self::LEN)?);
        let mut sections = [0; SECTIONS];
        for (number, offset) in sections.iter_mut().enumerate() {
            *offset = fields.u64(48 + 8 * number);
        }
        Some(Self {
            events: fields.u64(0),
            data_end: fields.u64(8),
            first_at: Timestamp::from_nanos(fields.u64(16).cast_signed()),
            last_at: Timestamp::from_nanos(fields.u64(24).cast_signed()),
            bytes: fields.u64(32),
            ids: fields.u64(40),
            sections,
        })
    }
}

/// The index file of a segment, as bytes. `ids` need not be sorted.
pub(crate) fn encode(
    header: &FileHeader,
    index: &Index,
    ids: &mut [(u128, u32)],
    data_end: u64,
    last_at: Timestamp,
) -> (Summary, Vec<u8>) {
    ids.sort_unstable();
    let mut subjects: Vec<(&SmolStr, &Vec<u32>)> = index.subjects.iter().collect();
    subjects.sort_unstable_by_key(|(subject, _)| *subject);
    let subject_hashes = subjects
        .iter()
        .map(|(subject, _)| bloom::hash_text(subject));
    let id_table = encode_ids(ids);
    let id_pages = encode_id_pages(&id_table);
    let sections = [
        encode_places(&index.places),
        encode_sizes(&index.sizes),
        encode_subjects(&subjects),
        bloom::encode(subjects.len(), subject_hashes),
        id_table,
        bloom::encode(ids.len(), ids.iter().map(|(id, _)| bloom::hash_id(*id))),
        id_pages,
    ];
    let mut summary = Summary {
        events: index.sizes.len() as u64,
        data_end,
        first_at: index.places.first().map_or(last_at, |place| place.at),
        last_at,
        bytes: index.sizes.iter().map(|size| u64::from(*size)).sum(),
        ids: ids.len() as u64,
        sections: [0; SECTIONS],
    };
    let size = |content: &[u8]| {
        let len = content.len().next_multiple_of(crate::frame::ALIGN);
        (crate::frame::GROUP_HEADER_LEN + len) as u64
    };
    let mut offset = FILE_HEADER_LEN + size(&summary.encode());
    for (content, at) in sections.iter().zip(&mut summary.sections) {
        *at = offset;
        offset += size(content);
    }
    let file = FileHeader {
        kind: FileKind::Index,
        reserved: offset,
        ..*header
    };
    let mut out = file.encode().to_vec();
    let all = std::iter::once(summary.encode()).chain(sections);
    for (kind, content) in (SUMMARY..).zip(all) {
        let offset = out.len() as u64;
        let group = OpenGroup::begin(&mut out);
        out.extend_from_slice(&content);
        let of_kind = GroupHeader {
            kind,
            ..GroupHeader::default()
        };
        group.finish(&mut out, header.file_id, offset, of_kind);
    }
    (summary, out)
}

fn encode_places(places: &[Place]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut last: Option<&Place> = None;
    for place in places {
        let is_far = |last: &Place| {
            place.offset - last.offset >= PLACE_EVERY || place.at >= last.at.plus(PLACE_FOR)
        };
        if last.is_none_or(is_far) {
            last = Some(place);
            out.extend_from_slice(&place.seq.to_le_bytes());
            out.extend_from_slice(&place.offset.to_le_bytes());
            out.extend_from_slice(&place.at.as_nanos().to_le_bytes());
        }
    }
    out
}

fn encode_subjects(subjects: &[(&SmolStr, &Vec<u32>)]) -> Vec<u8> {
    let count = u32::try_from(subjects.len()).unwrap_or(u32::MAX);
    let mut out = count.to_le_bytes().to_vec();
    let table = out.len();
    out.resize(table + 4 * subjects.len(), 0);
    for (number, (subject, numbers)) in subjects.iter().enumerate() {
        let at = u32::try_from(out.len()).unwrap_or(u32::MAX);
        out[table + 4 * number..table + 4 * number + 4].copy_from_slice(&at.to_le_bytes());
        put_varint(&mut out, subject.len() as u64);
        out.extend_from_slice(subject.as_bytes());
        put_varint(&mut out, numbers.len() as u64);
        let mut before = 0;
        for number in *numbers {
            put_varint(&mut out, u64::from(number - before));
            before = *number;
        }
    }
    out
}

fn encode_sizes(sizes: &[u32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 * sizes.len());
    for size in sizes {
        out.extend_from_slice(&size.to_le_bytes());
    }
    out
}

fn encode_ids(ids: &[(u128, u32)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ids.len() * ID_LEN);
    for (id, number) in ids {
        out.extend_from_slice(&id.to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
    }
    out
}

/// The first id and the checksum of each page of the table.
fn encode_id_pages(table: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for page in table.chunks(ID_PAGE_BYTES) {
        out.extend_from_slice(&Fields(page).u64(8).to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(page).to_le_bytes());
    }
    out
}

/// What is kept in memory of a table of ids, so that looking one up reads one page.
#[derive(Clone, Debug)]
pub(crate) struct IdPages(pub(crate) Bytes);

impl IdPages {
    /// The page that has the id, if any has, and its checksum.
    pub(crate) fn page(&self, id: u128) -> Option<(usize, u32)> {
        let upper = (id >> 64) as u64;
        let (mut low, mut high) = (0, self.0.len() / FENCE_LEN);
        while low < high {
            let middle = low + (high - low) / 2;
            if Fields(&self.0).u64(middle * FENCE_LEN) <= upper {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let page = low.checked_sub(1)?;
        Some((page, Fields(&self.0).u32(page * FENCE_LEN + 8)))
    }
}

/// The places of a sealed segment.
#[derive(Clone, Debug)]
pub(crate) struct Places(pub(crate) Bytes);

impl Places {
    fn get(&self, number: usize) -> Place {
        let fields = Fields(&self.0[number * PLACE_LEN..(number + 1) * PLACE_LEN]);
        Place {
            seq: fields.u64(0),
            offset: fields.u64(8),
            at: Timestamp::from_nanos(fields.u64(16).cast_signed()),
        }
    }

    fn last(&self, is_before: impl Fn(Place) -> bool) -> Option<Place> {
        let (mut low, mut high) = (0, self.0.len() / PLACE_LEN);
        while low < high {
            let middle = low + (high - low) / 2;
            if is_before(self.get(middle)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(self.get(low.checked_sub(1)?))
    }

    /// The last place at or before `seq`.
    pub(crate) fn place(&self, seq: Seq) -> Option<Place> {
        self.last(|place| place.seq <= seq)
    }

    /// The last place that was stored before `time`.
    pub(crate) fn place_before(&self, time: Timestamp) -> Option<Place> {
        self.last(|place| place.at < time)
    }
}

/// Bytes of each event of a sealed segment.
#[derive(Clone, Debug)]
pub(crate) struct Sizes(pub(crate) Bytes);

impl Sizes {
    pub(crate) fn get(&self, number: u64) -> u32 {
        let at = usize::try_from(number).unwrap_or(usize::MAX / 8);
        Fields(&self.0).u32(at.saturating_mul(4))
    }
}

/// The subjects of a sealed segment, and the events of each.
#[derive(Clone, Debug)]
pub(crate) struct Subjects(pub(crate) Bytes);

/// One subject of a sealed segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SubjectEntry<'a> {
    pub(crate) subject: &'a str,
    pub(crate) count: u64,
    deltas: &'a [u8],
}

impl Subjects {
    pub(crate) fn len(&self) -> usize {
        let room = self.0.len().saturating_sub(4) / 4;
        (Fields(&self.0).u32(0) as usize).min(room)
    }

    pub(crate) fn get(&self, number: usize) -> Option<SubjectEntry<'_>> {
        let at = Fields(&self.0).u32(4 + 4 * number) as usize;
        let mut rest = self.0.get(at..)?;
        let len = usize::try_from(take_varint(&mut rest)?).ok()?;
        let (subject, mut rest) = rest.split_at_checked(len)?;
        let count = take_varint(&mut rest)?;
        Some(SubjectEntry {
            subject: std::str::from_utf8(subject).ok()?,
            count,
            deltas: rest,
        })
    }

    pub(crate) fn find(&self, subject: &str) -> Option<SubjectEntry<'_>> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.get(middle)?;
            match entry.subject.cmp(subject) {
                std::cmp::Ordering::Equal => return Some(entry),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SubjectEntry<'_>> {
        (0..self.len()).filter_map(|number| self.get(number))
    }
}

impl SubjectEntry<'_> {
    /// Its events in order, counted from the base.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> {
        let (mut rest, mut number) = (self.deltas, 0u32);
        (0..self.count).map_while(move |_| {
            let delta = u32::try_from(take_varint(&mut rest)?).ok()?;
            number = number.checked_add(delta)?;
            Some(number)
        })
    }
}

/// Which ids a sealed segment has.
#[derive(Clone, Debug)]
pub(crate) struct Ids(pub(crate) Bytes);

impl Ids {
    /// The event with that id, counted from the base. The last one, if there are several.
    pub(crate) fn find(&self, id: u128) -> Option<u32> {
        let entry = |number: usize| {
            let bytes = &self.0[number * ID_LEN..(number + 1) * ID_LEN];
            let fields = Fields(bytes);
            let id = u128::from(fields.u64(0)) | (u128::from(fields.u64(8)) << 64);
            (id, fields.u32(16))
        };
        let (mut low, mut high) = (0, self.0.len() / ID_LEN);
        while low < high {
            let middle = low + (high - low) / 2;
            if entry(middle).0 <= id {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let (found, number) = entry(low.checked_sub(1)?);
        (found == id).then_some(number)
    }
}
