//! Trunkline on NATS beside async-nats used by hand, on a server of their own for each round.
//!
//! Both sides do what a careful program would do with them: [`raw`] encodes JSON by itself, keeps
//! its window of acknowledgements by itself and acknowledges by itself; [`ours`] says `publish`,
//! `subscribe` and `consumer`, and so gets envelopes, ids, leases and outcomes too. [`schedule`] is
//! shared: events that are sent when they are due, however the last one fared.

mod ours;
mod raw;
mod schedule;

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::Runtime;
use trunkline_nats_server::{Binary, NatsServer, ServerOptions, obtain};

use self::raw::Publishing;
use crate::pair::{Contender, Pair, Result, Side, Target};
use crate::runtime::Flavour;
use crate::stopwatch::Stopwatch;

const ORDER: &str = "struct that is JSON of 256 B";
/// The server writes to its file system at once, and to the disk every two minutes.
const WRITTEN: &str = "written by one server, not synced";
const SYNCED: &str = "synced to disk by one server";
const NONE: &str = "none (core NATS)";

/// How many events a subscriber may be behind before the publisher waits for it.
const WINDOW: u64 = 8_192;

/// Every comparison of the group.
pub fn pairs() -> Vec<Pair> {
    let mut pairs = vec![
        Pair {
            name: "nats core publish, typed".to_owned(),
            payload: ORDER,
            durability: NONE,
            window: "what the client queues; ends when the server has taken all",
            baseline: raw(Sync::Server, 500_000, raw::core_publish),
            ours: Some(ours(Sync::Server, 500_000, ours::core_publish)),
            target: Target::Ratio(0.8),
        },
        Pair {
            name: "nats core publish → subscribe, typed".to_owned(),
            payload: ORDER,
            durability: NONE,
            window: "8192 events, two connections",
            baseline: raw(Sync::Server, 300_000, raw::core_subscribe),
            ours: Some(ours(Sync::Server, 300_000, ours::core_subscribe)),
            target: Target::Ratio(0.95),
        },
    ];
    pairs.extend(durable());
    pairs.extend([1, 256].map(consume));
    pairs.extend([(1_000, 3_000), (10_000, 30_000)].map(latency));
    pairs
}

fn durable() -> Vec<Pair> {
    let pair = |depth: usize, events, target| Pair {
        name: format!("nats durable publish, {depth} in flight"),
        payload: ORDER,
        durability: WRITTEN,
        window: "that many acknowledgements; ours as many tasks of one publish each",
        baseline: raw(Sync::Server, events, raw::durable(bare(depth))),
        ours: Some(ours(Sync::Server, events, ours::durable(depth))),
        target,
    };
    vec![
        pair(1, 20_000, Target::Ratio(0.95)),
        pair(64, 100_000, Target::Ratio(0.95)),
        pair(1_024, 200_000, Target::Ratio(1.3)),
        Pair {
            name: "nats durable publish, batches of 1000".to_owned(),
            payload: ORDER,
            durability: WRITTEN,
            window: "1024 acknowledgements; ours one batch of 1000",
            baseline: raw(Sync::Server, 200_000, raw::durable(bare(1_024))),
            ours: Some(ours(Sync::Server, 200_000, ours::batches)),
            target: Target::Ratio(1.3),
        },
        Pair {
            name: "nats durable publish, 1024 in flight, both with envelope and id".to_owned(),
            payload: ORDER,
            durability: WRITTEN,
            window: "1024 acknowledgements; ours 1024 tasks of one publish each",
            baseline: raw(
                Sync::Server,
                200_000,
                raw::durable(Publishing {
                    depth: 1_024,
                    enveloped: true,
                }),
            ),
            ours: Some(ours(Sync::Server, 200_000, ours::durable(1_024))),
            target: Target::NotSet,
        },
        Pair {
            name: "nats durable publish, synced, 1024 in flight".to_owned(),
            payload: ORDER,
            durability: SYNCED,
            window: "1024 acknowledgements; ours 1024 tasks of one publish each",
            baseline: raw(Sync::Always, 3_000, raw::durable(bare(1_024))),
            ours: Some(ours(Sync::Always, 50_000, ours::durable(1_024))),
            target: Target::Ratio(10.0),
        },
    ]
}

fn bare(depth: usize) -> Publishing {
    Publishing {
        depth,
        enveloped: false,
    }
}

fn consume(concurrency: usize) -> Pair {
    const EVENTS: u64 = 100_000;
    Pair {
        name: format!("nats consume with acks, concurrency {concurrency}"),
        payload: ORDER,
        durability: WRITTEN,
        window: "filled before the clock starts; ends with the last event handled",
        baseline: raw(Sync::Server, EVENTS, raw::consume(concurrency)),
        ours: Some(ours(Sync::Server, EVENTS, ours::consume(concurrency))),
        target: Target::Ratio(0.95),
    }
}

fn latency((per_s, events): (u64, u64)) -> Pair {
    Pair {
        name: format!("nats publish → handle, {per_s} a second"),
        payload: ORDER,
        durability: WRITTEN,
        window: "open loop: each event is sent when it is due",
        baseline: raw(Sync::Server, events, raw::latency(per_s)),
        ours: Some(ours(Sync::Server, events, ours::latency(per_s))),
        target: Target::LatencyRatio { p50: 1.1, p99: 1.3 },
    }
}

fn raw<W>(sync: Sync, events: u64, work: W) -> Contender
where
    W: Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static,
{
    Contender::new("async-nats", events, move || Site::open(sync, work.clone()))
}

fn ours<W>(sync: Sync, events: u64, work: W) -> Contender
where
    W: Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static,
{
    Contender::new("trunkline", events, move || Site::open(sync, work.clone()))
}

/// When the server has what it stores on disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// As nats-server does by itself: every two minutes.
    Server,
    /// Before each acknowledgement.
    Always,
}

/// A server with nothing in it, and where the clients of one side run.
struct Site {
    url: String,
    programs: Runtime,
    server: NatsServer,
}

/// A site with the work to be done there.
struct Working<W> {
    site: Site,
    work: W,
}

impl Site {
    fn open<W>(sync: Sync, work: W) -> Result<Working<W>> {
        let options = ServerOptions {
            sync_always: sync == Sync::Always,
            monitor: false,
            ..ServerOptions::default()
        };
        let server = NatsServer::start(binary()?, options)?;
        let site = Self {
            url: server.url(),
            programs: Flavour::AcrossThreads.runtime()?,
            server,
        };
        Ok(Working { site, work })
    }

    /// Runs work where its connections run too, as an application would.
    fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.programs
            .block_on(async { self.programs.spawn(work).await? })
    }
}

impl<W: Fn(&Site, u64, &mut Stopwatch) -> Result<()>> Side for Working<W> {
    fn round(&mut self, events: u64, watch: &mut Stopwatch) -> Result<()> {
        (self.work)(&self.site, events, watch)
    }

    fn server(&self) -> Option<u32> {
        Some(self.site.server.pid())
    }
}

/// The program of all servers, obtained once.
fn binary() -> Result<&'static Binary> {
    static BINARY: OnceLock<Binary> = OnceLock::new();
    if let Some(binary) = BINARY.get() {
        return Ok(binary);
    }
    let binary = obtain()?;
    Ok(BINARY.get_or_init(|| binary))
}
