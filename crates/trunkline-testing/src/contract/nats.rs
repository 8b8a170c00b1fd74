//! The engine on NATS, as the suite gets at it: a server of its own for each place.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use trunkline::Result;
use trunkline::core::Clock;
use trunkline::core::engine::{Boxed, Engine, LinkOptions};
use trunkline_nats::{NatsEngine, NatsOptions};
use trunkline_nats_server::{Binary, NatsServer, ServerOptions, obtain, obtain_version};

use super::Harness;

/// The engine on a real nats-server.
pub struct NatsHarness {
    name: String,
    binary: Binary,
    places: Mutex<HashMap<String, Arc<Mutex<NatsServer>>>>,
}

impl NatsHarness {
    /// On the server that tests use: the pinned one, or one of yours that is new enough.
    ///
    /// # Panics
    /// When there is none to be had.
    pub fn new() -> Self {
        Self::on("nats", obtain().unwrap_or_else(|error| panic!("{error}")))
    }

    /// On exactly this release.
    ///
    /// # Panics
    /// When it is not to be had.
    pub fn release(version: &str) -> Self {
        let binary = obtain_version(version).unwrap_or_else(|error| panic!("{error}"));
        Self::on(&format!("nats {version}"), binary)
    }

    fn on(name: &str, binary: Binary) -> Self {
        Self {
            name: name.to_owned(),
            binary,
            places: Mutex::default(),
        }
    }

    /// The server of a place, started when it is first asked for.
    async fn place(&self, place: &str) -> Arc<Mutex<NatsServer>> {
        if let Some(known) = self.places.lock().get(place) {
            return Arc::clone(known);
        }
        let binary = self.binary.clone();
        let started = tokio::task::spawn_blocking(move || {
            NatsServer::start(&binary, ServerOptions::default())
        });
        let server = started.await.expect("it does not panic");
        let server = server.unwrap_or_else(|error| panic!("{error}"));
        let server = Arc::new(Mutex::new(server));
        let mut places = self.places.lock();
        Arc::clone(places.entry(place.to_owned()).or_insert(server))
    }
}

impl Default for NatsHarness {
    fn default() -> Self {
        Self::new()
    }
}

impl Harness for NatsHarness {
    fn name(&self) -> &str {
        &self.name
    }

    fn connect<'a>(
        &'a self,
        place: &'a str,
        clock: Arc<dyn Clock>,
    ) -> Boxed<'a, Result<Arc<dyn Engine>>> {
        Box::pin(async move {
            let url = self.place(place).await.lock().url();
            let options = NatsOptions::default().with_url(&url)?;
            let link = LinkOptions {
                reconnect_wait: std::time::Duration::from_millis(50),
                ..LinkOptions::default()
            };
            let engine = NatsEngine::connect(&options, link, clock).await?;
            let engine: Arc<dyn Engine> = Arc::new(engine);
            Ok(engine)
        })
    }

    fn crash<'a>(&'a self, place: &'a str) -> Boxed<'a, ()> {
        Box::pin(async move {
            let server = self.place(place).await;
            let crashed = tokio::task::spawn_blocking(move || {
                let mut server = server.lock();
                server.kill().and_then(|()| server.restart())
            });
            let crashed = crashed.await.expect("it does not panic");
            crashed.unwrap_or_else(|error| panic!("{error}"));
        })
    }

    fn allows_virtual_time(&self) -> bool {
        false
    }
}

impl fmt::Debug for NatsHarness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsHarness")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
