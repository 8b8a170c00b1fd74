//! The right of one run to an event, from the claim to its outcome.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trunkline_core::engine::{Expectation, Op, Rev, StateKey};
use trunkline_core::{Name, Result};

use super::commits::Answer;
use super::record::{Record, Run, State};
use super::{Idempotent, LOOKS, PAUSE};

/// The right to run an event. Dropped without an outcome, as a panic or a cancellation does, it says
/// *failed*, so that the event need not wait for the end of the lease.
pub(super) struct Claim<'a> {
    idempotent: &'a Idempotent,
    key: StateKey,
    run: Run,
    /// The last change of the key that we know of; 0 if it was absent. Renewals change it while the
    /// handler runs.
    rev: AtomicU64,
    is_held: bool,
}

impl<'a> Claim<'a> {
    pub(super) fn new(idempotent: &'a Idempotent, key: StateKey, run: Run) -> Self {
        Self {
            idempotent,
            key,
            run,
            rev: AtomicU64::new(0),
            is_held: false,
        }
    }

    pub(super) fn key(&self) -> &StateKey {
        &self.key
    }

    /// Whether this very run wrote the record.
    pub(super) fn is_mine(&self, record: &Record) -> bool {
        record.member == self.run.member && record.run == self.run.number
    }

    /// Whether the record is of this very event under an ownership that has ended since.
    pub(super) fn supersedes(&self, record: &Record) -> bool {
        let stream = self.run.stream.as_ref().map(Name::as_str);
        let same = record.stream.as_deref() == stream && record.seq == self.run.seq;
        let epoch = self.run.epoch.map(|epoch| epoch.revision);
        same && matches!((record.epoch, epoch), (Some(theirs), Some(ours)) if theirs < ours)
    }

    /// How the key was found; none if it is absent.
    pub(super) fn found(&self, rev: Option<Rev>) {
        self.rev.store(rev.unwrap_or(0), Ordering::Relaxed);
    }

    /// The claim is ours from here on.
    pub(super) fn take(&mut self, rev: Rev) {
        self.found(Some(rev));
        self.is_held = true;
    }

    /// Writes the state if the key is still as we know it.
    pub(super) async fn put(&self, state: State) -> Result<Answer> {
        let rev = self.rev.load(Ordering::Relaxed);
        let op = write(self.idempotent, &self.key, &self.run, state, rev);
        self.idempotent.commits.put(op).await
    }

    /// Runs what the claim is for, and renews the claim meanwhile.
    pub(super) async fn held_while<T>(&self, running: impl Future<Output = T>) -> T {
        let mut running = pin!(running);
        let renewing = async {
            loop {
                tokio::time::sleep(self.idempotent.lease / 3).await;
                match self.put(State::Running).await {
                    Ok(Answer::Done(rev)) => self.found(Some(rev)),
                    // Whoever has it by now runs it too; what is under way cannot be undone.
                    Ok(Answer::Conflict) => {
                        tracing::warn!(
                            consumer = %self.idempotent.consumer, key = %self.key,
                            "the claim on an event was lost while it was handled; it may be handled twice"
                        );
                        return std::future::pending().await;
                    }
                    Ok(Answer::Repeated) => {
                        if let Ok(Some((entry, record))) = self.idempotent.read(&self.key).await
                            && self.is_mine(&record)
                        {
                            self.found(Some(entry.rev));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(
                            consumer = %self.idempotent.consumer, key = %self.key, %error,
                            "the claim on an event was not renewed"
                        );
                    }
                }
            }
        };
        tokio::select! {
            biased;
            result = &mut running => result,
            never = renewing => never,
        }
    }

    /// Says that the event is handled, and does not return before that is stored: settled without it,
    /// the event would leave nothing that a duplicate could find.
    pub(super) async fn done(mut self) {
        let consumer = &self.idempotent.consumer;
        let mut looks = 0;
        loop {
            let answer = self.put(State::Done).await;
            let found = match answer {
                Ok(Answer::Done(_)) => break,
                // A renewal of ours came between, or the lease ended.
                Ok(Answer::Conflict | Answer::Repeated) => {
                    looks += 1;
                    self.idempotent.read(&self.key).await
                }
                Err(error) => Err(error),
            };
            match found {
                Ok(None) => self.found(None),
                Ok(Some((_, record))) if record.state == State::Done => break,
                Ok(Some((entry, record))) if self.is_mine(&record) && looks < LOOKS => {
                    self.found(Some(entry.rev));
                }
                Ok(Some(_)) => {
                    tracing::warn!(%consumer, key = %self.key, "an event that is done was claimed by another run meanwhile");
                    break;
                }
                Err(error) if error.retryable() => {
                    tracing::warn!(%consumer, key = %self.key, %error, again_in = ?PAUSE, "an event is done, which cannot be stored");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    tracing::error!(%consumer, key = %self.key, %error, "an event is done, which cannot be stored; a duplicate would run");
                    break;
                }
            }
        }
        self.is_held = false;
    }

    /// Says that the event may run again. If that cannot be stored, the end of the lease will say so.
    pub(super) async fn failed(mut self) {
        self.is_held = false;
        if let Err(error) = self.put(State::Failed).await {
            tracing::warn!(
                consumer = %self.idempotent.consumer, key = %self.key, %error,
                "an event has failed, which cannot be stored; its next attempt waits for the end of the lease"
            );
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.is_held {
            return;
        }
        let rev = self.rev.load(Ordering::Relaxed);
        let op = write(self.idempotent, &self.key, &self.run, State::Failed, rev);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let commits = Arc::clone(&self.idempotent.commits);
            // Nobody is told: the end of the lease says the same, later.
            runtime.spawn(async move { commits.put(op).await });
        }
    }
}

fn write(of: &Idempotent, key: &StateKey, run: &Run, state: State, rev: Rev) -> Op {
    let ttl = match state {
        State::Running => of.lease,
        State::Done | State::Failed => of.ttl,
    };
    let until = of.bus.inner.clock.now().plus(ttl);
    let expect = match rev {
        0 => Expectation::Absent,
        rev => Expectation::Rev(rev),
    };
    Op::Put {
        key: key.clone(),
        value: Record::new(state, run, until).bytes(),
        expect,
        ttl: Some(ttl),
    }
}
