//! Changing a consumer as a whole, while nothing of it runs.
//!
//! The members are told to give up what they own, as for a rebalance, so that nothing runs twice and
//! nothing of the old is written any more. Then one commit closes every partition and says what the
//! consumer is from then on; whoever did not listen owns nothing any more.

use std::collections::BTreeMap;

use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::engine::{ConsumerRef, Entry, Expectation, Op, Position, Rev};
use trunkline_core::{Error, ErrorKind, Result};

use super::super::ordered::TTL;
use super::super::ordered::record::{
    CHANGING, Definition, Keys, Layout, Owner, Ownership, Record as _,
};
use super::super::ordered::store::{Known, Store};
use super::super::retry::LONGEST_DELAY;
use super::divide::divide;
use super::reset::{Beside, reset};
use super::{Control, LOOK_EVERY};
use crate::bus::Bus;

/// How often others may get in between.
const TRIES: usize = 10;

/// What a consumer is changed to.
pub(super) enum Change {
    /// Into that many partitions.
    Divide(u16),
    /// From there on it begins anew.
    Reset(Position, Beside),
}

impl Change {
    /// What is to be written; none if there is nothing to do.
    async fn of(&self, store: &Store, at: &ConsumerRef, now: &Control) -> Result<Option<Vec<Op>>> {
        match self {
            // Somebody else may have been faster.
            Change::Divide(into) if now.definition.0.partitions == *into => Ok(None),
            Change::Divide(into) => divide(at, now, *into).map(Some),
            Change::Reset(to, beside) => reset(store, at, now, *to, *beside).await.map(Some),
        }
    }
}

/// Which members live: those whose heartbeats change while one looks.
#[derive(Default)]
pub(super) struct Heard(BTreeMap<SmolStr, (Rev, Instant)>);

impl Heard {
    /// Takes note of the heartbeats that there are now.
    pub(super) fn hear(&mut self, control: &Control, now: Instant) {
        for (id, _, rev, _) in &control.members {
            let last = self.0.entry(id.clone()).or_insert((*rev, now));
            if last.0 != *rev {
                *last = (*rev, now);
            }
        }
    }

    /// Whether that member has said something within the time after which its lease is over.
    pub(super) fn lives(&self, member: &str, now: Instant) -> bool {
        let heard = self.0.get(member);
        heard.is_some_and(|(_, since)| now.duration_since(*since) < TTL)
    }
}

impl Bus {
    /// Changes a consumer on one stream once its members have given up everything, or after this bus's
    /// drain deadline. Gives how it was before; none if there was nothing to do.
    pub(super) async fn change_at_rest(
        &self,
        at: &ConsumerRef,
        control: &Control,
        change: Change,
    ) -> Result<Option<Control>> {
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
        let changed = self.change_held(at, first.generation, &change).await;
        // Whatever came of it, nobody is left waiting; what was changed waits no more.
        let resumed = match changed {
            Ok(Some(_)) => Ok(()),
            _ => self.hold(at, false).await.map(drop),
        };
        changed.and_then(|changed| resumed.map(|()| changed))
    }

    async fn change_held(
        &self,
        at: &ConsumerRef,
        generation: u64,
        change: &Change,
    ) -> Result<Option<Control>> {
        let store = self.store();
        for _ in 0..TRIES {
            let rev = self.hold(at, true).await?;
            // Somebody else changed it, or let it go on.
            let Some(control) = self.quiet(at, rev).await? else {
                continue;
            };
            if control.definition.0.generation != generation {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("consumer {} was reset meanwhile; try again", at.consumer),
                ));
            }
            let Some(ops) = change.of(&store, at, &control).await? else {
                return Ok(None);
            };
            match store.commit(Store::commit_id(), Vec::new(), ops).await? {
                Known::Done(_) | Known::DoneBefore => return Ok(Some(control)),
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
        let change = |entry: Option<&Entry>| {
            let entry = entry.ok_or_else(|| deleted(at))?;
            let mut definition = Definition::decode(&key, &entry.value)?;
            if definition.is_changing() == holds {
                return Ok(None);
            }
            match holds {
                true => definition.paused.push(CHANGING.into()),
                false => definition.paused.retain(|reason| reason != CHANGING),
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
        let mut heard = Heard::default();
        loop {
            let control = self.control_of(at, rev).await?.ok_or_else(|| deleted(at))?;
            let (definition, now_rev) = &control.definition;
            if *now_rev > rev && !definition.is_changing() {
                return Ok(None);
            }
            let now = Instant::now();
            heard.hear(&control, now);
            let layout = definition.layout();
            let owns = |member: &SmolStr| {
                (0..layout.partitions).any(|partition| {
                    let owner = control.owner(layout, partition);
                    owner.is_some_and(|(owner, _)| {
                        owner.state == Ownership::Owned && owner.member == *member
                    })
                })
            };
            let waits = control.members.iter().any(|(id, heartbeat, ..)| {
                heard.lives(id, now) && (heartbeat.definition < rev || owns(id))
            });
            if !waits || now >= end {
                return Ok(Some(control));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Control {
    pub(super) fn owner(&self, layout: Layout, partition: u16) -> Option<&(Owner, Rev)> {
        self.owners
            .get(&(layout.generation, layout.partitions, partition))
    }

    /// The newest revision in it: whoever gave a partition up has written everything before.
    pub(super) fn latest(&self) -> Rev {
        let owners = self.owners.values().map(|(_, rev)| *rev);
        owners.fold(self.definition.1, Rev::max)
    }

    /// What ends every ownership, so that nobody can write for it any more; `abandons` says of which
    /// partitions nobody has said how far they got. Has room for one more.
    pub(super) fn close(&self, keys: &Keys, abandons: impl Fn(u16) -> bool) -> Result<Vec<Op>> {
        let layout = self.definition.0.layout();
        let mut ops = Vec::with_capacity(usize::from(layout.partitions) + 1);
        for partition in 0..layout.partitions {
            let closed = Owner {
                state: Ownership::Closed,
                member: SmolStr::default(),
                claim: SmolStr::default(),
                abandoned: abandons(partition),
            };
            let known = self.owner(layout, partition);
            ops.push(Op::Put {
                key: keys.owner(layout, partition)?,
                value: closed.encode()?,
                expect: known.map_or(Expectation::Absent, |(_, rev)| Expectation::Rev(*rev)),
                ttl: None,
            });
        }
        Ok(ops)
    }

    /// What says what the consumer is from now on.
    pub(super) fn define(&self, keys: &Keys, mut new: Definition) -> Result<Op> {
        new.paused.retain(|reason| reason != CHANGING);
        Ok(Op::Put {
            key: keys.definition()?,
            value: new.encode()?,
            expect: Expectation::Rev(self.definition.1),
            ttl: None,
        })
    }
}

fn deleted(at: &ConsumerRef) -> Error {
    Error::new(
        ErrorKind::NoSuchConsumer,
        format!("consumer {} was deleted", at.consumer),
    )
}
