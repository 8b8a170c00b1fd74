//! The engine in memory: for tests, tools and services whose events need not outlive them.
//!
//! Values are shared, not encoded. Memory is bounded: every stream by a number of events and of
//! bytes, every listener by its capacity. Nothing runs in the background; what falls due is done
//! by whoever waits for it.
//!
//! **Invariant.** Locks are held for bounded stretches of plain computation, never across an
//! await, and wake-ups happen after they are released.

mod consume;
mod live;
mod log;
mod options;
mod selection;
mod state;
mod stream;
mod topology;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use trunkline_core::engine::{
    Boxed, Bucket, Capabilities, Consume, Durability, Engine, Fact, Gauges, Limits, Link, Live,
    Log, Reach, State, Topology,
};
use trunkline_core::headers::Headers;
use trunkline_core::local::Listeners;
use trunkline_core::plan::size_text;
use trunkline_core::wire::Body;
use trunkline_core::{Clock, Error, ErrorKind, Name, Result};

use crate::state::BucketStore;
use crate::stream::Stream;

pub use crate::options::MemoryOptions;

/// One connection to a bus in memory. Connections of one name share the bus; each closes alone.
#[derive(Clone)]
pub struct MemoryEngine {
    bus: Arc<Bus>,
    link: watch::Sender<Link>,
    /// What the link says last, where every message can look at no cost.
    closed: Arc<AtomicBool>,
}

/// What connections share.
struct Bus {
    options: MemoryOptions,
    clock: Arc<dyn Clock>,
    listeners: Listeners,
    streams: RwLock<BTreeMap<Name, Arc<Mutex<Stream>>>>,
    buckets: Mutex<BTreeMap<Bucket, Arc<Mutex<BucketStore>>>>,
}

impl MemoryEngine {
    /// Connects to the bus of the options' name, or to a fresh one where they have none.
    ///
    /// # Errors
    /// [`ErrorKind::Drift`] when a bus of that name exists with other options.
    pub fn connect(options: MemoryOptions, clock: Arc<dyn Clock>) -> Result<Self> {
        let bus = options::shared(options, |options| Bus {
            options,
            clock,
            listeners: Listeners::default(),
            streams: RwLock::default(),
            buckets: Mutex::default(),
        })?;
        Ok(Self {
            bus,
            link: watch::Sender::new(Link::Connected),
            closed: Arc::default(),
        })
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            Err(closed())
        } else {
            Ok(())
        }
    }

    /// The stream, if the connection is open and it exists.
    fn stream(&self, name: &Name) -> Result<Arc<Mutex<Stream>>> {
        self.check_open()?;
        self.bus.streams.read().get(name).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::NoSuchStream,
                format!("there is no stream {name} on this bus; check its name"),
            )
        })
    }

    /// Refuses a message above the limit and, where asked to, encodes it.
    fn admit(&self, headers: &Headers, body: Body, max_message: usize) -> Result<Body> {
        let body = match body {
            Body::Event(_) if self.bus.options.encode => Body::Bytes(body.to_bytes()?),
            body => body,
        };
        if let Some(size) = body.size_above(headers, max_message)? {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "the message has {size} bytes encoded, the limit is {max_message}; nothing was stored"
                ),
            ));
        }
        Ok(body)
    }
}

fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "this connection to the bus is closed; connect again",
    )
}

impl Engine for MemoryEngine {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: Durability::Process,
            reach: Reach::Process,
            shares_values: !self.bus.options.encode,
        }
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn facts(&self) -> Vec<Fact> {
        let MemoryOptions {
            name,
            max_events,
            max_bytes,
            ..
        } = &self.bus.options;
        let name = name.as_ref().map(|name| Fact::new("name", name.as_str()));
        let capacity = format!(
            "{max_events} events and {} a stream at most",
            size_text(*max_bytes)
        );
        name.into_iter()
            .chain([Fact::new("capacity", capacity)])
            .collect()
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    fn live(&self) -> &dyn Live {
        self
    }

    fn log(&self) -> &dyn Log {
        self
    }

    fn consume(&self) -> &dyn Consume {
        self
    }

    fn state(&self) -> &dyn State {
        self
    }

    fn topology(&self) -> &dyn Topology {
        self
    }

    fn gauges(&self) -> Option<&dyn Gauges> {
        None
    }

    fn close(&self) -> Boxed<'_, ()> {
        self.closed.store(true, Ordering::Release);
        self.link.send_replace(Link::Closed);
        Box::pin(std::future::ready(()))
    }
}

impl fmt::Debug for MemoryEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryEngine")
            .field("options", &self.bus.options)
            .finish_non_exhaustive()
    }
}
