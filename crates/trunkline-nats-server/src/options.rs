//! What a server is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;

/// How a server is to run. The default is one for a test: everything random and temporary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// Its name, without spaces; `None` lets the server make one up.
    pub name: Option<String>,
    /// The folder of its configuration, its log and, unless [`store_dir`](Self::store_dir) says
    /// otherwise, its store. It is made if missing, and refused if every user can enter it. `None` is
    /// a temporary one, removed when the server is dropped.
    pub dir: Option<PathBuf>,
    /// Where JetStream keeps its data, if not in [`dir`](Self::dir). It is never removed.
    pub store_dir: Option<PathBuf>,
    /// Whether it stores anything. It does by default.
    pub jetstream: bool,
    /// The port for clients, on loopback; 0, the default, takes a free one and keeps it.
    pub port: u16,
    /// Whether its HTTP monitor runs, on a free port. It does by default.
    pub monitor: bool,
    /// The most bytes of a message, with its headers. 2 MiB by default.
    pub max_payload: u32,
    /// Whether each write is on disk before it is acknowledged. It is not by default, so that tests
    /// are quick.
    pub sync_always: bool,
    /// The most bytes that JetStream keeps on disk; `None` is the server's own idea.
    pub max_file_store: Option<u64>,
    /// The most bytes that JetStream keeps in memory; `None` is the server's own idea.
    pub max_memory_store: Option<u64>,
    /// The most connections; `None` is the server's default of 64 Ki.
    pub max_connections: Option<u32>,
    /// The most subscriptions of one connection; `None` is no limit.
    pub max_subscriptions: Option<u32>,
    /// How long a client may leave its data unread; `None` is the server's default of 10 s.
    pub write_deadline: Option<Duration>,
    /// How long a server in lame duck mode waits before it begins to close connections. 100 ms by
    /// default, where the server itself has 10 s.
    pub lame_duck_grace: Duration,
    /// Over how long a server in lame duck mode spreads the closing of its connections. It refuses
    /// less than 30 s, the default here; but it closes at least one connection each second, so that
    /// a test with few of them waits much less.
    pub lame_duck_duration: Duration,
    /// More configuration, in the server's own language: accounts, authorization, TLS.
    pub extra: String,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            name: None,
            dir: None,
            store_dir: None,
            jetstream: true,
            port: 0,
            monitor: true,
            max_payload: 2 * 1024 * 1024,
            sync_always: false,
            max_file_store: None,
            max_memory_store: None,
            max_connections: None,
            max_subscriptions: None,
            write_deadline: None,
            lame_duck_grace: Duration::from_millis(100),
            lame_duck_duration: Duration::from_secs(30),
            extra: String::new(),
        }
    }
}

impl ServerOptions {
    /// One for people's data on one machine: nothing that was acknowledged is lost when the power
    /// fails, a full disk is told before it is full, and every quantity has a limit.
    pub fn safe(dir: impl Into<PathBuf>, port: u16, max_file_store: u64) -> Self {
        Self {
            name: Some("trunkline".to_owned()),
            dir: Some(dir.into()),
            port,
            monitor: false,
            sync_always: true,
            max_file_store: Some(max_file_store),
            max_memory_store: Some(256 * 1024 * 1024),
            max_connections: Some(1_024),
            max_subscriptions: Some(10_000),
            write_deadline: Some(Duration::from_secs(10)),
            ..Self::default()
        }
    }
}

/// 80 % of what a store in that folder could have: the space that is free on its volume, and what
/// the store has already. The folder need not exist yet.
///
/// # Errors
/// When the system does not tell.
pub fn storage_limit(store_dir: &Path) -> Result<u64, Error> {
    let existing = store_dir
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or_else(|| Path::new("."));
    let volume = rustix::fs::statvfs(existing).map_err(|error| {
        Error::io(
            format_args!("asking for the free space of {}", existing.display()),
            error,
        )
    })?;
    let free = volume.f_bavail.saturating_mul(volume.f_frsize);
    Ok(free.saturating_add(used(store_dir)) / 10 * 8)
}

/// The bytes of all files below the folder. What cannot be read, or goes meanwhile, counts nothing.
fn used(folder: &Path) -> u64 {
    let Ok(entries) = folder.read_dir() else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        // Not following links: the entry's own data.
        Ok(data) if data.is_dir() => used(&entry.path()),
        Ok(data) if data.is_file() => data.len(),
        _ => 0,
    });
    sizes.sum()
}
