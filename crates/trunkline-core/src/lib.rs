//! The ground floor of Trunkline: what an event is, how subjects match, and what an engine must do.
//!
//! Nothing here does I/O, spawns a task or decodes a payload. Every other crate of the workspace
//! stands on this one and imports point down only: [`subject`] → [`envelope`] → [`engine`] → engines.

pub mod error;

pub mod name;
pub mod subject;

pub mod matcher;

pub mod time;

pub mod envelope;
pub mod headers;
pub mod key;
pub mod wire;

pub mod engine;
pub mod keys;
pub mod ledger;
pub mod local;
pub mod plan;
pub mod random;

pub use envelope::{Attribute, Data, Envelope, EventId, SharedValue};
pub use error::{Error, ErrorKind, Result};
pub use headers::Headers;
pub use name::Name;
pub use subject::{EventType, Filter, Subject};
pub use time::{Clock, SystemClock, Timestamp};
