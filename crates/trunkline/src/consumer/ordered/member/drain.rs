//! Stopping: what runs may finish, what finished is written, and what is owned is given up.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::super::membership::Says;
use super::Member;
use super::runs::{Ran, Which};
use crate::consumer::retry::LONGEST_DELAY;

/// How long after its deadline a stop waits for handlers that were cancelled.
const LAST_AWAIT: Duration = Duration::from_secs(1);
/// How long it then waits for an engine that does not answer.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Member {
    /// Lets what runs finish, writes how far it got, and gives up what it owns.
    pub(super) async fn drain(&mut self, deadline: Duration) {
        self.stopping.send_replace(true);
        self.membership.says.send_modify(|says| {
            *says = Says {
                leaving: true,
                ..*says
            };
        });
        self.report.given_back += self.put_back() + self.put_back_later();
        self.bury_dying();
        for partition in self.partitions.values_mut() {
            self.report.given_back += partition.unstarted();
            partition.stop();
        }
        let end = Instant::now() + deadline.min(LONGEST_DELAY);
        // What was announced and not begun will not begin.
        let _ = timeout_at(end, self.settle(false)).await;
        let cancelled: Vec<u16> = self.partitions.keys().copied().collect();
        for partition in cancelled {
            for run in self.runs.cancel(partition) {
                let _ = self.ran((Which::Owned(run), Ran::Cancelled), Instant::now());
            }
        }
        self.report.stuck = self.runs.cancel_all(Instant::now() + LAST_AWAIT).await;
        let _ = self.take_ran();
        // What it was about to hand on comes back from there.
        self.report.given_back += self.put_back_later();
        let end = Instant::now() + LAST_WORDS;
        if timeout_at(end, self.settle(true)).await.is_err() {
            tracing::warn!(
                consumer = %self.shared.name, stream = %self.place.stream,
                "what was done could not all be written before the stop; it may come again"
            );
        }
        if let Some(gauge) = &self.gauge {
            gauge.last_word().await;
        }
        let me = self.place.me.clone();
        let heartbeat = self
            .membership
            .view
            .borrow()
            .members
            .get(&me)
            .map(|seen| seen.rev);
        if let Some(rev) = heartbeat
            && self.partitions.is_empty()
        {
            let _ = timeout_at(Instant::now() + LAST_WORDS, self.place.sweep(&me, rev)).await;
        }
        tracing::info!(
            consumer = %self.shared.name, finished = self.report.finished,
            given_back = self.report.given_back, cancelled = self.report.cancelled, "member stopped"
        );
    }

    /// Goes on until nothing runs and, if `written`, everything is written and given up.
    async fn settle(&mut self, written: bool) {
        loop {
            let now = Instant::now();
            let layout = self.definition.as_ref().map(super::Definition::layout);
            let tended = self.outlast(now).and_then(|()| self.write(now));
            if tended.and_then(|()| self.tend(now)).is_err() {
                return;
            }
            // What fails meanwhile of a shared consumer may have to be buried by their owner.
            let may_fail = !self.runs.is_idle() || !self.intake_is_quiet();
            if let Some(layout) = layout
                && (self.intake.is_none() || !may_fail)
            {
                self.release_quiet(layout);
            }
            let left = match written {
                false => !self.runs.is_empty() || !self.runs.is_idle(),
                true => {
                    !self.partitions.is_empty()
                        || self.claims_are_under_way()
                        || !self.intake_is_quiet()
                }
            };
            if !left {
                return;
            }
            let due = self.next_due();
            let handled = tokio::select! {
                biased;
                () = self.runs.changed() => Ok(()),
                Some(done) = self.tasks.join_next() => self.done(done, Instant::now()),
                () = super::sleep_until(due) => Ok(()),
            };
            let handled = handled.and(self.take_ran());
            if let Err(error) = handled {
                tracing::warn!(consumer = %self.shared.name, %error, "a part of the stop failed");
                return;
            }
        }
    }

    /// What has ended since one last looked.
    fn take_ran(&mut self) -> trunkline_core::Result<()> {
        let now = Instant::now();
        let mut all = Ok(());
        for ran in self.runs.take() {
            // One that fails does not keep the others from being heard.
            all = all.and(self.ran(ran, now));
        }
        all
    }
}
