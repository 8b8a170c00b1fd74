//! Events that are due at fixed times, and how late each was handled.
//!
//! The loop is open: an event is sent when it is due, whether or not the last one has arrived, and
//! its latency counts from then. So a side that stalls pays for every event that waited meanwhile.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::countdown::Countdown;
use crate::payload::Due;

/// How long after it was set up a schedule begins.
const LEAD: Duration = Duration::from_millis(20);

/// Shared by whoever sends and whoever handles.
#[derive(Clone)]
pub struct Schedule(Arc<Inner>);

struct Inner {
    begins: Instant,
    per_s: u64,
    /// By sequence; zero until the event was handled.
    latencies_ns: Vec<AtomicU64>,
    countdown: Countdown,
}

impl Schedule {
    pub fn new(events: u64, per_s: u64) -> Self {
        let countdown = Countdown::default();
        countdown.expect(events);
        Self(Arc::new(Inner {
            begins: Instant::now() + LEAD,
            per_s,
            latencies_ns: (0..events).map(|_| AtomicU64::new(0)).collect(),
            countdown,
        }))
    }

    fn due(&self, sequence: u64) -> Instant {
        let inner = &self.0;
        let whole = Duration::from_secs(sequence / inner.per_s);
        let part = Duration::from_nanos(sequence % inner.per_s * 1_000_000_000 / inner.per_s);
        inner.begins + whole + part
    }

    /// Calls `send` with each sequence when it is due. Blocks its thread: timers of a runtime are
    /// coarser than the latencies that are measured.
    pub fn each(&self, mut send: impl FnMut(u64)) {
        for sequence in 0..self.0.latencies_ns.len() as u64 {
            thread::sleep(self.due(sequence).saturating_duration_since(Instant::now()));
            send(sequence);
        }
    }

    /// Notes that an event was handled; a repeat counts no second time.
    pub fn handled(&self, event: &Due) {
        black_box(&event.filler);
        let late = Instant::now().saturating_duration_since(self.due(event.sequence));
        let late_ns = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX).max(1);
        let slot = usize::try_from(event.sequence)
            .ok()
            .and_then(|at| self.0.latencies_ns.get(at));
        if slot.is_some_and(|slot| slot.swap(late_ns, Ordering::Relaxed) == 0) {
            self.0.countdown.handled();
        }
    }

    pub async fn done(&self) {
        self.0.countdown.done().await;
    }

    pub fn latencies_ns(&self) -> Vec<u64> {
        let read = |latency: &AtomicU64| latency.load(Ordering::Relaxed);
        self.0.latencies_ns.iter().map(read).collect()
    }
}
