//! Whoever changes the consumer as a whole: divides it, pauses it, resets it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use trunkline::core::engine::Boxed;
use trunkline::{Beside, Bus, Name, Start};

use super::host::Process;
use super::hub::Hub;
use super::members::{CONSUMER, Common, connect};

/// The reason for which it pauses the consumer.
const REASON: &str = "scripted";

/// Something that is done to the consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// It is divided into that many partitions.
    Divide(u16),
    /// It rests for that long.
    Pause(Duration),
    /// It handles everything again.
    Reset,
}

/// When to do what, in order.
pub(crate) fn draw(
    hub: &Hub,
    (divisions, pauses, resets): (usize, usize, usize),
    troubled: Duration,
) -> Vec<(Duration, Order)> {
    let mut orders = Vec::new();
    let mut at = |order| orders.push((hub.between(Duration::ZERO, troubled), order));
    for _ in 0..divisions {
        at(Order::Divide(1 << hub.pick(0..=8)));
    }
    for _ in 0..pauses {
        let (low, high) = (Duration::from_millis(100), Duration::from_secs(8));
        at(Order::Pause(hub.between(low, high)));
    }
    for _ in 0..resets {
        at(Order::Reset);
    }
    orders.sort_unstable();
    orders
}

/// Does what it is told to. One that is killed leaves the consumer as it is, paused perhaps, and the next
/// one mends that; what was to be done meanwhile is not made up for.
pub(crate) fn controller(process: Process, common: Arc<Common>) -> Boxed<'static, ()> {
    Box::pin(async move {
        let name = Name::new(CONSUMER).expect("a name");
        let bus = loop {
            match connect(&process, process.engine()).await {
                Ok(bus) => break bus,
                Err(_) => sleep(Duration::from_millis(300)).await,
            }
        };
        let work = async {
            for (at, order) in &common.orders {
                if *at < process.now() {
                    continue;
                }
                sleep(at.saturating_sub(process.now())).await;
                obey(*order, &process, &common, &bus, &name).await;
            }
            // What it sent before it died may arrive, and pause the consumer, long after that.
            loop {
                resume(&process, &common, &bus, &name).await;
                sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            biased;
            () = process.told_to_stop() => {}
            () = work => {}
        }
    })
}

async fn obey(order: Order, process: &Process, common: &Common, bus: &Bus, name: &Name) {
    match order {
        Order::Divide(partitions) => {
            let divided = bus.divide_consumer(name, partitions).await;
            process.port.note(33, || {
                format!("everything is divided into {partitions}: {divided:?}")
            });
        }
        Order::Pause(time) => {
            let paused = bus.pause_consumer(name, REASON).await;
            process
                .port
                .note(35, || format!("everything is paused: {paused:?}"));
            if paused.is_ok() {
                common.journal.pause(process.now());
                sleep(time).await;
            }
            resume(process, common, bus, name).await;
        }
        Order::Reset => {
            let reset = bus
                .reset_consumer(name, Start::First, Beside::Discard)
                .await;
            process
                .port
                .note(36, || format!("everything is reset: {reset:?}"));
            if reset.is_ok() {
                common.journal.reset(process.now());
            }
        }
    }
}

/// Lets the consumer go on, whatever it rested for.
async fn resume(process: &Process, common: &Common, bus: &Bus, name: &Name) {
    common.journal.resume(process.now());
    let resumed = bus.resume_consumer(name, None).await;
    process
        .port
        .note(37, || format!("everything is resumed: {:?}", resumed.err()));
}
