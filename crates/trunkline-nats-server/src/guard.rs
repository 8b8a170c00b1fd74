//! A process that does not outlive us.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::error::{Error, ErrorKind};

/// A process killed with SIGKILL runs no destructor and tells its children nothing; only its files
/// are closed. So the server is started through a shell that first leaves a watcher behind and then
/// becomes the server, which therefore is our own child. The watcher waits on a pipe whose other end
/// is ours alone. A line on it says that all is done. Its end without a line says that we are gone:
/// the watcher kills the server and removes its temporary folder. There is no moment at which the
/// server runs unwatched.
///
/// The watcher must not hold the log open, because the lock on it is to end with the server.
const SCRIPT: &str = r#"
folder=$1
shift
exec 3<&0
{
    read -r line || {
        kill -KILL $$
        if [ -n "$folder" ]; then
            tries=0
            while kill -0 $$ && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
            rm -rf -- "$folder"
        fi
    }
} <&3 3<&- >/dev/null 2>&1 &
exec "$@" </dev/null 3<&-
"#;

/// A running server and the pipe to its watcher.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Child,
    leash: Option<ChildStdin>,
    ended: Option<ExitStatus>,
}

impl Guarded {
    /// Starts the program with its output to the log. A folder that is named is removed if we die.
    pub(crate) fn start(
        program: &Path,
        arguments: &[&Path],
        log: &File,
        folder: Option<&Path>,
    ) -> Result<Self, Error> {
        let failed = |error| Error::io(format_args!("starting {}", program.display()), error);
        let mut child = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "nats-server-guard"])
            .arg(folder.unwrap_or(Path::new("")))
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log.try_clone().map_err(failed)?)
            // A ctrl-c in the terminal goes to its whole group. It is for us; we still need the
            // server while we drain, and end it ourselves.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let leash = child.stdin.take();
        Ok(Self {
            child,
            leash,
            ended: None,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // An error would mean that it is no child of ours, which cannot be.
            self.ended = self.child.try_wait().ok().flatten();
            if self.ended.is_some() {
                self.release();
            }
        }
        self.ended
    }

    /// Sends a signal. The process id is ours for as long as the end was not taken note of.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<(), Error> {
        let pid = self.pid();
        let failed = |error| Error::io(format_args!("signalling nats-server {pid}"), error);
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw);
        match (self.ended(), id) {
            (None, Some(id)) => kill_process(id, signal).map_err(failed),
            _ => Err(Error::new(
                ErrorKind::Ended,
                format!("nats-server {pid} does not run any more; restart it first"),
            )),
        }
    }

    /// Stops it, and returns when the last of its threads has stopped: until then it may answer.
    pub(crate) fn pause(&mut self) -> Result<(), Error> {
        self.signal(Signal::STOP)?;
        let pid = self.pid();
        let failed = |error| Error::io(format_args!("pausing nats-server {pid}"), error);
        let stopped_or_ended =
            WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        match i32::try_from(pid).ok().and_then(Pid::from_raw) {
            Some(id) => waitid(WaitId::Pid(id), stopped_or_ended)
                .map(drop)
                .map_err(failed),
            None => Ok(()),
        }
    }

    /// Kills it, if it runs, and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        if self.ended().is_none() {
            let failed = |error| Error::io("killing nats-server", error);
            self.child.kill().map_err(failed)?;
            self.ended = Some(self.child.wait().map_err(failed)?);
            self.release();
        }
        Ok(())
    }

    /// Tells the watcher that there is nothing to watch any more.
    fn release(&mut self) {
        if let Some(mut leash) = self.leash.take() {
            // A watcher that is gone is what we want.
            let _ = leash.write_all(b"done\n");
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // If even this fails, the end of the pipe does it.
        let _ = self.kill();
    }
}
