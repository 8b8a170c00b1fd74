//! The file that says up to where sequences may have been given before they were durable.

use std::collections::BTreeMap;
use std::path::Path;

use trunkline_core::engine::Seq;
use trunkline_core::{ErrorKind, Name, Result};

use super::{Finding, Severity};
use crate::disk::Disk;
use crate::engine::sync::{self, UNSYNCED};

/// What is to be told of it, and what it says.
pub(super) fn verify(
    disk: &dyn Disk,
    root: &Path,
    is_live: bool,
) -> Result<(Option<Finding>, BTreeMap<Name, Seq>)> {
    match sync::read(disk, root) {
        Ok(None) => Ok((None, BTreeMap::new())),
        Ok(Some(ends)) => {
            let what = "the bus was not closed, and not everything in it was synced";
            let finding = Finding::new(Severity::Leftover, UNSYNCED, what).means(
                "a loss of power took the end of it; opening has each stream go on behind all that may have been seen",
            );
            Ok(((!is_live).then_some(finding), ends))
        }
        Err(error) if error.kind() == ErrorKind::Damaged => {
            let what = "it is not as it was written";
            let finding = Finding::new(Severity::Damage, UNSYNCED, what).at(0).means(
                "nobody knows which sequences were given that a loss of power may have taken",
            );
            Ok((Some(finding), BTreeMap::new()))
        }
        Err(error) => Err(error),
    }
}
