use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::disk::{Disk, Open};
use crate::sim::{Random, SimDisk};

const ID: u64 = 0x1234_5678_9abc_def0;

struct Fixture {
    disk: SimDisk,
    file: Arc<dyn File>,
    path: PathBuf,
    header: FileHeader,
    end: u64,
    durable: u64,
}

impl Fixture {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        let path = PathBuf::from("/a");
        let file = disk.open(&path, Open::CreateNew).unwrap();
        let header = FileHeader {
            kind: FileKind::Segment,
            file_id: ID,
            base: 1,
            created: Timestamp::from_nanos(-5),
            reserved: 16 << 10,
        };
        file.allocate(header.reserved).unwrap();
        file.write_at(&header.encode(), 0).unwrap();
        file.sync().unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        let end = FILE_HEADER_LEN;
        Self {
            disk,
            file,
            path,
            header,
            end,
            durable: end,
        }
    }

    /// Writes a group whose content is so many times its number.
    fn write(&mut self, number: u8, len: usize, flags: u8) {
        let mut out = Vec::new();
        let group = OpenGroup::begin(&mut out);
        out.resize(GROUP_HEADER_LEN + len, number);
        let header = GroupHeader {
            count: 1,
            flags,
            durable_end: self.durable,
            ..GroupHeader::default()
        };
        group.finish(&mut out, ID, self.end, header);
        let size = out.len() as u64;
        out.resize(out.len() + GROUP_HEADER_LEN, 0);
        self.file.write_at(&out, self.end).unwrap();
        self.end += size;
    }

    fn sync(&mut self) {
        self.file.sync().unwrap();
        self.durable = self.end;
    }

    /// Opens it again and gives the numbers of its groups.
    fn reopen(&mut self) -> Result<(Vec<u8>, Recovered)> {
        self.file = self.disk.open(&self.path, Open::Write).unwrap();
        self.header = FileHeader::read(&*self.file, &self.path, FileKind::Segment)?;
        let mut numbers = Vec::new();
        let recovered = recover(&*self.file, &self.path, &self.header, |group| {
            let number = group.content.first().copied().unwrap_or(0);
            assert!(
                group.content.iter().all(|byte| *byte == number),
                "wrong bytes"
            );
            numbers.push(number);
            Ok(())
        })?;
        self.end = recovered.end;
        self.durable = recovered.end;
        Ok((numbers, recovered))
    }
}

#[test]
fn groups_are_read_as_they_were_written() {
    let mut fixture = Fixture::new(1);
    for number in 1..=5 {
        fixture.write(number, usize::from(number) * 13, 0);
    }
    fixture.write(6, 0, CLOSING);
    let (numbers, recovered) = fixture.reopen().unwrap();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 0]);
    assert_eq!((recovered.cut_groups, recovered.cut_bytes), (0, 0));
}

#[test]
fn a_crash_leaves_the_first_groups_and_never_one_that_was_synced_less() {
    let (mut torn, mut kept) = (0, 0);
    for seed in 0..2_000 {
        let mut random = Random::new(seed);
        let mut fixture = Fixture::new(seed);
        let (mut written, mut synced) = (0, 0);
        for _ in 0..3 {
            for _ in 0..random.below(6) {
                written += 1;
                fixture.write(written, 1 + random.index(1500), 0);
                if random.coin() {
                    fixture.sync();
                    synced = written;
                }
            }
            // Without power nothing is left in memory; after a mere kill all of it is.
            match random.coin() {
                true => fixture.disk.crash(random.next_u64()),
                false => fixture.disk.kill(),
            }
            let (numbers, recovered) = fixture.reopen().unwrap();
            let left = u8::try_from(numbers.len()).unwrap();
            assert!(
                left >= synced && left <= written,
                "{left} {synced} {written}"
            );
            assert!(
                numbers.iter().copied().eq(1..=left),
                "seed {seed}: {numbers:?}"
            );
            torn += u32::from(recovered.cut_groups > 0);
            kept += u32::from(left > synced);
            // Opening again finds nothing more to cut, whatever was left beyond the end.
            fixture.disk.crash(random.next_u64());
            let again = fixture.reopen().unwrap();
            assert_eq!((again.0, again.1.cut_groups), (numbers, 0), "seed {seed}");
            (written, synced) = (left, left);
        }
    }
    assert!(torn > 200 && kept > 200, "{torn} {kept}");
}

#[test]
fn every_flipped_byte_is_refused_with_its_place_or_cut_and_counted() {
    let mut fixture = Fixture::new(7);
    let mut starts = Vec::new();
    for number in 1..=4 {
        starts.push(fixture.end);
        fixture.write(number, 40 * usize::from(number), 0);
        fixture.sync();
    }
    starts.push(fixture.end);
    let (mut refused, mut cut) = (0, 0);
    for at in 0..fixture.end {
        fixture.disk.flip(&fixture.path, at, 1 << (at % 8));
        match fixture.reopen() {
            Ok((numbers, recovered)) => {
                assert_eq!(numbers, [1, 2, 3], "at {at}");
                assert!(at >= starts[3] && recovered.cut_groups == 1 && recovered.cut_bytes >= 8);
                // Mend what the recovery cut off.
                fixture.end = starts[3];
                fixture.durable = starts[3];
                fixture.write(4, 160, 0);
                fixture.sync();
                cut += 1;
            }
            Err(error) => {
                assert!(matches!(
                    error.kind(),
                    ErrorKind::Damaged | ErrorKind::WrongVersion
                ));
                if at >= FILE_HEADER_LEN {
                    let start = starts.iter().rfind(|start| **start <= at).unwrap();
                    let place = format!("/a is damaged at offset {start}:");
                    assert!(error.message().starts_with(&place), "{error}");
                }
                fixture.disk.flip(&fixture.path, at, 1 << (at % 8));
                refused += 1;
            }
        }
    }
    assert!(refused >= 400 && cut == 192, "{refused} {cut}");
    // With a closing group as its witness, the last real one is damaged, not torn.
    fixture.write(0, 0, CLOSING);
    fixture.sync();
    fixture.disk.flip(&fixture.path, starts[3] + 50, 1);
    assert_eq!(fixture.reopen().unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn a_file_that_was_cut_off_is_refused_at_every_length() {
    let mut fixture = Fixture::new(3);
    fixture.write(1, 100, 0);
    let whole = fixture.disk.files()[&fixture.path].clone();
    for len in (0..whole.len()).filter(|len| *len < 400 || len % 97 == 0) {
        fixture.disk.truncate(&fixture.path, len as u64);
        let error = fixture.reopen().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(
            error
                .message()
                .starts_with(&format!("/a is damaged at offset {len}:")),
            "{error}"
        );
        fixture.disk.put(&fixture.path, whole.clone());
    }
}

#[test]
fn groups_of_another_file_or_place_are_never_taken_for_its_own() {
    let mut fixture = Fixture::new(4);
    for number in 1..=6 {
        fixture.write(number, 24, 0);
    }
    fixture.sync();
    // The same file used again: a new id, and the old groups still in it.
    let mut header = fixture.header;
    header.file_id = ID + 1;
    fixture.file.write_at(&header.encode(), 0).unwrap();
    let (numbers, recovered) = fixture.reopen().unwrap();
    assert!(numbers.is_empty() && recovered.end == FILE_HEADER_LEN);
    // A group copied to another place of its own file.
    let mut fixture = Fixture::new(4);
    fixture.write(1, 24, 0);
    let mut group = vec![0; 56];
    fixture.file.read_at(&mut group, FILE_HEADER_LEN).unwrap();
    fixture.file.write_at(&group, fixture.end).unwrap();
    assert_eq!(fixture.reopen().unwrap().0, [1]);
}

#[test]
fn random_and_mutated_bytes_never_panic_nor_give_wrong_content() {
    let mut fixture = Fixture::new(5);
    for number in 1..=20 {
        fixture.write(number, 60, 0);
    }
    fixture.sync();
    let whole = fixture.disk.files()[&fixture.path].clone();
    let mut random = Random::new(9);
    for _ in 0..3_000 {
        let mut content = whole.clone();
        for _ in 0..=random.below(8) {
            let at = random.index(2_500);
            let byte = random.next_u64().to_le_bytes()[0];
            match random.below(3) {
                0 => content[at] = byte,
                1 => content[at..at + 40].fill(byte),
                _ => content.copy_within(at..at + 92, 64 + random.index(20) * 96),
            }
        }
        fixture.disk.put(&fixture.path, content);
        if let Ok((numbers, _)) = fixture.reopen() {
            assert!(
                numbers
                    .iter()
                    .copied()
                    .eq(1..=u8::try_from(numbers.len()).unwrap())
            );
        }
        let noise = (0..random.index(4096)).map(|_| random.next_u64().to_le_bytes()[0]);
        fixture.disk.put(&fixture.path, noise.collect());
        assert!(fixture.reopen().is_err());
    }
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let mut fixture = Fixture::new(6);
    fixture.write(1, 8, 0x80);
    assert_eq!(
        fixture.reopen().unwrap_err().kind(),
        ErrorKind::WrongVersion
    );
    let mut bytes = fixture.header.encode();
    bytes[8] = 2;
    fixture.file.write_at(&bytes, 0).unwrap();
    let error = fixture.reopen().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongVersion);
    assert!(error.message().contains("version 2"), "{error}");
}
