//! Key order: C10, with what C1, C4, C6 and C13 ask of consumers that keep it.
//!
//! A key whose events overtake one another is wrong in silence, so each of these looks at the order of
//! every key, whatever else it is about.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use trunkline::dead_letter::{Letter, Page, Selection, Stands};
use trunkline::{
    Attempt, Beside, Bus, ConsumerHandle, ErrorKind, FailureExt, Name, Retry, Start, State,
};

use super::super::Trial;
use super::publish as publish_noted;
use crate::fixture::{Noted, OrderPlaced};

/// A run of a handler: key, number and attempt.
pub(super) type Ran = (String, u32, u32);
type Seen = mpsc::UnboundedSender<Ran>;

pub(super) async fn place(bus: &Bus, keys: u32, numbers: std::ops::Range<u32>) {
    let orders = numbers.flat_map(|n| {
        (0..keys).map(move |key| OrderPlaced {
            order: format!("order-{key}"),
            n,
        })
    });
    for one in bus.publish_batch(orders).await.unwrap() {
        one.stored().unwrap();
    }
}

async fn record(order: OrderPlaced, Attempt(attempt): Attempt, State(seen): State<Seen>) {
    // Nobody may be left to be told, at the end of a property.
    let _ = seen.send((order.order, order.n, attempt));
}

async fn take(ran: &mut mpsc::UnboundedReceiver<Ran>, count: usize) -> Vec<Ran> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(ran.recv().await.unwrap());
    }
    all
}

/// Whether no event of a key ran after a later one of it.
#[track_caller]
pub(super) fn assert_order(runs: &[Ran]) {
    let mut last: BTreeMap<&str, u32> = BTreeMap::new();
    for (key, n, _) in runs {
        let before = last.insert(key, *n);
        assert!(
            before.is_none_or(|before| before <= *n),
            "{key}: {n} ran after {before:?} in {runs:?}"
        );
    }
}

pub(in crate::contract) async fn c10_members_that_come_and_go_keep_every_key_in_order(
    trial: Trial,
) {
    const KEYS: u32 = 20;
    let publisher = trial.bus().await;
    let runs: Arc<Mutex<Vec<Ran>>> = Arc::default();
    let start = async || -> (Bus, ConsumerHandle) {
        let bus = trial.bus().await;
        let runs = Arc::clone(&runs);
        let handler = move |order: OrderPlaced, Attempt(attempt): Attempt| {
            let runs = Arc::clone(&runs);
            async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                runs.lock().push((order.order, order.n, attempt));
            }
        };
        let handle = bus.consumer("ordered").on(handler).start().await.unwrap();
        (bus, handle)
    };
    let mut members = vec![start().await];
    for round in 0..4 {
        place(&publisher, KEYS, round * 20..(round + 1) * 20).await;
        members.push(start().await);
        // Long enough for partitions to move to the one who came.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        if round % 2 == 1 {
            let (bus, handle) = members.remove(0);
            let report = handle.stop().await;
            assert!(
                report.failed.is_none() && report.cancelled == 0,
                "{report:?}"
            );
            bus.close().await.unwrap();
        }
    }
    let all = usize::try_from(KEYS).unwrap() * 80;
    while runs.lock().len() < all {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (bus, _) in members {
        bus.close().await.unwrap();
    }
    let runs = runs.lock().clone();
    assert_eq!(runs.len(), all, "an event was handled twice");
    assert_order(&runs);
}

pub(in crate::contract) async fn c10_a_failing_key_waits_in_order_and_holds_up_no_other(
    trial: Trial,
) {
    let bus = trial.bus().await;
    let (seen, mut ran) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    place(&bus, 8, 0..5).await;
    let handler = |order: OrderPlaced, attempt: Attempt, seen: State<Seen>| async move {
        let fails = order.order == "order-3" && order.n == 1 && attempt.0 < 3;
        record(order, attempt, seen).await;
        if fails { Err("not yet") } else { Ok(()) }
    };
    bus.consumer("failing")
        .retry(Retry::fixed(5, Duration::from_secs(1)))
        .on(handler)
        .start()
        .await
        .unwrap();
    let runs = take(&mut ran, 42).await;
    assert_order(&runs);
    let failing = runs
        .iter()
        .filter(|(key, n, _)| key == "order-3" && *n == 1);
    let attempts: Vec<u32> = failing.map(|(.., attempt)| *attempt).collect();
    assert_eq!(attempts, [1, 2, 3]);
    let retried = runs.iter().position(|run| run.2 == 2).unwrap();
    let others = runs[..retried].iter().filter(|(key, ..)| key != "order-3");
    assert_eq!(others.count(), 35, "another key waited: {runs:?}");
    bus.close().await.unwrap();
    assert!(ran.try_recv().is_err(), "an event was handled twice");
}

pub(in crate::contract) async fn c10_order_without_a_key_is_refused(trial: Trial) {
    let bus = trial.bus().await;
    let error = bus
        .consumer("impossible")
        .ordered()
        .on(|_: Noted| async {})
        .start()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.message().contains("testing.noted"), "{error}");
    // Without that wish the same consumer starts.
    publish_noted(&bus, 0..1).await;
    let consumer = bus.consumer("impossible").on(|_: Noted| async {});
    consumer.start().await.unwrap().stop().await;
    bus.close().await.unwrap();
}

pub(in crate::contract) async fn c6_a_waiting_retry_survives_its_member_and_attempts_count_for_all(
    trial: Trial,
) {
    let (seen, mut ran) = mpsc::unbounded_channel();
    let start = async || {
        let bus = trial.bus().await;
        bus.state::<Seen>(seen.clone());
        let handler = |order: OrderPlaced, attempt: Attempt, seen: State<Seen>| async move {
            record(order, attempt, seen).await;
            Err::<(), _>("never")
        };
        bus.consumer("waiting")
            .retry(Retry::fixed(3, Duration::from_secs(2)))
            .on(handler)
            .start()
            .await
            .unwrap();
        bus
    };
    let first = start().await;
    place(&first, 1, 0..2).await;
    let run = |n, attempt| ("order-0".to_owned(), n, attempt);
    assert_eq!(take(&mut ran, 1).await, [run(0, 1)]);
    // What is in hand is written before the member has ended.
    first.close().await.unwrap();
    let second = start().await;
    assert_eq!(take(&mut ran, 1).await, [run(0, 2)]);
    second.close().await.unwrap();
    let third = start().await;
    assert_eq!(
        take(&mut ran, 4).await,
        [run(0, 3), run(1, 1), run(1, 2), run(1, 3)]
    );
    while third.consumer_status().await.unwrap()[0].dead < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    third.close().await.unwrap();
    assert!(ran.try_recv().is_err(), "it was tried too often");
}

pub(in crate::contract) async fn c13_a_pause_holds_over_a_restart_until_its_last_reason_is_gone(
    trial: Trial,
) {
    let (seen, mut ran) = mpsc::unbounded_channel();
    let start = async || {
        let bus = trial.bus().await;
        bus.state::<Seen>(seen.clone());
        bus.consumer("pausing").on(record).start().await.unwrap();
        bus
    };
    let name = Name::new("pausing").unwrap();
    let first = start().await;
    place(&first, 4, 0..1).await;
    take(&mut ran, 4).await;
    let confirmed = first.pause_consumer(&name, "release").await.unwrap();
    assert_eq!(confirmed.len(), 1, "{confirmed:?}");
    first.pause_consumer(&name, "disk").await.unwrap();
    place(&first, 4, 1..2).await;
    first.close().await.unwrap();
    let second = start().await;
    second.resume_consumer(&name, Some("disk")).await.unwrap();
    let status = second.consumer_status().await.unwrap();
    assert_eq!(status[0].paused, ["release"]);
    // Another consumer gets past the same events; had this one run, it would have been heard of.
    second.consumer("running").on(record).start().await.unwrap();
    let runs = take(&mut ran, 8).await;
    assert_eq!(runs.iter().filter(|(_, n, _)| *n == 1).count(), 4);
    assert!(ran.try_recv().is_err(), "it ran while it was paused");
    second.resume_consumer(&name, None).await.unwrap();
    let runs = take(&mut ran, 4).await;
    assert!(runs.iter().all(|(_, n, _)| *n == 1), "{runs:?}");
    second.close().await.unwrap();
}

pub(in crate::contract) async fn c13_a_reset_and_a_deletion_are_noticed_by_members_that_run(
    trial: Trial,
) {
    let (seen, mut ran) = mpsc::unbounded_channel();
    let bus = trial.bus().await;
    bus.state::<Seen>(seen);
    let name = Name::new("again").unwrap();
    place(&bus, 4, 0..5).await;
    let handle = bus.consumer("again").on(record).start().await.unwrap();
    take(&mut ran, 20).await;
    bus.reset_consumer(&name, Start::Seq(17), Beside::Refuse)
        .await
        .unwrap();
    let mut runs = take(&mut ran, 4).await;
    runs.sort_unstable();
    assert!(runs.iter().all(|(_, n, _)| *n == 4), "{runs:?}");
    bus.delete_consumer(&name, None).await.unwrap();
    let failed = handle.ended().await.failed.unwrap();
    assert_eq!(failed.kind(), ErrorKind::NoSuchConsumer);
    bus.close().await.unwrap();
    assert!(ran.try_recv().is_err());
}

/// Which member ran what, in the order in which the runs began.
type Log = Arc<Mutex<Vec<(u32, Ran)>>>;

async fn start_mortal(trial: Trial, log: Log, member: u32) -> Bus {
    let bus = trial.bus().await;
    let handler = move |order: OrderPlaced, Attempt(attempt): Attempt| {
        let log = Arc::clone(&log);
        async move {
            log.lock().push((member, (order.order, order.n, attempt)));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let consumer = bus.consumer("mortal").concurrency(4).on(handler);
    consumer.start().await.unwrap();
    bus
}

pub(in crate::contract) async fn c1_a_member_that_dies_is_replaced_and_order_is_kept(trial: Trial) {
    const KEYS: u32 = 10;
    let publisher = trial.bus().await;
    let log = Log::default();
    place(&publisher, KEYS, 0..40).await;
    // On a runtime of its own a member can be killed: nothing of it is polled again.
    let mortal = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let dying = mortal.spawn(start_mortal(trial.clone(), Arc::clone(&log), 1));
    let bus = dying.await.unwrap();
    while log.lock().len() < 100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    mortal.shutdown_background();
    std::mem::forget(bus);
    let begun = log.lock().len();
    let heir = start_mortal(trial.clone(), Arc::clone(&log), 2).await;
    let all = KEYS * 40;
    let finished = |log: &Log| {
        let log = log.lock();
        let mut seen = std::collections::BTreeSet::new();
        seen.extend(log.iter().map(|(_, (key, n, _))| (key.clone(), *n)));
        u32::try_from(seen.len()).unwrap() == all
    };
    while !finished(&log) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    heir.close().await.unwrap();
    let log = log.lock().clone();
    let of = |member| -> Vec<Ran> {
        let runs = log.iter().filter(|(by, _)| *by == member);
        runs.map(|(_, ran)| ran.clone()).collect()
    };
    assert_order(&of(1));
    assert_order(&of(2));
    // What was running, and what finished since the last commit: never what was committed before.
    let repeated = of(2).len() + begun - usize::try_from(all).unwrap();
    assert!(repeated < 100, "{repeated} of {begun} runs were repeated");
    let later = of(2).iter().any(|(.., attempt)| *attempt > 1);
    assert!(!later, "a kill was taken for a failure: {:?}", of(2));
}

pub(in crate::contract) async fn d3_a_replay_runs_once_for_the_consumer_that_failed(trial: Trial) {
    let bus = trial.bus().await;
    let (seen, mut ran) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    let mended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let works = Arc::clone(&mended);
    let handler = move |order: OrderPlaced, attempt: Attempt, seen: State<Seen>| {
        let works = works.load(std::sync::atomic::Ordering::Relaxed) || order.n != 1;
        async move {
            record(order, attempt, seen).await;
            if works {
                Ok(())
            } else {
                Err("never".permanent())
            }
        }
    };
    bus.consumer("failing").on(handler).start().await.unwrap();
    bus.consumer("other")
        .on(|_: OrderPlaced| async {})
        .start()
        .await
        .unwrap();
    place(&bus, 2, 0..3).await;
    let runs = take(&mut ran, 6).await;
    assert_order(&runs);
    let letters = bus.dead_letters();
    let selection = Selection::new().consumer(Name::new("failing").unwrap());
    let dead = async || {
        let list = letters.list(&selection, &Page::default()).await.unwrap();
        list.letters
    };
    let count = |letters: &[Letter], stands: Stands| {
        let those = letters.iter().filter(|one| one.stands() == stands);
        those.count()
    };
    let both = loop {
        let both = dead().await;
        if both.len() == 2 {
            assert_eq!(count(&both, Stands::Dead), 2);
            break both;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    mended.store(true, std::sync::atomic::Ordering::Relaxed);
    // Two operators at once: one of them is told that it is being replayed already, or was.
    let (first, second) = (bus.dead_letters().by("ada"), bus.dead_letters().by("grace"));
    let (one, two) = tokio::join!(first.replay(&both[0]), second.replay(&both[0]));
    assert!(one.is_ok() || two.is_ok(), "{one:?} {two:?}");
    let again = take(&mut ran, 1).await;
    assert_eq!(
        (again[0].1, again[0].2),
        (1, 1),
        "a replay begins with attempt 1"
    );
    while count(&dead().await, Stands::Replaying) > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(count(&dead().await, Stands::Dead), 1);
    // A marker of each key comes after whatever else might have run.
    place(&bus, 2, 3..4).await;
    let markers = take(&mut ran, 2).await;
    assert!(
        markers.iter().all(|(_, n, _)| *n == 3),
        "it ran twice: {markers:?}"
    );
    bus.close().await.unwrap();
}

pub(in crate::contract) async fn d3_a_dead_letter_from_before_a_reset_is_not_replayed_in_vain(
    trial: Trial,
) {
    let (seen, mut ran) = mpsc::unbounded_channel();
    let bus = trial.bus().await;
    bus.state::<Seen>(seen);
    let name = Name::new("again").unwrap();
    let handler = |order: OrderPlaced, attempt: Attempt, seen: State<Seen>| async move {
        record(order, attempt, seen).await;
        Err::<(), _>("never".permanent())
    };
    bus.consumer("again").on(handler).start().await.unwrap();
    place(&bus, 1, 0..1).await;
    take(&mut ran, 1).await;
    let letters = bus.dead_letters();
    let selection = Selection::new().consumer(name.clone());
    let dead = async |count: usize| loop {
        let list = letters.list(&selection, &Page::default()).await.unwrap();
        if list.letters.len() == count {
            return list.letters;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let before = dead(1).await.remove(0);
    bus.reset_consumer(&name, Start::First, Beside::Refuse)
        .await
        .unwrap();
    take(&mut ran, 1).await;
    let both = dead(2).await;
    let refused = letters.replay(&before).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    // Without a generation in its name the latest is meant.
    let later = both.iter().find(|one| one.id == before.id).unwrap();
    let _ = letters.replay(later).await.unwrap();
    let again = take(&mut ran, 1).await;
    assert_eq!(again[0].1, 0);
    bus.close().await.unwrap();
    assert!(ran.try_recv().is_err());
}
