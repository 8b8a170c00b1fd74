//! A member's place among the others: its heartbeat, its lease, and who else is there.
//!
//! One task sends the heartbeat and watches the control records, so that neither waits for anything
//! that the member does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smol_str::SmolStr;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};
use trunkline_core::engine::{Boxed, Commit, Committed, Rev, Watch, Watched};
use trunkline_core::{Error, Result};

use super::body::put;
use super::record::{About, Definition, Heartbeat, Keys, Layout, Owner, Record as _};
use super::store::Store;

/// How often a member says that it lives.
const BEAT_EVERY: Duration = Duration::from_millis(500);
/// How long a member is taken to live after its last heartbeat.
pub(in crate::consumer) const TTL: Duration = Duration::from_secs(3);
/// By how much a member itself counts less, for clocks that run at different speeds.
const MARGIN: Duration = Duration::from_millis(300);
/// Heartbeats of its own that a member must have seen while another had none: an engine that is
/// away, or a watch that lags, makes nobody look dead.
const BEATS_SEEN: u64 = 7;
/// How long to leave an engine alone after a watch or a heartbeat failed.
const PAUSE: Duration = Duration::from_millis(200);
/// How long the answer to one heartbeat is waited for before the next is sent.
const ANSWER: Duration = Duration::from_secs(2);

/// Until when a member may act.
///
/// One that begins after a time without any, because the process was stopped or the engine away, holds
/// only once the member has seen the heartbeat come back with which it began, and with it every change
/// that was made before: whoever paused the consumer meanwhile has not waited for it.
#[derive(Debug, Default)]
pub(super) struct Lease(Mutex<Term>);

#[derive(Debug, Default)]
struct Term {
    number: u64,
    until: Option<Instant>,
    /// The heartbeat with which it began, until that is seen.
    begins_with: Option<u64>,
    /// Whether the consumer is paused, as far as the member knows.
    rests: bool,
}

impl Term {
    fn holds(&self, now: Instant) -> bool {
        self.begins_with.is_none() && self.until.is_some_and(|until| now < until)
    }
}

impl Lease {
    pub(super) fn until(&self) -> Option<Instant> {
        self.0.lock().until
    }

    pub(super) fn holds(&self, now: Instant) -> bool {
        self.0.lock().holds(now)
    }

    /// Whether a handler may start.
    pub(super) fn lets_start(&self, now: Instant) -> bool {
        let term = self.0.lock();
        term.holds(now) && !term.rests
    }

    pub(super) fn rest(&self, rests: bool) {
        self.0.lock().rests = rests;
    }

    /// Another one than before has another number.
    pub(super) fn number(&self) -> u64 {
        self.0.lock().number
    }

    /// Whether it has begun anew, and what it begins with is not seen yet.
    pub(super) fn begins(&self) -> bool {
        self.0.lock().begins_with.is_some()
    }

    /// That heartbeat, sent then, is acknowledged.
    fn extend(&self, beat: u64, sent: Instant, now: Instant) {
        let mut term = self.0.lock();
        if term.until.is_none_or(|until| until <= now) {
            term.number += 1;
            term.begins_with = Some(beat);
        }
        term.until = term.until.max(Some(sent + TTL - MARGIN));
    }

    /// Everything up to that heartbeat was seen, and what had to be done therefore is done.
    pub(super) fn seen(&self, beat: u64) {
        let mut term = self.0.lock();
        term.begins_with = term.begins_with.filter(|begins| beat < *begins);
    }
}

/// What a member sees of its consumer. Complete, or not there at all.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Whether everything that was there has been seen.
    pub(super) complete: bool,
    pub(super) definition: Option<(Definition, Rev)>,
    pub(super) members: BTreeMap<SmolStr, Seen>,
    pub(super) owners: BTreeMap<(u64, u16, u16), (Owner, Rev)>,
    /// The last of its own heartbeats that it has seen come back.
    pub(super) beats: u64,
    /// What cannot be read, which ends the member.
    pub(super) fault: Option<Error>,
}

/// Another member, or oneself.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) heartbeat: Heartbeat,
    pub(super) rev: Rev,
    /// When this heartbeat was first seen, and the last of one's own seen by then.
    since: Instant,
    own_beats: u64,
}

impl View {
    pub(super) fn owner(&self, layout: Layout, partition: u16) -> Option<&(Owner, Rev)> {
        self.owners
            .get(&(layout.generation, layout.partitions, partition))
    }

    /// Whether a member has said nothing for so long that it is dead.
    pub(super) fn is_dead(&self, member: &str, now: Instant) -> bool {
        self.members.get(member).is_none_or(|seen| {
            now.duration_since(seen.since) >= TTL
                && self.beats.saturating_sub(seen.own_beats) >= BEATS_SEEN
        })
    }

    fn apply(&mut self, keys: &Keys, me: &str, watched: Watched, now: Instant) -> Result<()> {
        let (key, entry) = match watched {
            Watched::CaughtUp(_) => {
                self.complete = true;
                return Ok(());
            }
            Watched::Put(entry) => (entry.key.clone(), Some(entry)),
            Watched::Deleted { key, .. } | Watched::Expired { key, .. } => (key, None),
        };
        match (keys.about(&key), entry) {
            (None, _) => {}
            (Some(About::Definition), entry) => {
                self.definition = match entry {
                    Some(entry) => Some((Definition::decode(&key, &entry.value)?, entry.rev)),
                    None => None,
                };
            }
            (Some(About::Member(member)), Some(entry)) => {
                let heartbeat = Heartbeat::decode(&key, &entry.value)?;
                if member == me {
                    self.beats = self.beats.max(heartbeat.beat);
                }
                let seen = Seen {
                    heartbeat,
                    rev: entry.rev,
                    since: now,
                    own_beats: self.beats,
                };
                self.members.insert(member, seen);
            }
            (Some(About::Member(member)), None) => {
                self.members.remove(&member);
            }
            (Some(About::Owner(layout, partition)), entry) => {
                let at = (layout.generation, layout.partitions, partition);
                match entry {
                    Some(entry) => {
                        let owner = Owner::decode(&key, &entry.value)?;
                        self.owners.insert(at, (owner, entry.rev));
                    }
                    None => {
                        self.owners.remove(&at);
                    }
                }
            }
        }
        Ok(())
    }
}

/// What a member says of itself with its next heartbeat.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Says {
    pub(super) definition: Rev,
    pub(super) leaving: bool,
}

/// A member's place among the others, as long as this lives.
#[derive(Debug)]
pub(super) struct Membership {
    pub(super) view: watch::Receiver<View>,
    pub(super) lease: Arc<Lease>,
    pub(super) says: watch::Sender<Says>,
    task: AbortHandle,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Membership {
    pub(super) fn begin(store: Store, keys: Keys, me: SmolStr) -> Self {
        let (view, seen) = watch::channel(View::default());
        let (says, said) = watch::channel(Says::default());
        let lease = Arc::new(Lease::default());
        let watcher = Watcher {
            store,
            keys,
            me,
            view,
            said,
            lease: Arc::clone(&lease),
            beat: 0,
        };
        let task = tokio::spawn(watcher.run()).abort_handle();
        Self {
            view: seen,
            lease,
            says,
            task,
        }
    }
}

struct Watcher {
    store: Store,
    keys: Keys,
    me: SmolStr,
    view: watch::Sender<View>,
    said: watch::Receiver<Says>,
    lease: Arc<Lease>,
    beat: u64,
}

impl Watcher {
    async fn run(mut self) {
        if let Err(error) = self.watch().await {
            self.view.send_modify(|view| view.fault = Some(error));
        }
    }

    async fn watch(&mut self) -> Result<()> {
        let control = self.keys.control()?;
        let mut ticks = tokio::time::interval(BEAT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beating: Option<(Instant, Boxed<'static, Result<Committed>>)> = None;
        // A view that is being read anew replaces the old one once it is complete.
        let mut next = View::default();
        let store = self.store.clone();
        let mut watch: Option<Box<dyn Watch>> = None;
        let mut watch_from = Instant::now();
        let mut said = self.said.clone();
        loop {
            tokio::select! {
                biased;
                answer = answered(&mut beating) => {
                    let Some((sent, _)) = beating.take() else { continue };
                    match answer {
                        Some(Ok(Committed::Done(_) | Committed::Duplicate)) => {
                            self.lease.extend(self.beat, sent, Instant::now());
                        }
                        Some(Ok(Committed::Conflict { .. })) | None => {}
                        Some(Err(error)) if error.retryable() => {
                            tracing::debug!(member = %self.me, %error, "a heartbeat was not stored");
                        }
                        Some(Err(error)) => return Err(error),
                    }
                    // Time has passed: somebody may look dead by now.
                    self.view.send_modify(|_| {});
                }
                _ = ticks.tick(), if beating.is_none() => {
                    beating = Some((Instant::now(), self.heartbeat()?));
                }
                changed = said.changed(), if beating.is_none() => {
                    if changed.is_ok() {
                        beating = Some((Instant::now(), self.heartbeat()?));
                    } else {
                        return Ok(());
                    }
                }
                opened = open(&store, &control, watch_from), if watch.is_none() => match opened {
                    Ok(opened) => {
                        // What is known of members' ages must not begin anew with every watch.
                        let known = self.view.borrow().clone();
                        next = View { beats: known.beats, ..View::default() };
                        watch = Some(opened);
                    }
                    Err(error) if error.retryable() => watch_from = Instant::now() + PAUSE,
                    Err(error) => return Err(error),
                },
                watched = watched(&mut watch) => match watched {
                    Ok(watched) => {
                        let now = Instant::now();
                        next.apply(&self.keys, &self.me, watched, now)?;
                        if next.complete {
                            self.publish(&next);
                        }
                    }
                    Err(error) if error.retryable() || error.kind() == trunkline_core::ErrorKind::Conflict => {
                        tracing::debug!(member = %self.me, %error, "the control records are read anew");
                        watch = None;
                        watch_from = Instant::now() + PAUSE;
                    }
                    Err(error) => return Err(error),
                },
            }
        }
    }

    fn publish(&self, next: &View) {
        self.view.send_modify(|view| {
            let old = std::mem::replace(view, next.clone());
            // A heartbeat that was known before is as old as it was then.
            for (member, seen) in &mut view.members {
                if let Some(before) = old.members.get(member)
                    && before.rev == seen.rev
                {
                    (seen.since, seen.own_beats) = (before.since, before.own_beats);
                }
            }
        });
    }

    fn heartbeat(&mut self) -> Result<Boxed<'static, Result<Committed>>> {
        self.beat += 1;
        let Says {
            definition,
            leaving,
        } = *self.said.borrow();
        let heartbeat = Heartbeat {
            beat: self.beat,
            definition,
            leaving,
        };
        let commit = Commit {
            id: Store::commit_id(),
            fences: Vec::new(),
            ops: vec![put(self.keys.member(&self.me)?, heartbeat.encode()?)],
        };
        let store = self.store.clone();
        Ok(Box::pin(async move {
            store
                .engine
                .state()
                .commit(&store.bucket, commit)
                .completed()
                .await
        }))
    }
}

/// The answer to the heartbeat under way; none if it took too long.
async fn answered(
    beating: &mut Option<(Instant, Boxed<'static, Result<Committed>>)>,
) -> Option<Result<Committed>> {
    match beating {
        Some((sent, answer)) => tokio::time::timeout_at(*sent + ANSWER, answer).await.ok(),
        None => std::future::pending().await,
    }
}

async fn open(
    store: &Store,
    control: &trunkline_core::engine::StateKey,
    from: Instant,
) -> Result<Box<dyn Watch>> {
    tokio::time::sleep_until(from).await;
    store
        .engine
        .state()
        .watch(&store.bucket, Some(control), 0)
        .await
}

async fn watched(watch: &mut Option<Box<dyn Watch>>) -> Result<Watched> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}
