//! Dead letters: storing them, and running them again when an operator asks.
//!
//! How a dead letter stands is a key of the state bucket. Operators change it by compare-and-set and
//! touch nothing else; whoever owns the partition of the event does the rest under its fence.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::engine::{Expectation, Op, Rev, Seq, StoredEvent};
use trunkline_core::{ErrorKind, Result, Timestamp, key};

use super::super::body;
use super::super::claim::Place;
use super::super::partition::Lane;
use super::super::record::{Layout, Side};
use super::super::store::{Known, Store};
use super::runs::RunId;
use super::standing::{Asked, News, Requests, Standing, Taken};
use super::tasks::Done;
use super::{Member, PAUSE};
use crate::consumer::Shared;
use crate::dead_letter::{self, Attempt, Entry, Record, State, keys};

/// How long to wait before a dead letter that could not be stored is tried again, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often an event is looked for that is to be stored as a dead letter.
const LOOKS: u32 = 10;

/// A dead letter that is to run again.
pub(super) struct Exhumed {
    event: StoredEvent,
    key: Option<SmolStr>,
    entry: Seq,
    /// The revision by which it was taken on.
    taken: Rev,
}

impl Member {
    pub(super) fn dead(&self, layout: Layout) -> keys::Place {
        keys::Place {
            consumer: self.shared.name.clone(),
            stream: self.place.stream.clone(),
            generation: layout.generation,
        }
    }

    /// Begins to listen for replays, of the generation that the consumer has now.
    pub(super) fn listen_for_replays(&mut self, layout: Layout) -> Result<()> {
        self.asked.clear();
        self.taken.clear();
        let watch = Requests::watch(self.place.store.clone(), &self.dead(layout))?;
        self.requests = Some(watch);
        Ok(())
    }

    pub(super) fn heard(&mut self, news: News, now: Instant) -> Result<()> {
        match news {
            News::Stands(seq, rev, standing) => {
                self.heard_of = self.heard_of.max(rev);
                self.stands(seq, rev, standing, now)
            }
            News::ToldAll => {
                let ours: Vec<u16> = self.partitions.keys().copied().collect();
                // Of a key that was just written, a copy that lags says that there is none.
                ours.into_iter()
                    .for_each(|id| self.look_after_held(id, Gone::IsUnknown));
                Ok(())
            }
        }
    }

    fn stands(&mut self, seq: Seq, rev: Rev, standing: Standing, now: Instant) -> Result<()> {
        // Who tells may be a copy that lags, and tell what is over by now.
        if self.asked.get(&seq).is_some_and(|asked| asked.rev > rev) {
            return Ok(());
        }
        if let Standing::Asked(key) = standing {
            self.asked.insert(seq, Asked { rev, key });
            return Ok(());
        }
        self.asked.remove(&seq);
        if self.taken.get(&seq).is_some_and(|taken| taken.rev <= rev) {
            self.taken.remove(&seq);
        }
        match standing {
            Standing::Settled => self.dealt_with(seq, now),
            Standing::Asked(_) | Standing::Dead => Ok(()),
        }
    }

    /// What waits for that dead letter goes on.
    fn dealt_with(&mut self, seq: Seq, now: Instant) -> Result<()> {
        // What was about to run again does not.
        self.beginning.remove(&seq);
        let mut partitions = self.partitions.values_mut();
        match partitions.find(|one| one.side(seq).is_some()) {
            Some(partition) => partition.let_go(seq, now),
            None => Ok(()),
        }
    }

    /// Looks which dead letters that hold their keys were dealt with while nobody listened.
    pub(super) fn look_after_held(&mut self, id: u16, gone: Gone) {
        let layout = self.definition.as_ref().map(super::Definition::layout);
        let (Some(partition), Some(layout)) = (self.partitions.get(&id), layout) else {
            return;
        };
        let held = partition.awaits_operators();
        if held.is_empty() || !self.shared.hold_key {
            return;
        }
        // What was heard before the partition was ours, was heard in vain.
        let at_least = partition.epoch.max(self.heard_of);
        let (epoch, dead) = (partition.epoch, self.dead(layout));
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            let settled = settled(&shared, &dead, &held, at_least, gone).await;
            Done::Settled(id, epoch, settled)
        });
    }

    /// These dead letters were dealt with.
    pub(super) fn settled(
        &mut self,
        partition: u16,
        epoch: Rev,
        settled: Result<Vec<Seq>>,
        now: Instant,
    ) -> Result<()> {
        for seq in settled? {
            let run = RunId {
                partition,
                epoch,
                seq,
            };
            if self.mine(run).is_some() {
                self.dealt_with(seq, now)?;
            }
        }
        Ok(())
    }

    /// Begins the replays that concern partitions of ours.
    pub(super) fn serve_replays(&mut self) {
        let Some(layout) = self.definition.as_ref().map(super::Definition::layout) else {
            return;
        };
        if self.asked.is_empty() || self.is_paused() {
            return;
        }
        let mut begun = Vec::new();
        for (seq, Asked { rev, key }) in &self.asked {
            let slot = key
                .as_deref()
                .map_or_else(|| Lane::new(None, *seq).slot(), key::slot);
            let Some(partition) = self.partitions.get(&layout.partition(slot)) else {
                continue;
            };
            let taken = self.taken.get(seq);
            // What we took on ourselves comes back as news, and is none.
            let is_taken =
                taken.is_some_and(|taken| taken.epoch == partition.epoch && *rev <= taken.rev);
            let holds = partition.holds(*seq);
            let is_busy =
                self.beginning.contains(seq) || (partition.side(*seq).is_some() && !holds);
            if !is_taken && !is_busy && !partition.stopping && (holds || partition.has_room()) {
                let run = RunId {
                    partition: partition.id,
                    epoch: partition.epoch,
                    seq: *seq,
                };
                begun.push((run, *rev));
            }
        }
        for (run, rev) in begun {
            let epoch = run.epoch;
            self.taken.insert(run.seq, Taken { rev, epoch });
            self.beginning.insert(run.seq);
            let (place, shared) = (Arc::clone(&self.place), Arc::clone(&self.shared));
            let dead = self.dead(layout);
            self.tasks.spawn(async move {
                let found = exhume(&shared, &place, layout, &dead, run, rev).await;
                Done::Replay(run, found)
            });
        }
    }

    /// A replay may begin, if what was asked for still is.
    pub(super) fn exhumed(
        &mut self,
        run: RunId,
        found: Result<Option<Exhumed>>,
        now: Instant,
    ) -> Result<()> {
        // Whoever has it by now is told of it, which may be ourselves.
        if !self.beginning.remove(&run.seq) || self.mine(run).is_none() {
            return Ok(());
        }
        match found {
            Ok(Some(Exhumed {
                event,
                key,
                entry,
                taken,
            })) => {
                let epoch = run.epoch;
                self.taken.insert(run.seq, Taken { rev: taken, epoch });
                tracing::info!(
                    consumer = %self.shared.name, stream = %self.place.stream, seq = run.seq,
                    "a dead letter runs again"
                );
                match self.mine(run) {
                    Some(partition) if !partition.stopping => {
                        partition.replay(&event, key, entry, now)
                    }
                    _ => Ok(()),
                }
            }
            Ok(None) => Ok(()),
            Err(error) => {
                tracing::error!(
                    consumer = %self.shared.name, stream = %self.place.stream, seq = run.seq, %error,
                    "a dead letter cannot be run again"
                );
                Ok(())
            }
        }
    }

    /// Stores the dead letter of an event, however long that takes.
    pub(super) fn bury(&mut self, run: RunId) {
        let side = self.mine(run).and_then(|one| one.side(run.seq)).cloned();
        let layout = self.definition.as_ref().map(super::Definition::layout);
        let (Some(side), Some(layout)) = (side, layout) else {
            return;
        };
        let (place, shared) = (Arc::clone(&self.place), Arc::clone(&self.shared));
        let (dead, at_least) = (self.dead(layout), self.known_of(run));
        self.tasks.spawn(async move {
            let buried = match side.replays {
                Some(_) => {
                    again(&shared, &dead, run.seq, at_least, |record, at| {
                        let reason = side.reason.as_deref().unwrap_or("failed");
                        let error = side.error.as_deref().unwrap_or_default();
                        record.dead_again(at, reason, error, side.failures)
                    })
                    .await
                }
                None => bury(&shared, &place, layout, &dead, (run.seq, at_least), &side).await,
            };
            Done::Burial(run, buried)
        });
    }

    /// The revision at which everything is to be seen that was heard or written of a dead letter of
    /// ours. What comes later is heard while the partition is ours.
    fn known_of(&self, run: RunId) -> Rev {
        let taken = self.taken.get(&run.seq).map_or(0, |taken| taken.rev);
        taken.max(run.epoch).max(self.heard_of)
    }

    /// A replay is done: finds out what is to be written of it.
    pub(super) fn tell_replayed(&mut self, run: RunId) {
        let Some(layout) = self.definition.as_ref().map(super::Definition::layout) else {
            return;
        };
        let (shared, dead) = (Arc::clone(&self.shared), self.dead(layout));
        let at_least = self.known_of(run);
        self.tasks.spawn(async move {
            let ops = again(&shared, &dead, run.seq, at_least, Record::replayed).await;
            Done::Replayed(run, ops.map(|burial| burial.ops))
        });
    }

    /// Removes the entry of a dead letter that is resolved.
    pub(super) fn unbury(&mut self, seq: Seq, entry: Seq) {
        let Some(layout) = self.definition.as_ref().map(super::Definition::layout) else {
            return;
        };
        let (shared, dead) = (Arc::clone(&self.shared), self.dead(layout));
        self.tasks.spawn(async move {
            let inner = &shared.bus.inner;
            Done::Unburied(dead_letter::remove_of(inner, &dead, seq, entry).await)
        });
    }
}

/// Takes a dead letter's replay on: only who changes its key under the fence of the partition does.
async fn exhume(
    shared: &Shared,
    place: &Place,
    layout: Layout,
    dead: &keys::Place,
    run: RunId,
    asked: Rev,
) -> Result<Option<Exhumed>> {
    let inner = &shared.bus.inner;
    let read = |at_least| persist(move || keys::read_since(inner, dead, run.seq, at_least));
    let Some(kept) = read(asked).await? else {
        return Ok(None);
    };
    let record = kept.record?;
    if !matches!(record.state, State::Replaying { .. }) {
        return Ok(None);
    }
    let touch = dead.put(run.seq, &record, Expectation::Rev(kept.rev))?;
    let owner = place.keys.owner(layout, run.partition)?;
    let fence = vec![(owner, Expectation::Rev(run.epoch))];
    let taken = match place
        .store
        .commit(Store::commit_id(), fence, vec![touch])
        .await?
    {
        Known::Conflict => return Ok(None),
        Known::Done(revs) => revs.first().copied().unwrap_or(kept.rev),
        // Its answer was lost; whatever the key says by now, it is no older than that.
        Known::DoneBefore => match read(kept.rev).await? {
            Some(kept) => kept.rev,
            None => return Ok(None),
        },
    };
    let Some(stored) = persist_found(|| dead_letter::entry_at(inner, record.entry)).await? else {
        return Err(trunkline_core::Error::new(
            ErrorKind::NoSuchDeadLetter,
            format!(
                "its entry {} is gone from {}",
                record.entry, inner.settings.dead_letters
            ),
        ));
    };
    let entry = dead_letter::read_entry(inner, &stored)?;
    Ok(Some(Exhumed {
        key: entry.key.clone(),
        event: entry.original(),
        entry: record.entry,
        taken,
    }))
}

/// What it means that there is no key of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    IsSettled,
    IsUnknown,
}

/// What is to be written of a dead letter; nothing if an operator was there before.
pub(super) struct Burial {
    pub(super) ops: Vec<Op>,
    /// Whether it is dealt with already, so that nothing is to wait for it.
    pub(super) is_settled: bool,
}

fn is_settled(record: Option<&Result<Record>>) -> bool {
    matches!(Standing::of(record), Standing::Settled)
}

/// Which of these dead letters are dealt with.
async fn settled(
    shared: &Shared,
    dead: &keys::Place,
    seqs: &[Seq],
    at_least: Rev,
    gone: Gone,
) -> Result<Vec<Seq>> {
    let inner = &shared.bus.inner;
    let mut settled = Vec::new();
    for seq in seqs.iter().copied() {
        let kept = persist(|| keys::read_since(inner, dead, seq, at_least)).await?;
        let is_settled = match kept {
            None => gone == Gone::IsSettled,
            Some(kept) => is_settled(Some(&kept.record)),
        };
        if is_settled {
            settled.push(seq);
        }
    }
    Ok(settled)
}

/// The change that says how a replay ended. None if somebody has discarded it meanwhile; then that
/// stands, as it does if somebody does so before this is written.
async fn again(
    shared: &Shared,
    dead: &keys::Place,
    seq: Seq,
    at_least: Rev,
    change: impl Fn(&Record, Timestamp) -> Option<Record>,
) -> Result<Burial> {
    let inner = &shared.bus.inner;
    let kept = persist(|| keys::read_since(inner, dead, seq, at_least)).await?;
    let now = inner.clock.now();
    let is_settled = is_settled(kept.as_ref().map(|kept| &kept.record));
    let changed = kept.and_then(|kept| Some((change(&kept.record.ok()?, now)?, kept.rev)));
    let ops = changed
        .map(|(record, rev)| dead.put(seq, &record, Expectation::Rev(rev)))
        .into_iter()
        .collect::<Result<_>>()?;
    Ok(Burial { ops, is_settled })
}

/// A dead letter that cannot be stored, as long as this lives.
struct Unburied<'a>(&'a AtomicUsize);

impl<'a> Unburied<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.unburied.fetch_add(1, Ordering::Relaxed);
        Self(&shared.unburied)
    }
}

impl Drop for Unburied<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Stores the entry; the change that lists it.
pub(super) async fn bury(
    shared: &Shared,
    place: &Place,
    layout: Layout,
    dead: &keys::Place,
    (seq, at_least): (Seq, Rev),
    side: &Side,
) -> Result<Burial> {
    let (inner, name) = (&shared.bus.inner, &shared.name);
    let load = || body::load(place, layout.generation, seq, side.pieces);
    let event = persist_written(load).await?;
    let envelope = inner.settings.decoding.stored(&place.stream, &event).ok();
    let now = inner.clock.now();
    let time = |at: &Option<SmolStr>| at.as_ref().and_then(|at| at.parse().ok()).unwrap_or(now);
    let attempt = |(at, reason, error): &(SmolStr, SmolStr, String)| {
        Attempt::new(at.parse().unwrap_or(now), reason, error)
    };
    let entry = Entry {
        consumer: name.clone(),
        generation: layout.generation,
        incarnation: None,
        stream: place.stream.clone(),
        seq,
        stored_at: Some(event.at),
        subject: event.subject.clone(),
        key: envelope.as_ref().and_then(|event| event.ordering_key()),
        reason: side.reason.clone().unwrap_or_else(|| "failed".into()),
        error: side.error.clone().unwrap_or_default(),
        causes: side.causes.clone(),
        failures: side.failures,
        starts: side.starts,
        attempts: side.attempts.iter().map(attempt).collect(),
        first_failure: time(&side.first_failure),
        last_failure: time(&side.last_failure),
        service: Some(inner.settings.source.clone()),
        version: env!("CARGO_PKG_VERSION").into(),
        previous: None,
        headers: event.headers.clone(),
        body: event.body.clone(),
    };
    let (mut pause, mut unburied) = (PAUSE, None);
    let (subject, stored) = loop {
        match dead_letter::bury(inner, &entry).await {
            Ok(buried) => break buried,
            Err(error) => {
                unburied.get_or_insert_with(|| Unburied::new(shared));
                tracing::error!(
                    consumer = %name, stream = %inner.settings.dead_letters, %error, again_in = ?pause,
                    "a dead letter cannot be stored; nothing is fetched until it is"
                );
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        }
    };
    tracing::error!(
        consumer = %name, stream = %place.stream, seq, failures = side.failures,
        reason = %entry.reason, error = entry.error, %subject, "given up; stored as a dead letter"
    );
    let record = Record::dead(&entry, stored, envelope.as_deref());
    // An operator may have come upon the entry before it was noted down; what was said then stands.
    let kept = persist(|| keys::read_since(inner, dead, seq, at_least)).await?;
    let expect = match kept {
        None => Expectation::Absent,
        Some(kept) if kept.record.is_err() => Expectation::Rev(kept.rev),
        Some(kept) => {
            return Ok(Burial {
                ops: Vec::new(),
                is_settled: is_settled(Some(&kept.record)),
            });
        }
    };
    Ok(Burial {
        ops: vec![dead.put(seq, &record, expect)?],
        is_settled: false,
    })
}

/// Reads what this owner has written, perhaps a moment ago. Only after several looks it counts as damaged:
/// what answers may be a copy that lags and does not have it yet.
pub(super) async fn persist_written<T, F: Future<Output = Result<T>>>(
    read: impl Fn() -> F,
) -> Result<T> {
    for _ in 1..LOOKS {
        match persist(&read).await {
            Err(error) if error.kind() == ErrorKind::Damaged => tokio::time::sleep(PAUSE).await,
            answer => return answer,
        }
    }
    persist(&read).await
}

/// Reads what is there, if it is. What answers may be a copy that lags and does not have it yet.
async fn persist_found<T, F: Future<Output = Result<Option<T>>>>(
    read: impl Fn() -> F,
) -> Result<Option<T>> {
    for _ in 1..LOOKS {
        match persist(&read).await? {
            None => tokio::time::sleep(PAUSE).await,
            found => return Ok(found),
        }
    }
    persist(&read).await
}

/// Repeats a read until the engine answers.
async fn persist<T, F: Future<Output = Result<T>>>(read: impl Fn() -> F) -> Result<T> {
    loop {
        match read().await {
            Err(error) if error.retryable() => tokio::time::sleep(PAUSE).await,
            answer => return answer,
        }
    }
}
