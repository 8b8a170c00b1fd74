//! Whatever fails: what was published is there, and what was on its way all or not at all.

use super::world::{Counts, World};
use crate::sim::Fault;
use trunkline_core::ErrorKind;

/// How many seeds are tried; `TRUNKLINE_SEEDS` multiplies them.
fn seeds(usual: u64) -> u64 {
    let times = std::env::var("TRUNKLINE_SEEDS").ok();
    usual * times.and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Stops at any moment, in the three ways in which a process can stop, and opens again.
fn restart(world: &mut World) {
    match world.random.below(3) {
        0 => {
            world.in_flight = world.journal().staged.clone();
            let _ = world.journal().close().unwrap();
            world.published.append(&mut world.in_flight);
            world.boundaries.push(world.published.len());
            world.lose();
            let power = world.random.coin();
            if power {
                world.disk.crash(world.random.next_u64());
            } else {
                world.disk.kill();
            }
        }
        1 => {
            if world.random.coin() {
                world.in_flight = world.journal().staged.clone();
                world.journal().write().unwrap();
            }
            world.lose();
            world.disk.kill();
        }
        _ => {
            if world.random.coin() {
                world.in_flight = world.journal().staged.clone();
                world.journal().write().unwrap();
            }
            world.lose();
            world.disk.crash(world.random.next_u64());
        }
    }
    world.recover();
}

#[test]
fn what_is_opened_again_is_what_was_live_whenever_it_stopped() {
    let mut counts = Counts::default();
    for seed in 0..seeds(600) {
        let mut world = World::new(seed);
        world.open().unwrap();
        for _ in 0..120 {
            if world.random.below(25) == 0 {
                restart(&mut world);
            } else if let Err(error) = world.step() {
                panic!("seed {seed}: {error:?}");
            }
            if world.journal().staged.is_empty() && world.random.below(4) == 0 {
                assert_eq!(
                    world.actual(),
                    world.expected(&world.published),
                    "seed {seed}"
                );
            }
        }
        restart(&mut world);
        counts.add(world.counts);
    }
    println!("{counts:?}");
    assert!(counts.commits > 10_000 && counts.conflicts > 500 && counts.duplicates > 500);
    assert!(counts.snapshots > 100 && counts.snapshots_read > 100);
    assert!(counts.moves > 200 && counts.expired > 200 && counts.cuts > 5);
}

/// Runs a seed with one fault, and checks what is there afterwards.
fn run(seed: u64, operation: u64, fault: Fault, steps: u64, counts: &mut Counts) -> u64 {
    let mut world = World::new(seed);
    world.disk.fault_at(operation, fault);
    let what = format!("seed {seed}, {fault:?} at operation {operation}");
    let mut step = 0;
    while step < steps {
        step += 1;
        let result = if world.journal.is_none() {
            world.open()
        } else {
            world.step()
        };
        let Err(error) = result else { continue };
        let poisoned = world
            .journal
            .as_ref()
            .is_none_or(|journal| journal.failed.is_some());
        if !poisoned && World::is_refusal(error.kind()) {
            // Nothing was staged by what was refused; when there is room, all goes on.
            world.counts.full += 1;
            let staged = world.journal().staged.clone();
            let after = world.expected(&world.published);
            assert_eq!(world.actual(), after, "{what}");
            world.disk.mend();
            world.in_flight = staged;
            continue;
        }
        assert_ne!(error.kind(), ErrorKind::Damaged, "{what}: {error:?}");
        world.counts.failures += 1;
        if world.journal.is_some() && poisoned {
            let refused = world.journal().flush().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::StorageFailed, "{what}");
            assert!(world.commit().is_err(), "{what}");
        }
        world.lose();
        world.disk.mend();
        if fault == Fault::PowerCut || world.random.coin() {
            world.disk.crash(world.random.next_u64());
        } else {
            world.disk.kill();
        }
        world.recover();
    }
    // And once more after a loss of power, when nothing is on its way.
    if world.journal.is_some() {
        world.disk.mend();
        world.flush().unwrap();
        world.lose();
        world.disk.crash(world.random.next_u64());
        world.recover();
    }
    counts.add(world.counts);
    world.disk.operations()
}

#[test]
fn a_fault_at_every_operation_loses_nothing_that_was_published() {
    let mut counts = Counts::default();
    let faults = [
        Fault::Fail,
        Fault::FailFromHereOn,
        Fault::FullFromHereOn,
        Fault::PowerCut,
    ];
    let mut runs = 0;
    for seed in 1_000..1_006 {
        let operations = run(seed, u64::MAX, Fault::Fail, 90, &mut Counts::default());
        for operation in 1..=operations {
            for fault in faults {
                run(seed, operation, fault, 90, &mut counts);
                runs += 1;
            }
        }
    }
    for seed in 2_000..2_000 + seeds(1_000) {
        let operation = 1 + seed * 7_919 % 150;
        run(
            seed,
            operation,
            faults[(seed % 4) as usize],
            120,
            &mut counts,
        );
        runs += 1;
    }
    println!("{runs} runs: {counts:?}");
    assert!(counts.failures > 1_000 && counts.full > 100 && counts.snapshots > 100);
}

#[test]
fn a_disk_that_lies_costs_the_end_or_is_refused_but_never_gives_what_was_not() {
    let (mut refused, mut shorter, mut whole, mut older) = (0, 0, 0, 0);
    for seed in 0..seeds(1_500) {
        let lived = |fault: Option<u64>| {
            let mut world = World::new(seed);
            if let Some(operation) = fault {
                world.disk.fault_at(operation, Fault::Lie);
            }
            world.open().unwrap();
            for _ in 0..90 {
                world.step().unwrap();
            }
            world.in_flight = world.journal().staged.clone();
            world.journal().write().unwrap();
            world
        };
        let mut world = match seed % 2 {
            0 => lived(Some(5 + seed * 31 % 120)),
            // Near the end, where no later sync makes up for it.
            _ => lived(Some(lived(None).disk.operations() - seed / 2 % 8)),
        };
        world.lose();
        world.disk.crash(seed);
        let opened = world.open();
        older += world.damaged_snapshots;
        match opened {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Damaged, "seed {seed}: {error:?}");
                refused += 1;
            }
            Ok(()) if world.journal().verify_values().is_err() => refused += 1,
            Ok(()) => {
                let actual = world.actual();
                let mut all = world.published.clone();
                all.append(&mut world.in_flight.clone());
                let boundaries = world.boundaries.iter().copied().chain([all.len()]);
                let found = boundaries
                    .rev()
                    .find(|end| world.expected(&all[..*end]) == actual);
                match found {
                    None => panic!("seed {seed}: it has what never was"),
                    Some(end) if end < world.published.len() => shorter += 1,
                    Some(_) => whole += 1,
                }
            }
        }
    }
    println!("refused {refused}, shorter {shorter}, whole {whole}, from an older snapshot {older}");
    assert!(
        refused > 20 && shorter > 2 && whole > 500,
        "{refused} {shorter} {whole}"
    );
}
