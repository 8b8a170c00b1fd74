//! One segment as far as it can be read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trunkline_core::engine::Seq;
use trunkline_core::{Error, Result};

use super::Watch;
use crate::disk::{Disk, File, Open};
use crate::frame::pieces::{Header, Hole, Piece, Pieces, Tail, header};
use crate::frame::{FILE_HEADER_LEN, FileHeader, FileKind, GROUP_HEADER_LEN, SEALING, failed};
use crate::segment::index;
use crate::segment::record::Head;
use crate::segment::scan::Scan;
use crate::segment::segment_name;

/// Bytes that a record takes at least: its length, its flags, and a subject of one character.
pub(super) const MIN_RECORD: u64 = 7;

/// Bytes of the group that every segment begins with, at least.
const FIRST_GROUP: u64 = 64;

/// What was found out about a segment.
#[derive(Debug)]
pub(super) struct Surveyed {
    pub(super) base: Seq,
    pub(super) path: PathBuf,
    pub(super) file: Option<Arc<dyn File>>,
    pub(super) len: u64,
    /// None if the header tells nothing that can be relied on.
    pub(super) header: Option<FileHeader>,
    /// What is wrong with the header, and where.
    pub(super) bad_header: Option<(u64, Error)>,
    pub(super) holes: Vec<Lacking>,
    /// A group that contradicts the others although its checksum is right: reading ends there.
    pub(super) contradiction: Option<(u64, Error)>,
    pub(super) tail: Tail,
    /// After the last group that can be read, the seal aside.
    pub(super) end: u64,
    /// The sequence after the last event that can be read.
    pub(super) next: Seq,
    pub(super) is_sealed: bool,
    pub(super) head: Option<Head>,
    pub(super) removed: crate::stream::ranges::Ranges,
    pub(super) index: index::Index,
    pub(super) ids: Vec<(u128, u32)>,
    pub(super) last_at: trunkline_core::Timestamp,
}

/// A hole, and the events that were in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lacking {
    pub(super) hole: Hole,
    /// The first sequence that is missing.
    pub(super) first: Seq,
    /// The sequence after the last that is missing; none if nothing behind the hole says it.
    pub(super) until: Option<Seq>,
    /// What the groups before and behind it say of the stream.
    pub(super) before: Option<Head>,
    pub(super) after: Option<Head>,
}

impl Surveyed {
    pub(super) fn is_sound(&self) -> bool {
        self.bad_header.is_none() && self.holes.is_empty() && self.contradiction.is_none()
    }

    /// Whether the file was cut off where its events end, so that nobody knows what stood there.
    pub(super) fn is_cut_off(&self) -> bool {
        self.header.is_some_and(|header| self.len < header.reserved)
            && (self.tail != Tail::Clean || self.end + GROUP_HEADER_LEN as u64 > self.len)
    }

    /// How many events may have stood behind its end at most.
    pub(super) fn room(&self) -> u64 {
        let reserved = self.header.map_or(self.len, |header| header.reserved);
        reserved.saturating_sub(self.end) / MIN_RECORD
    }

    /// How many sequences may be missing at the end: what the headers in a hole there say, else what could
    /// have stood there.
    pub(super) fn at_most_lost(&self) -> u64 {
        let hole = self.holes.last().filter(|last| last.until.is_none());
        let in_hole = hole.map_or(0, |lacking| {
            let room = lacking.hole.to.saturating_sub(lacking.hole.from);
            lacking.hole.records.unwrap_or(room / MIN_RECORD)
        });
        match self.header {
            Some(_) if self.is_cut_off() => self.room(),
            Some(_) => in_hole,
            None => self.len.saturating_sub(FILE_HEADER_LEN) / MIN_RECORD,
        }
    }
}

/// Reads a segment. `is_followed` if another segment stands after it.
pub(super) fn survey(
    disk: &dyn Disk,
    dir: &Path,
    base: Seq,
    is_followed: bool,
    watch: &mut Watch<'_>,
) -> Result<Surveyed> {
    let path = dir.join(segment_name(base));
    let mut found = Surveyed {
        base,
        path: path.clone(),
        file: None,
        len: 0,
        header: None,
        bad_header: None,
        holes: Vec::new(),
        contradiction: None,
        tail: Tail::Clean,
        end: FILE_HEADER_LEN,
        next: base,
        is_sealed: false,
        head: None,
        removed: crate::stream::ranges::Ranges::default(),
        index: index::Index::new(base),
        ids: Vec::new(),
        last_at: trunkline_core::Timestamp::from_nanos(i64::MIN),
    };
    let file = disk
        .open(&path, Open::Read)
        .map_err(|error| failed("open", &path, error))?;
    found.len = file
        .len()
        .map_err(|error| failed("find the length of", &path, error))?;
    found.file = Some(Arc::clone(&file));
    watch.begin(found.len);
    let beside = || {
        let path = path.with_extension("idx");
        let file = disk.open(&path, Open::Read).ok()?;
        FileHeader::read(&*file, &path, FileKind::Index).ok()
    };
    match header(&*file, &path, FileKind::Segment, base, beside)? {
        Header::Good(header) => found.header = Some(header),
        Header::Bad {
            offset,
            error,
            likely,
        } => {
            found.bad_header = Some((offset, error));
            found.header = likely;
        }
    }
    let Some(header) = found.header else {
        watch.finish();
        return Ok(found);
    };
    let mut scan = Scan::new(&path, base);
    let mut pieces = Pieces::new(&*file, &path, header.file_id, is_followed)?;
    let mut open_hole = false;
    loop {
        let at = pieces.offset();
        match pieces.next_piece() {
            Ok(Piece::Group(group)) => {
                watch.read(group.header.size());
                let head = Head::decode(&group.content).filter(|_| group.header.flags == 0);
                if open_hole && let Some(head) = head {
                    open_hole = false;
                    if let Err(error) = bridge(&mut scan, &mut found, head) {
                        found.contradiction = Some((group.offset, error));
                        break;
                    }
                }
                if let Err(error) = scan.group(&group) {
                    found.contradiction = Some((group.offset, error));
                    break;
                }
                if group.header.flags & SEALING == 0 {
                    found.end = group.end();
                }
            }
            Ok(Piece::Hole(hole)) => {
                open_hole = true;
                found.holes.push(Lacking {
                    hole,
                    first: scan.index.end(),
                    until: None,
                    before: scan.head,
                    after: None,
                });
            }
            Ok(Piece::End(tail)) => {
                found.tail = tail;
                break;
            }
            // A newer version's flags, or the disk.
            Err(error) if error.kind() == trunkline_core::ErrorKind::WrongVersion => {
                found.contradiction = Some((at, error));
                break;
            }
            Err(error) => return Err(error),
        }
    }
    watch.finish();
    if scan.head.is_none() && found.holes.is_empty() && found.contradiction.is_none() {
        // It was synced with its first group before it had its name.
        let bytes = match found.tail {
            Tail::Torn { bytes } => bytes,
            Tail::Clean => 0,
        };
        let hole = Hole {
            from: FILE_HEADER_LEN,
            to: FILE_HEADER_LEN + bytes.max(FIRST_GROUP),
            records: None,
            goes_on: false,
        };
        found.holes.push(Lacking {
            hole,
            first: base,
            until: None,
            before: None,
            after: None,
        });
        found.tail = Tail::Clean;
    }
    found.next = scan.index.end();
    found.is_sealed = scan.is_sealed;
    found.head = scan.head;
    found.removed = scan.removed;
    found.index = scan.index;
    found.ids = scan.ids;
    found.last_at = scan.last_at;
    Ok(found)
}

/// Goes on behind holes: the sequences that were in them are passed over. Closing groups between two say
/// nothing of sequences, so that several are bridged at once.
fn bridge(scan: &mut Scan<'_>, found: &mut Surveyed, head: Head) -> Result<()> {
    let mut next = scan.index.end();
    for lacking in found.holes.iter_mut().filter(|hole| hole.until.is_none()) {
        let room = (lacking.hole.to - lacking.hole.from).saturating_sub(FIRST_GROUP) / MIN_RECORD;
        lacking.first = next;
        next = next.saturating_add(room).min(head.seq.max(next));
        lacking.until = Some(next);
        lacking.after = Some(head);
    }
    if next != head.seq {
        let what = "the groups before and behind the damage do not fit together";
        let at = found.holes.last().map_or(0, |last| last.hole.from);
        return Err(crate::frame::damaged(&found.path, at, what));
    }
    for _ in scan.index.end()..next {
        scan.index.push("", 0);
    }
    // The state of the stream, with which a segment begins, may be what is missing.
    scan.head.get_or_insert(head);
    Ok(())
}
