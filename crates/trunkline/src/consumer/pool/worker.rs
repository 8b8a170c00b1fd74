//! What a worker does: takes a job, runs it, hands it back, and takes the next.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::{Common, Ended, Inner, Job, Run};
use crate::consumer::policy;
use crate::failure::Failure;

/// Works until there is nothing that may start.
pub(super) async fn work<J: Job>(common: Arc<Common<J>>, slot: usize) {
    let mut place = Place {
        common: &common,
        slot,
        is_left: false,
    };
    let mut timer = Timer {
        time_out: common.time_out,
        sleep: None,
    };
    let mut last = None;
    while let Some((input, since)) = place.next(last.take()) {
        // Lets others run now and then, however long the queue and short the handlers.
        tokio::task::consume_budget().await;
        let mut running = pin!(Some(J::run(input, &common.hands)));
        last = Some(match run(running.as_mut(), &mut timer, since).await {
            Ok(()) => (Ended::Well, policy::Ended::Well),
            Err(failure) => {
                let says = says::<J>(&failure, &common.hands);
                (Ended::Failed(failure), says)
            }
        });
        // A handler that was cancelled is dropped in the middle, which may run its code. What that
        // panics about changes nothing: the run is over.
        let _ = catch_unwind(AssertUnwindSafe(|| running.set(None)));
    }
}

/// What a failure says to the breaker.
fn says<J: Job>(failure: &Failure, hands: &J::Hands) -> policy::Ended {
    // It asks the application's error types, which may panic; that is no better than the failure.
    match catch_unwind(AssertUnwindSafe(|| J::is_trouble(failure, hands))) {
        Ok(false) => policy::Ended::Neither,
        Ok(true) | Err(_) => policy::Ended::Failed,
    }
}

/// How a run ended, and what that says to the breaker.
type Last = (Ended, policy::Ended);

/// A worker's place in the pool. However the worker ends, its job goes back.
struct Place<'a, J: Job> {
    common: &'a Common<J>,
    slot: usize,
    is_left: bool,
}

impl<J: Job> Place<'_, J> {
    /// Hands back the last job and takes the next; none if there is none that may start.
    fn next(&mut self, last: Option<Last>) -> Option<(J::Input, Instant)> {
        let since = Instant::now();
        let limit = self.common.control.borrow().concurrency;
        let mut turned = None;
        let taken = {
            let mut inner = self.common.inner.lock();
            let mut goes_on = true;
            if let Some(last) = last {
                (goes_on, turned) = inner.hand_back(self.slot, last, self.common);
            }
            let taken = match goes_on {
                true => inner.take(self.slot, since, limit),
                false => None,
            };
            if taken.is_none() {
                self.is_left = true;
                inner.leave(self.slot);
            }
            taken
        };
        if let Some(turned) = turned {
            report(self.common, turned);
        }
        taken.map(|input| (input, since))
    }
}

/// Aborted, or something panicked that no handler is to blame for: the job goes back all the same.
impl<J: Job> Drop for Place<'_, J> {
    fn drop(&mut self) {
        if !self.is_left {
            let last = (Ended::Cancelled, policy::Ended::Neither);
            let mut inner = self.common.inner.lock();
            // Nothing turns at what says nothing.
            let _ = inner.hand_back(self.slot, last, self.common);
            inner.leave(self.slot);
        }
    }
}

impl<J: Job> Inner<J> {
    /// Starts the first job of the queue, if it may.
    fn take(&mut self, slot: usize, since: Instant, limit: usize) -> Option<J::Input> {
        if self.room(limit) == 0 {
            return None;
        }
        let job = self.queue.pop_front()?;
        let input = job.input();
        self.is_alone = job.runs_alone();
        self.places.queued -= usize::from(job.has_place());
        self.running += 1;
        self.slots[slot].run = Some(Run {
            is_probe: self.circuit.as_mut().is_some_and(policy::Circuit::start),
            job,
            since,
            cancelled: None,
            is_given_up: false,
        });
        Some(input)
    }

    /// Ends the run of a slot, if there is one. Says whether its worker may go on, and what this
    /// means for the breaker.
    fn hand_back(
        &mut self,
        slot: usize,
        (ended, says): Last,
        common: &Common<J>,
    ) -> (bool, Option<policy::Turned>) {
        let Some(run) = self.slots[slot].run.take() else {
            return (true, None);
        };
        self.running -= 1;
        let circuit = self.circuit.as_mut();
        let turned = circuit.and_then(|circuit| circuit.end(run.is_probe, says, Instant::now));
        // The worker of one that was cancelled is about to be cancelled too, at its next await: the
        // next job would pay for it.
        let goes_on = run.cancelled.is_none();
        let ended = match goes_on {
            true => ended,
            false => Ended::Cancelled,
        };
        self.finished.push((run.job, ended));
        // More of them are taken together.
        if self.finished.len() == 1 {
            common.finished.notify_one();
        }
        (goes_on, turned)
    }

    fn leave(&mut self, slot: usize) {
        self.slots[slot].worker = None;
        self.workers -= 1;
    }
}

fn report<J: Job>(common: &Common<J>, turned: policy::Turned) {
    match turned {
        policy::Turned::Opened { pause } => tracing::error!(
            consumer = %common.name, again_in = ?pause,
            "too many runs fail; nothing starts until one event is tried"
        ),
        policy::Turned::Closed => {
            tracing::info!(consumer = %common.name, "what was tried went well; all goes on");
        }
    }
}

/// The time-out of a worker's runs. One timer serves them all: it is set for the first run that waits,
/// and where it rings for a run that is long over, it is set for the present one. So most runs touch
/// no timer.
struct Timer {
    time_out: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Ready with the time-out once a run that started at `since` has had it.
    fn poll(&mut self, cx: &mut Context<'_>, since: Instant) -> Poll<Duration> {
        let Some(time_out) = self.time_out else {
            return Poll::Pending;
        };
        let due = since + time_out;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                return Poll::Ready(time_out);
            }
            sleep.as_mut().reset(due);
        }
        Poll::Pending
    }
}

/// Runs a handler until it ends, panics or has used up its time. A panic is a failure, and not the
/// end of the worker.
async fn run(
    mut running: Pin<&mut Option<impl Future<Output = Result<(), Failure>>>>,
    timer: &mut Timer,
    since: Instant,
) -> Result<(), Failure> {
    std::future::poll_fn(|cx| {
        let Some(running) = running.as_mut().as_pin_mut() else {
            return Poll::Ready(Ok(())); // It is only taken away when this is over.
        };
        // What the handler left half done is dropped with it; nothing of ours is in its hands.
        match catch_unwind(AssertUnwindSafe(|| running.poll(cx))) {
            Ok(Poll::Ready(result)) => Poll::Ready(result),
            Err(panic) => Poll::Ready(Err(Failure::panicked(panic.as_ref()))),
            Ok(Poll::Pending) => timer
                .poll(cx, since)
                .map(|after| Err(Failure::timed_out(after))),
        }
    })
    .await
}
