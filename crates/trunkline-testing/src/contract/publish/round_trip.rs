//! What arrives is what was published: P1 and P9.
//!
//! Every engine has its own encoding, size limit and header rules, so each is a place where an
//! event could come out changed. What cannot pass whole must be refused instead.

use std::sync::Arc;

use bytes::Bytes;
use trunkline::core::Headers;
use trunkline::core::envelope::JsonText;
use trunkline::core::wire::Body;
use trunkline::{
    Attribute, Data, Envelope, ErrorKind, Event, EventId, Filter, Item, Published, RawEvent, Start,
    Timestamp,
};

use super::super::Trial;
use super::{received, stored};
use crate::fixture::{Moved, Noted, OrderPlaced, Unwritable};

pub(in crate::contract) async fn p1_a_published_event_arrives_once_and_whole(trial: Trial) {
    let bus = trial.bus().await;
    let mut events = trial.bus().await.subscribe::<OrderPlaced>().await.unwrap();
    let order = OrderPlaced {
        order: "o-1 größe".into(),
        n: 7,
    };
    let [id, root, cause] = ["id-1", "root-1", "cause-1"].map(|text| EventId::new(text).unwrap());
    let time = Timestamp::from_nanos(1_700_000_000_123_456_789);
    let cause = Envelope::new(cause, "/cause", "testing.cause", Data::None)
        .unwrap()
        .with_correlation(root.clone());
    let mut causes = bus
        .follow(&Filter::new("testing.cause").unwrap(), Start::First)
        .await
        .unwrap();
    stored(bus.publish_raw(vec![cause.clone().into()]).await);
    let Some(Item::Event(incoming)) = causes.recv().await else {
        panic!("the cause did not arrive")
    };
    assert_eq!(incoming.envelope.correlation(), Some(&root));

    let receipt = bus
        .publish(order.clone())
        .id(id.clone())
        .time(time)
        .correlation(root.clone())
        .subject("order 1")
        .attribute("mine", Attribute::Integer(-5))
        .header("Tenant", "größe 日本 🦀")
        .header("empty", "")
        .header("twice", "1")
        .header("twice", "2")
        .await
        .unwrap();
    assert_eq!((&receipt.id, receipt.duplicate), (&id, false));
    let Some(Item::Event(received)) = events.recv().await else {
        panic!("the event did not arrive")
    };
    let meta = &received.meta;
    assert_eq!(*received.event, order);
    assert_eq!(
        (meta.id(), meta.event_type(), meta.version()),
        (&id, OrderPlaced::TYPE, Some(1))
    );
    assert_eq!(
        (meta.source(), meta.time(), meta.key()),
        ("/trial", Some(time), Some("o-1 größe"))
    );
    assert_eq!(
        (meta.correlation(), meta.causation(), meta.subject()),
        (Some(&root), None, Some("order 1"))
    );
    assert_eq!(
        meta.extensions().collect::<Vec<_>>(),
        [("mine", &Attribute::Integer(-5))]
    );
    assert_eq!(
        (meta.seq(), meta.stream()),
        (Some(receipt.seq), Some(&receipt.stream))
    );
    let headers: Vec<_> = meta.headers().iter().collect();
    assert_eq!(
        headers,
        [
            ("Tenant", "größe 日本 🦀"),
            ("empty", ""),
            ("twice", "1"),
            ("twice", "2")
        ]
    );

    // What a handler publishes says what caused it, and correlates with what that correlates with.
    bus.publish(OrderPlaced {
        order: "o-2".into(),
        n: 8,
    })
    .caused_by(meta)
    .key("another")
    .await
    .unwrap();
    // Had the first event come twice, it would come before this one.
    let Some(Item::Event(second)) = events.recv().await else {
        panic!("the event did not arrive")
    };
    assert_eq!((second.n, second.meta.key()), (8, Some("another")));
    assert_eq!(
        (second.meta.causation(), second.meta.correlation()),
        (Some(&id), Some(&root))
    );
    assert_ne!(second.meta.id(), &id);

    // The same for what is not stored.
    let mut moves = trial.bus().await.subscribe::<Moved>().await.unwrap();
    let id = bus
        .emit(Moved { n: 1 })
        .header("tenant", "ü")
        .await
        .unwrap();
    bus.emit(Moved { n: 2 }).await.unwrap();
    let (Some(Item::Event(first)), Some(Item::Event(second))) =
        (moves.recv().await, moves.recv().await)
    else {
        panic!("the ephemeral events did not arrive")
    };
    assert_eq!(
        (first.n, first.meta.id(), first.meta.headers().get("tenant")),
        (1, &id, Some("ü"))
    );
    assert_eq!((second.n, first.meta.seq()), (2, None));
}

pub(in crate::contract) async fn p1_sizes_up_to_the_limit_pass_and_one_byte_more_is_refused(
    trial: Trial,
) {
    let bus = trial.bus().await;
    let mut events = trial
        .bus()
        .await
        .follow(&Filter::new("testing.blob").unwrap(), Start::New)
        .await
        .unwrap();
    for size in [0, 1, 64 << 10] {
        let bytes: Vec<u8> = (0..size).map(|n: u32| n.to_le_bytes()[0]).collect();
        let data = Data::Binary(Bytes::from(bytes));
        stored(bus.publish_raw(vec![blob(data.clone()).into()]).await);
        let Some(Item::Event(received)) = events.recv().await else {
            panic!("{size} bytes did not arrive")
        };
        assert_eq!(
            received.envelope.data().to_bytes().unwrap(),
            data.to_bytes().unwrap()
        );
    }
    let limit = bus.engine().limits().max_message;
    let mut headers = Headers::new();
    headers.add("counts", "too").unwrap();
    let of_size = |size: usize| {
        let json = |length| {
            Data::Json(JsonText::new(&Bytes::from(format!("\"{}\"", "x".repeat(length)))).unwrap())
        };
        let encoded = |envelope: Envelope| {
            Body::Event(Arc::new(envelope)).to_bytes().unwrap().len() + headers.bytes()
        };
        let envelope = blob(json(size - encoded(blob(json(0)))));
        assert_eq!(encoded(envelope.clone()), size);
        RawEvent {
            envelope,
            headers: headers.clone(),
        }
    };
    for size in [limit - 1, limit] {
        let event = of_size(size);
        let data = event.envelope.data().clone();
        stored(bus.publish_raw(vec![event]).await);
        let Some(Item::Event(received)) = events.recv().await else {
            panic!("{size} bytes did not arrive")
        };
        assert_eq!(*received.envelope.data(), data);
    }
    let event = of_size(limit + 1);
    let id = event.envelope.id().to_string();
    match bus.publish_raw(vec![event]).await.as_slice() {
        [Published::Refused(error)] => {
            assert_eq!(
                (error.kind(), error.event_id()),
                (ErrorKind::TooLarge, Some(id.as_str()))
            );
        }
        other => panic!("one byte above the limit was {other:?}"),
    }
    // The connection works on, and nothing of the refused event was stored.
    let marker = blob(Data::Text("marker".into()));
    stored(bus.publish_raw(vec![marker.clone().into()]).await);
    let Some(Item::Event(received)) = events.recv().await else {
        panic!("nothing arrives any more")
    };
    assert_eq!(received.envelope.id(), marker.id());
}

fn blob(data: Data) -> Envelope {
    let id = EventId::generate(Timestamp::from_nanos(0));
    Envelope::new(id, "/trial", "testing.blob", data)
        .unwrap()
        .with_time(Timestamp::from_nanos(0))
}

pub(in crate::contract) async fn p1_line_breaks_in_headers_are_refused(trial: Trial) {
    let bus = trial.bus().await;
    let mut events = bus.subscribe::<Noted>().await.unwrap();
    for value in ["\r", "\n", "a\r\nX-Injected: b", "a\nb"] {
        let error = bus
            .publish(Noted { n: 1 })
            .header("name", value)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidHeader, "{value:?}");
        let error = bus
            .emit(Moved { n: 1 })
            .header("name", value)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidHeader, "{value:?}");
    }
    let error = bus
        .publish(Noted { n: 1 })
        .header("na\nme", "value")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidHeader);
    bus.publish(Noted { n: 2 }).await.unwrap();
    assert_eq!(received(&mut events, 1, |event| event.n).await, [2]);
}

pub(in crate::contract) async fn p9_shared_values_are_never_encoded(trial: Trial) {
    let bus = trial.bus().await;
    let mut events = bus.subscribe::<Unwritable>().await.unwrap();
    bus.publish(Unwritable { n: 5 }).await.unwrap();
    assert_eq!(received(&mut events, 1, |event| event.n).await, [5]);
}

pub(in crate::contract) async fn an_unwritable_event_is_refused(trial: Trial) {
    let bus = trial.bus().await;
    let error = bus.publish(Unwritable { n: 5 }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Encode);
    bus.publish(Noted { n: 1 }).await.unwrap();
}
