//! Whatever fails, tears or is damaged: what was acknowledged is there, in order and as it was, or
//! the stream says with file and offset why it is not.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps in vain")]

mod support;

use support::known::{Known, begin};
use support::{DIR, append, open, read_all, subject, time};
use trunkline_core::engine::{AppendMode, Outcome, Removal};
use trunkline_core::{Error, ErrorKind};
use trunkline_log::Selection;
use trunkline_log::sim::{Fault, Random, SimDisk};

/// Runs until something fails or enough was done; then lets the power fail, or the process die.
fn live_and_die(
    disk: &SimDisk,
    known: &mut Known,
    random: &mut Random,
    commits: u64,
) -> Result<(), Error> {
    let seed = random.next_u64();
    let (mut stream, _) = open(disk, known.spec.clone(), seed, time(known.now))?;
    let before = known.acknowledged;
    known.check(&stream, "while opening")?;
    assert!(known.acknowledged >= before);
    for _ in 0..commits {
        let done = known.commit(&mut stream, random);
        if let Err(error) = done {
            assert_eq!(error.kind(), ErrorKind::StorageFailed, "{error:?}");
            // Without power a read may have failed, and the first write does now. From then on
            // nothing is taken, however well the disk is.
            let mut stage = || {
                let append = append(subject(0), vec![1]);
                let staged = stream.stage(time(known.now), [Ok(append)], AppendMode::Each);
                staged.and_then(|_| stream.commit())
            };
            assert_eq!(stage().unwrap_err().kind(), ErrorKind::StorageFailed);
            assert_eq!(stage().unwrap_err().kind(), ErrorKind::StorageFailed);
            assert!(stream.commit().is_err() && stream.stage_settled(time(0), &[1]).is_err());
            return Err(error);
        }
    }
    let files = disk.files();
    known.rolls += files
        .keys()
        .filter(|path| path.extension().is_some_and(|kind| kind == "seg"))
        .count() as u64
        - 1;
    if random.coin() {
        stream.close()?;
    }
    Ok(())
}

fn crash(disk: &SimDisk, random: &mut Random) {
    match random.below(3) {
        0 => disk.kill(),
        _ => disk.crash(random.next_u64()),
    }
}

#[test]
fn f3_a_fault_at_every_step_loses_nothing_that_was_acknowledged() {
    let (mut failed, mut rolls, mut steps) = (0u64, 0, 0u64);
    for seed in 0..60 {
        // Once without a fault, to know how many steps there are.
        let (disk, mut known, mut random) = begin(seed);
        let from = disk.operations();
        live_and_die(&disk, &mut known, &mut random, 30).unwrap();
        let end = disk.operations();
        rolls += known.rolls;
        for step in from + 1..=end {
            let (disk, mut known, mut random) = begin(seed);
            let faults = [Fault::Fail, Fault::FailFromHereOn, Fault::PowerCut];
            disk.fault_at(step, faults[(seed + step) as usize % 3]);
            failed += u64::from(live_and_die(&disk, &mut known, &mut random, 30).is_err());
            steps += 1;
            let mut random = Random::new(seed ^ step << 20);
            for _ in 0..2 {
                crash(&disk, &mut random);
                let context = format!("seed {seed} step {step}");
                live_and_die(&disk, &mut known, &mut random, 3)
                    .unwrap_or_else(|error| panic!("{context}: {error:?}"));
            }
        }
    }
    assert!(
        steps > 3_000 && failed > steps / 2 && rolls > 100,
        "{failed} of {steps}, {rolls} rolls"
    );
}

#[test]
fn f3_faults_while_opening_lose_nothing_either() {
    for seed in 0..1_500 {
        let (disk, mut known, mut random) = begin(seed);
        live_and_die(&disk, &mut known, &mut random, 25).unwrap();
        crash(&disk, &mut random);
        for _ in 0..4 {
            let fault = [Fault::Fail, Fault::FailFromHereOn, Fault::PowerCut][random.index(3)];
            disk.fault_at(disk.operations() + 1 + random.below(12), fault);
            let commits = random.below(5);
            let done = live_and_die(&disk, &mut known, &mut random, commits);
            let kinds = [ErrorKind::StorageFailed];
            assert!(
                done.is_ok() || kinds.contains(&done.unwrap_err().kind()),
                "seed {seed}"
            );
            crash(&disk, &mut random);
        }
        live_and_die(&disk, &mut known, &mut random, 2).unwrap();
    }
}

#[test]
fn f3_a_sync_that_lies_costs_the_end_or_is_noticed() {
    let (mut noticed, mut fewer) = (0, 0);
    for seed in 0..2_000 {
        let (disk, mut known, mut random) = begin(seed);
        let step = disk.operations() + 1 + random.below(120);
        disk.fault_at(step, Fault::Lie);
        live_and_die(&disk, &mut known, &mut random, 20).unwrap();
        disk.crash(random.next_u64());
        match open(&disk, known.spec.clone(), 9, time(known.now)) {
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::StorageFailed),
                    "seed {seed}: {error:?}"
                );
                assert!(error.message().contains(DIR), "{error}");
                noticed += 1;
            }
            Ok((stream, _)) => match read_all(&stream.reader(), &Selection::All) {
                // Nothing that is read is wrong; the disk has lied about the rest.
                Ok(events) => {
                    for event in &events {
                        let (subject, body) = &known.tried[&event.seq];
                        assert_eq!(
                            (&event.subject, &event.body.to_bytes().unwrap()[..]),
                            (subject, &body[..])
                        );
                    }
                    fewer += u32::from(stream.tail() < known.acknowledged);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Damaged, "seed {seed}");
                    noticed += 1;
                }
            },
        }
    }
    assert!(noticed > 5 && fewer > 1, "{noticed} {fewer}");
}

#[test]
fn f2_a_full_disk_refuses_and_serves_again_when_there_is_room() {
    let (mut refused, mut freed) = (0, 0);
    for seed in 0..300 {
        let (disk, mut known, mut random) = begin(seed);
        let (mut stream, _) = open(&disk, known.spec.clone(), seed, time(0)).unwrap();
        disk.set_capacity(Some(30_000 + random.below(40_000)));
        for _ in 0..150 {
            known.commit(&mut stream, &mut random).unwrap();
        }
        let one = || append(subject(0), vec![7; 900]);
        let mut refusal = None;
        for _ in 0..60 {
            let outcomes = stream
                .stage(time(known.now), [Ok(one())], AppendMode::Each)
                .unwrap();
            stream.commit().unwrap();
            match outcomes.into_iter().next().unwrap() {
                Outcome::Refused(error) => refusal = Some(error),
                Outcome::Stored { seq, .. } => {
                    known.tried.insert(seq, (subject(0), vec![7; 900]));
                    known.acknowledged = stream.tail();
                    let max = known.spec.max_events.unwrap_or(u64::MAX);
                    known.perhaps = known.perhaps.max((seq + 1).saturating_sub(max));
                }
                Outcome::Unknown(error) => panic!("{error}"),
            }
        }
        if let Some(error) = refusal {
            assert_eq!(error.kind(), ErrorKind::OverQuota);
            assert!(error.retryable());
            refused += 1;
            if random.coin() {
                // Removing makes room, although what is removed must be written down first.
                let all = Removal::Before(stream.tail());
                match stream.stage_remove(time(known.now), &all) {
                    Ok(removed) => {
                        assert!(removed > 0);
                        stream.commit().unwrap();
                        known.removed.extend(1..stream.tail());
                        freed += 1;
                    }
                    // The room that is kept for that was used up by what was removed before.
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::OverQuota);
                        disk.set_capacity(None);
                    }
                }
            } else {
                disk.set_capacity(None);
            }
            let outcomes = stream
                .stage(time(known.now), [Ok(one())], AppendMode::Each)
                .unwrap();
            assert!(
                matches!(outcomes[0], Outcome::Stored { .. }),
                "seed {seed}: {outcomes:?}"
            );
            known
                .tried
                .insert(stream.tail() - 1, (subject(0), vec![7; 900]));
            stream.commit().unwrap();
            known.acknowledged = stream.tail();
            let max = known.spec.max_events.unwrap_or(u64::MAX);
            known.perhaps = known.perhaps.max(stream.tail().saturating_sub(max));
        }
        drop(stream);
        disk.set_capacity(None);
        disk.crash(seed);
        let (stream, _) = open(&disk, known.spec.clone(), seed + 1, time(known.now)).unwrap();
        known.check(&stream, &format!("seed {seed}")).unwrap();
    }
    assert!(refused > 100 && freed > 40, "{refused} {freed}");
}
