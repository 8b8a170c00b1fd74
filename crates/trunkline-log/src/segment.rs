//! Segments: the files that hold the events of a stream, and the indexes over them.

pub(crate) mod bloom;
pub(crate) mod index;
pub(crate) mod record;
pub(crate) mod scan;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use trunkline_core::Result;
use trunkline_core::engine::Seq;

use crate::disk::{self, Disk, File, Open};
use crate::frame::{self, FILE_HEADER_LEN, FileHeader, FileKind, Walk};
use index::{ID_LEN, ID_PAGE_BYTES, IDS, IdPages, Ids, SUMMARY, Summary};

/// The name of the segment whose first event has that sequence.
pub(crate) fn segment_name(base: Seq) -> String {
    format!("{base:020}.seg")
}

/// The sequence in the name of a segment.
pub(crate) fn base_of(name: &str) -> Option<Seq> {
    let digits = name.strip_suffix(".seg")?;
    let is_name = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| is_name)
}

/// One segment file.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn File>,
    pub(crate) path: PathBuf,
    pub(crate) header: FileHeader,
    /// Of a sealed one.
    pub(crate) sealed: Option<Sealed>,
}

/// What is known of a sealed segment.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) summary: Summary,
    /// None when it could not be written; what it would say is then found by reading the segment.
    pub(crate) index: Option<Arc<dyn File>>,
}

impl Segment {
    pub(crate) fn base(&self) -> Seq {
        self.header.base
    }

    /// The sequence after its last event, of a sealed one.
    pub(crate) fn end(&self) -> Seq {
        let events = self
            .sealed
            .as_ref()
            .map_or(0, |sealed| sealed.summary.events);
        self.base().saturating_add(events)
    }

    /// How many ids it has, if it is sealed.
    pub(crate) fn ids(&self) -> u64 {
        self.sealed.as_ref().map_or(0, |sealed| sealed.summary.ids)
    }

    pub(crate) fn index_path(&self) -> PathBuf {
        self.path.with_extension("idx")
    }

    /// A walk over its groups from that offset to that end.
    pub(crate) fn walk(&self, from: u64, end: u64) -> Walk<'_> {
        Walk::new(&*self.file, &self.path, self.header.file_id, from, end)
    }

    /// Where its events end; `active_end` if it is being written.
    pub(crate) fn data_end(&self, active_end: u64) -> u64 {
        self.sealed
            .as_ref()
            .map_or(active_end, |sealed| sealed.summary.data_end)
    }

    /// This segment as a sealed one.
    pub(crate) fn seal(&self, summary: Summary, index: Option<Arc<dyn File>>) -> Self {
        Self {
            file: Arc::clone(&self.file),
            path: self.path.clone(),
            header: self.header,
            sealed: Some(Sealed { summary, index }),
        }
    }

    /// One section of the index file; none if it is missing or not as it was written.
    pub(crate) fn section(&self, kind: u8) -> Option<Bytes> {
        let sealed = self.sealed.as_ref()?;
        let number = usize::from(kind.checked_sub(SUMMARY + 1)?);
        let offset = *sealed.summary.sections.get(number)?;
        let file = sealed.index.as_ref()?;
        read_section(
            &**file,
            &self.index_path(),
            self.header.file_id,
            offset,
            kind,
        )
    }

    /// The event with that id, counted from the base, by reading one page of the table of ids; an error
    /// if that cannot be read or is not as it was written.
    pub(crate) fn find_id(&self, pages: &IdPages, id: u128) -> io::Result<Option<u32>> {
        let Some((page, crc)) = pages.page(id) else {
            return Ok(None);
        };
        let sealed = self.sealed.as_ref().and_then(|sealed| {
            let offset = sealed
                .summary
                .sections
                .get(usize::from(IDS - SUMMARY - 1))?;
            Some((sealed.index.as_ref()?, *offset))
        });
        let (file, offset) = sealed.ok_or(io::ErrorKind::NotFound)?;
        let from = offset + (frame::GROUP_HEADER_LEN + page * ID_PAGE_BYTES) as u64;
        let mut bytes = vec![0; ID_PAGE_BYTES];
        let read = disk::read_full(&**file, &mut bytes, from)?;
        bytes.truncate(read);
        // The last page is shorter, and other bytes follow it in the file.
        let rest = usize::try_from(self.ids().saturating_mul(ID_LEN as u64)).unwrap_or(0);
        bytes.truncate(rest.saturating_sub(page * ID_PAGE_BYTES));
        if crc32c::crc32c(&bytes) != crc {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Ids(Bytes::from(bytes)).find(id))
    }

    /// A section out of the bytes of an index that was just made.
    pub(crate) fn section_of(&self, image: &Bytes, summary: &Summary, kind: u8) -> Option<Bytes> {
        let number = usize::from(kind.checked_sub(SUMMARY + 1)?);
        let offset = *summary.sections.get(number)?;
        let from = usize::try_from(offset).ok()?;
        let header = frame::GroupHeader::decode(image.get(from..)?, self.header.file_id, offset)?;
        let content = from + frame::GROUP_HEADER_LEN;
        Some(image.slice(content..content + header.len as usize))
    }
}

fn read_section(
    file: &dyn File,
    path: &Path,
    file_id: u64,
    offset: u64,
    kind: u8,
) -> Option<Bytes> {
    let end = file.len().ok()?;
    // A section is read with what it needs and no more: first its header, then its content.
    let mut walk = Walk::new(file, path, file_id, offset, end).in_chunks_of(0);
    let group = walk.next_group().ok()??;
    (group.header.kind == kind).then_some(group.content)
}

/// Opens the index file of a segment; none if it is missing, or is not the segment's or not as it
/// was written.
pub(crate) fn open_index(
    disk: &dyn Disk,
    path: &Path,
    header: &FileHeader,
) -> Option<(Summary, Arc<dyn File>)> {
    let file = disk.open(path, Open::Read).ok()?;
    let found = FileHeader::read(&*file, path, FileKind::Index).ok()?;
    if (found.file_id, found.base) != (header.file_id, header.base) {
        return None;
    }
    let content = read_section(&*file, path, header.file_id, FILE_HEADER_LEN, SUMMARY)?;
    Some((Summary::decode(&content)?, file))
}

/// Writes the index file of a segment.
pub(crate) fn write_index(disk: &dyn Disk, path: &Path, image: &[u8]) -> Result<Arc<dyn File>> {
    let tmp = path.with_extension("idx.tmp");
    let write = || {
        let _ = disk.remove(&tmp);
        let file = disk.open(&tmp, Open::CreateNew)?;
        file.write_at(image, 0)?;
        file.sync()?;
        disk.rename(&tmp, path)?;
        Ok(file)
    };
    write().map_err(|error| frame::failed("write the index", path, error))
}
