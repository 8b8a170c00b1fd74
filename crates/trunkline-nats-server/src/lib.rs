//! Finds, obtains, configures and runs nats-server as a child process.
//!
//! Two kinds of callers need a NATS server of their own: `trunkline up --nats`, which runs the one
//! that its user installed ([`find`], [`ServerOptions::safe`]), and tests, examples and benchmarks,
//! which want a certain release and many short-lived servers ([`obtain`], [`NatsServer`],
//! [`Cluster`]).
//!
//! ```no_run
//! # fn main() -> Result<(), trunkline_nats_server::Error> {
//! use trunkline_nats_server::{NatsServer, ServerOptions, obtain};
//!
//! let mut server = NatsServer::start(&obtain()?, ServerOptions::default())?;
//! println!("{}", server.url());
//! server.kill()?;
//! server.restart()?; // the same port and the same store
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//! - A server never outlives the process that started it, however that process ends.
//! - It listens on loopback only.
//! - What it writes is readable by its user alone.
//! - [`find`] never touches the network; [`obtain`] does, once for each release and target folder,
//!   and checks the SHA-256 of what it gets.
//! - No call waits without a deadline.
//!
//! Everything blocks: from async code, call it on a thread for blocking work.
//!
//! It needs signals, file modes and `/bin/sh`, so on Windows the crate is empty.
#![cfg(unix)]

mod version;

mod find;
mod obtain;
mod releases;

mod config;
mod options;

mod server;

mod cluster;
mod guard;
mod monitor;
mod place;
mod ports;

mod error;

pub use cluster::Cluster;
pub use config::safe_config;
pub use error::{Error, ErrorKind};
pub use find::{Binary, VARIABLE, find};
pub use obtain::{obtain, obtain_version};
pub use options::{ServerOptions, storage_limit};
pub use server::NatsServer;
pub use version::{OLDEST, PINNED, Version};
