//! `trunkline tail`.

use crate::support::{Running, Up};

/// Some events to look at.
pub(crate) fn shop() -> Up {
    let up = Up::start(&[]);
    for arguments in [
        &[
            "order.placed",
            "{\"total\":1}",
            "--key",
            "o-1",
            "--id",
            "e1",
        ][..],
        &["order.paid", "--key", "o-1", "--id", "e2"],
        &[
            "order.placed",
            "{\"total\":2}",
            "--key",
            "o-2",
            "--id",
            "e3",
        ],
        &[
            "warehouse.shipment.announced",
            "{\"parcels\":2}",
            "--id",
            "e4",
        ],
    ] {
        up.publish(arguments);
    }
    up
}

/// The lines without their times.
fn rows(text: &str) -> Vec<&str> {
    text.lines().map(|line| line[12..].trim_start()).collect()
}

#[test]
fn stored_events_are_chosen_by_position_filter_and_key() {
    let up = shop();
    let shown = |arguments: &[&str]| {
        let ended = up
            .run(&[&["tail", "--no-follow"], arguments].concat())
            .with(0);
        assert!(!ended.stdout.contains('\x1b'), "{ended:?}");
        ended.stdout
    };
    for (arguments, expected) in [
        (
            &[][..],
            &[
                "order.placed  o-1  {\"total\":1}",
                "order.paid    o-1",
                "order.placed  o-2  {\"total\":2}",
                "…ouse.shipment.announced       {\"parcels\":2}",
            ][..],
        ),
        (
            &["--since", "last:1"],
            &["…ouse.shipment.announced  {\"parcels\":2}"],
        ),
        (
            &["--since", "3", "--filter", "order.>"],
            &["order.placed  o-2  {\"total\":2}"],
        ),
        (
            &["order.*", "--key", "o-1", "--since", "1h"],
            &["order.placed  o-1  {\"total\":1}", "order.paid    o-1"],
        ),
        (
            &["--key", "o-2", "--payload", "none"],
            &["order.placed  o-2"],
        ),
        (&["--key", "o-9"], &[]),
    ] {
        assert_eq!(rows(&shown(arguments)), expected, "{arguments:?}");
    }
    let full = shown(&["--payload", "full", "--since", "1", "--key", "o-2"]);
    assert!(
        full.ends_with("order.placed  o-2\n  {\n    \"total\": 2\n  }\n"),
        "{full}"
    );
    up.run(&["tail", "--no-follow", "order"])
        .with(0)
        .says(&["order matches no event that is stored; order.> would"]);
    let json = up
        .run(&["tail", "--no-follow", "--json"])
        .with(0)
        .json_lines();
    assert_eq!(json.len(), 4);
}

#[test]
fn forty_columns_are_kept_to() {
    let up = shop();
    let mut command = up.command(&["tail", "--no-follow"]);
    command.env("COLUMNS", "40");
    let ended = crate::support::ends(command).with(0);
    let widest = ended.stdout.lines().map(|line| line.chars().count()).max();
    assert!(widest.unwrap() <= 40, "{}", ended.stdout);
    assert!(!ended.stdout.contains("o-1"), "{}", ended.stdout);
}

#[test]
fn colours_are_for_whoever_asks() {
    let up = shop();
    let arguments = ["tail", "--no-follow", "--color", "always"];
    let coloured = up.run(&arguments).with(0);
    assert!(coloured.stdout.contains("\x1b[2m") && coloured.stdout.contains("\x1b[0m"));
    let mut command = up.command(&["tail", "--no-follow"]);
    command.env("NO_COLOR", "1");
    assert!(!crate::support::ends(command).stdout.contains('\x1b'));
}

#[test]
fn nothing_that_an_event_holds_acts_on_a_terminal() {
    let up = Up::start(&[]);
    let bad = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}\r\u{8}\u{7f}";
    let json = serde_json::to_string(bad).unwrap();
    for data in [&json, &format!("{{{json}:{json}}}")] {
        up.publish(&["order.placed", data, "--key", bad]);
    }
    up.publish(&["note.made", bad, "--content-type", "text/plain"]);
    let event = format!(
        "{{\"specversion\":\"1.0\",\"id\":\"s-1\",\"source\":\"/s\",\"type\":\"order.placed\",\"subject\":{json},\"data\":1}}\n"
    );
    up.fed(&["pub", "-"], &event).with(0);
    let acts = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}');
    for arguments in [
        &["tail", "--no-follow"][..],
        &["tail", "--no-follow", "--payload", "full"],
        &["tail", "--no-follow", "--payload", "none"],
        &["replay"],
        &["streams", "cat", "EVENTS"],
        &["streams", "info", "EVENTS"],
        &["explain"],
    ] {
        let ended = up.run(arguments).with(0);
        for text in [&ended.stdout, &ended.stderr] {
            assert!(!text.contains(acts), "{arguments:?}: {text:?}");
        }
    }
    up.run(&["pub", "order.placed", "1", "--id", bad]).with(1);
    // A fault is told with what was wrong in it, which must not act either.
    let ended = up.fed(&["pub", "-"], &format!("{{\"type\":{json}}}\n{bad}\n"));
    assert!(!ended.with(1).stderr.contains(acts));
}

#[test]
fn it_shows_what_is_stored_and_goes_on_until_ctrl_c() {
    let up = shop();
    let tail = Running::following(up.command(&["tail", "order.>", "--since", "last:1"]));
    assert!(
        tail.out
            .next()
            .ends_with("order.placed  o-2  {\"total\":2}")
    );
    up.publish(&["mail.sent"]);
    up.publish(&["order.placed", "{\"total\":3}", "--key", "o-3"]);
    assert!(
        tail.out
            .next()
            .ends_with("order.placed  o-3  {\"total\":3}")
    );
    tail.interrupt();
    tail.ended().with(0);
}
