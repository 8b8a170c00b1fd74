//! What the tests of the engine share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smol_str::SmolStr;
use trunkline_core::engine::{
    Append, AppendMode, Batch, Change, Commit, Committed, ConsumerRef, ConsumerSpec, Credit,
    Delivery, Engine, Expect, Expectation, Op, Outcome, Position, Retention, Seq, StateKey,
    StreamSpec, Token,
};
use trunkline_core::wire::Body;
use trunkline_core::{Filter, Headers, Name, Result, Subject, SystemClock};
use trunkline_log::sim::{Random, SimDisk};
use trunkline_log::{LogEngine, LogOptions, SyncPolicy};

const DIR: &str = "/data";
/// For what must happen sooner or later.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(30);

pub(crate) fn open(disk: &SimDisk, sync: SyncPolicy) -> Result<LogEngine> {
    let options = LogOptions {
        segment_bytes: 64 << 10,
        sync: Some(sync),
        ..LogOptions::new(DIR)
    };
    LogEngine::simulated(disk, &options, Arc::new(SystemClock))
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn work(stream: &Name) -> ConsumerRef {
    ConsumerRef {
        stream: stream.clone(),
        consumer: name("work"),
    }
}

/// Takes up to four of what is held, by chance.
pub(crate) fn some_of(held: &mut Vec<Delivery>, random: &mut Random) -> Vec<Token> {
    let mut taken = Vec::new();
    held.retain(|delivery| {
        let keep = taken.len() >= 4 || random.coin();
        if !keep {
            taken.push(delivery.token);
        }
        keep
    });
    taken
}

pub(crate) async fn make(engine: &LogEngine, stream: &Name, retention: Retention) {
    let spec = StreamSpec {
        retention,
        ..StreamSpec::new(
            stream.clone(),
            vec![Filter::new(format!("{stream}.>")).unwrap()],
        )
    };
    let changes = vec![
        Change::CreateStream(spec),
        Change::CreateConsumer(consumer(stream)),
    ];
    engine.topology().apply(changes).await.unwrap();
}

/// One that gets everything from the first event on.
pub(crate) fn consumer(stream: &Name) -> ConsumerSpec {
    ConsumerSpec {
        at: work(stream),
        filters: vec![Filter::all()],
        start: Position::First,
        ack_wait: Duration::from_secs(600),
        max_in_flight: 100_000,
    }
}

pub(crate) fn item(stream: &Name, body: &Bytes) -> Append {
    Append {
        subject: Subject::new(format!("{stream}.a")).unwrap(),
        key: None,
        id: None,
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Bytes(body.clone()),
    }
}

pub(crate) async fn append(
    engine: &LogEngine,
    stream: &Name,
    bodies: &[Bytes],
) -> Result<Vec<Seq>> {
    let batch: Batch<Append> = bodies.iter().map(|body| item(stream, body)).collect();
    let appended = engine.log().append(stream, batch, AppendMode::Each);
    let outcomes = appended.completed().await?.into_iter();
    let seq = |outcome| match outcome {
        Outcome::Stored { seq, .. } => Ok(seq),
        Outcome::Refused(error) | Outcome::Unknown(error) => Err(error),
    };
    outcomes.map(seq).collect()
}

pub(crate) async fn events(engine: &LogEngine, stream: &Name) -> BTreeMap<Seq, Bytes> {
    let (mut found, mut from) = (BTreeMap::new(), Position::First);
    loop {
        let page = engine
            .log()
            .read(stream, from, &[Filter::all()], Credit::items(1_000))
            .await
            .unwrap();
        for event in &page.events {
            found.insert(event.seq, event.body.to_bytes().unwrap());
        }
        from = Position::Seq(page.next);
        if page.next >= page.tail {
            return found;
        }
    }
}

pub(crate) async fn commit(engine: &LogEngine, value: u64) -> Result<Committed> {
    let commit = Commit {
        id: SmolStr::from(value.to_string()),
        fences: Vec::new(),
        ops: vec![Op::Put {
            key: StateKey::new("key").unwrap(),
            value: Bytes::from(value.to_string()),
            expect: Expectation::Any,
            ttl: None,
        }],
    };
    engine
        .state()
        .commit(&name("keys"), commit)
        .completed()
        .await
}

pub(crate) async fn committed(engine: &LogEngine) -> Option<u64> {
    let all = Credit::items(10);
    let bucket = name("keys");
    let scan = engine.state().scan(&bucket, None, None, 0, all);
    let entries = scan.await.unwrap().entries;
    let entry = entries.into_iter().next()?;
    String::from_utf8(entry.value.to_vec())
        .unwrap()
        .parse()
        .ok()
}
