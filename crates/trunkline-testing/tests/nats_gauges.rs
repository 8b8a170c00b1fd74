//! What other clients of a real server see of a consumer in key order, which the server knows nothing of.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics where it fails"
)]

mod on_nats;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use trunkline::core::engine::{Engine, Gauge};
use trunkline::{Beside, ConsumerHandle, ErrorKind, Start};
use trunkline_nats_server::{Binary, NatsServer, ServerOptions, obtain, obtain_version};
use trunkline_testing::fixture::OrderPlaced;

use on_nats::{Client, attach, keyed, name, publish, soon, unkeyed, until};

/// A bus with a consumer whose handler runs as often as it is let, and a client of another kind.
struct Place {
    client: Client,
    other: async_nats::Client,
    let_run: Arc<Semaphore>,
    handled: Arc<AtomicU64>,
    _server: NatsServer,
}

impl Place {
    async fn on(binary: Binary) -> Self {
        let start = move || NatsServer::start(&binary, ServerOptions::default()).unwrap();
        let server = tokio::task::spawn_blocking(start).await.unwrap();
        Self {
            client: attach(&server.url()).await,
            other: async_nats::connect(server.url()).await.unwrap(),
            let_run: Arc::new(Semaphore::new(0)),
            handled: Arc::default(),
            _server: server,
        }
    }

    async fn start(&self) -> ConsumerHandle {
        let (let_run, handled) = (Arc::clone(&self.let_run), Arc::clone(&self.handled));
        let handler = move |_: OrderPlaced| {
            let (let_run, handled) = (Arc::clone(&let_run), Arc::clone(&handled));
            async move {
                let_run.acquire().await.unwrap().forget();
                handled.fetch_add(1, Ordering::Relaxed);
            }
        };
        let consumer = self.client.bus.consumer("work").on(handler);
        consumer.start().await.unwrap()
    }

    /// Ten events of each of so many keys, and as many of another type.
    async fn publish(&self, keys: std::ops::Range<u32>) {
        let numbers = |key: u32| (0..10).map(move |n| (key, n));
        let all: Vec<_> = keys.flat_map(numbers).collect();
        let orders = all.iter().map(|(key, n)| keyed(&format!("k{key}"), *n));
        let notes = all.iter().map(|(key, n)| unkeyed(key * 10 + n));
        publish(&self.client.bus, orders.chain(notes).collect()).await;
    }

    async fn handled(&self, count: u64) {
        let handled = || self.handled.load(Ordering::Relaxed) == count;
        until("every event is handled", handled).await;
    }

    async fn api(&self, verb: &str, body: Value) -> Value {
        let subject = format!("$JS.API.CONSUMER.{verb}");
        let asked = self.other.request(subject, body.to_string().into());
        let answer = soon("an answer", asked).await.unwrap();
        serde_json::from_slice(&answer.payload).unwrap()
    }

    /// What natscli, exporters and autoscalers go by; none if there is no such consumer.
    async fn seen(&self) -> Option<u64> {
        let info = self.api("INFO.EVENTS.work", json!({})).await;
        if info["error"]["err_code"] == 10_014 {
            return None;
        }
        assert_eq!(info["num_ack_pending"], 0, "{info}");
        assert_eq!(info["config"]["ack_policy"], "explicit", "{info}");
        assert_eq!(info["config"]["max_deliver"], -1, "{info}");
        Some(info["num_pending"].as_u64().unwrap())
    }

    async fn until_seen(&self, pending: Option<u64>) {
        let looking = async {
            while self.seen().await != pending {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let looked = tokio::time::timeout(Duration::from_secs(30), looking).await;
        assert!(
            looked.is_ok(),
            "others should see {pending:?} and see {:?}",
            self.seen().await
        );
    }

    async fn gauge(&self) -> Option<Gauge> {
        let all = self.client.bus.consumer_status().await.unwrap();
        assert_eq!(all.len(), 1, "what others see is no consumer of its own");
        all[0].gauge
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_see_the_lag_of_an_ordered_consumer_until_it_is_deleted() {
    let place = Place::on(obtain().unwrap()).await;
    place.publish(0..6).await;
    let member = place.start().await;
    place.until_seen(Some(60)).await;
    place.let_run.add_permits(60);
    place.handled(60).await;
    place.until_seen(Some(0)).await;
    assert_eq!(place.gauge().await, Some(Gauge::Shown));

    // A member that stops says how far it came, and what comes then is counted by the server.
    place.publish(6..8).await;
    place.let_run.add_permits(20);
    place.handled(80).await;
    let report = member.stop().await;
    assert!(report.failed.is_none(), "{report:?}");
    assert_eq!(place.seen().await, Some(0));
    place.publish(8..9).await;
    assert_eq!(place.seen().await, Some(10));

    // A reset goes back.
    let bus = &place.client.bus;
    bus.reset_consumer(&name("work"), Start::First, Beside::Refuse)
        .await
        .unwrap();
    let member = place.start().await;
    place.until_seen(Some(90)).await;
    place.let_run.add_permits(90);
    place.handled(170).await;
    place.until_seen(Some(0)).await;

    let deleted = bus.delete_consumer(&name("work"), None).await.unwrap();
    assert_eq!(deleted.len(), 1);
    let failed = soon("the member ends", member.ended()).await.failed;
    assert_eq!(failed.unwrap().kind(), ErrorKind::NoSuchConsumer);
    assert_eq!(place.seen().await, None, "it goes with its consumer");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_it_harms_nothing_and_is_told() {
    let place = Place::on(obtain().unwrap()).await;
    let member = place.start().await;
    place.until_seen(Some(0)).await;
    place.api("DELETE.EVENTS.work", json!({})).await;
    assert_eq!(place.gauge().await, Some(Gauge::Absent));
    place.until_seen(Some(0)).await;
    let until = json!({ "pause_until": "2099-01-01T00:00:00Z" });
    place.api("PAUSE.EVENTS.work", until).await;
    assert_eq!(place.gauge().await, Some(Gauge::Paused));
    place.publish(0..2).await;
    assert_eq!(place.seen().await, Some(20));
    place.let_run.add_permits(20);
    place.handled(20).await;
    place.until_seen(Some(0)).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_that_had_its_name_before_is_left_alone() {
    let place = Place::on(obtain().unwrap()).await;
    place.publish(0..1).await;
    let theirs = json!({
        "stream_name": "EVENTS",
        "config": { "durable_name": "work", "ack_policy": "explicit", "max_deliver": -1 },
    });
    place.api("CREATE.EVENTS.work", theirs).await;
    place.let_run.add_permits(10);
    let member = place.start().await;
    place.handled(10).await;
    member.stop().await;
    assert_eq!(place.gauge().await, Some(Gauge::Taken));
    assert_eq!(place.seen().await, Some(20), "it has everything before it");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_server_that_is_too_old_nothing_is_made_and_all_else_works() {
    let place = Place::on(obtain_version("2.12.2").unwrap()).await;
    place.publish(0..2).await;
    place.let_run.add_permits(20);
    let member = place.start().await;
    place.handled(20).await;
    assert_eq!(place.gauge().await, None);
    member.stop().await;
    assert_eq!(place.seen().await, None);
    assert!(place.client.engine.gauges().is_none());
    let explained = place.client.bus.explain().await.unwrap();
    let told = |name: &str| {
        let mut facts = explained.facts.iter();
        facts.find(|fact| fact.name == name).unwrap().value.clone()
    };
    assert!(told("other tools").contains("not of those in key order"));
}
