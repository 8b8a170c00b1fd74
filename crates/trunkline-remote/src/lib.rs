//! A Trunkline bus in another process of this host: an engine over one connection, and the end that
//! serves it.
//!
//! A [`RemoteEngine`] does what the engine behind a [`Server`] does, by the five groups of the seam
//! and with no semantics of its own. The connection is a WebSocket at [`PATH`], or over a Unix
//! socket; anything else that carries messages whole and in order is a [`Socket`] too.
//!
//! ```text
//! engine groups ── frames ── session ── packets ── socket ═══ socket ── … ── engine
//!                              │
//!                              numbered, kept until confirmed, sent again over the next connection
//! ```
//!
//! **Invariant.** Nothing is decided here: no retry of a handler, no order, no lease. Only what a
//! connection can do wrong is dealt with: it breaks, it is slow, the other end is another program.

mod codec;
mod frame;
mod hello;
mod session;

mod line;
mod socket;

mod client;
mod dial;
mod server;
#[cfg(unix)]
mod unix;

pub use client::RemoteEngine;
pub use dial::{Dial, PATH};
pub use server::Server;
pub use socket::{MAX_MESSAGE_BYTES, READ_BUFFER_BYTES, Socket, websocket_config};
#[cfg(unix)]
pub use unix::{connect_unix, listen_unix, serve_unix};
