//! What becomes of an event whose handling fails: C4 to C6.
//!
//! A failure may pass or stay, so it is tried again, counted and in the end set aside whole with
//! its story. At no time may it hold up the events behind it.

use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;
use tokio::time::Instant;
use trunkline::core::engine::{Append, AppendMode, Credit, Expect, StoredEvent};
use trunkline::core::envelope::JsonText;
use trunkline::core::wire::Body;
use trunkline::core::{Headers, Subject};
use trunkline::{
    Attempt, Bus, Data, Envelope, Event, EventId, FailureExt, Filter, Name, RawEvent, Retry, Start,
    State,
};

use super::super::Trial;
use super::super::publish::stored;
use super::{Seen, note, publish, watched};
use crate::fixture::Noted;
use crate::{RunVerdict, TrackedSession};

pub(in crate::contract) async fn c4_a_handler_sees_its_attempts_counted(trial: Trial) {
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
pub(super) async fn letters(bus: &Bus, count: usize) -> Vec<StoredEvent> {
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

pub(super) fn story(letter: &StoredEvent) -> [&str; 4] {
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

pub(in crate::contract) async fn c5_a_permanent_error_is_a_dead_letter_on_attempt_1(trial: Trial) {
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

pub(in crate::contract) async fn c5_the_last_attempt_dead_letters_and_a_panic_is_a_failure(
    trial: Trial,
) {
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

pub(in crate::contract) async fn c5_what_cannot_be_decoded_is_kept_byte_for_byte(trial: Trial) {
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
    // Two events are given up in any order.
    let mut letters = letters(&bus, 2).await;
    letters.sort_by_key(|letter| letter.headers.get("Trunkline-Seq").map(str::to_owned));
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

pub(in crate::contract) async fn c6_a_waiting_retry_holds_no_slot(trial: Trial) {
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

pub(in crate::contract) async fn c6_what_is_snoozed_until_a_time_comes_then_and_counts_nothing(
    trial: Trial,
) {
    let bus = trial.bus().await;
    let mut handled = watched(&bus);
    let time = trial.now().plus(Duration::from_secs(5));
    let clock = trial.clone();
    let handler = move |event: Noted, attempt: Attempt, seen: State<Seen>| {
        let now = clock.now();
        async move {
            note(event, attempt, seen).await;
            if now < time {
                Err("it is not time yet".snooze_until(time))
            } else {
                Ok(())
            }
        }
    };
    publish(&bus, 0..2).await;
    let handle = bus
        .consumer("early")
        .concurrency(1)
        .retry(Retry::never())
        .on(handler)
        .start()
        .await
        .unwrap();
    for expected in [(0, 1), (1, 1)] {
        assert_eq!(handled.recv().await, Some(expected));
    }
    assert!(trial.now() < time, "the first runs were to come before it");
    let mut again = [handled.recv().await.unwrap(), handled.recv().await.unwrap()];
    assert!(trial.now() >= time, "it came too early");
    again.sort_unstable();
    assert_eq!(again, [(0, 1), (1, 1)], "a snooze counted as an attempt");
    handle.stop().await;
    assert!(handled.try_recv().is_err());
    assert_eq!(letters(&bus, 0).await.len(), 0);
}
