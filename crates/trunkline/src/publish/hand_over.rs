//! Handing events over to the engine, in order, and telling what became of each.

use std::sync::Arc;

use smallvec::smallvec;
use smol_str::SmolStr;
use trunkline_core::engine::{Append, AppendMode, Batch, Expect, Message, Outcome, Route};
use trunkline_core::wire::Body;
use trunkline_core::{Error, ErrorKind, EventId, Name, Result};

use super::{Outgoing, Published, Receipt};
use crate::bus::Inner;
use crate::layer::PublishNext;

pub(super) async fn send_one(
    inner: &Inner,
    outgoing: Outgoing,
    route: Option<&Arc<dyn Route>>,
) -> Published {
    if !inner.publish_layers.is_empty() {
        let next = PublishNext {
            layers: &inner.publish_layers,
            inner,
        };
        let missing = || {
            Published::Refused(Error::new(
                ErrorKind::Internal,
                "a layer answered for no event",
            ))
        };
        return next
            .run(vec![outgoing])
            .await
            .into_iter()
            .next()
            .unwrap_or_else(missing);
    }
    match (outgoing.stream.clone(), route) {
        (None, Some(route)) => {
            let id = outgoing.envelope.id().clone();
            match route.send(message(outgoing)).completed().await {
                Ok(()) => Published::Sent(id),
                Err(error) => Published::Refused(error.about(id)),
            }
        }
        (None, None) => emit_run(inner, vec![outgoing]).await.remove(0),
        (Some(stream), _) => {
            let id = outgoing.envelope.id().clone();
            let appended = inner
                .engine
                .log()
                .append(&stream, smallvec![append(outgoing)], AppendMode::Each)
                .completed()
                .await;
            match appended {
                Ok(outcomes) => match outcomes.into_iter().next() {
                    Some(outcome) => published_as(id, &stream, outcome),
                    None => Published::Unknown(
                        Error::new(ErrorKind::Internal, "the engine gave no outcome").about(id),
                    ),
                },
                Err(error) => Published::Refused(error.about(id)),
            }
        }
    }
}

/// Sends what could be prepared; what could not keeps its place and its error.
pub(crate) async fn send_prepared(
    inner: &Inner,
    prepared: Vec<Result<Outgoing>>,
) -> Vec<Published> {
    let mut refused = Vec::new();
    let mut batch = Vec::with_capacity(prepared.len());
    for (index, item) in prepared.into_iter().enumerate() {
        match item {
            Ok(outgoing) => batch.push(outgoing),
            Err(error) => refused.push((index, error)),
        }
    }
    let mut published = PublishNext {
        layers: &inner.publish_layers,
        inner,
    }
    .run(batch)
    .await;
    for (index, error) in refused {
        published.insert(index.min(published.len()), Published::Refused(error));
    }
    published
}

/// Hands a batch to the engine: in order, in runs of one stream, each no longer than it takes.
pub(crate) async fn send_all(inner: &Inner, batch: Vec<Outgoing>) -> Vec<Published> {
    let max_batch = inner.engine.limits().max_batch.max(1);
    let mut published = Vec::with_capacity(batch.len());
    let mut failed_keys: Vec<SmolStr> = Vec::new();
    let mut rest = batch.into_iter().peekable();
    while let Some(first) = rest.next() {
        let stream = first.stream.clone();
        let mut run = vec![first];
        while run.len() < max_batch
            && let Some(next) = rest.next_if(|next| next.stream == stream)
        {
            run.push(next);
        }
        match stream {
            None => published.extend(emit_run(inner, run).await),
            Some(stream) => {
                published.extend(append_run(inner, &stream, run, &mut failed_keys).await);
            }
        }
    }
    published
}

async fn emit_run(inner: &Inner, run: Vec<Outgoing>) -> Vec<Published> {
    let ids: Vec<EventId> = run
        .iter()
        .map(|outgoing| outgoing.envelope.id().clone())
        .collect();
    let result = inner
        .engine
        .live()
        .send(run.into_iter().map(message).collect())
        .completed()
        .await;
    let answer = |id: EventId| match &result {
        Ok(()) => Published::Sent(id),
        Err(error) => Published::Refused(error.clone().about(id)),
    };
    ids.into_iter().map(answer).collect()
}

/// Appends one run. The engine keeps a key's order within it; `failed_keys` keeps it across runs.
async fn append_run(
    inner: &Inner,
    stream: &Name,
    run: Vec<Outgoing>,
    failed_keys: &mut Vec<SmolStr>,
) -> Vec<Published> {
    let mut published = Vec::with_capacity(run.len());
    let mut sent = Vec::with_capacity(run.len());
    let mut batch = Batch::with_capacity(run.len());
    for outgoing in run {
        let id = outgoing.envelope.id().clone();
        let key = outgoing.envelope.ordering_key();
        if key.as_ref().is_some_and(|key| failed_keys.contains(key)) {
            let error = Error::new(
                ErrorKind::BehindFailed,
                "an earlier event of its key was not stored; publish that first",
            );
            published.push(Some(Published::Refused(error.about(id))));
        } else {
            published.push(None);
            sent.push((id, key));
            batch.push(append(outgoing));
        }
    }
    let outcomes = inner
        .engine
        .log()
        .append(stream, batch, AppendMode::Each)
        .completed()
        .await;
    let mut answers = match outcomes {
        Ok(outcomes) => sent
            .into_iter()
            .zip(outcomes)
            .map(|((id, key), outcome)| {
                let answer = published_as(id, stream, outcome);
                if let (Published::Refused(error) | Published::Unknown(error), Some(key)) =
                    (&answer, key)
                    && !matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::Encode)
                {
                    failed_keys.push(key);
                }
                answer
            })
            .collect::<Vec<_>>(),
        Err(error) => sent
            .into_iter()
            .map(|(id, key)| {
                // A later run may get through where this one did not.
                failed_keys.extend(key);
                Published::Refused(error.clone().about(id))
            })
            .collect(),
    }
    .into_iter();
    let lost = || {
        Published::Unknown(Error::new(
            ErrorKind::Internal,
            "the engine gave no outcome",
        ))
    };
    published
        .into_iter()
        .map(|early| early.or_else(|| answers.next()).unwrap_or_else(lost))
        .collect()
}

fn published_as(id: EventId, stream: &Name, outcome: Outcome) -> Published {
    match outcome {
        Outcome::Stored { seq, duplicate } => Published::Stored(Receipt {
            id,
            stream: stream.clone(),
            seq,
            duplicate,
        }),
        Outcome::Refused(error) => Published::Refused(error.about(id)),
        Outcome::Unknown(error) => Published::Unknown(error.about(id)),
    }
}

fn append(outgoing: Outgoing) -> Append {
    Append {
        subject: outgoing.subject,
        key: outgoing.envelope.ordering_key(),
        id: Some(outgoing.envelope.id().clone()),
        expect: Expect::Any,
        headers: outgoing.headers,
        body: Body::Event(outgoing.envelope),
    }
}

fn message(outgoing: Outgoing) -> Message {
    Message {
        subject: outgoing.subject,
        reply: None,
        headers: outgoing.headers,
        body: Body::Event(outgoing.envelope),
    }
}
