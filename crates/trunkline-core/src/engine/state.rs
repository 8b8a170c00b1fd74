//! Small keys with fenced, atomic commits: who owns what, how far it got.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use smol_str::SmolStr;

use super::{Admitted, Boxed, Credit};
use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::time::Timestamp;

/// Names a set of keys that are committed, scanned and watched together.
pub type Bucket = Name;

/// One counter per bucket, never reused: every change of a key has its own.
pub type Rev = u64;

/// A key: tokens of `A-Z a-z 0-9 _ - % =` separated by dots, at most 512 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StateKey(SmolStr);

impl StateKey {
    /// Checks and wraps a key.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] for an empty key or token, other characters, or too many bytes.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_-%=".contains(&byte);
        let token = |token: &str| !token.is_empty() && token.bytes().all(legal);
        if text.len() > 512 || !text.split('.').all(token) {
            return Err(Error::new(
                ErrorKind::InvalidName,
                format!(
                    "{text:?} is not a state key: use tokens of A-Z a-z 0-9 _ - % = separated by dots"
                ),
            ));
        }
        Ok(Self(SmolStr::new(text)))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this key is `prefix` or lies below it, token by token.
    pub fn is_below(&self, prefix: Option<&StateKey>) -> bool {
        prefix.is_none_or(|prefix| {
            self.0
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

impl fmt::Display for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What must hold of a key for a commit to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Nothing.
    Any,
    /// The key does not exist.
    Absent,
    /// The key's last change has this revision.
    Rev(Rev),
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets it.
    Put {
        /// The key.
        key: StateKey,
        /// Its new value.
        value: Bytes,
        /// What must hold.
        expect: Expectation,
        /// How long it lives, in whole seconds on some engines; for ever if `None`.
        ttl: Option<Duration>,
    },
    /// Removes it.
    Delete {
        /// The key.
        key: StateKey,
        /// What must hold.
        expect: Expectation,
    },
}

impl Op {
    /// The key that it changes.
    pub fn key(&self) -> &StateKey {
        match self {
            Op::Put { key, .. } | Op::Delete { key, .. } => key,
        }
    }

    /// What must hold of the key.
    pub fn expect(&self) -> Expectation {
        match self {
            Op::Put { expect, .. } | Op::Delete { expect, .. } => *expect,
        }
    }
}

/// Changes that happen together or not at all.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Recognises a repeat for two minutes: it is answered *duplicate*, whatever the fences say
    /// by then.
    pub id: SmolStr,
    /// Keys that must be as expected, besides the expectations of the changes themselves.
    pub fences: Vec<(StateKey, Expectation)>,
    /// The changes, in order; a key occurs once.
    pub ops: Vec<Op>,
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It happened; one revision for each change.
    Done(Vec<Rev>),
    /// It had happened before. This proves nothing about who owns what now.
    Duplicate,
    /// It did not happen: this key was not as expected.
    Conflict {
        /// The key.
        key: StateKey,
        /// Its revision, if it exists.
        found: Option<Rev>,
    },
}

/// A key as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: StateKey,
    /// Its value.
    pub value: Bytes,
    /// Its last change.
    pub rev: Rev,
    /// When that was stored, by the engine's clock.
    pub at: Timestamp,
}

/// A page of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entries {
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// Where the next page begins, if there is more.
    pub next: Option<StateKey>,
    /// The revision up to which this page has seen everything.
    pub rev: Rev,
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// It was set.
    Put(Entry),
    /// It was removed.
    Deleted {
        /// The key.
        key: StateKey,
        /// The change.
        rev: Rev,
        /// When, by the engine's clock.
        at: Timestamp,
    },
    /// Its time to live ran out.
    Expired {
        /// The key.
        key: StateKey,
        /// The change.
        rev: Rev,
        /// When, by the engine's clock.
        at: Timestamp,
    },
    /// Everything up to this revision has been told; what follows is new.
    CaughtUp(Rev),
}

/// Small keys with fenced, atomic commits.
pub trait State: Send + Sync {
    /// Applies all changes or none.
    fn commit(&self, bucket: &Bucket, commit: Commit) -> Admitted<'_, Committed>;

    /// Reads keys at or below `prefix`, after `after`, once everything up to `at_least` is seen:
    /// a stale replica waits or is not asked.
    fn scan<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        after: Option<&'a StateKey>,
        at_least: Rev,
        max: Credit,
    ) -> Boxed<'a, Result<Entries>>;

    /// Tells what changed after `from`, in the order of revisions and without gaps: the latest
    /// change of no key is missed. A change that a later one of the same key has replaced may be left
    /// out, because an engine may keep but one change a key; so whoever watches learns how things
    /// stand, and counts nothing. With `from` = 0 the present state comes first; either way
    /// [`Watched::CaughtUp`] follows.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when changes after `from` are no longer kept; scan anew.
    fn watch<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        from: Rev,
    ) -> Boxed<'a, Result<Box<dyn Watch>>>;
}

/// A reader of changes.
pub trait Watch: Send {
    /// Waits for the next change.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] when the engine is closed, [`ErrorKind::Conflict`] when this watch
    /// fell so far behind that changes were lost: scan anew.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    fn next(&mut self) -> Boxed<'_, Result<Watched>>;
}
