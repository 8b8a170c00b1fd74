//! The same promises with many at work at once: P8.
//!
//! Loss, repetition and reordering mostly come from races, which one publisher and one
//! subscriber never meet.

use trunkline::core::engine::{Credit, Followed};
use trunkline::{Filter, Item, Name, Start};

use super::super::Trial;
use crate::fixture::{OrderPlaced, Zoned};

pub(in crate::contract) async fn p8_fifty_publishers_and_ten_subscribers_at_once(trial: Trial) {
    const PUBLISHERS: u32 = 50;
    const EACH: u32 = 5_000;
    let mut subscribers = tokio::task::JoinSet::new();
    // Eight of the ten count sequences without decoding anything, so that this is about the bus
    // and not about JSON: every event once and in order, by its place in the stream.
    let all = u64::from(PUBLISHERS * EACH) + 1;
    for _ in 0..8 {
        let bus = trial.bus().await;
        let stream = Name::new("EVENTS").unwrap();
        let mut follow = bus
            .engine()
            .log()
            .follow(&stream, Start::New, &[Filter::all()])
            .await
            .unwrap();
        subscribers.spawn(async move {
            // What is followed ends with its connection.
            let _bus = bus;
            let (mut events, mut last) = (Vec::new(), 0);
            while last < all {
                let followed = follow.next(Credit::items(1_000), &mut events).await;
                assert!(
                    matches!(followed, Ok(Followed::Events { .. })),
                    "{followed:?}"
                );
                for event in events.drain(..) {
                    assert_eq!(event.seq, last + 1);
                    last = event.seq;
                }
            }
            PUBLISHERS * EACH
        });
    }
    for _ in 0..2 {
        let mut events = trial.bus().await.subscribe::<OrderPlaced>().await.unwrap();
        subscribers.spawn(async move {
            // In order and without repeats: each publisher's next number is the only one allowed.
            let mut next = vec![0; PUBLISHERS as usize];
            let (mut items, mut got, mut open) = (Vec::new(), 0, true);
            while open {
                let received = events.recv_many(1_000, &mut items).await;
                assert_ne!(received, 0, "the bus closed");
                for item in items.drain(..) {
                    let Item::Event(event) = item else {
                        panic!("{item:?}")
                    };
                    // The marker ends it: whatever comes twice or late is missing before it.
                    open = event.order != "marker";
                    if open {
                        let publisher: usize = event.order.parse().unwrap();
                        assert_eq!(event.n, next[publisher], "publisher {publisher}");
                        next[publisher] += 1;
                        got += 1;
                    }
                }
            }
            got
        });
    }
    let mut publishers = tokio::task::JoinSet::new();
    // Several on one connection, as in a program, and several connections.
    let mut buses = Vec::new();
    for _ in 0..10 {
        buses.push(trial.bus().await);
    }
    for publisher in 0..PUBLISHERS {
        let bus = buses[publisher as usize % buses.len()].clone();
        publishers.spawn(async move {
            let order = publisher.to_string();
            let publisher = bus.publisher::<OrderPlaced>().unwrap();
            for n in 0..EACH {
                publisher
                    .publish(OrderPlaced {
                        order: order.clone(),
                        n,
                    })
                    .await
                    .unwrap();
            }
        });
    }
    publishers.join_all().await;
    let marker = OrderPlaced {
        order: "marker".into(),
        n: u32::MAX,
    };
    trial.bus().await.publish(marker).await.unwrap();
    for got in subscribers.join_all().await {
        assert_eq!(got, PUBLISHERS * EACH);
    }
}

pub(in crate::contract) async fn p8_twenty_subjects_at_once(trial: Trial) {
    let bus = trial.bus().await;
    let mut subscribers = tokio::task::JoinSet::new();
    for zone in 0..20 {
        let filter = Filter::new(format!("testing.zoned.z{zone}")).unwrap();
        let mut events = bus.follow(&filter, Start::New).await.unwrap();
        subscribers.spawn(async move {
            let expected: Vec<String> = (0..=100)
                .map(|n| format!("{{\"zone\":\"z{zone}\",\"n\":{n}}}"))
                .collect();
            let mut got = Vec::new();
            while got.len() < expected.len() {
                let Some(Item::Event(event)) = events.recv().await else {
                    panic!("z{zone}: no event")
                };
                got.push(
                    String::from_utf8(event.envelope.data().to_bytes().unwrap().to_vec()).unwrap(),
                );
            }
            assert_eq!(got, expected); // Number 100 is the marker that nothing else may precede.
        });
    }
    let mut publishers = tokio::task::JoinSet::new();
    for zone in 0..20 {
        let bus = trial.bus().await;
        publishers.spawn(async move {
            for n in 0..=100 {
                bus.publish(Zoned {
                    zone: format!("z{zone}"),
                    n,
                })
                .await
                .unwrap();
            }
        });
    }
    publishers.join_all().await;
    subscribers.join_all().await;
}
