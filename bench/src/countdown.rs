//! Tells the producer when the last event was handled, at the price of one relaxed decrement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Shared by the handlers and whoever waits for them. Both sides of a pair use it, so that it costs
/// both the same.
#[derive(Clone, Debug, Default)]
pub struct Countdown(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    remaining: AtomicU64,
    done: Notify,
}

impl Countdown {
    /// Expects `events` more events to be handled; call it before they are published.
    pub fn expect(&self, events: u64) {
        self.0.remaining.store(events, Ordering::Release);
    }

    /// Counts one handled event.
    pub fn handled(&self) {
        // The wake-up below orders the handler's writes; the counter itself publishes nothing.
        if self.0.remaining.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.done.notify_one();
        }
    }

    pub fn remaining(&self) -> u64 {
        self.0.remaining.load(Ordering::Acquire)
    }

    /// Waits until all expected events were handled.
    pub async fn done(&self) {
        while self.remaining() > 0 {
            self.0.done.notified().await;
        }
    }
}
