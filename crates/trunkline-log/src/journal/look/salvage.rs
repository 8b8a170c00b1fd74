//! What can be read of a snapshot that is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use trunkline_core::engine::Bucket;
use trunkline_core::{ErrorKind, Result};

use super::super::files;
use super::super::open::each_record;
use super::super::record::Record;
use super::super::state::State;
use super::super::values::ValueFiles;
use crate::disk::{Disk, Open};
use crate::frame::pieces::{Header, Piece, Pieces, header};
use crate::frame::{FileKind, failed};

/// What could be read of a snapshot.
pub(in crate::journal) struct Salvaged {
    pub(in crate::journal) state: State,
    pub(in crate::journal) damaged_at: u64,
}

/// Reads of a snapshot what can be read. The revision of a bucket that is missing is the one before its
/// first change in these journals.
pub(in crate::journal) fn salvage(
    disk: &dyn Disk,
    dir: &Path,
    number: u64,
    journals: &[u64],
) -> Result<Salvaged> {
    let path = dir.join(files::name_of(FileKind::Snapshot, number));
    let file = disk
        .open(&path, Open::Read)
        .map_err(|error| failed("open", &path, error))?;
    let (id, mut damaged_at) = match header(&*file, &path, FileKind::Snapshot, number, || None)? {
        Header::Good(header) => (Some(header.file_id), None),
        Header::Bad { offset, likely, .. } => (likely.map(|likely| likely.file_id), Some(offset)),
    };
    let (mut records, mut ends) = (Vec::new(), false);
    if let Some(id) = id {
        let mut pieces = Pieces::new(&*file, &path, id, true)?;
        loop {
            let at = pieces.offset();
            match pieces.next_piece() {
                Ok(Piece::Group(group)) => {
                    let read = each_record(&path, &group, |record, _| {
                        ends |= matches!(record, Record::End { .. });
                        records.push(record);
                        Ok(())
                    });
                    if read.is_err() {
                        damaged_at.get_or_insert(group.offset);
                    }
                }
                Ok(Piece::Hole(hole)) => {
                    damaged_at.get_or_insert(hole.from);
                }
                Ok(Piece::End(_)) => {
                    if !ends {
                        damaged_at.get_or_insert(at);
                    }
                    break;
                }
                Err(error) if error.kind() == ErrorKind::StorageFailed => return Err(error),
                Err(_) => {
                    damaged_at.get_or_insert(at);
                    break;
                }
            }
        }
    }
    Ok(Salvaged {
        state: rebuilt(records, &first_revisions(disk, dir, journals)),
        damaged_at: damaged_at.unwrap_or(0),
    })
}

/// The state that records of a snapshot give, some of which are missing.
fn rebuilt(records: Vec<Record>, firsts: &BTreeMap<Bucket, u64>) -> State {
    let state = State::new(ValueFiles::default());
    let begun: BTreeSet<Bucket> = records
        .iter()
        .filter_map(|record| match record {
            Record::Bucket { bucket, .. } => Some(bucket.clone()),
            _ => None,
        })
        .collect();
    let mut missing: BTreeMap<Bucket, u64> = firsts
        .iter()
        .map(|(bucket, first)| (bucket.clone(), first.saturating_sub(1)))
        .collect();
    for record in &records {
        if let Record::Kept { bucket, keys } = record
            && !firsts.contains_key(bucket)
        {
            let highest = keys.iter().map(|(_, kept)| kept.rev).max().unwrap_or(0);
            let rev = missing.entry(bucket.clone()).or_default();
            *rev = highest.max(*rev);
        }
    }
    missing.retain(|bucket, rev| !begun.contains(bucket) && *rev > 0);
    let begins = missing
        .into_iter()
        .map(|(bucket, rev)| Record::Bucket { bucket, rev });
    for record in begins.chain(records) {
        let belongs = record.is_of_snapshot() || matches!(record, Record::Stream { .. });
        if belongs {
            // One that does not fit without what is missing is missing too.
            let _ = state.apply(record);
        }
    }
    state
}

/// The first revision that journals give to each bucket.
fn first_revisions(disk: &dyn Disk, dir: &Path, journals: &[u64]) -> BTreeMap<Bucket, u64> {
    let mut firsts = BTreeMap::new();
    for number in journals {
        let path = dir.join(files::name_of(FileKind::Journal, *number));
        let Ok(file) = disk.open(&path, Open::Read) else {
            continue;
        };
        let Ok(Header::Good(header)) = header(&*file, &path, FileKind::Journal, *number, || None)
        else {
            continue;
        };
        let Ok(mut pieces) = Pieces::new(&*file, &path, header.file_id, false) else {
            continue;
        };
        while let Ok(piece) = pieces.next_piece() {
            match piece {
                Piece::Group(group) => {
                    let _ = each_record(&path, &group, |record, _| {
                        if let Record::Keys { bucket, changes } = record {
                            firsts.entry(bucket).or_insert(changes.first);
                        }
                        Ok(())
                    });
                }
                Piece::Hole(_) => {}
                Piece::End(_) => break,
            }
        }
    }
    firsts
}
