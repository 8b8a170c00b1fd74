//! What goes on beside the member's loop, and what its end means.

use std::collections::BTreeSet;

use tokio::task::JoinError;
use tokio::time::Instant;
use trunkline_core::engine::{Batch, Delivery, Op, Page, Rev, Seq, Settle, StoredEvent, Token};
use trunkline_core::{Error, ErrorKind, Result};

use super::super::partition::{Claimed, Ended, Fault, Partition};
use super::super::record::Layout;
use super::Member;
use super::burials::{Burial, Exhumed};
use super::handovers::{self, Taken};
use super::runs::{Ran, RunId, Which};
use super::writes::Kind;
use crate::consumer::policy::{Counters, SNOOZED, Verdict};
use crate::failure::Failure;

/// What a task beside the loop came to.
pub(super) enum Done {
    Claim(Layout, u16, Result<Option<Claimed>>),
    Release(u16, Rev, Result<()>),
    /// Writes of partitions; whether each was still owned.
    Written(Kind, Result<Vec<(u16, Rev, bool)>>),
    /// The dead letter of an event is stored; the changes that say so.
    Burial(RunId, Result<Burial>),
    /// A replay is done; the changes that say so.
    Replayed(RunId, Result<Vec<Op>>),
    /// A dead letter that is to run again, if it still is.
    Replay(RunId, Result<Option<Exhumed>>),
    Unburied(Result<u64>),
    /// Dead letters of a partition that were dealt with while nobody listened.
    Settled(u16, Rev, Result<Vec<Seq>>),
    Page(Seq, Result<Page>),
    Sweep(Rev, Result<()>),
    /// What was decided of deliveries, and what the engine said to it.
    Told(Batch<(Token, Settle)>, Result<Vec<Result<()>>>),
    Renewed(Batch<(Token, Settle)>, Result<Vec<Result<()>>>),
    /// What came late, and what of it is another's by now.
    Doubted(Vec<Delivery>, Result<BTreeSet<Token>>),
    HandedOver(Layout, Result<handovers::HandedOver>),
    TakenOn(u16, Rev, Result<Taken>),
    /// A dead letter is stored whose event somebody else will find dying.
    BuriedForOthers(Result<()>),
}

/// Whether it may change who should own what.
pub(super) fn is_about_ownership(done: &Result<Done, JoinError>) -> bool {
    matches!(
        done,
        Ok(Done::Claim(..) | Done::Release(..) | Done::Sweep(..) | Done::Written(..))
    )
}

impl Member {
    /// A handler is done.
    pub(super) fn ran(&mut self, (which, ran): (Which, Ran), now: Instant) -> Result<()> {
        let run = match which {
            Which::Owned(run) => run,
            Which::Leased(token) => {
                self.leased_ran(token, ran, now);
                return Ok(());
            }
        };
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
        let Some(partition) = self.mine(run) else {
            return Ok(());
        };
        let replays = partition
            .side(run.seq)
            .is_some_and(|side| side.replays.is_some());
        if replays && matches!(ended, Ended::Done) {
            // How the dead letter stands is written with it.
            self.tell_replayed(run);
            return Ok(());
        }
        partition.finished(run.seq, ended, now)
    }

    /// What becomes of an event whose handler failed.
    pub(super) fn judge(
        &self,
        seq: Seq,
        event: Option<&StoredEvent>,
        counters: Counters,
        failure: &Failure,
    ) -> Ended {
        let at = self.shared.bus.inner.clock.now();
        let policy = &self.shared.policy;
        let (delay, counts, reason, error) = match policy.judge(
            Some(failure),
            counters,
            at,
            trunkline_core::random::random(),
        ) {
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
        let (message, causes) = failure.messages();
        let fault = Fault {
            at,
            reason: reason.into(),
            error: message,
            causes,
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
        let known =
            event.and_then(|event| self.shared.bus.envelope(&self.place.stream, event).ok());
        let none = || ("(no CloudEvent)".to_owned(), "(no CloudEvent)".to_owned());
        known.map_or_else(none, |event| {
            (event.id().to_string(), event.event_type().to_owned())
        })
    }

    /// A task has ended.
    pub(super) fn done(&mut self, done: Result<Done, JoinError>, now: Instant) -> Result<()> {
        let done = done.map_err(|error| {
            Error::new(ErrorKind::Internal, "a part of the member failed").caused_by(error)
        })?;
        match done {
            Done::Claim(layout, id, claimed) => {
                self.claimed(layout, id, claimed?, now)?;
                if !self.claims_are_under_way() {
                    self.place.sides.forget();
                }
                Ok(())
            }
            Done::Release(id, epoch, released) => {
                released?;
                // It may have become another one meanwhile, with the number of this.
                let is_this = |one: &Partition| one.epoch == epoch;
                if self.partitions.get(&id).is_some_and(is_this) {
                    self.lose(id);
                }
                Ok(())
            }
            Done::Sweep(rev, swept) => {
                self.swept.remove(&rev);
                swept
            }
            Done::Page(from, page) => {
                self.catching_up = None;
                match page {
                    Ok(page) => self.caught_up(from, &page, now),
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
            Done::Written(kind, stored) => self.all_written(kind, stored, now),
            Done::Burial(run, buried) => {
                let name = self.shared.name.clone();
                let Some(partition) = self.still_mine(run, now) else {
                    return Ok(());
                };
                let Burial { ops, is_settled } = match buried {
                    // To end here would be to end whenever the consumer is started.
                    Err(error) if error.kind() == ErrorKind::Damaged => {
                        tracing::error!(
                            consumer = %name, seq = run.seq, %error,
                            "what was given up is nowhere any more, so there is no dead letter of it"
                        );
                        Burial {
                            ops: Vec::new(),
                            is_settled: true,
                        }
                    }
                    buried => buried?,
                };
                if is_settled {
                    partition.let_go(run.seq, now)?;
                }
                partition.buried(run.seq, ops, now)
            }
            Done::Replayed(run, replayed) => match self.still_mine(run, now) {
                Some(partition) => partition.replayed(run.seq, replayed?, now),
                None => Ok(()),
            },
            Done::Told(batch, told) => self.told(batch, told, now),
            Done::Renewed(batch, renewed) => {
                self.renewed(&batch, renewed);
                Ok(())
            }
            Done::Doubted(came, lost) => self.doubted(came, lost, now),
            Done::HandedOver(layout, written) => {
                self.handed_over(layout, written?, now);
                Ok(())
            }
            Done::BuriedForOthers(buried) => {
                if let Some(intake) = &mut self.intake {
                    intake.burying -= 1;
                }
                match buried {
                    // Somebody has it by now, and what was kept of it is gone.
                    Err(error) if error.kind() == ErrorKind::Damaged => Ok(()),
                    buried => buried,
                }
            }
            Done::TakenOn(id, epoch, taken) => {
                self.taken_on(id, epoch, taken?, now);
                Ok(())
            }
            Done::Replay(run, found) => self.exhumed(run, found, now),
            Done::Settled(id, epoch, settled) => self.settled(id, epoch, settled, now),
            Done::Unburied(removed) => {
                if let Err(error) = removed {
                    tracing::warn!(
                        consumer = %self.shared.name, %error,
                        "the entry of a dead letter that was replayed is still there; `dlq` removes it later"
                    );
                }
                Ok(())
            }
        }
    }

    /// The partition of a run that is surely ours. What is read of another's may be half gone, because
    /// its owner has come to the end of it; that is no fault of anybody.
    fn still_mine(&mut self, run: RunId, now: Instant) -> Option<&mut Partition> {
        let holds = self.place.lease.holds(now);
        self.mine(run).filter(|_| holds)
    }
}
