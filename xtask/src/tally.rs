//! Counts what the test harnesses report, so that one line can close the log of many test binaries.

use std::fmt;
use std::ops::Add;

/// Test results, added up over test binaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`; any other line counts nothing.
    pub(crate) fn of_line(line: &str) -> Self {
        match line.split_once("test result: ") {
            Some((_, results)) => Self::of_counts(results),
            None => Self::default(),
        }
    }

    /// Reads `interop: 3 passed, 0 failed`, with any one word before the colon, and only if the
    /// line is nothing else.
    pub(crate) fn of_summary(line: &str) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [name, _, "passed,", _, "failed"] if name.ends_with(':') => Self::of_counts(line),
            _ => Self::default(),
        }
    }

    fn of_counts(results: &str) -> Self {
        let mut tally = Self::default();
        let words: Vec<&str> = results
            .split([' ', ';', '.', ','])
            .filter(|word| !word.is_empty())
            .collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else {
                continue;
            };
            match pair[1] {
                "passed" => tally.passed += count,
                "failed" => tally.failed += count,
                "ignored" => tally.skipped += count,
                _ => {}
            }
        }
        tally
    }
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    fn check(line: &str, passed: u64, failed: u64, skipped: u64) {
        assert_eq!(
            Tally::of_line(line),
            Tally {
                passed,
                failed,
                skipped
            },
            "{line}"
        );
    }

    #[test]
    fn result_lines_are_counted_and_others_are_not() {
        check(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.02s",
            12,
            0,
            1,
        );
        check(
            "test result: \u{1b}[31mFAILED\u{1b}[0m. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out",
            2,
            3,
            0,
        );
        check("running 12 tests", 0, 0, 0);
        check("test reads_12 ... ok", 0, 0, 0);
    }

    #[test]
    fn a_summary_is_a_line_of_its_own() {
        let check = |line, passed, failed| {
            let tally = Tally::of_summary(line);
            assert_eq!((tally.passed, tally.failed), (passed, failed), "{line}");
        };
        check("interop: 12 passed, 3 failed", 12, 3);
        check("ok curl: the line interop: 12 passed, 3 failed", 0, 0);
        check("12 passed, 3 failed", 0, 0);
        check("test result: ok. 12 passed; 0 failed", 0, 0);
    }

    #[test]
    fn tallies_add_up_and_print_as_one_line() {
        let sum = Tally::of_line("test result: ok. 2 passed; 0 failed; 1 ignored;")
            + Tally::of_line("test result: ok. 5 passed; 0 failed; 0 ignored;");
        assert_eq!(sum.to_string(), "7 passed, 0 failed, 1 skipped");
    }
}
