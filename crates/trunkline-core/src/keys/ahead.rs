//! Deciding commits while earlier ones are not applied yet.

use bytes::Bytes;
use rustc_hash::FxHashMap;
use smol_str::SmolStr;

use super::{Changes, Ends, Keys, Step, is_recent};
use crate::engine::{Commit, Committed, Expectation, Op, Rev, StateKey};
use crate::time::Timestamp;

/// What was decided of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is to happen: these are its changes.
    Change(Changes),
    /// It had happened before.
    Duplicate,
    /// It is not to happen: this key is not as expected.
    Conflict {
        /// The key.
        key: StateKey,
        /// Its revision, if it exists.
        found: Option<Rev>,
    },
}

impl Decision {
    /// The changes, or the answer to a commit that has none.
    ///
    /// # Errors
    /// The answer; this is no failure.
    pub fn changes(self) -> Result<Changes, Committed> {
        match self {
            Decision::Change(changes) => Ok(changes),
            Decision::Duplicate => Err(Committed::Duplicate),
            Decision::Conflict { key, found } => Err(Committed::Conflict { key, found }),
        }
    }
}

impl<V> Changes<V> {
    /// What whoever committed them is told.
    pub fn committed(&self) -> Committed {
        Committed::Done((self.first..).take(self.steps.len()).collect())
    }
}

/// Changes that were decided and not yet applied. It belongs to one state of the keys: whoever
/// applies what is in it starts with an empty one.
#[derive(Clone, Debug, Default)]
pub struct Ahead {
    /// The last revision, if there is any.
    rev: Option<Rev>,
    /// Keys as they will be: the revision, and when it ends; none when removed.
    keys: FxHashMap<StateKey, Option<(Rev, Option<Timestamp>)>>,
    ends: Ends,
    commits: FxHashMap<SmolStr, Timestamp>,
    /// Keys of the bucket whose time was up by then are all in here.
    expired_to: Option<Timestamp>,
}

impl Ahead {
    /// Takes note of changes that were decided.
    pub fn note<V>(&mut self, changes: &Changes<V>) {
        for (rev, step) in (changes.first..).zip(&changes.steps) {
            self.rev = Some(rev);
            let (key, after) = match step {
                Step::Put { key, ends, .. } => (key, Some((rev, *ends))),
                Step::Delete(key) | Step::Expire(key) => (key, None),
            };
            if let Some(Some((_, end))) = self.keys.insert(key.clone(), after) {
                self.ends.forget(end, key);
            }
            self.ends.add(after.and_then(|(_, end)| end), key);
        }
        if let Some(id) = &changes.id {
            self.commits.insert(id.clone(), changes.at);
        }
    }
}

impl<V> Keys<V> {
    /// The expiry of keys whose time is up, at most `max` of them and the earliest first, to be
    /// decided before anything else at `now`, again and again until there is none.
    pub fn due(&self, ahead: &mut Ahead, now: Timestamp, max: usize) -> Option<Changes> {
        let kept = self
            .ends
            .due(ahead.expired_to, now)
            .filter(|(_, key)| !ahead.keys.contains_key(*key))
            .take(max);
        let mut due: Vec<_> = kept.chain(ahead.ends.due(None, now).take(max)).collect();
        if due.is_empty() {
            ahead.expired_to = ahead.expired_to.max(Some(now));
            return None;
        }
        due.sort_unstable();
        due.truncate(max);
        Some(Changes {
            id: None,
            at: now,
            first: self.next_rev(ahead),
            steps: due
                .into_iter()
                .map(|(_, key)| Step::Expire(key.clone()))
                .collect(),
        })
    }

    /// Decides a commit on the keys as they will be with what is ahead. What is [`due`](Self::due)
    /// at `now` must be ahead or applied already.
    pub fn decide(&self, ahead: &Ahead, commit: Commit, now: Timestamp) -> Decision {
        let Commit { id, fences, ops } = commit;
        let coming = ahead.commits.get(&id).is_some_and(|at| is_recent(*at, now));
        if coming || self.is_remembered(&id, now) {
            return Decision::Duplicate;
        }
        let fences = fences.iter().map(|(key, expect)| (key, *expect));
        let expectations = ops.iter().map(|op| (op.key(), op.expect()));
        for (key, expect) in fences.chain(expectations) {
            let found = match ahead.keys.get(key) {
                Some(after) => after.map(|(rev, _)| rev),
                None => self.keys.get(key).map(|kept| kept.rev),
            };
            let met = match expect {
                Expectation::Any => true,
                Expectation::Absent => found.is_none(),
                Expectation::Rev(rev) => found == Some(rev),
            };
            if !met {
                return Decision::Conflict {
                    key: key.clone(),
                    found,
                };
            }
        }
        let step = |op| match op {
            Op::Put {
                key, value, ttl, ..
            } => Step::<Bytes>::Put {
                key,
                value,
                ends: ttl.map(|ttl| now.plus(ttl)),
            },
            Op::Delete { key, .. } => Step::Delete(key),
        };
        Decision::Change(Changes {
            id: Some(id),
            at: now,
            first: self.next_rev(ahead),
            steps: ops.into_iter().map(step).collect(),
        })
    }

    fn next_rev(&self, ahead: &Ahead) -> Rev {
        ahead.rev.unwrap_or(self.rev) + 1
    }
}
