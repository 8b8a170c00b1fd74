//! The folder in which a server has its configuration and its log.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind};

/// The most bytes of the log's end that are looked at.
const MAX_TAIL: u64 = 64 * 1024;

/// A folder that nobody else may read; removed when dropped if it was made for the occasion.
#[derive(Debug)]
pub(crate) struct Place {
    dir: PathBuf,
    temporary: bool,
}

impl Place {
    /// A new folder below the system's one for temporary files.
    pub(crate) fn temporary() -> Result<Self, Error> {
        Self::within(&std::env::temp_dir())
    }

    /// A new temporary folder below that one.
    pub(crate) fn within(folder: &Path) -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = now.map_or(0, |since| since.subsec_nanos());
        let name = format!(
            "trunkline-nats-{}-{}-{nanos}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = folder.join(name);
        // A folder that exists is an error: whoever made it could read what we write.
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|error| Error::io(format_args!("making {}", dir.display()), error))?;
        Ok(Self {
            dir,
            temporary: true,
        })
    }

    /// A folder that stays. It is made if it is missing, and refused if others may look into it.
    pub(crate) fn lasting(dir: &Path) -> Result<Self, Error> {
        let failed = |error| Error::io(format_args!("making the folder {}", dir.display()), error);
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(dir)
            .map_err(failed)?;
        // The server gets absolute paths, whatever folder it works in.
        let dir = dir.canonicalize().map_err(failed)?;
        let mode = dir.metadata().map_err(failed)?.mode() & 0o777;
        if mode & 0o007 != 0 {
            return Err(Error::new(
                ErrorKind::NotPrivate,
                format!(
                    "every user of this machine can enter {} (mode {mode:o}), and it would hold all events; \
                     choose a new folder, or take the access away with `chmod o= {0}`",
                    dir.display()
                ),
            ));
        }
        Ok(Self {
            dir,
            temporary: false,
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn is_temporary(&self) -> bool {
        self.temporary
    }

    /// Writes a file that only its owner can read, as a whole or not at all.
    pub(crate) fn write_private(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let path = self.dir.join(name);
        let fresh = self.dir.join(format!("{name}.new"));
        let failed = |error| Error::io(format_args!("writing {}", path.display()), error);
        // One that a crash left may have other permissions.
        let _ = fs::remove_file(&fresh);
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(failed)?;
        fs::rename(&fresh, &path).map_err(failed)?;
        Ok(path)
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.dir.join("nats-server.log")
    }

    /// The log, for appending.
    pub(crate) fn log(&self) -> Result<File, Error> {
        let path = self.log_path();
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(0o600).open(&path);
        file.map_err(|error| Error::io(format_args!("opening {}", path.display()), error))
    }

    /// The log, emptied and locked. Two servers on one store would destroy it, and nats-server has
    /// no lock of its own. The lock lives as long as any copy of this handle: the server has it as
    /// its standard output, so even if we are killed it holds until the server is gone.
    pub(crate) fn locked_log(&self) -> Result<File, Error> {
        let log = self.log()?;
        let failed = |error| {
            Error::io(
                format_args!("locking the log in {}", self.dir.display()),
                error,
            )
        };
        match log.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(
                    ErrorKind::DirectoryInUse,
                    format!(
                        "another server uses {}; stop it, or choose another folder",
                        self.dir.display()
                    ),
                ));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        log.set_len(0).map_err(failed)?;
        Ok(log)
    }

    pub(crate) fn log_length(&self) -> u64 {
        self.log_path().metadata().map_or(0, |data| data.len())
    }

    /// The log from that byte on, or its last 64 KiB. What cannot be read is empty: this is for
    /// messages and for waiting.
    pub(crate) fn log_since(&self, start: u64) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(self.log_path())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(start.max(length.saturating_sub(MAX_TAIL))))?;
            let mut bytes = Vec::new();
            file.take(MAX_TAIL).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// The last lines of the log.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let text = self.log_since(0);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.temporary {
            // Nobody is left to tell; the system cleans its temporary files up.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o777
    }

    #[test]
    fn nobody_else_reads_what_is_written_and_temporary_folders_go() {
        let place = Place::temporary().unwrap();
        let file = place.write_private("a.conf", "password: 1").unwrap();
        place.write_private("a.conf", "password: 2").unwrap();
        place.log().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "password: 2");
        assert_eq!((mode(place.dir()), mode(&file)), (0o700, 0o600));
        assert_eq!(mode(&place.log_path()), 0o600);
        let dir = place.dir().to_owned();
        drop(place);
        assert!(!dir.exists());
    }

    #[test]
    fn a_folder_that_others_can_enter_is_refused_and_left_as_it_was() {
        let outer = Place::temporary().unwrap();
        let dir = outer.dir().join("a/b");
        let place = Place::lasting(&dir).unwrap();
        assert_eq!(mode(place.dir()), 0o700);
        drop(place);
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let error = Place::lasting(&dir).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotPrivate);
        assert!(error.to_string().contains("chmod o="), "{error}");
        assert_eq!(mode(&dir), 0o755);
    }

    #[test]
    fn the_tail_has_the_last_lines() {
        let place = Place::temporary().unwrap();
        assert_eq!(place.log_tail(2), "");
        place.log().unwrap().write_all(b"a\nb\nc\n").unwrap();
        assert_eq!(place.log_tail(2), "b\nc");
        assert_eq!(place.log_since(2), "b\nc\n");
    }

    #[test]
    fn a_place_has_one_server() {
        let place = Place::temporary().unwrap();
        let held = place.locked_log().unwrap();
        let error = place.locked_log().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DirectoryInUse);
        drop(held);
        place.locked_log().unwrap();
    }
}
