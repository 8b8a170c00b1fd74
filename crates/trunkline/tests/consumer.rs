//! Consumers on the bus in memory: failures, dead letters, stopping.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use trunkline::consumer::TimedOut;
use trunkline::core::engine::Credit;
use trunkline::{
    Attempt, Breaker, Bus, Context, ErrorKind, Event, Failure, FailureExt, Filter, Item, Meta,
    Name, Policy, Raw, Retry, Start, State,
};

#[derive(Debug, PartialEq, Event, Serialize, Deserialize)]
#[event(type = "job.queued")]
struct Job {
    n: u32,
}

type Seen = mpsc::UnboundedSender<(u32, u32)>;

#[tokio::test(start_paused = true)]
async fn a_handler_gets_every_event_and_its_extractors() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    let handler = |job: Arc<Job>, State(seen): State<Seen>, meta: Meta, attempt: Attempt| async move {
        assert_eq!((meta.event_type(), attempt), ("job.queued", Attempt(1)));
        seen.send((job.n, attempt.0)).unwrap();
    };
    for n in 0..100 {
        bus.publish(Job { n }).await.unwrap();
    }
    let handle = bus
        .consumer("jobs")
        .concurrency(1)
        .on(handler)
        .start()
        .await
        .unwrap();
    for n in 0..100 {
        assert_eq!(handled.recv().await, Some((n, 1)));
    }
    let report = handle.stop().await;
    assert_eq!((report.given_back, report.cancelled), (0, 0));
    bus.close().await.unwrap();
    assert_eq!(
        bus.publish(Job { n: 0 }).await.unwrap_err().kind(),
        ErrorKind::Closed
    );
}

#[tokio::test(start_paused = true)]
async fn c4_c5_failures_are_retried_and_then_dead_lettered_with_their_story() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    let handler = |job: Job, attempt: Attempt, State(seen): State<Seen>| async move {
        seen.send((job.n, attempt.0)).unwrap();
        match job.n {
            0 if attempt.0 < 3 => Err("not yet".into()),
            1 => Err("never".permanent()),
            2 => panic!("with a bang"),
            _ => Ok(()),
        }
    };
    let retry = Retry::fixed(3, Duration::from_secs(1));
    bus.consumer("jobs")
        .on(handler)
        .retry(retry)
        .start()
        .await
        .unwrap();
    for n in 0..3 {
        bus.publish(Job { n })
            .header("tenant", "acme")
            .await
            .unwrap();
    }
    let mut all = Vec::new();
    for _ in 0..7 {
        all.push(handled.recv().await.unwrap());
    }
    all.sort_unstable();
    assert_eq!(
        all,
        [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1), (2, 2), (2, 3)]
    );
    // Dead letters are followed as any stream is: original bytes as body, the story beside them.
    let dlq = Name::new("EVENTS_DLQ").unwrap();
    let mut letters = bus
        .engine()
        .log()
        .follow(&dlq, Start::First, &[Filter::all()])
        .await
        .unwrap();
    let mut stories = Vec::new();
    while stories.len() < 2 {
        let mut entries = Vec::new();
        letters.next(Credit::items(10), &mut entries).await.unwrap();
        stories.extend(entries.into_iter().map(|entry| {
            let story = |name| entry.headers.get(name).unwrap().to_owned();
            assert_eq!(story("tenant"), "acme");
            assert_eq!(
                entry.body.to_event(&entry.headers).unwrap().event_type(),
                "job.queued"
            );
            (
                entry.subject.to_string(),
                story("Trunkline-Reason"),
                story("Trunkline-Failures"),
                story("Trunkline-Error"),
            )
        }));
    }
    let expected = [
        ("dlq.EVENTS.jobs.2", "failed", "1", "never"),
        (
            "dlq.EVENTS.jobs.3",
            "panicked",
            "3",
            "the handler panicked: with a bang",
        ),
    ];
    assert_eq!(
        stories,
        expected.map(|(a, b, c, d)| (a.into(), b.into(), c.into(), d.into()))
    );
    bus.close().await.unwrap();
    assert!(
        handled.try_recv().is_err(),
        "nothing comes after the last attempt"
    );
}

#[tokio::test(start_paused = true)]
async fn a_receiver_settles_each_event_on_its_own() {
    let bus = Bus::connect("memory:").await.unwrap();
    for n in 0..3 {
        bus.publish(Job { n }).await.unwrap();
    }
    let mut receiver = bus
        .consumer("jobs")
        .concurrency(1)
        .receiver::<Job>()
        .await
        .unwrap();
    let Some(Item::Event(first)) = receiver.recv().await else {
        panic!("no event")
    };
    assert_eq!((first.n, first.attempt()), (0, 1));
    first.done();
    let Some(Item::Event(second)) = receiver.recv().await else {
        panic!("no event")
    };
    assert_eq!(second.n, 1);
    drop(second);
    let Some(Item::Event(third)) = receiver.recv().await else {
        panic!("no event")
    };
    assert_eq!(third.n, 2);
    third.done();
    let Some(Item::Event(again)) = receiver.recv().await else {
        panic!("no event")
    };
    assert_eq!((again.n, again.attempt()), (1, 2));
    again.done();
    assert_eq!(receiver.stop().await.cancelled, 0);
}

#[tokio::test(start_paused = true)]
async fn c2_a_restarted_consumer_sees_no_finished_event_again() {
    let bus = Bus::connect("memory:").await.unwrap();
    for round in 0..2 {
        let (seen, mut handled) = mpsc::unbounded_channel();
        bus.state::<Seen>(seen);
        for n in 0..1_000 {
            bus.publish(Job {
                n: round * 1_000 + n,
            })
            .await
            .unwrap();
        }
        let handler =
            |job: Job, State(seen): State<Seen>| async move { seen.send((job.n, 0)).unwrap() };
        let handle = bus.consumer("jobs").on(handler).start().await.unwrap();
        for _ in 0..1_000 {
            let (n, _) = handled.recv().await.unwrap();
            assert_eq!(n / 1_000, round);
        }
        handle.stop().await;
    }
}

#[tokio::test]
async fn subscriptions_and_replay_see_the_same_events() {
    let bus = Bus::connect("memory:").await.unwrap();
    let mut live = bus.subscribe::<Job>().await.unwrap();
    for n in 0..10 {
        bus.publish(Job { n }).await.unwrap();
    }
    let mut replay = bus.replay::<Job>(Start::First).await.unwrap();
    let mut raw = bus
        .follow(&Filter::new("job.*").unwrap(), Start::First)
        .await
        .unwrap();
    for n in 0..10 {
        let (Some(Item::Event(a)), Some(Item::Event(b)), Some(Item::Event(c))) =
            (live.recv().await, replay.recv().await, raw.recv().await)
        else {
            panic!("no event")
        };
        assert_eq!((a.n, b.n, a.meta.id()), (n, n, b.meta.id()));
        assert_eq!(c.envelope.id(), a.meta.id());
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_may_hold_an_event_for_longer_than_any_time_out() {
    let bus = Bus::connect("memory:").await.unwrap();
    bus.publish(Job { n: 0 }).await.unwrap();
    let mut receiver = bus
        .consumer("jobs")
        .time_out(Duration::from_secs(1))
        .receiver::<Job>()
        .await
        .unwrap();
    let Some(Item::Event(work)) = receiver.recv().await else {
        panic!("no event")
    };
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    work.done();
    bus.publish(Job { n: 1 }).await.unwrap();
    let Some(Item::Event(next)) = receiver.recv().await else {
        panic!("no event")
    };
    assert_eq!((next.n, next.attempt()), (1, 1), "the first came again");
    next.done();
    receiver.stop().await;
}

#[derive(Debug)]
struct Locked;

impl std::fmt::Display for Locked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the table is locked")
    }
}

impl std::error::Error for Locked {}

#[tokio::test(start_paused = true)]
async fn c6_errors_and_time_outs_have_retries_of_their_own() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    let handler = |job: Job, attempt: Attempt, State(seen): State<Seen>| async move {
        seen.send((job.n, attempt.0)).unwrap();
        match job.n {
            0 => Err(Failure::from(Locked)),
            1 => Err("something else".into()),
            _ => std::future::pending().await,
        }
    };
    let second = Duration::from_secs(1);
    let policy = Policy::default()
        .retry(Retry::fixed(3, second))
        .retry_for::<Locked>(Retry::fixed(4, 60 * second).jitter(0.0))
        .retry_for::<TimedOut>(Retry::never())
        .time_out(5 * second);
    assert_eq!(policy.horizon(), Duration::from_secs(3 * 60 + 4 * 5));
    let start = tokio::time::Instant::now();
    bus.consumer("jobs")
        .policy(policy)
        .on(handler)
        .start()
        .await
        .unwrap();
    for n in 0..3 {
        bus.publish(Job { n }).await.unwrap();
    }
    let mut runs = Vec::new();
    for _ in 0..8 {
        runs.push(handled.recv().await.unwrap());
    }
    assert_eq!(start.elapsed().as_secs(), 180);
    runs.sort_unstable();
    let expected = [
        (0, 1),
        (0, 2),
        (0, 3),
        (0, 4),
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 1),
    ];
    assert_eq!(runs, expected);
    bus.close().await.unwrap();
    assert!(handled.try_recv().is_err());
}

#[tokio::test]
async fn policies_that_cannot_work_are_refused_with_their_numbers() {
    let bus = Bus::connect("memory:").await.unwrap();
    let jobs = || bus.consumer("jobs").on(|_: Job| async {});
    for (consumer, expected) in [
        (jobs().retry(Retry::fixed(0, Duration::ZERO)), "0 attempts"),
        (
            jobs().retry_for::<Locked>(Retry::default().jitter(2.0)),
            "Locked: a jitter of 2",
        ),
        (jobs().time_out(Duration::ZERO), "a time-out of 0ns"),
        (
            jobs().breaker(Breaker::default().share(0.0)),
            "a breaker at a share of 0",
        ),
        (jobs().window_events(0), "a window of 0 events"),
        (jobs().window_bytes(0), "a window of 0 bytes"),
        (jobs().partitions(12), "12 partitions; use 1, 2, 4, 8"),
    ] {
        let error = consumer.start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        let text = error.to_string();
        assert!(
            text.contains("consumer jobs") && text.contains(expected),
            "{text}"
        );
    }
}

#[tokio::test]
async fn what_cannot_work_is_refused_when_it_starts() {
    let bus = Bus::connect("memory:").await.unwrap();
    let kind = |error: trunkline::Error| error.kind();
    let none = bus.consumer("none").start().await.unwrap_err();
    assert_eq!(kind(none), ErrorKind::NoHandler);
    let twice = bus
        .consumer("twice")
        .on(|_: Job| async {})
        .on(|_: Job| async {})
        .start()
        .await
        .unwrap_err();
    assert_eq!(kind(twice), ErrorKind::NoHandler);
    let state = bus
        .consumer("state")
        .on(|_: Job, _: State<u8>| async {})
        .start()
        .await
        .unwrap_err();
    assert_eq!(kind(state), ErrorKind::MissingState);
    let name = bus
        .consumer("no spaces")
        .on(|_: Job, _: Raw| async {})
        .start()
        .await
        .unwrap_err();
    assert_eq!(kind(name), ErrorKind::InvalidName);
    let command = bus.consumer("shipping").on(|_: Ship| async {}).start();
    let command = command.await.unwrap_err().to_string();
    assert!(
        command.contains("the command \"ship\", which has a key"),
        "{command}"
    );
    let order = bus.consumer("jobs").ordered().on(|_: Job| async {}).start();
    let order = order.await.unwrap_err().to_string();
    assert!(order.contains("\"job.queued\" has no key"), "{order}");
}

/// A command has no order that a key could keep.
#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "ship", command, key = "n")]
struct Ship {
    n: u32,
}

#[tokio::test(start_paused = true)]
async fn a_program_ends_when_a_member_of_it_has_ended_by_itself() {
    let bus = Bus::connect("memory:").await.unwrap();
    let start = || bus.consumer("jobs").on(|_: Job| async {}).start();
    let stopped = start().await.unwrap();
    stopped.stop().await;
    assert!(stopped.health().is_well(), "it was told to");
    let handle = start().await.unwrap();
    let running = tokio::spawn({
        let bus = bus.clone();
        async move { bus.run().await }
    });
    assert!(handle.health().is_well());
    let jobs = Name::new("jobs").unwrap();
    bus.delete_consumer(&jobs, None).await.unwrap();
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchConsumer);
    assert!(error.to_string().contains("consumer jobs"), "{error}");
    let health = handle.health();
    assert!(!health.is_well());
    assert_eq!(health.failed.unwrap().kind(), ErrorKind::NoSuchConsumer);
}

#[derive(Debug, PartialEq, Event, Serialize, Deserialize)]
#[event(type = "job.done", key = "n")]
struct Done {
    n: u32,
    tags: Vec<String>,
}

#[tokio::test(start_paused = true)]
async fn an_output_of_a_run_that_is_over_is_refused() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (later, mut told) = mpsc::unbounded_channel();
    let handler = move |job: Job, cx: Context| {
        let later = later.clone();
        async move {
            assert_eq!(cx.epoch(), None);
            later.send(cx).unwrap();
            assert_eq!(job.n, 1);
        }
    };
    let handle = bus.consumer("jobs").on(handler).start().await.unwrap();
    bus.publish(Job { n: 1 }).await.unwrap();
    let cx = told.recv().await.unwrap();
    handle.stop().await;
    let tags = Vec::new();
    let error = cx.publish(Done { n: 1, tags }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RunOver);
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn outputs_of_more_than_8_mib_are_a_dead_letter() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (refused, mut told) = mpsc::unbounded_channel();
    let handler = move |job: Job, cx: Context| {
        let refused = refused.clone();
        async move {
            // Half a MiB each, with what is around it.
            for n in 0..17 + job.n {
                let tags = vec!["x".repeat(512 << 10)];
                if let Err(error) = cx.publish(Done { n, tags }).await {
                    refused.send((n, error.kind())).unwrap();
                    return Err(error);
                }
            }
            Ok(())
        }
    };
    bus.consumer("jobs").on(handler).start().await.unwrap();
    bus.publish(Job { n: 0 }).await.unwrap();
    assert_eq!(told.recv().await, Some((15, ErrorKind::OverLimit)));
    let dlq = Name::new("EVENTS_DLQ").unwrap();
    let log = bus.engine().log();
    let mut follow = log
        .follow(&dlq, Start::First, &[Filter::all()])
        .await
        .unwrap();
    let mut letters = Vec::new();
    follow.next(Credit::items(1), &mut letters).await.unwrap();
    // Whatever the error that the handler returned would have meant.
    let story = |name| letters[0].headers.get(name);
    assert_eq!(story("Trunkline-Reason"), Some("outputs_over_limit"));
    assert_eq!(story("Trunkline-Failures"), Some("1"));
    bus.close().await.unwrap();
}
