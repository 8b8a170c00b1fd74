//! Files whose structure was changed and whose checksums are right again, so that what is behind the checksums
//! is reached: they are read, or refused by a typed error, and nothing takes memory that they do not justify.

use super::*;
use crate::frame::{GroupHeader, OpenGroup};
use trunkline_core::ErrorKind;
use trunkline_core::engine::Position;

/// How many cases are tried, unless `TRUNKLINE_SEEDS` says otherwise.
const CASES: u64 = 2_000;
/// A case may take so many bytes of address space more than there were before it, the files themselves
/// (and copies of them) included.
const MOST_BYTES: u64 = 1 << 30;
/// However much a changed header claims to have reserved, files are no longer than this.
const MOST_FILE: usize = 1 << 20;

type Groups = Vec<(GroupHeader, Vec<u8>)>;

/// A framed file taken apart.
struct Parts {
    path: PathBuf,
    header: FileHeader,
    groups: Groups,
    len: usize,
}

fn kind_of(path: &Path) -> Option<FileKind> {
    Some(match path.extension()?.to_str()? {
        "seg" => FileKind::Segment,
        "idx" => FileKind::Index,
        "journal" => FileKind::Journal,
        "snapshot" => FileKind::Snapshot,
        "values" => FileKind::Values,
        _ => return None,
    })
}

fn take_apart(disk: &SimDisk, path: &Path) -> Option<Parts> {
    let file = disk.open(path, Open::Read).unwrap();
    let header = FileHeader::read(&*file, path, kind_of(path)?).unwrap();
    let len = file.len().unwrap();
    let mut walk = Walk::new(&*file, path, header.file_id, FILE_HEADER_LEN, len);
    let mut groups = Vec::new();
    while let Some(group) = walk.next_group().unwrap() {
        groups.push((group.header, group.content.to_vec()));
    }
    Some(Parts {
        path: path.to_owned(),
        header,
        groups,
        len: usize::try_from(len).unwrap(),
    })
}

impl Parts {
    /// The file with checksums that are right.
    fn put_together(&self) -> Vec<u8> {
        let mut out = self.header.encode().to_vec();
        for (header, content) in &self.groups {
            let offset = out.len() as u64;
            let group = OpenGroup::begin(&mut out);
            out.extend_from_slice(content);
            group.finish(&mut out, self.header.file_id, offset, *header);
        }
        let reserved = usize::try_from(self.header.reserved).unwrap_or(MOST_FILE);
        let len = self.len.max(reserved.min(MOST_FILE));
        out.resize((out.len() + GROUP_HEADER_LEN).max(len), 0);
        out
    }
}

fn number(random: &mut Random, near: u64) -> u64 {
    match random.below(8) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => u64::from(u32::MAX),
        4 => 1 << random.below(64),
        5 => near.wrapping_add(1),
        6 => near.wrapping_sub(1),
        _ => random.next_u64(),
    }
}

fn change_header(header: &mut FileHeader, random: &mut Random) {
    match random.below(4) {
        0 => header.base = number(random, header.base),
        // A repair makes a file as long as its header says, which this disk keeps in memory.
        1 => header.reserved = number(random, header.reserved) % (2 * MOST_FILE as u64),
        2 => header.file_id = number(random, header.file_id),
        _ => {
            let at = header.created.as_nanos().cast_unsigned();
            header.created = Timestamp::from_nanos(number(random, at).cast_signed());
        }
    }
}

fn change_group((header, content): &mut (GroupHeader, Vec<u8>), random: &mut Random) {
    let at = random.index(content.len().max(1));
    let lower = |number: u64| number.to_le_bytes()[0];
    match random.below(10) {
        0 => header.count = u32::try_from(number(random, header.count.into()) >> 32).unwrap_or(0),
        1 => header.flags = lower(number(random, header.flags.into())),
        2 => header.kind = lower(random.below(10)),
        3 => header.durable_end = number(random, header.durable_end),
        4 => content.truncate(at),
        5 => {
            // A piece of it once more, here or there.
            let end = (at + random.index(64)).min(content.len());
            let piece = content.get(at..end).unwrap_or_default().to_vec();
            let to = random.index(content.len() + 1);
            content.splice(to..to, piece);
        }
        6 | 7 if content.len() >= 8 => {
            // A number of 4 or 8 bytes: a length, a sequence, a time.
            let width = [4, 8][random.index(2)];
            let at = random.index(content.len() - width + 1);
            let mut before = [0; 8];
            before[..width].copy_from_slice(&content[at..at + width]);
            let now = number(random, u64::from_le_bytes(before)).to_le_bytes();
            content[at..at + width].copy_from_slice(&now[..width]);
        }
        8 => {
            // A number of one byte becomes one of many.
            let long = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
            let bytes = &long[random.index(9)..];
            let end = (at + 1).min(content.len());
            content.splice(at.min(end)..end, bytes.iter().copied());
        }
        _ => {
            if let Some(byte) = content.get_mut(at) {
                *byte = lower(random.next_u64());
            }
        }
    }
}

fn change(parts: &mut Parts, other: &Parts, random: &mut Random) {
    let groups = &mut parts.groups;
    if groups.is_empty() || random.below(12) == 0 {
        change_header(&mut parts.header, random);
        return;
    }
    let at = random.index(groups.len());
    match random.below(9) {
        0 => {
            let to = random.index(groups.len() + 1);
            groups.insert(to, groups[at].clone());
        }
        1 => drop(groups.remove(at)),
        2 => {
            let to = random.index(groups.len());
            groups.swap(at, to);
        }
        3 => {
            // A group of another file.
            if let Some(group) = other.groups.get(random.index(other.groups.len().max(1))) {
                groups.insert(at, group.clone());
            }
        }
        _ => change_group(&mut groups[at], random),
    }
}

/// What may be said of a file that somebody made up.
fn is_typed(error: &trunkline_core::Error) {
    let kinds = [
        ErrorKind::Damaged,
        ErrorKind::WrongVersion,
        ErrorKind::StorageFailed,
        ErrorKind::OverQuota,
    ];
    assert!(kinds.contains(&error.kind()), "{error:?}");
}

/// Reads the stream in every way there is; what can be read.
fn use_stream(disk: &SimDisk) -> bool {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let (mut stream, _) = match Stream::open(shared, &stream_dir(), spec(), options(9), time(1_000))
    {
        Ok(opened) => opened,
        Err(error) => {
            is_typed(&error);
            return false;
        }
    };
    let reader = stream.reader();
    let some = Selection::Subjects(vec![Subject::new("s.1").unwrap()]);
    for selection in [Selection::All, some] {
        let (mut all, mut next) = (Vec::new(), 0);
        for _ in 0..100 {
            match reader.read(next, &selection, Credit::items(50), &mut all) {
                Ok(at) => next = at,
                Err(error) => {
                    is_typed(&error);
                    break;
                }
            }
        }
        for position in [
            Position::Last(std::num::NonZeroU64::MIN),
            Position::LastPerSubject,
            Position::Time(time(40)),
        ] {
            let _ = reader.start(position, &selection).inspect_err(is_typed);
        }
        let _ = reader.count(&selection, 10).inspect_err(is_typed);
    }
    let _ = reader.subjects(&Filter::all(), 10).inspect_err(is_typed);
    // And it goes on, or says why not.
    let append = Append {
        subject: Subject::new("s.1").unwrap(),
        key: None,
        id: Some(EventId::new("event-9").unwrap()),
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Bytes(Bytes::from_static(b"more")),
    };
    let staged = stream.stage(time(2_000), [Ok(append)], AppendMode::Each);
    let _ = staged.and_then(|_| stream.commit()).inspect_err(is_typed);
    let _ = stream.close().inspect_err(is_typed);
    true
}

fn use_journal(disk: &SimDisk) -> bool {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut journal = match Journal::open(shared, Path::new(ROOT), OPTIONS, time(1_000)) {
        Ok((journal, _)) => journal,
        Err(error) => {
            is_typed(&error);
            return false;
        }
    };
    let _ = journal.verify_values().inspect_err(is_typed);
    for bucket in journal.state().buckets().into_keys() {
        let scanned = journal
            .state()
            .scan(&bucket, None, None, Credit::items(10_000));
        let _ = scanned.inspect_err(is_typed);
    }
    let _ = journal.close().inspect_err(is_typed);
    true
}

fn look_at(disk: &SimDisk) {
    let directory = directory(disk);
    let _ = directory.verify(&mut |_| {}).inspect_err(is_typed);
    let _ = directory.stats().inspect_err(is_typed);
    let from = crate::inspect::EventsFrom {
        stream: "orders".to_owned(),
        from: 1,
        limit: 10_000,
    };
    let _ = directory
        .events(&from, &mut |_| Ok(()))
        .inspect_err(is_typed);
    let _ = directory.state(&mut |_| Ok(())).inspect_err(is_typed);
    let _ = directory
        .repair_held(time(2_000), true, &mut |_| {})
        .inspect_err(is_typed);
}

/// The most address space that this process ever had.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[test]
fn files_with_a_changed_structure_and_right_checksums_are_read_or_refused() {
    let said = std::env::var("TRUNKLINE_SEEDS").ok();
    let cases = said.and_then(|said| said.parse().ok()).unwrap_or(CASES);
    let worlds: Vec<SimDisk> = (0..4).map(|seed| written(seed, seed % 2 == 0).0).collect();
    let (mut opened, mut refused) = (0_u64, 0_u64);
    let before = peak_bytes();
    for seed in 0..cases {
        let mut random = Random::new(seed);
        let disk = copy_of(&worlds[random.index(worlds.len())]);
        let paths: Vec<PathBuf> = disk.files().into_keys().collect();
        let framed: Vec<&PathBuf> = paths
            .iter()
            .filter(|path| kind_of(path).is_some())
            .collect();
        let path = framed[random.index(framed.len())];
        let mut parts = take_apart(&disk, path).unwrap();
        let other = take_apart(&disk, framed[random.index(framed.len())]).unwrap();
        for _ in 0..=random.below(3) {
            change(&mut parts, &other, &mut random);
        }
        disk.put(&parts.path, parts.put_together());
        let use_it = || {
            if random.below(8) == 0 {
                look_at(&copy_of(&disk));
            }
            match kind_of(path) {
                Some(FileKind::Segment | FileKind::Index) => use_stream(&disk),
                _ => use_journal(&disk),
            }
        };
        let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(use_it));
        match used {
            Ok(true) => opened += 1,
            Ok(false) => refused += 1,
            Err(panic) => {
                println!("seed {seed}: {}", path.display());
                std::panic::resume_unwind(panic);
            }
        }
        let taken = peak_bytes().saturating_sub(before);
        assert!(
            taken < MOST_BYTES,
            "seed {seed}: {} took {taken} bytes",
            path.display()
        );
    }
    println!("{opened} of {cases} were opened, {refused} refused");
    assert!(
        opened > cases / 20 && refused > cases / 20,
        "{opened} {refused}"
    );
}
