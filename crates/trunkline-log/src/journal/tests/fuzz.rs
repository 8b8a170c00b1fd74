//! Bytes that may be anything.

use proptest::prelude::*;
use trunkline_core::Timestamp;
use trunkline_core::engine::StateKey;
use trunkline_core::keys::{Changes, Kept, Step};
use trunkline_core::ledger::Settled;

use super::world::{World, name};
use crate::journal::{NotARecord, Place, Record, Value};
use crate::sim::Random;

/// Records of every kind.
fn samples() -> Vec<Record> {
    let mut world = World::new(3);
    world.open().unwrap();
    for _ in 0..300 {
        world.step().unwrap();
    }
    let mut settled = Settled::up_to(7);
    settled.add(10, 12);
    settled.add(20, u64::MAX);
    let mut records = world.published;
    let spec = records.iter().find_map(|record| match record {
        Record::Consumer { spec, .. } => Some(spec.clone()),
        _ => None,
    });
    let bucket = name("one");
    let key = StateKey::new("a.b").unwrap();
    let place = Place {
        file: u64::MAX,
        offset: 5,
        len: u32::MAX,
        crc: 9,
    };
    records.extend([
        Record::ConsumerStood {
            spec: spec.unwrap(),
            settled,
            lost: 3,
        },
        Record::Bucket {
            bucket: bucket.clone(),
            rev: 1 << 40,
        },
        Record::Kept {
            bucket: bucket.clone(),
            keys: vec![(
                key.clone(),
                Kept {
                    value: Value::Stored(place),
                    rev: 4,
                    at: Timestamp::from_nanos(-1),
                    ends: Some(Timestamp::from_nanos(i64::MAX)),
                },
            )],
        },
        Record::Remembered {
            bucket: bucket.clone(),
            commits: vec![("c".into(), Timestamp::from_nanos(3))],
        },
        Record::Moved {
            bucket: bucket.clone(),
            moves: vec![(key.clone(), 3, place)],
        },
        Record::Keys {
            bucket,
            changes: Changes {
                id: Some("ü".into()),
                at: Timestamp::from_nanos(i64::MIN),
                first: u64::MAX,
                steps: vec![Step::Expire(key.clone()), Step::Delete(key)],
            },
        },
        Record::End {
            journal: 1,
            offset: 2,
            records: 3,
        },
    ]);
    records
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    bytes
}

#[test]
fn records_are_read_as_they_were_written() {
    let records = samples();
    let kinds: std::collections::BTreeSet<u8> =
        records.iter().map(|record| encoded(record)[5]).collect();
    assert!(kinds.into_iter().eq(1..=13), "every kind is among them");
    let all: Vec<u8> = records.iter().flat_map(encoded).collect();
    let mut left = &all[..];
    for record in records {
        assert_eq!(Record::decode(&mut left), Ok(record));
    }
    assert!(left.is_empty());
}

#[test]
fn records_of_a_newer_version_or_kind_are_refused_by_that() {
    let mut bytes = encoded(&Record::StreamDeleted(name("EVENTS")));
    bytes[4] = 2;
    assert_eq!(
        Record::decode(&mut &bytes[..]),
        Err(NotARecord::Newer(2, 2))
    );
    bytes[4..6].copy_from_slice(&[1, 99]);
    assert_eq!(
        Record::decode(&mut &bytes[..]),
        Err(NotARecord::Newer(1, 99))
    );
    bytes[4] = 0;
    assert!(matches!(
        Record::decode(&mut &bytes[..]),
        Err(NotARecord::Damaged(_))
    ));
}

#[test]
fn mutated_records_are_refused_or_are_records() {
    let samples: Vec<_> = samples().iter().map(encoded).collect();
    let mut random = Random::new(1);
    let (mut refused, mut read) = (0, 0);
    for _ in 0..200_000 {
        let mut bytes = samples[random.index(samples.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.index(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.next_u64().to_le_bytes()[0],
                1 => bytes[at] = [0, 0x7f, 0x80, 0xff][random.index(4)],
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random.next_u64().to_le_bytes()[0]),
            }
        }
        if random.coin() && bytes.len() > 4 {
            let len = u32::try_from(bytes.len() - 4).unwrap();
            bytes[..4].copy_from_slice(&len.to_le_bytes());
        }
        match Record::decode(&mut &bytes[..]) {
            Ok(record) => {
                // What is read is written the same way, or says the same.
                let again = encoded(&record);
                assert_eq!(Record::decode(&mut &again[..]), Ok(record));
                read += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 50_000 && read > 10_000, "{refused} {read}");
}

#[test]
fn a_count_takes_no_memory_that_the_bytes_do_not_justify() {
    // A commit of four billion steps in twenty bytes.
    let mut bytes = vec![0, 0, 0, 0, 1, 7, 1, b'b', 0];
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[1, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    let len = u32::try_from(bytes.len() - 4).unwrap();
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    assert_eq!(
        Record::decode(&mut &bytes[..]),
        Err(NotARecord::Damaged(
            "it counts more items than it has bytes"
        ))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_096))]

    #[test]
    fn any_bytes_are_a_record_or_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..16) {
        if bytes.len() > 6 {
            let len = u32::try_from(bytes.len() - 4).unwrap();
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            bytes[4..6].copy_from_slice(&[1, kind]);
        }
        let mut left = &bytes[..];
        while let Ok(record) = Record::decode(&mut left) {
            let again = encoded(&record);
            prop_assert_eq!(Record::decode(&mut &again[..]), Ok(record));
        }
    }
}
