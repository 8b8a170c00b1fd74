//! Testing with Trunkline, and testing Trunkline itself.
//!
//! For programs that use the bus: a [`VirtualClock`] that moves with tokio's paused time, a
//! [`TrackedSession`] that waits for exactly the work that a test caused, and [`fixture`] events.
//!
//! For engines: the [`contract`], every promise of the bus as a property that any engine runs.
//!
//! For what is built on engines: [`sim`], worlds in which everything goes wrong, each from one seed.
//!
//! ```
//! # mod suite {
//! use std::sync::Arc;
//! use trunkline_testing::contract::MemoryHarness;
//!
//! // One #[test] for each property: p1_…, c2_….
//! trunkline_testing::contract_suite!(Arc::new(MemoryHarness::new("")));
//! # }
//! ```

mod clock;
mod cut;
pub mod fixture;
mod session;

pub mod contract;
pub mod sim;

pub use clock::VirtualClock;
pub use cut::{Channel, Cuts, Proxy, Restarts};
pub use session::{Run, TrackedSession, Verdict as RunVerdict};
