//! What a repair leaves: everything that was not damaged, in a directory that opens.

use super::*;
use crate::inspect::{Lost, Repair};

fn repair(disk: &SimDisk, apply: bool) -> Repair {
    let directory = directory(disk);
    directory
        .repair_held(time(2_000), apply, &mut |_| {})
        .unwrap()
}

fn is_lost(lost: &[Lost], seq: Seq) -> bool {
    lost.iter()
        .any(|lost| seq >= lost.first && lost.last.is_none_or(|last| seq <= last))
}

/// Repairs a disk, and checks all that a repair promises. False where it said that it cannot.
fn mended(disk: &SimDisk, events: &Written, context: &str) -> bool {
    let damaged = disk.files();
    let planned = repair(disk, false);
    assert!(damaged == disk.files(), "{context}: a plan changes nothing");
    let done = repair(disk, true);
    assert_eq!(done.steps, planned.steps, "{context}");
    if !done.hopeless.is_empty() {
        assert!(
            damaged == disk.files(),
            "{context}: nothing is done by halves"
        );
        return false;
    }
    if let Some(after) = &done.after {
        let left: Vec<_> = after.damage().collect();
        assert!(
            left.is_empty(),
            "{context}: {left:#?} after {:#?}",
            done.steps
        );
        // Everything that was changed is kept as it was.
        let kept: Vec<&Vec<u8>> = damaged.values().collect();
        for path in &done.kept {
            let now = &disk.files()[&Path::new(ROOT).join(path)];
            assert!(
                kept.contains(&now),
                "{context}: {} is kept otherwise",
                path.display()
            );
        }
    } else {
        assert_eq!(done.before.damage().count(), 0, "{context}");
    }
    for (path, content) in &damaged {
        let files = disk.files();
        let is_same = files.get(path) == Some(content);
        let is_kept = done.kept.iter().any(|kept| {
            let kept = Path::new(ROOT).join(kept);
            kept.to_string_lossy().starts_with(&*path.to_string_lossy()) && files[&kept] == *content
        });
        // What opening would do as well: the last segment is sealed, a journal goes on.
        let is_ours = path
            .extension()
            .is_some_and(|end| ["seg", "idx", "journal"].iter().any(|ours| end == *ours));
        let at = done
            .before
            .damage()
            .any(|found| Path::new(ROOT).join(&found.file) == *path);
        assert!(
            is_same || is_kept || (is_ours && !at),
            "{context}: {} is gone",
            path.display()
        );
    }
    let lost: Vec<Lost> = done
        .before
        .findings
        .iter()
        .filter_map(|found| found.lost.clone())
        .collect();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let opened = Journal::open(
        Arc::clone(&shared),
        Path::new(ROOT),
        JournalOptions::default(),
        time(3_000),
    );
    let (journal, _) = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
    for (_, keys) in journal.state().buckets() {
        let all: Vec<_> = keys
            .read()
            .after(None)
            .map(|(_, kept)| kept.value.clone())
            .collect();
        assert!(
            all.iter()
                .all(|value| journal.state().read(value).unwrap().is_some()),
            "{context}"
        );
    }
    let found = read_all(disk);
    for (seq, event) in events {
        match found.get(seq) {
            Some(found) => assert_eq!(found, event, "{context}: {seq}"),
            None => assert!(
                is_lost(&lost, *seq),
                "{context}: {seq} is not said to be lost: {lost:?}"
            ),
        }
    }
    // A removal that was damaged may come back, nothing else.
    let strange: Vec<_> = found
        .keys()
        .filter(|seq| !events.contains_key(seq))
        .collect();
    assert!(
        strange.iter().all(|seq| [33, 34, 60].contains(*seq)),
        "{context}: {strange:?}"
    );
    let (mut stream, _) =
        Stream::open(shared, &stream_dir(), spec(), options(5), time(3_000)).unwrap();
    // It goes on: whatever is stored next is stored behind everything there ever was.
    let append = Append {
        subject: Subject::new("s.next").unwrap(),
        key: None,
        id: None,
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Bytes(Bytes::from_static(b"next")),
    };
    let next = stream.tail();
    stream
        .stage(time(3_000), [Ok(append)], AppendMode::Each)
        .unwrap();
    stream.commit().unwrap();
    assert_eq!(stream.tail(), next + 1);
    // All of it can be removed, so that what the stream says of its bytes was right.
    let all = trunkline_core::engine::Removal::Before(next + 1);
    stream.stage_remove(time(3_001), &all).unwrap();
    stream.commit().unwrap();
    assert_eq!(stream.reader().standing().events, 0);
    stream.close().unwrap();
    true
}

#[test]
fn after_a_repair_the_directory_opens_and_what_was_not_damaged_is_there() {
    let (mut done, mut kinds) = (0, BTreeMap::<String, u64>::new());
    for seed in 0..3 {
        let (disk, events) = written(seed, seed != 1);
        let mut random = Random::new(seed);
        for (path, _) in disk.files() {
            if path.ends_with("FORMAT") {
                continue;
            }
            let parts = used(&disk, &path);
            for _ in 0..14 {
                let (start, end) = parts[random.index(parts.len())];
                let at = start + random.below(end - start);
                let flipped = copy_of(&disk);
                flipped.flip(&path, at, 1 << random.below(8));
                let context = format!("{seed}: {} at {at}", path.display());
                let torn = verify(&flipped).damage().count() == 0;
                if torn {
                    // Opening cuts off what nobody vouches for, as ever.
                    continue;
                }
                if mended(&flipped, &events, &context) {
                    done += 1;
                    let kind = path.extension().unwrap().to_string_lossy().into_owned();
                    *kinds.entry(kind).or_default() += 1;
                }
            }
        }
    }
    assert!(done > 200, "{done}");
    let kinds: Vec<&str> = kinds.keys().map(String::as_str).collect();
    assert_eq!(kinds, ["idx", "journal", "seg", "snapshot", "values"]);
}

#[test]
fn files_that_are_cut_off_or_gone_are_mended_or_said_to_be_beyond_that() {
    let (mut done, mut beyond) = (0, 0);
    for seed in 0..3 {
        let (disk, events) = written(seed, true);
        let mut random = Random::new(seed);
        for (path, content) in disk.files() {
            if path.ends_with("FORMAT") {
                continue;
            }
            for number in 0..6 {
                let cut = copy_of(&disk);
                if number == 0 {
                    cut.remove(&path).unwrap();
                } else {
                    cut.truncate(&path, random.below(content.len() as u64));
                }
                let context = format!("{seed}: {} cut {number}", path.display());
                if mended(&cut, &events, &context) {
                    done += 1;
                } else {
                    beyond += 1;
                }
            }
        }
    }
    assert!(done > 100, "{done}");
    assert!((1..60).contains(&beyond), "{beyond}");
}

#[test]
fn pages_that_became_zeros_or_noise_are_mended() {
    let (mut done, mut beyond) = (0, 0);
    for seed in 0..40 {
        let (disk, events) = written(seed, !seed.is_multiple_of(3));
        let mut random = Random::new(seed);
        let files: Vec<(PathBuf, Vec<u8>)> = disk
            .files()
            .into_iter()
            .filter(|(path, _)| !path.ends_with("FORMAT"))
            .collect();
        for _ in 0..=random.index(4) {
            let (path, content) = &files[random.index(files.len())];
            let (start, end) = used(&disk, path)[0];
            let at = (start + random.below(end - start)) / 512 * 512;
            let mut content = disk.files().get(path).unwrap_or(content).clone();
            let from = usize::try_from(at).unwrap();
            let to = (from + 512).min(content.len());
            let noise = random.coin();
            for byte in &mut content[from..to] {
                *byte = if noise { random.below(256) as u8 } else { 0 };
            }
            disk.put(path, content);
            if verify(&disk).damage().count() > 0 {
                break;
            }
        }
        match mended(&disk, &events, &format!("{seed}")) {
            true => done += 1,
            false => beyond += 1,
        }
    }
    assert!(done > 25, "{done} and {beyond}");
}
