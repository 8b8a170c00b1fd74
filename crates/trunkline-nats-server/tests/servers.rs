//! Real servers, killed, restarted and left behind.
#![cfg(unix)]
// Helpers of tests are tests to a reader, though not to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use trunkline_nats_server::{
    ErrorKind, NatsServer, PINNED, ServerOptions, find, obtain, obtain_version, safe_config,
};

/// No test should need a fraction of this.
const WATCHDOG: Duration = Duration::from_secs(30);

fn start(options: ServerOptions) -> NatsServer {
    NatsServer::start(&obtain().unwrap(), options).unwrap()
}

/// A client that speaks just enough of the protocol.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(server: &NatsServer) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        let mut client = Self(BufReader::new(stream));
        assert!(client.line().starts_with("INFO "));
        client
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// The answer to a request.
    fn request(&mut self, subject: &str, body: &str) -> String {
        self.send(
            "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\nSUB box 1\r\n",
        );
        let length = body.len();
        self.send(&format!("PUB {subject} box {length}\r\n{body}\r\n"));
        loop {
            let line = self.line();
            assert!(!line.is_empty(), "the connection ended");
            if line.starts_with("MSG ") {
                return self.line();
            }
        }
    }
}

fn messages(server: &NatsServer) -> String {
    let answer = Client::connect(server).request("$JS.API.STREAM.INFO.KEPT", "");
    let (_, count) = answer.split_once("\"messages\":").expect(&answer);
    count.split(',').next().unwrap().to_owned()
}

fn lives(pid: u32) -> bool {
    // A process that ended and was not waited for by its new parent counts as gone.
    let state = Command::new("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output()
        .unwrap();
    let state = String::from_utf8(state.stdout).unwrap();
    !state.trim().is_empty() && !state.trim().starts_with('Z')
}

fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + WATCHDOG;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_killed_server_comes_back_on_its_port_with_its_data() {
    let mut server = start(ServerOptions {
        sync_always: true,
        ..ServerOptions::default()
    });
    let (port, store, pid) = (server.port(), server.store_dir().to_owned(), server.pid());
    let stream = "{\"name\":\"KEPT\",\"subjects\":[\"kept\"],\"retention\":\"limits\",\"storage\":\"file\",\"max_consumers\":-1,\"max_msgs\":-1,\"max_bytes\":-1,\"max_age\":0,\"num_replicas\":1}";
    let made = Client::connect(&server).request("$JS.API.STREAM.CREATE.KEPT", stream);
    assert!(made.contains("\"created\""), "{made}");
    let stored = Client::connect(&server).request("kept", "one");
    assert!(stored.contains("\"seq\":1"), "{stored}");

    server.kill().unwrap();
    assert!(!server.is_running() && !lives(pid));
    server.restart().unwrap();
    assert_eq!((server.port(), server.store_dir()), (port, store.as_path()));
    assert_ne!(server.pid(), pid);
    assert_eq!(messages(&server), "1");

    server.stop().unwrap();
    assert!(
        server.log_tail(3).contains("Server Exiting"),
        "{}",
        server.log_tail(3)
    );
    assert_eq!(server.pause().unwrap_err().kind(), ErrorKind::Ended);
    server.restart().unwrap();
    assert_eq!(messages(&server), "1");

    let pid = server.pid();
    drop(server);
    assert!(!store.exists() && !lives(pid));
}

#[test]
fn two_servers_share_nothing() {
    let (one, two) = (
        start(ServerOptions::default()),
        start(ServerOptions::default()),
    );
    assert_ne!(one.port(), two.port());
    assert_ne!(one.monitor_url(), two.monitor_url());
    assert_ne!(one.store_dir(), two.store_dir());
    assert_eq!(one.url(), format!("nats://127.0.0.1:{}", one.port()));
}

#[test]
fn a_paused_server_accepts_and_answers_nothing_until_it_is_resumed() {
    let mut server = start(ServerOptions {
        monitor: false,
        ..ServerOptions::default()
    });
    assert_eq!(server.monitor_url(), None);
    server.pause().unwrap();
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(stream.read(&mut [0; 4]).is_err());
    server.resume().unwrap();
    stream.set_read_timeout(Some(WATCHDOG)).unwrap();
    let mut greeting = [0; 4];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"INFO");
    server.pause().unwrap();
    server.stop().unwrap();
    assert!(!server.is_running());
}

#[test]
fn a_lame_duck_ends_soon_with_few_connections() {
    let mut server = start(ServerOptions::default());
    let mut client = Client::connect(&server);
    client.send("CONNECT {\"verbose\":false}\r\nPING\r\n");
    assert_eq!(client.line(), "PONG");
    server.lame_duck().unwrap();
    assert!(
        server.wait(Duration::from_secs(10)),
        "{}",
        server.log_tail(5)
    );
}

#[test]
fn a_reload_adds_accounts_and_a_wrong_one_changes_nothing() {
    let mut server = start(ServerOptions::default());
    let secret = "authorization { user: ann, password: hunter2 }";
    server.reload(secret).unwrap();
    assert!(Client::connect(&server).0.get_ref().peer_addr().is_ok());
    let mut client = Client::connect(&server);
    client.send("CONNECT {\"verbose\":false}\r\nPING\r\n");
    assert!(client.line().contains("Authorization Violation"));

    let error = server.reload("nonsense: true").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("nonsense"), "{error}");
    assert!(server.is_running());
    let config = fs::read_to_string(server.config_path()).unwrap();
    assert!(config.contains(secret) && !config.contains("nonsense"));
    let mode = server
        .config_path()
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o077, 0);
}

#[test]
fn a_configuration_that_the_server_refuses_is_told_in_its_words() {
    let options = ServerOptions {
        extra: "nonsense: true".to_owned(),
        ..ServerOptions::default()
    };
    let error = NatsServer::start(&obtain().unwrap(), options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("nonsense"), "{error}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    for monitor in [false, true] {
        let options = ServerOptions {
            port,
            monitor,
            ..ServerOptions::default()
        };
        let error = NatsServer::start(&obtain().unwrap(), options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PortInUse);
        assert!(
            error.to_string().contains(&format!("127.0.0.1:{port}")),
            "{error}"
        );
    }
}

#[test]
fn a_folder_has_one_server_and_it_is_safe_as_documented() {
    let home = start(ServerOptions {
        jetstream: false,
        ..ServerOptions::default()
    });
    let dir = home.store_dir().join("trunkline-nats");
    let mut safe = start(ServerOptions::safe(&dir, 0, 1_000_000_000));
    let error = NatsServer::start(&obtain().unwrap(), ServerOptions::safe(&dir, 0, 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DirectoryInUse);
    let written = fs::read_to_string(safe.config_path()).unwrap();
    let dir = dir.canonicalize().unwrap();
    assert_eq!(written, safe_config(&dir, safe.port(), 1_000_000_000));
    assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    safe.stop().unwrap();
    drop(safe);
    assert!(
        dir.join("jetstream").is_dir(),
        "a folder that was named stays"
    );
}

#[test]
fn many_threads_obtain_one_server() {
    let threads: Vec<_> = (0..8)
        .map(|_| thread::spawn(|| obtain_version(PINNED).unwrap()))
        .collect();
    let binaries: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    assert!(binaries.iter().all(|binary| *binary == binaries[0]));
    assert_eq!(binaries[0].version.to_string(), PINNED);
}

/// Set in the copy of this test program that is to be killed.
const ROLE: &str = "TRUNKLINE_TEST_ROLE";

/// What the copy does; in a plain run there is nothing to do here.
#[test]
fn as_the_victim() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    let server = start(ServerOptions::default());
    println!("\nserver {} {}", server.pid(), server.store_dir().display());
    loop {
        thread::park();
    }
}

#[test]
fn a_server_does_not_outlive_a_process_that_is_killed() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_the_victim", "--nocapture"])
        .env(ROLE, "victim")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = victim.stdout.take().unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let mut told = lines.filter_map(|line| line.strip_prefix("server ").map(str::to_owned));
        sender.send(told.next())
    });
    let told = receiver.recv_timeout(WATCHDOG).unwrap().unwrap();
    let (pid, store) = told.split_once(' ').unwrap();
    let (pid, store): (u32, PathBuf) = (pid.parse().unwrap(), store.into());
    assert!(lives(pid) && store.exists());
    victim.kill().unwrap();
    victim.wait().unwrap();
    soon("the server outlives us", || !lives(pid));
    soon("its folder outlives us", || !store.exists());
}

#[test]
fn what_is_found_is_what_the_variable_names() {
    // In a process of its own under nextest, and unset otherwise: either answer must be a proper one.
    match find() {
        Ok(binary) => assert!(binary.path.exists()),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Missing),
    }
}
