//! The five groups of the seam, each operation as a call or a reader.

use std::sync::Arc;

use smallvec::smallvec;
use trunkline_core::engine::{
    Admission, Admitted, Append, AppendMode, Backlog, Batch, Boxed, Bucket, Change, Commit,
    Committed, Consume, ConsumerRef, Credit, Entries, Expect, Follow, Inspection, Listener, Live,
    Log, Membership, Message, Outcome, Page, Position, Removal, Rev, Route, State, StateKey,
    SubjectCount, Topology, Watch,
};
use trunkline_core::wire::Body;
use trunkline_core::{Error, ErrorKind, Filter, Headers, Name, Result, Subject};

use super::RemoteEngine;
use super::calls::{Connection, Failed, Repeat, Shared, closed, misfit};
use super::readers::{Reader, RemoteFeed, RemoteFollow, RemoteListener, RemoteWatch};
use crate::frame::{Answer, Call, Open, Request, frame};
use crate::session::Tag;

/// Bytes of live messages that go together; a batch with more goes in several frames.
const SEND_BYTES: usize = 1 << 20;

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
        let mut requests = Vec::new();
        let (mut some, mut bytes) = (Batch::new(), 0);
        for message in messages {
            bytes += message.body.rough_bytes() + message.headers.bytes();
            some.push(message);
            if bytes >= SEND_BYTES {
                requests.push(frame(&Request::Send {
                    messages: std::mem::take(&mut some),
                }));
                bytes = 0;
            }
        }
        requests.push(frame(&Request::Send { messages: some }));
        // Under the lock, so that nothing of others comes in between.
        let core = self.core.lock();
        if core.closed {
            return Err(closed());
        }
        for request in requests {
            self.line.push(Tag::Messages, request);
        }
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

/// A batch that is ready to be sent, without what would be refused anyway.
struct Appending {
    batch: Batch<Append>,
    /// What is known of each item already; the others are in the batch, in their order.
    outcomes: Vec<Option<Outcome>>,
}

impl Appending {
    fn new(shared: &Shared, items: Batch<Append>, mode: AppendMode) -> Result<Self> {
        let max_batch = shared.limits.max_batch;
        if items.len() > max_batch {
            return Err(Error::new(
                ErrorKind::OverLimit,
                format!(
                    "the batch has {} items, the limit is {max_batch}; split it",
                    items.len()
                ),
            ));
        }
        let mut outcomes = vec![None; items.len()];
        let mut batch = Batch::with_capacity(items.len());
        for (append, outcome) in items.into_iter().zip(&mut outcomes) {
            match shared.encoded(&append.headers, &append.body) {
                Err(error) => *outcome = Some(Outcome::Refused(error)),
                Ok(body) => batch.push(Append { body, ..append }),
            }
        }
        if mode == AppendMode::Atomic
            && let Some(refusal) = outcomes.iter().flatten().next().cloned()
        {
            outcomes = vec![Some(refusal); outcomes.len()];
            batch.clear();
        }
        Ok(Self { batch, outcomes })
    }

    /// Whether a repeat of it is recognised by its ids. With an expectation it could be refused by
    /// its own first try.
    fn repeat(&self, mode: AppendMode) -> Repeat {
        let known = |append: &Append| append.id.is_some() && append.expect == Expect::Any;
        match mode {
            AppendMode::Each if self.batch.iter().all(known) => Repeat::Safe,
            _ => Repeat::Unsafe,
        }
    }
}

/// What became of each item: what was known before, and the answer for the others.
fn outcomes(
    early: Vec<Option<Outcome>>,
    sent: usize,
    answer: Result<Answer, Failed>,
) -> Result<Vec<Outcome>> {
    let answered = match answer {
        Ok(Answer::Appended(outcomes)) if outcomes.len() == sent => outcomes,
        Ok(_) => return Err(misfit()),
        Err(failed) if failed.perhaps_done => vec![Outcome::Unknown(failed.error); sent],
        Err(Failed { error, .. }) if error.kind() == ErrorKind::Disconnected => {
            vec![Outcome::Refused(error); sent]
        }
        // The stream, not the events, is at fault.
        Err(Failed { error, .. }) => return Err(error),
    };
    let mut answered = answered.into_iter();
    let lost = || Outcome::Unknown(misfit());
    let outcome = |early: Option<Outcome>| early.or_else(|| answered.next()).unwrap_or_else(lost);
    Ok(early.into_iter().map(outcome).collect())
}

impl Log for RemoteEngine {
    fn append(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>> {
        let shared = Arc::clone(&self.shared);
        let appending = Appending::new(&shared, batch, mode);
        let stream = stream.clone();
        Admitted::waiting(async move {
            let appending = appending?;
            let repeat = appending.repeat(mode);
            let Appending {
                batch,
                outcomes: early,
            } = appending;
            let sent = batch.len();
            if sent == 0 && !early.is_empty() {
                return Ok(Admission::waiting(std::future::ready(outcomes(
                    early,
                    0,
                    Ok(Answer::Appended(Vec::new())),
                ))));
            }
            let call = Call::Append {
                stream,
                batch,
                mode,
            };
            let limit = shared.options.publish_timeout;
            let admitted = shared.admit(call, repeat, limit).await;
            Ok(Admission::waiting(async move {
                let answer = match admitted {
                    Ok(ticket) => ticket.answer().await,
                    Err(failed) => Err(failed),
                };
                outcomes(early, sent, answer)
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
