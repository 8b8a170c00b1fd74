//! `trunkline log` as an operator uses it: on a directory whose owner runs, was killed, or that does not
//! open.
#![cfg(unix)]
// Helpers of tests are tests to a reader, though not to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use support::{Ended, Up, run};

/// A folder for one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("trunkline-log-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// With a bus that was closed after it had stored ten events.
    fn closed(name: &str) -> Self {
        let folder = Self::new(name);
        let up = folder.up();
        folder.publish(&up);
        let (code, stderr) = up.terminate();
        assert_eq!(code, 0, "{stderr}");
        folder
    }

    fn up(&self) -> Up {
        Up::start(&["--url", &format!("file:{}", self.data().display())])
    }

    fn publish(&self, up: &Up) {
        let lines: String = (1..=10).map(|n| format!("{{\"total\":{n}}}\n")).collect();
        up.fed(&["pub", "-", "--type", "order.placed"], &lines)
            .with(0);
    }

    fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    fn segment(&self) -> PathBuf {
        self.data().join("streams/EVENTS/00000000000000000001.seg")
    }

    fn log(&self, command: &str, more: &[&str]) -> Ended {
        let data = self.data();
        let data = data.to_str().unwrap();
        run(&[&["log", command, data], more].concat())
    }

    /// Changes a byte where the file has that text for the n-th time.
    fn damage(&self, path: &Path, text: &str, number: usize) -> u64 {
        let mut bytes = fs::read(path).unwrap();
        let places = bytes.windows(text.len()).enumerate();
        let mut places = places.filter(|(_, window)| *window == text.as_bytes());
        let (at, _) = places.nth(number).expect(text);
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
        at as u64
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

#[test]
fn a_directory_is_looked_at_while_its_owner_runs_and_after_it_was_killed() {
    let folder = Folder::new("live");
    let mut up = folder.up();
    folder.publish(&up);
    let stats = folder.log("stats", &["--json"]).with(0).json();
    #[cfg(target_os = "linux")]
    {
        assert_eq!(stats["owner"]["state"], "running");
        assert_eq!(stats["owner"]["process"], up.child.id());
    }
    let of = |stats: &serde_json::Value| {
        let streams = stats["streams"].as_array().unwrap().clone();
        streams
            .into_iter()
            .find(|stream| stream["name"] == "EVENTS")
            .unwrap()
    };
    assert_eq!(of(&stats)["events"], 10);
    assert_eq!(
        (&of(&stats)["first"], &of(&stats)["tail"]),
        (&1.into(), &11.into())
    );
    let verified = folder.log("verify", &["--json"]).with(0).json();
    assert_eq!(verified["damaged"], false);
    let text = folder.log("verify", &[]).with(0).stdout;
    assert!(text.starts_with("sound: read"), "{text}");
    #[cfg(target_os = "linux")]
    folder
        .log("repair", &["--yes"])
        .with(1)
        .says(&["TL-0310", "in use", "stop it"]);
    up.kill();
    let text = folder.log("stats", &[]).with(0).stdout;
    assert!(
        text.contains("EVENTS") && text.contains("COMMANDS"),
        "{text}"
    );
    assert!(!text.contains(", running"), "{text}");
    // A crash is no damage, and nothing is to be repaired.
    assert_eq!(
        folder.log("verify", &["--json"]).with(0).json()["damaged"],
        false
    );
    folder
        .log("repair", &["--yes"])
        .with(0)
        .says(&["nothing is damaged"]);
}

#[test]
fn events_and_state_are_dumped_one_a_line() {
    let folder = Folder::closed("dump");
    let lines = folder
        .log("dump", &["--stream", "EVENTS"])
        .with(0)
        .json_lines();
    assert_eq!(lines.len(), 10);
    for (line, number) in lines.iter().zip(1..) {
        assert_eq!(line["seq"], number);
        assert_eq!(line["event"]["type"], "order.placed");
        assert_eq!(line["event"]["data"]["total"], number);
        assert!(line["at"].is_string());
    }
    let some = ["--stream", "EVENTS", "--from", "4", "--limit", "2"];
    let some = folder.log("dump", &some).with(0).json_lines();
    let seqs: Vec<_> = some.iter().map(|line| line["seq"].as_u64()).collect();
    assert_eq!(seqs, [Some(4), Some(5)]);
    let state = folder.log("dump", &["--state"]).with(0).json_lines();
    let streams = state.iter().filter(|line| line["kind"] == "stream");
    let names: Vec<_> = streams.map(|line| line["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"EVENTS"), "{names:?}");
    folder
        .log("dump", &["--stream", "NONE"])
        .with(1)
        .says(&["TL-0301", "EVENTS"]);
    folder.log("dump", &[]).with(2).says(&["--stream"]);
}

#[test]
fn damage_is_named_planned_for_and_mended() {
    let folder = Folder::closed("repair");
    let segment = folder.segment();
    let at = folder.damage(&segment, "total", 3);
    let damaged = fs::read(&segment).unwrap();
    let found = folder.log("verify", &["--json"]).with(1).json();
    let finding = &found["findings"][0];
    assert_eq!(finding["severity"], "damage");
    assert_eq!(finding["file"], "streams/EVENTS/00000000000000000001.seg");
    assert!(finding["offset"].as_u64().unwrap() <= at);
    assert_eq!(finding["remedy"], "repair");
    let lost = |key: &str| finding["lost"][key].as_u64();
    let (first, last) = (lost("first").unwrap(), lost("last").unwrap_or(10));
    assert!((first..=last).contains(&4), "{first} to {last}");
    let text = folder.log("verify", &[]).with(1).stdout;
    assert!(text.contains("remedy: trunkline log repair"), "{text}");
    assert!(text.contains("damaged at one place"), "{text}");
    // What can be read of it is read, and a script knows that it is not all.
    let dump = folder.log("dump", &["--stream", "EVENTS"]).with(1);
    let read = dump.json_lines().len();
    dump.says(&["skipped", "00000000000000000001.seg", "offset"]);
    let planned = folder.log("repair", &[]).with(3);
    assert!(planned.stdout.contains("to do:"), "{}", planned.stdout);
    planned.says(&["nothing was done", "--yes"]);
    assert!(
        fs::read(&segment).unwrap() == damaged,
        "a plan changes nothing"
    );
    let done = folder.log("repair", &["--yes", "--json"]).with(0).json();
    assert_eq!(
        (&done["done"], &done["damage_left"]),
        (&true.into(), &0.into())
    );
    let kept = folder.data().join(done["kept"][0].as_str().unwrap());
    assert!(fs::read(kept).unwrap() == damaged, "it is kept as it was");
    assert_eq!(
        folder.log("verify", &["--json"]).with(0).json()["damaged"],
        false
    );
    // And the bus runs again, behind what was lost.
    let up = folder.up();
    let stored = up.publish(&["order.placed", "{\"total\":11}"]);
    assert!(stored["seq"].as_u64().unwrap() > last, "{stored}");
    let (code, stderr) = up.terminate();
    assert_eq!(code, 0, "{stderr}");
    let lines = folder
        .log("dump", &["--stream", "EVENTS"])
        .with(0)
        .json_lines();
    assert_eq!(lines.len(), read + 1);
}

#[test]
fn what_cannot_be_looked_at_is_refused_in_words() {
    let folder = Folder::closed("refused");
    let data = folder.data();
    run(&["log", "stats", "/no/such/place"])
        .with(2)
        .says(&["/no/such/place", "no such directory"]);
    let file = folder.0.join("file");
    fs::write(&file, "text").unwrap();
    run(&["log", "verify", file.to_str().unwrap()])
        .with(2)
        .says(&["it is a file"]);
    let foreign = folder.0.join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.txt"), "").unwrap();
    run(&["log", "stats", foreign.to_str().unwrap()])
        .with(2)
        .says(&["TL-0008", "no directory of ours"]);
    // Half copied: without its journal, and without a segment.
    fs::rename(data.join("streams"), folder.0.join("streams")).unwrap();
    for command in ["stats", "verify", "repair"] {
        folder.log(command, &[]).with(1).says(&[
            "TL-0701",
            "streams is missing",
            "copy the whole directory",
        ]);
    }
    fs::rename(folder.0.join("streams"), data.join("streams")).unwrap();
    fs::remove_file(folder.segment()).unwrap();
    let text = folder.log("verify", &[]).with(1).stdout;
    assert!(text.contains("copy the whole directory again"), "{text}");
    let text = folder.log("repair", &["--yes"]).with(1);
    text.says(&["nothing was done"]);
    fs::write(data.join("FORMAT"), "trunkline-log 7\n").unwrap();
    folder
        .log("stats", &[])
        .with(1)
        .says(&["TL-0206", "version 7"]);
}

#[test]
fn a_directory_that_nobody_may_write_is_looked_at_as_well() {
    let folder = Folder::closed("readonly");
    let before = listing(&folder.data());
    let mode = |bits: u32| {
        for path in listing(&folder.data()) {
            let is_dir = path.is_dir();
            let bits = if is_dir { bits | 0o100 } else { bits };
            fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
        }
    };
    mode(0o400);
    for command in ["stats", "verify"] {
        folder.log(command, &[]).with(0);
    }
    folder.log("dump", &["--stream", "EVENTS"]).with(0);
    mode(0o600);
    assert_eq!(listing(&folder.data()), before, "nothing was made");
}

/// Everything below a folder, what is deepest first.
fn listing(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(listing(&path));
        }
        all.push(path);
    }
    all.sort();
    all.reverse();
    all
}
