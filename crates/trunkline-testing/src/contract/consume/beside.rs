//! What becomes of events of a shared consumer that fail: C6, C13 and D3 where whoever is free gets the
//! next event, whatever becomes of the member that had the failed one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use trunkline::dead_letter::{Page, Selection, Stands};
use trunkline::{Attempt, Bus, FailureExt, Name, Retry};

use super::super::Trial;
use crate::fixture::Noted;

/// A run: the number of the event, and the attempt.
type Ran = (u32, u32);

async fn publish(bus: &Bus, numbers: std::ops::Range<u32>) {
    for one in bus
        .publish_batch(numbers.map(|n| Noted { n }))
        .await
        .unwrap()
    {
        one.stored().unwrap();
    }
}

/// The next runs, in the order of their numbers.
async fn take(ran: &mut mpsc::UnboundedReceiver<Ran>, count: usize) -> Vec<Ran> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(ran.recv().await.unwrap());
    }
    all.sort_unstable();
    all
}

pub(in crate::contract) async fn c6_a_waiting_retry_of_a_shared_consumer_survives_its_member(
    trial: Trial,
) {
    let (seen, mut ran) = mpsc::unbounded_channel();
    let start = async || {
        let bus = trial.bus().await;
        let seen = seen.clone();
        let handler = move |event: Noted, Attempt(attempt): Attempt| {
            let _ = seen.send((event.n, attempt));
            async move {
                match event.n {
                    0 | 1 => Err("never"),
                    _ => Ok(()),
                }
            }
        };
        bus.consumer("waiting")
            .retry(Retry::fixed(3, Duration::from_secs(2)))
            .on(handler)
            .start()
            .await
            .unwrap();
        bus
    };
    let first = start().await;
    publish(&first, 0..3).await;
    assert_eq!(take(&mut ran, 3).await, [(0, 1), (1, 1), (2, 1)]);
    // What is in hand is written before the member has ended.
    first.close().await.unwrap();
    let second = start().await;
    assert_eq!(take(&mut ran, 2).await, [(0, 2), (1, 2)]);
    second.close().await.unwrap();
    let third = start().await;
    assert_eq!(take(&mut ran, 2).await, [(0, 3), (1, 3)]);
    while third.consumer_status().await.unwrap()[0].dead < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A marker comes after whatever else might have run.
    publish(&third, 3..4).await;
    assert_eq!(take(&mut ran, 1).await, [(3, 1)], "it was tried too often");
    third.close().await.unwrap();
}

pub(in crate::contract) async fn c4_a_shared_consumer_counts_attempts_over_all_of_its_members(
    trial: Trial,
) {
    const EVENTS: u32 = 40;
    let (seen, mut ran) = mpsc::unbounded_channel();
    let mut buses = Vec::new();
    for _ in 0..3 {
        let bus = trial.bus().await;
        let seen = seen.clone();
        let handler = move |event: Noted, Attempt(attempt): Attempt| {
            let _ = seen.send((event.n, attempt));
            async move {
                match attempt < 3 {
                    true => Err("not yet"),
                    false => Ok(()),
                }
            }
        };
        let consumer = bus.consumer("crowd").on(handler).concurrency(2);
        let consumer = consumer.retry(Retry::fixed(4, Duration::from_millis(10)));
        consumer.start().await.unwrap();
        buses.push(bus);
    }
    publish(&buses[0], 0..EVENTS).await;
    let expected: Vec<Ran> = (0..EVENTS)
        .flat_map(|n| (1..=3).map(move |attempt| (n, attempt)))
        .collect();
    assert_eq!(take(&mut ran, expected.len()).await, expected);
    for bus in buses {
        bus.close().await.unwrap();
    }
    assert!(ran.try_recv().is_err(), "it was tried too often");
}

pub(in crate::contract) async fn c13_a_shared_consumer_rests_while_it_is_paused(trial: Trial) {
    let bus = trial.bus().await;
    let (seen, mut ran) = mpsc::unbounded_channel();
    for (name, paused) in [("resting", true), ("other", false)] {
        let seen = seen.clone();
        let handler = move |event: Noted| {
            let _ = seen.send((event.n, u32::from(paused)));
            async move {}
        };
        bus.consumer(name).on(handler).start().await.unwrap();
    }
    publish(&bus, 0..1).await;
    assert_eq!(take(&mut ran, 2).await, [(0, 0), (0, 1)]);
    let name = Name::new("resting").unwrap();
    let confirmed = bus.pause_consumer(&name, "release").await.unwrap();
    assert_eq!(confirmed.len(), 1, "{confirmed:?}");
    publish(&bus, 1..20).await;
    let others: Vec<Ran> = (1..20).map(|n| (n, 0)).collect();
    assert_eq!(take(&mut ran, 19).await, others);
    assert!(ran.try_recv().is_err(), "it ran while it was paused");
    bus.resume_consumer(&name, None).await.unwrap();
    let missed: Vec<Ran> = (1..20).map(|n| (n, 1)).collect();
    assert_eq!(take(&mut ran, 19).await, missed);
    bus.close().await.unwrap();
}

pub(in crate::contract) async fn d3_a_dead_letter_of_a_shared_consumer_runs_again(trial: Trial) {
    let bus = trial.bus().await;
    let (seen, mut ran) = mpsc::unbounded_channel();
    let mended = Arc::new(AtomicBool::new(false));
    let works = Arc::clone(&mended);
    let handler = move |event: Noted, Attempt(attempt): Attempt| {
        let _ = seen.send((event.n, attempt));
        let works = works.load(Ordering::Relaxed);
        async move {
            match works {
                true => Ok(()),
                false => Err("never".permanent()),
            }
        }
    };
    bus.consumer("failing").on(handler).start().await.unwrap();
    publish(&bus, 0..2).await;
    assert_eq!(take(&mut ran, 2).await, [(0, 1), (1, 1)]);
    let letters = bus.dead_letters();
    let standing = async |stands: Stands| {
        let list = letters.list(&Selection::new(), &Page::default()).await;
        let mut letters = list.unwrap().letters;
        letters.retain(|one| one.stands() == stands);
        letters
    };
    let both = loop {
        let both = standing(Stands::Dead).await;
        if both.len() == 2 {
            break both;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // Not mended yet: dead again, with another attempt 1 in its story.
    let _ = letters.replay(&both[0]).await.unwrap();
    let failed = take(&mut ran, 1).await;
    assert_eq!(failed[0].1, 1, "a replay begins with attempt 1");
    while standing(Stands::Dead).await.len() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    mended.store(true, Ordering::Relaxed);
    for letter in standing(Stands::Dead).await {
        let _ = letters.replay(&letter).await.unwrap();
    }
    assert_eq!(take(&mut ran, 2).await, [(0, 1), (1, 1)]);
    while !standing(Stands::Replaying).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(standing(Stands::Dead).await.is_empty());
    publish(&bus, 2..3).await;
    assert_eq!(take(&mut ran, 1).await, [(2, 1)], "it ran twice");
    bus.close().await.unwrap();
}
