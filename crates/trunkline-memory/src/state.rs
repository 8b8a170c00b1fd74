//! Small keys: commits, scans and watches over the bucket of core.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use trunkline_core::engine::{
    Admitted, Boxed, Bucket, Commit, Committed, Credit, Engine, Entries, Entry, Link, Op, Rev,
    State, StateKey, Watch, Watched,
};
use trunkline_core::keys::{Ahead, Changed, Changes, Kept, Keys};
use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use crate::{Bus, MemoryEngine, closed};
use trunkline_core::local::until_closed;

#[derive(Default)]
pub(crate) struct BucketStore {
    keys: Keys,
    changed: Arc<Notify>,
}

impl BucketStore {
    /// Removes every key whose time is up, each as a change of its own.
    fn expire(&mut self, now: Timestamp) {
        if let Some(expired) = self.keys.due(&mut Ahead::default(), now, usize::MAX) {
            self.apply(expired);
        }
    }

    fn apply(&mut self, changes: Changes) {
        self.keys.apply(changes, |_, _, _| {});
        self.changed.notify_waiters();
    }

    fn commit(&mut self, commit: Commit, now: Timestamp) -> Committed {
        self.expire(now);
        match self.keys.decide(&Ahead::default(), commit, now).changes() {
            Ok(changes) => {
                let committed = changes.committed();
                self.apply(changes);
                committed
            }
            Err(answer) => answer,
        }
    }
}

fn entry(key: StateKey, kept: Kept) -> Entry {
    let Kept { value, rev, at, .. } = kept;
    Entry {
        key,
        value,
        rev,
        at,
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
            let page = store.keys.scan(prefix, after, max, Bytes::len);
            Ok(Entries {
                entries: page
                    .entries
                    .into_iter()
                    .map(|(key, kept)| entry(key, kept))
                    .collect(),
                next: page.next,
                rev: page.rev,
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
                let present = store.keys.after(None);
                let mut present: Vec<_> = present
                    .filter(|(key, _)| key.is_below(prefix))
                    .map(|(key, kept)| entry(key.clone(), kept.clone()))
                    .collect();
                present.sort_unstable_by_key(|entry| entry.rev);
                first.extend(present.into_iter().map(Watched::Put));
                seen = store.keys.rev();
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
        let changed = store.keys.changed(self.prefix.as_ref(), &mut self.seen)?;
        if let Some(changed) = changed {
            return Ok(Some(match changed {
                Changed::Put(key, kept) => Watched::Put(entry(key, kept)),
                Changed::Deleted(key, rev, at) => Watched::Deleted { key, rev, at },
                Changed::Expired(key, rev, at) => Watched::Expired { key, rev, at },
            }));
        }
        if !self.caught_up {
            self.caught_up = true;
            return Ok(Some(Watched::CaughtUp(store.keys.rev())));
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
                    store.keys.next_end().map(|end| end.since(now))
                };
                let due = async {
                    match wait {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = due => {}
                    () = until_closed(self.link.clone()) => return Err(closed()),
                }
            }
        })
    }
}
