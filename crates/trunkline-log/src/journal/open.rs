//! Opening: the newest snapshot, the journals since, and the files of values that keys name.

use std::path::Path;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use super::files::{self, MAKING};
use super::record::{NotARecord, Record};
use super::snapshot::{self, Loaded};
use super::state::State;
use super::values::{ValueFiles, ValueWriter};
use super::{Current, Journal, JournalOptions, Phase, make_journal};
use crate::disk::{Disk, Open};
use crate::frame::{self, FILE_HEADER_LEN, FileHeader, FileKind, Group, SEALING};
use crate::frame::{damaged, failed, newer};

/// What was found when a journal was opened.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The number of the snapshot that was read.
    pub snapshot: Option<u64>,
    /// Records of the snapshot.
    pub snapshot_records: u64,
    /// Journals that were read.
    pub journals: u64,
    /// Records of the journals.
    pub records: u64,
    /// Groups that a crash had torn and that were cut off, at least. None was acknowledged, but for a
    /// last one without a witness.
    pub cut_groups: u64,
    /// Bytes that were cut off, at least.
    pub cut_bytes: u64,
    /// A newer snapshot that could not be read, where an older one with all journals was there.
    pub damaged_snapshot: Option<Error>,
}

/// Gives each record of a group to `each`, with its offset.
pub(super) fn each_record(
    path: &Path,
    group: &Group,
    mut each: impl FnMut(Record, u64) -> Result<(), &'static str>,
) -> Result<()> {
    let mut content = &group.content[..];
    let mut left = group.header.count;
    while !content.is_empty() {
        let at =
            group.offset + (frame::GROUP_HEADER_LEN + group.content.len() - content.len()) as u64;
        let record = Record::decode(&mut content).map_err(|fault| match fault {
            NotARecord::Newer(version, kind) => newer(
                path,
                format_args!("a record of version {version} and kind {kind} at offset {at}"),
            ),
            NotARecord::Damaged(fault) => damaged(path, at, fault),
        })?;
        each(record, at).map_err(|fault| damaged(path, at, fault))?;
        left = left.wrapping_sub(1);
    }
    if left == 0 {
        Ok(())
    } else {
        let what = "the group does not have as many records as it says";
        Err(damaged(path, group.offset, what))
    }
}

impl Journal {
    /// Opens the journal of a directory, or begins one.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] with file and offset when something that had been synced is not as it
    /// was written, [`ErrorKind::WrongVersion`] when a newer release wrote it,
    /// [`ErrorKind::OverQuota`] when there is no room, and [`ErrorKind::StorageFailed`].
    pub fn open(
        disk: Arc<dyn Disk>,
        root: &Path,
        options: JournalOptions,
        now: Timestamp,
    ) -> Result<(Self, Report)> {
        let dir = root.join("state");
        let value_dir = dir.join("values");
        for made in [&dir, &value_dir] {
            disk.make_dir(made)
                .map_err(|error| failed("make", made, error))?;
        }
        for made in [root, &dir] {
            disk.sync_dir(made)
                .map_err(|error| failed("sync", made, error))?;
        }
        let names = list(&*disk, &dir)?;
        let value_names = list(&*disk, &value_dir)?;
        for (dir, names) in [(&dir, &names), (&value_dir, &value_names)] {
            for name in names.iter().filter(|name| name.ends_with(MAKING)) {
                let path = dir.join(name);
                disk.remove(&path)
                    .map_err(|error| failed("remove", &path, error))?;
            }
        }
        let snapshots = files::numbers(&names, FileKind::Snapshot);
        let mut journals = files::numbers(&names, FileKind::Journal);
        let value_files = files::numbers(&value_names, FileKind::Values);
        let mut report = Report::default();
        if journals.is_empty() {
            if let Some(number) = snapshots.last() {
                return Err(missing(&dir, *number));
            }
            if !value_files.is_empty() {
                return Err(missing(&dir, 1));
            }
            let made = make_journal(&*disk, &dir, &options, 1, now);
            let made = made.map_err(|not_made| not_made.error)?;
            drop(made);
            journals.push(1);
        }
        let (state, loaded, from) =
            read_snapshot(&*disk, &dir, &snapshots, &journals, &mut report)?;
        journals.retain(|number| *number >= from);
        let read = read_journals(&*disk, &dir, &mut journals, from, &state, &mut report)?;
        if let Some(loaded) = &loaded
            && (read.file.number, read.file.end) < loaded.reached
        {
            let what = format_args!(
                "the snapshot has seen the journal up to {} of number {}, and it ends here",
                loaded.reached.1, loaded.reached.0
            );
            return Err(damaged(&read.file.path, read.file.end, what));
        }
        *state.reached.lock() = (read.file.number, read.file.end);
        let values = open_values(&*disk, &value_dir, &value_files, &state, &options)?;
        let mut journal = Self {
            disk,
            dir,
            options,
            state: Arc::new(state),
            file: read.file,
            values,
            phase: Phase::Staging,
            buffer: Vec::new(),
            group: None,
            staged: Vec::new(),
            adds: 0,
            ahead: FxHashMap::default(),
            failed: None,
            journals: files::numbers(&names, FileKind::Journal),
            snapshots,
            since_snapshot: read.bytes,
            before_snapshot: 0,
            snapshot_size: loaded.map_or(0, |loaded| loaded.bytes),
            retry_at: 0,
            is_copying: false,
            compaction: None,
            stuck: Vec::new(),
        };
        let last = journal.file.number;
        journal.journals.retain(|number| *number < last);
        journal.journals.push(last);
        if report.damaged_snapshot.is_none()
            && let Some(number) = report.snapshot
        {
            journal.remove_below(number)?;
        }
        Ok((journal, report))
    }

    /// Reads every value that a key has in a file, and says how many those are.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] with file and offset for the first that is not as it was written.
    pub fn verify_values(&self) -> Result<u64> {
        let mut read = 0;
        for (name, keys) in self.state.buckets() {
            let mut after = None;
            loop {
                let slice: Vec<_> = {
                    let keys = keys.read();
                    let slice = keys.after(after.as_ref()).take(snapshot::SLICE);
                    slice
                        .map(|(key, kept)| (key.clone(), kept.value.clone()))
                        .collect()
                };
                let Some((last, _)) = slice.last() else { break };
                after = Some(last.clone());
                for (key, value) in slice {
                    if matches!(value, super::Value::Stored(_)) {
                        let context =
                            |error: Error| error.at(format!("key {key} of bucket {name}"));
                        read += u64::from(self.state.read(&value).map_err(context)?.is_some());
                    }
                }
            }
        }
        Ok(read)
    }
}

fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<String>> {
    disk.list(dir).map_err(|error| failed("list", dir, error))
}

fn missing(dir: &Path, number: u64) -> Error {
    let path = dir.join(files::name_of(FileKind::Journal, number));
    damaged(&path, 0, "it should be there, and it is not")
}

/// Reads the newest snapshot that has all its journals; none when there is none and the journals
/// begin with the first. Gives the number of the journal that comes after it.
fn read_snapshot(
    disk: &dyn Disk,
    dir: &Path,
    snapshots: &[u64],
    journals: &[u64],
    report: &mut Report,
) -> Result<(State, Option<Loaded>, u64)> {
    let last = journals.last().copied().unwrap_or(0);
    let has_journals_from = |from: u64| {
        let present = journals.iter().filter(|number| **number >= from).count() as u64;
        from <= last && present == last - from + 1
    };
    for number in snapshots.iter().rev() {
        if !has_journals_from(*number) {
            break;
        }
        let state = State::new(ValueFiles::default());
        match snapshot::load(disk, dir, *number, &state) {
            Ok(loaded) => {
                report.snapshot = Some(*number);
                report.snapshot_records = loaded.records;
                return Ok((state, Some(loaded), *number));
            }
            Err(error) if error.kind() == ErrorKind::Damaged => {
                report.damaged_snapshot.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    if has_journals_from(1) {
        return Ok((State::new(ValueFiles::default()), None, 1));
    }
    if let Some(error) = report.damaged_snapshot.take() {
        return Err(error);
    }
    // The first that is missing of those after the newest snapshot.
    let from = snapshots.last().copied().unwrap_or(1);
    let absent = (from..=last).find(|number| !journals.contains(number));
    Err(missing(dir, absent.unwrap_or(from)))
}

/// The journals as they were read.
struct Read {
    file: Current,
    bytes: u64,
}

fn read_journals(
    disk: &dyn Disk,
    dir: &Path,
    journals: &mut Vec<u64>,
    from: u64,
    state: &State,
    report: &mut Report,
) -> Result<Read> {
    let mut bytes = 0;
    let mut number = from;
    loop {
        let path = dir.join(files::name_of(FileKind::Journal, number));
        let file = disk
            .open(&path, Open::Write)
            .map_err(|error| failed("open", &path, error))?;
        let header = FileHeader::read(&*file, &path, FileKind::Journal)?;
        if header.base != number {
            let what = format_args!("it is number {} by its header", header.base);
            return Err(damaged(&path, 24, what));
        }
        let (mut is_sealed, mut is_closed) = (false, true);
        let recovered = frame::recover(&*file, &path, &header, |group| {
            if is_sealed {
                return Err(damaged(
                    &path,
                    group.offset,
                    "it goes on after it was sealed",
                ));
            }
            is_sealed = group.header.flags & SEALING != 0;
            is_closed = group.header.flags != 0;
            each_record(&path, &group, |record, _| {
                if record.is_of_snapshot() {
                    return Err("it has a record that belongs into a snapshot");
                }
                report.records += 1;
                state.apply(record)
            })
        })?;
        report.journals += 1;
        report.cut_groups += recovered.cut_groups;
        report.cut_bytes += recovered.cut_bytes;
        bytes += recovered.end - FILE_HEADER_LEN;
        let has_next = journals.contains(&(number + 1));
        if is_sealed && has_next {
            number += 1;
            continue;
        }
        if is_sealed {
            return Err(missing(dir, number + 1));
        }
        if has_next {
            // Its successor was made, and then this one was not sealed: nothing was written there.
            remove_empty(disk, dir, number + 1, &path, recovered.end)?;
            journals.retain(|other| *other <= number);
        }
        let file = Current {
            file,
            path,
            number,
            id: header.file_id,
            reserved: header.reserved,
            end: recovered.end,
            durable: recovered.end,
            is_closed,
        };
        return Ok(Read { file, bytes });
    }
}

/// Removes a journal that was made and never written to; one that was says that `before` is damaged
/// at its end.
fn remove_empty(disk: &dyn Disk, dir: &Path, number: u64, before: &Path, end: u64) -> Result<()> {
    let path = dir.join(files::name_of(FileKind::Journal, number));
    let file = disk
        .open(&path, Open::Write)
        .map_err(|error| failed("open", &path, error))?;
    let header = FileHeader::read(&*file, &path, FileKind::Journal)?;
    let mut has_groups = false;
    let recovered = frame::recover(&*file, &path, &header, |_| {
        has_groups = true;
        Ok(())
    })?;
    if has_groups || recovered.cut_groups > 0 {
        let what = format_args!(
            "it is not sealed here, and {} was written after it",
            path.display()
        );
        return Err(damaged(before, end, what));
    }
    disk.remove(&path)
        .and_then(|()| disk.sync_dir(dir))
        .map_err(|error| failed("remove", &path, error))
}

/// Opens the files that keys have values in, and removes the others.
fn open_values(
    disk: &dyn Disk,
    dir: &Path,
    present: &[u64],
    state: &State,
    options: &JournalOptions,
) -> Result<ValueWriter> {
    let mut writer = ValueWriter::new(dir.to_owned(), options.value_file_bytes);
    for (number, live) in state.live() {
        writer.pass_number(number);
        if live.values == 0 {
            state.forget_file(number);
            continue;
        }
        let file = state
            .values
            .open(disk, dir, number, live.end, Open::Write)?;
        // Values go on after the last that lives; what a crash left behind it is nobody's.
        writer.go_on(number, file, live.end);
    }
    for number in present {
        writer.pass_number(*number);
        if state.values.get(*number).is_none() {
            let path = dir.join(files::name_of(FileKind::Values, *number));
            disk.remove(&path)
                .map_err(|error| failed("remove", &path, error))?;
        }
    }
    Ok(writer)
}
