//! The workers of a member: as many tasks as handlers may run at once, fed from one queue.
//!
//! A worker takes the next turn as soon as it is done with the last, and ends when there is none:
//! an event costs no task of its own, and an idle member has none.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::turn::{Turn, run};
use super::{Control, Shared};
use crate::failure::{Disposition, Failure};
use crate::handler::MemberContext;

/// What the member and its workers have in common.
struct Common {
    shared: Arc<Shared>,
    context: Arc<MemberContext>,
    inner: Mutex<Inner>,
    /// Has the present limit, so that a lower one holds at once, whatever the member is at.
    control: watch::Receiver<Control>,
    /// Told whenever a turn has finished.
    finished: Notify,
}

impl Common {
    /// How many turns may run at once. What runs is let be.
    fn limit(&self) -> usize {
        self.control.borrow().concurrency
    }
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Turn>,
    /// The bytes of the events in the queue.
    queued_bytes: usize,
    /// What each worker is at, by its slot; a free slot holds nothing.
    slots: Vec<Slot>,
    workers: usize,
    finished: Vec<Finished>,
}

#[derive(Default)]
struct Slot {
    taken: bool,
    turn: Option<Turn>,
}

/// A turn that its handler is done with.
pub(super) type Finished = (Turn, Result<(), Failure>);

pub(super) struct Pool {
    common: Arc<Common>,
    tasks: JoinSet<()>,
}

impl Pool {
    pub(super) fn new(
        shared: Arc<Shared>,
        context: Arc<MemberContext>,
        control: watch::Receiver<Control>,
    ) -> Self {
        let common = Arc::new(Common {
            shared,
            context,
            inner: Mutex::default(),
            control,
            finished: Notify::new(),
        });
        Self {
            common,
            tasks: JoinSet::new(),
        }
    }

    /// Queues turns behind those that wait.
    pub(super) fn push(&mut self, turns: impl Iterator<Item = Turn>) {
        let mut inner = self.common.inner.lock();
        for turn in turns {
            inner.queued_bytes += turn.event.body.rough_bytes();
            inner.queue.push_back(turn);
        }
        drop(inner);
        self.start();
    }

    /// Queues a turn before those that wait.
    pub(super) fn push_front(&mut self, turn: Turn) {
        let mut inner = self.common.inner.lock();
        inner.queued_bytes += turn.event.body.rough_bytes();
        inner.queue.push_front(turn);
        drop(inner);
        self.start();
    }

    /// Starts as many workers as there is work for and the limit allows; to be called when that is
    /// raised.
    pub(super) fn start(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        let mut inner = self.common.inner.lock();
        let busy = inner
            .slots
            .iter()
            .filter(|slot| slot.turn.is_some())
            .count();
        let limit = self.common.limit();
        while inner.workers < limit.min(busy + inner.queue.len()) {
            let slot = inner
                .slots
                .iter()
                .position(|slot| !slot.taken)
                .unwrap_or(inner.slots.len());
            if slot == inner.slots.len() {
                inner.slots.push(Slot::default());
            }
            inner.slots[slot].taken = true;
            inner.workers += 1;
            self.tasks.spawn(work(Arc::clone(&self.common), slot));
        }
    }

    /// How many turns wait, and the bytes of their events.
    pub(super) fn queued(&self) -> (usize, usize) {
        let inner = self.common.inner.lock();
        (inner.queue.len(), inner.queued_bytes)
    }

    /// Takes every turn that waits.
    pub(super) fn take_queue(&mut self) -> VecDeque<Turn> {
        let mut inner = self.common.inner.lock();
        inner.queued_bytes = 0;
        std::mem::take(&mut inner.queue)
    }

    /// Takes what has finished since the last call.
    pub(super) fn take_finished(&mut self) -> Vec<Finished> {
        std::mem::take(&mut self.common.inner.lock().finished)
    }

    /// Waits until something has finished.
    pub(super) async fn finished(&self) {
        if self.common.inner.lock().finished.is_empty() {
            self.common.finished.notified().await;
        }
    }

    /// Calls `each` with every turn that waits, runs or has finished and was not taken.
    pub(super) fn each(&self, mut each: impl FnMut(&Turn)) {
        let inner = self.common.inner.lock();
        inner.queue.iter().for_each(&mut each);
        inner
            .slots
            .iter()
            .filter_map(|slot| slot.turn.as_ref())
            .for_each(&mut each);
        inner.finished.iter().for_each(|(turn, _)| each(turn));
    }

    /// Whether no worker is at anything.
    pub(super) fn is_idle(&self) -> bool {
        self.common.inner.lock().workers == 0
    }

    /// Cancels every worker at its next await; gives the turns that they were at.
    pub(super) async fn cancel(&mut self) -> Vec<Turn> {
        self.tasks.shutdown().await;
        self.common
            .inner
            .lock()
            .slots
            .drain(..)
            .filter_map(|slot| slot.turn)
            .collect()
    }
}

async fn work(common: Arc<Common>, slot: usize) {
    let mut result = None;
    loop {
        let (source, event, attempt) = {
            let mut inner = common.inner.lock();
            if let Some(result) = result.take()
                && let Some(turn) = inner.slots[slot].turn.take()
            {
                inner.finished.push((turn, result));
                common.finished.notify_one();
            }
            let next = if inner.workers > common.limit() {
                None
            } else {
                inner.queue.pop_front()
            };
            let Some(turn) = next else {
                inner.slots[slot].taken = false;
                inner.workers -= 1;
                return;
            };
            inner.queued_bytes -= turn.event.body.rough_bytes();
            let taken = (turn.source, turn.event.clone(), turn.failures + 1);
            inner.slots[slot].turn = Some(turn);
            taken
        };
        // Lets others run now and then, however long the queue and short the handlers.
        tokio::task::consume_budget().await;
        let stream = common.shared.streams[source].clone();
        let running = pin!(run(
            &common.shared,
            stream,
            event,
            attempt,
            None,
            &common.context
        ));
        result = Some(guarded(running).await);
    }
}

/// Runs a handler; a panic is a failure and not the end of the worker.
async fn guarded(
    mut running: std::pin::Pin<&mut impl Future<Output = Result<(), Failure>>>,
) -> Result<(), Failure> {
    std::future::poll_fn(move |cx| {
        // What the handler left half done is dropped with it; nothing of ours is in its hands.
        catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let message = format!(
                "the handler panicked: {}",
                text.unwrap_or_else(|| "(no message)".to_owned())
            );
            Poll::Ready(Err(Failure::new(
                Disposition::Transient,
                "panicked",
                message,
            )))
        })
    })
    .await
}
