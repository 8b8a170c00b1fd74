//! Names of consumers, streams, members and buckets.

use std::fmt;

use smol_str::SmolStr;

use crate::error::{Error, ErrorKind, Result};

/// A name of 1 to 64 characters of `A-Z a-z 0-9 _ -`: a consumer, stream, member or bucket.
///
/// The characters are those that every engine accepts in a name and in one token of a subject.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(SmolStr);

impl Name {
    /// The most characters that a name may have.
    pub const MAX_LEN: usize = 64;

    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] for anything but 1 to 64 of the allowed characters.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > Self::MAX_LEN || !name.bytes().all(legal) {
            return Err(Error::new(
                ErrorKind::InvalidName,
                format!("{name:?} is not a name: use 1 to 64 characters of A-Z a-z 0-9 _ -"),
            ));
        }
        Ok(Self(SmolStr::new(name)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_held_to_their_alphabet_and_length() {
        for good in ["a", "EVENTS_DLQ", "billing-2", &"x".repeat(64)] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a.b", "a b", "ü", "a*", &"x".repeat(65)] {
            assert_eq!(
                Name::new(bad).unwrap_err().kind(),
                ErrorKind::InvalidName,
                "{bad:?}"
            );
        }
    }
}
