//! The engine in situations that need a disk which waits, fails or panics at the right moment.
#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use smol_str::SmolStr;
use support::engine::{WATCHDOG, append, commit, consumer, events, item, make, name, open, work};
use trunkline_core::engine::{
    AppendMode, Batch, Change, Commit, Committed, Credit, Delivery, Engine, Expectation, Fetched,
    Followed, Link, Op, Position, Retention, Settle, StateKey, StreamSpec,
};
use trunkline_core::{ErrorKind, Filter, Name, Subject};
use trunkline_log::sim::{Fault, SimDisk};
use trunkline_log::{LogEngine, SyncPolicy};

fn bodies(count: usize, size: usize) -> Vec<Bytes> {
    (0..count)
        .map(|n| Bytes::from(vec![n.to_le_bytes()[0]; size]))
        .collect()
}

/// Lets other tasks run until it is so.
async fn until(is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < WATCHDOG);
        tokio::task::yield_now().await;
    }
}

async fn fetch(engine: &LogEngine, stream: &Name, count: usize) -> Vec<Delivery> {
    let mut given = Vec::new();
    let (mut feed, _) = engine.consume().open(&work(stream)).await.unwrap();
    while given.len() < count {
        let credit = Credit::items(count - given.len());
        assert!(matches!(
            feed.fetch(credit, &mut given).await.unwrap(),
            Fetched::Deliveries(_)
        ));
    }
    given
}

/// Fills the journal so far that another file must follow it.
async fn fill_journal(engine: &LogEngine, turn: usize, times: usize) {
    for time in 0..times {
        let op = |number: usize| Op::Put {
            key: StateKey::new(format!("fill.{number}")).unwrap(),
            value: Bytes::from(vec![7; 4_000]),
            expect: Expectation::Any,
            ttl: None,
        };
        let commit = Commit {
            id: SmolStr::from(format!("fill-{turn}-{time}")),
            fences: Vec::new(),
            ops: (0..1_000).map(op).collect(),
        };
        let bucket = name("fill");
        let done = engine.state().commit(&bucket, commit).completed().await;
        assert!(matches!(done.unwrap(), Committed::Done(_)));
    }
}

#[tokio::test]
async fn an_acknowledgement_that_found_no_room_is_written_down_when_there_is_some() {
    let disk = SimDisk::new(1);
    let engine = open(&disk, SyncPolicy::Always).unwrap();
    let (stream, other) = (name("COMMANDS"), name("OTHER"));
    make(&engine, &stream, Retention::WorkQueue).await;
    make(&engine, &other, Retention::DiscardOld).await;
    disk.set_capacity(Some(disk.used()));
    while append(&engine, &stream, &bodies(1, 300)).await.is_ok() {}
    let all = events(&engine, &stream).await.len();
    let given = fetch(&engine, &stream, all).await;
    let (_, settler) = engine.consume().open(&work(&stream)).await.unwrap();
    // One by one, so that what is kept for removals is used up.
    let mut refused = Vec::new();
    for delivery in given.into_iter().rev() {
        let batch = Batch::from_iter([(delivery.token, Settle::Ack)]);
        if let Err(error) = settler.settle(batch, true).completed().await {
            assert_eq!(error.kind(), ErrorKind::OverQuota);
            refused.push(delivery.event.seq);
        }
    }
    assert!(refused.len() > 20, "{} of {all}", refused.len());
    let left: Vec<_> = events(&engine, &stream).await.into_keys().collect();
    refused.sort_unstable();
    assert_eq!(left, refused, "what was refused is there");
    disk.set_capacity(None);
    // Whatever is written next takes it along.
    append(&engine, &other, &bodies(1, 10)).await.unwrap();
    assert!(events(&engine, &stream).await.is_empty());
    engine.close().await;
    let engine = open(&disk, SyncPolicy::Always).unwrap();
    let backlog = engine.topology().backlog(&work(&stream)).await.unwrap();
    assert_eq!((backlog.pending, backlog.expired_at_most), (0, 0));
    engine.close().await;
}

#[tokio::test]
async fn an_acknowledgement_to_a_consumer_that_was_deleted_is_not_that_of_its_namesake() {
    let disk = SimDisk::new(1);
    let engine = Arc::new(open(&disk, SyncPolicy::Always).unwrap());
    let stream = name("EVENTS");
    make(&engine, &stream, Retention::DiscardOld).await;
    append(&engine, &stream, &bodies(1, 10)).await.unwrap();
    let given = fetch(&engine, &stream, 1).await;
    let (_, settler) = engine.consume().open(&work(&stream)).await.unwrap();
    disk.hold_directories(true);
    let apply = |change| {
        let engine = Arc::clone(&engine);
        tokio::spawn(async move { engine.topology().apply(vec![change]).await })
    };
    // While the thread that writes waits for the disk, the others queue in this order.
    let filter = Filter::new("OTHER.>").unwrap();
    let changes = [
        Change::CreateStream(StreamSpec::new(name("OTHER"), vec![filter])),
        Change::DeleteConsumer(work(&stream)),
        Change::CreateConsumer(consumer(&stream)),
    ];
    let mut applied = Vec::new();
    for change in changes {
        applied.push(apply(change));
        tokio::task::yield_now().await;
    }
    let settling = tokio::spawn(async move {
        let batch = Batch::from_iter([(given[0].token, Settle::Ack)]);
        settler.settle(batch, true).completed().await
    });
    tokio::task::yield_now().await;
    disk.hold_directories(false);
    for applied in applied {
        applied.await.unwrap().unwrap();
    }
    let error = settling.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSuchConsumer);
    engine.close().await;
    let engine = open(&disk, SyncPolicy::Always).unwrap();
    let backlog = engine.topology().backlog(&work(&stream)).await.unwrap();
    assert_eq!(
        backlog.pending, 1,
        "nobody has acknowledged it to the new one"
    );
    engine.close().await;
}

#[tokio::test]
async fn a_panic_of_the_thread_that_writes_closes_every_connection() {
    let disk = SimDisk::new(1);
    let engine = open(&disk, SyncPolicy::Always).unwrap();
    let second = engine.another().unwrap();
    let stream = name("EVENTS");
    make(&engine, &stream, Retention::DiscardOld).await;
    append(&engine, &stream, &bodies(3, 10)).await.unwrap();
    let all = [Filter::all()];
    let mut follow = second
        .log()
        .follow(&stream, Position::New, &all)
        .await
        .unwrap();
    let (mut feed, settler) = second.consume().open(&work(&stream)).await.unwrap();
    let mut given = Vec::new();
    feed.fetch(Credit::items(10), &mut given).await.unwrap();
    disk.fault_at(disk.operations() + 1, Fault::Panic);
    let error = append(&engine, &stream, &bodies(1, 10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    for connection in [&engine, &second] {
        let mut link = connection.link();
        let closed = link.wait_for(|link| *link == Link::Closed);
        tokio::time::timeout(WATCHDOG, closed)
            .await
            .unwrap()
            .unwrap();
        let error = append(connection, &stream, &bodies(1, 10))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
        assert!(error.message().contains("told to panic"), "{error}");
        let error = connection.another().unwrap_err();
        assert!(error.message().contains("told to panic"), "{error}");
        let error = commit(connection, 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
    }
    let followed = follow.next(Credit::items(1), &mut Vec::new()).await;
    assert!(matches!(followed.unwrap(), Followed::Closed));
    let fetched = feed.fetch(Credit::items(1), &mut given).await;
    assert!(matches!(fetched.unwrap(), Fetched::Closed));
    let batch = Batch::from_iter([(given[0].token, Settle::Ack)]);
    let error = settler.settle(batch, true).completed().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    // Closing them waits for nobody.
    engine.close().await;
    second.close().await;
    let engine = open(&disk, SyncPolicy::Always).unwrap();
    assert!(events(&engine, &stream).await.len() >= 3);
    engine.close().await;
}

/// A future that counts how often it is polled.
struct Counted<F>(Pin<Box<F>>, Arc<AtomicUsize>);

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.as_mut().poll(cx)
    }
}

#[tokio::test]
async fn who_has_read_everything_sleeps_while_the_stream_goes_on_to_another_segment() {
    let disk = SimDisk::new(1);
    let engine = Arc::new(open(&disk, SyncPolicy::Always).unwrap());
    let stream = name("EVENTS");
    make(&engine, &stream, Retention::DiscardOld).await;
    let (seen, polls) = (
        [0; 2].map(|_| Arc::new(AtomicUsize::new(0))),
        Arc::new(AtomicUsize::new(0)),
    );
    let [followed, fetched] = seen.clone();
    let reader = Arc::clone(&engine);
    let follow = async move {
        let all = [Filter::all()];
        let mut follow = reader
            .log()
            .follow(&name("EVENTS"), Position::First, &all)
            .await
            .unwrap();
        let mut out = Vec::new();
        while out.len() < 20 {
            follow.next(Credit::items(100), &mut out).await.unwrap();
            followed.store(out.len(), Ordering::Relaxed);
        }
    };
    let member = Arc::clone(&engine);
    let fetch = async move {
        let (mut feed, _) = member.consume().open(&work(&name("EVENTS"))).await.unwrap();
        let mut out = Vec::new();
        while out.len() < 20 {
            feed.fetch(Credit::items(100), &mut out).await.unwrap();
            fetched.store(out.len(), Ordering::Relaxed);
        }
    };
    disk.hold_directories(true);
    let writer = Arc::clone(&engine);
    // Some fit into the first segment, and are seen before the group is done.
    let append = tokio::spawn(async move {
        append(&writer, &name("EVENTS"), &bodies(20, 9_000))
            .await
            .unwrap();
    });
    let since = Instant::now();
    while engine.topology().inspect().await.unwrap().streams[0].events < 3 {
        assert!(since.elapsed() < WATCHDOG);
        tokio::task::yield_now().await;
    }
    let follow = tokio::spawn(Counted(Box::pin(follow), Arc::clone(&polls)));
    let fetch = tokio::spawn(Counted(Box::pin(fetch), Arc::clone(&polls)));
    until(|| seen.iter().all(|seen| seen.load(Ordering::Relaxed) > 2)).await;
    let before = polls.load(Ordering::Relaxed);
    for _ in 0..2_000 {
        tokio::task::yield_now().await;
    }
    let busy = polls.load(Ordering::Relaxed) - before;
    assert!(
        busy < 20,
        "polled {busy} times while there was nothing to see"
    );
    disk.hold_directories(false);
    // And nothing that came meanwhile is missed.
    tokio::time::timeout(WATCHDOG, async {
        append.await.unwrap();
        follow.await.unwrap();
        fetch.await.unwrap();
    })
    .await
    .unwrap();
    engine.close().await;
}

#[tokio::test]
async fn nobody_is_at_work_in_a_directory_that_is_closed() {
    for round in 0..3 {
        let disk = SimDisk::new(round);
        let engine = open(&disk, SyncPolicy::Always).unwrap();
        fill_journal(&engine, 0, 5).await;
        engine.close().await;
        let (files, operations) = (disk.files(), disk.operations());
        let making = files
            .keys()
            .find(|path| path.extension().is_some_and(|end| end == "tmp"));
        assert_eq!(making, None, "a snapshot is being taken");
        for _ in 0..1_000 {
            std::thread::yield_now();
        }
        assert_eq!(disk.operations(), operations);
        let engine = open(&disk, SyncPolicy::Always).unwrap();
        engine.close().await;
    }
}

#[tokio::test]
async fn the_last_of_each_subject_keeps_to_the_credit() {
    let disk = SimDisk::new(1);
    let engine = open(&disk, SyncPolicy::Always).unwrap();
    let stream = name("EVENTS");
    make(&engine, &stream, Retention::DiscardOld).await;
    let items = (0..20).map(|number| trunkline_core::engine::Append {
        subject: Subject::new(format!("EVENTS.{}", number % 10)).unwrap(),
        ..item(&stream, &Bytes::from(vec![1; 1_000]))
    });
    let batch: Batch<_> = items.collect();
    let stored = engine.log().append(&stream, batch, AppendMode::Each);
    stored.completed().await.unwrap();
    let (all, credit) = (
        [Filter::all()],
        Credit {
            items: 100,
            bytes: 3_500,
        },
    );
    let page = engine
        .log()
        .read(&stream, Position::LastPerSubject, &all, credit);
    assert_eq!(page.await.unwrap().events.len(), 3);
    let least = Credit {
        items: 100,
        bytes: 1,
    };
    let page = engine
        .log()
        .read(&stream, Position::LastPerSubject, &all, least);
    assert_eq!(
        page.await.unwrap().events.len(),
        1,
        "one is given whatever its size"
    );
    let follow = engine.log().follow(&stream, Position::LastPerSubject, &all);
    let (mut follow, mut seqs) = (follow.await.unwrap(), Vec::new());
    while seqs.len() < 10 {
        let mut out = Vec::new();
        follow.next(credit, &mut out).await.unwrap();
        assert!((1..=3).contains(&out.len()), "{}", out.len());
        seqs.extend(out.into_iter().map(|event| event.seq));
    }
    assert_eq!(seqs, (11..=20).collect::<Vec<_>>());
    let mut next = pin!(async { follow.next(credit, &mut Vec::new()).await });
    let waits = std::future::poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_pending()));
    assert!(waits.await, "there is no more");
    engine.close().await;
}

#[tokio::test]
async fn an_update_that_is_refused_changes_nothing() {
    let disk = SimDisk::new(1);
    let engine = open(&disk, SyncPolicy::Always).unwrap();
    let stream = name("EVENTS");
    make(&engine, &stream, Retention::DiscardOld).await;
    append(&engine, &stream, &bodies(5, 10)).await.unwrap();
    fill_journal(&engine, 0, 3).await;
    disk.set_capacity(Some(disk.used()));
    let spec = StreamSpec {
        max_events: Some(1),
        ..StreamSpec::new(stream.clone(), vec![Filter::new("EVENTS.>").unwrap()])
    };
    let update = || {
        engine
            .topology()
            .apply(vec![Change::UpdateStream(spec.clone())])
    };
    let error = update().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OverQuota);
    append(&engine, &stream, &bodies(1, 10)).await.unwrap();
    assert_eq!(events(&engine, &stream).await.len(), 6);
    disk.set_capacity(None);
    update().await.unwrap();
    assert_eq!(events(&engine, &stream).await.len(), 1);
    engine.close().await;
}
