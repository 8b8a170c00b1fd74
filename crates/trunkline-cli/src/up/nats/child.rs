//! The server: watched, started again when it ends by itself, and stopped.

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use trunkline::{Error, ErrorKind, Result};
use trunkline_nats_server::{
    Binary, Error as NatsError, ErrorKind as NatsErrorKind, NatsServer, ServerOptions, find,
    storage_limit,
};

use super::row::{Pace, Row};
use crate::console::Console;
use crate::global::Global;

/// How often the process is looked at: soon enough for clients, which reconnect at this pace, and
/// seldom enough to cost nothing.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The lines of the log that tell why it ended.
const TAIL: usize = 12;

/// A server that runs until [`stop`](Self::stop), or until it has failed too often. Dropping it
/// stops the server too, without anybody waiting for it but the end of the runtime.
#[derive(Debug)]
pub(crate) struct Child {
    url: String,
    version: String,
    store_dir: PathBuf,
    /// Nothing is sent: its end is the request to stop.
    stop: Sender<()>,
    watch: JoinHandle<Result<()>>,
    outcome: Option<Result<()>>,
}

impl Child {
    /// Starts the server that is installed and waits until it answers.
    ///
    /// # Errors
    /// When there is none, it is too old, or it does not start.
    pub(crate) async fn start(dir: PathBuf, port: u16, global: &Global) -> Result<Self> {
        let (binary, server) = spawn_blocking(move || launch(dir, port))
            .await
            .map_err(lost)??;
        let global = global.clone();
        // Also those who want quiet must know that their bus was away.
        let tell = move |text: String| Console::standard(&global).say(text);
        Ok(Self::watched(&binary, server, Pace::USUAL, tell))
    }

    fn watched(
        binary: &Binary,
        server: NatsServer,
        pace: Pace,
        tell: impl FnMut(String) + Send + 'static,
    ) -> Self {
        let (stop, stopped) = mpsc::channel();
        Self {
            url: server.url(),
            version: binary.version.to_string(),
            store_dir: server.store_dir().to_owned(),
            stop,
            watch: spawn_blocking(move || watch(server, pace, &stopped, tell)),
            outcome: None,
        }
    }

    /// Where it listens, now and after every restart.
    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// What programs are told of it.
    pub(crate) fn json(&self) -> Value {
        json!({"url": self.url, "version": self.version, "store_dir": self.store_dir.to_string_lossy()})
    }

    /// Waits until it has failed too often. [`stop`](Self::stop) then has the error. Dropping the
    /// future loses nothing.
    pub(crate) async fn gave_up(&mut self) {
        if self.outcome.is_none() {
            self.outcome = Some((&mut self.watch).await.map_err(lost).flatten());
        }
    }

    /// Ends it gently and waits for its end.
    ///
    /// # Errors
    /// [`ErrorKind::Disconnected`] when it had failed too often before, and when the system refuses.
    pub(crate) async fn stop(self) -> Result<()> {
        drop(self.stop);
        match self.outcome {
            Some(outcome) => outcome,
            None => self.watch.await.map_err(lost).flatten(),
        }
    }
}

/// What people are told of it.
impl fmt::Display for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "nats-server {} on {} keeps its data in {}",
            self.version,
            self.url,
            self.store_dir.display()
        )
    }
}

fn launch(dir: PathBuf, port: u16) -> Result<(Binary, NatsServer)> {
    let binary = find().map_err(|error| told(&error))?;
    let limit = storage_limit(&dir).map_err(|error| told(&error))?;
    let server = NatsServer::start(&binary, ServerOptions::safe(dir, port, limit))
        .map_err(|error| told(&error))?;
    Ok((binary, server))
}

/// Looks after the server until somebody wants it to stop, or it has failed too often.
fn watch(
    mut server: NatsServer,
    pace: Pace,
    stopped: &Receiver<()>,
    mut tell: impl FnMut(String),
) -> Result<()> {
    let mut row = Row::new(pace);
    loop {
        let began = Instant::now();
        while server.is_running() {
            if wanted(stopped, LOOK_EVERY) {
                return server.stop().map_err(|error| told(&error));
            }
        }
        let mut why = format!(
            "nats-server {} ended by itself; the end of its log:\n{}",
            server.pid(),
            server.log_tail(TAIL)
        );
        let mut ran = began.elapsed();
        // Until it runs again; an attempt that fails is one of the row.
        loop {
            let Some(wait) = row.next(ran) else {
                tell(why);
                return Err(gone(&server, pace));
            };
            tell(format!(
                "{why}\nstarting it again in {} ms",
                wait.as_millis()
            ));
            if wanted(stopped, wait) {
                return Ok(());
            }
            match server.restart() {
                Ok(()) => break,
                Err(error) => why = format!("nats-server does not start again: {error}"),
            }
            ran = Duration::ZERO;
        }
        tell(format!(
            "nats-server runs again, as process {}",
            server.pid()
        ));
    }
}

/// Whether the end was asked for within that time.
fn wanted(stopped: &Receiver<()>, time: Duration) -> bool {
    stopped.recv_timeout(time) != Err(RecvTimeoutError::Timeout)
}

fn gone(server: &NatsServer, pace: Pace) -> Error {
    Error::new(
        ErrorKind::Disconnected,
        format!(
            "nats-server ended by itself and {} restarts did not help; its log, {}, says why",
            pace.restarts,
            server.log_path().display()
        ),
    )
}

/// An error of the server in the terms of the bus, with the option that it is about.
fn told(error: &NatsError) -> Error {
    let (kind, option) = match error.kind() {
        NatsErrorKind::PortInUse => (ErrorKind::InUse, "--nats-port"),
        NatsErrorKind::DirectoryInUse => (ErrorKind::InUse, "--nats-dir"),
        NatsErrorKind::NotPrivate => (ErrorKind::InvalidConfig, "--nats-dir"),
        NatsErrorKind::TooOld => (ErrorKind::WrongVersion, "--nats"),
        NatsErrorKind::Missing | NatsErrorKind::Unusable | NatsErrorKind::InvalidConfig => {
            (ErrorKind::InvalidConfig, "--nats")
        }
        NatsErrorKind::Ended | NatsErrorKind::TimedOut => (ErrorKind::Disconnected, "--nats"),
        _ => (ErrorKind::Internal, "--nats"),
    };
    let told = Error::new(kind, error.to_string()).at(option);
    match error.source() {
        Some(source) => told.caused_by(source.to_string()),
        None => told,
    }
}

/// The thread that had the server is gone, which only a panic can do.
fn lost(error: JoinError) -> Error {
    Error::new(ErrorKind::Internal, "the watch over nats-server broke").caused_by(error)
}

#[cfg(test)]
mod tests;
