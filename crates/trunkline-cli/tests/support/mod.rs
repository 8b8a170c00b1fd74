//! Running the built command as its users do. Nothing waits longer than the watchdog.

// Every test binary takes its part of it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// No test should need a fraction of this.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(30);

/// The command without anything of the environment that it would heed.
pub(crate) fn trunkline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TRUNKLINE_") {
            command.env_remove(name);
        }
    }
    for name in ["RUST_LOG", "NO_COLOR", "COLUMNS"] {
        command.env_remove(name);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What must happen before the watchdog bites.
pub(crate) fn in_time<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(what()));
    receiver.recv_timeout(WATCHDOG).expect("it ends in time")
}

#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What was written, one JSON value a line.
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let value = |line: &str| serde_json::from_str(line).expect(line);
        self.stdout.lines().map(value).collect()
    }

    /// What was written, as one JSON document.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).expect(&self.stdout)
    }

    /// It ended so.
    #[track_caller]
    pub(crate) fn with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Its standard error has all of these.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} in {self:#?}");
        }
        self
    }
}

pub(crate) fn ends(mut command: Command) -> Ended {
    Ended::of(in_time(move || command.output().unwrap()))
}

pub(crate) fn run(arguments: &[&str]) -> Ended {
    ends(trunkline(arguments))
}

/// Runs it with that text on its standard input.
pub(crate) fn fed(mut command: Command, input: &str) -> Ended {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // On a thread, since it may answer before it has read all; and it may not read all.
    thread::spawn(move || stdin.write_all(input.as_bytes()));
    Ended::of(in_time(move || child.wait_with_output().unwrap()))
}

pub(crate) fn signal(process: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &process.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

/// A running bus; killed if a test ends without stopping it.
pub(crate) struct Up {
    pub(crate) child: Child,
    pub(crate) authority: String,
}

impl Up {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::listen("127.0.0.1:0", arguments)
    }

    pub(crate) fn listen(address: &str, arguments: &[&str]) -> Self {
        let mut command = trunkline(&["up", "--listen", address, "--json"]);
        if !arguments.contains(&"--url") {
            command.args(["--url", "memory:"]);
        }
        let mut child = command.args(arguments).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let line = in_time(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).unwrap();
            line
        });
        let line: Value = serde_json::from_str(&line).unwrap();
        let is_file = |url: &&str| url.starts_with("file:");
        let engine = if arguments.iter().any(is_file) {
            "file"
        } else {
            "memory"
        };
        assert_eq!(line["engine"], engine);
        let listening = line["listening"].as_str().unwrap();
        let authority = listening.strip_prefix("http://").unwrap().to_owned();
        Self { child, authority }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    /// A command that works on this bus.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        at(&self.url(), arguments)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        ends(self.command(arguments))
    }

    pub(crate) fn fed(&self, arguments: &[&str], input: &str) -> Ended {
        fed(self.command(arguments), input)
    }

    /// Publishes one event.
    pub(crate) fn publish(&self, arguments: &[&str]) -> Value {
        self.run(&[&["pub", "--json"], arguments].concat())
            .with(0)
            .json()
    }

    /// Ends it without any chance to say so.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn terminate(mut self) -> (i32, String) {
        signal(self.child.id(), "TERM");
        let mut stderr = self.child.stderr.take().unwrap();
        let text = in_time(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        (self.child.wait().unwrap().code().unwrap(), text)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may have ended already, which is what most tests want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that works on the bus there, and does not wait for it longer than a test can.
pub(crate) fn at(url: &str, arguments: &[&str]) -> Command {
    let mut command = trunkline(arguments);
    command
        .env("TRUNKLINE_URL", url)
        .env("TRUNKLINE_CONNECTION__FIRST_CONNECT", "1s")
        .env("TRUNKLINE_CONNECTION__CONNECT_TIMEOUT", "2s")
        .env("TRUNKLINE_CONNECTION__RECONNECT_WAIT", "100ms");
    command
}

/// A command at work, whose output is read as it comes.
pub(crate) struct Running {
    child: Killed,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) out: Lines,
    pub(crate) err: Lines,
}

/// A process that does not outlive a test that fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It has mostly ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lines as they come.
pub(crate) struct Lines(mpsc::Receiver<String>);

impl Lines {
    pub(crate) fn of(from: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(from).lines() {
                if sender.send(line.unwrap()).is_err() {
                    return;
                }
            }
        });
        Self(receiver)
    }

    #[track_caller]
    pub(crate) fn next(&self) -> String {
        self.0.recv_timeout(WATCHDOG).expect("a line in time")
    }

    /// The next line, or nothing at the end.
    pub(crate) fn first(&self) -> Option<String> {
        self.0.recv().ok()
    }

    /// The first line from here on that has this in it.
    #[track_caller]
    pub(crate) fn until(&self, part: &str) -> String {
        let end = Instant::now() + WATCHDOG;
        let mut seen = Vec::new();
        loop {
            match self
                .0
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => seen.push(line),
                Err(error) => panic!("{part:?} did not come: {error}; but {seen:#?}"),
            }
        }
    }

    /// Everything up to the end.
    pub(crate) fn rest(self) -> Vec<String> {
        in_time(move || self.0.iter().collect())
    }
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        Self {
            stdin: child.stdin.take(),
            out: Lines::of(child.stdout.take().unwrap()),
            err: Lines::of(child.stderr.take().unwrap()),
            child: Killed(child),
        }
    }

    /// One whose standard output is for somebody else.
    pub(crate) fn to_elsewhere(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        // This end of what it writes to must not be what keeps it open.
        drop(command);
        Self {
            stdin: None,
            out: Lines::of(std::io::empty()),
            err: Lines::of(child.stderr.take().unwrap()),
            child: Killed(child),
        }
    }

    /// One that says when it follows, and does.
    pub(crate) fn following(command: Command) -> Self {
        let running = Self::start(command);
        running.err.until("following ");
        running
    }

    pub(crate) fn feed(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    pub(crate) fn interrupt(&self) {
        self.signal("INT");
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(self.child.0.id(), name);
    }

    /// Asks it to end, with its standard input still open.
    pub(crate) fn interrupted(mut self) -> Ended {
        let stdin = self.stdin.take();
        self.interrupt();
        let ended = self.ended();
        drop(stdin);
        ended
    }

    /// Waits until ctrl-c is the command's own business.
    #[cfg(target_os = "linux")]
    pub(crate) fn until_it_heeds_interrupts(&self) {
        let id = self.child.0.id();
        in_time(move || {
            while !catches_interrupts(id) {
                thread::yield_now();
            }
        });
    }

    /// How it ended, and what it wrote since.
    pub(crate) fn ended(self) -> Ended {
        let Self {
            mut child,
            stdin,
            out,
            err,
        } = self;
        drop(stdin);
        let status = in_time(move || child.0.wait().unwrap());
        Ended {
            code: status.code().unwrap(),
            stdout: lines(out.rest()),
            stderr: lines(err.rest()),
        }
    }
}

fn lines(lines: Vec<String>) -> String {
    lines.into_iter().map(|line| line + "\n").collect()
}

#[cfg(target_os = "linux")]
fn catches_interrupts(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
    mask & 0b10 != 0
}
