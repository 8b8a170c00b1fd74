//! Consumers in simulated worlds, hundreds of them, each from a seed.
//!
//! `TRUNKLINE_SEEDS=N` tries N of each kind, `TRUNKLINE_SEED=n` one alone.

#![allow(
    clippy::print_stdout,
    reason = "how much was simulated is what the run is for"
)]

use trunkline_testing::sim::{
    Faults, Repeats, Scenario, Sharing, Summary, Violation, seeds, try_scenarios,
};

fn check_all(what: &str, otherwise: u64, scenario: impl Fn(u64) -> Scenario + Sync) -> Summary {
    let summary = try_scenarios(seeds(otherwise), scenario);
    let summary = summary.unwrap_or_else(|verdict| panic!("{verdict}"));
    println!("{what}: {summary}");
    summary
}

fn check(otherwise: u64, sharing: Sharing, faults: &Faults) -> Summary {
    check_all(&format!("{sharing:?}"), otherwise, |seed| {
        Scenario::from_seed(seed, sharing, faults.clone())
    })
}

#[test]
fn c1_a_shared_consumer_handles_everything_whatever_befalls_it() {
    check(600, Sharing::Shared, &Faults::all());
}

#[test]
fn c2_a_shared_consumer_repeats_nothing_when_members_come_and_go() {
    let summary = check(300, Sharing::Shared, &Faults::deployments());
    assert_eq!(summary.repeats, Repeats::default());
}

#[test]
fn c2_a_shared_consumer_repeats_after_kills_what_was_not_settled_and_nothing_else() {
    let summary = check(300, Sharing::Shared, &Faults::crashes());
    let after_kill = summary.repeats.after_kill;
    assert_eq!(
        summary.repeats,
        Repeats {
            after_kill,
            ..Repeats::default()
        }
    );
}

#[test]
fn c10_an_ordered_consumer_keeps_every_key_in_order_whatever_befalls_it() {
    check(400, Sharing::Ordered, &Faults::all());
}

#[test]
fn c2_an_ordered_consumer_repeats_nothing_when_members_come_and_go() {
    let summary = check(300, Sharing::Ordered, &Faults::deployments());
    assert_eq!(summary.repeats, Repeats::default());
}

#[test]
fn c2_an_ordered_consumer_repeats_after_kills_what_was_not_committed_and_nothing_else() {
    check(200, Sharing::Ordered, &Faults::crashes());
}

/// An operator divides the consumer into any number of partitions, up to six times.
fn check_divided(otherwise: u64, faults: &Faults) -> Summary {
    check_all("divided", otherwise, |seed| Scenario {
        divisions: 1 + usize::try_from(seed % 6).unwrap_or(0),
        ..Scenario::from_seed(seed, Sharing::Ordered, faults.clone())
    })
}

#[test]
fn c10_a_consumer_that_is_divided_keeps_every_key_in_order_whatever_befalls_it() {
    check_divided(300, &Faults::all());
}

#[test]
fn c2_a_consumer_that_is_divided_repeats_nothing_when_members_come_and_go() {
    let summary = check_divided(200, &Faults::deployments());
    assert_eq!(summary.repeats, Repeats::default());
}

#[test]
fn c2_a_consumer_that_is_divided_repeats_after_kills_what_was_not_committed_and_nothing_else() {
    check_divided(150, &Faults::crashes());
}

/// Somebody pauses the consumer again and again.
fn check_paused(otherwise: u64, sharing: Sharing, faults: &Faults) -> Summary {
    check_all(&format!("{sharing:?}, paused"), otherwise, |seed| {
        Scenario {
            pauses: 1 + usize::try_from(seed % 4).unwrap_or(0),
            ..Scenario::from_seed(seed, sharing, faults.clone())
        }
    })
}

/// Everything goes wrong, and above all members stand still and hear late of what happened meanwhile.
fn slow_to_hear() -> Faults {
    Faults {
        freezes: 15.0,
        lagging_readers: 0.3,
        ..Faults::all()
    }
}

#[test]
fn c13_nothing_starts_while_an_ordered_consumer_is_paused_whatever_befalls_it() {
    check_paused(300, Sharing::Ordered, &slow_to_hear());
}

#[test]
fn c13_nothing_starts_while_a_shared_consumer_is_paused_whatever_befalls_it() {
    check_paused(300, Sharing::Shared, &slow_to_hear());
}

#[test]
fn c13_a_pause_repeats_nothing_when_members_come_and_go() {
    for sharing in [Sharing::Ordered, Sharing::Shared] {
        let summary = check_paused(100, sharing, &Faults::deployments());
        assert_eq!(summary.repeats, Repeats::default());
    }
}

/// Somebody resets it up to three times, and pauses and divides it in between.
fn check_reset(otherwise: u64, faults: &Faults) {
    check_all("reset", otherwise, |seed| Scenario {
        resets: 1 + usize::try_from(seed % 3).unwrap_or(0),
        pauses: usize::try_from(seed / 3 % 2).unwrap_or(0),
        divisions: usize::try_from(seed / 6 % 2).unwrap_or(0),
        ..Scenario::from_seed(seed, Sharing::Ordered, faults.clone())
    });
}

#[test]
fn c13_a_consumer_that_is_reset_handles_everything_anew_whatever_befalls_it() {
    check_reset(300, &Faults::all());
}

#[test]
fn c13_a_reset_survives_members_that_come_and_go_or_die() {
    check_reset(100, &Faults::deployments());
    check_reset(100, &Faults::crashes());
}

fn check_holding(otherwise: u64, faults: &Faults) {
    check_all("holding keys", otherwise, |seed| {
        Scenario::from_seed(seed, Sharing::Ordered, faults.clone()).holding()
    });
}

#[test]
fn d4_a_consumer_holds_keys_until_operators_deal_with_them_whatever_befalls_it() {
    check_holding(300, &Faults::all());
}

#[test]
fn d4_held_keys_survive_members_that_come_and_go_or_die() {
    check_holding(100, &Faults::deployments());
    check_holding(100, &Faults::crashes());
}

#[test]
fn the_judge_sees_that_a_consumer_does_not_hold_keys() {
    let mut broken = 0;
    for seed in 0..20 {
        let scenario = Scenario {
            holds_keys: false,
            events: 300,
            keys: 10,
            ..Scenario::from_seed(seed, Sharing::Ordered, Faults::deployments()).holding()
        };
        let verdict = scenario.run();
        let held = |violation: &Violation| violation.property.starts_with("D4");
        broken += u32::from(verdict.violations.iter().any(held));
    }
    assert!(broken >= 15, "only {broken} of 20 worlds held no keys");
}

/// A judge that finds nothing proves nothing: sharing keeps no order, so that whoever expects one must
/// be told of it.
#[test]
fn the_judge_sees_that_a_shared_consumer_keeps_no_order() {
    let mut broken = 0;
    for seed in 0..20 {
        let scenario = Scenario {
            judged: Sharing::Ordered,
            members: 3,
            concurrency: 16,
            ..Scenario::from_seed(seed, Sharing::Shared, Faults::crashes())
        };
        let verdict = scenario.run();
        let order = |violation: &Violation| violation.property.starts_with("C10");
        broken += u32::from(verdict.violations.iter().any(order));
    }
    assert!(broken >= 15, "only {broken} of 20 worlds were out of order");
}

/// Where two lives of the same scenario part, with what came before.
fn difference(scenario: &Scenario) -> String {
    for _ in 0..50 {
        let (one, other) = (scenario.trace(), scenario.trace());
        let at = one.iter().zip(&other).position(|(one, other)| one != other);
        if let Some(at) = at {
            let before = one[at.saturating_sub(15)..at].join("\n");
            let after = |all: &[String]| all[at..all.len().min(at + 15)].join("\n");
            let (one, other) = (after(&one), after(&other));
            return format!("after\n{before}\ncomes\n{one}\nor\n{other}");
        }
    }
    "its lives were not the same, and do not part again".to_owned()
}

#[test]
fn a_seed_decides_everything_that_happens() {
    let mut fingerprints = Vec::new();
    for seed in 0..20 {
        let sharing = [Sharing::Shared, Sharing::Ordered][usize::from(seed % 2 == 0)];
        let scenario = Scenario::from_seed(seed, sharing, Faults::all());
        let (first, again) = (scenario.run(), scenario.run());
        if first.fingerprint != again.fingerprint {
            panic!("seed {seed}: {}", difference(&scenario));
        }
        assert_eq!(first.runs, again.runs, "seed {seed}");
        fingerprints.push(first.fingerprint);
    }
    fingerprints.sort_unstable();
    fingerprints.dedup();
    assert_eq!(fingerprints.len(), 20, "other seeds are other worlds");
}
