//! Parking and waking, without a wake-up that is lost or one that nobody needs.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::engine::Seq;

/// Where tasks wait for more. Whoever adds something wakes it only if somebody is parked, which
/// is one load on the way of every event.
#[derive(Debug, Default)]
pub struct Waiter {
    parked: AtomicUsize,
    notify: Notify,
    /// The first sequence that its filters match since [`forget`](Self::forget); 0 while none does.
    /// Guarded by the lock of whoever adds.
    first: AtomicU64,
}

/// A task that said, under the lock that guards what it waits for, that it is going to wait.
#[must_use = "nothing waits until it is awaited"]
#[derive(Debug)]
pub struct Parked<'a> {
    notified: Notified<'a>,
    count: Count<'a>,
}

/// Counts a parked task for as long as it is.
#[derive(Debug)]
struct Count<'a>(&'a Waiter);

impl Waiter {
    /// Announces a wait. Call it under the lock under which nothing was found, then release that
    /// and await: whoever adds something under the lock afterwards sees it.
    pub fn park(&self) -> Parked<'_> {
        self.parked.fetch_add(1, Ordering::Relaxed);
        Parked {
            notified: self.notify.notified(),
            count: Count(self),
        }
    }

    /// Wakes one task if any is parked. The lock orders this after the parking, so that relaxed
    /// access is enough.
    pub fn wake(&self) {
        if self.is_awaited() {
            self.notify.notify_one();
        }
    }

    /// Wakes every task that is parked: what each of them waits for has changed.
    pub fn wake_all(&self) {
        self.notify.notify_waiters();
    }

    /// Notes a sequence that its filters match.
    pub fn note(&self, seq: Seq) {
        if self.first.load(Ordering::Relaxed) == 0 {
            self.first.store(seq, Ordering::Relaxed);
        }
    }

    /// Begins to note anew, for a reader that has seen everything.
    pub fn forget(&self) {
        self.first.store(0, Ordering::Relaxed);
    }

    /// The first sequence noted since [`forget`](Self::forget). What lies before it concerned others,
    /// so that it is no loss when retention takes it.
    pub fn first_noted(&self) -> Option<Seq> {
        Some(self.first.load(Ordering::Relaxed)).filter(|seq| *seq > 0)
    }

    /// Whether a task is parked.
    pub fn is_awaited(&self) -> bool {
        self.parked.load(Ordering::Relaxed) > 0
    }
}

impl Parked<'_> {
    /// Waits to be woken; it may also wake for nothing.
    pub async fn wait(self) {
        let Self { notified, count } = self;
        notified.await;
        drop(count);
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.parked.fetch_sub(1, Ordering::Relaxed);
    }
}
