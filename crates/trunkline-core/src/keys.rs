//! The keys of one bucket: one state machine for every engine that keeps its own.
//!
//! No I/O, no clock: every call that depends on time is given `now`, so that it can be simulated.
//! Deciding and changing are apart, because an engine on disk may show a change only once it is
//! durable:
//!
//! ```text
//!   commit ──► decide(ahead) ──► Changes ──► write, sync ──► apply ──► readers see it
//!                  ▲                │
//!                  └── Ahead::note ─┘   later commits are decided as if it had been applied
//! ```
//!
//! An engine in memory applies at once and never has anything ahead. What was applied is a pure
//! function of the [`Changes`] in their order, so whoever writes those down can repeat them.

mod ahead;
mod changed;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use smol_str::SmolStr;

use crate::engine::{Credit, Rev, StateKey};
use crate::time::Timestamp;

pub use ahead::{Ahead, Decision};
pub use changed::Changed;

/// How long a commit's id is remembered.
pub const COMMIT_WINDOW: Duration = Duration::from_secs(120);
/// How many changes of a bucket are kept for watches that are behind.
pub const MAX_CHANGES: usize = 65_536;
/// How many bytes the values of those changes hold at most.
pub const MAX_CHANGE_BYTES: usize = 32 << 20;

/// A value that takes memory.
pub trait Held: Clone {
    /// Bytes of memory that it holds, beside itself.
    fn held(&self) -> usize;
}

impl Held for Bytes {
    fn held(&self) -> usize {
        self.len()
    }
}

/// Changes of one bucket that happen together, as they are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes<V = Bytes> {
    /// The commit that they are; none when keys expire.
    pub id: Option<SmolStr>,
    /// When, by the engine's clock.
    pub at: Timestamp,
    /// The revision of the first step; each further step has the next.
    pub first: Rev,
    /// What happens, in order.
    pub steps: Vec<Step<V>>,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<V = Bytes> {
    /// It is set.
    Put {
        /// The key.
        key: StateKey,
        /// Its new value.
        value: V,
        /// When its time to live runs out.
        ends: Option<Timestamp>,
    },
    /// It is removed.
    Delete(StateKey),
    /// Its time to live ran out.
    Expire(StateKey),
}

impl<V> Step<V> {
    /// The key that it changes.
    pub fn key(&self) -> &StateKey {
        match self {
            Step::Put { key, .. } | Step::Delete(key) | Step::Expire(key) => key,
        }
    }

    /// The same with another kind of value.
    ///
    /// # Errors
    /// What `value` refuses.
    pub fn try_map<W, E>(self, value: impl FnOnce(V) -> Result<W, E>) -> Result<Step<W>, E> {
        Ok(match self {
            Step::Put {
                key,
                value: old,
                ends,
            } => Step::Put {
                key,
                value: value(old)?,
                ends,
            },
            Step::Delete(key) => Step::Delete(key),
            Step::Expire(key) => Step::Expire(key),
        })
    }
}

/// A key's value and its story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept<V = Bytes> {
    /// Its value.
    pub value: V,
    /// Its last change.
    pub rev: Rev,
    /// When that was stored, by the engine's clock.
    pub at: Timestamp,
    /// When its time to live runs out.
    pub ends: Option<Timestamp>,
}

/// A page of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPage<V = Bytes> {
    /// In the order of their keys.
    pub entries: Vec<(StateKey, Kept<V>)>,
    /// Where the next page begins, if there is more.
    pub next: Option<StateKey>,
    /// The revision up to which this page has seen everything.
    pub rev: Rev,
}

/// The keys of one bucket as they stand.
#[derive(Clone, Debug)]
pub struct Keys<V = Bytes> {
    keys: BTreeMap<StateKey, Kept<V>>,
    rev: Rev,
    /// What changed with each of the last revisions; the last is `rev`.
    changes: VecDeque<Changed<V>>,
    /// Bytes that the values in `changes` hold.
    change_bytes: usize,
    commits: FxHashMap<SmolStr, Timestamp>,
    commit_order: VecDeque<(SmolStr, Timestamp)>,
    /// How many ids have left `commit_order`.
    forgotten: u64,
    /// Bytes of the ids in `commit_order`.
    id_bytes: usize,
    ends: Ends,
}

impl<V> Default for Keys<V> {
    fn default() -> Self {
        Self::starting_at(0)
    }
}

impl<V> Keys<V> {
    /// An empty bucket whose next change has the revision after `rev`.
    pub fn starting_at(rev: Rev) -> Self {
        Self {
            keys: BTreeMap::new(),
            rev,
            changes: VecDeque::new(),
            change_bytes: 0,
            commits: FxHashMap::default(),
            commit_order: VecDeque::new(),
            forgotten: 0,
            id_bytes: 0,
            ends: Ends::default(),
        }
    }

    /// The revision of the last change.
    pub fn rev(&self) -> Rev {
        self.rev
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// A key as it stands. It stands until its expiry is applied, even when its time is up.
    pub fn get(&self, key: &StateKey) -> Option<&Kept<V>> {
        self.keys.get(key)
    }

    /// Every key after `after`, in order.
    pub fn after<'a>(
        &'a self,
        after: Option<&StateKey>,
    ) -> impl Iterator<Item = (&'a StateKey, &'a Kept<V>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.keys.range((from, Bound::Unbounded))
    }

    /// The end of the time to live that runs out first.
    pub fn next_end(&self) -> Option<Timestamp> {
        self.ends.first()
    }

    /// Puts a key in as it was kept elsewhere, which is no change. Gives what was kept of it here.
    pub fn put_in(&mut self, key: StateKey, kept: Kept<V>) -> Option<Kept<V>> {
        let ends = kept.ends;
        let before = match ends {
            None => return self.put_without_end(key, kept),
            Some(_) => self.keys.insert(key.clone(), kept),
        };
        self.ends
            .forget(before.as_ref().and_then(|kept| kept.ends), &key);
        self.ends.add(ends, &key);
        before
    }

    fn put_without_end(&mut self, key: StateKey, kept: Kept<V>) -> Option<Kept<V>> {
        let ending = self.ends.first().and_then(|_| self.keys.get(&key)?.ends);
        self.ends.forget(ending, &key);
        self.keys.insert(key, kept)
    }

    /// Keeps a key's value in another place, if the key is still as of `rev`: its content stays, so
    /// this is no change. Gives the value that was there.
    ///
    /// # Errors
    /// The value, when the key has changed since.
    pub fn swap_value(&mut self, key: &StateKey, rev: Rev, value: V) -> Result<V, V> {
        match self.keys.get_mut(key) {
            Some(kept) if kept.rev == rev => Ok(std::mem::replace(&mut kept.value, value)),
            _ => Err(value),
        }
    }

    /// Remembers a commit, and forgets those that lie a window before it.
    pub fn remember(&mut self, id: SmolStr, at: Timestamp) {
        let oldest = at.minus(COMMIT_WINDOW);
        while let Some((id, at)) = self.commit_order.pop_front_if(|(_, at)| *at < oldest) {
            self.forgotten += 1;
            self.id_bytes -= id.len();
            if self.commits.get(&id) == Some(&at) {
                self.commits.remove(&id);
            }
        }
        // One that is known from as late or later comes from a copy that was taken meanwhile.
        if self.commits.get(&id).is_none_or(|known| *known < at) {
            self.id_bytes += id.len();
            self.commit_order.push_back((id.clone(), at));
            self.commits.insert(id, at);
        }
    }

    /// Commits remembered, from the `from`-th ever on, and the number of the first of them.
    pub fn remembered(&self, from: u64) -> (u64, impl Iterator<Item = &(SmolStr, Timestamp)>) {
        let skip = usize::try_from(from.saturating_sub(self.forgotten)).unwrap_or(usize::MAX);
        let first = from.max(self.forgotten);
        (first, self.commit_order.iter().skip(skip))
    }

    /// How many commits are remembered.
    pub fn remembered_len(&self) -> usize {
        self.commit_order.len()
    }

    /// Bytes of their ids.
    pub fn remembered_bytes(&self) -> usize {
        self.id_bytes
    }

    fn is_remembered(&self, id: &SmolStr, now: Timestamp) -> bool {
        self.commits.get(id).is_some_and(|at| is_recent(*at, now))
    }
}

impl<V: Held> Keys<V> {
    /// Applies changes; `each` is told how every key that changes was and will be. Steps that a
    /// bucket has seen are passed over: those up to its revision, and those of keys that have been
    /// put in at a later one, as happens when a copy was taken while the bucket went on.
    pub fn apply(
        &mut self,
        changes: Changes<V>,
        mut each: impl FnMut(&StateKey, Option<&Kept<V>>, Option<&Kept<V>>),
    ) {
        let Changes {
            id,
            at,
            first,
            steps,
        } = changes;
        if let Some(id) = id {
            self.remember(id, at);
        }
        for (rev, step) in (first..).zip(steps) {
            if rev <= self.rev {
                continue;
            }
            self.rev = rev;
            let (key, after, changed) = match step {
                Step::Put { key, value, ends } => {
                    let after = Kept {
                        value,
                        rev,
                        at,
                        ends,
                    };
                    (key.clone(), Some(after.clone()), Changed::Put(key, after))
                }
                Step::Delete(key) => (key.clone(), None, Changed::Deleted(key, rev, at)),
                Step::Expire(key) => (key.clone(), None, Changed::Expired(key, rev, at)),
            };
            self.note(changed);
            let before = self.keys.get(&key);
            if before.is_some_and(|kept| kept.rev >= rev) {
                continue;
            }
            each(&key, before, after.as_ref());
            self.ends.forget(before.and_then(|kept| kept.ends), &key);
            match after {
                Some(after) => {
                    self.ends.add(after.ends, &key);
                    self.keys.insert(key, after);
                }
                None => drop(self.keys.remove(&key)),
            }
        }
    }

    /// A page of keys at or below `prefix`, after `after`, whose values have `size` bytes.
    pub fn scan(
        &self,
        prefix: Option<&StateKey>,
        after: Option<&StateKey>,
        max: Credit,
        size: impl Fn(&V) -> usize,
    ) -> KeptPage<V> {
        let from = match (prefix, after) {
            (_, Some(after)) => Bound::Excluded(after),
            (Some(prefix), None) => Bound::Included(prefix),
            (None, None) => Bound::Unbounded,
        };
        let (mut entries, mut bytes, mut next) = (Vec::new(), 0, None);
        for (key, kept) in self.keys.range((from, Bound::Unbounded)) {
            if !key.is_below(prefix) {
                // Below `a` come `a`, then `a-b`, then `a.b`: other keys may lie between.
                if prefix.is_some_and(|prefix| !key.as_str().starts_with(prefix.as_str())) {
                    break;
                }
                continue;
            }
            bytes += size(&kept.value);
            if entries.len() == max.items || (!entries.is_empty() && bytes > max.bytes) {
                next = entries
                    .last()
                    .map(|(key, _): &(StateKey, Kept<V>)| key.clone());
                break;
            }
            entries.push((key.clone(), kept.clone()));
        }
        KeptPage {
            entries,
            next,
            rev: self.rev,
        }
    }
}

fn is_recent(at: Timestamp, now: Timestamp) -> bool {
    at >= now.minus(COMMIT_WINDOW)
}

/// When keys end, in that order. The key is optional, so that a moment before all keys has a name.
#[derive(Clone, Debug, Default)]
struct Ends(BTreeSet<(Timestamp, Option<StateKey>)>);

impl Ends {
    fn first(&self) -> Option<Timestamp> {
        self.0.first().map(|(end, _)| *end)
    }

    fn add(&mut self, end: Option<Timestamp>, key: &StateKey) {
        self.0.extend(end.map(|end| (end, Some(key.clone()))));
    }

    fn forget(&mut self, end: Option<Timestamp>, key: &StateKey) {
        if let Some(end) = end {
            self.0.remove(&(end, Some(key.clone())));
        }
    }

    /// What ends at `now` or before, but after `after`.
    fn due(
        &self,
        after: Option<Timestamp>,
        now: Timestamp,
    ) -> impl Iterator<Item = (Timestamp, &StateKey)> {
        let from = after.map_or(Bound::Unbounded, |after| {
            Bound::Included((after.plus(Duration::from_nanos(1)), None))
        });
        self.0
            .range((from, Bound::Unbounded))
            .take_while(move |(end, _)| *end <= now)
            .filter_map(|(end, key)| Some((*end, key.as_ref()?)))
    }
}

#[cfg(test)]
mod tests;
