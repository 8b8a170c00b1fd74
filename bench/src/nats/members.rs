//! A durable consumer with several members, each with a connection of its own as programs have, and with
//! handlers that fail: by hand, shared, and in key order.

use std::hint::black_box;
use std::time::Duration;

use async_nats::jetstream::AckKind;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::context::Context;
use async_nats::jetstream::message::Message;
use futures_util::TryStreamExt;
use futures_util::future::select_all;
use trunkline::core::Name;
use trunkline::{Attempt, Bus, ConsumerHandle, Retry, Start, State};

use super::raw::{self, PULL};
use crate::countdown::Countdown;
use crate::pair::{Result, expect_count};
use crate::payload::Numbered;
use crate::site::Site;
use crate::stopwatch::Stopwatch;
use crate::stored::{self, BATCH};

/// The time after which what failed is tried again: at once, for whoever has timers of milliseconds.
const PAUSE: Duration = Duration::from_millis(1);
/// Partitions of a consumer that keeps order.
const PARTITIONS: usize = 16;
/// How often it is looked whether they are spread over the members.
const LOOK: Duration = Duration::from_millis(20);

/// Who works, and how well.
#[derive(Clone, Copy)]
pub struct Crew {
    pub members: usize,
    /// Handlers of each member that run at once.
    pub concurrency: usize,
    /// Of a hundred events so many fail at their first attempt; none fails twice.
    pub failing: u64,
}

impl Crew {
    fn fails(self, number: u64) -> bool {
        // Spread over the stream and over its keys, the same in every round.
        (number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % 100 < self.failing
    }
}

/// How Trunkline's members share the events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A key's events one after another.
    Ordered,
    /// Whoever is free gets the next.
    Shared,
}

/// A durable pull consumer that several connections share, on a stream that was filled before.
pub fn raw(crew: Crew) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let consumers = site.run(async move {
            let (context, mut stream) = raw::stored(&raw::connect(&url).await?).await?;
            let first = stream.info().await?.state.last_sequence + 1;
            fill_raw(&context, events).await?;
            let mut consumers = Vec::with_capacity(crew.members);
            for _ in 0..crew.members {
                let (_, stream) = raw::stored(&raw::connect(&url).await?).await?;
                consumers.push(raw::pulled(&stream, first).await?);
            }
            Ok(consumers)
        })?;
        let countdown = Countdown::default();
        countdown.expect(events);
        watch.time(|| {
            site.run(async move {
                let mut members = Vec::with_capacity(crew.members);
                for consumer in consumers {
                    members.push(tokio::spawn(handle(consumer, crew, countdown.clone())));
                }
                countdown.done().await;
                members.iter().for_each(tokio::task::JoinHandle::abort);
                expect_count(countdown.remaining(), 0)
            })
        })
    }
}

async fn fill_raw(context: &Context, events: u64) -> Result<()> {
    let mut outstanding = Vec::with_capacity(1_024);
    for number in 0..events {
        let body = serde_json::to_vec(&Numbered::new(number))?;
        outstanding.push(context.publish(raw::SUBJECT, body.into()).await?);
        if outstanding.len() == 1_024 || number + 1 == events {
            for sent in outstanding.drain(..) {
                sent.await?;
            }
        }
    }
    Ok(())
}

/// Takes events until it is aborted, so many at once, and acknowledges each or gives it back.
async fn handle(consumer: PullConsumer, crew: Crew, countdown: Countdown) -> Result<()> {
    let messages = consumer
        .stream()
        .max_messages_per_batch(PULL)
        .messages()
        .await?
        .map_err(Box::<dyn std::error::Error + Send + Sync>::from);
    let handled = messages.try_for_each_concurrent(crew.concurrency, |message| {
        let countdown = countdown.clone();
        async move {
            let order: Numbered = serde_json::from_slice(&message.payload)?;
            black_box((&order.order, order.number));
            if crew.fails(order.number) && is_first(&message)? {
                return message.ack_with(AckKind::Nak(Some(PAUSE))).await;
            }
            countdown.handled();
            message.ack().await
        }
    });
    handled.await
}

fn is_first(message: &Message) -> Result<bool> {
    Ok(message.info()?.delivered == 1)
}

/// The same with Trunkline, and its defaults, but for the retry and the breaker: what fails is meant to.
///
/// Members that keep order divide the partitions among them before the clock starts and wait in a pause
/// until it does, because a join takes as long as a round; sharing ones start with the clock, as those do
/// that are written by hand.
pub fn ours(
    mode: Mode,
    crew: Crew,
) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let countdown = Countdown::default();
        countdown.expect(events);
        let counting = countdown.clone();
        let (source, buses, name) = site.run(async move {
            let source = connect(&url).await?;
            let first = stored::tail(&source).await?;
            let mut buses = Vec::with_capacity(crew.members);
            for _ in 0..crew.members {
                let bus = connect(&url).await?;
                bus.state(counting.clone());
                buses.push(bus);
            }
            Ok((source, buses, Name::new(format!("bench-{first}"))?))
        })?;
        let (filling, joining, named) = (source.clone(), buses.clone(), name.clone());
        let early = site.run(async move {
            let first = stored::tail(&filling).await?;
            let mut early = Vec::new();
            if mode == Mode::Ordered {
                early = start(&joining, &named, mode, crew, first).await?;
                spread(&filling, &named, crew.members).await?;
                filling.pause_consumer(&named, "filling").await?;
            }
            fill(&filling, events).await?;
            Ok((early, first))
        })?;
        let (ending, resuming) = (source.clone(), source);
        let handles = watch.time(|| {
            site.run(async move {
                let (mut handles, first) = early;
                match mode {
                    Mode::Shared => handles = start(&buses, &name, mode, crew, first).await?,
                    Mode::Ordered => {
                        // Who waits for its return waits for confirmations too.
                        tokio::spawn(async move { resuming.resume_consumer(&name, None).await });
                    }
                }
                // One that ends by itself leaves the rest to nobody.
                let ended = select_all(handles.iter().map(|one| Box::pin(one.ended())));
                tokio::select! {
                    () = countdown.done() => {}
                    (report, ..) = ended => {
                        return Err(format!("a member ended: {:?}", report.failed).into());
                    }
                }
                Ok((handles, buses))
            })
        })?;
        site.run(async move {
            let (handles, buses) = handles;
            for handle in handles {
                if let Some(error) = handle.stop().await.failed {
                    return Err(error.into());
                }
            }
            for bus in buses {
                bus.close().await?;
            }
            Ok(ending.close().await?)
        })
    }
}

async fn connect(url: &str) -> Result<Bus> {
    Ok(Bus::connect(url).event::<Numbered>().await?)
}

async fn start(
    buses: &[Bus],
    name: &Name,
    mode: Mode,
    crew: Crew,
    first: u64,
) -> Result<Vec<ConsumerHandle>> {
    let mut handles = Vec::with_capacity(buses.len());
    for bus in buses {
        let handler = move |order: Numbered, attempt: Attempt, count: State<Countdown>| async move {
            black_box((&order.order, order.number));
            if crew.fails(order.number) && attempt.0 == 1 {
                return Err("this one is meant to fail");
            }
            count.0.handled();
            Ok(())
        };
        let consumer = bus
            .consumer(name.as_str())
            .from(Start::Seq(first))
            .concurrency(crew.concurrency)
            .retry(Retry::fixed(2, PAUSE))
            .breaker(None)
            .on(handler);
        handles.push(match mode {
            Mode::Ordered => consumer.ordered().start().await?,
            Mode::Shared => consumer.unordered().start().await?,
        });
    }
    Ok(handles)
}

/// Waits until each member has its share of the partitions.
async fn spread(bus: &Bus, name: &Name, members: usize) -> Result<()> {
    loop {
        let all = bus.consumer_status().await?;
        let status = all.iter().find(|one| one.name == *name);
        let even = status.is_some_and(|status| {
            let shares = status.members.iter().map(|one| one.partitions.len());
            shares
                .filter(|share| *share == PARTITIONS / members)
                .count()
                == members
        });
        if even {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn fill(bus: &Bus, events: u64) -> Result<()> {
    let publisher = bus.publisher::<Numbered>()?;
    let mut from = 0;
    while from < events {
        let to = events.min(from + BATCH);
        for published in publisher
            .publish_batch((from..to).map(Numbered::new))
            .await?
        {
            published.stored()?;
        }
        from = to;
    }
    Ok(())
}
