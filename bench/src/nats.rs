//! Trunkline on NATS beside async-nats used by hand, on a server of their own for each round.
//!
//! Both sides do what a careful program would do with them: [`raw`] encodes JSON by itself, keeps
//! its window of acknowledgements by itself and acknowledges by itself; [`ours`] and [`stored`] say
//! `publish`, `subscribe` and `consumer`, and so get envelopes, ids, leases and outcomes too.

mod members;
mod ours;
pub mod raw;

use std::sync::OnceLock;

use trunkline_nats_server::{Binary, NatsServer, ServerOptions, obtain};

use self::members::{Crew, Mode};
use self::raw::{Form, Publishing};
use crate::pair::{Contender, Pair, Result, Target};
use crate::site::{Ground, Site, Working};
use crate::stopwatch::Stopwatch;
use crate::stored;

const ORDER: &str = "struct that is JSON of 256 B";
const KEYED: &str = "struct that is JSON of 256 B, 1000 keys";
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
    for mode in [Mode::Ordered, Mode::Shared] {
        for members in [1, 2, 4, 8] {
            pairs.extend([1, 256].map(|concurrency| shared(mode, crew(members, concurrency, 0))));
        }
        pairs.extend([1, 50].map(|failing| shared(mode, crew(2, 256, failing))));
    }
    pairs.extend([(1_000, 3_000), (10_000, 30_000)].map(latency));
    pairs
}

fn durable() -> Vec<Pair> {
    let pair = |depth, events, target| Pair {
        name: format!("nats durable publish, {depth} in flight"),
        payload: ORDER,
        durability: WRITTEN,
        window: "that many acknowledgements; ours as many tasks of one publish each",
        baseline: raw(Sync::Server, events, raw::durable(bare(depth))),
        ours: Some(ours(Sync::Server, events, stored::durable(depth))),
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
            ours: Some(ours(Sync::Server, 200_000, stored::batches(stored::BATCH))),
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
                    form: Form::Enveloped,
                }),
            ),
            ours: Some(ours(Sync::Server, 200_000, stored::durable(1_024))),
            target: Target::NotSet,
        },
        Pair {
            name: "nats durable publish, synced, 1024 in flight".to_owned(),
            payload: ORDER,
            durability: SYNCED,
            window: "1024 acknowledgements; ours 1024 tasks of one publish each",
            baseline: raw(Sync::Always, 3_000, raw::durable(bare(1_024))),
            ours: Some(ours(Sync::Always, 50_000, stored::durable(1_024))),
            target: Target::Ratio(10.0),
        },
    ]
}

fn bare(depth: u64) -> Publishing {
    Publishing {
        depth,
        form: Form::Bare,
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
        ours: Some(ours(Sync::Server, EVENTS, stored::consume(concurrency))),
        target: Target::Ratio(0.95),
    }
}

fn crew(members: usize, concurrency: usize, failing: u64) -> Crew {
    Crew {
        members,
        concurrency,
        failing,
    }
}

/// The members of a durable consumer, beside as many that share a durable pull consumer by hand.
fn shared(mode: Mode, crew: Crew) -> Pair {
    const EVENTS: u64 = 100_000;
    let Crew {
        members,
        concurrency,
        failing,
    } = crew;
    let (how, target) = match (mode, members) {
        (Mode::Ordered, 1 | 2) if failing == 0 => ("in key order", Target::Ratio(1.2)),
        (Mode::Ordered, _) => ("in key order", Target::NotSet),
        (Mode::Shared, _) if failing == 0 => ("shared", Target::Ratio(0.95)),
        (Mode::Shared, _) => ("shared", Target::NotSet),
    };
    let failing = match failing {
        0 => String::new(),
        failing => format!(", {failing} % fail once"),
    };
    Pair {
        name: format!(
            "nats consume with acks {how}, members {members}, concurrency {concurrency} each{failing}"
        ),
        payload: KEYED,
        durability: WRITTEN,
        window: "filled before the clock starts; ends with the last event handled",
        baseline: raw(Sync::Server, EVENTS, members::raw(crew)),
        ours: Some(ours(Sync::Server, EVENTS, members::ours(mode, crew))),
        target,
    }
}

fn latency((per_s, events): (u64, u64)) -> Pair {
    Pair {
        name: format!("nats publish → handle, {per_s} a second"),
        payload: ORDER,
        durability: WRITTEN,
        window: "open loop: each event is sent when it is due",
        baseline: raw(Sync::Server, events, raw::latency(per_s)),
        ours: Some(ours(Sync::Server, events, stored::latency(per_s))),
        target: Target::LatencyRatio { p50: 1.1, p99: 1.3 },
    }
}

/// async-nats by hand, as a rival of others: on a server that syncs each write before it
/// acknowledges it.
pub fn synced<W>(events: u64, work: W) -> Contender
where
    W: Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static,
{
    Contender::new("JetStream, always", events, move || {
        open(Sync::Always, work.clone())
    })
}

fn raw<W>(sync: Sync, events: u64, work: W) -> Contender
where
    W: Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static,
{
    Contender::new("async-nats", events, move || open(sync, work.clone()))
}

fn ours<W>(sync: Sync, events: u64, work: W) -> Contender
where
    W: Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static,
{
    Contender::new("trunkline", events, move || open(sync, work.clone()))
}

/// When the server has what it stores on disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// As nats-server does by itself: every two minutes.
    Server,
    /// Before each acknowledgement.
    Always,
}

/// A server with nothing in it, and the clients of one side.
fn open<W>(sync: Sync, work: W) -> Result<Working<W, NatsServer>> {
    let options = ServerOptions {
        sync_always: sync == Sync::Always,
        monitor: false,
        ..ServerOptions::default()
    };
    let server = NatsServer::start(binary()?, options)?;
    Ok(Working {
        site: Site::new(server.url())?,
        work,
        ground: server,
    })
}

impl Ground for NatsServer {
    fn server(&self) -> Option<u32> {
        Some(self.pid())
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
