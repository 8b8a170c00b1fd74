//! The same work with Trunkline, as an application would write it.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use trunkline::core::Name;
use trunkline::{Bus, Item, Published, Start, State};

use super::schedule::Schedule;
use super::{Site, WINDOW};
use crate::countdown::Countdown;
use crate::pair::{Result, expect_count};
use crate::payload::{Due, Glimpse, Order};
use crate::stopwatch::Stopwatch;

const BATCH: u64 = 1_000;
/// How many events a reader takes at once.
const READ: usize = 256;

async fn connect(url: &str) -> Result<Bus> {
    Ok(Bus::connect(url)
        .event::<Order>()
        .event::<Due>()
        .event::<Glimpse>()
        .listener_capacity(2 * usize::try_from(WINDOW)?)
        .await?)
}

/// One emit after the other; the clock stops when the bus is closed, which hands all of them over.
pub(super) fn core_publish(site: &Site, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let url = site.url.clone();
    let bus = site.run(async move { connect(&url).await })?;
    let publisher = bus.publisher::<Glimpse>()?;
    watch.time(|| {
        site.run(async move {
            for _ in 0..events {
                publisher.emit(Glimpse::sample()).await?;
            }
            Ok(bus.close().await?)
        })
    })
}

/// Two connections, one subscribing to what the other emits.
pub(super) fn core_subscribe(site: &Site, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let url = site.url.clone();
    let (bus, mut glimpses) = site.run(async move {
        let glimpses = connect(&url).await?.subscribe::<Glimpse>().await?;
        Ok((connect(&url).await?, glimpses))
    })?;
    let publisher = bus.publisher::<Glimpse>()?;
    let seen = Arc::new(AtomicU64::new(0));
    let handled = watch.time(|| {
        site.run(async move {
            let counting = Arc::clone(&seen);
            let reader = tokio::spawn(async move {
                let (mut count, mut items) = (0, Vec::with_capacity(READ));
                while count < events && glimpses.recv_many(READ, &mut items).await > 0 {
                    for item in items.drain(..) {
                        let Item::Event(glimpse) = item else {
                            return count;
                        };
                        black_box(&glimpse.event);
                        count += 1;
                    }
                    counting.store(count, Ordering::Relaxed);
                }
                count
            });
            for sent in 0..events {
                while sent - seen.load(Ordering::Relaxed) >= WINDOW {
                    tokio::task::yield_now().await;
                }
                publisher.emit(Glimpse::sample()).await?;
            }
            Ok(reader.await?)
        })
    })?;
    expect_count(handled, events)
}

/// As many tasks as events may be in flight, each publishing one at a time.
pub(super) fn durable(
    depth: usize,
) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let bus = site.run(async move { connect(&url).await })?;
        let depth = depth as u64;
        let took_ns = watch.time(|| {
            site.run(async move {
                let mut tasks = Vec::new();
                for task in 0..depth {
                    let share = events / depth + u64::from(task < events % depth);
                    let publisher = bus.publisher::<Order>()?;
                    tasks.push(tokio::spawn(async move {
                        let mut took_ns = Vec::new();
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
                Ok(took_ns)
            })
        })?;
        expect_count(took_ns.len() as u64, events)?;
        if depth == 1 {
            watch.latencies(took_ns);
        }
        Ok(())
    }
}

/// The next batch once the last one is stored.
pub(super) fn batches(site: &Site, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let url = site.url.clone();
    let bus = site.run(async move { connect(&url).await })?;
    watch.time(|| site.run(async move { fill(&bus, events).await }))
}

async fn fill(bus: &Bus, events: u64) -> Result<()> {
    let publisher = bus.publisher::<Order>()?;
    let mut left = events;
    while left > 0 {
        let batch = left.min(BATCH);
        let orders = (0..batch).map(|_| Order::sample());
        let published = publisher.publish_batch(orders).await?;
        let stored = published
            .into_iter()
            .map(Published::stored)
            .collect::<trunkline::Result<Vec<_>>>()?;
        expect_count(stored.len() as u64, batch)?;
        left -= batch;
    }
    Ok(())
}

/// A durable consumer on a stream that was filled before. Stopping it, outside the clock, sends the
/// last of its acknowledgements.
pub(super) fn consume(
    concurrency: usize,
) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let (bus, first) = site.run(async move {
            let bus = connect(&url).await?;
            let first = tail(&bus).await?;
            fill(&bus, events).await?;
            Ok((bus, first))
        })?;
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
        let handle = watch.time(|| {
            site.run(async move {
                let handle = consumer.start().await?;
                countdown.done().await;
                Ok(handle)
            })
        })?;
        let stopped = site.run(async move { Ok(handle.stop().await) })?;
        stopped.failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// The sequence that the next event will have.
async fn tail(bus: &Bus) -> Result<u64> {
    let streams = bus.inspect().await?.streams;
    let events = Name::new("EVENTS")?;
    let stream = streams.iter().find(|state| state.spec.name == events);
    Ok(stream.ok_or("there is no stream EVENTS")?.tail)
}

/// Events that are due `per_s` times a second, published by tasks, handled and acknowledged.
pub(super) fn latency(
    per_s: u64,
) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        // Where the events are handled has a connection of its own, as another program would.
        let (publisher, handling, first) = site.run(async move {
            let (one, other) = (connect(&url).await?, connect(&url).await?);
            let first = tail(&other).await?;
            Ok((one.publisher::<Due>()?, other, first))
        })?;
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
        let stopped = site.run(async move { Ok(handle.stop().await) })?;
        watch.latencies(schedule.latencies_ns());
        stopped.failed.map_or(Ok(()), |error| Err(error.into()))
    }
}
