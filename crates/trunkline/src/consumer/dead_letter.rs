//! What a member knows of an event that it gives up, as an entry.

use trunkline_core::{Name, Result, Subject};

use super::turn::Turn;
use crate::bus::Inner;
use crate::dead_letter::{Entry, Record, bury, note};
use crate::failure::Failure;

/// Stores the entry of an event that is given up and notes down that it is dead. `Ok` means that it
/// is stored, now or before.
pub(super) async fn store(
    inner: &Inner,
    consumer: &Name,
    stream: &Name,
    turn: &Turn,
    failure: &Failure,
) -> Result<Subject> {
    let event = inner.settings.decoding.stored(stream, &turn.event).ok();
    let now = inner.clock.now();
    let (error, causes) = failure.messages();
    let entry = Entry {
        consumer: consumer.clone(),
        // This kind of consumer is never reset, and does not tell streams of one name apart.
        generation: 0,
        incarnation: None,
        stream: stream.clone(),
        seq: turn.event.seq,
        stored_at: Some(turn.event.at),
        subject: turn.event.subject.clone(),
        key: event.as_ref().and_then(|event| event.ordering_key()),
        reason: failure.reason().into(),
        error,
        causes,
        failures: turn.failures,
        starts: 0,
        attempts: turn.attempts.clone(),
        first_failure: turn.first_failure.unwrap_or(now),
        last_failure: turn.last_failure.unwrap_or(now),
        service: Some(inner.settings.source.clone()),
        version: env!("CARGO_PKG_VERSION").into(),
        previous: None,
        headers: turn.event.headers.clone(),
        body: turn.event.body.clone(),
    };
    let (subject, seq) = bury(inner, &entry).await?;
    let record = Record::dead(&entry, seq, event.as_deref());
    if let Err(error) = note(inner, &entry, &record).await {
        // The entry is safe, and is listed as dead without its key too.
        tracing::warn!(%consumer, %subject, %error, "the state of a dead letter could not be written");
    }
    Ok(subject)
}
