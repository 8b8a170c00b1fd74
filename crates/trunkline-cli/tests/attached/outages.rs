//! The bus goes away while a command works, and perhaps comes back.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

use crate::publishing::replayed;
use crate::support::{Running, Up, at};

/// A way to the bus that can swallow its answers and then end, while the bus lives on: so what it
/// stored can be compared with what the command knows.
struct Gate {
    url: String,
    state: Arc<GateState>,
}

#[derive(Default)]
struct GateState {
    swallows: AtomicBool,
    closed: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Gate {
    fn to(up: &Up) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (state, to) = (Arc::<GateState>::default(), up.authority.clone());
        let gate = Self {
            url,
            state: Arc::clone(&state),
        };
        thread::spawn(move || {
            for client in listener.incoming() {
                if state.closed.load(Ordering::SeqCst) {
                    return;
                }
                let (client, bus) = (client.unwrap(), TcpStream::connect(&to).unwrap());
                let copies = [&client, &bus, &client, &bus].map(|end| end.try_clone().unwrap());
                let [from_client, from_bus, to_client, to_bus] = copies;
                state.streams.lock().unwrap().extend([client, bus]);
                thread::spawn(move || copy(from_client, to_bus, &AtomicBool::new(false)));
                let state = Arc::clone(&state);
                thread::spawn(move || copy(from_bus, to_client, &state.swallows));
            }
        });
        gate
    }

    /// From now on nothing that the bus says arrives.
    fn swallow_answers(&self) {
        self.state.swallows.store(true, Ordering::SeqCst);
    }

    /// Nobody listens here any more once this returns.
    fn close(&self) {
        self.state.closed.store(true, Ordering::SeqCst);
        // Wakes whoever waits for the next connection, who then ends.
        let authority = self.url.trim_start_matches("http://");
        while TcpStream::connect(authority).is_ok() {
            thread::yield_now();
        }
        for stream in self.state.streams.lock().unwrap().drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, swallows: &AtomicBool) {
    let mut buffer = [0; 8 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if !swallows.load(Ordering::SeqCst) && to.write_all(&buffer[..read]).is_err() {
            return;
        }
    }
}

fn cloud_events(numbers: std::ops::RangeInclusive<u64>) -> String {
    numbers
        .map(|n| {
            format!(
                "{{\"specversion\":\"1.0\",\"id\":\"e-{n}\",\"source\":\"/s\",\"type\":\"a.b\",\"data\":{n}}}\n"
            )
        })
        .collect()
}

/// A `pub -` through the gate that gives up after two seconds.
fn publishing(gate: &Gate, more: &[&str]) -> Running {
    let mut command = at(&gate.url, &[&["pub", "-"], more].concat());
    command.env("TRUNKLINE_CONNECTION__PUBLISH_TIMEOUT", "2s");
    Running::start(command)
}

#[test]
fn every_line_is_accounted_for_when_the_bus_cannot_be_reached_any_more() {
    let up = Up::start(&[]);
    let gate = Gate::to(&up);
    let sub = Running::following(up.command(&["sub"]));
    let mut pub_ = publishing(&gate, &["--json"]);
    pub_.feed(&cloud_events(1..=100));
    pub_.feed("nonsense\n");
    // It is told in its turn, so what is before it is answered.
    pub_.out.until("\"line\":101,\"status\":\"refused\"");
    sub.out.until("\"e-100\"");
    gate.swallow_answers();
    pub_.feed(&cloud_events(102..=900));
    // So the bus has some of which the command hears nothing.
    sub.out.next();
    gate.close();
    let mut stdin = pub_.stdin.take().unwrap();
    // It does not read them all, and then the pipe breaks.
    let feeding = thread::spawn(move || {
        let _ = stdin.write_all(cloud_events(901..=30_000).as_bytes());
    });
    let ended = pub_.ended().with(4);
    feeding.join().unwrap();

    let mut lines = ended.json_lines();
    let sum = lines.pop().unwrap();
    let tried = sum["stopped_before_line"].as_u64().unwrap();
    let mut not_stored = BTreeSet::new();
    for line in &lines {
        assert_eq!(line["status"], "unknown", "{line}");
        assert_eq!(line["error"]["code"], "TL-0203");
        let number = line["line"].as_u64().unwrap();
        assert_eq!(line["id"], format!("e-{number}"));
        assert!(number < tried && not_stored.insert(number), "{line}");
    }
    assert_eq!(sum["unknown"], not_stored.len());
    assert!(!not_stored.is_empty(), "{sum}");
    let is_stored = |n: &u64| *n != 101 && !not_stored.contains(n);
    let stored: BTreeSet<u64> = (1..tried).filter(is_stored).collect();
    assert_eq!(sum["stored"], stored.len());
    let has = |event: &Value| event["data"].as_u64().unwrap();
    let there: BTreeSet<u64> = replayed(&up, &[]).iter().map(has).collect();
    assert!(stored.is_subset(&there), "{sum}");
    let perhaps: BTreeSet<u64> = stored.union(&not_stored).copied().collect();
    assert!(there.is_subset(&perhaps), "{sum}");
    assert!(
        there.len() > 100 && stored.len() == 100 && tried < 30_000,
        "{sum}"
    );
    assert!(ended.stderr.contains(&format!(
        "the bus went away; line {tried} and what follows was not tried"
    )));

    // What is unknown may be published again: nothing is there twice.
    up.fed(&["pub", "-"], &cloud_events(1..=1_000)).with(0);
    assert_eq!(replayed(&up, &[]).len(), 1_000);
}

#[test]
fn people_are_told_which_lines_are_unknown() {
    let up = Up::start(&[]);
    let gate = Gate::to(&up);
    let sub = Running::following(up.command(&["sub"]));
    let mut pub_ = publishing(&gate, &[]);
    pub_.feed(&cloud_events(1..=1));
    pub_.feed("nonsense\n");
    pub_.err.until("line 2: refused: ");
    sub.out.next();
    gate.swallow_answers();
    pub_.feed(&cloud_events(3..=3));
    sub.out.next();
    gate.close();
    pub_.err.until("note: disconnected: ");
    pub_.feed(&cloud_events(4..=40));
    let ended = pub_.ended().with(4);
    let sum = "stored 1 (0 duplicates) · refused 1 · unknown 1 · ";
    assert!(ended.stdout.starts_with(sum), "{ended:?}");
    ended.says(&[
        "line 3: unknown: TL-0203: ",
        "(id e-3)\n",
        "unknown: perhaps stored; publish them again with the same ids\n",
        "the bus went away; line 4 and what follows was not tried\n",
    ]);
}

#[test]
fn one_event_that_cannot_be_handed_over_ends_with_4() {
    let mut up = Up::start(&[]);
    let mut command = up.command(&["pub", "order.placed", "@-", "--id", "e-1"]);
    command.env("TRUNKLINE_CONNECTION__PUBLISH_TIMEOUT", "1s");
    let mut pub_ = Running::start(command);
    // Its data ends only after the bus did.
    let sub = Running::following(up.command(&["sub"]));
    pub_.feed("1");
    up.kill();
    sub.err.until("note: disconnected: ");
    let ended = pub_.ended().with(4);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.contains("TL-020"), "{ended:?}");
}

#[test]
fn a_bus_that_is_killed_ends_pub_with_4_and_the_sum() {
    let mut up = Up::start(&[]);
    let sub = Running::following(up.command(&["sub"]));
    let mut command = up.command(&["pub", "-", "--type", "a.b", "--json"]);
    command.env("TRUNKLINE_CONNECTION__PUBLISH_TIMEOUT", "1s");
    let mut pub_ = Running::start(command);
    pub_.feed("1\n");
    sub.out.next();
    up.kill();
    pub_.err.until("note: disconnected: ");
    pub_.feed(&"2\n".repeat(5_000));
    let ended = pub_.ended().with(4);
    let lines = ended.json_lines();
    let sum = lines.last().unwrap();
    // Line 1 is stored unless its answer was lost; of the others nothing is.
    let known = sum["stored"].as_u64().unwrap() + sum["unknown"].as_u64().unwrap();
    assert_eq!(known, 1, "{sum}");
    assert_eq!(
        (&sum["refused"], &sum["stopped_before_line"]),
        (&0.into(), &2.into())
    );
}

#[test]
fn followers_say_that_the_bus_is_away_and_go_on_with_the_next_one() {
    let mut up = Up::start(&[]);
    let authority = up.authority.clone();
    up.publish(&["order.placed", "\"one\""]);
    let followers = [
        &["sub", "order.>"][..],
        &["tail"],
        &["tail", "--json", "--since", "first"],
        &["replay", "--follow", "--json"],
        &["sub", "--live"],
    ]
    .map(|arguments| Running::following(up.command(arguments)));
    up.publish(&["order.placed", "\"two\""]);
    for follower in &followers {
        follower.out.until("two");
    }
    up.kill();
    for follower in &followers {
        follower.err.until("note: disconnected: ");
    }
    let up = Up::listen(&authority, &[]);
    for follower in &followers {
        // Either may be known first.
        let mut expected = BTreeSet::from([
            "note: connected again",
            "note: the bus was restarted and had kept nothing: stream EVENTS begins anew",
        ]);
        while !expected.is_empty() {
            // What is told to people is not told once more as a log.
            let said = follower.err.next();
            assert!(said.starts_with("note: "), "{said}");
            expected.remove(said.as_str());
        }
    }
    up.publish(&["order.placed", "\"three\""]);
    for follower in followers {
        let line = follower.out.next();
        assert!(line.contains("three"), "{line}");
        follower.interrupt();
        follower.ended().with(0);
    }
}

#[test]
fn ctrl_c_ends_a_follower_that_waits_for_its_bus() {
    let mut up = Up::start(&[]);
    for command in ["sub", "tail"] {
        let follower = Running::following(up.command(&[command]));
        if command == "tail" {
            up.kill();
            follower.err.until("note: disconnected: ");
        }
        follower.interrupt();
        follower.ended().with(0);
    }
    // And a command that waits for its first connection.
    let waiting = Running::start({
        let mut command = at(&crate::strangers::nobody(), &["explain"]);
        command.env("TRUNKLINE_CONNECTION__FIRST_CONNECT", "1h");
        command
    });
    waiting.err.until("cannot reach");
    waiting.interrupt();
    waiting.ended().with(130);
}

#[test]
fn a_follower_may_be_told_to_give_up() {
    let mut up = Up::start(&[]);
    let mut command = up.command(&["sub"]);
    command.env("TRUNKLINE_CONNECTION__RECONNECT_ATTEMPTS", "2");
    let sub = Running::following(command);
    up.kill();
    sub.ended().with(4).says(&["the bus was closed"]);
}

#[test]
fn a_history_whose_bus_goes_away_in_the_middle_is_not_passed_off_as_whole() {
    let mut up = Up::start(&[]);
    let text = "1\n".repeat(50_000);
    up.fed(&["pub", "-", "--type", "a.b"], &text).with(0);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = up.command(&["replay", "--json"]);
    command
        .env("TRUNKLINE_CONNECTION__REQUEST_TIMEOUT", "1s")
        .stdout(writer);
    let replay = Running::to_elsewhere(command);
    let mut lines = BufReader::new(reader).lines();
    assert!(lines.next().unwrap().is_ok());
    // The pipe is full by far before all of it was read from the bus.
    up.kill();
    let reading = thread::spawn(move || lines.count());
    // Its last question may have been sent, without an answer, or not.
    replay.ended().with(4).says(&["error: TL-020"]);
    assert!(reading.join().unwrap() < 50_000);
}
