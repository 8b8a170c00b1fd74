//! The list of comparisons. A round is sized to take a few tenths of a second.

use crate::log;
use crate::nats;
use crate::ours;
use crate::pair::{Contender, Pair, Target};
use crate::remote;
use crate::rivals::ruststream_memory::{self, Handler, Producing};
use crate::rivals::{routing, tokio_channels};
use crate::runtime::Flavour;

const TICK: &str = "struct of 256 B, not encoded";
const ORDER: &str = "JSON of 256 B with strings";
const SMALL: &str = "JSON of 28 B, two integers";
const SUBJECT: &str = "subject of about 20 B against 10 000 filters";
/// Nothing here is stored; said in every row, so that no figure passes for a durable one.
const NONE: &str = "none (memory)";
const BOUNDED: &str = "1024 events";

/// All comparisons, in the order of the report.
pub fn all() -> Vec<Pair> {
    let mut pairs = Vec::new();
    pairs.extend(Flavour::ALL.into_iter().flat_map(typed));
    pairs.extend(Flavour::ALL.map(ping_pong));
    pairs.extend(
        [
            (Handler::Small, Handler::SmallWorkers, SMALL),
            (Handler::Order, Handler::OrderWorkers, ORDER),
        ]
        .into_iter()
        .flat_map(json),
    );
    pairs.extend(Flavour::ALL.map(json_struct));
    pairs.extend(route());
    pairs.extend(remote::pairs());
    pairs.extend(nats::pairs());
    pairs.extend(log::pairs());
    pairs
}

fn typed(flavour: Flavour) -> Vec<Pair> {
    const EVENTS: u64 = 2_000_000;
    let pair = |path: &str, baseline, ours| Pair {
        name: format!("typed {path}, {flavour}"),
        payload: TICK,
        durability: NONE,
        window: BOUNDED,
        baseline,
        ours,
        target: Target::Ratio(0.8),
    };
    let broadcast = |receivers| {
        Contender::new("tokio broadcast", EVENTS / receivers, move || {
            tokio_channels::broadcast(flavour, receivers)
        })
    };
    vec![
        pair(
            "1→1",
            Contender::new("tokio mpsc", EVENTS, move || {
                tokio_channels::mpsc_one_by_one(flavour)
            }),
            ours::typed(flavour, 1, EVENTS),
        ),
        pair(
            "1→1 in batches",
            Contender::new("tokio mpsc recv_many", EVENTS, move || {
                tokio_channels::mpsc_recv_many(flavour)
            }),
            ours::typed_batches(flavour, EVENTS),
        ),
        pair("1→1 to all", broadcast(1), ours::typed(flavour, 1, EVENTS)),
        pair(
            "1→4 to all",
            broadcast(4),
            ours::typed(flavour, 4, EVENTS / 4),
        ),
    ]
}

fn ping_pong(flavour: Flavour) -> Pair {
    const EVENTS: u64 = 100_000;
    Pair {
        name: format!("ping-pong, {flavour}"),
        payload: TICK,
        durability: NONE,
        window: "1 event in flight",
        baseline: Contender::new("two tokio mpsc", EVENTS, move || {
            tokio_channels::ping_pong(flavour)
        }),
        ours: ours::ping_pong(flavour, EVENTS),
        target: Target::Latency {
            p50_ns: 1_000,
            p99_ns: 10_000,
        },
    }
}

/// The three scenarios of ruststream's own benchmark, for a handler that runs one at a time and one
/// with four workers.
fn json((alone, workers, payload): (Handler, Handler, &'static str)) -> Vec<Pair> {
    let one = "one consumer";
    vec![
        json_pair(one, Flavour::OneThread, alone, Producing::Before, payload),
        json_pair(
            one,
            Flavour::AcrossThreads,
            alone,
            Producing::Bytes,
            payload,
        ),
        json_pair(
            "4 workers",
            Flavour::AcrossThreads,
            workers,
            Producing::Bytes,
            payload,
        ),
    ]
}

fn json_struct(flavour: Flavour) -> Pair {
    json_pair(
        "struct in and out",
        flavour,
        Handler::Order,
        Producing::Struct,
        ORDER,
    )
}

fn json_pair(
    path: &str,
    flavour: Flavour,
    handler: Handler,
    producing: Producing,
    payload: &'static str,
) -> Pair {
    const EVENTS: u64 = 400_000;
    let size = if payload == SMALL { "28 B" } else { "256 B" };
    Pair {
        name: format!("JSON {size}, {path}, {flavour}"),
        payload,
        durability: NONE,
        window: match producing {
            Producing::Before => "1000 events, filled before the clock starts",
            Producing::Bytes | Producing::Struct => "unbounded",
        },
        baseline: Contender::new("ruststream memory", EVENTS, move || {
            ruststream_memory::service(flavour, handler, producing)
        }),
        ours: ours::json(flavour, handler, producing, EVENTS),
        target: Target::Ahead,
    }
}

fn route() -> [Pair; 2] {
    const LINEAR: u64 = 2_000;
    const EVENTS: u64 = 4_000_000;
    let pair = |name: &str, baseline, ours, target| Pair {
        name: name.to_owned(),
        payload: SUBJECT,
        durability: NONE,
        window: "none: called in place",
        baseline,
        ours,
        target,
    };
    [
        pair(
            "routing, first time",
            Contender::new("list of filters", LINEAR, routing::linear),
            ours::route_first_time(EVENTS),
            Target::NsPerEvent(150.0),
        ),
        pair(
            "routing, resolved",
            Contender::new("map of results", EVENTS, routing::cached),
            ours::route_resolved(EVENTS),
            Target::NsPerEvent(20.0),
        ),
    ]
}
