//! Changes of keys, each a commit of its own, many at once.
//!
//! Engines put together what comes at once where that is cheaper, so nothing is gathered here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smol_str::{SmolStr, format_smolstr};
use trunkline_core::engine::{Commit, Committed, Op, Rev};
use trunkline_core::{Error, ErrorKind, Name, Result};

use crate::bus::Bus;

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
}

impl Commits {
    pub(super) fn new(bus: &Bus, bucket: Name, member: SmolStr) -> Self {
        Self {
            bus: bus.clone(),
            bucket,
            member,
            number: AtomicU64::new(1),
            seen: AtomicU64::new(0),
        }
    }

    pub(super) fn bucket(&self) -> &Name {
        &self.bucket
    }

    pub(super) fn seen(&self) -> Rev {
        self.seen.load(Ordering::Relaxed)
    }

    /// Makes one change. While nobody can say what became of it, it is repeated with the same id.
    ///
    /// # Errors
    /// The engine's own; after [`ErrorKind::TimedOut`] it may have happened.
    pub(super) async fn put(&self, op: Op) -> Result<Answer> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let commit = Commit {
            id: format_smolstr!("idem-{}-{number}", self.member),
            fences: Vec::new(),
            ops: vec![op],
        };
        let state = self.bus.inner.engine.state();
        let is_unknown =
            |error: &Error| matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::Disconnected);
        let mut tries = 1;
        let committed = loop {
            match state.commit(&self.bucket, commit.clone()).completed().await {
                Err(error) if is_unknown(&error) && tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                result => break result?,
            }
        };
        let (answer, rev) = match committed {
            Committed::Done(revs) => match revs.first() {
                Some(rev) => (Answer::Done(*rev), Some(*rev)),
                None => (Answer::Repeated, None),
            },
            Committed::Duplicate => (Answer::Repeated, None),
            Committed::Conflict { found, .. } => (Answer::Conflict, found),
        };
        self.seen.fetch_max(rev.unwrap_or(0), Ordering::Relaxed);
        Ok(answer)
    }
}
