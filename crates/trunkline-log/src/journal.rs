//! The journal of a directory: streams, consumers and their progress, and the keys of the state group.
//!
//! ```text
//!   stage ──► write ──► sync ──► publish ──► State: what readers see
//!     │                             ▲
//!     └─ decided as if all that was staged before it had happened
//!
//!   open: the newest snapshot, then the journals since ──► the same State
//! ```
//!
//! One thread stages and writes; others read [`State`]. What was staged together is one group of the
//! file: after a crash all of it is there or nothing. An answer holds once the group is published,
//! also one that says *duplicate* or *conflict*, because it may rest on what was staged before it.
//!
//! **Invariant.** The state changes by applying records, live and when the directory is opened, and in
//! no other way. A change is visible only when it is durable, or written where whoever writes is
//! content with that. After a write or sync failed nothing further is taken.

mod code;
mod compact;
mod files;
pub(crate) mod look;
pub(crate) mod mend;
mod open;
mod record;
mod snapshot;
mod spec;
mod stage;
mod state;
#[cfg(test)]
mod tests;
mod values;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use trunkline_core::engine::{Bucket, Limits};
use trunkline_core::keys::Ahead;
use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use self::compact::Compaction;
use self::files::{Made, NotMade};
use self::values::ValueWriter;
use crate::disk::{Disk, File};
use crate::frame::{CLOSING, FILE_HEADER_LEN, FileKind, GROUP_HEADER_LEN};
use crate::frame::{GroupHeader, OpenGroup, SEALING, failed};

pub use open::Report;
pub use record::{NotARecord, Place, RECORD_VERSION, Record, Value};
pub use snapshot::{Copied, SnapshotJob};
pub use state::{
    KEY_BYTES, KnownConsumer, KnownStream, KnownTopology, MAX_BUCKETS, SharedKeys, State,
};

/// Room that is kept after the last group: for its end, and for a sealing and a closing group.
const RESERVE: u64 = 4 * GROUP_HEADER_LEN as u64;

/// The bounds of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    /// Bytes reserved for each file of the journal; more where a group needs more. 16 MiB by default.
    pub file_bytes: u64,
    /// Bytes of one group at most, and so of one commit without its large values. 8 MiB by default.
    pub group_bytes: usize,
    /// A snapshot is due when the journal since the last one has more than this, and more than twice
    /// the snapshot. 16 MiB by default.
    pub snapshot_bytes: u64,
    /// Bytes reserved for each file of values; more where a commit needs more. 16 MiB by default.
    pub value_file_bytes: u64,
    /// Values of more bytes are kept in files of values and not in memory. 4 KiB by default.
    pub inline_bytes: usize,
    /// Bytes of memory that keys, small values and remembered commits take at most, about: a commit
    /// that adds to them is refused above it. 512 MiB by default.
    pub state_bytes: u64,
    /// What a commit may have at most.
    pub limits: Limits,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self {
            file_bytes: 16 << 20,
            group_bytes: 8 << 20,
            snapshot_bytes: 16 << 20,
            value_file_bytes: 16 << 20,
            inline_bytes: 4 << 10,
            state_bytes: 512 << 20,
            limits: Limits::default(),
        }
    }
}

/// Where a group is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Staging,
    Written,
    Synced,
}

/// The end of the journal, where one thread writes.
#[derive(Debug)]
pub struct Journal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: JournalOptions,
    state: Arc<State>,
    file: Current,
    values: ValueWriter,
    phase: Phase,
    buffer: Vec<u8>,
    group: Option<OpenGroup>,
    staged: Vec<Record>,
    /// Bytes of memory that what is staged adds at most.
    adds: i64,
    ahead: FxHashMap<Bucket, Ahead>,
    failed: Option<String>,
    /// Files that there are.
    journals: Vec<u64>,
    snapshots: Vec<u64>,
    /// Bytes of journals that no snapshot has in it.
    since_snapshot: u64,
    /// Those of them from before the snapshot that is being taken.
    before_snapshot: u64,
    snapshot_size: u64,
    /// At how many bytes another snapshot is tried, after one that failed.
    retry_at: u64,
    is_copying: bool,
    compaction: Option<Compaction>,
    /// Files of values that cannot be compacted, because a value in them is damaged.
    stuck: Vec<u64>,
}

/// The file that is written to.
#[derive(Debug)]
struct Current {
    file: Arc<dyn File>,
    path: PathBuf,
    number: u64,
    id: u64,
    reserved: u64,
    end: u64,
    durable: u64,
    /// Whether its last group is a closing one, or it has none.
    is_closed: bool,
}

impl Current {
    fn new(made: Made) -> Self {
        Self {
            file: made.file,
            path: made.path,
            number: made.header.base,
            id: made.header.file_id,
            reserved: made.header.reserved,
            end: FILE_HEADER_LEN,
            durable: FILE_HEADER_LEN,
            is_closed: true,
        }
    }

    /// Writes an empty group with those flags, and syncs it.
    fn mark(&mut self, flags: u8) -> Result<()> {
        let mut bytes = Vec::with_capacity(2 * GROUP_HEADER_LEN);
        let header = group_header(0, flags, self.durable);
        OpenGroup::begin(&mut bytes).finish(&mut bytes, self.id, self.end, header);
        bytes.resize(2 * GROUP_HEADER_LEN, 0);
        self.file
            .write_at(&bytes, self.end)
            .map_err(|error| failed("write to", &self.path, error))?;
        self.file
            .sync()
            .map_err(|error| failed("sync", &self.path, error))?;
        self.end += GROUP_HEADER_LEN as u64;
        self.durable = self.end;
        self.is_closed = true;
        Ok(())
    }
}

/// What became visible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "whoever watches these buckets is to be woken"]
pub struct Published {
    /// Buckets whose keys may have changed.
    pub buckets: Vec<Bucket>,
    /// Records that were applied.
    pub records: usize,
}

impl Journal {
    /// What readers see.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Bytes that are staged; none when there is nothing to write.
    pub fn staged_bytes(&self) -> usize {
        match self.phase {
            Phase::Staging => self.buffer.len(),
            _ => 0,
        }
    }

    /// Whether a group has become so large that it should be written before more is staged.
    pub fn is_full(&self) -> bool {
        self.staged_bytes() > self.options.group_bytes / 4
    }

    /// Whether anything is written and not yet durable.
    pub fn is_unsynced(&self) -> bool {
        self.file.durable < self.file.end
    }

    /// Writes what was staged. Large values are written and synced first.
    ///
    /// # Errors
    /// [`ErrorKind::StorageFailed`]; the journal takes nothing further then.
    pub fn write(&mut self) -> Result<()> {
        self.usable()?;
        let Some(group) = self.group.take() else {
            return Ok(());
        };
        let written = self.values.write();
        self.or_fail(written)?;
        let header = group_header(self.staged.len(), 0, self.file.durable);
        group.finish(&mut self.buffer, self.file.id, self.file.end, header);
        let size = self.buffer.len();
        self.buffer.resize(size + GROUP_HEADER_LEN, 0);
        let written = self.file.file.write_at(&self.buffer, self.file.end);
        let written = written.map_err(|error| failed("write to", &self.file.path, error));
        self.or_fail(written)?;
        self.buffer.clear();
        self.file.end += size as u64;
        self.file.is_closed = false;
        self.since_snapshot += size as u64;
        self.phase = Phase::Written;
        Ok(())
    }

    /// Makes durable what was written, published or not.
    ///
    /// # Errors
    /// [`ErrorKind::StorageFailed`]; the journal takes nothing further then, and what was written
    /// may be there or not when it is opened again.
    pub fn sync(&mut self) -> Result<()> {
        self.usable()?;
        if self.is_unsynced() {
            let synced = self.file.file.sync();
            let synced = synced.map_err(|error| failed("sync", &self.file.path, error));
            self.or_fail(synced)?;
            self.file.durable = self.file.end;
        }
        if self.phase == Phase::Written {
            self.phase = Phase::Synced;
        }
        Ok(())
    }

    /// Shows readers what was synced.
    ///
    /// # Errors
    /// [`ErrorKind::StorageFailed`] after a write or sync that failed.
    pub fn publish(&mut self) -> Result<Published> {
        self.show(Phase::Synced)
    }

    /// Shows readers what was written, for whom it need not survive a loss of power. It survives the
    /// process.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_written(&mut self) -> Result<Published> {
        self.show(Phase::Written)
    }

    fn show(&mut self, least: Phase) -> Result<Published> {
        self.usable()?;
        let mut published = Published::default();
        if self.phase < least {
            return Ok(published);
        }
        // First, so that a snapshot never sees what lies beyond the place that it names.
        *self.state.reached.lock() = (self.file.number, self.file.end);
        published.records = self.staged.len();
        for record in std::mem::take(&mut self.staged) {
            if let Err(fault) = self.state.apply(record) {
                let message = format!("a record that was just written does not apply: {fault}");
                let error = Error::new(ErrorKind::Internal, message);
                return self.or_fail(Err(error));
            }
        }
        self.adds = 0;
        published.buckets = self.ahead.drain().map(|(bucket, _)| bucket).collect();
        self.phase = Phase::Staging;
        Ok(published)
    }

    /// Writes, syncs and publishes what was staged.
    ///
    /// # Errors
    /// Those of the three.
    pub fn flush(&mut self) -> Result<Published> {
        self.write()?;
        self.sync()?;
        self.publish()
    }

    /// Flushes and marks the end, so that damage to the last group can be told from a torn write.
    ///
    /// # Errors
    /// Those of [`flush`](Self::flush).
    pub fn close(&mut self) -> Result<Published> {
        let published = self.flush()?;
        let has_room =
            self.file.reserved.saturating_sub(self.file.end) >= 2 * GROUP_HEADER_LEN as u64;
        if !self.file.is_closed && has_room {
            let marked = self.file.mark(CLOSING);
            self.or_fail(marked)?;
        }
        Ok(published)
    }

    /// Goes on in a new file, and seals the one before.
    fn rotate(&mut self, now: Timestamp) -> Result<()> {
        let number = self.file.number + 1;
        // The new file is there before the old one says that it has a successor: so a file that is
        // not sealed is the last one that has records.
        let made = make_journal(&*self.disk, &self.dir, &self.options, number, now);
        let made = self.made(made)?;
        let sealed = self.file.mark(SEALING);
        self.or_fail(sealed)?;
        self.file = Current::new(made);
        self.journals.push(number);
        Ok(())
    }

    /// A file for which there was no room is refused and harms nothing; any other failure is for good.
    fn made<T>(&mut self, made: Result<T, NotMade>) -> Result<T> {
        match made {
            Err(not_made) if not_made.is_full => Err(not_made.error),
            other => self.or_fail(other.map_err(|not_made| not_made.error)),
        }
    }

    fn usable(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(first) => Err(Error::new(
                ErrorKind::StorageFailed,
                format!(
                    "the journal in {} takes nothing further since it failed ({first}); open the directory again",
                    self.dir.display()
                ),
            )),
        }
    }

    /// After a failure nobody knows what is on the disk, so it is the last thing that happens.
    fn or_fail<T>(&mut self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| self.failed = Some(error.to_string()))
    }
}

fn make_journal(
    disk: &dyn Disk,
    dir: &Path,
    options: &JournalOptions,
    number: u64,
    now: Timestamp,
) -> Result<Made, NotMade> {
    let needed = FILE_HEADER_LEN + options.group_bytes as u64 + RESERVE;
    let reserved = options.file_bytes.max(needed);
    files::make(disk, dir, FileKind::Journal, number, reserved, now)
}

#[expect(
    clippy::field_reassign_with_default,
    reason = "one field of the header is the frame's own, so that nobody can name them all"
)]
fn group_header(count: usize, flags: u8, durable_end: u64) -> GroupHeader {
    let mut header = GroupHeader::default();
    header.count = u32::try_from(count).unwrap_or(u32::MAX);
    header.flags = flags;
    header.durable_end = durable_end;
    header
}
