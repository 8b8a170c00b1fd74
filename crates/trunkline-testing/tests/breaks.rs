//! The simulation can fail: each consumer here is broken on purpose, and the judge says so.
//!
//! What a member writes and reads goes through an engine that breaks one rule of the ordered consumer; what
//! can be broken only in the consumer itself is tried by hand, and `docs/simulation.md` has what came of it.
//! `TRUNKLINE_SEEDS=N` counts over N seeds what each break comes to, instead of ending at the first.

#![allow(
    clippy::print_stdout,
    reason = "how many of how many worlds is what the run is for"
)]

use std::sync::Arc;

use serde_json::Value;
use smallvec::SmallVec;
use tokio::sync::watch;
use trunkline::core::engine::{
    Admission, Admitted, Append, AppendMode, Batch, Boxed, Bucket, Capabilities, Commit, Committed,
    Consume, Credit, Engine, Entries, Expect, Fact, Follow, Gauges, Limits, Link, Live, Log, Op,
    Outcome, Page, Position, Removal, Rev, State, StateKey, Topology, Watch, Watched,
};
use trunkline::{Filter, Name, Result};
use trunkline_testing::sim::{Faults, Lens, Scenario, Sharing, Tally, tally};

/// Which rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    /// None, so that what is noticed is the break and not the wrapper.
    Nothing,
    /// Owners write without the fence of their ownership.
    NoFence,
    /// A commit without an answer is taken for done.
    NoRepeat,
    /// Changes are not told.
    NoWatch,
    /// How far a partition got is written before what belongs to it.
    CursorApart,
    /// The floor is one event higher than it may be.
    FloorTooHigh,
    /// What runs is not written down.
    NoRunning,
    /// Runs without an outcome are not counted.
    NoStarts,
    /// What is given up is not written down before its dead letter is stored.
    NoDying,
    /// A dead letter is stored without an id, whether there is one already or not.
    DeadLettersUnknown,
}

/// What becomes of that many worlds: the first in which the judge saw something ends it.
fn broken(what: Break, otherwise: u64, faults: &Faults) -> Tally {
    let seeds = std::env::var("TRUNKLINE_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse::<u64>().ok());
    let enough = if seeds.is_some() { u64::MAX } else { 1 };
    let lens = Lens::new(move |inner| Arc::new(Broken { inner, what }));
    let worlds = (0..seeds.unwrap_or(otherwise)).map(|seed| Scenario {
        lens: lens.clone(),
        ..Scenario::from_seed(seed, Sharing::Ordered, faults.clone())
    });
    let tally = tally(worlds, enough);
    println!("{what:?}: {tally:?}");
    tally
}

/// More of everything that makes an answer unknown or old: who breaks a rule about that is caught sooner.
fn storm() -> Faults {
    Faults {
        lost_requests: 0.03,
        lost_answers: 0.1,
        late: 0.1,
        stale_scans: 0.6,
        lagging_readers: 0.2,
        freezes: 12.0,
        cuts: 8.0,
        ..Faults::all()
    }
}

fn all() -> Faults {
    Faults::all()
}

fn crashes() -> Faults {
    Faults::crashes()
}

macro_rules! noticed {
    ($($test:ident: $what:ident under $faults:ident;)*) => {
        $(#[test]
        fn $test() {
            let tally = broken(Break::$what, 1_000, &$faults());
            assert!(tally.broken > 0, "{tally:?}");
        })*
    };
}

noticed! {
    the_judge_notices_owners_that_write_without_a_fence: NoFence under all;
    the_judge_notices_a_commit_that_is_not_repeated: NoRepeat under all;
    the_judge_notices_changes_that_are_not_told: NoWatch under crashes;
    the_judge_notices_a_cursor_that_is_written_apart: CursorApart under crashes;
    the_judge_notices_a_floor_that_is_too_high: FloorTooHigh under crashes;
    the_judge_notices_runs_that_are_not_written_down: NoRunning under crashes;
    the_judge_notices_runs_that_are_not_counted: NoStarts under crashes;
    the_judge_notices_what_is_given_up_and_not_written_down: NoDying under all;
    the_judge_notices_dead_letters_that_are_stored_twice: DeadLettersUnknown under storm;
}

#[test]
fn a_consumer_that_nobody_broke_keeps_every_promise_whatever_befalls_it() {
    let tally = broken(Break::Nothing, 100, &all());
    assert_eq!(tally.broken, 0, "{tally:?}");
}

#[test]
fn a_consumer_that_nobody_broke_keeps_every_promise_when_members_are_killed() {
    let tally = broken(Break::Nothing, 100, &crashes());
    assert_eq!(tally.broken, 0, "{tally:?}");
}

#[test]
fn a_consumer_that_nobody_broke_keeps_every_promise_in_a_storm() {
    let tally = broken(Break::Nothing, 100, &storm());
    assert_eq!(tally.broken, 0, "{tally:?}");
}

#[derive(Debug)]
struct Broken {
    inner: Arc<dyn Engine>,
    what: Break,
}

impl Engine for Broken {
    fn gauges(&self) -> Option<&dyn Gauges> {
        self.inner.gauges()
    }

    fn name(&self) -> &'static str {
        "broken"
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn facts(&self) -> Vec<Fact> {
        self.inner.facts()
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.inner.link()
    }

    fn live(&self) -> &dyn Live {
        self.inner.live()
    }

    fn log(&self) -> &dyn Log {
        self
    }

    fn consume(&self) -> &dyn Consume {
        self.inner.consume()
    }

    fn state(&self) -> &dyn State {
        self
    }

    fn topology(&self) -> &dyn Topology {
        self.inner.topology()
    }

    fn close(&self) -> Boxed<'_, ()> {
        self.inner.close()
    }
}

impl Log for Broken {
    fn append(
        &self,
        stream: &Name,
        mut batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>> {
        if self.what == Break::DeadLettersUnknown && stream.as_str() == "EVENTS_DLQ" {
            for append in &mut batch {
                append.expect = Expect::Any;
                append.id = None;
            }
        }
        self.inner.log().append(stream, batch, mode)
    }

    fn read<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
        max: Credit,
    ) -> Boxed<'a, Result<Page>> {
        self.inner.log().read(stream, from, filters, max)
    }

    fn follow<'a>(
        &'a self,
        stream: &'a Name,
        from: Position,
        filters: &'a [Filter],
    ) -> Boxed<'a, Result<Box<dyn Follow>>> {
        self.inner.log().follow(stream, from, filters)
    }

    fn remove<'a>(&'a self, stream: &'a Name, what: Removal) -> Boxed<'a, Result<u64>> {
        self.inner.log().remove(stream, what)
    }
}

/// What a key of the bucket is about, as the consumer's own page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Owner,
    Progress,
    Side,
    Other,
}

fn about(key: &StateKey) -> About {
    let tokens: SmallVec<[&str; 8]> = key.as_str().split('.').collect();
    match *tokens.as_slice() {
        ["control", _, _, "o", ..] => About::Owner,
        [_, _, _, partitions, _] if partitions.starts_with('P') => About::Progress,
        [_, _, _, "s", _, _] => About::Side,
        _ => About::Other,
    }
}

/// Changes the value of a record.
fn rewrite(op: &mut Op, change: impl FnOnce(&mut Value)) {
    let Op::Put { value, .. } = op else { return };
    if let Ok(mut record) = serde_json::from_slice::<Value>(value) {
        change(&mut record);
        *value = record.to_string().into();
    }
}

fn state(op: &Op) -> Option<String> {
    let Op::Put { key, value, .. } = op else {
        return None;
    };
    let record: Value = serde_json::from_slice(value).ok()?;
    let state = record.get("state")?.as_str()?;
    (about(key) == About::Side).then(|| state.to_owned())
}

impl Broken {
    /// The commit as it goes out, and what goes before it.
    fn worsened(&self, mut commit: Commit) -> (Option<Commit>, Commit) {
        let writes = |what: About| move |op: &Op| about(op.key()) == what;
        let claims = commit.ops.iter().any(writes(About::Owner));
        match self.what {
            Break::NoFence if !claims => commit.fences.clear(),
            Break::CursorApart if commit.ops.iter().any(writes(About::Side)) => {
                let (cursor, rest) = commit.ops.into_iter().partition(writes(About::Progress));
                let first = Commit {
                    id: format!("{}-cursor", commit.id).into(),
                    fences: commit.fences.clone(),
                    ops: cursor,
                };
                commit.ops = rest;
                return (Some(first), commit);
            }
            Break::FloorTooHigh => {
                let cursors = commit.ops.iter_mut();
                for op in cursors.filter(|op| about(op.key()) == About::Progress) {
                    rewrite(op, |record| {
                        let floor = record["floor"].as_u64().unwrap_or(0);
                        record["floor"] = (floor + 1).into();
                    });
                }
            }
            Break::NoRunning => commit
                .ops
                .retain(|op| state(op).is_none_or(|state| state != "running")),
            Break::NoStarts => {
                for op in commit.ops.iter_mut().filter(|op| state(op).is_some()) {
                    rewrite(op, |record| record["starts"] = 0.into());
                }
            }
            Break::NoDying => {
                let dying = |op: &&mut Op| state(op).is_some_and(|state| state == "dying");
                for op in commit.ops.iter_mut().filter(dying) {
                    rewrite(op, |record| {
                        record["state"] = "waiting".into();
                        record["delay_ms"] = 0.into();
                    });
                }
            }
            _ => {}
        }
        (None, commit)
    }
}

impl State for Broken {
    fn commit(&self, bucket: &Bucket, commit: Commit) -> Admitted<'_, Committed> {
        let (before, commit) = self.worsened(commit);
        if commit.ops.is_empty() {
            return Admitted::done(Ok(Committed::Done(Vec::new())));
        }
        let bucket = bucket.clone();
        Admitted::waiting(async move {
            if let Some(before) = before {
                let first = self.inner.state().commit(&bucket, before).completed();
                match first.await {
                    Ok(Committed::Done(_) | Committed::Duplicate) => {}
                    refused => return Ok(Admission::waiting(std::future::ready(refused))),
                }
            }
            let answer = self.inner.state().commit(&bucket, commit).completed().await;
            let answer = match (self.what, answer) {
                (Break::NoRepeat, Err(error)) if error.retryable() => {
                    Ok(Committed::Done(Vec::new()))
                }
                (_, answer) => answer,
            };
            Ok(Admission::waiting(std::future::ready(answer)))
        })
    }

    fn scan<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        after: Option<&'a StateKey>,
        at_least: Rev,
        max: Credit,
    ) -> Boxed<'a, Result<Entries>> {
        let state = self.inner.state();
        state.scan(bucket, prefix, after, at_least, max)
    }

    fn watch<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        from: Rev,
    ) -> Boxed<'a, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            let watch = self.inner.state().watch(bucket, prefix, from).await?;
            if self.what != Break::NoWatch {
                return Ok(watch);
            }
            let (inner, complete) = (watch, false);
            let watch: Box<dyn Watch> = Box::new(BlindWatch { inner, complete });
            Ok(watch)
        })
    }
}

/// Tells how things stood when it was opened, and nothing that changes.
struct BlindWatch {
    inner: Box<dyn Watch>,
    complete: bool,
}

impl Watch for BlindWatch {
    fn next(&mut self) -> Boxed<'_, Result<Watched>> {
        Box::pin(async move {
            loop {
                let watched = self.inner.next().await?;
                if !self.complete || matches!(watched, Watched::CaughtUp(_)) {
                    self.complete |= matches!(watched, Watched::CaughtUp(_));
                    return Ok(watched);
                }
            }
        })
    }
}
