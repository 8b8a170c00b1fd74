//! Faults from a seed, on real processes of a durable consumer.
//!
//! `cargo xtask chaos --seed N` starts a bus, publishers and workers as processes of their own, kills,
//! stops, cuts and slows them by a plan that is a function of the seed, lets everything heal, and holds
//! what the processes wrote down against the delivery contract.
//!
//! ```text
//!            plan(seed) ──► runner ──► signals, proxies, servers
//!                             │
//!   publishers ──► bus ──► workers            published.jsonl   asked, acknowledged
//!                             └──────────────► effects.jsonl     each run: start, end, epoch
//!                                              faults.jsonl      what was done to whom, from when to when
//!                                              stored.jsonl, dead.jsonl, closing.json
//!                             checker ◄────────┘
//! ```
//!
//! **Invariant:** the checker is a pure function of those files, so that a run can be judged again and
//! every kind of violation is tried by a test on files that are wrong.
//!
//! **Invariant:** workers and publishers use what an application could use, and nothing else.

#[cfg(unix)]
mod dice;
#[cfg(unix)]
mod plan;
#[cfg(unix)]
mod script;

#[cfg(unix)]
mod event;
#[cfg(unix)]
mod record;

#[cfg(unix)]
mod client;
#[cfg(unix)]
mod owner;
#[cfg(unix)]
mod publisher;
#[cfg(unix)]
mod worker;

#[cfg(unix)]
mod crew;
#[cfg(unix)]
mod proxy;
#[cfg(unix)]
mod site;

#[cfg(unix)]
mod closing;
#[cfg(unix)]
mod runner;

#[cfg(unix)]
mod check;
#[cfg(unix)]
mod report;

#[cfg(unix)]
mod command;

#[cfg(unix)]
pub use command::main;

/// Signals and sockets in folders are needed, so there is nothing here for other systems.
#[cfg(not(unix))]
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(2)
}
