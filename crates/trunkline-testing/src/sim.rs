//! A world in one thread: several processes, one engine between them, and everything that goes
//! wrong, all of it a function of one seed.
//!
//! What runs in it is the public API as it is. Each process is a tokio runtime of its own with a
//! paused clock, which the [`World`] lets run for some milliseconds at a time; the engine lives in
//! one more of them, and what the processes ask of it travels as packets that come late, far too late,
//! or never.
//!
//! ```text
//!   process 1   process 2   process 3        each a runtime: killed = dropped, stopped = not run,
//!       │           │           │            its clock a little fast or slow
//!   ────▼───────────▼───────────▼────────    packets: delayed, lost, applied after the caller gave up
//!                   │
//!             the server's engine            its clock is the only one that is right
//! ```
//!
//! A [`Scenario`] makes such a world for one consumer, and [`Verdict`] says whether what its
//! handlers did, as their [`Journal`] has it outside of the engine, is what the contract promises.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a simulation ends where it fails"
)]

mod faults;
mod hub;

mod host;
mod net;
mod readers;
mod site;

mod world;

mod journal;
mod script;

mod check;
mod controller;
mod members;
mod operator;
mod scenario;
mod trial;

pub use check::{Repeats, Verdict, Violation};
pub use faults::Faults;
pub use host::Process;
pub use journal::{Ended, Journal, Run};
pub use members::{Lens, Sharing};
pub use scenario::Scenario;
pub use script::Script;
pub use trial::{Summary, Tally, seeds, tally, try_scenarios};
pub use world::{HostId, World};
