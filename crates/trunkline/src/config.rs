//! The configuration of a bus, from one file and the environment.
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> trunkline::Result<()> {
//! use trunkline::{Bus, Config};
//!
//! let loaded = Config::load()?; // ./trunkline.toml and TRUNKLINE_* variables
//! let bus = Bus::from_config(&loaded.config).source("/billing").await?;
//! # bus.close().await
//! # }
//! ```
//!
//! `trunkline.example.toml`, which [`example`] writes, lists every setting with its default and its
//! environment variable.
//!
//! # What goes before what
//! From the weakest to the strongest:
//!
//! 1. the default that is built in,
//! 2. the file,
//! 3. the environment: `TRUNKLINE_DOOR__LISTEN` is `listen` of `[door]`,
//! 4. what the code says on the [`Connect`] that [`Bus::from_config`] gives.
//!
//! Consumers are the exception, because those who operate a program must be able to change one
//! without building it. For them it is:
//!
//! 1. the default that is built in,
//! 2. `[consumers]`, the defaults of every consumer,
//! 3. what the code says, as `.concurrency(4)`,
//! 4. `[consumers.NAME]`, setting by setting.
//!
//! In 2 and 4 the environment goes before the file.
//!
//! # Names in variables
//! `TRUNKLINE_STREAMS__EVENTS__MAX_AGE` and `TRUNKLINE_CONSUMERS__BILLING__ACK_WAIT` have the name
//! of a stream or consumer in them. It is matched as it stands; if the file has a section of that
//! name in lower case, or with `-` where the variable has `_`, that one is meant. So a consumer
//! `billing` without a section is set by `TRUNKLINE_CONSUMERS__billing__ACK_WAIT`.
//!
//! A consumer whose name is one of the settings, as `start`, cannot have a section.
//!
//! # Secrets
//! A URL may hold a password. [`Url`] masks it in `Debug` and `Display`; values that are printed
//! and errors are masked as well.

mod check;
mod env;
mod example;
mod file;
mod given;
mod load;
mod problem;
mod table;
mod units;
mod url;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{ErrorKind as IoErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use trunkline_core::engine::{LinkOptions, StreamSpec};
use trunkline_core::wire::Legacy;
use trunkline_core::{Error, ErrorKind, Name, Result};

use crate::bus::Bus;
use crate::connect::{
    COMMANDS, Connect, DEAD_LETTERS, EVENTS, Nats, TopologyMode, default_stream, roots,
};
use crate::consumer::Consumers;

pub use crate::consumer::ConsumerSettings;
pub use env::RESERVED;
pub use example::example;
pub use load::load;
pub use url::{Url, mask_url};

/// The file that is read where `TRUNKLINE_CONFIG` names none.
const FILE: &str = "trunkline.toml";
/// The most bytes that a file may have; nobody writes more by hand.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The configuration of a bus: plain data, to be changed at will before
/// [`Bus::from_config`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The bus. `memory:` by default.
    pub url: Url,
    /// What this program writes as `source` of its events. `/trunkline` by default.
    pub source: String,
    /// The first tokens of durable subjects; empty is none. `events` by default.
    pub prefix: String,
    /// Whether missing streams are made. They are by default.
    pub topology: TopologyMode,
    /// Ephemeral events that a subscription keeps until they are received. 10 000 by default.
    pub listener_capacity: usize,
    /// How long handlers may go on when the bus closes. 25 s by default.
    pub drain_deadline: Duration,
    /// Envelopes from before CloudEvents that are read as well. None by default.
    pub legacy: Vec<Legacy>,
    /// How patiently an engine over a network connects and asks.
    pub link: LinkOptions,
    /// Who to be at a NATS server.
    pub nats: Nats,
    /// The HTTP door of `trunkline up`.
    pub door: Door,
    /// Every stream that is declared, by name, with its subjects. By default `EVENTS`, `COMMANDS`
    /// and `EVENTS_DLQ`.
    pub streams: BTreeMap<Name, StreamSpec>,
    /// What every consumer does unless its code says otherwise. Nothing is left unsaid by
    /// [`load`].
    pub consumers: ConsumerSettings,
    /// What one consumer does, whatever its code says. None by default.
    pub named_consumers: BTreeMap<Name, ConsumerSettings>,
}

/// The settings of an HTTP door.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Door {
    /// Where it listens; port 0 takes a free one. `127.0.0.1:7400` by default.
    pub listen: SocketAddr,
    /// Whether it may listen where other hosts can reach it. It may not by default.
    pub expose: bool,
    /// Hosts to serve besides loopback and the address listened on. None by default.
    pub allow_hosts: Vec<String>,
    /// Origins whose web pages may use it. None by default.
    pub allow_origins: Vec<String>,
    /// The most bytes that one request may have. 16 MiB by default.
    pub max_body: usize,
    /// The most events that one request may have. 10 000 by default.
    pub max_events: usize,
    /// How long a stream of server-sent events is silent before it gets a comment. 15 s by
    /// default.
    pub keep_alive: Duration,
    /// How long requests under way get to finish when it closes. 25 s by default.
    pub drain_deadline: Duration,
}

impl Default for Door {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7400)),
            expose: false,
            allow_hosts: Vec::new(),
            allow_origins: Vec::new(),
            max_body: 16 << 20,
            max_events: 10_000,
            keep_alive: Duration::from_secs(15),
            drain_deadline: Duration::from_secs(25),
        }
    }
}

/// A configuration, and where each value of it came from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Every value in force, in the order of the example file. Of one consumer only what is given.
    pub values: Vec<Setting>,
}

/// One value in force, fit to be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// Its key, as `connection.request_timeout` or `streams.EVENTS.max_age`.
    pub key: String,
    /// The value as it would be written in TOML, credentials masked.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
    /// Whether the value may hold credentials. They are masked in [`value`](Self::value).
    pub secret: bool,
}

/// Where a value came from. As text it is `default`, `trunkline.toml:12` or the variable's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Origin {
    /// Nobody gave one.
    Default,
    /// A line of the file.
    File {
        /// The file's name as it was given.
        name: String,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { name, line } => write!(f, "{name}:{line}"),
            Origin::Environment { name } => f.write_str(name),
        }
    }
}

impl Config {
    /// Reads the file that `TRUNKLINE_CONFIG` names (an empty name is none), or `./trunkline.toml` if there is one, and
    /// the environment over it. [`load`] does the same without touching either.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] when the file that is named cannot be read, and with
    /// everything that [`load`] refuses.
    pub fn load() -> Result<Loaded> {
        Self::load_file(None)
    }

    /// As [`load`](Self::load), from this file whatever `TRUNKLINE_CONFIG` says, if one is given.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_file(file: Option<&str>) -> Result<Loaded> {
        let mut variables = Vec::new();
        for (name, value) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("TRUNKLINE_") {
                let value = value.into_string().map_err(|_| {
                    let message = format!("{name}: the value is not UTF-8; write it in UTF-8");
                    Error::new(ErrorKind::InvalidConfig, message)
                })?;
                variables.push((name, value));
            }
        }
        let in_environment = || {
            variables
                .iter()
                .find(|(name, value)| name == "TRUNKLINE_CONFIG" && !value.is_empty())
                .map(|(_, file)| file.clone())
        };
        let named = file.map(str::to_owned).or_else(in_environment);
        let name = named.clone().unwrap_or_else(|| FILE.to_owned());
        let text = match read(&name) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == IoErrorKind::NotFound && named.is_none() => None,
            Err(error) => {
                let message = match named {
                    Some(_) => format!(
                        "the configuration is to be read from {name:?}, which cannot be read; name a file of at most 1 MiB that exists, or none"
                    ),
                    None => format!(
                        "{name} cannot be read; make it a file of at most 1 MiB that may be read, or name another in TRUNKLINE_CONFIG"
                    ),
                };
                return Err(Error::new(ErrorKind::InvalidConfig, message).caused_by(error));
            }
        };
        load(text.as_deref().map(|text| (name.as_str(), text)), variables)
    }

    /// Where the door of `trunkline up` would be, as the URL of a bus that is attached to.
    pub fn door_url(&self) -> String {
        let listen = self.door.listen;
        let ip = match listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        format!("http://{}", SocketAddr::new(ip, listen.port()))
    }

    fn connect(&self, is_given: impl Fn(&Name) -> bool) -> Connect {
        let connect = Bus::connect(self.url.reveal())
            .source(&self.source)
            .prefix(&self.prefix)
            .topology(self.topology)
            .listener_capacity(self.listener_capacity)
            .drain_deadline(self.drain_deadline)
            .legacy(self.legacy.iter().copied())
            .link(self.link)
            .nats(self.nats.clone())
            .consumers(Consumers {
                defaults: Arc::new(self.consumers.clone()),
                named: Arc::new(self.named_consumers.clone()),
            });
        let streams = self.declared(is_given);
        streams.into_iter().fold(connect, Connect::stream)
    }

    /// The defaults of everything but streams and consumers, which have none.
    fn bare() -> Self {
        Self {
            url: Url::default(),
            source: "/trunkline".to_owned(),
            prefix: "events".to_owned(),
            topology: TopologyMode::default(),
            listener_capacity: 10_000,
            drain_deadline: Duration::from_secs(25),
            legacy: Vec::new(),
            link: LinkOptions::default(),
            nats: Nats::default(),
            door: Door::default(),
            streams: BTreeMap::new(),
            consumers: ConsumerSettings::default(),
            named_consumers: BTreeMap::new(),
        }
    }

    /// The streams to declare. One that is as it would be anyway is left out unless it was given, so
    /// that code may declare others in its place or choose another prefix.
    fn declared(&self, is_given: impl Fn(&Name) -> bool) -> Vec<StreamSpec> {
        let Ok(roots) = roots(Some(&self.prefix)) else {
            // Connecting refuses the prefix.
            return Vec::new();
        };
        let defaults = [EVENTS, COMMANDS, DEAD_LETTERS];
        let others = self
            .streams
            .keys()
            .any(|name| !defaults.contains(&name.as_str()));
        let mut streams = Vec::new();
        for spec in self.streams.values() {
            let mut spec = spec.clone();
            if let Ok(default) = default_stream(spec.name.clone(), &roots) {
                // Beside streams of other names there is no EVENTS unless it is declared.
                let needed = others && spec.name.as_str() == EVENTS;
                if spec == default && !needed && !is_given(&spec.name) {
                    continue;
                }
                if spec.subjects == default.subjects {
                    spec.subjects.clear();
                }
            }
            streams.push(spec);
        }
        streams
    }
}

impl Loaded {
    /// As [`Bus::from_config`], for [`Connect::manage`]: declares also what was written down and is
    /// as it would be anyway, so that a stream which became something else is found to differ.
    pub fn connect(&self) -> Connect {
        let given: BTreeSet<&str> = self
            .values
            .iter()
            .filter(|setting| setting.origin != Origin::Default)
            .filter_map(|setting| setting.key.strip_prefix("streams.")?.split('.').next())
            .collect();
        self.config.connect(|name| given.contains(name.as_str()))
    }
}

impl Default for Config {
    /// What is in force without a file and without variables.
    #[expect(
        clippy::expect_used,
        reason = "nothing is read, so nothing can be wrong, and a test makes it"
    )]
    fn default() -> Self {
        load(None, []).expect("the defaults are legal").config
    }
}

/// Reads a duration as the configuration has it: `250ms`, `5s`, `7d`, `1h30m`.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] for anything else, a number without a unit above all.
pub fn duration(text: &str) -> Result<Duration> {
    units::duration(text).map_err(|fault| {
        let message = format!("{}; {}", fault.wrong, fault.fix);
        Error::new(ErrorKind::InvalidConfig, message)
    })
}

/// The text of a file that is not too large.
fn read(name: &str) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(name)?;
    let bytes = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(bytes).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        let message = "the file has more than 1 MiB";
        return Err(std::io::Error::new(IoErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

impl Bus {
    /// Connects as a configuration says. More options may follow; they go before it.
    ///
    /// Consumers of the bus take their defaults from it, and what it says of one by name; see
    /// [`config`](crate::config).
    ///
    /// # Errors
    /// Those of [`connect`](Bus::connect), when it is awaited.
    pub fn from_config(config: &Config) -> Connect {
        config.connect(|_| false)
    }
}
