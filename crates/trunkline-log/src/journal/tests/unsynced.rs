//! A journal that is published before it is synced: the end of the process costs nothing, a loss of power
//! the end of it, and never something in the middle.

use super::world::{Counts, World};
use crate::sim::Fault;

/// Opens what a loss of power has left: everything up to some group, and all that was synced.
fn recover_part(world: &mut World, context: &str) -> bool {
    world
        .open()
        .unwrap_or_else(|error| panic!("{context}: {error:?}"));
    assert_eq!(world.damaged_snapshots, 0, "{context}");
    let actual = world.actual();
    let kept = (world.synced..world.boundaries.len())
        .rev()
        .find(|kept| world.expected(&world.published[..world.boundaries[*kept]]) == actual);
    let kept = kept.unwrap_or_else(|| {
        panic!(
            "{context}: it is not as it was after any of the groups {} to {}",
            world.synced,
            world.boundaries.len() - 1
        )
    });
    let lost = kept + 1 < world.boundaries.len();
    world.boundaries.truncate(kept + 1);
    world.published.truncate(world.boundaries[kept]);
    world.synced = kept;
    world.in_flight.clear();
    lost
}

fn seeds(usual: u64) -> u64 {
    let times = std::env::var("TRUNKLINE_SEEDS").ok();
    usual * times.and_then(|times| times.parse().ok()).unwrap_or(1)
}

#[test]
fn a_loss_of_power_takes_the_end_of_what_was_not_synced_and_a_kill_nothing() {
    let (mut counts, mut lost, mut whole) = (Counts::default(), 0, 0);
    for seed in 0..seeds(600) {
        let mut world = World::new(seed);
        world.is_relaxed = true;
        world.open().unwrap();
        for step in 0..160 {
            let context = format!("seed {seed}, step {step}");
            match world.random.below(30) {
                0 | 1 => {
                    world.flush().unwrap();
                    world.sync().unwrap();
                }
                2 => {
                    world.lose();
                    world.disk.crash(world.random.next_u64());
                    match recover_part(&mut world, &context) {
                        true => lost += 1,
                        false => whole += 1,
                    }
                }
                3 => {
                    world.lose();
                    world.disk.kill();
                    let groups = world.boundaries.len();
                    assert!(!recover_part(&mut world, &context), "{context}");
                    assert_eq!(world.boundaries.len(), groups, "{context}");
                }
                _ => world
                    .step()
                    .unwrap_or_else(|error| panic!("{context}: {error:?}")),
            }
        }
        counts.add(world.counts);
    }
    println!("{counts:?}, {lost} lost an end, {whole} did not");
    assert!(lost > 500 && whole > 200, "{lost} {whole}");
    assert!(counts.snapshots > 100 && counts.snapshots_read > 100 && counts.moves > 100);
}

#[test]
fn a_sync_that_fails_ends_the_journal_although_what_it_was_for_was_answered() {
    for fault in [Fault::Fail, Fault::PowerCut] {
        let mut world = World::new(7);
        world.is_relaxed = true;
        world.open().unwrap();
        while !world.journal().is_unsynced() {
            world.step().unwrap();
        }
        world.flush().unwrap();
        let at = world.disk.operations() + 1;
        world.disk.fault_at(at, fault);
        assert!(world.sync().is_err());
        world.disk.mend();
        // The disk is well again, and nobody knows what of the group is on it.
        assert!(world.sync().is_err());
        assert!(world.commit().is_err());
        world.lose();
        world.disk.crash(1);
        recover_part(&mut world, &format!("{fault:?}"));
    }
}
