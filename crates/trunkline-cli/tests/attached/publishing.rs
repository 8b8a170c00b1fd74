//! `trunkline pub`.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Running, Up};

/// A file that is gone after the test.
pub(crate) struct TempFile(PathBuf);

impl TempFile {
    pub(crate) fn new(name: &str, content: &[u8]) -> Self {
        let name = format!("attached-{}-{name}", std::process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&path, content).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // What is left behind is in the build's own folder and harms nobody.
        let _ = fs::remove_file(&self.0);
    }
}

/// What the bus has of these types, oldest first.
pub(crate) fn replayed(up: &Up, arguments: &[&str]) -> Vec<Value> {
    let ended = up.run(&[&["replay", "--json", "--quiet"], arguments].concat());
    ended.with(0).json_lines()
}

fn cloud_event(id: &str, data: &str) -> String {
    format!(
        "{{\"specversion\":\"1.0\",\"id\":\"{id}\",\"source\":\"/shop\",\"type\":\"order.placed\",\"data\":{data}}}\n"
    )
}

#[test]
fn one_event_is_what_the_arguments_say() {
    let up = Up::start(&[]);
    let told = up
        .run(&["pub", "order.placed", "{\"total\": 1}", "--key", "o-1"])
        .with(0);
    assert!(
        told.stdout
            .starts_with("stored in EVENTS as number 1 · id ")
            && told.stdout.lines().count() == 1,
        "{told:?}"
    );
    assert_eq!(told.stderr, "");
    let arguments = ["photo.taken", "--id", "p-1", "--source", "/camera"];
    let receipt = up.publish(&arguments);
    let expected =
        json!({"status": "stored", "id": "p-1", "stream": "EVENTS", "seq": 2, "duplicate": false});
    assert_eq!(receipt, expected);
    assert_eq!(up.publish(&arguments)["duplicate"], true);
    let again = up.run(&[&["pub"], &arguments[..]].concat()).with(0);
    assert!(
        again
            .stdout
            .contains("number 2, where it was already · id p-1")
    );

    let events = replayed(&up, &[]);
    let text = |index: usize, name: &str| events[index][name].as_str().map(str::to_owned);
    assert_eq!(events.len(), 2);
    assert_eq!(events[0]["data"], json!({"total": 1}));
    assert_eq!(text(0, "partitionkey").as_deref(), Some("o-1"));
    assert_eq!(text(0, "source").as_deref(), Some("/trunkline/cli"));
    assert_eq!(text(1, "source").as_deref(), Some("/camera"));
    assert_eq!(events[1].get("data"), None);
}

#[test]
fn data_comes_from_files_and_standard_input_byte_for_byte() {
    let up = Up::start(&[]);
    let picture = TempFile::new("picture", &[0, 1, 0xff, 0xfe]);
    let at = format!("@{}", picture.path());
    up.publish(&["photo.taken", &at, "--content-type", "image/jpeg"]);
    let odd = r#"{ "b":1.0e2,"a" : "ü\u001b" }"#;
    up.fed(&["pub", "order.placed", "@-"], odd).with(0);
    let plain = ["pub", "note.made", "a\nb", "--content-type", "text/plain"];
    up.run(&plain).with(0);
    let ended = up.run(&["replay", "--json"]).with(0);
    let events = ended.json_lines();
    assert_eq!(events[0]["data_base64"], "AAH//g==");
    assert!(
        ended.stdout.contains(&format!("\"data\":{odd}")),
        "{ended:?}"
    );
    assert_eq!(events[2]["data"], "a\nb");
    up.run(&["pub", "photo.taken", "@/no/such/file"])
        .with(2)
        .says(&["TL-0008", "/no/such/file cannot be read", "No such file"]);
    up.run(&["pub", "order.placed", "total: 1"])
        .with(1)
        .says(&["TL-0005", "text is JSON in double quotes"]);
}

#[test]
fn a_file_of_events_is_published_once_however_often_it_is_given() {
    let up = Up::start(&[]);
    let text: String = (1..=3)
        .map(|n| cloud_event(&format!("e-{n}"), "{}"))
        .collect();
    let file = TempFile::new("events.ndjson", text.as_bytes());
    let first = up.run(&["pub", "--file", file.path()]).with(0);
    assert!(
        first
            .stdout
            .starts_with("stored 3 (0 duplicates) · refused 0 · unknown 0 · ")
    );
    let second = up
        .run(&["pub", "--file", file.path(), "--json"])
        .with(0)
        .json();
    assert_eq!(
        [
            &second["stored"],
            &second["duplicates"],
            &second["refused"],
            &second["unknown"]
        ],
        [3, 3, 0, 0]
    );
    assert!(second["seconds"].is_f64() && second["per_second"].is_u64());
    assert_eq!(second.get("stopped_before_line"), None);
    assert_eq!(replayed(&up, &[]).len(), 3);
}

#[test]
fn partly_refused_ends_with_3_and_names_the_lines_and_all_refused_with_1() {
    let up = Up::start(&[]);
    let text = format!(
        "{}\nnonsense\n{}{{\"id\":\"x\"}}\n",
        cloud_event("e-1", "1"),
        cloud_event("e-2", "2")
    );
    let people = up.fed(&["pub", "-"], &text).with(3);
    let told: Vec<&str> = people.stderr.lines().collect();
    assert!(
        told[0].starts_with("line 3: refused: TL-0005: "),
        "{told:?}"
    );
    assert!(told[1].starts_with("line 5: refused: TL-"), "{told:?}");
    assert_eq!(told.len(), 2);
    assert!(
        people
            .stdout
            .starts_with("stored 2 (0 duplicates) · refused 2 · ")
    );

    let programs = up.fed(&["pub", "-", "--json"], &text).with(3).json_lines();
    let [one, other, sum] = programs.as_slice() else {
        panic!("{programs:?}");
    };
    assert_eq!(
        (&one["line"], &one["status"]),
        (&json!(3), &json!("refused"))
    );
    assert_eq!(one["error"]["code"], "TL-0005");
    assert!(one["error"]["detail"].is_string() && one["error"]["retryable"] == false);
    assert_eq!(other["line"], 5);
    assert_eq!((&sum["stored"], &sum["duplicates"]), (&json!(2), &json!(2)));

    up.fed(&["pub", "-"], "nonsense\n[]\n").with(1);
    // Nothing at all is no failure: an empty log has no events.
    let empty = up.fed(&["pub", "-", "--json"], "\n\n").with(0).json();
    assert_eq!(empty["stored"], 0);
    assert_eq!(replayed(&up, &[]).len(), 2);
}

#[test]
fn twenty_thousand_lines_keep_their_order_and_their_keys() {
    let up = Up::start(&[]);
    let text: String = (0..20_000)
        .map(|n| format!("{{\"n\":{n},\"shop\":\"s-{}\"}}\n", n % 7))
        .collect();
    let arguments = [
        "pub",
        "-",
        "--type",
        "till.rung",
        "--key-field",
        "shop",
        "--json",
    ];
    let sum = up.fed(&arguments, &text).with(0).json();
    assert_eq!(sum["stored"], 20_000);
    let events = replayed(&up, &["till.rung"]);
    assert_eq!(events.len(), 20_000);
    for (n, event) in events.iter().enumerate() {
        assert_eq!(event["data"]["n"], n);
        assert_eq!(event["partitionkey"], format!("s-{}", n % 7));
    }
}

#[test]
fn lines_that_come_slowly_go_out_at_once() {
    let up = Up::start(&[]);
    let sub = Running::following(up.command(&["sub"]));
    let mut publishing = Running::start(up.command(&["pub", "-", "--type", "log.written"]));
    for n in 1..=3 {
        // The next one is written only when this one has arrived.
        publishing.feed(&format!("{n}\n"));
        let event: Value = serde_json::from_str(&sub.out.next()).unwrap();
        assert_eq!(event["data"], n);
    }
    // A line without an end counts as well, once the input ends.
    publishing.feed("4");
    let ended = publishing.ended().with(0);
    assert!(ended.stdout.starts_with("stored 4 "), "{ended:?}");
    assert!(sub.out.next().contains("\"data\":4"));
}

#[test]
fn ctrl_c_ends_it_with_130_and_the_sum() {
    let up = Up::start(&[]);
    let sub = Running::following(up.command(&["sub"]));
    let mut publishing = Running::start(up.command(&["pub", "-", "--type", "log.written"]));
    publishing.feed("1\n2\n");
    sub.out.next();
    sub.out.next();
    // Its input stays open, as that of `tail -f` does.
    let ended = publishing.interrupted().with(130).says(&["stopped\n"]);
    let line = &ended.stdout;
    assert!(
        line.starts_with("stored 2 (0 duplicates) · refused 0 · unknown 0"),
        "{line}"
    );
}

/// On Linux, where it can be seen whether a process handles SIGINT already.
#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_ends_it_while_it_waits_for_its_data() {
    let up = Up::start(&[]);
    for arguments in [&["pub", "order.placed", "@-"][..], &["pub", "-"]] {
        let waiting = Running::start(up.command(arguments));
        waiting.until_it_heeds_interrupts();
        waiting.interrupted().with(130);
    }
    assert!(replayed(&up, &[]).is_empty());
}

#[test]
fn a_closed_standard_input_is_an_empty_one() {
    let up = Up::start(&[]);
    let script = "exec \"$0\" pub - --json <&-";
    let mut command = up.command(&[]);
    command = {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", script]).arg(command.get_program());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                shell.env(name, value);
            }
        }
        shell
    };
    let ended = crate::support::ends({
        command.stdout(std::process::Stdio::piped());
        command.stderr(std::process::Stdio::piped());
        command
    });
    // Rust opens /dev/null in its place; what matters is that it ends.
    assert_eq!(ended.with(0).json()["stored"], 0);
}
