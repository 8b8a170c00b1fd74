//! Shared durable consumers: pull consumers of the server.

mod leases;

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use trunkline_core::engine::{
    Admission, Admitted, Batch, Boxed, Consume, ConsumerRef, Credit, Delivery, Feed, Fetched, Gap,
    Link, Membership, Seq, Settle, Settler, Token,
};
use trunkline_core::plan::legal::no_such_consumer;
use trunkline_core::{Error, ErrorKind, Result};

pub(crate) use self::leases::Leases;
use crate::NatsEngine;
use crate::api::{ConsumerInfo, code, lost};
use crate::asks::Lost;
use crate::message::{self, Place};
use crate::pull::{Pull, Pulled};
use crate::topology::gauge_there;
use crate::topology::spec::{asked_start, is_gauge};
use crate::wire::Wire;

/// For how long a member that fetches no more keeps its demand standing. After that what comes goes
/// to the others.
const LINGER: Duration = Duration::from_millis(100);
/// For how long it keeps what came until then: an eighth of the ack wait, and at most this.
const LONGEST_HOLD: Duration = Duration::from_secs(4);
/// Events that one demand asks for, at most.
const BATCH: usize = 1_000;
/// Bytes of one demand, if messages are not larger than half of it.
const MAX_BYTES: usize = 8 << 20;
/// How often a consumer is looked at for what retention took.
const LOOK: Duration = Duration::from_secs(1);

impl Consume for NatsEngine {
    fn open<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Membership>> {
        Box::pin(async move {
            self.wire.check_open()?;
            let info = self.consumer_info(consumer).await?;
            let info = info.ok_or_else(|| no_such_consumer(consumer))?;
            if is_gauge(&info.config) {
                return Err(gauge_there(consumer));
            }
            let ack_wait = info
                .config
                .get("ack_wait")
                .and_then(serde_json::Value::as_u64);
            let leases = self.leases(
                consumer,
                Duration::from_nanos(ack_wait.unwrap_or(30_000_000_000)),
            );
            let stream = self.wire.known_stream(consumer.stream.as_str()).await?;
            let seat = Seat {
                wire: Arc::clone(&self.wire),
                consumer: consumer.clone(),
                leases: Arc::clone(&leases),
                standing: Mutex::default(),
                max_bytes: MAX_BYTES.max(2 * self.max_message()),
            };
            let feed = NatsFeed {
                seat: Arc::new(seat),
                link: self.wire.link(),
                gap: gap(&info, stream.state.first()),
                seen: info,
                looked: Instant::now(),
                last: 0,
            };
            let settler = NatsSettler {
                wire: Arc::clone(&self.wire),
                consumer: consumer.clone(),
                leases,
            };
            let feed: Box<dyn Feed> = Box::new(feed);
            let settler: Arc<dyn Settler> = Arc::new(settler);
            Ok((feed, settler))
        })
    }
}

impl NatsEngine {
    /// The leases of a consumer, which all who open it in this process share.
    fn leases(&self, consumer: &ConsumerRef, ack_wait: Duration) -> Arc<Leases> {
        let mut all = self.leases.lock();
        all.retain(|_, leases| leases.strong_count() > 0);
        if let Some(known) = all.get(consumer).and_then(Weak::upgrade)
            && known.ack_wait == ack_wait
        {
            return known;
        }
        let leases = Arc::new(Leases::new(ack_wait));
        all.insert(consumer.clone(), Arc::downgrade(&leases));
        leases
    }

    pub(crate) async fn consumer_info(&self, at: &ConsumerRef) -> Result<Option<ConsumerInfo>> {
        consumer_info(&self.wire, at).await
    }
}

async fn consumer_info(wire: &Wire, at: &ConsumerRef) -> Result<Option<ConsumerInfo>> {
    let verb = format!("CONSUMER.INFO.{}.{}", at.stream, at.consumer);
    match wire.api(&verb, &serde_json::json!({})).await? {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.err_code == code::CONSUMER_NOT_FOUND => Ok(None),
        Err(error) => Err(error.meaning(&format!("describe consumer {}", at.consumer))),
    }
}

/// What retention took before it was given to anybody.
fn gap(consumer: &ConsumerInfo, first: Seq) -> Option<Gap> {
    let next = match consumer.delivered.consumer_seq {
        // The server makes a consumer at what there is, and forgets what was asked for.
        0 => asked_start(&consumer.config).unwrap_or(consumer.delivered.stream_seq + 1),
        _ => consumer.delivered.stream_seq + 1,
    };
    (first > next).then(|| Gap {
        from: next,
        to: first - 1,
    })
}

/// A member's demand, which stands from one call to the next.
struct Seat {
    wire: Arc<Wire>,
    consumer: ConsumerRef,
    leases: Arc<Leases>,
    standing: Mutex<Standing>,
    max_bytes: usize,
}

/// A delivery, and when it came at the latest that can be told for sure: its lease began then.
struct Came(Message, Instant);

#[derive(Default)]
struct Standing {
    pull: Option<Pull>,
    ready: VecDeque<Came>,
    /// When it was last seen that nothing waits in the client.
    empty: Option<Instant>,
    /// Whether a call has taken the two at the moment.
    at_work: bool,
    /// Rises with each call, so that it shows whether there was another.
    calls: u64,
    /// Whether somebody watches that there is another.
    watched: bool,
    /// Whether there will be no other.
    gone: bool,
}

/// The demand while a call works with it. Dropped, it goes back to where it stands.
struct Taken<'a> {
    pull: Option<Pull>,
    ready: VecDeque<Came>,
    empty: Instant,
    seat: &'a Arc<Seat>,
}

impl Seat {
    fn take(self: &Arc<Self>) -> Taken<'_> {
        let mut standing = self.standing.lock();
        standing.calls += 1;
        standing.at_work = true;
        let mut taken = Taken {
            pull: standing.pull.take(),
            ready: std::mem::take(&mut standing.ready),
            empty: standing.empty.unwrap_or_else(Instant::now),
            seat: self,
        };
        drop(standing);
        taken.drain();
        taken
    }

    /// Ends the demand of a member that does not come back, so that others get what it asked for,
    /// and in the end gives back what it has.
    async fn watch(self: Arc<Self>) {
        let hold = (self.leases.ack_wait / 8).min(LONGEST_HOLD);
        let (mut seen, mut since) = (self.standing.lock().calls, Instant::now());
        loop {
            tokio::time::sleep(LINGER).await;
            let (pull, ready, _parting) = {
                let mut standing = self.standing.lock();
                if standing.at_work || standing.pull.is_none() && standing.ready.is_empty() {
                    // Whoever is at work has it watched again afterwards.
                    standing.watched = false;
                    return;
                }
                if standing.calls != seen {
                    (seen, since) = (standing.calls, Instant::now());
                    continue;
                }
                let parting = self.wire.parting();
                match standing.pull.take() {
                    Some(pull) => (Some(pull), VecDeque::new(), parting),
                    None if since.elapsed() < hold => continue,
                    None => (None, std::mem::take(&mut standing.ready), parting),
                }
            };
            if let Some(pull) = pull {
                let rest = self.keep(pull.end().await, seen);
                self.release(rest).await;
                continue;
            }
            self.release(ready.into_iter().map(|Came(message, _)| message))
                .await;
        }
    }

    /// Keeps deliveries for a member that may come back, and gives those that there is no use for: it
    /// has come back, and waits for others, or never will.
    fn keep(&self, rest: Vec<Message>, seen: u64) -> Vec<Message> {
        let mut standing = self.standing.lock();
        if standing.gone || standing.at_work || standing.calls != seen {
            return rest;
        }
        let now = Instant::now();
        standing
            .ready
            .extend(rest.into_iter().map(|message| Came(message, now)));
        Vec::new()
    }

    /// Gives back what was delivered and nobody took.
    async fn release(&self, deliveries: impl IntoIterator<Item = Message>) {
        for reply in deliveries.into_iter().filter_map(|message| message.reply) {
            let word = Bytes::from_static(word(Settle::GiveBack));
            let sending = self.wire.client.publish(reply, word);
            let given = self.wire.hand_over(self.wire.request_deadline(), sending);
            if given.await.is_err() {
                return; // They come back when their leases end.
            }
        }
    }

    /// Hands a delivery over, unless its lease is over.
    fn deliver(&self, came: Came, now: Instant, out: &mut Vec<Delivery>) -> bool {
        let Came(mut message, came) = came;
        let leased = Place::of(&message).and_then(|place| {
            let reply = message.reply.take()?;
            let token = self.leases.add(place.seq, reply, came, now)?;
            Some((place, token))
        });
        let Some((place, token)) = leased else {
            return false;
        };
        out.push(Delivery {
            token,
            event: message::delivered(message, &place),
            delivered_hint: place.delivered,
        });
        true
    }
}

impl Taken<'_> {
    /// Takes what waits in the client. It came since that was last done.
    fn drain(&mut self) {
        let came = self.empty;
        while let Some(pull) = &mut self.pull {
            match pull.now() {
                None => break,
                Some(Pulled::Message(message)) => self.ready.push_back(Came(message, came)),
                Some(Pulled::Ended) => {}
                Some(Pulled::Broken) => self.pull = None,
            }
        }
        self.empty = Instant::now();
    }

    /// Waits until something has come; false if the demand is lost.
    async fn wait(&mut self, wanted: usize) -> Result<bool> {
        let seat = self.seat;
        while self.ready.is_empty() {
            let pull = match &mut self.pull {
                Some(pull) => pull,
                none => {
                    seat.wire.connected(seat.wire.request_deadline()).await?;
                    let (stream, consumer) = (&seat.consumer.stream, &seat.consumer.consumer);
                    let pull = Pull::open(
                        &seat.wire,
                        stream.as_str(),
                        consumer.as_str(),
                        seat.max_bytes,
                    );
                    none.insert(pull.await?)
                }
            };
            if pull.outstanding == 0 || pull.outstanding < wanted / 2 {
                pull.ask(wanted - pull.outstanding).await?;
            }
            match pull.next().await {
                Pulled::Message(message) => {
                    self.empty = Instant::now();
                    self.ready.push_back(Came(message, self.empty));
                }
                Pulled::Ended => {}
                Pulled::Broken => {
                    self.pull = None;
                    return Ok(false);
                }
            }
        }
        self.drain();
        Ok(true)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let asked = self.pull.as_ref().is_some_and(|pull| pull.outstanding > 0);
        let mut standing = self.seat.standing.lock();
        standing.pull = self.pull.take();
        self.ready.append(&mut standing.ready);
        standing.ready = std::mem::take(&mut self.ready);
        standing.empty = Some(self.empty);
        standing.at_work = false;
        let idle = !asked && standing.ready.is_empty();
        if !idle
            && !standing.watched
            && let Ok(runtime) = Handle::try_current()
        {
            standing.watched = true;
            runtime.spawn(Arc::clone(self.seat).watch());
        }
    }
}

struct NatsFeed {
    seat: Arc<Seat>,
    link: watch::Receiver<Link>,
    /// To be told first.
    gap: Option<Gap>,
    /// How the consumer stood when it was last looked at, and when that was.
    seen: ConsumerInfo,
    looked: Instant,
    /// The last event that came.
    last: Seq,
}

impl NatsFeed {
    /// Looks whether retention overtakes the consumer, if it was behind when last looked at.
    async fn look(&mut self) -> Result<()> {
        if self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.looked = Instant::now();
        let wire = &self.seat.wire;
        let stream = wire.stream_info(self.seat.consumer.stream.as_str()).await?;
        let consumer = consumer_info(wire, &self.seat.consumer).await?;
        if let (Some(stream), Some(consumer)) = (stream, consumer) {
            if self.seen.num_pending > 0 {
                self.gap = gap(&self.seen, stream.state.first());
            }
            self.seen = consumer;
        }
        Ok(())
    }

    /// The demand was lost: is there still a consumer?
    async fn broken(&self) -> Result<Option<Fetched>> {
        let wire = &self.seat.wire;
        if wire.is_closed() {
            return Ok(Some(Fetched::Closed));
        }
        wire.connected(wire.request_deadline()).await?;
        match consumer_info(wire, &self.seat.consumer).await {
            Ok(Some(_)) => Ok(None),
            Ok(None) => Ok(Some(Fetched::Gone)),
            Err(error) if error.kind() == ErrorKind::NoSuchStream => Ok(Some(Fetched::Gone)),
            Err(error) => Err(error),
        }
    }
}

impl Feed for NatsFeed {
    fn fetch<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<Delivery>,
    ) -> Boxed<'a, Result<Fetched>> {
        Box::pin(async move {
            let wanted = credit.items.clamp(1, BATCH);
            let seat = Arc::clone(&self.seat);
            let mut link = self.link.clone();
            loop {
                if *link.borrow() == Link::Closed {
                    return Ok(Fetched::Closed);
                }
                if let Some(gap) = self.gap.take() {
                    return Ok(Fetched::Gap(gap));
                }
                let mut taken = seat.take();
                let found = tokio::select! {
                    found = taken.wait(wanted) => found?,
                    closed = link.wait_for(|link| *link == Link::Closed) => {
                        drop(closed);
                        return Ok(Fetched::Closed);
                    }
                };
                if !found {
                    drop(taken);
                    if let Some(ended) = self.broken().await? {
                        return Ok(ended);
                    }
                    continue;
                }
                let now = Instant::now();
                let (mut count, mut bytes, mut jumped) = (0, 0, false);
                while count < wanted
                    && let Some(next) = taken.ready.front()
                    && let size = next.0.payload.len()
                    && (bytes + size <= credit.bytes || count == 0)
                    && let Some(came) = taken.ready.pop_front()
                {
                    if !seat.deliver(came, now, out) {
                        continue;
                    }
                    bytes += size;
                    count += 1;
                    if let Some(delivery) = out.last() {
                        jumped |= delivery.event.seq > self.last + 1;
                        self.last = self.last.max(delivery.event.seq);
                    }
                }
                drop(taken);
                if count == 0 {
                    continue;
                }
                if jumped {
                    // A look that fails is taken again; what was fetched is not to be lost for it.
                    if let Err(error) = self.look().await {
                        tracing::debug!(%error, "cannot look whether retention took events");
                    }
                }
                return Ok(Fetched::Deliveries(count));
            }
        })
    }
}

impl Drop for NatsFeed {
    fn drop(&mut self) {
        let mut standing = self.seat.standing.lock();
        standing.gone = true;
        let (pull, ready) = (standing.pull.take(), std::mem::take(&mut standing.ready));
        drop(standing);
        let seat = Arc::clone(&self.seat);
        let parting = seat.wire.parting();
        if (pull.is_some() || !ready.is_empty())
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                seat.release(ready.into_iter().map(|Came(message, _)| message))
                    .await;
                if let Some(pull) = pull {
                    seat.release(pull.end().await).await;
                }
                drop(parting);
            });
        }
    }
}

struct NatsSettler {
    wire: Arc<Wire>,
    consumer: ConsumerRef,
    leases: Arc<Leases>,
}

impl Settler for NatsSettler {
    fn settle(
        &self,
        batch: Batch<(Token, Settle)>,
        confirm: bool,
    ) -> Admitted<'_, Vec<Result<()>>> {
        Admitted::waiting(async move {
            self.wire.check_connected()?;
            let deadline = self.wire.request_deadline();
            // Twice in one batch is twice: the second one is stale.
            let alone = batch.len() == 1;
            let mut seen = FxHashSet::default();
            let mut results = Vec::with_capacity(batch.len());
            let mut asked = Vec::new();
            for (place, (token, settle)) in batch.into_iter().enumerate() {
                let ends = settle != Settle::Extend;
                let again = ends && !alone && !seen.insert(token);
                let reply = match again {
                    true => Err(Error::new(
                        ErrorKind::StaleLease,
                        format!("the delivery of event {} is settled twice", token.seq),
                    )),
                    false => self.leases.reply(token, settle),
                };
                let reply = match reply {
                    Ok(reply) => reply,
                    Err(error) => {
                        results.push(Err(error));
                        continue;
                    }
                };
                results.push(Ok(()));
                if confirm {
                    asked.push((place, token, ends, reply, word(settle)));
                    continue;
                }
                let word = Bytes::from_static(word(settle));
                let sending = self.wire.client.publish(reply, word);
                self.wire.hand_over(deadline, sending).await?;
                if ends {
                    self.leases.close(token);
                }
            }
            let (wire, leases) = (Arc::clone(&self.wire), Arc::clone(&self.leases));
            let consumer = self.consumer.clone();
            Ok(Admission::waiting(async move {
                let deadline = wire.request_deadline();
                let answers = asked
                    .into_iter()
                    .map(async |(place, token, ends, reply, word)| {
                        let word = Bytes::from_static(word);
                        let answer = wire.ask(&reply, HeaderMap::new(), word, deadline).await;
                        if answer.is_ok() && ends {
                            leases.close(token);
                        }
                        (place, answer)
                    });
                for (place, answer) in join_all(answers).await {
                    results[place] = match answer {
                        Ok(_) => Ok(()),
                        Err(Lost::NoResponders) => Err(unheard(&wire, &consumer).await),
                        Err(error) => Err(lost(error, "settling a delivery")),
                    };
                }
                Ok(results)
            }))
        })
    }
}

/// Nobody took an acknowledgement: the consumer is gone, or has no leader at the moment.
async fn unheard(wire: &Wire, consumer: &ConsumerRef) -> Error {
    match consumer_info(wire, consumer).await {
        Ok(None) => no_such_consumer(consumer),
        Ok(Some(_)) => lost(Lost::NoResponders, "settling a delivery"),
        Err(error) => error,
    }
}

fn word(settle: Settle) -> &'static [u8] {
    match settle {
        Settle::Ack => b"+ACK",
        Settle::GiveBack => b"-NAK",
        Settle::Extend => b"+WPI",
    }
}
