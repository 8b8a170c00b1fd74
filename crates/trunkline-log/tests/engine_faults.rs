//! The engine on a disk whose power goes at any operation: what was answered is there afterwards, in
//! streams, consumers and keys alike, and nothing is there that nobody asked for.
#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smol_str::SmolStr;
use support::engine::some_of;
use trunkline_core::engine::{
    Append, AppendMode, Batch, Change, Commit, Committed, ConsumerRef, ConsumerSpec, Credit,
    Delivery, Engine, Expect, Expectation, Fetched, Membership, Op, Outcome, Position, Removal,
    Retention, Seq, Settle, StateKey, StreamSpec,
};
use trunkline_core::wire::Body;
use trunkline_core::{Error, EventId, Filter, Headers, Name, Result, Subject, SystemClock};
use trunkline_log::sim::{Fault, Random, SimDisk};
use trunkline_log::{LogEngine, LogOptions};

const DIR: &str = "/data";
/// Small, so that streams go on to other segments now and then.
const SEGMENT_BYTES: u64 = 64 << 10;
const STEPS: usize = 40;

/// A stream as it was answered for.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The bodies by their places; what was removed is none of them.
    events: BTreeMap<Seq, Bytes>,
    settled: BTreeSet<Seq>,
}

/// What one call may have changed that was not answered.
#[derive(Clone, Debug)]
enum Perhaps {
    Nothing,
    Appended(Name, Vec<Bytes>),
    Settled(Name, BTreeSet<Seq>),
    Committed(Vec<(String, Option<Bytes>)>),
    Made(Name),
    Deleted(Name),
    Removed(Name, Seq),
}

struct World {
    disk: SimDisk,
    random: Random,
    streams: BTreeMap<Name, Known>,
    keys: BTreeMap<String, Bytes>,
    held: BTreeMap<Name, (Membership, Vec<Delivery>)>,
    /// Names bodies, keys, commits and streams.
    count: u64,
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES,
        ..LogOptions::new(DIR)
    }
}

fn consumer(stream: &Name) -> ConsumerRef {
    ConsumerRef {
        stream: stream.clone(),
        consumer: Name::new("work").unwrap(),
    }
}

fn bucket() -> Name {
    Name::new("keys").unwrap()
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(seed),
            random: Random::new(seed),
            streams: BTreeMap::new(),
            keys: BTreeMap::new(),
            held: BTreeMap::new(),
            count: 0,
        }
    }

    fn open(&self) -> Result<LogEngine> {
        LogEngine::simulated(&self.disk, &options(), Arc::new(SystemClock))
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn a_stream(&mut self) -> Option<Name> {
        let names: Vec<Name> = self.streams.keys().cloned().collect();
        (!names.is_empty()).then(|| names[self.random.index(names.len())].clone())
    }

    /// One call. `Err` has what it may have changed.
    async fn step(&mut self, engine: &LogEngine) -> Result<(), Perhaps> {
        let kind = self.random.below(12);
        let Some(stream) = self.a_stream().filter(|_| kind > 0) else {
            return self.make(engine).await;
        };
        match kind {
            1 if self.streams.len() > 2 => self.delete(engine, stream).await,
            2..=5 => self.append(engine, stream).await,
            6 | 7 => self.settle(engine, stream).await,
            8 => self.remove(engine, stream).await,
            _ => self.commit(engine).await,
        }
    }

    async fn make(&mut self, engine: &LogEngine) -> Result<(), Perhaps> {
        let name = Name::new(format!("S{}", self.next())).unwrap();
        let spec = StreamSpec {
            name: name.clone(),
            subjects: vec![Filter::new(format!("{name}.>")).unwrap()],
            retention: Retention::DiscardOld,
            max_events: None,
            max_bytes: None,
            max_age: None,
            max_message: 1 << 20,
            duplicate_window: Duration::from_secs(120),
            replicas: 1,
            metadata: BTreeMap::new(),
        };
        let work = ConsumerSpec {
            at: consumer(&name),
            filters: vec![Filter::all()],
            start: Position::First,
            ack_wait: Duration::from_secs(600),
            max_in_flight: 100_000,
        };
        let changes = vec![Change::CreateStream(spec), Change::CreateConsumer(work)];
        let made = engine.topology().apply(changes).await;
        made.map_err(|_| Perhaps::Made(name.clone()))?;
        self.streams.insert(name, Known::default());
        Ok(())
    }

    async fn delete(&mut self, engine: &LogEngine, stream: Name) -> Result<(), Perhaps> {
        let change = Change::DeleteStream(stream.clone());
        let deleted = engine.topology().apply(vec![change]).await;
        deleted.map_err(|_| Perhaps::Deleted(stream.clone()))?;
        self.streams.remove(&stream);
        self.held.remove(&stream);
        Ok(())
    }

    async fn append(&mut self, engine: &LogEngine, stream: Name) -> Result<(), Perhaps> {
        let bodies: Vec<Bytes> = (0..=self.random.below(5))
            .map(|_| {
                let size = match self.random.below(20) {
                    0 => 20_000,
                    _ => self.random.index(300),
                };
                let number = self.next();
                Bytes::from(format!("{number:020}{}", "x".repeat(size)))
            })
            .collect();
        let item = |body: &Bytes| Append {
            subject: Subject::new(format!("{stream}.a")).unwrap(),
            key: None,
            id: Some(EventId::new(String::from_utf8_lossy(&body[..20])).unwrap()),
            expect: Expect::Any,
            headers: Headers::new(),
            body: Body::Bytes(body.clone()),
        };
        let mode = match self.random.coin() {
            true => AppendMode::Each,
            false => AppendMode::Atomic,
        };
        let batch: Batch<Append> = bodies.iter().map(item).collect();
        let appended = engine.log().append(&stream, batch, mode).completed().await;
        let outcomes = appended.unwrap_or_default();
        let seqs = outcomes.iter().map(|outcome| match outcome {
            Outcome::Stored { seq, duplicate, .. } if !duplicate => Some(*seq),
            _ => None,
        });
        let Some(seqs) = seqs
            .collect::<Option<Vec<Seq>>>()
            .filter(|seqs| !seqs.is_empty())
        else {
            return Err(Perhaps::Appended(stream, bodies));
        };
        let known = self.streams.get_mut(&stream).unwrap();
        known.events.extend(seqs.into_iter().zip(bodies));
        Ok(())
    }

    async fn settle(&mut self, engine: &LogEngine, stream: Name) -> Result<(), Perhaps> {
        if self.take(engine, &stream).await.is_err() {
            return Err(Perhaps::Nothing);
        }
        let (membership, held) = self.held.get_mut(&stream).unwrap();
        let done = some_of(held, &mut self.random);
        if done.is_empty() {
            return Ok(());
        }
        let seqs: BTreeSet<Seq> = done.iter().map(|token| token.seq).collect();
        let batch: Batch<_> = done.into_iter().map(|token| (token, Settle::Ack)).collect();
        let settled = membership.1.settle(batch, true).completed().await;
        match settled {
            Ok(settled) if settled.iter().all(Result::is_ok) => {
                self.streams.get_mut(&stream).unwrap().settled.extend(seqs);
                Ok(())
            }
            _ => Err(Perhaps::Settled(stream, seqs)),
        }
    }

    /// Has everything that is not settled in hand.
    async fn take(&mut self, engine: &LogEngine, stream: &Name) -> Result<()> {
        if !self.held.contains_key(stream) {
            let membership = engine.consume().open(&consumer(stream)).await?;
            self.held.insert(stream.clone(), (membership, Vec::new()));
        }
        let ((feed, _), held) = self.held.get_mut(stream).unwrap();
        while engine.topology().backlog(&consumer(stream)).await?.pending > 0 {
            match feed.fetch(Credit::items(1_000), held).await? {
                Fetched::Deliveries(_) | Fetched::Gap(_) => {}
                other => panic!("{other:?}"),
            }
        }
        Ok(())
    }

    async fn remove(&mut self, engine: &LogEngine, stream: Name) -> Result<(), Perhaps> {
        let known = &self.streams[&stream];
        let Some(before) = known.events.keys().nth(known.events.len() / 3).copied() else {
            return Ok(());
        };
        let removed = engine.log().remove(&stream, Removal::Before(before)).await;
        removed.map_err(|_| Perhaps::Removed(stream.clone(), before))?;
        let known = self.streams.get_mut(&stream).unwrap();
        known.events = known.events.split_off(&before);
        if let Some((_, held)) = self.held.get_mut(&stream) {
            held.retain(|delivery| delivery.token.seq >= before);
        }
        Ok(())
    }

    async fn commit(&mut self, engine: &LogEngine) -> Result<(), Perhaps> {
        let mut changes: BTreeMap<String, Option<Bytes>> = BTreeMap::new();
        for _ in 0..=self.random.below(3) {
            let key = format!("k{}", self.random.below(12));
            let value = self.random.below(4) > 0 || !self.keys.contains_key(&key);
            let value = value.then(|| Bytes::from(self.next().to_string()));
            changes.insert(key, value);
        }
        let op = |(key, value): (&String, &Option<Bytes>)| {
            let (key, expect) = (StateKey::new(key).unwrap(), Expectation::Any);
            match value.clone() {
                Some(value) => Op::Put {
                    key,
                    value,
                    expect,
                    ttl: None,
                },
                None => Op::Delete { key, expect },
            }
        };
        let commit = Commit {
            id: SmolStr::from(self.next().to_string()),
            fences: Vec::new(),
            ops: changes.iter().map(op).collect(),
        };
        let committed = engine.state().commit(&bucket(), commit).completed().await;
        let changes: Vec<_> = changes.into_iter().collect();
        let Ok(Committed::Done(_)) = committed else {
            return Err(Perhaps::Committed(changes));
        };
        apply(&mut self.keys, &changes);
        Ok(())
    }

    /// Compares, and goes on with what was found.
    async fn check(&mut self, engine: &LogEngine, perhaps: &Perhaps) -> Result<(), Error> {
        self.held.clear();
        let found: BTreeSet<Name> = {
            let inspection = engine.topology().inspect().await?;
            inspection
                .streams
                .into_iter()
                .map(|state| state.spec.name)
                .collect()
        };
        let mut streams = std::mem::take(&mut self.streams);
        match perhaps {
            Perhaps::Made(name) if found.contains(name) => {
                streams.insert(name.clone(), Known::default());
            }
            Perhaps::Deleted(name) if !found.contains(name) => drop(streams.remove(name)),
            _ => {}
        }
        assert_eq!(found, streams.keys().cloned().collect());
        for (name, known) in &mut streams {
            // A stream and its consumer are two changes, the second of which may be missing.
            if matches!(perhaps, Perhaps::Made(made) if made == name) {
                let deleted = engine
                    .topology()
                    .apply(vec![Change::DeleteStream(name.clone())]);
                deleted.await?;
                continue;
            }
            check_events(engine, name, known, perhaps).await?;
        }
        if let Perhaps::Made(name) = perhaps {
            streams.remove(name);
        }
        self.streams = streams;
        let names: Vec<Name> = self.streams.keys().cloned().collect();
        for name in names {
            self.take(engine, &name).await?;
            let known = self.streams.get_mut(&name).unwrap();
            let seqs: Vec<Seq> = self.held[&name]
                .1
                .iter()
                .map(|held| held.token.seq)
                .collect();
            let given: BTreeSet<Seq> = seqs.iter().copied().collect();
            assert_eq!(given.len(), seqs.len(), "{name} gives an event twice");
            if let Perhaps::Settled(at, seqs) = perhaps
                && *at == name
            {
                known.settled.extend(seqs.difference(&given));
            }
            let there: BTreeSet<Seq> = known.events.keys().copied().collect();
            let expected: BTreeSet<Seq> = there.difference(&known.settled).copied().collect();
            assert_eq!(
                given, expected,
                "{name} gives what is not settled, and all of it"
            );
        }
        let all = Credit::items(1_000);
        let entries = engine
            .state()
            .scan(&bucket(), None, None, 0, all)
            .await?
            .entries;
        let keys: BTreeMap<String, Bytes> = entries
            .into_iter()
            .map(|entry| (entry.key.to_string(), entry.value))
            .collect();
        if let Perhaps::Committed(changes) = perhaps
            && keys != self.keys
        {
            apply(&mut self.keys, changes);
        }
        assert_eq!(keys, self.keys);
        Ok(())
    }
}

fn apply(keys: &mut BTreeMap<String, Bytes>, changes: &[(String, Option<Bytes>)]) {
    for (key, value) in changes {
        match value {
            Some(value) => drop(keys.insert(key.clone(), value.clone())),
            None => drop(keys.remove(key)),
        }
    }
}

async fn check_events(
    engine: &LogEngine,
    name: &Name,
    known: &mut Known,
    perhaps: &Perhaps,
) -> Result<()> {
    let (mut found, mut from) = (BTreeMap::new(), Position::First);
    loop {
        let page = engine
            .log()
            .read(name, from, &[Filter::all()], Credit::items(1_000))
            .await?;
        for event in &page.events {
            found.insert(event.seq, event.body.to_bytes()?);
        }
        from = Position::Seq(page.next);
        if page.next >= page.tail {
            break;
        }
    }
    if let Perhaps::Removed(at, before) = perhaps
        && at == name
        && found.keys().next() >= Some(before)
    {
        known.events = known.events.split_off(before);
    }
    let added: Vec<(Seq, Bytes)> = found
        .iter()
        .filter(|(seq, _)| !known.events.contains_key(seq))
        .map(|(seq, body)| (*seq, body.clone()))
        .collect();
    match perhaps {
        Perhaps::Appended(at, bodies) if at == name => {
            let end = known.events.keys().next_back().copied().unwrap_or(0);
            assert!(
                added.iter().all(|(seq, _)| *seq > end),
                "{name}: added in the middle"
            );
            let added: Vec<&Bytes> = added.iter().map(|(_, body)| body).collect();
            assert!(
                bodies.iter().take(added.len()).eq(added),
                "{name}: other bodies"
            );
        }
        _ => assert_eq!(added, [], "{name} has what nobody stored"),
    }
    known.events.extend(added);
    assert_eq!(found, known.events, "{name} lost what was answered");
    Ok(())
}

/// One life after another on one disk, each ended by a fault at some operation.
async fn live(seed: u64, lives: u64, kinds: &mut BTreeMap<String, u64>) {
    let mut world = World::new(seed);
    let mut perhaps = Perhaps::Nothing;
    for life in 0..lives {
        let engine = match world.open() {
            Ok(engine) => engine,
            Err(error) => panic!("seed {seed}, life {life}: {error:?}"),
        };
        world.check(&engine, &perhaps).await.unwrap();
        perhaps = Perhaps::Nothing;
        let at = world.disk.operations() + 1 + world.random.below(120);
        let fault = match world.random.below(3) {
            0 => Fault::Fail,
            1 => Fault::FailFromHereOn,
            _ => Fault::PowerCut,
        };
        world.disk.fault_at(at, fault);
        for _ in 0..STEPS {
            if let Err(changed) = world.step(&engine).await {
                let kind = format!("{changed:?}");
                let kind = kind.split('(').next().unwrap_or_default().to_owned();
                *kinds.entry(kind).or_default() += 1;
                perhaps = changed;
                break;
            }
        }
        world.held.clear();
        engine.close().await;
        drop(engine);
        match world.random.coin() {
            true => world.disk.crash(seed * 1_000 + life),
            false => world.disk.kill(),
        }
    }
}

#[tokio::test]
async fn what_was_answered_is_there_whatever_operation_failed() {
    let seeds = std::env::var("TRUNKLINE_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok());
    let mut kinds = BTreeMap::new();
    for seed in 0..seeds.unwrap_or(60) {
        // A failing seed is the last that is printed.
        println!("seed {seed}");
        live(seed, 12, &mut kinds).await;
    }
    println!("{kinds:?}");
    for kind in [
        "Appended",
        "Settled",
        "Committed",
        "Made",
        "Deleted",
        "Removed",
    ] {
        assert!(
            kinds.get(kind).is_some_and(|count| *count > 3),
            "{kind}: {kinds:?}"
        );
    }
}
