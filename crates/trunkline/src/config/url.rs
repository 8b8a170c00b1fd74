//! A bus URL that may hold a password and never shows it.

use std::fmt;

/// Options of URLs that are no secrets, if their values look as they should.
const HARMLESS: [&str; 6] = [
    "encode",
    "max_events",
    "max_bytes",
    "segment_bytes",
    "sync",
    "sync_interval",
];
/// The values of theirs that are words.
const WORDS: [&str; 4] = ["always", "never", "interval", "os"];

/// The URL of a bus. It may hold credentials, so `Debug` and `Display` mask them;
/// [`reveal`](Url::reveal) gives it as it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Url(String);

impl Url {
    /// The URL with its credentials; never print this.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Default for Url {
    /// `memory:`, a fresh bus in this process.
    fn default() -> Self {
        Self("memory:".to_owned())
    }
}

impl<T: Into<String>> From<T> for Url {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&mask_url(&self.0))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&mask_url(&self.0), f)
    }
}

/// The URL, or several with commas between, without what may be secret: the password or token
/// before an `@`, and the values of options that are not known to be harmless.
///
/// In doubt it hides too much: a text that is no URL becomes `***`.
///
/// ```
/// use trunkline::config::mask_url;
///
/// assert_eq!(mask_url("nats://ann:hunter2@host:4222"), "nats://ann:***@host:4222");
/// assert_eq!(mask_url("nats://token@host"), "nats://***@host");
/// assert_eq!(mask_url("memory:jobs"), "memory:jobs");
/// ```
pub fn mask_url(url: &str) -> String {
    // A password may hold a comma, so only one before the next scheme separates.
    let mut parts: Vec<String> = Vec::new();
    for part in url.split(',') {
        match parts.last_mut() {
            Some(last) if !part.contains("://") => {
                last.push(',');
                last.push_str(part);
            }
            _ => parts.push(part.to_owned()),
        }
    }
    let masked: Vec<String> = parts.iter().map(|part| masked(part)).collect();
    masked.join(",")
}

fn masked(url: &str) -> String {
    let scheme = |scheme: &str| {
        !scheme.is_empty()
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    let Some((scheme, rest)) = url.split_once(':').filter(|(head, _)| scheme(head)) else {
        return "***".to_owned();
    };
    let (slashes, rest) = match rest.strip_prefix("//") {
        Some(rest) => ("//", rest),
        None => ("", rest),
    };
    // The last one, because a password that should have been encoded may hold others, or a slash.
    let (user, place) = match rest.rsplit_once('@') {
        None => (String::new(), rest),
        Some((userinfo, place)) => match userinfo.split_once(':') {
            Some((user, _)) => (format!("{user}:***@"), place),
            None => ("***@".to_owned(), place),
        },
    };
    let (place, query) = match place.split_once('?') {
        None => (place, String::new()),
        Some((place, query)) => {
            let pairs: Vec<String> = query.split('&').map(masked_option).collect();
            (place, format!("?{}", pairs.join("&")))
        }
    };
    format!("{scheme}:{slashes}{user}{place}{query}")
}

fn masked_option(pair: &str) -> String {
    let Some((key, value)) = pair.split_once('=') else {
        return if pair.is_empty() || HARMLESS.contains(&pair) {
            pair.to_owned()
        } else {
            "***".to_owned()
        };
    };
    let plain = WORDS.contains(&value)
        || value.parse::<u64>().is_ok()
        || super::units::duration(value).is_ok();
    if HARMLESS.contains(&key) && plain {
        pair.to_owned()
    } else {
        format!("{key}=***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b2_credentials_are_masked_wherever_they_stand() {
        let check = |url: &str, expected: &str| {
            assert_eq!(mask_url(url), expected, "{url}");
            assert!(!mask_url(url).contains("hunter2"));
            assert_eq!(Url::from(url).to_string(), expected);
            assert_eq!(format!("{:?}", Url::from(url)), format!("{expected:?}"));
        };
        check("nats://u:hunter2@h:1/p", "nats://u:***@h:1/p");
        check("nats://hunter2@h", "nats://***@h");
        check("nats://:hunter2@h", "nats://:***@h");
        check("nats://u:@hunter2@h", "nats://u:***@h");
        check("nats://u:a/hunter2?b@h", "nats://u:***@h");
        check("nats://u:a,hunter2@h", "nats://u:***@h");
        check(
            "nats://u:hunter2@h:1,tls://v:hunter2@i:2",
            "nats://u:***@h:1,tls://v:***@i:2",
        );
        check("nats://a:1,nats://b:2", "nats://a:1,nats://b:2");
        check("nats://u:hunter2@a,v:hunter2@b", "nats://u:***@b");
        check("u:hunter2@h", "u:***@h");
        check("hunter2", "***");
        check("memory:p?password=hunter2", "memory:p?password=***");
        check("memory:p?encode=hunter2&hunter2", "memory:p?encode=***&***");
        check(
            "memory:p?encode=always&max_events=5",
            "memory:p?encode=always&max_events=5",
        );
        check("memory:", "memory:");
        check("file:./data", "file:./data");
        check(
            "file:d?sync=interval&sync_interval=1m30s&segment_bytes=8388608",
            "file:d?sync=interval&sync_interval=1m30s&segment_bytes=8388608",
        );
        check("file:d?sync_interval=hunter2s", "file:d?sync_interval=***");
    }
}
