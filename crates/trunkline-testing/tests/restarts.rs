//! The server dies and comes back under load, again and again, at times from a seed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics where it fails"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use trunkline::core::engine::{
    Append, AppendMode, Boxed, Capabilities, Change, Commit, Consume, Credit, Durability, Engine,
    Expect, Expectation, Fact, Gauges, Limits, Link, LinkOptions, Live, Log, Op, State, StateKey,
    StoredEvent, StreamSpec, Topology, Watched,
};
use trunkline::core::wire::Body;
use trunkline::core::{Headers, Subject};
use trunkline::raw::RawEvent;
use trunkline::{
    Bus, Connect, Context, Data, Envelope, ErrorKind, EventId, Filter, Item, Name, Published, Start,
};
use trunkline_memory::{MemoryEngine, MemoryOptions};
use trunkline_remote::{Dial, RemoteEngine};
use trunkline_testing::fixture::{Moved, Noted, OrderPlaced};
use trunkline_testing::{Restarts, VirtualClock};

/// An engine whose events outlive its server, as one on disk: the same one goes on afterwards.
#[derive(Debug)]
struct Durable(Arc<dyn Engine>);

impl Engine for Durable {
    fn name(&self) -> &'static str {
        "durable"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: Durability::Crash,
            ..self.0.capabilities()
        }
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn facts(&self) -> Vec<Fact> {
        self.0.facts()
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.0.link()
    }

    fn live(&self) -> &dyn Live {
        self.0.live()
    }

    fn log(&self) -> &dyn Log {
        self.0.log()
    }

    fn consume(&self) -> &dyn Consume {
        self.0.consume()
    }

    fn state(&self) -> &dyn State {
        self.0.state()
    }

    fn topology(&self) -> &dyn Topology {
        self.0.topology()
    }

    fn gauges(&self) -> Option<&dyn Gauges> {
        self.0.gauges()
    }

    fn close(&self) -> Boxed<'_, ()> {
        self.0.close()
    }
}

fn engine() -> Arc<dyn Engine> {
    let options = MemoryOptions::from_url("memory:?encode=always").unwrap();
    let engine = MemoryEngine::connect(options, Arc::new(VirtualClock::default())).unwrap();
    Arc::new(engine)
}

async fn attach(server: &Arc<Restarts>) -> Bus {
    let options = LinkOptions {
        reconnect_wait: Duration::from_millis(50),
        ..LinkOptions::default()
    };
    let dial: Arc<dyn Dial> = Arc::clone(server) as _;
    let clock = Arc::new(VirtualClock::default());
    let engine = RemoteEngine::connect_by(dial, options, clock)
        .await
        .unwrap();
    Connect::with_engine(Arc::new(engine)).await.unwrap()
}

/// Publishes with the same id until it is stored.
async fn publish(bus: &Bus, key: &str, n: u32) {
    let data = json(key, n);
    let id = EventId::new(format!("{key}-{n}")).unwrap();
    let event = Envelope::new(id, "/restarts", "testing.order.placed", data).unwrap();
    let event = RawEvent::from(event.with_key(key));
    loop {
        match bus.publish_raw(vec![event.clone()]).await.remove(0) {
            Published::Stored(_) => return,
            Published::Refused(error) | Published::Unknown(error) => {
                assert!(error.retryable(), "{error:?}");
            }
            other => panic!("it is durable: {other:?}"),
        }
    }
}

fn json(key: &str, n: u32) -> Data {
    let json = format!("{{\"order\":\"{key}\",\"n\":{n}}}");
    Data::Json(trunkline::core::envelope::JsonText::new(&json.into()).unwrap())
}

const KEYS: u32 = 8;
const EACH: u32 = 300;

/// Everything at once while the server is killed at random.
async fn survives(seed: u64) {
    let kept: Arc<dyn Engine> = Arc::new(Durable(engine()));
    let server = Restarts::of(Arc::clone(&kept));
    let mut random = SmallRng::seed_from_u64(seed);

    let handled: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    let mut members = Vec::new();
    for _ in 0..2 {
        let bus = attach(&server).await;
        let handled = Arc::clone(&handled);
        let handler = move |order: OrderPlaced, _: Context| {
            let handled = Arc::clone(&handled);
            async move {
                sleep(Duration::from_millis(2)).await;
                *handled
                    .lock()
                    .entry(format!("{}-{}", order.order, order.n))
                    .or_default() += 1;
            }
        };
        let consumer = bus
            .consumer("work")
            .ack_wait(Duration::from_secs(2))
            .on(handler);
        consumer.start().await.unwrap();
        members.push(bus);
    }
    let reader = attach(&server).await;
    let mut follow = reader
        .follow(&Filter::new("testing.order.>").unwrap(), Start::First)
        .await
        .unwrap();
    let mut moves = reader.subscribe::<Moved>().await.unwrap();
    let resumed = tokio::spawn(async move {
        let mut resumed = 0;
        while let Some(item) = moves.recv().await {
            match item {
                Item::Resumed => resumed += 1,
                Item::Event(moved) if moved.n == u32::MAX => break,
                _ => {}
            }
        }
        resumed
    });

    let mut publishers = JoinSet::new();
    for key in 0..KEYS {
        let bus = attach(&server).await;
        publishers.spawn(async move {
            for n in 0..EACH {
                publish(&bus, &format!("k{key}"), n).await;
                sleep(Duration::from_millis(5)).await;
            }
            bus
        });
    }
    let mut kills = 0;
    while !publishers.is_empty() {
        let pause = Duration::from_millis(random.random_range(20..300));
        tokio::select! {
            done = publishers.join_next() => {
                members.push(done.unwrap().unwrap());
                continue;
            }
            () = sleep(pause) => {}
        }
        server.kill();
        kills += 1;
        sleep(Duration::from_millis(random.random_range(0..300))).await;
        server.start(Arc::clone(&kept));
    }
    assert!(
        kills > 2,
        "seed {seed}: the server was killed {kills} times only"
    );

    // Followed: each once, each key in its order.
    let mut next: BTreeMap<String, u32> = BTreeMap::new();
    let mut last = 0;
    for _ in 0..KEYS * EACH {
        let Some(Item::Event(event)) = follow.recv().await else {
            panic!("seed {seed}: the follower lost its way");
        };
        let seq = event.stored.as_ref().unwrap().seq;
        assert!(seq > last, "seed {seed}: {seq} came after {last}");
        last = seq;
        let id = event.envelope.id().to_string();
        let (key, n) = id.split_once('-').unwrap();
        let expected = next.entry(key.to_owned()).or_default();
        assert_eq!(n.parse(), Ok(*expected), "seed {seed}: order of {key}");
        *expected += 1;
    }
    assert!(
        next.values().all(|count| *count == EACH),
        "seed {seed}: {next:?}"
    );

    // Handled: all of them, and not forgotten on the way.
    while handled.lock().len() < (KEYS * EACH) as usize {
        sleep(Duration::from_millis(50)).await;
    }
    loop {
        let backlog = reader.inspect().await.unwrap().consumers[0].backlog;
        if backlog.pending + backlog.in_flight == 0 {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }

    // Five more operations on every client.
    for (number, bus) in members.iter().enumerate() {
        for n in 0..5 {
            publish(bus, &format!("after{number}"), n).await;
        }
        bus.inspect().await.unwrap();
    }
    while handled.lock().len() < (KEYS * EACH) as usize + 5 * members.len() {
        sleep(Duration::from_millis(50)).await;
    }
    // Live events are lost while nobody carries them, and the listener is told so.
    members[0].emit(Moved { n: u32::MAX }).await.unwrap();
    assert!(
        resumed.await.unwrap() > 0,
        "seed {seed}: nobody told the listener"
    );
    let ids: BTreeSet<_> = handled.lock().keys().cloned().collect();
    assert_eq!(ids.len(), handled.lock().len());
    for bus in members {
        bus.close().await.unwrap();
    }
    reader.close().await.unwrap();
}

/// A few, or the one that `SEED` names, or those below `SEEDS`.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(20),
    }
}

#[test]
fn f1_everything_survives_a_server_that_is_killed_at_random() {
    for seed in seeds() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let limit = Duration::from_secs(600);
        let run = async { tokio::time::timeout(limit, survives(seed)).await };
        assert!(
            runtime.block_on(run).is_ok(),
            "seed {seed} was not done in {limit:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_lost_everything_says_so_to_whoever_reads_it() {
    let server = Restarts::of(engine());
    let bus = attach(&server).await;
    let mut follow = bus.follow(&Filter::all(), Start::New).await.unwrap();
    for n in 0..3 {
        bus.publish(Noted { n }).await.unwrap();
        assert!(matches!(follow.recv().await, Some(Item::Event(_))));
    }
    let working = bus
        .consumer("work")
        .on(|_: Noted| async {})
        .start()
        .await
        .unwrap();
    server.kill();
    sleep(Duration::from_secs(1)).await;
    // Whoever runs the new server has made its streams, and something happened already.
    let fresh = engine();
    let owner = Connect::with_engine(Arc::clone(&fresh)).await.unwrap();
    owner.publish(Noted { n: 10 }).await.unwrap();
    server.start(fresh);

    assert!(matches!(follow.recv().await, Some(Item::Reset { .. })));
    let Some(Item::Event(first)) = follow.recv().await else {
        panic!("what the new bus has comes next");
    };
    assert_eq!(first.stored.unwrap().seq, 1);
    bus.publish(Noted { n: 11 }).await.unwrap();
    assert!(matches!(follow.recv().await, Some(Item::Event(_))));
    // The consumer is gone with the old bus, and its member does not wait in silence.
    let failed = working.ended().await.failed.unwrap();
    assert_eq!(failed.kind(), ErrorKind::Conflict, "{failed}");
    assert!(failed.to_string().contains("began anew"), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_is_refused_and_what_was_is_unknown() {
    let server = Restarts::of(engine());
    let bus = attach(&server).await;
    bus.publish(Noted { n: 0 }).await.unwrap();
    server.kill();
    // The link notices before anything is sent.
    let mut link = bus.link();
    link.wait_for(|link| matches!(link, Link::Disconnected { .. }))
        .await
        .unwrap();
    let before = tokio::time::Instant::now();
    let error = bus.publish(Noted { n: 1 }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected);
    assert!(
        error.event_id().is_some() && error.message().contains("did not happen"),
        "{error}"
    );
    assert_eq!(before.elapsed(), LinkOptions::default().publish_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_member_outlives_an_outage_that_is_longer_than_every_time_out() {
    let kept: Arc<dyn Engine> = Arc::new(Durable(engine()));
    let server = Restarts::of(Arc::clone(&kept));
    let bus = attach(&server).await;
    let (ran, mut runs) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |noted: Noted| {
        let ran = ran.clone();
        async move {
            sleep(Duration::from_secs(1)).await;
            ran.send(noted.n).unwrap();
        }
    };
    let consumer = bus.consumer("work").ack_wait(Duration::from_secs(60));
    let member = consumer.on(handler).start().await.unwrap();
    bus.publish(Noted { n: 0 }).await.unwrap();
    // It is at work when the server goes, and done while nobody is there to be told.
    sleep(Duration::from_millis(500)).await;
    server.kill();
    assert_eq!(runs.recv().await, Some(0));
    sleep(Duration::from_secs(45)).await;
    assert!(member.is_running());
    server.start(kept);
    bus.publish(Noted { n: 1 }).await.unwrap();
    assert_eq!(runs.recv().await, Some(1));
    // What was done before is settled now, and does not come again when its lease would have ended.
    sleep(Duration::from_secs(120)).await;
    assert!(runs.try_recv().is_err());
    let backlog = bus.inspect().await.unwrap().consumers[0].backlog;
    assert_eq!((backlog.pending, backlog.in_flight), (0, 0));
    bus.close().await.unwrap();
}

/// Stores an event on each of these subjects, straight into the engine.
async fn store(engine: &Arc<dyn Engine>, subjects: impl Iterator<Item = u32>) {
    let append = |n: u32| Append {
        subject: Subject::new(format!("log.s{n}")).unwrap(),
        key: None,
        id: None,
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Bytes(n.to_string().into()),
    };
    let all: Vec<u32> = subjects.collect();
    for some in all.chunks(500) {
        let batch = some.iter().map(|n| append(*n)).collect();
        let stream = Name::new("LOG").unwrap();
        let stored = engine.log().append(&stream, batch, AppendMode::Each);
        stored.completed().await.unwrap();
    }
}

/// A server with a stream `LOG` and a client of the seam, in virtual time.
async fn with_log() -> (Arc<dyn Engine>, Arc<Restarts>, RemoteEngine) {
    let kept: Arc<dyn Engine> = Arc::new(Durable(engine()));
    let spec = StreamSpec::new(
        Name::new("LOG").unwrap(),
        vec![Filter::new("log.>").unwrap()],
    );
    let create = Change::CreateStream(spec);
    kept.topology().apply(vec![create]).await.unwrap();
    let server = Restarts::of(Arc::clone(&kept));
    let dial: Arc<dyn Dial> = Arc::clone(&server) as _;
    let clock = Arc::new(VirtualClock::default());
    let client = RemoteEngine::connect_by(dial, LinkOptions::default(), clock)
        .await
        .unwrap();
    (kept, server, client)
}

#[tokio::test(start_paused = true)]
async fn a_reading_of_the_last_of_each_subject_is_whole_although_it_is_cut_in_the_middle() {
    const SUBJECTS: u32 = 5_000;
    let (kept, server, client) = with_log().await;
    store(&kept, 0..SUBJECTS).await;
    let (stream, filters) = (Name::new("LOG").unwrap(), [Filter::all()]);
    let follow = client
        .log()
        .follow(&stream, Start::LastPerSubject, &filters);
    let mut follow = follow.await.unwrap();
    let mut events = Vec::new();
    follow.next(Credit::items(100), &mut events).await.unwrap();
    server.kill();
    // What it has not read yet becomes older, and so does what it has.
    store(&kept, (0..300).chain(4_000..4_300).chain(4_000..4_010)).await;
    server.start(Arc::clone(&kept));
    let all = u64::from(SUBJECTS) + 610;
    while events
        .last()
        .is_none_or(|event: &StoredEvent| event.seq < all)
    {
        follow
            .next(Credit::items(1_000), &mut events)
            .await
            .unwrap();
    }
    assert!(
        events.is_sorted_by(|a, b| a.seq < b.seq),
        "each once and in order"
    );
    let last: BTreeMap<_, _> = events
        .iter()
        .map(|event| (event.subject.clone(), event.seq))
        .collect();
    assert_eq!(last.len() as u32, SUBJECTS);
    // Every event that came after it began, not only the last of each subject.
    let new = events
        .iter()
        .filter(|event| event.seq > u64::from(SUBJECTS))
        .count();
    assert_eq!(new, 610);
}

#[tokio::test(start_paused = true)]
async fn a_watch_misses_nothing_although_it_is_cut_in_the_middle() {
    const KEYS: u64 = 3_000;
    let (kept, server, client) = with_log().await;
    let bucket = Name::new("bucket").unwrap();
    let put = async |n: u64, value: u64| {
        let commit = Commit {
            id: format!("{n}-{value}").into(),
            fences: vec![],
            ops: vec![Op::Put {
                key: StateKey::new(format!("k.{n}")).unwrap(),
                value: value.to_string().into(),
                expect: Expectation::Any,
                ttl: None,
            }],
        };
        kept.state()
            .commit(&bucket, commit)
            .completed()
            .await
            .unwrap();
    };
    let delete = async |n: u64| {
        let commit = Commit {
            id: format!("delete-{n}").into(),
            fences: vec![],
            ops: vec![Op::Delete {
                key: StateKey::new(format!("k.{n}")).unwrap(),
                expect: Expectation::Any,
            }],
        };
        kept.state()
            .commit(&bucket, commit)
            .completed()
            .await
            .unwrap();
    };
    for n in 0..KEYS {
        put(n, 0).await;
    }
    let mut watch = client.state().watch(&bucket, None, 0).await.unwrap();
    let (mut seen, mut rounds, mut scans) = (BTreeMap::new(), 0, 1);
    // Each round deletes a key; those of earlier rounds are put again, the last one is not.
    while rounds < 3 || seen.len() + 1 != KEYS as usize || seen.values().any(|value| value != "3") {
        let next = tokio::time::timeout(Duration::from_secs(60), watch.next());
        match next.await.expect("something comes") {
            Ok(Watched::Put(entry)) => {
                let value = String::from_utf8(entry.value.to_vec()).unwrap();
                seen.insert(entry.key, value);
            }
            Ok(Watched::Deleted { key, .. }) => drop(seen.remove(&key)),
            Ok(_) => {}
            // It had not caught up yet, so nobody can tell what was deleted meanwhile.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Conflict);
                scans += 1;
                seen.clear();
                watch = client.state().watch(&bucket, None, 0).await.unwrap();
            }
        }
        // Before it has caught up, and twice afterwards.
        if rounds < 3 && seen.len() >= [10, 2_000, KEYS as usize - 1][rounds] {
            rounds += 1;
            server.kill();
            for n in 0..KEYS {
                put(n, rounds as u64).await;
            }
            delete(rounds as u64).await;
            server.start(Arc::clone(&kept));
        }
    }
    assert!(rounds == 3 && scans > 1, "{scans} scans");
}
