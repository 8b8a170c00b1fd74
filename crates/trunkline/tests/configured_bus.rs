//! A bus made from a configuration does what it says.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trunkline::config::load;
use trunkline::core::engine::{ConsumerSpec, Retention, StreamSpec};
use trunkline::{Bus, Config, ErrorKind, Event, Filter, Name, Retry, Start};

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
struct OrderPlaced {
    n: u32,
}

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "mail.send", command)]
struct SendMail {}

fn config(file: &str) -> Config {
    load(Some(("trunkline.toml", file)), []).unwrap().config
}

async fn streams(bus: &Bus) -> Vec<StreamSpec> {
    let found = bus.inspect().await.unwrap().streams;
    let mut streams: Vec<_> = found.into_iter().map(|state| state.spec).collect();
    streams.sort_by(|a, b| a.name.cmp(&b.name));
    streams
}

fn names(streams: &[StreamSpec]) -> Vec<&str> {
    streams.iter().map(|spec| spec.name.as_str()).collect()
}

async fn consumer(bus: &Bus, name: &str) -> ConsumerSpec {
    let found = bus.inspect().await.unwrap().consumers;
    let mut found = found.into_iter().map(|state| state.spec);
    found
        .find(|spec| spec.at.consumer.as_str() == name)
        .unwrap()
}

#[tokio::test]
async fn the_default_configuration_makes_the_bus_that_connect_makes() {
    let plain = Bus::connect("memory:").await.unwrap();
    let configured = Bus::from_config(&Config::default()).await.unwrap();
    assert_eq!(streams(&plain).await, streams(&configured).await);
    assert_eq!(plain.source(), configured.source());
    for bus in [&plain, &configured] {
        bus.consumer("c")
            .on(async |_: OrderPlaced| {})
            .start()
            .await
            .unwrap();
    }
    assert_eq!(
        consumer(&plain, "c").await,
        consumer(&configured, "c").await
    );
}

#[tokio::test]
async fn the_default_streams_take_the_place_of_their_namesakes() {
    let config = config(
        r#"
            source = "/billing"
            prefix = "secretary"
            [streams.EVENTS]
            max_age = "1h"
            [streams.COMMANDS]
            max_events = 5
            [streams.EVENTS_DLQ]
            max_age = "1d"
        "#,
    );
    let bus = Bus::from_config(&config).await.unwrap();
    let found = streams(&bus).await;
    let [commands, events, dead] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(commands.retention, Retention::WorkQueue);
    assert_eq!(commands.max_events, Some(5));
    assert_eq!(events.subjects, [Filter::new("secretary.>").unwrap()]);
    assert_eq!(events.max_age, Some(Duration::from_secs(3_600)));
    assert_eq!(dead.max_age, Some(Duration::from_secs(24 * 3_600)));
    assert_eq!(bus.source(), "/billing");
    bus.publish(OrderPlaced { n: 1 }).await.unwrap();
    bus.publish(SendMail {}).await.unwrap();
}

#[tokio::test]
async fn what_follows_in_code_goes_before_the_configuration() {
    let config = config("source = \"/file\"\n[streams.EVENTS]\nmax_age = \"1h\"");
    let bus = Bus::from_config(&config)
        .source("/code")
        .prefix("shop")
        .await
        .unwrap();
    assert_eq!(bus.source(), "/code");
    let found = streams(&bus).await;
    assert_eq!(found[1].subjects, [Filter::new("shop.>").unwrap()]);
    assert_eq!(found[1].max_age, Some(Duration::from_secs(3_600)));
    // Other streams for events still take the place of EVENTS, as long as nobody changed it.
    let orders = || {
        StreamSpec::new(
            Name::new("ORDERS").unwrap(),
            vec![Filter::new("events.>").unwrap()],
        )
    };
    let bus = Bus::from_config(&Config::default())
        .stream(orders())
        .await
        .unwrap();
    assert_eq!(
        names(&streams(&bus).await),
        ["COMMANDS", "EVENTS_DLQ", "ORDERS"]
    );
}

#[tokio::test]
async fn streams_of_other_names_stand_beside_events_only_if_it_is_declared() {
    let orders = "[streams.ORDERS]\nsubjects = [\"shop.>\"]\n";
    let bus = Bus::from_config(&config(orders)).await.unwrap();
    assert_eq!(
        names(&streams(&bus).await),
        ["COMMANDS", "EVENTS_DLQ", "ORDERS"]
    );
    let both = format!("{orders}[streams.EVENTS]\n");
    let bus = Bus::from_config(&config(&both)).await.unwrap();
    assert_eq!(
        names(&streams(&bus).await),
        ["COMMANDS", "EVENTS", "EVENTS_DLQ", "ORDERS"]
    );
}

#[tokio::test]
async fn without_a_prefix_the_types_say_what_is_stored() {
    let config = config("prefix = \"\"\n[streams.EVENTS]\nmax_age = \"1h\"");
    let bus = Bus::from_config(&config)
        .event::<OrderPlaced>()
        .await
        .unwrap();
    let found = streams(&bus).await;
    assert_eq!(found[1].subjects, [Filter::new("order.placed").unwrap()]);
    assert_eq!(found[1].max_age, Some(Duration::from_secs(3_600)));
}

#[tokio::test]
async fn a_stream_without_subjects_is_refused_by_name() {
    let spec = StreamSpec::new(Name::new("ORDERS").unwrap(), Vec::new());
    let error = Bus::connect("memory:").stream(spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(
        error.message().contains("stream ORDERS has no subjects"),
        "{error}"
    );
}

#[tokio::test]
async fn a_consumer_takes_the_default_then_the_code_then_its_own_section() {
    let config = config(
        r#"
            [consumers]
            ack_wait = "40s"
            start = "last:3"

            [consumers.tuned]
            ack_wait = "2m"
        "#,
    );
    let bus = Bus::from_config(&config).await.unwrap();
    let check =
        async |name: &str, ack_wait: Option<u64>, from: Option<Start>, expected: (u64, Start)| {
            let mut declared = bus.consumer(name).on(async |_: OrderPlaced| {});
            if let Some(seconds) = ack_wait {
                declared = declared.ack_wait(Duration::from_secs(seconds));
            }
            if let Some(from) = from {
                declared = declared.from(from);
            }
            declared.start().await.unwrap().stop().await;
            let found = consumer(&bus, name).await;
            let expected = (Duration::from_secs(expected.0), expected.1);
            assert_eq!((found.ack_wait, found.start), expected, "{name}");
        };
    let last = Start::Last(NonZeroU64::new(3).unwrap());
    check("plain", None, None, (40, last)).await;
    check("coded", Some(50), Some(Start::New), (50, Start::New)).await;
    // Setting by setting: the section says nothing of the start, so the code's is kept.
    check("tuned", Some(50), Some(Start::First), (120, Start::First)).await;
}

#[tokio::test(start_paused = true)]
async fn the_retries_of_a_consumer_follow_its_section() {
    let config = config("[consumers.billing]\nattempts = 3\ndelays = [\"1s\"]\njitter = 0");
    let bus = Bus::from_config(&config).await.unwrap();
    let (attempted, mut attempts) = tokio::sync::mpsc::unbounded_channel();
    let fails = move |_: OrderPlaced| {
        let attempted = attempted.clone();
        async move {
            attempted.send(tokio::time::Instant::now()).unwrap();
            Err::<(), _>("refused")
        }
    };
    let billing = bus.consumer("billing").retry(Retry::never()).on(fails);
    let billing = billing.start().await.unwrap();
    bus.publish(OrderPlaced { n: 1 }).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..3 {
        times.push(attempts.recv().await.unwrap());
    }
    assert_eq!(times[1] - times[0], Duration::from_secs(1));
    assert_eq!(times[2] - times[1], Duration::from_secs(1));
    billing.stop().await;
    assert!(attempts.try_recv().is_err());
}
