//! Files as a header and a row of checksummed groups: what segments and journals are made of.
//!
//! ```text
//!   header │ group │ group │ group │ 32 zeros │ whatever was there before
//!          └──────────────────────┘
//!           valid, one after another          end
//! ```
//!
//! `FORMAT.md` has every byte and says how the end is found.

use std::io;
use std::path::Path;

use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use crate::disk::{self, File};

pub(crate) mod pieces;
mod recovery;
mod walk;

pub use recovery::{Recovered, recover};
pub use walk::{Group, Walk};

/// Bytes of the header of a file; the first group begins there.
pub const FILE_HEADER_LEN: u64 = 64;
/// Bytes of the header of a group, and of the zeros after the last group.
pub const GROUP_HEADER_LEN: usize = 32;
/// Groups begin at multiples of this.
pub const ALIGN: usize = 8;
/// The version of the format that this code writes, and the highest that it reads.
pub const VERSION: u16 = 1;

/// Flag of a group that stands where a file was closed.
pub const CLOSING: u8 = 1;
/// Flag of the last group of a file that another has followed.
pub const SEALING: u8 = 2;

const FILE_MAGIC: &[u8; 8] = b"TRUNKLOG";
const GROUP_MAGIC: [u8; 4] = *b"TGRP";

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FileKind {
    /// Events of a stream.
    Segment = 1,
    /// What a segment has, to be found quickly.
    Index = 2,
    /// Changes of keys and consumers.
    Journal = 3,
    /// Keys and consumers as they stood.
    Snapshot = 4,
    /// Values too large for the journal.
    Values = 5,
}

/// The first bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// What it is for.
    pub kind: FileKind,
    /// Random; tells its groups from those that were in the same place before.
    pub file_id: u64,
    /// The first sequence, or the number of a journal.
    pub base: u64,
    /// When it was made.
    pub created: Timestamp,
    /// Length that was reserved; 0 if none was.
    pub reserved: u64,
}

impl FileHeader {
    /// The header as bytes.
    pub fn encode(&self) -> [u8; FILE_HEADER_LEN as usize] {
        let mut bytes = [0; FILE_HEADER_LEN as usize];
        bytes[..8].copy_from_slice(FILE_MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[10..12].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.file_id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.base.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.created.as_nanos().to_le_bytes());
        bytes[40..48].copy_from_slice(&self.reserved.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header of a file that must be of that kind, and checks that the file is as long
    /// as was reserved.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] with file and offset, [`ErrorKind::WrongVersion`] for a newer format,
    /// and [`ErrorKind::StorageFailed`] when it cannot be read.
    pub fn read(file: &dyn File, path: &Path, kind: FileKind) -> Result<Self> {
        let mut bytes = [0; FILE_HEADER_LEN as usize];
        let read = disk::read_full(file, &mut bytes, 0)
            .map_err(|error| failed("read the header of", path, error))?;
        let header = Self::decode(&bytes[..read], path)?;
        if header.kind != kind {
            return Err(damaged(
                path,
                10,
                format_args!("it is {:?} where {kind:?} belongs", header.kind),
            ));
        }
        let len = file
            .len()
            .map_err(|error| failed("find the length of", path, error))?;
        if len < header.reserved {
            return Err(damaged(
                path,
                len,
                format_args!(
                    "it ends here, and {} bytes were reserved for it",
                    header.reserved
                ),
            ));
        }
        Ok(header)
    }

    fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        let fields = Fields(bytes);
        if bytes.len() < FILE_HEADER_LEN as usize {
            let what = "it ends within its header";
            return Err(damaged(path, bytes.len() as u64, what));
        }
        if bytes[..8] != *FILE_MAGIC {
            return Err(damaged(path, 0, "it is not a file of the log"));
        }
        let version = fields.u16(8);
        let is_intact = crc32c::crc32c(&bytes[..60]) == fields.u32(60);
        // A newer version may have another header, so the sum says nothing about it; but a version
        // of 0 was never written.
        if version > VERSION {
            return Err(newer(path, format_args!("version {version}")));
        }
        if !is_intact || version == 0 {
            return Err(damaged(path, 0, "its header does not match its checksum"));
        }
        let kinds = [
            FileKind::Segment,
            FileKind::Index,
            FileKind::Journal,
            FileKind::Snapshot,
            FileKind::Values,
        ];
        let kind = fields.u16(10);
        let Some(kind) = kinds.into_iter().find(|known| *known as u16 == kind) else {
            return Err(newer(path, format_args!("a file of kind {kind}")));
        };
        Ok(Self {
            kind,
            file_id: fields.u64(16),
            base: fields.u64(24),
            created: Timestamp::from_nanos(fields.u64(32).cast_signed()),
            reserved: fields.u64(40),
        })
    }
}

/// The header of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupHeader {
    /// Bytes of content.
    pub len: u32,
    /// Records in it.
    pub count: u32,
    /// [`CLOSING`] and [`SEALING`].
    pub flags: u8,
    /// What its records are; each kind of file has its own.
    pub kind: u8,
    /// Everything below this offset was durable before this group was written.
    pub durable_end: u64,
    /// CRC of the content with the zeros after it; filled in when the group is finished.
    pub content_crc: u32,
}

impl GroupHeader {
    /// Reads a header that stands at `offset` of the file; none if it is not valid there.
    pub fn decode(bytes: &[u8], file_id: u64, offset: u64) -> Option<Self> {
        let bytes = bytes.get(..GROUP_HEADER_LEN)?;
        if bytes[..4] != GROUP_MAGIC {
            return None;
        }
        let fields = Fields(bytes);
        (fields.u32(28) == header_crc(&bytes[..28], file_id, offset)).then(|| Self {
            len: fields.u32(4),
            count: fields.u32(8),
            flags: bytes[12],
            kind: bytes[13],
            durable_end: fields.u64(16),
            content_crc: fields.u32(24),
        })
    }

    /// Bytes of the content with the zeros after it.
    pub fn padded_len(&self) -> usize {
        padded(self.len as usize)
    }

    /// Bytes of the whole group.
    pub fn size(&self) -> u64 {
        (GROUP_HEADER_LEN + self.padded_len()) as u64
    }

    /// Whether this is the content, with the zeros after it.
    pub fn matches(&self, padded_content: &[u8]) -> bool {
        padded_content.len() == self.padded_len()
            && crc32c::crc32c(padded_content) == self.content_crc
    }
}

/// A group being written at the end of a buffer.
#[derive(Debug)]
#[must_use = "its header is written when it is finished"]
pub struct OpenGroup {
    start: usize,
}

impl OpenGroup {
    /// Begins a group: its content is what is pushed to `out` from now on.
    pub fn begin(out: &mut Vec<u8>) -> Self {
        let start = out.len();
        out.resize(start + GROUP_HEADER_LEN, 0);
        Self { start }
    }

    /// Bytes of content so far.
    pub fn len(&self, out: &[u8]) -> usize {
        out.len().saturating_sub(self.start + GROUP_HEADER_LEN)
    }

    /// Whether there is no content so far.
    pub fn is_empty(&self, out: &[u8]) -> bool {
        self.len(out) == 0
    }

    /// Where its content begins in the buffer.
    pub fn content_start(&self) -> usize {
        self.start + GROUP_HEADER_LEN
    }

    /// Fills in the header of the group, which will stand at `offset` of the file. Count, flags,
    /// kind and durable end are taken from `header`.
    pub fn finish(self, out: &mut Vec<u8>, file_id: u64, offset: u64, header: GroupHeader) {
        let content = self.content_start();
        let len = out.len() - content;
        out.resize(content + padded(len), 0);
        let content_crc = crc32c::crc32c(&out[content..]);
        let bytes = &mut out[self.start..content];
        bytes[..4].copy_from_slice(&GROUP_MAGIC);
        // Whoever fills the buffer keeps it below the length of a file, far below 4 GiB.
        bytes[4..8].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        bytes[8..12].copy_from_slice(&header.count.to_le_bytes());
        bytes[12] = header.flags;
        bytes[13] = header.kind;
        bytes[16..24].copy_from_slice(&header.durable_end.to_le_bytes());
        bytes[24..28].copy_from_slice(&content_crc.to_le_bytes());
        let crc = header_crc(&bytes[..28], file_id, offset);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
    }
}

fn header_crc(bytes: &[u8], file_id: u64, offset: u64) -> u32 {
    let mut keyed = [0; 16];
    keyed[..8].copy_from_slice(&file_id.to_le_bytes());
    keyed[8..].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&keyed), bytes)
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(ALIGN)
}

/// Little-endian numbers at places of a slice; zero beyond its end.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(self, at: usize) -> [u8; N] {
        let bytes = self.0.get(at..at.saturating_add(N));
        bytes
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; N])
    }

    pub(crate) fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    pub(crate) fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    pub(crate) fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

/// Stored bytes that are not as they were written.
pub fn damaged(path: &Path, offset: u64, what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::Damaged,
        format!(
            "{} is damaged at offset {offset}: {what}; keep a copy, check the disk and restore the file from a backup",
            path.display()
        ),
    )
}

/// Something that a later version of the format wrote.
pub fn newer(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::WrongVersion,
        format!(
            "{} was written by a newer version of Trunkline: it has {what}, which this version does not know; use the newer one",
            path.display()
        ),
    )
}

/// An operation of the disk that failed: no room, or [`ErrorKind::StorageFailed`].
pub fn failed(doing: &str, path: &Path, error: io::Error) -> Error {
    let (kind, advice) = if disk::is_full(&error) {
        (ErrorKind::OverQuota, "there is no room; free some")
    } else {
        (ErrorKind::StorageFailed, "check the disk")
    };
    Error::new(kind, format!("cannot {doing} {}: {advice}", path.display())).caused_by(error)
}

#[cfg(test)]
mod tests;
