//! The configuration as data: no file and no variable is touched.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

mod read;
mod refuse;
mod support;
