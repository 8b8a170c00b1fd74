//! The built command, driven as its users do.

// Helpers of tests are tests to a reader, though not to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::Value;

use support::{Up, WATCHDOG, run};

/// A bus and its door, asked by hand.
struct Asked(Up);

impl Asked {
    fn start(arguments: &[&str]) -> Self {
        Self(Up::start(arguments))
    }

    /// Sends a request and gives the connection, the answer unread.
    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.0.authority).unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        stream
            .write_all(request.replace("$HOST", &self.0.authority).as_bytes())
            .unwrap();
        stream
    }

    fn publish(&self, body: &str) -> String {
        let length = body.len();
        let mut answer = String::new();
        let request = format!(
            "POST /v1/events?type=order.placed HTTP/1.1\r\nhost: $HOST\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.send(&request).read_to_string(&mut answer).unwrap();
        answer
    }

    fn tail(&self) -> BufReader<TcpStream> {
        let request = "GET /v1/events HTTP/1.1\r\nhost: $HOST\r\naccept: text/event-stream\r\n\r\n";
        let mut tail = BufReader::new(self.send(request));
        assert_eq!(until(&mut tail, "HTTP/1.1"), "HTTP/1.1 200 OK");
        // The first part of the body: from here on nothing is missed.
        until(&mut tail, "id: ");
        tail
    }
}

/// The first line that begins so, without its end.
fn until(reader: &mut impl BufRead, start: &str) -> String {
    loop {
        let mut line = String::new();
        assert_ne!(
            reader.read_line(&mut line).unwrap(),
            0,
            "it ended before {start:?}"
        );
        if line.starts_with(start) {
            return line.trim_end().to_owned();
        }
    }
}

#[cfg(unix)]
#[test]
fn what_is_published_arrives_and_sigterm_ends_it_well() {
    let up = Asked::start(&["--source", "/shop"]);
    let mut tail = up.tail();
    let answer = up.publish("{\"total\":7}");
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"stored\":1"),
        "{answer}"
    );
    let event = until(&mut tail, "data: ");
    let event: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(
        (&event["source"], &event["data"]["total"]),
        (&Value::from("/shop"), &Value::from(7))
    );
    let authority = up.0.authority.clone();
    let (code, stderr) = up.0.terminate();
    assert_eq!(code, 0, "{stderr}");
    for part in [
        &format!("listens on http://{authority}"),
        "events are gone when it stops",
        "stopped",
    ] {
        assert!(stderr.contains(part), "{stderr}");
    }
    let mut rest = String::new();
    tail.read_to_string(&mut rest).unwrap();
    assert!(
        rest.ends_with("0\r\n\r\n"),
        "the stream ends properly: {rest:?}"
    );
}

#[test]
fn a_body_over_the_limit_is_refused() {
    let up = Asked::start(&["--max-body", "10"]);
    let answer = up.publish("{\"total\":1234}");
    assert!(
        answer.starts_with("HTTP/1.1 413") && answer.contains("TL-0101"),
        "{answer}"
    );
}

#[test]
fn a_busy_port_is_told_with_a_remedy() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let ended = run(&["up", "--listen", &address, "--url", "memory:"]);
    assert_eq!(ended.code, 1);
    ended.says(&["TL-0310", &address, "--listen"]);
}

#[test]
fn wrong_usage_ends_with_2_and_names_the_fault() {
    for (arguments, part) in [
        (
            &["up", "--url", "carrier-pigeon:coop"][..],
            "carrier-pigeon",
        ),
        (&["up", "--url", "memory:?size=1"], "is not an option"),
        (&["up", "--url", "http://127.0.0.1:7400"], "runs already"),
        (&["up", "--listn", "127.0.0.1:0"], "--listen"),
        (&["up", "--listen", "nowhere"], "127.0.0.1:7400"),
        (&["up", "--listen", "0.0.0.0:0"], "--expose"),
        (
            &["up", "--url", "memory:", "--allow-origin", "*"],
            "\"*\" is no origin",
        ),
        (&["up", "--source", ""], "source"),
        (&["fly"], "fly"),
        (&[], "up"),
    ] {
        run(arguments).with(2).says(&[part]);
    }
}
