//! All that can be read of a framed file, also behind damage: for looking, never for opening.

use std::path::Path;

use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use super::recovery::search;
use super::walk::{Group, Walk};
use super::{
    FILE_HEADER_LEN, Fields, FileHeader, FileKind, GROUP_HEADER_LEN, GroupHeader, SEALING,
};
use super::{damaged, failed};
use crate::disk::{self, File};

/// The next thing in a file.
#[derive(Debug)]
pub(crate) enum Piece {
    /// A group as it was written.
    Group(Group),
    /// Bytes that were groups and are none any more.
    Hole(Hole),
    /// Nothing more was ever acknowledged in this file.
    End(Tail),
}

/// Bytes that had been synced and are not as they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hole {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// How many records the headers say that are still valid in it, if those cover all of it.
    pub(crate) records: Option<u64>,
    /// Whether a valid group follows.
    pub(crate) goes_on: bool,
}

/// What stands behind the last group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// What belongs there: the end of the file, zeros, or nothing that matters.
    Clean,
    /// A write that was torn or is under way, or a last group without a witness that is damaged.
    Torn {
        /// Bytes, at least.
        bytes: u64,
    },
}

/// A walk over a file that goes on behind what is damaged. It may be written to meanwhile.
#[derive(Debug)]
pub(crate) struct Pieces<'a> {
    file: &'a dyn File,
    path: &'a Path,
    file_id: u64,
    len: u64,
    walk: Walk<'a>,
    /// Whether all of the file was synced before anything else happened, so that it needs no witness.
    is_whole: bool,
    /// Headers after the first hole, and the highest durable end from there on.
    found: Option<Vec<(u64, GroupHeader, u64)>>,
    end: Option<Tail>,
}

impl<'a> Pieces<'a> {
    /// A walk over all of a file; `is_whole` if it was synced before something else followed it, so
    /// that no valid group may stand behind one that is not.
    pub(crate) fn new(
        file: &'a dyn File,
        path: &'a Path,
        file_id: u64,
        is_whole: bool,
    ) -> Result<Self> {
        let len = file
            .len()
            .map_err(|error| failed("find the length of", path, error))?;
        Ok(Self {
            file,
            path,
            file_id,
            len,
            walk: Walk::new(file, path, file_id, FILE_HEADER_LEN, len),
            is_whole,
            found: None,
            end: None,
        })
    }

    /// Where the valid part ends, as far as it was walked.
    pub(crate) fn offset(&self) -> u64 {
        self.walk.offset()
    }

    /// The next piece; the end over and over once it is reached.
    ///
    /// # Errors
    /// Those of [`Walk::next_group`].
    pub(crate) fn next_piece(&mut self) -> Result<Piece> {
        if let Some(tail) = self.end {
            return Ok(Piece::End(tail));
        }
        if let Some(group) = self.walk.next_group()? {
            return Ok(self.group(group));
        }
        let at = self.walk.offset();
        self.search(at)?;
        // What was being written when the walk came by may be whole by now. A group that says what was
        // synced was found before this second look, so what it vouches for must be seen now.
        let mut again = self.walk_from(at);
        if let Some(group) = again.next_group()? {
            self.walk = again;
            return Ok(self.group(group));
        }
        let found = self.found.as_deref().unwrap_or(&[]);
        let later = &found[found.partition_point(|(offset, ..)| *offset < at)..];
        let has_witness = |(.., durable): &(u64, GroupHeader, u64)| self.is_whole || *durable > at;
        if !later.first().is_some_and(has_witness) {
            let tail = self.tail(at, later)?;
            self.end = Some(tail);
            return Ok(Piece::End(tail));
        }
        let (mut records, mut covered) = (0, at);
        for (offset, header, _) in later {
            // One that stands at the hole itself has a good header and other content.
            let is_whole = *offset > at && self.walk_from(*offset).next_group()?.is_some();
            if is_whole {
                let hole = Hole {
                    from: at,
                    to: *offset,
                    records: (covered == *offset).then_some(records),
                    goes_on: true,
                };
                self.walk = self.walk_from(*offset);
                return Ok(Piece::Hole(hole));
            }
            if *offset == covered {
                covered = offset.saturating_add(header.size());
                // Groups of later kinds have no records of their own, but say what became of others.
                records += match header.kind {
                    0 | 1 => u64::from(header.count),
                    _ => 0,
                };
            }
        }
        let to = later.last().map_or(at, |(offset, header, _)| {
            offset.saturating_add(header.size()).min(self.len)
        });
        self.end = Some(Tail::Clean);
        Ok(Piece::Hole(Hole {
            from: at,
            to,
            records: (covered >= to).then_some(records),
            goes_on: false,
        }))
    }

    fn group(&mut self, group: Group) -> Piece {
        if group.header.flags & SEALING != 0 {
            // Nothing that follows a seal was ever written to this file as it is now.
            self.end = Some(Tail::Clean);
        }
        Piece::Group(group)
    }

    fn walk_from(&self, offset: u64) -> Walk<'a> {
        Walk::new(self.file, self.path, self.file_id, offset, self.len)
    }

    /// Finds the headers from `at` on, once.
    fn search(&mut self, at: u64) -> Result<()> {
        if self.found.is_some() {
            return Ok(());
        }
        let headers = search(self.file, self.path, self.file_id, at, self.len)?;
        let mut found: Vec<(u64, GroupHeader, u64)> = headers
            .into_iter()
            .map(|(offset, header)| (offset, header, header.durable_end))
            .collect();
        let mut durable = 0;
        for (.., highest) in found.iter_mut().rev() {
            durable = durable.max(*highest);
            *highest = durable;
        }
        self.found = Some(found);
        Ok(())
    }

    fn tail(&self, at: u64, later: &[(u64, GroupHeader, u64)]) -> Result<Tail> {
        let mut next = [0; GROUP_HEADER_LEN];
        let read = disk::read_full(self.file, &mut next, at)
            .map_err(|error| failed("read", self.path, error))?;
        let is_clean = next[..read].iter().all(|byte| *byte == 0);
        if is_clean && later.is_empty() {
            return Ok(Tail::Clean);
        }
        let last = later.last().map_or(at, |(offset, header, _)| {
            offset.saturating_add(header.size()).min(self.len)
        });
        Ok(Tail::Torn {
            bytes: (last - at).max(read as u64),
        })
    }
}

/// The header of a file that may be damaged.
#[derive(Debug)]
pub(crate) enum Header {
    Good(FileHeader),
    Bad {
        offset: u64,
        error: Error,
        /// What it must have been, where groups confirm it.
        likely: Option<FileHeader>,
    },
}

/// Reads a header that must be of that kind and base. Where it is damaged, it is guessed from what is left
/// of it and from what stands `beside`, and taken if a group agrees.
pub(crate) fn header(
    file: &dyn File,
    path: &Path,
    kind: FileKind,
    base: u64,
    beside: impl FnOnce() -> Option<FileHeader>,
) -> Result<Header> {
    let error = match FileHeader::read(file, path, kind) {
        Ok(header) if header.base == base => return Ok(Header::Good(header)),
        Ok(header) => {
            // Somebody gave it another name.
            let what = format_args!("it is number {} by its header", header.base);
            return Ok(Header::Bad {
                offset: 24,
                error: damaged(path, 24, what),
                likely: None,
            });
        }
        Err(error) if error.kind() == ErrorKind::StorageFailed => return Err(error),
        Err(error) => error,
    };
    let len = file
        .len()
        .map_err(|error| failed("find the length of", path, error))?;
    let mut bytes = [0; FILE_HEADER_LEN as usize];
    disk::read_full(file, &mut bytes, 0).map_err(|error| failed("read", path, error))?;
    let left = Fields(&bytes);
    let is_intact = len >= FILE_HEADER_LEN && crc32c::crc32c(&bytes[..60]) == left.u32(60);
    let as_left = FileHeader {
        kind,
        file_id: left.u64(16),
        base,
        created: Timestamp::from_nanos(left.u64(32).cast_signed()),
        reserved: if is_intact { left.u64(40) } else { len },
    };
    if is_intact && left.u64(24) == base && len < as_left.reserved {
        // Only the end of the file is missing.
        return Ok(Header::Bad {
            offset: len,
            error,
            likely: Some(as_left),
        });
    }
    let beside = beside()
        .filter(|header| header.base == base)
        .map(|header| FileHeader {
            kind,
            reserved: len,
            ..header
        });
    let has_groups = |header: &FileHeader| {
        let found = search(file, path, header.file_id, FILE_HEADER_LEN, len);
        found.is_ok_and(|found| !found.is_empty())
    };
    Ok(Header::Bad {
        offset: 0,
        error,
        likely: [Some(as_left), beside]
            .into_iter()
            .flatten()
            .find(has_groups),
    })
}

/// What an error says beside the file, the place and what is to be done, which a finding has of its own.
pub(crate) fn brief(error: &Error) -> String {
    let text = error.message();
    let text = text.split("; keep a copy").next().unwrap_or(text);
    let text = text
        .split_once(" is damaged at offset ")
        .and_then(|(_, rest)| rest.split_once(": "))
        .map_or(text, |(_, what)| what);
    text.to_owned()
}
