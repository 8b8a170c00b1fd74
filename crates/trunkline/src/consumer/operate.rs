//! What operators see of consumers, and what they can do to them.

mod by_engine;
mod change;
mod divide;
mod reset;
mod status;

use std::collections::BTreeMap;
use std::time::Duration;

use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::engine::{
    Backlog, Change, ConsumerRef, ConsumerSpec, ConsumerState, Expectation, Op, Position, Rev,
    StateKey,
};
use trunkline_core::{Error, ErrorKind, Name, Result, Timestamp};

use super::ordered::record::{
    About, CONTROL, Definition, Heartbeat, Keys, Layout, Mode, Owner, Record as _,
};
use super::ordered::store::Store;
use crate::bus::Bus;
use change::Heard;

pub use divide::Divided;
pub use reset::Beside;
pub use status::{ConsumerStatus, MemberStatus, WaitingFor};

/// How long a pause waits for members to confirm it: longer than any lease.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(10);
/// How often it looks whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Side records that a reset removes with one commit.
const REMOVED_AT_ONCE: usize = 100;

impl Bus {
    /// How every consumer of this bus stands, by name and stream.
    ///
    /// # Errors
    /// The engine's own, and [`ErrorKind::WrongVersion`] or [`ErrorKind::Damaged`] for records that
    /// cannot be read.
    pub async fn consumer_status(&self) -> Result<Vec<ConsumerStatus>> {
        let known = self.known_consumers(0).await?;
        let inspection = self.inner.engine.topology().inspect().await?;
        let mut all = Vec::new();
        for (at, control) in known {
            let backlog = inspection
                .consumers
                .iter()
                .find(|state| state.spec.at == at)
                .map(|state| state.backlog);
            all.push(self.status_of(at, control, backlog).await?);
        }
        // What whoever is free handles may be known to the engine alone.
        for state in inspection.consumers {
            let at = &state.spec.at;
            let is_it = |one: &ConsumerStatus| one.name == at.consumer && one.stream == at.stream;
            if !all.iter().any(is_it) {
                all.push(self.status_by_engine(state).await?);
            }
        }
        all.sort_by(|one, other| (&one.name, &one.stream).cmp(&(&other.name, &other.stream)));
        Ok(all)
    }

    /// Stops a consumer's members from starting anything, until it is resumed for the same reason.
    ///
    /// What runs is let be. It returns when every member has confirmed, or was silent for so long (3 s)
    /// that its lease is over, and lists those that have: from then on none starts anything.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchConsumer`]; [`ErrorKind::TimedOut`] when a member that lives has not confirmed
    /// after 10 s: the pause is stored, and may be called again to wait on; and the engine's own.
    pub async fn pause_consumer(&self, name: &Name, reason: &str) -> Result<Vec<MemberStatus>> {
        self.redefine(name, |definition| {
            let new = !definition.paused.iter().any(|known| known == reason);
            if new {
                definition.paused.push(reason.into());
            }
            new
        })
        .await
    }

    /// Takes back a pause for that reason, or for every reason. Waits as
    /// [`pause_consumer`](Self::pause_consumer) does.
    ///
    /// # Errors
    /// As there.
    pub async fn resume_consumer(
        &self,
        name: &Name,
        reason: Option<&str>,
    ) -> Result<Vec<MemberStatus>> {
        self.redefine(name, |definition| {
            let before = definition.paused.len();
            definition
                .paused
                .retain(|known| reason.is_some_and(|reason| known != reason));
            definition.paused.len() < before
        })
        .await
    }

    /// Begins anew: everything from `to` on is handled again, whatever became of it before.
    ///
    /// Members of a consumer that keeps keys in order may run meanwhile: they start nothing more, finish
    /// what they run, for as long as this bus's drain deadline at most, and begin with the new start. Once
    /// this returns nothing starts by the old one. Members that share events are to be stopped before.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchConsumer`]; [`ErrorKind::InUse`] when events are beside the main flow and
    /// `beside` says to refuse, or when members that share events live; [`ErrorKind::OverLimit`] when the
    /// engine cannot close so many partitions with one commit; [`ErrorKind::Conflict`] when others kept
    /// changing it; and the engine's own.
    pub async fn reset_consumer(&self, name: &Name, to: Position, beside: Beside) -> Result<()> {
        let all = self.of_name(name).await?;
        for (at, control) in &all {
            match control.definition.0.mode {
                Mode::Ordered => self.reset_ordered(at, control, to, beside).await?,
                Mode::Shared => self.reset_shared(at, control, to, beside).await?,
            }
        }
        Ok(())
    }

    /// Removes a consumer from one stream, with everything that is known of it but its dead letters.
    /// Members that run notice and end.
    pub(crate) async fn remove_consumer(&self, at: &ConsumerRef) -> Result<()> {
        let store = self.store();
        let keys = Keys::new(&at.consumer, &at.stream);
        let known = self.known_consumers(0).await?;
        let elsewhere = known
            .iter()
            .any(|(known, _)| known.consumer == at.consumer && known.stream != at.stream);
        let control = known.into_iter().find(|(known, _)| known == at);
        let generation = control
            .as_ref()
            .map_or(0, |(_, control)| control.definition.0.generation);
        let ordered = control
            .as_ref()
            .is_some_and(|(_, control)| control.definition.0.mode == Mode::Ordered);
        if !ordered {
            let delete = vec![Change::DeleteConsumer(at.clone())];
            self.inner.engine.topology().apply(delete).await?;
        }
        if let Some((_, control)) = control {
            // With its definition go its owners, so that nobody can write for it any more.
            let mut gone = vec![keys.definition()?];
            // Those of earlier layouts are closed, and may be more than one commit can take.
            let layout = control.definition.0.layout();
            for (generation, partitions, partition) in control.owners.into_keys() {
                let of = Layout {
                    generation,
                    partitions,
                };
                if of == layout {
                    gone.push(keys.owner(layout, partition)?);
                }
            }
            let ops = gone.into_iter().map(delete).collect();
            store.commit(Store::commit_id(), Vec::new(), ops).await?;
        }
        let mut prefixes = vec![keys.root()?, keys.control()?];
        if !elsewhere {
            // One of the same name that is made later has done nothing yet.
            for generation in 0..=generation {
                prefixes.push(super::idempotent::keys(&at.consumer, generation)?);
            }
        }
        for prefix in prefixes {
            let entries = store.all(&prefix, 0).await?;
            let keys: Vec<_> = entries.into_iter().map(|entry| entry.key).collect();
            remove(&store, &keys).await?;
        }
        // After the definition: a member that still lives would make it again.
        if ordered && let Some(gauges) = self.inner.engine.gauges() {
            gauges.remove(at).await?;
        }
        Ok(())
    }

    /// How often a consumer was reset; none if it has no records.
    pub(crate) async fn generation_of(
        &self,
        consumer: &Name,
        stream: &Name,
    ) -> Result<Option<u64>> {
        let key = Keys::new(consumer, stream).definition()?;
        let entry = self.store().get(&key, 0).await?;
        let definition = entry.map(|entry| Definition::decode(&key, &entry.value));
        definition
            .transpose()
            .map(|known| known.map(|known| known.generation))
    }

    /// The ordered consumers, as the engine tells of those that it knows itself.
    pub(crate) async fn ordered_consumers(&self) -> Result<Vec<ConsumerState>> {
        let mut states = Vec::new();
        for (at, control) in self.known_consumers(0).await? {
            if control.definition.0.mode == Mode::Ordered {
                let start = control.definition.0.start;
                let status = self.status_of(at.clone(), control, None).await?;
                states.push(ConsumerState {
                    spec: ConsumerSpec {
                        at,
                        filters: status.filters,
                        start: Position::Seq(start),
                        ack_wait: super::ordered::TTL,
                        max_in_flight: 0,
                    },
                    backlog: Backlog {
                        pending: status.pending_at_most + status.waiting + status.replaying,
                        in_flight: status.running,
                        floor: status.floor,
                        expired_at_most: status.expired_at_most,
                    },
                });
            }
        }
        Ok(states)
    }

    fn store(&self) -> Store {
        Store {
            engine: std::sync::Arc::clone(&self.inner.engine),
            bucket: self.inner.settings.bucket.clone(),
        }
    }

    async fn known_consumers(&self, at_least: Rev) -> Result<Vec<(ConsumerRef, Control)>> {
        let control = StateKey::new(CONTROL)?;
        let entries = self.store().all(&control, at_least).await?;
        let mut known: BTreeMap<(Name, Name), Found> = BTreeMap::new();
        for entry in entries {
            let mut tokens = entry.key.as_str().split('.').skip(1);
            let (Some(consumer), Some(stream)) = (tokens.next(), tokens.next()) else {
                continue;
            };
            let (Ok(consumer), Ok(stream)) = (Name::new(consumer), Name::new(stream)) else {
                continue;
            };
            let keys = Keys::new(&consumer, &stream);
            let about = keys.about(&entry.key);
            let found = known.entry((consumer, stream)).or_default();
            match about {
                Some(About::Definition) => {
                    found.definition =
                        Some((Definition::decode(&entry.key, &entry.value)?, entry.rev));
                }
                Some(About::Member(member)) => {
                    let heartbeat = Heartbeat::decode(&entry.key, &entry.value)?;
                    found.members.push((member, heartbeat, entry.rev, entry.at));
                }
                Some(About::Owner(layout, partition)) => {
                    let owner = Owner::decode(&entry.key, &entry.value)?;
                    let at = (layout.generation, layout.partitions, partition);
                    found.owners.insert(at, (owner, entry.rev));
                }
                None => {}
            }
        }
        let whole = |((consumer, stream), found): (_, Found)| {
            let control = Control {
                definition: found.definition?,
                members: found.members,
                owners: found.owners,
            };
            Some((ConsumerRef { stream, consumer }, control))
        };
        Ok(known.into_iter().filter_map(whole).collect())
    }

    async fn of_name(&self, name: &Name) -> Result<Vec<(ConsumerRef, Control)>> {
        let mut known = self.known_consumers(0).await?;
        let names: Vec<String> = known
            .iter()
            .map(|(at, _)| at.consumer.to_string())
            .collect();
        known.retain(|(at, _)| at.consumer == *name);
        if known.is_empty() {
            return Err(self.without_records(name, &names).await?);
        }
        Ok(known)
    }

    /// Changes what a consumer is, on all its streams, and waits until its members work by it.
    async fn redefine(
        &self,
        name: &Name,
        change: impl Fn(&mut Definition) -> bool,
    ) -> Result<Vec<MemberStatus>> {
        let store = self.store();
        let mut live = Vec::new();
        for (at, _) in self.of_name(name).await? {
            let key = Keys::new(&at.consumer, &at.stream).definition()?;
            let rev = store
                .update_surely(&key, |entry| {
                    let entry = entry.ok_or_else(|| {
                        Error::new(
                            ErrorKind::NoSuchConsumer,
                            format!("consumer {name} was deleted"),
                        )
                    })?;
                    let mut definition = Definition::decode(&key, &entry.value)?;
                    match change(&mut definition) {
                        true => definition.encode().map(Some),
                        false => Ok(None),
                    }
                })
                .await?;
            live.extend(self.confirmed(&at, rev.unwrap_or(0)).await?);
        }
        Ok(live)
    }

    /// Waits until every live member works by that revision.
    async fn confirmed(&self, at: &ConsumerRef, rev: Rev) -> Result<Vec<MemberStatus>> {
        let end = Instant::now() + CONFIRMED_WITHIN;
        let mut heard = Heard::default();
        loop {
            let Some(control) = self.control_of(at, rev).await? else {
                return Ok(Vec::new());
            };
            let now = Instant::now();
            heard.hear(&control, now);
            let behind = |(id, heartbeat, ..): &&(SmolStr, Heartbeat, _, _)| {
                heartbeat.definition < rev && heard.lives(id, now)
            };
            let behind = control.members.iter().filter(behind).count();
            if behind == 0 {
                let status = self.status_of(at.clone(), control, None).await?;
                let confirmed = |one: &MemberStatus| one.confirmed;
                return Ok(status.members.into_iter().filter(confirmed).collect());
            }
            if now >= end {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!(
                        "{behind} members of consumer {} live and have not confirmed the change within {} s; \
                         it is stored, and they work by it once they see it: ask again, or look at their logs",
                        at.consumer,
                        CONFIRMED_WITHIN.as_secs()
                    ),
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The control records of one consumer, as they stood at that revision or later.
    async fn control_of(&self, at: &ConsumerRef, at_least: Rev) -> Result<Option<Control>> {
        let known = self.known_consumers(at_least).await?;
        let found = known.into_iter().find(|(known, _)| known == at);
        Ok(found.map(|(_, control)| control))
    }
}

async fn remove(store: &Store, keys: &[StateKey]) -> Result<()> {
    for some in keys.chunks(REMOVED_AT_ONCE) {
        let ops = some.iter().cloned().map(delete).collect();
        store.commit(Store::commit_id(), Vec::new(), ops).await?;
    }
    Ok(())
}

fn delete(key: StateKey) -> Op {
    Op::Delete {
        key,
        expect: Expectation::Any,
    }
}

/// The control records of one consumer, whole.
struct Control {
    definition: (Definition, Rev),
    members: Vec<(SmolStr, Heartbeat, Rev, Timestamp)>,
    owners: BTreeMap<(u64, u16, u16), (Owner, Rev)>,
}

/// As far as they were found.
#[derive(Default)]
struct Found {
    definition: Option<(Definition, Rev)>,
    members: Vec<(SmolStr, Heartbeat, Rev, Timestamp)>,
    owners: BTreeMap<(u64, u16, u16), (Owner, Rev)>,
}
