//! A reader of a stream that somebody else may be writing: it opens nothing for writing, and sees
//! the stream as it stood when it was made.

use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use trunkline_core::Result;
use trunkline_core::engine::Seq;

use super::cache::Cache;
use super::open::{index_of, open_sealed, read_header};
use super::reader::Reader;
use super::view::{Shared, View};
use crate::disk::{Disk, Open};
use crate::frame::pieces::{Piece, Pieces};
use crate::frame::{damaged, failed};
use crate::segment::scan::Scan;
use crate::segment::{Segment, base_of, segment_name};

/// Bytes of indexes that are kept in memory while looking.
const CACHE_BYTES: usize = 16 << 20;

/// A stream as it stood.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) reader: Reader,
    pub(crate) segments: u64,
}

/// Looks at a stream. What was removed while looking shows as an error; then look again.
pub(crate) fn look(disk: Arc<dyn Disk>, dir: &Path) -> Result<Looked> {
    let names = disk.list(dir).map_err(|error| failed("list", dir, error))?;
    let bases: Vec<Seq> = names.iter().filter_map(|name| base_of(name)).collect();
    let Some((last, before)) = bases.split_last() else {
        return Err(damaged(dir, 0, "the segments of the stream are missing"));
    };
    let path = dir.join(segment_name(*last));
    let file = disk
        .open(&path, Open::Read)
        .map_err(|error| failed("open", &path, error))?;
    let header = read_header(&*file, &path, *last)?;
    let mut scan = Scan::new(&path, header.base);
    let mut pieces = Pieces::new(&*file, &path, header.file_id, false)?;
    loop {
        match pieces.next_piece()? {
            Piece::Group(group) => scan.group(&group)?,
            Piece::Hole(hole) => {
                let what = "the group here is not as it was written";
                return Err(damaged(&path, hole.from, what));
            }
            Piece::End(_) => break,
        }
    }
    let end = pieces.offset();
    let Some(head) = scan.head else {
        let what = "the segment does not begin with the state of its stream";
        return Err(damaged(&path, crate::frame::FILE_HEADER_LEN, what));
    };
    let mut sealed = Vec::new();
    let ends = before.iter().skip(1).copied().chain([*last]);
    for (base, end) in before.iter().copied().zip(ends) {
        if end <= head.first {
            continue;
        }
        let segment = open_sealed(&*disk, dir, base)?;
        let known = index_of(&*disk, &segment, end);
        let segment = match known {
            Some((summary, file)) => segment.seal(summary, Some(file)),
            None => {
                let (summary, _) = super::open::summarize(&segment, end)?;
                segment.seal(summary, None)
            }
        };
        sealed.push(Arc::new(segment));
    }
    let lowest = sealed.first().map_or(*last, |segment| segment.base());
    if lowest > head.first {
        let first = head.first;
        let what = format_args!(
            "the stream begins with event {first}, and the segment before this one is missing"
        );
        return Err(damaged(&dir.join(segment_name(lowest)), 0, what));
    }
    let first = scan.removed.skip(head.first);
    let tail_seq = scan.index.end();
    let all = tail_seq.saturating_sub(first);
    let segments = sealed.len() as u64 + 1;
    let view = View {
        sealed: Arc::new(sealed),
        active: Arc::new(Segment {
            file: Arc::clone(&file),
            path: path.clone(),
            header,
            sealed: None,
        }),
        events: all.saturating_sub(scan.removed.count(first, tail_seq)),
        bytes: head.bytes,
        removed: scan.removed,
        index: scan.index,
        end,
        first,
    };
    let shared = Arc::new(Shared {
        disk,
        dir: dir.to_owned(),
        view: RwLock::new(view),
        cache: Cache::new(CACHE_BYTES),
    });
    Ok(Looked {
        reader: Reader { shared },
        segments,
    })
}
