//! One event's time in a member: from its delivery to its settlement.

use std::sync::Arc;

use trunkline_core::engine::{Delivery, StoredEvent, Token};
use trunkline_core::{Name, Timestamp};

use super::Shared;
use super::outputs::Outputs;
use crate::dead_letter::{Attempt, Entry};
use crate::failure::{Disposition, Failure};
use crate::handler::{Delivered, Epoch, Handles, MemberContext};
use crate::layer::HandleNext;
use crate::raw::Incoming;

/// An event under a lease, and what has happened to it so far.
pub(super) struct Turn {
    /// Which of the member's sources it came from.
    pub(super) source: usize,
    pub(super) token: Token,
    pub(super) event: StoredEvent,
    /// How often the engine has delivered it; a hint.
    pub(super) delivered_hint: u32,
    /// Whether this member cannot handle it and gives it back for another to try.
    pub(super) for_others: bool,
    /// How often a handler said no. The first attempt is the one after no failure.
    pub(super) failures: u32,
    pub(super) first_failure: Option<Timestamp>,
    pub(super) last_failure: Option<Timestamp>,
    /// The last attempts that failed, for the story of a dead letter.
    pub(super) attempts: Vec<Attempt>,
}

impl Turn {
    pub(super) fn new(source: usize, delivery: Delivery) -> Self {
        Self {
            source,
            token: delivery.token,
            event: delivery.event,
            delivered_hint: delivery.delivered_hint,
            for_others: false,
            failures: 0,
            first_failure: None,
            last_failure: None,
            attempts: Vec::new(),
        }
    }

    /// Notes down an attempt that failed, whether it counts or not.
    pub(super) fn tried(&mut self, at: Timestamp, failure: &Failure) {
        if self.attempts.len() == Entry::MAX_ATTEMPTS {
            self.attempts.remove(0);
        }
        let attempt = Attempt::new(at, failure.reason(), &failure.chain());
        self.attempts.push(attempt);
    }

    pub(super) fn failed(&mut self, at: Timestamp) {
        self.failures += 1;
        self.first_failure.get_or_insert(at);
        self.last_failure = Some(at);
    }
}

/// Handles one event, under an epoch where the consumer has owners. In this order, outermost first:
///
/// ```text
/// idempotency → sending the outputs → layers of the bus → of the consumer → decoding → the handler
/// ```
///
/// # Cancel safety
/// Dropped, the run has failed without having counted: its outputs are dropped, and an idempotent
/// event may run again at once.
pub(super) async fn run(
    shared: &Shared,
    stream: Name,
    event: StoredEvent,
    attempt: u32,
    epoch: Option<Epoch>,
    context: &Arc<MemberContext>,
) -> Result<(), Failure> {
    let decoding = &shared.bus.inner.settings.decoding;
    let incoming = Incoming::stored(decoding, &stream, event)
        .map_err(|error| Failure::new(Disposition::Permanent, "undecodable", error))?;
    let event_type = incoming.envelope.event_type();
    let Some(handler) = shared.handler_of(&incoming) else {
        let message = format!(
            "this member of consumer {} has no handler for {event_type:?}",
            context.consumer
        );
        return Err(Failure::new(
            Disposition::Transient,
            "unsupported_type",
            message,
        ));
    };
    let outputs = Arc::new(Outputs::default());
    let delivered = Delivered {
        incoming: Arc::new(incoming),
        attempt,
        epoch,
        member: Arc::clone(context),
        outputs: Arc::clone(&outputs),
    };
    let Some(idempotent) = &shared.idempotent else {
        return handle(shared, handler, delivered, &outputs).await;
    };
    let handling = handle(shared, handler, delivered.clone(), &outputs);
    idempotent.once(&delivered, handling).await
}

async fn handle(
    shared: &Shared,
    handler: &dyn Handles,
    delivered: Delivered,
    outputs: &Outputs,
) -> Result<(), Failure> {
    let layers = HandleNext {
        layers: &shared.layers,
        handler,
    };
    let result = layers.run(delivered).await;
    outputs.finish(&shared.bus.inner, result).await
}
