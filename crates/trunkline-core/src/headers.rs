//! Headers: the user's own, beside the event, as NATS and HTTP carry them.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// Names and values beside an event, in the order in which they were added.
///
/// Names are matched without regard to case. A clone shares its content; empty ones cost nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Option<Arc<Vec<(String, String)>>>);

impl Headers {
    /// The most headers on one event.
    pub const MAX_COUNT: usize = 64;
    /// The most bytes that names and values may have together.
    pub const MAX_BYTES: usize = 16 * 1024;

    /// No headers.
    pub const fn new() -> Self {
        Self(None)
    }

    /// Adds a header; a second one of the same name is kept beside the first.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidHeader`] for a name that is not visible ASCII or has a `:`, for a value
    /// with CR, LF or NUL, and when there would be more than [`Headers::MAX_COUNT`] headers or
    /// [`Headers::MAX_BYTES`] bytes.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<String>) -> Result<()> {
        let (name, value) = (name.into(), value.into());
        let refuse = |fault: String| Err(Error::new(ErrorKind::InvalidHeader, fault));
        check(&name, &value)?;
        if self.len() == Self::MAX_COUNT {
            return refuse(format!(
                "{name:?} would be header {}, the limit is {}",
                self.len() + 1,
                Self::MAX_COUNT
            ));
        }
        let bytes = self.bytes() + name.len() + value.len();
        if bytes > Self::MAX_BYTES {
            return refuse(format!(
                "with {name:?} the headers have {bytes} bytes, the limit is {}",
                Self::MAX_BYTES
            ));
        }
        Arc::make_mut(self.0.get_or_insert_default()).push((name, value));
        Ok(())
    }

    /// Adds a header of Trunkline's own, beyond the limits on the user's; line breaks become
    /// spaces. Whoever calls it bounds the value.
    pub fn add_own(&mut self, name: &'static str, value: &str) {
        let value = value.replace(['\r', '\n', '\0'], " ");
        Arc::make_mut(self.0.get_or_insert_default()).push((name.to_owned(), value));
    }

    /// Adds a header as another process had it: checked, but not against the limits on the user's,
    /// because Trunkline's own may be beside them.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidHeader`] for a name or value that [`add`](Self::add) would refuse.
    pub fn restore(&mut self, name: &str, value: &str) -> Result<()> {
        check(name, value)?;
        Arc::make_mut(self.0.get_or_insert_default()).push((name.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Those whose names are not as said.
    pub fn without(self, is_out: impl Fn(&str) -> bool) -> Self {
        let kept = self.iter().filter(|(name, _)| !is_out(name));
        let kept: Vec<_> = kept
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Self((!kept.is_empty()).then(|| Arc::new(kept)))
    }

    /// The first value of that name, in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(candidate, _)| candidate.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// All headers in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .flat_map(|all| all.iter())
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |all| all.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of all names and values.
    pub fn bytes(&self) -> usize {
        self.iter()
            .map(|(name, value)| name.len() + value.len())
            .sum()
    }
}

fn check(name: &str, value: &str) -> Result<()> {
    let fault = if name.is_empty()
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b':')
    {
        format!("{name:?} is not a header name: use visible ASCII without `:`")
    } else if value.contains(['\r', '\n', '\0']) {
        format!("the value of header {name:?} has a line break or NUL: remove it")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidHeader, fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_without_case_and_values_may_be_empty_or_unicode() {
        let mut headers = Headers::new();
        headers.add("Tenant", "größe").unwrap();
        headers.add("tenant", "").unwrap();
        assert_eq!(headers.get("TENANT"), Some("größe"));
        assert_eq!(
            headers.iter().map(|(_, value)| value).collect::<Vec<_>>(),
            ["größe", ""]
        );
    }

    #[test]
    fn line_breaks_bad_names_and_excess_are_refused() {
        let mut headers = Headers::new();
        for (name, value) in [
            ("a", "x\r\ny"),
            ("a", "\n"),
            ("", "x"),
            ("a:b", "x"),
            ("ü", "x"),
        ] {
            assert_eq!(
                headers.add(name, value).unwrap_err().kind(),
                ErrorKind::InvalidHeader
            );
        }
        assert!(headers.add("big", "x".repeat(Headers::MAX_BYTES)).is_err());
        for _ in 0..Headers::MAX_COUNT {
            headers.add("n", "").unwrap();
        }
        assert!(headers.add("n", "").is_err());
    }
}
