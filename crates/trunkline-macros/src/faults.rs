//! Mistakes found so far. A compiler run is slow, so one run should show all of them.

use std::fmt::Display;

use proc_macro2::Span;
use syn::{Error, Result};

/// Collects errors until [`Faults::finish`].
#[derive(Default)]
pub(crate) struct Faults(Option<Error>);

impl Faults {
    /// Notes a mistake at a place.
    pub(crate) fn add(&mut self, span: Span, message: impl Display) {
        self.push(Error::new(span, message));
    }

    /// Notes a mistake.
    pub(crate) fn push(&mut self, error: Error) {
        match &mut self.0 {
            Some(first) => first.combine(error),
            None => self.0 = Some(error),
        }
    }

    /// The value, or nothing and a mistake noted.
    pub(crate) fn take<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }

    /// `Ok` if there were no mistakes, else all of them.
    pub(crate) fn finish(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}
