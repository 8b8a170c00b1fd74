//! `trunkline worker`: events handled by shell scripts, which fail, hang, flood and are killed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::support::{Running, Up, run};

/// Tells of an event once it is handled.
const TELL: &str =
    r#"read -r event; echo "handled $TRUNKLINE_KEY $TRUNKLINE_SEQ $TRUNKLINE_ATTEMPT $event""#;

fn worker(up: &Up, options: &[&str], script: &str) -> Running {
    let usual = ["worker", "--consumer", "work", "--filter", "order.>"];
    let exec = ["--exec", "sh", "-c", script];
    let worker = Running::start(up.command(&[&usual, options, &exec].concat()));
    worker.err.until("consumer work handles order.>");
    worker
}

/// Publishes orders of ten keys, one of each in turn.
fn publish(up: &Up, numbers: std::ops::Range<u32>) {
    let mut lines = String::new();
    for number in numbers {
        writeln!(lines, "{{\"k\":\"k{}\",\"n\":{number}}}", number % 10).unwrap();
    }
    let arguments = ["pub", "-", "--type", "order.placed", "--key-field", "k"];
    up.fed(&arguments, &lines).with(0);
}

/// Key, sequence and attempt of a line of [`TELL`].
fn handled(line: &str) -> (String, u64, u32) {
    let parts: Vec<&str> = line.splitn(5, ' ').collect();
    let event: serde_json::Value = serde_json::from_str(parts[4]).unwrap();
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["partitionkey"], parts[1]);
    assert_eq!(event["data"]["k"], parts[1]);
    (
        parts[1].to_owned(),
        parts[2].parse().unwrap(),
        parts[3].parse().unwrap(),
    )
}

/// Each key's events, in the order in which they were first handled.
fn by_key(runs: &[(String, u64, u32)]) -> BTreeMap<&str, Vec<u64>> {
    let mut keys: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (key, seq, _) in runs {
        let seqs = keys.entry(key).or_default();
        if !seqs.contains(seq) {
            seqs.push(*seq);
        }
    }
    keys
}

fn assert_whole_and_in_order(runs: &[(String, u64, u32)], events: u64) {
    let keys = by_key(runs);
    assert_eq!(keys.len(), 10);
    for (number, (key, seqs)) in keys.into_iter().enumerate() {
        let expected: Vec<u64> = (0..events / 10)
            .map(|round| round * 10 + number as u64 + 1)
            .collect();
        assert_eq!(seqs, expected, "{key}");
    }
}

#[test]
fn two_hundred_events_are_handled_in_the_order_of_their_keys() {
    let up = Up::start(&[]);
    publish(&up, 0..200);
    let worker = worker(&up, &[], TELL);
    let runs: Vec<_> = (0..200)
        .map(|_| handled(&worker.out.until("handled ")))
        .collect();
    assert!(runs.iter().all(|(.., attempt)| *attempt == 1));
    assert_whole_and_in_order(&runs, 200);
    worker.signal("TERM");
    let ended = worker.ended().with(0).says(&[
        "stopping: ",
        "consumer work: 200 done, 0 failed runs, 0 cut short",
    ]);
    assert_eq!(ended.stdout, "", "nothing was handled twice");
    // Whoever comes next goes on behind them.
    let next = self::worker(&up, &["--json"], TELL);
    publish(&up, 200..201);
    assert_eq!(handled(&next.out.until("handled ")).1, 201);
    next.signal("TERM");
    let told = next.ended().with(0).json();
    assert_eq!((&told["done"], &told["cut"]), (&1.into(), &0.into()));
}

#[test]
fn a_worker_that_is_killed_loses_nothing_and_breaks_no_order() {
    let up = Up::start(&[]);
    publish(&up, 0..200);
    let first = worker(&up, &["--concurrency", "4"], TELL);
    let mut runs: Vec<_> = (0..60)
        .map(|_| handled(&first.out.until("handled ")))
        .collect();
    first.signal("KILL");
    let Running { out, .. } = first;
    // Up to what its last commands had to say.
    runs.extend(out.rest().iter().map(|line| handled(line)));
    assert!(runs.len() < 200, "it was killed in the middle");
    let before = runs.len();
    let second = worker(&up, &[], TELL);
    let seen = |runs: &[_]| by_key(runs).values().map(Vec::len).sum::<usize>();
    while seen(&runs) < 200 {
        runs.push(handled(&second.out.until("handled ")));
    }
    assert_whole_and_in_order(&runs, 200);
    // Again at most what the first one ran: what was running, and what was not written down yet.
    assert!(runs.len() <= 200 + before, "{} runs", runs.len());
    second.signal("TERM");
    second.ended().with(0);
}

/// A folder for one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("trunkline-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

#[test]
fn the_end_of_a_command_decides_about_its_event() {
    let up = Up::start(&[]);
    let folder = Folder::new("ends");
    let script = r#"
        first() { mkdir "$0/$TRUNKLINE_SEQ" 2>/dev/null; }
        case "$TRUNKLINE_EVENT_TYPE" in
            order.wrong) echo 'no such order' >&2; exit 65 ;;
            order.busy) if first; then echo 'retry-after: 1' >&2; exit 75; fi ;;
            order.later) if first; then exit 75; fi ;;
            order.odd) if first; then echo 'odd' >&2; exit 3; fi ;;
            order.crash) if first; then kill -KILL $$; fi ;;
            order.deaf) exec <&- ;;
            order.loud) i=0; while [ $i -lt 200 ]; do printf '%01000d\n' $i >&2; i=$((i + 1)); done ;;
        esac
        echo "ended $TRUNKLINE_EVENT_TYPE $TRUNKLINE_ATTEMPT $TRUNKLINE_CONSUMER $TRUNKLINE_STREAM ${TRUNKLINE_KEY-none}"
    "#;
    let types = ["wrong", "busy", "later", "odd", "crash", "loud"];
    for (number, one) in types.iter().enumerate() {
        let key = format!("k{number}");
        up.publish(&[&format!("order.{one}"), "{}", "--key", &key]);
    }
    // More than a pipe holds.
    let long = folder.0.join("long.json");
    fs::write(&long, format!("\"{}\"", "x".repeat(500_000))).unwrap();
    up.publish(&["order.deaf", &format!("@{}", long.display())]);
    let exec = ["--exec", "sh", "-c", script, folder.path()];
    let usual = [
        "worker",
        "--consumer",
        "work",
        "--filter",
        "order.>",
        "--delays",
        "10ms",
    ];
    let worker = Running::start(up.command(&[&usual[..], &exec].concat()));
    let mut lines: Vec<String> = (0..6).map(|_| worker.out.until("ended ")).collect();
    lines.sort();
    let expected = [
        // A crash and an odd end count, not now does, and that with a time does not.
        "ended order.busy 1 work EVENTS k1",
        "ended order.crash 2 work EVENTS k4",
        "ended order.deaf 1 work EVENTS none",
        "ended order.later 2 work EVENTS k2",
        "ended order.loud 1 work EVENTS k5",
        "ended order.odd 2 work EVENTS k3",
    ];
    assert_eq!(lines, expected);
    worker.signal("TERM");
    worker.ended().with(0).says(&[
        "it exited with 65: no such order",
        "it exited with 75",
        "it exited with 3: odd",
        "it was killed by signal: 9 (SIGKILL)",
        "stored as a dead letter",
        "6 done, 5 failed runs, 0 cut short",
    ]);
    let shown = up
        .run(&["consumers", "show", "work", "--json"])
        .with(0)
        .json();
    assert_eq!(
        (
            &shown[0]["dead"],
            &shown[0]["handled"],
            &shown[0]["waiting"]
        ),
        (&1.into(), &6.into(), &0.into())
    );
}

#[test]
fn what_runs_may_end_when_the_worker_is_stopped() {
    let up = Up::start(&[]);
    up.publish(&["order.placed", "1", "--key", "a"]);
    up.publish(&["order.placed", "2", "--key", "a"]);
    let folder = Folder::new("drain");
    let gate = folder.0.join("gate");
    let script = format!(
        "echo began; until [ -e {0} ]; do :; done; echo ended",
        gate.display()
    );
    let worker = worker(&up, &[], &script);
    worker.out.until("began");
    worker.signal("TERM");
    worker.err.until("stopping: 1 commands run");
    fs::write(&gate, "").unwrap();
    let ended = worker
        .ended()
        .with(0)
        .says(&["1 done, 0 failed runs, 0 cut short, 1 given back"]);
    assert_eq!(ended.stdout, "ended\n");
    let next = self::worker(&up, &[], TELL);
    next.out.until("handled a 2 1");
    next.signal("TERM");
    next.ended().with(0);
}

#[test]
fn what_does_not_end_in_time_is_cut_short_and_comes_again() {
    let up = Up::start(&[]);
    up.publish(&["order.placed", "1", "--key", "a"]);
    let script = "trap 'echo asked; exit 0' TERM; sleep 600 & echo began; wait; wait";
    let usual = ["worker", "--consumer", "work", "--filter", "order.>"];
    let mut command = up.command(&[&usual[..], &["--exec", "sh", "-c", script]].concat());
    command.env("TRUNKLINE_DRAIN_DEADLINE", "100ms");
    let worker = Running::start(command);
    worker.out.until("began");
    worker.signal("TERM");
    // Its output ends only when nobody holds it any more, the sleep behind it included.
    let ended = worker
        .ended()
        .with(1)
        .says(&["0 done, 0 failed runs, 1 cut short"]);
    assert_eq!(ended.stdout, "asked\n");
    let next = self::worker(&up, &[], "echo \"again $TRUNKLINE_SEQ $TRUNKLINE_ATTEMPT\"");
    next.out.until("again 1 1");
    next.signal("TERM");
    next.ended().with(0);
}

#[test]
fn what_runs_too_long_is_stopped_with_all_that_it_started() {
    let up = Up::start(&[]);
    up.publish(&["order.placed", "1", "--key", "a"]);
    // Neither it nor what it started heeds the first signal.
    let script = "trap '' TERM; if [ $TRUNKLINE_ATTEMPT = 1 ]; then sleep 600; else echo ended; sleep 600 & fi";
    let worker = worker(&up, &["--time-out", "200ms", "--delays", "10ms"], script);
    worker.out.until("ended");
    worker.signal("TERM");
    let ended = worker
        .ended()
        .with(0)
        .says(&["it ran for more than 200 ms", "1 done, 1 failed runs"]);
    assert_eq!(ended.stdout, "");
}

#[test]
fn a_command_that_cannot_be_run_is_refused_at_once() {
    let worker = |exec: &str| {
        run(&[
            "worker",
            "--consumer",
            "work",
            "--filter",
            "a.>",
            "--exec",
            exec,
        ])
        .with(2)
    };
    worker("no-such-command").says(&["TL-0008", "no command no-such-command on the PATH"]);
    worker("./nothing/here").says(&["./nothing/here cannot be run"]);
    worker("/etc/passwd").says(&["/etc/passwd cannot be run: it is not executable"]);
    run(&["worker", "--consumer", "work", "--exec", "true"])
        .with(2)
        .says(&["--filter"]);
}

#[test]
fn a_second_signal_is_the_deadline() {
    let up = Up::start(&[]);
    up.publish(&["order.placed", "1", "--key", "a"]);
    let worker = worker(&up, &[], "echo began; sleep 600");
    worker.out.until("began");
    worker.signal("TERM");
    worker
        .err
        .until("stopping: 1 commands run and have 25 s to end");
    worker.signal("TERM");
    worker
        .ended()
        .with(1)
        .says(&["0 done, 0 failed runs, 1 cut short"]);
}

#[test]
fn a_command_that_went_away_is_no_fault_of_its_event() {
    let up = Up::start(&[]);
    up.publish(&["order.placed", "1", "--key", "a"]);
    let folder = Folder::new("gone");
    let file = folder.0.join("handle");
    fs::write(&file, "#!/no/such/interpreter\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&file, mode).unwrap();
    let usual = [
        "worker",
        "--consumer",
        "work",
        "--filter",
        "order.>",
        "--attempts",
        "1",
    ];
    let exec = ["--exec", file.to_str().unwrap()];
    let worker = Running::start(up.command(&[&usual[..], &exec].concat()));
    let told = worker.err.until("could not be started");
    assert!(told.contains("again_in=Some(10s)"), "{told}");
    worker.signal("TERM");
    worker.ended().with(0).says(&["0 done, 1 failed runs"]);
    let shown = up
        .run(&["consumers", "show", "work", "--json"])
        .with(0)
        .json();
    assert_eq!(
        (&shown[0]["dead"], &shown[0]["waiting"]),
        (&0.into(), &1.into())
    );
}

#[test]
fn a_command_is_told_of_dead_letters() {
    let up = Up::start(&[]);
    publish(&up, 0..1);
    let failing = worker(&up, &["--attempts", "1"], "echo 'no bank' >&2; exit 1");
    let alert = r#"read -r dead; echo "told $TRUNKLINE_EVENT_ID $dead""#;
    let usual = ["worker", "--consumer", "alerts", "--dead-letters"];
    let alerts = Running::start(up.command(&[&usual[..], &["--exec", "sh", "-c", alert]].concat()));
    alerts.err.until("consumer alerts handles dead letters");
    let told = alerts.out.until("told ");
    let parts: Vec<&str> = told.splitn(3, ' ').collect();
    assert_eq!(parts[1], "dlq:work:EVENTS:1:0");
    let document: serde_json::Value = serde_json::from_str(parts[2]).unwrap();
    assert_eq!(document["dead_letter"], "work/EVENTS/1");
    assert_eq!(document["event"]["data"]["n"], 0);
    let error = document["error"].as_str().unwrap();
    assert!(error.contains("no bank"), "{error}");
    for one in [failing, alerts] {
        one.signal("TERM");
        one.ended().with(0);
    }
}
