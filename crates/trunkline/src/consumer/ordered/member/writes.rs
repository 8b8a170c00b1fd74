//! What partitions write, under their fences.
//!
//! What is more than a line of progress goes together with that of the other partitions of the member,
//! one group of them at a time: a commit costs an engine about the same whether one event of it left
//! the main flow or a hundred did, and where it is a batch of a server it costs milliseconds.
//!
//! ```text
//! progress alone ─────────────────────────────► a commit of its own
//! changes of this partition ──┐
//! changes of that partition ──┴─► a group ────► one commit ── a fence failed ──► each by itself
//! ```

use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

use tokio::time::Instant;
use trunkline_core::Result;
use trunkline_core::engine::{Committed, Expectation, Rev};

use super::super::claim::Place;
use super::super::partition::{Next, Write};
use super::super::record::Layout;
use super::super::store::{Known, Store};
use super::Member;
use super::runs::RunId;
use super::tasks::Done;

/// Changes and bytes of values in one group, after which no other partition joins it.
const MAX_OPS: usize = 400;
const MAX_BYTES: usize = 512 << 10;

/// Writes of several partitions that are made together.
#[derive(Debug, Default)]
pub(super) struct Group {
    is_under_way: bool,
    /// The partition whose write joined one last. The next begins behind it, so that none waits for ever.
    last: u16,
}

/// How a write was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Alone,
    InGroup,
}

/// The write of one partition.
struct Fenced {
    partition: u16,
    epoch: Rev,
    write: Write,
}

impl Member {
    /// Writes what partitions have to write, one write of each at a time.
    pub(super) fn write(&mut self, now: Instant) -> Result<()> {
        let Some(layout) = self.definition.as_ref().map(super::Definition::layout) else {
            return Ok(());
        };
        let (mut group, mut ops, mut bytes) = (Vec::new(), 0, 0);
        let last = self.group.last;
        for range in [(Excluded(last), Unbounded), (Unbounded, Included(last))] {
            for partition in self
                .partitions
                .range_mut::<u16, _>(range)
                .map(|(_, one)| one)
            {
                let waits = self.group.is_under_way || ops >= MAX_OPS || bytes >= MAX_BYTES;
                if waits && partition.has_changes() {
                    continue;
                }
                let Some(write) = partition.write(now, Store::commit_id)? else {
                    continue;
                };
                let one = Fenced {
                    partition: partition.id,
                    epoch: partition.epoch,
                    write,
                };
                if let [_] = one.write.ops[..] {
                    let place = Arc::clone(&self.place);
                    self.tasks.spawn(async move {
                        let stored = alone(&place, layout, one).await;
                        Done::Written(Kind::Alone, stored.map(|stored| vec![stored]))
                    });
                    continue;
                }
                ops += one.write.ops.len();
                bytes += one.write.bytes;
                group.push(one);
            }
        }
        if let Some(last) = group.last() {
            self.group = Group {
                is_under_way: true,
                last: last.partition,
            };
            let place = Arc::clone(&self.place);
            self.tasks.spawn(async move {
                let stored = together(&place, layout, group).await;
                Done::Written(Kind::InGroup, stored)
            });
        }
        Ok(())
    }

    pub(super) fn all_written(
        &mut self,
        kind: Kind,
        stored: Result<Vec<(u16, Rev, bool)>>,
        now: Instant,
    ) -> Result<()> {
        self.group.is_under_way &= kind != Kind::InGroup;
        let mut stored = stored?.into_iter();
        stored.try_for_each(|(id, epoch, owned)| self.written(id, epoch, owned, now))
    }

    fn written(&mut self, id: u16, epoch: Rev, owned: bool, now: Instant) -> Result<()> {
        let Some(partition) = self
            .partitions
            .get_mut(&id)
            .filter(|one| one.epoch == epoch)
        else {
            return Ok(());
        };
        if !owned {
            tracing::warn!(
                consumer = %self.shared.name, stream = %self.place.stream, partition = id,
                "a partition was taken over by another member"
            );
            self.lose(id);
            return Ok(());
        }
        let stopping = partition.stopping;
        let possible = partition.written(now)?;
        if stopping {
            self.runs.forget(id);
        }
        for next in possible {
            let run = |seq| RunId {
                partition: id,
                epoch,
                seq,
            };
            match next {
                Next::Run(started, event) => {
                    self.runs.run(run(started.seq), started, event, now);
                }
                Next::Bury(seq) => self.bury(run(seq)),
                Next::Unbury { seq, entry } => self.unbury(seq, entry),
            }
        }
        Ok(())
    }
}

/// All of them or none, in one commit; if one of the partitions is not owned any more, each by itself.
async fn together(
    place: &Place,
    layout: Layout,
    group: Vec<Fenced>,
) -> Result<Vec<(u16, Rev, bool)>> {
    if group.len() > 1 {
        let fence = |one: &Fenced| {
            let owner = place.keys.owner(layout, one.partition)?;
            Ok((owner, Expectation::Rev(one.epoch)))
        };
        let fences = group.iter().map(fence).collect::<Result<_>>()?;
        let ops = group.iter().flat_map(|one| one.write.ops.clone()).collect();
        let answer = place.store.commit(Store::commit_id(), fences, ops).await?;
        if answer != Known::Conflict {
            let stored = group.iter().map(|one| (one.partition, one.epoch, true));
            return Ok(stored.collect());
        }
    }
    let mut stored = Vec::with_capacity(group.len());
    for one in group {
        stored.push(alone(place, layout, one).await?);
    }
    Ok(stored)
}

/// Writes under the fence of a partition; whether that was still owned. How a dead letter stands
/// is left as it is if an operator has changed it since it was looked at.
async fn alone(place: &Place, layout: Layout, one: Fenced) -> Result<(u16, Rev, bool)> {
    let Fenced {
        partition,
        epoch,
        mut write,
    } = one;
    let owner = place.keys.owner(layout, partition)?;
    loop {
        let fence = vec![(owner.clone(), Expectation::Rev(epoch))];
        let Write { id, ops, .. } = &write;
        let outcome = place.store.outcome(id.clone(), fence, ops.clone()).await?;
        let Committed::Conflict { key, .. } = outcome else {
            return Ok((partition, epoch, true));
        };
        let before = write.ops.len();
        write.ops.retain(|op| *op.key() != key);
        if key == owner || write.ops.len() == before {
            return Ok((partition, epoch, false));
        }
        write.id = Store::commit_id();
    }
}
