use serde::{Deserialize, Serialize};
use serde_json::Value;
use trunkline::{Event, FailureExt, Item};

use super::*;
use crate::console::tests::kept;
use crate::filled::filled;

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
struct OrderPlaced {
    total: u64,
}

/// Two orders that `billing` has given up, the first and the third event.
async fn dead() -> Bus {
    let bus = filled().await;
    let mut following = bus.dead_letters().follow(Start::First).await.unwrap();
    let handler = |order: OrderPlaced| async move {
        Err::<(), _>(format!("no \x1bcard for {}", order.total).permanent())
    };
    let member = bus.consumer("billing").on(handler).start().await.unwrap();
    for _ in 0..2 {
        let buried = following.recv().await;
        assert!(matches!(buried, Some(Item::Event(_))), "{buried:?}");
    }
    member.stop().await;
    bus
}

/// How it ended, what it wrote, and what it said.
async fn told(bus: &Bus, command: &Dlq, json: bool) -> (Exit, String, String) {
    let (mut console, out, talk) = kept(100);
    console.json = json;
    let exit = run(bus, command, &mut console).await.unwrap();
    (exit, out.text(), talk.text())
}

async fn refused(bus: &Bus, command: &Dlq) -> trunkline::Error {
    run(bus, command, &mut kept(80).0).await.unwrap_err()
}

fn list(arguments: &[&str]) -> Dlq {
    Dlq::List(crate::parsed(arguments))
}

fn show(id: &str) -> Dlq {
    Dlq::Show(crate::parsed(&[id, "--utc"]))
}

fn replay(arguments: &[&str]) -> Dlq {
    Dlq::Replay(crate::parsed(arguments))
}

fn discard(arguments: &[&str]) -> Dlq {
    Dlq::Discard(crate::parsed(
        &[arguments, &["--because", "a test"]].concat(),
    ))
}

/// The rows of a table without their ages, which depend on the moment.
fn rows(table: &str) -> Vec<String> {
    let row = |line: &str| {
        let cells: Vec<&str> = line
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .collect();
        let (first, rest) = (cells[0], &cells[2..]);
        format!("{first} | {}", rest.join(" | "))
    };
    table.lines().map(row).collect()
}

#[tokio::test]
async fn they_are_listed_for_people_and_for_programs() {
    let bus = dead().await;
    let (_, table, talk) = told(&bus, &list(&["--oldest-first"]), false).await;
    assert_eq!(
        rows(&table),
        [
            "dead letter | type | reason | error",
            "billing/EVENTS/1 | order.placed | failed | no ␛card for 1",
            "billing/EVENTS/3 | order.placed | failed | no ␛card for 2",
        ]
    );
    assert_eq!(talk, "");
    let (_, one, talk) = told(&bus, &list(&["-n", "1"]), false).await;
    assert_eq!(
        (rows(&one).len(), talk.as_str()),
        (2, "1 of 2; --limit shows more\n")
    );
    let (exit, none, talk) = told(&bus, &list(&["--type", "mail.*"]), false).await;
    assert_eq!(
        (exit, none.as_str(), talk.as_str()),
        (Exit::Done, "", "there is no such dead letter\n")
    );
    let (_, lines, _) = told(
        &bus,
        &list(&[
            "--consumer",
            "billing",
            "--since",
            "1h",
            "--reason",
            "failed",
        ]),
        true,
    )
    .await;
    let letters: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(letters.len(), 2);
    let oldest = letters.iter().find(|letter| letter["seq"] == 1).unwrap();
    for (member, value) in [
        ("dead_letter", "billing/EVENTS/1"),
        ("state", "dead"),
        ("consumer", "billing"),
        ("stream", "EVENTS"),
        ("type", "order.placed"),
        ("id", "e1"),
        ("key", "o-1"),
        ("reason", "failed"),
        ("error", "no \x1bcard for 1"),
    ] {
        assert_eq!(oldest[member], value, "{oldest}");
    }
    assert_eq!(
        (&oldest["failures"], &oldest["has_entry"]),
        (&1.into(), &true.into())
    );
}

#[tokio::test]
async fn one_is_shown_with_its_event_and_its_story() {
    let bus = dead().await;
    let (_, text, _) = told(&bus, &show("billing/EVENTS/1"), false).await;
    for part in [
        "dead letter:   billing/EVENTS/1\n",
        "state:         dead\n",
        "event:         e1\n",
        "key:           o-1\n",
        "error:         no ␛card for 1\n",
        "subject:       events.order.placed\n",
        "entry:         1 on dlq.EVENTS.billing.1, ",
        "attempt failed ",
        "\n{\n  \"total\": 1\n}\n",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let (_, json, _) = told(&bus, &show("billing/EVENTS/1"), true).await;
    let shown: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&shown["event"]["data"]["total"], &shown["event"]["id"]),
        (&1.into(), &"e1".into())
    );
    assert_eq!(shown["attempts"][0]["error"], "no \x1bcard for 1");
    let error = refused(&bus, &show("billing/EVENTS/2")).await;
    assert_eq!(error.kind(), trunkline::ErrorKind::NoSuchDeadLetter);
}

#[tokio::test]
async fn a_replay_is_requested_once_and_shown_as_long_as_nobody_answers() {
    let bus = dead().await;
    let (exit, table, talk) = told(&bus, &replay(&["--all", "--dry-run"]), false).await;
    assert_eq!((exit, rows(&table).len()), (Exit::Done, 3));
    assert_eq!(talk, "would replay 2; nothing was changed\n");
    let one = replay(&["billing/EVENTS/1"]);
    let (exit, text, talk) = told(&bus, &one, false).await;
    assert_eq!(
        (exit, text.as_str()),
        (Exit::Done, "requested billing/EVENTS/1\n")
    );
    assert!(
        talk.starts_with("note: later events of their keys may have run"),
        "{talk}"
    );
    // Asked again it stays as it is, which is what was wanted.
    let (exit, text, _) = told(&bus, &one, false).await;
    assert_eq!(
        (exit, text.as_str()),
        (Exit::Done, "replaying billing/EVENTS/1\n")
    );
    let (exit, lines, _) = told(&bus, &replay(&["--type", "order.>"]), true).await;
    assert_eq!(exit, Exit::Done);
    assert_eq!(
        lines,
        "{\"dead_letter\":\"billing/EVENTS/3\",\"outcome\":\"requested\"}\n"
    );
    let (_, table, _) = told(
        &bus,
        &list(&["--state", "replaying", "--oldest-first"]),
        false,
    )
    .await;
    assert_eq!(
        rows(&table)[1],
        "billing/EVENTS/1 | order.placed | failed | replaying | no ␛card for 1"
    );
    let (_, text, _) = told(&bus, &show("billing/EVENTS/3"), false).await;
    let state = text.lines().nth(1).unwrap();
    assert!(
        state.starts_with("state:         replaying: requested by "),
        "{text}"
    );
    // Wrapped somewhere, by how long the user's name is.
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("; no outcome yet"), "{text}");
}

#[tokio::test]
async fn discarding_tells_what_it_could_not_and_why() {
    let bus = dead().await;
    let (exit, text, talk) = told(
        &bus,
        &discard(&["billing/EVENTS/1", "billing/EVENTS/2", "--yes"]),
        false,
    )
    .await;
    assert_eq!(
        (exit, text.as_str()),
        (Exit::PartlyRefused, "discarded billing/EVENTS/1\n")
    );
    assert!(
        talk.contains("billing/EVENTS/2: TL-0311") && talk.ends_with("1 discarded, 1 not\n"),
        "{talk}"
    );
    let (_, text, _) = told(&bus, &show("billing/EVENTS/1"), false).await;
    assert!(
        text.contains(": a test\n") && text.contains("removed when it was dealt with"),
        "{text}"
    );
    // One that is being replayed only if that is meant.
    told(&bus, &replay(&["--all"]), false).await;
    let third = ["billing/EVENTS/3", "--yes"];
    let (exit, lines, _) = told(&bus, &discard(&third), true).await;
    let line: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!(
        (exit, &line["outcome"]),
        (Exit::Failed, &"replaying".into())
    );
    assert_eq!(line["error"]["code"], "TL-0401");
    let (exit, text, _) = told(&bus, &discard(&["--all", "--replaying", "--yes"]), false).await;
    assert_eq!(
        (exit, text.as_str()),
        (Exit::Done, "discarded billing/EVENTS/3\n")
    );
    assert_eq!(told(&bus, &list(&[]), true).await.1, "");
}

#[tokio::test]
async fn what_is_meant_must_be_said_one_way() {
    let bus = dead().await;
    for arguments in [
        &[][..],
        &["billing/EVENTS/1", "--all"],
        &["billing/EVENTS/1", "--reason", "failed"],
    ] {
        let error = refused(&bus, &replay(arguments)).await;
        assert_eq!(
            error.kind(),
            trunkline::ErrorKind::InvalidConfig,
            "{arguments:?}"
        );
    }
    assert_eq!(
        told(&bus, &list(&["--state", "replaying"]), true).await.1,
        ""
    );
}
