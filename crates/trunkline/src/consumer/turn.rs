//! One event's time in a member: from its delivery to its settlement.

use std::sync::Arc;

use trunkline_core::engine::{Delivery, StoredEvent, Token};
use trunkline_core::{Name, Timestamp};

use super::Shared;
use crate::failure::{Disposition, Failure};
use crate::handler::{Delivered, MemberContext};
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
        }
    }

    pub(super) fn failed(&mut self, at: Timestamp) {
        self.failures += 1;
        self.first_failure.get_or_insert(at);
        self.last_failure = Some(at);
    }
}

/// Runs the handler of one event through its layers.
pub(super) async fn run(
    shared: &Shared,
    stream: Name,
    event: StoredEvent,
    attempt: u32,
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
    let delivered = Delivered {
        incoming: Arc::new(incoming),
        attempt,
        member: Arc::clone(context),
    };
    HandleNext {
        layers: &shared.layers,
        handler,
    }
    .run(delivered)
    .await
}
