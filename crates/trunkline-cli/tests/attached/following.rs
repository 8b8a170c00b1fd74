//! `trunkline sub`.

use std::process::Stdio;

use serde_json::Value;

use crate::support::{Running, Up, ends};

fn data(line: &str) -> Value {
    let event: Value = serde_json::from_str(line).unwrap();
    event["data"].clone()
}

#[test]
fn everything_that_is_published_once_it_follows_comes_to_everybody() {
    let up = Up::start(&[]);
    up.publish(&["order.placed", "0"]);
    let count = ["sub", "order.>", "--count", "2000"];
    let subs = [
        Running::following(up.command(&count)),
        Running::following(up.command(&count)),
    ];
    let text: String = (1..=2_000).map(|n| format!("{n}\n")).collect();
    up.publish(&["mail.sent"]);
    up.fed(&["pub", "-", "--type", "order.placed"], &text)
        .with(0);
    for sub in subs {
        let ended = sub.ended().with(0);
        assert!(
            ended
                .stdout
                .lines()
                .map(data)
                .eq((1..=2_000).map(Value::from))
        );
    }
}

#[test]
fn count_and_timeout_say_how_it_ends() {
    let up = Up::start(&[]);
    let none = up.run(&["sub", "--timeout", "100ms", "--quiet"]).with(1);
    assert_eq!((none.stdout.as_str(), none.stderr.as_str()), ("", ""));
    let sub = Running::following(up.command(&["sub", "-n", "2", "--timeout", "5s"]));
    up.publish(&["order.placed", "1"]);
    // One came, two were wanted.
    assert_eq!(sub.ended().with(1).stdout.lines().count(), 1);
    let sub = Running::following(up.command(&["sub", "-n", "1", "--timeout", "20s"]));
    up.publish(&["order.placed", "1"]);
    sub.ended().with(0);
    up.run(&["sub", "-n", "0"]).with(2);
    up.run(&["sub", "--timeout", "soon"]).with(2).says(&["10s"]);
    up.run(&["sub", "order.>.x"]).with(2).says(&["order.>.x"]);
}

#[test]
fn ctrl_c_ends_it_well_with_all_that_came() {
    let up = Up::start(&[]);
    for end in ["INT", "TERM"] {
        let sub = Running::following(up.command(&["sub"]));
        up.publish(&["order.placed", "1"]);
        // It is written as it comes, although standard output is a pipe.
        assert_eq!(data(&sub.out.next()), 1);
        match end {
            "INT" => sub.interrupt(),
            other => sub.signal(other),
        }
        assert_eq!(sub.ended().with(0).stdout, "");
    }
}

#[test]
fn ephemeral_events_come_only_if_asked_for() {
    let up = Up::start(&[]);
    let sub = Running::following(up.command(&["sub", "--live", "-n", "1"]));
    up.publish(&["order.placed", "1"]);
    assert_eq!(sub.ended().with(0).stdout.lines().count(), 1);
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let up = Up::start(&[]);
    for command in ["sub", "tail", "replay"] {
        up.publish(&["order.placed", "1"]);
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = up.command(&[
            command,
            if command == "replay" {
                "--utc"
            } else {
                "order.>"
            },
        ]);
        if command.get_args().any(|argument| argument == "replay") {
            drop(reader);
            let ended = ends({
                command.stdout(writer);
                command
            });
            assert_eq!((ended.code, ended.stderr.as_str()), (141, ""));
            continue;
        }
        command.stdout(writer).stderr(Stdio::piped());
        let follower = Running::to_elsewhere(command);
        follower.err.until("following ");
        drop(reader);
        up.publish(&["order.placed", "2"]);
        let ended = follower.ended();
        assert_eq!((ended.code, ended.stderr.as_str()), (141, ""));
    }
}
