//! Durable consumers: C1 to C9, as far as they do not need a second process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;
use tokio::sync::{Barrier, Semaphore, mpsc, watch};
use tokio::time::Instant;
use trunkline::core::engine::{Append, AppendMode, Credit, Expect, StoredEvent};
use trunkline::core::envelope::JsonText;
use trunkline::core::wire::Body;
use trunkline::core::{Headers, Subject};
use trunkline::{
    Attempt, Bus, Context, Data, Envelope, Event, EventId, FailureExt, Filter, Name, RawEvent,
    Retry, Start, State,
};

use super::Trial;
use super::publish::stored;
use crate::fixture::{Noted, OrderPlaced};
use crate::{RunVerdict, TrackedSession};

/// What a handler has seen: the event's number and the attempt.
type Seen = mpsc::UnboundedSender<(u32, u32)>;

/// Gives the bus a channel into which its handlers report.
fn watched(bus: &Bus) -> mpsc::UnboundedReceiver<(u32, u32)> {
    let (seen, handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    handled
}

async fn note(event: Noted, attempt: Attempt, State(seen): State<Seen>) {
    seen.send((event.n, attempt.0)).unwrap();
}

async fn numbers(handled: &mut mpsc::UnboundedReceiver<(u32, u32)>, count: usize) -> Vec<u32> {
    let mut numbers = Vec::with_capacity(count);
    for _ in 0..count {
        numbers.push(handled.recv().await.unwrap().0);
    }
    numbers
}

async fn publish(bus: &Bus, numbers: std::ops::Range<u32>) {
    for one in bus
        .publish_batch(numbers.map(|n| Noted { n }))
        .await
        .unwrap()
    {
        one.stored().unwrap();
    }
}

pub(super) async fn c1_two_consumers_each_get_every_event(trial: Trial) {
    let session = TrackedSession::new(2);
    let bus = trial
        .connect()
        .await
        .publish_layer(session.clone())
        .handle_layer(session.clone())
        .await
        .unwrap();
    publish(&bus, 0..50).await;
    let first = bus
        .consumer("first")
        .on(|_: Noted| async {})
        .start()
        .await
        .unwrap();
    bus.consumer("second")
        .on(|_: Noted| async {})
        .start()
        .await
        .unwrap();
    publish(&bus, 50..100).await;
    let runs = session.settled().await;
    let mut each: BTreeMap<_, usize> = BTreeMap::new();
    for run in &runs {
        assert_eq!((run.attempt, run.verdict), (1, RunVerdict::Handled));
        *each
            .entry((run.consumer.clone(), run.id.clone()))
            .or_default() += 1;
    }
    assert!(
        each.len() == 200 && each.values().all(|runs| *runs == 1),
        "{each:?}"
    );
    // One consumer's progress is its own: the other goes on when it is stopped.
    first.stop().await;
    publish(&bus, 100..101).await;
    session.expect(0);
    let marker = bus.inspect().await.unwrap();
    assert_eq!(marker.consumers.len(), 2);
    bus.close().await.unwrap();
}

pub(super) async fn c1_members_of_a_consumer_share_its_events(trial: Trial) {
    // The first event of each member waits for that of the other: both must be given some.
    let both = Arc::new(Barrier::new(2));
    let (seen, mut handled) = mpsc::unbounded_channel();
    let mut buses = Vec::new();
    for member in 0..2 {
        let bus = trial.bus().await;
        if member == 0 {
            publish(&bus, 0..500).await;
        }
        let (both, seen, runs) = (
            Arc::clone(&both),
            seen.clone(),
            Arc::new(AtomicUsize::new(0)),
        );
        let handler = move |event: Noted| {
            let (both, seen, runs) = (Arc::clone(&both), seen.clone(), Arc::clone(&runs));
            async move {
                if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                    both.wait().await;
                }
                seen.send((event.n, member)).unwrap();
            }
        };
        bus.consumer("shared")
            .concurrency(1)
            .on(handler)
            .start()
            .await
            .unwrap();
        buses.push(bus);
    }
    let mut got = numbers(&mut handled, 500).await;
    got.sort_unstable();
    assert_eq!(got, (0..500).collect::<Vec<_>>());
    publish(&buses[0], 500..501).await;
    assert_eq!(
        numbers(&mut handled, 1).await,
        [500],
        "an event went to two members"
    );
    for bus in buses {
        bus.close().await.unwrap();
    }
    assert!(handled.try_recv().is_err());
}

pub(super) async fn c1_members_added_and_stopped_in_turn_lose_nothing(trial: Trial) {
    let bus = trial.bus().await;
    let mut handled = watched(&bus);
    let slowly = |event: Noted, attempt: Attempt, seen: State<Seen>| async move {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        note(event, attempt, seen).await;
    };
    let start = async || {
        let consumer = bus.consumer("turns").concurrency(4).on(slowly);
        consumer.start().await.unwrap()
    };
    let mut members = vec![start().await];
    let mut given_back = 0;
    for round in 0..20 {
        publish(&bus, round * 100..(round + 1) * 100).await;
        members.push(start().await);
        // Some are handled before and some after the change of members.
        let leaving = members.remove(0);
        given_back += leaving.stop().await.given_back;
    }
    let mut got = numbers(&mut handled, 2_000).await;
    got.sort_unstable();
    assert_eq!(got, (0..2_000).collect::<Vec<_>>());
    assert!(
        given_back > 0,
        "no member was stopped with events in hand, so nothing was tried"
    );
    for member in members {
        member.stop().await;
    }
    assert!(handled.try_recv().is_err(), "an event was handled twice");
    let backlog = bus.inspect().await.unwrap().consumers[0].backlog;
    assert_eq!(
        (backlog.pending, backlog.in_flight, backlog.floor),
        (0, 0, 2_000)
    );
}

pub(super) async fn c2_a_cleanly_restarted_consumer_sees_no_finished_event_again(trial: Trial) {
    for round in 0..3 {
        let bus = trial.bus().await;
        let mut handled = watched(&bus);
        // The first thing to be handled is the last round's marker, or something came again.
        let handle = bus
            .consumer("progress")
            .concurrency(1)
            .on(note)
            .start()
            .await
            .unwrap();
        publish(&bus, round * 1_000..(round + 1) * 1_000).await;
        let got = numbers(&mut handled, 1_000).await;
        assert_eq!(
            got,
            (round * 1_000..(round + 1) * 1_000).collect::<Vec<_>>()
        );
        let report = handle.stop().await;
        assert_eq!((report.given_back, report.cancelled), (0, 0));
        bus.close().await.unwrap();
        assert!(handled.try_recv().is_err());
    }
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

pub(super) async fn c3_concurrency_is_never_exceeded_and_follows_its_setting(trial: Trial) {
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
    // The eight finish; what starts after them starts under the new limit.
    gauge.gate.add_permits(8);
    gauge.finished(78).await;
    gauge.runs(2).await;
    gauge.highest();
    gauge.gate.add_permits(122);
    gauge.finished(200).await;
    assert!(
        gauge.highest() <= 2,
        "lowering the concurrency had no effect"
    );
    for wrong in [0, 10_001] {
        assert!(handle.set_concurrency(wrong).is_err());
    }
    bus.close().await.unwrap();
}

pub(super) async fn c3_what_a_member_holds_is_bounded(trial: Trial) {
    const CONCURRENCY: usize = 4;
    let bus = trial.bus().await;
    publish(&bus, 0..3_000).await;
    let (held, mut holds) = mpsc::unbounded_channel();
    let handler = move |event: Noted, cx: Context| {
        let held = held.clone();
        async move {
            let backlog = cx.bus().inspect().await.unwrap().consumers[0].backlog;
            held.send((event.n, backlog)).unwrap();
        }
    };
    bus.consumer("bounded")
        .concurrency(CONCURRENCY)
        .on(handler)
        .start()
        .await
        .unwrap();
    for _ in 0..3_000 {
        let (n, backlog) = holds.recv().await.unwrap();
        // A window is twice the concurrency or 256, beside what runs and what is settled already
        // and the engine has not been told of, which is no more than ran at once.
        assert!(
            backlog.in_flight <= 256 + 2 * CONCURRENCY as u64,
            "{backlog:?} at event {n}"
        );
        assert!(backlog.in_flight > 0 && backlog.in_flight + backlog.pending <= 3_000);
    }
    bus.close().await.unwrap();
}

pub(super) async fn c4_a_handler_sees_its_attempts_counted(trial: Trial) {
    let session = TrackedSession::new(1);
    let bus = trial
        .connect()
        .await
        .publish_layer(session.clone())
        .handle_layer(session.clone())
        .await
        .unwrap();
    let mut handled = watched(&bus);
    let handler = |event: Noted, attempt: Attempt, seen: State<Seen>| async move {
        note(event, attempt, seen).await;
        if attempt.0 < 3 {
            Err("not yet")
        } else {
            Ok(())
        }
    };
    let retry = Retry::list([50, 150, 150, 150].map(Duration::from_millis)).jitter(0.0);
    bus.consumer("attempts")
        .retry(retry)
        .on(handler)
        .start()
        .await
        .unwrap();
    let start = Instant::now();
    bus.publish(Noted { n: 7 }).await.unwrap();
    let runs = session.settled().await;
    let verdicts: Vec<_> = runs.iter().map(|run| (run.attempt, run.verdict)).collect();
    let (failed, well) = (RunVerdict::Failed, RunVerdict::Handled);
    assert_eq!(verdicts, [(1, failed), (2, failed), (3, well)]);
    assert!(
        start.elapsed() >= Duration::from_millis(200),
        "delays were cut short: {:?}",
        start.elapsed()
    );
    bus.publish(Noted { n: 8 }).await.unwrap();
    session.settled().await;
    bus.close().await.unwrap();
    let seen: Vec<_> = std::iter::from_fn(|| handled.try_recv().ok()).collect();
    assert_eq!(seen, [(7, 1), (7, 2), (7, 3), (8, 1), (8, 2), (8, 3)]);
    assert_eq!(letters(&trial.bus().await, 0).await.len(), 0);
}

/// The dead letters, which must be that many.
async fn letters(bus: &Bus, count: usize) -> Vec<StoredEvent> {
    let dlq = Name::new("EVENTS_DLQ").unwrap();
    let mut follow = bus
        .engine()
        .log()
        .follow(&dlq, Start::First, &[Filter::all()])
        .await
        .unwrap();
    let mut letters = Vec::new();
    while letters.len() < count {
        follow.next(Credit::items(100), &mut letters).await.unwrap();
    }
    let page = bus
        .engine()
        .log()
        .read(&dlq, Start::First, &[Filter::all()], Credit::items(1_000))
        .await
        .unwrap();
    assert_eq!(page.events.len(), count, "{:?}", page.events);
    letters
}

fn story(letter: &StoredEvent) -> [&str; 4] {
    [
        "Trunkline-Consumer",
        "Trunkline-Reason",
        "Trunkline-Failures",
        "Trunkline-Error",
    ]
    .map(|name| {
        letter
            .headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {letter:?}"))
    })
}

pub(super) async fn c5_a_permanent_error_is_a_dead_letter_on_attempt_1(trial: Trial) {
    let session = TrackedSession::new(1);
    let bus = trial
        .connect()
        .await
        .publish_layer(session.clone())
        .handle_layer(session.clone())
        .await
        .unwrap();
    let handler = |event: Noted| async move {
        match event.n {
            1 => Err("no such customer".permanent()),
            _ => Ok(()),
        }
    };
    let handle = bus.consumer("strict").on(handler).start().await.unwrap();
    for n in 0..3 {
        bus.publish(Noted { n })
            .header("tenant", "acme")
            .await
            .unwrap();
    }
    let runs = session.settled().await;
    assert_eq!(runs.len(), 3, "{runs:?}");
    handle.stop().await;
    let letters = letters(&bus, 1).await;
    assert_eq!(
        story(&letters[0]),
        ["strict", "failed", "1", "no such customer"]
    );
    assert_eq!(letters[0].headers.get("tenant"), Some("acme"));
    let event = letters[0].body.to_event(&letters[0].headers).unwrap();
    assert_eq!(event.data().to_bytes().unwrap(), "{\"n\":1}");
    let backlog = bus.inspect().await.unwrap().consumers[0].backlog;
    assert_eq!(
        (backlog.pending, backlog.in_flight),
        (0, 0),
        "the original was not settled"
    );
}

pub(super) async fn c5_the_last_attempt_dead_letters_and_a_panic_is_a_failure(trial: Trial) {
    let session = TrackedSession::new(1).attempts(3);
    let bus = trial
        .connect()
        .await
        .publish_layer(session.clone())
        .handle_layer(session.clone())
        .await
        .unwrap();
    let handler = |event: Noted| async move {
        match event.n {
            0 => Err("always"),
            1 => panic!("on purpose"),
            _ => Ok(()),
        }
    };
    let retry = Retry::fixed(3, Duration::from_millis(50));
    let handle = bus
        .consumer("trying")
        .concurrency(1)
        .retry(retry)
        .on(handler)
        .start()
        .await
        .unwrap();
    publish(&bus, 0..3).await;
    let runs = session.settled().await;
    let of = |verdict| {
        runs.iter()
            .filter(|run| run.verdict == verdict)
            .map(|run| run.attempt)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (of(RunVerdict::Failed), of(RunVerdict::Cut)),
        (vec![1, 2, 3], vec![1, 2, 3])
    );
    assert_eq!(
        of(RunVerdict::Handled),
        [1],
        "a panic ended more than its own run"
    );
    handle.stop().await;
    let letters = letters(&bus, 2).await;
    let mut stories: Vec<_> = letters.iter().map(story).collect();
    stories.sort_unstable_by_key(|story| story[1]);
    assert_eq!(stories[0], ["trying", "failed", "3", "always"]);
    assert_eq!(stories[1][..3], ["trying", "panicked", "3"]);
    assert!(stories[1][3].contains("on purpose"));
}

pub(super) async fn c5_what_cannot_be_decoded_is_kept_byte_for_byte(trial: Trial) {
    let bus = trial.bus().await;
    let mut handled = watched(&bus);
    // JSON that is not the type's, with white space and an order that no serializer would write.
    let json = Bytes::from_static(b"{ \"z\":1,\n  \"n\": \"seven\", \"a\" :1.50 }");
    let data = Data::Json(JsonText::new(&json).unwrap());
    let envelope = Envelope::new(EventId::new("odd").unwrap(), "/odd", Noted::TYPE, data)
        .unwrap()
        .with_version(1);
    stored(bus.publish_raw(vec![RawEvent::from(envelope)]).await);
    // And what is no event at all, as any program with access to the stream can write it.
    let garbage = Bytes::from_static(b"\x00\xff not an event \r\n");
    let append = Append {
        subject: Subject::new("events.testing.noted").unwrap(),
        key: None,
        id: None,
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Bytes(garbage.clone()),
    };
    let events = Name::new("EVENTS").unwrap();
    bus.engine()
        .log()
        .append(&events, smallvec![append], AppendMode::Each)
        .completed()
        .await
        .unwrap();
    publish(&bus, 5..6).await;
    let handle = bus
        .consumer("decoding")
        .concurrency(1)
        .on(note)
        .start()
        .await
        .unwrap();
    assert_eq!(
        handled.recv().await,
        Some((5, 1)),
        "what cannot be decoded stopped what can"
    );
    handle.stop().await;
    let letters = letters(&bus, 2).await;
    let [_, reason, failures, _] = story(&letters[0]);
    assert_eq!((reason, failures), ("undecodable", "1"));
    let event = letters[0].body.to_event(&letters[0].headers).unwrap();
    assert_eq!(
        (
            event.id().to_string().as_str(),
            event.data().to_bytes().unwrap()
        ),
        ("odd", json)
    );
    assert_eq!(story(&letters[1])[1], "undecodable");
    assert_eq!(letters[1].body.to_bytes().unwrap(), garbage);
}

pub(super) async fn c6_a_waiting_retry_holds_no_slot(trial: Trial) {
    let bus = trial.bus().await;
    let mut handled = watched(&bus);
    let handler = |event: Noted, attempt: Attempt, seen: State<Seen>| async move {
        let failing = event.n == 0 && attempt.0 == 1;
        note(event, attempt, seen).await;
        if failing { Err("later") } else { Ok(()) }
    };
    publish(&bus, 0..10).await;
    let retry = Retry::fixed(2, Duration::from_secs(2));
    bus.consumer("patient")
        .concurrency(1)
        .retry(retry)
        .on(handler)
        .start()
        .await
        .unwrap();
    let start = Instant::now();
    let mut order = Vec::new();
    for _ in 0..11 {
        order.push(handled.recv().await.unwrap());
    }
    let expected: Vec<_> = (0..10).map(|n| (n, 1)).chain([(0, 2)]).collect();
    assert_eq!(order, expected);
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "the delay was cut short: {:?}",
        start.elapsed()
    );
    bus.close().await.unwrap();
}

pub(super) async fn c7_a_long_handler_is_delivered_once(trial: Trial) {
    let (first, second) = (trial.bus().await, trial.bus().await);
    let (seen, mut handled) = mpsc::unbounded_channel();
    for bus in [&first, &second] {
        bus.state::<Seen>(seen.clone());
        // The second event waits in its queue for as long as the first is handled.
        let handler = |event: OrderPlaced, attempt: Attempt, State(seen): State<Seen>| async move {
            seen.send((event.n, attempt.0)).unwrap();
            tokio::time::sleep(Duration::from_millis(3_500)).await;
        };
        let ack_wait = Duration::from_secs(1);
        bus.consumer("long")
            .concurrency(1)
            .ack_wait(ack_wait)
            .on(handler)
            .start()
            .await
            .unwrap();
    }
    for n in 0..4 {
        first
            .publish(OrderPlaced {
                order: "o".into(),
                n,
            })
            .await
            .unwrap();
    }
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(handled.recv().await.unwrap());
    }
    got.sort_unstable();
    assert_eq!(got, [(0, 1), (1, 1), (2, 1), (3, 1)]);
    first.close().await.unwrap();
    second.close().await.unwrap();
    assert!(handled.try_recv().is_err(), "an event was delivered twice");
    let backlog = trial.bus().await.inspect().await.unwrap().consumers[0].backlog;
    assert_eq!((backlog.pending, backlog.in_flight), (0, 0));
}

pub(super) async fn c9_stopping_gives_back_at_once(trial: Trial) {
    let (first, second) = (trial.bus().await, trial.bus().await);
    // A lease that nobody gives back would keep its event away for far longer than this test.
    let ack_wait = Duration::from_secs(600);
    let (mut hung, mut handled) = (watched(&first), watched(&second));
    let hangs = |event: Noted, attempt: Attempt, seen: State<Seen>| async move {
        let done = event.n == 0;
        note(event, attempt, seen).await;
        if !done {
            std::future::pending::<()>().await;
        }
    };
    publish(&first, 0..20).await;
    let handle = first
        .consumer("leaving")
        .concurrency(1)
        .ack_wait(ack_wait)
        .on(hangs)
        .start()
        .await
        .unwrap();
    assert_eq!(numbers(&mut hung, 2).await, [0, 1]);
    second
        .consumer("leaving")
        .concurrency(1)
        .ack_wait(ack_wait)
        .on(note)
        .start()
        .await
        .unwrap();
    let start = Instant::now();
    let report = handle.stop_within(Duration::from_secs(1)).await;
    assert_eq!(
        (report.cancelled, report.given_back, report.failed.is_none()),
        (1, 18, true),
        "{report:?}"
    );
    let mut got = numbers(&mut handled, 19).await;
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "events came back after {:?}",
        start.elapsed()
    );
    got.sort_unstable();
    assert_eq!(
        got,
        (1..20).collect::<Vec<_>>(),
        "the finished event came again, or another was lost"
    );
    second.close().await.unwrap();
    assert!(handled.try_recv().is_err());
}
