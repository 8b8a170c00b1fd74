//! What a directory consists of, and whether it is one of ours.

use std::io;
use std::path::{Path, PathBuf};

use trunkline_core::{Error, ErrorKind, Result};

use super::{Finding, Severity};
use crate::disk::{self, Disk, Open};
use crate::engine::sync::UNSYNCED;
use crate::format::{self, FORMAT, MOST_BYTES};
use crate::journal::look::Look;

pub(super) const STREAMS: &str = "streams";
pub(super) const STATE: &str = "state";
pub(super) const VALUES: &str = "values";
pub(super) const LOCK: &str = "lock";
/// What the directory of a stream is called that is being removed.
pub(super) const ASIDE: &str = ".removing";
/// What a file is called that a repair has kept.
pub(super) const DAMAGED: &str = ".damaged";
const MAKING: &str = ".tmp";
/// Where the owner serves other processes.
const SOCKET: &str = "bus.sock";

/// Whether the directory is ours, and complete enough to be looked at.
pub(super) fn check(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let names = disk.list(dir).map_err(|error| access("read", dir, error))?;
    if !names.iter().any(|name| name == FORMAT) {
        let ours = [STREAMS, STATE, LOCK];
        if names.is_empty() || !names.iter().any(|name| ours.contains(&name.as_str())) {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "{} is no directory of ours: it has no file {FORMAT}; name the directory of a `file:` URL",
                    dir.display()
                ),
            ));
        }
        return Err(partial(dir, &dir.join(FORMAT)));
    }
    let path = dir.join(FORMAT);
    let file = disk
        .open(&path, Open::Read)
        .map_err(|error| access("open", &path, error))?;
    let mut bytes = [0; MOST_BYTES];
    let read =
        disk::read_full(&*file, &mut bytes, 0).map_err(|error| access("read", &path, error))?;
    format::read(&path, &bytes[..read])?;
    // A new directory has neither yet, and one is never without the other for longer than a crash.
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if has(STREAMS) && !has(STATE) {
        return Err(partial(dir, &dir.join(STATE)));
    }
    if has(STATE) && !has(STREAMS) {
        // A crash between the making of the two leaves a journal without records.
        let look = Look::at(disk, dir, false, &mut |_| {})?;
        if !look.state.topology().streams.is_empty() {
            return Err(partial(dir, &dir.join(STREAMS)));
        }
    }
    Ok(())
}

fn partial(dir: &Path, missing: &Path) -> Error {
    Error::new(
        ErrorKind::Damaged,
        format!(
            "{} is not all of a log: {} is missing; copy the whole directory again, while nobody has it open",
            dir.display(),
            missing.display()
        ),
    )
}

/// What a failed access means to whoever named the directory.
pub(super) fn access(doing: &str, path: &Path, error: io::Error) -> Error {
    let message = format!("cannot {doing} {}", path.display());
    let (kind, remedy) = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (
            ErrorKind::NotPermitted,
            "run this as the user whose the directory is",
        ),
        io::ErrorKind::NotFound => (ErrorKind::InvalidConfig, "there is no such directory"),
        io::ErrorKind::NotADirectory => {
            (ErrorKind::InvalidConfig, "it is a file; name a directory")
        }
        _ => (ErrorKind::StorageFailed, "check the disk"),
    };
    Error::new(kind, format!("{message}: {remedy}")).caused_by(error)
}

/// The names in a directory; none if it is not there.
pub(super) fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
    match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        names => names.map_err(|error| access("read", dir, error)),
    }
}

/// The directories of streams, those that are being removed included.
pub(super) fn stream_dirs(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
    let mut names = list(disk, &dir.join(STREAMS))?;
    // A file among them is told of as a stranger.
    names.retain(|name| disk.list(&dir.join(STREAMS).join(name)).is_ok());
    Ok(names)
}

/// Whether there is anything of a journal.
pub(super) fn has_journals(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    let names = list(disk, &dir.join(STATE))?;
    Ok(names
        .iter()
        .any(|name| name.ends_with(".journal") || name.ends_with(".snapshot")))
}

/// All files with what they take, below the directory.
pub(super) fn files(disk: &dyn Disk, dir: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut dirs = vec![PathBuf::from(STATE), Path::new(STATE).join(VALUES)];
    let streams = stream_dirs(disk, dir)?;
    dirs.extend(streams.iter().map(|name| Path::new(STREAMS).join(name)));
    let mut files = Vec::new();
    for below in dirs {
        for name in list(disk, &dir.join(&below))? {
            let path = dir.join(&below).join(&name);
            // A directory cannot be opened or has no length; a file may be gone by now.
            let Ok(file) = disk.open(&path, Open::Read) else {
                continue;
            };
            if disk.list(&path).is_err()
                && let Ok(len) = file.len()
            {
                files.push((below.join(name), len));
            }
        }
    }
    Ok(files)
}

/// Bytes of all files that are read, and how many those are.
pub(super) fn size(disk: &dyn Disk, dir: &Path) -> Result<(u64, u64)> {
    let files = files(disk, dir)?;
    let read = files.iter().filter(|(path, _)| {
        let name = path.to_string_lossy();
        !name.ends_with(MAKING) && !name.contains(DAMAGED)
    });
    Ok(read.fold((0, 0), |(bytes, files), (_, len)| (bytes + len, files + 1)))
}

/// What is neither ours nor finished.
pub(super) fn strangers(disk: &dyn Disk, dir: &Path, is_live: bool) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for name in list(disk, dir)? {
        let ours = [FORMAT, LOCK, SOCKET, STREAMS, STATE, UNSYNCED];
        if !ours.contains(&name.as_str()) {
            findings.extend(stranger(Path::new(""), &name, is_live));
        }
    }
    let state = list(disk, &dir.join(STATE))?;
    for name in state.iter().filter(|name| {
        let known = [".journal", ".snapshot"];
        name.as_str() != VALUES && !known.iter().any(|end| name.ends_with(end))
    }) {
        findings.extend(stranger(Path::new(STATE), name, is_live));
    }
    let values = list(disk, &dir.join(STATE).join(VALUES))?;
    for name in values.iter().filter(|name| !name.ends_with(".values")) {
        findings.extend(stranger(&Path::new(STATE).join(VALUES), name, is_live));
    }
    let dirs = stream_dirs(disk, dir)?;
    for name in list(disk, &dir.join(STREAMS))? {
        if !dirs.contains(&name) {
            findings.extend(stranger(Path::new(STREAMS), &name, is_live));
        }
    }
    Ok(findings)
}

/// What a file is that has no name of ours.
pub(super) fn stranger(below: &Path, name: &str, is_live: bool) -> Option<Finding> {
    let path = below.join(name);
    if name.contains(DAMAGED) {
        let what = "a repair has kept this file as it was";
        let finding = Finding::new(Severity::Note, path, what);
        return Some(finding.means("nobody reads it; remove it when it is not needed any more"));
    }
    if name.ends_with(MAKING) {
        // An owner keeps one, and makes others.
        return (!is_live).then(|| {
            let what = "a file that was being made, or that waited to be used again";
            let finding = Finding::new(Severity::Leftover, path, what);
            finding.means("it has nothing in it that was acknowledged")
        });
    }
    let finding = Finding::new(Severity::Note, path, "it is no file of the log");
    Some(finding.means("nobody reads it"))
}
