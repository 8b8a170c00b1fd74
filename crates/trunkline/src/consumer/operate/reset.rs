//! Beginning anew.

use std::collections::BTreeMap;

use smol_str::SmolStr;
use trunkline_core::engine::{Change, ConsumerRef, ConsumerSpec, Expectation, Op, Position, Rev};
use trunkline_core::{Error, ErrorKind, Result};

use super::super::ordered::record::{Definition, Keys, Owner, Ownership, Record as _};
use super::super::ordered::store::{Known, Store};
use super::super::ordered::{TTL, start};
use super::{Control, remove};
use crate::bus::Bus;

/// What a reset does with events that left the main flow and are not settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beside {
    /// The reset is refused if there are any.
    #[default]
    Refuse,
    /// They are forgotten; what the reset goes back to is handled again.
    Discard,
}

impl Bus {
    /// The members whose heartbeats change while one looks.
    async fn live_members(&self, control: &Control) -> Result<Vec<SmolStr>> {
        if control.members.is_empty() {
            return Ok(Vec::new());
        }
        let before: BTreeMap<SmolStr, Rev> = control
            .members
            .iter()
            .map(|(id, _, rev, _)| (id.clone(), *rev))
            .collect();
        tokio::time::sleep(TTL).await;
        let now = self.known_consumers().await?;
        let members = now.iter().flat_map(|(_, control)| &control.members);
        Ok(members
            .filter(|(id, _, rev, _)| before.get(id).is_some_and(|before| before != rev))
            .map(|(id, ..)| id.clone())
            .collect())
    }

    pub(super) async fn reset_ordered(
        &self,
        at: &ConsumerRef,
        control: Control,
        to: Position,
        beside: Beside,
    ) -> Result<()> {
        let store = self.store();
        let keys = Keys::new(&at.consumer, &at.stream);
        let (old, rev) = control.definition;
        let layout = old.layout();
        // Whoever owned a partition owns it no more from the commit on; so nothing of the old
        // generation can be written after it.
        let mut ops = Vec::with_capacity(usize::from(layout.partitions) + 1);
        for partition in 0..layout.partitions {
            let known = control
                .owners
                .get(&(layout.generation, layout.partitions, partition));
            let closed = Owner {
                state: Ownership::Closed,
                member: SmolStr::default(),
                claim: SmolStr::default(),
                abandoned: false,
            };
            ops.push(Op::Put {
                key: keys.owner(layout, partition)?,
                value: closed.encode()?,
                expect: known.map_or(Expectation::Absent, |(_, rev)| Expectation::Rev(*rev)),
                ttl: None,
            });
        }
        let live = store.all(&keys.sides(layout.generation)?, rev).await?;
        if !live.is_empty() && beside == Beside::Refuse {
            return Err(in_use(at, live.len()));
        }
        let new = Definition {
            generation: old.generation + 1,
            earlier: Vec::new(),
            start: start(&store, &at.stream, &old.filters()?, to).await?,
            ..old
        };
        ops.push(Op::Put {
            key: keys.definition()?,
            value: new.encode()?,
            expect: Expectation::Rev(rev),
            ttl: None,
        });
        match store.commit(Store::commit_id(), Vec::new(), ops).await? {
            Known::Conflict => Err(Error::new(
                ErrorKind::Conflict,
                format!("consumer {} changed meanwhile; try again", at.consumer),
            )),
            Known::Done(_) | Known::DoneBefore => {
                let old = store.all(&keys.generation(layout.generation)?, 0).await?;
                let keys: Vec<_> = old.into_iter().map(|entry| entry.key).collect();
                remove(&store, &keys).await
            }
        }
    }

    pub(super) async fn reset_shared(
        &self,
        at: &ConsumerRef,
        control: Control,
        to: Position,
        beside: Beside,
    ) -> Result<()> {
        let (definition, _) = &control.definition;
        let store = self.store();
        let keys = Keys::new(&at.consumer, &at.stream);
        let live = store.all(&keys.sides(definition.generation)?, 0).await?;
        if !live.is_empty() && beside == Beside::Refuse {
            return Err(in_use(at, live.len()));
        }
        let members = self.live_members(&control).await?;
        if !members.is_empty() {
            return Err(Error::new(
                ErrorKind::InUse,
                format!(
                    "consumer {} shares its events among {} live members; stop them before it is reset",
                    at.consumer,
                    members.len()
                ),
            ));
        }
        let removed: Vec<_> = store
            .all(&keys.generation(definition.generation)?, 0)
            .await?
            .into_iter()
            .map(|entry| entry.key)
            .collect();
        remove(&store, &removed).await?;
        let topology = self.inner.engine.topology();
        let inspection = topology.inspect().await?;
        let found = inspection
            .consumers
            .into_iter()
            .find(|one| one.spec.at == *at);
        let Some(state) = found else {
            return Ok(());
        };
        let spec = ConsumerSpec {
            start: to,
            ..state.spec
        };
        topology
            .apply(vec![
                Change::DeleteConsumer(at.clone()),
                Change::CreateConsumer(spec),
            ])
            .await
    }
}

fn in_use(at: &ConsumerRef, beside: usize) -> Error {
    Error::new(
        ErrorKind::InUse,
        format!(
            "{beside} events of consumer {} wait beside stream {} for another attempt; let them end, or reset \
             it and discard them",
            at.consumer, at.stream
        ),
    )
}
