//! Durables that nobody pulls from, as other clients of the server see them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics where it fails"
)]

mod servers;

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use trunkline_core::engine::{
    Change, ConsumerRef, ConsumerSpec, Engine, Gauge, Gauges, Position, Seq, StreamSpec,
};
use trunkline_core::{ErrorKind, Filter, Result};
use trunkline_nats::NatsEngine;
use trunkline_nats_server::{Binary, NatsServer, ServerOptions, obtain_version};

use servers::{append, at, connect, event, filter, is, make, name, soon, spec};

/// A server with a hundred events on ten subjects, as the engine and as others see it.
struct Place {
    engine: NatsEngine,
    client: async_nats::Client,
    _server: NatsServer,
}

impl Place {
    async fn on(server: NatsServer) -> Self {
        let engine = connect(&at(&server.url())).await.unwrap();
        make(&engine, spec("LOG", "log.*")).await.unwrap();
        let events = (0..100).map(|n| event(&format!("log.{}", n % 10), n, 10));
        append(&engine, "LOG", events.collect()).await;
        Self {
            engine,
            client: async_nats::connect(server.url()).await.unwrap(),
            _server: server,
        }
    }

    async fn new() -> Self {
        Self::on(servers::server("")).await
    }

    /// What another client is told.
    async fn api(&self, verb: &str, body: Value) -> Value {
        let subject = format!("$JS.API.{verb}");
        let asked = self.client.request(subject, body.to_string().into());
        serde_json::from_slice(&soon(asked).await.unwrap().payload).unwrap()
    }

    async fn info(&self) -> Value {
        self.api("CONSUMER.INFO.LOG.work", json!({})).await
    }

    fn gauges(&self) -> &dyn Gauges {
        self.engine.gauges().unwrap()
    }

    async fn set(&self, filters: &[Filter], floor: Seq) -> Result<Gauge> {
        soon(self.gauges().set(&work(), filters, floor)).await
    }

    async fn look(&self) -> Gauge {
        soon(self.gauges().look(&work())).await.unwrap()
    }

    async fn consumers(&self) -> usize {
        let inspection = soon(self.engine.topology().inspect()).await.unwrap();
        inspection.consumers.len()
    }
}

fn work() -> ConsumerRef {
    ConsumerRef {
        stream: name("LOG"),
        consumer: name("work"),
    }
}

/// Two of the ten subjects, named so that one filter covers another.
fn two() -> Vec<Filter> {
    ["log.1", "log.2", "log.1"].map(filter).to_vec()
}

fn release(version: &str) -> NatsServer {
    let binary: Binary = obtain_version(version).unwrap();
    NatsServer::start(&binary, ServerOptions::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_what_matches_above_the_floor_wherever_that_is() {
    for server in [servers::server(""), release("2.14.6")] {
        let place = Place::on(server).await;
        assert_eq!(place.look().await, Gauge::Absent);
        assert_eq!(place.set(&two(), 50).await.unwrap(), Gauge::Absent);
        // Forward, to the end, to the start, and beyond the end.
        for (floor, pending) in [(50, 10), (91, 2), (100, 0), (0, 20), (1_000, 0), (50, 10)] {
            assert_eq!(place.set(&two(), floor).await.unwrap(), Gauge::Shown);
            let info = place.info().await;
            assert_eq!(info["num_pending"], pending, "{floor}: {info}");
            assert_eq!(info["num_ack_pending"], 0, "{info}");
            assert_eq!(info["ack_floor"]["stream_seq"], floor, "{info}");
        }
        // The server counts on by itself, a moment after it has stored an event.
        append(&place.engine, "LOG", vec![event("log.1", 1_000, 10)]).await;
        soon(async {
            while place.info().await["num_pending"] != 11 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        // It takes on what else is wanted.
        let three = ["log.1", "log.2", "log.3"].map(filter);
        place.set(&three, 50).await.unwrap();
        assert_eq!(place.info().await["num_pending"], 16);
        place
            .set(&[filter("log.>"), filter("log.1")], 50)
            .await
            .unwrap();
        assert_eq!(place.info().await["num_pending"], 51);
        assert_eq!(place.consumers().await, 0, "it is no consumer to us");
        soon(place.gauges().remove(&work())).await.unwrap();
        soon(place.gauges().remove(&work())).await.unwrap();
        assert_eq!(place.info().await["error"]["err_code"], 10_014);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_it_is_noticed_and_mended() {
    let place = Place::new().await;
    place.set(&two(), 50).await.unwrap();
    place.api("CONSUMER.DELETE.LOG.work", json!({})).await;
    assert_eq!(place.look().await, Gauge::Absent);
    assert_eq!(place.set(&two(), 50).await.unwrap(), Gauge::Absent);
    assert_eq!(place.info().await["num_pending"], 10);
    let pause = json!({ "pause_until": "2099-01-01T00:00:00Z" });
    place.api("CONSUMER.PAUSE.LOG.work", pause).await;
    assert_eq!(place.look().await, Gauge::Paused);
    assert_eq!(place.set(&two(), 91).await.unwrap(), Gauge::Paused);
    assert_eq!(
        place.info().await["num_pending"],
        2,
        "it moves all the same"
    );
    place.api("CONSUMER.PAUSE.LOG.work", json!({})).await;
    assert_eq!(place.set(&two(), 50).await.unwrap(), Gauge::Shown);
    // Who pulls from it by mistake takes nothing from anybody, and is forgotten.
    let (next, inbox) = (
        "$JS.API.CONSUMER.MSG.NEXT.LOG.work",
        place.client.new_inbox(),
    );
    let mut inbox_of = place.client.subscribe(inbox.clone()).await.unwrap();
    let pull = place.client.publish_with_reply(next, inbox, "".into());
    soon(pull).await.unwrap();
    let pulled = soon(inbox_of.next()).await.unwrap();
    assert_eq!(place.info().await["num_ack_pending"], 1);
    let ack = place.client.request(pulled.reply.unwrap(), "+ACK".into());
    soon(ack).await.unwrap();
    assert_eq!(place.info().await["num_pending"], 9);
    place.set(&two(), 50).await.unwrap();
    assert_eq!(place.info().await["num_pending"], 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_its_name_is_left_alone_and_none_takes_its_place() {
    let place = Place::new().await;
    let shared = ConsumerSpec {
        at: work(),
        filters: ["log.1", "log.2"].map(filter).to_vec(),
        start: Position::First,
        ack_wait: Duration::from_secs(30),
        max_in_flight: 10,
    };
    let apply = |change| soon(place.engine.topology().apply(vec![change]));
    apply(Change::CreateConsumer(shared.clone())).await.unwrap();
    assert_eq!(place.set(&two(), 50).await.unwrap(), Gauge::Taken);
    assert_eq!(place.look().await, Gauge::Taken);
    soon(place.gauges().remove(&work())).await.unwrap();
    assert_eq!(place.info().await["num_pending"], 20);
    apply(Change::DeleteConsumer(work())).await.unwrap();
    place.set(&two(), 50).await.unwrap();
    for refused in [
        apply(Change::CreateConsumer(shared.clone())).await,
        apply(Change::UpdateConsumer(shared)).await,
        soon(place.engine.consume().open(&work())).await.map(drop),
    ] {
        is(
            &refused.unwrap_err(),
            ErrorKind::Drift,
            &["work", "in order"],
        );
    }
    assert_eq!(place.info().await["num_pending"], 10);
}

/// Where an event leaves once every consumer has it, one that takes nothing would keep it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_waits_for_its_consumers_has_none() {
    let place = Place::new().await;
    let queue = StreamSpec::work_queue(name("QUEUE"), vec![filter("queue.*")]);
    make(&place.engine, queue).await.unwrap();
    let interest =
        json!({ "name": "INTEREST", "subjects": ["interest.*"], "retention": "interest" });
    place.api("STREAM.CREATE.INTEREST", interest).await;
    for stream in ["QUEUE", "INTEREST"] {
        let at = ConsumerRef {
            stream: name(stream),
            ..work()
        };
        let filters = [filter(&format!("{}.a", stream.to_lowercase()))];
        let set = place.gauges().set(&at, &filters, 0);
        assert_eq!(soon(set).await.unwrap(), Gauge::Unfit);
        assert_eq!(soon(place.gauges().look(&at)).await.unwrap(), Gauge::Unfit);
        let verb = format!("CONSUMER.NAMES.{stream}");
        assert_eq!(place.api(&verb, json!({})).await["total"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_move_it_has_none_and_explain_says_so() {
    let fact = |engine: &NatsEngine| {
        let facts = engine.facts().into_iter();
        let mut told = facts.filter(|fact| fact.name == "other tools");
        told.next().unwrap().value
    };
    let old = Place::on(release("2.12.2")).await;
    assert!(old.engine.gauges().is_none());
    let said = fact(&old.engine);
    assert!(said.contains("natscli") && said.contains("2.14"), "{said}");
    let new = Place::new().await;
    assert!(fact(&new.engine).contains("every consumer"));
}
