//! Files by hand: records behind one another in preallocated segments, each with its length. No
//! checksums, no index, nothing that knows a repeat: what a disk gives.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use super::store::{Record, Store, body, encode};
use crate::pair::Result;

/// As much as a segment of Trunkline has.
const SEGMENT_BYTES: u64 = 64 << 20;
const READ_BYTES: usize = 1 << 20;

pub struct RawFile {
    dir: PathBuf,
    segment: File,
    segments: u64,
    /// Where the next record goes.
    end: u64,
    count: u64,
    buffer: Vec<u8>,
}

fn name(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.raw"))
}

/// A segment with room that is reserved and a name that stays.
fn make(dir: &Path, number: u64) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(name(dir, number))?;
    fallocate(&file, FallocateFlags::empty(), 0, SEGMENT_BYTES)?;
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    Ok(file)
}

/// Reads records up to the first without a length; gives how many there are, and where they end.
fn read(file: File, most: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<(u64, u64)> {
    let mut file = BufReader::with_capacity(READ_BYTES, file);
    let (mut count, mut end) = (0, 0);
    let (mut len, mut record) = ([0; 4], Vec::new());
    while count < most {
        match file.read_exact(&mut len) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            read => read?,
        }
        let len = u32::from_le_bytes(len);
        if len == 0 {
            break;
        }
        record.resize(usize::try_from(len)?, 0);
        file.read_exact(&mut record)?;
        each(&record)?;
        count += 1;
        end += 4 + u64::from(len);
    }
    Ok((count, end))
}

impl Store for RawFile {
    const LABEL: &'static str = "raw file, no dedup";

    fn open(dir: &Path) -> Result<Self> {
        let segments = fs::read_dir(dir)?.count() as u64;
        let (mut count, mut end) = (0, 0);
        for number in 0..segments {
            let (found, to) = read(File::open(name(dir, number))?, u64::MAX, |_| Ok(()))?;
            count += found;
            end = to;
        }
        let segment = match segments.checked_sub(1) {
            None => make(dir, 0)?,
            Some(last) => OpenOptions::new().write(true).open(name(dir, last))?,
        };
        Ok(Self {
            dir: dir.to_owned(),
            segment,
            segments: segments.max(1),
            end,
            count,
            buffer: Vec::new(),
        })
    }

    fn append(&mut self, group: &[Record]) -> Result<()> {
        self.buffer.clear();
        for record in group {
            let start = self.buffer.len();
            self.buffer.extend_from_slice(&[0; 4]);
            encode(record, &mut self.buffer);
            let len = u32::try_from(self.buffer.len() - start - 4)?;
            self.buffer[start..start + 4].copy_from_slice(&len.to_le_bytes());
        }
        if self.end + self.buffer.len() as u64 > SEGMENT_BYTES {
            self.segment = make(&self.dir, self.segments)?;
            self.segments += 1;
            self.end = 0;
        }
        self.segment.write_all_at(&self.buffer, self.end)?;
        self.segment.sync_data()?;
        self.end += self.buffer.len() as u64;
        self.count += group.len() as u64;
        Ok(())
    }

    fn scan(&self, events: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        let mut seen = 0;
        for number in 0..self.segments {
            let file = File::open(name(&self.dir, number))?;
            let (found, _) = read(file, events - seen, |record| each(body(record)?))?;
            seen += found;
        }
        Ok(seen)
    }

    fn count(&self) -> u64 {
        self.count
    }
}
