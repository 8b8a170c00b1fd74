//! Making, opening and deleting a stream's directory.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;
use rustc_hash::FxHashMap;
use trunkline_core::engine::{Seq, StreamSpec};
use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use super::cache::Cache;
use super::view::{Shared, View};
use super::{Options, Pending, Recent, Stream};
use crate::disk::{Disk, File, Open};
use crate::frame::{
    self, CLOSING, FILE_HEADER_LEN, FileHeader, FileKind, GroupHeader, OpenGroup, damaged, failed,
};
use crate::segment::bloom::Growing;
use crate::segment::index::{self, ID_BLOOM, ID_PAGES, IdPages, Summary};
use crate::segment::record::{Head, STATE};
use crate::segment::scan::Scan;
use crate::segment::{Segment, base_of, open_index, segment_name, write_index};

/// What opening a stream came upon, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments with events, the one that is written included.
    pub segments: u64,
    /// Events in the stream.
    pub events: u64,
    /// Groups that a crash had torn, at least; nothing in them was ever acknowledged.
    pub cut_groups: u64,
    /// Bytes that were cut off with them, at least.
    pub cut_bytes: u64,
    /// Indexes that were missing or damaged and were made again.
    pub indexes_made: u64,
}

/// The segments of a stream as they were found, all but the last one.
struct Found {
    sealed: Vec<Arc<Segment>>,
    /// Whose events are gone and whose ids are perhaps not: the segment, and whether its file is there.
    gone: Vec<Segment>,
}

impl Stream {
    /// Makes a stream in a directory that has none, and opens it.
    ///
    /// # Errors
    /// [`ErrorKind::Drift`] when there are events in the directory already,
    /// [`ErrorKind::OverQuota`] when the disk is full, and those of [`open`](Self::open).
    pub fn create(
        disk: Arc<dyn Disk>,
        dir: &Path,
        spec: StreamSpec,
        mut options: Options,
        now: Timestamp,
    ) -> Result<(Self, Report)> {
        let make = |error| failed("make", dir, error);
        disk.make_dir(dir).map_err(make)?;
        if let Some(parent) = dir.parent() {
            disk.sync_dir(parent).map_err(make)?;
        }
        let mut random = options.seed.unwrap_or_else(rand::random);
        let names = disk.list(dir).map_err(make)?;
        if !names.iter().any(|name| base_of(name).is_some()) {
            let header = FileHeader {
                kind: FileKind::Segment,
                file_id: next_id(&mut random),
                base: 1,
                created: now,
                reserved: options.segment_bytes,
            };
            let mut state = Vec::new();
            let group = OpenGroup::begin(&mut state);
            let head = Head {
                seq: 1,
                at: now,
                first: 1,
                bytes: 0,
            };
            state.extend_from_slice(&head.encode());
            let of_kind = GroupHeader {
                kind: STATE,
                ..GroupHeader::default()
            };
            group.finish(&mut state, header.file_id, FILE_HEADER_LEN, of_kind);
            super::roll::make_segment_in(&*disk, dir, &header, &state, 0, None).map_err(make)?;
        }
        options.seed = Some(random);
        let (stream, report) = Self::open(disk, dir, spec, options, now)?;
        if stream.tail > 1 {
            return Err(Error::new(
                ErrorKind::Drift,
                format!(
                    "{} has {} events of a stream that was to be new; move the directory away or declare the stream as it was",
                    dir.display(),
                    stream.tail - 1
                ),
            ));
        }
        Ok((stream, report))
    }

    /// Opens a stream that was made before. Only the headers, the summaries of indexes and the last
    /// segment are read.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] with file and offset, [`ErrorKind::WrongVersion`] for what a newer
    /// version wrote, and [`ErrorKind::StorageFailed`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        spec: StreamSpec,
        options: Options,
        now: Timestamp,
    ) -> Result<(Self, Report)> {
        let mut report = Report::default();
        let names = list(&*disk, dir)?;
        let bases: Vec<Seq> = names.iter().filter_map(|name| base_of(name)).collect();
        let Some((last, before)) = bases.split_last() else {
            return Err(damaged(dir, 0, "the segments of the stream are missing"));
        };
        let path = dir.join(segment_name(*last));
        let file = disk
            .open(&path, Open::Write)
            .map_err(|error| failed("open", &path, error))?;
        let header = read_header(&*file, &path, *last)?;
        let mut scan = Scan::new(&path, header.base);
        let mut is_witnessed = false;
        let recovered = frame::recover(&*file, &path, &header, |group| {
            is_witnessed = group.header.flags & CLOSING != 0;
            scan.group(&group)
        })?;
        let Scan {
            index,
            ids,
            head,
            removed,
            last_at,
            is_sealed,
            ..
        } = scan;
        let Some(head) = head else {
            let what = "the segment does not begin with the state of its stream";
            return Err(damaged(&path, FILE_HEADER_LEN, what));
        };
        if is_sealed {
            let what = "the segment is sealed, and the one that followed it is missing";
            return Err(damaged(&path, recovered.end, what));
        }
        if head.first > index.end() {
            return Err(damaged(
                &path,
                recovered.end,
                "the stream begins after its end",
            ));
        }
        report.cut_groups = recovered.cut_groups;
        report.cut_bytes = recovered.cut_bytes;
        let found = find_sealed(&*disk, dir, (before, *last), head.first, &mut report)?;
        let tail = index.end();
        // What is removed may reach beyond the end, where skipping sequences was interrupted.
        let first = removed.skip(head.first).min(tail);
        let events = tail - first - removed.count(first, tail);
        report.segments = found.sealed.len() as u64 + 1;
        report.events = events;
        let active = Arc::new(Segment {
            file,
            path,
            header,
            sealed: None,
        });
        let shared = Arc::new(Shared {
            view: RwLock::new(View {
                sealed: Arc::new(found.sealed),
                active: Arc::clone(&active),
                index,
                end: recovered.end,
                first,
                events,
                bytes: head.bytes,
                removed: removed.clone(),
            }),
            cache: Cache::new(options.cache_bytes),
            disk,
            dir: dir.to_owned(),
        });
        let mut stream = Self {
            recent: VecDeque::new(),
            capacity: active.header.reserved,
            active,
            shared,
            spec,
            buffer: Vec::new(),
            group: None,
            written: recovered.end,
            durable: recovered.end,
            is_witnessed,
            tail,
            first,
            recorded_first: head.first,
            durable_first: head.first,
            events,
            bytes: head.bytes,
            last_at,
            removed,
            pending: Pending::default(),
            ids: ids.into_iter().collect::<FxHashMap<_, _>>(),
            sealed_ids: (Growing::new(0), Growing::new(0)),
            front: None,
            first_at: None,
            spare: None,
            poison: None,
            random: options.seed.unwrap_or_else(rand::random),
            options,
        };
        stream.remember(found.gone, &names, now)?;
        stream.retire();
        Ok((stream, report))
    }

    /// Finds the segments whose ids are within the duplicate window.
    fn remember(&mut self, gone: Vec<Segment>, names: &[String], now: Timestamp) -> Result<()> {
        let oldest = now.minus(self.spec.duplicate_window);
        let shared = Arc::clone(&self.shared);
        for segment in gone {
            // Its events left before the last crash, or its file did.
            if names.binary_search(&segment_name(segment.base())).is_ok()
                && let Err(error) = shared.disk.remove(&segment.path)
            {
                tracing::warn!(file = %segment.path.display(), %error, "cannot remove an old segment");
            }
            let is_recent = segment
                .sealed
                .as_ref()
                .is_some_and(|sealed| sealed.summary.last_at >= oldest);
            let sections = (segment.section(ID_BLOOM), segment.section(ID_PAGES));
            let (true, (Some(bloom), Some(pages))) = (is_recent, sections) else {
                let _ = shared.disk.remove(&segment.index_path());
                continue;
            };
            let pages = IdPages(pages);
            self.recent.push_back(Recent {
                segment,
                bloom,
                pages,
                is_covered: false,
                is_gone: true,
            });
        }
        let sealed = Arc::clone(&shared.view.read().sealed);
        for segment in sealed.iter() {
            if let Some(of) = segment
                .sealed
                .as_ref()
                .filter(|of| of.summary.last_at >= oldest)
            {
                let bloom = shared.section(segment, ID_BLOOM)?;
                let pages = IdPages(shared.section(segment, ID_PAGES)?);
                let segment = segment.seal(of.summary, of.index.clone());
                self.recent.push_back(Recent {
                    segment,
                    bloom,
                    pages,
                    is_covered: false,
                    is_gone: false,
                });
            }
        }
        Ok(())
    }
}

/// The names in a stream's directory, files that were being made aside: those are removed.
fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(damaged(dir, 0, "the directory of the stream is missing"));
        }
        names => names.map_err(|error| failed("list", dir, error))?,
    };
    // A process that was killed may have renamed files without making that durable.
    disk.sync_dir(dir)
        .map_err(|error| failed("sync", dir, error))?;
    let (unfinished, names): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| name.ends_with(".tmp"));
    for name in unfinished {
        let path = dir.join(name);
        disk.remove(&path)
            .map_err(|error| failed("remove", &path, error))?;
    }
    Ok(names)
}

pub(super) fn read_header(file: &dyn File, path: &Path, base: Seq) -> Result<FileHeader> {
    let header = FileHeader::read(file, path, FileKind::Segment)?;
    if header.base != base {
        let what = format_args!(
            "it begins with event {}, and its name says {base}",
            header.base
        );
        return Err(damaged(path, 24, what));
    }
    Ok(header)
}

/// Opens all segments before the last one, whose base is given with theirs.
fn find_sealed(
    disk: &dyn Disk,
    dir: &Path,
    (before, last): (&[Seq], Seq),
    first: Seq,
    report: &mut Report,
) -> Result<Found> {
    let mut found = Found {
        sealed: Vec::new(),
        gone: Vec::new(),
    };
    let ends = before.iter().skip(1).copied().chain([last]);
    for (base, end) in before.iter().copied().zip(ends) {
        if end <= first {
            continue;
        }
        let segment = open_sealed(disk, dir, base)?;
        let sealed = match index_of(disk, &segment, end) {
            Some((summary, file)) => segment.seal(summary, Some(file)),
            None => {
                report.indexes_made += 1;
                make_index(disk, &segment, end)?
            }
        };
        found.sealed.push(Arc::new(sealed));
    }
    let lowest = found.sealed.first().map_or(last, |segment| segment.base());
    if lowest > first {
        let path = dir.join(segment_name(lowest));
        let what = format_args!(
            "the stream begins with event {first}, and the segment before this one is missing"
        );
        return Err(damaged(&path, 0, what));
    }
    // Indexes without a segment that is needed.
    for name in disk.list(dir).map_err(|error| failed("list", dir, error))? {
        let base = name
            .strip_suffix(".idx")
            .and_then(|stem| base_of(&format!("{stem}.seg")));
        let Some(base) = base.filter(|base| *base < lowest) else {
            continue;
        };
        let path = dir.join(segment_name(base));
        let header = disk
            .open(&path.with_extension("idx"), Open::Read)
            .ok()
            .and_then(|file| Some((FileHeader::read(&*file, &path, FileKind::Index).ok()?, file)));
        let Some((header, file)) = header else {
            continue;
        };
        let segment = Segment {
            file,
            path,
            header,
            sealed: None,
        };
        if let Some((summary, file)) = open_index(disk, &segment.index_path(), &header) {
            found.gone.push(segment.seal(summary, Some(file)));
        }
    }
    Ok(found)
}

/// Opens a segment that another follows.
pub(crate) fn open_sealed(disk: &dyn Disk, dir: &Path, base: Seq) -> Result<Segment> {
    let path = dir.join(segment_name(base));
    let open = |error| failed("open", &path, error);
    let file = disk.open(&path, Open::Read).map_err(open)?;
    let header = read_header(&*file, &path, base)?;
    Ok(Segment {
        file,
        path,
        header,
        sealed: None,
    })
}

/// The index of a segment that ends before `end`, if it is there and of use.
pub(super) fn index_of(
    disk: &dyn Disk,
    segment: &Segment,
    end: Seq,
) -> Option<(Summary, Arc<dyn File>)> {
    let known = open_index(disk, &segment.index_path(), &segment.header);
    known.filter(|(summary, _)| summary.events == end.saturating_sub(segment.base()))
}

/// Reads all of a segment and makes its index again.
fn make_index(disk: &dyn Disk, segment: &Segment, end: Seq) -> Result<Segment> {
    let (summary, image) = summarize(segment, end)?;
    let file = write_index(disk, &segment.index_path(), &image);
    if let Err(error) = &file {
        tracing::warn!(%error, "cannot write the index of a segment");
    }
    Ok(segment.seal(summary, file.ok()))
}

/// Reads all of a segment that ends before `end`, and gives its index as bytes.
pub(crate) fn summarize(segment: &Segment, end: Seq) -> Result<(Summary, Vec<u8>)> {
    let len = segment
        .file
        .len()
        .map_err(|error| failed("find the length of", &segment.path, error))?;
    let mut scan = Scan::new(&segment.path, segment.base());
    let mut walk = segment.walk(FILE_HEADER_LEN, len);
    let mut data_end = walk.offset();
    while let Some(group) = walk.next_group()? {
        scan.group(&group)?;
        if group.header.flags & frame::SEALING == 0 {
            data_end = group.end();
        }
    }
    if scan.index.end() != end {
        return Err(damaged(
            &segment.path,
            walk.offset(),
            format_args!(
                "its events end here with {}, and the next segment begins with {end}: what was between is missing",
                scan.index.end().saturating_sub(1)
            ),
        ));
    }
    let Scan {
        index,
        mut ids,
        last_at,
        ..
    } = scan;
    Ok(index::encode(
        &segment.header,
        &index,
        &mut ids,
        data_end,
        last_at,
    ))
}

/// Deletes a stream's directory. What fails can be tried again.
///
/// # Errors
/// [`ErrorKind::StorageFailed`] with the file that cannot be removed.
pub fn delete(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        names => names.map_err(|error| failed("list", dir, error))?,
    };
    for name in names {
        let path = dir.join(name);
        disk.remove(&path)
            .map_err(|error| failed("remove", &path, error))?;
    }
    let remove = |error| failed("remove", dir, error);
    disk.sync_dir(dir).map_err(remove)?;
    disk.remove_dir(dir).map_err(remove)?;
    match dir.parent() {
        Some(parent) => disk.sync_dir(parent).map_err(remove),
        None => Ok(()),
    }
}

/// The next number of a row that never repeats (SplitMix64).
pub(super) fn next_id(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
