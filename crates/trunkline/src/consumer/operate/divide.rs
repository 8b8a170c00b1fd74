//! Another number of partitions.
//!
//! The members are told to give up what they own, as for a rebalance, so that nothing runs twice. Then
//! one commit closes every partition and makes the new ones; whoever did not listen owns nothing any
//! more from then on. What was settled is found where it was written, by
//! [`Earlier`](super::super::ordered::earlier::Earlier).

use std::collections::BTreeMap;

use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::engine::{ConsumerRef, Expectation, Op, Rev};
use trunkline_core::{Error, ErrorKind, Name, Result};

use super::super::ordered::TTL;
use super::super::ordered::earlier::is_abandoned;
use super::super::ordered::record::{
    DIVIDING, Definition, Keys, Mode, Owner, Ownership, Record as _,
};
use super::super::ordered::store::{Known, Store};
use super::super::partitions;
use super::super::retry::LONGEST_DELAY;
use super::{Control, LOOK_EVERY};
use crate::bus::Bus;

/// How often others may get in between.
const TRIES: usize = 10;

/// A consumer that was divided into other partitions, on one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Divided {
    /// The stream.
    pub stream: Name,
    /// How many partitions it had.
    pub from: u16,
    /// How many it has: as many as before if nothing had to be done.
    pub to: u16,
}

impl Bus {
    /// Divides the keys of a consumer into another number of partitions: a power of two from 1 to 256.
    ///
    /// Members may run meanwhile. They start nothing more, finish what they run and begin again with
    /// the new partitions; nothing that is done is run again, and every key stays in order. What still
    /// runs after this bus's drain deadline is cancelled and runs again. A consumer that is paused
    /// stays so.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for another number, [`ErrorKind::NoSuchConsumer`],
    /// [`ErrorKind::Unsupported`] for a consumer that gives its events to whoever is free,
    /// [`ErrorKind::OverLimit`] when the engine cannot close so many partitions with one commit,
    /// [`ErrorKind::Conflict`] when others reset it or kept changing it; and the engine's own.
    pub async fn divide_consumer(&self, name: &Name, partitions: u16) -> Result<Vec<Divided>> {
        partitions::check(partitions)?;
        let mut all = self.of_name(name).await?;
        all.retain(|(_, control)| control.definition.0.mode == Mode::Ordered);
        if all.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "consumer {name} gives its events to whoever is free and has no partitions; start more \
                     members, or let them run more handlers at once"
                ),
            ));
        }
        let mut divided = Vec::with_capacity(all.len());
        for (at, control) in all {
            divided.push(self.divide_ordered(&at, &control, partitions).await?);
        }
        Ok(divided)
    }

    async fn divide_ordered(
        &self,
        at: &ConsumerRef,
        control: &Control,
        partitions: u16,
    ) -> Result<Divided> {
        let (first, _) = &control.definition;
        let limit = self.inner.engine.limits().max_batch;
        if usize::from(first.partitions) + 1 > limit {
            return Err(Error::new(
                ErrorKind::OverLimit,
                format!(
                    "consumer {} has {} partitions, which end with one commit, and this engine takes {limit} \
                     changes at once; raise its limit",
                    at.consumer, first.partitions
                ),
            ));
        }
        let divided = self.divide_within(at, first, partitions).await;
        // Whatever came of it, nobody is left waiting; one that was divided waits no more.
        let resumed = match &divided {
            Ok(divided) if divided.from != divided.to => Ok(()),
            _ => self.hold(at, false).await.map(drop),
        };
        divided.and_then(|divided| resumed.map(|()| divided))
    }

    async fn divide_within(
        &self,
        at: &ConsumerRef,
        first: &Definition,
        partitions: u16,
    ) -> Result<Divided> {
        let divided = |from| Divided {
            stream: at.stream.clone(),
            from,
            to: partitions,
        };
        if first.partitions == partitions {
            return Ok(divided(partitions));
        }
        for _ in 0..TRIES {
            let rev = self.hold(at, true).await?;
            // Somebody else divided it, or let it go on.
            let Some(control) = self.quiet(at, rev).await? else {
                continue;
            };
            let (now, _) = &control.definition;
            if now.generation != first.generation {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("consumer {} was reset meanwhile; try again", at.consumer),
                ));
            }
            // Somebody else was faster.
            if now.partitions == partitions {
                return Ok(divided(partitions));
            }
            let from = now.partitions;
            let ops = divide(&Keys::new(&at.consumer, &at.stream), &control, partitions)?;
            let store = self.store();
            match store.commit(Store::commit_id(), Vec::new(), ops).await? {
                Known::Done(_) | Known::DoneBefore => return Ok(divided(from)),
                Known::Conflict => {}
            }
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "consumer {} keeps being changed by others; try again",
                at.consumer
            ),
        ))
    }

    /// Tells the members to give up what they own, or that they need not any more. Gives the revision
    /// that says so.
    async fn hold(&self, at: &ConsumerRef, holds: bool) -> Result<Rev> {
        let key = Keys::new(&at.consumer, &at.stream).definition()?;
        let change = |entry: Option<&trunkline_core::engine::Entry>| {
            let entry = entry.ok_or_else(|| deleted(at))?;
            let mut definition = Definition::decode(&key, &entry.value)?;
            if definition.is_being_divided() == holds {
                return Ok(None);
            }
            match holds {
                true => definition.paused.push(DIVIDING.into()),
                false => definition.paused.retain(|reason| reason != DIVIDING),
            }
            definition.encode().map(Some)
        };
        let rev = self.store().update_surely(&key, change).await?;
        Ok(rev.unwrap_or(0))
    }

    /// Waits until no member that lives owns anything, or until that takes too long; none if they
    /// need not give up anything any more.
    async fn quiet(&self, at: &ConsumerRef, rev: Rev) -> Result<Option<Control>> {
        let end = Instant::now() + self.inner.settings.drain_deadline.min(LONGEST_DELAY);
        // The last heartbeat of each member, and when it was first seen.
        let mut heard: BTreeMap<SmolStr, (Rev, Instant)> = BTreeMap::new();
        loop {
            let known = self.known_consumers().await?;
            let found = known.into_iter().find(|(known, _)| known == at);
            let (_, control) = found.ok_or_else(|| deleted(at))?;
            let (definition, now_rev) = &control.definition;
            if *now_rev > rev && !definition.is_being_divided() {
                return Ok(None);
            }
            let now = Instant::now();
            for (id, _, rev, _) in &control.members {
                let last = heard.entry(id.clone()).or_insert((*rev, now));
                if last.0 != *rev {
                    *last = (*rev, now);
                }
            }
            let layout = definition.layout();
            let waits = control.members.iter().any(|(id, heartbeat, ..)| {
                let lives = heard
                    .get(id)
                    .is_some_and(|(_, since)| now.duration_since(*since) < TTL);
                let owns = |((generation, partitions, _), (owner, _)): (
                    &(u64, u16, u16),
                    &(Owner, Rev),
                )| {
                    (*generation, *partitions) == (layout.generation, layout.partitions)
                        && owner.state == Ownership::Owned
                        && owner.member == *id
                };
                lives && (heartbeat.definition < rev || control.owners.iter().any(owns))
            });
            if !waits || now >= end {
                return Ok(Some(control));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// What has to be written, all of it or nothing, so that a consumer is divided anew.
fn divide(keys: &Keys, control: &Control, partitions: u16) -> Result<Vec<Op>> {
    let (old, rev) = &control.definition;
    let layout = old.layout();
    let owner = |layout: super::Layout, partition| {
        let at = (layout.generation, layout.partitions, partition);
        control.owners.get(&at)
    };
    let mut ops = Vec::with_capacity(usize::from(layout.partitions) + 1);
    for partition in 0..layout.partitions {
        let known = owner(layout, partition);
        let of = |layout, partition| owner(layout, partition).map(|(owner, _)| owner);
        let closed = Owner {
            state: Ownership::Closed,
            member: SmolStr::default(),
            claim: SmolStr::default(),
            abandoned: is_abandoned(old, partition, of),
        };
        ops.push(Op::Put {
            key: keys.owner(layout, partition)?,
            value: closed.encode()?,
            expect: known.map_or(Expectation::Absent, |(_, rev)| Expectation::Rev(*rev)),
            ttl: None,
        });
    }
    let mut new = Definition {
        partitions,
        ..old.clone()
    };
    // One that comes back goes on with what it had written.
    new.earlier.retain(|earlier| *earlier != partitions);
    new.earlier.push(old.partitions);
    new.paused.retain(|reason| reason != DIVIDING);
    ops.push(Op::Put {
        key: keys.definition()?,
        value: new.encode()?,
        expect: Expectation::Rev(*rev),
        ttl: None,
    });
    Ok(ops)
}

fn deleted(at: &ConsumerRef) -> Error {
    Error::new(
        ErrorKind::NoSuchConsumer,
        format!("consumer {} was deleted", at.consumer),
    )
}
