//! Subjects, the filters over them, and event types, by the rules of NATS.
//!
//! ```text
//! subject   events.order.placed        tokens separated by dots, no wildcard
//! filter    events.order.*             `*` is exactly one token
//! filter    events.>                   `>` is one token or more, only at the end
//! ```

use std::borrow::Cow;
use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use smol_str::SmolStr;

use crate::error::{Error, ErrorKind, Result};

/// The most bytes that a subject or filter may have.
pub const MAX_SUBJECT_BYTES: usize = 512;
/// The most tokens that a subject or filter may have.
pub const MAX_SUBJECT_TOKENS: usize = 32;

/// Where one event goes: tokens separated by dots, without wildcards.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(SmolStr);

impl Subject {
    /// Checks and wraps a subject.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSubject`] for an empty token, white space, a control character, a
    /// wildcard, more than [`MAX_SUBJECT_TOKENS`] tokens or [`MAX_SUBJECT_BYTES`] bytes.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref();
        let wildcard = text.bytes().any(|byte| matches!(byte, b'*' | b'>'));
        match tokens_fault(text).or(wildcard.then_some("it has a wildcard")) {
            Some(fault) => Err(Error::new(
                ErrorKind::InvalidSubject,
                format!("{text:?} is not a subject: {fault}; use tokens separated by single dots"),
            )),
            None => Ok(Self(SmolStr::new(text))),
        }
    }

    /// The subject as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This subject below `root`: `events` and `order.placed` give `events.order.placed`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSubject`] when the result is too long.
    pub fn below(&self, root: Option<&Subject>) -> Result<Self> {
        match root {
            Some(root) => Self::new(format!("{root}.{self}")),
            None => Ok(self.clone()),
        }
    }

    /// What is left of this subject without `root`, if it lies below it.
    pub fn without(&self, root: Option<&Subject>) -> Option<&str> {
        match root {
            Some(root) => self.0.strip_prefix(root.as_str())?.strip_prefix('.'),
            None => Some(self.as_str()),
        }
    }
}

/// A pattern over subjects.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Filter(SmolStr);

impl Filter {
    /// Checks and wraps a filter.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidFilter`] for what [`Subject::new`] refuses, for `>` anywhere but as
    /// the last token, and for a wildcard that is only part of a token.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref();
        let partial = |token: &str| token.len() > 1 && token.contains(['*', '>']);
        let fault = tokens_fault(text).or_else(|| {
            let open = text.strip_suffix('>').unwrap_or(text);
            if text.split('.').any(partial) {
                Some("a wildcard must be a whole token")
            } else if open.contains('>') {
                Some("`>` may only be the last token")
            } else {
                None
            }
        });
        match fault {
            Some(fault) => Err(Error::new(
                ErrorKind::InvalidFilter,
                format!(
                    "{text:?} is not a filter: {fault}; `*` is one token, `>` at the end is one or more"
                ),
            )),
            None => Ok(Self(SmolStr::new(text))),
        }
    }

    /// The filter that matches every subject: `>`.
    pub fn all() -> Self {
        Self(SmolStr::new_static(">"))
    }

    /// The filter as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one subject that this filter matches, if it has no wildcard.
    pub fn literal(&self) -> Option<Subject> {
        let wild = self.0.bytes().any(|byte| matches!(byte, b'*' | b'>'));
        (!wild).then(|| Subject(self.0.clone()))
    }

    /// Whether `subject` matches.
    pub fn matches(&self, subject: &Subject) -> bool {
        covers(&self.0, &subject.0)
    }

    /// Whether every subject that `other` matches is matched by this filter too.
    pub fn covers(&self, other: &Filter) -> bool {
        covers(&self.0, &other.0)
    }

    /// Whether some subject is matched by both.
    pub fn overlaps(&self, other: &Filter) -> bool {
        let (mut left, mut right) = (self.0.split('.'), other.0.split('.'));
        loop {
            match (left.next(), right.next()) {
                (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
                (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
                _ => return false,
            }
        }
    }

    /// This filter below `root`: `events` and `order.*` give `events.order.*`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidFilter`] when the result is too long.
    pub fn below(&self, root: Option<&Subject>) -> Result<Self> {
        match root {
            Some(root) => Self::new(format!("{root}.{self}")),
            None => Ok(self.clone()),
        }
    }

    /// For a filter that overlaps none of `known`: the nearest one that does.
    ///
    /// It tries what people mean when they are a token short or long: `order` and `order.*`
    /// become `order.>`, and `order.placed.*` becomes `order.placed`.
    pub fn nearest<'a>(&self, known: impl IntoIterator<Item = &'a Filter>) -> Option<Filter> {
        let known: Vec<&Filter> = known.into_iter().collect();
        let short = self.0.strip_suffix(".*").unwrap_or(&self.0);
        let long = self.0.rsplit_once('.').map(|(head, _)| head.to_owned());
        [
            Some(format!("{short}.>")),
            long.clone(),
            long.map(|head| format!("{head}.>")),
        ]
        .into_iter()
        .flatten()
        .filter_map(|candidate| Filter::new(candidate).ok())
        .find(|candidate| known.iter().any(|filter| filter.overlaps(candidate)))
    }
}

impl From<Subject> for Filter {
    fn from(subject: Subject) -> Self {
        Self(subject.0)
    }
}

/// The name of a kind of event, such as `order.placed`.
///
/// Any text with dots between non-empty tokens, of at most [`EventType::MAX_TOKENS`] tokens; in
/// [the subject](EventType::subject), characters other than `A-Z a-z 0-9 _ -` are
/// percent-encoded in upper-case hex, and the result may have [`EventType::MAX_BYTES`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventType {
    text: SmolStr,
    subject: Subject,
}

impl EventType {
    /// The most tokens that a type may have.
    pub const MAX_TOKENS: usize = 16;
    /// The most bytes that a type may have once encoded for a subject.
    pub const MAX_BYTES: usize = 200;

    /// Checks and wraps a type.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEventType`] for an empty token, too many tokens or bytes, or a last
    /// token of digits only (that place is kept for partition numbers).
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref();
        let encoded: Cow<'_, str> = if text.bytes().all(|byte| is_plain(byte) || byte == b'.') {
            Cow::Borrowed(text)
        } else {
            Cow::Owned(
                text.split('.')
                    .map(encode_token)
                    .collect::<Vec<_>>()
                    .join("."),
            )
        };
        let tokens = encoded.split('.').count();
        let fault = if encoded.split('.').any(str::is_empty) {
            Some("it has an empty token".to_owned())
        } else if tokens > Self::MAX_TOKENS {
            Some(format!(
                "it has {tokens} tokens, the limit is {}",
                Self::MAX_TOKENS
            ))
        } else if encoded.len() > Self::MAX_BYTES {
            Some(format!(
                "it needs {} bytes, the limit is {}",
                encoded.len(),
                Self::MAX_BYTES
            ))
        } else if encoded
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
        {
            Some("its last token is all digits".to_owned())
        } else {
            None
        };
        if let Some(fault) = fault {
            return Err(Error::new(
                ErrorKind::InvalidEventType,
                format!("{text:?} is not an event type: {fault}; name it like `order.placed`"),
            ));
        }
        Ok(Self {
            text: SmolStr::new(text),
            subject: Subject(SmolStr::new(encoded)),
        })
    }

    /// The type as text, as it stands in an event.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The subject of events of this type, without any root.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }
}

/// What is kept as it is in a token of a subject; everything else becomes `%XX`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'-');

/// Whether a byte is kept as it is in a token of a subject.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// One token of a subject, made from any text: percent-encoded in upper-case hex.
pub fn encode_token(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

/// What is wrong with a text as dot-separated tokens, wildcards aside.
fn tokens_fault(text: &str) -> Option<&'static str> {
    // One pass over the bytes, because this is done for each message that comes.
    let (mut tokens, mut hollow, mut before, mut suspicious) = (1, false, b'.', false);
    for byte in text.bytes() {
        tokens += usize::from(byte == b'.');
        hollow |= byte == b'.' && before == b'.';
        suspicious |= !byte.is_ascii_graphic();
        before = byte;
    }
    let unseemly = |c: char| c.is_whitespace() || c.is_control();
    if text.is_empty() {
        Some("it is empty")
    } else if text.len() > MAX_SUBJECT_BYTES {
        Some("it has more than 512 bytes")
    } else if hollow || before == b'.' {
        Some("it has an empty token")
    } else if tokens > MAX_SUBJECT_TOKENS {
        Some("it has more than 32 tokens")
    } else if suspicious && text.chars().any(unseemly) {
        Some("it has white space or a control character")
    } else {
        None
    }
}

/// Whether the pattern matches every subject of `other`, a subject or another pattern.
fn covers(pattern: &str, other: &str) -> bool {
    let (mut patterns, mut others) = (pattern.split('.'), other.split('.'));
    loop {
        match (patterns.next(), others.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(expected), Some(token)) if expected == token => {}
            _ => return false,
        }
    }
}

macro_rules! text {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }
    )*};
}

text!(Subject Filter EventType);

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::new(text).unwrap()
    }

    #[test]
    fn subjects_have_no_empty_token_white_space_or_wildcard() {
        for good in [
            "a",
            "order.placed",
            "a.b.c",
            "dlq.EVENTS.billing.17",
            "order.%C3%BC",
            "größe.x",
        ] {
            assert_eq!(Subject::new(good).unwrap().as_str(), good);
        }
        let (deep, long) = (["x"; 33].join("."), "x".repeat(513));
        for bad in [
            "", ".", "a.", ".a", "a..b", "a b", "a\n", "a.*", "a.>", "a*b", &deep, &long,
        ] {
            assert_eq!(
                Subject::new(bad).unwrap_err().kind(),
                ErrorKind::InvalidSubject,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn filters_take_whole_token_wildcards_only() {
        for good in ["a", "*", ">", "a.*.b", "a.>", "*.*.>"] {
            assert_eq!(filter(good).as_str(), good);
        }
        for bad in ["", "a.>.b", ">.a", "a*", "a.b*", "a>", "a..>"] {
            assert_eq!(
                Filter::new(bad).unwrap_err().kind(),
                ErrorKind::InvalidFilter,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn star_is_one_token_and_gt_is_one_or_more() {
        let check = |pattern: &str, subject: &str, expected: bool| {
            let matched = filter(pattern).matches(&Subject::new(subject).unwrap());
            assert_eq!(matched, expected, "{pattern} on {subject}");
        };
        check("order.*", "order.placed", true);
        check("order.*", "order.placed.eu", false);
        check("order.*", "order", false);
        check("order.>", "order.placed", true);
        check("order.>", "order.placed.eu", true);
        check("order.>", "order", false);
        check("*.placed", "order.placed", true);
        check("order.placed", "order.place", false);
        check(">", "order", true);
    }

    #[test]
    fn covers_and_overlaps_tell_subset_from_intersection() {
        let check = |left: &str, right: &str, covers: bool, overlaps: bool| {
            assert_eq!(
                filter(left).covers(&filter(right)),
                covers,
                "{left} covers {right}"
            );
            assert_eq!(
                filter(left).overlaps(&filter(right)),
                overlaps,
                "{left} overlaps {right}"
            );
            assert_eq!(
                filter(right).overlaps(&filter(left)),
                overlaps,
                "{right} overlaps {left}"
            );
        };
        check("a.>", "a.b.*", true, true);
        check("a.*", "a.>", false, true);
        check("a.*.c", "a.b.*", false, true);
        check("a.*", "b.*", false, false);
        check("a.*", "a.b.c", false, false);
        check("*.>", ">", false, true);
        check(">", "*.b", true, true);
    }

    #[test]
    fn a_filter_one_token_short_is_told_what_would_match() {
        let known = [filter("order.placed"), filter("agent.message.*.*")];
        let check = |pattern: &str, expected: Option<&str>| {
            assert_eq!(
                filter(pattern).nearest(known.iter()),
                expected.map(filter),
                "{pattern}"
            );
        };
        check("order", Some("order.>"));
        check("agent.message.*", Some("agent.message.>"));
        check("order.placed.*", Some("order.placed"));
        check("order.plaecd", Some("order.>"));
        check("nothing.like.it", None);
    }

    #[test]
    fn event_types_encode_foreign_characters_in_their_subject() {
        let check = |text: &str, subject: &str| {
            let event_type = EventType::new(text).unwrap();
            assert_eq!(
                (event_type.as_str(), event_type.subject().as_str()),
                (text, subject)
            );
        };
        check("order.placed", "order.placed");
        check("com.example/Order Placed", "com.example%2FOrder%20Placed");
        check("bestellung.größe", "bestellung.gr%C3%B6%C3%9Fe");
        check("any.*", "any.%2A");
        let (deep, long) = (["x"; 17].join("."), "x".repeat(201));
        for bad in ["", "a..b", ".a", "a.", "shard.17", "7", &deep, &long] {
            assert_eq!(
                EventType::new(bad).unwrap_err().kind(),
                ErrorKind::InvalidEventType,
                "{bad:?}"
            );
        }
    }
}
