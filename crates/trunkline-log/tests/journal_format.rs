//! The journal's files of every version that was released can be read, and hold what they held.
//!
//! To write the fixtures of a new version, run this with `TRUNKLINE_WRITE_FIXTURES=1`; those of a
//! released version never change.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trunkline_core::engine::{
    Commit, Committed, ConsumerRef, ConsumerSpec, Credit, Expectation, Op, Position, StateKey,
    StreamSpec,
};
use trunkline_core::{Filter, Name, Timestamp};
use trunkline_log::journal::{Journal, JournalOptions, Record};
use trunkline_log::sim::SimDisk;

const NOW: Timestamp = Timestamp::from_nanos(1_700_000_000_000_000_000);

fn options() -> JournalOptions {
    JournalOptions {
        file_bytes: 2 << 10,
        group_bytes: 1 << 10,
        value_file_bytes: 1 << 10,
        inline_bytes: 64,
        ..JournalOptions::default()
    }
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal-1")
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn key(text: &str) -> StateKey {
    StateKey::new(text).unwrap()
}

fn put(text: &str, value: Vec<u8>, ttl: Option<Duration>) -> Op {
    Op::Put {
        key: key(text),
        value: value.into(),
        expect: Expectation::Any,
        ttl,
    }
}

fn commit(journal: &mut Journal, id: &str, ops: Vec<Op>) -> Committed {
    let commit = Commit {
        id: id.into(),
        fences: Vec::new(),
        ops,
    };
    let committed = journal.commit(&name("trunkline"), commit, NOW).unwrap();
    let _ = journal.flush().unwrap();
    committed
}

fn stream() -> StreamSpec {
    StreamSpec {
        max_events: Some(1_000_000),
        max_bytes: Some(1 << 40),
        ..StreamSpec::new(name("EVENTS"), vec![Filter::new("events.>").unwrap()])
    }
}

fn consumer() -> ConsumerSpec {
    ConsumerSpec {
        at: ConsumerRef {
            stream: name("EVENTS"),
            consumer: name("billing"),
        },
        filters: vec![Filter::new("events.order.*").unwrap()],
        start: Position::Time(Timestamp::from_nanos(-5)),
        ack_wait: Duration::from_millis(30_500),
        max_in_flight: 1_000,
    }
}

/// What the fixtures of version 1 were made of.
fn write(journal: &mut Journal) {
    let former = Filter::new("former.*").unwrap();
    let stored = vec![stream().subjects[0].clone(), former];
    let spec = stream();
    journal.stage(Record::Stream { spec, stored }, NOW).unwrap();
    let spec = consumer();
    journal
        .stage(Record::Consumer { spec, next: 17 }, NOW)
        .unwrap();
    let _ = journal.flush().unwrap();
    commit(journal, "first", vec![put("owner.a", b"me".to_vec(), None)]);
    let large = put("side.1", vec![0xab; 100], None);
    commit(journal, "second", vec![large, put("gone", vec![1], None)]);
    let mut job = journal.begin_snapshot(NOW).unwrap();
    let snapshot = loop {
        if let Some(snapshot) = job.step().unwrap() {
            break snapshot;
        }
    };
    journal.end_snapshot(Ok(snapshot)).unwrap();
    let settled = Record::Settled {
        at: consumer().at,
        stretches: vec![(1, 20), (25, 30)],
        lost: 3,
    };
    journal.stage(settled, NOW).unwrap();
    let delete = Op::Delete {
        key: key("gone"),
        expect: Expectation::Rev(3),
    };
    let hour = Some(Duration::from_secs(3_600));
    commit(journal, "third", vec![delete, put("lease.b", vec![], hour)]);
    let _ = journal.close().unwrap();
}

#[test]
fn files_of_version_1_are_read() {
    let root = Path::new("/data");
    let disk = SimDisk::new(1);
    let open = |now| Journal::open(Arc::new(disk.clone()), root, options(), now).unwrap();
    if std::env::var_os("TRUNKLINE_WRITE_FIXTURES").is_some() {
        write(&mut open(NOW).0);
        let _ = fs::remove_dir_all(fixture());
        for (path, content) in disk.files() {
            let path = fixture().join(path.strip_prefix(root).unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }
    let mut files = 0;
    for dir in ["state", "state/values"] {
        for entry in fs::read_dir(fixture().join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let to = root.join(dir).join(path.file_name().unwrap());
                disk.put(&to, fs::read(path).unwrap());
                files += 1;
            }
        }
    }
    assert_eq!(
        files, 3,
        "a snapshot, the journal since, and a file of values"
    );

    let (mut journal, report) = open(NOW.plus(Duration::from_secs(60)));
    assert_eq!(
        (report.snapshot, report.records, report.cut_groups),
        (Some(2), 2, 0)
    );
    let topology = journal.state().topology();
    let known = &topology.streams[&name("EVENTS")];
    assert_eq!((&known.spec, known.stored.len()), (&stream(), 2));
    assert_eq!(known.stored[1].as_str(), "former.*");
    let known = &topology.consumers[&(name("EVENTS"), name("billing"))];
    assert_eq!(
        (&known.spec, known.lost, known.settled.floor()),
        (&consumer(), 3, 20)
    );
    assert!(known.settled.above().eq([(25, 30)]));
    let page = journal
        .state()
        .scan(&name("trunkline"), None, None, Credit::items(10))
        .unwrap();
    let found: Vec<_> = page
        .entries
        .iter()
        .map(|entry| (entry.key.as_str(), entry.value.clone(), entry.rev, entry.at))
        .collect();
    assert_eq!(
        found,
        [
            ("lease.b", Bytes::new(), 5, NOW),
            ("owner.a", Bytes::from_static(b"me"), 1, NOW),
            ("side.1", Bytes::from(vec![0xab; 100]), 2, NOW),
        ]
    );
    assert_eq!(page.rev, 5);
    assert_eq!(
        journal.state().next_end(),
        Some(NOW.plus(Duration::from_secs(3_600)))
    );
    // Commits of the snapshot and of the journal are known still.
    for id in ["first", "third"] {
        assert_eq!(commit(&mut journal, id, Vec::new()), Committed::Duplicate);
    }
}
