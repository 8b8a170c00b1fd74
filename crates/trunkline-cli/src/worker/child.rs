//! One run of the command: a group of processes, from its start to the end of the last of them.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use bytes::{Buf, Bytes};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Sender;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::relay::Relay;
use super::said::Said;
use super::tally::{Runs, Tally};

/// How long a group gets between SIGTERM and SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// How long its standard error is read after its end, should somebody who left the group hold it.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Debug)]
pub(super) enum End {
    Exited(i32),
    /// By which signal.
    Killed(String),
    /// It ran for longer than that and was stopped.
    TimedOut(Duration),
    /// It was stopped with the worker.
    Cut,
    /// The system does not tell.
    Unknown(io::Error),
}

/// How a run ended, and what it wrote to its standard error.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) end: End,
    pub(super) said: Said,
}

/// A running command and what it started. Dropped, it is stopped: SIGTERM, later SIGKILL.
pub(super) struct Group {
    /// None once it has ended.
    running: Option<(Child, Runs)>,
    /// None where the system gave no number, or one that is none.
    id: Option<Pid>,
    input: Option<Input>,
}

/// What of the event was more than its standard input holds.
struct Input {
    pipe: Sender,
    rest: Bytes,
}

impl Input {
    /// Writes it, unless nobody reads it.
    async fn write(mut self) {
        while !self.rest.is_empty() {
            if self.pipe.writable().await.is_err() {
                return;
            }
            match self.pipe.try_write(&self.rest) {
                Ok(written) => self.rest.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

impl Group {
    /// Starts it with the event on its way: whole, if it is not larger than a pipe holds, whatever
    /// becomes of this process.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn start(mut command: Command, mut event: Bytes, tally: &Tally) -> io::Result<Self> {
        let (reader, mut writer) = io::pipe()?;
        ioctl_fionbio(&writer, true)?;
        while !event.is_empty() {
            match writer.write(&event) {
                Ok(written) => event.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        // Closed at once if nothing is left to be written.
        let input = match event.is_empty() {
            true => None,
            false => Some(Input {
                pipe: Sender::from_owned_fd(writer.into())?,
                rest: event,
            }),
        };
        // Before it can be heard of.
        let runs = tally.one_runs();
        let child = command.stdin(reader).spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self {
            id: id.and_then(Pid::from_raw),
            running: Some((child, runs)),
            input,
        })
    }

    /// Waits for the end.
    pub(super) async fn run(
        mut self,
        limit: Duration,
        mut cut: watch::Receiver<bool>,
        relay: &Relay,
    ) -> Ended {
        let mut said = Said::default();
        let id = self.id;
        let Some((child, _)) = &mut self.running else {
            let end = End::Unknown(io::ErrorKind::NotFound.into());
            return Ended { end, said };
        };
        let (input, stderr) = (self.input.take(), child.stderr.take());
        let mut stop = pin!(async {
            tokio::select! {
                limit = past(Some(limit)) => End::TimedOut(limit),
                // Whoever could say so is gone with the worker itself.
                _ = cut.wait_for(|cut| *cut) => End::Cut,
            }
        });
        let mut stopped = None;
        let mut kill = pin!(past(None));
        let status = {
            let mut talk = pin!(talk(input, stderr, &mut said, relay));
            let mut talks = true;
            let status = loop {
                tokio::select! {
                    status = child.wait() => break status,
                    () = &mut talk, if talks => talks = false,
                    why = &mut stop, if stopped.is_none() => {
                        stopped = Some(why);
                        signal(id, Signal::TERM);
                        kill.set(past(Some(GRACE)));
                    }
                    _ = &mut kill => {
                        signal(id, Signal::KILL);
                        kill.set(past(None));
                    }
                }
            };
            // What it started and left behind has nobody who waits for it. Its number is not given
            // away while there is such a process, and without one this reaches nobody.
            signal(id, Signal::KILL);
            if talks {
                let _ = timeout(LAST_WORDS, &mut talk).await;
            }
            status
        };
        self.running = None;
        said.end();
        let end = stopped.unwrap_or_else(|| ended(status));
        Ended { end, said }
    }
}

impl Drop for Group {
    /// Its run was cancelled: the event may be another member's by now.
    fn drop(&mut self) {
        let Some((mut child, runs)) = self.running.take() else {
            return;
        };
        let id = self.id;
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            signal(id, Signal::KILL);
            return;
        };
        signal(id, Signal::TERM);
        runtime.spawn(async move {
            let _ = timeout(GRACE, child.wait()).await;
            signal(id, Signal::KILL);
            // It takes note of the end; how it ended is of no interest.
            let _ = child.wait().await;
            drop(runs);
        });
    }
}

/// Writes the rest of the event and reads what is said about it. A command need not read its input.
async fn talk(input: Option<Input>, stderr: Option<ChildStderr>, said: &mut Said, relay: &Relay) {
    let write = async {
        if let Some(input) = input {
            input.write().await;
        }
    };
    let read = async {
        let Some(mut stderr) = stderr else { return };
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = stderr.read(&mut piece).await {
            said.take(&piece[..length]);
            relay.pass_on(&piece[..length]);
        }
    };
    tokio::join!(write, read);
}

/// Waits for that long, and gives it back; for ever without one.
async fn past(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

fn signal(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // There may be nobody left, which is what is wanted.
        let _ = kill_process_group(group, signal);
    }
}

fn ended(status: io::Result<ExitStatus>) -> End {
    match status {
        Err(error) => End::Unknown(error),
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            // As Rust writes it: `signal: 9 (SIGKILL)`.
            (None, Some(_)) => End::Killed(status.to_string()),
            (None, None) => End::Unknown(io::Error::other(status.to_string())),
        },
    }
}
