//! The engine where it answers before it syncs: what is lost with the power is the end of each stream and
//! of the journal, no sequence is given twice, and nothing waits for ever.
#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use support::engine::{
    WATCHDOG, append, commit, committed, events, make, name, open, some_of, work,
};
use trunkline_core::engine::{
    Batch, Credit, Delivery, Durability, Engine, Fetched, Membership, Removal, Retention, Seq,
    Settle,
};
use trunkline_core::{ErrorKind, Name, Result};
use trunkline_log::sim::{Fault, Random, SimDisk};
use trunkline_log::{LogEngine, SyncPolicy};

/// So long that only who asks for it syncs.
const NEVER: SyncPolicy = SyncPolicy::Interval(Duration::from_secs(3_600));

/// A stream as it was answered for.
#[derive(Debug, Default)]
struct Known {
    events: BTreeMap<Seq, Bytes>,
    acked: BTreeSet<Seq>,
    /// Everything up to here is synced, and what was acknowledged then.
    synced: Seq,
    /// No sequence up to here may be given again.
    seen: Seq,
}

struct World {
    disk: SimDisk,
    random: Random,
    streams: BTreeMap<Name, Known>,
    held: BTreeMap<Name, (Membership, Vec<Delivery>)>,
    /// The value after each commit, of one key.
    commits: Vec<u64>,
    commits_synced: usize,
    count: u64,
    lost: u64,
    kept: u64,
}

impl World {
    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn a_stream(&mut self) -> Name {
        let index = self.random.index(self.streams.len());
        self.streams.keys().nth(index).cloned().unwrap()
    }

    async fn step(&mut self, engine: &LogEngine) {
        let stream = self.a_stream();
        match self.random.below(10) {
            0..=3 => {
                let size = match self.random.below(6) {
                    0 => 9_000,
                    _ => self.random.index(200),
                };
                let bodies: Vec<Bytes> = (0..=self.random.below(5))
                    .map(|_| Bytes::from(format!("{:020}{}", self.next(), "x".repeat(size))))
                    .collect();
                let seqs = append(engine, &stream, &bodies).await.unwrap();
                let known = self.streams.get_mut(&stream).unwrap();
                assert!(
                    seqs.iter().all(|seq| *seq > known.seen),
                    "{stream}: {seqs:?} were given before, up to {}",
                    known.seen
                );
                known.seen = *seqs.last().unwrap();
                known.events.extend(seqs.into_iter().zip(bodies));
            }
            4..=6 => self.ack(engine, &stream).await,
            7 => {
                let value = self.next();
                commit(engine, value).await.unwrap();
                self.commits.push(value);
            }
            8 if stream.as_str() == "EVENTS" => {
                let known = self.streams.get_mut(&stream).unwrap();
                let Some(before) = known.events.keys().nth(known.events.len() / 3).copied() else {
                    return;
                };
                let removal = Removal::Before(before);
                engine.log().remove(&stream, removal).await.unwrap();
                if let Some((_, held)) = self.held.get_mut(&stream) {
                    held.retain(|delivery| delivery.token.seq >= before);
                }
            }
            _ => {
                engine.sync().await.unwrap();
                for known in self.streams.values_mut() {
                    known.synced = known.seen;
                }
                self.commits_synced = self.commits.len();
            }
        }
    }

    async fn ack(&mut self, engine: &LogEngine, stream: &Name) {
        self.take(engine, stream).await;
        let ((_, settler), held) = self.held.get_mut(stream).unwrap();
        let done = some_of(held, &mut self.random);
        let known = self.streams.get_mut(stream).unwrap();
        known.acked.extend(done.iter().map(|token| token.seq));
        let batch: Batch<_> = done.into_iter().map(|token| (token, Settle::Ack)).collect();
        let settled = settler.settle(batch, true).completed().await.unwrap();
        assert!(settled.iter().all(Result::is_ok));
    }

    /// Has everything in hand that is given.
    async fn take(&mut self, engine: &LogEngine, stream: &Name) {
        if !self.held.contains_key(stream) {
            let membership = engine.consume().open(&work(stream)).await.unwrap();
            self.held.insert(stream.clone(), (membership, Vec::new()));
        }
        let ((feed, _), held) = self.held.get_mut(stream).unwrap();
        while engine
            .topology()
            .backlog(&work(stream))
            .await
            .unwrap()
            .pending
            > 0
        {
            match feed.fetch(Credit::items(1_000), held).await.unwrap() {
                Fetched::Deliveries(_) | Fetched::Gap(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Compares what is there with what was answered, and goes on with what is there.
    async fn check(&mut self, engine: &LogEngine, is_power_lost: bool, context: &str) {
        self.held.clear();
        let names: Vec<Name> = self.streams.keys().cloned().collect();
        for stream in names {
            let is_queue = stream.as_str() == "COMMANDS";
            let found = events(engine, &stream).await;
            let known = self.streams.get_mut(&stream).unwrap();
            for (seq, body) in &found {
                assert_eq!(
                    Some(body),
                    known.events.get(seq),
                    "{context}: {stream} {seq}"
                );
            }
            // What is gone without having been removed is the end.
            let last = found.last_key_value().map_or(0, |(seq, _)| *seq);
            let first = found.first_key_value().map_or(0, |(seq, _)| *seq);
            let gone = known.events.keys().filter(|seq| !found.contains_key(seq));
            for seq in gone.copied() {
                let was_removed = match is_queue {
                    true => known.acked.contains(&seq),
                    false => seq < first || found.is_empty() && seq <= known.synced,
                };
                let is_end = seq > last && seq > known.synced && is_power_lost;
                assert!(was_removed || is_end, "{context}: {stream} lost {seq}");
                self.lost += u64::from(is_end && !was_removed);
            }
            self.kept += found.len() as u64;
            known.events = found;
            // What is there was acknowledged, or is given: nothing waits for ever, whatever of the
            // acknowledgements was lost.
            self.take(engine, &stream).await;
            let given = self.held[&stream].1.iter().map(|held| held.token.seq);
            let given: BTreeSet<Seq> = given.collect();
            let known = self.streams.get_mut(&stream).unwrap();
            let there: BTreeSet<Seq> = known.events.keys().copied().collect();
            assert!(
                given.is_subset(&there),
                "{context}: {stream} gives what is not there"
            );
            for seq in there.difference(&given) {
                let is_done = known.acked.contains(seq) && !is_queue;
                assert!(is_done, "{context}: {stream} never gives {seq}");
            }
            if !is_power_lost {
                let again: Vec<_> = given.intersection(&known.acked).collect();
                assert!(
                    again.is_empty(),
                    "{context}: {stream} gives {again:?} again"
                );
            }
            known.acked.retain(|seq| !given.contains(seq));
            known.synced = known.seen;
        }
        let value = committed(engine).await;
        let at = match value {
            None => 0,
            Some(value) => {
                1 + self
                    .commits
                    .iter()
                    .position(|known| *known == value)
                    .unwrap()
            }
        };
        let least = match is_power_lost {
            true => self.commits_synced,
            false => self.commits.len(),
        };
        assert!(at >= least, "{context}: {at} of {least} commits are there");
        self.commits.truncate(at);
        self.commits_synced = at;
    }
}

async fn live(seed: u64, policies: &[SyncPolicy]) -> (u64, u64) {
    let mut world = World {
        disk: SimDisk::new(seed),
        random: Random::new(seed),
        streams: BTreeMap::new(),
        held: BTreeMap::new(),
        commits: Vec::new(),
        commits_synced: 0,
        count: 0,
        lost: 0,
        kept: 0,
    };
    let mut is_power_lost = false;
    for life in 0..10 {
        let context = format!("seed {seed}, life {life}");
        let policy = policies[world.random.index(policies.len())];
        // Going on behind what was lost is interrupted too, as often as it takes.
        while is_power_lost && world.random.coin() {
            let at = world.disk.operations() + 1 + world.random.below(60);
            world.disk.fault_at(at, Fault::PowerCut);
            if let Ok(engine) = open(&world.disk, policy) {
                engine.close().await;
            }
            world.disk.crash(world.random.next_u64());
        }
        let engine =
            open(&world.disk, policy).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        if life == 0 {
            for (stream, retention) in [
                ("COMMANDS", Retention::WorkQueue),
                ("EVENTS", Retention::DiscardOld),
            ] {
                make(&engine, &name(stream), retention).await;
                world.streams.insert(name(stream), Known::default());
            }
        }
        world.check(&engine, is_power_lost, &context).await;
        for _ in 0..40 {
            world.step(&engine).await;
        }
        world.held.clear();
        is_power_lost = false;
        match world.random.below(4) {
            0 => {
                engine.close().await;
                let there = world
                    .disk
                    .files()
                    .keys()
                    .any(|path| path.ends_with("unsynced"));
                assert!(!there, "{context}: nothing is unsynced once it is closed");
                world.disk.crash(seed * 1_000 + life);
            }
            1 => {
                world.disk.kill();
                engine.close().await;
            }
            _ => {
                world.disk.crash(seed * 1_000 + life);
                // Its files are those of a machine that is off.
                engine.close().await;
                is_power_lost = true;
            }
        }
    }
    (world.lost, world.kept)
}

fn seeds(usual: u64) -> u64 {
    let seeds = std::env::var("TRUNKLINE_SEEDS").ok();
    seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(usual)
}

#[tokio::test]
async fn f3_what_is_not_synced_is_lost_from_its_end_and_no_sequence_comes_twice() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..seeds(60) {
        // A failing seed is the last that is printed.
        println!("seed {seed}");
        let (more, still) = live(seed, &[NEVER, SyncPolicy::Os]).await;
        lost += more;
        kept += still;
    }
    println!("{lost} events were lost, {kept} were found");
    assert!(lost > 300 && kept > 3_000, "{lost} {kept}");
}

#[tokio::test]
async fn f3_always_loses_nothing_also_after_a_life_that_synced_less() {
    for seed in 0..seeds(20) {
        let disk = SimDisk::new(seed);
        let stream = name("EVENTS");
        let engine = open(&disk, SyncPolicy::Os).unwrap();
        make(&engine, &stream, Retention::DiscardOld).await;
        let bodies: Vec<_> = (0..20).map(|n| Bytes::from(n.to_string())).collect();
        let seen = append(&engine, &stream, &bodies).await.unwrap();
        disk.crash(seed);
        engine.close().await;

        let engine = open(&disk, SyncPolicy::Always).unwrap();
        let seqs = append(&engine, &stream, &bodies).await.unwrap();
        assert!(seqs.first() > seen.last(), "{seqs:?} after {seen:?}");
        let before = events(&engine, &stream).await;
        disk.crash(seed + 1);
        engine.close().await;
        let engine = open(&disk, SyncPolicy::Always).unwrap();
        assert_eq!(events(&engine, &stream).await, before, "seed {seed}");
        // Now that nothing is in doubt, sequences go on without a gap.
        let next = append(&engine, &stream, &bodies[..1]).await.unwrap();
        assert_eq!(next, [seqs.last().unwrap() + 1]);
        engine.close().await;
    }
}

#[tokio::test]
async fn an_interval_syncs_by_itself_and_what_it_promises_is_told() {
    let disk = SimDisk::new(1);
    let interval = SyncPolicy::Interval(Duration::from_millis(2));
    let engine = open(&disk, interval).unwrap();
    assert_eq!(engine.capabilities().durability, Durability::Crash);
    let facts = engine.facts();
    let told = |name: &str| facts.iter().find(|fact| fact.name == name).unwrap();
    assert!(told("sync").value.contains("2ms"), "{facts:?}");
    assert!(told("loss of power").value.contains("2ms"), "{facts:?}");
    let stream = name("EVENTS");
    make(&engine, &stream, Retention::DiscardOld).await;
    let bodies = [Bytes::from("one")];
    append(&engine, &stream, &bodies).await.unwrap();
    // Nobody asks for anything any more: the thread that writes wakes by itself.
    let since = Instant::now();
    while disk.unsynced() > 0 {
        assert!(since.elapsed() < WATCHDOG, "{} bytes", disk.unsynced());
        std::thread::yield_now();
    }
    disk.crash(1);
    engine.close().await;
    let engine = open(&disk, SyncPolicy::Os).unwrap();
    assert_eq!(events(&engine, &stream).await.len(), 1);
    let facts = engine.facts();
    let told = facts
        .iter()
        .find(|fact| fact.name == "loss of power")
        .unwrap();
    assert!(told.value.starts_with("unknown"), "{told:?}");
    // Nothing syncs but who is asked to, also not in the breaks between groups.
    for value in 0..5 {
        commit(&engine, value).await.unwrap();
    }
    assert!(disk.unsynced() >= 5, "{}", disk.unsynced());
    engine.sync().await.unwrap();
    assert_eq!(disk.unsynced(), 0);
    engine.close().await;
}

#[tokio::test]
async fn a_sync_that_fails_later_ends_all_writing() {
    for policy in [NEVER, SyncPolicy::Os] {
        let disk = SimDisk::new(3);
        let engine = open(&disk, policy).unwrap();
        let stream = name("EVENTS");
        make(&engine, &stream, Retention::DiscardOld).await;
        let bodies = [Bytes::from("one")];
        append(&engine, &stream, &bodies).await.unwrap();
        disk.fault_at(disk.operations() + 1, Fault::Fail);
        let error = engine.sync().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFailed);
        for _ in 0..2 {
            // However well the disk is from now on.
            assert_eq!(
                engine.sync().await.unwrap_err().kind(),
                ErrorKind::StorageFailed
            );
            let error = append(&engine, &stream, &bodies).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StorageFailed);
            let error = commit(&engine, 1).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StorageFailed);
        }
        assert_eq!(events(&engine, &stream).await.len(), 1, "reading goes on");
        engine.close().await;
    }
}
