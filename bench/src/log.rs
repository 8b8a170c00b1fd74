//! The embedded log beside what else keeps events on the disk of one host.
//!
//! [`store`] is the work as a careful program does it by hand, with a raw file, SQLite, fjall or redb
//! below; JetStream is in [`nats::raw`]. Trunkline is what an application says ([`stored`]), and the
//! engine's own append beside that ([`ours`]), so that the price of the envelope shows.

mod fjall;
mod ours;
mod place;
mod raw_file;
mod redb;
mod sqlite;
mod store;

use self::fjall::Fjall;
use self::ours::With;
use self::place::Filled;
use self::raw_file::RawFile;
use self::redb::Redb;
use self::sqlite::Sqlite;
use self::store::{Form, Store};
use crate::nats;
use crate::nats::raw::{self, Publishing};
use crate::pair::{Contender, Pair, Result, Target};
use crate::site::Site;
use crate::stopwatch::Stopwatch;
use crate::stored;

const ORDER: &str = "struct that is JSON of 256 B, with an id";
const BYTES: &str = "256 B of JSON, with an id";
const SYNCED: &str = "synced to disk before it counts";
const NONE: &str = "none (reading)";

/// What JetStream syncs in a few tenths of a second.
const SLOW: u64 = 2_000;
/// Handlers that run at once.
const HANDLERS: usize = 16;

/// Every comparison of the group.
pub fn pairs() -> Vec<Pair> {
    let mut pairs = Vec::new();
    for (size, events) in [(1, 3_000), (10, 30_000), (100, 100_000), (1_000, 500_000)] {
        pairs.extend(groups(size, events));
    }
    pairs.extend(appends());
    for (publishers, events) in [(1, 3_000), (4, 10_000), (16, 40_000), (64, 100_000)] {
        pairs.extend(concurrent(publishers, events));
    }
    pairs.extend(consume());
    pairs.extend(read());
    pairs.extend(open());
    pairs
}

/// One publisher who waits for each group.
fn groups(size: u64, events: u64) -> Vec<Pair> {
    let pair = |baseline: Contender, target| Pair {
        name: format!("log groups of {size}, beside {}", baseline.label),
        payload: ORDER,
        durability: SYNCED,
        window: "one group; p50 and p99 are those of a group",
        baseline,
        ours: Some(application(events, stored::batches(size))),
        target,
    };
    let library = match size {
        1_000 => Target::Ratio(1.4),
        _ => Target::NotSet,
    };
    let file = match size {
        1 => Target::Ratio(0.9),
        _ => Target::NotSet,
    };
    vec![
        pair(by_groups::<RawFile>(size, events, Form::Struct), file),
        pair(by_groups::<Sqlite>(size, events, Form::Struct), library),
        pair(by_groups::<Fjall>(size, events, Form::Struct), library),
        pair(by_groups::<Redb>(size, events, Form::Struct), library),
    ]
}

/// The same at the seam: bytes in, without an envelope.
fn appends() -> Vec<Pair> {
    let pair = |size, events, baseline: Contender, target| Pair {
        name: format!("log appends of {size}, beside {}", baseline.label),
        payload: BYTES,
        durability: SYNCED,
        window: "one group; p50 and p99 are those of a group",
        baseline,
        ours: Some(engine(events, ours::appends(size))),
        target,
    };
    let (few, many) = (3_000, 500_000);
    let million = Target::NsPerEvent(1_000.0);
    let best = Target::Ratio(1.4);
    vec![
        pair(
            1,
            few,
            by_groups::<RawFile>(1, few, Form::Bytes),
            Target::Ratio(0.9),
        ),
        pair(
            1_000,
            many,
            by_groups::<RawFile>(1_000, many, Form::Bytes),
            million,
        ),
        pair(
            1_000,
            many,
            by_groups::<Sqlite>(1_000, many, Form::Bytes),
            best,
        ),
        pair(
            1_000,
            many,
            by_groups::<Fjall>(1_000, many, Form::Bytes),
            best,
        ),
        pair(
            1_000,
            many,
            by_groups::<Redb>(1_000, many, Form::Bytes),
            best,
        ),
    ]
}

/// Publishers who each wait for their event.
fn concurrent(publishers: u64, events: u64) -> Vec<Pair> {
    let pair = |baseline: Contender, target| Pair {
        name: format!("log {publishers} publishers, beside {}", baseline.label),
        payload: ORDER,
        durability: SYNCED,
        window: "one event of each publisher",
        baseline,
        ours: Some(application(events, stored::durable(publishers))),
        target,
    };
    let (file, server) = match publishers {
        64 => (Target::Ratio(0.75), Target::Ratio(25.0)),
        _ => (Target::NotSet, Target::NotSet),
    };
    let acknowledged = raw::durable(identified(publishers));
    let mut pairs = vec![
        pair(by_many::<RawFile>(publishers, events, Form::Struct), file),
        pair(
            by_many::<Sqlite>(publishers, events, Form::Struct),
            Target::NotSet,
        ),
        pair(
            by_many::<Fjall>(publishers, events, Form::Struct),
            Target::NotSet,
        ),
        pair(
            by_many::<Redb>(publishers, events, Form::Struct),
            Target::NotSet,
        ),
        pair(nats::synced(SLOW, acknowledged), server),
    ];
    if publishers == 64 {
        pairs.push(Pair {
            name: "log 64 appenders, beside raw file, no dedup".to_owned(),
            payload: BYTES,
            durability: SYNCED,
            window: "one event of each",
            baseline: by_many::<RawFile>(publishers, events, Form::Bytes),
            ours: Some(engine(events, ours::concurrent_appends(publishers))),
            target: file,
        });
    }
    pairs
}

fn identified(depth: u64) -> Publishing {
    Publishing {
        depth,
        form: raw::Form::Identified,
    }
}

/// Publish, handle, acknowledge.
fn consume() -> Vec<Pair> {
    let (depth, per_s) = (64, 1_000);
    vec![
        Pair {
            name: "log consume with acks, beside JetStream".to_owned(),
            payload: ORDER,
            durability: SYNCED,
            window: "16 handlers; filled before the clock starts; ends with the last event handled",
            baseline: nats::synced(5 * SLOW, raw::consume(HANDLERS)),
            ours: Some(application(100_000, stored::consume(HANDLERS))),
            target: Target::NotSet,
        },
        Pair {
            name: "log 64 publishers → handle, beside JetStream".to_owned(),
            payload: ORDER,
            durability: SYNCED,
            window: "one event of each publisher, 16 handlers",
            baseline: nats::synced(SLOW, raw::through(identified(depth), HANDLERS)),
            ours: Some(application(50_000, stored::through(depth, HANDLERS))),
            target: Target::NotSet,
        },
        Pair {
            name: "log publish → handle, 1000 a second".to_owned(),
            payload: ORDER,
            durability: SYNCED,
            window: "open loop: each event is sent when it is due",
            baseline: nats::synced(3 * per_s, raw::latency(per_s)),
            ours: Some(application(3 * per_s, stored::latency(per_s))),
            target: Target::NotSet,
        },
    ]
}

/// From the first event to the last, as bytes at the seam and as structs in an application.
fn read() -> Vec<Pair> {
    const EVENTS: u64 = 1_000_000;
    let pair = |decoded: bool, ours: &Filled, baseline: Contender, target| {
        let (what, label, with) = match decoded {
            true => ("decoded", "trunkline", With::Events),
            false => ("as bytes", "trunkline, seam", With::Bytes),
        };
        let ours = ours.clone();
        Pair {
            name: format!("log read {what}, beside {}", baseline.label),
            payload: if decoded { ORDER } else { BYTES },
            durability: NONE,
            window: "one reader",
            baseline,
            ours: Some(Contender::new(label, EVENTS, move || {
                Ok(ours::scan(ours.clone(), with))
            })),
            target,
        }
    };
    let mut pairs = Vec::new();
    let stores = (
        store::filled::<RawFile>(),
        store::filled::<Sqlite>(),
        store::filled::<Fjall>(),
        store::filled::<Redb>(),
    );
    for (decoded, target) in [(false, 200.0), (true, 667.0)] {
        let ours = ours::filled(match decoded {
            true => With::Events,
            false => With::Bytes,
        });
        let target = Target::NsPerEvent(target);
        let (file, sqlite, fjall, redb) = &stores;
        pairs.extend([
            pair(
                decoded,
                &ours,
                scan::<RawFile>(file, EVENTS, decoded),
                target,
            ),
            pair(
                decoded,
                &ours,
                scan::<Sqlite>(sqlite, EVENTS, decoded),
                Target::NotSet,
            ),
            pair(
                decoded,
                &ours,
                scan::<Fjall>(fjall, EVENTS, decoded),
                Target::NotSet,
            ),
            pair(
                decoded,
                &ours,
                scan::<Redb>(redb, EVENTS, decoded),
                Target::NotSet,
            ),
        ]);
    }
    pairs
}

/// Opening what was closed, until the next event could be stored. Rates are in stored events, for
/// what counts is whether the time grows with them.
fn open() -> Vec<Pair> {
    const EVENTS: u64 = 2_000_000;
    let some = ours::filled(With::Bytes);
    let opening = |filled: &Filled, label, events| {
        let filled = filled.clone();
        Contender::new(label, events, move || Ok(ours::open(filled.clone())))
    };
    let pair = |name: String, baseline: Contender, ours: Contender| Pair {
        name,
        payload: BYTES,
        durability: NONE,
        window: "p50 is one opening",
        baseline,
        ours: Some(ours),
        target: Target::NotSet,
    };
    let beside = |baseline: Contender| {
        let name = format!("log open with 2 M events, beside {}", baseline.label);
        pair(name, baseline, opening(&some, "trunkline", EVENTS))
    };
    vec![
        beside(reopen::<Sqlite>(EVENTS)),
        beside(reopen::<Fjall>(EVENTS)),
        beside(reopen::<Redb>(EVENTS)),
        pair(
            "log open with 10 M events, beside 2 M".to_owned(),
            opening(&some, "trunkline, 2 M", EVENTS),
            opening(&ours::filled(With::Bytes), "trunkline, 10 M", 5 * EVENTS),
        ),
    ]
}

fn application<W>(events: u64, work: W) -> Contender
where
    W: Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static,
{
    Contender::new("trunkline", events, move || ours::open_new(work.clone()))
}

fn engine<W>(events: u64, work: W) -> Contender
where
    W: Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static,
{
    Contender::new("trunkline, seam", events, move || {
        ours::open_new(work.clone())
    })
}

fn by_groups<S: Store>(size: u64, events: u64, form: Form) -> Contender {
    Contender::new(S::LABEL, events, move || store::groups::<S>(size, form))
}

fn by_many<S: Store>(publishers: u64, events: u64, form: Form) -> Contender {
    Contender::new(S::LABEL, events, move || {
        store::concurrent::<S>(publishers, form)
    })
}

fn scan<S: Store>(filled: &Filled, events: u64, decoded: bool) -> Contender {
    let filled = filled.clone();
    Contender::new(S::LABEL, events, move || {
        Ok(store::scan::<S>(filled.clone(), decoded))
    })
}

fn reopen<S: Store>(events: u64) -> Contender {
    let filled = store::filled::<S>();
    Contender::new(S::LABEL, events, move || {
        Ok(store::open::<S>(filled.clone()))
    })
}

#[cfg(test)]
mod tests;
