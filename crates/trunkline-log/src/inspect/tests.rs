//! Directories on a simulated disk, damaged in every way.

mod damage;
mod fuzz;
mod mending;
mod unsynced;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smol_str::SmolStr;
use trunkline_core::engine::{
    Append, AppendMode, Bucket, Commit, ConsumerRef, ConsumerSpec, Credit, Expect, Expectation,
    Limits, Op, Position, Retention, Seq, StateKey, StreamSpec,
};
use trunkline_core::wire::Body;
use trunkline_core::{EventId, Filter, Headers, Name, Subject, Timestamp};

use super::{Directory, Verification};
use crate::frame::{FILE_HEADER_LEN, FileHeader, FileKind, GROUP_HEADER_LEN, SEALING, Walk};
use crate::journal::{Journal, JournalOptions, Record, Value};
use crate::selection::Selection;
use crate::sim::{Random, SimDisk};
use crate::stream::{Options, Stream};
use crate::{Disk, Open};

const ROOT: &str = "/log";
const EVENTS: u64 = 150;
const OPTIONS: JournalOptions = JournalOptions {
    file_bytes: 5 << 10,
    group_bytes: 2 << 10,
    snapshot_bytes: 1 << 10,
    value_file_bytes: 4 << 10,
    inline_bytes: 64,
    state_bytes: 1 << 20,
    limits: Limits {
        max_message: 1 << 20,
        max_batch: 8,
        max_value: 900,
    },
};

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_nanos(seconds * 1_000_000_000)
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn spec() -> StreamSpec {
    StreamSpec {
        name: name("orders"),
        subjects: vec![Filter::new("s.>").unwrap()],
        retention: Retention::DiscardOld,
        max_events: None,
        max_bytes: None,
        max_age: None,
        max_message: 1 << 20,
        duplicate_window: Duration::from_secs(120),
        replicas: 1,
        metadata: BTreeMap::new(),
    }
}

fn consumer() -> ConsumerRef {
    ConsumerRef {
        stream: name("orders"),
        consumer: name("billing"),
    }
}

fn stream_dir() -> PathBuf {
    Path::new(ROOT).join("streams/orders")
}

fn options(seed: u64) -> Options {
    Options {
        segment_bytes: 8 << 10,
        group_bytes: 600,
        cache_bytes: 20 << 10,
        max_ids: 3_000,
        seed: Some(seed),
    }
}

/// What was put in, by sequence: subject and body.
type Written = BTreeMap<Seq, (String, Vec<u8>)>;

/// A directory with a snapshot, journals, values, several segments and holes in them, closed cleanly or
/// left as a crash leaves it.
fn written(seed: u64, is_closed: bool) -> (SimDisk, Written) {
    let disk = SimDisk::new(seed);
    disk.put(
        &Path::new(ROOT).join("FORMAT"),
        crate::format::write(u128::from(seed)).into_bytes(),
    );
    let mut random = Random::new(seed);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut journal, _) =
        Journal::open(Arc::clone(&shared), Path::new(ROOT), OPTIONS, time(0)).unwrap();
    let stored = vec![Filter::new("s.>").unwrap()];
    let stream = Record::Stream {
        spec: spec(),
        stored,
    };
    journal.stage(stream, time(0)).unwrap();
    let consumer_spec = ConsumerSpec {
        at: consumer(),
        filters: vec![Filter::new("s.>").unwrap()],
        start: Position::First,
        ack_wait: Duration::from_secs(30),
        max_in_flight: 100,
    };
    let made = Record::Consumer {
        spec: consumer_spec,
        next: 1,
    };
    journal.stage(made, time(0)).unwrap();
    drop(journal.flush().unwrap());
    commits(&mut journal, 0..30, &mut random);
    let job = journal.begin_snapshot(time(1)).unwrap();
    let result = job.run();
    journal.end_snapshot(result).unwrap();
    commits(&mut journal, 30..45, &mut random);
    for settled in [(1, 10), (14, 20)] {
        let settled = Record::Settled {
            at: consumer(),
            stretches: vec![settled],
            lost: 0,
        };
        journal.stage(settled, time(2)).unwrap();
        drop(journal.flush().unwrap());
    }
    let (mut stream, _) =
        Stream::create(shared, &stream_dir(), spec(), options(seed), time(0)).unwrap();
    let mut events = Written::new();
    let mut number = 0;
    while number < EVENTS {
        let count = (1 + random.below(5)).min(EVENTS - number);
        let mut batch = Vec::new();
        for _ in 0..count {
            number += 1;
            let subject = format!("s.{}", random.below(4));
            let body = number.to_le_bytes().repeat(1 + random.index(30));
            events.insert(number, (subject.clone(), body.clone()));
            batch.push(Ok(Append {
                subject: Subject::new(&subject).unwrap(),
                key: None,
                id: random
                    .coin()
                    .then(|| EventId::new(format!("event-{number}")).unwrap()),
                expect: Expect::Any,
                headers: Headers::new(),
                body: Body::Bytes(Bytes::from(body)),
            }));
        }
        let now = time(i64::try_from(number).unwrap());
        stream.stage(now, batch, AppendMode::Each).unwrap();
        if number > 70 && events.contains_key(&33) {
            for seq in [33, 34, 60] {
                events.remove(&seq);
            }
            stream.stage_settled(now, &[33, 34, 60]).unwrap();
        }
        stream.commit().unwrap();
    }
    if is_closed {
        stream.close().unwrap();
        drop(journal.close().unwrap());
    }
    (copy_of(&disk), events)
}

fn commits(journal: &mut Journal, numbers: std::ops::Range<u64>, random: &mut Random) {
    for number in numbers {
        let long = random.below(4) == 0;
        let len = if long { 100 + random.index(200) } else { 20 };
        let put = Op::Put {
            key: StateKey::new(format!("key-{}", number % 12)).unwrap(),
            value: Bytes::from(vec![number as u8; len]),
            expect: Expectation::Any,
            ttl: None,
        };
        let commit = Commit {
            id: SmolStr::from(format!("commit-{number}")),
            fences: Vec::new(),
            ops: vec![put],
        };
        let bucket = Bucket::new(if number.is_multiple_of(3) {
            "locks"
        } else {
            "config"
        })
        .unwrap();
        let now = time(i64::try_from(number).unwrap());
        journal.commit(&bucket, commit, now).unwrap();
        drop(journal.flush().unwrap());
    }
}

/// The same files on a disk of their own.
fn copy_of(disk: &SimDisk) -> SimDisk {
    let copy = SimDisk::new(1);
    for (path, content) in disk.files() {
        copy.put(&path, content);
    }
    copy
}

fn directory(disk: &SimDisk) -> Directory {
    Directory::on(Arc::new(disk.clone()), ROOT).unwrap()
}

fn verify(disk: &SimDisk) -> Verification {
    let before = disk.files();
    let operations = disk.operations();
    let found = directory(disk).verify(&mut |_| {}).unwrap();
    assert_eq!(disk.operations(), operations, "verify changes nothing");
    assert!(before == disk.files(), "verify changes nothing");
    found
}

/// Everything that can be read of the stream by whoever opens it.
fn read_all(disk: &SimDisk) -> Written {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (stream, report) =
        Stream::open(shared, &stream_dir(), spec(), options(9), time(1_000)).unwrap();
    assert_eq!(report.cut_groups, 0);
    let reader = stream.reader();
    let (mut all, mut next) = (Vec::new(), 0);
    while next < reader.standing().tail {
        next = reader
            .read(next, &Selection::All, Credit::items(50), &mut all)
            .unwrap();
    }
    assert_eq!(reader.standing().events, all.len() as u64);
    let bytes: u64 = reader.standing().bytes;
    let event = |event: trunkline_core::engine::StoredEvent| {
        let body = event.body.to_bytes().unwrap().to_vec();
        (event.seq, (event.subject.to_string(), body))
    };
    let all: Written = all.into_iter().map(event).collect();
    // Whatever is removed later must not come out below nothing.
    let least: u64 = all
        .values()
        .map(|(subject, body)| (subject.len() + body.len() + 6) as u64)
        .sum();
    assert!(
        bytes >= least,
        "{bytes} bytes are said, and {least} are there"
    );
    all
}

/// The parts of a file that mean something: everything else may be anything.
fn used(disk: &SimDisk, path: &Path) -> Vec<(u64, u64)> {
    let file = disk.open(path, Open::Read).unwrap();
    let len = file.len().unwrap();
    let kind = match path.extension().and_then(|end| end.to_str()) {
        Some("seg") => FileKind::Segment,
        Some("idx") => FileKind::Index,
        Some("journal") => FileKind::Journal,
        Some("snapshot") => FileKind::Snapshot,
        Some("values") => FileKind::Values,
        _ => return vec![(0, len)],
    };
    let header = FileHeader::read(&*file, path, kind).unwrap();
    if kind == FileKind::Values {
        let shared: Arc<dyn Disk> = Arc::new(copy_of(disk));
        let (journal, _) = Journal::open(shared, Path::new(ROOT), OPTIONS, time(99)).unwrap();
        let mut parts = vec![(0, FILE_HEADER_LEN)];
        for (_, keys) in journal.state().buckets() {
            for (_, kept) in keys.read().after(None) {
                if let Value::Stored(place) = kept.value
                    && place.file == header.base
                {
                    parts.push((place.offset, place.offset + u64::from(place.len)));
                }
            }
        }
        return parts;
    }
    let mut walk = Walk::new(&*file, path, header.file_id, FILE_HEADER_LEN, len);
    let mut is_sealed = false;
    while let Some(group) = walk.next_group().unwrap() {
        is_sealed |= group.header.flags & SEALING != 0;
    }
    let zeros = match kind {
        FileKind::Segment | FileKind::Journal if !is_sealed => GROUP_HEADER_LEN as u64,
        _ => 0,
    };
    vec![(0, (walk.offset() + zeros).min(len))]
}

#[test]
fn a_sound_directory_has_nothing_wrong_and_its_numbers_are_right() {
    for seed in 0..6 {
        for is_closed in [true, false] {
            let (disk, events) = written(seed, is_closed);
            let found = verify(&disk);
            assert_eq!(found.findings, [], "{seed} {is_closed}");
            assert!(found.files > 8, "{}", found.files);
            let stats = directory(&disk).stats().unwrap();
            let standing = stats.streams[0].standing.unwrap();
            assert_eq!(standing.events, events.len() as u64);
            assert_eq!((standing.first, standing.tail), (1, EVENTS + 1));
            assert!(standing.segments > 2);
            let consumer = &stats.consumers[0];
            assert_eq!((consumer.floor, consumer.highest), (10, 20));
            assert_eq!(consumer.waiting, Some(3), "11, 12 and 13");
            assert_eq!(consumer.pending, Some(events.len() as u64 - 17));
            let buckets: Vec<_> = stats.buckets.iter().map(|of| of.name.as_str()).collect();
            assert_eq!(buckets, ["config", "locks"]);
            assert!(stats.journal.snapshot.is_some() && stats.journal.since_bytes > 0);
            assert!(stats.journal.problems.is_empty());
        }
    }
}
