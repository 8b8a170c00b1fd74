//! Consumers in simulated worlds, thousands of them, each from a seed.
//!
//! `TRUNKLINE_SEEDS=N` tries N of each kind, `TRUNKLINE_SEED=n` one alone.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use trunkline_testing::sim::{Faults, Repeats, Scenario, Sharing, seeds};

/// Tries every seed, on as many threads as there are cores; the first that fails ends it.
fn try_seeds(otherwise: u64, sharing: Sharing, faults: &Faults) -> Repeats {
    let seeds = seeds(otherwise);
    let next = AtomicU64::new(seeds.start);
    let (failed, total) = (Mutex::new(None), Mutex::new(Repeats::default()));
    let (runs, worlds) = (AtomicU64::new(0), AtomicU64::new(0));
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads {
            scope.spawn(|| {
                while failed.lock().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let verdict = Scenario::from_seed(seed, sharing, faults.clone()).run();
                    runs.fetch_add(verdict.runs as u64, Ordering::Relaxed);
                    worlds.fetch_add(verdict.world_time.as_secs(), Ordering::Relaxed);
                    if !verdict.violations.is_empty() {
                        failed.lock().get_or_insert(verdict.to_string());
                        return;
                    }
                    let Repeats {
                        after_kill,
                        after_freeze,
                        after_stop,
                        otherwise,
                    } = verdict.repeats;
                    let mut total = total.lock();
                    total.after_kill += after_kill;
                    total.after_freeze += after_freeze;
                    total.after_stop += after_stop;
                    total.otherwise += otherwise;
                }
            });
        }
    });
    if let Some(verdict) = failed.into_inner() {
        panic!("{verdict}");
    }
    let (took, count) = (began.elapsed(), seeds.end - seeds.start);
    let total = total.into_inner();
    println!(
        "{sharing:?}: {count} seeds in {took:.1?}, {:.0} a second; {} runs, {} s of world time; repeats: {total:?}",
        count as f64 / took.as_secs_f64(),
        runs.into_inner(),
        worlds.into_inner(),
    );
    total
}

#[test]
fn c1_a_shared_consumer_handles_everything_whatever_befalls_it() {
    try_seeds(150, Sharing::Shared, &Faults::all());
}

#[test]
fn c2_a_shared_consumer_repeats_nothing_when_members_come_and_go() {
    let repeats = try_seeds(80, Sharing::Shared, &Faults::deployments());
    assert_eq!(repeats, Repeats::default());
}

#[test]
fn c2_a_shared_consumer_repeats_after_kills_what_was_not_settled_and_nothing_else() {
    let repeats = try_seeds(80, Sharing::Shared, &Faults::crashes());
    assert_eq!(
        repeats,
        Repeats {
            after_kill: repeats.after_kill,
            ..Repeats::default()
        }
    );
}

#[test]
fn a_seed_decides_everything_that_happens() {
    for seed in 0..10 {
        let scenario = Scenario::from_seed(seed, Sharing::Shared, Faults::all());
        let (first, again) = (scenario.run(), scenario.run());
        assert_eq!(first.fingerprint, again.fingerprint, "seed {seed}");
        assert_eq!(first.runs, again.runs);
    }
    let other = Scenario::from_seed(1, Sharing::Shared, Faults::all()).run();
    let first = Scenario::from_seed(0, Sharing::Shared, Faults::all()).run();
    assert_ne!(first.fingerprint, other.fingerprint);
}
