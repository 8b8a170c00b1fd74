//! The door over real connections.

// Helpers of tests are tests to a reader, though not to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

mod access;
mod engine;
mod publish;
mod read;
mod shutdown;
