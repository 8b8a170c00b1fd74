//! The files of every version are read, and those of this version are written as they were.
//! `TRUNKLINE_BLESS=1` writes the fixtures of this version.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps in vain")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use support::{DIR, append, id, open, read_all, spec, subject, time};
use trunkline_core::ErrorKind;
use trunkline_core::engine::{AppendMode, Removal, Retention};
use trunkline_log::Selection;
use trunkline_log::sim::SimDisk;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

/// A stream with everything in it: ids, headers, removals, a sealed segment, a closing group.
fn written() -> BTreeMap<String, Vec<u8>> {
    let disk = SimDisk::new(1);
    let spec = spec(Retention::DiscardOld);
    drop(support::create(&disk, spec.clone(), 11, time(1)).unwrap());
    let (mut stream, _) = open(&disk, spec, 12, time(2)).unwrap();
    for number in 1..=40u64 {
        let mut item = append(subject(number), number.to_le_bytes().repeat(24));
        item.id = number.is_multiple_of(2).then(|| id(number));
        if number.is_multiple_of(3) {
            item.headers
                .add("Tenant", format!("größe {number}"))
                .unwrap();
        }
        let now = time(i64::try_from(number).unwrap());
        stream.stage(now, [Ok(item)], AppendMode::Each).unwrap();
        if number == 35 {
            stream.stage_settled(now, &[30, 31, 7]).unwrap();
        }
        stream.commit().unwrap();
    }
    stream.stage_remove(time(50), &Removal::Before(4)).unwrap();
    stream.close().unwrap();
    let files = disk.files().into_iter();
    files
        .map(|(path, content)| {
            (
                path.file_name().unwrap().to_str().unwrap().to_owned(),
                content,
            )
        })
        .collect()
}

/// Without the zeros at its end, which take room in the repository and say nothing.
fn trimmed(content: &[u8]) -> &[u8] {
    let end = content
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    &content[..end]
}

#[test]
fn this_version_writes_what_it_always_wrote() {
    let written = written();
    if std::env::var_os("TRUNKLINE_BLESS").is_some() {
        fs::create_dir_all(fixtures()).unwrap();
        for (name, content) in &written {
            fs::write(fixtures().join(name), trimmed(content)).unwrap();
        }
    }
    assert!(
        written.len() >= 3,
        "a sealed segment, its index, and another segment"
    );
    for (name, content) in &written {
        let fixture = fs::read(fixtures().join(name)).unwrap();
        assert!(fixture == trimmed(content), "{name} is written differently");
    }
    assert_eq!(fs::read_dir(fixtures()).unwrap().count(), written.len());
}

#[test]
fn the_files_of_version_1_are_read() {
    let disk = SimDisk::new(2);
    for entry in fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        let mut content = fs::read(&path).unwrap();
        if path.extension().is_some_and(|kind| kind == "seg") {
            content.resize(8 << 10, 0);
        } else {
            content.resize(content.len().next_multiple_of(8), 0);
        }
        disk.put(&Path::new(DIR).join(path.file_name().unwrap()), content);
    }
    let (mut stream, report) = open(&disk, spec(Retention::DiscardOld), 3, time(51)).unwrap();
    assert_eq!((report.cut_groups, report.indexes_made), (0, 0));
    let events = read_all(&stream.reader(), &Selection::All).unwrap();
    let expected = (4..=40).filter(|seq| ![7, 30, 31].contains(seq));
    assert!(events.iter().map(|event| event.seq).eq(expected));
    for event in &events {
        assert_eq!(event.subject, subject(event.seq));
        assert_eq!(event.at, time(i64::try_from(event.seq).unwrap().max(2)));
        let body = event.seq.to_le_bytes().repeat(24);
        assert_eq!(event.body.to_bytes().unwrap(), body);
        let tenant = event
            .seq
            .is_multiple_of(3)
            .then(|| format!("größe {}", event.seq));
        assert_eq!(event.headers.get("tenant"), tenant.as_deref());
    }
    // An id is remembered for the duplicate window.
    let mut again = append(subject(1), vec![1]);
    again.id = Some(id(40));
    let outcomes = stream
        .stage(time(50), [Ok(again)], AppendMode::Each)
        .unwrap();
    assert!(
        format!("{outcomes:?}").contains("duplicate: true"),
        "{outcomes:?}"
    );
}

#[test]
fn a_higher_version_is_refused_by_name() {
    let disk = SimDisk::new(2);
    for (name, mut content) in written() {
        content[8] = 2;
        disk.put(&Path::new(DIR).join(name), content);
    }
    let error = open(&disk, spec(Retention::DiscardOld), 3, time(51)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongVersion);
}
