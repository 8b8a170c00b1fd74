//! What verify says of every kind of damage.

use super::*;
use crate::inspect::{Dumped, EventsFrom, Finding, Remedy, Severity};

/// The finding that names the file and a place at or before the damage.
fn naming<'a>(found: &'a [Finding], path: &Path, at: u64) -> Option<&'a Finding> {
    let file = path.strip_prefix(ROOT).unwrap();
    found.iter().find(|finding| {
        let is_it = finding.file == file && finding.offset.unwrap_or(0) <= at;
        // A file that says it has a successor is believed, and the successor named.
        is_it && !finding.what.is_empty()
    })
}

#[test]
fn every_flipped_byte_that_means_something_is_found() {
    let (mut tried, mut unused) = (BTreeMap::<String, u64>::new(), 0);
    for seed in 0..3 {
        let (disk, _) = written(seed, seed != 1);
        let mut random = Random::new(seed);
        for (path, content) in disk.files() {
            let parts = used(&disk, &path);
            let end = parts.iter().map(|(_, end)| *end).max().unwrap();
            let step = (end / 60).max(1);
            let mut at = 0;
            while at < (end + 200).min(content.len() as u64) {
                let flipped = copy_of(&disk);
                assert!(flipped.flip(&path, at, 1 << random.below(8)));
                let context = format!("{seed}: {} at {at}", path.display());
                let is_used = parts
                    .iter()
                    .any(|(start, end)| (*start..*end).contains(&at));
                if path.ends_with("FORMAT") {
                    // Another digit of the id is another id, with which readers begin anew.
                    let is_id = (19..51).contains(&at)
                        && flipped.files()[&path][at as usize].is_ascii_hexdigit();
                    let opened = Directory::on(Arc::new(flipped), ROOT);
                    assert_eq!(opened.is_ok(), is_id, "{context}");
                    if let Err(error) = opened {
                        assert!(error.message().contains("FORMAT"), "{context}: {error}");
                    }
                } else {
                    let found = verify(&flipped);
                    let named = naming(&found.findings, &path, at);
                    assert!(
                        named.is_some() || !is_used,
                        "{context}: {:#?}",
                        found.findings
                    );
                    if !is_used {
                        let harm = found.damage().count();
                        assert_eq!(harm, 0, "{context} means nothing: {:#?}", found.findings);
                        unused += 1;
                    }
                }
                let kind = path
                    .extension()
                    .map_or("FORMAT".into(), |end| end.to_string_lossy().into_owned());
                *tried.entry(kind).or_default() += u64::from(is_used);
                at += 1 + random.below(2 * step);
            }
        }
    }
    let kinds: Vec<&str> = tried.keys().map(String::as_str).collect();
    assert_eq!(
        kinds,
        ["FORMAT", "idx", "journal", "seg", "snapshot", "values"]
    );
    assert!(tried.values().all(|tried| *tried > 10), "{tried:?}");
    assert!(unused > 20, "{unused}");
}

#[test]
fn a_file_that_is_cut_off_is_found() {
    let mut cuts = 0;
    for seed in 0..3 {
        let (disk, _) = written(seed, true);
        let mut random = Random::new(seed);
        for (path, content) in disk.files() {
            if path.ends_with("FORMAT") {
                continue;
            }
            for _ in 0..12 {
                let len = random.below(content.len() as u64);
                let cut = copy_of(&disk);
                assert!(cut.truncate(&path, len));
                let found = verify(&cut);
                let context = format!("{seed}: {} at {len}", path.display());
                let damage: Vec<Finding> = found.damage().cloned().collect();
                assert!(
                    naming(&damage, &path, len).is_some(),
                    "{context}: {:#?}",
                    found.findings
                );
                cuts += 1;
            }
        }
    }
    assert!(cuts > 300, "{cuts}");
}

#[test]
fn a_file_that_is_missing_is_found_and_what_was_in_it_named() {
    let (disk, _) = written(2, true);
    let mut kinds = BTreeMap::<String, Vec<Remedy>>::new();
    for path in disk.files().into_keys() {
        let without = copy_of(&disk);
        without.remove(&path).unwrap();
        if path.ends_with("FORMAT") {
            let error = Directory::on(Arc::new(without), ROOT).unwrap_err();
            assert!(error.message().contains("FORMAT"), "{error}");
            continue;
        }
        let found = verify(&without);
        let kind = path.extension().unwrap().to_string_lossy().into_owned();
        if kind == "idx" {
            let notes: Vec<_> = found.findings.iter().map(|found| found.severity).collect();
            assert_eq!(notes, [Severity::Note], "an index can be made again");
            continue;
        }
        let damage: Vec<&Finding> = found.damage().collect();
        assert!(!damage.is_empty(), "{}", path.display());
        if kind == "seg"
            && path
                .file_stem()
                .is_some_and(|stem| stem.to_string_lossy().trim_start_matches('0') != "1")
        {
            let named = naming(&found.findings, &path, u64::MAX);
            assert!(named.is_some(), "{}: {damage:#?}", path.display());
        }
        kinds
            .entry(kind)
            .or_default()
            .extend(damage.iter().map(|finding| finding.remedy));
    }
    assert!(
        kinds["seg"].contains(&Remedy::Restore),
        "the newest segment"
    );
    assert!(kinds["seg"].contains(&Remedy::Repair), "one in the middle");
    assert!(kinds["journal"].contains(&Remedy::Repair));
    assert!(kinds["values"].contains(&Remedy::Repair));
}

#[test]
fn a_dump_gives_all_that_can_be_read_and_says_what_it_passes_over() {
    let mut skipped = 0;
    for seed in 0..3 {
        let (disk, events) = written(seed, true);
        let mut random = Random::new(seed);
        let dump = |disk: &SimDisk, from: Seq, limit: u64| {
            let wanted = EventsFrom {
                stream: "orders".to_owned(),
                from,
                limit,
            };
            let (mut found, mut lost) = (Written::new(), Vec::new());
            directory(disk)
                .events(&wanted, &mut |dumped| {
                    match dumped {
                        Dumped::Event(event) => {
                            let body = event.body.to_bytes()?.to_vec();
                            found.insert(event.seq, (event.subject.to_string(), body));
                        }
                        Dumped::Skipped { first, last, .. } => lost.push((first, last)),
                    }
                    Ok(())
                })
                .unwrap();
            (found, lost)
        };
        assert_eq!(dump(&disk, 1, u64::MAX), (events.clone(), Vec::new()));
        let some: Written = events
            .range(40..)
            .take(7)
            .map(|(seq, of)| (*seq, of.clone()))
            .collect();
        assert_eq!(dump(&disk, 40, 7), (some, Vec::new()));
        let segments: Vec<PathBuf> = disk
            .files()
            .into_keys()
            .filter(|path| path.extension().is_some_and(|end| end == "seg"))
            .collect();
        for path in &segments {
            let (_, end) = used(&disk, path)[0];
            for _ in 0..10 {
                let flipped = copy_of(&disk);
                let at = random.below(end - 32);
                flipped.flip(path, at, 1);
                let (found, lost) = dump(&flipped, 1, u64::MAX);
                for (seq, event) in &events {
                    let is_lost = lost
                        .iter()
                        .any(|(first, last)| seq >= first && last.is_none_or(|last| *seq <= last));
                    match found.get(seq) {
                        Some(found) => assert_eq!(found, event),
                        None => assert!(is_lost, "{seq} of {} at {at}: {lost:?}", path.display()),
                    }
                }
                // What was removed comes back where the removal is what was damaged.
                let is_known = |seq: &Seq| events.contains_key(seq) || [33, 34, 60].contains(seq);
                assert!(found.keys().all(is_known));
                skipped += lost.len();
            }
        }
    }
    assert!(skipped > 30, "{skipped}");
}

#[test]
fn what_is_no_log_is_refused_in_words() {
    let disk = SimDisk::new(1);
    let at = |disk: &SimDisk| Directory::on(Arc::new(disk.clone()), ROOT).unwrap_err();
    assert!(at(&disk).message().contains("no such directory"));
    disk.put(&Path::new(ROOT).join("thesis.txt"), Vec::new());
    assert!(at(&disk).message().contains("no directory of ours"));
    let (whole, _) = written(1, true);
    for part in ["state", "streams"] {
        let copied = SimDisk::new(1);
        for (path, content) in whole.files() {
            if !path.starts_with(Path::new(ROOT).join(part)) {
                copied.put(&path, content);
            }
        }
        let error = at(&copied);
        let missing = format!("{ROOT}/{part} is missing");
        assert!(error.message().contains(&missing), "{error}");
        assert!(error.message().contains("copy the whole directory again"));
    }
    disk.put(
        &Path::new(ROOT).join("FORMAT"),
        b"trunkline-log 7\n".to_vec(),
    );
    assert_eq!(at(&disk).kind(), trunkline_core::ErrorKind::WrongVersion);
}
