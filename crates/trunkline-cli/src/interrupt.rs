//! ctrl-c and SIGTERM: the first asks a command to end, the second ends the process.

use tokio::sync::watch;
use trunkline::{Error, ErrorKind, Result};

use crate::exit::Exit;

/// Whether somebody asked for the end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// Takes the signals over.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when signals cannot be had.
    pub(crate) fn listen() -> Result<Self> {
        let mut signals = Signals::listen()?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            signals.next().await;
            // Nobody listens any more once the command is done.
            let _ = sender.send(true);
            signals.next().await;
            // A command that hangs, in a full pipe for example, must not hold its user.
            std::process::exit(i32::from(Exit::Interrupted as u8));
        });
        Ok(Self(receiver))
    }

    /// Waits until somebody asks for the end. Dropping the future loses nothing.
    pub(crate) async fn asked(&mut self) {
        if self.0.wait_for(|asked| *asked).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// One that nobody can ask.
    #[cfg(test)]
    pub(crate) fn never() -> Self {
        Self(watch::channel(false).1)
    }

    /// One that was asked already.
    #[cfg(test)]
    pub(crate) fn asked_already() -> Self {
        Self(watch::channel(true).1)
    }
}

/// The signals that ask for an end. The handlers are in place once this exists.
#[cfg(unix)]
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    pub(crate) fn listen() -> Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(no_signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(no_signals)?,
        })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The signals that ask for an end. The handlers are in place once this exists.
#[cfg(windows)]
pub(crate) struct Signals(tokio::signal::windows::CtrlC);

#[cfg(windows)]
impl Signals {
    pub(crate) fn listen() -> Result<Self> {
        tokio::signal::windows::ctrl_c()
            .map(Self)
            .map_err(no_signals)
    }

    pub(crate) async fn next(&mut self) {
        self.0.recv().await;
    }
}

fn no_signals(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Internal, "signals cannot be received").caused_by(error)
}
