//! What the configuration says of consumers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use trunkline_core::Name;
use trunkline_core::engine::Position;

use super::partitions::PARTITIONS;
use super::{Idempotency, Policy};

/// What a configuration says of a consumer, or of every consumer. What is none is not said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConsumerSettings {
    /// How long the engine waits for a member that went silent: 1 s to 1 day.
    pub ack_wait: Option<Duration>,
    /// How many handlers run at once in one member: 1 to 10 000.
    pub concurrency: Option<usize>,
    /// How many events a member holds at most, those that run included: 1 to 20 000. By itself
    /// (`Some(None)`) that is 256, or twice the concurrency if that is more; in key order 2 048 of each
    /// partition that the member owns.
    pub window_events: Option<Option<usize>>,
    /// How many bytes the events that a member holds have at most: 1 to 1 GiB.
    pub window_bytes: Option<usize>,
    /// Into how many partitions a consumer that keeps the order of keys is divided when it is made:
    /// a power of two from 1 to 256.
    pub partitions: Option<u16>,
    /// How often an event is tried, the first time included: 1 to
    /// [`Retry::MAX_ATTEMPTS`](super::Retry::MAX_ATTEMPTS).
    pub attempts: Option<u32>,
    /// The pauses between attempts, one after another; the last for all that follow. At most a
    /// year each.
    pub delays: Option<Vec<Duration>>,
    /// By how much a pause is lengthened at most, as a share of it: 0 to 1.
    pub jitter: Option<f64>,
    /// How long a handler may run: 1 ms to 365 days, or (`Some(None)`) for ever.
    pub time_out: Option<Option<Duration>>,
    /// Whether a member stops for a while when too much fails.
    pub breaker: Option<bool>,
    /// How many runs that looks back on: 1 to [`Breaker::MAX_RUNS`](super::Breaker::MAX_RUNS).
    pub breaker_runs: Option<u32>,
    /// The share of them that must have failed: more than 0, up to 1.
    pub breaker_share: Option<f64>,
    /// How long nothing starts before one event is tried: 1 ms to 1 day.
    pub breaker_first_pause: Option<Duration>,
    /// The longest that this becomes, doubling while what is tried fails: 1 ms to 1 day.
    pub breaker_longest_pause: Option<Duration>,
    /// Whether and for how long an event that was done runs no more.
    pub idempotency: Option<Idempotency>,
    /// Whether later events of a key wait for a dead letter of it. Said of every consumer, it holds
    /// for those in key order.
    pub hold_key: Option<bool>,
    /// Where a consumer starts when it is made.
    pub start: Option<Position>,
}

impl ConsumerSettings {
    /// What every consumer does where nobody says otherwise: from the first stored event, 16 at
    /// once, a window of 16 MiB, 16 partitions, an ack wait of 30 s, not idempotent, no keys held, and
    /// [`Policy::default`].
    pub fn built_in() -> Self {
        Self {
            ack_wait: Some(Duration::from_secs(30)),
            concurrency: Some(16),
            window_events: Some(None),
            window_bytes: Some(16 << 20),
            partitions: Some(PARTITIONS),
            idempotency: Some(Idempotency::Off),
            hold_key: Some(false),
            start: Some(Position::First),
            ..Policy::default().said()
        }
    }
}

/// What the configuration says of consumers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Consumers {
    /// Of every consumer; what the code says goes before it.
    pub(crate) defaults: Arc<ConsumerSettings>,
    /// Of one consumer; it goes before what the code says.
    pub(crate) named: Arc<BTreeMap<Name, ConsumerSettings>>,
}
