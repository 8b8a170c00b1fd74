//! Points in time and stretches of it, as people type and read them.

use std::time::Duration;

use jiff::tz::TimeZone;
use trunkline::core::{Clock, SystemClock};
use trunkline::history::End;
use trunkline::{Error, ErrorKind, Result, Start, Timestamp};

/// `250ms`, `10s`, `1h30m`, `7d`: as in the configuration.
pub(crate) fn duration(text: &str) -> std::result::Result<Duration, String> {
    trunkline::config::duration(text)
        .map_err(|_| format!("{text:?} is no length of time; use 250ms, 10s, 5m, 1h30m or 7d"))
}

/// Where reading starts: every position there is, or how long ago.
///
/// # Errors
/// [`ErrorKind::InvalidPosition`].
pub(crate) fn start(text: &str) -> Result<Start> {
    if let Ok(ago) = duration(text) {
        return Ok(Start::Time(SystemClock.now().minus(ago)));
    }
    text.parse().map_err(|error: Error| {
        let message = error.message().replace(
            " or an RFC 3339 time",
            ", an RFC 3339 time, or how long ago, as in 10m",
        );
        Error::new(ErrorKind::InvalidPosition, message)
    })
}

/// Where reading ends, included.
///
/// # Errors
/// [`ErrorKind::InvalidPosition`].
pub(crate) fn end(text: &str) -> Result<End> {
    match start(text) {
        Ok(Start::Seq(seq)) => Ok(End::Seq(seq)),
        Ok(Start::Time(time)) => Ok(End::Time(time)),
        _ => Err(Error::new(
            ErrorKind::InvalidPosition,
            format!(
                "{text:?} is no end: use a sequence, an RFC 3339 time, or how long ago, as in 10m"
            ),
        )),
    }
}

/// How times are shown.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    zone: TimeZone,
}

impl Times {
    pub(crate) fn utc() -> Self {
        Self {
            zone: TimeZone::UTC,
        }
    }

    /// The zone of the system; UTC where that cannot be told.
    pub(crate) fn local() -> Self {
        Self {
            zone: TimeZone::try_system().unwrap_or(TimeZone::UTC),
        }
    }

    /// `12:03:04.123`.
    pub(crate) fn clock(&self, at: Timestamp) -> String {
        self.written(at, "%H:%M:%S%.3f")
    }

    /// `12:03:04`.
    pub(crate) fn short_clock(&self, at: Timestamp) -> String {
        self.written(at, "%H:%M:%S")
    }

    /// `2026-01-31`.
    pub(crate) fn date(&self, at: Timestamp) -> String {
        self.written(at, "%Y-%m-%d")
    }

    /// `2026-01-31 12:03:04.123`.
    pub(crate) fn date_and_clock(&self, at: Timestamp) -> String {
        self.written(at, "%Y-%m-%d %H:%M:%S%.3f")
    }

    fn written(&self, at: Timestamp, format: &str) -> String {
        match jiff::Timestamp::from_nanosecond(i128::from(at.as_nanos())) {
            Ok(time) => time
                .to_zoned(self.zone.clone())
                .strftime(format)
                .to_string(),
            // Every `Timestamp` lies within what jiff knows.
            Err(_) => at.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_units() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)));
        }
        for bad in [
            "",
            "10",
            "s",
            "1 h",
            "-1s",
            "1w",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_start_is_a_position_or_how_long_ago() {
        assert_eq!(start("17").unwrap(), Start::Seq(17));
        assert_eq!(start("first").unwrap(), Start::First);
        let Start::Time(time) = start("10m").unwrap() else {
            panic!("no time")
        };
        let ago = SystemClock.now().since(time);
        assert!(ago >= Duration::from_secs(600) && ago < Duration::from_secs(660));
        let error = start("yesterday").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidPosition);
        assert!(error.message().contains("as in 10m"), "{error}");
        assert_eq!(end("5").unwrap(), End::Seq(5));
        assert!(end("first").is_err());
    }

    #[test]
    fn times_are_shown_to_the_millisecond() {
        let at: Timestamp = "2026-01-31T12:03:04.123456Z".parse().unwrap();
        let times = Times::utc();
        assert_eq!(times.clock(at), "12:03:04.123");
        assert_eq!(times.short_clock(at), "12:03:04");
        assert_eq!(times.date_and_clock(at), "2026-01-31 12:03:04.123");
        let zone = TimeZone::fixed(jiff::tz::offset(-5));
        assert_eq!(Times { zone }.clock(at), "07:03:04.123");
    }
}
