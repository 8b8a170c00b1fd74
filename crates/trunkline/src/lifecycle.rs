//! The bus inside a program's start and stop.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use trunkline_core::engine::Link;
use trunkline_core::{Error, ErrorKind, Result};

use crate::bus::Bus;
use crate::consumer::ConsumerHandle;

impl Bus {
    /// Runs until SIGTERM or ctrl-c, then drains and closes; or until a member ends by itself, because
    /// its consumer was deleted, say, or may not be read any more. What starts the process anew then
    /// starts the member too.
    ///
    /// It takes the signals over when it is first polled. One that comes earlier ends the process
    /// as it would any other, which loses nothing: what was not settled is delivered again where
    /// the engine outlives the process.
    ///
    /// # Errors
    /// Why the member ended; those of [`close`](Bus::close), and [`ErrorKind::Internal`] when signals
    /// cannot be had.
    pub async fn run(&self) -> Result<()> {
        self.run_with_members(signal()?).await
    }

    async fn run_with_members(&self, stop: impl Future<Output = ()>) -> Result<()> {
        let mut failed = self.inner.failed.subscribe();
        let failed = async move {
            // The sender is the bus's own, so it is there.
            let failed = failed.wait_for(Option::is_some).await;
            failed.ok().and_then(|failed| failed.clone())
        };
        let fault = tokio::select! {
            fault = failed => fault,
            () = stop => None,
        };
        let closed = self.close().await;
        fault.map_or(closed, Err)
    }

    /// Runs until `stop` yields, then drains and closes: for a program that has its own end. It goes on
    /// when a member ends by itself, which [`ConsumerHandle::ended`] tells.
    ///
    /// # Errors
    /// Those of [`close`](Bus::close).
    pub async fn run_until(&self, stop: impl Future<Output = ()>) -> Result<()> {
        stop.await;
        self.close().await
    }

    /// Stops every consumer of this bus and closes the connection. Handlers get the drain
    /// deadline to finish; what has not started is given back at once. Calling it again does
    /// nothing.
    ///
    /// # Errors
    /// [`ErrorKind::DrainIncomplete`] when handlers were still running at the deadline; they were
    /// cancelled and their events will be delivered again.
    pub async fn close(&self) -> Result<()> {
        // One after another, so that nobody closes the engine under somebody else's drain.
        let _closing = self.inner.closing.lock().await;
        let mut consumers = std::mem::take(&mut *self.inner.consumers.lock());
        consumers.retain(ConsumerHandle::is_running);
        let mut stopping = JoinSet::new();
        for consumer in consumers {
            stopping.spawn(async move { consumer.stop().await });
        }
        let (mut cancelled, mut finished, mut stuck) = (0, 0, 0);
        while let Some(report) = stopping.join_next().await {
            let report = report.map_err(|error| {
                Error::new(ErrorKind::Internal, "a consumer's stop failed").caused_by(error)
            })?;
            cancelled += report.cancelled;
            finished += report.finished;
            stuck += report.stuck;
        }
        self.inner.engine.close().await;
        if cancelled + stuck == 0 {
            return Ok(());
        }
        let still = match stuck {
            0 => String::new(),
            stuck => format!(", of which {stuck} block their threads and have not ended"),
        };
        Err(Error::new(
            ErrorKind::DrainIncomplete,
            format!(
                "{} handlers were still running after {:?} and were cancelled ({finished} finished){still}; \
                 their events will be delivered again",
                cancelled + stuck,
                self.inner.settings.drain_deadline
            ),
        ))
    }

    /// How long handlers get to finish when the bus closes.
    pub fn drain_deadline(&self) -> Duration {
        self.inner.settings.drain_deadline
    }
}

/// Yields at the first SIGTERM or ctrl-c. The handlers are in place once this returns.
#[cfg(unix)]
fn signal() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let no_signals =
        |error| Error::new(ErrorKind::Internal, "signals cannot be received").caused_by(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn signal() -> Result<impl Future<Output = ()>> {
    Ok(async {
        // Without ctrl-c there is nothing to wait for but the end of the process.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    })
}

/// Writes every change of the link to the log, until it is closed.
pub(crate) fn log_link(mut link: watch::Receiver<Link>, engine: &'static str) {
    tokio::spawn(async move {
        while link.changed().await.is_ok() {
            match &*link.borrow_and_update() {
                Link::Connected => tracing::info!(engine, "reconnected to the bus"),
                Link::Disconnected { since, reason } => {
                    tracing::warn!(engine, %since, reason, "disconnected from the bus");
                }
                Link::Closed => {
                    tracing::info!(engine, "the bus is closed");
                    return;
                }
            }
        }
    });
}
