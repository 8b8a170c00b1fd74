//! Small keys: committed by the journal, read from what it has published.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;
use trunkline_core::Result;
use trunkline_core::engine::{
    Admission, Admitted, Boxed, Bucket, Commit, Committed, Credit, Entries, Entry, Link, Op, Rev,
    State, StateKey, Watch, Watched,
};
use trunkline_core::keys::Kept;
use trunkline_core::local::until_closed;

use super::committer::{Job, answer};
use super::{Bus, LogEngine, closed};
use crate::journal::{SharedKeys, Value};

impl Bus {
    /// Has keys go whose time is up. When they go does not depend on whether anybody looks, but that
    /// they are gone is written down only then.
    async fn expire(&self, keys: &SharedKeys) -> Result<()> {
        let now = self.clock.now();
        let is_due = keys.read().next_end().is_some_and(|end| end <= now);
        match is_due {
            true => self.committer.ask(|reply| Job::Expire { reply }).await,
            false => Ok(()),
        }
    }

    /// The entry, if its value is still where it was.
    fn entry(&self, key: StateKey, kept: &Kept<Value>) -> Result<Option<Entry>> {
        let value = self.keys.read(&kept.value)?;
        Ok(value.map(|value| Entry {
            key,
            value,
            rev: kept.rev,
            at: kept.at,
        }))
    }
}

impl State for LogEngine {
    fn commit(&self, bucket: &Bucket, commit: Commit) -> Admitted<'_, Committed> {
        let bucket = bucket.clone();
        Admitted::waiting(async move {
            self.check_open()?;
            let values = commit.ops.iter().map(|op| match op {
                Op::Put { value, .. } => value.len(),
                Op::Delete { .. } => 0,
            });
            let job = |reply| Job::Commit {
                bucket,
                commit: commit.clone(),
                reply,
            };
            let queued = self.bus.committer.queue(values.sum(), job).await?;
            Ok(Admission::waiting(answer(queued)))
        })
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
        Box::pin(async move {
            self.check_open()?;
            self.bus.expire(&self.bus.keys.bucket(bucket)?).await?;
            self.bus.keys.scan(bucket, prefix, after, max)
        })
    }

    fn watch<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        from: Rev,
    ) -> Boxed<'a, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            self.check_open()?;
            let keys = self.bus.keys.bucket(bucket)?;
            self.bus.expire(&keys).await?;
            let mut first = VecDeque::new();
            let mut seen = from;
            if from == 0 {
                let keys = keys.read();
                let mut present: Vec<_> = keys
                    .after(None)
                    .filter(|(key, _)| key.is_below(prefix))
                    .map(|(key, kept)| (key.clone(), kept.clone()))
                    .collect();
                present.sort_unstable_by_key(|(_, kept)| kept.rev);
                first.extend(present);
                seen = keys.rev();
            } else {
                // Says at once that changes are no longer kept.
                keys.read().changed(prefix, &mut seen.clone())?;
            }
            let watch: Box<dyn Watch> = Box::new(LogWatch {
                bus: Arc::clone(&self.bus),
                link: self.link.subscribe(),
                bucket: bucket.clone(),
                keys,
                prefix: prefix.cloned(),
                first,
                seen,
                caught_up: false,
            });
            Ok(watch)
        })
    }
}

struct LogWatch {
    bus: Arc<Bus>,
    link: watch::Receiver<Link>,
    bucket: Bucket,
    keys: SharedKeys,
    prefix: Option<StateKey>,
    /// The present state, for a watch that began with it.
    first: VecDeque<(StateKey, Kept<Value>)>,
    seen: Rev,
    caught_up: bool,
}

impl LogWatch {
    /// The next change, or `None` when there is none yet.
    fn next_now(&mut self) -> Result<Option<Watched>> {
        while let Some((key, kept)) = self.first.pop_front() {
            if let Some(entry) = self.bus.entry(key.clone(), &kept)? {
                return Ok(Some(Watched::Put(entry)));
            }
            // It has moved, and its key says where to; or it was changed, which is told later.
            let now = self.keys.read().get(&key).cloned();
            if let Some(now) = now.filter(|now| now.rev == kept.rev) {
                self.first.push_front((key, now));
            }
        }
        let changed = self
            .bus
            .keys
            .changed(&self.keys, self.prefix.as_ref(), &mut self.seen)?;
        if changed.is_some() {
            return Ok(changed);
        }
        if !self.caught_up {
            self.caught_up = true;
            return Ok(Some(Watched::CaughtUp(self.seen)));
        }
        Ok(None)
    }
}

impl Watch for LogWatch {
    fn next(&mut self) -> Boxed<'_, Result<Watched>> {
        Box::pin(async move {
            loop {
                if *self.link.borrow() == Link::Closed {
                    return Err(closed());
                }
                self.bus.expire(&self.keys).await?;
                let changed = self.bus.changed.of(&self.bucket);
                let changed = changed.notified();
                tokio::pin!(changed);
                // From here on a change wakes it, so that none falls between looking and waiting.
                changed.as_mut().enable();
                if let Some(change) = self.next_now()? {
                    return Ok(change);
                }
                let wait = self
                    .keys
                    .read()
                    .next_end()
                    .map(|end| end.since(self.bus.clock.now()));
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
