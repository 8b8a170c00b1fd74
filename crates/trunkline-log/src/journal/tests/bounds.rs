//! Limits, and the answers to those who meet them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trunkline_core::engine::{Commit, Committed, Credit, Expectation, Op, StateKey, Watched};
use trunkline_core::keys::MAX_CHANGES;
use trunkline_core::{ErrorKind, Timestamp};

use super::world::{OPTIONS, World, name, open};
use crate::journal::{Journal, JournalOptions, MAX_BUCKETS, Record};
use crate::sim::SimDisk;

const NOW: Timestamp = Timestamp::from_nanos(1_000_000_000);

fn fresh() -> (SimDisk, Journal) {
    let disk = SimDisk::new(1);
    let (journal, _) = open(&disk, Path::new("/data"), NOW).unwrap();
    (disk, journal)
}

fn key(number: usize) -> StateKey {
    StateKey::new(format!("key.{number}")).unwrap()
}

fn put(id: &str, number: usize, len: usize, ttl: Option<Duration>) -> Commit {
    Commit {
        id: id.into(),
        fences: Vec::new(),
        ops: vec![Op::Put {
            key: key(number),
            value: Bytes::from(vec![7; len]),
            expect: Expectation::Any,
            ttl,
        }],
    }
}

fn delete(id: &str, number: usize) -> Commit {
    Commit {
        id: id.into(),
        fences: Vec::new(),
        ops: vec![Op::Delete {
            key: key(number),
            expect: Expectation::Any,
        }],
    }
}

#[test]
fn a_commit_above_a_limit_is_refused_and_stages_nothing() {
    let (_, mut journal) = fresh();
    let bucket = name("one");
    let ops: Vec<Op> = (0..9)
        .flat_map(|number| put("", number, 1, None).ops)
        .collect();
    let twice = [put("", 1, 1, None).ops, put("", 1, 2, None).ops].concat();
    let commit = |id: &str, ops| Commit {
        id: id.into(),
        fences: Vec::new(),
        ops,
    };
    for (commit, kind, fault) in [
        (commit("a", ops), ErrorKind::OverLimit, "9 changes"),
        (commit("a", twice), ErrorKind::InvalidConfig, "twice"),
        (put("a", 1, 901, None), ErrorKind::TooLarge, "901 bytes"),
        (
            put(&"a".repeat(600), 1, 1, None),
            ErrorKind::OverLimit,
            "600",
        ),
    ] {
        let error = journal.commit(&bucket, commit, NOW).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(fault), "{error}");
    }
    for number in 0..MAX_BUCKETS {
        journal
            .state()
            .bucket(&name(&format!("b{number}")))
            .unwrap();
    }
    let error = journal
        .commit(&bucket, put("a", 1, 1, None), NOW)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OverLimit);
    assert_eq!((journal.staged_bytes(), journal.staged.len()), (0, 0));
}

#[test]
fn a_group_that_is_full_is_written_and_then_there_is_room() {
    let (_, mut journal) = fresh();
    let bucket = name("one");
    let mut refused = 0;
    for number in 0..200 {
        let id = format!("c{number}");
        if let Err(error) = journal.commit(&bucket, put(&id, number, 60, None), NOW) {
            assert_eq!(error.kind(), ErrorKind::OverLimit);
            assert!(error.message().contains("write them first"), "{error}");
            refused += 1;
            let _ = journal.flush().unwrap();
            journal
                .commit(&bucket, put(&id, number, 60, None), NOW)
                .unwrap();
        }
    }
    assert!(refused > 5);
    let _ = journal.flush().unwrap();
    assert_eq!(journal.state().bucket(&bucket).unwrap().read().len(), 200);
}

#[test]
fn keys_that_would_take_too_much_memory_are_refused_until_some_are_removed() {
    let disk = SimDisk::new(1);
    let options = JournalOptions {
        state_bytes: 20_000,
        ..OPTIONS
    };
    let open = |now| Journal::open(Arc::new(disk.clone()), Path::new("/data"), options, now);
    let (mut journal, _) = open(NOW).unwrap();
    let bucket = name("one");
    let fill = |journal: &mut Journal, now, turn: &str| {
        (0..)
            .find_map(|number| {
                let id = format!("{turn}{number}");
                let result = journal.commit(&bucket, put(&id, number, 50, None), now);
                let _ = journal.flush().unwrap();
                Some((number, result.err()?))
            })
            .unwrap()
    };
    let (keys, error) = fill(&mut journal, NOW, "a");
    assert_eq!(error.kind(), ErrorKind::OverQuota);
    assert!(
        error.retryable() && error.message().contains("20000 bytes"),
        "{error}"
    );
    assert!(keys > 30 && journal.state().bytes() <= 20_000, "{keys}");
    // What replaces or removes is not refused, and what a commit remembers is given back in time.
    journal.commit(&bucket, delete("d1", 1), NOW).unwrap();
    journal.commit(&bucket, delete("d2", 2), NOW).unwrap();
    let _ = journal.flush().unwrap();
    journal
        .commit(&bucket, put("again", 1, 50, None), NOW)
        .unwrap();
    let _ = journal.flush().unwrap();
    let bytes = journal.state().bytes();
    drop(journal);
    let (mut journal, _) = open(NOW).unwrap();
    assert_eq!(
        journal.state().bytes(),
        bytes,
        "the same after it was opened again"
    );
    let later = NOW.plus(Duration::from_secs(600));
    for number in 0..keys {
        journal
            .commit(&bucket, delete(&format!("x{number}"), number), later)
            .unwrap();
        let _ = journal.flush().unwrap();
    }
    let (again, _) = fill(&mut journal, later.plus(Duration::from_secs(600)), "b");
    assert!(again >= keys);
}

#[test]
fn a_disk_that_is_full_refuses_and_goes_on_when_there_is_room() {
    let (disk, mut journal) = fresh();
    let bucket = name("one");
    let mut written = 0;
    disk.set_capacity(Some(disk.used() + 9_000));
    let error = loop {
        let commit = put(&format!("c{written}"), written, 800, None);
        match journal.commit(&bucket, commit, NOW) {
            Ok(_) => {
                let _ = journal.flush().unwrap();
                written += 1;
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::OverQuota, "{error:?}");
    assert!(written >= 4 && journal.staged.is_empty());
    // What needs no room of its own goes on.
    journal
        .commit(&bucket, put("small", 0, 3, None), NOW)
        .unwrap();
    let _ = journal.flush().unwrap();
    disk.set_capacity(None);
    journal
        .commit(&bucket, put("large", written, 800, None), NOW)
        .unwrap();
    let _ = journal.flush().unwrap();
    drop(journal);
    disk.crash(4);
    let (journal, _) = open(&disk, Path::new("/data"), NOW).unwrap();
    assert_eq!(
        journal.state().bucket(&bucket).unwrap().read().len(),
        written + 1
    );
}

#[test]
fn dead_values_give_their_room_back_and_live_ones_stay() {
    let (disk, mut journal) = fresh();
    let bucket = name("one");
    let room = |disk: &SimDisk| {
        let files = disk.files();
        let values = files
            .keys()
            .filter(|path| path.to_string_lossy().ends_with(".values"));
        values.count()
    };
    for number in 0..100 {
        journal
            .commit(&bucket, put(&format!("c{number}"), number, 800, None), NOW)
            .unwrap();
        let _ = journal.flush().unwrap();
    }
    let full = room(&disk);
    for number in (0..100).filter(|number| number % 10 != 0) {
        journal
            .commit(&bucket, delete(&format!("d{number}"), number), NOW)
            .unwrap();
        let _ = journal.flush().unwrap();
    }
    while journal.compact(NOW).unwrap() {
        let _ = journal.flush().unwrap();
    }
    // A watch from before is told what is there still, from where it is now, and every removal.
    let (keys, mut seen) = (journal.state().bucket(&bucket).unwrap(), 0);
    let (mut puts, mut removals) = (0, 0);
    while let Some(watched) = journal.state().changed(&keys, None, &mut seen).unwrap() {
        match watched {
            Watched::Put(entry) => {
                assert_eq!(entry.value, vec![7; 800]);
                puts += 1;
            }
            Watched::Deleted { .. } => removals += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(
        (10..20).contains(&puts) && removals == 90,
        "{puts} {removals}"
    );
    assert!(full >= 20 && room(&disk) <= 4, "{full} {}", room(&disk));
    assert_eq!(journal.verify_values().unwrap(), 10);
    let _ = journal.close().unwrap();
    disk.crash(2);
    let (journal, _) = open(&disk, Path::new("/data"), NOW).unwrap();
    let page = journal
        .state()
        .scan(&bucket, None, None, Credit::items(100))
        .unwrap();
    assert_eq!(page.entries.len(), 10);
    assert!(page.entries.iter().all(|entry| entry.value == vec![7; 800]));
}

#[test]
fn an_expired_key_keeps_its_revision_when_the_clock_goes_back() {
    let (disk, mut journal) = fresh();
    let bucket = name("one");
    journal
        .commit(&bucket, put("a", 1, 3, Some(Duration::from_secs(5))), NOW)
        .unwrap();
    let _ = journal.flush().unwrap();
    let end = NOW.plus(Duration::from_secs(5));
    assert_eq!(journal.state().next_end(), Some(end));
    assert_eq!(journal.expire(NOW).unwrap(), 0);
    assert_eq!(journal.expire(end).unwrap(), 1);
    let _ = journal.flush().unwrap();
    drop(journal);
    disk.crash(1);
    let (mut journal, _) = open(&disk, Path::new("/data"), NOW).unwrap();
    assert_eq!(journal.state().bucket(&bucket).unwrap().read().rev(), 2);
    let again = journal.commit(&bucket, put("b", 1, 3, None), NOW).unwrap();
    assert_eq!(again, Committed::Done(vec![3]));
}

#[test]
fn a_watch_from_before_what_is_kept_is_told_after_a_restart_too() {
    let mut world = World::new(1);
    world.open().unwrap();
    while world.counts.snapshots == 0 {
        world.step().unwrap();
    }
    world.flush().unwrap();
    world.lose();
    world.disk.kill();
    world.open().unwrap();
    let buckets = world.journal().state().buckets();
    let (bucket, keys) = buckets
        .iter()
        .find(|(_, keys)| keys.read().rev() > 3)
        .unwrap();
    let keys = keys.read();
    assert!(keys.rev() < MAX_CHANGES as u64, "{bucket}");
    let error = keys.changed(None, &mut 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(keys.changed(None, &mut keys.rev()).unwrap(), None);
}

#[test]
fn what_is_staged_out_of_turn_is_refused() {
    let (_, mut journal) = fresh();
    let bucket = name("one");
    journal.commit(&bucket, put("a", 1, 3, None), NOW).unwrap();
    assert_eq!(
        journal.begin_snapshot(NOW).unwrap_err().kind(),
        ErrorKind::Internal
    );
    journal.write().unwrap();
    let error = journal
        .commit(&bucket, put("b", 1, 3, None), NOW)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    // Written, but neither synced nor published: readers do not see it.
    assert_eq!(journal.publish().unwrap().records, 0);
    assert!(journal.state().bucket(&bucket).unwrap().read().is_empty());
    journal.sync().unwrap();
    assert_eq!(
        journal.publish().unwrap().buckets,
        std::slice::from_ref(&bucket)
    );
    assert_eq!(journal.state().bucket(&bucket).unwrap().read().len(), 1);
    let keys = Record::Bucket { bucket, rev: 3 };
    assert_eq!(
        journal.stage(keys, NOW).unwrap_err().kind(),
        ErrorKind::Internal
    );
}
