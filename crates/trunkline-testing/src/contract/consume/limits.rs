//! How much a member runs and holds at once: C3.
//!
//! Handlers are given a concurrency because what is behind them bears no more, and what a member
//! holds beyond that is memory, and work that the other members do not get.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};
use trunkline::core::envelope::JsonText;
use trunkline::{ConsumerHandle, Context, Data, Envelope, Event, EventId, RawEvent, State};

use super::super::Trial;
use super::super::publish::stored;
use super::publish;
use crate::fixture::Noted;

pub(in crate::contract) async fn c3_concurrency_is_never_exceeded_and_follows_its_setting(
    trial: Trial,
) {
    let bus = trial.bus().await;
    bus.state(Gauge::new());
    publish(&bus, 0..200).await;
    let gauged = |_: Noted, State(gauge): State<Gauge>| async move { gauge.run().await };
    let probe = Arc::new(std::sync::OnceLock::new());
    let inner = Arc::clone(&probe);
    let handler = move |event: Noted, State(gauge): State<Gauge>| {
        inner.get_or_init(|| Arc::clone(&gauge));
        gauged(event, State(gauge))
    };
    let handle = bus
        .consumer("gauged")
        .concurrency(3)
        .on(handler)
        .start()
        .await
        .unwrap();
    // The first handler to run shows the gauge.
    let gauge = loop {
        match probe.get() {
            Some(gauge) => break Arc::clone(gauge),
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    gauge.runs(3).await;
    gauge.gate.add_permits(30);
    gauge.finished(30).await;
    gauge.runs(3).await;
    assert_eq!(gauge.highest(), 3);
    handle.set_concurrency(8).unwrap();
    gauge.runs(8).await;
    gauge.gate.add_permits(40);
    gauge.finished(70).await;
    gauge.runs(8).await;
    assert_eq!(gauge.highest(), 8);
    handle.set_concurrency(2).unwrap();
    // What runs is let be; what starts after it starts under the new limit, once the member has
    // heard of it.
    let mut finished = 70;
    while gauge.running() > 2 {
        assert!(finished < 150, "lowering the concurrency had no effect");
        gauge.gate.add_permits(1);
        finished += 1;
        gauge.finished(finished).await;
    }
    gauge.highest();
    gauge.gate.add_permits(200 - finished);
    gauge.finished(200).await;
    assert!(gauge.highest() <= 2, "the lower concurrency did not hold");
    for wrong in [0, 10_001] {
        assert!(handle.set_concurrency(wrong).is_err());
    }
    bus.close().await.unwrap();
}

pub(in crate::contract) async fn c3_what_a_member_holds_is_bounded(trial: Trial) {
    const CONCURRENCY: usize = 4;
    let bus = trial.bus().await;
    publish(&bus, 0..3_000).await;
    let handled = Arc::new(AtomicUsize::new(0));
    let (held, mut holds) = mpsc::unbounded_channel();
    let handler = move |event: Noted, cx: Context| {
        let (held, handled) = (held.clone(), Arc::clone(&handled));
        async move {
            let backlog = cx.bus().inspect().await.unwrap().consumers[0].backlog;
            // As the member counts: an engine may hear of what was settled only later.
            let delivered = 3_000 - backlog.pending;
            // What was handled since it was asked makes this smaller, never larger.
            let handled = handled.fetch_add(1, Ordering::Relaxed) as u64;
            let kept = delivered.saturating_sub(handled);
            held.send((event.n, kept, backlog)).unwrap();
        }
    };
    bus.consumer("bounded")
        .concurrency(CONCURRENCY)
        .on(handler)
        .start()
        .await
        .unwrap();
    for _ in 0..3_000 {
        let (n, kept, backlog) = holds.recv().await.unwrap();
        // A window is twice the concurrency or 256, beside what runs.
        assert!(
            kept <= 256 + CONCURRENCY as u64,
            "{kept} are held at event {n}: {backlog:?}"
        );
        assert!(backlog.in_flight > 0 && backlog.in_flight + backlog.pending <= 3_000);
    }
    bus.close().await.unwrap();
}

pub(in crate::contract) async fn c3_what_a_member_holds_is_bounded_in_bytes_and_follows_its_setting(
    trial: Trial,
) {
    const WINDOW: usize = 3 << 20;
    const EVENT: usize = 100_000;
    let bus = trial.bus().await;
    let padding = "x".repeat(EVENT);
    for n in 0..100 {
        let json = Bytes::from(format!("{{\"n\":{n},\"padding\":\"{padding}\"}}"));
        let data = Data::Json(JsonText::new(&json).unwrap());
        let id = EventId::new(format!("padded-{n}")).unwrap();
        let envelope = Envelope::new(id, "/padded", Noted::TYPE, data).unwrap();
        stored(
            bus.publish_raw(vec![RawEvent::from(envelope.with_version(1))])
                .await,
        );
    }
    let (started, member) = watch::channel(None::<ConsumerHandle>);
    let (held, mut holds) = mpsc::unbounded_channel();
    let handler = move |event: Noted| {
        let (held, mut member) = (held.clone(), member.clone());
        async move {
            let member = member.wait_for(Option::is_some).await.unwrap().clone();
            let health = member.as_ref().unwrap().health();
            held.send((health.held, health.held_bytes)).unwrap();
            if event.n == 50 {
                member.unwrap().set_window(2, WINDOW).unwrap();
            }
        }
    };
    let handle = bus
        .consumer("padded")
        .concurrency(1)
        .window_bytes(WINDOW)
        .on(handler)
        .start()
        .await
        .unwrap();
    started.send_replace(Some(handle.clone()));
    let mut all = Vec::new();
    while all.len() < 100 {
        all.push(holds.recv().await.unwrap());
    }
    let most = all.iter().map(|(_, bytes)| *bytes).max().unwrap();
    assert!(
        (2 * EVENT..=WINDOW).contains(&most),
        "{most} bytes were held"
    );
    // What it held when the window became smaller is let be: at most 31 events.
    let late = &all[90..];
    assert!(
        late.iter().all(|(events, _)| *events <= 2),
        "the smaller window did not hold: {late:?}"
    );
    for (events, bytes) in [(0, 1), (20_001, 1), (1, 0), (1, (1 << 30) + 1)] {
        assert!(handle.set_window(events, bytes).is_err());
    }
    bus.close().await.unwrap();
}

/// Counts what runs at once.
struct Gauge {
    running: watch::Sender<usize>,
    highest: AtomicUsize,
    gate: Semaphore,
    done: watch::Sender<usize>,
}

impl Gauge {
    fn new() -> Self {
        Self {
            running: watch::Sender::new(0),
            highest: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            done: watch::Sender::new(0),
        }
    }

    async fn run(&self) {
        self.running.send_modify(|running| *running += 1);
        self.highest
            .fetch_max(*self.running.borrow(), Ordering::Relaxed);
        self.gate.acquire().await.unwrap().forget();
        tokio::task::yield_now().await;
        self.running.send_modify(|running| *running -= 1);
        self.done.send_modify(|done| *done += 1);
    }

    fn running(&self) -> usize {
        *self.running.borrow()
    }

    async fn runs(&self, count: usize) {
        self.running
            .subscribe()
            .wait_for(|running| *running >= count)
            .await
            .unwrap();
    }

    async fn finished(&self, count: usize) {
        self.done
            .subscribe()
            .wait_for(|done| *done >= count)
            .await
            .unwrap();
    }

    /// The most that ran at once since this was last asked.
    fn highest(&self) -> usize {
        self.highest.swap(0, Ordering::Relaxed)
    }
}
