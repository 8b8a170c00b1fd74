//! Looking at a directory while its owner writes, rolls segments, lets them go and uses them again.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps in vain")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use smol_str::SmolStr;
use trunkline_core::engine::{
    Append, AppendMode, Batch, Bucket, Change, Commit, ConsumerRef, ConsumerSpec, Credit, Engine,
    Expect, Expectation, Fetched, Op, Outcome, Position, Retention, Settle, StateKey, StreamSpec,
};
use trunkline_core::wire::Body;
use trunkline_core::{EventId, Filter, Headers, Name, Subject, SystemClock, Timestamp};
use trunkline_log::inspect::{Directory, Dumped, EventsFrom, Owner};
use trunkline_log::{LogEngine, LogOptions};

/// How often all of it is read while the owner writes.
const LOOKS: usize = 12;
/// For what must happen sooner or later.
const WATCHDOG: Duration = Duration::from_secs(30);

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

fn orders() -> Name {
    Name::new("ORDERS").unwrap()
}

fn consumer() -> ConsumerRef {
    ConsumerRef {
        stream: orders(),
        consumer: Name::new("billing").unwrap(),
    }
}

fn connect(folder: &Folder) -> Arc<LogEngine> {
    let mut options = LogOptions::new(&folder.0);
    options.segment_bytes = LogOptions::MIN_SEGMENT_BYTES;
    Arc::new(LogEngine::connect(&options, Arc::new(SystemClock)).unwrap())
}

async fn make(engine: &LogEngine) {
    let spec = StreamSpec {
        name: orders(),
        subjects: vec![Filter::new("orders.>").unwrap()],
        retention: Retention::DiscardOld,
        // Few enough for segments to leave while the test runs.
        max_events: Some(2_500),
        max_bytes: None,
        max_age: None,
        max_message: 1 << 20,
        duplicate_window: Duration::from_secs(120),
        replicas: 1,
        metadata: BTreeMap::new(),
    };
    let of = ConsumerSpec {
        at: consumer(),
        filters: vec![Filter::all()],
        start: Position::First,
        ack_wait: Duration::from_secs(30),
        max_in_flight: 10_000,
    };
    let changes = vec![Change::CreateStream(spec), Change::CreateConsumer(of)];
    engine.topology().apply(changes).await.unwrap();
}

async fn publish(engine: &LogEngine, number: u64) {
    let append = |place: u64| Append {
        subject: Subject::new("orders.placed").unwrap(),
        key: None,
        id: Some(EventId::new(format!("{number}-{place}")).unwrap()),
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Bytes(Bytes::from(vec![place as u8; 4 << 10])),
    };
    let batch = Batch::from_iter((0..20).map(append));
    let stored = engine.log().append(&orders(), batch, AppendMode::Each);
    for outcome in stored.completed().await.unwrap() {
        assert!(matches!(outcome, Outcome::Stored { .. }), "{outcome:?}");
    }
    let put = Op::Put {
        key: StateKey::new(format!("key-{}", number % 7)).unwrap(),
        // Some of them in files of values.
        value: Bytes::from(vec![1; if number.is_multiple_of(3) { 9_000 } else { 90 }]),
        expect: Expectation::Any,
        ttl: None,
    };
    let commit = Commit {
        id: SmolStr::from(format!("commit-{number}")),
        fences: Vec::new(),
        ops: vec![put],
    };
    let bucket = Bucket::new("config").unwrap();
    let committed = engine.state().commit(&bucket, commit);
    committed.completed().await.unwrap();
}

async fn settle(engine: Arc<LogEngine>, stop: Arc<AtomicBool>) {
    let (mut feed, settler) = engine.consume().open(&consumer()).await.unwrap();
    while !stop.load(Ordering::Relaxed) {
        let mut deliveries = Vec::new();
        match feed.fetch(Credit::items(50), &mut deliveries).await {
            Ok(Fetched::Deliveries(_)) => {}
            _ => return,
        }
        let done: Batch<_> = deliveries
            .iter()
            .map(|delivery| (delivery.token, Settle::Ack))
            .collect();
        settler.settle(done, true).completed().await.unwrap();
    }
}

#[tokio::test]
async fn nothing_that_an_owner_is_writing_is_taken_for_damage() {
    let name = format!("trunkline-inspect-{}", std::process::id());
    let folder = Folder(std::env::temp_dir().join(name));
    let engine = connect(&folder);
    make(&engine).await;
    publish(&engine, 0).await;
    let stop = Arc::new(AtomicBool::new(false));
    let looking = {
        let (dir, stop) = (folder.0.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let directory = Directory::at(dir).unwrap();
            let (mut bytes, mut segments) = (0, std::collections::BTreeSet::new());
            let (since, mut looks) = (Instant::now(), 0);
            // On a machine that is busy the owner may need longer until something leaves.
            while looks < LOOKS || segments.len() < 2 && since.elapsed() < WATCHDOG {
                looks += 1;
                let found = directory.verify(&mut |_| {}).unwrap();
                let damage: Vec<_> = found.damage().collect();
                assert!(damage.is_empty(), "{damage:#?}");
                #[cfg(target_os = "linux")]
                assert_eq!(found.owner, Owner::Running(Some(std::process::id())));
                bytes += found.bytes;
                let stats = directory.stats().unwrap();
                let stream = &stats.streams[0];
                assert_eq!(stream.problem, None);
                segments.insert(stream.standing.map(|standing| standing.first));
                let (mut next, mut skipped) = (0, 0);
                let wanted = EventsFrom {
                    stream: "ORDERS".to_owned(),
                    from: 1,
                    limit: 200,
                };
                let dumped = directory.events(&wanted, &mut |dumped| {
                    match dumped {
                        Dumped::Event(event) => {
                            assert!(event.seq > next);
                            next = event.seq;
                        }
                        Dumped::Skipped { .. } => skipped += 1,
                    }
                    Ok(())
                });
                dumped.unwrap();
                assert!(next > 0 || skipped > 0);
                let refused = directory
                    .repair(Timestamp::from_nanos(0), true, &mut |_| {})
                    .unwrap_err();
                assert_eq!(refused.kind(), trunkline_core::ErrorKind::InUse);
            }
            stop.store(true, Ordering::Relaxed);
            (bytes, segments.len())
        })
    };
    let settling = tokio::spawn(settle(Arc::clone(&engine), Arc::clone(&stop)));
    let mut number = 1;
    while !stop.load(Ordering::Relaxed) && !looking.is_finished() {
        publish(&engine, number).await;
        number += 1;
    }
    let (bytes, moved) = looking.join().unwrap();
    assert!(bytes > 10 << 20, "{bytes}");
    assert!(moved > 1, "old segments left while it was looked at");
    settling.abort();
    engine.close().await;
    drop(engine);
    let directory = Directory::at(&folder.0).unwrap();
    let found = directory.verify(&mut |_| {}).unwrap();
    let of: Vec<_> = found.damage().collect();
    assert!(of.is_empty(), "{of:#?}");
    assert!(
        !matches!(found.owner, Owner::Running(_)),
        "{:?}",
        found.owner
    );
    let stats = directory.stats().unwrap();
    assert_eq!(
        stats.streams[0].standing.unwrap().events,
        2_500.min(number * 20)
    );
    assert_eq!(stats.buckets[0].keys, 7.min(number));
}

#[tokio::test]
async fn a_damaged_directory_is_repaired_for_the_engine() {
    let name = format!("trunkline-repair-{}", std::process::id());
    let folder = Folder(std::env::temp_dir().join(name));
    let engine = connect(&folder);
    make(&engine).await;
    for number in 0..80 {
        publish(&engine, number).await;
    }
    engine.close().await;
    drop(engine);
    let stream = folder.0.join("streams/ORDERS");
    let mut segments: Vec<PathBuf> = fs::read_dir(&stream)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "seg"))
        .collect();
    segments.sort();
    assert!(segments.len() > 1);
    let mut bytes = fs::read(&segments[0]).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(&segments[0], &bytes).unwrap();
    let directory = Directory::at(&folder.0).unwrap();
    let now = Timestamp::from_nanos(0);
    let planned = directory.repair(now, false, &mut |_| {}).unwrap();
    assert_eq!(planned.steps.len(), 1);
    let lost = planned.steps[0].lost.clone().unwrap();
    assert!(
        fs::read(&segments[0]).unwrap() == bytes,
        "a plan changes nothing"
    );
    let done = directory.repair(now, true, &mut |_| {}).unwrap();
    assert_eq!(done.after.unwrap().damage().count(), 0);
    let mut kept = segments[0].clone().into_os_string();
    kept.push(".damaged");
    assert!(fs::read(kept).unwrap() == bytes, "it is kept as it was");
    let engine = connect(&folder);
    publish(&engine, 80).await;
    let (mut next, mut there) = (1, Vec::new());
    loop {
        let page = engine
            .log()
            .read(
                &orders(),
                Position::Seq(next),
                &[Filter::all()],
                Credit::items(500),
            )
            .await
            .unwrap();
        there.extend(page.events.iter().map(|event| event.seq));
        if page.next >= page.tail {
            break;
        }
        next = page.next;
    }
    let last = lost.last.unwrap();
    let expected: Vec<u64> = (1..=81 * 20)
        .filter(|seq| *seq < lost.first || *seq > last)
        .collect();
    assert_eq!(there, expected);
    // Sequences that were lost are not given again, and repeats are still known.
    let repeated = engine.log().append(
        &orders(),
        Batch::from_iter([Append {
            subject: Subject::new("orders.placed").unwrap(),
            key: None,
            id: Some(EventId::new("79-19").unwrap()),
            expect: Expect::Any,
            headers: Headers::new(),
            body: Body::Bytes(Bytes::from_static(b"again")),
        }]),
        AppendMode::Each,
    );
    let outcomes = repeated.completed().await.unwrap();
    assert!(
        matches!(
            outcomes[0],
            Outcome::Stored {
                seq: 1_600,
                duplicate: true
            }
        ),
        "{outcomes:?}"
    );
    engine.close().await;
}
