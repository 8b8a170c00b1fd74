//! One run of an event: everything that is around its handler.

use std::sync::Arc;

use trunkline_core::Name;
use trunkline_core::engine::StoredEvent;

use super::Shared;
use super::outputs::Outputs;
use crate::failure::{Disposition, Failure};
use crate::handler::{Delivered, Epoch, Handles, MemberContext};
use crate::layer::HandleNext;
use crate::raw::Incoming;

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
