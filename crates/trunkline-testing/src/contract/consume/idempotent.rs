//! Events that come twice: C11.
//!
//! At least once means that an event can come again: it was published twice, or acknowledged too late.
//! Where that hurts, a consumer remembers what it has done, and all its members know.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;
use tokio::sync::{Semaphore, mpsc};
use trunkline::core::Headers;
use trunkline::core::engine::{Append, AppendMode, Expect, Outcome, StateKey, Watched};
use trunkline::core::envelope::JsonText;
use trunkline::core::wire::Body;
use trunkline::{
    Attempt, Beside, Bus, ConsumerHandle, Context, Data, Envelope, ErrorKind, Event, EventId, Name,
    Retry, Start, State,
};

use super::super::Trial;
use super::{Seen, note, numbers, watched};
use crate::fixture::Noted;

const HOUR: Duration = Duration::from_secs(3_600);

/// Stores an event without telling the stream its id, so that it is stored each time, as it is when
/// the duplicate window has passed.
async fn store(bus: &Bus, id: &str, n: u32) {
    let json = Bytes::from(format!("{{\"n\":{n}}}"));
    let data = Data::Json(JsonText::new(&json).unwrap());
    let envelope = Envelope::new(EventId::new(id).unwrap(), "/trial", Noted::TYPE, data).unwrap();
    let append = Append {
        subject: trunkline::core::Subject::new("events.testing.noted").unwrap(),
        key: None,
        id: None,
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Event(Arc::new(envelope)),
    };
    let stored = bus
        .engine()
        .log()
        .append(
            &Name::new("EVENTS").unwrap(),
            smallvec![append],
            AppendMode::Each,
        )
        .completed()
        .await
        .unwrap();
    assert!(
        matches!(
            stored[0],
            Outcome::Stored {
                duplicate: false,
                ..
            }
        ),
        "{stored:?}"
    );
}

/// Waits until these members have acknowledged that many events unseen.
async fn unseen(members: &[&ConsumerHandle], count: u64) {
    let sum = || {
        members
            .iter()
            .map(|member| member.duplicates())
            .sum::<u64>()
    };
    while sum() < count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(sum(), count);
}

async fn nothing_is_left(bus: &Bus) {
    for consumer in bus.inspect().await.unwrap().consumers {
        let backlog = consumer.backlog;
        assert_eq!((backlog.pending, backlog.in_flight), (0, 0), "{backlog:?}");
    }
}

pub(in crate::contract) async fn c11_a_duplicate_of_a_done_event_is_acknowledged_unseen(
    trial: Trial,
) {
    for round in 1..=2 {
        // The second time it is another member, on another connection.
        let bus = trial.bus().await;
        let mut handled = watched(&bus);
        store(&bus, "twice", 0).await;
        if round == 1 {
            store(&bus, "twice", 0).await;
        }
        store(&bus, &format!("marker {round}"), round).await;
        let handle = bus
            .consumer("once")
            .concurrency(1)
            .idempotent(HOUR)
            .on(note)
            .start()
            .await
            .unwrap();
        let expected = if round == 1 { vec![0, 1] } else { vec![2] };
        assert_eq!(numbers(&mut handled, expected.len()).await, expected);
        let report = handle.stop().await;
        assert_eq!(report.given_back, 0, "{report:?}");
        assert_eq!(handle.duplicates(), 1);
        assert!(handled.try_recv().is_err());
        bus.close().await.unwrap();
        nothing_is_left(&trial.bus().await).await;
    }
}

pub(in crate::contract) async fn c11_duplicates_at_once_run_once(trial: Trial) {
    let (seen, mut handled) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let mut buses = Vec::new();
    let mut members = Vec::new();
    for member in 0..2 {
        let bus = trial.bus().await;
        if member == 0 {
            for _ in 0..4 {
                store(&bus, "thrice more", 0).await;
            }
            for n in 1..=20 {
                store(&bus, &format!("marker {n}"), n).await;
            }
        }
        let (seen, gate) = (seen.clone(), Arc::clone(&gate));
        let handler = move |event: Noted| {
            let (seen, gate) = (seen.clone(), Arc::clone(&gate));
            async move {
                seen.send((event.n, 1)).unwrap();
                if event.n == 0 {
                    gate.acquire().await.unwrap().forget();
                }
            }
        };
        let consumer = bus.consumer("at-once").concurrency(4).idempotent(HOUR);
        members.push(consumer.on(handler).start().await.unwrap());
        buses.push(bus);
    }
    // While one of the four runs, the others keep nobody waiting.
    let mut got = numbers(&mut handled, 21).await;
    got.sort_unstable();
    assert_eq!(got, (0..=20).collect::<Vec<_>>());
    gate.add_permits(1);
    unseen(&members.iter().collect::<Vec<_>>(), 3).await;
    for bus in buses {
        bus.close().await.unwrap();
    }
    assert!(handled.try_recv().is_err(), "a duplicate ran");
    nothing_is_left(&trial.bus().await).await;
}

pub(in crate::contract) async fn c11_consumers_are_idempotent_each_for_itself(trial: Trial) {
    let bus = trial.bus().await;
    let (seen, mut keys) = mpsc::unbounded_channel();
    for consumer in ["one", "other"] {
        let seen = seen.clone();
        let handler = move |_: Noted, cx: Context| {
            let seen = seen.clone();
            async move { seen.send(cx.idempotency_key()).unwrap() }
        };
        bus.consumer(consumer)
            .idempotent(HOUR)
            .on(handler)
            .start()
            .await
            .unwrap();
    }
    store(&bus, "shared", 1).await;
    let mut got = [keys.recv().await.unwrap(), keys.recv().await.unwrap()];
    got.sort_unstable();
    assert!(
        got[0].starts_with("one.0.") && got[1].starts_with("other.0."),
        "{got:?}"
    );
    bus.close().await.unwrap();
    assert!(keys.try_recv().is_err());
}

pub(in crate::contract) async fn c11_what_failed_may_run_again(trial: Trial) {
    let bus = trial.bus().await;
    let mut handled = watched(&bus);
    let handler = |event: Noted, attempt: Attempt, seen: State<Seen>| async move {
        note(event.clone(), attempt, seen).await;
        match (event.n, attempt.0) {
            (0, 1) => Err("not yet"),
            (1, 1) => panic!("on purpose"),
            _ => Ok(()),
        }
    };
    let handle = bus
        .consumer("failing")
        .concurrency(1)
        .retry(Retry::fixed(3, Duration::from_millis(50)))
        .idempotent(HOUR)
        .on(handler)
        .start()
        .await
        .unwrap();
    for n in 0..2 {
        store(&bus, &format!("event {n}"), n).await;
        assert_eq!(handled.recv().await, Some((n, 1)));
        assert_eq!(handled.recv().await, Some((n, 2)));
    }
    for n in [0, 1, 2] {
        store(&bus, &format!("event {n}"), n).await;
    }
    assert_eq!(handled.recv().await, Some((2, 1)), "a duplicate ran");
    unseen(&[&handle], 2).await;
    bus.close().await.unwrap();
    nothing_is_left(&trial.bus().await).await;
}

pub(in crate::contract) async fn c11_a_reset_and_a_deletion_forget_what_was_done(trial: Trial) {
    let bus = trial.bus().await;
    let (seen, mut keys) = mpsc::unbounded_channel();
    let name = Name::new("again").unwrap();
    store(&bus, "once", 1).await;
    for round in 0..3 {
        let seen = seen.clone();
        let handler = move |_: Noted, cx: Context| {
            let seen = seen.clone();
            async move { seen.send(cx.idempotency_key()).unwrap() }
        };
        let consumer = bus.consumer("again").unordered().idempotent(HOUR);
        let handle = consumer.on(handler).start().await.unwrap();
        let generation = ["again.0.", "again.1.", "again.0."][round];
        let key = keys.recv().await.unwrap();
        assert!(key.starts_with(generation), "round {round}: {key}");
        assert_eq!(handle.duplicates(), 0);
        handle.stop().await;
        match round {
            0 => bus
                .reset_consumer(&name, Start::First, Beside::Refuse)
                .await
                .unwrap(),
            1 => {
                let _ = bus.delete_consumer(&name, None).await.unwrap();
            }
            _ => {}
        }
    }
    bus.close().await.unwrap();
    assert!(keys.try_recv().is_err());
}

pub(in crate::contract) async fn c11_a_long_run_keeps_its_claim(trial: Trial) {
    let bus = trial.bus().await;
    let mut handled = watched(&bus);
    let handler = |event: Noted, attempt: Attempt, seen: State<Seen>| async move {
        note(event, attempt, seen).await;
        tokio::time::sleep(Duration::from_millis(3_500)).await;
    };
    store(&bus, "long", 1).await;
    store(&bus, "long", 1).await;
    let handle = bus
        .consumer("long")
        .ack_wait(Duration::from_secs(1))
        .idempotent(HOUR)
        .on(handler)
        .start()
        .await
        .unwrap();
    assert_eq!(handled.recv().await, Some((1, 1)));
    unseen(&[&handle], 1).await;
    bus.close().await.unwrap();
    assert!(handled.try_recv().is_err(), "a duplicate ran");
}

pub(in crate::contract) async fn c11_a_crash_before_the_record_repeats_the_run(trial: Trial) {
    let (seen, mut keys) = mpsc::unbounded_channel();
    let start = async |bus: &Bus, hangs: bool| {
        let seen = seen.clone();
        let handler = move |_: Noted, cx: Context| {
            let seen = seen.clone();
            async move {
                seen.send(cx.idempotency_key()).unwrap();
                if hangs {
                    std::future::pending::<()>().await;
                }
            }
        };
        let consumer = bus.consumer("dying").ack_wait(Duration::from_secs(1));
        let consumer = consumer.idempotent(HOUR).on(handler);
        consumer.start().await.unwrap()
    };
    let (dying, heir) = (trial.bus().await, trial.bus().await);
    store(&heir, "hard", 1).await;
    let member = start(&dying, true).await;
    let first = keys.recv().await.unwrap();
    // As kill -9 leaves it: nothing is settled, written or given back any more.
    dying.engine().close().await;
    assert!(member.ended().await.failed.is_some());
    let handle = start(&heir, false).await;
    assert_eq!(keys.recv().await.unwrap(), first);
    store(&heir, "hard", 1).await;
    unseen(&[&handle], 1).await;
    heir.close().await.unwrap();
    assert!(keys.try_recv().is_err());
}

pub(in crate::contract) async fn c11_a_key_ends_with_its_time(trial: Trial) {
    let bus = trial.bus().await;
    let mut handled = watched(&bus);
    bus.consumer("forgetful")
        .retry(Retry::never())
        .time_out(Duration::from_secs(1))
        .idempotent(Duration::from_secs(2))
        .on(note)
        .start()
        .await
        .unwrap();
    let (bucket, below) = (
        Name::new("trunkline").unwrap(),
        StateKey::new("forgetful.0.idem").unwrap(),
    );
    let state = bus.engine().state();
    let mut watch = state.watch(&bucket, Some(&below), 0).await.unwrap();
    for _ in 0..2 {
        store(&bus, "again", 7).await;
        assert_eq!(numbers(&mut handled, 1).await, [7]);
        loop {
            match watch.next().await.unwrap() {
                Watched::Expired { .. } => break,
                Watched::Deleted { key, .. } => panic!("{key} was deleted"),
                Watched::Put(_) | Watched::CaughtUp(_) => {}
            }
        }
    }
    bus.close().await.unwrap();
    assert!(handled.try_recv().is_err());
}

pub(in crate::contract) async fn c11_one_setting_makes_every_consumer_idempotent(trial: Trial) {
    let bus = trial.connect().await.idempotent(HOUR).await.unwrap();
    let mut handled = watched(&bus);
    let consumer = |name: &str| bus.consumer(name).concurrency(1).on(note);
    let (first, second, all) = (
        consumer("first").start().await.unwrap(),
        consumer("second").start().await.unwrap(),
        consumer("all").not_idempotent().start().await.unwrap(),
    );
    store(&bus, "twice", 0).await;
    store(&bus, "twice", 0).await;
    store(&bus, "marker", 1).await;
    let mut got = numbers(&mut handled, 7).await;
    got.sort_unstable();
    assert_eq!(got, [0, 0, 0, 0, 1, 1, 1]);
    let unseen = [&first, &second, &all].map(ConsumerHandle::duplicates);
    assert_eq!(unseen, [1, 1, 0]);
    let short = consumer("short").idempotent(Duration::from_secs(60));
    let error = short.start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    for wanted in ["consumer short", "1m", "31m44s"] {
        assert!(error.message().contains(wanted), "{error}");
    }
    bus.close().await.unwrap();
    assert!(handled.try_recv().is_err());
}
