//! How consumers stand.

use std::collections::BTreeMap;

use trunkline_core::engine::{Backlog, ConsumerRef, Credit, Position, Rev, Seq, StateKey};
use trunkline_core::{Filter, Name, Result, Timestamp};

use super::super::ordered::record::{
    Keys, Mode, Owner, Ownership, Progress, Record as _, Side, SideState,
};
use super::Control;
use crate::bus::Bus;

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
    /// Dead letters that were asked to run again and have not ended: none of the two above.
    pub replaying: u64,
    /// Events handled, since it was made or reset. Every event that matched is one of these, dead,
    /// waiting, running, pending or expired.
    pub handled: u64,
    /// Dead letters, since it was made or reset, whatever became of them: also those that were
    /// discarded, and those that run or ran again.
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

impl Bus {
    pub(super) async fn status_of(
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
            replaying: 0,
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
            let side = Side::decode(&entry.key, &entry.value)?;
            match side.state {
                _ if side.replays.is_some() => status.replaying += 1,
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
}
