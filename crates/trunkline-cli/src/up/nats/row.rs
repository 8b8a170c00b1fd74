//! How often a server is started again, and after which wait.

use std::time::Duration;

/// What may happen before it is enough.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Before the first restart of a row; each further one of it waits twice as long.
    pub(super) first_wait: Duration,
    /// Restarts in a row.
    pub(super) restarts: u32,
    /// Who ran for so long begins a new row.
    pub(super) steady_after: Duration,
}

impl Pace {
    /// Long enough for a port or a disk that is busy, and short enough to be noticed by people: all
    /// restarts of a row together wait about 6 s.
    pub(super) const USUAL: Self = Self {
        first_wait: Duration::from_millis(200),
        restarts: 5,
        steady_after: Duration::from_secs(60),
    };
}

/// The restarts since it last ran well.
#[derive(Debug)]
pub(super) struct Row {
    pace: Pace,
    done: u32,
}

impl Row {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, done: 0 }
    }

    /// How long to wait before the next restart of a server that ran for that long; nothing when it
    /// was enough.
    pub(super) fn next(&mut self, ran: Duration) -> Option<Duration> {
        if ran >= self.pace.steady_after {
            self.done = 0;
        }
        if self.done == self.pace.restarts {
            return None;
        }
        let wait = self.pace.first_wait * 2_u32.saturating_pow(self.done);
        self.done += 1;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_five_times_and_a_steady_run_begins_anew() {
        let mut row = Row::new(Pace::USUAL);
        let mut check = |ran, expected: Option<u64>| {
            let wait = row.next(Duration::from_secs(ran));
            assert_eq!(wait, expected.map(Duration::from_millis));
        };
        for wait in [200, 400, 800, 1600, 3200] {
            check(59, Some(wait));
        }
        check(59, None);
        check(60, Some(200));
        check(0, Some(400));
    }
}
