//! Making files of the state whole again, of what can be read of them. Whoever calls has kept them.

use std::path::Path;
use std::sync::Arc;

use smol_str::SmolStr;
use trunkline_core::engine::{Bucket, Commit, ConsumerRef, Expectation, Op, StateKey};
use trunkline_core::{Result, Timestamp};

use super::files::{self, NotMade};
use super::look::salvage;
use super::snapshot::{self, SnapshotJob};
use super::state::State;
use super::values::ValueFiles;
use super::{Journal, JournalOptions, Record, make_journal};
use crate::disk::{Disk, File, Open};
use crate::frame::pieces::{Header, header};
use crate::frame::{FILE_HEADER_LEN, FileHeader, FileKind, failed};

/// Keys that are removed in one commit.
const KEYS_AT_ONCE: usize = 100;
/// Zeros that are written at once.
const CHUNK: usize = 1 << 20;

/// Writes a snapshot anew, of what can be read of it and what the journals say. The journals need not
/// reach further than that place.
pub(crate) fn rewrite_snapshot(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    number: u64,
    journals: &[u64],
    reached: (u64, u64),
    now: Timestamp,
) -> Result<()> {
    let state = State::new(ValueFiles::default());
    let state = match snapshot::load(&**disk, dir, number, &state) {
        Ok(_) => state,
        Err(_) => salvage(&**disk, dir, number, journals)?.state,
    };
    let job = SnapshotJob::of(Arc::clone(disk), dir, &state, number, now);
    job.run()?.finish(reached).map(drop)
}

/// Ends a journal at an offset: what follows is made unreadable.
pub(crate) fn cut_journal(disk: &dyn Disk, path: &Path, offset: u64) -> Result<()> {
    let write = |error| failed("end", path, error);
    let file = disk.open(path, Open::Write).map_err(write)?;
    let len = file.len().map_err(write)?;
    let zeros = vec![0; CHUNK];
    let mut at = offset.min(len);
    while at < len {
        let some = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
        file.write_at(&zeros[..some], at).map_err(write)?;
        at += some as u64;
    }
    file.sync().map_err(write)
}

/// Makes a journal without records.
pub(crate) fn make_empty(disk: &dyn Disk, dir: &Path, number: u64, now: Timestamp) -> Result<()> {
    let made = make_journal(disk, dir, &JournalOptions::default(), number, now);
    made.map(drop).map_err(|not_made| not_made.error)
}

/// Writes a header anew, and makes the file as long as it says.
pub(crate) fn write_header(disk: &dyn Disk, path: &Path, header: &FileHeader) -> Result<()> {
    let write = |error| failed("mend", path, error);
    let file = disk.open(path, Open::Write).map_err(write)?;
    if file.len().map_err(write)? < header.reserved {
        file.set_len(header.reserved).map_err(write)?;
    }
    file.write_at(&header.encode(), 0).map_err(write)?;
    file.sync().map_err(write)
}

/// Makes a file of values usable again up to `end`, with the header that it probably had, or a new one
/// if it is not there: then none of its values can be read.
pub(crate) fn mend_values(
    disk: &dyn Disk,
    dir: &Path,
    number: u64,
    end: u64,
    now: Timestamp,
) -> Result<()> {
    let path = dir.join(files::name_of(FileKind::Values, number));
    let file = match disk.open(&path, Open::Write) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let made = files::make(disk, dir, FileKind::Values, number, end, now);
            return made.map(drop).map_err(|NotMade { error, .. }| error);
        }
        file => file.map_err(|error| failed("open", &path, error))?,
    };
    let likely = match header(&*file, &path, FileKind::Values, number, || None)? {
        Header::Good(header) => header,
        Header::Bad {
            likely: Some(likely),
            ..
        } => likely,
        Header::Bad { .. } => as_left(&*file, &path, number)?,
    };
    let header = FileHeader {
        reserved: likely.reserved.max(end),
        ..likely
    };
    write_header(disk, &path, &header)
}

/// A header with the id that stands where an id should: whether it is right shows when values are read.
fn as_left(file: &dyn File, path: &Path, number: u64) -> Result<FileHeader> {
    let mut bytes = [0; FILE_HEADER_LEN as usize];
    crate::disk::read_full(file, &mut bytes, 0).map_err(|error| failed("read", path, error))?;
    let left = crate::frame::Fields(&bytes);
    Ok(FileHeader {
        kind: FileKind::Values,
        file_id: left.u64(16),
        base: number,
        created: Timestamp::from_nanos(left.u64(32).cast_signed()),
        reserved: file.len().map_err(|error| failed("read", path, error))?,
    })
}

/// Removes keys and consumers by the way in which they are always removed.
pub(crate) fn remove(
    disk: &Arc<dyn Disk>,
    root: &Path,
    keys: &[(Bucket, StateKey)],
    consumers: &[ConsumerRef],
    now: Timestamp,
) -> Result<()> {
    let options = JournalOptions::default();
    let (mut journal, _) = Journal::open(Arc::clone(disk), root, options, now)?;
    for consumer in consumers {
        journal.stage(Record::ConsumerDeleted(consumer.clone()), now)?;
    }
    drop(journal.flush()?);
    let mut buckets: Vec<&Bucket> = keys.iter().map(|(bucket, _)| bucket).collect();
    buckets.dedup();
    for bucket in buckets {
        let own: Vec<&StateKey> = keys
            .iter()
            .filter(|(of, _)| of == bucket)
            .map(|(_, key)| key)
            .collect();
        for some in own.chunks(KEYS_AT_ONCE) {
            let delete = |key: &&StateKey| Op::Delete {
                key: (*key).clone(),
                expect: Expectation::Any,
            };
            let commit = Commit {
                id: SmolStr::from(format!("repair-{:016x}", rand::random::<u64>())),
                fences: Vec::new(),
                ops: some.iter().map(delete).collect(),
            };
            journal.commit(bucket, commit, now)?;
            drop(journal.flush()?);
        }
    }
    drop(journal.close()?);
    Ok(())
}
