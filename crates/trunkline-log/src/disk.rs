//! The seam behind which files sit, and the machine's own.
//!
//! It is as small as the log needs, so that a simulated disk can stand in for it and fail at every
//! step.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Where files are kept.
///
/// A change of a directory (a file made, renamed or removed) is durable only after
/// [`sync_dir`](Disk::sync_dir), and the content of a file only after [`File::sync`].
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// The names of what is in a directory, sorted.
    ///
    /// # Errors
    /// Those of the file system; a name that is not UTF-8 is [`io::ErrorKind::InvalidData`].
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes a directory with its parents. One that is there already is fine.
    ///
    /// # Errors
    /// Those of the file system.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// Opens or makes a file.
    ///
    /// # Errors
    /// Those of the file system, [`io::ErrorKind::NotFound`] and
    /// [`io::ErrorKind::AlreadyExists`] among them.
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>>;

    /// Gives a file another name. What had that name before is gone.
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Who has it open can go on reading.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory that is empty.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes durable which files a directory has.
    ///
    /// # Errors
    /// Those of the file system. After one nobody knows what is durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// One open file. Every operation says where, so that many threads can share it.
#[expect(
    clippy::len_without_is_empty,
    reason = "the length of a file is an operation that can fail, not a property of a collection"
)]
pub trait File: fmt::Debug + Send + Sync + 'static {
    /// Reads at most `buf.len()` bytes; none at the end of the file.
    ///
    /// # Errors
    /// Those of the file system.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all bytes, beyond the end of the file too.
    ///
    /// # Errors
    /// Those of the file system; some of the bytes may have been written then.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Bytes in the file.
    ///
    /// # Errors
    /// Those of the file system.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the file off, or extends it with zeros that may take no room yet.
    ///
    /// # Errors
    /// Those of the file system.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reserves room for that many bytes, extending the file with zeros; what is in it stays.
    /// Later writes below `len` find room.
    ///
    /// # Errors
    /// Those of the file system, [`io::ErrorKind::StorageFull`] among them.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Where the last of what may be something else than zeros ends. What comes after it is room that
    /// was reserved and never written, and need not be read. What was read already may count too, so
    /// whoever wants to know asks first.
    ///
    /// # Errors
    /// Those of the file system.
    fn data_end(&self) -> io::Result<u64>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// Those of the file system. After one nobody knows what is durable, and syncing again may
    /// say yes although writes were lost.
    fn sync(&self) -> io::Result<()>;
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// To be read; it must exist.
    Read,
    /// To be read and written; it must exist.
    Write,
    /// To be read and written; it must not exist.
    CreateNew,
}

/// Reads until `buf` is full or the file ends, and says how much that was.
///
/// # Errors
/// Those of [`File::read_at`]; interruptions are tried again.
pub fn read_full(file: &dyn File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buf.len() {
        match file.read_at(&mut buf[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Whether an error says that there is no room: on the disk or within a quota.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The machine's own disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name().into_string().map_err(|name| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{} has a file whose name is not UTF-8: {name:?}",
                        dir.display()
                    ),
                )
            })?;
            names.push(name);
        }
        names.sort_unstable();
        Ok(names)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options
            .read(true)
            .write(how != Open::Read)
            .create_new(how == Open::CreateNew);
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        fs::remove_dir(dir)
    }

    #[cfg(unix)]
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    // A directory cannot be opened as a file here; its changes are journaled by the file system.
    #[cfg(not(unix))]
    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct RealFile(fs::File);

impl File for RealFile {
    #[cfg(unix)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.0, buf, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.0, buf, offset)
    }

    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.0, bytes, offset)
    }

    #[cfg(windows)]
    fn write_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match std::os::windows::fs::FileExt::seek_write(&self.0, bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    #[cfg(unix)]
    fn allocate(&self, len: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        use rustix::io::Errno;
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            // Some file systems cannot reserve room. A full disk shows when writing then, which
            // costs the writer its trust in the file, but loses nothing.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) if self.len()? < len => {
                self.set_len(len)
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            done => Ok(done?),
        }
    }

    #[cfg(not(unix))]
    fn allocate(&self, len: u64) -> io::Result<()> {
        if self.len()? < len {
            self.set_len(len)?;
        }
        Ok(())
    }

    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    fn data_end(&self) -> io::Result<u64> {
        use rustix::fs::{SeekFrom, seek};
        use rustix::io::Errno;
        let mut end = 0;
        loop {
            // Nobody uses the place of the file that this moves: every operation says where.
            let hole = seek(&self.0, SeekFrom::Data(end))
                .and_then(|data| seek(&self.0, SeekFrom::Hole(data)));
            end = match hole {
                Ok(hole) if hole > end => hole,
                Err(Errno::NXIO) => return Ok(end),
                // A file system that does not know: all of it may be data.
                Ok(_) | Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOTTY) => return self.len(),
                Err(error) => return Err(error.into()),
            };
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    fn data_end(&self) -> io::Result<u64> {
        self.len()
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_disk_does_what_it_is_asked() {
        let dir = std::env::temp_dir().join(format!("trunkline-disk-{}", std::process::id()));
        let disk = RealDisk;
        disk.make_dir(&dir).unwrap();
        disk.make_dir(&dir).unwrap();
        let (a, b) = (dir.join("a"), dir.join("b"));
        assert_eq!(
            disk.open(&a, Open::Read).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        let file = disk.open(&a, Open::CreateNew).unwrap();
        assert_eq!(
            disk.open(&a, Open::CreateNew).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        file.allocate(8192).unwrap();
        assert_eq!(file.len().unwrap(), 8192);
        file.write_at(b"hello", 100).unwrap();
        file.sync().unwrap();
        file.allocate(4096).unwrap();
        assert_eq!(file.len().unwrap(), 8192);
        disk.rename(&a, &b).unwrap();
        disk.sync_dir(&dir).unwrap();
        assert_eq!(disk.list(&dir).unwrap(), ["b"]);
        let mut buf = [9; 8];
        let read = disk.open(&b, Open::Read).unwrap();
        assert_eq!(read_full(&*read, &mut buf, 99).unwrap(), 8);
        assert_eq!(&buf, b"\0hello\0\0");
        // Room that was never written may be passed over, what was written never.
        file.allocate(4 << 20).unwrap();
        assert!((105..=4 << 20).contains(&file.data_end().unwrap()));
        file.write_at(b"far", 3 << 20).unwrap();
        assert!(((3 << 20) + 3..=4 << 20).contains(&file.data_end().unwrap()));
        file.set_len(102).unwrap();
        assert_eq!(read_full(&*read, &mut buf, 100).unwrap(), 2);
        assert!(read.write_at(b"x", 0).is_err());
        disk.remove(&b).unwrap();
        // Who has it open can go on reading.
        assert_eq!(read_full(&*read, &mut buf, 100).unwrap(), 2);
        disk.remove_dir(&dir).unwrap();
        assert!(disk.list(&dir).is_err());
    }
}
