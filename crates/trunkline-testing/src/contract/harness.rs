//! How the suite gets at an engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trunkline::core::engine::{Boxed, Engine};
use trunkline::core::{Clock, SystemClock};
use trunkline::{Bus, Connect, Result};
use trunkline_memory::{MemoryEngine, MemoryOptions};

use crate::VirtualClock;

/// An engine under test.
pub trait Harness: Send + Sync + 'static {
    /// What its column in the capability matrix is called.
    fn name(&self) -> &str;

    /// Connects to a place. Connections to one place share what is stored there; a place whose
    /// name was never used is empty.
    fn connect<'a>(
        &'a self,
        place: &'a str,
        clock: Arc<dyn Clock>,
    ) -> Boxed<'a, Result<Arc<dyn Engine>>>;

    /// Kills whatever keeps a place, without a word to it, and starts it again. Does nothing where
    /// there is nothing but this process.
    fn crash<'a>(&'a self, place: &'a str) -> Boxed<'a, ()>;

    /// Whether the engine lives in this process and takes its time from the clock that it is
    /// given and from tokio, so that time may be virtual.
    fn allows_virtual_time(&self) -> bool;
}

/// The engine in memory.
#[derive(Clone, Debug)]
pub struct MemoryHarness {
    name: String,
    query: String,
}

impl MemoryHarness {
    /// `memory:` with a query such as `?encode=always`, or none.
    pub fn new(query: impl Into<String>) -> Self {
        let query = query.into();
        Self {
            name: format!("memory:{query}"),
            query,
        }
    }
}

impl Harness for MemoryHarness {
    fn name(&self) -> &str {
        &self.name
    }

    fn connect<'a>(
        &'a self,
        place: &'a str,
        clock: Arc<dyn Clock>,
    ) -> Boxed<'a, Result<Arc<dyn Engine>>> {
        Box::pin(async move {
            let options = MemoryOptions::from_url(&format!("memory:{place}{}", self.query))?;
            let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::connect(options, clock)?);
            Ok(engine)
        })
    }

    fn crash<'a>(&'a self, _: &'a str) -> Boxed<'a, ()> {
        Box::pin(async {})
    }

    fn allows_virtual_time(&self) -> bool {
        true
    }
}

/// One run of one property: a place of its own, and connections to it.
#[derive(Clone)]
pub struct Trial {
    harness: Arc<dyn Harness>,
    place: String,
    clock: Arc<dyn Clock>,
    /// Keeps alive a place that is gone with its last connection.
    kept: Arc<tokio::sync::OnceCell<Arc<dyn Engine>>>,
}

impl Trial {
    pub(super) fn new(harness: Arc<dyn Harness>, is_virtual: bool) -> Self {
        static PLACES: AtomicU64 = AtomicU64::new(1);
        let place = format!(
            "trial-{}-{}",
            std::process::id(),
            PLACES.fetch_add(1, Ordering::Relaxed)
        );
        let clock: Arc<dyn Clock> = match is_virtual {
            true => Arc::new(VirtualClock::default()),
            false => Arc::new(SystemClock),
        };
        Self {
            harness,
            place,
            clock,
            kept: Arc::default(),
        }
    }

    /// Another connection to the trial's place.
    ///
    /// # Panics
    /// When there is none to be had.
    pub async fn engine(&self) -> Arc<dyn Engine> {
        let connect = async || {
            self.harness
                .connect(&self.place, Arc::clone(&self.clock))
                .await
                .unwrap()
        };
        self.kept.get_or_init(connect).await;
        connect().await
    }

    /// A bus on another connection, to be configured and awaited.
    pub async fn connect(&self) -> Connect {
        Connect::with_engine(self.engine().await)
            .clock(Arc::clone(&self.clock))
            .source("/trial")
    }

    /// A bus on another connection.
    ///
    /// # Panics
    /// When there is none to be had.
    pub async fn bus(&self) -> Bus {
        self.connect().await.await.unwrap()
    }

    /// The time by the clock that the engine was given.
    pub fn now(&self) -> trunkline::Timestamp {
        self.clock.now()
    }

    /// Kills what keeps the trial's place, and starts it again.
    pub(super) async fn crash(&self) {
        self.harness.crash(&self.place).await;
    }

    /// Closes every connection that the trial itself keeps.
    pub(super) async fn let_go(&self) {
        if let Some(engine) = self.kept.get() {
            engine.close().await;
        }
    }
}
