//! What answers at the URL is nothing, or something else than a bus.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use crate::support::{Ended, Up, WATCHDOG, at, ends};

/// Every command that needs a bus.
const COMMANDS: &[&[&str]] = &[
    &["pub", "order.placed", "1"],
    &["pub", "-"],
    &["sub", "--timeout", "1s"],
    &["tail"],
    &["replay"],
    &["streams", "list"],
    &["streams", "info", "EVENTS"],
    &["streams", "cat", "EVENTS"],
    &["consumers", "list"],
    &["consumers", "delete", "billing", "--yes"],
    &["explain"],
    &["bench"],
];

/// Something that listens and does this with whoever comes.
fn stranger(greets: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            greets(stream.unwrap());
        }
    });
    url
}

/// Reads the request before it answers with this.
fn answering(answer: &'static str) -> String {
    stranger(move |mut stream| {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(answer.as_bytes());
    })
}

/// Nobody listens there: the port was free a moment ago.
pub(crate) fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn published(url: &str) -> Ended {
    ends(at(url, &["pub", "order.placed", "1"]))
}

#[test]
fn nobody_there_ends_every_command_with_4_and_says_so_at_once() {
    let url = nobody();
    thread::scope(|scope| {
        for arguments in COMMANDS {
            let url = &url;
            scope.spawn(move || {
                let ended = ends(at(url, arguments)).with(4).says(&[
                    &format!("WARN cannot reach {url} cause=Connection refused"),
                    &format!("error: TL-0202: cannot reach {url}\n"),
                    "Connection refused",
                    "`trunkline up` starts one",
                    "--url",
                ]);
                assert_eq!(ended.stdout, "", "{arguments:?}");
                let quiet = ends(at(url, &[arguments, &["--quiet"][..]].concat())).with(4);
                assert!(quiet.stderr.starts_with("error: TL-0202"), "{quiet:?}");
            });
        }
    });
}

#[test]
fn another_protocol_is_told_from_a_bus_at_once() {
    let began = Instant::now();
    let ssh = stranger(|mut stream| {
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n");
        let _ = stream.read(&mut [0; 4096]);
    });
    let redis = answering("-ERR unknown command 'GET'\r\n");
    for url in [ssh, redis] {
        published(&url).with(2).says(&[
            &format!(
                "error: TL-0205: {url} is no Trunkline bus: it speaks something else than HTTP"
            ),
            "remedy: Check the address and the port",
        ]);
    }
    for (status, url) in [
        (
            "404 Not Found",
            answering("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope"),
        ),
        (
            "200 OK",
            answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
        ),
        (
            "302 Found",
            answering("HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n"),
        ),
    ] {
        published(&url).with(2).says(&[&format!(
            "error: TL-0205: {url} is a web server but no Trunkline bus: it answers {status}"
        )]);
    }
    assert!(began.elapsed() < WATCHDOG);
}

#[test]
fn what_may_be_a_bus_that_is_not_ready_is_tried_for_a_while() {
    for url in [stranger(drop), answering("")] {
        published(&url).with(4).says(&[
            "error: TL-0202: ",
            &url,
            "if that stays so, it is no Trunkline bus",
        ]);
    }
    let kept = std::sync::Mutex::new(Vec::new());
    let silent = stranger(move |stream| kept.lock().unwrap().push(stream));
    published(&silent).with(4).says(&[&format!(
        "{silent} takes connections but did not answer as a Trunkline bus within 2s"
    )]);
    let starting = answering(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 25\r\n\r\n{\"detail\":\"it is closing\"}",
    );
    published(&starting)
        .with(4)
        .says(&["is not ready: it is closing"]);
}

#[test]
fn a_door_that_does_not_let_in_ends_with_5() {
    let guarded = answering(
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 34\r\n\r\n{\"detail\":\"the host is not known.\"}",
    );
    published(&guarded).with(5).says(&[
        &format!("error: TL-0204: {guarded} refuses: the host is not known"),
        "remedy: ",
    ]);
    // The true one: the name by which it is called is none of its own.
    let up = Up::start(&[]);
    let url = format!("http://127.1:{}", port(&up));
    published(&url)
        .with(5)
        .says(&["error: TL-0204: ", "Host \"127.1:", "is not served here"]);
}

fn port(up: &Up) -> &str {
    up.authority.rsplit(':').next().unwrap()
}

#[test]
fn a_wrong_url_is_told_without_its_password() {
    for (url, part) in [
        ("", "TRUNKLINE_URL: url: "),
        ("localhost:7400", "http://HOST"),
        ("https://bus.lan", "there is no engine"),
        ("carrier-pigeon:coop", "carrier-pigeon"),
        ("http://ann:hunter2@bus.lan", "no password"),
        ("http://bus.lan?token=hunter2", "no options"),
        ("http://", "not a URL"),
    ] {
        let ended = published(url).with(2).says(&[part]);
        assert!(!ended.stderr.contains("hunter2"), "{ended:?}");
    }
}
