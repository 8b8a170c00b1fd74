//! What a comparison is: two contenders that do the same work, and the figure to reach.

use std::error::Error;

use crate::stopwatch::Stopwatch;

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// A comparison of one path through the bus.
pub struct Pair {
    /// Path, conditions and threads; unique, and what `--only` looks in.
    pub name: String,
    /// What one event carries, in words.
    pub payload: &'static str,
    /// What has happened to an event once it counts. Every path in memory is "none".
    pub durability: &'static str,
    /// How many events may wait between producer and consumer.
    pub window: &'static str,
    pub baseline: Contender,
    /// `None` until Trunkline has this path; then only the baseline is measured.
    pub ours: Option<Contender>,
    pub target: Target,
}

/// One of the two sides: how to set it up, and how much of it makes a round.
pub struct Contender {
    pub label: &'static str,
    /// Events of one measured round. The two sides may differ where one is a thousand times
    /// slower; all figures are per event.
    pub events: u64,
    /// Sets the side up, outside all timing. Every round gets a new one, so that no round inherits
    /// a predecessor's memory or queue.
    pub build: Box<dyn Fn() -> Result<Box<dyn Side>>>,
}

/// A side that is set up and can carry events.
pub trait Side {
    /// Carries `events` events from publish to handled, and times with `watch` only the part that
    /// is compared.
    ///
    /// # Errors
    ///
    /// When an event was lost or the side broke: such a run has no figures.
    fn round(&mut self, events: u64, watch: &mut Stopwatch) -> Result<()>;

    /// The process id of the server that works for this side alone, if one does: its CPU time is
    /// part of what the side costs.
    fn server(&self) -> Option<u32> {
        None
    }
}

impl<F: FnMut(u64, &mut Stopwatch) -> Result<()>> Side for F {
    fn round(&mut self, events: u64, watch: &mut Stopwatch) -> Result<()> {
        self(events, watch)
    }
}

/// The figure that Trunkline is to reach.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Events per second, as a multiple of the baseline's.
    Ratio(f64),
    /// More events per second than the baseline, by more than the spread.
    Ahead,
    /// Time per event, whatever the baseline does.
    NsPerEvent(f64),
    /// Round trips, whatever the baseline does.
    Latency { p50_ns: u64, p99_ns: u64 },
    /// Latencies, as multiples of the baseline's.
    LatencyRatio { p50: f64, p99: f64 },
    /// None: the row tells what something costs.
    NotSet,
}

impl Contender {
    pub fn new<S: Side + 'static>(
        label: &'static str,
        events: u64,
        build: impl Fn() -> Result<S> + 'static,
    ) -> Self {
        Self {
            label,
            events,
            build: Box::new(move || Ok(Box::new(build()?) as Box<dyn Side>)),
        }
    }
}

/// Fails a round whose count is off: a rival that drops events would win every comparison.
pub fn expect_count(got: u64, expected: u64) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(format!("{got} of {expected} events arrived").into())
    }
}
