//! Storing events: admitted in order under a bound, sent in groups, one outcome for each.
//!
//! ```text
//!   append ──► checked, encoded ──► queue ──► group ──► atomic batch ──► outcomes
//!              (by the caller)     (bounded)    │            │ refused, or no answer
//!                                               │            ▼
//!                                               └──────► one by one, by id, in the order of keys
//! ```
//!
//! A group is what was waiting when a place for one became free: under load hundreds of events of many
//! publishers share a round trip, and on a server that syncs to disk one sync. Which of the two ways a
//! group goes is measured (`pace`). A key is in one group at a time, so that its order holds whatever
//! becomes of the group. An atomic batch has one outcome, which says nothing about its items when it
//! is refused; then they go one by one, which is always right, because each carries its id.

mod flight;
mod group;
mod pace;

use std::collections::HashMap;
use std::sync::Arc;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_ID};
use bytes::Bytes;
use parking_lot::Mutex;
use smol_str::SmolStr;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use trunkline_core::engine::{Admission, Append, AppendMode, Batch, Expect, Limits, Outcome, Seq};
use trunkline_core::wire::ContentMode;
use trunkline_core::{Error, ErrorKind, EventId, Filter, Headers, Name, Result};

use crate::message;
use crate::topology::spec::stream_spec;
use crate::wire::Wire;

/// Events that may be admitted and without an outcome, for each stream.
const WINDOW: usize = 8_192;
/// What an event takes besides its body, about.
const OVERHEAD: usize = 512;
/// Their bytes, in KiB.
const WINDOW_KIB: usize = 64 << 10;

/// The publishers of all streams.
pub(crate) struct Publishers {
    wire: Arc<Wire>,
    limits: Limits,
    streams: Mutex<HashMap<Name, Arc<Publisher>>>,
}

/// The publisher of one stream.
struct Publisher {
    /// What the stream takes, as it was when this was last looked up.
    target: Target,
    /// What one append brings comes at once, so that its first items do not fly ahead of the others.
    queue: mpsc::UnboundedSender<Vec<Unit>>,
    items: Arc<Semaphore>,
    kib: Arc<Semaphore>,
}

#[derive(Clone, Debug)]
struct Target {
    stream: Name,
    subjects: Vec<Filter>,
    max_message: usize,
    /// Whether the stream takes atomic batches; a foreign one may not.
    atomic: bool,
    mode: ContentMode,
}

/// What is stored, or not, together.
enum Unit {
    One(Item),
    Whole(Vec<Item>),
}

/// An event on its way.
struct Item {
    // Boxed, because an item goes through several queues, and these grow.
    event: Box<Checked>,
    deadline: Instant,
    place: usize,
    slots: Arc<Slots>,
    /// Whether it may be stored already, by an attempt that got no answer.
    tried: bool,
}

/// An event that the stream would take, encoded.
struct Checked {
    subject: async_nats::Subject,
    headers: Headers,
    /// Whether its headers are to say that it is structured.
    structured: bool,
    body: Bytes,
    key: Option<SmolStr>,
    id: Option<EventId>,
    expect: Expect,
}

/// The outcomes of one append; the last one that is filled in wakes who waits.
struct Slots {
    state: Mutex<SlotState>,
    _items: OwnedSemaphorePermit,
    _kib: OwnedSemaphorePermit,
}

struct SlotState {
    outcomes: Vec<Option<Outcome>>,
    open: usize,
    done: Option<oneshot::Sender<Vec<Outcome>>>,
}

impl Item {
    /// A number that it has in common with what was appended with it, for as long as one of them
    /// waits.
    fn append(&self) -> usize {
        Arc::as_ptr(&self.slots).addr()
    }

    fn settle(&self, outcome: Outcome) {
        self.slots.settle(self.place, outcome);
    }

    /// It is stored there. What an attempt without an answer had stored is no duplicate.
    fn stored(&self, seq: Seq, duplicate: bool) {
        let duplicate = duplicate && !self.tried;
        self.settle(Outcome::Stored { seq, duplicate });
    }

    /// By when an attempt that ends then is over: without an id an event cannot be sent twice, so that
    /// its one answer is waited for.
    fn attempt(&self, ends: Instant) -> Instant {
        match &self.event.id {
            Some(_) => self.deadline.min(ends),
            None => self.deadline,
        }
    }
}

impl Slots {
    fn settle(&self, place: usize, outcome: Outcome) {
        let mut state = self.state.lock();
        if state.outcomes[place].replace(outcome).is_none() {
            state.open -= 1;
        }
        if state.open == 0
            && let Some(done) = state.done.take()
        {
            let outcomes = std::mem::take(&mut state.outcomes);
            let _ = done.send(outcomes.into_iter().flatten().collect());
        }
    }
}

impl Target {
    fn stores(&self, append: &Append) -> bool {
        self.subjects
            .iter()
            .any(|filter| filter.matches(&append.subject))
    }

    /// Encodes what the stream would take, and refuses the rest, which then harms nobody.
    fn check(&self, append: Append) -> Result<Box<Checked>> {
        if !self.stores(&append) {
            return Err(Error::new(
                ErrorKind::NotStored,
                format!(
                    "stream {} does not store {}, so it would be lost",
                    self.stream, append.subject
                ),
            ));
        }
        let (headers, body) = append.body.to_message(&append.headers, self.mode)?;
        let size = body.len() + headers.bytes();
        if size > self.max_message {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the message has {size} bytes with its headers, stream {} takes {}",
                    self.stream, self.max_message
                ),
            ));
        }
        Ok(Box::new(Checked {
            subject: async_nats::Subject::from(append.subject.as_str()),
            structured: message::is_structured(&headers, &append.body),
            headers,
            body,
            key: append.key,
            id: append.id,
            expect: append.expect,
        }))
    }
}

impl Checked {
    /// Its headers as they are sent: made when they are, because the client takes them, and copies of
    /// a map are dearer than a new one.
    fn to_nats(&self) -> HeaderMap {
        let mut headers = message::to_nats(&self.headers);
        if self.structured {
            message::say_structured(&mut headers);
        }
        if let Some(id) = &self.id {
            headers.insert(NATS_MESSAGE_ID, message_id(id));
        }
        match self.expect {
            Expect::Any => {}
            Expect::Absent => headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0"),
            Expect::Last(seq) => {
                headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, seq.to_string());
            }
        }
        headers
    }
}

/// An id as a header holds it. White space around a value is lost on the way, and two ids are not to
/// become one.
fn message_id(id: &EventId) -> String {
    let text = id.to_string();
    match text.trim() == text {
        true => text,
        false => text.replace(char::is_whitespace, "%20"),
    }
}

impl Publishers {
    pub(crate) fn new(wire: Arc<Wire>, limits: Limits) -> Self {
        Self {
            wire,
            limits,
            streams: Mutex::default(),
        }
    }

    /// Forgets what is known of a stream, which was changed.
    pub(crate) fn forget(&self, stream: &Name) {
        self.streams.lock().remove(stream);
    }

    async fn publisher(&self, stream: &Name) -> Result<Arc<Publisher>> {
        if let Some(known) = self.streams.lock().get(stream) {
            return Ok(Arc::clone(known));
        }
        let info = self.wire.known_stream(stream.as_str()).await?;
        let spec = stream_spec(&info.config)?;
        let target = Target {
            stream: stream.clone(),
            subjects: spec.subjects,
            max_message: spec.max_message.min(self.limits.max_message),
            atomic: info.config.get("allow_atomic") == Some(&true.into()),
            mode: self.wire.mode,
        };
        let (queue, units) = mpsc::unbounded_channel();
        let made = Arc::new(Publisher {
            target: target.clone(),
            queue,
            items: Arc::new(Semaphore::new(WINDOW)),
            kib: Arc::new(Semaphore::new(WINDOW_KIB)),
        });
        let mut streams = self.streams.lock();
        if let Some(known) = streams.get(stream) {
            return Ok(Arc::clone(known));
        }
        streams.insert(stream.clone(), Arc::clone(&made));
        tokio::spawn(group::run(Arc::clone(&self.wire), target, units));
        Ok(made)
    }

    /// The publisher of a stream, looked up anew if the stream did not store one of these subjects
    /// when that was last done: it may have been changed since.
    async fn publisher_for(&self, stream: &Name, batch: &[Append]) -> Result<Arc<Publisher>> {
        let known = self.publisher(stream).await?;
        if batch.iter().all(|item| known.target.stores(item)) {
            return Ok(known);
        }
        let info = self.wire.known_stream(stream.as_str()).await?;
        if stream_spec(&info.config)?.subjects == known.target.subjects {
            return Ok(known);
        }
        self.forget(stream);
        self.publisher(stream).await
    }

    /// The first stage: when it returns, the batch has its place in the order.
    pub(crate) async fn append(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Result<Admission<Vec<Outcome>>> {
        self.wire.check_open()?;
        if batch.len() > self.limits.max_batch {
            return Err(Error::new(
                ErrorKind::OverLimit,
                format!(
                    "the batch has {} items, the limit is {}; split it",
                    batch.len(),
                    self.limits.max_batch
                ),
            ));
        }
        if batch.is_empty() {
            return Ok(Admission::waiting(async { Ok(Vec::new()) }));
        }
        let deadline = Instant::now() + self.wire.patience.publish_timeout;
        let publisher = self.publisher_for(stream, &batch).await?;
        let count = batch.len();
        let mut checked = Vec::with_capacity(count);
        let mut bytes = 0;
        for append in batch {
            let item = publisher.target.check(append);
            bytes += item.as_ref().map_or(0, |item| item.body.len() + OVERHEAD);
            checked.push(item);
        }
        if mode == AppendMode::Atomic
            && let Some(refused) = checked.iter().find_map(|item| item.as_ref().err())
        {
            let refused = Outcome::Refused(refused.clone());
            let outcomes = vec![refused; count];
            return Ok(Admission::waiting(async { Ok(outcomes) }));
        }
        let admitted = publisher.admit(count, bytes, deadline).await;
        let (items, kib) = match admitted {
            Ok(permits) => permits,
            Err(error) => {
                let outcomes = vec![Outcome::Refused(error); count];
                return Ok(Admission::waiting(async { Ok(outcomes) }));
            }
        };
        let (done, outcomes) = oneshot::channel();
        let slots = Arc::new(Slots {
            state: Mutex::new(SlotState {
                outcomes: vec![None; count],
                open: count,
                done: Some(done),
            }),
            _items: items,
            _kib: kib,
        });
        publisher.queue(checked, mode, deadline, &slots);
        drop(slots);
        Ok(Admission::waiting(async move {
            // Every item gets its outcome; only the end of the runtime leaves one without.
            outcomes
                .await
                .map_err(|_| crate::api::internal("store events", &"the publisher ended"))
        }))
    }
}

impl Publisher {
    async fn admit(
        &self,
        count: usize,
        bytes: usize,
        deadline: Instant,
    ) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let wanted = |wanted: usize, all| u32::try_from(wanted.clamp(1, all)).unwrap_or(u32::MAX);
        let items = wanted(count, WINDOW);
        let kib = wanted(bytes.div_ceil(1_024), WINDOW_KIB);
        // Mostly there is room, and then no timer is needed. Nobody who waits is overtaken: what is
        // given back goes to them first.
        if let Ok(items) = Arc::clone(&self.items).try_acquire_many_owned(items)
            && let Ok(kib) = Arc::clone(&self.kib).try_acquire_many_owned(kib)
        {
            return Ok((items, kib));
        }
        let both = async {
            let items = Arc::clone(&self.items).acquire_many_owned(items).await?;
            let kib = Arc::clone(&self.kib).acquire_many_owned(kib).await?;
            Ok::<_, AcquireError>((items, kib))
        };
        match timeout_at(deadline, both).await {
            Ok(Ok(permits)) => Ok(permits),
            Ok(Err(_)) => Err(crate::wire::closed()),
            Err(_) => Err(Error::new(
                ErrorKind::Disconnected,
                format!(
                    "stream {} took nothing in time: {WINDOW} events or {} MiB wait for it already; this one was not sent",
                    self.target.stream,
                    WINDOW_KIB >> 10
                ),
            )),
        }
    }

    fn queue(
        &self,
        checked: Vec<Result<Box<Checked>>>,
        mode: AppendMode,
        deadline: Instant,
        slots: &Arc<Slots>,
    ) {
        let (mut each, mut whole) = (Vec::new(), Vec::new());
        for (place, item) in checked.into_iter().enumerate() {
            let event = match item {
                Ok(event) => event,
                Err(error) => {
                    slots.settle(place, Outcome::Refused(error));
                    continue;
                }
            };
            let item = Item {
                event,
                deadline,
                place,
                slots: Arc::clone(slots),
                tried: false,
            };
            match mode {
                AppendMode::Each => each.push(Unit::One(item)),
                AppendMode::Atomic => whole.push(item),
            }
        }
        if !whole.is_empty() {
            each.push(Unit::Whole(whole));
        }
        // At once, so that what belongs together is looked at together.
        let _ = self.queue.send(each);
    }
}
