//! The streams of a bus that runs, changed from outside.

use serde_json::json;
use trunkline::core::engine::{Change, ConsumerRef, ConsumerSpec, StreamSpec};
use trunkline::{Bus, Filter, Name, Start, TopologyMode};

use crate::support::{Ended, Up, ends};

const LONGER: [(&str, &str); 1] = [("TRUNKLINE_STREAMS__EVENTS__MAX_AGE", "14d")];

/// Runs it with these settings.
fn with(up: &Up, settings: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let mut command = up.command(&[&["topology"], arguments].concat());
    command.envs(settings.iter().copied());
    ends(command)
}

/// What a program of another team did on this bus.
fn changed(up: &Up, changes: Vec<Change>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let bus = Bus::connect(up.url()).topology(TopologyMode::AsFound);
        let bus = bus.await.unwrap();
        bus.engine().topology().apply(changes).await.unwrap();
        bus.close().await.unwrap();
    });
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn filter(text: &str) -> Filter {
    Filter::new(text).unwrap()
}

#[test]
fn a_configuration_is_compared_and_applied_while_the_bus_runs() {
    let up = Up::start(&[]);
    up.publish(&["order.placed", "{\"total\":1}"]);
    let consumer = ConsumerSpec {
        at: ConsumerRef {
            stream: name("EVENTS"),
            consumer: name("billing"),
        },
        filters: vec![filter("events.order.>")],
        start: Start::First,
        ack_wait: std::time::Duration::from_secs(30),
        max_in_flight: 10,
    };
    changed(&up, vec![Change::CreateConsumer(consumer)]);
    let plan = with(&up, &[], &["plan"]).with(0);
    assert_eq!(plan.stdout, "");
    plan.says(&["nothing to do"]);
    let plan = with(&up, &LONGER, &["plan"]).with(1);
    assert_eq!(
        (plan.stdout.as_str(), plan.stderr.as_str()),
        ("~ EVENTS max_age: 7d -> 14d\n", "")
    );
    let refused = with(&up, &LONGER, &["apply"]).with(2);
    assert_eq!(refused.stdout, "");
    refused.says(&["~ EVENTS max_age: 7d -> 14d", "add --yes"]);
    let applied = with(&up, &LONGER, &["apply", "--yes", "--json"]).with(0);
    assert_eq!(
        applied.json()["done"],
        json!([{
            "action": "update",
            "stream": "EVENTS",
            "differences": [{
                "setting": "max_age", "found": "7d", "declared": "14d", "removes_events": false
            }],
        }])
    );
    with(&up, &LONGER, &["plan"]).with(0);
    // Written down, the default is a wish; unsaid it is none.
    let back = [("TRUNKLINE_STREAMS__EVENTS__MAX_AGE", "7d")];
    let plan = with(&up, &back, &["plan"]).with(1);
    assert_eq!(
        plan.stdout,
        "~ EVENTS max_age: 14d -> 7d (events beyond it leave)\n"
    );
    with(&up, &[], &["plan"]).with(0);
    let shown = with(&up, &LONGER, &["show"]).with(0).stdout;
    let row = |start: &str| {
        let line = shown.lines().find(|line| line.starts_with(start)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        row("EVENTS "),
        "EVENTS ours yes discard_old 14 d 1 1 events.>"
    );
    assert_eq!(row("billing "), "billing EVENTS 1 0 0 0 events.order.>");
    let replayed = up.run(&["replay", "--json"]).with(0).json_lines();
    assert_eq!(replayed[0]["type"], "order.placed");
}

#[test]
fn what_others_made_is_changed_only_by_name() {
    let up = Up::start(&[]);
    let theirs = |stream: &str, subjects: &str| {
        let mut spec = StreamSpec::new(name(stream), vec![filter(subjects)]);
        spec.metadata.clear();
        Change::CreateStream(spec)
    };
    changed(
        &up,
        vec![theirs("ORDERS", "orders.>"), theirs("OTHER", "other.>")],
    );
    let declared = [
        ("TRUNKLINE_STREAMS__ORDERS__SUBJECTS", "orders.>"),
        ("TRUNKLINE_STREAMS__ORDERS__MAX_EVENTS", "1000"),
    ];
    let plan = with(&up, &declared, &["plan"]).with(1).stdout;
    assert!(
        plan.contains("! ORDERS is foreign: adopt it with --adopt ORDERS\n"),
        "{plan}"
    );
    assert!(plan.contains("  OTHER is not declared"), "{plan}");
    with(&up, &declared, &["apply", "--yes"])
        .with(1)
        .says(&["ORDERS stays as it is"]);
    let applied = with(&up, &declared, &["apply", "--yes", "--adopt", "ORDERS"]).with(0);
    assert_eq!(
        applied.stdout,
        "adopted stream ORDERS: max_events unlimited -> 1000\n"
    );
    let shown = with(&up, &declared, &["show", "--json"]).with(0).json();
    let owners: Vec<_> = shown["streams"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["name"].as_str().unwrap(), row["ours"] == true))
        .collect();
    assert!(
        owners.contains(&("ORDERS", true)) && owners.contains(&("OTHER", false)),
        "{owners:?}"
    );
    assert_eq!(shown["facts"]["bus"], "memory");
    with(&up, &declared, &["apply", "--yes", "--adopt", "OTHER"])
        .with(2)
        .says(&["TL-0008", "nothing declares it"]);
}

#[test]
fn a_bus_that_is_not_there_is_unreachable() {
    let mut up = Up::start(&[]);
    up.kill();
    let ended = ends(up.command(&["topology", "plan"])).with(4);
    ended.says(&["TL-0202"]);
}
