//! What tells one event from another.

use std::fmt;

use smol_str::SmolStr;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::random::random;
use crate::time::Timestamp;

/// An event's id: any non-empty text. Those that Trunkline makes are UUIDs of version 7.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(Id);

// A UUID in canonical form is always kept as one, so that equal ids are equal values.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Id {
    Uuid(Uuid),
    Text(SmolStr),
}

impl EventId {
    /// The most bytes that an id may have.
    pub const MAX_BYTES: usize = 256;
    /// The bytes of a UUID in canonical form.
    pub const UUID_BYTES: usize = uuid::fmt::Hyphenated::LENGTH;

    /// A new UUIDv7 for an event that happens at `now`.
    pub fn generate(now: Timestamp) -> Self {
        let millis = u64::try_from(now.as_millis()).unwrap_or(0);
        // Ids must differ, not be hard to guess, so the fast generator will do.
        Self(Id::Uuid(
            uuid::Builder::from_unix_timestamp_millis(millis, &random()).into_uuid(),
        ))
    }

    /// Wraps an id that came from outside.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] when it is empty, longer than [`EventId::MAX_BYTES`], or has
    /// a control character.
    pub fn new(text: impl AsRef<str>) -> Result<Self> {
        let text = text.as_ref();
        // A text of this length that is a UUID has hyphens, and is canonical in lower case.
        if text.len() == Self::UUID_BYTES
            && !text.bytes().any(|byte| byte.is_ascii_uppercase())
            && let Ok(uuid) = Uuid::try_parse(text)
        {
            return Ok(Self(Id::Uuid(uuid)));
        }
        if text.is_empty() || text.len() > Self::MAX_BYTES || text.chars().any(char::is_control) {
            return Err(Error::new(
                ErrorKind::InvalidEvent,
                format!(
                    "id {text:?} is empty, longer than {} bytes or has a control character",
                    Self::MAX_BYTES
                ),
            ));
        }
        Ok(Self(Id::Text(SmolStr::new(text))))
    }

    /// The id as text, for which a UUID needs room.
    pub fn text<'a>(&'a self, room: &'a mut [u8; Self::UUID_BYTES]) -> &'a str {
        match &self.0 {
            Id::Uuid(uuid) => uuid.hyphenated().encode_lower(room),
            Id::Text(text) => text,
        }
    }
}

impl From<Uuid> for EventId {
    fn from(uuid: Uuid) -> Self {
        Self(Id::Uuid(uuid))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Id::Uuid(uuid) => fmt::Display::fmt(uuid, f),
            Id::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canonical_uuid_and_its_text_are_the_same_id() {
        let id = EventId::generate(Timestamp::from_nanos(1_700_000_000_000_000_000));
        assert_eq!(EventId::new(id.to_string()).unwrap(), id);
        let mut room = [0; EventId::UUID_BYTES];
        assert_eq!(id.text(&mut room), id.to_string());
        let upper = id.to_string().to_uppercase();
        assert_eq!(EventId::new(&upper).unwrap().to_string(), upper);
        assert!(EventId::new("").is_err() && EventId::new("a\nb").is_err());
    }

    #[test]
    fn generated_ids_are_version_7_in_order_of_time() {
        let at =
            |millis: i64| EventId::generate(Timestamp::from_nanos(millis * 1_000_000)).to_string();
        assert!(at(1_000) < at(2_000));
        assert_eq!(at(1_000).as_bytes()[14], b'7');
    }
}
