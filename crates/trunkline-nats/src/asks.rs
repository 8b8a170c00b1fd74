//! Questions and answers over one inbox of our own.
//!
//! The client's own requests would do for a few. This one serves every acknowledgement of a publish
//! as well: a number and a slot for each, nothing that stays behind when an answer never comes, and
//! an end at once when the connection is lost or the question was not permitted.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::{Client, HeaderMap, Message, StatusCode, Subject};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use trunkline_core::{Error, Result};

use crate::denied::may_not;
use crate::wire::Wire;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Lost {
    /// Nobody listens there: nothing happened.
    NoResponders,
    /// The connection was lost before the answer came. The question may have arrived.
    Interrupted,
    /// The server does not allow it, for this subject: nothing happened.
    Denied(Error),
    /// No answer in time. The question may have arrived.
    TimedOut,
    /// It was never sent.
    NotSent(Error),
}

#[derive(Clone)]
pub(crate) struct Asks(Arc<Inner>);

struct Inner {
    inbox: String,
    numbers: AtomicU64,
    waiting: Mutex<FxHashMap<u64, Waiting>>,
    /// The inbox, if this user may not subscribe to it.
    deaf: Mutex<Option<String>>,
}

struct Waiting {
    /// What was asked, so that a refusal finds it.
    subject: Subject,
    answers: Answers,
}

enum Answers {
    One(oneshot::Sender<Result<Message, Lost>>),
    Many(mpsc::UnboundedSender<Result<Message, Lost>>),
}

/// Instead of its number, when there is nothing to forget any more.
const ANSWERED: u64 = 0;

/// A question that was numbered; dropping it forgets it.
pub(crate) struct Asked<A> {
    number: u64,
    pub(crate) answers: A,
    asks: Asks,
}

pub(crate) type One = oneshot::Receiver<Result<Message, Lost>>;
pub(crate) type Many = mpsc::UnboundedReceiver<Result<Message, Lost>>;

impl Asks {
    /// Subscribes to the inbox, and hears what comes there until it is aborted: it holds the client,
    /// which would go on for ever otherwise.
    pub(crate) async fn start(client: &Client) -> Result<(Self, AbortHandle)> {
        let inbox = client.new_inbox();
        let mut answers = client
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(|error| {
                let text = crate::wire::chain(&error);
                crate::api::internal("subscribe to the inbox", &text)
            })?;
        let asks = Self(Arc::new(Inner {
            inbox,
            numbers: AtomicU64::new(1),
            waiting: Mutex::default(),
            deaf: Mutex::default(),
        }));
        let inner = asks.clone();
        let hearing = tokio::spawn(async move {
            while let Some(message) = answers.next().await {
                inner.heard(message);
            }
        });
        Ok((asks, hearing.abort_handle()))
    }

    /// Says whether the inbox is what may not be subscribed to. Then nothing is ever answered, and
    /// every question ends with that.
    pub(crate) fn refuse(&self, subject: &str) -> bool {
        let inbox = subject.strip_suffix(".*");
        if inbox != Some(self.0.inbox.as_str()) {
            return false;
        }
        *self.0.deaf.lock() = Some(subject.to_owned());
        for (_, one) in self.0.waiting.lock().drain() {
            one.answers
                .end(Lost::Denied(may_not("subscribe to", subject)));
        }
        true
    }

    fn heard(&self, message: Message) {
        let number = message.subject.rsplit('.').next();
        let Some(number) = number.and_then(|number| number.parse().ok()) else {
            return;
        };
        let answer = match message.status {
            Some(StatusCode::NO_RESPONDERS) => Err(Lost::NoResponders),
            _ => Ok(message),
        };
        self.answer(number, answer);
    }

    fn answer(&self, number: u64, answer: Result<Message, Lost>) {
        let mut waiting = self.0.waiting.lock();
        let Some(one) = waiting.remove(&number) else {
            return; // Too late: whoever asked has gone.
        };
        match one.answers {
            Answers::One(sender) => {
                let _ = sender.send(answer);
            }
            Answers::Many(sender) => {
                let last = answer.is_err();
                if sender.send(answer).is_ok() && !last {
                    let answers = Answers::Many(sender);
                    waiting.insert(number, Waiting { answers, ..one });
                }
            }
        }
    }

    /// Ends every question: its answer was lost with the connection.
    pub(crate) fn interrupt(&self) {
        for (_, one) in self.0.waiting.lock().drain() {
            one.answers.end(Lost::Interrupted);
        }
    }

    /// Ends what was asked on a subject that is not permitted, and says whether there was any.
    pub(crate) fn deny(&self, subject: &str) -> bool {
        let mut waiting = self.0.waiting.lock();
        let denied: Vec<u64> = waiting
            .iter()
            .filter(|(_, one)| one.subject.as_str() == subject)
            .map(|(number, _)| *number)
            .collect();
        for number in &denied {
            if let Some(one) = waiting.remove(number) {
                one.answers
                    .end(Lost::Denied(may_not("publish to", subject)));
            }
        }
        !denied.is_empty()
    }

    /// Whether answers can come at all.
    fn hears(&self) -> Result<(), Lost> {
        match &*self.0.deaf.lock() {
            None => Ok(()),
            Some(inbox) => Err(Lost::Denied(may_not("subscribe to", inbox))),
        }
    }

    /// Numbers a question that has one answer.
    pub(crate) fn one(&self, subject: Subject) -> Asked<One> {
        let (sender, answers) = oneshot::channel();
        self.number(subject, Answers::One(sender), answers)
    }

    /// Numbers a question that has several answers.
    pub(crate) fn many(&self, subject: Subject) -> Asked<Many> {
        let (sender, answers) = mpsc::unbounded_channel();
        self.number(subject, Answers::Many(sender), answers)
    }

    fn number<A>(&self, subject: Subject, sender: Answers, answers: A) -> Asked<A> {
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting {
            subject,
            answers: sender,
        };
        self.0.waiting.lock().insert(number, waiting);
        Asked {
            number,
            answers,
            asks: self.clone(),
        }
    }

    /// A message to ourselves and back: what was sent before it has reached the server.
    pub(crate) async fn echo(&self, wire: &Wire, deadline: Instant) -> Result<(), Lost> {
        self.hears()?;
        let asked = self.one(Subject::from_static(""));
        let sending = wire.client.publish(asked.reply(), Bytes::new());
        wire.hand_over(deadline, sending)
            .await
            .map_err(Lost::NotSent)?;
        asked.answer(deadline).await.map(drop)
    }
}

impl Answers {
    fn end(self, lost: Lost) {
        match self {
            Answers::One(sender) => {
                let _ = sender.send(Err(lost));
            }
            Answers::Many(sender) => {
                let _ = sender.send(Err(lost));
            }
        }
    }
}

impl<A> Asked<A> {
    /// Where the answer goes, in as many bytes as that takes: a buffer with room to spare would need
    /// a second allocation to be shared.
    fn reply(&self) -> Subject {
        let inbox = &self.asks.0.inbox;
        let digits = self.number.checked_ilog10().unwrap_or(0) as usize + 1;
        let mut reply = String::with_capacity(inbox.len() + 1 + digits);
        // Writing to a string never fails.
        let _ = write!(reply, "{inbox}.{}", self.number);
        Subject::from(reply)
    }

    /// Sends the question.
    pub(crate) async fn send(
        &self,
        wire: &Wire,
        subject: Subject,
        headers: HeaderMap,
        body: Bytes,
        deadline: Instant,
    ) -> Result<(), Lost> {
        self.asks.hears()?;
        let (client, reply) = (&wire.client, self.reply());
        let sending = async {
            match headers.is_empty() {
                true => client.publish_with_reply(subject, reply, body).await,
                false => {
                    client
                        .publish_with_reply_and_headers(subject, reply, headers, body)
                        .await
                }
            }
        };
        wire.hand_over(deadline, sending)
            .await
            .map_err(Lost::NotSent)
    }
}

impl Asked<One> {
    /// Waits for the answer.
    pub(crate) async fn answer(mut self, deadline: Instant) -> Result<Message, Lost> {
        match timeout_at(deadline, &mut self.answers).await {
            Err(_) => Err(Lost::TimedOut),
            // Nothing drops a slot without a word but the end of everything.
            Ok(Err(_)) => Err(Lost::Interrupted),
            Ok(Ok(answer)) => {
                self.number = ANSWERED;
                answer
            }
        }
    }
}

impl Asked<Many> {
    /// Waits for the next answer.
    pub(crate) async fn next(&mut self, deadline: Instant) -> Result<Message, Lost> {
        match timeout_at(deadline, self.answers.recv()).await {
            Err(_) => Err(Lost::TimedOut),
            Ok(None) => Err(Lost::Interrupted),
            Ok(Some(answer)) => answer,
        }
    }
}

impl<A> Drop for Asked<A> {
    fn drop(&mut self) {
        if self.number != ANSWERED {
            self.asks.0.waiting.lock().remove(&self.number);
        }
    }
}
