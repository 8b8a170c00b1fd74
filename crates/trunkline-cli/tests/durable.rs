//! `up` on a directory: killed with -9 while it stores and acknowledges, and started again.
#![cfg(unix)]
// Helpers of tests are tests to a reader, though not to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::time::timeout;
use trunkline::core::engine::{
    Append, AppendMode, Batch, ConsumerRef, ConsumerSpec, Credit, Engine, Expect, Fetched, Outcome,
    Position, Seq, Settle,
};
use trunkline::core::wire::Body;
use trunkline::core::{Name, Subject};
use trunkline::{Bus, EventId, Filter, Headers, Item};

use support::{Up, ends, run, trunkline};

/// How often it is killed, unless `TRUNKLINE_KILLS` says otherwise.
const KILLS: u64 = 60;
const PUBLISHERS: u64 = 8;

/// A folder for one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("trunkline-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn url(&self) -> String {
        format!("file:{}", self.0.join("data").display())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// What others were told.
#[derive(Default)]
struct Told {
    /// What was said to be stored, by its place.
    stored: BTreeMap<Seq, EventId>,
    /// What was said to be settled.
    settled: BTreeSet<Seq>,
}

fn events() -> Name {
    Name::new("EVENTS").unwrap()
}

fn consumer() -> ConsumerRef {
    ConsumerRef {
        stream: events(),
        consumer: Name::new("work").unwrap(),
    }
}

/// Publishes until the bus is gone.
async fn publish(engine: Arc<dyn Engine>, told: Arc<Mutex<Told>>, count: Arc<AtomicU64>) {
    loop {
        let id = EventId::generate(trunkline::Timestamp::from_nanos(0));
        let append = Append {
            subject: Subject::new("events.order.placed").unwrap(),
            key: None,
            id: Some(id.clone()),
            expect: Expect::Any,
            headers: Headers::new(),
            body: Body::Bytes(id.to_string().into()),
        };
        let appended = engine
            .log()
            .append(&events(), Batch::from_iter([append]), AppendMode::Each)
            .completed()
            .await;
        match appended.as_deref() {
            Ok([Outcome::Stored { seq, .. }]) => {
                told.lock().unwrap().stored.insert(*seq, id);
                count.fetch_add(1, Ordering::Relaxed);
            }
            _ => return,
        }
    }
}

/// Takes events and settles them until the bus is gone.
async fn work(engine: Arc<dyn Engine>, told: Arc<Mutex<Told>>) {
    let (mut feed, settler) = engine.consume().open(&consumer()).await.unwrap();
    loop {
        let mut deliveries = Vec::new();
        let fetched = feed.fetch(Credit::items(20), &mut deliveries).await;
        let Ok(Fetched::Deliveries(_)) = fetched else {
            return;
        };
        for delivery in &deliveries {
            let seq = delivery.event.seq;
            assert!(
                !told.lock().unwrap().settled.contains(&seq),
                "{seq} was settled"
            );
        }
        // Every third stays, and comes again.
        let tokens: Vec<_> = deliveries.iter().map(|delivery| delivery.token).collect();
        let done: Batch<_> = tokens
            .iter()
            .filter(|token| token.seq % 3 != 0)
            .map(|token| (*token, Settle::Ack))
            .collect();
        let seqs: Vec<Seq> = done.iter().map(|(token, _)| token.seq).collect();
        let Ok(settled) = settler.settle(done, true).completed().await else {
            return;
        };
        let settled = seqs
            .iter()
            .zip(settled)
            .filter(|(_, settled)| settled.is_ok());
        told.lock()
            .unwrap()
            .settled
            .extend(settled.map(|(seq, _)| *seq));
    }
}

/// Everything that was said to be stored is there, under its number, and nothing is missing between.
async fn check(bus: &Bus, told: &Mutex<Told>) -> Seq {
    let (mut next, mut missing) = (1, told.lock().unwrap().stored.clone());
    loop {
        let page = bus
            .engine()
            .log()
            .read(
                &events(),
                Position::Seq(next),
                &[Filter::all()],
                Credit::items(500),
            )
            .await
            .unwrap();
        assert_eq!(page.gap, None);
        for event in &page.events {
            assert_eq!(event.seq, next, "sequences are without holes");
            if let Some(id) = missing.remove(&next) {
                assert_eq!(event.body.to_bytes().unwrap(), id.to_string().as_bytes());
            }
            next += 1;
        }
        if next >= page.tail {
            break;
        }
    }
    assert!(missing.is_empty(), "acknowledged and gone: {missing:?}");
    next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_after_each_kill() {
    let folder = Folder::new("kills");
    let (told, mut tail) = (Arc::new(Mutex::new(Told::default())), 1);
    let said = std::env::var("TRUNKLINE_KILLS").ok();
    for round in 0..said.and_then(|kills| kills.parse().ok()).unwrap_or(KILLS) {
        let mut up = Up::start(&["--url", &folder.url()]);
        // By the door, and by the socket in the directory.
        let url = match round % 2 {
            0 => up.url(),
            _ => folder.url(),
        };
        let bus = Bus::connect(url).await.unwrap();
        if round == 0 {
            let spec = ConsumerSpec {
                at: consumer(),
                filters: vec![Filter::all()],
                start: Position::First,
                ack_wait: std::time::Duration::from_secs(30),
                max_in_flight: 100_000,
            };
            let create = trunkline::core::engine::Change::CreateConsumer(spec);
            bus.engine().topology().apply(vec![create]).await.unwrap();
        }
        let now = check(&bus, &told).await;
        assert!(now >= tail, "the stream ends at {now}, and was {tail} long");
        tail = now;
        let count = Arc::new(AtomicU64::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..PUBLISHERS {
            let engine = Arc::clone(bus.engine());
            tasks.spawn(publish(engine, Arc::clone(&told), Arc::clone(&count)));
        }
        tasks.spawn(work(Arc::clone(bus.engine()), Arc::clone(&told)));
        // Each time after another number of events, so that it is met at another place.
        while count.load(Ordering::Relaxed) < 20 + round * 37 % 400 {
            tokio::task::yield_now().await;
        }
        up.kill();
        tasks.abort_all();
        while let Some(ended) = tasks.join_next().await {
            assert!(!ended.is_err_and(|error| error.is_panic()));
        }
    }
    let up = Up::start(&["--url", &folder.url()]);
    let bus = Bus::connect(up.url()).await.unwrap();
    check(&bus, &told).await;
    let told = told.lock().unwrap();
    assert!(told.stored.len() > 1_000 && told.settled.len() > 300);
    drop(bus);
    let (code, stderr) = up.terminate();
    assert_eq!(code, 0, "{stderr}");
}

/// What is stored, as an operator sees it.
fn stored(url: &str) -> String {
    let ended = run(&["replay", "--from", "first", "--json", "--url", url]).with(0);
    let event = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        event["id"].as_str().unwrap().to_owned()
    };
    ended
        .stdout
        .lines()
        .map(event)
        .collect::<Vec<_>>()
        .join(" ")
}

fn publish_one(url: &str, id: &str) {
    run(&["pub", "order.placed", "1", "--id", id, "--url", url]).with(0);
}

#[test]
fn other_processes_attach_and_find_it_again_without_an_owner() {
    let folder = Folder::new("attach");
    let url = folder.url();
    publish_one(&url, "alone");
    let up = Up::start(&["--url", &url]);
    publish_one(&url, "attached");
    publish_one(&up.url(), "by-the-door");
    assert_eq!(stored(&url), "alone attached by-the-door");
    drop(up);
    assert_eq!(stored(&url), "alone attached by-the-door");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_attached_takes_the_place_of_an_owner_that_does_not_come_back() {
    let folder = Folder::new("heir");
    let url = folder.url();
    let up = Up::start(&["--url", &url]);
    let bus = Bus::connect(&url).await.unwrap();
    let mut tail = bus.follow(&Filter::all(), Position::First).await.unwrap();
    publish_one(&up.url(), "before");
    drop(up);
    // Nobody comes back, so that this process has the directory soon, with readers that go on.
    let publish = {
        let url = url.clone();
        tokio::task::spawn_blocking(move || {
            publish_one(&url, "between");
            let up = Up::start(&["--url", &url]);
            publish_one(&up.url(), "after");
            stored(&up.url())
        })
    };
    let mut seen = Vec::new();
    while seen.len() < 3 {
        match timeout(support::WATCHDOG, tail.recv()).await.unwrap() {
            Some(Item::Event(event)) => seen.push(event.envelope.id().to_string()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["before", "between", "after"]);
    assert_eq!(publish.await.unwrap(), "before between after");
    bus.close().await.unwrap();
}

#[test]
fn an_owner_that_serves_nobody_is_named() {
    let folder = Folder::new("owned");
    let up = Up::start(&["--url", &folder.url()]);
    fs::remove_file(folder.0.join("data/bus.sock")).unwrap();
    let pid = up.child.id();
    let mut list = trunkline(&["streams", "list", "--url", &folder.url()]);
    list.env("TRUNKLINE_CONNECTION__FIRST_CONNECT", "300ms");
    ends(list)
        .with(1)
        .says(&["TL-0310", &format!("process {pid}"), "data"]);
}

#[test]
fn a_directory_that_is_not_ours_is_left_alone() {
    let folder = Folder::new("foreign");
    let data = folder.0.join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("thesis.txt"), "all of it").unwrap();
    let list = || run(&["streams", "list", "--url", &folder.url()]);
    list()
        .with(2)
        .says(&["TL-0008", "thesis.txt", "name an empty"]);
    assert_eq!(
        fs::read_dir(&data).unwrap().count(),
        1,
        "nothing was left there"
    );
    fs::remove_file(data.join("thesis.txt")).unwrap();
    fs::write(data.join("FORMAT"), "trunkline-log 7\n").unwrap();
    list().with(1).says(&["TL-0206", "version 7", "FORMAT"]);
    fs::write(data.join("FORMAT"), "something else").unwrap();
    list().with(2).says(&["TL-0008", "no directory of ours"]);
    fs::remove_dir_all(&data).unwrap();
    fs::write(&data, "a file").unwrap();
    list().with(2).says(&["data", "name a directory"]);
}

#[test]
fn damage_is_told_with_file_and_offset() {
    let folder = Folder::new("damage");
    let up = Up::start(&["--url", &folder.url()]);
    up.publish(&["order.placed", "{\"total\":7}"]);
    let (code, stderr) = up.terminate();
    assert_eq!(code, 0, "{stderr}");
    let segment = folder
        .0
        .join("data/streams/EVENTS/00000000000000000001.seg");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(5).position(|word| word == b"total").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    run(&["streams", "list", "--url", &folder.url()])
        .with(1)
        .says(&["TL-0701", "00000000000000000001.seg", "offset"]);
}
