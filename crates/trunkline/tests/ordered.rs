//! The ordered consumer on one engine in memory, on paused time.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use trunkline::{Attempt, Bus, Event, FailureExt, Retry, State};

#[derive(Event, Serialize, Deserialize, Clone, Debug)]
#[event(type = "step.taken", key = "key")]
struct Step {
    key: u32,
    n: u32,
}

type Seen = mpsc::UnboundedSender<(u32, u32, u32)>;

async fn publish(bus: &Bus, keys: u32, numbers: std::ops::Range<u32>) {
    let steps = numbers.flat_map(|n| (0..keys).map(move |key| Step { key, n }));
    for one in bus.publish_batch(steps).await.unwrap() {
        one.stored().unwrap();
    }
}

async fn take(
    handled: &mut mpsc::UnboundedReceiver<(u32, u32, u32)>,
    count: usize,
) -> Vec<(u32, u32, u32)> {
    let mut all = Vec::new();
    for _ in 0..count {
        let next = tokio::time::timeout(Duration::from_secs(3_600), handled.recv()).await;
        all.push(
            next.unwrap_or_else(|_| panic!("only {} of {count} came", all.len()))
                .unwrap(),
        );
    }
    all
}

fn in_order(runs: &[(u32, u32, u32)]) -> bool {
    let mut last: BTreeMap<u32, u32> = BTreeMap::new();
    runs.iter().all(|(key, n, _)| {
        let before = last.insert(*key, *n);
        before.is_none_or(|before| before <= *n)
    })
}

async fn note(step: Step, Attempt(attempt): Attempt, State(seen): State<Seen>) {
    let _ = seen.send((step.key, step.n, attempt));
}

#[tokio::test(start_paused = true)]
async fn c10_every_key_is_handled_in_order_and_nothing_twice() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    publish(&bus, 50, 0..20).await;
    let member = bus.consumer("steps").on(note).start().await.unwrap();
    let runs = take(&mut handled, 1_000).await;
    assert!(in_order(&runs));
    let report = member.stop().await;
    assert_eq!((report.cancelled, report.given_back), (0, 0), "{report:?}");
    assert!(report.failed.is_none());
    publish(&bus, 50, 20..21).await;
    bus.consumer("steps").on(note).start().await.unwrap();
    let runs = take(&mut handled, 50).await;
    assert!(runs.iter().all(|(_, n, _)| *n == 20), "{runs:?}");
    bus.close().await.unwrap();
    assert!(handled.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn c10_a_failing_key_waits_and_the_others_go_on() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    publish(&bus, 10, 0..5).await;
    let flaky = |step: Step, Attempt(attempt): Attempt, State(seen): State<Seen>| async move {
        let _ = seen.send((step.key, step.n, attempt));
        if step.key == 3 && step.n == 1 && attempt < 3 {
            return Err("not yet".to_owned());
        }
        Ok(())
    };
    let member = bus.consumer("steps").on(flaky).start().await.unwrap();
    let runs = take(&mut handled, 52).await;
    assert!(in_order(&runs), "{runs:?}");
    let failing: Vec<_> = runs
        .iter()
        .filter(|(key, n, _)| (*key, *n) == (3, 1))
        .collect();
    assert_eq!(failing, [&(3, 1, 1), &(3, 1, 2), &(3, 1, 3)]);
    // The others were done before the first retry.
    let retry = runs.iter().position(|run| *run == (3, 1, 2)).unwrap();
    assert!(
        runs[..retry].iter().filter(|(key, ..)| *key != 3).count() == 45,
        "{runs:?}"
    );
    member.stop().await;
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c6_a_waiting_retry_survives_a_restart_of_its_member() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    publish(&bus, 1, 0..3).await;
    let failing = |step: Step, Attempt(attempt): Attempt, State(seen): State<Seen>| async move {
        let _ = seen.send((step.key, step.n, attempt));
        Err::<(), _>("no".to_owned())
    };
    let start = async || {
        bus.consumer("steps")
            .retry(Retry::fixed(3, Duration::from_secs(60)).jitter(0.0))
            .on(failing)
            .start()
            .await
            .unwrap()
    };
    let member = start().await;
    assert_eq!(take(&mut handled, 1).await, [(0, 0, 1)]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    member.stop().await;
    let member = start().await;
    let began = tokio::time::Instant::now();
    // The attempts of all members together are three, and then the next of the key has its turn.
    assert_eq!(
        take(&mut handled, 5).await,
        [(0, 0, 2), (0, 0, 3), (0, 1, 1), (0, 1, 2), (0, 1, 3)]
    );
    assert!(
        began.elapsed() >= Duration::from_secs(235),
        "{:?}",
        began.elapsed()
    );
    member.stop().await;
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c1_members_share_the_partitions_and_work_moves_as_they_come_and_go() {
    let bus = Bus::connect("memory:").await.unwrap();
    let runs: Arc<Mutex<Vec<(u32, u32, u32)>>> = Arc::default();
    let start = async |member: u32| {
        let runs = Arc::clone(&runs);
        let handler = move |step: Step| {
            let runs = Arc::clone(&runs);
            async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                runs.lock().push((step.key, step.n, member));
            }
        };
        bus.consumer("steps").on(handler).start().await.unwrap()
    };
    let mut members = vec![start(0).await];
    for round in 0..12_u32 {
        publish(&bus, 40, round * 10..(round + 1) * 10).await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        members.push(start(round + 1).await);
        if round % 3 == 2 {
            let report = members.remove(0).stop().await;
            assert!(
                report.failed.is_none() && report.cancelled == 0,
                "{report:?}"
            );
        }
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let done = runs.lock().clone();
    assert_eq!(done.len(), 40 * 120, "something was lost or handled twice");
    let order: Vec<_> = done.iter().map(|(key, n, _)| (*key, *n, 0)).collect();
    assert!(in_order(&order));
    let shares: BTreeMap<u32, usize> = done.iter().fold(BTreeMap::new(), |mut shares, run| {
        *shares.entry(run.2).or_default() += 1;
        shares
    });
    assert!(shares.len() > 8, "{shares:?}");
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c5_a_permanent_error_is_a_dead_letter_and_the_next_of_its_key_goes_on() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    publish(&bus, 2, 0..2).await;
    let refuse = |step: Step, Attempt(attempt): Attempt, State(seen): State<Seen>| async move {
        let _ = seen.send((step.key, step.n, attempt));
        if step.n == 0 {
            return Err("never".permanent());
        }
        Ok(())
    };
    bus.consumer("steps").on(refuse).start().await.unwrap();
    let mut runs = take(&mut handled, 4).await;
    runs.sort_unstable();
    assert_eq!(runs, [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1)]);
    let inspection = bus.inspect().await.unwrap();
    let dead = inspection
        .streams
        .iter()
        .find(|one| one.spec.name.as_str() == "EVENTS_DLQ");
    assert_eq!(dead.unwrap().events, 2);
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c13_a_pause_is_confirmed_survives_a_restart_and_ends_with_its_last_reason() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    let name = trunkline::Name::new("steps").unwrap();
    let member = bus.consumer("steps").on(note).start().await.unwrap();
    publish(&bus, 5, 0..1).await;
    take(&mut handled, 5).await;
    let confirmed = bus.pause_consumer(&name, "release 7").await.unwrap();
    assert_eq!(confirmed.len(), 1, "{confirmed:?}");
    bus.pause_consumer(&name, "disk").await.unwrap();
    publish(&bus, 5, 1..2).await;
    member.stop().await;
    bus.consumer("steps").on(note).start().await.unwrap();
    bus.resume_consumer(&name, Some("disk")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(
        handled.try_recv().is_err(),
        "it ran although one reason was left"
    );
    let status = &bus.consumer_status().await.unwrap()[0];
    assert_eq!(
        (status.paused.as_slice(), status.pending_at_most),
        (&["release 7".to_owned()][..], 5)
    );
    bus.resume_consumer(&name, None).await.unwrap();
    let runs = take(&mut handled, 5).await;
    assert!(runs.iter().all(|(_, n, _)| *n == 1), "{runs:?}");
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reset_handles_again_what_is_asked_for_while_members_run() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    let name = trunkline::Name::new("steps").unwrap();
    publish(&bus, 4, 0..10).await;
    bus.consumer("steps").on(note).start().await.unwrap();
    take(&mut handled, 40).await;
    let to = trunkline::Start::Seq(37);
    bus.reset_consumer(&name, to, trunkline::Beside::Refuse)
        .await
        .unwrap();
    let mut runs = take(&mut handled, 4).await;
    runs.sort_unstable();
    assert_eq!(runs, [(0, 9, 1), (1, 9, 1), (2, 9, 1), (3, 9, 1)]);
    bus.delete_consumer(&name, None).await.unwrap();
    let gone = bus.delete_consumer(&name, None).await.unwrap_err();
    assert_eq!(gone.kind(), trunkline::ErrorKind::NoSuchConsumer);
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c13_a_deleted_consumer_ends_its_members_loudly() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    let name = trunkline::Name::new("steps").unwrap();
    publish(&bus, 4, 0..1).await;
    let member = bus.consumer("steps").on(note).start().await.unwrap();
    take(&mut handled, 4).await;
    bus.delete_consumer(&name, None).await.unwrap();
    let report = member.ended().await;
    let failed = report.failed.unwrap();
    assert_eq!(failed.kind(), trunkline::ErrorKind::NoSuchConsumer);
    // Made again, it begins as a new one does.
    bus.consumer("steps").on(note).start().await.unwrap();
    take(&mut handled, 4).await;
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_partition_with_too_much_beside_it_stops_reading_and_says_so() {
    const ALL: u32 = 10_500;
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    publish(&bus, 1, 0..ALL).await;
    let mended = Arc::new(AtomicBool::new(false));
    let works = Arc::clone(&mended);
    let fails = move |step: Step, State(seen): State<Seen>| {
        let works = works.load(Ordering::Relaxed);
        async move {
            if !works {
                return Err("the disk is full");
            }
            let _ = seen.send((step.key, step.n, 0));
            Ok(())
        }
    };
    let hourly = Retry::fixed(1_000, Duration::from_secs(3_600)).jitter(0.0);
    let steps = bus.consumer("steps").retry(hourly).on(fails);
    steps.start().await.unwrap();
    let status = async || bus.consumer_status().await.unwrap().remove(0);
    while status().await.full == 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    let full = status().await;
    assert_eq!((full.full, full.waiting), (1, 10_000), "it went on reading");
    assert!(full.pending_at_most > 0);
    mended.store(true, Ordering::Relaxed);
    let runs = take(&mut handled, ALL as usize).await;
    assert!(in_order(&runs), "out of order");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(status().await.full, 0);
    assert!(handled.try_recv().is_err(), "one ran twice");
    bus.close().await.unwrap();
}

/// The least numbers whose keys belong to this one of two partitions.
fn keys_of(partition: u8) -> impl Iterator<Item = u32> {
    let slot = |key: &u32| trunkline::core::key::slot(&key.to_string());
    (0..).filter(move |key| slot(key) % 2 == partition)
}

#[tokio::test(start_paused = true)]
async fn a_slow_event_does_not_make_the_record_of_progress_too_large() {
    const ALL: u32 = 8_000;
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    let (mut even, mut odd) = (keys_of(0), keys_of(1));
    let (slow, fast, other) = (
        even.next().unwrap(),
        even.next().unwrap(),
        odd.next().unwrap(),
    );
    bus.publish(Step { key: slow, n: 0 }).await.unwrap();
    // No two events of a partition are next to each other.
    let steps = (0..ALL).flat_map(|n| [other, fast].map(|key| Step { key, n }));
    for one in bus.publish_batch(steps).await.unwrap() {
        one.stored().unwrap();
    }
    let handler = move |step: Step, State(seen): State<Seen>| async move {
        if step.key == slow {
            tokio::time::sleep(Duration::from_secs(9)).await;
        }
        let _ = seen.send((step.key, step.n, 0));
    };
    let steps = bus.consumer("steps").partitions(2).on(handler);
    let member = steps.start().await.unwrap();
    let runs = take(&mut handled, 2 * ALL as usize + 1).await;
    assert!(in_order(&runs), "out of order");
    assert_eq!(runs.last(), Some(&(slow, 0, 0)), "the others waited for it");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let failed = member.health().failed.map(|error| error.to_string());
    assert_eq!(failed, None);
    bus.close().await.unwrap();
}
