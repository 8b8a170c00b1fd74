//! Damaged files: a refusal with file and offset, or a counted cut of what had no witness.

use std::collections::BTreeMap;
use std::path::PathBuf;

use trunkline_core::ErrorKind;

use super::world::{Dump, World, open};
use crate::disk::Disk;
use crate::sim::{Fault, Random};

/// A directory with a snapshot, journals since and values; closed if `closed`.
fn directory(seed: u64, closed: bool) -> World {
    let mut world = World::new(seed);
    world.open().unwrap();
    while world.counts.snapshots == 0 || world.random.below(30) > 0 {
        world.step().unwrap();
    }
    for _ in 0..4 {
        world.commit().unwrap();
        world.flush().unwrap();
    }
    if closed {
        let _ = world.journal().close().unwrap();
    }
    world.lose();
    // Older files that a snapshot stands for must be gone, or they would serve in its place.
    world.disk.sync_dir(&world.root.join("state")).unwrap();
    // So that the process before cannot be asked what it had in memory.
    world.disk.crash(seed);
    world
}

/// Opens what is there now, and gives it back as it was.
fn look(
    world: &mut World,
    files: &BTreeMap<PathBuf, Vec<u8>>,
) -> Result<Dump, trunkline_core::Error> {
    let result = world.open().and_then(|()| {
        let journal = world.journal.as_ref().unwrap();
        journal.verify_values().map(|_| ())
    });
    let dump = result.map(|()| world.actual());
    world.lose();
    let now: Vec<PathBuf> = world.disk.files().into_keys().collect();
    for path in now.iter().filter(|path| !files.contains_key(*path)) {
        world.disk.remove(path).unwrap();
    }
    for (path, content) in files {
        world.disk.put(path, content.clone());
    }
    dump
}

#[test]
fn every_flipped_byte_is_refused_with_its_file_or_cut_and_counted() {
    let (mut refused, mut cut, mut unread) = (0, 0, 0);
    for seed in 0..12 {
        let closed = seed % 2 == 0;
        let mut world = directory(seed, closed);
        let files = world.disk.files();
        let whole = look(&mut world, &files).unwrap();
        let last = world
            .boundaries
            .iter()
            .rfind(|end| **end < world.published.len());
        let before = world.expected(&world.published[..*last.unwrap()]);
        let mut random = Random::new(seed);
        for (path, content) in &files {
            let text = path.display().to_string();
            for at in 0..content.len() as u64 {
                // The headers byte by byte, the rest in part.
                if at > 200 && random.below(7) > 0 {
                    continue;
                }
                world.disk.flip(path, at, 1 << random.below(8));
                let cuts = world.counts.cuts;
                match look(&mut world, &files) {
                    Err(error) => {
                        let message = error.message().to_owned();
                        assert!(
                            matches!(error.kind(), ErrorKind::Damaged | ErrorKind::WrongVersion),
                            "{error:?}"
                        );
                        assert!(message.contains(&text), "{text} at {at}: {message}");
                        assert!(
                            error.kind() == ErrorKind::WrongVersion || message.contains("offset"),
                            "{message}"
                        );
                        refused += 1;
                    }
                    Ok(dump) if dump == whole => {
                        cut += u64::from(world.counts.cuts > cuts);
                        unread += 1;
                    }
                    // The last group has no witness, unless the journal was closed.
                    Ok(dump) => {
                        assert!(!closed && text.ends_with("journal"), "{text} at {at}");
                        assert!(dump == before, "{text} at {at}");
                        assert!(world.counts.cuts > cuts);
                        cut += 1;
                    }
                }
            }
        }
    }
    println!("refused {refused}, cut {cut}, unread {unread}");

    assert!(refused > 5_000 && cut > 100 && unread > 1_000);
}

#[test]
fn every_file_that_is_cut_off_or_missing_is_refused_by_name() {
    for seed in 0..12 {
        let mut world = directory(seed, seed % 2 == 0);
        let files = world.disk.files();
        let whole = look(&mut world, &files).unwrap();
        // A file of values that no key has a value in may be missing: opening removes it.
        world.open().unwrap();
        let kept = world.disk.files();
        world.lose();
        look(&mut world, &files).unwrap();
        for (path, content) in files.iter().filter(|(path, _)| kept.contains_key(*path)) {
            let text = path.display().to_string();
            for len in (0..content.len() as u64).filter(|len| *len < 100 || len % 61 == 0) {
                world.disk.truncate(path, len);
                let Err(error) = look(&mut world, &files) else {
                    panic!("{text} cut off at {len} was missed")
                };
                assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}");
                assert!(error.message().contains(&text), "{error}");
                assert!(error.message().contains("offset"), "{error}");
            }
            world.disk.remove(path).unwrap();
            let looked = look(&mut world, &files);
            match looked {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}"),
                Ok(dump) => panic!("{text} was missed by nobody; same: {}", dump == whole),
            }
        }
    }
}

#[test]
fn an_older_snapshot_serves_while_all_its_journals_are_there() {
    let mut served = 0;
    for seed in 0..400 {
        let mut world = World::new(seed);
        world.open().unwrap();
        while world.counts.snapshots == 0 {
            world.step().unwrap();
        }
        // The next snapshot is whole, but what it stands for cannot be removed.
        let mut removed = false;
        for _ in 0..200 {
            if world.counts.snapshots == 1 {
                world.disk.mend();
                world.step().unwrap();
                world.flush().unwrap();
                // The first operations of the end of a snapshot write and sync its last group, write and
                // sync its end, rename it and sync the directory; the one after them removes.
                let names = world.disk.files();
                let making = names
                    .keys()
                    .any(|path| path.to_string_lossy().ends_with("snapshot.tmp"));
                if making && world.random.coin() {
                    world
                        .disk
                        .fault_at(world.disk.operations() + 7, Fault::FailFromHereOn);
                    if world.step().is_err() {
                        removed = true;
                        break;
                    }
                }
            }
        }
        world.disk.mend();
        world.lose();
        world.disk.kill();
        let snapshots: Vec<PathBuf> = world
            .disk
            .files()
            .into_keys()
            .filter(|path| path.extension().is_some_and(|end| end == "snapshot"))
            .collect();
        if !removed || snapshots.len() < 2 {
            continue;
        }
        world.disk.flip(&snapshots[1], 100, 1);
        let (journal, report) = open(&world.disk, &world.root, world.now).unwrap();
        let error = report.damaged_snapshot.unwrap();
        assert!(error.message().contains("offset"), "{error}");
        world.journal = Some(journal);
        let actual = world.actual();
        let mut with = world.published.clone();
        with.extend(world.in_flight.iter().cloned());
        assert!(actual == world.expected(&world.published) || actual == world.expected(&with));
        served += 1;
    }
    println!("served {served}");
    assert!(served > 5);
}
