//! What operators see of consumers, and what they can do to them.

mod by_engine;

use std::collections::BTreeMap;
use std::time::Duration;

use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::engine::{
    Backlog, Change, ConsumerRef, ConsumerSpec, ConsumerState, Credit, Expectation, Op, Position,
    Rev, Seq, StateKey,
};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result, Timestamp};

use super::ordered::record::{
    About, CONTROL, Definition, Heartbeat, Keys, Layout, Mode, Owner, Ownership, Progress,
    Record as _, Side, SideState,
};
use super::ordered::start;
use super::ordered::store::{Known, Store};
use crate::bus::Bus;

/// How long a pause waits for members to confirm it: longer than any lease.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
/// How often it looks whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Side records that a reset removes with one commit.
const REMOVED_AT_ONCE: usize = 100;

/// How a consumer stands on one stream.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumerStatus {
    /// Its name.
    pub name: Name,
    /// The stream.
    pub stream: Name,
    /// Whether the events of a key are handled one after another.
    pub ordered: bool,
    /// What it handles, roots included.
    pub filters: Vec<Filter>,
    /// Why it is paused; it runs if there is no reason.
    pub paused: Vec<String>,
    /// Its members, those that have died and were not swept yet among them.
    pub members: Vec<MemberStatus>,
    /// Partitions that nobody owns; always 0 where whoever is free gets the next event.
    pub unowned: usize,
    /// Everything up to this sequence is settled.
    pub floor: Seq,
    /// Events that are before it at most: all that the stream stored above the floor.
    pub pending_at_most: u64,
    /// Since when the first of those is stored.
    pub oldest_pending: Option<Timestamp>,
    /// Events beside the main flow: failed and waiting, or behind one of their key that did.
    pub waiting: u64,
    /// Events whose handlers were committed to run: suspects, retries and long ones.
    pub running: u64,
    /// Events handled, since it was made or reset.
    pub handled: u64,
    /// Dead letters, since it was made or reset.
    pub dead: u64,
    /// Sequences at most that retention removed before they were handled.
    pub expired_at_most: u64,
}

/// A member of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberStatus {
    /// Its id, new with every start.
    pub id: String,
    /// The partitions that it owns.
    pub partitions: Vec<u16>,
    /// When its last heartbeat was stored.
    pub heard_of: Timestamp,
    /// Whether it works by the consumer's present definition: a pause is confirmed by this.
    pub confirmed: bool,
    /// Whether it is stopping.
    pub leaving: bool,
}

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
    /// How every consumer of this bus stands, by name and stream.
    ///
    /// # Errors
    /// The engine's own, and [`ErrorKind::WrongVersion`] or [`ErrorKind::Damaged`] for records that
    /// cannot be read.
    pub async fn consumer_status(&self) -> Result<Vec<ConsumerStatus>> {
        let known = self.known_consumers().await?;
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
    /// What runs is let be. It returns when every live member has confirmed, or is silent for so long
    /// that its lease has ended (5 s at most), and lists those that live.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchConsumer`] and the engine's own.
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

    /// Takes back a pause for that reason, or for every reason.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchConsumer`] and the engine's own.
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
    /// Members may run meanwhile; they end what they own and begin with the new start.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchConsumer`]; [`ErrorKind::InUse`] when events are beside the main flow and
    /// `beside` says to refuse; [`ErrorKind::Conflict`] when others kept changing it; and the engine's
    /// own.
    pub async fn reset_consumer(&self, name: &Name, to: Position, beside: Beside) -> Result<()> {
        let all = self.of_name(name).await?;
        for (at, control) in all {
            if control.definition.0.mode == Mode::Ordered {
                self.reset_ordered(&at, control, to, beside).await?;
            } else {
                self.reset_shared(&at, control, to, beside).await?;
            }
        }
        Ok(())
    }

    /// Removes a consumer from one stream, with everything that is known of it but its dead letters.
    /// Members that run notice and end.
    pub(crate) async fn remove_consumer(&self, at: &ConsumerRef) -> Result<()> {
        let store = self.store();
        let keys = Keys::new(&at.consumer, &at.stream);
        let known = self.known_consumers().await?;
        let control = known.into_iter().find(|(known, _)| known == at);
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
            for (generation, partitions, partition) in control.owners.into_keys() {
                let layout = Layout {
                    generation,
                    partitions,
                };
                gone.push(keys.owner(layout, partition)?);
            }
            let ops = gone.into_iter().map(delete).collect();
            store.commit(Store::commit_id(), Vec::new(), ops).await?;
        }
        for prefix in [keys.root()?, keys.control()?] {
            let entries = store.all(&prefix, 0).await?;
            let keys: Vec<_> = entries.into_iter().map(|entry| entry.key).collect();
            remove(&store, &keys).await?;
        }
        Ok(())
    }

    /// The ordered consumers, as the engine tells of those that it knows itself.
    pub(crate) async fn ordered_consumers(&self) -> Result<Vec<ConsumerState>> {
        let mut states = Vec::new();
        for (at, control) in self.known_consumers().await? {
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
                        pending: status.pending_at_most + status.waiting,
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

    async fn known_consumers(&self) -> Result<Vec<(ConsumerRef, Control)>> {
        let entries = self.store().all(&StateKey::new(CONTROL)?, 0).await?;
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
        let mut known = self.known_consumers().await?;
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

    async fn status_of(
        &self,
        at: ConsumerRef,
        control: Control,
        backlog: Option<Backlog>,
    ) -> Result<ConsumerStatus> {
        let (definition, rev) = &control.definition;
        let layout = definition.layout();
        let store = self.store();
        let keys = Keys::new(&at.consumer, &at.stream);
        let mut status = ConsumerStatus {
            name: at.consumer.clone(),
            stream: at.stream.clone(),
            ordered: definition.mode == Mode::Ordered,
            filters: definition.filters()?,
            paused: definition.paused.iter().map(ToString::to_string).collect(),
            members: Vec::new(),
            unowned: 0,
            floor: 0,
            pending_at_most: 0,
            oldest_pending: None,
            waiting: 0,
            running: 0,
            handled: 0,
            dead: 0,
            expired_at_most: 0,
        };
        for (id, heartbeat, _, heard_of) in &control.members {
            let owns = |(at, (owner, _)): (&(u64, u16, u16), &(Owner, Rev))| {
                let mine = owner.member == *id && owner.state == Ownership::Owned;
                let here = (at.0, at.1) == (layout.generation, layout.partitions);
                (mine && here).then_some(at.2)
            };
            status.members.push(MemberStatus {
                id: id.to_string(),
                partitions: control.owners.iter().filter_map(owns).collect(),
                heard_of: *heard_of,
                confirmed: heartbeat.definition >= *rev,
                leaving: heartbeat.leaving,
            });
        }
        for entry in store.all(&keys.sides(layout.generation)?, 0).await? {
            match Side::decode(&entry.key, &entry.value)?.state {
                SideState::Following | SideState::Waiting { .. } => status.waiting += 1,
                SideState::Running | SideState::Dying => status.running += 1,
            }
        }
        let mut progress: BTreeMap<StateKey, Progress> = BTreeMap::new();
        for entry in store.all(&keys.progresses(layout)?, 0).await? {
            let one = Progress::decode(&entry.key, &entry.value)?;
            progress.insert(entry.key, one);
        }
        for one in progress.values() {
            status.handled += one.counts.handled;
            status.dead += one.counts.dead;
            status.expired_at_most = status.expired_at_most.max(one.counts.expired_at_most);
        }
        if status.ordered {
            let owned: usize = status.members.iter().map(|one| one.partitions.len()).sum();
            status.unowned = usize::from(layout.partitions).saturating_sub(owned);
            let begun = progress.len() == usize::from(layout.partitions);
            let lowest = progress.values().map(|one| one.floor).min();
            status.floor = match lowest {
                Some(lowest) if begun => lowest,
                _ => definition.start - 1,
            };
        } else if let Some(backlog) = backlog {
            status.floor = backlog.floor;
            status.expired_at_most = backlog.expired_at_most;
        }
        let page = self
            .inner
            .engine
            .log()
            .read(
                &at.stream,
                Position::Seq(status.floor + 1),
                &status.filters,
                Credit::items(1),
            )
            .await?;
        let first = page.events.first();
        status.oldest_pending = first.map(|event| event.at);
        status.pending_at_most = match (status.ordered, backlog) {
            (false, Some(backlog)) => backlog.pending + backlog.in_flight,
            _ => first.map_or(0, |event| page.tail - event.seq),
        };
        Ok(status)
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
                .update(&key, |entry| {
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

    /// Waits until every live member works by that revision, or has lost its lease.
    async fn confirmed(&self, at: &ConsumerRef, rev: Rev) -> Result<Vec<MemberStatus>> {
        let end = Instant::now() + CONFIRMED_WITHIN;
        loop {
            let known = self.known_consumers().await?;
            let Some((at, control)) = known.into_iter().find(|(known, _)| known == at) else {
                return Ok(Vec::new());
            };
            let behind = |(_, heartbeat, ..): &(_, Heartbeat, _, _)| heartbeat.definition < rev;
            let waits = control.members.iter().any(behind);
            if !waits || Instant::now() >= end {
                let status = self.status_of(at, control, None).await?;
                let confirmed = |one: &MemberStatus| one.confirmed;
                return Ok(status.members.into_iter().filter(confirmed).collect());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

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
        tokio::time::sleep(super::ordered::TTL).await;
        let now = self.known_consumers().await?;
        let members = now.iter().flat_map(|(_, control)| &control.members);
        Ok(members
            .filter(|(id, _, rev, _)| before.get(id).is_some_and(|before| before != rev))
            .map(|(id, ..)| id.clone())
            .collect())
    }

    async fn reset_ordered(
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

    async fn reset_shared(
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
