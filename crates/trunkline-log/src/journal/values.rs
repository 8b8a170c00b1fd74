//! Values that are too large for the journal, in files of their own.
//!
//! A file is a header and values side by side. Nothing in it says where they are: keys do. A value is
//! synced before the record that names it is written, so a record that can be read names a value
//! that can be read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use trunkline_core::{Result, Timestamp};

use super::files::{self, NotMade};
use super::record::Place;
use crate::disk::{self, Disk, File, Open};
use crate::frame::{FILE_HEADER_LEN, FileHeader, FileKind, damaged, failed};

/// One file of values.
#[derive(Debug)]
pub(super) struct ValueFile {
    file: Arc<dyn File>,
    path: PathBuf,
    id: u64,
    /// Bytes that are reserved for it.
    pub(super) size: u64,
}

/// The files of values that there are, for readers and the writer.
#[derive(Debug, Default)]
pub(super) struct ValueFiles(RwLock<BTreeMap<u64, Arc<ValueFile>>>);

impl ValueFiles {
    /// Reads a value; none when its file is gone.
    pub(super) fn read(&self, place: &Place) -> Result<Option<Bytes>> {
        let Some(file) = self.0.read().get(&place.file).cloned() else {
            return Ok(None);
        };
        let end = place.offset.saturating_add(u64::from(place.len));
        if end > file.size {
            let what = format_args!("it should hold a value up to {end}");
            return Err(damaged(&file.path, file.size, what));
        }
        let mut bytes = vec![0; place.len as usize];
        let read = disk::read_full(&*file.file, &mut bytes, place.offset)
            .map_err(|error| failed("read a value from", &file.path, error))?;
        if read < bytes.len() || checksum(file.id, place.offset, &bytes) != place.crc {
            let what = "the value here does not match its checksum";
            return Err(damaged(&file.path, place.offset, what));
        }
        Ok(Some(bytes.into()))
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<ValueFile>> {
        self.0.read().get(&number).cloned()
    }

    pub(super) fn numbers(&self) -> Vec<u64> {
        self.0.read().keys().copied().collect()
    }

    /// Opens a file that must hold values up to `end`.
    pub(super) fn open(
        &self,
        disk: &dyn Disk,
        dir: &Path,
        number: u64,
        end: u64,
        how: Open,
    ) -> Result<Arc<ValueFile>> {
        let path = dir.join(files::name_of(FileKind::Values, number));
        let file = disk.open(&path, how).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                damaged(&path, 0, "keys have values in it, and it is not there")
            } else {
                failed("open", &path, error)
            }
        })?;
        let header = FileHeader::read(&*file, &path, FileKind::Values)?;
        if header.base != number {
            let what = format_args!("it is number {} by its header", header.base);
            return Err(damaged(&path, 24, what));
        }
        let size = header.reserved;
        if end > size {
            let what = format_args!("it should hold values up to {end}");
            return Err(damaged(&path, size, what));
        }
        let opened = Arc::new(ValueFile {
            file,
            path,
            id: header.file_id,
            size,
        });
        self.0.write().insert(number, Arc::clone(&opened));
        Ok(opened)
    }

    /// Removes a file. Whoever is reading it goes on.
    pub(super) fn remove(&self, disk: &dyn Disk, number: u64) -> Result<()> {
        let Some(file) = self.0.write().remove(&number) else {
            return Ok(());
        };
        disk.remove(&file.path)
            .map_err(|error| failed("remove", &file.path, error))
    }
}

fn checksum(file_id: u64, offset: u64, bytes: &[u8]) -> u32 {
    let mut keyed = [0; 16];
    keyed[..8].copy_from_slice(&file_id.to_le_bytes());
    keyed[8..].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&keyed), bytes)
}

/// The end of the files of values, where one thread writes.
#[derive(Debug)]
pub(super) struct ValueWriter {
    dir: PathBuf,
    file_bytes: u64,
    /// The file that is written to, its number, and where the next value goes.
    current: Option<(u64, Arc<ValueFile>, u64)>,
    next_number: u64,
    staged: Vec<(Arc<ValueFile>, u64, Bytes)>,
}

impl ValueWriter {
    pub(super) fn new(dir: PathBuf, file_bytes: u64) -> Self {
        Self {
            dir,
            file_bytes,
            current: None,
            next_number: 1,
            staged: Vec::new(),
        }
    }

    /// Goes on in a file, after the last value that a key has in it.
    pub(super) fn go_on(&mut self, number: u64, file: Arc<ValueFile>, end: u64) {
        self.current = Some((number, file, end.max(FILE_HEADER_LEN)));
    }

    /// No file of that number or a lower one is made from now on.
    pub(super) fn pass_number(&mut self, number: u64) {
        self.next_number = self.next_number.max(number.saturating_add(1));
    }

    /// The number of the file that is written to.
    pub(super) fn current(&self) -> Option<u64> {
        self.current.as_ref().map(|(number, ..)| *number)
    }

    /// Makes sure that so many bytes can be put side by side: the only step that needs room.
    pub(super) fn reserve(
        &mut self,
        bytes: u64,
        disk: &dyn Disk,
        files: &ValueFiles,
        now: Timestamp,
    ) -> Result<(), NotMade> {
        let has_room =
            |(_, file, end): &(u64, Arc<ValueFile>, u64)| file.size.saturating_sub(*end) >= bytes;
        if self.current.as_ref().is_some_and(has_room) {
            return Ok(());
        }
        let (number, size) = (
            self.next_number,
            self.file_bytes.max(FILE_HEADER_LEN + bytes),
        );
        let made = files::make(disk, &self.dir, FileKind::Values, number, size, now)?;
        let file = Arc::new(ValueFile {
            file: made.file,
            path: made.path,
            id: made.header.file_id,
            size,
        });
        files.0.write().insert(number, Arc::clone(&file));
        self.next_number += 1;
        self.current = Some((number, file, FILE_HEADER_LEN));
        Ok(())
    }

    /// Stages a value for which room was reserved.
    pub(super) fn put(&mut self, value: Bytes) -> Option<Place> {
        let (number, file, end) = self.current.as_mut()?;
        let place = Place {
            file: *number,
            offset: *end,
            len: u32::try_from(value.len()).ok()?,
            crc: checksum(file.id, *end, &value),
        };
        *end += value.len() as u64;
        self.staged.push((Arc::clone(file), place.offset, value));
        Some(place)
    }

    /// Writes what was staged and syncs it.
    pub(super) fn write(&mut self) -> Result<()> {
        let mut written: Vec<Arc<ValueFile>> = Vec::new();
        for (file, offset, value) in self.staged.drain(..) {
            file.file
                .write_at(&value, offset)
                .map_err(|error| failed("write to", &file.path, error))?;
            if written.last().is_none_or(|last| !Arc::ptr_eq(last, &file)) {
                written.push(file);
            }
        }
        for file in written {
            file.file
                .sync()
                .map_err(|error| failed("sync", &file.path, error))?;
        }
        Ok(())
    }
}
