//! What goes on beside the member's loop, and what its end means.

use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use tokio::task::JoinError;
use tokio::time::Instant;
use trunkline_core::engine::{Page, Rev, Seq, StoredEvent, Token};
use trunkline_core::{Error, ErrorKind, Result};

use super::super::body;
use super::super::partition::Next;
use super::super::partition::{Claimed, Ended, Fault};
use super::super::record::{Layout, Side, SideState};
use super::runs::{Ran, RunId};
use super::{Member, PAUSE};
use crate::consumer::dead_letter;
use crate::consumer::policy::{Counters, SNOOZED, Verdict};
use crate::consumer::turn::Turn;
use crate::failure::{Disposition, Failure};

/// How long to wait before a dead letter that could not be stored is tried again, at most.
const LONGEST_BURIAL_PAUSE: Duration = Duration::from_secs(30);

/// What a task beside the loop came to.
pub(super) enum Done {
    Claim(Layout, u16, Result<Option<Claimed>>),
    Release(u16, Result<()>),
    /// A write; whether the partition was still owned.
    Write(u16, Rev, Result<bool>),
    Burial(RunId, Result<()>),
    Page(Seq, Result<Page>),
    Sweep(Rev, Result<()>),
}

impl Member {
    /// A handler is done.
    pub(super) fn ran(&mut self, (run, ran): (RunId, Ran), now: Instant) -> Result<()> {
        let ended = match ran {
            Ran::Ok => Ended::Done,
            Ran::Cancelled => Ended::Cancelled,
            Ran::Failed(event, failure) => {
                let side = self.mine(run).and_then(|partition| partition.side(run.seq));
                let counters = side.map_or_else(Counters::default, |side| Counters {
                    failures: side.failures,
                    starts: side.starts,
                });
                self.judge(run.seq, event.as_ref(), counters, &failure)
            }
        };
        if *self.stopping.borrow() {
            match ended {
                Ended::Cancelled => self.report.cancelled += 1,
                _ => self.report.finished += 1,
            }
        }
        if let Some(partition) = self.mine(run) {
            partition.finished(run.seq, ended, now)?;
        }
        Ok(())
    }

    /// What becomes of an event whose handler failed.
    fn judge(
        &self,
        seq: Seq,
        event: Option<&StoredEvent>,
        counters: Counters,
        failure: &Failure,
    ) -> Ended {
        let at = self.shared.bus.inner.clock.now();
        let policy = &self.shared.policy;
        let (delay, counts, reason, error) =
            match policy.judge(Some(failure), counters, at, rand::random()) {
                Verdict::Again {
                    delay,
                    counts,
                    reason,
                    error,
                } => (Some(delay), counts, reason, error),
                Verdict::Dead { reason, error } => (None, true, reason, error),
            };
        if reason != SNOOZED {
            let (event_id, event_type) = self.id_and_type(event);
            tracing::warn!(
                consumer = %self.shared.name, stream = %self.place.stream, seq, event_id, event_type,
                attempt = counters.failures + 1, reason, error, again_in = ?delay, "handling failed"
            );
        }
        let fault = Fault {
            at,
            reason: reason.into(),
            error,
        };
        match delay {
            Some(delay) => Ended::Again {
                delay,
                counts,
                fault,
            },
            None => Ended::Dead(fault),
        }
    }

    /// For the log.
    fn id_and_type(&self, event: Option<&StoredEvent>) -> (String, String) {
        let known = event.and_then(|event| self.shared.bus.envelope(&self.place.stream, event).ok());
        let none = || ("(no CloudEvent)".to_owned(), "(no CloudEvent)".to_owned());
        known.map_or_else(none, |event| {
            (event.id().to_string(), event.event_type().to_owned())
        })
    }

    /// Writes what partitions have to write, one write of each at a time.
    pub(super) fn write(&mut self, now: Instant) -> Result<()> {
        let Some(layout) = self.definition.as_ref().map(super::Definition::layout) else {
            return Ok(());
        };
        for partition in self.partitions.values_mut() {
            if let Some(write) = partition.write(now, super::Store::commit_id)? {
                let (place, id, epoch) = (Arc::clone(&self.place), partition.id, partition.epoch);
                self.tasks.spawn(async move {
                    let stored = place.fenced(layout, id, epoch, write.id, write.ops).await;
                    Done::Write(id, epoch, stored)
                });
            }
        }
        Ok(())
    }

    /// A task has ended.
    pub(super) fn done(&mut self, done: Result<Done, JoinError>, now: Instant) -> Result<()> {
        let done = done.map_err(|error| {
            Error::new(ErrorKind::Internal, "a part of the member failed").caused_by(error)
        })?;
        match done {
            Done::Claim(layout, id, claimed) => {
                self.claimed(layout, id, claimed?, now);
                Ok(())
            }
            Done::Release(id, released) => {
                released?;
                self.lose(id);
                Ok(())
            }
            Done::Sweep(rev, swept) => {
                self.swept.remove(&rev);
                swept
            }
            Done::Page(from, page) => {
                self.catching_up = false;
                match page {
                    Ok(page) => self.caught_up(from, page, now),
                    Err(error) if error.retryable() => {
                        tracing::warn!(
                            consumer = %self.shared.name, stream = %self.place.stream, %error,
                            "the stream could not be read"
                        );
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
            Done::Write(id, epoch, stored) => self.written(id, epoch, stored?, now),
            Done::Burial(run, buried) => {
                self.burials.remove(&(run.partition, run.seq));
                buried?;
                match self.mine(run) {
                    Some(partition) => partition.buried(run.seq, Vec::new(), now),
                    None => Ok(()),
                }
            }
        }
    }

    fn written(&mut self, id: u16, epoch: Rev, owned: bool, now: Instant) -> Result<()> {
        let Some(partition) = self
            .partitions
            .get_mut(&id)
            .filter(|one| one.epoch == epoch)
        else {
            return Ok(());
        };
        if !owned {
            tracing::warn!(
                consumer = %self.shared.name, stream = %self.place.stream, partition = id,
                "a partition was taken over by another member"
            );
            self.lose(id);
            return Ok(());
        }
        let stopping = partition.stopping;
        let possible = partition.written(now)?;
        if stopping {
            self.runs.forget(id);
        }
        for next in possible {
            let run = |seq| RunId {
                partition: id,
                epoch,
                seq,
            };
            match next {
                Next::Run(started) => self.runs.run(run(started.seq), started, now),
                Next::Bury(seq) => self.bury(run(seq)),
            }
        }
        Ok(())
    }

    /// Stores the dead letter of an event, however long that takes.
    fn bury(&mut self, run: RunId) {
        let side = self.mine(run).and_then(|one| one.side(run.seq)).cloned();
        let (Some(side), Some(definition)) = (side, &self.definition) else {
            return;
        };
        let generation = definition.generation;
        self.burials.insert((run.partition, run.seq));
        let (place, shared) = (Arc::clone(&self.place), Arc::clone(&self.shared));
        self.tasks.spawn(async move {
            let buried = async {
                debug_assert_eq!(side.state, SideState::Dying);
                let (store, keys) = (&place.store, &place.keys);
                let event =
                    body::load(&*store.engine, &store.bucket, keys, generation, run.seq, side.pieces)
                        .await?;
                let (turn, failure) = story(event, &side);
                let mut pause = PAUSE;
                loop {
                    let (inner, name) = (&shared.bus.inner, &shared.name);
                    match dead_letter::store(inner, name, &place.stream, &turn, &failure).await {
                        Ok(subject) => {
                            tracing::error!(
                                consumer = %name, stream = %place.stream, seq = run.seq,
                                failures = side.failures, reason = failure.reason(),
                                error = failure.chain(), %subject, "given up; stored as a dead letter"
                            );
                            return Ok(());
                        }
                        Err(error) => {
                            tracing::error!(
                                consumer = %name, stream = %inner.settings.dead_letters, %error,
                                again_in = ?pause, "a dead letter cannot be stored"
                            );
                            tokio::time::sleep(pause).await;
                            pause = (2 * pause).min(LONGEST_BURIAL_PAUSE);
                        }
                    }
                }
            };
            Done::Burial(run, buried.await)
        });
    }
}

/// What a dead letter tells, from what its side record kept.
fn story(event: StoredEvent, side: &Side) -> (Turn, Failure) {
    let time = |at: &Option<SmolStr>| at.as_ref().and_then(|at| at.parse().ok());
    let reason = side.reason.as_deref().unwrap_or_default();
    let failure = Failure::new(
        Disposition::Permanent,
        Failure::known_reason(reason),
        side.error.clone().unwrap_or_default(),
    );
    let turn = Turn {
        source: 0,
        token: Token {
            seq: event.seq,
            lease: 0,
        },
        event,
        delivered_hint: 0,
        for_others: false,
        failures: side.failures,
        first_failure: time(&side.first_failure),
        last_failure: time(&side.last_failure),
    };
    (turn, failure)
}
