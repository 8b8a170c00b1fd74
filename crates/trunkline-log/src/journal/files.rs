//! The files of `state/`: their names, and making one so that it is there whole or not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trunkline_core::{Error, Result, Timestamp};

use crate::disk::{self, Disk, File, Open};
use crate::frame::{self, FileHeader, FileKind};

/// How a file that is being made is called until it is whole.
pub(super) const MAKING: &str = ".tmp";

/// What the files of one kind are called.
pub(super) fn name_of(kind: FileKind, number: u64) -> String {
    format!("{number:020}.{}", extension(kind))
}

fn extension(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Snapshot => "snapshot",
        FileKind::Values => "values",
        _ => "journal",
    }
}

/// The numbers of the files of one kind among names, rising.
pub(super) fn numbers(names: &[String], kind: FileKind) -> Vec<u64> {
    let number = |name: &String| {
        let digits = name.strip_suffix(extension(kind))?.strip_suffix('.')?;
        let number = digits.parse().ok()?;
        (name_of(kind, number) == *name).then_some(number)
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// A file that could not be made.
pub(super) struct NotMade {
    pub(super) error: Error,
    /// Whether there was no room, so that nothing is in doubt.
    pub(super) is_full: bool,
}

/// A file that was made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) file: Arc<dyn File>,
    pub(super) path: PathBuf,
    pub(super) header: FileHeader,
}

/// Makes a file of a length and a header, durably.
pub(super) fn make(
    disk: &dyn Disk,
    dir: &Path,
    kind: FileKind,
    number: u64,
    reserved: u64,
    now: Timestamp,
) -> Result<Made, NotMade> {
    let header = FileHeader {
        kind,
        file_id: rand::random(),
        base: number,
        created: now,
        reserved,
    };
    let path = dir.join(name_of(kind, number));
    let making = making(&path);
    let file = begin(disk, &making, &header).map_err(|error| {
        let is_full = disk::is_full(&error);
        if is_full {
            // What there is of it would keep the room that others wait for.
            let _ = disk.remove(&making);
        }
        NotMade {
            error: frame::failed("make", &path, error),
            is_full,
        }
    })?;
    finish(disk, dir, &making, &path).map_err(|error| NotMade {
        error: frame::failed("make", &path, error),
        is_full: false,
    })?;
    Ok(Made { file, path, header })
}

/// The name of a file while it is made.
pub(super) fn making(path: &Path) -> PathBuf {
    let mut making = path.as_os_str().to_owned();
    making.push(MAKING);
    making.into()
}

fn begin(disk: &dyn Disk, making: &Path, header: &FileHeader) -> std::io::Result<Arc<dyn File>> {
    let file = open_new(disk, making)?;
    file.allocate(header.reserved)?;
    file.write_at(&header.encode(), 0)?;
    file.sync()?;
    Ok(file)
}

/// Opens a new file, in place of what was left of one.
pub(super) fn open_new(disk: &dyn Disk, making: &Path) -> std::io::Result<Arc<dyn File>> {
    match disk.open(making, Open::CreateNew) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            disk.remove(making)?;
            disk.open(making, Open::CreateNew)
        }
        opened => opened,
    }
}

/// Gives a file that is whole its name.
pub(super) fn finish(
    disk: &dyn Disk,
    dir: &Path,
    making: &Path,
    path: &Path,
) -> std::io::Result<()> {
    disk.rename(making, path)?;
    disk.sync_dir(dir)
}
