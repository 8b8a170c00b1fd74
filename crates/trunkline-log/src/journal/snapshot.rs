//! Copies of the state, so that opening costs what there is and not what there was.
//!
//! A snapshot belongs to the journal that began when it was begun. It is taken while the state goes on:
//! streams and consumers at once, keys in slices under a short lock. So it may hold changes
//! that are in the journal too; applied again they change nothing, because each has its revision.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use trunkline_core::engine::{Bucket, StateKey};
use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use super::record::Record;
use super::state::{SharedKeys, State};
use super::{Journal, KnownTopology, files, group_header};
use crate::disk::{Disk, File, Open};
use crate::frame::{FILE_HEADER_LEN, FileHeader, FileKind, OpenGroup, SEALING, Walk};
use crate::frame::{damaged, failed};

/// Keys or commits that are copied under one lock: it is held for some 100 µs.
pub(super) const SLICE: usize = 1_024;
/// Bytes of a group of a snapshot, about.
const GROUP_BYTES: usize = 256 << 10;
/// Bytes after which a snapshot is synced, so that the journal's own syncs never wait for much.
const SYNC_BYTES: u64 = 8 << 20;

/// A snapshot of which everything is written but its end, which says how far the journals must reach.
#[derive(Debug)]
#[must_use = "it counts when the journal has ended it"]
pub struct Copied {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    number: u64,
    writer: Writer,
}

impl Copied {
    /// Ends the file and gives it its name, and says how many bytes it has. The journals must be durable
    /// up to that place.
    pub(super) fn finish(mut self, reached: (u64, u64)) -> Result<u64> {
        let finished = self
            .writer
            .finish(&*self.disk, &self.dir, reached)
            .map(|()| self.writer.end);
        if finished.is_err() {
            // It is removed when the directory is opened, if not now.
            let _ = self.disk.remove(&self.writer.making);
        }
        finished
    }
}

/// A snapshot being taken, on any thread.
#[derive(Debug)]
#[must_use = "the journal waits for its end"]
pub struct SnapshotJob {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    number: u64,
    now: Timestamp,
    topology: Option<KnownTopology>,
    buckets: BTreeMap<Bucket, SharedKeys>,
    cursor: Cursor,
    writer: Option<Writer>,
}

/// Where the copying of the first bucket is.
#[derive(Debug)]
enum Cursor {
    Begin,
    Keys(Option<StateKey>),
    Commits(u64),
}

impl Journal {
    /// Whether the journal has grown so much that a snapshot should be taken.
    pub fn snapshot_due(&self) -> bool {
        let most = self.options.snapshot_bytes.max(2 * self.snapshot_size);
        !self.is_copying && self.since_snapshot > most.max(self.retry_at)
    }

    /// Goes on in a new file and begins a snapshot of what was published. It is to be called between
    /// groups. Give the result of the job to [`end_snapshot`](Self::end_snapshot).
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when something is staged or another snapshot is not ended,
    /// [`ErrorKind::OverQuota`] when there is no room, [`ErrorKind::StorageFailed`].
    pub fn begin_snapshot(&mut self, now: Timestamp) -> Result<SnapshotJob> {
        self.stageable()?;
        if self.group.is_some() || self.is_copying {
            return Err(Error::new(
                ErrorKind::Internal,
                "a snapshot begins between groups, and when no other is being taken",
            ));
        }
        self.rotate(now)?;
        self.is_copying = true;
        self.before_snapshot = self.since_snapshot;
        let (disk, number) = (Arc::clone(&self.disk), self.file.number);
        Ok(SnapshotJob::of(disk, &self.dir, &self.state, number, now))
    }

    /// Ends a snapshot: removes the files that it stands for, or, if it failed, goes on without it
    /// and tries again when the journal has grown.
    ///
    /// # Errors
    /// That of the job, or of removing files: the journal goes on all the same. That of syncing the
    /// journal, after which it takes nothing further.
    pub fn end_snapshot(&mut self, result: Result<Copied>) -> Result<()> {
        self.is_copying = false;
        // It may have what was published and is not synced, which the journals must have too.
        let ended = result.and_then(|copied| {
            self.sync()?;
            let reached = *self.state.reached.lock();
            Ok((copied.number, copied.finish(reached)?))
        });
        let (number, bytes) = ended.inspect_err(|_| {
            self.retry_at = self.since_snapshot + self.options.snapshot_bytes;
        })?;
        self.since_snapshot = self.since_snapshot.saturating_sub(self.before_snapshot);
        self.snapshot_size = bytes;
        self.retry_at = 0;
        self.snapshots.push(number);
        self.remove_below(number)
    }

    /// Removes journals and snapshots that a snapshot stands for.
    pub(super) fn remove_below(&mut self, number: u64) -> Result<()> {
        let remove = |kind, numbers: &mut Vec<u64>| {
            while let Some(old) = numbers.first().copied().filter(|old| *old < number) {
                let path = self.dir.join(files::name_of(kind, old));
                self.disk
                    .remove(&path)
                    .map_err(|error| failed("remove", &path, error))?;
                numbers.remove(0);
            }
            Ok(())
        };
        // Snapshots first: one without its journals would be a riddle, journals alone are not.
        remove(FileKind::Snapshot, &mut self.snapshots)?;
        remove(FileKind::Journal, &mut self.journals)
    }
}

impl SnapshotJob {
    /// A snapshot of a state that nobody changes meanwhile.
    pub(super) fn of(
        disk: Arc<dyn Disk>,
        dir: &Path,
        state: &State,
        number: u64,
        now: Timestamp,
    ) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
            topology: Some(state.topology()),
            buckets: state.buckets(),
            number,
            now,
            cursor: Cursor::Begin,
            writer: None,
        }
    }

    /// Takes the snapshot to its end.
    ///
    /// # Errors
    /// Those of [`step`](Self::step).
    pub fn run(self) -> Result<Copied> {
        self.run_unless(&AtomicBool::new(false))
    }

    /// Takes the snapshot to its end, unless it is told to stop before.
    ///
    /// # Errors
    /// Those of [`step`](Self::step), and [`ErrorKind::Closed`] when it was told.
    pub fn run_unless(mut self, stop: &AtomicBool) -> Result<Copied> {
        loop {
            if stop.load(Ordering::Relaxed) {
                self.abandon();
                return Err(Error::new(
                    ErrorKind::Closed,
                    "the directory is being closed, so its snapshot is not taken now",
                ));
            }
            if let Some(copied) = self.step()? {
                return Ok(copied);
            }
        }
    }

    /// Copies one slice and writes it; gives the snapshot when all of it is written.
    ///
    /// # Errors
    /// [`ErrorKind::OverQuota`] when there is no room, and [`ErrorKind::StorageFailed`]. What there
    /// is of the file has been removed then, as far as that worked.
    pub fn step(&mut self) -> Result<Option<Copied>> {
        let result = self.try_step();
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn abandon(&mut self) {
        if let Some(writer) = self.writer.take() {
            // It is removed when the directory is opened, if not now.
            let _ = self.disk.remove(&writer.making);
        }
    }

    fn try_step(&mut self) -> Result<Option<Copied>> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(Writer::begin(
                &*self.disk,
                &self.dir,
                self.number,
                self.now,
            )?),
        };
        if let Some(KnownTopology { streams, consumers }) = self.topology.take() {
            for known in streams.into_values() {
                writer.push(&Record::Stream {
                    spec: known.spec,
                    stored: known.stored,
                })?;
            }
            for known in consumers.into_values() {
                writer.push(&Record::ConsumerStood {
                    spec: known.spec,
                    settled: known.settled,
                    lost: known.lost,
                })?;
            }
            return Ok(None);
        }
        let Some(first) = self.buckets.first_entry() else {
            // Whoever ends it has little left to sync.
            writer.write(0)?;
            writer.sync()?;
            return Ok(self.writer.take().map(|writer| Copied {
                disk: Arc::clone(&self.disk),
                dir: self.dir.clone(),
                number: self.number,
                writer,
            }));
        };
        let (bucket, shared) = (first.key().clone(), Arc::clone(first.get()));
        match &mut self.cursor {
            Cursor::Begin => {
                // Its revision before any of its keys: so what is in them up to it, is in all.
                let rev = shared.read().rev();
                writer.push(&Record::Bucket { bucket, rev })?;
                self.cursor = Cursor::Keys(None);
            }
            Cursor::Keys(after) => {
                let keys: Vec<_> = {
                    let shared = shared.read();
                    let slice = shared.after(after.as_ref()).take(SLICE);
                    slice
                        .map(|(key, kept)| (key.clone(), kept.clone()))
                        .collect()
                };
                match keys.last() {
                    Some((last, _)) => {
                        *after = Some(last.clone());
                        writer.push(&Record::Kept { bucket, keys })?;
                    }
                    None => self.cursor = Cursor::Commits(0),
                }
            }
            Cursor::Commits(from) => {
                let (first, commits) = {
                    let shared = shared.read();
                    let (first, commits) = shared.remembered(*from);
                    (first, commits.take(SLICE).cloned().collect::<Vec<_>>())
                };
                *from = first + commits.len() as u64;
                if commits.is_empty() {
                    self.buckets.pop_first();
                    self.cursor = Cursor::Begin;
                } else {
                    writer.push(&Record::Remembered { bucket, commits })?;
                }
            }
        }
        Ok(None)
    }
}

/// The file of a snapshot while it is made.
#[derive(Debug)]
struct Writer {
    file: Arc<dyn File>,
    path: PathBuf,
    making: PathBuf,
    id: u64,
    end: u64,
    synced: u64,
    buffer: Vec<u8>,
    group: Option<OpenGroup>,
    count: usize,
    records: u64,
}

impl Writer {
    fn begin(disk: &dyn Disk, dir: &Path, number: u64, now: Timestamp) -> Result<Self> {
        let path = dir.join(files::name_of(FileKind::Snapshot, number));
        let making = files::making(&path);
        let header = FileHeader {
            kind: FileKind::Snapshot,
            file_id: rand::random(),
            base: number,
            created: now,
            reserved: 0,
        };
        let file = files::open_new(disk, &making)
            .and_then(|file| file.write_at(&header.encode(), 0).map(|()| file))
            .map_err(|error| failed("make", &path, error))?;
        Ok(Self {
            file,
            path,
            making,
            id: header.file_id,
            end: FILE_HEADER_LEN,
            synced: 0,
            buffer: Vec::new(),
            group: None,
            count: 0,
            records: 0,
        })
    }

    fn push(&mut self, record: &Record) -> Result<()> {
        if self.group.is_none() {
            self.group = Some(OpenGroup::begin(&mut self.buffer));
        }
        record.encode(&mut self.buffer);
        self.count += 1;
        self.records += 1;
        if self.buffer.len() > GROUP_BYTES {
            self.write(0)?;
        }
        Ok(())
    }

    fn write(&mut self, flags: u8) -> Result<()> {
        let Some(group) = self.group.take() else {
            return Ok(());
        };
        let header = group_header(std::mem::take(&mut self.count), flags, 0);
        group.finish(&mut self.buffer, self.id, self.end, header);
        self.file
            .write_at(&self.buffer, self.end)
            .map_err(|error| failed("write to", &self.path, error))?;
        self.end += self.buffer.len() as u64;
        self.buffer.clear();
        match self.end - self.synced >= SYNC_BYTES {
            true => self.sync(),
            false => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<()> {
        self.file
            .sync()
            .map_err(|error| failed("sync", &self.path, error))?;
        self.synced = self.end;
        Ok(())
    }

    fn finish(&mut self, disk: &dyn Disk, dir: &Path, (journal, offset): (u64, u64)) -> Result<()> {
        let records = self.records;
        self.push(&Record::End {
            journal,
            offset,
            records,
        })?;
        self.write(SEALING)?;
        self.file
            .sync()
            .and_then(|()| files::finish(disk, dir, &self.making, &self.path))
            .map_err(|error| failed("finish", &self.path, error))
    }
}

/// What a snapshot says of itself.
pub(super) struct Loaded {
    pub(super) bytes: u64,
    pub(super) records: u64,
    /// The place that the journals must reach.
    pub(super) reached: (u64, u64),
}

/// Reads a snapshot into a state that is empty.
pub(super) fn load(disk: &dyn Disk, dir: &Path, number: u64, state: &State) -> Result<Loaded> {
    let path = dir.join(files::name_of(FileKind::Snapshot, number));
    let file = disk
        .open(&path, Open::Read)
        .map_err(|error| failed("open", &path, error))?;
    let header = FileHeader::read(&*file, &path, FileKind::Snapshot)?;
    if header.base != number {
        let what = format_args!("it is number {} by its header", header.base);
        return Err(damaged(&path, 24, what));
    }
    let len = file
        .len()
        .map_err(|error| failed("find the length of", &path, error))?;
    let mut walk = Walk::new(&*file, &path, header.file_id, FILE_HEADER_LEN, len);
    let (mut records, mut end) = (0, None);
    while let Some(group) = walk.next_group()? {
        super::open::each_record(&path, &group, |record, _| {
            if end.is_some() {
                return Err("it goes on after its end");
            }
            match record {
                Record::End {
                    journal,
                    offset,
                    records: counted,
                } => {
                    if counted != records {
                        return Err("it does not have as many records as it says");
                    }
                    end = Some((journal, offset));
                    Ok(())
                }
                // A stream stands in a snapshot as it was made.
                _ if record.is_of_snapshot() || matches!(record, Record::Stream { .. }) => {
                    records += 1;
                    state.apply(record)
                }
                _ => Err("it has a record that belongs into a journal"),
            }
        })?;
    }
    match end {
        Some(reached) if walk.offset() == len => Ok(Loaded {
            bytes: len,
            records,
            reached,
        }),
        _ => Err(damaged(
            &path,
            walk.offset(),
            "the group here is not valid, and the end of the snapshot does not come before it",
        )),
    }
}
