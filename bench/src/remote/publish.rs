//! Publishing durable events: each outcome is known before it counts.

use std::time::Instant;

use trunkline::{Bus, Published};

use super::Ends;
use crate::pair::{Result, expect_count};
use crate::payload::Order;
use crate::stopwatch::Stopwatch;

const IN_FLIGHT: u64 = 64;
pub(super) const BATCH: u64 = 1_000;

/// The next one once the last one is stored; each is timed.
pub(super) fn one_at_a_time(ends: &Ends, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let publisher = ends.one.publisher::<Order>()?;
    let took_ns = watch.time(|| {
        ends.run(async move {
            let mut took_ns = Vec::with_capacity(usize::try_from(events)?);
            for _ in 0..events {
                let began = Instant::now();
                publisher.publish(Order::sample()).await?;
                took_ns.push(u64::try_from(began.elapsed().as_nanos())?);
            }
            Ok(took_ns)
        })
    })?;
    watch.latencies(took_ns);
    Ok(())
}

/// As many tasks as events may be in flight, each publishing one at a time.
pub(super) fn in_flight(ends: &Ends, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let bus = ends.one.clone();
    let stored = watch.time(|| {
        ends.run(async move {
            let mut tasks = Vec::new();
            for task in 0..IN_FLIGHT {
                let share = events / IN_FLIGHT + u64::from(task < events % IN_FLIGHT);
                let publisher = bus.publisher::<Order>()?;
                tasks.push(tokio::spawn(async move {
                    for _ in 0..share {
                        publisher.publish(Order::sample()).await?;
                    }
                    Ok::<_, trunkline::Error>(share)
                }));
            }
            let mut stored = 0;
            for task in tasks {
                stored += task.await??;
            }
            Ok(stored)
        })
    })?;
    expect_count(stored, events)
}

/// The next batch once the last one is stored.
pub(super) fn batches(ends: &Ends, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let bus = ends.one.clone();
    watch.time(|| ends.run(async move { fill(&bus, events).await }))
}

pub(super) async fn fill(bus: &Bus, events: u64) -> Result<()> {
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
