//! The built command as scripts use it: pipes that close, exit codes, and what is written where.

// Helpers of tests are tests to a reader, though not to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/mod.rs"]
mod support;

use std::process::{Command, Stdio};

use support::{Running, ends, fed, run, trunkline};

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_a_quiet_end() {
    for arguments in [
        &["completions", "bash"][..],
        &["explain", "--url", "memory:"],
        &["explain", "--url", "memory:", "--json"],
        &["streams", "list", "--url", "memory:"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = trunkline(arguments);
        command.stdout(writer);
        let ended = ends(command);
        assert_eq!(ended.code, 141, "{arguments:?}: {}", ended.stderr);
        assert_eq!(ended.stderr, "", "{arguments:?}");
    }
}

#[cfg(unix)]
#[test]
fn the_head_of_a_long_output_ends_it_quietly() {
    let shell = format!(
        "{} completions bash | head -1; exit ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_trunkline")
    );
    let mut command = Command::new("bash");
    command.args(["-c", &shell]).stdin(Stdio::null());
    let ended = ends(command);
    // A pipe may take all of it before its reader goes.
    assert!([0, 141].contains(&ended.code), "{}", ended.code);
    assert_eq!(ended.stdout.lines().count(), 1);
    assert_eq!(ended.stderr, "");
}

#[test]
fn exit_codes_are_those_of_the_table() {
    let url = ["--url", "memory:"];
    for (arguments, code, part) in [
        (&["explain"][..], 0, ""),
        (&["explain", "a.1"], 2, "TL-0004"),
        (&["streams", "list"], 0, ""),
        (&["streams", "info", "NONE"], 1, "TL-0301"),
        (&["streams", "info", "a.b"], 2, "is not a name"),
        (&["consumers", "show", "none"], 1, "TL-0302"),
        (&["consumers", "delete", "none"], 1, "TL-0302"),
        (&["pub", "order.placed", "{\"total\":1}"], 0, ""),
        (&["pub", "order.1"], 1, "remedy"),
        (&["pub", "order.placed", "nonsense"], 1, "TL-0005"),
        (&["pub"], 2, "TL-0008"),
        (&["pub", "--file", "/no/such/file"], 2, "/no/such/file"),
        (&["replay", "--from", "yesterday"], 2, "10m"),
        (&["replay", "order.>.x"], 2, "filter"),
        (&["replay", "--to", "1", "--follow"], 2, "--follow"),
        (&["tail", "--no-follow"], 0, ""),
        (&["sub", "--timeout", "1ms"], 1, ""),
        (&["topology", "show"], 0, ""),
        // A fresh bus has no streams until somebody makes them.
        (&["topology", "plan"], 1, ""),
        (&["topology", "apply"], 2, "add --yes"),
        (&["topology", "apply", "--yes"], 0, ""),
        (
            &["topology", "apply", "--yes", "--adopt", "NONE"],
            1,
            "TL-0301",
        ),
        (&["bench", "--events", "1"], 2, "10..="),
        (&["completions", "zsh"], 0, ""),
        (&["completions", "dos"], 2, "dos"),
    ] {
        let ended = run(&[arguments, &url].concat());
        assert_eq!(ended.code, code, "{arguments:?}: {}", ended.stderr);
        assert!(
            ended.stderr.contains(part),
            "{arguments:?}: {}",
            ended.stderr
        );
    }
}

#[test]
fn lines_on_standard_input_are_published_and_summed_up() {
    let ended = fed(
        trunkline(&["pub", "-", "--type", "a.b", "--url", "memory:", "--json"]),
        "1\r\nnonsense\n3",
    );
    assert_eq!(ended.code, 3, "{}", ended.stderr);
    let lines: Vec<serde_json::Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        (&lines[0]["line"], &lines[0]["status"]),
        (&2.into(), &"refused".into())
    );
    assert_eq!(
        (&lines[1]["stored"], &lines[1]["refused"]),
        (&2.into(), &1.into())
    );
    assert_eq!(ended.stderr, "");
}

#[cfg(unix)]
#[test]
fn ctrl_c_gives_the_summary_although_the_input_goes_on() {
    let arguments = ["pub", "-", "--type", "a.b", "--url", "memory:"];
    let mut publishing = Running::start(trunkline(&arguments));
    // A refused line is told at once, which is the sign that the command is at work.
    publishing.feed("1\nnonsense\n");
    publishing.err.until("line 2: refused: TL-0005");
    let stdout = publishing.interrupted().with(130).stdout;
    assert!(
        stdout.starts_with("stored 1 (0 duplicates) · refused 1"),
        "{stdout}"
    );
}

/// On Linux, where it can be seen whether a process handles SIGINT already.
#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_is_how_a_follower_ends_well() {
    for command in ["sub", "tail"] {
        let follower = Running::start(trunkline(&[command, "--url", "memory:"]));
        follower.until_it_heeds_interrupts();
        let code = follower.interrupted().code;
        // It may have been about to open the bus.
        assert!([0, 130].contains(&code), "{command}: {code}");
    }
}

#[test]
fn colours_are_for_terminals_or_whoever_asks() {
    let plain = run(&["explain", "--url", "memory:"]);
    assert!(!plain.stdout.contains('\x1b'));
    let coloured = run(&["explain", "--url", "memory:", "--color", "always"]);
    assert!(coloured.stdout.contains("\x1b[1mThe bus\x1b[0m"));
}

#[test]
fn columns_are_those_of_the_environment_where_there_is_no_terminal() {
    let mut command = trunkline(&["streams", "list", "--url", "memory:"]);
    command.env("COLUMNS", "40");
    assert!(ends(command).stdout.contains("stream:   EVENTS\n"));
}

#[test]
fn nothing_but_data_goes_to_standard_output() {
    let ended = run(&["consumers", "list", "--url", "memory:"]);
    assert_eq!((ended.stdout.as_str(), ended.code), ("", 0));
    assert!(ended.stderr.contains("there is no consumer"));
    let quiet = run(&["consumers", "list", "--url", "memory:", "--quiet"]);
    assert_eq!(quiet.stderr, "");
    let json = run(&["consumers", "list", "--url", "memory:", "--json"]);
    assert_eq!(json.stdout, "[]\n");
}
