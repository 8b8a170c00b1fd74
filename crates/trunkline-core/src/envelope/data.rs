//! What an event carries, encoded or not.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::IgnoredAny;
use smol_str::SmolStr;

use crate::error::{Cause, Error, ErrorKind, Result};

/// What an event carries.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Data {
    /// Nothing.
    #[default]
    None,
    /// The text of one JSON value, byte for byte as it was given.
    Json(JsonText),
    /// Text of a media type that is not JSON.
    Text(SmolStr),
    /// Anything else.
    Binary(Bytes),
    /// A value of this process that has not been encoded, and need not be unless it leaves.
    Value(SharedValue),
}

impl Data {
    /// The data as bytes: JSON and text as they are written, a shared value encoded as JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Encode`] when a shared value's serializer fails.
    pub fn to_bytes(&self) -> Result<Bytes> {
        match self {
            Data::None => Ok(Bytes::new()),
            Data::Json(json) => Ok(json.0.clone()),
            Data::Text(text) => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Data::Binary(bytes) => Ok(bytes.clone()),
            Data::Value(value) => value.encode().map(|json| json.0),
        }
    }
}

/// Bytes that are known to be exactly one JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonText(Bytes);

impl JsonText {
    /// Checks that `bytes` are one JSON value and keeps them as they are, white space around aside.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`], with the line and column in the source.
    pub fn new(bytes: &Bytes) -> Result<Self> {
        let invalid =
            |error| Error::new(ErrorKind::InvalidEvent, "the data is not JSON").caused_by(error);
        let text = std::str::from_utf8(bytes).map_err(|error| {
            Error::new(ErrorKind::InvalidEvent, "the data is not UTF-8").caused_by(error)
        })?;
        let IgnoredAny = serde_json::from_str(text).map_err(invalid)?;
        Ok(Self(bytes.slice_ref(text.trim_ascii().as_bytes())))
    }

    /// Wraps what a JSON serializer or parser has just vouched for.
    pub fn trusted(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The text.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

/// A typed value shared by everyone in this process, with the knowledge of how to encode it.
#[derive(Clone)]
pub struct SharedValue {
    value: Arc<dyn Any + Send + Sync>,
    value_type: &'static ValueType,
}

/// What is the same for every value of a type; one for each type, so that a value carries a
/// pointer and no more.
#[derive(Debug)]
pub struct ValueType {
    name: fn() -> &'static str,
    shallow_bytes: usize,
    encode: Encode,
}

/// Writes a value as one JSON value behind what is there.
type Encode = fn(&(dyn Any + Send + Sync), &mut Vec<u8>) -> Result<(), Cause>;

impl ValueType {
    /// The type `T`, whose values `encode` writes.
    pub const fn of<T: Any + Send + Sync>(encode: Encode) -> Self {
        Self {
            name: std::any::type_name::<T>,
            shallow_bytes: size_of::<T>(),
            encode,
        }
    }
}

impl SharedValue {
    /// Shares `value`, which is encoded only where it must be.
    pub fn new<T: Any + Send + Sync>(value: Arc<T>, value_type: &'static ValueType) -> Self {
        Self { value, value_type }
    }

    /// The value itself, if it is a `T`.
    pub fn downcast<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.value).downcast().ok()
    }

    /// The value as JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Encode`] when its serializer fails.
    pub fn encode(&self) -> Result<JsonText> {
        let mut bytes = Vec::with_capacity(256);
        self.encode_into(&mut bytes)?;
        Ok(JsonText(bytes.into()))
    }

    /// Writes the value as JSON behind what is there.
    ///
    /// # Errors
    /// [`ErrorKind::Encode`] when its serializer fails, which may have written a part.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<()> {
        (self.value_type.encode)(self.value.as_ref(), out).map_err(|cause| {
            Error::new(
                ErrorKind::Encode,
                format!("a {} cannot be encoded", (self.value_type.name)()),
            )
            .caused_by(cause)
        })
    }

    /// The size of the value itself, without what it points to.
    pub fn shallow_bytes(&self) -> usize {
        self.value_type.shallow_bytes
    }
}

impl fmt::Debug for SharedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the value: what is in it may be a secret.
        write!(f, "SharedValue<{}>", (self.value_type.name)())
    }
}

impl PartialEq for SharedValue {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.value, &other.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_text_is_kept_byte_for_byte() {
        let text = JsonText::new(&Bytes::from_static(b" {\"a\": 1.0e2} ")).unwrap();
        assert_eq!(text.as_bytes().as_ref(), b"{\"a\": 1.0e2}");
        for bad in ["", "{", "{} {}", "nul", "{'a':1}", "\u{feff}1"] {
            assert!(
                JsonText::new(&Bytes::copy_from_slice(bad.as_bytes())).is_err(),
                "{bad:?}"
            );
        }
    }
}
