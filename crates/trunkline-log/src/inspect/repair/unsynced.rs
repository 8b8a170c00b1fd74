//! Mending the file that says up to where sequences may have been given.

use std::collections::BTreeMap;
use std::path::Path;

use trunkline_core::{Name, Result};

use super::super::{place, stream};
use super::keep::Keeper;
use crate::disk::Disk;
use crate::engine::sync::{self, UNSYNCED};

/// Writes it anew, so that no sequence is given twice that any event may have had.
pub(super) fn mend(disk: &dyn Disk, root: &Path, keeper: &mut Keeper<'_>) -> Result<()> {
    keeper.set_aside(&root.join(UNSYNCED))?;
    let mut quiet = |_| {};
    let mut watch = super::watch(&mut quiet);
    let mut ends = BTreeMap::new();
    for name in place::stream_dirs(disk, root)? {
        let looked = stream::look(disk, root, &name, &mut watch)?;
        if let (Ok(name), Some(last)) = (Name::new(&name), looked.parts.last()) {
            // Later segments were durable before anything was stored in them.
            let end = last.segment.next.saturating_add(last.segment.room());
            ends.insert(name, end);
        }
    }
    sync::write(disk, root, &ends)
}
