//! The server's end: the engine, replicas of it that lag, and readers that live there.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use trunkline::core::engine::{
    Bucket, Commit, Committed, Credit, Delivery, Engine, Entries, Entry, Feed, Fetched, Follow,
    Followed, Heard, Listener, Message, Rev, StateKey, StoredEvent, Watch, Watched,
};
use trunkline::{Error, ErrorKind, Result};

use super::faults::Faults;
use super::host::Port;
use super::hub::{Arrival, Call, Cargo, Hub, Packet};
use super::world::HostId;

/// Snapshots of one bucket that are kept for stale answers.
const SNAPSHOTS: usize = 6;

/// Who is to be answered: a host and which life of it.
pub(crate) type Asker = (HostId, u32);

pub(crate) struct Site {
    pub(crate) engine: Arc<dyn Engine>,
    /// The server's own clock.
    pub(crate) port: Arc<Port>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) faults: Mutex<Faults>,
    snapshots: Mutex<BTreeMap<Bucket, VecDeque<Snapshot>>>,
}

/// A bucket as it once was.
struct Snapshot {
    rev: Rev,
    entries: Vec<Entry>,
}

/// What a follower came upon, with the events.
pub(crate) type Events = (Followed, Vec<StoredEvent>);

impl Site {
    pub(crate) fn new(engine: Arc<dyn Engine>, port: Arc<Port>, faults: Faults) -> Self {
        Self {
            engine,
            hub: Arc::clone(&port.hub),
            port,
            faults: Mutex::new(faults),
            snapshots: Mutex::default(),
        }
    }

    /// Sends an answer to a host.
    pub(crate) fn answer(
        &self,
        (host, life): Asker,
        call: Call,
        lane: Option<u64>,
        answer: impl FnOnce(Arrival) + Send + 'static,
    ) {
        self.hub.send(Packet {
            host,
            life,
            sent: self.port.now(),
            call,
            lane,
            cargo: Cargo::Down(Box::new(answer)),
        });
    }

    pub(crate) async fn commit(&self, bucket: &Bucket, commit: Commit) -> Result<Committed> {
        let text = self.hub.is_verbose.then(|| described(&commit));
        let committed = self.engine.state().commit(bucket, commit).completed().await;
        if let Some(text) = text {
            self.port.note(1, || format!("{text}: {committed:?}"));
        }
        let stale = self.faults.lock().stale_scans;
        if stale > 0.0 && matches!(committed, Ok(Committed::Done(_))) && self.hub.chance(0.2) {
            let everything = Credit::items(usize::MAX);
            let now = self.engine.state().scan(bucket, None, None, 0, everything);
            let Entries { entries, rev, .. } = now.await?;
            let mut snapshots = self.snapshots.lock();
            let kept = snapshots.entry(bucket.clone()).or_default();
            kept.push_back(Snapshot { rev, entries });
            if kept.len() > SNAPSHOTS {
                kept.pop_front();
            }
        }
        committed
    }

    pub(crate) async fn scan(
        &self,
        bucket: &Bucket,
        prefix: Option<&StateKey>,
        after: Option<&StateKey>,
        at_least: Rev,
        max: Credit,
    ) -> Result<Entries> {
        let stale = self.faults.lock().stale_scans;
        if self.hub.chance(stale)
            && let Some(kept) = self.snapshots.lock().get(bucket)
        {
            let usable: Vec<_> = kept.iter().filter(|old| old.rev >= at_least).collect();
            if !usable.is_empty() {
                let old = usable[self.hub.pick(0..usable.len() as u64) as usize];
                self.port
                    .note(2, || format!("a replica at revision {} answers", old.rev));
                return Ok(old.page(prefix, after, max));
            }
        }
        let scan = self.engine.state();
        scan.scan(bucket, prefix, after, at_least, max).await
    }

    /// Serves a follower for as long as somebody asks.
    pub(crate) async fn follow(
        self: Arc<Self>,
        asker: Asker,
        lane: u64,
        mut follow: Box<dyn Follow>,
        mut demands: UnboundedReceiver<Credit>,
        told: UnboundedSender<Result<Events>>,
    ) {
        while let Some(credit) = demands.recv().await {
            let mut events = Vec::new();
            let followed = tokio::select! {
                biased;
                () = told.closed() => return,
                followed = follow.next(credit, &mut events) => followed,
            };
            let ends = !matches!(followed, Ok(Followed::Events { .. } | Followed::Gap(_)));
            let told = told.clone();
            self.answer(asker, Call::Told, Some(lane), move |arrival| {
                if arrival == Arrival::Broken {
                    let _ = told.send(Err(broken()));
                }
                let _ = told.send(followed.map(|followed| (followed, events)));
            });
            if ends {
                return;
            }
        }
    }

    /// Serves a watch until nobody listens.
    pub(crate) async fn watch(
        self: Arc<Self>,
        asker: Asker,
        lane: u64,
        mut watch: Box<dyn Watch>,
        told: UnboundedSender<Result<Watched>>,
    ) {
        loop {
            let watched = tokio::select! {
                biased;
                () = told.closed() => return,
                watched = watch.next() => watched,
            };
            let ends = watched.is_err();
            let told = told.clone();
            self.answer(asker, Call::Told, Some(lane), move |arrival| {
                if arrival == Arrival::Broken {
                    let _ = told.send(Err(broken()));
                }
                let _ = told.send(watched);
            });
            if ends {
                return;
            }
        }
    }

    /// Serves a listener until nobody listens.
    pub(crate) async fn listen(
        self: Arc<Self>,
        asker: Asker,
        lane: u64,
        mut listener: Box<dyn Listener>,
        told: UnboundedSender<(Heard, Vec<Message>)>,
    ) {
        loop {
            let mut messages = Vec::new();
            let heard = tokio::select! {
                biased;
                () = told.closed() => return,
                heard = listener.receive(64, &mut messages) => heard,
            };
            let ends = heard == Heard::Closed;
            let told = told.clone();
            self.answer(asker, Call::Told, Some(lane), move |_| {
                let _ = told.send((heard, messages));
            });
            if ends {
                return;
            }
        }
    }

    /// Serves a member of a shared consumer for as long as it asks.
    pub(crate) async fn feed(
        self: Arc<Self>,
        asker: Asker,
        mut feed: Box<dyn Feed>,
        mut demands: UnboundedReceiver<Credit>,
        told: UnboundedSender<Result<(Fetched, Vec<Delivery>)>>,
    ) {
        while let Some(mut credit) = demands.recv().await {
            // Who asked again, because no answer came, wants one answer.
            while let Ok(newer) = demands.try_recv() {
                credit = newer;
            }
            let mut deliveries = Vec::new();
            let fetched = tokio::select! {
                biased;
                () = told.closed() => return,
                fetched = feed.fetch(credit, &mut deliveries) => fetched,
            };
            let lost_hints = self.faults.lock().lost_hints;
            for delivery in &mut deliveries {
                if delivery.delivered_hint > 1 && self.hub.chance(lost_hints) {
                    delivery.delivered_hint -= 1;
                }
            }
            let ends = !matches!(fetched, Ok(Fetched::Deliveries(_) | Fetched::Gap(_)));
            let told = told.clone();
            self.answer(asker, Call::Deliveries, None, move |_| {
                let _ = told.send(fetched.map(|fetched| (fetched, deliveries)));
            });
            if ends {
                return;
            }
        }
    }
}

impl Snapshot {
    fn page(&self, prefix: Option<&StateKey>, after: Option<&StateKey>, max: Credit) -> Entries {
        let mut matching = self
            .entries
            .iter()
            .filter(|entry| entry.key.is_below(prefix) && after.is_none_or(|at| entry.key > *at));
        let entries: Vec<_> = matching.by_ref().take(max.items.max(1)).cloned().collect();
        let more = matching.next().is_some();
        Entries {
            next: entries
                .last()
                .filter(|_| more)
                .map(|entry| entry.key.clone()),
            entries,
            rev: self.rev,
        }
    }
}

fn broken() -> Error {
    Error::new(
        ErrorKind::Disconnected,
        "the reader broke; it goes on where it was",
    )
}

/// For the trace: what a commit changes, and under which conditions.
fn described(commit: &Commit) -> String {
    use trunkline::core::engine::Op;
    let fences: Vec<_> = commit
        .fences
        .iter()
        .map(|(key, expect)| format!("{key} {expect:?}"))
        .collect();
    let ops: Vec<_> = commit
        .ops
        .iter()
        .map(|op| match op {
            Op::Put {
                key, value, expect, ..
            } => {
                let value = String::from_utf8_lossy(value);
                let value: String = value.chars().take(200).collect();
                format!("{key} ({expect:?}) = {value}")
            }
            Op::Delete { key, expect } => format!("delete {key} ({expect:?})"),
        })
        .collect();
    let (id, fences, ops) = (&commit.id, fences.join(", "), ops.join("; "));
    format!("commit {id} [{fences}] {ops}")
}
