//! Streams beside what is declared: at start, and where they are managed.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::time::Duration;

use serde::{Deserialize, Serialize};
use trunkline::config::load;
use trunkline::core::engine::{Change, StreamSpec};
use trunkline::core::plan::Plan;
use trunkline::{Bus, ErrorKind, Event, Filter, Name, Topology, TopologyMode};

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
struct OrderPlaced {}

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "order.paid")]
struct OrderPaid {}

const DAY: Duration = Duration::from_secs(86_400);

fn spec(name: &str, subjects: &str) -> StreamSpec {
    StreamSpec::new(
        Name::new(name).unwrap(),
        vec![Filter::new(subjects).unwrap()],
    )
}

fn aged(days: u32) -> StreamSpec {
    StreamSpec {
        max_age: Some(days * DAY),
        ..spec("EVENTS", "events.>")
    }
}

async fn applied(topology: &Topology, plan: &Plan) -> usize {
    let applied = topology.apply(plan, &[]).await.unwrap();
    assert!(applied.failed.is_none(), "{applied:?}");
    applied.done.len()
}

#[tokio::test]
async fn drift_is_refused_at_start_with_what_to_do_and_never_overwritten() {
    let url = "memory:topology-drift";
    let bus = Bus::connect(url).stream(aged(14)).await.unwrap();
    let error = Bus::connect(url).stream(aged(7)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Drift);
    for part in ["max_age: 14d, declared 7d", "trunkline topology apply"] {
        assert!(error.message().contains(part), "{part} in {error}");
    }
    let found = bus.inspect().await.unwrap().streams;
    let events = found
        .iter()
        .find(|state| state.spec.name.as_str() == "EVENTS");
    assert_eq!(events.unwrap().spec.max_age, Some(14 * DAY));

    let mut foreign = spec("ORDERS", "orders.>");
    foreign.metadata.clear();
    let create = vec![Change::CreateStream(foreign)];
    bus.engine().topology().apply(create).await.unwrap();
    let mine = StreamSpec {
        max_events: Some(10),
        ..spec("ORDERS", "orders.>")
    };
    let error = Bus::connect(url)
        .stream(aged(14))
        .stream(mine)
        .await
        .unwrap_err();
    assert!(error.message().contains("--adopt ORDERS"), "{error}");
}

#[tokio::test]
async fn a_plan_is_carried_out_once_and_not_when_the_streams_changed_since() {
    let url = "memory:topology-stale";
    let bus = Bus::connect(url).await.unwrap();
    let topology = Bus::connect(url).stream(aged(30)).manage().await.unwrap();
    let plan = topology.plan().await.unwrap();
    let other = Bus::connect(url).stream(aged(3)).manage().await.unwrap();
    assert_eq!(applied(&other, &other.plan().await.unwrap()).await, 1);
    let error = topology.apply(&plan, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let plan = topology.plan().await.unwrap();
    assert_eq!(plan.existing[0].differences[0].found, "3d");
    assert_eq!(applied(&topology, &plan).await, 1);
    assert!(topology.plan().await.unwrap().is_empty());
    topology.close().await;
    let closed = topology_error(&other).await;
    assert_eq!(closed, None, "each connection closes alone");
    bus.close().await.unwrap();
}

async fn topology_error(topology: &Topology) -> Option<ErrorKind> {
    topology.plan().await.err().map(|error| error.kind())
}

#[tokio::test]
async fn a_program_with_types_plans_for_them() {
    let url = "memory:topology-types";
    let first = Bus::connect(url).prefix("").event::<OrderPlaced>();
    let bus = first.await.unwrap();
    bus.publish(OrderPlaced {}).await.unwrap();
    // A second type needs the stream to grow, which starting does not do by itself.
    let two = || {
        Bus::connect(url)
            .prefix("")
            .event::<OrderPlaced>()
            .event::<OrderPaid>()
    };
    assert_eq!(two().await.unwrap_err().kind(), ErrorKind::Drift);
    let topology = two().manage().await.unwrap();
    let plan = topology.plan().await.unwrap();
    assert_eq!(
        plan.existing[0].differences[0].to_string(),
        "subjects: order.placed, declared order.paid order.placed"
    );
    assert_eq!(applied(&topology, &plan).await, 1);
    let bus = two().await.unwrap();
    bus.publish(OrderPaid {}).await.unwrap();
    assert_eq!(bus.explain().await.unwrap().streams[1].events, 2);

    // Types that would be stored nowhere are refused, as they are at start.
    let lost = Bus::connect("memory:").stream(spec("ORDERS", "orders.>"));
    let topology = lost.event::<OrderPlaced>().manage().await.unwrap();
    assert_eq!(topology_error(&topology).await, Some(ErrorKind::NotStored));
}

#[tokio::test]
async fn what_is_written_down_is_compared_and_what_is_not_is_kept() {
    let url = "memory:topology-written";
    let _bus = Bus::connect(url).stream(aged(14)).await.unwrap();
    for (file, differs) in [
        ("", false),
        ("[streams.EVENTS]\nmax_age = \"7d\"", true),
        ("[streams.EVENTS]\nmax_age = \"14d\"", false),
        ("[streams.COMMANDS]\nmax_age = \"7d\"", false),
    ] {
        let file = format!("url = \"{url}\"\n{file}");
        let loaded = load(Some(("trunkline.toml", &file)), []).unwrap();
        let topology = loaded.connect().manage().await.unwrap();
        let plan = topology.plan().await.unwrap();
        assert_eq!(!plan.is_empty(), differs, "{file}: {plan:?}");
    }
}

#[tokio::test]
async fn where_nothing_is_declared_everything_is_shown_as_such() {
    let url = "memory:topology-found";
    let _bus = Bus::connect(url).await.unwrap();
    let found = Bus::connect(url).topology(TopologyMode::AsFound);
    let topology = found.manage().await.unwrap();
    let standing = topology.show().await.unwrap();
    let names: Vec<&str> = standing.undeclared.iter().map(Name::as_str).collect();
    assert_eq!(names, ["COMMANDS", "EVENTS", "EVENTS_DLQ"]);
    assert!(standing.streams.iter().all(|stream| stream.ours));
    assert!(topology.plan().await.unwrap().is_empty());
}
