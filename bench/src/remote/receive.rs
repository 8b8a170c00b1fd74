//! Receiving: live and back, by a durable consumer, and from the past.

use std::hint::black_box;
use std::time::Instant;

use trunkline::{Filter, Item, Start, State};

use super::Ends;
use super::publish::fill;
use crate::countdown::Countdown;
use crate::pair::{Result, expect_count};
use crate::payload::{Order, Tick, Tock};
use crate::stopwatch::Stopwatch;

/// How many events a reader takes at once.
const BATCH: usize = 256;

/// A `Tick` emitted to the other program, and its answer; each round trip is timed.
pub(super) fn ping_pong(ends: &Ends, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let (one, other) = (ends.one.clone(), ends.other.clone());
    let (mut ticks, mut tocks) = ends.run({
        let (one, other) = (one.clone(), other.clone());
        async move {
            Ok((
                other.subscribe::<Tick>().await?,
                one.subscribe::<Tock>().await?,
            ))
        }
    })?;
    let answering = other.publisher::<Tock>()?;
    let echo = ends.programs.spawn(async move {
        while let Some(Item::Event(tick)) = ticks.recv().await {
            let last = tick.sequence + 1 == events;
            if answering.emit(Tock::from(&*tick.event)).await.is_err() || last {
                break;
            }
        }
    });
    let asking = one.publisher::<Tick>()?;
    let (round_trips_ns, answered) = watch.time(|| {
        ends.run(async move {
            let mut round_trips_ns = Vec::with_capacity(usize::try_from(events)?);
            let mut answered = 0;
            for sequence in 0..events {
                let sent = Instant::now();
                asking.emit(Tick::new(sequence)).await?;
                let Some(Item::Event(tock)) = tocks.recv().await else {
                    return Err("the echo ended".into());
                };
                round_trips_ns.push(u64::try_from(sent.elapsed().as_nanos())?);
                answered += u64::from(tock.sequence == sequence);
            }
            Ok((round_trips_ns, answered))
        })
    })?;
    ends.run(async move { Ok(echo.await?) })?;
    watch.latencies(round_trips_ns);
    expect_count(answered, events)
}

/// A new consumer on a full stream, from its start to the last event handled; its acknowledgements
/// leave beside that, and stopping it, outside the clock, sends the last of them.
pub(super) fn consume(ends: &Ends, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let first = filled(ends, events)?;
    let countdown = Countdown::default();
    countdown.expect(events);
    ends.one.state(countdown.clone());
    let consumer = ends
        .one
        .consumer(format!("bench-{first}"))
        .from(Start::Seq(first))
        .on(
            |order: Order, State(countdown): State<Countdown>| async move {
                black_box((&order.order_id, order.total_cents));
                countdown.handled();
            },
        );
    let handle = watch.time(|| {
        ends.run(async move {
            let handle = consumer.start().await?;
            countdown.done().await;
            Ok(handle)
        })
    })?;
    let stopped = ends.run(async move { Ok(handle.stop().await) })?;
    match stopped.failed {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Follows a full stream from the first event on, decoded.
pub(super) fn replay(ends: &Ends, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let (first, bus) = (filled(ends, events)?, ends.one.clone());
    let read = watch.time(|| {
        ends.run(async move {
            let mut orders = bus.replay::<Order>(Start::Seq(first)).await?;
            let (mut read, mut items) = (0, Vec::with_capacity(BATCH));
            while read < events && orders.recv_many(BATCH, &mut items).await > 0 {
                for item in items.drain(..) {
                    let Item::Event(order) = item else {
                        return Err("something else than an event".into());
                    };
                    black_box(&order.event);
                    read += 1;
                }
            }
            Ok(read)
        })
    })?;
    expect_count(read, events)
}

/// Reads what is stored page by page, as it came.
pub(super) fn history(ends: &Ends, events: u64, watch: &mut Stopwatch) -> Result<()> {
    let (first, bus) = (filled(ends, events)?, ends.one.clone());
    let read = watch.time(|| {
        ends.run(async move {
            let mut history = bus.history(&[Filter::all()], Start::Seq(first)).await?;
            let mut read = 0;
            while let Some(page) = history.next_page().await? {
                for item in &page {
                    if !matches!(black_box(item), Item::Event(_)) {
                        return Err("something else than an event".into());
                    }
                    read += 1;
                }
            }
            Ok(read)
        })
    })?;
    expect_count(read, events)
}

/// Stores events, and gives the sequence of the first.
fn filled(ends: &Ends, events: u64) -> Result<u64> {
    let (first, bus) = (ends.tail()?, ends.one.clone());
    ends.run(async move { fill(&bus, events).await })?;
    Ok(first)
}
