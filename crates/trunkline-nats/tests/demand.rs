//! What a member of a shared consumer has asked for, and what becomes of it when the member stops asking.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics where it fails"
)]

mod servers;

use std::time::Duration;

use trunkline_core::engine::{
    Change, ConsumerRef, ConsumerSpec, Credit, Delivery, Engine, Feed, Fetched, Position,
};
use trunkline_nats::{Auth, NatsEngine, NatsOptions};

use servers::{append, at, connect, event, filter, make, name, soon, spec};

async fn fetch(feed: &mut dyn Feed, out: &mut Vec<Delivery>) {
    let fetched = soon(feed.fetch(Credit::items(10), out)).await.unwrap();
    assert!(matches!(fetched, Fetched::Deliveries(_)), "{fetched:?}");
}

/// A member of a new consumer, of which nobody else fetches.
async fn member(engine: &NatsEngine, ack_wait: Duration) -> Box<dyn Feed> {
    make(engine, spec("LOG", "log.*")).await.unwrap();
    let consumer = ConsumerRef {
        stream: name("LOG"),
        consumer: name("work"),
    };
    let made = Change::CreateConsumer(ConsumerSpec {
        at: consumer.clone(),
        filters: vec![filter("log.*")],
        start: Position::First,
        ack_wait,
        max_in_flight: 1_000,
    });
    soon(engine.topology().apply(vec![made])).await.unwrap();
    soon(engine.consume().open(&consumer)).await.unwrap().0
}

/// A member that may not send to its own inbox can only wait for the end of what it asked for, which takes
/// seconds. Until then what comes on that way is its own: it neither goes the round through the server nor
/// is asked for twice.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_a_member_fell_silent_is_its_own_if_it_is_back() {
    let server = servers::server(
        "authorization { users: [ { user: guest, password: s3cret-w0rd, \
         permissions: { publish: { deny: [\"_INBOX.>\"] } } } ] }",
    );
    let options = NatsOptions {
        auth: Auth::User {
            user: "guest".to_owned(),
            password: servers::SECRET.to_owned(),
        },
        ..at(&server.url())
    };
    let guest = connect(&options).await.unwrap();
    let mut feed = member(&guest, Duration::from_secs(30)).await;
    let mut came = Vec::new();
    append(&guest, "LOG", vec![event("log.a", 0, 10)]).await;
    fetch(&mut *feed, &mut came).await;
    // It falls silent with nine more asked for.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let late = (1..=20).map(|n| event("log.a", n, 10)).collect();
    // It is back before they come.
    tokio::join!(fetch(&mut *feed, &mut came), append(&guest, "LOG", late));
    let known = soon(guest.topology().inspect()).await.unwrap();
    let held = known.consumers[0].backlog.in_flight;
    assert!(held <= 11, "{held} are delivered to who asked for 11");
    while came.len() < 21 {
        fetch(&mut *feed, &mut came).await;
    }
    let hints: Vec<u32> = came.iter().map(|one| one.delivered_hint).collect();
    assert_eq!(hints, [1; 21]);
}

/// It was taken for one whose lease is over, and nobody had it before the server gave it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_counted_from_when_its_event_came_and_not_from_when_one_began_to_wait() {
    const ACK_WAIT: Duration = Duration::from_secs(6);
    let server = servers::server("");
    let engine = connect(&at(&server.url())).await.unwrap();
    let mut feed = member(&engine, ACK_WAIT).await;
    let mut came = Vec::new();
    let waits = feed.fetch(Credit::items(10), &mut came);
    let quiet = tokio::time::timeout(ACK_WAIT + Duration::from_secs(2), waits).await;
    assert!(quiet.is_err(), "{quiet:?}");
    append(&engine, "LOG", vec![event("log.a", 0, 10)]).await;
    fetch(&mut *feed, &mut came).await;
    assert_eq!(came[0].delivered_hint, 1);
}
