//! What becomes of an event after a run of its handler: pure data and pure functions, the same for
//! every kind of consumer. Time and chance are arguments, so that each rule is tested as a table.

mod breaker;

use std::any::type_name;
use std::error::Error as StdError;
use std::time::Duration;

use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use super::retry::{LONGEST_DELAY, Retry};
use super::settings::ConsumerSettings;
use crate::failure::{Classify, Disposition, Failure, Rule, disposition, found, rule};

pub use breaker::Breaker;
pub(super) use breaker::{Circuit, Ended, Turned};

/// The shortest and the longest time-out that a policy may ask for.
const TIME_OUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=LONGEST_DELAY;
/// How long an event of a type that its member has no handler for waits until it is looked at again.
const WAIT_FOR_OTHERS: Duration = Duration::from_secs(30);
/// Why an event waits that its handler put off.
pub(super) const SNOOZED: &str = "snoozed";
/// Why an event waits that its member has no handler for.
pub(super) const UNSUPPORTED_TYPE: &str = "unsupported_type";

/// What becomes of an event whose handler failed, hung or died.
///
/// By default: [`Retry::default`], a time-out of 5 minutes, and [`Breaker::default`].
///
/// The time-out is there because a handler that hangs would otherwise hold its place, and its key,
/// for ever, and nobody would be told. Five minutes are ten ack waits, longer than what most
/// handlers do, and short enough that the default policy is through with an event in half an hour.
///
/// ```
/// use std::time::Duration;
/// use trunkline::consumer::{Policy, TimedOut};
/// use trunkline::Retry;
///
/// let policy = Policy::default()
///     .retry(Retry::fixed(4, Duration::from_secs(10)).jitter(0.0))
///     .retry_for::<TimedOut>(Retry::never())
///     .time_out(Duration::from_secs(60));
/// // Three delays and four runs.
/// assert_eq!(policy.horizon(), Duration::from_secs(3 * 10 + 4 * 60));
/// ```
#[derive(Clone, Debug)]
#[must_use = "a policy does nothing until a consumer has it"]
pub struct Policy {
    retry: Retry,
    classes: Vec<Class>,
    rules: Vec<Rule>,
    time_out: Option<Duration>,
    breaker: Option<Breaker>,
}

/// Errors of one type, with attempts and delays of their own.
#[derive(Clone, Debug)]
struct Class {
    /// For messages.
    error: &'static str,
    knows: fn(&(dyn StdError + 'static)) -> bool,
    retry: Retry,
}

/// What is known of an event before its latest run is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// How often the handler said no before.
    pub failures: u32,
    /// How many runs were started since the last one of which the outcome is known.
    pub starts: u32,
}

/// What is to become of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It runs again.
    Again {
        /// After that long.
        delay: Duration,
        /// Whether this was an attempt, which adds one to the failures.
        counts: bool,
        /// In one word why it has to: as [`Failure::reason`], or `snoozed`, `throttled`,
        /// `no_outcome`.
        reason: &'static str,
        /// The error and its causes in one line.
        error: String,
    },
    /// It is given up, and becomes a dead letter. This was an attempt too.
    Dead {
        /// In one word why: as [`Failure::reason`], or `crash_loop`.
        reason: &'static str,
        /// The error and its causes in one line.
        error: String,
    },
}

impl Counters {
    /// An event that was started so often without an outcome is not started again: it is likely
    /// what kills its members.
    pub const MAX_STARTS: u32 = 5;
    /// From this start on an event runs alone, so that its neighbours are not suspected with it.
    pub const ALONE_FROM: u32 = 3;

    /// Whether the next run must have its member to itself.
    pub fn runs_alone(self) -> bool {
        self.starts.saturating_add(1) >= Self::ALONE_FROM
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retry: Retry::default(),
            classes: Vec::new(),
            rules: Vec::new(),
            time_out: Some(Duration::from_secs(5 * 60)),
            breaker: Some(Breaker::default()),
        }
    }
}

impl Policy {
    /// How often and when a failed event is tried again.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// How often and when an event is tried again that failed with an error of this type, anywhere
    /// in the chain of causes. The first such type that fits is taken.
    ///
    /// An event has one count of failures, whichever errors they were: with `Retry::fixed(3, …)` here,
    /// an event that failed twice for another reason is given up at its first failure of this one.
    pub fn retry_for<E: StdError + 'static>(mut self, retry: Retry) -> Self {
        self.classes.push(Class {
            error: type_name::<E>(),
            knows: |error| found::<E>(error).is_some(),
            retry,
        });
        self
    }

    /// Lets errors of this type, anywhere in a chain of causes, say what is to become of the event.
    pub fn classify<F: Classify>(mut self) -> Self {
        self.rules.push(rule::<F>);
        self
    }

    /// How long a handler may run. After that it is cancelled at its next await, and the run has
    /// failed with [`TimedOut`](super::TimedOut). `None` lets it run for ever.
    pub fn time_out(mut self, time_out: impl Into<Option<Duration>>) -> Self {
        self.time_out = time_out.into();
        self
    }

    /// When to stop because too much fails; `None` for never.
    pub fn breaker(mut self, breaker: impl Into<Option<Breaker>>) -> Self {
        self.breaker = breaker.into();
        self
    }

    /// The longest that it can take from the first start of an event until it is done or given up,
    /// if the handler fails at every attempt: all delays with all of their jitter, and a time-out for
    /// each run.
    ///
    /// What has no bound is left out: runs of a policy without a time-out, delays that a handler asks
    /// for itself, waiting for a place to run, and pauses of the breaker.
    pub fn horizon(&self) -> Duration {
        let retries = || self.classes.iter().map(|class| &class.retry);
        let delay = |failures| {
            let delays = retries().chain([&self.retry]);
            delays.filter_map(|retry| retry.delay(failures, 1.0)).max()
        };
        let run = self.time_out.unwrap_or_default();
        // Every failure but the last has a delay and another run behind it.
        (1..).map_while(delay).fold(run, |sum, delay| {
            sum.saturating_add(delay).saturating_add(run)
        })
    }

    /// What is to become of an event whose latest run ended with `failure`; with none if nobody knows
    /// how it ended, because its member died. `now` is the present time, `random` is from 0 to 1.
    pub fn judge(
        &self,
        failure: Option<&Failure>,
        counters: Counters,
        now: Timestamp,
        random: f64,
    ) -> Verdict {
        let Some(failure) = failure else {
            return Self::judge_unknown(counters.starts);
        };
        let wait = |delay: Duration, reason| Verdict::Again {
            delay: delay.min(LONGEST_DELAY),
            counts: false,
            reason,
            error: failure.chain(),
        };
        let dead = || Verdict::Dead {
            reason: failure.reason(),
            error: failure.chain(),
        };
        match self.disposition(failure) {
            Disposition::Snooze(delay) => wait(delay, SNOOZED),
            Disposition::SnoozeUntil(time) => wait(time.since(now), SNOOZED),
            Disposition::Throttled(delay) => wait(delay, "throttled"),
            Disposition::Permanent => dead(),
            // Nobody said no to it: it waits for a member that knows the type, however long.
            Disposition::Transient if failure.reason() == UNSUPPORTED_TYPE => {
                wait(WAIT_FOR_OTHERS, UNSUPPORTED_TYPE)
            }
            Disposition::Transient => {
                let failures = counters.failures.saturating_add(1);
                match self.retry_of(failure).delay(failures, random) {
                    Some(delay) => Verdict::Again {
                        delay,
                        counts: true,
                        reason: failure.reason(),
                        error: failure.chain(),
                    },
                    None => dead(),
                }
            }
        }
    }

    fn judge_unknown(starts: u32) -> Verdict {
        if starts >= Counters::MAX_STARTS {
            return Verdict::Dead {
                reason: "crash_loop",
                error: format!("{starts} runs were started and none of them came to an end"),
            };
        }
        Verdict::Again {
            delay: Duration::ZERO,
            counts: false,
            reason: "no_outcome",
            error: "the member that ran it died, or lost its lease".to_owned(),
        }
    }

    /// Whether a run that ended so speaks against the handler, or what is behind it: the breaker
    /// counts it then.
    pub(super) fn is_trouble(&self, failure: &Failure) -> bool {
        match self.disposition(failure) {
            Disposition::Permanent => true,
            Disposition::Transient => failure.reason() != UNSUPPORTED_TYPE,
            Disposition::Snooze(_) | Disposition::SnoozeUntil(_) | Disposition::Throttled(_) => {
                false
            }
        }
    }

    fn disposition(&self, failure: &Failure) -> Disposition {
        disposition(failure, &self.rules)
    }

    fn retry_of(&self, failure: &Failure) -> &Retry {
        let fits = |class: &&Class| (class.knows)(failure.cause());
        let class = self.classes.iter().find(fits);
        class.map_or(&self.retry, |class| &class.retry)
    }

    /// Changes what is said and leaves the rest. Errors with a [`Retry`] of their own keep it.
    pub(super) fn change(&mut self, said: &ConsumerSettings) {
        self.retry.change(said);
        self.time_out = said.time_out.unwrap_or(self.time_out);
        Breaker::change(&mut self.breaker, said);
    }

    /// This policy as settings, as far as there are any for it.
    pub(super) fn said(self) -> ConsumerSettings {
        let mut said = self.retry.said();
        said.time_out = Some(self.time_out);
        said.breaker = Some(self.breaker.is_some());
        if let Some(breaker) = self.breaker {
            breaker.say(&mut said);
        }
        said
    }

    /// How long a handler may run.
    pub(super) fn longest_run(&self) -> Option<Duration> {
        self.time_out
    }

    /// When to stop.
    pub(super) fn stops_at(&self) -> Option<Breaker> {
        self.breaker
    }

    /// Refuses what cannot work.
    pub(super) fn check(&self) -> Result<()> {
        self.retry.check()?;
        for class in &self.classes {
            class
                .retry
                .check()
                .map_err(|error| error.at(format!("retries for {}", class.error)))?;
        }
        if let Some(time_out) = self.time_out
            && !TIME_OUTS.contains(&time_out)
        {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "a time-out of {time_out:?}; use 1 ms to 365 days, or none with `.time_out(None)`"
                ),
            ));
        }
        self.breaker.as_ref().map_or(Ok(()), Breaker::check)
    }
}

#[cfg(test)]
mod tests;
