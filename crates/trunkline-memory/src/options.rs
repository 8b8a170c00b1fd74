//! What a `memory:` URL can say, and the buses that have a name.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use trunkline_core::{Error, ErrorKind, Name, Result};

use crate::Bus;

/// The settings of a bus in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Connections of one name in one process share a bus; without a name each has its own.
    pub name: Option<Name>,
    /// Encode every message, as an engine that leaves the process must, so that a fault in a
    /// type's serde shows early. Off by default.
    pub encode: bool,
    /// Events that one stream keeps at most, whatever it asks for. 1 000 000 by default.
    pub max_events: u64,
    /// Bytes that one stream keeps at most, whatever it asks for; values that are shared count
    /// with their own size, not with what they point to. 256 MiB by default.
    pub max_bytes: u64,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self {
            name: None,
            encode: false,
            max_events: 1_000_000,
            max_bytes: 256 << 20,
        }
    }
}

impl MemoryOptions {
    /// Reads `memory:`, `memory:name` and `memory:name?encode=always&max_events=N&max_bytes=N`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidUrl`] for anything else, with the options there are.
    pub fn from_url(url: &str) -> Result<Self> {
        // Values are not quoted: a URL that was meant for another engine may have a password in it.
        let invalid = |fault: String| {
            Error::new(
                ErrorKind::InvalidUrl,
                format!(
                    "{fault}; use memory:[name][?encode=always|never&max_events=N&max_bytes=N]"
                ),
            )
        };
        let rest = url
            .strip_prefix("memory:")
            .ok_or_else(|| invalid("the URL does not begin with `memory:`".into()))?;
        let (name, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut options = Self::default();
        if !name.is_empty() {
            let fault =
                "what follows `memory:` is not a name of 1 to 64 characters of A-Z a-z 0-9 _ -";
            options.name = Some(Name::new(name).map_err(|_| invalid(fault.to_owned()))?);
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let number = || match value.parse() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(invalid(format!("`{key}` must be a whole number above 0"))),
            };
            match (key, value) {
                ("encode", "always") => options.encode = true,
                ("encode", "never") => options.encode = false,
                ("max_events", _) => options.max_events = number()?,
                ("max_bytes", _) => options.max_bytes = number()?,
                ("encode", _) => {
                    return Err(invalid("`encode` must be `always` or `never`".to_owned()));
                }
                _ => return Err(invalid(format!("`{key}` is not an option"))),
            }
        }
        Ok(options)
    }
}

static NAMED: Mutex<BTreeMap<Name, Weak<Bus>>> = Mutex::new(BTreeMap::new());

/// The bus of that name while somebody holds it, else a new one.
pub(crate) fn shared(
    options: MemoryOptions,
    make: impl FnOnce(MemoryOptions) -> Bus,
) -> Result<Arc<Bus>> {
    let Some(name) = options.name.clone() else {
        return Ok(Arc::new(make(options)));
    };
    let mut named = NAMED.lock();
    named.retain(|_, bus| bus.strong_count() > 0);
    match named.get(&name).and_then(Weak::upgrade) {
        Some(bus) if bus.options == options => Ok(bus),
        Some(bus) => Err(Error::new(
            ErrorKind::Drift,
            format!(
                "memory:{name} exists with {:?}, not {options:?}; connect with the same options",
                bus.options
            ),
        )),
        None => {
            let bus = Arc::new(make(options));
            named.insert(name, Arc::downgrade(&bus));
            Ok(bus)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_faults_named() {
        let read = |url: &str| MemoryOptions::from_url(url);
        assert_eq!(read("memory:").unwrap(), MemoryOptions::default());
        let all = read("memory:jobs?encode=always&max_events=5&max_bytes=7").unwrap();
        assert_eq!(
            (
                all.name.unwrap().as_str(),
                all.encode,
                all.max_events,
                all.max_bytes
            ),
            ("jobs", true, 5, 7)
        );
        for (bad, fault) in [
            ("memory://jobs", "is not a name"),
            ("memory:?encode=maybe", "must be `always` or `never`"),
            ("memory:?max_events=0", "above 0"),
            ("memory:?size=1", "`size` is not an option"),
        ] {
            let error = read(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(error.message().contains(fault), "{error}");
        }
    }
}
