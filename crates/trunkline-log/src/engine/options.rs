//! What a `file:` URL can say.

use std::path::PathBuf;
use std::time::Duration;

use trunkline_core::{Error, ErrorKind, Result};

use super::sync::SyncPolicy;

/// The settings of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The directory; it is made if it is missing.
    pub dir: PathBuf,
    /// Bytes of one segment. 64 MiB by default.
    pub segment_bytes: u64,
    /// When what is written is synced. None leaves that to whoever has the directory open, and is
    /// [`SyncPolicy::Always`] for who opens it.
    pub sync: Option<SyncPolicy>,
}

/// What is said of a URL that is none of ours.
const USE: &str = "use file:PATH[?segment_bytes=N&sync=always|interval|os&sync_interval=200ms], as in file:./trunkline-data";

impl LogOptions {
    /// The least that a segment may have.
    pub const MIN_SEGMENT_BYTES: u64 = 4 << 20;
    /// How long [`SyncPolicy::Interval`] waits where nothing else is said.
    pub const SYNC_INTERVAL: Duration = Duration::from_millis(200);
    /// The least and the most that it may wait.
    pub const SYNC_INTERVALS: std::ops::RangeInclusive<Duration> =
        Duration::from_millis(1)..=Duration::from_secs(3_600);

    /// The defaults, for that directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            sync: None,
        }
    }

    /// Reads `file:PATH`, with options: `segment_bytes=N`, `sync=always`, `sync=interval` with
    /// `sync_interval=200ms`, and `sync=os`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidUrl`] for anything else, with the options there are.
    pub fn from_url(url: &str) -> Result<Self> {
        let rest = url
            .strip_prefix("file:")
            .ok_or_else(|| invalid("the URL does not begin with `file:`"))?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        // `file:///a/b` is a file URL as others write it; `file://host/a` is not on this machine.
        let path = match path.strip_prefix("//") {
            None => path,
            Some(path) if path.starts_with('/') => path,
            Some(_) => return Err(invalid("a `file:` URL names no host")),
        };
        if path.is_empty() {
            return Err(invalid("the URL names no directory"));
        }
        let (mut options, mut interval) = (Self::new(path), None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (key, value) {
                ("segment_bytes", bytes) => {
                    let bytes = bytes.parse().ok();
                    let bytes = bytes.filter(|bytes| *bytes >= Self::MIN_SEGMENT_BYTES);
                    options.segment_bytes = bytes.ok_or_else(|| {
                        invalid("`segment_bytes` is a number of at least 4194304")
                    })?;
                }
                ("sync", "always") => options.sync = Some(SyncPolicy::Always),
                ("sync", "interval") => {
                    options.sync = Some(SyncPolicy::Interval(Self::SYNC_INTERVAL));
                }
                ("sync", "os") => options.sync = Some(SyncPolicy::Os),
                ("sync", _) => return Err(invalid("`sync` is always, interval or os")),
                ("sync_interval", text) => {
                    let read = duration(text).filter(|read| Self::SYNC_INTERVALS.contains(read));
                    interval = Some(read.ok_or_else(|| {
                        invalid(
                            "`sync_interval` is a duration with units, as in 200ms, from 1ms to 1h",
                        )
                    })?);
                }
                _ => return Err(invalid("there is no such option")),
            }
        }
        match (&mut options.sync, interval) {
            (_, None) => {}
            (Some(SyncPolicy::Interval(before)), Some(interval)) => *before = interval,
            _ => return Err(invalid("`sync_interval` belongs to `sync=interval`")),
        }
        Ok(options)
    }

    /// Whether a directory that is open and synced by that policy will do.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when it would promise less than is asked for.
    pub fn check_sync(&self, found: SyncPolicy) -> Result<()> {
        match self.sync {
            Some(wanted) if !found.is_as_good_as(wanted) => Err(self.weaker(&found.text())),
            _ => Ok(()),
        }
    }

    fn weaker(&self, found: &str) -> Error {
        let wanted = self.sync.unwrap_or(SyncPolicy::Always).text();
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} is open already with sync={found}, which is weaker than sync={wanted}; ask for no more, or have whoever opened it first do so with sync={wanted}",
                self.dir.display()
            ),
        )
    }
}

fn invalid(fault: &str) -> Error {
    Error::new(ErrorKind::InvalidUrl, format!("{fault}; {USE}"))
}

/// Reads whole numbers with units, the longest first, as durations are written in a configuration.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut units = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)].iter();
    let (mut rest, mut millis) = (text, 0_u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, after) = after.split_at(letters.unwrap_or(after.len()));
        // The units left are only shorter ones, so that none comes twice or out of order.
        let (_, each) = units.find(|(known, _)| *known == unit)?;
        millis = millis.checked_add(number.parse::<u64>().ok()?.checked_mul(*each)?)?;
        rest = after;
    }
    (!text.is_empty()).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_faults_named() {
        let dir = |url: &str| LogOptions::from_url(url).unwrap().dir;
        assert_eq!(dir("file:./data"), PathBuf::from("./data"));
        assert_eq!(dir("file:/var/lib/x"), PathBuf::from("/var/lib/x"));
        assert_eq!(dir("file:///var/lib/x"), PathBuf::from("/var/lib/x"));
        let options = LogOptions::from_url("file:x?segment_bytes=8388608").unwrap();
        assert_eq!(options.segment_bytes, 8 << 20);
        for (query, expected) in [
            ("", None),
            ("sync=always", Some(SyncPolicy::Always)),
            ("sync=os", Some(SyncPolicy::Os)),
            (
                "sync=interval",
                Some(SyncPolicy::Interval(Duration::from_millis(200))),
            ),
            (
                "sync_interval=1m30s&sync=interval",
                Some(SyncPolicy::Interval(Duration::from_secs(90))),
            ),
        ] {
            let options = LogOptions::from_url(&format!("file:x?{query}")).unwrap();
            assert_eq!(options.sync, expected, "{query}");
        }
        for (bad, fault) in [
            ("file:", "names no directory"),
            ("file://host/x", "names no host"),
            ("file:x?segment_bytes=1", "at least 4194304"),
            ("file:x?sync=never", "always, interval or os"),
            ("file:x?sync_interval=5s", "belongs to `sync=interval`"),
            (
                "file:x?sync=os&sync_interval=5s",
                "belongs to `sync=interval`",
            ),
            ("file:x?sync=interval&sync_interval=0ms", "from 1ms"),
            ("file:x?sync=interval&sync_interval=200", "with units"),
            ("file:x?sync=interval&sync_interval=1s1m", "with units"),
            ("file:x?sync=interval&sync_interval=2h", "1ms to 1h"),
            ("file:x?fsync=os", "no such option"),
        ] {
            let error = LogOptions::from_url(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(error.message().contains(fault), "{error}");
        }
    }

    #[test]
    fn more_than_whoever_has_it_promises_is_refused() {
        let asked = |sync| LogOptions {
            sync,
            ..LogOptions::new("x")
        };
        let found = SyncPolicy::Interval(Duration::from_millis(50));
        for content in [None, Some(SyncPolicy::Os), Some(found)] {
            asked(content).check_sync(found).unwrap();
        }
        let error = asked(Some(SyncPolicy::Always))
            .check_sync(found)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.message().contains("sync=interval&sync_interval=50ms"),
            "{error}"
        );
    }
}
