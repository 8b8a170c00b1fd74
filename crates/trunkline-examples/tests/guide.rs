//! Every code block of the guide is part of a program in this crate, and every such program runs.
//!
//! In a page, `<!-- FILE#PART -->` before a block names a file of this crate and the lines in it
//! between `guide: PART` and `guide: end`; `PART+PART` joins two. The README is held to it as well.
//! `TRUNKLINE_BLESS=1` writes the blocks anew. Blocks of `interop/examples` are held to their files
//! by `interop/run.py`, which has the languages that they need.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests that panics has failed its test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
#[cfg(target_os = "linux")]
use std::time::{Duration, Instant};

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// Programs without a test below, which runs them by itself.
const ARE_TESTS: [&str; 1] = ["tests/your_service.rs"];

#[test]
fn every_block_of_the_guide_is_the_code_that_is_run() {
    let mut shown = BTreeSet::new();
    for page in pages() {
        let committed = fs::read_to_string(&page).unwrap();
        let written = with_blocks(&page, &committed, &mut shown);
        if std::env::var_os("TRUNKLINE_BLESS").is_some() {
            fs::write(&page, written).unwrap();
        } else {
            let name = page.display();
            assert!(
                committed == written,
                "{name}: a block is out of date; run this test with TRUNKLINE_BLESS=1"
            );
        }
    }
    let run: BTreeSet<String> = RUN
        .iter()
        .chain(&ARE_TESTS)
        .map(|file| (*file).to_owned())
        .collect();
    assert_eq!(shown, run, "what the guide shows, and what is run");
}

fn pages() -> Vec<PathBuf> {
    let folder = Path::new(CRATE).join("../../docs/guide");
    let mut pages: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    assert!(!pages.is_empty(), "there is no guide");
    pages.push(Path::new(CRATE).join("../../README.md"));
    pages
}

/// The page with each block as its file has it.
fn with_blocks(page: &Path, text: &str, shown: &mut BTreeSet<String>) -> String {
    let mut written = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        written.push_str(line);
        written.push('\n');
        let Some(reference) = line
            .strip_prefix("<!-- ")
            .and_then(|line| line.strip_suffix(" -->"))
        else {
            if line == "```text" {
                // A session in a terminal: what it shows depends on the moment.
                for line in lines.by_ref() {
                    written.push_str(line);
                    written.push('\n');
                    if line == "```" {
                        break;
                    }
                }
                continue;
            }
            // Shell commands of the README are for people; all other blocks come from a file.
            let exempt = page.ends_with("README.md") && !line.starts_with("```rust");
            assert!(
                exempt || !line.starts_with("```"),
                "{}: a block of no file: {line}",
                page.display()
            );
            continue;
        };
        if reference.starts_with("interop/examples/") {
            for line in lines.by_ref() {
                written.push_str(line);
                written.push('\n');
                if line == "```" {
                    break;
                }
            }
            continue;
        }
        let (file, part) = reference
            .split_once('#')
            .unwrap_or_else(|| panic!("no part in {reference}"));
        let fence = lines
            .next()
            .unwrap_or_else(|| panic!("no block after {reference}"));
        assert!(
            fence.starts_with("```"),
            "{}: no block after {reference}",
            page.display()
        );
        lines
            .by_ref()
            .find(|line| *line == "```")
            .unwrap_or_else(|| panic!("no end of {reference}"));
        written.push_str(&format!("{fence}\n{}```\n", parts_of(file, part)));
        shown.insert(file.to_owned());
    }
    written
}

fn parts_of(file: &str, parts: &str) -> String {
    parts
        .split('+')
        .map(|part| part_of(file, part))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The lines of a part, moved to the left margin.
fn part_of(file: &str, part: &str) -> String {
    let source = fs::read_to_string(Path::new(CRATE).join(file))
        .unwrap_or_else(|error| panic!("{file}: {error}"));
    let marker = |line: &str, text: &str| {
        line.trim_start_matches([' ', '/', '#']) == format!("guide: {text}")
    };
    let begin = source
        .lines()
        .skip_while(|line| !marker(line, part))
        .skip(1);
    let lines: Vec<&str> = begin.take_while(|line| !marker(line, "end")).collect();
    assert!(!lines.is_empty(), "{file} has no part {part}");
    let indent = |line: &&str| line.len() - line.trim_start().len();
    let margin = lines
        .iter()
        .filter(|line| !line.is_empty())
        .map(indent)
        .min()
        .unwrap_or(0);
    lines
        .iter()
        .map(|line| format!("{}\n", line.get(margin..).unwrap_or_default()))
        .collect()
}

/// What is run below.
const RUN: [&str; 15] = [
    "guide/bill.py",
    "guide/configured.toml",
    "guide/http_door.sh",
    "guide/operate.sh",
    "guide/worker.sh",
    "guide/workers.sh",
    "src/bin/axum_server.rs",
    "src/bin/configured.rs",
    "src/bin/dead_letters.rs",
    "src/bin/failures.rs",
    "src/bin/first_event.rs",
    "src/bin/outputs.rs",
    "src/bin/own_layers.rs",
    "src/bin/receivers.rs",
    "src/bin/topology.rs",
];

#[test]
fn failures_are_retried_and_dead_lettered() {
    let lines = output(env!("CARGO_BIN_EXE_failures"));
    let expected = [
        "billed o-1 at attempt 1",
        "dlq.EVENTS.billing.2: the bank refused the card (1 failures)",
        "dlq.EVENTS.billing.3: the bank cannot be reached (3 failures)",
        "dlq.EVENTS.billing.4: the handler had not ended after 1s and was cancelled; make it faster \
         or its time-out longer (1 failures)",
        "well: true, breaker: Closed",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn dead_letters_are_followed_listed_and_dealt_with() {
    let mut lines = output(env!("CARGO_BIN_EXE_dead_letters"));
    // Which of the two is given up first is nobody's promise, and so the order of the list.
    lines[..2].sort();
    lines[2..4].sort();
    lines[4..6].sort();
    let expected = [
        r#"paged: billing gave up events.order.placed: the bank refused the card "stolen""#,
        r#"paged: billing gave up events.order.placed: the bank refused the card "test""#,
        r#"billing gave up order.placed after 1 failures: the bank refused the card "stolen""#,
        r#"billing gave up order.placed after 1 failures: the bank refused the card "test""#,
        r#"billing/EVENTS/2: the bank refused the card "stolen" (dead)"#,
        r#"billing/EVENTS/3: the bank refused the card "test" (dead)"#,
        "asked for, 1 time(s)",
        "billing/EVENTS/3 is discarded",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn receivers_and_replay_give_every_event() {
    let lines = output(env!("CARGO_BIN_EXE_receivers"));
    let expected = [
        "ship o-1, attempt 1",
        "ship o-2, attempt 1",
        "ship o-3, attempt 1",
        "number 1 was o-1",
        "number 2 was o-2",
        "number 3 was o-3",
        "somebody looks at o-2",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn outputs_follow_success_and_duplicates_run_once() {
    let lines = output(env!("CARGO_BIN_EXE_outputs"));
    let expected = [
        "o-1: invoice made, once",
        "invoice of o-1 because of order o-1-placed",
        "1 duplicate acknowledged unseen",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn own_layers_run_around_publishing_and_handling() {
    let lines = output(env!("CARGO_BIN_EXE_own_layers"));
    assert_eq!(lines, ["o-1 of acme", "display handled order.placed: ok"]);
}

#[test]
fn a_stream_that_differs_is_refused_planned_and_changed() {
    let lines = output(env!("CARGO_BIN_EXE_topology"));
    let expected = [
        "refused: TL-0305",
        "EVENTS: max_age: 7d, declared 14d",
        "1 done, 0 left",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn the_configuration_is_read_and_its_section_goes_before_the_code() {
    let mut program = Command::new(env!("CARGO_BIN_EXE_configured"));
    program
        .current_dir(Path::new(CRATE).join("guide"))
        .env("TRUNKLINE_CONFIG", "configured.toml")
        .env("TRUNKLINE_CONNECTION__REQUEST_TIMEOUT", "3s");
    let expected = [
        r#"source = "/shop" (configured.toml:2)"#,
        r#"connection.request_timeout = "3s" (TRUNKLINE_CONNECTION__REQUEST_TIMEOUT)"#,
        r#"streams.EVENTS.max_age = "30d" (configured.toml:5)"#,
        r#"consumers.ack_wait = "1m" (configured.toml:8)"#,
        "consumers.billing.attempts = 2 (configured.toml:11)",
        r#"consumers.billing.delays = ["10ms"] (configured.toml:12)"#,
        "o-1 at attempt 1",
        "o-1 at attempt 2",
    ];
    assert_eq!(output_of(&mut program), expected);
}

fn output(program: &str) -> Vec<String> {
    output_of(&mut Command::new(program))
}

fn output_of(program: &mut Command) -> Vec<String> {
    let output = program.output().unwrap();
    assert!(
        output.status.success(),
        "{program:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[cfg(target_os = "linux")]
#[test]
fn the_first_event_is_stored_and_handled_until_sigterm() {
    let folder = std::env::temp_dir().join(format!("trunkline-first-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    // What was stored is there the next time, and what was handled is not handled again.
    for number in 1..=2 {
        let mut program = Command::new(env!("CARGO_BIN_EXE_first_event"));
        let mut program = Program::start(program.current_dir(&folder));
        let mut lines = [program.line(), program.line()];
        lines.sort();
        let stored = format!("stored in EVENTS as number {number}");
        assert_eq!(lines, ["o-1: 4200 cents, attempt 1", &stored]);
        program.wait_for_sigterm_handler();
        assert_eq!(program.stop(), "");
    }
    fs::remove_dir_all(&folder).unwrap();
}

#[cfg(unix)]
#[test]
fn the_axum_server_closes_itself_and_then_the_bus() {
    let mut program = Program::start(&mut Command::new(env!("CARGO_BIN_EXE_axum_server")));
    let line = program.line();
    let address = line.strip_prefix("listening on ").unwrap();
    let mut connection = TcpStream::connect(address).unwrap();
    let body = r#"{"order_id":"o-1"}"#;
    let request = format!(
        "POST /orders HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(program.line(), "ship o-1");
    assert_eq!(program.stop(), "closed\n");
}

#[cfg(unix)]
#[test]
fn the_http_door_answers_curl() {
    let mut up = Program::start(Command::new(trunkline()).args([
        "up",
        "--url",
        "memory:",
        "--listen",
        "127.0.0.1:0",
        "--json",
    ]));
    let ready: serde_json::Value = serde_json::from_str(&up.line()).unwrap();
    let script = Path::new(CRATE).join("guide/http_door.sh");
    let output = Command::new(script)
        .env("BUS", ready["listening"].as_str().unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // One stored, two stored, a range of two, and what follows after the first.
    for (wanted, times) in [
        (r#""stored":1"#, 1),
        (r#""stored":2"#, 1),
        (r#"{"specversion""#, 4),
        ("id: EVENTS:3", 1),
    ] {
        assert_eq!(text.matches(wanted).count(), times, "{wanted} in {text}");
    }
    up.stop();
}

#[cfg(unix)]
#[test]
fn a_worker_bills_orders_with_a_script_and_is_operated() {
    let trunkline = trunkline();
    let arguments = [
        "up",
        "--url",
        "memory:",
        "--listen",
        "127.0.0.1:0",
        "--json",
    ];
    let mut up = Program::start(Command::new(&trunkline).args(arguments));
    let ready: serde_json::Value = serde_json::from_str(&up.line()).unwrap();
    let url = ready["listening"].as_str().unwrap().to_owned();
    let mut path = trunkline.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    let script = |name: &str| {
        let folder = Path::new(CRATE).join("guide");
        let mut script = Command::new(folder.join(name));
        script
            .current_dir(folder)
            .env("TRUNKLINE_URL", &url)
            .env("PATH", &path);
        script
    };
    assert_eq!(output_of(&mut script("workers.sh")).len(), 2);
    let mut worker = Program::start(&mut script("worker.sh"));
    assert_eq!(worker.line(), "billed o-1: 4200 cents");
    // The other becomes a dead letter; until it is one, a reset is refused.
    let began = Instant::now();
    loop {
        let mut show = Command::new(&trunkline);
        show.args(["consumers", "show", "billing", "--json", "--url", &url]);
        let shown: serde_json::Value =
            serde_json::from_str(&output_of(&mut show).join("\n")).unwrap();
        if shown[0]["dead"] == 1 && shown[0]["running"] == 0 {
            break;
        }
        assert!(began.elapsed().as_secs() < 30, "{shown}");
    }
    let operated = output_of(&mut script("operate.sh")).join("\n");
    for wanted in [
        "mode:         ordered",
        "paused consumer billing (the bank is closed); 1 members confirmed",
        "\nbilling EVENTS ",
        "resumed consumer billing; 1 members confirmed",
        "reset consumer billing to first",
    ] {
        assert!(operated.contains(wanted), "{wanted} in {operated}");
    }
    // Everything from the first event on is handled again.
    assert_eq!(worker.line(), "billed o-1: 4200 cents");
    assert_eq!(worker.stop(), "");
    up.stop();
}

/// The command, built as it is by now.
fn trunkline() -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "trunkline-cli",
            "--message-format",
            "json",
        ])
        .current_dir(CRATE)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(built.status.success(), "trunkline-cli does not build");
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    };
    String::from_utf8(built.stdout)
        .unwrap()
        .lines()
        .find_map(executable)
        .unwrap()
}

/// A program that runs until it is told to stop. It does not outlive the test.
struct Program {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits until the program catches SIGTERM, which it does in silence.
    #[cfg(target_os = "linux")]
    fn wait_for_sigterm_handler(&self) {
        let path = format!("/proc/{}/status", self.child.id());
        let began = Instant::now();
        loop {
            let status = fs::read_to_string(&path).unwrap();
            let caught = status
                .lines()
                .find_map(|line| line.strip_prefix("SigCgt:"))
                .unwrap();
            // One bit for each signal, from 1; SIGTERM is 15.
            if u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << 14) != 0 {
                return;
            }
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "SIGTERM is not caught"
            );
            std::thread::yield_now();
        }
    }

    /// Sends SIGTERM, expects a good end, and gives what else it printed.
    fn stop(mut self) -> String {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "ended with {status} after {rest:?}");
        rest
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // After `stop` there is nothing left to kill, which is an error that says nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
