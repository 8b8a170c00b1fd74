//! Versions of nats-server.

use std::fmt;

/// The release that Trunkline is tested with, and that [`obtain`](crate::obtain) downloads.
pub const PINNED: &str = "2.15.1";

/// The oldest release that Trunkline works with: atomic batches and schedules came with its series.
pub const OLDEST: Version = Version(2, 12, 2);

/// A release of nats-server: major, minor, patch. A pre-release counts as its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// Reads `2.15.1`, `v2.15.1` or `v2.15.1-RC.2`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix('v').unwrap_or(text);
        let release = text.split(['-', '+']).next()?;
        let mut numbers = release.split('.').map(|number| number.parse().ok());
        let version = Self(numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(version)
    }

    /// Reads what `nats-server --version` prints: `nats-server: v2.15.1`.
    pub(crate) fn of_output(output: &str) -> Option<Self> {
        let line = output.lines().find(|line| !line.trim().is_empty())?;
        Self::parse(line.trim().strip_prefix("nats-server: ")?)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared_by_number() {
        let check = |text, expected| assert_eq!(Version::parse(text), expected, "{text}");
        check("2.15.1", Some(Version(2, 15, 1)));
        check("v2.9.10\n", Some(Version(2, 9, 10)));
        check("v2.12.0-RC.3", Some(Version(2, 12, 0)));
        check("2.15", None);
        check("2.15.1.4", None);
        check("two", None);
        assert!(Version(2, 9, 10) < OLDEST && OLDEST < Version(2, 12, 10));
        assert_eq!(Version::parse(PINNED).unwrap().to_string(), PINNED);
    }

    #[test]
    fn the_output_of_another_program_is_no_version() {
        let check = |output, expected| assert_eq!(Version::of_output(output), expected, "{output}");
        check("nats-server: v2.15.1\n", Some(Version(2, 15, 1)));
        check("GNU coreutils 9.4", None);
        check("v2.15.1", None);
        check("", None);
    }
}
