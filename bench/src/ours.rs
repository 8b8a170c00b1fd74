//! The Trunkline sides: what an application would use, with full guarantees on.
//!
//! Each handles its events exactly as the rival beside it in [`pairs`](crate::pairs) does: same
//! payload, same window, same [`Countdown`](crate::countdown::Countdown), the same part inside the
//! stopwatch.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tokio::runtime::Runtime;
use trunkline::core::Subject;
use trunkline::core::engine::Message;
use trunkline::core::envelope::JsonText;
use trunkline::core::matcher::Matcher;
use trunkline::core::wire::Body;
use trunkline::{
    Bus, Data, Envelope, Event, EventId, Filter, Headers, Item, RawEvent, Received, State,
    Subscription,
};

use crate::countdown::Countdown;
use crate::pair::{Contender, Result, Side, expect_count};
use crate::payload::{Order, SmallOrder, Tick};
use crate::rivals::ruststream_memory::{FILL, Handler, Producing};
use crate::rivals::tokio_channels::WINDOW;
use crate::runtime::Flavour;
use crate::stopwatch::Stopwatch;
use crate::subjects::{filters, subjects};

const LABEL: &str = "trunkline";
/// As in the rivals that take batches.
const BATCH: usize = 256;
const HOLD_BACK_AT: u64 = (WINDOW - BATCH) as u64;

/// `emit` of a [`Tick`] to `receivers` subscriptions that each get every event.
pub fn typed(flavour: Flavour, receivers: u64, events: u64) -> Option<Contender> {
    Some(Contender::new(LABEL, events, move || {
        emitting(flavour, receivers, 1)
    }))
}

/// The same to one subscription that takes batches.
pub fn typed_batches(flavour: Flavour, events: u64) -> Option<Contender> {
    Some(Contender::new(LABEL, events, move || {
        emitting(flavour, 1, BATCH)
    }))
}

fn emitting(flavour: Flavour, receivers: u64, batch: usize) -> Result<impl Side> {
    let runtime = flavour.runtime()?;
    let bus =
        runtime.block_on(async { Bus::connect("memory:").listener_capacity(WINDOW).await })?;
    let publisher = bus.publisher::<Tick>()?;
    Ok(move |events: u64, watch: &mut Stopwatch| {
        let progress: Vec<Arc<AtomicU64>> = (0..receivers).map(|_| Arc::default()).collect();
        let mut subscriptions = Vec::new();
        for _ in 0..receivers {
            subscriptions.push(runtime.block_on(bus.subscribe::<Tick>())?);
        }
        let handled = watch.time(|| {
            runtime.block_on(async {
                let readers: Vec<_> = subscriptions
                    .into_iter()
                    .zip(&progress)
                    .map(|(subscription, seen)| {
                        tokio::spawn(read(subscription, events, batch, Arc::clone(seen)))
                    })
                    .collect();
                let publisher = publisher.clone();
                let producer = tokio::spawn(async move {
                    for sequence in 0..events {
                        if sequence % BATCH as u64 == 0 {
                            let behind = || {
                                progress
                                    .iter()
                                    .map(|seen| sequence - seen.load(Ordering::Relaxed))
                                    .max()
                            };
                            while behind() > Some(HOLD_BACK_AT) {
                                tokio::task::yield_now().await;
                            }
                        }
                        publisher.emit(Tick::new(sequence)).await?;
                    }
                    Ok::<_, trunkline::Error>(())
                });
                producer.await??;
                let mut handled = 0;
                for reader in readers {
                    handled += reader.await?;
                }
                Result::Ok(handled)
            })
        })?;
        expect_count(handled, events * receivers)
    })
}

/// Counts events until all have come. One that is lost would make it wait for ever, so a lag ends it.
async fn read(
    mut ticks: Subscription<Received<Tick>>,
    events: u64,
    batch: usize,
    seen: Arc<AtomicU64>,
) -> u64 {
    let mut count = 0;
    let mut items = Vec::with_capacity(batch);
    while count < events && ticks.recv_many(batch, &mut items).await > 0 {
        for item in items.drain(..) {
            match item {
                Item::Event(tick) => {
                    black_box(&tick.event);
                    count += 1;
                }
                _ => return count,
            }
        }
        seen.store(count, Ordering::Relaxed);
    }
    count
}

/// A `Tick` to a subscriber and one back, each round trip given to [`Stopwatch::latencies`].
pub fn ping_pong(flavour: Flavour, events: u64) -> Option<Contender> {
    Some(Contender::new(LABEL, events, move || {
        let runtime = flavour.runtime()?;
        let [there, back] =
            [0, 1].map(|_| runtime.block_on(async { Bus::connect("memory:").await }));
        let (there, back) = (there?, back?);
        Ok(move |events: u64, watch: &mut Stopwatch| {
            let (round_trips_ns, count) = watch.time(|| bounce(&runtime, &there, &back, events))?;
            watch.latencies(round_trips_ns);
            expect_count(count, events)
        })
    }))
}

fn bounce(runtime: &Runtime, there: &Bus, back: &Bus, events: u64) -> Result<(Vec<u64>, u64)> {
    runtime.block_on(async {
        let (mut pings, mut pongs) = (
            there.subscribe::<Tick>().await?,
            back.subscribe::<Tick>().await?,
        );
        let (ping, pong) = (there.publisher::<Tick>()?, back.publisher::<Tick>()?);
        let echo = tokio::spawn(async move {
            while let Some(Item::Event(tick)) = pings.recv().await {
                if pong.emit(Tick::new(tick.sequence)).await.is_err() || tick.sequence + 1 == events
                {
                    break;
                }
            }
        });
        let caller = tokio::spawn(async move {
            let mut round_trips_ns = Vec::with_capacity(usize::try_from(events)?);
            let mut count = 0;
            for sequence in 0..events {
                let sent = Instant::now();
                ping.emit(Tick::new(sequence)).await?;
                let Some(Item::Event(back)) = pongs.recv().await else {
                    return Err("the echo ended".into());
                };
                round_trips_ns.push(u64::try_from(sent.elapsed().as_nanos())?);
                count += u64::from(back.sequence == sequence);
            }
            Result::Ok((round_trips_ns, count))
        });
        let done = caller.await??;
        echo.await?;
        Ok(done)
    })
}

/// JSON stored, leased, decoded for the handler and acknowledged: one at a time or four at once,
/// with the producer as `producing` says.
pub fn json(
    flavour: Flavour,
    handler: Handler,
    producing: Producing,
    events: u64,
) -> Option<Contender> {
    Some(Contender::new(LABEL, events, move || {
        let runtime = flavour.runtime()?;
        let countdown = Countdown::default();
        let bus = runtime.block_on(async { Bus::connect("memory:?max_events=100000").await })?;
        bus.state(countdown.clone());
        let concurrency = match handler {
            Handler::Small | Handler::Order => 1,
            Handler::SmallWorkers | Handler::OrderWorkers => 4,
        };
        let consumer = bus.consumer("bench").concurrency(concurrency);
        let consumer = match handler {
            Handler::Small | Handler::SmallWorkers => consumer.on(
                |order: SmallOrder, State(countdown): State<Countdown>| async move {
                    black_box((order.id, order.quantity));
                    countdown.handled();
                },
            ),
            // A struct that never left the process need not be decoded: that is what `Arc` asks for.
            Handler::Order | Handler::OrderWorkers if matches!(producing, Producing::Struct) => {
                consumer.on(
                    |order: Arc<Order>, State(countdown): State<Countdown>| async move {
                        black_box((&order.order_id, order.total_cents));
                        countdown.handled();
                    },
                )
            }
            Handler::Order | Handler::OrderWorkers => consumer.on(
                |order: Order, State(countdown): State<Countdown>| async move {
                    black_box((&order.order_id, order.total_cents));
                    countdown.handled();
                },
            ),
        };
        runtime.block_on(consumer.start())?;
        let (event_type, body) = match handler {
            Handler::Small | Handler::SmallWorkers => {
                (SmallOrder::TYPE, serde_json::to_vec(&SmallOrder::sample())?)
            }
            Handler::Order | Handler::OrderWorkers => {
                (Order::TYPE, serde_json::to_vec(&Order::sample())?)
            }
        };
        Ok(Service {
            runtime,
            bus,
            countdown,
            event_type,
            body: JsonText::new(&body.into())?,
            producing,
        })
    }))
}

struct Service {
    runtime: Runtime,
    bus: Bus,
    countdown: Countdown,
    event_type: &'static str,
    body: JsonText,
    producing: Producing,
}

impl Side for Service {
    fn round(&mut self, events: u64, watch: &mut Stopwatch) -> Result<()> {
        match self.producing {
            Producing::Before => {
                let mut left = events;
                while left > 0 {
                    let fill = left.min(FILL);
                    self.countdown.expect(fill);
                    self.runtime.block_on(self.publish_bytes(fill))?;
                    if self.countdown.remaining() != fill {
                        return Err("events were handled before the clock started".into());
                    }
                    watch.time(|| self.runtime.block_on(self.countdown.done()));
                    left -= fill;
                }
                Ok(())
            }
            Producing::Bytes => watch.time(|| {
                self.runtime.block_on(async {
                    self.countdown.expect(events);
                    self.publish_bytes(events).await?;
                    self.countdown.done().await;
                    Ok(())
                })
            }),
            Producing::Struct => watch.time(|| {
                self.runtime.block_on(async {
                    self.countdown.expect(events);
                    let publisher = self.bus.publisher::<Order>()?;
                    for sequence in 0..events {
                        self.hold_back(events - sequence).await;
                        publisher.publish(Order::sample()).await?;
                    }
                    self.countdown.done().await;
                    Ok(())
                })
            }),
        }
    }
}

impl Service {
    async fn publish_bytes(&self, events: u64) -> Result<()> {
        for sequence in 0..events {
            self.hold_back(events - sequence).await;
            let id = EventId::generate(trunkline::Timestamp::from_nanos(1));
            let envelope =
                Envelope::new(id, "/bench", self.event_type, Data::Json(self.body.clone()))?;
            self.bus
                .publish_raw(vec![RawEvent::from(envelope)])
                .await
                .remove(0)
                .stored()?;
        }
        Ok(())
    }

    /// The stream is bounded, so that a producer that is far ahead must wait; the rival's queue is
    /// not.
    async fn hold_back(&self, left: u64) {
        while self.countdown.remaining() > left + 50_000 {
            tokio::task::yield_now().await;
        }
    }
}

/// The matcher on [`subjects`], asked for a subject for the first time.
pub fn route_first_time(events: u64) -> Option<Contender> {
    Some(Contender::new(LABEL, events, || {
        let mut matcher = Matcher::default();
        for (index, filter) in filters().iter().enumerate() {
            matcher.insert(&Filter::new(filter)?, index);
        }
        let subjects = subjects()
            .iter()
            .map(Subject::new)
            .collect::<trunkline::Result<Vec<_>>>()?;
        Ok(move |events: u64, watch: &mut Stopwatch| {
            let mut found = 0_u64;
            watch.time(|| {
                for subject in subjects
                    .iter()
                    .cycle()
                    .take(usize::try_from(events).unwrap_or(usize::MAX))
                {
                    matcher.each(black_box(subject), |index| {
                        black_box(index);
                        found += 1;
                    });
                }
            });
            if found == 0 {
                Err("no filter matched".into())
            } else {
                Ok(())
            }
        })
    }))
}

/// The same through resolved routes, beside 10 000 listeners. The subjects have none of their own,
/// so that what is timed is finding that out, and not putting events into rings.
pub fn route_resolved(events: u64) -> Option<Contender> {
    Some(Contender::new(LABEL, events, || {
        let runtime = Flavour::OneThread.runtime()?;
        let bus = runtime.block_on(async { Bus::connect("memory:").await })?;
        let live = bus.engine().live();
        let mut listeners = Vec::new();
        for filter in filters() {
            listeners.push(runtime.block_on(live.listen(&[Filter::new(filter)?], None, 1))?);
        }
        let subject = |subject: &String| Subject::new(format!("nobody.{subject}"));
        let subjects = subjects()
            .iter()
            .map(subject)
            .collect::<trunkline::Result<Vec<_>>>()?;
        let routes: Vec<_> = subjects.iter().map(|subject| live.route(subject)).collect();
        let message = Message {
            subject: Subject::new("nobody")?,
            reply: None,
            headers: Headers::new(),
            body: Body::Bytes(Bytes::new()),
        };
        Ok(move |events: u64, watch: &mut Stopwatch| {
            let _listening = &listeners;
            let mut left = usize::try_from(events)?;
            watch.time(|| {
                runtime.block_on(async {
                    while left > 0 {
                        for route in routes.iter().take(left) {
                            route.send(message.clone()).completed().await?;
                        }
                        left = left.saturating_sub(routes.len());
                    }
                    Ok(())
                })
            })
        })
    }))
}
