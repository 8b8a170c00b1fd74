//! What a worker has done so far, and what of it still runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// Counts that are only told, so that their order among each other does not matter.
#[derive(Default)]
pub(super) struct Tally {
    done: AtomicU64,
    failed: AtomicU64,
    cut: AtomicU64,
    running: watch::Sender<usize>,
}

impl Tally {
    pub(super) fn one_done(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn one_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn one_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Groups of processes that have not ended.
    pub(super) fn running(&self) -> usize {
        *self.running.borrow()
    }

    /// Counts a group as running for as long as the answer lives.
    pub(super) fn one_runs(&self) -> Runs {
        self.running.send_modify(|running| *running += 1);
        Runs(self.running.clone())
    }

    /// Waits until nothing runs, but no longer than that.
    pub(super) async fn idle(&self, within: Duration) {
        let mut running = self.running.subscribe();
        // A process that cannot even be killed must not hold this one.
        let _ = tokio::time::timeout(within, running.wait_for(|running| *running == 0)).await;
    }
}

/// A group that runs.
pub(super) struct Runs(watch::Sender<usize>);

impl Drop for Runs {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}
