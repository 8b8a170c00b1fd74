//! The three commands on a bus in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use trunkline::core::engine::StreamSpec;
use trunkline::{Bus, ErrorKind, Filter};

use super::*;
use crate::console::tests::kept;

const DAY: Duration = Duration::from_secs(86_400);

fn spec(name: &str, subjects: &str, days: u32) -> StreamSpec {
    StreamSpec {
        max_age: Some(days * DAY),
        ..StreamSpec::new(
            Name::new(name).unwrap(),
            vec![Filter::new(subjects).unwrap()],
        )
    }
}

fn foreign(spec: StreamSpec) -> StreamSpec {
    StreamSpec {
        metadata: BTreeMap::new(),
        ..spec
    }
}

/// A bus whose streams are these, and the streams of it as others declare them.
async fn streams(url: &str, found: Vec<StreamSpec>, declared: Vec<StreamSpec>) -> (Bus, Streams) {
    let bus = Bus::connect(url).await.unwrap();
    for spec in found {
        let create = vec![Change::CreateStream(spec)];
        bus.engine().topology().apply(create).await.unwrap();
    }
    let connect = declared
        .into_iter()
        .fold(Bus::connect(url), trunkline::Connect::stream);
    (bus, connect.manage().await.unwrap())
}

async fn told(streams: &Streams, command: &Topology) -> (Exit, String, String) {
    let (mut console, out, talk) = kept(100);
    let exit = run(streams, command, &mut console).await.unwrap();
    console.out.flush().unwrap();
    (exit, out.text(), talk.text())
}

fn apply(arguments: &[&str]) -> Topology {
    Topology::Apply(crate::parsed(arguments))
}

/// EVENTS with other limits, ORDERS of somebody else, OTHER of nobody, and NEW that is missing.
async fn mixed(url: &str) -> (Bus, Streams) {
    let declared = vec![
        spec("EVENTS", "events.>", 3),
        spec("ORDERS", "orders.>", 14),
        spec("NEW", "new.>", 7),
    ];
    let found = vec![
        foreign(spec("ORDERS", "orders.>", 7)),
        foreign(spec("OTHER", "other.>", 7)),
    ];
    streams(url, found, declared).await
}

#[tokio::test]
async fn a_plan_is_a_difference_to_read_and_its_exit_code_says_whether_there_is_one() {
    let (_bus, streams) = mixed("memory:topology-plan").await;
    let (exit, text, _) = told(&streams, &Topology::Plan).await;
    assert_eq!(exit, Exit::Failed);
    assert_eq!(
        text,
        "+ create stream NEW: new.>, discard_old, 7d\n\
         ~ EVENTS max_age: 7d -> 3d (events beyond it leave)\n\
         ! ORDERS max_age: 7d -> 14d\n\
         ! ORDERS is foreign: adopt it with --adopt ORDERS\n  \
         OTHER is not declared: it stays as it is\n"
    );
    let (mut console, out, _) = kept(80);
    console.json = true;
    run(&streams, &Topology::Plan, &mut console).await.unwrap();
    let json: Value = serde_json::from_str(&out.text()).unwrap();
    assert_eq!(json["create"][0]["stream"], "NEW");
    let of = |name: &str| {
        let existing = json["existing"].as_array().unwrap().iter();
        let mut of = existing.filter(|row| row["stream"] == name);
        of.next().unwrap()["differences"][0].clone()
    };
    assert_eq!(
        of("EVENTS"),
        json!({"setting": "max_age", "found": "7d", "declared": "3d", "removes_events": true})
    );
    assert_eq!(
        (&json["undeclared"], &json["to_do"]),
        (&json!(["OTHER"]), &json!(true))
    );
}

#[tokio::test]
async fn what_is_ours_is_changed_and_what_is_foreign_when_it_is_adopted() {
    let (bus, streams) = mixed("memory:topology-apply").await;
    let (exit, text, talk) = told(&streams, &apply(&["--yes"])).await;
    assert_eq!(
        text,
        "updated stream EVENTS: max_age 7d -> 3d\ncreated stream NEW: new.>, discard_old, 7d\n"
    );
    assert_eq!(exit, Exit::Failed);
    assert_eq!(
        talk,
        "note: ORDERS stays as it is: it is foreign: adopt it with --adopt ORDERS\n"
    );
    let (exit, text, talk) = told(&streams, &apply(&["--yes", "--adopt", "ORDERS"])).await;
    assert_eq!(
        (exit, text.as_str(), talk.as_str()),
        (Exit::Done, "adopted stream ORDERS: max_age 7d -> 14d\n", "")
    );
    let (exit, text, talk) = told(&streams, &Topology::Plan).await;
    assert_eq!(
        (exit, text.as_str(), talk.as_str()),
        (
            Exit::Done,
            "  OTHER is not declared: it stays as it is\n",
            "nothing to do: the streams are as declared\n"
        )
    );
    let found = bus.inspect().await.unwrap().streams;
    let age = |name: &str| {
        let mut found = found.iter();
        let state = found.find(|state| state.spec.name.as_str() == name);
        state.unwrap().spec.max_age.unwrap() / 86_400
    };
    assert_eq!(
        ["EVENTS", "ORDERS", "OTHER"].map(|name| age(name).as_secs()),
        [3, 14, 7]
    );
}

#[tokio::test]
async fn without_a_yes_and_without_anybody_to_ask_nothing_is_changed() {
    let (_bus, streams) = mixed("memory:topology-unasked").await;
    let (mut console, out, talk) = kept(80);
    let error = run(&streams, &apply(&[]), &mut console).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.message().contains("add --yes"), "{error}");
    assert_eq!(out.text(), "");
    assert!(talk.text().contains("+ create stream NEW"));
    assert_eq!(streams.plan().await.unwrap().changes.len(), 1);
    for (name, kind) in [
        ("OTHER", ErrorKind::InvalidConfig),
        ("NONE", ErrorKind::NoSuchStream),
    ] {
        let adopt = apply(&["--yes", "--adopt", name]);
        let error = run(&streams, &adopt, &mut kept(80).0).await.unwrap_err();
        assert_eq!(error.kind(), kind);
    }
}

#[tokio::test]
async fn the_first_failure_ends_it_and_what_was_done_until_then_is_told() {
    let url = "memory:topology-failure";
    let (_bus, streams) = streams(
        url,
        vec![spec("A", "a.>", 7), spec("B", "b.>", 7)],
        vec![
            spec("EVENTS", "events.>", 3),
            // A swap, which no order of single changes can make.
            spec("A", "b.>", 7),
            spec("B", "a.>", 7),
        ],
    )
    .await;
    let (mut console, out, talk) = kept(80);
    let error = run(&streams, &apply(&["--yes"]), &mut console)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overlap);
    assert!(error.to_string().contains("update stream A"), "{error}");
    assert_eq!(out.text(), "updated stream EVENTS: max_age 7d -> 3d\n");
    assert_eq!(talk.text(), "stopped: 1 of 3 changes done\n");
}

#[tokio::test]
async fn a_stream_that_cannot_be_changed_is_left_with_the_reason() {
    let queue = StreamSpec::work_queue(
        Name::new("JOBS").unwrap(),
        vec![Filter::new("jobs.>").unwrap()],
    );
    let (_bus, streams) = streams(
        "memory:topology-impossible",
        vec![spec("JOBS", "jobs.>", 7)],
        vec![queue],
    )
    .await;
    let (exit, text, _) = told(&streams, &Topology::Plan).await;
    assert_eq!(exit, Exit::Failed);
    assert!(
        text.contains("! JOBS retention: discard_old -> work_queue\n! JOBS cannot change from")
    );
    let (exit, _, talk) = told(&streams, &apply(&["--yes"])).await;
    assert_eq!(exit, Exit::Failed);
    assert!(
        talk.contains("JOBS stays as it is: it cannot change"),
        "{talk}"
    );
}

#[tokio::test]
async fn everything_that_there_is_is_shown_with_its_owner() {
    let (bus, streams) = mixed("memory:topology-show").await;
    crate::filled::publish(&bus, "order.placed", "e1", None, "1").await;
    let (exit, text, _) = told(&streams, &Topology::Show).await;
    assert_eq!(exit, Exit::Done);
    let words = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        words("EVENTS "),
        "EVENTS ours yes discard_old 7 d 1 1 events.>"
    );
    assert_eq!(
        words("OTHER "),
        "OTHER foreign no discard_old 7 d 1 0 other.>"
    );
    let (mut console, out, _) = kept(80);
    console.json = true;
    run(&streams, &Topology::Show, &mut console).await.unwrap();
    let json: Value = serde_json::from_str(&out.text()).unwrap();
    assert_eq!(json["undeclared"], json!(["OTHER"]));
    assert_eq!(json["engine"], "memory");
    let mut rows = json["streams"].as_array().unwrap().iter();
    let orders = rows.find(|row| row["name"] == "ORDERS").unwrap();
    assert_eq!(orders["ours"], false);
}
