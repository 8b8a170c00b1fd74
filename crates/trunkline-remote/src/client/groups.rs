//! The five groups of the seam, each operation as a call or a reader.

use std::sync::Arc;

use smallvec::smallvec;
use smol_str::SmolStr;
use trunkline_core::engine::{
    Admission, Admitted, Append, AppendMode, Backlog, Batch, Boxed, Bucket, Change, Commit,
    Committed, Consume, ConsumerRef, Credit, Entries, Expect, Follow, Inspection, Listener, Live,
    Log, Membership, Message, Outcome, Page, Position, Removal, Rev, Route, State, StateKey,
    SubjectCount, Topology, Watch,
};
use trunkline_core::wire::Body;
use trunkline_core::{Error, ErrorKind, Filter, Headers, Name, Result, Subject};

use super::RemoteEngine;
use super::calls::{Connection, Failed, MAX_CALL_BYTES, Repeat, Shared, Ticket, closed, misfit};
use super::readers::{Reader, RemoteFeed, RemoteFollow, RemoteListener, RemoteWatch};
use crate::frame::{Answer, Call, Open, Request, frame};
use crate::session::Tag;

/// Bytes of the items of one append; a batch with more goes in several, one after the other.
const MAX_APPEND_BYTES: usize = MAX_CALL_BYTES / 2;

/// The answer of a call, which must be of one kind.
macro_rules! answer {
    ($answer:expr, $kind:ident) => {
        match $answer? {
            Answer::$kind(value) => Ok(value),
            _ => Err(misfit()),
        }
    };
}

impl Shared {
    /// The body as bytes, if the message is not above the limit.
    fn encoded(&self, headers: &Headers, body: &Body) -> Result<Body> {
        let bytes = body.to_bytes()?;
        let (size, limit) = (bytes.len() + headers.bytes(), self.limits.max_message);
        if size > limit {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the message has {size} bytes encoded, the limit is {limit}; nothing was sent"
                ),
            ));
        }
        Ok(Body::Bytes(bytes))
    }

    /// Gives live messages their place behind what was sent before.
    async fn send(&self, batch: Batch<Message>) -> Result<()> {
        let encode = |message: Message| {
            let body = self.encoded(&message.headers, &message.body)?;
            Ok(Message { body, ..message })
        };
        let messages: Batch<Message> = batch.into_iter().map(encode).collect::<Result<_>>()?;
        if !self.line.has_room() {
            let limit = self.options.request_timeout;
            let room = tokio::time::timeout(limit, self.line.room()).await;
            room.map_err(|_| self.unsent(limit))?;
        }
        let core = self.core.lock();
        if core.closed {
            return Err(closed());
        }
        let request = frame(&Request::Send { messages });
        self.line.push(Tag::Messages, request);
        Ok(())
    }
}

impl Live for RemoteEngine {
    fn send(&self, batch: Batch<Message>) -> Admitted<'_, ()> {
        let shared = Arc::clone(&self.shared);
        Admitted::waiting(async move {
            shared.send(batch).await?;
            Ok(Admission::waiting(std::future::ready(Ok(()))))
        })
    }

    fn route(&self, subject: &Subject) -> Arc<dyn Route> {
        Arc::new(RemoteRoute {
            shared: Arc::clone(&self.shared),
            subject: subject.clone(),
        })
    }

    fn listen(
        &self,
        filters: &[Filter],
        share: Option<&Name>,
        capacity: usize,
    ) -> Boxed<'_, Result<Box<dyn Listener>>> {
        let what = Open::Listen {
            filters: filters.to_vec(),
            share: share.cloned(),
            capacity,
        };
        Box::pin(async move {
            let reader = Reader::open(&self.shared, what).await?;
            let listener: Box<dyn Listener> = Box::new(RemoteListener::new(reader));
            Ok(listener)
        })
    }
}

struct RemoteRoute {
    shared: Arc<Connection>,
    subject: Subject,
}

impl Route for RemoteRoute {
    fn send(&self, mut message: Message) -> Admitted<'_, ()> {
        message.subject = self.subject.clone();
        let shared = Arc::clone(&self.shared);
        Admitted::waiting(async move {
            shared.send(smallvec![message]).await?;
            Ok(Admission::waiting(std::future::ready(Ok(()))))
        })
    }
}

/// A batch that is ready to be sent, in parts that fit into a call.
struct Appending {
    stream: Name,
    mode: AppendMode,
    parts: std::vec::IntoIter<Batch<(usize, Append)>>,
    /// What is known of each item.
    outcomes: Vec<Option<Outcome>>,
}

impl Appending {
    fn new(shared: &Shared, stream: Name, batch: Batch<Append>, mode: AppendMode) -> Result<Self> {
        let max_batch = shared.limits.max_batch;
        if batch.len() > max_batch {
            return Err(Error::new(
                ErrorKind::OverLimit,
                format!(
                    "the batch has {} items, the limit is {max_batch}; split it",
                    batch.len()
                ),
            ));
        }
        let mut outcomes = vec![None; batch.len()];
        let mut parts = Vec::new();
        let (mut part, mut part_bytes): (Batch<(usize, Append)>, usize) = (Batch::new(), 0);
        for (index, append) in batch.into_iter().enumerate() {
            match shared.encoded(&append.headers, &append.body) {
                Err(error) => outcomes[index] = Some(Outcome::Refused(error)),
                Ok(body) => {
                    let bytes = body.rough_bytes() + append.headers.bytes();
                    if part_bytes + bytes > MAX_APPEND_BYTES && !part.is_empty() {
                        parts.push(std::mem::take(&mut part));
                        part_bytes = 0;
                    }
                    part_bytes += bytes;
                    part.push((index, Append { body, ..append }));
                }
            }
        }
        parts.push(part);
        if mode == AppendMode::Atomic {
            let refused = outcomes.iter().flatten().next().cloned();
            let too_much = parts.len() > 1;
            let refusal = refused.or_else(|| {
                too_much.then(|| {
                    Outcome::Refused(Error::new(
                        ErrorKind::OverLimit,
                        format!("an atomic batch has at most {MAX_APPEND_BYTES} bytes; split it"),
                    ))
                })
            });
            if let Some(refusal) = refusal {
                outcomes = vec![Some(refusal); outcomes.len()];
                parts.clear();
            }
        }
        Ok(Self {
            stream,
            mode,
            parts: parts.into_iter(),
            outcomes,
        })
    }

    /// Hands over the next part, without what follows a failed item of its key.
    async fn admit(&mut self, shared: &Arc<Shared>) -> Option<(Vec<Sent>, Result<Ticket, Failed>)> {
        let part = self.parts.next()?;
        let mut batch = Batch::new();
        let mut sent = Vec::with_capacity(part.len());
        for (index, append) in part {
            sent.push(Sent {
                index,
                key: append.key.clone(),
            });
            batch.push(append);
        }
        // A repeat is recognised by the ids; with an expectation it could be refused by its own
        // first try.
        let safe = self.mode == AppendMode::Each
            && batch
                .iter()
                .all(|append| append.id.is_some() && append.expect == Expect::Any);
        let repeat = if safe { Repeat::Safe } else { Repeat::Unsafe };
        let call = Call::Append {
            stream: self.stream.clone(),
            batch,
            mode: self.mode,
        };
        let limit = shared.options.publish_timeout;
        Some((sent, shared.admit(call, repeat, limit).await))
    }

    /// Takes in what became of a part, and what that means for later ones.
    fn answered(&mut self, sent: Vec<Sent>, answer: Result<Answer, Failed>) -> Result<()> {
        let outcomes = match answer {
            Ok(Answer::Appended(outcomes)) if outcomes.len() == sent.len() => outcomes,
            Ok(_) => return Err(misfit()),
            Err(failed) if failed.perhaps_done => vec![Outcome::Unknown(failed.error); sent.len()],
            // The whole call was refused: the stream, not the events, is at fault.
            Err(Failed { error, .. }) if self.outcomes.iter().all(Option::is_none) => {
                match error.kind() {
                    ErrorKind::Disconnected => vec![Outcome::Refused(error); sent.len()],
                    _ => return Err(error),
                }
            }
            Err(Failed { error, .. }) => vec![Outcome::Refused(error); sent.len()],
        };
        let mut failed: Vec<SmolStr> = Vec::new();
        for (Sent { index, key }, outcome) in sent.into_iter().zip(outcomes) {
            if !matches!(outcome, Outcome::Stored { .. }) {
                failed.extend(key);
            }
            self.outcomes[index] = Some(outcome);
        }
        self.hold_back(&failed);
        Ok(())
    }

    fn hold_back(&mut self, failed: &[SmolStr]) {
        if failed.is_empty() {
            return;
        }
        let mut parts: Vec<_> = std::mem::take(&mut self.parts).collect();
        for part in &mut parts {
            part.retain(|(index, append)| {
                let behind = append.key.as_ref().is_some_and(|key| failed.contains(key));
                if behind {
                    self.outcomes[*index] = Some(Outcome::Refused(Error::new(
                        ErrorKind::BehindFailed,
                        "an earlier event of its key in this batch was not stored; publish that again first",
                    )));
                }
                !behind
            });
        }
        self.parts = parts.into_iter();
    }

    fn done(self) -> Vec<Outcome> {
        let lost = || Outcome::Unknown(misfit());
        let outcomes = self.outcomes.into_iter();
        outcomes
            .map(|outcome| outcome.unwrap_or_else(lost))
            .collect()
    }
}

/// An item of a part that was sent.
struct Sent {
    index: usize,
    key: Option<SmolStr>,
}

impl Log for RemoteEngine {
    fn append(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>> {
        let shared = Arc::clone(&self.shared);
        let appending = Appending::new(&shared, stream.clone(), batch, mode);
        Admitted::waiting(async move {
            let mut appending = appending?;
            let mut admitted = appending.admit(&shared).await;
            Ok(Admission::waiting(async move {
                while let Some((sent, ticket)) = admitted {
                    let answer = match ticket {
                        Ok(ticket) => ticket.answer().await,
                        Err(failed) => Err(failed),
                    };
                    appending.answered(sent, answer)?;
                    admitted = appending.admit(&shared).await;
                }
                Ok(appending.done())
            }))
        })
    }

    fn read<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
        max: Credit,
    ) -> Boxed<'a, Result<Page>> {
        let call = Call::Read {
            stream: stream.clone(),
            from,
            filters: filters.to_vec(),
            max,
        };
        Box::pin(async move { answer!(self.shared.ask(call, Repeat::Safe).await, Read) })
    }

    fn follow<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
    ) -> Boxed<'a, Result<Box<dyn Follow>>> {
        let what = Open::Follow {
            stream: stream.clone(),
            from,
            filters: filters.to_vec(),
        };
        Box::pin(async move {
            let reader = Reader::open(&self.shared, what).await?;
            let follow: Box<dyn Follow> = Box::new(RemoteFollow::new(reader));
            Ok(follow)
        })
    }

    fn remove<'a>(&'a self, stream: &'a Name, what: Removal) -> Boxed<'a, Result<u64>> {
        let call = Call::Remove {
            stream: stream.clone(),
            what,
        };
        Box::pin(async move { answer!(self.shared.ask(call, Repeat::Unsafe).await, Removed) })
    }
}

impl Consume for RemoteEngine {
    fn open<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Membership>> {
        let what = Open::Consume {
            consumer: consumer.clone(),
        };
        Box::pin(async move {
            let reader = Reader::open(&self.shared, what).await?;
            Ok(RemoteFeed::membership(reader))
        })
    }
}

impl State for RemoteEngine {
    fn commit(&self, bucket: &Bucket, commit: Commit) -> Admitted<'_, Committed> {
        let shared = Arc::clone(&self.shared);
        let call = Call::Commit {
            bucket: bucket.clone(),
            commit,
        };
        Admitted::waiting(async move {
            // A repeat is recognised by the commit's id.
            let limit = shared.options.request_timeout;
            let ticket = shared.admit(call, Repeat::Safe, limit).await?;
            Ok(Admission::waiting(async move {
                answer!(ticket.answer().await, Committed)
            }))
        })
    }

    fn scan<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        after: Option<&'a StateKey>,
        at_least: Rev,
        max: Credit,
    ) -> Boxed<'a, Result<Entries>> {
        let call = Call::Scan {
            bucket: bucket.clone(),
            prefix: prefix.cloned(),
            after: after.cloned(),
            at_least,
            max,
        };
        Box::pin(async move { answer!(self.shared.ask(call, Repeat::Safe).await, Scanned) })
    }

    fn watch<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        from: Rev,
    ) -> Boxed<'a, Result<Box<dyn Watch>>> {
        let what = Open::Watch {
            bucket: bucket.clone(),
            prefix: prefix.cloned(),
            from,
        };
        Box::pin(async move {
            let reader = Reader::open(&self.shared, what).await?;
            let watch: Box<dyn Watch> = Box::new(RemoteWatch::new(reader));
            Ok(watch)
        })
    }
}

impl Topology for RemoteEngine {
    fn inspect(&self) -> Boxed<'_, Result<Inspection>> {
        Box::pin(async move {
            answer!(
                self.shared.ask(Call::Inspect, Repeat::Safe).await,
                Inspected
            )
        })
    }

    fn apply(&self, changes: Vec<Change>) -> Boxed<'_, Result<()>> {
        Box::pin(async move {
            if changes.is_empty() && !self.shared.core.lock().closed {
                return Ok(());
            }
            match self
                .shared
                .ask(Call::Apply { changes }, Repeat::Unsafe)
                .await?
            {
                Answer::Applied => Ok(()),
                _ => Err(misfit()),
            }
        })
    }

    fn backlog<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Backlog>> {
        let call = Call::Backlog {
            consumer: consumer.clone(),
        };
        Box::pin(async move { answer!(self.shared.ask(call, Repeat::Safe).await, Backlog) })
    }

    fn subjects<'a>(
        &'a self,
        stream: &'a Name,
        filter: &'a Filter,
        max: usize,
    ) -> Boxed<'a, Result<Vec<SubjectCount>>> {
        let call = Call::Subjects {
            stream: stream.clone(),
            filter: filter.clone(),
            max,
        };
        Box::pin(async move { answer!(self.shared.ask(call, Repeat::Safe).await, Subjects) })
    }
}
