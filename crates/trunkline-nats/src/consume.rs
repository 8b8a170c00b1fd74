//! Shared durable consumers: pull consumers of the server.

mod leases;
mod seat;

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::future::join_all;
use rustc_hash::FxHashSet;
use tokio::sync::watch;
use tokio::time::Instant;
use trunkline_core::engine::{
    Admission, Admitted, Batch, Boxed, Consume, ConsumerRef, Credit, Delivery, Feed, Fetched, Gap,
    Link, Membership, Seq, Settle, Settler, Token,
};
use trunkline_core::plan::legal::no_such_consumer;
use trunkline_core::{Error, ErrorKind, Result};

pub(crate) use self::leases::Leases;
use self::seat::Seat;
use crate::NatsEngine;
use crate::api::{ConsumerInfo, code, lost};
use crate::asks::Lost;
use crate::topology::gauge_there;
use crate::topology::spec::{asked_start, is_gauge};
use crate::wire::Wire;

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
            let seat = Seat::new(
                Arc::clone(&self.wire),
                consumer.clone(),
                Arc::clone(&leases),
                self.max_message(),
            );
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
                    found = taken.wait(credit.items) => found?,
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
                let before = out.len();
                let count = taken.give(credit, out);
                drop(taken);
                if count == 0 {
                    continue;
                }
                let mut jumped = false;
                for delivery in &out[before..] {
                    jumped |= delivery.event.seq > self.last + 1;
                    self.last = self.last.max(delivery.event.seq);
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
        self.seat.leave();
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
