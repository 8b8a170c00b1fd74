//! Reading the journal from outside: nothing is opened for writing, and what is damaged is told of instead
//! of refused.

mod salvage;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trunkline_core::engine::{Bucket, StateKey};
use trunkline_core::{ErrorKind, Result};

use super::files::{self, MAKING};
use super::open::each_record;
use super::record::{Record, Value};
use super::snapshot;
use super::state::State;
use super::values::ValueFiles;
use crate::disk::{Disk, Open};
use crate::frame::pieces::{Header, Piece, Pieces, Tail, brief, header};
use crate::frame::{FILE_HEADER_LEN, FileHeader, FileKind, Group, SEALING, failed};

pub(super) use salvage::salvage;

/// A journal as far as it can be read.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) state: Arc<State>,
    pub(crate) faults: Vec<Fault>,
    /// The snapshot that was read, its bytes, and the place that the journals must reach.
    pub(crate) snapshot: Option<(u64, u64, (u64, u64))>,
    /// The journal that is read first.
    pub(crate) from: u64,
    /// The journal that was read last, and where its groups end.
    pub(crate) reached: (u64, u64),
    pub(crate) tail: Tail,
    /// Bytes of journals that were read.
    pub(crate) since: u64,
    /// Files that opening removes, by name.
    pub(crate) leftovers: Vec<PathBuf>,
    /// What was in journals and could not be applied.
    pub(crate) dropped: Dropped,
}

/// Something in the state that is damaged.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) what: String,
    pub(crate) kind: FaultKind,
}

/// What is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// A snapshot; whether older files say the same.
    Snapshot { number: u64, spare: bool },
    /// A journal ends here, and what was after this place cannot be applied.
    Journal { number: u64 },
    /// A journal is not there.
    Missing { number: u64 },
    /// A file of values cannot be used at all; so many keys have values in it.
    Values { number: u64, keys: u64 },
    /// The value of a key.
    Value { bucket: Bucket, key: StateKey },
    /// A header that tells the same as the rest of its file does.
    Header { header: FileHeader },
}

/// What journals had behind damage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) records: u64,
    /// What they were about, in words.
    pub(crate) about: BTreeSet<String>,
}

/// So many things are named at most.
const MOST_NAMED: usize = 12;

impl Dropped {
    fn note(&mut self, record: &Record) {
        self.records += 1;
        let text = match record {
            Record::Stream { spec, .. } => format!("stream {}", spec.name),
            Record::StreamDeleted(name) => format!("the removal of stream {name}"),
            Record::Consumer { spec, .. }
            | Record::ConsumerUpdated(spec)
            | Record::ConsumerStood { spec, .. } => {
                format!("consumer {} of {}", spec.at.consumer, spec.at.stream)
            }
            Record::ConsumerDeleted(at) => {
                format!("the removal of consumer {} of {}", at.consumer, at.stream)
            }
            Record::Settled { at, .. } => {
                format!("progress of consumer {} of {}", at.consumer, at.stream)
            }
            Record::Keys { bucket, .. }
            | Record::Moved { bucket, .. }
            | Record::Bucket { bucket, .. }
            | Record::Kept { bucket, .. } => format!("keys of bucket {bucket}"),
            Record::Remembered { .. } | Record::End { .. } => return,
        };
        if self.about.len() < MOST_NAMED {
            self.about.insert(text);
        }
    }
}

impl Look {
    /// Reads the state below a directory, with the files of values or without. `read` hears of every file and of the bytes that were read.
    pub(crate) fn at(
        disk: &dyn Disk,
        root: &Path,
        with_values: bool,
        read: &mut dyn FnMut(Reading),
    ) -> Result<Self> {
        let dir = root.join("state");
        let value_dir = dir.join("values");
        let names = list(disk, &dir)?;
        let snapshots = files::numbers(&names, FileKind::Snapshot);
        let journals = files::numbers(&names, FileKind::Journal);
        let mut look = Self {
            state: Arc::new(State::new(ValueFiles::default())),
            faults: Vec::new(),
            snapshot: None,
            from: journals.first().copied().unwrap_or(1),
            reached: (0, FILE_HEADER_LEN),
            tail: Tail::Clean,
            since: 0,
            leftovers: Vec::new(),
            dropped: Dropped::default(),
        };
        look.read_snapshot(disk, &dir, &snapshots, &journals, read)?;
        look.read_journals(disk, &dir, &journals, read)?;
        if with_values {
            look.read_values(disk, &value_dir, read)?;
        }
        let from = look.from;
        let old = |kind, numbers: &[u64]| {
            let old = numbers.iter().filter(|number| **number < from);
            old.map(|number| dir.join(files::name_of(kind, *number)))
                .collect::<Vec<_>>()
        };
        // A snapshot that is damaged is not removed while others stand in for it.
        if !look.is_damaged() {
            look.leftovers.extend(old(FileKind::Snapshot, &snapshots));
            look.leftovers.extend(old(FileKind::Journal, &journals));
        }
        Ok(look)
    }

    fn is_damaged(&self) -> bool {
        !self.faults.is_empty()
    }

    fn fault(&mut self, path: &Path, offset: u64, what: impl Into<String>, kind: FaultKind) {
        self.faults.push(Fault {
            path: path.to_owned(),
            offset,
            what: what.into(),
            kind,
        });
    }

    /// The newest snapshot that can be read and has its journals; else what can be read of the newest.
    fn read_snapshot(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        snapshots: &[u64],
        journals: &[u64],
        read: &mut dyn FnMut(Reading),
    ) -> Result<()> {
        let Some(newest) = snapshots.last().copied() else {
            // The journals alone tell all, if they begin with the first.
            self.from = 1;
            return Ok(());
        };
        let last = journals.last().copied().unwrap_or(0);
        let has_journals_from = |from: u64| {
            let present = journals.iter().filter(|number| **number >= from).count() as u64;
            from <= last && present == last - from + 1
        };
        for number in snapshots.iter().rev().copied() {
            if number != newest && !has_journals_from(number) {
                break;
            }
            let state = State::new(ValueFiles::default());
            let path = dir.join(files::name_of(FileKind::Snapshot, number));
            read(Reading::File(length(disk, &path)));
            match snapshot::load(disk, dir, number, &state) {
                Ok(loaded) => {
                    read(Reading::End);
                    self.state = Arc::new(state);
                    self.snapshot = Some((number, loaded.bytes, loaded.reached));
                    self.from = number;
                    self.stand_in();
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::StorageFailed => return Err(error),
                Err(error) => {
                    let salvaged = salvage(disk, dir, number, &[])?;
                    read(Reading::End);
                    let what = brief(&error);
                    let kind = FaultKind::Snapshot {
                        number,
                        spare: false,
                    };
                    self.fault(&path, salvaged.damaged_at, what, kind);
                }
            }
        }
        if has_journals_from(1) {
            self.from = 1;
            self.stand_in();
            return Ok(());
        }
        // Nothing stands in for it: what can be read of it, so that the journals can be applied.
        let journals: Vec<u64> = journals
            .iter()
            .copied()
            .filter(|number| *number >= newest)
            .collect();
        let salvaged = salvage(disk, dir, newest, &journals)?;
        self.state = Arc::new(salvaged.state);
        self.from = newest;
        Ok(())
    }

    /// Older files say what the damaged ones that were found so far said.
    fn stand_in(&mut self) {
        for fault in &mut self.faults {
            if let FaultKind::Snapshot { spare, .. } = &mut fault.kind {
                *spare = true;
            }
        }
    }

    fn read_journals(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        journals: &[u64],
        read: &mut dyn FnMut(Reading),
    ) -> Result<()> {
        let last = journals.last().copied().unwrap_or(0);
        if journals.is_empty() && self.snapshot.is_none() && self.faults.is_empty() {
            // A directory that was just begun.
            return Ok(());
        }
        let (mut number, mut stopped) = (self.from, false);
        loop {
            let path = dir.join(files::name_of(FileKind::Journal, number));
            if !journals.contains(&number) {
                if !stopped {
                    self.reached = (number, FILE_HEADER_LEN);
                    let kind = FaultKind::Missing { number };
                    self.fault(&path, 0, "this journal is missing", kind);
                    stopped = true;
                }
                if number >= last {
                    break;
                }
                number += 1;
                continue;
            }
            let read_of = self.read_journal(disk, &path, number, stopped, read)?;
            let has_next = journals.contains(&(number + 1));
            if !read_of.stopped && !stopped {
                self.reached = (number, read_of.end);
                self.since += read_of.end - FILE_HEADER_LEN;
                self.tail = read_of.tail;
                if !read_of.is_sealed && has_next {
                    // Its successor was made, and then this one was not sealed: nothing is there.
                    let next = dir.join(files::name_of(FileKind::Journal, number + 1));
                    if has_groups(disk, &next, number + 1)? {
                        let what = "it is not sealed here, and a journal was written after it";
                        self.fault(&path, read_of.end, what, FaultKind::Journal { number });
                        stopped = true;
                    } else {
                        self.leftovers.push(next);
                        break;
                    }
                } else if !read_of.is_sealed {
                    break;
                }
            }
            stopped |= read_of.stopped;
            if stopped && number >= last {
                break;
            }
            number += 1;
        }
        if let Some((_, _, reached)) = self.snapshot
            && !stopped
            && self.reached < reached
        {
            let (number, end) = self.reached;
            let path = dir.join(files::name_of(FileKind::Journal, number));
            let what = format!(
                "the snapshot has seen the journal up to {} of number {}, and it ends here",
                reached.1, reached.0
            );
            self.fault(&path, end, what, FaultKind::Journal { number });
        }
        Ok(())
    }

    fn read_journal(
        &mut self,
        disk: &dyn Disk,
        path: &Path,
        number: u64,
        already: bool,
        read: &mut dyn FnMut(Reading),
    ) -> Result<JournalRead> {
        let file = disk
            .open(path, Open::Read)
            .map_err(|error| failed("open", path, error))?;
        read(Reading::File(file.len().unwrap_or(0)));
        let mut done = JournalRead {
            end: FILE_HEADER_LEN,
            is_sealed: false,
            stopped: false,
            tail: Tail::Clean,
        };
        let (id, kind) = match header(&*file, path, FileKind::Journal, number, || None)? {
            Header::Good(header) => (Some(header.file_id), None),
            Header::Bad {
                offset,
                error,
                likely,
            } => {
                let what = brief(&error);
                let kind = match likely {
                    Some(header) => FaultKind::Header { header },
                    None => FaultKind::Journal { number },
                };
                (
                    likely.map(|header| header.file_id),
                    Some((offset, what, kind)),
                )
            }
        };
        if let Some((offset, what, kind)) = kind
            && !already
        {
            self.fault(path, offset, what, kind);
        }
        let Some(id) = id else {
            done.stopped = true;
            if !already {
                self.reached = (number, FILE_HEADER_LEN);
            }
            read(Reading::End);
            return Ok(done);
        };
        let mut pieces = Pieces::new(&*file, path, id, false)?;
        loop {
            let at = pieces.offset();
            let piece = match pieces.next_piece() {
                Err(error) if error.kind() == ErrorKind::StorageFailed => return Err(error),
                piece => piece,
            };
            let fault = match piece {
                Ok(Piece::Group(group)) => {
                    read(Reading::Bytes(group.header.size()));
                    done.is_sealed = group.header.flags & SEALING != 0;
                    if already || done.stopped {
                        note_all(path, &group, &mut self.dropped);
                        continue;
                    }
                    let state = Arc::clone(&self.state);
                    let applied = each_record(path, &group, |record, _| {
                        if record.is_of_snapshot() {
                            return Err("it has a record that belongs into a snapshot");
                        }
                        state.apply(record)
                    });
                    match applied {
                        Ok(()) => {
                            done.end = group.end();
                            continue;
                        }
                        Err(error) => {
                            note_all(path, &group, &mut self.dropped);
                            (group.offset, brief(&error))
                        }
                    }
                }
                Ok(Piece::Hole(hole)) => {
                    let bytes = hole.to - hole.from;
                    let what = format!("{bytes} bytes here are not as they were written");
                    (hole.from, what)
                }
                Ok(Piece::End(tail)) => {
                    done.tail = tail;
                    break;
                }
                Err(error) => (at, brief(&error)),
            };
            let is_error = pieces.offset() == fault.0;
            if !already && !done.stopped {
                self.reached = (number, fault.0);
                self.since += fault.0 - FILE_HEADER_LEN;
                self.fault(path, fault.0, fault.1, FaultKind::Journal { number });
            }
            done.stopped = true;
            if is_error {
                // A group that cannot be passed over.
                break;
            }
        }
        read(Reading::End);
        Ok(done)
    }

    fn read_values(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
        read: &mut dyn FnMut(Reading),
    ) -> Result<()> {
        let present = files::numbers(&list(disk, dir)?, FileKind::Values);
        let state = Arc::clone(&self.state);
        let mut unusable = BTreeSet::new();
        for (number, live) in state.live() {
            if live.values == 0 {
                continue;
            }
            match state.values.open(disk, dir, number, live.end, Open::Read) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFailed => return Err(error),
                Err(error) => {
                    let path = dir.join(files::name_of(FileKind::Values, number));
                    let keys = live.values;
                    let what = brief(&error);
                    self.fault(&path, 0, what, FaultKind::Values { number, keys });
                    unusable.insert(number);
                }
            }
        }
        for number in present {
            let path = dir.join(files::name_of(FileKind::Values, number));
            let is_used = state.values.get(number).is_some() || unusable.contains(&number);
            read(Reading::File(length(disk, &path)));
            read(Reading::End);
            if !is_used && !path.to_string_lossy().ends_with(MAKING) {
                self.leftovers.push(path);
            }
        }
        for (bucket, keys) in state.buckets() {
            let stored: Vec<(StateKey, super::Place)> = {
                let keys = keys.read();
                let places = keys.after(None).filter_map(|(key, kept)| match kept.value {
                    Value::Stored(place) => Some((key.clone(), place)),
                    Value::Here(_) => None,
                });
                places.collect()
            };
            for (key, place) in stored {
                if unusable.contains(&place.file) {
                    continue;
                }
                match state.values.read(&place) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFailed => return Err(error),
                    Err(_) => {
                        let path = dir.join(files::name_of(FileKind::Values, place.file));
                        let what = format!(
                            "the value of key {key} of bucket {bucket} is not as it was written"
                        );
                        let bucket = bucket.clone();
                        self.fault(&path, place.offset, what, FaultKind::Value { bucket, key });
                    }
                }
            }
        }
        Ok(())
    }
}

/// What is told while reading.
pub(crate) enum Reading {
    File(u64),
    Bytes(u64),
    End,
}

struct JournalRead {
    end: u64,
    is_sealed: bool,
    stopped: bool,
    tail: Tail,
}

fn note_all(path: &Path, group: &Group, dropped: &mut Dropped) {
    // What cannot be read of it is not counted.
    let _ = each_record(path, group, |record, _| {
        dropped.note(&record);
        Ok(())
    });
}

fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
    match disk.list(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        names => names.map_err(|error| failed("list", dir, error)),
    }
}

fn length(disk: &dyn Disk, path: &Path) -> u64 {
    let file = disk.open(path, Open::Read);
    file.and_then(|file| file.len()).unwrap_or(0)
}

fn has_groups(disk: &dyn Disk, path: &Path, number: u64) -> Result<bool> {
    let file = disk
        .open(path, Open::Read)
        .map_err(|error| failed("open", path, error))?;
    let Header::Good(header) = header(&*file, path, FileKind::Journal, number, || None)? else {
        return Ok(true);
    };
    let mut pieces = Pieces::new(&*file, path, header.file_id, false)?;
    Ok(!matches!(pieces.next_piece(), Ok(Piece::End(Tail::Clean))))
}
