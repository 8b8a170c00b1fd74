//! Whatever is damaged after a clean close: either all is as it was, or the stream says with file and
//! offset why it is not.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps in vain")]

mod support;

use std::path::{Path, PathBuf};

use support::known::{Known, begin};
use support::{DIR, open, read_all, subject, time};
use trunkline_core::ErrorKind;
use trunkline_log::sim::{Random, SimDisk};
use trunkline_log::{Disk, Selection};

/// A stream with several sealed segments, closed cleanly.
fn closed(seed: u64) -> (SimDisk, Known) {
    let (disk, mut known, mut random) = begin(seed);
    known.spec.max_events = None;
    let (mut stream, _) = open(&disk, known.spec.clone(), seed, time(0)).unwrap();
    for _ in 0..60 {
        known.commit(&mut stream, &mut random).unwrap();
    }
    stream.close().unwrap();
    (disk, known)
}

fn files(disk: &SimDisk) -> Vec<(PathBuf, Vec<u8>)> {
    let files = disk.files().into_iter();
    files.filter(|(path, _)| path.starts_with(DIR)).collect()
}

/// Opens and reads everything; either all is as it was, or the error says where.
fn all_or_named(disk: &SimDisk, known: &Known, damaged: &Path, context: &str) -> bool {
    let result =
        open(disk, known.spec.clone(), 77, time(known.now)).and_then(|(stream, report)| {
            // The closing group itself, or the zeros after it.
            assert!(report.cut_groups <= 1, "{context}");
            assert_eq!(stream.tail(), known.acknowledged, "{context}");
            let all = read_all(&stream.reader(), &Selection::All)?;
            for number in 0..7 {
                let of = Selection::Subjects(vec![subject(number)]);
                let found = read_all(&stream.reader(), &of)?;
                let expected = all.iter().filter(|event| event.subject == subject(number));
                assert!(
                    found
                        .iter()
                        .map(|event| event.seq)
                        .eq(expected.map(|event| event.seq)),
                    "{context}"
                );
            }
            Ok(all)
        });
    match result {
        Ok(all) => {
            assert!(
                all.iter().map(|event| event.seq).eq(known.live()),
                "{context}"
            );
            for event in &all {
                let (subject, body) = &known.tried[&event.seq];
                assert_eq!(
                    (&event.subject, &event.body.to_bytes().unwrap()[..]),
                    (subject, &body[..]),
                    "{context}"
                );
            }
            true
        }
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::Damaged | ErrorKind::WrongVersion),
                "{context}: {error:?}"
            );
            let stem = damaged.with_extension("");
            assert!(
                error.message().contains(&*stem.to_string_lossy())
                    || error.message().contains("missing"),
                "{context}: {error}"
            );
            assert!(
                error.message().contains("offset") || error.kind() == ErrorKind::WrongVersion,
                "{context}: {error}"
            );
            false
        }
    }
}

#[test]
fn f3_every_flipped_byte_is_refused_with_its_place_or_does_no_harm() {
    let (mut refused, mut harmless) = (0, 0);
    for seed in 0..4 {
        let (disk, known) = closed(seed);
        let files = files(&disk);
        assert!(files.len() > 2);
        let mut random = Random::new(seed);
        for (path, content) in &files {
            for _ in 0..700 {
                let at = random.index(content.len());
                let mut flipped = content.clone();
                flipped[at] ^= 1 << random.below(8);
                disk.put(path, flipped);
                let context = format!("seed {seed}, byte {at} of {}", path.display());
                match all_or_named(&disk, &known, path, &context) {
                    true => harmless += 1,
                    false => refused += 1,
                }
                // Opening may have made an index again.
                for (path, content) in &files {
                    disk.put(path, content.clone());
                }
            }
        }
    }
    assert!(refused > 1_000 && harmless > 1_000, "{refused} {harmless}");
}

#[test]
fn f3_every_cut_and_every_missing_file_is_refused_or_made_again() {
    let mut refused = 0;
    for seed in 0..4 {
        let (disk, known) = closed(seed);
        let files = files(&disk);
        let mut random = Random::new(seed);
        for (path, content) in &files {
            let is_spare = path.extension().is_none_or(|kind| kind != "seg");
            for number in 0..150 {
                let len = if number < 10 {
                    number * 9
                } else {
                    random.index(content.len())
                };
                disk.truncate(path, len as u64);
                let context = format!("seed {seed}, {len} bytes of {}", path.display());
                assert_eq!(
                    all_or_named(&disk, &known, path, &context),
                    is_spare,
                    "{context}"
                );
                refused += u32::from(!is_spare);
                for (path, content) in &files {
                    disk.put(path, content.clone());
                }
            }
            disk.remove(path).unwrap();
            let context = format!("seed {seed}, without {}", path.display());
            assert_eq!(
                all_or_named(&disk, &known, path, &context),
                is_spare,
                "{context}"
            );
            for (path, content) in &files {
                disk.put(path, content.clone());
            }
        }
    }
    assert!(refused > 1_000, "{refused}");
}

#[test]
fn random_and_mutated_files_never_panic_nor_give_wrong_events() {
    for seed in 0..600 {
        let (disk, known) = closed(seed % 3);
        let files = files(&disk);
        let mut random = Random::new(seed);
        let (path, content) = &files[random.index(files.len())];
        let mut content = content.clone();
        for _ in 0..=random.below(6) {
            let at = random.index(content.len());
            let end = (at + random.index(200)).min(content.len());
            match random.below(4) {
                0 => content[at..end].fill_with(|| random.next_u64().to_le_bytes()[0]),
                1 => content[at..end].fill(0),
                2 => {
                    let to = random.index(content.len() - (end - at) + 1);
                    content.copy_within(at..end, to);
                }
                _ => {
                    // The content of another file of the stream.
                    let (_, other) = &files[random.index(files.len())];
                    content = other.clone();
                }
            }
        }
        disk.put(path, content);
        if let Ok((stream, _)) = open(&disk, known.spec.clone(), 5, time(known.now)) {
            for event in read_all(&stream.reader(), &Selection::All).unwrap_or_default() {
                let (subject, body) = &known.tried[&event.seq];
                assert_eq!(
                    (&event.subject, &event.body.to_bytes().unwrap()[..]),
                    (subject, &body[..])
                );
            }
        }
    }
}
