//! Tokio's own channels: the floor for anything typed and asynchronous inside one process.

use std::future::Future;
use std::hint::black_box;
use std::time::Instant;

use tokio::runtime::Runtime;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;

use crate::pair::{Result, Side, expect_count};
use crate::payload::Tick;
use crate::runtime::Flavour;
use crate::stopwatch::Stopwatch;

/// Room between producer and consumer, in events.
pub const WINDOW: usize = 1_024;
/// How many events the batched consumer takes at once.
const BATCH: usize = 256;

/// One producer, one consumer, one event at a time.
pub fn mpsc_one_by_one(flavour: Flavour) -> Result<impl Side> {
    typed(flavour, |mut events| async move {
        let mut count = 0;
        while let Some(tick) = events.recv().await {
            black_box(&tick);
            count += 1;
        }
        count
    })
}

/// The same with a consumer that takes what there is, up to 256 events at once.
pub fn mpsc_recv_many(flavour: Flavour) -> Result<impl Side> {
    typed(flavour, |mut events| async move {
        let mut count = 0;
        let mut batch = Vec::with_capacity(BATCH);
        while events.recv_many(&mut batch, BATCH).await > 0 {
            count += batch.len() as u64;
            for tick in batch.drain(..) {
                black_box(&tick);
            }
        }
        count
    })
}

fn typed<C>(flavour: Flavour, consume: fn(mpsc::Receiver<Tick>) -> C) -> Result<impl Side>
where
    C: Future<Output = u64> + Send + 'static,
{
    let runtime = flavour.runtime()?;
    Ok(move |events: u64, watch: &mut Stopwatch| {
        let (sender, receiver) = mpsc::channel(WINDOW);
        let handled = watch.time(|| {
            runtime.block_on(async {
                let consumer = tokio::spawn(consume(receiver));
                let producer = tokio::spawn(async move {
                    for sequence in 0..events {
                        if sender.send(Tick::new(sequence)).await.is_err() {
                            break;
                        }
                    }
                });
                producer.await?;
                consumer.await
            })
        })?;
        expect_count(handled, events)
    })
}

/// One producer, `receivers` consumers that each get every event. The producer holds back before
/// the slowest consumer would lose one: a channel that drops has no rate to compare with.
pub fn broadcast(flavour: Flavour, receivers: u64) -> Result<impl Side> {
    const CHECK_EVERY: u64 = 256;
    const HOLD_BACK_AT: usize = WINDOW - CHECK_EVERY as usize;

    let runtime = flavour.runtime()?;
    Ok(move |events: u64, watch: &mut Stopwatch| {
        let (sender, first) = broadcast::channel(WINDOW);
        let mut ends: Vec<broadcast::Receiver<Tick>> =
            (1..receivers).map(|_| sender.subscribe()).collect();
        ends.push(first);
        let handled = watch.time(|| {
            runtime.block_on(async {
                let consumers: Vec<JoinHandle<u64>> = ends
                    .into_iter()
                    .map(|end| tokio::spawn(drain(end)))
                    .collect();
                let producer = tokio::spawn(async move {
                    for sequence in 0..events {
                        if sequence % CHECK_EVERY == 0 {
                            while sender.len() > HOLD_BACK_AT {
                                tokio::task::yield_now().await;
                            }
                        }
                        if sender.send(Tick::new(sequence)).is_err() {
                            break;
                        }
                    }
                });
                producer.await?;
                let mut handled = 0;
                for consumer in consumers {
                    handled += consumer.await?;
                }
                Result::Ok(handled)
            })
        })?;
        expect_count(handled, events * receivers)
    })
}

/// Counts until the sender is gone. A lag would show as a missing count.
async fn drain(mut events: broadcast::Receiver<Tick>) -> u64 {
    let mut count = 0;
    loop {
        match events.recv().await {
            Ok(tick) => {
                black_box(&tick);
                count += 1;
            }
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return count,
        }
    }
}

/// An event there and one back, over two channels; each round trip is timed.
pub fn ping_pong(flavour: Flavour) -> Result<impl Side> {
    let runtime = flavour.runtime()?;
    Ok(move |events: u64, watch: &mut Stopwatch| {
        let (round_trips_ns, wall) = watch.time(|| bounce(&runtime, events))?;
        watch.latencies(round_trips_ns);
        expect_count(wall, events)
    })
}

fn bounce(runtime: &Runtime, events: u64) -> Result<(Vec<u64>, u64)> {
    runtime.block_on(async {
        let (ping, mut pings) = mpsc::channel(WINDOW);
        let (pong, mut pongs) = mpsc::channel(WINDOW);
        let echo = tokio::spawn(async move {
            while let Some(tick) = pings.recv().await {
                if pong.send(tick).await.is_err() {
                    break;
                }
            }
        });
        let caller = tokio::spawn(async move {
            let mut round_trips_ns = Vec::with_capacity(usize::try_from(events)?);
            let mut count = 0;
            for sequence in 0..events {
                let sent = Instant::now();
                ping.send(Tick::new(sequence)).await?;
                let back: Tick = pongs.recv().await.ok_or("the echo ended")?;
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
