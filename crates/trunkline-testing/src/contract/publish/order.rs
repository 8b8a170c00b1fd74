//! Batches keep their order, and each item has its own outcome: P3.
//!
//! A batch is many appends to an engine, and some of them may fail. Without these promises a
//! failure in the middle would let later events of the same key overtake it.

use bytes::Bytes;
use trunkline::core::engine::{Retention, StreamSpec};
use trunkline::core::envelope::JsonText;
use trunkline::{
    Data, Envelope, ErrorKind, Event, EventId, Filter, Name, Published, RawEvent, Start,
};

use super::super::Trial;
use super::received;
use crate::fixture::OrderPlaced;

pub(in crate::contract) async fn p3_a_batch_keeps_its_order_and_each_item_its_outcome(
    trial: Trial,
) {
    let bus = trial.bus().await;
    let mut events = bus.subscribe::<OrderPlaced>().await.unwrap();
    // More than an engine takes at once, so that the order holds across its batches too.
    let count = u32::try_from(bus.engine().limits().max_batch)
        .unwrap()
        .saturating_mul(2)
        .min(5_000)
        + 10;
    let order = |n: u32| OrderPlaced {
        order: format!("o-{}", n % 7),
        n,
    };
    let published = bus.publish_batch((0..count).map(order)).await.unwrap();
    let seqs: Vec<_> = published
        .into_iter()
        .map(|one| one.stored().unwrap().seq)
        .collect();
    assert!(seqs.is_sorted_by(|a, b| a < b) && seqs.len() == count as usize);
    let got = received(&mut events, count as usize, |event| event.n).await;
    assert_eq!(got, (0..count).collect::<Vec<_>>());

    // Of a mixed batch only the malformed and the too large are refused, also not their key.
    let raw = |event_type: &str, n: u32, data: Data| {
        let id = EventId::new(format!("mixed-{n}")).unwrap();
        RawEvent::from(
            Envelope::new(id, "/trial", event_type, data)
                .unwrap()
                .with_key("k"),
        )
    };
    let good = |n: u32| {
        let json = Bytes::from(format!("{{\"order\":\"k\",\"n\":{n}}}"));
        raw(
            OrderPlaced::TYPE,
            n,
            Data::Json(JsonText::new(&json).unwrap()),
        )
    };
    let huge = Bytes::from(vec![b'x'; bus.engine().limits().max_message]);
    let batch = vec![
        good(0),
        raw(&"x".repeat(300), 1, Data::None),
        good(2),
        raw(OrderPlaced::TYPE, 3, Data::Binary(huge)),
        good(4),
    ];
    let published = bus.publish_raw(batch).await;
    let refusal = |one| match one {
        &Published::Stored(_) => None,
        Published::Refused(error) => Some((error.kind(), error.event_id())),
        other => panic!("{other:?}"),
    };
    let kinds: Vec<_> = published.iter().map(refusal).collect();
    let malformed = Some((ErrorKind::InvalidEventType, Some("mixed-1")));
    assert_eq!(
        kinds,
        [
            None,
            malformed,
            None,
            Some((ErrorKind::TooLarge, Some("mixed-3"))),
            None
        ]
    );
    assert_eq!(received(&mut events, 3, |event| event.n).await, [0, 2, 4]);
}

pub(in crate::contract) async fn p3_behind_a_refused_event_its_key_waits(trial: Trial) {
    let subjects = vec![Filter::new("events.>").unwrap()];
    let small = StreamSpec {
        retention: Retention::RefuseWhenFull,
        max_events: Some(3),
        ..StreamSpec::new(Name::new("SMALL").unwrap(), subjects)
    };
    let bus = trial.connect().await.stream(small).await.unwrap();
    let keys = ["a", "b", "a", "b", "b", "a", "c"];
    let order = |(key, n): (&&str, u32)| OrderPlaced {
        order: (*key).to_owned(),
        n,
    };
    let published = bus
        .publish_batch(keys.iter().zip(0..).map(order))
        .await
        .unwrap();
    let kinds: Vec<_> = published
        .into_iter()
        .map(|one| one.stored().err().map(|error| error.kind()))
        .collect();
    let (full, behind) = (Some(ErrorKind::StreamFull), Some(ErrorKind::BehindFailed));
    assert_eq!(kinds, [None, None, None, full, behind, full, full]);
    let removed = trunkline::core::engine::Removal::Before(3);
    assert_eq!(
        bus.engine()
            .log()
            .remove(&Name::new("SMALL").unwrap(), removed)
            .await
            .unwrap(),
        2
    );
    // A batch that is published anew starts without a past.
    for n in [3, 4] {
        bus.publish(OrderPlaced {
            order: "b".into(),
            n,
        })
        .await
        .unwrap();
    }
    let error = bus
        .publish(OrderPlaced {
            order: "b".into(),
            n: 9,
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StreamFull);
    let mut events = bus.replay::<OrderPlaced>(Start::First).await.unwrap();
    assert_eq!(received(&mut events, 3, |event| event.n).await, [2, 3, 4]);
}
