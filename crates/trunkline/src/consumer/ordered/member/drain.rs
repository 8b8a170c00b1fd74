//! Stopping: what runs may finish, what finished is written, and what is owned is given up.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::super::membership::Says;
use super::Member;
use super::runs::Ran;
use crate::consumer::retry::LONGEST_DELAY;

/// How long after its deadline a stop still waits for an engine that does not answer.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
                let _ = self.ran((run, Ran::Cancelled), Instant::now());
            }
        }
        let end = end.min(Instant::now()) + LAST_WORDS;
        if timeout_at(end, self.settle(true)).await.is_err() {
            tracing::warn!(
                consumer = %self.shared.name, stream = %self.place.stream,
                "what was done could not all be written before the stop; it may come again"
            );
        }
        self.gauge.last_word().await;
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
            if self.outlast(now).and_then(|()| self.write(now)).is_err() {
                return;
            }
            if let Some(layout) = layout {
                self.release_quiet(layout);
            }
            let left = match written {
                false => !self.runs.is_empty(),
                true => !self.partitions.is_empty() || self.claims_are_under_way(),
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
            let now = Instant::now();
            let mut handled = handled;
            for ran in self.runs.take() {
                handled = handled.and(self.ran(ran, now));
            }
            if let Err(error) = handled {
                tracing::warn!(consumer = %self.shared.name, %error, "a part of the stop failed");
                return;
            }
        }
    }
}
