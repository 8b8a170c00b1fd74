//! Handlers of events without a Rust type, on one engine in memory, on paused time.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests that panics has failed its test"
)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::smallvec;
use tokio::sync::mpsc;
use trunkline::core::Subject;
use trunkline::core::engine::{Append, AppendMode, Expect};
use trunkline::core::wire::Body;
use trunkline::dead_letter::Buried;
use trunkline::{
    Attempt, Bus, Data, Envelope, ErrorKind, Event, EventId, FailureExt, Filter, Incoming, Name,
    Retry, State,
};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "key")]
struct Placed {
    key: String,
}

/// Who got it, its id and the attempt.
type Seen = mpsc::UnboundedSender<(&'static str, String, u32)>;

async fn publish(bus: &Bus, event_type: &str, id: &str, key: &str) {
    let id = EventId::new(id).unwrap();
    let data = Data::Json(
        trunkline::core::envelope::JsonText::new(&format!("{{\"key\":{key:?}}}").into()).unwrap(),
    );
    let mut event = Envelope::new(id, "/shop", event_type, data).unwrap();
    if !key.is_empty() {
        event = event.with_key(key);
    }
    for published in bus.publish_raw(vec![event.into()]).await {
        published.stored().unwrap();
    }
}

fn filter(text: &str) -> Filter {
    Filter::new(text).unwrap()
}

async fn orders(event: Arc<Incoming>, Attempt(attempt): Attempt, State(seen): State<Seen>) {
    seen.send(("orders", event.envelope.id().to_string(), attempt))
        .unwrap();
}

async fn all(event: Arc<Incoming>, State(seen): State<Seen>) {
    seen.send(("all", event.envelope.id().to_string(), 0))
        .unwrap();
}

async fn placed(_: Placed, meta: trunkline::Meta, State(seen): State<Seen>) {
    seen.send(("placed", meta.id().to_string(), 0)).unwrap();
}

async fn bus() -> (Bus, mpsc::UnboundedReceiver<(&'static str, String, u32)>) {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    (bus, handled)
}

async fn next(
    handled: &mut mpsc::UnboundedReceiver<(&'static str, String, u32)>,
) -> (&'static str, String, u32) {
    let next = tokio::time::timeout(Duration::from_secs(3_600), handled.recv());
    next.await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_event_is_handled_by_its_type_then_by_the_first_filter_that_matches() {
    let (bus, mut handled) = bus().await;
    for event_type in ["order.placed", "order.paid", "mail.sent"] {
        publish(&bus, event_type, event_type, "").await;
    }
    bus.consumer("work")
        .on(placed)
        .on_raw(filter("order.>"), orders)
        .on_raw(filter(">"), all)
        .concurrency(1)
        .start()
        .await
        .unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(next(&mut handled).await);
    }
    seen.sort();
    let seen: Vec<_> = seen
        .iter()
        .map(|(who, id, _)| (*who, id.as_str()))
        .collect();
    let expected = [
        ("all", "mail.sent"),
        ("orders", "order.paid"),
        ("placed", "order.placed"),
    ];
    assert_eq!(seen, expected);
    bus.close().await.unwrap();
    assert!(handled.try_recv().is_err(), "each is handled once");
}

async fn first_fails(
    event: Arc<Incoming>,
    Attempt(attempt): Attempt,
    State(seen): State<Seen>,
) -> Result<(), trunkline::Failure> {
    let id = event.envelope.id().to_string();
    seen.send(("failing", id.clone(), attempt)).unwrap();
    match (id.as_str(), attempt) {
        ("a1", 1) => Err("not yet".into()),
        ("b1", _) => Err("never".permanent()),
        _ => Ok(()),
    }
}

#[tokio::test(start_paused = true)]
async fn the_order_of_keys_and_the_policy_hold_whatever_the_type() {
    let (bus, mut handled) = bus().await;
    for (event_type, id, key) in [
        ("order.placed", "a1", "a"),
        ("order.paid", "a2", "a"),
        ("order.placed", "b1", "b"),
        ("order.paid", "b2", "b"),
        ("mail.sent", "c1", ""),
    ] {
        publish(&bus, event_type, id, key).await;
    }
    bus.consumer("work")
        .on_raw(filter(">"), first_fails)
        .retry(Retry::fixed(3, Duration::from_secs(60)))
        .start()
        .await
        .unwrap();
    let mut seen = Vec::new();
    for _ in 0..6 {
        let (_, id, attempt) = next(&mut handled).await;
        seen.push((id, attempt));
    }
    let of = |key: &str| -> Vec<(&str, u32)> {
        let of_key = seen.iter().filter(|(id, _)| id.starts_with(key));
        of_key
            .map(|(id, attempt)| (id.as_str(), *attempt))
            .collect()
    };
    assert_eq!(of("a"), [("a1", 1), ("a1", 2), ("a2", 1)]);
    assert_eq!(of("b"), [("b1", 1), ("b2", 1)]);
    assert_eq!(of("c"), [("c1", 1)]);
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_order_whoever_is_free_gets_the_next_event() {
    let (bus, mut handled) = bus().await;
    publish(&bus, "order.paid", "a1", "a").await;
    bus.consumer("work")
        .on_raw(filter("order.*"), orders)
        .unordered()
        .start()
        .await
        .unwrap();
    assert_eq!(next(&mut handled).await, ("orders", "a1".to_owned(), 1));
    let status = bus.consumer_status().await.unwrap();
    let found: Vec<_> = status
        .iter()
        .map(|one| (one.name.as_str(), one.ordered))
        .collect();
    assert_eq!(found, [("work", false)]);
    let name = Name::new("work").unwrap();
    assert_eq!(bus.pause_consumer(&name, "deploy").await.unwrap().len(), 1);
    publish(&bus, "order.paid", "a2", "a").await;
    bus.resume_consumer(&name, None).await.unwrap();
    assert_eq!(next(&mut handled).await, ("orders", "a2".to_owned(), 1));
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn filters_that_half_overlap_or_match_nothing_are_refused() {
    let (bus, _handled) = bus().await;
    let both = bus
        .consumer("work")
        .on_raw(filter("order.*"), orders)
        .on_raw(filter("*.paid"), all);
    let error = both.start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidFilter);
    assert!(
        error.message().contains("events.order.* and events.*.paid"),
        "{error}"
    );
    let none = bus.consumer("work").start().await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NoHandler);
    async fn absent(_: Arc<Incoming>, _: State<u8>) {}
    let error = bus
        .consumer("work")
        .on_raw(filter(">"), absent)
        .start()
        .await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::MissingState);
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_told_of_a_dead_letter_that_is_no_event() {
    let bus = Bus::connect("memory:").await.unwrap();
    let garbage = Append {
        subject: Subject::new("events.order.placed").unwrap(),
        key: None,
        id: None,
        expect: Expect::Any,
        headers: trunkline::Headers::new(),
        body: Body::Bytes(Bytes::from_static(b"\x00\xff no event")),
    };
    let (log, events) = (bus.engine().log(), Name::new("EVENTS").unwrap());
    let stored = log.append(&events, smallvec![garbage], AppendMode::Each);
    stored.completed().await.unwrap();
    bus.consumer("billing")
        .on(|_: Placed| async {})
        .start()
        .await
        .unwrap();
    let (seen, mut told) = mpsc::unbounded_channel();
    let alert = move |dead: Arc<Buried>, meta: trunkline::Meta| {
        seen.send((dead, meta)).unwrap();
        async {}
    };
    let alerts = bus.consumer("alerts").on_dead_letter(alert);
    alerts.start().await.unwrap();
    let next = tokio::time::timeout(Duration::from_secs(60), told.recv());
    let (dead, meta) = next.await.unwrap().unwrap();
    assert_eq!((dead.reason.as_str(), dead.entry.seq), ("undecodable", 1));
    assert_eq!(
        &dead.body.to_bytes().unwrap()[..],
        b"\x00\xff no event",
        "its bytes are as they were"
    );
    assert_eq!(meta.event_type(), "trunkline.dead_letter");
    assert_eq!(meta.id().to_string(), "dlq:billing:EVENTS:1:0");
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn handlers_of_dead_letters_that_cannot_be_are_refused() {
    let bus = Bus::connect("memory:").await.unwrap();
    let alert = |_: Arc<Buried>| async {};
    let two = bus.consumer("alerts").on_dead_letter(alert);
    let two = two.on_dead_letter(alert).start().await.unwrap_err();
    assert_eq!(two.kind(), ErrorKind::NoHandler, "{two}");
    let ordered = bus.consumer("alerts").ordered().on_dead_letter(alert);
    let ordered = ordered.start().await.unwrap_err();
    assert_eq!(ordered.kind(), ErrorKind::InvalidConfig, "{ordered}");
    let needs = |_: Arc<Buried>, _: State<Seen>| async {};
    let needs = bus.consumer("alerts").on_dead_letter(needs);
    let missing = needs.start().await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::MissingState, "{missing}");
    bus.close().await.unwrap();
}
