//! How consumers stand.

use std::cmp::Reverse;

use trunkline_core::engine::{Backlog, ConsumerRef, Credit, Entry, Gauge, Position, Rev, Seq};
use trunkline_core::{Filter, Name, Result, Timestamp};

use super::super::ordered::MAX_SIDES;
use super::super::ordered::earlier::{Earlier, progresses_and_times};
use super::super::ordered::record::{
    CHANGING, Keys, Mode, Owner, Ownership, Record as _, Side, SideState, slot_and_seq,
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
    /// Whether it has records of its own. A consumer whose events go to whoever is free has none until its first
    /// member started; what is beside its main flow is nothing then.
    pub has_records: bool,
    /// Into how many partitions its keys are divided; where whoever is free gets the next event, what failed is.
    pub partitions: u16,
    /// Partitions that nobody owns.
    pub unowned: usize,
    /// Everything up to this sequence is settled.
    pub floor: Seq,
    /// Events that are before it at most: all that the stream stored above the floor.
    pub pending_at_most: u64,
    /// Since when the first of those is stored.
    pub oldest_pending: Option<Timestamp>,
    /// Events beside the main flow: failed and waiting, or behind one of their key that did.
    pub waiting: u64,
    /// Why events wait for another attempt, what most of them wait for first.
    pub waiting_for: Vec<WaitingFor>,
    /// Dead letters for which later events of their keys wait, until they are replayed or discarded.
    pub holding: u64,
    /// Partitions that stopped reading, because 10 000 events of theirs are beside the main flow.
    pub full: usize,
    /// Events whose handlers were committed to run: suspects, retries and long ones.
    pub running: u64,
    /// Dead letters that were asked to run again and have not ended: none of the two above.
    pub replaying: u64,
    /// Events handled, since it was made or reset; where whoever is free gets the next event, those that had
    /// failed before. Every event that an ordered consumer matched is one of these, dead, waiting, running,
    /// pending or expired.
    pub handled: u64,
    /// When it was last written how far an ordered consumer got, or what became of an event that had failed.
    pub last_progress: Option<Timestamp>,
    /// Dead letters, since it was made or reset, whatever became of them: also those that were
    /// discarded, and those that run or ran again.
    pub dead: u64,
    /// Sequences at most that retention removed before they were handled.
    pub expired_at_most: u64,
    /// How that stands which tools of the engine's own server see of it. None where there are no such
    /// tools, or they know the consumer without it, or it could not be seen.
    pub gauge: Option<Gauge>,
}

impl ConsumerStatus {
    /// The reason for which a consumer is paused while it is reset or divided anew, and stays paused if
    /// whoever did that died in the middle of it: the same once more ends it.
    pub const CHANGING: &str = CHANGING;

    fn note_waiting(&mut self, entry: &Entry, side: Side) {
        let (Some(reason), Some((_, seq))) = (side.reason, slot_and_seq(&entry.key)) else {
            return;
        };
        let found = self.waiting_for.iter().position(|one| one.reason == reason);
        let at = found.unwrap_or_else(|| {
            self.waiting_for.push(WaitingFor {
                reason: reason.to_string(),
                events: 0,
                seq,
                failures: 0,
                error: String::new(),
                at: Timestamp::from_nanos(i64::MIN),
            });
            self.waiting_for.len() - 1
        });
        let one = &mut self.waiting_for[at];
        one.events += 1;
        if entry.at >= one.at {
            (one.seq, one.failures, one.at) = (seq, side.failures, entry.at);
            one.error = side.error.unwrap_or_default();
        }
    }
}

/// Events that failed for one reason and wait for another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WaitingFor {
    /// The reason, as in a dead letter: `failed`, `timed_out`, `unsupported_type`.
    pub reason: String,
    /// How many there are.
    pub events: u64,
    /// The one that failed last.
    pub seq: Seq,
    /// How often that one failed.
    pub failures: u32,
    /// What its handler said.
    pub error: String,
    /// When that was stored.
    pub at: Timestamp,
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
            has_records: true,
            partitions: layout.partitions,
            unowned: 0,
            floor: 0,
            pending_at_most: 0,
            oldest_pending: None,
            waiting: 0,
            waiting_for: Vec::new(),
            holding: 0,
            full: 0,
            running: 0,
            replaying: 0,
            handled: 0,
            last_progress: None,
            dead: 0,
            expired_at_most: 0,
            gauge: None,
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
        let mut beside = vec![0; usize::from(layout.partitions)];
        for entry in store.all(&keys.sides(layout.generation)?, 0).await? {
            if let Some((slot, _)) = slot_and_seq(&entry.key) {
                beside[usize::from(layout.partition(slot))] += 1;
            }
            let side = Side::decode(&entry.key, &entry.value)?;
            match side.state {
                SideState::Dead => status.holding += 1,
                _ if side.replays.is_some() => status.replaying += 1,
                SideState::Following => status.waiting += 1,
                SideState::Waiting { .. } => {
                    status.waiting += 1;
                    status.note_waiting(&entry, side);
                }
                SideState::Running | SideState::Dying => status.running += 1,
            }
        }
        status.full = beside.iter().filter(|sides| **sides >= MAX_SIDES).count();
        status.waiting_for.sort_by_key(|one| Reverse(one.events));
        // What was settled before the consumer was divided as it is now counts too.
        let mut settled = Earlier::default();
        for layout in definition.earlier().chain([layout]) {
            let progresses = progresses_and_times(&store, &keys, layout, 0).await?;
            let last = progresses.iter().map(|(.., at)| *at).max();
            status.last_progress = status.last_progress.max(last);
            let without_time = |(partition, one, _)| (partition, one);
            let progresses: Vec<_> = progresses.into_iter().map(without_time).collect();
            let mut expired = 0;
            for (_, one) in &progresses {
                status.handled += one.counts.handled;
                status.dead += one.counts.dead;
                expired = expired.max(one.counts.expired_at_most);
            }
            status.expired_at_most += expired;
            settled.add(layout, &progresses);
        }
        let owned: usize = status.members.iter().map(|one| one.partitions.len()).sum();
        status.unowned = usize::from(layout.partitions).saturating_sub(owned);
        if status.ordered {
            status.floor = settled.floor(0..=u8::MAX).max(definition.start - 1);
            if let Some(gauges) = self.inner.engine.gauges() {
                // Who may read the records and not ask for this is told everything else.
                status.gauge = gauges.look(&at).await.ok();
            }
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
