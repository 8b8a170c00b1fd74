//! Hard cases of a connection: more than a message may have, an end in the middle of work, a bus that
//! is gone, callers that give up, clients that come back late.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics where it fails"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::smallvec;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use trunkline::core::engine::{
    Admitted, Append, AppendMode, Batch, Boxed, Capabilities, Change, Consume, ConsumerRef,
    ConsumerSpec, Credit, Durability, Engine, Expect, Fact, Fetched, Follow, Followed, Gauges,
    Heard, Limits, Link, LinkOptions, Live, Log, Membership, Message, Outcome, Page, Position,
    Removal, Settle, State, StreamSpec, Topology,
};
use trunkline::core::wire::Body;
use trunkline::core::{Headers, Subject, SystemClock};
use trunkline::{Error, ErrorKind, EventId, Filter, Name, Result};
use trunkline_memory::{MemoryEngine, MemoryOptions};
use trunkline_remote::{Dial, RemoteEngine, Server, Socket};
use trunkline_testing::contract::{Harness, RemoteHarness};
use trunkline_testing::{Channel, Restarts, VirtualClock};

const LARGE: usize = 1 << 20;
/// More than any wait that a test here is about.
const SOON: Duration = Duration::from_secs(20);

/// An engine that outlives its server, and does not always answer.
#[derive(Debug)]
struct Moody {
    inner: Arc<dyn Engine>,
    /// Opening a consumer fails so often.
    fails_to_open: AtomicUsize,
    hangs_at_reads: AtomicBool,
}

impl Engine for Moody {
    fn name(&self) -> &'static str {
        "moody"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: Durability::Crash,
            ..self.inner.capabilities()
        }
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn facts(&self) -> Vec<Fact> {
        self.inner.facts()
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.inner.link()
    }

    fn live(&self) -> &dyn Live {
        self.inner.live()
    }

    fn log(&self) -> &dyn Log {
        self
    }

    fn consume(&self) -> &dyn Consume {
        self
    }

    fn state(&self) -> &dyn State {
        self.inner.state()
    }

    fn topology(&self) -> &dyn Topology {
        self.inner.topology()
    }

    fn gauges(&self) -> Option<&dyn Gauges> {
        self.inner.gauges()
    }

    fn close(&self) -> Boxed<'_, ()> {
        self.inner.close()
    }
}

impl Consume for Moody {
    fn open<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Membership>> {
        let left = self.fails_to_open.load(Ordering::Relaxed);
        if left > 0 {
            self.fails_to_open.store(left - 1, Ordering::Relaxed);
            let hiccup = Error::new(ErrorKind::TimedOut, "a hiccup");
            return Box::pin(std::future::ready(Err(hiccup)));
        }
        self.inner.consume().open(consumer)
    }
}

impl Log for Moody {
    fn append(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>> {
        self.inner.log().append(stream, batch, mode)
    }

    fn read<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
        max: Credit,
    ) -> Boxed<'a, Result<Page>> {
        if self.hangs_at_reads.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        self.inner.log().read(stream, from, filters, max)
    }

    fn follow<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
    ) -> Boxed<'a, Result<Box<dyn Follow>>> {
        self.inner.log().follow(stream, from, filters)
    }

    fn remove<'a>(&'a self, stream: &'a Name, what: Removal) -> Boxed<'a, Result<u64>> {
        self.inner.log().remove(stream, what)
    }
}

fn memory() -> Arc<dyn Engine> {
    let options = MemoryOptions::from_url("memory:?encode=always").unwrap();
    Arc::new(MemoryEngine::connect(options, Arc::new(VirtualClock::default())).unwrap())
}

/// An engine with a stream `LOG` and a consumer `work`.
async fn filled(inner: Arc<dyn Engine>) -> Arc<Moody> {
    let stream = StreamSpec::new(log(), vec![Filter::new("log.>").unwrap()]);
    let consumer = ConsumerSpec {
        at: work(),
        filters: vec![Filter::all()],
        start: Position::First,
        ack_wait: Duration::from_secs(30),
        max_in_flight: 100,
    };
    let changes = vec![
        Change::CreateStream(stream),
        Change::CreateConsumer(consumer),
    ];
    inner.topology().apply(changes).await.unwrap();
    Arc::new(Moody {
        inner,
        fails_to_open: AtomicUsize::new(0),
        hangs_at_reads: AtomicBool::new(false),
    })
}

fn log() -> Name {
    Name::new("LOG").unwrap()
}

fn work() -> ConsumerRef {
    ConsumerRef {
        stream: log(),
        consumer: Name::new("work").unwrap(),
    }
}

fn item(n: u32, size: usize) -> Append {
    Append {
        subject: Subject::new(format!("log.s{n}")).unwrap(),
        key: None,
        id: Some(EventId::new(format!("id-{n}")).unwrap()),
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Bytes(vec![7; size].into()),
    }
}

async fn store(engine: &dyn Engine, n: u32) -> Outcome {
    let appended = engine
        .log()
        .append(&log(), smallvec![item(n, 1)], AppendMode::Each);
    appended.completed().await.unwrap().remove(0)
}

fn message(size: usize) -> Message {
    Message {
        subject: Subject::new("live.x").unwrap(),
        reply: None,
        headers: Headers::new(),
        body: Body::Bytes(vec![7; size].into()),
    }
}

async fn client(dial: Arc<dyn Dial>) -> RemoteEngine {
    let clock = Arc::new(VirtualClock::default());
    RemoteEngine::connect_by(dial, LinkOptions::default(), clock)
        .await
        .unwrap()
}

/// Two connections to one place, over TCP.
async fn over_tcp(place: &str) -> (Arc<dyn Engine>, Arc<dyn Engine>) {
    let harness = RemoteHarness::over_tcp();
    let one = harness.connect(place, Arc::new(SystemClock)).await.unwrap();
    let other = harness.connect(place, Arc::new(SystemClock)).await.unwrap();
    (one, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_a_message_may_have_goes_in_pieces_both_ways() {
    let (one, other) = over_tcp("pieces").await;
    let mut listener = one
        .live()
        .listen(&[Filter::all()], None, 10_000)
        .await
        .unwrap();
    let batch: Batch<Message> = (0..80).map(|_| message(LARGE)).collect();
    other.live().send(batch).completed().await.unwrap();
    let mut heard = Vec::new();
    while heard.len() < 80 {
        let more = listener.receive(256, &mut heard);
        assert!(matches!(timeout(SOON, more).await, Ok(Heard::Messages(_))));
    }
    one.topology().inspect().await.unwrap();

    filled(Arc::clone(&one)).await;
    for first in [0, 50] {
        let batch = (first..first + 50).map(|n| item(n, LARGE)).collect();
        let outcomes = other
            .log()
            .append(&log(), batch, AppendMode::Each)
            .completed();
        assert!(
            outcomes
                .await
                .unwrap()
                .iter()
                .all(|one| matches!(one, Outcome::Stored { .. }))
        );
    }
    let (stream, filters) = (log(), [Filter::all()]);
    let follow = one
        .log()
        .follow(&stream, Position::LastPerSubject, &filters);
    let (mut follow, mut events) = (follow.await.unwrap(), Vec::new());
    while events.len() < 100 {
        let more = follow.next(Credit::items(256), &mut events);
        assert!(matches!(
            timeout(SOON, more).await,
            Ok(Ok(Followed::Events { .. }))
        ));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_hands_over_everything_that_was_admitted() {
    // Also what does not fit into a window, and although the socket has something to be read.
    let (one, other) = over_tcp("closing").await;
    let mut listener = other
        .live()
        .listen(&[Filter::all()], None, 10_000)
        .await
        .unwrap();
    for _ in 0..7 {
        one.live()
            .send(smallvec![message(LARGE)])
            .completed()
            .await
            .unwrap();
    }
    one.close().await;
    let mut heard = Vec::new();
    while heard.len() < 7 {
        let more = timeout(SOON, listener.receive(5, &mut heard)).await;
        assert!(
            matches!(more, Ok(Heard::Messages(_))),
            "{} of 7 came",
            heard.len()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_batch_keeps_its_place_and_is_whole_however_it_is_waited_for() {
    let engine = filled(memory()).await;
    let client = client(Arc::new(Channel::new(Server::new(engine.clone()), None))).await;
    let large =
        |from: u32| -> Batch<Append> { (from..from + 40).map(|n| item(n, LARGE)).collect() };
    let append = |batch| {
        client
            .log()
            .append(&Name::new("LOG").unwrap(), batch, AppendMode::Each)
            .into_future()
    };
    // What is admitted later is stored later.
    let (first, second) = (
        append(large(0)).await.unwrap(),
        append(smallvec![item(99, 1)]).await.unwrap(),
    );
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert!(
        matches!(first[39], Outcome::Stored { seq: 40, .. }),
        "{:?}",
        first[39]
    );
    assert!(
        matches!(second[0], Outcome::Stored { seq: 41, .. }),
        "{:?}",
        second[0]
    );
    // Nobody waits for it.
    drop(append(large(100)).await.unwrap());
    // The engine closes meanwhile.
    let third = append(large(200)).await.unwrap();
    let (third, ()) = tokio::join!(third, client.close());
    assert!(
        third
            .unwrap()
            .iter()
            .all(|one| matches!(one, Outcome::Stored { .. }))
    );
    let streams = engine.topology().inspect().await.unwrap().streams;
    assert_eq!(streams[0].events, 121);
}

#[tokio::test(start_paused = true)]
async fn a_token_of_a_bus_that_is_gone_settles_nothing_of_the_next_one() {
    let old = filled(memory()).await;
    store(&*old, 1).await;
    let server = Restarts::of(Arc::clone(&old.inner));
    let client = client(server.clone()).await;
    let (mut feed, settler) = client.consume().open(&work()).await.unwrap();
    let mut held = Vec::new();
    feed.fetch(Credit::items(1), &mut held).await.unwrap();
    server.kill();
    let mut link = client.link();
    link.wait_for(|link| matches!(link, Link::Disconnected { .. }))
        .await
        .unwrap();
    let fresh = filled(memory()).await;
    store(&*fresh, 2).await;
    // Another member is at work on the first event of the new bus, which has the same numbers.
    let (mut theirs, their_settler) = fresh.consume().open(&work()).await.unwrap();
    let mut taken = Vec::new();
    theirs.fetch(Credit::items(1), &mut taken).await.unwrap();
    assert_eq!(taken[0].token, held[0].token);
    server.start(Arc::clone(&fresh.inner));
    client
        .link()
        .wait_for(|link| *link == Link::Connected)
        .await
        .unwrap();
    let settled = settler
        .settle(smallvec![(held[0].token, Settle::Ack)], true)
        .completed()
        .await;
    assert_eq!(settled.unwrap_err().kind(), ErrorKind::NoSuchConsumer);
    assert_eq!(
        feed.fetch(Credit::items(1), &mut held).await.unwrap(),
        Fetched::Gone
    );
    let back = their_settler.settle(smallvec![(taken[0].token, Settle::GiveBack)], true);
    assert!(back.completed().await.unwrap()[0].is_ok());
    assert_eq!(fresh.topology().backlog(&work()).await.unwrap().pending, 1);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_could_not_be_opened_again_is_opened_when_it_is_asked() {
    let engine = filled(memory()).await;
    let server = Restarts::of(engine.clone());
    let client = client(server.clone()).await;
    let (mut feed, settler) = client.consume().open(&work()).await.unwrap();
    store(&*engine, 1).await;
    let mut held = Vec::new();
    feed.fetch(Credit::items(1), &mut held).await.unwrap();
    for by_settling in [false, true] {
        server.kill();
        engine.fails_to_open.store(1, Ordering::Relaxed);
        server.start(engine.clone());
        if by_settling {
            let ack = |token| {
                settler
                    .settle(smallvec![(token, Settle::Ack)], true)
                    .completed()
            };
            assert_eq!(
                ack(held[0].token).await.unwrap_err().kind(),
                ErrorKind::TimedOut
            );
            assert!(ack(held[0].token).await.unwrap()[0].is_ok());
        } else {
            let failed = feed.fetch(Credit::items(1), &mut held).await.unwrap_err();
            assert_eq!(failed.kind(), ErrorKind::TimedOut);
            store(&*engine, 2).await;
            let again = timeout(SOON, feed.fetch(Credit::items(1), &mut held)).await;
            assert_eq!(again.expect("it comes").unwrap(), Fetched::Deliveries(1));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_nobody_wants_is_not_made_again_in_the_next_session() {
    let engine = filled(memory()).await;
    let server = Restarts::of(engine.clone());
    let client = client(server.clone()).await;
    let (mut feed, _settler) = client.consume().open(&work()).await.unwrap();
    let brief = Duration::from_millis(5);
    assert!(
        timeout(brief, feed.fetch(Credit::items(10), &mut Vec::new()))
            .await
            .is_err()
    );
    server.kill();
    sleep(Duration::from_millis(500)).await;
    server.start(engine.clone());
    client
        .link()
        .wait_for(|link| *link == Link::Connected)
        .await
        .unwrap();
    sleep(Duration::from_secs(3)).await;
    store(&*engine, 1).await;
    sleep(Duration::from_secs(3)).await;
    let backlog = engine.topology().backlog(&work()).await.unwrap();
    assert_eq!(
        (backlog.pending, backlog.in_flight),
        (1, 0),
        "it is leased to nobody"
    );
}

#[tokio::test(start_paused = true)]
async fn calls_that_their_callers_gave_up_do_not_use_the_session_up() {
    let engine = filled(memory()).await;
    let client = client(Arc::new(Channel::new(Server::new(engine.clone()), None))).await;
    engine.hangs_at_reads.store(true, Ordering::Relaxed);
    let (stream, filters) = (log(), [Filter::all()]);
    let read = || {
        client
            .log()
            .read(&stream, Position::First, &filters, Credit::items(1))
    };
    for gives_up in [true, false] {
        for _ in 0..5 {
            let all = futures_util::future::join_all((0..1_000).map(|_| read()));
            // The others wait until their time is up.
            let patience = if gives_up {
                Duration::from_millis(500)
            } else {
                SOON
            };
            assert_eq!(timeout(patience, all).await.is_err(), gives_up);
        }
    }
    engine.hangs_at_reads.store(false, Ordering::Relaxed);
    assert!(read().await.is_ok());
    // And closing does not wait for them.
    engine.hangs_at_reads.store(true, Ordering::Relaxed);
    assert!(timeout(Duration::from_millis(1), read()).await.is_err());
    let start = Instant::now();
    client.close().await;
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

/// Connections to a server whose tasks a test can take away.
#[derive(Debug)]
struct Taken {
    server: Server,
    tasks: Mutex<JoinSet<()>>,
    /// Every connection after the first comes so late.
    late: Duration,
    dials: AtomicUsize,
}

impl Taken {
    fn new(server: Server, late: Duration) -> Arc<Self> {
        Arc::new(Self {
            server,
            tasks: Mutex::default(),
            late,
            dials: AtomicUsize::new(0),
        })
    }
}

impl Dial for Taken {
    fn dial(&self) -> Boxed<'_, Result<Socket>> {
        Box::pin(async move {
            if self.dials.fetch_add(1, Ordering::Relaxed) > 0 {
                sleep(self.late).await;
            }
            let (ours, theirs) = Channel::sockets();
            let server = self.server.clone();
            self.tasks
                .lock()
                .spawn(async move { server.serve(theirs).await });
            Ok(ours)
        })
    }

    fn place(&self) -> &str {
        "taken away"
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_back_just_when_its_time_is_up_is_served() {
    for late in [9_900, 9_985, 9_990, 9_995, 10_000, 10_100] {
        let engine = filled(memory()).await;
        let dial = Taken::new(Server::new(engine.clone()), Duration::from_millis(late));
        let options = LinkOptions {
            connect_timeout: Duration::from_secs(30),
            ..LinkOptions::default()
        };
        let clock = Arc::new(VirtualClock::default());
        let client = RemoteEngine::connect_by(dial.clone(), options, clock)
            .await
            .unwrap();
        store(&client, 1).await;
        dial.tasks.lock().abort_all();
        sleep(Duration::from_secs(15)).await;
        assert!(
            matches!(store(&client, 2).await, Outcome::Stored { .. }),
            "{late}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_end_also_when_nobody_serves_them_or_there_are_too_many() {
    let engine = memory();
    let server = Server::new(Arc::clone(&engine));
    let dial = Taken::new(server.clone(), Duration::ZERO);
    let mut clients = Vec::new();
    for _ in 0..1_024 {
        clients.push(client(dial.clone()).await);
    }
    let held = Arc::strong_count(&engine);
    let options = LinkOptions {
        first_connect: Some(Duration::ZERO),
        ..LinkOptions::default()
    };
    for _ in 0..100 {
        let clock = Arc::new(VirtualClock::default());
        let refused = RemoteEngine::connect_by(dial.clone(), options, clock).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Disconnected);
    }
    assert_eq!(
        Arc::strong_count(&engine),
        held,
        "a refused session is kept"
    );
    dial.tasks.lock().abort_all();
    drop(clients);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(server.sessions(), 0);
}
