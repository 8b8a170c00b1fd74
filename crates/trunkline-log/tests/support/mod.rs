//! What the tests of streams share.
#![allow(dead_code, reason = "each test uses some of it")]

pub(crate) mod engine;
pub(crate) mod known;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trunkline_core::engine::{Append, Credit, Expect, Retention, Seq, StoredEvent, StreamSpec};
use trunkline_core::wire::Body;
use trunkline_core::{EventId, Filter, Headers, Name, Result, Subject, Timestamp};
use trunkline_log::Selection;
use trunkline_log::sim::{Random, SimDisk};
use trunkline_log::stream::{Options, Reader, Report, Stream};

pub(crate) const DIR: &str = "/data/streams/orders";
pub(crate) const SECOND: i64 = 1_000_000_000;

pub(crate) fn time(seconds: i64) -> Timestamp {
    Timestamp::from_nanos(seconds * SECOND)
}

pub(crate) fn spec(retention: Retention) -> StreamSpec {
    StreamSpec {
        name: Name::new("orders").unwrap(),
        subjects: vec![Filter::new("s.>").unwrap()],
        retention,
        max_events: None,
        max_bytes: None,
        max_age: None,
        max_message: 1 << 20,
        duplicate_window: Duration::from_secs(10),
        replicas: 1,
        metadata: BTreeMap::new(),
    }
}

/// Segments and groups so small that a test fills many of them.
pub(crate) fn options(seed: u64) -> Options {
    Options {
        segment_bytes: 8 << 10,
        group_bytes: 600,
        cache_bytes: 20 << 10,
        max_ids: 3_000,
        seed: Some(seed),
    }
}

pub(crate) fn create(
    disk: &SimDisk,
    spec: StreamSpec,
    seed: u64,
    now: Timestamp,
) -> Result<Stream> {
    Stream::create(
        Arc::new(disk.clone()),
        Path::new(DIR),
        spec,
        options(seed),
        now,
    )
    .map(|(stream, _)| stream)
}

pub(crate) fn open(
    disk: &SimDisk,
    spec: StreamSpec,
    seed: u64,
    now: Timestamp,
) -> Result<(Stream, Report)> {
    Stream::open(
        Arc::new(disk.clone()),
        Path::new(DIR),
        spec,
        options(seed),
        now,
    )
}

pub(crate) fn subject(number: u64) -> Subject {
    // Some short, some long, with prefixes of one another.
    let texts = [
        "s.a",
        "s.a.b",
        "s.a.c",
        "s.b",
        "s.long.subject.that.does.not.fit.inline.anywhere",
        "s.b.x.y",
        "s.rare",
    ];
    Subject::new(texts[usize::try_from(number).unwrap() % texts.len()]).unwrap()
}

pub(crate) fn append(subject: Subject, body: Vec<u8>) -> Append {
    Append {
        subject,
        key: None,
        id: None,
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Bytes(Bytes::from(body)),
    }
}

pub(crate) fn id(number: u64) -> EventId {
    EventId::new(format!("event-{number}")).unwrap()
}

/// A body that says whose it is, and in every part of it.
pub(crate) fn body(number: u64, random: &mut Random) -> Vec<u8> {
    let len = match random.below(8) {
        0 => 0,
        7 => 8 * random.index(120),
        _ => 8 * random.index(12),
    };
    number.to_le_bytes().repeat(len / 8 + 1)
}

/// Everything from the first to the tail, page by page.
pub(crate) fn read_all(reader: &Reader, selection: &Selection) -> Result<Vec<StoredEvent>> {
    let (mut all, mut next): (Vec<StoredEvent>, Seq) = (Vec::new(), 0);
    while next < reader.standing().tail {
        let credit = Credit {
            items: 100,
            bytes: 4_000,
        };
        let at = reader.read(next, selection, credit, &mut all)?;
        assert!(at > next, "reading stands still at {next}");
        next = at;
    }
    Ok(all)
}
