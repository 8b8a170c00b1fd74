//! Stored events with Trunkline, as an application would write it, on whatever engine the site has.

use std::hint::black_box;
use std::time::Instant;

use trunkline::core::Name;
use trunkline::{Bus, Consumer, ConsumerHandle, Item, Publisher, Start, State};

use crate::countdown::Countdown;
use crate::pair::{Result, expect_count};
use crate::payload::{Due, Order};
use crate::schedule::Schedule;
use crate::site::Site;
use crate::stopwatch::Stopwatch;

/// The stream of durable events.
pub const STREAM: &str = "EVENTS";
/// The most that a batch has.
pub const BATCH: u64 = 1_000;
/// How many events a reader takes at once.
const READ: usize = 256;

/// A program's connection.
pub async fn connect(url: &str) -> Result<Bus> {
    Ok(Bus::connect(url).event::<Order>().event::<Due>().await?)
}

/// As many tasks as events may be in flight, each publishing one at a time.
pub fn durable(depth: u64) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let bus = site.run(async move { connect(&url).await })?;
        let publisher = bus.publisher::<Order>()?;
        let took_ns =
            watch.time(|| site.run(async move { publish(&publisher, events, depth).await }))?;
        if depth == 1 {
            watch.latencies(took_ns);
        }
        site.run(async move { Ok(bus.close().await?) })
    }
}

/// Gives how long each publish took.
async fn publish(publisher: &Publisher<Order>, events: u64, depth: u64) -> Result<Vec<u64>> {
    let mut tasks = Vec::new();
    for task in 0..depth {
        let share = events / depth + u64::from(task < events % depth);
        let publisher = publisher.clone();
        tasks.push(tokio::spawn(async move {
            let mut took_ns = Vec::with_capacity(usize::try_from(share)?);
            for _ in 0..share {
                let began = Instant::now();
                publisher.publish(Order::sample()).await?;
                took_ns.push(u64::try_from(began.elapsed().as_nanos())?);
            }
            Result::Ok(took_ns)
        }));
    }
    let mut took_ns = Vec::new();
    for task in tasks {
        took_ns.extend(task.await??);
    }
    expect_count(took_ns.len() as u64, events)?;
    Ok(took_ns)
}

/// One publisher, who publishes the next events once the last ones are stored; each wait is timed.
pub fn batches(size: u64) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let bus = site.run(async move { connect(&url).await })?;
        let filling = bus.clone();
        let took_ns = watch.time(|| site.run(async move { fill(&filling, events, size).await }))?;
        watch.latencies(took_ns);
        site.run(async move { Ok(bus.close().await?) })
    }
}

/// Gives how long each batch took.
pub async fn fill(bus: &Bus, events: u64, size: u64) -> Result<Vec<u64>> {
    let publisher = bus.publisher::<Order>()?;
    let mut took_ns = Vec::with_capacity(usize::try_from(events / size + 1)?);
    let mut left = events;
    while left > 0 {
        let began = Instant::now();
        let batch = left.min(size);
        if batch == 1 {
            publisher.publish(Order::sample()).await?;
        } else {
            publish_batch(&publisher, batch).await?;
        }
        took_ns.push(u64::try_from(began.elapsed().as_nanos())?);
        left -= batch;
    }
    Ok(took_ns)
}

async fn publish_batch(publisher: &Publisher<Order>, batch: u64) -> Result<()> {
    let orders = (0..batch).map(|_| Order::sample());
    let mut stored = 0;
    for published in publisher.publish_batch(orders).await? {
        stored += u64::from(!published.stored()?.duplicate);
    }
    expect_count(stored, batch)
}

/// A durable consumer on a stream that was filled before. Stopping it, outside the clock, sends the
/// last of its acknowledgements.
pub fn consume(
    concurrency: usize,
) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let (bus, first) = site.run(async move {
            let bus = connect(&url).await?;
            let first = tail(&bus).await?;
            fill(&bus, events, BATCH).await?;
            Ok((bus, first))
        })?;
        let (consumer, countdown) = counting(&bus, first, concurrency, events);
        let handle = watch.time(|| {
            site.run(async move {
                let handle = consumer.start().await?;
                countdown.done().await;
                Ok(handle)
            })
        })?;
        site.run(async move { stop(handle, &bus).await })
    }
}

/// All the way: so many publishers, one at a time each, and a durable consumer, from the first
/// publish to the last event handled.
pub fn through(
    depth: u64,
    concurrency: usize,
) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let (bus, first) = site.run(async move {
            let bus = connect(&url).await?;
            let first = tail(&bus).await?;
            Ok((bus, first))
        })?;
        let (consumer, countdown) = counting(&bus, first, concurrency, events);
        let handle = site.run(async move { Ok(consumer.start().await?) })?;
        let publisher = bus.publisher::<Order>()?;
        watch.time(|| {
            site.run(async move {
                publish(&publisher, events, depth).await?;
                countdown.done().await;
                Ok(())
            })
        })?;
        site.run(async move { stop(handle, &bus).await })
    }
}

/// A consumer whose handler counts, and where it does.
fn counting(bus: &Bus, first: u64, concurrency: usize, events: u64) -> (Consumer, Countdown) {
    let countdown = Countdown::default();
    countdown.expect(events);
    bus.state(countdown.clone());
    let consumer = bus
        .consumer(format!("bench-{first}"))
        .from(Start::Seq(first))
        .concurrency(concurrency)
        .on(
            |order: Order, State(countdown): State<Countdown>| async move {
                black_box((&order.order_id, order.total_cents));
                countdown.handled();
            },
        );
    (consumer, countdown)
}

async fn stop(handle: ConsumerHandle, bus: &Bus) -> Result<()> {
    if let Some(error) = handle.stop().await.failed {
        return Err(error.into());
    }
    Ok(bus.close().await?)
}

/// The sequence that the next event will have.
pub async fn tail(bus: &Bus) -> Result<u64> {
    let streams = bus.inspect().await?.streams;
    let events = Name::new(STREAM)?;
    let stream = streams.iter().find(|state| state.spec.name == events);
    Ok(stream.ok_or("there is no stream EVENTS")?.tail)
}

/// Follows what is stored from the first event on, decoded. What is missing is stored before.
pub async fn replay(bus: &Bus, events: u64) -> Result<()> {
    let mut orders = bus.replay::<Order>(Start::First).await?;
    let (mut read, mut items) = (0, Vec::with_capacity(READ));
    while read < events && orders.recv_many(READ, &mut items).await > 0 {
        for item in items.drain(..) {
            let Item::Event(order) = item else {
                return Err("something else than an event".into());
            };
            black_box(&order.event);
            read += 1;
        }
    }
    expect_count(read.min(events), events)
}

/// Events that are due `per_s` times a second, published by tasks, handled and acknowledged.
pub fn latency(per_s: u64) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        // Where the events are handled has a connection of its own, as another program would.
        let (publishing, handling, first) = site.run(async move {
            let (one, other) = (connect(&url).await?, connect(&url).await?);
            let first = tail(&other).await?;
            Ok((one, other, first))
        })?;
        let publisher = publishing.publisher::<Due>()?;
        let schedule = Schedule::new(events, per_s);
        handling.state(schedule.clone());
        let consumer = handling
            .consumer(format!("bench-{first}"))
            .from(Start::Seq(first))
            .on(|due: Due, State(schedule): State<Schedule>| async move {
                schedule.handled(&due);
            });
        let handle = site.run(async move { Ok(consumer.start().await?) })?;
        watch.time(|| {
            let _runtime = site.programs.enter();
            schedule.each(|sequence| {
                let publisher = publisher.clone();
                tokio::spawn(async move { publisher.publish(Due::new(sequence)).await });
            });
            site.programs.block_on(schedule.done());
        });
        watch.latencies(schedule.latencies_ns());
        site.run(async move {
            stop(handle, &handling).await?;
            Ok(publishing.close().await?)
        })
    }
}
