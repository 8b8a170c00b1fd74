//! Keeping files as they were, beside what becomes of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use trunkline_core::Result;

use super::super::place::DAMAGED;
use crate::disk::{self, Disk, Open};
use crate::frame::failed;

/// Bytes that are copied at once.
const CHUNK: usize = 1 << 20;
/// So often one file is kept at most.
const MOST: usize = 1_000;

pub(super) struct Keeper<'a> {
    disk: &'a dyn Disk,
    root: &'a Path,
    /// Below the directory.
    pub(super) kept: Vec<PathBuf>,
    /// Files of which there is a copy by now.
    copied: BTreeSet<PathBuf>,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(disk: &'a dyn Disk, root: &'a Path) -> Self {
        Self {
            disk,
            root,
            kept: Vec::new(),
            copied: BTreeSet::new(),
        }
    }

    /// Keeps a copy of a file, once, so that it can be changed.
    pub(super) fn copy(&mut self, path: &Path) -> Result<()> {
        if self.copied.contains(path) {
            return Ok(());
        }
        let to = self.free_name(path)?;
        let mut making = to.as_os_str().to_owned();
        making.push(".tmp");
        let making = PathBuf::from(making);
        let copy = || {
            let from = self.disk.open(path, Open::Read)?;
            let _ = self.disk.remove(&making);
            let copy = self.disk.open(&making, Open::CreateNew)?;
            let (len, mut at) = (from.len()?, 0);
            // Room first: a copy that is cut short would be worse than none.
            copy.allocate(len)?;
            let mut chunk = vec![0; CHUNK];
            while at < len {
                let read = disk::read_full(&*from, &mut chunk, at)?;
                if read == 0 {
                    break;
                }
                copy.write_at(&chunk[..read], at)?;
                at += read as u64;
            }
            copy.sync()?;
            self.disk.rename(&making, &to)?;
            sync_parent(self.disk, &to)
        };
        copy().map_err(|error| {
            let _ = self.disk.remove(&making);
            failed("keep a copy of", path, error)
        })?;
        self.copied.insert(path.to_owned());
        self.note(&to);
        Ok(())
    }

    /// A file that the repair itself has made need not be kept.
    pub(super) fn made(&mut self, path: &Path) {
        self.copied.insert(path.to_owned());
    }

    /// Gives a file another name, so that nobody reads it any more.
    pub(super) fn set_aside(&mut self, path: &Path) -> Result<()> {
        let to = self.free_name(path)?;
        self.disk
            .rename(path, &to)
            .and_then(|()| sync_parent(self.disk, &to))
            .map_err(|error| failed("set aside", path, error))?;
        self.note(&to);
        Ok(())
    }

    fn note(&mut self, path: &Path) {
        self.kept
            .push(path.strip_prefix(self.root).unwrap_or(path).to_owned());
    }

    /// A name that nothing has.
    fn free_name(&self, path: &Path) -> Result<PathBuf> {
        let name = |number: usize| {
            let mut name = path.as_os_str().to_owned();
            name.push(DAMAGED);
            if number > 1 {
                name.push(format!("-{number}"));
            }
            PathBuf::from(name)
        };
        let is_free = |path: &PathBuf| {
            let found = self.disk.open(path, Open::Read);
            found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        };
        (1..MOST)
            .map(name)
            .find(is_free)
            .ok_or_else(|| super::hopeless(path, "it was kept a thousand times already"))
    }
}

fn sync_parent(disk: &dyn Disk, path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |dir| disk.sync_dir(dir))
}
