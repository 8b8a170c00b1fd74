//! How often and when a failed event is tried again.

use std::time::Duration;

use trunkline_core::{Error, ErrorKind, Result};

use super::settings::ConsumerSettings;

/// The longest that anything here waits; beyond it clocks overflow and nobody means it.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How often an event is tried, and how long it waits between two attempts.
///
/// The first attempt counts: the default of 5 attempts has 4 retries, after 1 s, 5 s, 30 s and
/// 5 min, each lengthened by 0–20 % so that many failures do not come back at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    attempts: u32,
    delays: Delays,
    jitter: f64,
}

#[derive(Clone, Debug, PartialEq)]
enum Delays {
    /// One after another; the last for all that follow.
    List(Vec<Duration>),
    /// Doubling from the first to the longest.
    Exponential { first: Duration, longest: Duration },
}

impl Default for Retry {
    fn default() -> Self {
        Self::list([1, 5, 30, 300].map(Duration::from_secs))
    }
}

impl Retry {
    /// The most attempts that a policy may ask for.
    pub const MAX_ATTEMPTS: u32 = 1_000;

    fn new(attempts: u32, delays: Delays) -> Self {
        Self {
            attempts,
            delays,
            jitter: 0.2,
        }
    }

    /// No second attempt: a failure is a dead letter at once.
    pub fn never() -> Self {
        Self::new(1, Delays::List(Vec::new()))
    }

    /// That many attempts, always the same delay between two.
    pub fn fixed(attempts: u32, delay: Duration) -> Self {
        Self::new(attempts, Delays::List(vec![delay]))
    }

    /// One attempt, and one more after each of these delays.
    pub fn list(delays: impl IntoIterator<Item = Duration>) -> Self {
        let delays: Vec<_> = delays.into_iter().collect();
        Self::new(
            u32::try_from(delays.len())
                .unwrap_or(u32::MAX)
                .saturating_add(1),
            Delays::List(delays),
        )
    }

    /// That many attempts, with delays that double from `first` up to `longest`.
    pub fn exponential(attempts: u32, first: Duration, longest: Duration) -> Self {
        Self::new(attempts, Delays::Exponential { first, longest })
    }

    /// By how much a delay is lengthened at most, as a share of it: 0.2 unless set.
    #[must_use]
    pub fn jitter(mut self, share: f64) -> Self {
        self.jitter = share;
        self
    }

    /// How often an event is tried at most.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// This policy as settings.
    pub(super) fn said(self) -> ConsumerSettings {
        ConsumerSettings {
            attempts: Some(self.attempts),
            delays: match self.delays {
                Delays::List(delays) => Some(delays),
                Delays::Exponential { .. } => None,
            },
            jitter: Some(self.jitter),
            ..ConsumerSettings::default()
        }
    }

    /// Changes what is said and leaves the rest.
    pub(super) fn change(&mut self, said: &ConsumerSettings) {
        if let Some(attempts) = said.attempts {
            self.attempts = attempts;
        }
        if let Some(delays) = &said.delays {
            self.delays = Delays::List(delays.clone());
        }
        if let Some(jitter) = said.jitter {
            self.jitter = jitter;
        }
        let pauses = |delays: &Delays| !matches!(delays, Delays::List(list) if list.is_empty());
        // A policy without retries has no delays; given attempts, it must not run hot.
        if self.attempts > 1 && !pauses(&self.delays) {
            self.delays = Self::default().delays;
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let refuse = |fault: String| Err(Error::new(ErrorKind::InvalidConfig, fault));
        if !(1..=Self::MAX_ATTEMPTS).contains(&self.attempts) {
            return refuse(format!(
                "{} attempts; use 1 to {}",
                self.attempts,
                Self::MAX_ATTEMPTS
            ));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return refuse(format!("a jitter of {}; use 0 to 1", self.jitter));
        }
        let longest = match &self.delays {
            Delays::List(delays) => delays.iter().copied().max().unwrap_or_default(),
            Delays::Exponential { first, longest } => (*first).max(*longest),
        };
        if longest > LONGEST_DELAY {
            return refuse(format!(
                "a delay of {longest:?}; use at most {LONGEST_DELAY:?}"
            ));
        }
        if let Delays::Exponential { first, longest } = &self.delays
            && first > longest
        {
            return refuse(format!(
                "a first delay of {first:?} that is longer than the longest, {longest:?}"
            ));
        }
        Ok(())
    }

    /// How long to wait after that many failures; `None` when there is no further attempt.
    /// `random` is from 0 to 1.
    pub(super) fn delay(&self, failures: u32, random: f64) -> Option<Duration> {
        if failures >= self.attempts {
            return None;
        }
        let retry = failures.saturating_sub(1);
        let delay = match &self.delays {
            Delays::List(delays) => {
                let index = usize::try_from(retry)
                    .unwrap_or(usize::MAX)
                    .min(delays.len().saturating_sub(1));
                delays.get(index).copied().unwrap_or_default()
            }
            Delays::Exponential { first, longest } => first
                .saturating_mul(1_u32.checked_shl(retry).unwrap_or(u32::MAX))
                .min(*longest),
        };
        let delay = delay.min(LONGEST_DELAY);
        Some(delay + delay.mul_f64(self.jitter * random))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c6_delays_follow_the_policy_and_jitter_only_lengthens() {
        let check = |retry: &Retry, random: f64, expected: &[f64]| {
            let delays: Vec<f64> = (1..)
                .map_while(|failures| retry.delay(failures, random))
                .map(|delay| delay.as_secs_f64())
                .collect();
            assert_eq!(delays, expected, "{retry:?}");
        };
        check(&Retry::default(), 0.0, &[1.0, 5.0, 30.0, 300.0]);
        check(&Retry::default(), 1.0, &[1.2, 6.0, 36.0, 360.0]);
        check(&Retry::never(), 0.0, &[]);
        check(&Retry::fixed(3, Duration::from_secs(2)), 0.0, &[2.0, 2.0]);
        let exponential =
            Retry::exponential(6, Duration::from_secs(1), Duration::from_secs(5)).jitter(0.0);
        check(&exponential, 1.0, &[1.0, 2.0, 4.0, 5.0, 5.0]);
    }

    #[test]
    fn what_is_said_changes_a_policy_and_never_takes_all_its_pauses() {
        let check = |mut retry: Retry, said: ConsumerSettings, expected: &[u64]| {
            retry.change(&said);
            let delays: Vec<_> = (1..)
                .map_while(|failures| retry.delay(failures, 0.0))
                .map(|delay| delay.as_secs())
                .collect();
            assert_eq!(delays, expected, "{retry:?}");
        };
        let said = |attempts, delays: Option<&[u64]>| ConsumerSettings {
            attempts,
            delays: delays.map(|delays| delays.iter().copied().map(Duration::from_secs).collect()),
            ..ConsumerSettings::default()
        };
        let fixed = Retry::fixed(3, Duration::from_secs(7));
        check(fixed.clone(), said(None, None), &[7, 7]);
        check(fixed.clone(), said(Some(2), None), &[7]);
        check(fixed, said(None, Some(&[1])), &[1, 1]);
        check(Retry::default(), said(Some(2), None), &[1]);
        check(Retry::never(), said(None, Some(&[1])), &[]);
        check(Retry::never(), said(Some(3), None), &[1, 5]);
        let mut default = Retry::default();
        default.change(&ConsumerSettings::built_in());
        assert_eq!(default, Retry::default());
    }

    #[test]
    fn policies_that_cannot_work_are_refused() {
        assert!(Retry::fixed(0, Duration::ZERO).check().is_err());
        assert!(Retry::fixed(1_001, Duration::ZERO).check().is_err());
        assert!(Retry::default().jitter(f64::NAN).check().is_err());
        assert!(Retry::fixed(2, Duration::MAX).check().is_err());
        let (short, long) = (Duration::from_secs(1), Duration::from_secs(2));
        assert!(Retry::exponential(2, long, short).check().is_err());
        assert!(Retry::exponential(2, short, long).check().is_ok());
        assert!(
            Retry::exponential(1_000, Duration::MAX, Duration::MAX)
                .jitter(0.0)
                .delay(900, 1.0)
                .is_some()
        );
    }
}
