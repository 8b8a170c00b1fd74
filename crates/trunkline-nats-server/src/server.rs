//! One server.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::config::{Addresses, Routes, render};
use crate::error::{Error, ErrorKind};
use crate::find::Binary;
use crate::guard::Guarded;
use crate::monitor;
use crate::options::ServerOptions;
use crate::place::Place;
use crate::ports;

/// How long a server may take until it answers.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// How long a server may take to end by itself before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// How long a server may take to read its configuration again.
const RELOAD_DEADLINE: Duration = Duration::from_secs(10);

/// How often a server is looked at while something is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How many random ports are tried.
const PORT_ATTEMPTS: u32 = 20;

/// The lines of the log that an error shows.
const TAIL: usize = 12;

/// A nats-server that this process runs. Dropping it kills the server; [`stop`](Self::stop) ends it
/// gently. If this process is killed, the server is killed too.
#[derive(Debug)]
pub struct NatsServer {
    // The first field, so that the server ends before its folder goes.
    process: Guarded,
    program: PathBuf,
    options: ServerOptions,
    addresses: Addresses,
    config: PathBuf,
    log: File,
    place: Place,
}

impl NatsServer {
    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// [`ErrorKind::PortInUse`] when the port that was asked for is taken,
    /// [`ErrorKind::DirectoryInUse`] and [`ErrorKind::NotPrivate`] for the folder,
    /// [`ErrorKind::InvalidConfig`] when the server refuses what it was told, with its words, and
    /// [`ErrorKind::TimedOut`] when it does not answer within 20 s, with the end of its log.
    pub fn start(binary: &Binary, options: ServerOptions) -> Result<Self, Error> {
        Self::start_in(binary, options, None)
    }

    pub(crate) fn start_in(
        binary: &Binary,
        options: ServerOptions,
        cluster: Option<&Routes>,
    ) -> Result<Self, Error> {
        let place = match &options.dir {
            Some(dir) => Place::lasting(dir)?,
            None => Place::temporary()?,
        };
        let log = place.locked_log()?;
        let mut attempt = 1;
        loop {
            let addresses = Addresses {
                client: match options.port {
                    0 => ports::candidate(),
                    port => port,
                },
                monitor: options.monitor.then(ports::candidate),
                cluster: cluster.cloned(),
            };
            let random = options.port == 0 || options.monitor;
            match launch(&binary.path, &options, &addresses, &place, &log) {
                Ok((process, config)) => {
                    return Ok(Self {
                        process,
                        program: binary.path.clone(),
                        options,
                        addresses,
                        config,
                        log,
                        place,
                    });
                }
                Err(error)
                    if error.kind() == ErrorKind::PortInUse
                        && random
                        && attempt < PORT_ATTEMPTS
                        && !is_taken(options.port) =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Where clients connect: `nats://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.addresses.client)
    }

    /// The port for clients. It stays the same for as long as this value lives.
    pub fn port(&self) -> u16 {
        self.addresses.client
    }

    /// Where its HTTP monitor answers, if it has one.
    pub fn monitor_url(&self) -> Option<String> {
        let port = self.addresses.monitor?;
        Some(format!("http://127.0.0.1:{port}"))
    }

    pub(crate) fn monitor_port(&self) -> Option<u16> {
        self.addresses.monitor
    }

    /// Its name, if it was given one.
    pub fn name(&self) -> Option<&str> {
        self.options.name.as_deref()
    }

    /// The process, or the last one if it does not run.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where JetStream has its data: in `jetstream` below this folder.
    pub fn store_dir(&self) -> &Path {
        let own = self.options.store_dir.as_deref();
        own.unwrap_or_else(|| self.place.dir())
    }

    /// The configuration file.
    pub fn config_path(&self) -> &Path {
        &self.config
    }

    /// The log file.
    pub fn log_path(&self) -> PathBuf {
        self.place.log_path()
    }

    /// The last lines of the log.
    pub fn log_tail(&self, lines: usize) -> String {
        self.place.log_tail(lines)
    }

    /// Whether the process exists; a paused one does.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Waits until the server ends by itself, as after [`lame_duck`](Self::lame_duck); says whether
    /// it did.
    pub fn wait(&mut self, at_most: Duration) -> bool {
        until(at_most, || self.process.ended()).is_some()
    }

    /// Kills it with SIGKILL and waits for its end. A server that does not run is left alone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<(), Error> {
        self.process.kill()
    }

    /// Ends it with SIGTERM and waits; after 10 s it is killed. A server that does not run is left
    /// alone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn stop(&mut self) -> Result<(), Error> {
        if !self.is_running() {
            return Ok(());
        }
        self.process.signal(Signal::TERM)?;
        // It may have been paused, and would not hear it.
        if self.is_running() {
            self.process.signal(Signal::CONT)?;
        }
        if self.wait(STOP_DEADLINE) {
            return Ok(());
        }
        self.process.kill()
    }

    /// Freezes it with SIGSTOP, and returns when it is frozen: connections stay, nothing is answered.
    ///
    /// # Errors
    /// [`ErrorKind::Ended`] when it does not run.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.process.pause()
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// [`ErrorKind::Ended`] when it does not run.
    pub fn resume(&mut self) -> Result<(), Error> {
        self.process.signal(Signal::CONT)
    }

    /// Sends it into lame duck mode: it gives its leaderships away, takes no connections, closes the
    /// ones that it has one by one, and ends. [`wait`](Self::wait) tells when.
    ///
    /// # Errors
    /// [`ErrorKind::Ended`] when it does not run.
    pub fn lame_duck(&mut self) -> Result<(), Error> {
        self.process.signal(Signal::USR2)
    }

    /// Replaces [`ServerOptions::extra`] and has the running server read its configuration again;
    /// returns when it has.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] with the server's words when it refuses; it then goes on as
    /// before, and so does the file. [`ErrorKind::Ended`] when it does not run.
    pub fn reload(&mut self, extra: impl Into<String>) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.options.extra, extra.into());
        let outcome = self.reread();
        if outcome.is_err() {
            self.options.extra = before;
            self.write_config()?;
        }
        outcome
    }

    fn reread(&mut self) -> Result<(), Error> {
        self.write_config()?;
        let start = self.place.log_length();
        self.process.signal(Signal::HUP)?;
        let said = until(RELOAD_DEADLINE, || {
            let log = self.place.log_since(start);
            let done = log.contains("Reloaded server configuration")
                || log.contains("Failed to reload server configuration")
                || self.process.ended().is_some();
            done.then_some(log)
        });
        match said {
            Some(log) if log.contains("Reloaded server configuration") => Ok(()),
            Some(log) => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "nats-server refuses its new configuration; mend what was appended:\n{log}"
                ),
            )),
            None => Err(self.timed_out("has not read its configuration again", RELOAD_DEADLINE)),
        }
    }

    /// Starts it again, on the same port and with the same store, and waits until it answers. One
    /// that runs is stopped first.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub fn restart(&mut self) -> Result<(), Error> {
        self.stop()?;
        let end = Instant::now() + START_DEADLINE;
        loop {
            match launch(
                &self.program,
                &self.options,
                &self.addresses,
                &self.place,
                &self.log,
            ) {
                Ok((process, _)) => {
                    self.process = process;
                    return Ok(());
                }
                // Somebody took it meanwhile, most likely a server that tries ports too.
                Err(error) if error.kind() == ErrorKind::PortInUse && Instant::now() < end => {
                    thread::sleep(Duration::from_millis(100));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn write_config(&self) -> Result<(), Error> {
        write_config(&self.options, &self.addresses, &self.place).map(drop)
    }

    fn timed_out(&self, what: &str, deadline: Duration) -> Error {
        Error::new(
            ErrorKind::TimedOut,
            format!(
                "nats-server {} {what} within {} s; the end of its log:\n{}",
                self.pid(),
                deadline.as_secs(),
                self.log_tail(TAIL)
            ),
        )
    }
}

/// Whether a port that was asked for is what is taken, and not one that was tried.
fn is_taken(port: u16) -> bool {
    port != 0 && monitor::accepts(port)
}

fn write_config(
    options: &ServerOptions,
    addresses: &Addresses,
    place: &Place,
) -> Result<PathBuf, Error> {
    let text = render(options, place.dir(), addresses);
    place.write_private("nats-server.conf", &text)
}

/// Starts a process and waits until it answers.
fn launch(
    program: &Path,
    options: &ServerOptions,
    addresses: &Addresses,
    place: &Place,
    log: &File,
) -> Result<(Guarded, PathBuf), Error> {
    let config = write_config(options, addresses, place)?;
    let start = place.log_length();
    let folder = place.is_temporary().then(|| place.dir());
    let arguments = [Path::new("-c"), config.as_path()];
    let mut process = Guarded::start(program, &arguments, log, folder)?;
    let first_handshake = options.extra.contains("handshake_first");
    let outcome = until(START_DEADLINE, || {
        if process.ended().is_some() {
            return Some(Err(gone(&place.log_since(start), addresses)));
        }
        let listens = listens(place.dir(), process.pid(), addresses.client);
        // With TLS first there is no greeting; then the ports file must do.
        let answers = listens && (first_handshake || monitor::greets(addresses.client));
        answers.then_some(Ok(()))
    });
    match outcome {
        Some(Ok(())) => Ok((process, config)),
        Some(Err(error)) => Err(error),
        None => Err(Error::new(
            ErrorKind::TimedOut,
            format!(
                "nats-server did not answer on 127.0.0.1:{} within {} s; the end of its log, {}:\n{}",
                addresses.client,
                START_DEADLINE.as_secs(),
                place.log_path().display(),
                place.log_tail(TAIL)
            ),
        )),
    }
}

/// Whether this very process listens on the port, by the file that it writes once it does. A
/// greeting alone could come from another server on the same port.
fn listens(dir: &Path, pid: u32, port: u16) -> bool {
    let suffix = format!("_{pid}.ports");
    let Ok(entries) = fs::read_dir(dir) else {
        return false;
    };
    let mut names = entries.flatten().map(|entry| entry.path());
    let Some(file) = names.find(|path| path.to_string_lossy().ends_with(&suffix)) else {
        return false;
    };
    // It may be half written; then it is looked at again.
    let text = fs::read_to_string(file).unwrap_or_default();
    let ports: Value = serde_json::from_str(&text).unwrap_or_default();
    let urls = ports["nats"].as_array();
    let end = format!(":{port}");
    urls.is_some_and(|urls| {
        urls.iter()
            .filter_map(Value::as_str)
            .any(|url| url.ends_with(&end))
    })
}

/// Why a server ended while it started, from what it wrote.
fn gone(log: &str, addresses: &Addresses) -> Error {
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
    if log.contains("address already in use") {
        let ports = [
            Some(addresses.client),
            addresses.monitor,
            addresses.cluster.as_ref().map(|routes| routes.own),
        ];
        let named = |port: &u16| log.contains(&format!("127.0.0.1:{port}: bind"));
        let port = ports.into_iter().flatten().find(named);
        return Error::new(
            ErrorKind::PortInUse,
            format!(
                "another process listens on 127.0.0.1:{}; stop it, or choose another port (0 takes a free one)",
                port.unwrap_or(addresses.client)
            ),
        );
    }
    if !log.contains("Starting nats-server") {
        return Error::new(
            ErrorKind::InvalidConfig,
            format!("nats-server refuses its configuration; mend what was appended:\n{tail}"),
        );
    }
    Error::new(
        ErrorKind::Ended,
        format!("nats-server ended while it started; the end of its log says why:\n{tail}"),
    )
}

/// Looks again and again until there is something.
pub(crate) fn until<T>(time: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + time;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > end {
            return None;
        }
        thread::sleep(LOOK_EVERY);
    }
}
