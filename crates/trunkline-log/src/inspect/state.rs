//! Streams, consumers and keys: the journal, its snapshots and the files of values.

use std::path::Path;
use std::sync::Arc;

use trunkline_core::Result;

use super::place::STATE;
use super::stream::torn;
use super::{Finding, Lost, Remedy, Severity, Watch};
use crate::disk::Disk;
use crate::frame::pieces::Tail;
use crate::journal::State;
use crate::journal::look::{Fault, FaultKind, Look, Reading};

/// Reads all of the state, and what is to be told of it.
pub(super) fn verify(
    disk: &Arc<dyn Disk>,
    root: &Path,
    is_live: bool,
    watch: &mut Watch<'_>,
) -> Result<(Vec<Finding>, Arc<State>)> {
    let look = look(&**disk, root, watch)?;
    Ok((findings(&look, root, is_live), Arc::clone(&look.state)))
}

pub(super) fn look(disk: &dyn Disk, root: &Path, watch: &mut Watch<'_>) -> Result<Look> {
    Look::at(disk, root, true, &mut |reading| match reading {
        Reading::File(len) => watch.begin(len),
        Reading::Bytes(bytes) => watch.read(bytes),
        Reading::End => watch.finish(),
    })
}

/// What is to be told of the state.
pub(super) fn findings(look: &Look, root: &Path, is_live: bool) -> Vec<Finding> {
    let below = |path: &Path| path.strip_prefix(root).unwrap_or(path).to_owned();
    let mut found: Vec<Finding> = look
        .faults
        .iter()
        .map(|fault| about(fault, look, root))
        .collect();
    if let Tail::Torn { bytes } = look.tail
        && !look.faults.iter().any(is_of_journals)
    {
        let (number, end) = look.reached;
        let file = Path::new(STATE).join(format!("{number:020}.journal"));
        found.push(torn(&file, end, bytes, is_live));
    }
    if !is_live {
        for path in &look.leftovers {
            let what = "nothing needs this file any more";
            found.push(Finding::new(Severity::Leftover, below(path), what));
        }
    }
    let topology = look.state.topology();
    for (stream, consumer) in topology.consumers.keys() {
        if !topology.streams.contains_key(stream) {
            let what = format!("consumer {consumer} is of stream {stream}, which is not known");
            found.push(
                Finding::new(Severity::Damage, STATE, what)
                    .means("the directory does not open; repair removes the consumer"),
            );
        }
    }
    found
}

fn is_of_journals(fault: &Fault) -> bool {
    matches!(
        fault.kind,
        FaultKind::Journal { .. } | FaultKind::Missing { .. }
    )
}

fn about(fault: &Fault, look: &Look, root: &Path) -> Finding {
    let file = fault.path.strip_prefix(root).unwrap_or(&fault.path);
    let finding = Finding::new(Severity::Damage, file, &fault.what).at(fault.offset);
    match &fault.kind {
        FaultKind::Header { .. } if fault.offset > 0 => finding.means(what_follows(look)),
        FaultKind::Header { .. } => finding.means("what is in the file can still be read"),
        FaultKind::Snapshot { spare: true, .. } => {
            finding.means("nothing is lost: older files say the same")
        }
        FaultKind::Snapshot { .. } => finding.means(
            "streams, consumers or keys that stood in this part are forgotten; the journals since are applied to the rest",
        ),
        FaultKind::Journal { .. } | FaultKind::Missing { .. } => {
            finding.means(what_follows(look))
        }
        FaultKind::Values { keys, .. } => finding.means(format!(
            "the values of {keys} keys are in it; those that cannot be read are removed with their keys"
        )),
        FaultKind::Value { .. } => finding.means("repair removes the key; it cannot be read"),
    }
}

/// What the end of the journal before its end means.
fn what_follows(look: &Look) -> String {
    let mut text = "what was written here and later is forgotten: events that consumers settled since come again, keys are as they were, and revisions are given again".to_owned();
    if look.dropped.records > 0 {
        let about: Vec<&str> = look.dropped.about.iter().map(String::as_str).collect();
        let records = look.dropped.records;
        text.push_str(&format!(
            "; {records} later records can be read and cannot be applied ({})",
            about.join(", ")
        ));
    }
    text
}

/// That nothing of the state is there, although there are streams.
pub(super) fn forgotten(names: &[String]) -> Option<Finding> {
    let first = names.first()?;
    Some(
        Finding::new(Severity::Damage, STATE, "the journal is missing")
            .means(format!(
                "{} streams are there and nobody knows them, {first} among them; the directory was probably copied in part",
                names.len()
            ))
            .losing(None::<Lost>)
            .needs(Remedy::Restore),
    )
}
