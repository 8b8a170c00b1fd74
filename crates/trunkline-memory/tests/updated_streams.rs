//! A stream in memory that gets other subjects and limits while it is in use.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use trunkline_core::engine::{
    Append, AppendMode, Change, ConsumerRef, ConsumerSpec, Credit, Engine, Expect, Fetched, Follow,
    Followed, Gap, Outcome, Position, Retention, StreamSpec, StreamState,
};
use trunkline_core::wire::Body;
use trunkline_core::{Clock, Error, ErrorKind, Filter, Headers, Name, Result, Subject, Timestamp};
use trunkline_memory::{MemoryEngine, MemoryOptions};

/// Seconds, set by the test.
#[derive(Debug, Default)]
struct Hand(AtomicI64);

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::Relaxed) * 1_000_000_000)
    }
}

struct Rig {
    engine: MemoryEngine,
    clock: Arc<Hand>,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn filters(text: &str) -> Vec<Filter> {
    let filters = text.split_whitespace();
    filters.map(|filter| Filter::new(filter).unwrap()).collect()
}

impl Rig {
    /// A bus with a stream `S` over `a.>`.
    async fn new() -> Self {
        let clock = Arc::new(Hand::default());
        let engine = MemoryEngine::connect(MemoryOptions::default(), clock.clone()).unwrap();
        let rig = Self { engine, clock };
        let spec = StreamSpec::new(name("S"), filters("a.>"));
        rig.apply(Change::CreateStream(spec)).await.unwrap();
        rig
    }

    async fn apply(&self, change: Change) -> Result<()> {
        self.engine.topology().apply(vec![change]).await
    }

    async fn update(&self, change: impl FnOnce(&mut StreamSpec)) -> Result<()> {
        let mut spec = self.state().await.spec;
        change(&mut spec);
        self.apply(Change::UpdateStream(spec)).await
    }

    async fn state(&self) -> StreamState {
        let found = self.engine.topology().inspect().await.unwrap();
        found.streams.into_iter().next().unwrap()
    }

    async fn append(&self, subject: &str) -> Result<u64, Error> {
        let append = Append {
            subject: Subject::new(subject).unwrap(),
            key: None,
            id: None,
            expect: Expect::Any,
            headers: Headers::new(),
            body: Body::Bytes("x".into()),
        };
        let batch = [append].into_iter().collect();
        let log = self.engine.log();
        let appended = log.append(&name("S"), batch, AppendMode::Each);
        match appended.completed().await.unwrap().remove(0) {
            Outcome::Stored { seq, .. } => Ok(seq),
            Outcome::Refused(error) | Outcome::Unknown(error) => Err(error),
        }
    }

    async fn fill(&self, subject: &str, count: usize) {
        for _ in 0..count {
            self.append(subject).await.unwrap();
        }
    }

    async fn follow(&self, filter: &str) -> Box<dyn Follow> {
        let (log, at) = (self.engine.log(), name("S"));
        let filters = filters(filter);
        let following = log.follow(&at, Position::First, &filters);
        following.await.unwrap()
    }
}

async fn seqs(follow: &mut Box<dyn Follow>) -> Vec<u64> {
    let mut events = Vec::new();
    let followed = follow.next(Credit::items(100), &mut events).await.unwrap();
    assert!(matches!(followed, Followed::Events { .. }), "{followed:?}");
    events.iter().map(|event| event.seq).collect()
}

#[tokio::test]
async fn what_is_above_a_lower_limit_leaves_as_the_retention_says() {
    let rig = Rig::new().await;
    rig.fill("a.x", 10).await;
    rig.update(|spec| spec.retention = Retention::RefuseWhenFull)
        .await
        .unwrap();
    rig.update(|spec| spec.max_events = Some(4)).await.unwrap();
    assert_eq!(rig.state().await.events, 10, "a full one gives up nothing");
    let full = rig.append("a.x").await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StreamFull);
    rig.update(|spec| spec.retention = Retention::DiscardOld)
        .await
        .unwrap();
    let state = rig.state().await;
    assert_eq!((state.events, state.first, state.tail), (4, 7, 11));
    let two = state.bytes / 2;
    rig.update(|spec| spec.max_bytes = Some(two)).await.unwrap();
    assert_eq!(rig.state().await.events, 2);
    rig.update(|spec| {
        spec.max_bytes = None;
        spec.max_events = None;
    })
    .await
    .unwrap();
    rig.fill("a.x", 10).await;
    assert_eq!(rig.state().await.events, 12);
}

#[tokio::test]
async fn a_shorter_age_takes_what_is_past_it_at_once() {
    let rig = Rig::new().await;
    rig.fill("a.x", 2).await;
    rig.clock.0.store(100, Ordering::Relaxed);
    rig.fill("a.x", 3).await;
    let mut follow = rig.follow("a.>").await;
    rig.update(|spec| spec.max_age = Some(Duration::from_secs(60)))
        .await
        .unwrap();
    let state = rig.state().await;
    assert_eq!((state.events, state.first), (3, 3));
    let told = follow.next(Credit::items(9), &mut Vec::new()).await;
    // It had begun at 1, and learns what it missed.
    assert_eq!(told.unwrap(), Followed::Gap(Gap { from: 1, to: 2 }));
    assert_eq!(seqs(&mut follow).await, [3, 4, 5]);
}

#[tokio::test]
async fn readers_go_by_their_filters_whatever_the_stream_stores() {
    let rig = Rig::new().await;
    rig.fill("a.x", 1).await;
    // Each of these gets everything, as long as the stream stores nothing else.
    let (mut open, mut all) = (rig.follow("a.>").await, rig.follow(">").await);
    rig.update(|spec| spec.subjects = filters("b.>"))
        .await
        .unwrap();
    let error = rig.append("a.x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotStored);
    rig.fill("b.x", 2).await;
    assert_eq!(seqs(&mut open).await, [1]);
    assert_eq!(seqs(&mut all).await, [1, 2, 3]);
    // One that comes later knows of what was stored under former subjects.
    assert_eq!(seqs(&mut rig.follow("b.>").await).await, [2, 3]);
    assert_eq!(seqs(&mut rig.follow("a.>").await).await, [1]);
    rig.update(|spec| spec.subjects = filters("a.> b.>"))
        .await
        .unwrap();
    rig.fill("a.y", 1).await;
    assert_eq!(seqs(&mut open).await, [4]);
}

#[tokio::test]
async fn a_consumer_stays_and_is_woken_by_what_matches_it_then() {
    let rig = Rig::new().await;
    let at = ConsumerRef {
        stream: name("S"),
        consumer: name("c"),
    };
    let spec = ConsumerSpec {
        at: at.clone(),
        filters: filters("a.> b.x"),
        start: Position::First,
        ack_wait: Duration::from_secs(30),
        max_in_flight: 10,
    };
    rig.apply(Change::CreateConsumer(spec.clone()))
        .await
        .unwrap();
    let (mut feed, _settler) = rig.engine.consume().open(&at).await.unwrap();
    let waiting = tokio::spawn(async move {
        let mut out = Vec::new();
        // An update wakes it, and it waits on.
        let fetched = feed.fetch(Credit::items(10), &mut out).await.unwrap();
        assert_eq!(fetched, Fetched::Deliveries(out.len()));
        let seqs = out.iter().map(|delivery| delivery.event.seq);
        seqs.collect::<Vec<_>>()
    });
    tokio::task::yield_now().await;
    rig.update(|spec| spec.subjects = filters("a.> b.>"))
        .await
        .unwrap();
    rig.fill("b.y", 1).await;
    rig.fill("b.x", 1).await;
    assert_eq!(waiting.await.unwrap(), [2]);
    let found = rig.engine.topology().inspect().await.unwrap().consumers;
    assert_eq!(found[0].spec, spec);
}

#[tokio::test]
async fn there_is_one_copy_whatever_is_asked_for() {
    let rig = Rig::new().await;
    assert_eq!(rig.state().await.spec.replicas, 1);
    rig.update(|spec| spec.replicas = 5).await.unwrap();
    assert_eq!(rig.state().await.spec.replicas, 1);
    // Making what is there is no drift for the sake of copies.
    let spec = StreamSpec::new(name("S"), filters("a.>"));
    rig.apply(Change::CreateStream(spec)).await.unwrap();
}

#[tokio::test]
async fn a_work_queue_stays_one_and_subjects_stay_apart() {
    let rig = Rig::new().await;
    let other = StreamSpec::new(name("T"), filters("t.>"));
    rig.apply(Change::CreateStream(other)).await.unwrap();
    let queue = rig.update(|spec| spec.retention = Retention::WorkQueue);
    let error = queue.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("make a new stream"), "{error}");
    let overlap = rig.update(|spec| spec.subjects = filters("a.> t.x"));
    assert_eq!(overlap.await.unwrap_err().kind(), ErrorKind::Overlap);
    let none = rig.update(|spec| spec.subjects.clear());
    assert_eq!(none.await.unwrap_err().kind(), ErrorKind::InvalidConfig);
    let missing = StreamSpec::new(name("U"), filters("u.>"));
    let error = rig.apply(Change::UpdateStream(missing)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchStream);
    assert_eq!(rig.state().await.spec.subjects, filters("a.>"));
}
