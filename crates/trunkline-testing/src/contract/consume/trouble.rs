//! Handlers that hang, that block their thread, and that fail in numbers: C7, and when to pause.
//!
//! None of these may go on in silence: a handler that hangs would keep its place for ever, one that
//! blocks cannot be ended at all, and a service that is down would use up the attempts of every event.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc as blocking};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use trunkline::consumer::BreakerState;
use trunkline::{Attempt, Breaker, ConsumerHandle, Retry, State};

use super::super::Trial;
use super::failure::{letters, story};
use super::ordered::place;
use super::{Seen, note, publish, watched};
use crate::fixture::{Noted, OrderPlaced};
use crate::{RunVerdict, TrackedSession};

/// Looks at a member until it is as it should be.
async fn until(handle: &ConsumerHandle, is_so: impl Fn(&trunkline::consumer::Health) -> bool) {
    while !is_so(&handle.health()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(in crate::contract) async fn c7_a_handler_that_hangs_is_cancelled_and_retried(trial: Trial) {
    const TIME_OUT: Duration = Duration::from_millis(300);
    let session = TrackedSession::new(1).attempts(3);
    let bus = trial
        .connect()
        .await
        .publish_layer(session.clone())
        .handle_layer(session.clone())
        .await
        .unwrap();
    let handler = |event: Noted, attempt: Attempt| async move {
        match (event.n, attempt.0) {
            (0, 1 | 2) | (1, _) => std::future::pending().await,
            _ => {}
        }
    };
    // One place, so that a handler which kept it would let nobody else run.
    let handle = bus
        .consumer("hanging")
        .concurrency(1)
        .time_out(TIME_OUT)
        .retry(Retry::fixed(3, Duration::from_millis(50)))
        .on(handler)
        .start()
        .await
        .unwrap();
    let start = Instant::now();
    publish(&bus, 0..3).await;
    let runs = session.settled().await;
    let took = start.elapsed();
    assert!(took >= 5 * TIME_OUT, "a run was cut short: {took:?}");
    let of = |verdict| {
        let runs = runs.iter().filter(|run| run.verdict == verdict);
        let mut attempts: Vec<_> = runs.map(|run| run.attempt).collect();
        attempts.sort_unstable();
        attempts
    };
    assert_eq!(of(RunVerdict::Cut), [1, 1, 2, 2, 3]);
    assert_eq!(of(RunVerdict::Handled), [1, 3]);
    handle.stop().await;
    let letters = letters(&bus, 1).await;
    let [consumer, reason, failures, error] = story(&letters[0]);
    assert_eq!((consumer, reason, failures), ("hanging", "timed_out", "3"));
    assert!(error.contains("300ms"), "{error}");
}

/// A handler that blocks its thread, as a driver without await would whose server does not answer; and
/// what ends that, which is the end of the property at the latest. It does so once: what was given to
/// its member while the thread was blocked may run when that goes on.
fn blocking_once() -> (
    blocking::Sender<()>,
    impl Fn() + Clone + Send + Sync + 'static,
) {
    let (end, ends) = blocking::channel::<()>();
    let ends = Arc::new(Mutex::new(Some(ends)));
    let block = move || {
        let once = ends.lock().take();
        if let Some(ends) = once {
            let _ = ends.recv();
        }
    };
    (end, block)
}

pub(in crate::contract) async fn c7_a_handler_that_blocks_its_thread_is_reported_stuck(
    trial: Trial,
) {
    let second = trial.bus().await;
    let mut handled = watched(&second);
    let ((end, block), ack_wait) = (blocking_once(), Duration::from_secs(1));
    let blocks = move |_: Noted| {
        let block = block.clone();
        async move { block() }
    };
    let elsewhere = Elsewhere::with_threads(1);
    let connecting = trial.clone();
    let (first, handle) = elsewhere
        .run(async move {
            let bus = connecting.bus().await;
            let consumer = bus.consumer("blocked").ack_wait(ack_wait);
            let consumer = consumer.time_out(Duration::from_millis(100));
            let handle = consumer.on(blocks).start().await.unwrap();
            (bus, handle)
        })
        .await;
    publish(&second, 0..1).await;
    until(&handle, |health| health.running == 1).await;
    assert!(handle.health().is_well());
    let consumer = second.consumer("blocked").ack_wait(ack_wait).on(note);
    consumer.start().await.unwrap();
    // Its lease ends, and nothing else gives the event to somebody else.
    assert_eq!(handled.recv().await, Some((0, 1)));
    until(&handle, |health| !health.is_well()).await;
    let health = handle.health();
    assert_eq!((health.running, health.stuck[0].seq), (1, 1));
    assert!(health.stuck[0].running_for >= Duration::from_secs(5));
    end.send(()).unwrap();
    until(&handle, |health| health.is_well() && health.running == 0).await;
    // Whatever it came to in the end, the event was somebody else's by then.
    let report = handle.stop().await;
    assert_eq!((report.cancelled, report.stuck), (0, 0), "{report:?}");
    publish(&second, 1..2).await;
    assert_eq!(handled.recv().await, Some((1, 1)));
    elsewhere
        .run(async move { first.close().await.unwrap() })
        .await;
    second.close().await.unwrap();
    assert_eq!(letters(&trial.bus().await, 0).await.len(), 0);
}

pub(in crate::contract) async fn c7_a_key_whose_handler_blocks_goes_on_with_another_member(
    trial: Trial,
) {
    let second = trial.bus().await;
    let (end, block) = blocking_once();
    let blocks = move |_: OrderPlaced| {
        let block = block.clone();
        async move { block() }
    };
    // Only the handler's thread is blocked: the member goes on to say that it lives.
    let elsewhere = Elsewhere::with_threads(2);
    let connecting = trial.clone();
    let (first, handle) = elsewhere
        .run(async move {
            let bus = connecting.bus().await;
            let consumer = bus.consumer("blocked").time_out(Duration::from_millis(100));
            let handle = consumer.on(blocks).start().await.unwrap();
            (bus, handle)
        })
        .await;
    place(&second, 1, 0..2).await;
    until(&handle, |health| health.running == 1).await;
    let (seen, mut handled) = mpsc::unbounded_channel();
    let handler = move |order: OrderPlaced| {
        let seen = seen.clone();
        async move {
            let _ = seen.send(order.n);
        }
    };
    let consumer = second.consumer("blocked").on(handler);
    let other = consumer.start().await.unwrap();
    // Both in order, although the first may still be at work where it is stuck.
    assert_eq!(handled.recv().await, Some(0));
    assert_eq!(handled.recv().await, Some(1));
    // The thread may have had the member's heartbeat in hand, and then its lease ended before this.
    until(&handle, |health| !health.is_well()).await;
    let health = handle.health();
    assert_eq!((health.running, health.stuck[0].seq), (1, 1));
    end.send(()).unwrap();
    until(&handle, |health| health.is_well() && health.running == 0).await;
    let report = elsewhere.run(async move { handle.stop().await }).await;
    assert_eq!((report.cancelled, report.stuck), (0, 0), "{report:?}");
    // What it came to in the end was told to nobody.
    place(&second, 1, 2..3).await;
    assert_eq!(handled.recv().await, Some(2));
    elsewhere
        .run(async move { first.close().await.unwrap() })
        .await;
    assert!(other.is_running());
    second.close().await.unwrap();
    assert_eq!(letters(&trial.bus().await, 0).await.len(), 0);
}

/// Threads of their own, as another process has: one that is blocked may hold up all that share a
/// runtime with it, timers included.
struct Elsewhere(Option<tokio::runtime::Runtime>);

impl Elsewhere {
    fn with_threads(threads: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build();
        Self(Some(runtime.expect("a runtime")))
    }

    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let runtime = self.0.as_ref().expect("it is there until it is dropped");
        runtime.spawn(work).await.unwrap()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // A runtime must not wait for its threads inside another.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

pub(in crate::contract) async fn c6_where_too_much_fails_a_member_pauses_and_tries_one(
    trial: Trial,
) {
    const PAUSE: Duration = Duration::from_secs(1);
    let bus = trial.bus().await;
    let is_down = Arc::new(AtomicBool::new(true));
    let failed = Arc::new(AtomicU32::new(0));
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    let (down, count) = (Arc::clone(&is_down), Arc::clone(&failed));
    let handler = move |event: Noted, attempt: Attempt, seen: State<Seen>| {
        let (down, count) = (Arc::clone(&down), Arc::clone(&count));
        async move {
            if down.load(Ordering::Relaxed) {
                count.fetch_add(1, Ordering::Relaxed);
                return Err("the service is down");
            }
            note(event, attempt, seen).await;
            Ok(())
        }
    };
    publish(&bus, 0..200).await;
    let handle = bus
        .consumer("pausing")
        .concurrency(4)
        .retry(Retry::fixed(4, Duration::from_millis(50)))
        .breaker(Breaker::default().runs(10).pauses(PAUSE, 2 * PAUSE))
        .on(handler)
        .start()
        .await
        .unwrap();
    let is_open = |breaker| matches!(breaker, BreakerState::Open { .. });
    let started = Instant::now();
    until(&handle, |health| {
        is_open(health.breaker) && health.running == 0
    })
    .await;
    let opened = Instant::now();
    // Five of ten opened it, and three more may have been running then.
    let before = failed.load(Ordering::Relaxed);
    assert!((5..=8).contains(&before), "{before} failed");
    let BreakerState::Open { again_in } = handle.health().breaker else {
        panic!("it tries again already");
    };
    // It opened after it was started, and what is left of the pause began then.
    let whole = again_in + started.elapsed();
    assert!(whole >= PAUSE * 9 / 10, "it pauses for {whole:?}");
    while failed.load(Ordering::Relaxed) == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let paused = opened.elapsed();
    assert!(paused >= again_in * 9 / 10, "it paused for {paused:?}");
    until(&handle, |health| is_open(health.breaker)).await;
    assert_eq!(
        failed.load(Ordering::Relaxed),
        before + 1,
        "more than one was tried"
    );
    is_down.store(false, Ordering::Relaxed);
    let mut numbers = Vec::new();
    for _ in 0..200 {
        numbers.push(handled.recv().await.unwrap().0);
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (0..200).collect::<Vec<_>>());
    assert_eq!(handle.health().breaker, BreakerState::Closed);
    bus.close().await.unwrap();
    // Without the pause all 200 would have used up their attempts.
    assert_eq!(letters(&trial.bus().await, 0).await.len(), 0);
}
