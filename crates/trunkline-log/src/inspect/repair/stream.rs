//! Mending a stream: what can be read stays where it is, and what cannot be read becomes removed events.
//!
//! ```text
//!   … │ group │ damaged bytes │ group │ …     as it was
//!   … │ group │ placeholders  │ group │ …     same length, same sequences, nothing in them
//!   … │ a last segment, whose state says that the placeholders are removed
//! ```

use std::path::Path;

use trunkline_core::engine::Seq;
use trunkline_core::{Result, Timestamp};

use super::super::index::Checked;
use super::super::segment::{Lacking, MIN_RECORD, Surveyed};
use super::super::stream::{Expected, Looked, Part};
use super::hopeless;
use super::keep::Keeper;
use crate::disk::{Disk, File, Open};
use crate::frame::pieces::Tail;
use crate::frame::{CLOSING, FILE_HEADER_LEN, FileHeader, FileKind, GROUP_HEADER_LEN};
use crate::frame::{GroupHeader, OpenGroup, SEALING, failed};
use crate::segment::record::{EVENTS, HEAD_LEN, Head, REMOVED, STATE, put_varint};
use crate::segment::{segment_name, write_index};
use crate::stream::open::{open_sealed, summarize};
use crate::stream::ranges::Ranges;
use crate::stream::roll::make_segment_in;
use crate::stream::skip::PLACEHOLDER;

/// A group of placeholders has so many bytes at most.
const GROUP_BYTES: u64 = 8 << 20;
/// Bytes of a group that has a head and nothing else.
const LEAST: u64 = (GROUP_HEADER_LEN + HEAD_LEN) as u64;
/// So many sequences are filled in at most.
const MOST_LOST: u64 = 100_000_000;

/// Mends what was found of a stream.
pub(super) fn mend(
    disk: &dyn Disk,
    root: &Path,
    looked: &Looked,
    expected: &Expected,
    keeper: &mut Keeper<'_>,
    now: Timestamp,
) -> Result<()> {
    let mut mending = Mending {
        disk,
        dir: root.join(&looked.below),
        keeper,
        lost: Ranges::default(),
        last_at: now,
        now,
    };
    for (base, checked) in &looked.indexes {
        if let Checked::Wrong(_) = checked {
            let path = mending.dir.join(segment_name(*base)).with_extension("idx");
            mending.keeper.set_aside(&path)?;
        }
    }
    let Some((last, before)) = looked.parts.split_last() else {
        return Ok(());
    };
    for part in &looked.parts {
        mending.last_at = mending.last_at.max(part.segment.last_at);
    }
    for part in before {
        mending.followed(part)?;
    }
    let lowest = looked.parts.first().map_or(1, |part| part.segment.base);
    mending.last(&last.segment, looked, expected, lowest)
}

struct Mending<'a, 'b> {
    disk: &'a dyn Disk,
    dir: std::path::PathBuf,
    keeper: &'a mut Keeper<'b>,
    lost: Ranges,
    /// When something of the stream was stored last.
    last_at: Timestamp,
    now: Timestamp,
}

impl Mending<'_, '_> {
    /// Mends a segment that another follows.
    fn followed(&mut self, part: &Part) -> Result<()> {
        let segment = &part.segment;
        let until = part.until.unwrap_or(segment.next);
        let is_wrong = matches!(part.index, Checked::Wrong(_));
        if segment.is_sound() && segment.next == until {
            if is_wrong {
                self.keeper.copy(&segment.path.with_extension("idx"))?;
                self.index(segment.base, until)?;
            }
            return Ok(());
        }
        self.readable(segment)?;
        let next = segment.next;
        if next < until {
            self.fill(next, until)?;
        }
        if segment.header.is_some() && next > segment.base {
            self.index(segment.base, next)?;
        }
        Ok(())
    }

    /// Makes one whole of what can be read of a segment: its header, and placeholders in its holes. It ends
    /// where nothing more can be read.
    fn readable(&mut self, segment: &Surveyed) -> Result<()> {
        if segment.header.is_none() || segment.next == segment.base {
            // Nothing of it is used, and what is filled in has its name.
            return self.keeper.set_aside(&segment.path);
        }
        if !segment.is_sound() || segment.tail != Tail::Clean {
            self.keeper.copy(&segment.path)?;
        }
        let file = self.open(&segment.path)?;
        let Some(header) = segment.header else {
            return Ok(());
        };
        let write = |error| failed("mend", &segment.path, error);
        if segment.bad_header.is_some() {
            if segment.len < header.reserved {
                file.set_len(header.reserved).map_err(write)?;
            }
            file.write_at(&header.encode(), 0).map_err(write)?;
        }
        for lacking in &segment.holes {
            let until = match lacking.until {
                Some(until) => until,
                // What follows says nothing of sequences; those that are missing have a segment of
                // their own.
                None if lacking.hole.goes_on => lacking.first,
                None => continue,
            };
            let groups = placeholders(&header, lacking, until)
                .ok_or_else(|| hopeless(&segment.path, "its groups do not fit together"))?;
            file.write_at(&groups, lacking.hole.from).map_err(write)?;
            self.lost.insert(lacking.first, until);
        }
        if !segment.is_sealed {
            self.seal(&*file, &header, segment)?;
        }
        file.sync().map_err(write)
    }

    /// Ends a segment where its readable part does.
    fn seal(&self, file: &dyn File, header: &FileHeader, segment: &Surveyed) -> Result<()> {
        let mut bytes = Vec::with_capacity(GROUP_HEADER_LEN);
        let of_kind = GroupHeader {
            flags: SEALING,
            durable_end: segment.end,
            ..GroupHeader::default()
        };
        OpenGroup::begin(&mut bytes).finish(&mut bytes, header.file_id, segment.end, of_kind);
        file.write_at(&bytes, segment.end)
            .map_err(|error| failed("mend", &segment.path, error))
    }

    /// Mends the last segment, and begins another where something was lost.
    fn last(
        &mut self,
        segment: &Surveyed,
        looked: &Looked,
        expected: &Expected,
        lowest: Seq,
    ) -> Result<()> {
        let tail = segment
            .next
            .saturating_add(segment.at_most_lost())
            .max(expected.settled().saturating_add(1));
        let first = looked.first.max(lowest);
        let is_begun_late = first > looked.first;
        let changes =
            !segment.is_sound() || tail > segment.next || self.lost.len() > 0 || is_begun_late;
        if !changes {
            return Ok(());
        }
        if tail > segment.next || segment.next > segment.base {
            self.readable(segment)?;
        } else {
            // It has no events, and the one that follows has its name.
            self.keeper.copy(&segment.path)?;
        }
        if tail > segment.next {
            self.fill(segment.next, tail)?;
        }
        if segment.header.is_some() && segment.next > segment.base && tail != segment.base {
            self.index(segment.base, segment.next)?;
        }
        let mut removed = looked.removed.clone();
        for (start, end) in self.lost.iter() {
            removed.insert(start, end);
        }
        let first = removed.skip(first);
        removed.forget_below(first);
        let bytes = looked.parts.iter().map(|part| part.live_bytes).sum();
        let head = Head {
            seq: tail,
            at: self.last_at,
            first,
            bytes,
        };
        self.make(tail, &head, &removed, None)
    }

    /// Makes a segment of placeholders.
    fn fill(&mut self, from: Seq, until: Seq) -> Result<()> {
        let path = self.dir.join(segment_name(from));
        if until - from > MOST_LOST {
            return Err(hopeless(&path, "too many events are missing"));
        }
        self.lost.insert(from, until);
        let head = Head {
            seq: from,
            // Never before what came before it, and not after what follows: that is checked within a
            // segment only.
            at: Timestamp::from_nanos(0),
            first: 1,
            bytes: 0,
        };
        self.make(from, &head, &Ranges::default(), Some(until))?;
        self.index(from, until)
    }

    /// Makes a segment with a state and, if it is told up to where, placeholders.
    fn make(&self, base: Seq, head: &Head, removed: &Ranges, until: Option<Seq>) -> Result<()> {
        let header = FileHeader {
            kind: FileKind::Segment,
            file_id: rand::random(),
            base,
            created: self.now,
            // As small as it can be: the next one has the usual size again.
            reserved: 0,
        };
        let mut bytes = Vec::new();
        let group = OpenGroup::begin(&mut bytes);
        bytes.extend_from_slice(&head.encode());
        for (start, end) in removed.iter() {
            put_varint(&mut bytes, start);
            put_varint(&mut bytes, end - start);
        }
        let of_kind = GroupHeader {
            kind: STATE,
            count: u32::try_from(removed.len()).unwrap_or(u32::MAX),
            ..GroupHeader::default()
        };
        group.finish(&mut bytes, header.file_id, FILE_HEADER_LEN, of_kind);
        let (mut seq, until) = (base, until.unwrap_or(base));
        while seq < until {
            let most = (GROUP_BYTES - LEAST) / MIN_RECORD;
            let count = (until - seq).min(most);
            let offset = FILE_HEADER_LEN + bytes.len() as u64;
            let head = Head { seq, ..*head };
            let size = (LEAST + count * MIN_RECORD).next_multiple_of(8);
            events(&mut bytes, header.file_id, offset, size, &head, count);
            seq += count;
        }
        let made = make_segment_in(self.disk, &self.dir, &header, &bytes, 0, None);
        made.map(drop)
            .map_err(|error| failed("make", &self.dir.join(segment_name(base)), error))
    }

    /// Makes the index of a segment again.
    fn index(&self, base: Seq, until: Seq) -> Result<()> {
        let segment = open_sealed(self.disk, &self.dir, base)?;
        let (_, image) = summarize(&segment, until)?;
        write_index(self.disk, &segment.index_path(), &image)?;
        self.disk
            .sync_dir(&self.dir)
            .map_err(|error| failed("sync", &self.dir, error))
    }

    fn open(&self, path: &Path) -> Result<std::sync::Arc<dyn File>> {
        self.disk
            .open(path, Open::Write)
            .map_err(|error| failed("open", path, error))
    }
}

/// Groups that take exactly the room of a hole and have as many events as were lost in it; none if
/// that is not possible.
fn placeholders(header: &FileHeader, lacking: &Lacking, until: Seq) -> Option<Vec<u8>> {
    let (from, to) = (lacking.hole.from, lacking.hole.to);
    let near = lacking.before.or(lacking.after)?;
    let mut seq = lacking.first;
    let mut bytes = Vec::new();
    let mut at = from;
    if lacking.before.is_none() {
        // The state with which the segment began.
        let rest = (to - at).checked_sub(LEAST)?;
        let size = if seq < until { LEAST } else { LEAST + rest };
        let head = Head { seq, ..near };
        filler(&mut bytes, header.file_id, at, size, &head, STATE);
        at += size;
    }
    while at < to {
        let left = to - at;
        let size = if left > 2 * GROUP_BYTES {
            GROUP_BYTES
        } else {
            left
        };
        let head = Head { seq, ..near };
        if size == GROUP_HEADER_LEN as u64 {
            let closing = GroupHeader {
                flags: CLOSING,
                durable_end: at,
                ..GroupHeader::default()
            };
            OpenGroup::begin(&mut bytes).finish(&mut bytes, header.file_id, at, closing);
        } else if size < LEAST {
            return None;
        } else {
            let count = (until - seq).min((size - LEAST) / MIN_RECORD);
            if count == 0 {
                filler(&mut bytes, header.file_id, at, size, &head, REMOVED);
            } else {
                events(&mut bytes, header.file_id, at, size, &head, count);
            }
            seq += count;
        }
        at += size;
    }
    (seq == until).then_some(bytes)
}

/// A group of that size that says nothing: zeros are ranges of no length.
fn filler(out: &mut Vec<u8>, file_id: u64, at: u64, size: u64, head: &Head, kind: u8) {
    let end = out.len() + usize::try_from(size).unwrap_or(0);
    let group = OpenGroup::begin(out);
    out.extend_from_slice(&head.encode());
    out.resize(end.max(out.len()), 0);
    let of_kind = GroupHeader {
        kind,
        durable_end: at,
        ..GroupHeader::default()
    };
    group.finish(out, file_id, at, of_kind);
}

/// A group of that size with so many events that have nothing in them.
fn events(out: &mut Vec<u8>, file_id: u64, at: u64, size: u64, head: &Head, count: u64) {
    let end = out.len() + usize::try_from(size).unwrap_or(0);
    let group = OpenGroup::begin(out);
    out.extend_from_slice(&head.encode());
    for number in 1..=count {
        let room = if number == count {
            end.saturating_sub(out.len())
        } else {
            MIN_RECORD as usize
        };
        // Its length, no flags, and its subject; what is left is its body.
        let len = u32::try_from(room.saturating_sub(4)).unwrap_or(u32::MAX);
        let start = out.len();
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&[0, PLACEHOLDER.len() as u8]);
        out.extend_from_slice(PLACEHOLDER.as_bytes());
        out.resize((start + room).max(out.len()), 0);
    }
    let of_kind = GroupHeader {
        kind: EVENTS,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        durable_end: at,
        ..GroupHeader::default()
    };
    group.finish(out, file_id, at, of_kind);
}
