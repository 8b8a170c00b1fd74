//! Reading groups one after another, in chunks.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use trunkline_core::Result;

use super::{CLOSING, SEALING};
use super::{GROUP_HEADER_LEN, GroupHeader, failed, newer};
use crate::disk::{self, File};

/// Bytes that are read at once, unless a group is larger.
const CHUNK: usize = 256 << 10;

/// A group that was read and matches its checksums.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its header.
    pub header: GroupHeader,
    /// Where it stands in the file.
    pub offset: u64,
    /// Its content, a slice of the chunk that was read.
    pub content: Bytes,
}

impl Group {
    /// Where the next group stands.
    pub fn end(&self) -> u64 {
        self.offset + self.header.size()
    }
}

/// A walk over the groups of a file, up to the first that is not valid.
#[derive(Debug)]
pub struct Walk<'a> {
    file: &'a dyn File,
    path: &'a Path,
    file_id: u64,
    /// Of the next group.
    offset: u64,
    /// Nothing is read beyond this.
    end: u64,
    chunk: Bytes,
    chunk_size: usize,
}

impl<'a> Walk<'a> {
    /// A walk from the group at `from` to `end`.
    pub fn new(file: &'a dyn File, path: &'a Path, file_id: u64, from: u64, end: u64) -> Self {
        Self {
            file,
            path,
            file_id,
            offset: from,
            end,
            chunk: Bytes::new(),
            chunk_size: CHUNK,
        }
    }

    /// Reads so many bytes at once, instead of 256 KiB.
    #[must_use]
    pub fn in_chunks_of(mut self, bytes: usize) -> Self {
        self.chunk_size = bytes.max(GROUP_HEADER_LEN);
        self
    }

    /// Where the next group would stand; after the last one, where the valid part ends.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes on with the group at `offset`.
    pub fn go_to(&mut self, offset: u64) {
        let ahead = offset
            .checked_sub(self.offset)
            .and_then(|by| usize::try_from(by).ok());
        match ahead {
            Some(by) if by <= self.chunk.len() => drop(self.chunk.split_to(by)),
            _ => self.chunk = Bytes::new(),
        }
        self.offset = offset;
    }

    /// The next group; none where the valid part ends.
    ///
    /// # Errors
    /// Those of reading, and [`WrongVersion`](trunkline_core::ErrorKind::WrongVersion) for flags
    /// that this version does not know.
    pub fn next_group(&mut self) -> Result<Option<Group>> {
        if !self.fill(GROUP_HEADER_LEN)? {
            return Ok(None);
        }
        let Some(header) = GroupHeader::decode(&self.chunk, self.file_id, self.offset) else {
            return Ok(None);
        };
        let left = self.end - self.offset;
        // The length is checked against the file before anything is allocated for it.
        let Some(size) = usize::try_from(header.size())
            .ok()
            .filter(|_| header.size() <= left)
        else {
            return Ok(None);
        };
        if !self.fill(size)? || !header.matches(&self.chunk[GROUP_HEADER_LEN..size]) {
            return Ok(None);
        }
        if header.flags & !(CLOSING | SEALING) != 0 {
            let flags = format_args!(
                "a group with flags {:#x} at offset {}",
                header.flags, self.offset
            );
            return Err(newer(self.path, flags));
        }
        let offset = self.offset;
        let content = self
            .chunk
            .slice(GROUP_HEADER_LEN..GROUP_HEADER_LEN + header.len as usize);
        self.go_to(offset + header.size());
        Ok(Some(Group {
            header,
            offset,
            content,
        }))
    }

    /// Has at least so many bytes in the chunk, or says that there are not so many.
    fn fill(&mut self, bytes: usize) -> Result<bool> {
        if self.chunk.len() >= bytes {
            return Ok(true);
        }
        let left = usize::try_from(self.end.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        if left < bytes {
            return Ok(false);
        }
        let mut chunk = BytesMut::zeroed(bytes.max(self.chunk_size).min(left));
        let kept = self.chunk.len();
        chunk[..kept].copy_from_slice(&self.chunk);
        let read = disk::read_full(self.file, &mut chunk[kept..], self.offset + kept as u64)
            .map_err(|error| failed("read", self.path, error))?;
        chunk.truncate(kept + read);
        self.chunk = chunk.freeze();
        Ok(self.chunk.len() >= bytes)
    }
}
