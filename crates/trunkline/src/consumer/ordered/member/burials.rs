//! Dead letters: storing them, and running them again when an operator asks.
//!
//! How a dead letter stands is a key of the state bucket. Operators change it by compare-and-set and
//! touch nothing else; whoever owns the partition of the event does the rest under its fence.

use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use trunkline_core::engine::{Expectation, Op, Rev, Seq, StateKey, StoredEvent, Watched};
use trunkline_core::{ErrorKind, Result, Timestamp, key};

use super::super::body;
use super::super::claim::Place;
use super::super::partition::Lane;
use super::super::record::{Layout, Side};
use super::super::store::{Known, Store};
use super::runs::RunId;
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

/// A dead letter that somebody wants to be run again, as far as one has heard.
#[derive(Debug)]
pub(super) struct Asked {
    seq: Seq,
    /// The revision that says so.
    rev: Rev,
    /// None once it stands otherwise.
    key: Option<Option<SmolStr>>,
}

/// Tells of every dead letter that is to be run again, and of those that are not any more.
#[derive(Debug)]
pub(super) struct Requests {
    asked: mpsc::UnboundedReceiver<Asked>,
    task: AbortHandle,
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Requests {
    pub(super) fn watch(store: Store, dead: &keys::Place) -> Result<Self> {
        let (told, asked) = mpsc::unbounded_channel();
        let prefix = dead.prefix()?;
        let task = tokio::spawn(async move {
            loop {
                let ended = watch(&store, &prefix, &told).await;
                if told.is_closed() || ended.is_err_and(|error| error.kind() == ErrorKind::Closed) {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Ok(Self {
            asked,
            task: task.abort_handle(),
        })
    }

    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Asked {
        match self.asked.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }
}

async fn watch(
    store: &Store,
    prefix: &StateKey,
    told: &mpsc::UnboundedSender<Asked>,
) -> Result<()> {
    let mut watch = store
        .engine
        .state()
        .watch(&store.bucket, Some(prefix), 0)
        .await?;
    loop {
        let (key, rev, record) = match watch.next().await? {
            Watched::CaughtUp(_) => continue,
            Watched::Put(entry) => (entry.key, entry.rev, Record::decode(&entry.value).ok()),
            Watched::Deleted { key, rev, .. } | Watched::Expired { key, rev, .. } => {
                (key, rev, None)
            }
        };
        let seq = key.as_str().rsplit('.').next();
        let Some(seq) = seq.and_then(|seq| seq.parse().ok()) else {
            continue;
        };
        let replaying = record.filter(|record| matches!(record.state, State::Replaying { .. }));
        let asked = Asked {
            seq,
            rev,
            key: replaying.map(|record| record.key),
        };
        if told.send(asked).is_err() {
            return Ok(());
        }
    }
}

impl Member {
    fn dead(&self, layout: Layout) -> keys::Place {
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

    pub(super) fn asked(&mut self, Asked { seq, rev, key }: Asked) {
        match key {
            // What we took on ourselves comes back as news, and is none.
            Some(_) if self.taken.get(&seq).is_some_and(|taken| rev <= *taken) => {}
            Some(key) => {
                self.asked.insert(seq, key);
            }
            None => {
                self.asked.remove(&seq);
                self.taken.remove(&seq);
            }
        }
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
        for (seq, key) in &self.asked {
            let slot = key
                .as_deref()
                .map_or_else(|| Lane::new(None, *seq).slot(), key::slot);
            let Some(partition) = self.partitions.get(&layout.partition(slot)) else {
                continue;
            };
            let begins = self.beginning.contains(seq) || partition.side(*seq).is_some();
            if !begins && !partition.stopping && partition.has_room() {
                begun.push(RunId {
                    partition: partition.id,
                    epoch: partition.epoch,
                    seq: *seq,
                });
            }
        }
        for run in begun {
            // It is heard of again if it is still to be run after this.
            self.asked.remove(&run.seq);
            self.beginning.insert(run.seq);
            let (place, shared) = (Arc::clone(&self.place), Arc::clone(&self.shared));
            let dead = self.dead(layout);
            self.tasks.spawn(async move {
                Done::Replay(run, exhume(&shared, &place, layout, &dead, run).await)
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
        self.beginning.remove(&run.seq);
        // Whoever has it by now is told of it, which may be ourselves.
        if self.mine(run).is_none() {
            return Ok(());
        }
        match found {
            Ok(Some(Exhumed {
                event,
                key,
                entry,
                taken,
            })) => {
                self.asked.remove(&run.seq);
                self.taken.insert(run.seq, taken);
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
        let dead = self.dead(layout);
        self.tasks.spawn(async move {
            let buried = match side.replays {
                Some(_) => {
                    again(&shared, &dead, run.seq, |record, at| {
                        let reason = side.reason.as_deref().unwrap_or("failed");
                        let error = side.error.as_deref().unwrap_or_default();
                        record.dead_again(at, reason, error, side.failures)
                    })
                    .await
                }
                None => bury(&shared, &place, layout, run.seq, &side)
                    .await
                    .map(|()| Vec::new()),
            };
            Done::Burial(run, buried)
        });
    }

    /// A replay is done: finds out what is to be written of it.
    pub(super) fn tell_replayed(&mut self, run: RunId) {
        let Some(layout) = self.definition.as_ref().map(super::Definition::layout) else {
            return;
        };
        let (shared, dead) = (Arc::clone(&self.shared), self.dead(layout));
        self.tasks.spawn(async move {
            let ops = again(&shared, &dead, run.seq, Record::replayed).await;
            Done::Replayed(run, ops)
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
) -> Result<Option<Exhumed>> {
    let inner = &shared.bus.inner;
    let Some(kept) = keys::read(inner, dead, run.seq).await? else {
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
        Known::DoneBefore => match keys::read(inner, dead, run.seq).await? {
            Some(kept) => kept.rev,
            None => return Ok(None),
        },
    };
    let Some(stored) = dead_letter::entry_at(inner, record.entry).await? else {
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

/// The change that says how a replay ended.
async fn again(
    shared: &Shared,
    dead: &keys::Place,
    seq: Seq,
    change: impl Fn(&Record, Timestamp) -> Option<Record>,
) -> Result<Vec<Op>> {
    let inner = &shared.bus.inner;
    let kept = persist(|| keys::read(inner, dead, seq)).await?;
    let now = inner.clock.now();
    let record = kept.and_then(|kept| kept.record.ok());
    let changed = record.and_then(|record| change(&record, now));
    // Somebody may have discarded it meanwhile; then that stands.
    changed
        .map(|record| dead.put(seq, &record, Expectation::Any))
        .into_iter()
        .collect()
}

/// Stores the entry, and lists it.
async fn bury(shared: &Shared, place: &Place, layout: Layout, seq: Seq, side: &Side) -> Result<()> {
    let (inner, store, name) = (&shared.bus.inner, &place.store, &shared.name);
    let load = || {
        body::load(
            &*store.engine,
            &store.bucket,
            &place.keys,
            layout.generation,
            seq,
            side.pieces,
        )
    };
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
    let mut pause = PAUSE;
    let (subject, stored) = loop {
        match dead_letter::bury(inner, &entry).await {
            Ok(buried) => break buried,
            Err(error) => {
                tracing::error!(
                    consumer = %name, stream = %inner.settings.dead_letters, %error, again_in = ?pause,
                    "a dead letter cannot be stored"
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
    // What an operator said of it meanwhile stays.
    let record = Record::dead(&entry, stored, envelope.as_deref());
    persist(|| dead_letter::note(inner, &entry, &record)).await
}

/// Reads what this owner has written, perhaps a moment ago. Only after several looks it counts as damaged:
/// what answers may be a copy that lags and does not have it yet.
async fn persist_written<T, F: Future<Output = Result<T>>>(read: impl Fn() -> F) -> Result<T> {
    for _ in 1..LOOKS {
        match persist(&read).await {
            Err(error) if error.kind() == ErrorKind::Damaged => tokio::time::sleep(PAUSE).await,
            answer => return answer,
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
