//! The seam: what an engine must do, and all that the rest of Trunkline knows of one.
//!
//! Five small groups of operations, each batch first and object safe, and gauges where a server has
//! tools of its own. Retries, order, leases
//! across engines, dead letters and replay are written once above this seam; nothing here is
//! emulated by an engine that lacks it, and no method has a default.
//!
//! ```text
//!            publish ephemeral        publish durable          coordinate
//!                 │                        │                        │
//!              ┌──▼──┐   ┌─────────┐   ┌───▼───┐   ┌─────────┐   ┌──▼────┐
//!              │ live │   │ topology │──►│  log   │──►│ consume │   │ state  │
//!              └──┬──┘   └─────────┘   └───┬───┘   └───┬────┘   └──┬────┘
//!              listen                read, follow   fetch, settle   scan, watch
//! ```

mod admitted;
mod capability;
mod consume;
mod gauge;
mod link;
mod live;
mod log;
mod state;
mod topology;

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use smol_str::SmolStr;
use tokio::sync::watch;

use crate::time::Timestamp;

pub use admitted::{Admission, Admitted, Batch};
pub use capability::{Capabilities, Durability, Limits, Reach};
pub use consume::{
    Consume, ConsumerRef, Delivery, Feed, Fetched, Membership, Settle, Settler, Token,
};
pub use gauge::{Gauge, Gauges};
pub use link::LinkOptions;
pub use live::{Heard, Listener, Live, Message, Route};
pub use log::{
    Append, AppendMode, Expect, Follow, Followed, Gap, Log, Outcome, Page, Position, Removal, Seq,
    StoredEvent,
};
pub use state::{
    Bucket, Commit, Committed, Entries, Entry, Expectation, Op, Rev, State, StateKey, Watch,
    Watched,
};
pub use topology::{
    Backlog, Change, ConsumerSpec, ConsumerState, Inspection, Retention, StreamSpec, StreamState,
    SubjectCount, Topology, is_same_stream,
};

/// A boxed future; the price of an object-safe asynchronous method, paid once a batch.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How much may be taken at once. At least one item is given if there is one, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Items at most.
    pub items: usize,
    /// Bytes at most.
    pub bytes: usize,
}

impl Credit {
    /// That many items, of any size.
    pub const fn items(items: usize) -> Self {
        Self {
            items,
            bytes: usize::MAX,
        }
    }
}

/// Whether the engine can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// All is well.
    Connected,
    /// Not reachable since then; the engine is trying.
    Disconnected {
        /// When the link broke.
        since: Timestamp,
        /// Why, without credentials.
        reason: String,
    },
    /// Closed by `close` or given up; it stays so.
    Closed,
}

/// Something that an engine knows of itself or of the server behind it, for people who look for a
/// fault. There are no credentials in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is about, in a word or two: `url`, `server`. No other fact of the engine has it.
    pub name: SmolStr,
    /// What is so.
    pub value: String,
}

impl Fact {
    /// The name of the fact that tells what is stored here from what was stored before at the same
    /// place, and is gone. An engine that cannot tell has none.
    pub const ID: &'static str = "id";

    /// A fact of that name.
    pub fn new(name: impl Into<SmolStr>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }
}

/// One way to carry events: in memory, on disk, over a network.
pub trait Engine: fmt::Debug + Send + Sync + 'static {
    /// A short name for logs: `memory`, `file`, `nats`.
    fn name(&self) -> &'static str;

    /// What this engine promises.
    fn capabilities(&self) -> Capabilities;

    /// What it accepts at most; callers check before sending.
    fn limits(&self) -> Limits;

    /// What it knows of itself and of the server behind it, as it was last told, for `explain` and
    /// for the log at start.
    fn facts(&self) -> Vec<Fact>;

    /// The state of the connection, and every change of it.
    fn link(&self) -> watch::Receiver<Link>;

    /// At most once, nothing stored.
    fn live(&self) -> &dyn Live;

    /// Stored events in order.
    fn log(&self) -> &dyn Log;

    /// Shared durable consumers with leases.
    fn consume(&self) -> &dyn Consume;

    /// Small keys with fenced, atomic commits.
    fn state(&self) -> &dyn State;

    /// What streams and consumers there are.
    fn topology(&self) -> &dyn Topology;

    /// What tools of the engine's own server see of consumers that it does not know. None where there
    /// are no such tools, or the server is too old for it.
    fn gauges(&self) -> Option<&dyn Gauges>;

    /// Hands over what was admitted, then closes. Further calls of it do nothing; every other call
    /// then fails with [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    fn close(&self) -> Boxed<'_, ()>;
}
