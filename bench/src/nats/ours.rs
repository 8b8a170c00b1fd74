//! Live events with Trunkline, as an application would write it.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trunkline::{Bus, Item};

use super::WINDOW;
use crate::pair::{Result, expect_count};
use crate::payload::Glimpse;
use crate::site::Site;
use crate::stopwatch::Stopwatch;

/// How many events a reader takes at once.
const READ: usize = 256;

async fn connect(url: &str) -> Result<Bus> {
    Ok(Bus::connect(url)
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
