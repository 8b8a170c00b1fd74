//! What goes wrong around the edges: members that stop, vanish, overlap, or ask for the absurd.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smallvec::smallvec;
use tokio::sync::{Notify, mpsc};
use trunkline::core::engine::{
    Change, ConsumerRef, Credit, Removal, Settle, Settler, StreamSpec, Token,
};
use trunkline::dead_letter::{Discard, Page, Selection};
use trunkline::{
    Attempt, Bus, ErrorKind, Event, FailureExt, Filter, Item, Name, Retry, Start, State, Timestamp,
};

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "job.queued")]
struct Job {
    n: u32,
}

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "job.part", key = "job")]
struct Part {
    job: u32,
    n: u32,
}

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "job.noted")]
struct Noted {}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

async fn publish(bus: &Bus, count: u32) {
    for n in 0..count {
        bus.publish(Job { n }).await.unwrap();
    }
}

async fn stored_in(bus: &Bus, stream: &str) -> u64 {
    let streams = bus.inspect().await.unwrap().streams;
    streams
        .into_iter()
        .find(|state| state.spec.name.as_str() == stream)
        .unwrap()
        .events
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .unwrap()
}

/// Settles a delivery that is under a lease.
async fn settled(settler: &dyn Settler, token: Token, settle: Settle) {
    let settling = settler.settle(smallvec![(token, settle)], true);
    settling.completed().await.unwrap().remove(0).unwrap();
}

/// Ends the first lease of the consumer `jobs`, as time would, and leases its event to somebody else.
async fn taken_by_another(bus: &Bus) -> (Arc<dyn Settler>, Token) {
    let at = ConsumerRef {
        stream: name("EVENTS"),
        consumer: name("jobs"),
    };
    let (mut feed, settler) = bus.engine().consume().open(&at).await.unwrap();
    let token = Token { seq: 1, lease: 1 };
    settled(&*settler, token, Settle::GiveBack).await;
    let mut theirs = Vec::new();
    in_time(feed.fetch(Credit::items(1), &mut theirs))
        .await
        .unwrap();
    (settler, theirs[0].token)
}

#[tokio::test(start_paused = true)]
async fn c9_a_dropped_receiver_gives_back_what_nobody_received() {
    let bus = Bus::connect("memory:").await.unwrap();
    publish(&bus, 3_000).await;
    let receiver = bus.consumer("jobs").retry(Retry::never()).receiver::<Job>();
    let mut receiver = receiver.await.unwrap();
    for _ in 0..100 {
        let Some(Item::Event(job)) = receiver.recv().await else {
            panic!("no event")
        };
        job.done();
    }
    drop(receiver);
    in_time(bus.close()).await.unwrap();
    let bus = Bus::connect("memory:").await.unwrap();
    publish(&bus, 10).await;
    let mut receiver = bus
        .consumer("jobs")
        .retry(Retry::never())
        .receiver::<Job>()
        .await
        .unwrap();
    let Some(Item::Event(first)) = receiver.recv().await else {
        panic!("no event")
    };
    first.done();
    let report = in_time(receiver.stop()).await;
    assert_eq!((report.cancelled, report.given_back), (0, 9));
    assert_eq!(stored_in(&bus, "EVENTS_DLQ").await, 0);
}

#[tokio::test(start_paused = true)]
async fn c13_every_member_of_a_deleted_consumer_learns_of_it() {
    let bus = Bus::connect("memory:").await.unwrap();
    let start = || bus.consumer("jobs").on(|_: Job| async {}).start();
    let members = [start().await.unwrap(), start().await.unwrap()];
    tokio::task::yield_now().await;
    let at = ConsumerRef {
        stream: name("EVENTS"),
        consumer: name("jobs"),
    };
    bus.engine()
        .topology()
        .apply(vec![Change::DeleteConsumer(at)])
        .await
        .unwrap();
    for member in members {
        let report = in_time(member.ended()).await;
        assert_eq!(report.failed.unwrap().kind(), ErrorKind::NoSuchConsumer);
    }
}

#[tokio::test(start_paused = true)]
async fn an_absurd_delay_harms_nobody() {
    let bus = Bus::connect("memory:")
        .drain_deadline(Duration::MAX)
        .await
        .unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel::<u32>();
    bus.state(seen);
    let handler = |job: Job, State(seen): State<mpsc::UnboundedSender<u32>>| async move {
        seen.send(job.n).unwrap();
        if job.n == 0 {
            Err("never mind".snooze(Duration::MAX))
        } else {
            Ok(())
        }
    };
    bus.consumer("jobs").on(handler).start().await.unwrap();
    publish(&bus, 2).await;
    let mut seen = [
        in_time(handled.recv()).await.unwrap(),
        in_time(handled.recv()).await.unwrap(),
    ];
    seen.sort_unstable();
    assert_eq!(seen, [0, 1]);
    in_time(bus.close()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c7_a_member_whose_lease_is_gone_stops_what_runs_under_it() {
    /// Tells when it is dropped: the handler was cancelled, or is done.
    struct Told(mpsc::UnboundedSender<&'static str>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send("cancelled").unwrap();
        }
    }
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    let handler = move |_: Job| {
        let told = Told(seen.clone());
        async move {
            told.0.send("begun").unwrap();
            std::future::pending::<()>().await;
        }
    };
    let handle = bus.consumer("jobs").on(handler).start().await.unwrap();
    publish(&bus, 1).await;
    assert_eq!(in_time(handled.recv()).await, Some("begun"));
    // As after a pause of the whole process: the lease has ended, and somebody else has the event.
    let (settler, theirs) = taken_by_another(&bus).await;
    assert_eq!(in_time(handled.recv()).await, Some("cancelled"));
    // It neither settles the event nor gives it back: it has a new owner.
    let report = in_time(handle.stop()).await;
    assert_eq!(
        (report.finished, report.cancelled, report.given_back),
        (0, 0, 0)
    );
    settled(&*settler, theirs, Settle::Ack).await;
}

#[tokio::test(start_paused = true)]
async fn c7_a_member_whose_lease_is_gone_hands_nothing_over() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut begun) = mpsc::unbounded_channel();
    let go_on = Arc::new(Notify::new());
    let handler = {
        let go_on = Arc::clone(&go_on);
        move |job: Job| {
            let (seen, go_on) = (seen.clone(), Arc::clone(&go_on));
            async move {
                seen.send(job.n).unwrap();
                go_on.notified().await;
                Err("too late".throttled(Duration::from_secs(1)))
            }
        }
    };
    bus.consumer("jobs").on(handler).start().await.unwrap();
    publish(&bus, 1).await;
    assert_eq!(in_time(begun.recv()).await, Some(0));
    // As after a pause of the whole process: somebody else has had the event, and done it.
    let (settler, theirs) = taken_by_another(&bus).await;
    settled(&*settler, theirs, Settle::Ack).await;
    go_on.notify_one();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(begun.try_recv().ok(), None, "it is done");
}

/// Nobody else can have it, so what it comes to in the end counts, and its key goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn c7_a_key_whose_handler_blocked_goes_on_with_its_only_member() {
    let bus = Bus::connect("memory:").await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    let (end, ends) = std::sync::mpsc::channel::<()>();
    let ends = Arc::new(std::sync::Mutex::new(Some(ends)));
    let handler = move |part: Part, attempt: Attempt| {
        let (seen, ends) = (seen.clone(), Arc::clone(&ends));
        async move {
            if let Some(ends) = ends.lock().unwrap().take() {
                let _ = ends.recv();
                return Err("at last");
            }
            let _ = seen.send((part.n, attempt.0));
            Ok(())
        }
    };
    let consumer = bus.consumer("parts").time_out(Duration::from_millis(50));
    let consumer = consumer.retry(Retry::fixed(2, Duration::from_millis(10)));
    let member = consumer.on(handler).start().await.unwrap();
    for n in 0..2 {
        bus.publish(Part { job: 1, n }).await.unwrap();
    }
    let stuck = async {
        while member.health().is_well() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    in_time(stuck).await;
    end.send(()).unwrap();
    assert_eq!(in_time(handled.recv()).await, Some((0, 2)));
    assert_eq!(in_time(handled.recv()).await, Some((1, 1)));
    let report = in_time(member.stop()).await;
    assert_eq!((report.cancelled, report.stuck), (0, 0), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn c9_a_second_close_waits_for_the_drain_of_the_first() {
    let bus = Bus::connect("memory:hard-cases-close").await.unwrap();
    let other = Bus::connect("memory:hard-cases-close").await.unwrap();
    let (started, mut running) = mpsc::unbounded_channel::<u32>();
    bus.state(started);
    let handler = |job: Job, State(started): State<mpsc::UnboundedSender<u32>>| async move {
        started.send(job.n).unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
    };
    bus.consumer("jobs").on(handler).start().await.unwrap();
    publish(&bus, 1).await;
    running.recv().await.unwrap();
    let (first, second) = tokio::join!(bus.close(), bus.close());
    first.and(second).unwrap();
    let state = other.inspect().await.unwrap().consumers.remove(0);
    assert_eq!((state.backlog.floor, state.backlog.in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn c5_an_event_that_one_member_does_not_know_goes_to_one_that_does() {
    let bus = Bus::connect("memory:").await.unwrap();
    let jobs = || bus.consumer("mixed").retry(Retry::never());
    let old = jobs().on(|_: Job| async {}).start().await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel::<()>();
    bus.state(Arc::new(seen));
    let new = jobs()
        .on(
            |_: Noted, State(seen): State<Arc<mpsc::UnboundedSender<()>>>| async move {
                seen.send(()).unwrap();
            },
        )
        .start()
        .await
        .unwrap();
    new.stop().await;
    bus.publish(Noted {}).await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(
        stored_in(&bus, "EVENTS_DLQ").await,
        0,
        "it waits, it is not given up"
    );
    jobs()
        .on(
            |_: Noted, State(seen): State<Arc<mpsc::UnboundedSender<()>>>| async move {
                seen.send(()).unwrap();
            },
        )
        .start()
        .await
        .unwrap();
    old.stop().await;
    in_time(handled.recv()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c14_a_hole_in_the_middle_hides_nothing_from_a_replay_by_time() {
    let bus = Bus::connect("memory:").await.unwrap();
    publish(&bus, 3).await;
    let (log, events) = (bus.engine().log(), name("EVENTS"));
    log.remove(&events, Removal::Seq(2)).await.unwrap();
    let all = [Filter::all()];
    let page = log
        .read(
            &events,
            Start::Time(Timestamp::from_nanos(0)),
            &all,
            Credit::items(10),
        )
        .await
        .unwrap();
    assert_eq!(
        page.events
            .iter()
            .map(|event| event.seq)
            .collect::<Vec<_>>(),
        [1, 3]
    );
    let last = Start::Last(NonZeroU64::new(2).unwrap());
    let page = log
        .read(&events, last, &all, Credit::items(10))
        .await
        .unwrap();
    assert_eq!(
        page.events
            .iter()
            .map(|event| event.seq)
            .collect::<Vec<_>>(),
        [1, 3]
    );
    let page = log
        .read(&events, Start::Seq(u64::MAX), &all, Credit::items(10))
        .await
        .unwrap();
    assert_eq!((page.events.len(), page.next, page.tail), (0, u64::MAX, 4));
}

#[tokio::test(start_paused = true)]
async fn what_retention_takes_from_others_is_no_gap() {
    let bus = Bus::connect("memory:?max_events=10").await.unwrap();
    let mut noted = bus.subscribe::<Noted>().await.unwrap();
    let idle = tokio::time::timeout(Duration::from_millis(1), noted.recv()).await;
    assert!(idle.is_err(), "there is nothing yet");
    publish(&bus, 30).await;
    bus.publish(Noted {}).await.unwrap();
    assert!(matches!(in_time(noted.recv()).await, Some(Item::Event(_))));
}

#[tokio::test]
async fn a_subscription_keeps_its_connection() {
    let connect = || async { Bus::connect("memory:hard-cases-kept").await.unwrap() };
    let mut jobs = connect().await.subscribe::<Job>().await.unwrap();
    let bus = connect().await;
    publish(&bus, 1).await;
    let Some(Item::Event(job)) = in_time(jobs.recv()).await else {
        panic!("no event")
    };
    assert_eq!(job.n, 0);
}

/// A handler that blocks its thread must not cost its neighbour the time in which a stop gives back.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn c9_what_is_cancelled_is_given_back_although_another_handler_is_stuck() {
    let bus = Bus::connect("memory:").await.unwrap();
    publish(&bus, 2).await;
    let (begun, mut begins) = mpsc::unbounded_channel();
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(std::sync::Mutex::new(held));
    let blocks = move |job: Job| {
        let (begun, held) = (begun.clone(), Arc::clone(&held));
        async move {
            begun.send(job.n).unwrap();
            if job.n == 0 {
                let _ = held.lock().unwrap().recv();
            }
            std::future::pending::<()>().await;
        }
    };
    let member = bus.consumer("jobs").concurrency(2).on(blocks);
    let member = member.start().await.unwrap();
    for _ in 0..2 {
        in_time(begins.recv()).await.unwrap();
    }
    let report = in_time(member.stop_within(Duration::ZERO)).await;
    assert_eq!((report.cancelled, report.stuck), (1, 1), "{report:?}");
    // Long before its lease would end, which is 30 s.
    let (took, mut taken) = mpsc::unbounded_channel();
    let takes = move |job: Job| {
        let took = took.clone();
        async move {
            let _ = took.send(job.n);
        }
    };
    bus.consumer("jobs").on(takes).start().await.unwrap();
    assert_eq!(in_time(taken.recv()).await, Some(1));
    let_go.send(()).unwrap();
    in_time(bus.close()).await.unwrap();
}

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "step.taken", key = "key")]
struct Step {
    key: u32,
    fails: bool,
}

/// Runs events until the dead-letter stream, which has room for one, is full; publishes more; and makes
/// room again. Gives what ran before and after there was room.
async fn with_room_for_one_dead_letter(is_ordered: bool) -> (Vec<u32>, Vec<u32>) {
    let dead = StreamSpec {
        max_events: Some(1),
        ..StreamSpec::dead_letters(name("EVENTS_DLQ"), Vec::new())
    };
    let bus = Bus::connect("memory:").stream(dead).await.unwrap();
    let (seen, mut ran) = mpsc::unbounded_channel();
    let handler = move |step: Step| {
        let seen = seen.clone();
        async move {
            match step.fails {
                true => Err("never".permanent()),
                false => {
                    seen.send(step.key).unwrap();
                    Ok(())
                }
            }
        }
    };
    let publish = async |key, fails| bus.publish(Step { key, fails }).await.unwrap();
    let consumer = bus.consumer("steps").on(handler);
    let consumer = match is_ordered {
        true => consumer,
        false => consumer.unordered(),
    };
    consumer.start().await.unwrap();
    publish(0, true).await;
    publish(1, true).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(stored_in(&bus, "EVENTS_DLQ").await, 1);
    for key in 2..200 {
        publish(key, false).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before: Vec<u32> = std::iter::from_fn(|| ran.try_recv().ok()).collect();

    let letters = bus.dead_letters();
    let dead = async || {
        let list = letters.list(&Selection::new(), &Page::default()).await;
        list.unwrap().letters
    };
    let first = dead().await.remove(0);
    let reason = Discard::because("to make room");
    let _ = letters.discard(&first, &reason).await.unwrap();
    let mut after = Vec::new();
    while before.len() + after.len() < 198 {
        after.push(in_time(ran.recv()).await.unwrap());
    }
    assert_eq!(dead().await.len(), 1, "the second dead letter is lost");
    bus.close().await.unwrap();
    (before, after)
}

#[tokio::test(start_paused = true)]
async fn nothing_is_fetched_while_a_dead_letter_cannot_be_stored() {
    for is_ordered in [true, false] {
        let (before, after) = with_room_for_one_dead_letter(is_ordered).await;
        assert!(before.is_empty(), "ordered: {is_ordered}: {before:?}");
        assert_eq!(after.len(), 198, "ordered: {is_ordered}");
    }
}
