//! Somebody deletes a stream on a real server, and it is made again: places in the old one mean nothing.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

mod on_nats;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use trunkline::{Beside, Bus, ConsumerHandle, ErrorKind, Result, Start};
use trunkline_nats_server::{NatsServer, ServerOptions, obtain};
use trunkline_testing::fixture::OrderPlaced;

use on_nats::{attach, keyed, name, publish, soon, until};

async fn server() -> NatsServer {
    let start = || NatsServer::start(&obtain().unwrap(), ServerOptions::default()).unwrap();
    tokio::task::spawn_blocking(start).await.unwrap()
}

/// As `nats stream rm EVENTS` does.
async fn delete_events(server: &NatsServer) {
    // One that is a moment younger is taken for the same.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let asked = client.request("$JS.API.STREAM.DELETE.EVENTS", "".into());
    let answer = soon("an answer", asked).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(answer["success"], true, "{answer}");
}

/// Starts a member that counts what it handles.
async fn start(bus: &Bus, consumer: &str, handled: &Arc<AtomicU64>) -> Result<ConsumerHandle> {
    let handled = Arc::clone(handled);
    let handler = move |_: OrderPlaced| {
        handled.fetch_add(1, Ordering::Relaxed);
        async {}
    };
    let consumer = match consumer {
        "shared" => bus.consumer(consumer).unordered(),
        _ => bus.consumer(consumer),
    };
    soon("a start", consumer.on(handler).start()).await
}

async fn all_of(handled: &AtomicU64, count: u64) {
    let all = || handled.load(Ordering::Relaxed) == count;
    until("every event is handled", all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_made_again_is_not_taken_for_the_one_before() {
    let server = server().await;
    let events = |numbers: std::ops::Range<u32>| numbers.map(|n| keyed("k", n)).collect();
    let before = attach(&server.url()).await.bus;
    publish(&before, events(0..20)).await;
    for consumer in ["ordered", "shared"] {
        let handled = Arc::default();
        let member = start(&before, consumer, &handled).await.unwrap();
        all_of(&handled, 20).await;
        let report = member.stop().await;
        assert!(report.failed.is_none(), "{report:?}");
    }
    before.close().await.unwrap();
    delete_events(&server).await;

    // The new one has more than they had handled of the old one, by the time that they come back.
    let after = attach(&server.url()).await.bus;
    publish(&after, events(0..60)).await;
    for consumer in ["ordered", "shared"] {
        let handled = Arc::default();
        let refused = start(&after, consumer, &handled).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Drift, "{refused}");
        assert!(refused.to_string().contains("consumers reset"), "{refused}");
        let name = name(consumer);
        let reset = after.reset_consumer(&name, Start::First, Beside::Refuse);
        soon("a reset", reset).await.unwrap();
        let member = start(&after, consumer, &handled).await.unwrap();
        all_of(&handled, 60).await;
        let report = member.stop().await;
        assert!(report.failed.is_none(), "{report:?}");
    }
    after.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_stream_is_made_again_ends_loudly() {
    let server = server().await;
    let bus = attach(&server.url()).await.bus;
    publish(&bus, (0..20).map(|n| keyed("k", n)).collect()).await;
    let handled = Arc::default();
    let member = start(&bus, "ordered", &handled).await.unwrap();
    all_of(&handled, 20).await;
    delete_events(&server).await;
    let other = attach(&server.url()).await.bus;
    publish(&other, (0..60).map(|n| keyed("k", n)).collect()).await;
    let report = soon("the end of the member", member.ended()).await;
    let failed = report.failed.expect("it says why");
    let kinds = [ErrorKind::Drift, ErrorKind::NoSuchStream];
    assert!(kinds.contains(&failed.kind()), "{failed}");
    assert_eq!(handled.load(Ordering::Relaxed), 20, "of another stream");
    other.close().await.unwrap();
}
