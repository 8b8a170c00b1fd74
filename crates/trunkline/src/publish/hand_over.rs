//! Handing events over to the engine, in order, and telling what became of each.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use smallvec::smallvec;
use smol_str::SmolStr;
use trunkline_core::engine::{Append, AppendMode, Batch, Boxed, Expect, Message, Outcome, Route};
use trunkline_core::wire::Body;
use trunkline_core::{Error, ErrorKind, EventId, Name, Result};

use super::{Outgoing, Published, Receipt};
use crate::bus::Inner;
use crate::layer::PublishNext;

/// One event on its way. Written by hand, because it is the hot path: an engine that answers at
/// once costs neither an allocation nor a large future to be moved about.
#[must_use = "nothing is sent until it is awaited"]
pub(super) struct SendOne<'a> {
    inner: &'a Inner,
    route: Option<&'a dyn Route>,
    state: State<'a>,
}

enum State<'a> {
    Prepared(Option<Result<Outgoing>>),
    Waiting(Boxed<'a, Published>),
}

impl<'a> SendOne<'a> {
    pub(super) fn new(
        inner: &'a Inner,
        route: Option<&'a dyn Route>,
        prepared: Result<Outgoing>,
    ) -> Self {
        Self {
            inner,
            route,
            state: State::Prepared(Some(prepared)),
        }
    }

    /// Starts it: what became of it, or the rest of the wait.
    fn start(&self, outgoing: Outgoing) -> Result<Published, Boxed<'a, Published>> {
        let inner = self.inner;
        let id = outgoing.envelope.id().clone();
        if !inner.publish_layers.is_empty() || (outgoing.stream.is_none() && self.route.is_none()) {
            let published = PublishNext {
                layers: &inner.publish_layers,
                inner,
            }
            .run(vec![outgoing]);
            return Err(Box::pin(async {
                published
                    .await
                    .into_iter()
                    .next()
                    .unwrap_or_else(|| unanswered(id))
            }));
        }
        match (outgoing.stream.clone(), self.route) {
            (None, None) => Ok(unanswered(id)), // Went through the layers above.
            (None, Some(route)) => match route.send(message(outgoing)).answered() {
                Ok(result) => Ok(sent_as(id, result)),
                Err(sending) => Err(Box::pin(async { sent_as(id, sending.completed().await) })),
            },
            (Some(stream), _) => {
                let batch = smallvec![append(outgoing)];
                match inner
                    .engine
                    .log()
                    .append(&stream, batch, AppendMode::Each)
                    .answered()
                {
                    Ok(result) => Ok(stored_as(id, &stream, result)),
                    Err(appending) => Err(Box::pin(async move {
                        let result = appending.completed().await;
                        stored_as(id, &stream, result)
                    })),
                }
            }
        }
    }
}

impl Future for SendOne<'_> {
    type Output = Result<Published>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Prepared(prepared) = &mut self.state {
            match prepared.take() {
                // A second poll after the result, which no executor does, waits for ever.
                None => return Poll::Pending,
                Some(Err(error)) => return Poll::Ready(Err(error)),
                Some(Ok(outgoing)) => match self.start(outgoing) {
                    Ok(published) => return Poll::Ready(Ok(published)),
                    Err(waiting) => self.state = State::Waiting(waiting),
                },
            }
        }
        match &mut self.state {
            State::Waiting(waiting) => waiting.as_mut().poll(cx).map(Ok),
            State::Prepared(_) => Poll::Pending,
        }
    }
}

fn sent_as(id: EventId, result: Result<()>) -> Published {
    match result {
        Ok(()) => Published::Sent(id),
        Err(error) => failed_as(id, error),
    }
}

fn stored_as(id: EventId, stream: &Name, result: Result<Vec<Outcome>>) -> Published {
    match result.map(|outcomes| outcomes.into_iter().next()) {
        Ok(Some(outcome)) => published_as(id, stream, outcome),
        Ok(None) => unanswered(id),
        Err(error) => failed_as(id, error),
    }
}

/// What a call that failed as a whole means for one of its events: after a time-out or a lost
/// connection nobody can say that it was not stored.
fn failed_as(id: EventId, error: Error) -> Published {
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::Disconnected => Published::Unknown(error.about(id)),
        _ => Published::Refused(error.about(id)),
    }
}

fn unanswered(id: EventId) -> Published {
    Published::Unknown(
        Error::new(ErrorKind::Internal, "a layer or the engine gave no outcome").about(id),
    )
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
        Err(error) => failed_as(id, error.clone()),
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
                failed_as(id, error.clone())
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
