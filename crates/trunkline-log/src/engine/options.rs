//! What a `file:` URL can say.

use std::path::PathBuf;

use trunkline_core::{Error, ErrorKind, Result};

/// The settings of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The directory; it is made if it is missing.
    pub dir: PathBuf,
    /// Bytes of one segment. 64 MiB by default.
    pub segment_bytes: u64,
}

impl LogOptions {
    /// The least that a segment may have.
    pub const MIN_SEGMENT_BYTES: u64 = 4 << 20;

    /// The defaults, for that directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 64 << 20,
        }
    }

    /// Reads `file:PATH` and `file:PATH?segment_bytes=N`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidUrl`] for anything else, with the options there are.
    pub fn from_url(url: &str) -> Result<Self> {
        let invalid = |fault: &str| {
            Error::new(
                ErrorKind::InvalidUrl,
                format!("{fault}; use file:PATH[?segment_bytes=N], as in file:./trunkline-data"),
            )
        };
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
        let mut options = Self::new(path);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match (key, value.parse()) {
                ("segment_bytes", Ok(bytes)) if bytes >= Self::MIN_SEGMENT_BYTES => {
                    options.segment_bytes = bytes;
                }
                ("segment_bytes", _) => {
                    return Err(invalid("`segment_bytes` is a number of at least 4194304"));
                }
                _ => return Err(invalid("there is no such option")),
            }
        }
        Ok(options)
    }
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
        for (bad, fault) in [
            ("file:", "names no directory"),
            ("file://host/x", "names no host"),
            ("file:x?segment_bytes=1", "at least 4194304"),
            ("file:x?sync=never", "no such option"),
        ] {
            let error = LogOptions::from_url(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(error.message().contains(fault), "{error}");
        }
    }
}
