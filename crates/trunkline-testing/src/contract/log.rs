//! The embedded log, on the file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use trunkline::core::engine::{Boxed, Engine};
use trunkline::core::{Clock, Result};
use trunkline_log::{LogEngine, LogOptions, SyncPolicy};

use super::harness::Harness;

/// The engine behind `file:` URLs: each place is a directory of a temporary one, which is removed
/// with the harness.
#[derive(Debug)]
pub struct LogHarness {
    root: Root,
    sync: SyncPolicy,
}

#[derive(Debug)]
struct Root(PathBuf);

impl Root {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // What cannot be removed lies in the folder for temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl LogHarness {
    /// With a temporary directory of its own.
    pub fn new() -> Self {
        Self::with(SyncPolicy::Always)
    }

    /// As [`new`](Self::new), with that policy.
    pub fn with(sync: SyncPolicy) -> Self {
        static HARNESSES: AtomicU64 = AtomicU64::new(1);
        let number = HARNESSES.fetch_add(1, Ordering::Relaxed);
        let name = format!("trunkline-log-{}-{number}", std::process::id());
        Self {
            root: Root(std::env::temp_dir().join(name)),
            sync,
        }
    }
}

impl LogHarness {
    /// A path in its directory, for something that goes with it.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }
}

impl Default for LogHarness {
    fn default() -> Self {
        Self::new()
    }
}

impl Harness for LogHarness {
    fn name(&self) -> &'static str {
        match self.sync {
            SyncPolicy::Always => "file:",
            SyncPolicy::Interval(_) => "file: with sync=interval",
            SyncPolicy::Os => "file: with sync=os",
        }
    }

    fn connect<'a>(
        &'a self,
        place: &'a str,
        clock: Arc<dyn Clock>,
    ) -> Boxed<'a, Result<Arc<dyn Engine>>> {
        Box::pin(async move {
            let options = LogOptions {
                segment_bytes: LogOptions::MIN_SEGMENT_BYTES,
                sync: Some(self.sync),
                ..LogOptions::new(self.root.path().join(place))
            };
            let engine: Arc<dyn Engine> = Arc::new(LogEngine::connect(&options, clock)?);
            Ok(engine)
        })
    }

    fn crash<'a>(&'a self, _: &'a str) -> Boxed<'a, ()> {
        Box::pin(async {})
    }

    fn allows_virtual_time(&self) -> bool {
        false
    }
}
