//! One group on its way: as an atomic batch if it may be one, else one by one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use async_nats::header::NATS_EXPECTED_STREAM;
use bytes::Bytes;
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::json;
use smol_str::SmolStr;
use tokio::time::Instant;
use trunkline_core::engine::{Expect, Outcome, Seq};
use trunkline_core::{Error, ErrorKind};

use super::group::{Group, Landed, behind_failed};
use super::{Item, Target, message_id};
use crate::api::{ApiError, PAUSE, code, no_such_stream};
use crate::asks::{Asked, Lost, One};
use crate::message::{decoded_headers, header};
use crate::wire::Wire;

/// How long one attempt waits for its answer before the event is sent again with its id: a leader that
/// dies takes the answer with it.
const ATTEMPT: Duration = Duration::from_secs(2);

/// The server's answer to an event that was published.
#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: Seq,
    #[serde(default)]
    duplicate: bool,
    #[serde(default)]
    count: u64,
    error: Option<ApiError>,
}

/// What became of one atomic batch.
enum BatchEnd {
    /// All are stored; the last has this sequence.
    Stored(Seq),
    /// None is stored, for a reason that passes.
    NotNow(Error),
    /// None is stored, as things are.
    Refused(ApiError),
    /// Nobody knows.
    Perhaps,
    /// None was sent, or none may be.
    Never(Error),
}

/// Stores a group, and gives every item its outcome.
pub(super) async fn fly(wire: Arc<Wire>, target: Arc<Target>, mut group: Group) -> Landed {
    let flight = Flight { wire, target };
    let keys = group
        .items
        .iter()
        .filter_map(|item| item.event.key.clone())
        .collect();
    let appends = group.items.iter().map(Item::append).collect();
    let (shape, start) = (group.shape, Instant::now());
    let mut as_batch = None;
    let failed = if group.whole && group.items.len() > 1 {
        flight.whole(&mut group.items).await
    } else if group.together && flight.together(&mut group.items).await {
        as_batch = Some(true);
        HashSet::new()
    } else {
        let failed = flight.one_by_one(group.items).await;
        as_batch = Some(false).filter(|_| !group.together && failed.is_empty());
        failed
    };
    Landed {
        keys,
        appends,
        failed,
        took: as_batch.map(|as_batch| (shape, as_batch, start.elapsed())),
    }
}

struct Flight {
    wire: Arc<Wire>,
    target: Arc<Target>,
}

impl Flight {
    /// Stores what may be stored apart in one batch, and says whether that worked.
    async fn together(&self, items: &mut [Item]) -> bool {
        let deadline = deadline_of(items);
        loop {
            match self.batch(items, deadline).await {
                BatchEnd::Stored(last) => {
                    stored(items, last);
                    return true;
                }
                BatchEnd::NotNow(_) if Instant::now() + PAUSE < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                BatchEnd::Perhaps => {
                    items.iter_mut().for_each(|item| item.tried = true);
                    return false;
                }
                BatchEnd::NotNow(_) | BatchEnd::Refused(_) | BatchEnd::Never(_) => return false,
            }
        }
    }

    /// Stores all or none, and says which keys failed.
    async fn whole(&self, items: &mut [Item]) -> HashSet<SmolStr> {
        let deadline = deadline_of(items);
        let mut tried = false;
        let outcome = loop {
            let waits = Instant::now() + PAUSE < deadline;
            match self.batch(items, deadline).await {
                BatchEnd::Stored(last) => {
                    stored(items, last);
                    return HashSet::new();
                }
                BatchEnd::NotNow(_) if waits => tokio::time::sleep(PAUSE).await,
                BatchEnd::Perhaps if waits => {
                    tried = true;
                    tokio::time::sleep(PAUSE).await;
                }
                // A batch that arrived, and whose answer did not, is known by its ids or is in its
                // own way; whether it is that batch, its events say.
                BatchEnd::Refused(error) if tried && self.is_repeat(&error) => {
                    match self.find(items).await {
                        Some(last) => {
                            stored(items, last);
                            return HashSet::new();
                        }
                        None => break Outcome::Unknown(error.meaning("store a batch")),
                    }
                }
                BatchEnd::Refused(error) => {
                    let error = match error.err_code {
                        code::BATCH_DUPLICATE => Error::new(
                            ErrorKind::Conflict,
                            "an event of the batch is stored already, under the same id; nothing was stored",
                        ),
                        _ => error.meaning("store a batch"),
                    };
                    break Outcome::Refused(error);
                }
                BatchEnd::Never(error) | BatchEnd::NotNow(error) if !tried => {
                    break Outcome::Refused(error);
                }
                BatchEnd::Never(error) | BatchEnd::NotNow(error) => break Outcome::Unknown(error),
                BatchEnd::Perhaps => break Outcome::Unknown(timed_out(&self.target)),
            }
        };
        for item in &*items {
            item.settle(outcome.clone());
        }
        items
            .iter()
            .filter_map(|item| item.event.key.clone())
            .collect()
    }

    /// A batch of which the server did not let a message in is incomplete, as one is of which a
    /// message was lost.
    async fn denied(&self, items: &[Item]) -> Option<Error> {
        self.wire.denied.settled().await;
        let denied = |item: &Item| self.wire.denied.check_send(&item.event.subject).err();
        items.iter().find_map(denied)
    }

    fn is_repeat(&self, error: &ApiError) -> bool {
        [
            code::BATCH_DUPLICATE,
            code::WRONG_LAST_SEQUENCE,
            code::WRONG_LAST,
        ]
        .contains(&error.err_code)
    }

    /// The sequence of the last item, if the last stored event of its subject has its id.
    async fn find(&self, items: &[Item]) -> Option<Seq> {
        let last = items.last()?;
        last.event.id.as_ref()?;
        self.stored_as(last).await
    }

    /// The sequence of an event that was stored by an attempt without an answer.
    async fn stored_as(&self, item: &Item) -> Option<Seq> {
        #[derive(Deserialize)]
        struct Found {
            message: Place,
        }
        #[derive(Deserialize)]
        struct Place {
            seq: Seq,
            #[serde(default)]
            hdrs: String,
        }
        let id = item.event.id.as_ref()?;
        let request = json!({ "last_by_subj": item.event.subject.as_str() });
        let verb = format!("STREAM.MSG.GET.{}", self.target.stream);
        let found: Found = self.wire.api(&verb, &request).await.ok()?.ok()?;
        let headers = decoded_headers(&found.message.hdrs).ok()?;
        let same = header(Some(&headers), "Nats-Msg-Id") == Some(message_id(id).as_str());
        same.then_some(found.message.seq)
    }

    /// One atomic batch: every message but the last goes without a reply, and the last one's answer
    /// is for all.
    async fn batch(&self, items: &[Item], deadline: Instant) -> BatchEnd {
        if let Err(error) = self.wire.connected(deadline).await {
            return BatchEnd::Never(error);
        }
        let batch = format!("{:032x}", rand::random::<u128>());
        let subject = items[items.len() - 1].event.subject.clone();
        let asked = self.wire.asks.one(subject);
        for (index, item) in items.iter().enumerate() {
            let mut headers = item.event.to_nats();
            headers.insert("Nats-Batch-Id", batch.as_str());
            headers.insert("Nats-Batch-Sequence", (index + 1).to_string());
            if index == 0 {
                headers.insert(NATS_EXPECTED_STREAM, self.target.stream.as_str());
            }
            let (subject, body) = (item.event.subject.clone(), item.event.body.clone());
            let sent = if index + 1 == items.len() {
                headers.insert("Nats-Batch-Commit", "1");
                asked
                    .send(&self.wire, subject, headers, body, deadline)
                    .await
            } else {
                let client = &self.wire.client;
                let sending = client.publish_with_headers(subject, headers, body);
                let sent = self.wire.hand_over(deadline, sending).await;
                sent.map_err(Lost::NotSent)
            };
            // Without its last message a batch is never stored.
            if let Err(Lost::NotSent(error) | Lost::Denied(error)) = sent {
                return BatchEnd::Never(error);
            }
        }
        match self
            .answer(asked, deadline.min(Instant::now() + ATTEMPT))
            .await
        {
            Ok(ack) => match ack.error {
                None if ack.count == items.len() as u64 => BatchEnd::Stored(ack.seq),
                None => BatchEnd::Perhaps,
                Some(error) if error.is_passing() => match self.denied(items).await {
                    Some(denied) => BatchEnd::Never(denied),
                    None => BatchEnd::NotNow(error.meaning("store events")),
                },
                Some(error) => BatchEnd::Refused(error),
            },
            Err(Lost::NoResponders) => match self.gone().await {
                Some(error) => BatchEnd::Never(error),
                None => BatchEnd::NotNow(self.leaderless()),
            },
            Err(Lost::Denied(error) | Lost::NotSent(error)) => BatchEnd::Never(error),
            Err(Lost::Interrupted | Lost::TimedOut) => BatchEnd::Perhaps,
        }
    }

    async fn answer(&self, asked: Asked<One>, deadline: Instant) -> Result<Ack, Lost> {
        let answer = asked.answer(deadline).await?;
        Ok(read_ack(&answer))
    }

    /// Stores them in order: those that share no key go side by side, up to the first whose key is
    /// among them already. Says which keys failed.
    async fn one_by_one(&self, items: Vec<Item>) -> HashSet<SmolStr> {
        let mut failed = HashSet::new();
        let mut rest = items.into_iter().peekable();
        while rest.peek().is_some() {
            let mut keys = HashSet::new();
            let mut now = Vec::new();
            while let Some(item) = rest.next_if(|item| match &item.event.key {
                Some(key) => !keys.contains(key),
                None => true,
            }) {
                match &item.event.key {
                    Some(key) if failed.contains(key) => {
                        item.settle(Outcome::Refused(behind_failed(key)));
                        continue;
                    }
                    Some(key) => keys.insert(key.clone()),
                    None => true,
                };
                now.push(item);
            }
            // Sent in order, one after the other. Their answers come in about that order too, so that
            // each is waited for in its turn, and who hears that it is stored need not wait for the
            // others. What is in trouble is looked after when all have had their turn.
            let mut sent = Vec::with_capacity(now.len());
            for item in &now {
                sent.push(self.send(item).await);
            }
            let attempt = Instant::now() + ATTEMPT;
            let mut troubled = Vec::new();
            for (item, sent) in now.into_iter().zip(sent) {
                let answer = match sent {
                    Ok(asked) => self.answer(asked, item.attempt(attempt)).await,
                    Err(outcome) => {
                        failed.extend(item.event.key.clone());
                        item.settle(outcome);
                        continue;
                    }
                };
                match answer {
                    Ok(Ack {
                        error: None,
                        seq,
                        duplicate,
                        ..
                    }) => item.stored(seq, duplicate),
                    answer => troubled.push((item, answer)),
                }
            }
            let outcomes = troubled.iter_mut().map(|(item, answer)| {
                self.again(item, std::mem::replace(answer, Err(Lost::TimedOut)))
            });
            let outcomes = join_all(outcomes).await;
            for ((item, _), outcome) in troubled.into_iter().zip(outcomes) {
                if !matches!(outcome, Outcome::Stored { .. }) {
                    failed.extend(item.event.key.clone());
                }
                item.settle(outcome);
            }
        }
        failed
    }

    /// Sends an event, or says what becomes of one that is not to be sent.
    async fn send(&self, item: &Item) -> Result<Asked<One>, Outcome> {
        let Item {
            event, deadline, ..
        } = item;
        let ended = |error: Error| match item.tried {
            false => Outcome::Refused(error),
            true => Outcome::Unknown(error),
        };
        if item.tried && event.id.is_none() {
            // A batch that was in doubt may have stored it, and nothing would know it again.
            return Err(Outcome::Unknown(timed_out(&self.target)));
        }
        self.wire.connected(*deadline).await.map_err(ended)?;
        if Instant::now() >= *deadline {
            // What waited too long is not sent: nobody would hear what became of it.
            return Err(ended(self.late()));
        }
        self.wire.denied.check_send(&event.subject).map_err(ended)?;
        let asked = self.wire.asks.one(event.subject.clone());
        let (subject, body) = (event.subject.clone(), Bytes::clone(&event.body));
        let mut headers = event.to_nats();
        headers.insert(NATS_EXPECTED_STREAM, self.target.stream.as_str());
        let sent = asked.send(&self.wire, subject, headers, body, *deadline);
        match sent.await {
            Ok(()) => Ok(asked),
            Err(lost) => Err(ended(crate::api::lost(lost, "sending an event"))),
        }
    }

    /// What becomes of an event that was not simply stored, by what was answered first: it is sent
    /// again for as long as that may help.
    async fn again(&self, item: &mut Item, answer: Result<Ack, Lost>) -> Outcome {
        let deadline = item.deadline;
        let ended = |tried: bool, error: Error| match tried {
            false => Outcome::Refused(error),
            true => Outcome::Unknown(error),
        };
        let mut first = Some(answer);
        // Another's attempt at the same event is under way: it may yet be stored, whatever becomes of ours.
        let mut in_process = false;
        loop {
            let answer = match first.take() {
                Some(answer) => answer,
                None => match self.send(item).await {
                    Ok(asked) => {
                        let attempt = item.attempt(Instant::now() + ATTEMPT);
                        self.answer(asked, attempt).await
                    }
                    Err(outcome) => return outcome,
                },
            };
            let Item { event, tried, .. } = &mut *item;
            let waits = Instant::now() + PAUSE < deadline;
            match answer {
                Ok(Ack {
                    error: None,
                    seq,
                    duplicate,
                    ..
                }) => {
                    let duplicate = duplicate && !*tried;
                    return Outcome::Stored { seq, duplicate };
                }
                Ok(Ack {
                    error: Some(error), ..
                }) => {
                    in_process |= error.err_code == code::ID_IN_PROCESS;
                    if error.is_passing() && waits {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    let moved = [code::WRONG_LAST_SEQUENCE, code::WRONG_LAST];
                    if *tried && event.expect != Expect::Any && moved.contains(&error.err_code) {
                        // It may be itself that is in its way.
                        return match self.stored_as(item).await {
                            Some(seq) => Outcome::Stored {
                                seq,
                                duplicate: false,
                            },
                            None => Outcome::Unknown(error.meaning("store an event")),
                        };
                    }
                    return ended(*tried || in_process, error.meaning("store an event"));
                }
                Err(Lost::Denied(error) | Lost::NotSent(error)) => {
                    return ended(*tried || in_process, error);
                }
                Err(Lost::NoResponders) => {
                    if let Some(error) = self.gone().await {
                        return ended(*tried || in_process, error);
                    }
                    if !waits {
                        return ended(*tried || in_process, self.leaderless());
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Lost::Interrupted | Lost::TimedOut) => {
                    *tried = true;
                    if !waits || event.id.is_none() {
                        return Outcome::Unknown(timed_out(&self.target));
                    }
                }
            }
        }
    }

    /// Nobody took it: because there is no such stream, or because it has no leader at the moment?
    async fn gone(&self) -> Option<Error> {
        match self.wire.stream_info(self.target.stream.as_str()).await {
            Ok(None) => Some(no_such_stream(self.target.stream.as_str())),
            Ok(Some(_)) | Err(_) => None,
        }
    }

    fn late(&self) -> Error {
        Error::new(
            ErrorKind::Disconnected,
            format!(
                "stream {} was busy or out of reach until the deadline; try again",
                self.target.stream
            ),
        )
    }

    fn leaderless(&self) -> Error {
        Error::new(
            ErrorKind::Disconnected,
            format!(
                "nobody takes events for stream {} at the moment; it may have no leader",
                self.target.stream
            ),
        )
    }
}

fn read_ack(answer: &Message) -> Ack {
    serde_json::from_slice(&answer.payload).unwrap_or_else(|error| Ack {
        seq: 0,
        duplicate: false,
        count: 0,
        error: Some(ApiError {
            code: 500,
            err_code: 1,
            description: format!(
                "what answers is no stream ({error}): something else listens to this subject"
            ),
        }),
    })
}

/// The outcomes of a batch: its events stand side by side.
fn stored(items: &[Item], last: Seq) {
    let first = last + 1 - items.len() as u64;
    for (item, seq) in items.iter().zip(first..) {
        item.settle(Outcome::Stored {
            seq,
            duplicate: false,
        });
    }
}

fn deadline_of(items: &[Item]) -> Instant {
    let deadlines = items.iter().map(|item| item.deadline);
    deadlines.min().unwrap_or_else(Instant::now)
}

fn timed_out(target: &Target) -> Error {
    Error::new(
        ErrorKind::TimedOut,
        format!(
            "stream {} did not say in time whether it stored the event; publish it again with its id",
            target.stream
        ),
    )
}
