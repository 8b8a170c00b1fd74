//! The rules of a policy as tables.

use std::fmt;

use super::*;
use crate::consumer::{Panicked, TimedOut};
use crate::failure::FailureExt;

#[derive(Debug)]
struct Down;

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the database is down")
    }
}

impl StdError for Down {}

impl Classify for Down {
    fn disposition(&self) -> Disposition {
        Disposition::Permanent
    }
}

#[derive(Debug)]
struct While(Down);

impl fmt::Display for While {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("while saving")
    }
}

impl StdError for While {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

const SECOND: Duration = Duration::from_secs(1);
const NOW: Timestamp = Timestamp::from_nanos(1_000_000_000_000);

/// The verdict in a line, with a jitter of half its most.
fn judged(policy: &Policy, failure: Option<&Failure>, failures: u32, starts: u32) -> String {
    let counters = Counters { failures, starts };
    match policy.judge(failure, counters, NOW, 0.5) {
        Verdict::Again {
            delay,
            counts,
            reason,
            error,
        } => {
            let counts = if counts { "counts" } else { "does not count" };
            format!("again in {delay:?}, {counts}: {reason}: {error}")
        }
        Verdict::Dead { reason, error } => format!("dead: {reason}: {error}"),
    }
}

fn fixed(attempts: u32, seconds: u64) -> Retry {
    Retry::fixed(attempts, Duration::from_secs(seconds)).jitter(0.0)
}

#[test]
fn c5_c6_each_class_of_failure_has_its_verdict() {
    let policy = Policy::default();
    let check = |failure: Failure, failures, expected: &str| {
        assert_eq!(judged(&policy, Some(&failure), failures, 0), expected);
    };
    check("no".into(), 0, "again in 1.1s, counts: failed: no");
    check("no".into(), 1, "again in 5.5s, counts: failed: no");
    check("no".into(), 3, "again in 330s, counts: failed: no");
    check("no".into(), 4, "dead: failed: no");
    check("no".into(), u32::MAX, "dead: failed: no");
    check("bad".permanent(), 0, "dead: failed: bad");
    // What a handler asks for itself is neither counted nor lengthened, nor does it run out.
    let (long, forever) = (30 * SECOND, Duration::MAX);
    check(
        "busy".throttled(long),
        99,
        "again in 30s, does not count: throttled: busy",
    );
    check(
        "early".snooze(long),
        99,
        "again in 30s, does not count: snoozed: early",
    );
    check(
        "early".snooze(forever),
        0,
        "again in 31536000s, does not count: snoozed: early",
    );
    check(
        "noon".snooze_until(NOW.plus(7 * SECOND)),
        99,
        "again in 7s, does not count: snoozed: noon",
    );
    check(
        "noon".snooze_until(NOW.minus(7 * SECOND)),
        0,
        "again in 0ns, does not count: snoozed: noon",
    );
    check(
        Failure::timed_out(3 * SECOND),
        0,
        "again in 1.1s, counts: timed_out: the handler had not ended after 3s and was cancelled; \
         make it faster or its time-out longer",
    );
    check(
        Failure::panicked(&"bang"),
        4,
        "dead: panicked: the handler panicked: bang",
    );
    let of = |disposition, reason| Failure::new(disposition, reason, "it");
    check(
        of(Disposition::Permanent, "undecodable"),
        0,
        "dead: undecodable: it",
    );
    check(
        of(Disposition::Transient, UNSUPPORTED_TYPE),
        99,
        "again in 30s, does not count: unsupported_type: it",
    );
    check(
        of(Disposition::Transient, "unsupported_version"),
        0,
        "again in 1.1s, counts: unsupported_version: it",
    );
    check(
        of(Disposition::Transient, "unsupported_version"),
        4,
        "dead: unsupported_version: it",
    );
}

#[test]
fn c8_starts_without_an_outcome_run_out_and_from_the_third_on_alone() {
    let policy = Policy::default();
    let again =
        "again in 0ns, does not count: no_outcome: the member that ran it died, or lost its lease";
    for starts in 0..5 {
        assert_eq!(judged(&policy, None, 99, starts), again);
    }
    assert_eq!(
        judged(&policy, None, 0, 5),
        "dead: crash_loop: 5 runs were started and none of them came to an end"
    );
    // An outcome is an outcome, however many starts it took.
    assert_eq!(
        judged(&policy, Some(&"no".into()), 0, 5),
        "again in 1.1s, counts: failed: no"
    );
    let alone = |starts| {
        Counters {
            failures: 9,
            starts,
        }
        .runs_alone()
    };
    assert_eq!(
        [0, 1, 2, 3, 4, u32::MAX].map(alone),
        [false, false, true, true, true, true]
    );
}

#[test]
fn an_error_type_has_attempts_and_delays_of_its_own() {
    let policy = Policy::default()
        .retry(fixed(2, 1))
        .retry_for::<Down>(fixed(4, 60))
        .retry_for::<While>(fixed(9, 9))
        .retry_for::<TimedOut>(Retry::never())
        .retry_for::<Panicked>(fixed(3, 7));
    let check = |failure: Failure, failures, expected: &str| {
        let verdict = judged(&policy, Some(&failure), failures, 0);
        assert!(verdict.starts_with(expected), "{verdict}, not {expected}");
    };
    check("other".into(), 0, "again in 1s, counts");
    check("other".into(), 1, "dead");
    check(Down.into(), 1, "again in 60s, counts");
    check(Down.into(), 3, "dead");
    // The first that fits, wherever in the chain it is.
    check(While(Down).into(), 2, "again in 60s, counts");
    check(Failure::timed_out(SECOND), 0, "dead: timed_out");
    check(Failure::panicked(&"x"), 1, "again in 7s, counts: panicked");
    // What the handler or a rule said goes before.
    check(Down.permanent(), 0, "dead");
    check(Down.snooze(SECOND), 9, "again in 1s, does not count");
    let ruled = policy.clone().classify::<Down>();
    assert_eq!(
        judged(&ruled, Some(&While(Down).into()), 0, 0),
        "dead: failed: while saving: the database is down"
    );
}

#[test]
fn the_horizon_is_the_longest_way_to_the_last_attempt() {
    let check = |policy: Policy, expected: f64| {
        let horizon = policy.horizon().as_secs_f64();
        // A share of a duration is rounded to the nanosecond.
        assert!((horizon - expected).abs() < 1e-3, "{horizon}: {policy:?}");
    };
    // 1 + 5 + 30 + 300 s lengthened by a fifth, and five runs of five minutes.
    check(Policy::default(), 336.0 * 1.2 + 5.0 * 300.0);
    check(Policy::default().time_out(None), 336.0 * 1.2);
    let plain = || Policy::default().time_out(None);
    check(plain().retry(Retry::never()), 0.0);
    check(plain().retry(Retry::never()).time_out(SECOND), 1.0);
    check(plain().retry(fixed(3, 10)), 20.0);
    // The errors of one event may be of every class: each wait may be the longest of its turn.
    let list = Retry::list([SECOND, 100 * SECOND]).jitter(0.0);
    check(
        plain().retry(fixed(5, 10)).retry_for::<Down>(list),
        10.0 + 100.0 + 10.0 + 10.0,
    );
    let most = Retry::fixed(Retry::MAX_ATTEMPTS, Duration::MAX);
    let year = LONGEST_DELAY.as_secs_f64();
    check(plain().retry(most), 999.0 * 1.2 * year);
}

#[test]
fn only_what_speaks_against_the_handler_counts_for_the_breaker() {
    let policy = Policy::default().classify::<Down>();
    let of = |disposition, reason| Failure::new(disposition, reason, "it");
    for (failure, expected) in [
        ("no".into(), true),
        (Down.into(), true),
        (Failure::panicked(&"x"), true),
        (Failure::timed_out(SECOND), true),
        (of(Disposition::Permanent, "undecodable"), true),
        (of(Disposition::Transient, "unsupported_version"), true),
        (of(Disposition::Transient, UNSUPPORTED_TYPE), false),
        ("later".snooze(SECOND), false),
        ("later".snooze_until(NOW), false),
        ("busy".throttled(SECOND), false),
    ] {
        assert_eq!(policy.is_trouble(&failure), expected, "{failure:?}");
    }
}

#[test]
fn policies_that_cannot_work_are_refused_with_their_numbers() {
    let check = |policy: Policy, expected: &str| {
        let error = policy.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.to_string().contains(expected), "{error}");
    };
    let year = 365 * 24 * 3600;
    check(Policy::default().retry(fixed(0, 1)), "0 attempts");
    check(
        Policy::default().retry(fixed(2, year + 1)),
        "a delay of 31536001s; use at most 31536000s",
    );
    check(
        Policy::default().retry_for::<Down>(fixed(1_001, 1)),
        "1001 attempts",
    );
    check(Policy::default().retry_for::<Down>(fixed(1_001, 1)), "Down");
    check(
        Policy::default().time_out(Duration::ZERO),
        "a time-out of 0ns",
    );
    check(
        Policy::default().time_out(Duration::from_secs(year + 1)),
        "a time-out of 31536001s",
    );
    check(
        Policy::default().breaker(Breaker::default().runs(0)),
        "a breaker over 0 runs",
    );
    Policy::default()
        .time_out(None)
        .breaker(None)
        .check()
        .unwrap();
}

#[test]
fn what_is_said_changes_a_policy_and_leaves_the_rest() {
    let text = |policy: &Policy| format!("{policy:?}");
    let mut policy = Policy::default();
    policy.change(&ConsumerSettings::default());
    assert_eq!(text(&policy), text(&Policy::default()));
    policy.change(&Policy::default().said());
    assert_eq!(text(&policy), text(&Policy::default()));
    let said = |policy: Policy| policy.said();
    let own = Policy::default().retry(fixed(7, 7)).time_out(None).breaker(
        Breaker::default()
            .runs(8)
            .share(0.25)
            .pauses(SECOND, 8 * SECOND),
    );
    policy.change(&said(own.clone()));
    assert_eq!(text(&policy), text(&own));
    policy.change(&said(Policy::default().breaker(None)));
    assert_eq!(policy.breaker, None);
    // Numbers of a breaker that is off do not turn it on.
    policy.change(&ConsumerSettings {
        breaker_runs: Some(5),
        ..ConsumerSettings::default()
    });
    assert_eq!(policy.breaker, None);
    policy.change(&ConsumerSettings {
        breaker: Some(true),
        ..ConsumerSettings::default()
    });
    assert_eq!(policy.breaker, Some(Breaker::default()));
}
