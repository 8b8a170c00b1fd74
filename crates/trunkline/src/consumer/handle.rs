//! A running member in the hands of whoever started it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use trunkline_core::{Error, ErrorKind, Name, Result};

use super::pool::{Health, Vitals};
use super::{MAX_WINDOW, MAX_WINDOW_BYTES, MIN_WINDOW};

/// What a handle asks of its member.
#[derive(Clone, Debug)]
pub(super) struct Control {
    /// Stop, and give running handlers that long.
    pub(super) stop: Option<Duration>,
    pub(super) concurrency: usize,
    pub(super) window_events: Option<usize>,
    pub(super) window_bytes: usize,
}

impl Control {
    /// How many events and bytes the member may hold.
    pub(super) fn window(&self) -> (usize, usize) {
        let events = self.window_events;
        let events = events.unwrap_or_else(|| MIN_WINDOW.max(2 * self.concurrency));
        (events, self.window_bytes)
    }
}

/// A running member of a consumer. Dropping it does not stop the member.
#[derive(Clone)]
pub struct ConsumerHandle {
    pub(super) name: Name,
    pub(super) control: Arc<watch::Sender<Control>>,
    /// The member is the bus's, and the bus has this handle: it must not keep the member alive.
    pub(super) vitals: Arc<[Weak<dyn Vitals>]>,
    pub(super) ended: watch::Receiver<Option<StopReport>>,
    pub(super) duplicates: Arc<AtomicU64>,
    pub(super) drain_deadline: Duration,
}

/// What stopping a member did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StopReport {
    /// Handlers that were running and finished, well or not, within the deadline.
    pub finished: usize,
    /// Events given back at once: they had not started, or were kept for another member.
    pub given_back: usize,
    /// Handlers cancelled at the deadline; their events are given back too.
    pub cancelled: usize,
    /// Handlers that were cancelled and did not end, because they block their threads. Their events
    /// come again when their leases end.
    pub stuck: usize,
    /// Why the member ended by itself, if it did.
    pub failed: Option<Error>,
}

impl fmt::Debug for ConsumerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerHandle")
            .field("name", &self.name)
            .field("control", &*self.control.borrow())
            .finish_non_exhaustive()
    }
}

impl ConsumerHandle {
    /// The consumer's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Stops the member: nothing new is fetched, what runs may finish within the bus's drain
    /// deadline, the rest is given back at once.
    pub async fn stop(&self) -> StopReport {
        self.stop_within(self.drain_deadline).await
    }

    /// As [`stop`](Self::stop) with a deadline of its own.
    pub async fn stop_within(&self, deadline: Duration) -> StopReport {
        self.control.send_modify(|control| {
            control.stop.get_or_insert(deadline);
        });
        self.ended().await
    }

    /// Begins to stop and does not wait for it.
    pub(super) fn ask_to_stop(&self) {
        self.control.send_modify(|control| {
            control.stop.get_or_insert(self.drain_deadline);
        });
    }

    /// Waits until the member has ended, by [`stop`](Self::stop) or by itself.
    pub async fn ended(&self) -> StopReport {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(report) => report.clone().unwrap_or_default(),
            // The runtime dropped the member's task: nobody can tell what it did.
            Err(_) => StopReport {
                failed: Some(shut_down()),
                ..StopReport::default()
            },
        }
    }

    /// Whether the member is running.
    pub fn is_running(&self) -> bool {
        self.ended.borrow().is_none() && self.ended.has_changed().is_ok()
    }

    /// How many events this member has acknowledged unseen, because the consumer had done them before:
    /// 0 unless it is [idempotent](super::Consumer::idempotent).
    pub fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Relaxed)
    }

    /// Changes how many handlers run at once; what runs already is let be.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for 0 or more than 10 000.
    pub fn set_concurrency(&self, concurrency: usize) -> Result<()> {
        if concurrency == 0 || concurrency > 10_000 {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("concurrency must be between 1 and 10 000, not {concurrency}"),
            ));
        }
        self.control
            .send_modify(|control| control.concurrency = concurrency);
        Ok(())
    }

    /// Changes how many events and bytes the member holds at most. What it holds already is let be.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for 0, for more than 20 000 events, and for more than 1 GiB.
    pub fn set_window(&self, events: usize, bytes: usize) -> Result<()> {
        check_window(Some(events), bytes)?;
        self.control.send_modify(|control| {
            control.window_events = Some(events);
            control.window_bytes = bytes;
        });
        Ok(())
    }

    /// How the member is: what it has in hand, whether its breaker is open, which handlers are
    /// stuck, and why it ended, if it did so by itself. It answers from any thread, also while those
    /// of the member are blocked.
    pub fn health(&self) -> Health {
        let parts = self.vitals.iter().filter_map(Weak::upgrade);
        let health = parts
            .map(|part| part.health())
            .fold(Health::default(), Health::with);
        let is_lost = self.ended.has_changed().is_err();
        let report = self.ended.borrow().clone();
        let failed = match report {
            Some(report) => report.failed,
            None => is_lost.then(shut_down),
        };
        Health { failed, ..health }
    }
}

/// Waits for the parts of a member. When one ends by itself, the others are told to stop: half a
/// consumer helps nobody.
pub(super) async fn supervise(
    mut parts: JoinSet<StopReport>,
    name: Name,
    control: Arc<watch::Sender<Control>>,
    (report, failed): (
        watch::Sender<Option<StopReport>>,
        watch::Sender<Option<Error>>,
    ),
) {
    let mut whole = StopReport::default();
    while let Some(part) = parts.join_next().await {
        let part = part.unwrap_or_else(|error| StopReport {
            failed: Some(Error::new(ErrorKind::Internal, "a member failed").caused_by(error)),
            ..StopReport::default()
        });
        control.send_modify(|control| {
            control.stop.get_or_insert(Duration::ZERO);
        });
        whole.finished += part.finished;
        whole.given_back += part.given_back;
        whole.cancelled += part.cancelled;
        whole.stuck += part.stuck;
        whole.failed = whole.failed.or(part.failed);
    }
    let fault = whole.failed.clone();
    report.send_replace(Some(whole));
    if let Some(fault) = fault {
        let fault = fault.at(format_args!("consumer {name}"));
        failed.send_modify(|first| {
            first.get_or_insert(fault);
        });
    }
}

fn shut_down() -> Error {
    Error::new(ErrorKind::Closed, "the member's runtime was shut down")
}

pub(super) fn check_window(events: Option<usize>, bytes: usize) -> Result<()> {
    let refuse = |fault: String| Err(Error::new(ErrorKind::InvalidConfig, fault));
    if let Some(events) = events
        && !(1..=MAX_WINDOW).contains(&events)
    {
        return refuse(format!(
            "a window of {events} events; use 1 to {MAX_WINDOW}"
        ));
    }
    if !(1..=MAX_WINDOW_BYTES).contains(&bytes) {
        return refuse(format!(
            "a window of {bytes} bytes; use 1 to {MAX_WINDOW_BYTES}"
        ));
    }
    Ok(())
}
