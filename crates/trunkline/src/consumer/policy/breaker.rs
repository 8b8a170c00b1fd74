//! When to stop because too much fails, and when to go on.
//!
//! ```text
//!            half of the last 100 runs failed             the pause is over
//!   closed ───────────────────────────────────► open ──────────────────────► probing: one run
//!      ▲                                          ▲                             │     │
//!      │                                          └── it fails: twice the pause ┘     │
//!      └───────────────────────────── it succeeds ────────────────────────────────────┘
//! ```

use std::time::Duration;

use tokio::time::Instant;
use trunkline_core::{Error, ErrorKind, Result};

use crate::consumer::settings::ConsumerSettings;

/// The longest pause that a breaker may make.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// When a member stops because too much fails: what is behind its handlers is down, or they are
/// broken, and going on would only use up attempts and fill the dead letters.
///
/// By default it opens when half of the last 100 runs failed. Nothing starts then for a second, after
/// which one event is tried. If it fails too, the pause doubles, up to a minute; if it succeeds, all
/// goes on. Snoozed and throttled runs count neither way.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "a breaker does nothing until a consumer has it"]
pub struct Breaker {
    runs: u32,
    share: f64,
    first_pause: Duration,
    longest_pause: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            runs: 100,
            share: 0.5,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
        }
    }
}

impl Breaker {
    /// The most runs that a breaker may remember.
    pub const MAX_RUNS: u32 = 10_000;

    /// How many runs it looks back on. 100 unless set.
    pub fn runs(mut self, runs: u32) -> Self {
        self.runs = runs;
        self
    }

    /// The share of them that must have failed: 0.5 unless set.
    pub fn share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// The first pause, and the longest that doubling makes of it. 1 s and 60 s unless set.
    pub fn pauses(mut self, first: Duration, longest: Duration) -> Self {
        self.first_pause = first;
        self.longest_pause = longest;
        self
    }

    /// Changes what is said and leaves the rest.
    pub(super) fn change(breaker: &mut Option<Self>, said: &ConsumerSettings) {
        match said.breaker {
            Some(false) => *breaker = None,
            Some(true) => drop(breaker.get_or_insert_default()),
            None => {}
        }
        if let Some(breaker) = breaker {
            breaker.runs = said.breaker_runs.unwrap_or(breaker.runs);
            breaker.share = said.breaker_share.unwrap_or(breaker.share);
            breaker.first_pause = said.breaker_first_pause.unwrap_or(breaker.first_pause);
            breaker.longest_pause = said.breaker_longest_pause.unwrap_or(breaker.longest_pause);
        }
    }

    /// Adds this breaker to settings.
    pub(super) fn say(self, said: &mut ConsumerSettings) {
        said.breaker_runs = Some(self.runs);
        said.breaker_share = Some(self.share);
        said.breaker_first_pause = Some(self.first_pause);
        said.breaker_longest_pause = Some(self.longest_pause);
    }

    pub(super) fn check(&self) -> Result<()> {
        let refuse = |fault: String| Err(Error::new(ErrorKind::InvalidConfig, fault));
        if !(1..=Self::MAX_RUNS).contains(&self.runs) {
            return refuse(format!(
                "a breaker over {} runs; use 1 to {}",
                self.runs,
                Self::MAX_RUNS
            ));
        }
        // Not a number is in no range.
        if !(self.share > 0.0 && self.share <= 1.0) {
            return refuse(format!(
                "a breaker at a share of {}; use more than 0, up to 1",
                self.share
            ));
        }
        let pauses = Duration::from_millis(1)..=LONGEST_PAUSE;
        if !pauses.contains(&self.first_pause) || !pauses.contains(&self.longest_pause) {
            return refuse(format!(
                "a breaker with pauses of {:?} to {:?}; use 1 ms to 1 day",
                self.first_pause, self.longest_pause
            ));
        }
        if self.first_pause > self.longest_pause {
            return refuse(format!(
                "a breaker whose first pause of {:?} is longer than the longest, {:?}",
                self.first_pause, self.longest_pause
            ));
        }
        Ok(())
    }

    /// Of the runs that are remembered, how many must have failed.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of at most 10 000 runs fits, and is not below 0"
    )]
    fn limit(&self) -> u32 {
        ((f64::from(self.runs) * self.share).ceil() as u32).max(1)
    }
}

/// A breaker at work.
#[derive(Clone, Debug)]
pub(in crate::consumer) struct Circuit {
    breaker: Breaker,
    limit: u32,
    /// Whether each of the last runs failed; the oldest is at `next` once it is full.
    last: Vec<bool>,
    next: usize,
    failed: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Closed,
    Open {
        until: Instant,
        pause: Duration,
    },
    /// The pause is over: the next run is a probe.
    Due {
        pause: Duration,
    },
    /// The probe is under way.
    Probing {
        pause: Duration,
    },
}

/// What the end of a run changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consumer) enum Turned {
    Opened { pause: Duration },
    Closed,
}

/// How a run ended, as far as a breaker cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consumer) enum Ended {
    Well,
    Failed,
    /// It says nothing: snoozed, throttled, cancelled.
    Neither,
}

impl Circuit {
    pub(in crate::consumer) fn new(breaker: Breaker) -> Self {
        Self {
            limit: breaker.limit(),
            breaker,
            last: Vec::new(),
            next: 0,
            failed: 0,
            state: State::Closed,
        }
    }

    /// Whether runs start freely.
    pub(in crate::consumer) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// How many may start now, where `wanted` would.
    pub(in crate::consumer) fn room(&self, wanted: usize) -> usize {
        match self.state {
            State::Closed => wanted,
            State::Due { .. } => wanted.min(1),
            State::Open { .. } | State::Probing { .. } => 0,
        }
    }

    /// Until when nothing starts.
    pub(in crate::consumer) fn until(&self) -> Option<Instant> {
        match self.state {
            State::Open { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Ends a pause that is over.
    pub(in crate::consumer) fn look(&mut self, now: Instant) {
        if let State::Open { until, pause } = self.state
            && until <= now
        {
            self.state = State::Due { pause };
        }
    }

    /// A run starts, for which there was [`room`](Self::room). Says whether it is the probe.
    pub(in crate::consumer) fn start(&mut self) -> bool {
        match self.state {
            State::Due { pause } => {
                self.state = State::Probing { pause };
                true
            }
            _ => false,
        }
    }

    /// A run ended. `now` is asked for only when something fails.
    pub(in crate::consumer) fn end(
        &mut self,
        is_probe: bool,
        ended: Ended,
        now: impl FnOnce() -> Instant,
    ) -> Option<Turned> {
        match (self.state, ended) {
            (State::Closed, Ended::Well | Ended::Failed) => {
                self.remember(ended == Ended::Failed);
                if self.failed < self.limit {
                    return None;
                }
                Some(self.open(self.breaker.first_pause, now()))
            }
            (State::Probing { .. }, Ended::Well) if is_probe => {
                self.state = State::Closed;
                Some(Turned::Closed)
            }
            (State::Probing { pause }, Ended::Failed) if is_probe => {
                let pause = pause.saturating_mul(2).min(self.breaker.longest_pause);
                Some(self.open(pause, now()))
            }
            (State::Probing { pause }, Ended::Neither) if is_probe => {
                self.state = State::Due { pause };
                None
            }
            // What started before it opened says nothing about now.
            _ => None,
        }
    }

    fn open(&mut self, pause: Duration, now: Instant) -> Turned {
        self.last.clear();
        self.next = 0;
        self.failed = 0;
        self.state = State::Open {
            until: now + pause,
            pause,
        };
        Turned::Opened { pause }
    }

    fn remember(&mut self, failed: bool) {
        let runs = usize::try_from(self.breaker.runs).unwrap_or(usize::MAX);
        self.failed += u32::from(failed);
        if self.last.len() < runs {
            self.last.push(failed);
        } else {
            self.failed -= u32::from(self.last[self.next]);
            self.last[self.next] = failed;
            self.next = (self.next + 1) % runs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One step of a scenario: at that many milliseconds, a run starts (`+`), or one ends well
    /// (`o`), failed (`x`) or neither (`~`); upper case is the probe. Then the state is as said.
    fn check(breaker: Breaker, steps: &[(u64, &str, &str)]) {
        let start = Instant::now();
        let mut circuit = Circuit::new(breaker);
        for (index, (at, events, expected)) in steps.iter().enumerate() {
            let now = start + Duration::from_millis(*at);
            circuit.look(now);
            for event in events.chars() {
                let ended = match event.to_ascii_lowercase() {
                    '+' => {
                        assert_eq!(circuit.room(9), if circuit.is_closed() { 9 } else { 1 });
                        assert_eq!(circuit.start(), circuit.is_probing());
                        continue;
                    }
                    'o' => Ended::Well,
                    'x' => Ended::Failed,
                    _ => Ended::Neither,
                };
                circuit.end(event.is_ascii_uppercase() || event == '-', ended, || now);
            }
            let state = match circuit.state {
                State::Closed => "closed".to_owned(),
                State::Open { until, .. } => format!("open until {}", (until - start).as_millis()),
                State::Due { .. } => "due".to_owned(),
                State::Probing { .. } => "probing".to_owned(),
            };
            assert_eq!(&state, expected, "after step {index}: {at} ms {events}");
            let none = matches!(circuit.state, State::Open { .. } | State::Probing { .. });
            assert_eq!(circuit.room(9) == 0, none);
            assert_eq!(
                circuit.until().is_some(),
                matches!(circuit.state, State::Open { .. })
            );
        }
    }

    impl Circuit {
        fn is_probing(&self) -> bool {
            matches!(self.state, State::Probing { .. })
        }
    }

    fn four() -> Breaker {
        let (first, longest) = (Duration::from_millis(100), Duration::from_millis(350));
        Breaker::default().runs(4).pauses(first, longest)
    }

    #[test]
    fn it_opens_at_its_share_of_the_last_runs_and_not_before() {
        check(
            four(),
            &[(0, "ooooox", "closed"), (1, "x", "open until 101")],
        );
        // Failures that are out of the last four are forgotten.
        check(four(), &[(0, "xooooxooooxoooox", "closed")]);
        check(four(), &[(0, "xoox", "open until 100")]);
        check(four(), &[(0, "xooox", "closed")]);
        // It needs no full memory to see that half of it is bad.
        check(four(), &[(0, "xx", "open until 100")]);
        check(
            four().share(1.0),
            &[(0, "xxxoxxx", "closed"), (5, "x", "open until 105")],
        );
        check(four().share(0.01), &[(0, "x", "open until 100")]);
        check(
            four(),
            &[(0, "x~~~~~~", "closed"), (0, "x", "open until 100")],
        );
        let default: String = "xo".repeat(49);
        check(
            Breaker::default(),
            &[
                (0, &default, "closed"),
                (0, "o", "closed"),
                (7, "x", "open until 1007"),
            ],
        );
    }

    #[test]
    fn pauses_double_while_probes_fail_and_end_with_one_that_does_not() {
        check(
            four(),
            &[
                (0, "xx", "open until 100"),
                (99, "", "open until 100"),
                (100, "", "due"),
                (105, "+", "probing"),
                (110, "X", "open until 310"),
                (310, "+X", "open until 660"),
                // The longest.
                (660, "+X", "open until 1010"),
                (2_000, "", "due"),
                (2_001, "+O", "closed"),
                // All is forgotten, the length of the pause too.
                (2_002, "x", "closed"),
                (2_003, "x", "open until 2103"),
            ],
        );
    }

    #[test]
    fn only_the_probe_speaks_while_one_is_under_way() {
        check(
            four(),
            &[
                (0, "xx", "open until 100"),
                // They started before it opened.
                (50, "xxxoooo", "open until 100"),
                (100, "xo", "due"),
                (101, "+", "probing"),
                (102, "xxo~", "probing"),
                // It was put off, so the next one is asked.
                (103, "-", "due"),
                (104, "+O", "closed"),
                (105, "ooo", "closed"),
            ],
        );
    }

    #[test]
    fn breakers_that_cannot_work_are_refused_with_their_numbers() {
        let check = |breaker: Breaker, expected: &str| {
            let error = breaker.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(error.to_string().contains(expected), "{error}");
        };
        let second = Duration::from_secs(1);
        check(Breaker::default().runs(0), "over 0 runs");
        check(Breaker::default().runs(10_001), "over 10001 runs");
        check(Breaker::default().share(0.0), "share of 0;");
        check(Breaker::default().share(1.5), "share of 1.5;");
        check(Breaker::default().share(f64::NAN), "share of NaN;");
        check(
            Breaker::default().pauses(Duration::ZERO, second),
            "pauses of 0ns",
        );
        check(
            Breaker::default().pauses(second, Duration::MAX),
            "1 ms to 1 day",
        );
        check(
            Breaker::default().pauses(2 * second, second),
            "first pause of 2s is longer than the longest, 1s",
        );
        Breaker::default().check().unwrap();
    }
}
