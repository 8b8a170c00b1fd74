//! Another number of partitions: C10 and C13 while members run.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use trunkline::{Attempt, Bus, ConsumerStatus, ErrorKind, Name, Retry};

use super::super::Trial;
use super::ordered::{Ran, assert_order, place};
use super::publish as publish_noted;
use crate::fixture::{Noted, OrderPlaced};

const KEYS: u32 = 20;

async fn status(bus: &Bus, name: &Name) -> ConsumerStatus {
    let all = bus.consumer_status().await.unwrap();
    all.into_iter().find(|one| one.name == *name).unwrap()
}

/// Everybody's runs, in the order in which they began.
type Runs = Arc<Mutex<Vec<Ran>>>;

/// A member; each handler takes a moment, and one event of one key fails twice.
async fn start(trial: &Trial, runs: &Runs, partitions: u16) -> Bus {
    let bus = trial.bus().await;
    let runs = Arc::clone(runs);
    let handler = move |order: OrderPlaced, Attempt(attempt): Attempt| {
        let runs = Arc::clone(&runs);
        async move {
            let fails = order.order == "order-3" && order.n == 5 && attempt < 3;
            tokio::time::sleep(Duration::from_millis(2)).await;
            runs.lock().push((order.order, order.n, attempt));
            if fails { Err("not yet") } else { Ok(()) }
        }
    };
    let consumer = bus
        .consumer("divided")
        .partitions(partitions)
        .concurrency(4)
        .retry(Retry::fixed(3, Duration::from_secs(2)))
        .on(handler);
    consumer.start().await.unwrap();
    bus
}

async fn reached(runs: &Runs, count: usize) {
    while runs.lock().len() < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(in crate::contract) async fn c10_another_number_of_partitions_loses_and_repeats_nothing(
    trial: Trial,
) {
    let name = Name::new("divided").unwrap();
    let runs = Runs::default();
    let publisher = trial.bus().await;
    let first = start(&trial, &runs, 16).await;
    let second = start(&trial, &runs, 16).await;
    // There is always something to do, and a retry that waits through it all.
    place(&publisher, KEYS, 0..40).await;
    let (mut had, mut next) = (16, 40);
    for (count, partitions) in [(200, 4), (400, 32), (600, 1), (700, 16)] {
        reached(&runs, count).await;
        let divided = publisher.divide_consumer(&name, partitions).await.unwrap();
        assert_eq!(divided.len(), 1, "{divided:?}");
        assert_eq!((divided[0].from, divided[0].to), (had, partitions));
        let status = status(&publisher, &name).await;
        assert_eq!(
            (status.partitions, &status.paused[..]),
            (partitions, &[][..])
        );
        place(&publisher, KEYS, next..next + 10).await;
        next += 10;
        had = partitions;
    }
    let (events, retries) = (80 * KEYS as usize, 2);
    reached(&runs, events + retries).await;
    while status(&publisher, &name).await.handled < events as u64 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    first.close().await.unwrap();
    second.close().await.unwrap();
    let status = status(&publisher, &name).await;
    assert_eq!((status.handled, status.dead), (events as u64, 0));
    assert_eq!((status.waiting, status.running), (0, 0));
    let runs = runs.lock().clone();
    assert_eq!(runs.len(), events + retries, "an event was handled twice");
    assert_order(&runs);
}

pub(in crate::contract) async fn c13_dividing_is_done_once_and_refused_where_it_means_nothing(
    trial: Trial,
) {
    let name = Name::new("divided").unwrap();
    let runs = Runs::default();
    let bus = start(&trial, &runs, 8).await;
    place(&bus, KEYS, 0..5).await;
    for wrong in [0, 3, 512] {
        let error = bus.divide_consumer(&name, wrong).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.message().contains("128 or 256"), "{error}");
    }
    let none = Name::new("nobody").unwrap();
    let error = bus.divide_consumer(&none, 4).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchConsumer);
    publish_noted(&bus, 0..1).await;
    let shared = bus.consumer("shared").on(|_: Noted| async {});
    shared.start().await.unwrap();
    let shared = Name::new("shared").unwrap();
    let error = bus.divide_consumer(&shared, 4).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    // It has that number, and somebody's pause is left alone.
    bus.pause_consumer(&name, "release").await.unwrap();
    let divided = bus.divide_consumer(&name, 8).await.unwrap();
    assert_eq!((divided[0].from, divided[0].to), (8, 8));
    // Two operators at once: one of them divides it, or each does, one after another.
    let other = trial.bus().await;
    let both = async {
        tokio::join!(
            bus.divide_consumer(&name, 2),
            other.divide_consumer(&name, 64)
        )
    };
    // No handler runs, so that nobody has to be waited for.
    let at_once = Duration::from_secs(15);
    let Ok((one, two)) = tokio::time::timeout(at_once, both).await else {
        panic!(
            "not divided within {at_once:?}: {:?}",
            status(&bus, &name).await
        );
    };
    let (one, two) = (one.unwrap(), two.unwrap());
    let status = status(&bus, &name).await;
    assert!([2, 64].contains(&status.partitions), "{one:?} {two:?}");
    assert_eq!(status.paused, ["release"]);
    // A member that says another number joins what is there.
    let joined = start(&trial, &runs, 32).await;
    bus.resume_consumer(&name, None).await.unwrap();
    reached(&runs, 100).await;
    let now = self::status(&joined, &name).await;
    assert_eq!((now.partitions, now.unowned), (status.partitions, 0));
    for bus in [bus, other, joined] {
        bus.close().await.unwrap();
    }
}
