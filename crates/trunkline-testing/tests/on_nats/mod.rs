//! Clients of a real server, and what they do until it works.

#![allow(dead_code, reason = "each test file takes what it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use trunkline::core::SystemClock;
use trunkline::core::engine::{
    Commit, Committed, Credit, Engine, Expectation, LinkOptions, Op, StateKey, Watched,
};
use trunkline::raw::RawEvent;
use trunkline::{Bus, Connect, Data, Envelope, EventId, Name, Published};
use trunkline_nats::{NatsEngine, NatsOptions};
use trunkline_testing::fixture::Moved;

/// One connection, as a bus and as its engine.
pub(crate) struct Client {
    pub(crate) bus: Bus,
    pub(crate) engine: Arc<NatsEngine>,
}

pub(crate) fn patient() -> LinkOptions {
    LinkOptions {
        connect_timeout: Duration::from_secs(2),
        first_connect: Some(Duration::from_secs(20)),
        reconnect_wait: Duration::from_millis(50),
        publish_timeout: Duration::from_secs(20),
        ..LinkOptions::default()
    }
}

pub(crate) async fn attach(url: &str) -> Client {
    attach_with(url, patient()).await
}

/// Connects, again and again if what it looks at first is cut in the middle.
pub(crate) async fn attach_with(url: &str, link: LinkOptions) -> Client {
    let options = NatsOptions::default().with_url(url).unwrap();
    loop {
        let engine = NatsEngine::connect(&options, link, Arc::new(SystemClock));
        let error = match soon("connecting", engine).await {
            Ok(engine) => {
                let engine = Arc::new(engine);
                match Connect::with_engine(Arc::clone(&engine) as Arc<dyn Engine>).await {
                    Ok(bus) => return Client { bus, engine },
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        assert!(error.retryable(), "{error:?}");
    }
}

/// Fails instead of hanging.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future)
        .await
        .unwrap_or_else(|_| panic!("{what}: nothing happens"))
}

/// Looks until it is so. What handlers and watches do, nobody else tells.
pub(crate) async fn until(what: &str, so: impl Fn() -> bool) {
    let looking = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(what, looking).await;
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn key(text: &str) -> StateKey {
    StateKey::new(text).unwrap()
}

fn event(id: &str, kind: &str, json: String) -> Envelope {
    let data = Data::Json(trunkline::core::envelope::JsonText::new(&json.into()).unwrap());
    Envelope::new(EventId::new(id).unwrap(), "/faults", kind, data).unwrap()
}

pub(crate) fn keyed(key: &str, n: u32) -> RawEvent {
    let json = format!("{{\"order\":\"{key}\",\"n\":{n}}}");
    let event = event(&format!("{key}-{n}"), "testing.order.placed", json);
    RawEvent::from(event.with_key(key))
}

pub(crate) fn unkeyed(n: u32) -> RawEvent {
    RawEvent::from(event(
        &format!("note-{n}"),
        "testing.noted",
        format!("{{\"n\":{n}}}"),
    ))
}

/// Publishes in order, with the same ids, until all are stored.
pub(crate) async fn publish(bus: &Bus, mut events: Vec<RawEvent>) {
    while !events.is_empty() {
        let outcomes = soon("a publish", bus.publish_raw(events.clone())).await;
        let mut rest = Vec::new();
        for (event, outcome) in events.into_iter().zip(outcomes) {
            match outcome {
                Published::Stored(_) => {}
                Published::Refused(error) | Published::Unknown(error) => {
                    let behind = error.kind() == trunkline::ErrorKind::BehindFailed;
                    assert!(error.retryable() || behind, "{error:?}");
                    rest.push(event);
                }
                other => panic!("it is durable: {other:?}"),
            }
        }
        events = rest;
    }
}

/// At most once: it may be lost, and says so.
pub(crate) async fn emit(bus: &Bus, moved: Moved) {
    if let Err(error) = soon("an emit", bus.emit(moved).into_future()).await {
        assert!(error.retryable(), "{error:?}");
    }
}

/// Checks that this event is the next of its key. Those without one come in any order.
pub(crate) fn order_of(next: &mut BTreeMap<String, u32>, id: &str) {
    let (key, n) = id.split_once('-').unwrap();
    let expected = next.entry(key.to_owned()).or_default();
    if key != "note" {
        assert_eq!(n.parse(), Ok(*expected), "order of {key}");
    }
    *expected += 1;
}

/// What a bucket holds.
pub(crate) type Held = BTreeMap<String, String>;

pub(crate) async fn state_of(client: &Client, bucket: &str) -> Held {
    let state = client.engine.state();
    let bucket = name(bucket);
    let scanned = state.scan(&bucket, None, None, 0, Credit::items(10_000));
    let scanned = soon("a scan", scanned).await.unwrap();
    assert_eq!(scanned.next, None);
    let entries = scanned.entries.into_iter();
    entries
        .map(|entry| (entry.key.to_string(), text(&entry.value)))
        .collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Watches a bucket; what it learned is in the map.
pub(crate) async fn watching(client: &Client, bucket: &str) -> Arc<Mutex<Held>> {
    let held = Arc::new(Mutex::new(Held::new()));
    let bucket = name(bucket);
    let mut watch = loop {
        match client.engine.state().watch(&bucket, None, 0).await {
            Ok(watch) => break watch,
            Err(error) => assert!(error.retryable(), "{error:?}"),
        }
    };
    let seen = Arc::clone(&held);
    tokio::spawn(async move {
        let mut last = 0;
        let mut forward = |rev| {
            assert!(rev > last, "{rev} came after {last}");
            last = rev;
        };
        loop {
            match watch.next().await {
                Ok(Watched::Put(entry)) => {
                    forward(entry.rev);
                    seen.lock()
                        .insert(entry.key.to_string(), text(&entry.value));
                }
                Ok(Watched::Deleted { key, rev, .. } | Watched::Expired { key, rev, .. }) => {
                    forward(rev);
                    seen.lock().remove(key.as_str());
                }
                Ok(_) => {}
                Err(error) if error.kind() == trunkline::ErrorKind::Closed => return,
                Err(error) => panic!("a watch ends only with its bus: {error:?}"),
            }
        }
    });
    held
}

static WRITERS: AtomicU64 = AtomicU64::new(0);

/// Writes what only the owner of a fence may write, and takes the fence from others.
pub(crate) struct Writer {
    engine: Arc<NatsEngine>,
    bucket: Name,
    id: u64,
    attempts: u64,
    /// What it wrote of its own keys, as far as it was told.
    own: Held,
    won: Vec<u64>,
}

impl Writer {
    pub(crate) async fn new(client: &Client, bucket: &str) -> Self {
        Self {
            engine: Arc::clone(&client.engine),
            bucket: name(bucket),
            id: WRITERS.fetch_add(1, Ordering::Relaxed),
            attempts: 0,
            own: Held::new(),
            won: Vec::new(),
        }
    }

    /// The counter's value and revision.
    async fn counter(&self) -> (u64, Expectation) {
        let counter = key("counter");
        loop {
            let state = self.engine.state();
            let scan = state.scan(&self.bucket, Some(&counter), None, 0, Credit::items(1));
            match soon("a scan", scan).await {
                Ok(found) => {
                    return match found.entries.first() {
                        None => (0, Expectation::Absent),
                        Some(entry) => (
                            text(&entry.value).parse().unwrap(),
                            Expectation::Rev(entry.rev),
                        ),
                    };
                }
                Err(error) => assert!(error.retryable(), "{error:?}"),
            }
        }
    }

    /// Raises the counter by one, with something of its own in the same commit, unless another does.
    pub(crate) async fn write(&mut self) -> bool {
        let (count, expect) = self.counter().await;
        self.attempts += 1;
        let (own, value) = (
            format!("own.{}.{}", self.id, self.attempts % 5),
            self.attempts.to_string(),
        );
        let put = |key: StateKey, value: String, expect| Op::Put {
            key,
            value: value.into(),
            expect,
            ttl: None,
        };
        let spare = key(&format!("spare.{}", self.id));
        let mut ops = vec![
            put(key("counter"), (count + 1).to_string(), expect),
            put(key(&own), value.clone(), Expectation::Any),
        ];
        ops.push(match self.attempts % 2 {
            0 => put(spare, value.clone(), Expectation::Any),
            _ => Op::Delete {
                key: spare,
                expect: Expectation::Any,
            },
        });
        let commit = Commit {
            id: format!("{}-{}-{}", std::process::id(), self.id, self.attempts).into(),
            fences: vec![(key("counter"), expect)],
            ops,
        };
        loop {
            let committing = self.engine.state().commit(&self.bucket, commit.clone());
            match soon("a commit", committing.completed()).await {
                Ok(Committed::Done(_) | Committed::Duplicate) => {
                    self.own.insert(own, value);
                    self.won.push(count + 1);
                    return true;
                }
                Ok(Committed::Conflict { key, .. }) => {
                    assert_eq!(key.as_str(), "counter");
                    return false;
                }
                Err(error) => assert!(error.retryable(), "{error:?}"),
            }
        }
    }

    /// Commits that happened.
    pub(crate) fn won(&self) -> usize {
        self.won.len()
    }
}

/// What they were told is what there is, and each round had one winner.
pub(crate) fn check_writers(writers: &[Writer], held: &Held) {
    let mut rounds = BTreeSet::new();
    for writer in writers {
        for (key, value) in &writer.own {
            assert_eq!(held.get(key), Some(value), "{key} was overwritten or lost");
        }
        for round in &writer.won {
            assert!(rounds.insert(round), "round {round} was won twice");
        }
    }
    let count: u64 = held["counter"].parse().unwrap();
    let last = rounds.last().map_or(0, |round| **round);
    assert!(
        last <= count,
        "round {last} is lost: the counter is {count}"
    );
}
