//! Keys of many runs in few commits.
//!
//! A commit costs an engine about the same however many keys it changes, and the runs of a member
//! change keys all the time. What comes while commits are under way is therefore put into the next
//! one. A commit happens whole or not at all, so a key that is not as its run expected is taken out
//! and the others are tried again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use smol_str::{SmolStr, format_smolstr};
use tokio::sync::oneshot;
use trunkline_core::engine::{Commit, Committed, Op, Rev};
use trunkline_core::{Error, ErrorKind, Name, Result};

use crate::bus::Bus;

/// Commits under way at once.
const MAX_UNDER_WAY: usize = 2;
/// Keys in one commit at most.
const MAX_KEYS: usize = 256;
/// After that many keys of one commit were not as expected, the rest go one by one: there are many
/// duplicates, and each would cost a repeat of all the others.
const MAX_CONFLICTS: usize = 2;
/// How often a commit is repeated whose outcome is unknown.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// What became of one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It happened; the key has this revision.
    Done(Rev),
    /// The key was not as expected.
    Conflict,
    /// It had happened, before an answer was lost: look which revision it was given.
    Repeated,
}

pub(super) struct Commits {
    bus: Bus,
    bucket: Name,
    /// Makes the ids of commits differ from those of other members.
    member: SmolStr,
    number: AtomicU64,
    /// The newest revision that was heard of: what is read must not be older.
    seen: AtomicU64,
    /// Whether the engine answers without being waited for, as long as nothing else was seen.
    answers_at_once: AtomicBool,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    under_way: usize,
}

struct Waiting {
    op: Op,
    answer: oneshot::Sender<Result<Answer>>,
}

impl Commits {
    pub(super) fn new(bus: &Bus, bucket: Name, member: SmolStr) -> Self {
        Self {
            bus: bus.clone(),
            bucket,
            member,
            number: AtomicU64::new(1),
            seen: AtomicU64::new(0),
            answers_at_once: AtomicBool::new(true),
            queue: Mutex::default(),
        }
    }

    pub(super) fn bucket(&self) -> &Name {
        &self.bucket
    }

    pub(super) fn seen(&self) -> Rev {
        self.seen.load(Ordering::Relaxed)
    }

    /// Makes one change, perhaps together with those of others.
    ///
    /// # Errors
    /// The engine's own; after [`ErrorKind::TimedOut`] it may have happened.
    pub(super) async fn put(self: &Arc<Self>, op: Op) -> Result<Answer> {
        if self.answers_at_once.load(Ordering::Relaxed) {
            let commit = self.next(vec![op.clone()]);
            let committing = self.bus.inner.engine.state().commit(&self.bucket, commit);
            match committing.answered() {
                Ok(committed) => return Ok(self.answer(&committed?)),
                // Nothing was done yet, and nothing is once it is dropped.
                Err(_) => self.answers_at_once.store(false, Ordering::Relaxed),
            }
        }
        let (answer, answered) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            queue.waiting.push_back(Waiting { op, answer });
            if queue.under_way < MAX_UNDER_WAY {
                queue.under_way += 1;
                // On a task of its own: a run that is cancelled must not take others with it.
                tokio::spawn(Arc::clone(self).work());
            }
        }
        answered.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Closed,
                "the runtime was shut down during a commit",
            ))
        })
    }

    /// Commits what waits, until nothing does.
    async fn work(self: Arc<Self>) {
        loop {
            let group = {
                let mut queue = self.queue.lock();
                let group = queue.take();
                if group.is_empty() {
                    queue.under_way -= 1;
                    return;
                }
                group
            };
            self.settle(group).await;
        }
    }

    /// Gives everybody in a group their answer.
    async fn settle(self: &Arc<Self>, mut group: Vec<Waiting>) {
        let mut conflicts = 0;
        while !group.is_empty() {
            let ops = group.iter().map(|one| one.op.clone()).collect();
            match self.commit(self.next(ops)).await {
                Ok(Committed::Conflict { key, found }) => {
                    self.heard_of(found.unwrap_or(0));
                    let Some(at) = group.iter().position(|one| *one.op.key() == key) else {
                        let error = Error::new(
                            ErrorKind::Internal,
                            format!("a commit was refused for key {key}, which it does not have"),
                        );
                        return tell(group, |_| Err(error.clone()));
                    };
                    tell(vec![group.swap_remove(at)], |_| Ok(Answer::Conflict));
                    conflicts += 1;
                    if conflicts >= MAX_CONFLICTS {
                        for one in group {
                            let commits = Arc::clone(self);
                            tokio::spawn(async move { commits.alone(one).await });
                        }
                        return;
                    }
                }
                Ok(Committed::Done(revs)) => {
                    self.heard_of(revs.last().copied().unwrap_or(0));
                    return tell(group, |index| match revs.get(index) {
                        Some(rev) => Ok(Answer::Done(*rev)),
                        None => Ok(Answer::Repeated),
                    });
                }
                Ok(Committed::Duplicate) => return tell(group, |_| Ok(Answer::Repeated)),
                Err(error) => return tell(group, |_| Err(error.clone())),
            }
        }
    }

    async fn alone(&self, one: Waiting) {
        let committed = self.commit(self.next(vec![one.op.clone()])).await;
        let answer = committed.map(|committed| self.answer(&committed));
        tell(vec![one], |_| answer.clone());
    }

    /// One commit, repeated with the same id while nobody can say what became of it.
    async fn commit(&self, commit: Commit) -> Result<Committed> {
        let mut tries = 1;
        loop {
            let state = self.bus.inner.engine.state();
            let result = state.commit(&self.bucket, commit.clone()).completed().await;
            let is_unknown = |error: &Error| {
                matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Disconnected)
            };
            match result {
                Err(error) if is_unknown(&error) && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                result => return result,
            }
        }
    }

    fn next(&self, ops: Vec<Op>) -> Commit {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        Commit {
            id: format_smolstr!("idem-{}-{number}", self.member),
            fences: Vec::new(),
            ops,
        }
    }

    /// What became of the only change of a commit.
    fn answer(&self, committed: &Committed) -> Answer {
        match committed {
            Committed::Done(revs) => match revs.first() {
                Some(rev) => {
                    self.heard_of(*rev);
                    Answer::Done(*rev)
                }
                None => Answer::Repeated,
            },
            Committed::Duplicate => Answer::Repeated,
            Committed::Conflict { found, .. } => {
                self.heard_of(found.unwrap_or(0));
                Answer::Conflict
            }
        }
    }

    fn heard_of(&self, rev: Rev) {
        self.seen.fetch_max(rev, Ordering::Relaxed);
    }
}

impl Queue {
    /// The next group: in order, each key once. A key that comes twice waits for the next group.
    fn take(&mut self) -> Vec<Waiting> {
        let mut group: Vec<Waiting> = Vec::new();
        let mut keys = rustc_hash::FxHashSet::default();
        while group.len() < MAX_KEYS
            && let Some(next) = self.waiting.front()
            && keys.insert(next.op.key().clone())
        {
            group.extend(self.waiting.pop_front());
        }
        group
    }
}

/// Gives each its answer. One that was cancelled does not hear it.
fn tell(group: Vec<Waiting>, answer: impl Fn(usize) -> Result<Answer>) {
    for (index, one) in group.into_iter().enumerate() {
        let _ = one.answer.send(answer(index));
    }
}
