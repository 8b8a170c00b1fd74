//! `trunkline config`, driven as its users do.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// A folder of its own for each test, without any configuration but what the test writes.
struct Place(PathBuf);

impl Place {
    fn new(test: &str, file: Option<&str>) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("config-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        if let Some(text) = file {
            std::fs::write(folder.join("trunkline.toml"), text).unwrap();
        }
        Self(folder)
    }

    fn run(&self, arguments: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TRUNKLINE_") {
                command.env_remove(name);
            }
        }
        let output = command
            .env_remove("COLUMNS")
            .env_remove("RUST_LOG")
            .envs(env.iter().copied())
            .arg("config")
            .args(arguments)
            .current_dir(&self.0)
            .output()
            .unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What is left behind is in the build's own folder and harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const FILE: &str = "url = \"nats://ann:hunter2@h\"\n[connection]\nrequest_timeout = \"1s\"\n";

#[test]
fn what_is_in_force_is_listed_with_its_origin_and_without_secrets() {
    let place = Place::new("listing", Some(FILE));
    let (code, out, err) = place.run(&[], &[("TRUNKLINE_SOURCE", "/shop")]);
    assert_eq!((code, err.as_str()), (0, ""));
    let line = |key: &str| {
        let line = out.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        line("url "),
        ["url", r#""nats://ann:***@h""#, "trunkline.toml:1"]
    );
    assert_eq!(
        line("source "),
        ["source", r#""/shop""#, "TRUNKLINE_SOURCE"]
    );
    assert_eq!(
        line("connection.request_timeout "),
        ["connection.request_timeout", r#""1s""#, "trunkline.toml:3"]
    );
    assert_eq!(line("prefix "), ["prefix", r#""events""#, "default"]);
    assert!(!out.contains("hunter2") && !out.contains('\u{1b}'), "{out}");
    let (_, narrow, _) = place.run(&[], &[("COLUMNS", "40")]);
    let widest = narrow.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(40), "{narrow}");
}

#[test]
fn json_is_an_object_by_key() {
    let place = Place::new("json", Some(FILE));
    let (code, out, _) = place.run(&["--json"], &[]);
    assert_eq!(code, 0);
    let object: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["connection.request_timeout"]["value"], "1s");
    assert_eq!(object["url"]["value"], "nats://ann:***@h");
    assert_eq!(object["url"]["from"], "trunkline.toml:1");
    assert_eq!(object["door.max_events"]["value"], 10_000);
}

#[test]
fn the_example_is_a_file_that_changes_nothing() {
    let place = Place::new("example", None);
    let (code, example, _) = place.run(&["--example"], &[]);
    assert_eq!(code, 0);
    assert!(example.contains("#url = \"memory:\""), "{example}");
    let (_, without, _) = place.run(&["--json"], &[]);
    std::fs::write(place.0.join("other.toml"), example).unwrap();
    let (code, with, err) = place.run(&["--json"], &[("TRUNKLINE_CONFIG", "other.toml")]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(with, without);
}

#[test]
fn problems_go_to_standard_error_with_exit_code_2() {
    let place = Place::new(
        "problems",
        Some("sorce = 1\nurl = \"nats://ann:hunter2 @h\""),
    );
    let (code, out, err) = place.run(&[], &[("TRUNKLINE_DOOR__LISTEN", "7400")]);
    assert_eq!((code, out.as_str()), (2, ""));
    for expected in [
        "3 problems",
        "trunkline.toml:1: sorce: ",
        "trunkline.toml:2: url: ",
        "TRUNKLINE_DOOR__LISTEN: door.listen: ",
    ] {
        assert!(err.contains(expected), "{err}");
    }
    assert!(!err.contains("hunter2"), "{err}");
}

#[test]
fn a_file_that_is_named_must_exist() {
    let place = Place::new("missing", Some("source = \"/unread\""));
    let (code, _, err) = place.run(&[], &[("TRUNKLINE_CONFIG", "absent.toml")]);
    assert_eq!(code, 2);
    assert!(err.contains("\"absent.toml\""), "{err}");
    // A file that nobody named need not.
    assert_eq!(Place::new("none", None).run(&[], &[]).0, 0);
}
