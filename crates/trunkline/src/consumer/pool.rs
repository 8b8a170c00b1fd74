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
    ///
    /// A worker that came too late for the queue holds nothing and ends without telling anybody, so
    /// it does not count: this turns true only with a turn of which [`finished`](Self::finished) is
    /// told.
    pub(super) fn is_idle(&self) -> bool {
        let inner = self.common.inner.lock();
        inner.slots.iter().all(|slot| slot.turn.is_none())
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
        let running = pin!(run(&common.shared, stream, event, attempt, &common.context));
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use tokio::sync::Semaphore;
    use tokio::time::timeout;
    use trunkline_core::engine::{Boxed, Delivery, Seq, StoredEvent, Token};
    use trunkline_core::headers::Headers;
    use trunkline_core::wire::Body;
    use trunkline_core::{Name, Subject, Timestamp};

    use super::*;
    use crate::bus::Bus;
    use crate::consumer::Retry;
    use crate::event::EventInfo;
    use crate::handler::{Delivered, Registered};

    const MINUTE: Duration = Duration::from_secs(60);

    /// A handler that ends when it is let.
    struct Waits(Arc<Semaphore>);

    impl Registered for Waits {
        fn info(&self) -> trunkline_core::Result<EventInfo> {
            unreachable!("a pool asks no handler what it handles")
        }

        fn check(&self, _: &Bus) -> trunkline_core::Result<()> {
            Ok(())
        }

        fn call(&self, _: Delivered) -> Boxed<'static, Result<(), Failure>> {
            let gate = Arc::clone(&self.0);
            Box::pin(async move {
                gate.acquire().await.unwrap().forget();
                Ok(())
            })
        }
    }

    fn turn(seq: Seq) -> Turn {
        let event = br#"{"specversion": "1.0", "id": "1", "source": "/here", "type": "waits"}"#;
        let delivery = Delivery {
            token: Token { seq, lease: seq },
            event: StoredEvent {
                seq,
                at: Timestamp::from_nanos(0),
                subject: Subject::new("waits").unwrap(),
                headers: Headers::new(),
                body: Body::Bytes(event.as_slice().into()),
            },
            delivered_hint: 1,
        };
        Turn::new(0, delivery)
    }

    /// A pool for that many turns at once, each of which waits at the gate.
    async fn pool(concurrency: usize, gate: &Arc<Semaphore>) -> Pool {
        let bus = Bus::connect("memory:").await.unwrap();
        let name = Name::new("waits").unwrap();
        let waits: Arc<dyn Registered> = Arc::new(Waits(Arc::clone(gate)));
        let shared = Shared {
            bus: bus.clone(),
            name: name.clone(),
            streams: vec![name.clone()],
            handlers: BTreeMap::from([("waits".into(), waits)]),
            layers: Vec::new(),
            rules: Vec::new(),
            retry: Retry::default(),
            ack_wait: MINUTE,
            on_gap: None,
        };
        let context = MemberContext {
            consumer: name,
            bus,
            stopping: watch::Sender::new(false).subscribe(),
        };
        let control = Control {
            stop: None,
            concurrency,
        };
        let control = watch::Sender::new(control).subscribe();
        Pool::new(Arc::new(shared), Arc::new(context), control)
    }

    /// Waits as a member does that drains.
    async fn idle(pool: &mut Pool) -> usize {
        let mut finished = pool.take_finished().len();
        while !pool.is_idle() {
            pool.finished().await;
            finished += pool.take_finished().len();
        }
        finished
    }

    #[tokio::test(start_paused = true)]
    async fn c9_workers_that_come_too_late_for_the_queue_hold_up_no_stop() {
        let gate = Arc::new(Semaphore::new(0));
        let mut pool = pool(4, &gate).await;
        // The queue is taken away before any of its workers has run: they will have no turn to tell
        // of when they end.
        pool.push((1..=3).map(turn));
        assert_eq!(pool.take_queue().len(), 3);
        let finished = timeout(MINUTE, idle(&mut pool)).await;
        assert_eq!(finished, Ok(0), "nobody tells that the pool is idle");

        pool.push((4..=5).map(turn));
        tokio::task::yield_now().await;
        pool.push((6..=8).map(turn));
        assert_eq!(pool.take_queue().len(), 3);
        assert!(!pool.is_idle(), "two turns run");
        gate.add_permits(2);
        let finished = timeout(MINUTE, idle(&mut pool)).await;
        assert_eq!(finished, Ok(2), "what runs is waited for");
    }
}
