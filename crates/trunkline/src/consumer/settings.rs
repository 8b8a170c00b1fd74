//! What the configuration says of consumers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use trunkline_core::Name;
use trunkline_core::engine::Position;

use super::{Idempotency, Retry};

/// What a configuration says of a consumer, or of every consumer. What is none is not said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConsumerSettings {
    /// How long the engine waits for a member that went silent: 1 s to 1 day.
    pub ack_wait: Option<Duration>,
    /// How many handlers run at once in one member: 1 to 10 000.
    pub concurrency: Option<usize>,
    /// How often an event is tried, the first time included: 1 to [`Retry::MAX_ATTEMPTS`].
    pub attempts: Option<u32>,
    /// The pauses between attempts, one after another; the last for all that follow. At most a
    /// year each.
    pub delays: Option<Vec<Duration>>,
    /// By how much a pause is lengthened at most, as a share of it: 0 to 1.
    pub jitter: Option<f64>,
    /// Whether and for how long an event that was done runs no more.
    pub idempotency: Option<Idempotency>,
    /// Where a consumer starts when it is made.
    pub start: Option<Position>,
}

impl ConsumerSettings {
    /// What every consumer does where nobody says otherwise: from the first stored event, 16 at
    /// once, 5 attempts (see [`Retry`]), an ack wait of 30 s, not idempotent.
    pub fn built_in() -> Self {
        Self {
            ack_wait: Some(Duration::from_secs(30)),
            concurrency: Some(16),
            idempotency: Some(Idempotency::Off),
            start: Some(Position::First),
            ..Retry::default().said()
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
