//! One run of an event: everything that is around its handler.

use std::sync::Arc;

use trunkline_core::engine::StoredEvent;
use trunkline_core::{Data, Envelope, Name};

use super::Shared;
use super::outputs::Outputs;
use crate::dead_letter::Buried;
use crate::failure::{Disposition, Failure};
use crate::handler::{Delivered, Epoch, Handles, MemberContext};
use crate::layer::HandleNext;
use crate::raw::Incoming;

/// An event in hand.
#[derive(Clone, Debug)]
pub(super) struct InHand {
    pub(super) event: StoredEvent,
    /// What it says, where somebody had to know already.
    envelope: Option<Arc<Envelope>>,
}

impl InHand {
    /// With what was decoded of it, unless its data would then be kept twice.
    pub(super) fn decoded(event: StoredEvent, envelope: Option<Arc<Envelope>>) -> Self {
        let shares = |one: &Arc<Envelope>| !matches!(one.data(), Data::Text(_) | Data::Binary(_));
        Self {
            event,
            envelope: envelope.filter(shares),
        }
    }
}

impl From<StoredEvent> for InHand {
    fn from(event: StoredEvent) -> Self {
        Self {
            event,
            envelope: None,
        }
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
    stream: &Name,
    in_hand: InHand,
    attempt: u32,
    epoch: Option<Epoch>,
    context: &Arc<MemberContext>,
) -> Result<(), Failure> {
    let Some(Told {
        incoming,
        dead_letter,
        handler,
    }) = told(shared, stream, in_hand)?
    else {
        return Ok(());
    };
    let outputs = Arc::new(Outputs::default());
    let delivered = Delivered {
        incoming: Arc::new(incoming),
        dead_letter,
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

/// What is run, and by whom.
struct Told<'a> {
    incoming: Incoming,
    dead_letter: Option<Arc<Buried>>,
    handler: &'a dyn Handles,
}

/// Whose the event is; none for what nobody is to be told of.
fn told<'a>(
    shared: &'a Shared,
    stream: &Name,
    InHand { event, envelope }: InHand,
) -> Result<Option<Told<'a>>, Failure> {
    let settings = &shared.bus.inner.settings;
    if let Some(handler) = &shared.dead_letters
        && *stream == settings.dead_letters
    {
        let told = shared.dead_letter(event)?;
        return Ok(told.map(|(incoming, dead_letter)| Told {
            incoming,
            dead_letter: Some(dead_letter),
            handler: handler.as_ref(),
        }));
    }
    let incoming = match envelope {
        Some(envelope) => Incoming::decoded(envelope, stream, event),
        None => Incoming::stored(&settings.decoding, stream, event)
            .map_err(|error| Failure::new(Disposition::Permanent, "undecodable", error))?,
    };
    let Some(handler) = shared.handler_of(&incoming) else {
        let message = format!(
            "this member of consumer {} has no handler for {:?}",
            shared.name,
            incoming.envelope.event_type()
        );
        return Err(Failure::new(
            Disposition::Transient,
            "unsupported_type",
            message,
        ));
    };
    Ok(Some(Told {
        incoming,
        dead_letter: None,
        handler,
    }))
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
