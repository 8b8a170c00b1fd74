//! `trunkline consumers` on a consumer at work: looked at, paused, resumed and reset.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{Running, Up, WATCHDOG};

fn worker(up: &Up, script: &str) -> Running {
    let usual = ["worker", "--consumer", "work", "--filter", "order.>"];
    let worker =
        Running::start(up.command(&[&usual[..], &["--exec", "sh", "-c", script]].concat()));
    worker.err.until("consumer work handles order.>");
    worker
}

fn show(up: &Up) -> Value {
    up.run(&["consumers", "show", "work", "--json"])
        .with(0)
        .json()[0]
        .clone()
}

/// Looks until it stands as wanted.
#[track_caller]
fn until(up: &Up, wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + WATCHDOG;
    loop {
        let shown = show(up);
        if wanted(&shown) {
            return shown;
        }
        assert!(Instant::now() < end, "{shown:#}");
    }
}

fn order(up: &Up, key: &str) {
    up.publish(&["order.placed", "1", "--key", key]);
}

#[test]
fn a_consumer_is_paused_and_resumed_for_each_reason() {
    let up = Up::start(&[]);
    let worker = worker(&up, "echo handled $TRUNKLINE_SEQ");
    order(&up, "a");
    worker.out.until("handled 1");
    let paused = up
        .run(&["consumers", "pause", "work", "--reason", "deploy"])
        .with(0);
    assert_eq!(
        paused.stdout,
        "paused consumer work (deploy); 1 members confirmed, what runs is let be\n"
    );
    up.run(&["consumers", "pause", "--all"]).with(0);
    order(&up, "b");
    let shown = until(&up, |shown| shown["lag"] == 1);
    assert_eq!(
        (&shown["state"], &shown["paused"]),
        (&json!("paused"), &json!(["deploy", "by hand"]))
    );
    let why = up.run(&["consumers", "why", "work"]).with(1).stdout;
    assert!(
        why.contains("it is paused: deploy. It is paused: by hand"),
        "{why}"
    );
    assert!(
        why.contains("\n  trunkline consumers resume work --reason 'by hand'\n"),
        "{why}"
    );
    let resumed = up
        .run(&["consumers", "resume", "work", "--reason", "deploy"])
        .with(0);
    assert_eq!(resumed.stdout, "consumer work is still paused: by hand\n");
    let resumed = up
        .run(&["consumers", "resume", "--all", "--json"])
        .with(0)
        .json();
    assert_eq!(resumed[0]["name"], "work");
    worker.out.until("handled 2");
    worker.signal("TERM");
    assert_eq!(worker.ended().with(0).stdout, "");
}

#[test]
fn members_lag_and_what_holds_it_up_are_told() {
    let up = Up::start(&[]);
    let first = worker(&up, "echo handled");
    order(&up, "a");
    first.out.until("handled");
    // As soon as all is claimed and written.
    let shown = until(&up, |shown| shown["lag"] == 0 && shown["unowned"] == 0);
    assert_eq!(
        (&shown["state"], &shown["mode"], &shown["handled"]),
        (&json!("idle"), &json!("ordered"), &json!(1))
    );
    let members = shown["members"].as_array().unwrap();
    assert_eq!(members.len(), 1);
    let partitions: Vec<u16> = (0..16).collect();
    assert_eq!(
        (&members[0]["alive"], &members[0]["partitions"]),
        (&json!(true), &json!(partitions))
    );
    let why = up.run(&["consumers", "why", "work"]).with(0).stdout;
    assert!(
        why.contains("nothing that it handles is before it"),
        "{why}"
    );
    let people = up.run(&["consumers", "show", "work"]).with(0).stdout;
    assert!(
        people.contains("  alive ") && people.contains("  0-15\n"),
        "{people}"
    );
    // Killed, it is missed by those who look at once.
    first.signal("KILL");
    drop(first);
    order(&up, "b");
    let shown = until(&up, |shown| shown["members"][0]["alive"] == false);
    assert_eq!(
        (&shown["state"], &shown["lag"], &shown["lag_at_most"]),
        (&json!("no_members"), &json!(1), &json!(true))
    );
    let why = up
        .run(&["consumers", "why", "work", "--json"])
        .with(1)
        .json();
    let reason = &why[0]["reasons"][0];
    assert_eq!(reason["reason"], "no_members");
    let remedy = reason["remedies"][0].as_str().unwrap();
    assert!(
        remedy.starts_with("trunkline worker --consumer work --filter 'order.>' "),
        "{remedy}"
    );
    let listed = up.run(&["consumers", "list"]).with(0).stdout;
    assert!(
        listed.lines().nth(1).unwrap().contains("no members"),
        "{listed}"
    );
    let lag = up.run(&["consumers", "lag"]).with(0).stdout;
    assert!(lag.starts_with("work EVENTS 1 "), "{lag}");
    let lag = up
        .run(&["consumers", "lag", "work", "--json"])
        .with(0)
        .json();
    assert_eq!((&lag["events"], &lag["at_most"]), (&json!(1), &json!(true)));
    assert!(lag["seconds"].as_f64().unwrap() > 0.0);
    let second = worker(&up, "echo handled $TRUNKLINE_SEQ");
    second.out.until("handled 2");
    second.signal("TERM");
    second.ended().with(0);
}

#[test]
fn a_consumer_is_reset_while_it_runs() {
    let up = Up::start(&[]);
    let worker = worker(&up, "echo handled $TRUNKLINE_SEQ; test $TRUNKLINE_SEQ != 3");
    order(&up, "a");
    order(&up, "a");
    worker.out.until("handled 2");
    up.run(&["consumers", "reset", "work", "--to", "2"])
        .with(2)
        .says(&["loses its progress", "add --yes"]);
    until(&up, |shown| shown["lag"] == 0);
    let reset = up
        .run(&["consumers", "reset", "work", "--to", "2", "--yes"])
        .with(0);
    assert_eq!(reset.stdout, "reset consumer work to 2\n");
    worker.out.until("handled 2");
    // One fails, and is beside the main flow from then on.
    order(&up, "a");
    worker.out.until("handled 3");
    let shown = until(&up, |shown| shown["waiting"] == 1);
    let waits = &shown["waiting_for"][0];
    assert_eq!(
        (
            &waits["reason"],
            &waits["events"],
            &waits["seq"],
            &waits["failures"]
        ),
        (&json!("failed"), &json!(1), &json!(3), &json!(1))
    );
    assert!(shown["last_progress"].is_string());
    let people = up.run(&["consumers", "show", "work"]).with(0).stdout;
    assert!(
        people.contains("failed: events 1, the last of them 3, "),
        "{people}"
    );
    up.run(&["consumers", "reset", "work", "--to", "first", "--yes"])
        .with(1)
        .says(&["TL-0310", "discard"]);
    let discard = [
        "consumers",
        "reset",
        "work",
        "--to",
        "first",
        "--discard-waiting",
        "--yes",
    ];
    up.run(&discard).with(0);
    worker.out.until("handled 1");
    up.run(&["consumers", "reset", "none", "--to", "first", "--yes"])
        .with(1)
        .says(&["TL-0302", "there are work"]);
    worker.signal("TERM");
    worker.ended().with(0);
}

#[test]
fn a_consumer_is_divided_while_it_runs() {
    let up = Up::start(&[]);
    let worker = worker(&up, "echo handled $TRUNKLINE_SEQ");
    order(&up, "a");
    worker.out.until("handled 1");
    let divide =
        |number: &'static str| up.run(&["consumers", "divide", "work", "--partitions", number]);
    divide("12")
        .with(2)
        .says(&["12 partitions", "use 1, 2, 4, 8, 16, 32, 64, 128 or 256"]);
    assert_eq!(
        divide("32").with(0).stdout,
        "divided consumer work of stream EVENTS into 32 partitions; it had 16\n"
    );
    assert_eq!(
        divide("32").with(0).stdout,
        "consumer work of stream EVENTS has 32 partitions already\n"
    );
    order(&up, "a");
    worker.out.until("handled 2");
    let shown = until(&up, |shown| shown["lag"] == 0 && shown["unowned"] == 0);
    assert_eq!(
        (&shown["partitions"], &shown["handled"], &shown["paused"]),
        (&json!(32), &json!(2), &json!([]))
    );
    let divided = up
        .run(&["consumers", "divide", "work", "--partitions", "4", "--json"])
        .with(0)
        .json();
    assert_eq!(
        divided,
        json!([{"name": "work", "stream": "EVENTS", "from": 32, "to": 4}])
    );
    worker.signal("TERM");
    worker.ended().with(0);
}

#[test]
fn what_whoever_is_free_handles_is_shown_and_paused() {
    let up = Up::start(&[]);
    let usual = [
        "worker",
        "--consumer",
        "work",
        "--filter",
        "order.>",
        "--unordered",
    ];
    let exec = ["--exec", "sh", "-c", "echo handled $TRUNKLINE_SEQ"];
    let worker = Running::start(up.command(&[&usual[..], &exec].concat()));
    order(&up, "a");
    worker.out.until("handled 1");
    let shown = until(&up, |shown| shown["lag"] == 0);
    assert_eq!(
        (&shown["mode"], &shown["state"]),
        (&json!("shared"), &json!("idle"))
    );
    let paused = up.run(&["consumers", "pause", "work"]).with(0);
    assert!(paused.stdout.contains("1 members confirmed"), "{paused:?}");
    order(&up, "b");
    let shown = until(&up, |shown| shown["lag"] == 1);
    assert_eq!(shown["state"], json!("paused"));
    up.run(&["consumers", "resume", "work"]).with(0);
    worker.out.until("handled 2");
    worker.signal("TERM");
    worker.ended().with(0);
}
