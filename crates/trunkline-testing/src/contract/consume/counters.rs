//! What is counted: C8, of each event, and B1, of a consumer.
//!
//! An event has two counters of ours, which have to say whose fault it was: `failures` drive the policy,
//! and `starts` find the event that takes its process with it. Whatever is nobody's fault raises neither.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use trunkline::core::engine::{Commit, Credit, Entry, Expectation, Op, Removal, StateKey};
use trunkline::dead_letter::{Discard, Page, Selection};
use trunkline::{
    Attempt, Bus, ConsumerHandle, ConsumerStatus, FailureExt, MemberStatus, Name, Retry,
};

use super::super::Trial;
use super::failure::{letters, story};
use super::ordered::place;
use super::publish as publish_noted;
use crate::fixture::OrderPlaced;

/// How long it is waited until one looks again.
const LOOK: Duration = Duration::from_millis(20);

/// A run of a handler: key, number and attempt.
type Ran = (String, u32, u32);

async fn status(bus: &Bus) -> ConsumerStatus {
    bus.consumer_status().await.unwrap().remove(0)
}

/// Looks at the only consumer until it is as it should be.
async fn until(bus: &Bus, is_so: impl Fn(&ConsumerStatus) -> bool) -> ConsumerStatus {
    loop {
        let status = status(bus).await;
        if is_so(&status) {
            return status;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A crash loop, and what goes on beside it.
#[derive(Clone)]
struct Crashing {
    trial: Trial,
    seen: mpsc::UnboundedSender<Ran>,
    /// Whether the neighbour may end that runs whenever the process dies.
    open: watch::Sender<bool>,
}

impl Crashing {
    async fn start(self) -> Bus {
        let bus = self.trial.bus().await;
        let handler = move |order: OrderPlaced, Attempt(attempt): Attempt| {
            let (seen, mut open) = (self.seen.clone(), self.open.subscribe());
            async move {
                let _ = seen.send((order.order.clone(), order.n, attempt));
                match (order.order.as_str(), order.n) {
                    // Its process does not outlive it.
                    ("order-0", 0) => std::future::pending().await,
                    ("order-1", 0) => drop(open.wait_for(|open| *open).await),
                    _ => {}
                }
            }
        };
        let consumer = bus.consumer("crashing").concurrency(4).on(handler);
        consumer.start().await.unwrap();
        bus
    }

    /// On a runtime of its own a member can be killed: nothing of it is polled again.
    async fn start_mortal(&self) -> (Runtime, Bus) {
        let mortal = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let bus = mortal.spawn(self.clone().start()).await.unwrap();
        (mortal, bus)
    }
}

fn kill((mortal, bus): (Runtime, Bus)) {
    mortal.shutdown_background();
    std::mem::forget(bus);
}

/// Waits until that many of these have begun.
async fn begun(ran: &mut mpsc::UnboundedReceiver<Ran>, all: &mut Vec<Ran>, keys: &[&str]) {
    let mut waited_for = keys.to_vec();
    while !waited_for.is_empty() {
        let run = ran.recv().await.unwrap();
        waited_for.retain(|key| *key != run.0 || run.1 != 0);
        all.push(run);
    }
}

/// What is written of an event that is at work beside the main flow.
async fn at_work(bus: &Bus, consumer: &str, key: &str) -> (Entry, Value) {
    let (bucket, prefix) = (
        Name::new("trunkline").unwrap(),
        StateKey::new(format!("{consumer}.EVENTS.0.s")).unwrap(),
    );
    let state = bus.engine().state();
    let all = Credit::items(100);
    let found = state.scan(&bucket, Some(&prefix), None, 0, all).await;
    let records = found.unwrap().entries.into_iter().map(|entry| {
        let record: Value = serde_json::from_slice(&entry.value).unwrap();
        (entry, record)
    });
    let mut of_key = records.filter(|(_, record)| record["key"] == key);
    let is_running = |(_, record): &(Entry, Value)| record["state"] == "running";
    of_key.find(is_running).unwrap()
}

/// Three kills take their time. A record on which they are counted already is the same to a successor.
async fn count_three_more(bus: &Bus) {
    let (entry, mut record) = at_work(bus, "crashing", "order-0").await;
    assert_eq!(
        (&record["starts"], &record["failures"]),
        (&1.into(), &0.into())
    );
    record["starts"] = 4.into();
    let commit = Commit {
        id: "three-more".into(),
        fences: Vec::new(),
        ops: vec![Op::Put {
            key: entry.key,
            value: record.to_string().into(),
            expect: Expectation::Rev(entry.rev),
            ttl: None,
        }],
    };
    let bucket = Name::new("trunkline").unwrap();
    let state = bus.engine().state();
    state.commit(&bucket, commit).completed().await.unwrap();
}

pub(in crate::contract) async fn c8_a_crash_loop_is_given_up_and_its_neighbours_are_not(
    trial: Trial,
) {
    let publisher = trial.bus().await;
    let name = Name::new("crashing").unwrap();
    let (seen, mut ran) = mpsc::unbounded_channel();
    let crashing = Crashing {
        trial: trial.clone(),
        seen,
        open: watch::Sender::new(false),
    };
    let mut all = Vec::new();
    let at_once = ["order-0", "order-1"];
    place(&publisher, 4, 0..2).await;
    // The first start of all is not written down, because nothing is known against the event.
    let member = crashing.start_mortal().await;
    begun(&mut ran, &mut all, &at_once).await;
    kill(member);
    let member = crashing.start_mortal().await;
    begun(&mut ran, &mut all, &at_once).await;
    publisher.pause_consumer(&name, "a look").await.unwrap();
    kill(member);
    count_three_more(&publisher).await;
    // One takes over and goes again without having started anything: that changes no counter, or an
    // event could crash for ever wherever members come and go.
    let before = all.len();
    let dead = status(&publisher).await.members;
    let idle = crashing.clone().start().await;
    until(&publisher, |now| {
        let is_new = |one: &MemberStatus| dead.iter().all(|dead| dead.id != one.id);
        now.unowned == 0 && now.members.iter().all(is_new)
    })
    .await;
    idle.close().await.unwrap();
    while let Ok(run) = ran.try_recv() {
        all.push(run);
    }
    let began =
        |runs: &[Ran], key: &str| runs.iter().filter(|run| run.0 == key && run.1 == 0).count();
    assert_eq!(began(&all[before..], "order-0"), 0, "it ran in a pause");
    crashing.open.send_replace(true);
    publisher.resume_consumer(&name, None).await.unwrap();
    let member = crashing.start_mortal().await;
    begun(&mut ran, &mut all, &["order-0"]).await;
    kill(member);
    let last = crashing.clone().start().await;
    until(&publisher, |now| {
        (now.dead, now.handled, now.waiting, now.running) == (1, 7, 0, 0)
    })
    .await;
    // The key goes on.
    place(&publisher, 1, 2..3).await;
    while all.last().is_none_or(|run| run.1 != 2) {
        all.push(ran.recv().await.unwrap());
    }
    last.close().await.unwrap();
    while let Ok(run) = ran.try_recv() {
        all.push(run);
    }
    assert_eq!(began(&all, "order-0"), 3, "{all:?}");
    let failed = all.iter().find(|(.., attempt)| *attempt > 1);
    assert_eq!(failed, None, "a kill was taken for a failure");
    let letters = letters(&trial.bus().await, 1).await;
    assert_eq!(story(&letters[0])[..3], ["crashing", "crash_loop", "0"]);
    assert_eq!(letters[0].headers.get("Trunkline-Starts"), Some("5"));
    assert_eq!(letters[0].headers.get("Trunkline-Seq"), Some("1"));
}

/// What a run of the event comes to that everything happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    Stop,
    Failure,
    Snooze,
}

pub(in crate::contract) async fn c8_what_is_nobodys_fault_counts_for_nothing(trial: Trial) {
    use Comes::{Failure, Snooze, Stop};
    const SCRIPT: [Comes; 7] = [Stop, Failure, Snooze, Stop, Snooze, Failure, Failure];
    let (seen, mut ran) = mpsc::unbounded_channel::<Ran>();
    let runs = Arc::new(AtomicUsize::new(0));
    let start = async || -> (Bus, ConsumerHandle) {
        let (seen, runs) = (seen.clone(), Arc::clone(&runs));
        let handler = move |order: OrderPlaced, Attempt(attempt): Attempt| {
            let (seen, runs) = (seen.clone(), Arc::clone(&runs));
            async move {
                let (key, n) = (order.order, order.n);
                let comes = (key == "order-0" && n == 0)
                    .then(|| SCRIPT.get(runs.fetch_add(1, Ordering::Relaxed)))
                    .flatten();
                let _ = seen.send((key, n, attempt));
                match comes {
                    None => Ok(()),
                    Some(Failure) => Err("not yet".into()),
                    Some(Snooze) => Err("too early".snooze(Duration::from_millis(50))),
                    Some(Stop) => std::future::pending().await,
                }
            }
        };
        let bus = trial.bus().await;
        let consumer = bus.consumer("stopping").concurrency(1);
        let retry = Retry::fixed(3, Duration::from_millis(50));
        let handle = consumer.retry(retry).on(handler).start().await.unwrap();
        (bus, handle)
    };
    let publisher = trial.bus().await;
    // More than one at a time can run, so that a stop finds some that have not started.
    place(&publisher, 10, 0..3).await;
    let mut member = start().await;
    let (mut attempts, mut others, mut given_back) = (Vec::new(), BTreeMap::new(), 0);
    while attempts.len() < SCRIPT.len() || others.len() < 29 {
        let (key, n, attempt) = ran.recv().await.unwrap();
        if (key.as_str(), n) != ("order-0", 0) {
            assert_eq!(attempt, 1, "{key} {n} had not started and was counted");
            others.insert((key, n), attempt);
            continue;
        }
        attempts.push(attempt);
        if SCRIPT[attempts.len() - 1] == Stop {
            let (bus, handle) = member;
            let report = handle.stop_within(Duration::ZERO).await;
            assert_eq!(report.cancelled, 1, "{report:?}");
            given_back += report.given_back;
            bus.close().await.unwrap();
            member = start().await;
        }
    }
    assert_eq!(attempts, [1, 1, 2, 2, 2, 2, 3]);
    assert!(given_back > 0, "no stop found any that had not started");
    let letters = letters(&publisher, 1).await;
    until(&publisher, |now| {
        (now.dead, now.handled, now.waiting, now.running) == (1, 29, 0, 0)
    })
    .await;
    member.0.close().await.unwrap();
    assert!(ran.try_recv().is_err(), "something ran again");
    assert_eq!(story(&letters[0])[..3], ["stopping", "failed", "3"]);
    // Every start had its outcome.
    assert_eq!(letters[0].headers.get("Trunkline-Starts"), Some("0"));
}

/// The events that a consumer was given are all accounted for: with what it has before it, if that can
/// be told, and else with as much as that can be at most.
#[track_caller]
fn assert_balance(status: &ConsumerStatus, matched: u64) {
    let settled = status.handled + status.dead;
    let known = settled + status.waiting + status.running;
    let at_most = status.pending_at_most + status.expired_at_most;
    assert!(
        (known..=known + at_most).contains(&matched),
        "{matched} events are not accounted for by {status:?}"
    );
}

/// B1 for consumers that keep order. Of one that shares, the engine knows what is pending and in flight;
/// what became of the rest nobody counts.
pub(in crate::contract) async fn b1_every_event_is_accounted_for(trial: Trial) {
    let publisher = trial.bus().await;
    let name = Name::new("counting").unwrap();
    let mended = Arc::new(AtomicBool::new(false));
    let start = async || {
        let bus = trial.bus().await;
        let mended = Arc::clone(&mended);
        let handler = move |order: OrderPlaced| {
            let works = mended.load(Ordering::Relaxed);
            async move {
                match (order.order.as_str(), order.n) {
                    ("order-0", 0) if works => Err("not yet".into()),
                    ("order-2", 0) if works => Ok(()),
                    ("order-0" | "order-2" | "order-3", 0) => Err("never".permanent()),
                    ("order-1", 0) => Err("not yet".into()),
                    _ => Ok(()),
                }
            }
        };
        let consumer = bus.consumer("counting");
        // Nothing comes back by itself as long as this takes.
        let consumer = consumer.retry(Retry::fixed(3, Duration::from_secs(7_200)));
        consumer.on(handler).start().await.unwrap();
        bus
    };
    let at_rest = async |publisher: &Bus, waiting: u64, dead: u64| {
        let is_so = |now: &ConsumerStatus| {
            (now.waiting, now.dead, now.running, now.pending_at_most) == (waiting, dead, 0, 0)
        };
        until(publisher, is_so).await
    };
    let member = start().await;
    place(&publisher, 4, 0..3).await;
    // Of another type: nothing that the consumer ever hears of.
    publish_noted(&publisher, 0..5).await;
    let status = at_rest(&publisher, 3, 3).await;
    assert_eq!((status.handled, status.expired_at_most), (6, 0));
    assert_balance(&status, 12);

    // However a dead letter is dealt with, and whatever comes of it: it is the same event.
    mended.store(true, Ordering::Relaxed);
    let letters = publisher.dead_letters();
    let selection = Selection::new().consumer(name.clone());
    let list = letters.list(&selection, &Page::default()).await.unwrap();
    assert_eq!(list.total, 3);
    for letter in &list.letters {
        let record = letter.record.as_ref().unwrap();
        let changed = match record.key.as_deref() {
            Some("order-3") => letters.discard(letter, &Discard::because("a look")).await,
            _ => letters.replay(letter).await,
        };
        let _ = changed.unwrap();
    }
    let replaying = |now: &ConsumerStatus| now.replaying == 1 && now.running == 0;
    let mut status = until(&publisher, replaying).await;
    while letters
        .list(&selection, &Page::default())
        .await
        .unwrap()
        .total
        > 1
    {
        status = until(&publisher, replaying).await;
    }
    assert_eq!((status.handled, status.dead, status.waiting), (6, 3, 3));
    assert_balance(&status, 12);

    // In a pause it can be told how much there is at most.
    publisher.pause_consumer(&name, "a look").await.unwrap();
    publish_noted(&publisher, 5..8).await;
    place(&publisher, 4, 3..4).await;
    let status = until(&publisher, |now| now.pending_at_most > 0).await;
    assert_balance(&status, 16);
    publisher.resume_consumer(&name, None).await.unwrap();
    // What comes behind one that waits does so too.
    let status = at_rest(&publisher, 5, 3).await;
    assert_eq!((status.handled, status.replaying), (8, 1));
    assert_balance(&status, 16);

    // What retention took is known by the room that it left, in which there were others too.
    member.close().await.unwrap();
    publish_noted(&publisher, 8..11).await;
    place(&publisher, 4, 4..5).await;
    let receipt = publisher.publish(OrderPlaced {
        order: "order-3".to_owned(),
        n: 5,
    });
    let last = receipt.await.unwrap().seq;
    let (events, before) = (Name::new("EVENTS").unwrap(), Removal::Before(last));
    publisher
        .engine()
        .log()
        .remove(&events, before)
        .await
        .unwrap();
    let member = start().await;
    let status = until(&publisher, |now| {
        now.handled == 9 && now.pending_at_most == 0
    })
    .await;
    assert!(status.expired_at_most >= 7, "{status:?}");
    assert_balance(&status, 21);
    member.close().await.unwrap();
}
