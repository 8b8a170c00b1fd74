//! The built command against a bus that runs in a process of its own: what it does, and what it
//! says when that bus is not there, is something else, goes away or comes back.

// Helpers of tests are tests to a reader, though not to clippy.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![cfg(unix)]

#[path = "../support/mod.rs"]
mod support;

mod publishing;

mod following;
mod replaying;
mod watching;
mod working;

mod dead_letters;
mod looking;
mod operating;
mod topology;

mod outages;
mod strangers;
mod versions;
