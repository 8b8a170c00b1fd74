//! Who has a directory, found out without disturbing him.

use std::fs;
use std::io::{Seek, Write};
use std::path::Path;

use trunkline_core::{Error, ErrorKind, Result};

use super::place::{LOCK, access};

/// Who has a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody has had it yet, or it is no directory of this machine.
    Nobody,
    /// A process has it open; its number, if the lock says it.
    Running(Option<u32>),
    /// The last one to have it was this process, and it has let go.
    Gone(Option<u32>),
    /// This system does not tell who holds a lock without taking it; the last one to have it was this
    /// process.
    Unknown(Option<u32>),
}

impl Owner {
    /// Who has the directory, as far as can be seen without taking the lock: an owner that is just
    /// starting would be refused then. On Linux the system lists who holds which.
    pub(super) fn of(dir: &Path) -> Self {
        let path = dir.join(LOCK);
        let Ok(text) = fs::read_to_string(&path) else {
            return Owner::Nobody;
        };
        let pid = text.trim().parse().ok();
        match is_held(&path, pid) {
            Some(true) => Owner::Running(pid),
            Some(false) => Owner::Gone(pid),
            None => Owner::Unknown(pid),
        }
    }

    /// Whether somebody may be writing.
    pub fn may_write(self) -> bool {
        matches!(self, Owner::Running(_) | Owner::Unknown(_))
    }

    /// The process that has the directory, or had it last.
    pub fn process(self) -> Option<u32> {
        match self {
            Owner::Nobody => None,
            Owner::Running(pid) | Owner::Gone(pid) | Owner::Unknown(pid) => pid,
        }
    }

    /// Its name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Owner::Nobody => "nobody",
            Owner::Running(_) => "running",
            Owner::Gone(_) => "gone",
            Owner::Unknown(_) => "unknown",
        }
    }
}

/// Whether somebody holds a lock on the file; none if the system does not say.
#[cfg(target_os = "linux")]
fn is_held(path: &Path, pid: Option<u32>) -> Option<bool> {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata(path).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let (major, minor) = (
        rustix::fs::major(found.dev()),
        rustix::fs::minor(found.dev()),
    );
    let device = format!("{major:02x}:{minor:02x}");
    Some(locks.lines().any(|line| {
        // `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`
        let mut words = line.split_whitespace().skip(4);
        let (holder, place) = (words.next(), words.next());
        let Some((on, inode)) = place.and_then(|place| place.rsplit_once(':')) else {
            return false;
        };
        let is_it = inode.parse() == Ok(found.ino());
        // Layered file systems name another device there than a file says it is on.
        let by_him = holder.and_then(|holder| holder.parse().ok()) == pid;
        is_it && (on == device || by_him)
    }))
}

#[cfg(not(target_os = "linux"))]
fn is_held(_: &Path, _: Option<u32>) -> Option<bool> {
    None
}

/// That nobody else opens the directory while it is repaired.
pub(super) struct Held {
    _file: fs::File,
}

impl Held {
    pub(super) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK);
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| access("open", &path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::Error(error)) => return Err(access("lock", &path, error)),
            Err(fs::TryLockError::WouldBlock) => {
                let pid = Owner::of(dir).process();
                let pid = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!(
                        "{} is in use by another process{pid}; stop it before the directory is repaired",
                        dir.display()
                    ),
                ));
            }
        }
        let failed = |error| access("write to", &path, error);
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}
