//! Finding the end of the last file after a crash, and telling a torn write from damage.

use std::path::Path;

use trunkline_core::Result;

use super::walk::{Group, Walk};
use super::{ALIGN, FILE_HEADER_LEN, FileHeader, GROUP_HEADER_LEN, GROUP_MAGIC, GroupHeader};
use super::{damaged, failed};
use crate::disk::{self, File};

/// Bytes that are searched at once.
const CHUNK: usize = 1 << 20;

/// The end of a file, and what was cut off there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Where the next group is to be written.
    pub end: u64,
    /// Groups that were cut off, at least.
    pub cut_groups: u64,
    /// Bytes that were cut off, at least.
    pub cut_bytes: u64,
}

/// Walks the groups of a file, gives each to `each`, and finds the end. What was torn there is made
/// unreadable, durably, so that new groups can be written over it. The file must be open for
/// writing.
///
/// # Errors
/// [`Damaged`](trunkline_core::ErrorKind::Damaged) with file and offset when a group that had been
/// synced is no longer valid, those of `each`, and those of the disk.
pub fn recover(
    file: &dyn File,
    path: &Path,
    header: &FileHeader,
    mut each: impl FnMut(Group) -> Result<()>,
) -> Result<Recovered> {
    let len = file
        .len()
        .map_err(|error| failed("find the length of", path, error))?;
    // Most of a segment may be room that was never written, where nothing can be found.
    let data_end = file
        .data_end()
        .map_err(|error| failed("look through", path, error))?;
    let mut walk = Walk::new(file, path, header.file_id, FILE_HEADER_LEN, len);
    let mut durable = FILE_HEADER_LEN;
    while let Some(group) = walk.next_group()? {
        durable = durable.max(group.header.durable_end);
        each(group)?;
    }
    let end = walk.offset();
    let mut found = search(file, path, header.file_id, end, data_end.min(len))?;
    if let Some((at, witness)) = found.iter().find(|(_, header)| header.durable_end > end) {
        let durable_end = witness.durable_end;
        return Err(damaged(
            path,
            end,
            format_args!(
                "the group here is not valid, but the one at {at} says that all up to {durable_end} was synced"
            ),
        ));
    }
    let mut terminator = [0; GROUP_HEADER_LEN];
    let read =
        disk::read_full(file, &mut terminator, end).map_err(|error| failed("read", path, error))?;
    let is_clean = terminator[..read].iter().all(|byte| *byte == 0);
    let last = found.last().map_or(end, |(at, header)| {
        at.saturating_add(header.size()).min(len)
    });
    if !is_clean && found.first().is_none_or(|(at, _)| *at != end) {
        found.insert(0, (end, GroupHeader::default()));
    }
    let torn = |error| failed("cut a torn write off", path, error);
    for (at, _) in &found {
        let room = usize::try_from(len - at).unwrap_or(GROUP_HEADER_LEN);
        file.write_at(&[0; GROUP_HEADER_LEN][..room.min(GROUP_HEADER_LEN)], *at)
            .map_err(torn)?;
    }
    // From now on these groups count as durable, but nobody knows whether they are: the process may
    // have been killed before it synced them, or a sync may have failed, after which the system
    // holds them in memory as if they were written. So they are written again.
    let mut again = vec![
        0;
        usize::try_from(end.saturating_sub(durable))
            .unwrap_or(0)
            .min(CHUNK)
    ];
    let mut at = durable;
    while at < end {
        let len = again
            .len()
            .min(usize::try_from(end - at).unwrap_or(usize::MAX));
        let read = disk::read_full(file, &mut again[..len], at)
            .map_err(|error| failed("read", path, error))?;
        file.write_at(&again[..read], at).map_err(torn)?;
        at += read.max(1) as u64;
    }
    file.sync().map_err(torn)?;
    Ok(Recovered {
        end,
        cut_groups: found.len() as u64,
        cut_bytes: if found.is_empty() {
            0
        } else {
            (last - end).max(read as u64)
        },
    })
}

/// Group headers that are valid where they stand, from `from` on.
pub(super) fn search(
    file: &dyn File,
    path: &Path,
    file_id: u64,
    from: u64,
    len: u64,
) -> Result<Vec<(u64, GroupHeader)>> {
    let mut found = Vec::new();
    let size = usize::try_from(len.saturating_sub(from))
        .unwrap_or(CHUNK)
        .min(CHUNK);
    let mut chunk = vec![0; size + GROUP_HEADER_LEN];
    let mut start = from;
    while start < len {
        // Chunks overlap by a header, so that none is missed between two of them.
        let read = disk::read_full(file, &mut chunk, start)
            .map_err(|error| failed("read", path, error))?;
        for at in (0..read.min(CHUNK)).step_by(ALIGN) {
            if chunk[at..read].starts_with(&GROUP_MAGIC) {
                let offset = start + at as u64;
                let header = GroupHeader::decode(&chunk[at..read], file_id, offset);
                found.extend(header.map(|header| (offset, header)));
            }
        }
        start += CHUNK as u64;
    }
    Ok(found)
}
