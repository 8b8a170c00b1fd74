//! The engine on a directory: everything of one host, with nothing to install.
//!
//! ```text
//!   callers ──jobs──► committer ──► segments and journal ──► readers, who are woken
//!                    (one thread:     (one sync a file
//!                     takes what       and group)
//!                     is queued)
//! ```
//!
//! Whoever connects to a directory within one process shares it; another process is told who has it, and
//! is served by that one if it asks at the directory's socket.
//!
//! **Invariant.** Nothing is answered before it is durable, or written where the directory was opened to
//! be content with that. Locks are held for computation only: files are read without any, and written by
//! the committer alone.

mod committer;
mod connections;
mod consume;
mod directory;
mod live;
mod log;
mod options;
mod state;
mod streams;
pub(crate) mod sync;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use trunkline_core::engine::{
    Boxed, Bucket, Capabilities, Consume, Durability, Engine, Fact, Gauges, Limits, Link, Live,
    Log, Reach, State, Topology,
};
use trunkline_core::headers::Headers;
use trunkline_core::local::Listeners;
use trunkline_core::wire::Body;
use trunkline_core::{Clock, Error, ErrorKind, Name, Result};

use self::committer::{Committer, Job};
use self::connections::Connections;
use self::streams::{OpenStream, Streams};
use crate::journal;

pub use self::options::LogOptions;
pub use self::sync::SyncPolicy;

/// One connection to the log in a directory. Connections of one process share it; each closes alone,
/// and the last one closes the directory.
pub struct LogEngine {
    bus: Arc<Bus>,
    link: watch::Sender<Link>,
    /// What the link says last, where every message can look at no cost.
    closed: Arc<AtomicBool>,
    /// Which of the bus's connections this is.
    number: u64,
}

/// What connections share.
struct Bus {
    dir: PathBuf,
    /// Tells the directory from every other, wherever it is.
    id: String,
    sync: SyncPolicy,
    clock: Arc<dyn Clock>,
    listeners: Listeners,
    streams: Arc<Streams>,
    keys: Arc<journal::State>,
    /// Who watches a bucket is told here that it changed.
    changed: Arc<Changed>,
    committer: Committer,
    connections: Arc<Connections>,
}

/// Told when something of a bucket changed.
#[derive(Debug, Default)]
struct Changed(Mutex<BTreeMap<Bucket, Arc<Notify>>>);

impl Changed {
    fn of(&self, bucket: &Bucket) -> Arc<Notify> {
        Arc::clone(self.0.lock().entry(bucket.clone()).or_default())
    }

    fn tell(&self, bucket: &Bucket) {
        if let Some(notify) = self.0.lock().get(bucket) {
            notify.notify_waiters();
        }
    }
}

/// What the socket is called by which other processes use the directory.
const SOCKET: &str = "bus.sock";

/// A directory that this process has open, or is about to. Held while it is opened, so that whoever else
/// wants it waits, and nobody else.
type Slot = Arc<Mutex<Weak<Bus>>>;

/// The directories that this process has open.
static OPEN: Mutex<BTreeMap<PathBuf, Slot>> = Mutex::new(BTreeMap::new());

fn slot(dir: &Path) -> Slot {
    let mut open = OPEN.lock();
    // Whoever is about to open one holds its slot too.
    open.retain(|_, slot| {
        Arc::strong_count(slot) > 1 || slot.try_lock().is_none_or(|bus| bus.strong_count() > 0)
    });
    Arc::clone(open.entry(dir.to_owned()).or_default())
}

impl LogEngine {
    /// Opens the directory, or joins those of this process who have it open. Blocks for as long as
    /// that takes: what a crash left behind is read, snapshots are, history is not.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] when another process has it, with its number; [`ErrorKind::Damaged`],
    /// [`ErrorKind::WrongVersion`], [`ErrorKind::InvalidConfig`] for a directory of another program,
    /// [`ErrorKind::OverQuota`] without room, and [`ErrorKind::StorageFailed`];
    /// [`ErrorKind::Unsupported`] when this process has it open and syncs it less often than asked for.
    pub fn connect(options: &LogOptions, clock: Arc<dyn Clock>) -> Result<Self> {
        let dir = directory::place(&options.dir)?;
        let slot = slot(&dir);
        let mut open = slot.lock();
        if let Some(bus) = open.upgrade()
            && let Ok(joined) = Self::join(bus)
        {
            options.check_sync(joined.bus.sync)?;
            return Ok(joined);
        }
        let bus = Arc::new(directory::open(dir, options, clock)?);
        *open = Arc::downgrade(&bus);
        Self::join(bus)
    }

    /// Opens a directory of a simulated disk, which nobody else has. It is to be closed before the disk
    /// crashes, so that nothing of it is at work afterwards.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    #[cfg(feature = "simulation")]
    pub fn simulated(
        disk: &crate::sim::SimDisk,
        options: &LogOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        use crate::disk::Disk;
        let (dir, lock) = (options.dir.clone(), directory::Lock::none());
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        disk.make_dir(&dir).map_err(|error| {
            Error::new(ErrorKind::StorageFailed, "no directory").caused_by(error)
        })?;
        let id = "simulated".to_owned();
        let bus = directory::open_on(disk, dir, id, lock, options, clock)?;
        Self::join(Arc::new(bus))
    }

    /// Where the process that has this directory may serve others: a socket in it.
    ///
    /// # Errors
    /// Those of finding and making the directory.
    pub fn socket(options: &LogOptions) -> Result<PathBuf> {
        Ok(directory::place(&options.dir)?.join(SOCKET))
    }

    /// One more connection to the same directory.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] once this one is closed.
    pub fn another(&self) -> Result<Self> {
        self.check_open()?;
        Self::join(Arc::clone(&self.bus))
    }

    /// Has everything on the disk that was answered before, whatever the directory's policy is.
    ///
    /// # Errors
    /// [`ErrorKind::StorageFailed`], after which nothing more is taken, and [`ErrorKind::Closed`].
    pub async fn sync(&self) -> Result<()> {
        self.check_open()?;
        self.bus.committer.ask(|reply| Job::Sync { reply }).await
    }

    /// One connection more, unless the last one has gone already, or the bus has failed.
    fn join(bus: Arc<Bus>) -> Result<Self> {
        let link = watch::Sender::new(Link::Connected);
        let closed = Arc::default();
        let number = bus.connections.add(&link, &closed)?;
        Ok(Self {
            bus,
            link,
            closed,
            number,
        })
    }

    fn check_open(&self) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(self.bus.connections.why_closed()),
            false => Ok(()),
        }
    }

    /// The stream, if the connection is open and it exists.
    fn stream(&self, name: &Name) -> Result<Arc<OpenStream>> {
        self.check_open()?;
        self.bus.streams.get(name)
    }

    /// Closes the connection; whether it was the last that was open.
    fn leave(&self) -> bool {
        self.closed.store(true, Ordering::Release);
        self.link.send_replace(Link::Closed);
        self.bus.connections.remove(self.number)
    }
}

impl Drop for LogEngine {
    fn drop(&mut self) {
        if self.leave() {
            self.bus.committer.end();
        }
    }
}

/// Encodes a message, and refuses one above the limit.
fn encoded(headers: &Headers, body: &Body, max_message: usize) -> Result<Body> {
    let bytes = body.to_bytes()?;
    let size = bytes.len() + headers.bytes();
    if size > max_message {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "the message has {size} bytes encoded, the limit is {max_message}; nothing was stored"
            ),
        ));
    }
    Ok(Body::Bytes(bytes))
}

fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "this connection to the bus is closed; connect again",
    )
}

impl Engine for LogEngine {
    fn name(&self) -> &'static str {
        "file"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: match self.bus.sync.survives_power() {
                true => Durability::Power,
                false => Durability::Crash,
            },
            reach: Reach::Process,
            shares_values: false,
        }
    }

    fn limits(&self) -> Limits {
        Limits::default()
    }

    fn facts(&self) -> Vec<Fact> {
        let mut facts = vec![
            Fact::new(Fact::ID, self.bus.id.as_str()),
            Fact::new("directory", self.bus.dir.display().to_string()),
        ];
        facts.extend(self.bus.sync.facts());
        facts
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
        Box::pin(async move {
            if self.leave() {
                self.bus.committer.closed().await;
            }
        })
    }
}

impl fmt::Debug for LogEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogEngine")
            .field("dir", &self.bus.dir)
            .finish_non_exhaustive()
    }
}
