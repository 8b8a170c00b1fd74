//! Whether an index is as it was written, and says what its segment has.

use std::io;
use std::path::Path;

use rustc_hash::FxHashMap;
use trunkline_core::engine::Seq;
use trunkline_core::{ErrorKind, Result, Timestamp};

use super::Watch;
use super::segment::Surveyed;
use crate::disk::{self, Disk, Open};
use crate::frame::pieces::{Piece, Pieces};
use crate::frame::{FILE_HEADER_LEN, FileHeader, FileKind, failed};
use crate::segment::index::{self, ID_PAGES, SUMMARY, Summary};

/// What is wrong with an index, and where.
pub(super) type Fault = (u64, String);

/// What an index came to.
#[derive(Debug)]
pub(super) enum Checked {
    Missing,
    Right,
    Wrong(Fault),
}

/// Reads an index whose segment begins with `base`. If the segment could be read, they are compared.
pub(super) fn check(
    disk: &dyn Disk,
    path: &Path,
    base: Seq,
    segment: Option<&Surveyed>,
    watch: &mut Watch<'_>,
) -> Result<Checked> {
    let file = match disk.open(path, Open::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Checked::Missing),
        file => file.map_err(|error| failed("open", path, error))?,
    };
    let len = file
        .len()
        .map_err(|error| failed("find the length of", path, error))?;
    watch.begin(len);
    let wrong = |at: u64, what: &str| Ok(Checked::Wrong((at, what.to_owned())));
    let header = match FileHeader::read(&*file, path, FileKind::Index) {
        Ok(header) => header,
        Err(error) if error.kind() == ErrorKind::StorageFailed => return Err(error),
        Err(_) => {
            watch.finish();
            return wrong(0, "its header is not valid, or it is cut off");
        }
    };
    let of = segment.and_then(|segment| segment.header);
    if header.base != base || of.is_some_and(|of| of.file_id != header.file_id) {
        watch.finish();
        return wrong(16, "it is the index of another segment");
    }
    let mut pieces = Pieces::new(&*file, path, header.file_id, true)?;
    let (mut kind, mut summary) = (SUMMARY, None);
    let end = loop {
        match pieces.next_piece() {
            Ok(Piece::Group(group)) => {
                watch.read(group.header.size());
                if group.header.kind != kind || group.header.flags != 0 {
                    return wrong(group.offset, "a section is not where it belongs");
                }
                if kind == SUMMARY {
                    summary = Summary::decode(&group.content);
                }
                kind += 1;
            }
            Ok(Piece::Hole(hole)) => {
                watch.finish();
                return wrong(hole.from, "a section does not match its checksum");
            }
            Ok(Piece::End(_)) => break pieces.offset(),
            Err(error) if error.kind() == ErrorKind::StorageFailed => return Err(error),
            Err(_) => return wrong(pieces.offset(), "a section has flags of a newer version"),
        }
    };
    watch.finish();
    if kind != ID_PAGES + 1 || end != header.reserved || end != len {
        return wrong(end, "a section is missing or does not match its checksum");
    }
    let Some(summary) = summary else {
        return wrong(FILE_HEADER_LEN, "its summary is too short");
    };
    let Some((segment, of)) = segment.zip(of).filter(|(segment, _)| segment.is_sound()) else {
        return Ok(Checked::Right);
    };
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let read =
        disk::read_full(&*file, &mut bytes, 0).map_err(|error| failed("read", path, error))?;
    bytes.truncate(read);
    Ok(match differs(segment, &of, &summary, &bytes) {
        None => Checked::Right,
        Some(at) => Checked::Wrong((at, "it does not say what its segment has".to_owned())),
    })
}

/// Where the bytes of an index are not those that the segment gives.
fn differs(segment: &Surveyed, header: &FileHeader, found: &Summary, bytes: &[u8]) -> Option<u64> {
    // The owner knows when he wrote last, which the groups say as well unless one was staged in vain.
    let last_at = if found.last_at >= segment.last_at {
        found.last_at
    } else {
        segment.last_at
    };
    // The owner keeps the last event of an id that came twice, who reads the segment keeps both.
    let of_each = |ids: &[(u128, u32)]| {
        let last: FxHashMap<u128, u32> = ids.iter().copied().collect();
        last.into_iter().collect::<Vec<_>>()
    };
    let mut at = None;
    for mut ids in [of_each(&segment.ids), segment.ids.clone()] {
        let image = image(segment, header, &mut ids, last_at);
        let differing = image.iter().zip(bytes).position(|(a, b)| a != b);
        let first = match differing {
            None if image.len() == bytes.len() => return None,
            None => image.len().min(bytes.len()),
            Some(at) => at,
        };
        at = at.max(Some(first as u64));
    }
    at
}

/// The index that a segment gives.
pub(super) fn image(
    segment: &Surveyed,
    header: &FileHeader,
    ids: &mut [(u128, u32)],
    last_at: Timestamp,
) -> Vec<u8> {
    index::encode(header, &segment.index, ids, segment.end, last_at).1
}
