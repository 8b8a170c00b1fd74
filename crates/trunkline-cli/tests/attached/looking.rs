//! What there is to look at: streams, consumers, the contract, the configuration; and the bench.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use trunkline::{Bus, Event, Start};

use crate::support::{Up, WATCHDOG};
use crate::watching::shop;

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
struct OrderPlaced {
    total: u64,
}

#[test]
fn streams_are_listed_shown_and_read() {
    let up = shop();
    let listed = up.run(&["streams", "list"]).with(0);
    let row = listed
        .stdout
        .lines()
        .find(|line| line.starts_with("EVENTS "));
    let cells: Vec<&str> = row.unwrap().split_whitespace().collect();
    assert_eq!((cells[1], cells.last()), ("4", Some(&"events.>")));
    let shown = up.run(&["streams", "info", "EVENTS"]).with(0);
    assert!(shown.stdout.contains("events:    4\n"), "{}", shown.stdout);
    let read = up
        .run(&["streams", "cat", "EVENTS", "--limit", "2", "--utc"])
        .with(0);
    let lines: Vec<&str> = read.stdout.lines().collect();
    assert!(lines[0].starts_with("1  ") && lines[0].contains("  events.order.placed  "));
    assert_eq!(lines.len(), 2);
    up.run(&["streams", "info", "NONE"]).with(1).says(&[
        "TL-0301",
        "there is no stream NONE; there are COMMANDS, EVENTS",
    ]);
}

#[test]
fn a_consumer_of_a_program_is_shown_and_deleted_only_on_demand() {
    let up = shop();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bus = runtime.block_on(async {
        let bus = Bus::connect(up.url()).await.unwrap();
        let (seen, mut seeing) = tokio::sync::mpsc::unbounded_channel();
        let handle = bus
            .consumer("billing")
            .from(Start::First)
            .on(move |order: OrderPlaced| {
                let _ = seen.send(order.total);
                // The second is never done with.
                async move {
                    if order.total > 1 {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, std::io::Error>(())
                }
            })
            .start()
            .await
            .unwrap();
        // Of different keys, so either may come first.
        let mut totals = [seeing.recv().await, seeing.recv().await];
        totals.sort();
        assert_eq!(totals, [Some(1), Some(2)]);
        (bus, handle)
    });
    let listed = up.run(&["consumers", "list"]).with(0).stdout;
    let row = listed.lines().nth(1).unwrap();
    assert!(
        row.starts_with("billing ") && row.ends_with("  events.order.placed"),
        "{listed}"
    );
    let end = Instant::now() + WATCHDOG;
    loop {
        let shown = up.run(&["consumers", "show", "billing", "--json"]);
        let shown = shown.with(0).json();
        assert_eq!(shown[0]["stream"], "EVENTS");
        // The first is acknowledged when it can be, the second never.
        if shown[0]["in_flight"] == 1 {
            break;
        }
        assert!(Instant::now() < end, "{shown}");
    }
    let terms = up.run(&["explain", "order.placed"]).with(0).stdout;
    assert!(terms.contains("consumers: billing"), "{terms}");
    assert!(
        up.run(&["streams", "info", "EVENTS"])
            .stdout
            .contains("billing")
    );

    up.run(&["consumers", "delete", "billing"])
        .with(2)
        .says(&["loses its progress", "add --yes"]);
    up.run(&["consumers", "delete", "biling", "--yes"])
        .with(1)
        .says(&["TL-0302"]);
    up.run(&["consumers", "show", "biling"])
        .with(1)
        .says(&["there is no consumer biling; there are billing"]);
    let deleted = up.run(&["consumers", "delete", "billing", "--yes", "--json"]);
    assert_eq!(
        deleted.with(0).json(),
        json!([{"name": "billing", "stream": "EVENTS"}])
    );
    assert_eq!(
        up.run(&["consumers", "list", "--json"]).with(0).json(),
        json!([])
    );
    drop(bus);
    runtime.shutdown_background();
}

#[test]
fn the_contract_is_that_of_the_bus_and_not_of_this_process() {
    let up = shop();
    let told = up.run(&["explain", "order.placed"]).with(0).stdout;
    for part in [
        &format!("url:          {}\n", up.url()),
        "bus:          memory\n",
        "bus capacity: 1000000 events",
        "stored means: kept in memory",
        "class:     durable\n",
        "published: stored in EVENTS\n",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    up.run(&["explain", "order.1"]).with(2).says(&["TL-0004"]);
}

#[test]
fn the_bench_leaves_nothing_behind() {
    let up = Up::start(&[]);
    let figures = up
        .run(&["bench", "--events", "500", "--json"])
        .with(0)
        .json();
    assert_eq!(
        (&figures["engine"], &figures["facts"]["bus"]),
        (&json!("remote"), &json!("memory"))
    );
    assert_eq!(
        (&figures["events"], &figures["events_removed"]),
        (&json!(500), &json!(550))
    );
    let people = up.run(&["bench", "--events", "100"]).with(0);
    assert!(people.stdout.contains("cleaned up:"), "{people:?}");
    assert_eq!(up.run(&["consumers", "list", "--json"]).json(), json!([]));
    assert_eq!(up.run(&["replay", "--json"]).with(0).stdout, "");
}

#[test]
fn every_command_writes_json_that_can_be_read() {
    let up = shop();
    let is_document = |arguments: &[&str]| -> Value {
        let ended = up.run(&[arguments, &["--json"]].concat()).with(0);
        ended.json()
    };
    for arguments in [
        &["streams", "list"][..],
        &["streams", "info", "EVENTS"],
        &["consumers", "list"],
        &["topology", "show"],
        &["topology", "plan"],
        &["topology", "apply"],
        &["explain"],
        &["explain", "order.placed", "mail.sent"],
        &["config"],
        &["bench", "--events", "10"],
        &["pub", "order.placed", "{}"],
    ] {
        let value = is_document(arguments);
        assert!(value.is_object() || value.is_array(), "{arguments:?}");
    }
    for arguments in [
        &["replay"][..],
        &["replay", "--with-position"],
        &["tail", "--no-follow"],
        &["streams", "cat", "EVENTS"],
    ] {
        let ended = up.run(&[arguments, &["--json"]].concat()).with(0);
        let lines = ended.json_lines();
        assert_eq!(lines.len(), 5, "{arguments:?}");
        assert!(lines.iter().all(Value::is_object), "{arguments:?}");
    }
    let url = up.run(&["config", "--json"]).json();
    assert_eq!(url["url"]["from"], "TRUNKLINE_URL");
    // A script for a shell is what it is.
    assert!(
        up.run(&["completions", "bash", "--json"])
            .with(0)
            .stdout
            .contains("complete")
    );
}
