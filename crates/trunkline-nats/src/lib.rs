//! Trunkline's engine on NATS: core for ephemeral events, JetStream for durable ones.
//!
//! The server does the storing, the sharing and the waiting; this crate speaks its protocol and turns
//! its answers into the seam's. Nothing is retried here that a caller must know of, nothing is
//! dead-lettered, and no configuration is overwritten.
//!
//! ```text
//!   live      core publish and subscribe        consume   durable pull consumers, explicit acks
//!   log       JetStream streams                 state     KV buckets, atomic batches
//!   topology  the JetStream API                gauges    durables that are moved and never read
//! ```

mod api;
mod asks;
mod consume;
mod denied;
pub mod doctor;
mod gauge;
mod live;
mod log;
mod message;
mod options;
mod publish;
mod pull;
mod reader;
mod state;
mod topology;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;
use trunkline_core::engine::{
    Boxed, Capabilities, Consume, ConsumerRef, Durability, Engine, Fact, Gauges, Limits, Link,
    LinkOptions, Live, Log, Reach, State, Topology,
};
use trunkline_core::{Clock, Result};

pub use options::{Auth, NatsOptions, Tls};

use crate::consume::Leases;
use crate::publish::Publishers;
use crate::state::Kv;
use crate::wire::Wire;

/// The engine on NATS.
pub struct NatsEngine {
    wire: Arc<Wire>,
    limits: Limits,
    publishers: Publishers,
    leases: Mutex<HashMap<ConsumerRef, Weak<Leases>>>,
    kv: Arc<Kv>,
}

/// What can be said without looking at the server's configuration, which no client may see.
const POWER: &str = "unknown: a server with `sync_interval: always` loses nothing, one without it what it \
    acknowledged in the last two minutes, unless copies on other hosts survive; \
    `trunkline doctor --monitor URL` sees which";
/// What tools of the server cannot see while it is too old.
const NO_GAUGES: &str = "natscli, exporters and autoscalers see the lag of shared consumers and not of those in key order, \
    which takes a server of 2.14 or later; `trunkline consumers lag` sees it";
/// What the server may need of a message besides ours.
const HEADROOM: usize = topology::spec::HEADROOM;
/// Copies of a bucket that are asked for.
const REPLICAS: usize = 3;

impl NatsEngine {
    /// Connects to NATS, as patiently as `link` says.
    ///
    /// # Errors
    /// Each its own: [`ErrorKind::Disconnected`](trunkline_core::ErrorKind) when nothing answers,
    /// `UnknownHost` for a name that does not resolve, `CredentialsRefused`, `TlsFailed`,
    /// `WrongVersion` for a server before 2.12.2, `NoJetStream`, `NotPermitted`, and
    /// `InvalidConfig` for options that cannot work.
    pub async fn connect(
        options: &NatsOptions,
        link: LinkOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let wire = Wire::connect(options, link, clock).await?;
        // Whether the account has JetStream, only JetStream can say.
        let account = wire
            .call::<serde_json::Value>("INFO", &serde_json::json!({}), "describe the account")
            .await;
        if let Err(error) = account {
            wire.close().await;
            return Err(error);
        }
        let max_payload = wire.client.max_payload();
        let limits = Limits {
            max_message: max_payload
                .saturating_sub(HEADROOM)
                .min(Limits::default().max_message),
            ..Limits::default()
        };
        Ok(Self {
            publishers: Publishers::new(Arc::clone(&wire), limits),
            limits,
            leases: Mutex::default(),
            kv: Arc::new(Kv::new(Arc::clone(&wire), limits.max_value, REPLICAS)),
            wire,
        })
    }

    fn max_message(&self) -> usize {
        self.limits.max_message
    }

    /// Whether the server is part of no cluster, so that no replica can lag.
    fn is_alone(&self) -> bool {
        self.wire.client.server_info().cluster.is_none()
    }
}

impl Engine for NatsEngine {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durability: Durability::Crash,
            reach: Reach::Network,
            shares_values: false,
        }
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn facts(&self) -> Vec<Fact> {
        let info = self.wire.client.server_info();
        let cluster = info.cluster.as_deref().filter(|name| !name.is_empty());
        let mut facts = vec![
            Fact::new(
                "server",
                format!("{} at {}:{}", info.server_name, info.host, info.port),
            ),
            Fact::new("version", info.version),
            Fact::new("cluster", cluster.unwrap_or("none, a lone server")),
        ];
        facts.extend(info.domain.map(|domain| Fact::new("domain", domain)));
        facts.push(Fact::new("loss of power", POWER));
        facts.push(Fact::new(
            "other tools",
            match self.gauges() {
                Some(_) => "natscli, exporters and autoscalers see the lag of every consumer",
                None => NO_GAUGES,
            },
        ));
        facts
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.wire.link()
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
        let (major, minor, patch) = gauge::OLDEST_SERVER;
        let can = self.wire.client.is_server_compatible(major, minor, patch);
        can.then_some(self as &dyn Gauges)
    }

    fn close(&self) -> Boxed<'_, ()> {
        Box::pin(self.wire.close())
    }
}

impl fmt::Debug for NatsEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.wire.client.server_info();
        f.debug_struct("NatsEngine")
            .field("server", &info.server_name)
            .field("version", &info.version)
            .finish_non_exhaustive()
    }
}
