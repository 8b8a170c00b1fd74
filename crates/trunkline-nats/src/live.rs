//! Live messages: core NATS.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::stream::SelectAll;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use trunkline_core::engine::{Admitted, Batch, Boxed, Heard, Link, Listener, Live, Message, Route};
use trunkline_core::wire::Body;
use trunkline_core::{Error, ErrorKind, Filter, Name, Result, Subject};

use crate::NatsEngine;
use crate::asks::Lost;
use crate::denied::may_not;
use crate::message;
use crate::options::DEFAULT_INBOX;
use crate::wire::Wire;

impl Live for NatsEngine {
    fn send(&self, batch: Batch<Message>) -> Admitted<'_, ()> {
        Admitted::waiting(async move {
            for message in batch {
                send(&self.wire, self.max_message(), message).await?;
            }
            Ok(trunkline_core::engine::Admission::waiting(async { Ok(()) }))
        })
    }

    fn route(&self, subject: &Subject) -> Arc<dyn Route> {
        Arc::new(NatsRoute {
            wire: Arc::clone(&self.wire),
            subject: async_nats::Subject::from(subject.as_str()),
            max_message: self.max_message(),
        })
    }

    fn listen(
        &self,
        filters: &[Filter],
        share: Option<&Name>,
        capacity: usize,
    ) -> Boxed<'_, Result<Box<dyn Listener>>> {
        let filters = apart(filters);
        let share = share.map(ToString::to_string);
        Box::pin(async move {
            let listener = NatsListener::start(&self.wire, filters, share, capacity).await?;
            let listener: Box<dyn Listener> = Box::new(listener);
            Ok(listener)
        })
    }
}

/// Only what no other filter covers: the server would send a message once for each that matches.
fn apart(filters: &[Filter]) -> Vec<Filter> {
    let mut apart: Vec<Filter> = Vec::new();
    for filter in filters {
        if !apart.iter().any(|other| other.covers(filter)) {
            apart.retain(|other| !filter.covers(other));
            apart.push(filter.clone());
        }
    }
    apart
}

async fn send(wire: &Wire, max_message: usize, message: Message) -> Result<()> {
    let subject = async_nats::Subject::from(message.subject.as_str());
    publish(wire, max_message, subject, message).await
}

async fn publish(
    wire: &Wire,
    max_message: usize,
    subject: async_nats::Subject,
    message: Message,
) -> Result<()> {
    // At most once: what cannot be sent now is refused now, instead of waiting in a buffer that the
    // client drops when it connects again.
    wire.check_connected()?;
    wire.denied.check_send(&subject)?;
    let (headers, body) = message.body.to_message(&message.headers, wire.mode)?;
    check_size(body.len() + headers.bytes(), max_message)?;
    let headers = (!headers.is_empty()).then(|| message::to_nats(&headers));
    let client = &wire.client;
    let sending = async {
        match (message.reply, headers) {
            (None, None) => client.publish(subject, body).await,
            (None, Some(headers)) => client.publish_with_headers(subject, headers, body).await,
            (Some(reply), None) => {
                client
                    .publish_with_reply(subject, reply.as_str().to_owned(), body)
                    .await
            }
            (Some(reply), Some(headers)) => {
                let reply = reply.as_str().to_owned();
                client
                    .publish_with_reply_and_headers(subject, reply, headers, body)
                    .await
            }
        }
    };
    wire.hand_over(wire.request_deadline(), sending).await
}

fn check_size(size: usize, max_message: usize) -> Result<()> {
    if size <= max_message {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        format!("the message has {size} bytes with its headers, the limit is {max_message}"),
    ))
}

struct NatsRoute {
    wire: Arc<Wire>,
    subject: async_nats::Subject,
    max_message: usize,
}

impl Route for NatsRoute {
    fn send(&self, message: Message) -> Admitted<'_, ()> {
        Admitted::waiting(async move {
            publish(&self.wire, self.max_message, self.subject.clone(), message).await?;
            Ok(trunkline_core::engine::Admission::waiting(async { Ok(()) }))
        })
    }
}

/// For how long a listener that begins looks whether it is refused: that is told on the side, and by
/// then has been sent already.
const REFUSAL_MS: u32 = 5;
/// Messages that are handed to a listener at once, at most.
const TOGETHER: usize = 256;

/// What a listener has not received yet. The newest `capacity` are kept.
pub(crate) struct Ring {
    state: Mutex<RingState>,
    /// Told when there is something.
    filled: Notify,
    capacity: usize,
}

#[derive(Default)]
struct RingState {
    waiting: VecDeque<Message>,
    /// Askers learn that nobody listens before anything that came after it.
    no_responders: u64,
    lost: u64,
    refused: Option<String>,
}

impl Ring {
    fn push(&self, messages: &mut Vec<Message>) {
        let mut state = self.state.lock();
        for message in messages.drain(..) {
            if state.waiting.len() >= self.capacity {
                state.waiting.pop_front();
                state.lost += 1;
            }
            state.waiting.push_back(message);
        }
        drop(state);
        self.filled.notify_one();
    }

    fn nobody(&self) {
        self.state.lock().no_responders += 1;
        self.filled.notify_one();
    }

    /// Ends the listener: it may not listen there.
    pub(crate) fn refuse(&self, subject: &str) {
        self.state.lock().refused = Some(subject.to_owned());
        self.filled.notify_one();
    }

    fn take(&self, max: usize, out: &mut Vec<Message>) -> Option<Heard> {
        let mut state = self.state.lock();
        if state.lost > 0 {
            let at_least = std::mem::take(&mut state.lost);
            return Some(Heard::Lagged { at_least });
        }
        if !state.waiting.is_empty() {
            let count = max.max(1).min(state.waiting.len());
            out.extend(state.waiting.drain(..count));
            return Some(Heard::Messages(count));
        }
        if state.no_responders > 0 {
            state.no_responders -= 1;
            return Some(Heard::NoResponders);
        }
        state.refused.as_ref().map(|_| Heard::Closed)
    }

    fn refused(&self) -> Option<Error> {
        let state = self.state.lock();
        state
            .refused
            .as_ref()
            .map(|subject| may_not("subscribe to", subject))
    }
}

struct NatsListener {
    ring: Arc<Ring>,
    link: watch::Receiver<Link>,
    connections: watch::Receiver<u64>,
    /// Ends the reader, and with it the subscriptions.
    reader: tokio::task::JoinHandle<()>,
    filters: Vec<Filter>,
    wire: Arc<Wire>,
}

impl NatsListener {
    async fn start(
        wire: &Arc<Wire>,
        filters: Vec<Filter>,
        share: Option<String>,
        capacity: usize,
    ) -> Result<Self> {
        let deadline = wire.request_deadline();
        wire.connected(deadline).await?;
        let ring = Arc::new(Ring {
            state: Mutex::default(),
            filled: Notify::new(),
            capacity: capacity.max(1),
        });
        let mut subscribers = Vec::new();
        for filter in &filters {
            wire.denied.listening(filter.as_str(), &ring);
            let subject = filter.as_str().to_owned();
            let subscribing = async {
                match &share {
                    None => wire.client.subscribe(subject).await,
                    Some(group) => wire.client.queue_subscribe(subject, group.clone()).await,
                }
            };
            subscribers.push(wire.hand_over(deadline, subscribing).await?);
        }
        let connections = wire.connections();
        let mut listener = Self {
            ring: Arc::clone(&ring),
            link: wire.link(),
            reader: tokio::spawn(read(subscribers, filters.clone(), wire.inbox.clone(), ring)),
            connections,
            filters,
            wire: Arc::clone(wire),
        };
        // Whoever publishes after this returns is heard: the server has seen the subscription.
        match wire.asks.echo(wire, deadline).await {
            // It subscribes again by itself as soon as there is a connection.
            Ok(()) | Err(Lost::Interrupted) => {}
            Err(lost) => return Err(crate::api::lost(lost, "a message to oneself")),
        }
        // A refusal that is later still ends the listener.
        wire.denied.settled().await;
        for _ in 0..REFUSAL_MS {
            if listener.ring.refused().is_some() {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        listener.connections.mark_unchanged();
        match listener.ring.refused() {
            Some(refused) => Err(refused),
            None => Ok(listener),
        }
    }
}

/// Takes what comes, so that nothing waits where the newest would be dropped instead of the oldest.
async fn read(subscribers: Vec<Subscriber>, filters: Vec<Filter>, inbox: String, ring: Arc<Ring>) {
    let mut all: SelectAll<_> = subscribers
        .into_iter()
        .enumerate()
        .map(|(index, subscriber)| subscriber.map(move |message| (index, message)))
        .collect();
    // What has come already is handed over together: to wake a listener is dearer than to fill its
    // ring.
    let mut come = Vec::with_capacity(TOGETHER);
    loop {
        let next = match all.next().now_or_never() {
            Some(next) => next,
            None => {
                if !come.is_empty() {
                    ring.push(&mut come);
                }
                all.next().await
            }
        };
        let Some((index, message)) = next else {
            break;
        };
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            ring.nobody();
            continue;
        }
        let subject = message::subject(&message.subject);
        // Who listens to everything means what people publish, not how the bus talks to the server.
        if filters[index].as_str().starts_with(['*', '>']) && is_internal(&message.subject, &inbox)
        {
            continue;
        }
        // What two filters match comes twice; the first of them is the one that counts.
        if filters[..index]
            .iter()
            .any(|filter| filter.matches(&subject))
        {
            continue;
        }
        come.push(heard(message, subject));
        if come.len() == TOGETHER {
            ring.push(&mut come);
        }
    }
    ring.push(&mut come);
}

fn is_internal(subject: &str, inbox: &str) -> bool {
    let below = |root: &str| {
        let rest = subject.strip_prefix(root);
        rest.is_some_and(|rest| rest.starts_with('.'))
    };
    subject.starts_with('$') || below(inbox) || below(DEFAULT_INBOX)
}

fn heard(message: async_nats::Message, subject: Subject) -> Message {
    Message {
        subject,
        reply: message.reply.and_then(|reply| Subject::new(reply).ok()),
        headers: message::from_nats(message.headers.as_ref()),
        body: Body::Bytes(Bytes::clone(&message.payload)),
    }
}

impl Listener for NatsListener {
    fn receive<'a>(&'a mut self, max: usize, out: &'a mut Vec<Message>) -> Boxed<'a, Heard> {
        Box::pin(async move {
            loop {
                if let Some(heard) = self.ring.take(max, out) {
                    return heard;
                }
                if *self.link.borrow() == Link::Closed {
                    return Heard::Closed;
                }
                if self.connections.has_changed().unwrap_or(false) {
                    self.connections.mark_unchanged();
                    return Heard::Resumed;
                }
                tokio::select! {
                    () = self.ring.filled.notified() => {}
                    _ = self.connections.changed() => {
                        return Heard::Resumed;
                    }
                    closed = self.link.wait_for(|link| *link == Link::Closed) => {
                        drop(closed);
                    }
                }
            }
        })
    }
}

impl Drop for NatsListener {
    fn drop(&mut self) {
        self.reader.abort();
        for filter in &self.filters {
            self.wire.denied.forget(filter.as_str(), &self.ring);
        }
    }
}
