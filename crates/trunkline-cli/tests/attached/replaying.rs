//! `trunkline replay`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::{Running, Up};
use crate::watching::shop;

fn ids(lines: &[Value]) -> Vec<&str> {
    lines
        .iter()
        .map(|line| line.get("event").unwrap_or(line)["id"].as_str().unwrap())
        .collect()
}

#[test]
fn it_begins_and_ends_where_it_is_told() {
    let up = shop();
    let positioned = up.run(&["replay", "--with-position"]).with(0).json_lines();
    let at = |index: usize| positioned[index]["at"].as_str().unwrap();
    for (arguments, expected) in [
        (&[][..], &["e1", "e2", "e3", "e4"][..]),
        (&["order.*"], &["e1", "e2", "e3"]),
        (&["--from", "3"], &["e3", "e4"]),
        (&["--to", "2"], &["e1", "e2"]),
        (&["--from", "2", "--to", "3"], &["e2", "e3"]),
        (&["--from", at(1), "--to", at(2)], &["e2", "e3"]),
        (&["--from", "last:1"], &["e4"]),
        (&["--from", "last-per-subject"], &["e2", "e3", "e4"]),
        (&["--from", "1h"], &["e1", "e2", "e3", "e4"]),
        (&["--to", "1h"], &[]),
        (&["--from", "99"], &[]),
        (&["--stream", "EVENTS", "warehouse.>"], &["e4"]),
    ] {
        let arguments = [&["replay", "--json"], arguments].concat();
        let ended = up.run(&arguments).with(0);
        assert_eq!(ids(&ended.json_lines()), expected, "{arguments:?}");
        assert_eq!(ended.stderr, "", "{arguments:?}");
    }
    let place = (&positioned[2]["stream"], &positioned[2]["seq"]);
    assert_eq!(place, (&json!("EVENTS"), &json!(3)));
    assert_eq!(positioned[2]["event"]["specversion"], "1.0");
    let people = up.run(&["replay", "order.paid"]).with(0);
    assert!(people.stdout.ends_with("  order.paid  o-1\n"), "{people:?}");
    up.run(&["replay", "--stream", "NONE"])
        .with(1)
        .says(&["TL-0301", "NONE"]);
}

#[test]
fn the_data_is_what_was_published_byte_for_byte() {
    let up = Up::start(&[]);
    let lines: Vec<String> = [
        r#"{"b":1,"a":[1.0,1e3,-0.0],"big":123456789012345678901234567890}"#,
        r#""\u00fc ü \ud83d\ude00 \/ \\""#,
        r#"{"dup":1,"dup":2}"#,
        "null",
        "  [ 1 ,\t2 ]  ",
        r#""""#,
    ]
    .iter()
    .map(|line| (*line).to_owned())
    .collect();
    up.fed(&["pub", "-", "--type", "a.b"], &(lines.join("\n") + "\n"))
        .with(0);
    let ended = up.run(&["replay", "--json"]).with(0);
    for (line, event) in lines.iter().zip(ended.stdout.lines()) {
        let data = format!("\"data\":{}", line.trim());
        assert!(event.contains(&data), "{data} in {event}");
    }
    // What was replayed is what another bus takes, and gives again.
    let other = Up::start(&[]);
    other.fed(&["pub", "-"], &ended.stdout).with(0);
    assert_eq!(other.run(&["replay", "--json"]).stdout, ended.stdout);
}

#[test]
fn it_ends_at_the_tail_although_publishing_goes_on() {
    let up = Up::start(&[]);
    let text: String = (0..5_000).map(|n| format!("{n}\n")).collect();
    up.fed(&["pub", "-", "--type", "a.b"], &text).with(0);
    let mut publishing = Running::start(up.command(&["pub", "-", "--type", "a.b"]));
    let sub = Running::following(up.command(&["sub"]));
    publishing.feed("5000\n");
    sub.out.next();
    let stop = Arc::new(AtomicBool::new(false));
    let feeder = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                publishing.feed(&"1\n".repeat(100));
            }
            publishing.ended().with(0);
        }
    });
    let count = up.run(&["replay", "--json"]).with(0).stdout.lines().count();
    stop.store(true, Ordering::Relaxed);
    feeder.join().unwrap();
    assert!(count > 5_000, "{count}");
}

#[test]
fn following_goes_on_where_the_history_ends() {
    for form in ["--json", "--with-position"] {
        let up = shop();
        let arguments = ["replay", "--follow", "--from", "4", form];
        let replay = Running::following(up.command(&arguments));
        up.publish(&["order.placed", "--id", "e5"]);
        let lines: Vec<Value> = (0..2)
            .map(|_| serde_json::from_str(&replay.out.next()).unwrap())
            .collect();
        assert_eq!(ids(&lines), ["e4", "e5"]);
        replay.interrupt();
        replay.ended().with(0);
    }
}
