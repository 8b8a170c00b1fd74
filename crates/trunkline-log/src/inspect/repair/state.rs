//! Mending the journal, its snapshots and the files of values.

use std::path::Path;

use trunkline_core::engine::ConsumerRef;
use trunkline_core::{Result, Timestamp};

use super::super::place::{STATE, VALUES, list};
use super::AnyDisk;
use super::keep::Keeper;
use crate::frame::FILE_HEADER_LEN;
use crate::journal::look::{FaultKind, Look};
use crate::journal::mend;

/// Mends what stands first in the way, and says whether there may be more.
pub(super) fn mend(
    disk: &AnyDisk,
    root: &Path,
    look: &Look,
    keeper: &mut Keeper<'_>,
    now: Timestamp,
) -> Result<bool> {
    let dir = root.join(STATE);
    let mut again = false;
    for fault in &look.faults {
        match &fault.kind {
            FaultKind::Header { header } => {
                keeper.copy(&fault.path)?;
                mend::write_header(&**disk, &fault.path, header)?;
                again = true;
            }
            FaultKind::Snapshot { spare: true, .. } => {
                keeper.set_aside(&fault.path)?;
                again = true;
            }
            _ => {}
        }
    }
    if again {
        return Ok(true);
    }
    let names = list(&**disk, &dir)?;
    let journals = numbers(&names, ".journal");
    for fault in &look.faults {
        if let FaultKind::Snapshot { number, .. } = &fault.kind {
            keeper.copy(&fault.path)?;
            let since: Vec<u64> = journals
                .iter()
                .copied()
                .filter(|journal| journal >= number)
                .collect();
            let reached = (*number, FILE_HEADER_LEN);
            mend::rewrite_snapshot(disk, &dir, *number, &since, reached, now)?;
            return Ok(true);
        }
    }
    // Nothing behind the first fault of the journals can be applied.
    let journal = look.faults.iter().find_map(|fault| match fault.kind {
        FaultKind::Journal { number } => Some((fault, number, false)),
        FaultKind::Missing { number } => Some((fault, number, true)),
        _ => None,
    });
    if let Some((fault, number, is_missing)) = journal {
        // What only lost keys have is not to be removed when the directory is opened.
        for path in &look.leftovers {
            if path.extension().is_some_and(|end| end == VALUES) {
                keeper.set_aside(path)?;
            }
        }
        for later in journals.iter().filter(|later| **later > number) {
            keeper.set_aside(&dir.join(format!("{later:020}.journal")))?;
        }
        let end = fault.offset.max(FILE_HEADER_LEN);
        if is_missing {
            mend::make_empty(&**disk, &dir, number, now)?;
        } else if fault.offset < FILE_HEADER_LEN {
            // Nothing of it can be read.
            keeper.set_aside(&fault.path)?;
            mend::make_empty(&**disk, &dir, number, now)?;
        } else {
            keeper.copy(&fault.path)?;
            mend::cut_journal(&**disk, &fault.path, end)?;
        }
        if let Some((snapshot, _, reached)) = look.snapshot
            && (number, end) < reached
        {
            let path = dir.join(format!("{snapshot:020}.snapshot"));
            keeper.copy(&path)?;
            mend::rewrite_snapshot(disk, &dir, snapshot, &[], (number, end), now)?;
        }
        return Ok(true);
    }
    let live = look.state.live_ends();
    for fault in &look.faults {
        if let FaultKind::Values { number, .. } = fault.kind {
            let is_there = disk.open(&fault.path, crate::disk::Open::Read).is_ok();
            if is_there {
                keeper.copy(&fault.path)?;
            } else {
                keeper.made(&fault.path);
            }
            let end = live.get(&number).copied().unwrap_or(FILE_HEADER_LEN);
            mend::mend_values(&**disk, &dir.join(VALUES), number, end, now)?;
            again = true;
        }
    }
    if again {
        return Ok(true);
    }
    let mut keys = Vec::new();
    for fault in &look.faults {
        if let FaultKind::Value { bucket, key } = &fault.kind {
            keeper.copy(&fault.path)?;
            keys.push((bucket.clone(), key.clone()));
        }
    }
    let topology = look.state.topology();
    let orphans: Vec<ConsumerRef> = topology
        .consumers
        .iter()
        .filter(|((stream, _), _)| !topology.streams.contains_key(stream))
        .map(|(_, known)| known.spec.at.clone())
        .collect();
    if !keys.is_empty() || !orphans.is_empty() {
        mend::remove(disk, root, &keys, &orphans, now)?;
    }
    Ok(false)
}

fn numbers(names: &[String], end: &str) -> Vec<u64> {
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| name.strip_suffix(end)?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}
