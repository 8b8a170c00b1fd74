//! How a member is, told to whoever asks, also while its threads are blocked.

use std::time::Duration;

use tokio::time::Instant;
use trunkline_core::engine::Seq;
use trunkline_core::{Error, Name};

use super::{Common, Job};

/// How a member is.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Health {
    /// Handlers that run.
    pub running: usize,
    /// Events in hand: those that run, and those that wait for a place.
    pub held: usize,
    /// Their bytes.
    pub held_bytes: usize,
    /// Whether events are started.
    pub breaker: BreakerState,
    /// Handlers that were to end and do not.
    pub stuck: Vec<Stuck>,
    /// Why the member ended by itself, if it did.
    pub failed: Option<Error>,
}

/// Whether a member starts events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakerState {
    /// It does.
    #[default]
    Closed,
    /// It does not, because too many runs failed. It tries one event then.
    Open {
        /// In how long.
        again_in: Duration,
    },
    /// It tries one event, or waits for one.
    Probing,
}

/// A handler that was cancelled, or whose time-out is over, and that does not end: it blocks its
/// thread. Its event is let go, for another member to run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stuck {
    /// The stream of its event.
    pub stream: Name,
    /// The event's place in it.
    pub seq: Seq,
    /// How long it has been running.
    pub running_for: Duration,
}

impl Health {
    /// Whether the process can stay as it is. It cannot with a handler that is stuck: the place, the
    /// thread and the events behind it are lost until the process is started anew; nor with a member that
    /// has ended by itself. An open breaker is no reason: that ends by itself.
    pub fn is_well(&self) -> bool {
        self.stuck.is_empty() && self.failed.is_none()
    }
}

impl Health {
    /// Both together: a member has a part for each stream.
    pub(in crate::consumer) fn with(mut self, other: Self) -> Self {
        self.running += other.running;
        self.held += other.held;
        self.held_bytes += other.held_bytes;
        self.stuck.extend(other.stuck);
        if self.breaker == BreakerState::Closed {
            self.breaker = other.breaker;
        }
        self
    }
}

/// What can say how it is.
pub(in crate::consumer) trait Vitals: Send + Sync {
    fn health(&self) -> Health;
}

impl<J: Job> Vitals for Common<J> {
    fn health(&self) -> Health {
        let now = Instant::now();
        let inner = self.inner.lock();
        let runs = inner.slots.iter().filter_map(|slot| slot.run.as_ref());
        // By the clock, and not by what the pool has reported: it may be the pool that is blocked.
        let stuck = runs.filter(|run| run.stuck_at(self).is_some_and(|at| at <= now));
        let stuck = stuck.map(|run| {
            let (stream, seq) = run.job.place(&self.hands);
            Stuck {
                stream,
                seq,
                running_for: now - run.since,
            }
        });
        Health {
            stuck: stuck.collect(),
            failed: None,
            running: inner.running,
            held: inner.held,
            held_bytes: inner.held_bytes,
            breaker: match &inner.circuit {
                Some(circuit) if !circuit.is_closed() => match circuit.until() {
                    Some(until) => BreakerState::Open {
                        again_in: until.saturating_duration_since(now),
                    },
                    None => BreakerState::Probing,
                },
                _ => BreakerState::Closed,
            },
        }
    }
}
