//! Small keys: commits, scans and watches over one ordered map a bucket.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use smol_str::SmolStr;
use tokio::sync::{Notify, watch};
use trunkline_core::engine::{
    Admitted, Boxed, Bucket, Commit, Committed, Credit, Engine, Entries, Entry, Expectation, Link,
    Op, Rev, State, StateKey, Watch, Watched,
};
use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use crate::{Bus, MemoryEngine, closed, until_closed};

/// How long a commit's id is remembered.
const COMMIT_WINDOW: Duration = Duration::from_secs(120);
/// How many changes are kept for watches that are behind.
const MAX_CHANGES: usize = 65_536;

#[derive(Default)]
pub(crate) struct BucketStore {
    keys: BTreeMap<StateKey, Kept>,
    rev: Rev,
    /// One for each revision; the last is `rev`.
    changes: VecDeque<Watched>,
    commits: FxHashMap<SmolStr, Timestamp>,
    commit_order: VecDeque<SmolStr>,
    ends: BTreeSet<(Timestamp, StateKey)>,
    changed: Arc<Notify>,
}

struct Kept {
    entry: Entry,
    ends: Option<Timestamp>,
}

impl BucketStore {
    /// Removes every key whose time is up, each as a change of its own.
    fn expire(&mut self, now: Timestamp) {
        while self.next_end().is_some_and(|end| end <= now) {
            let Some((_, key)) = self.ends.pop_first() else {
                break;
            };
            self.keys.remove(&key);
            self.rev += 1;
            self.record(Watched::Expired {
                key,
                rev: self.rev,
                at: now,
            });
        }
    }

    fn record(&mut self, change: Watched) {
        self.changes.push_back(change);
        if self.changes.len() > MAX_CHANGES {
            self.changes.pop_front();
        }
        self.changed.notify_waiters();
    }

    fn commit(&mut self, commit: Commit, now: Timestamp) -> Committed {
        self.expire(now);
        let oldest = now.minus(COMMIT_WINDOW);
        while let Some(id) = self
            .commit_order
            .pop_front_if(|id| self.commits.get(id).is_none_or(|at| *at < oldest))
        {
            self.commits.remove(&id);
        }
        if self.commits.contains_key(&commit.id) {
            return Committed::Duplicate;
        }
        let expectations = commit.ops.iter().map(|op| match op {
            Op::Put { key, expect, .. } | Op::Delete { key, expect } => (key, *expect),
        });
        let fences = commit.fences.iter().map(|(key, expect)| (key, *expect));
        for (key, expect) in fences.chain(expectations) {
            let found = self.keys.get(key).map(|kept| kept.entry.rev);
            let met = match expect {
                Expectation::Any => true,
                Expectation::Absent => found.is_none(),
                Expectation::Rev(rev) => found == Some(rev),
            };
            if !met {
                return Committed::Conflict {
                    key: key.clone(),
                    found,
                };
            }
        }
        self.commit_order.push_back(commit.id.clone());
        self.commits.insert(commit.id, now);
        Committed::Done(
            commit
                .ops
                .into_iter()
                .map(|op| self.change(op, now))
                .collect(),
        )
    }

    fn change(&mut self, op: Op, now: Timestamp) -> Rev {
        self.rev += 1;
        let rev = self.rev;
        match op {
            Op::Put {
                key, value, ttl, ..
            } => {
                let ends = ttl.map(|ttl| now.plus(ttl));
                let entry = Entry {
                    key: key.clone(),
                    value,
                    rev,
                    at: now,
                };
                self.record(Watched::Put(entry.clone()));
                let before = self.keys.insert(key.clone(), Kept { entry, ends });
                self.forget_end(&key, before);
                self.ends.extend(ends.map(|ends| (ends, key)));
            }
            Op::Delete { key, .. } => {
                let before = self.keys.remove(&key);
                self.forget_end(&key, before);
                self.record(Watched::Deleted { key, rev, at: now });
            }
        }
        rev
    }

    fn forget_end(&mut self, key: &StateKey, before: Option<Kept>) {
        if let Some(ends) = before.and_then(|kept| kept.ends) {
            self.ends.remove(&(ends, key.clone()));
        }
    }

    fn next_end(&self) -> Option<Timestamp> {
        self.ends.first().map(|(ends, _)| *ends)
    }
}

impl MemoryEngine {
    fn bucket(&self, bucket: &Bucket) -> Result<Arc<Mutex<BucketStore>>> {
        self.check_open()?;
        Ok(Arc::clone(
            self.bus.buckets.lock().entry(bucket.clone()).or_default(),
        ))
    }

    fn check_commit(&self, commit: &Commit) -> Result<()> {
        let (limits, mut seen) = (self.limits(), BTreeSet::new());
        let refuse =
            |kind, fault: String| Err(Error::new(kind, format!("commit {}: {fault}", commit.id)));
        if commit.ops.len() > limits.max_batch {
            return refuse(
                ErrorKind::OverLimit,
                format!(
                    "{} changes, the limit is {}",
                    commit.ops.len(),
                    limits.max_batch
                ),
            );
        }
        for op in &commit.ops {
            let (Op::Put { key, .. } | Op::Delete { key, .. }) = op;
            if !seen.insert(key) {
                return refuse(
                    ErrorKind::InvalidConfig,
                    format!("key {key} occurs twice; a commit changes a key once"),
                );
            }
            if let Op::Put { value, .. } = op
                && value.len() > limits.max_value
            {
                let size = value.len();
                return refuse(
                    ErrorKind::TooLarge,
                    format!(
                        "the value of {key} has {size} bytes, the limit is {}",
                        limits.max_value
                    ),
                );
            }
        }
        Ok(())
    }
}

impl State for MemoryEngine {
    fn commit(&self, bucket: &Bucket, commit: Commit) -> Admitted<'_, Committed> {
        let committed = self
            .check_commit(&commit)
            .and_then(|()| self.bucket(bucket))
            .map(|store| {
                let mut store = store.lock();
                store.commit(commit, self.bus.clock.now())
            });
        Admitted::done(committed)
    }

    fn scan<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        after: Option<&'a StateKey>,
        _at_least: Rev,
        max: Credit,
    ) -> Boxed<'a, Result<Entries>> {
        // There is one copy of the keys, so every revision that a caller knows has been seen.
        let scan = || {
            let store = self.bucket(bucket)?;
            let mut store = store.lock();
            store.expire(self.bus.clock.now());
            let from = match (prefix, after) {
                (_, Some(after)) => std::ops::Bound::Excluded(after),
                (Some(prefix), None) => std::ops::Bound::Included(prefix),
                (None, None) => std::ops::Bound::Unbounded,
            };
            let (mut entries, mut bytes, mut next) = (Vec::new(), 0, None);
            for (key, kept) in store.keys.range((from, std::ops::Bound::Unbounded)) {
                if !key.is_below(prefix) {
                    // Below `a` come `a`, then `a-b`, then `a.b`: other keys may lie between.
                    if prefix.is_some_and(|prefix| !key.as_str().starts_with(prefix.as_str())) {
                        break;
                    }
                    continue;
                }
                bytes += kept.entry.value.len();
                if entries.len() == max.items || (!entries.is_empty() && bytes > max.bytes) {
                    next = entries.last().map(|entry: &Entry| entry.key.clone());
                    break;
                }
                entries.push(kept.entry.clone());
            }
            Ok(Entries {
                entries,
                next,
                rev: store.rev,
            })
        };
        Box::pin(std::future::ready(scan()))
    }

    fn watch<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        from: Rev,
    ) -> Boxed<'a, Result<Box<dyn Watch>>> {
        let watch = || {
            let shared = self.bucket(bucket)?;
            let mut store = shared.lock();
            store.expire(self.bus.clock.now());
            let mut first = VecDeque::new();
            let mut seen = from;
            if from == 0 {
                let present = store
                    .keys
                    .values()
                    .filter(|kept| kept.entry.key.is_below(prefix));
                let mut present: Vec<_> = present.map(|kept| kept.entry.clone()).collect();
                present.sort_unstable_by_key(|entry| entry.rev);
                first.extend(present.into_iter().map(Watched::Put));
                seen = store.rev;
            }
            let watch: Box<dyn Watch> = Box::new(MemoryWatch {
                bus: Arc::clone(&self.bus),
                link: self.link.subscribe(),
                store: Arc::clone(&shared),
                prefix: prefix.cloned(),
                first,
                seen,
                caught_up: false,
            });
            Ok(watch)
        };
        Box::pin(std::future::ready(watch()))
    }
}

struct MemoryWatch {
    bus: Arc<Bus>,
    link: watch::Receiver<Link>,
    store: Arc<Mutex<BucketStore>>,
    prefix: Option<StateKey>,
    /// The present state, for a watch that began with it.
    first: VecDeque<Watched>,
    seen: Rev,
    caught_up: bool,
}

impl MemoryWatch {
    /// The next change, or `None` when there is none yet.
    fn next_now(&mut self, store: &BucketStore) -> Result<Option<Watched>> {
        if let Some(present) = self.first.pop_front() {
            return Ok(Some(present));
        }
        let kept_from = store.rev - store.changes.len() as u64;
        if self.seen < kept_from {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "changes after revision {} are kept only from {kept_from} on; scan anew",
                    self.seen
                ),
            ));
        }
        while self.seen < store.rev {
            let change = usize::try_from(self.seen - kept_from)
                .ok()
                .and_then(|index| store.changes.get(index));
            self.seen += 1;
            let key = match change {
                Some(Watched::Put(entry)) => Some(&entry.key),
                Some(Watched::Deleted { key, .. } | Watched::Expired { key, .. }) => Some(key),
                _ => None,
            };
            if key.is_some_and(|key| key.is_below(self.prefix.as_ref())) {
                return Ok(change.cloned());
            }
        }
        if !self.caught_up {
            self.caught_up = true;
            return Ok(Some(Watched::CaughtUp(store.rev)));
        }
        Ok(None)
    }
}

impl Watch for MemoryWatch {
    fn next(&mut self) -> Boxed<'_, Result<Watched>> {
        Box::pin(async move {
            loop {
                if *self.link.borrow() == Link::Closed {
                    return Err(closed());
                }
                let changed = Arc::clone(&self.store.lock().changed);
                let changed = changed.notified();
                let store = Arc::clone(&self.store);
                let wait = {
                    let mut store = store.lock();
                    let now = self.bus.clock.now();
                    store.expire(now);
                    if let Some(change) = self.next_now(&store)? {
                        return Ok(change);
                    }
                    store.next_end().map(|end| end.since(now))
                };
                let due = async {
                    match wait {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = changed => {}
                    () = due => {}
                    () = until_closed(self.link.clone()) => return Err(closed()),
                }
            }
        })
    }
}
