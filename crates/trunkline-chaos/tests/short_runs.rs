//! A short run on each of the engines that one host can have, so that what the long ones stand on works.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// No run of this length needs a fraction of it.
const WATCHDOG: Duration = Duration::from_secs(240);

/// Runs it, and gives what it counted.
fn survives(on: &str, seed: u64) -> Value {
    let mut chaos = Command::new(env!("CARGO_BIN_EXE_trunkline-chaos"));
    let mut child = chaos
        .args(["--on", on, "--seed", &seed.to_string()])
        .args(["--minutes", "0.2", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + WATCHDOG;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("seed {seed} on {on} has not ended after {WATCHDOG:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "seed {seed} on {on}: {text}");
    serde_json::from_str(&text).unwrap()
}

fn is_a_run(found: &Value) {
    assert_eq!(found["violations"], Value::Array(Vec::new()));
    let count = |name: &str| found[name].as_u64().unwrap();
    assert!(count("acknowledged") > 100, "{found}");
    assert!(count("handled") > 100, "{found}");
    assert!(!found["faults"].as_object().unwrap().is_empty(), "{found}");
}

#[test]
fn f1_workers_on_a_directory_survive_what_a_seed_says() {
    is_a_run(&survives("file", 4));
}

#[test]
fn f1_workers_on_a_server_survive_what_a_seed_says() {
    is_a_run(&survives("nats", 4));
}
