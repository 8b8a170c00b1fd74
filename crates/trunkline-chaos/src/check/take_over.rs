//! How long work lay still after its worker was killed. It is measured and not judged: how fast a machine
//! is says nothing about the contract.

use std::collections::BTreeMap;

use serde::Serialize;
use trunkline::core::key::slot;

use super::causes::Causes;
use super::{Evidence, Run};
use crate::record::{Consumer, Kind, Micros, Publishing, Role, Who};

/// The partitions of a consumer, unless its code says otherwise.
const PARTITIONS: u8 = 16;

/// What was observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TakeOvers {
    /// Partitions of killed workers that another was seen to work for.
    pub(crate) observed: usize,
    /// The longest with nothing else wrong meanwhile, in milliseconds.
    pub(crate) longest_alone_ms: Option<u64>,
    /// The longest of all, in milliseconds.
    pub(crate) longest_ms: Option<u64>,
}

/// For each partition of a worker that was killed: from the kill, or from when there was something to be
/// done if that is later, to the first run under another owner.
pub(super) fn observed(evidence: &Evidence, runs: &[Run]) -> TakeOvers {
    let causes = Causes::of(evidence);
    let mut stored_at: BTreeMap<&str, Micros> = BTreeMap::new();
    for told in &evidence.published {
        if let Publishing::Ack { id, .. } = &told.what {
            stored_at.insert(id, told.at);
        }
    }
    let mut partitions: BTreeMap<u8, Vec<&Run>> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.consumer == Consumer::Ordered) {
        let partition = slot(&run.lane) % PARTITIONS;
        partitions.entry(partition).or_default().push(run);
    }
    let mut seen = TakeOvers::default();
    for kill in &evidence.faults {
        let Some(who) = kill.who else { continue };
        if kill.kind != Kind::Kill || who.role != Role::Worker {
            continue;
        }
        for runs in partitions.values() {
            let Some((ms, at)) = taken_over(runs, who, kill.from, &stored_at) else {
                continue;
            };
            seen.observed += 1;
            seen.longest_ms = seen.longest_ms.max(Some(ms));
            if !causes.others(who, kill.from, at) {
                seen.longest_alone_ms = seen.longest_alone_ms.max(Some(ms));
            }
        }
    }
    seen
}

fn taken_over(
    runs: &[&Run],
    who: Who,
    killed: Micros,
    stored_at: &BTreeMap<&str, Micros>,
) -> Option<(u64, Micros)> {
    let before = runs.partition_point(|run| run.began < killed);
    let owner = runs[..before].iter().max_by_key(|run| run.epoch)?;
    if owner.who != who {
        return None;
    }
    // A retry waits for its delay, whoever has it; that is a second at most.
    let first = runs[before..].iter().find(|run| run.epoch > owner.epoch)?;
    let stored = stored_at.get(first.id.as_str()).copied().unwrap_or(0);
    let ms = first.began.saturating_sub(killed.max(stored)) / 1_000;
    Some((ms, first.began))
}
