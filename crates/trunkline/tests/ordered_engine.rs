//! Consumers on an engine whose answers do not always come, or come late.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use trunkline::core::engine::{
    Admitted, Append, AppendMode, Batch, Boxed, Bucket, Capabilities, Commit, Committed, Consume,
    ConsumerRef, Credit, Delivery, Engine, Entries, Expectation, Fact, Feed, Fetched, Follow,
    Gauges, Limits, Live, Log, Membership, Op, Outcome, Page, Removal, Rev, Settle,
    State as StateGroup, StateKey, Token, Topology, Watch,
};
use trunkline::{
    Attempt, Bus, Connect, Context, Error, ErrorKind, Event, FailureExt, Filter, Link, Name,
    Result, Retry, Start,
};

#[derive(Event, Serialize, Deserialize, Clone, Debug)]
#[event(type = "step.taken", key = "key")]
struct Step {
    key: u32,
}

#[derive(Event, Serialize, Deserialize, Clone, Debug)]
#[event(type = "step.noted")]
struct Unkeyed {
    n: u32,
}

/// An engine of which so many reads time out, and so many scans for events are answered by a copy that
/// lags, whose commits take a while, and whose client may keep what is leased. It counts scans for events, and
/// notes how many fences a commit had at most.
#[derive(Debug)]
struct Silent {
    inner: Arc<dyn Engine>,
    reads: AtomicU32,
    scans: AtomicU32,
    scanned: AtomicU32,
    fences: AtomicUsize,
    /// Seconds that a commit takes.
    slow: AtomicU64,
    /// Whether deliveries stay in the client.
    hoards: Arc<AtomicBool>,
}

impl Silent {
    async fn new() -> Result<(Arc<Self>, Bus)> {
        let inner = Arc::clone(Bus::connect("memory:").await?.engine());
        let silent = Arc::new(Self {
            inner,
            reads: AtomicU32::new(0),
            scans: AtomicU32::new(0),
            scanned: AtomicU32::new(0),
            fences: AtomicUsize::new(0),
            slow: AtomicU64::new(0),
            hoards: Arc::default(),
        });
        let bus = Connect::with_engine(Arc::clone(&silent) as Arc<dyn Engine>).await?;
        Ok((silent, bus))
    }
}

/// Whether it is one more of so many.
fn is_one_of(left: &AtomicU32) -> bool {
    let less = |left: u32| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
        .is_ok()
}

impl Engine for Silent {
    fn name(&self) -> &'static str {
        "silent"
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
        self
    }

    fn state(&self) -> &dyn StateGroup {
        self
    }

    fn topology(&self) -> &dyn Topology {
        self.inner.topology()
    }

    fn gauges(&self) -> Option<&dyn Gauges> {
        self.inner.gauges()
    }

    fn close(&self) -> Boxed<'_, ()> {
        self.inner.close()
    }
}

impl Log for Silent {
    fn append(
        &self,
        stream: &Name,
        batch: Batch<Append>,
        mode: AppendMode,
    ) -> Admitted<'_, Vec<Outcome>> {
        self.inner.log().append(stream, batch, mode)
    }

    fn read<'a>(
        &'a self,
        stream: &'a Name,
        from: Start,
        filters: &'a [Filter],
        max: Credit,
    ) -> Boxed<'a, Result<Page>> {
        if is_one_of(&self.reads) {
            let error = Error::new(ErrorKind::TimedOut, "made to be silent");
            return Box::pin(std::future::ready(Err(error)));
        }
        self.inner.log().read(stream, from, filters, max)
    }

    fn follow<'a>(
        &'a self,
        stream: &'a Name,
        from: Start,
        filters: &'a [Filter],
    ) -> Boxed<'a, Result<Box<dyn Follow>>> {
        self.inner.log().follow(stream, from, filters)
    }

    fn remove<'a>(&'a self, stream: &'a Name, what: Removal) -> Boxed<'a, Result<u64>> {
        self.inner.log().remove(stream, what)
    }
}

impl Consume for Silent {
    fn open<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Membership>> {
        Box::pin(async move {
            let (inner, settler) = self.inner.consume().open(consumer).await?;
            let hoards = Arc::clone(&self.hoards);
            let feed = Hoard {
                inner,
                hoards,
                kept: Vec::new(),
            };
            Ok((Box::new(feed) as Box<dyn Feed>, settler))
        })
    }
}

/// Keeps the first deliveries that come while it hoards.
struct Hoard {
    inner: Box<dyn Feed>,
    hoards: Arc<AtomicBool>,
    kept: Vec<Delivery>,
}

impl Feed for Hoard {
    fn fetch<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<Delivery>,
    ) -> Boxed<'a, Result<Fetched>> {
        Box::pin(async move {
            if self.hoards.load(Ordering::Relaxed) {
                self.inner.fetch(credit, &mut self.kept).await?;
                return std::future::pending().await;
            }
            if self.kept.is_empty() {
                return self.inner.fetch(credit, out).await;
            }
            out.append(&mut self.kept);
            Ok(Fetched::Deliveries(out.len()))
        })
    }
}

impl StateGroup for Silent {
    fn commit(&self, bucket: &Bucket, commit: Commit) -> Admitted<'_, Committed> {
        self.fences
            .fetch_max(commit.fences.len(), Ordering::Relaxed);
        let slow = Duration::from_secs(self.slow.load(Ordering::Relaxed));
        let commit = self.inner.state().commit(bucket, commit);
        if slow.is_zero() {
            return commit;
        }
        Admitted::waiting(async move {
            tokio::time::sleep(slow).await;
            commit.await
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
        let is_body = prefix.is_some_and(|prefix| prefix.as_str().contains(".b."));
        self.scanned
            .fetch_add(u32::from(is_body), Ordering::Relaxed);
        let is_stale = is_body && at_least == 0 && is_one_of(&self.scans);
        let scan = self
            .inner
            .state()
            .scan(bucket, prefix, after, at_least, max);
        Box::pin(async move {
            let mut found = scan.await?;
            if is_stale {
                found.entries.clear();
            }
            Ok(found)
        })
    }

    fn watch<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        from: Rev,
    ) -> Boxed<'a, Result<Box<dyn Watch>>> {
        self.inner.state().watch(bucket, prefix, from)
    }
}

#[tokio::test(start_paused = true)]
async fn d1_an_event_is_given_up_also_if_a_copy_that_lags_does_not_have_it_yet() {
    let (silent, bus) = Silent::new().await.unwrap();
    silent.scans.store(3, Ordering::Relaxed);
    let refuse = |_: Step| async { Err::<(), _>("never".permanent()) };
    let member = bus.consumer("steps").on(refuse).start().await.unwrap();
    bus.publish(Step { key: 1 }).await.unwrap();
    let mut dead = bus.dead_letters().follow(Start::First).await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(60), dead.recv()).await;
    assert!(first.is_ok_and(|item| item.is_some()));
    assert_eq!(silent.scans.load(Ordering::Relaxed), 0);
    let report = member.stop().await;
    assert!(report.failed.is_none(), "{report:?}");
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c1_a_member_outlives_reads_that_time_out_while_it_claims() {
    let (silent, bus) = Silent::new().await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    let note = move |step: Step| {
        let _ = seen.send(step.key);
        async {}
    };
    silent.reads.store(40, Ordering::Relaxed);
    let member = bus.consumer("steps").on(note).start().await.unwrap();
    for key in 0..50 {
        bus.publish(Step { key }).await.unwrap();
    }
    for _ in 0..50 {
        let next = tokio::time::timeout(Duration::from_secs(60), handled.recv()).await;
        let report = member.is_running();
        assert!(next.is_ok_and(|key| key.is_some()), "running: {report}");
    }
    assert_eq!(silent.reads.load(Ordering::Relaxed), 0);
    let report = member.stop().await;
    assert!(report.failed.is_none(), "{report:?}");
    bus.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c5_what_fails_at_once_is_written_together_and_not_read_again_for_its_retry() {
    const EVENTS: u32 = 50;
    let (silent, bus) = Silent::new().await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    let handler = move |step: Step, attempt: Attempt| {
        let seen = seen.clone();
        async move {
            // Together, whatever partition they are of.
            tokio::time::sleep(Duration::from_millis(10)).await;
            if attempt.0 == 1 {
                return Err("the first time");
            }
            let _ = seen.send(step.key);
            Ok(())
        }
    };
    let consumer = bus.consumer("steps").concurrency(100).breaker(None);
    let consumer = consumer.retry(Retry::fixed(2, Duration::from_millis(20)));
    for key in 0..EVENTS {
        bus.publish(Step { key }).await.unwrap();
    }
    let member = consumer.on(handler).start().await.unwrap();
    for _ in 0..EVENTS {
        let next = tokio::time::timeout(Duration::from_secs(60), handled.recv()).await;
        assert!(next.is_ok_and(|key| key.is_some()));
    }
    assert_eq!(silent.scanned.load(Ordering::Relaxed), 0);
    let together = silent.fences.load(Ordering::Relaxed);
    assert!(together >= 4, "{together} partitions wrote at once");
    let report = member.stop().await;
    assert!(report.failed.is_none(), "{report:?}");
    bus.close().await.unwrap();
}

/// Says of the one event beside the main flow that its process ended four times while it ran.
async fn blame(bus: &Bus) -> Result<()> {
    let bucket = Name::new("trunkline")?;
    let prefix = StateKey::new("steps.EVENTS.0.s")?;
    let state = bus.engine().state();
    let found = state.scan(&bucket, Some(&prefix), None, 0, Credit::items(2));
    let [entry] = &found.await?.entries[..] else {
        panic!("not one");
    };
    let record = std::str::from_utf8(&entry.value).map(|record| {
        assert!(record.contains("\"starts\":0"), "{record}");
        record.replace("\"starts\":0", "\"starts\":4")
    });
    let commit = Commit {
        id: "blamed".into(),
        fences: Vec::new(),
        ops: vec![Op::Put {
            key: entry.key.clone(),
            value: record.unwrap_or_default().into(),
            expect: Expectation::Rev(entry.rev),
            ttl: None,
        }],
    };
    state.commit(&bucket, commit).completed().await.map(drop)
}

/// Whatever ends the process then would be blamed on it once more, and that would be once too often.
#[tokio::test(start_paused = true)]
async fn c8_nothing_begins_before_it_is_stored_how_a_suspect_ended() {
    const SLOW: u64 = 1;
    const PATIENCE: Duration = Duration::from_secs(60);
    let (silent, bus) = Silent::new().await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    let engine = Arc::clone(&silent);
    let handler = move |step: Step, cx: Context, attempt: Attempt| {
        let (seen, engine) = (seen.clone(), Arc::clone(&engine));
        async move {
            if step.key == 1 && attempt.0 == 1 {
                return Err("the first time");
            }
            if step.key == 1 {
                // Its neighbours come while it runs, and what it comes to is stored slowly.
                for key in 2..5 {
                    cx.bus().publish(Step { key }).await.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                engine.slow.store(SLOW, Ordering::Relaxed);
            }
            let _ = seen.send((step.key, tokio::time::Instant::now()));
            Ok(())
        }
    };
    let consumer = || {
        let consumer = bus.consumer("steps").concurrency(10).breaker(None);
        let consumer = consumer.retry(Retry::fixed(3, Duration::from_secs(2)));
        consumer.on(handler.clone())
    };
    bus.publish(Step { key: 1 }).await.unwrap();
    let member = consumer().start().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    member.stop().await;
    blame(&bus).await.unwrap();
    let member = consumer().start().await.unwrap();
    let first = tokio::time::timeout(PATIENCE, handled.recv()).await;
    let (key, suspect) = first.unwrap().unwrap();
    assert_eq!(key, 1);
    for _ in 2..5 {
        let next = tokio::time::timeout(PATIENCE, handled.recv()).await;
        let (_, neighbour) = next.unwrap().unwrap();
        assert!(
            neighbour - suspect >= Duration::from_secs(SLOW),
            "{:?} after it",
            neighbour - suspect
        );
    }
    silent.slow.store(0, Ordering::Relaxed);
    let report = member.stop().await;
    assert!(report.failed.is_none(), "{report:?}");
    bus.close().await.unwrap();
}

/// What waits in the engine's client while nobody fetches may become another's.
#[tokio::test(start_paused = true)]
async fn c13_what_was_anothers_after_a_pause_is_not_run_again() {
    let (silent, bus) = Silent::new().await.unwrap();
    let (seen, mut handled) = mpsc::unbounded_channel();
    let handler = move |step: Unkeyed| {
        let seen = seen.clone();
        async move {
            let _ = seen.send(step.n);
        }
    };
    let name = Name::new("steps").unwrap();
    silent.hoards.store(true, Ordering::Relaxed);
    let member = bus.consumer("steps").on(handler).start().await.unwrap();
    for n in 0..2 {
        bus.publish(Unkeyed { n }).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    bus.pause_consumer(&name, "a look").await.unwrap();
    // The first is leased to another, as it will be when the time of its lease is over.
    let at = ConsumerRef {
        stream: Name::new("EVENTS").unwrap(),
        consumer: name.clone(),
    };
    let (mut theirs, settler) = silent.inner.consume().open(&at).await.unwrap();
    let settle = |seq, lease, what| {
        let batch = [(Token { seq, lease }, what)].into_iter().collect();
        settler.settle(batch, true).completed()
    };
    settle(1, 1, Settle::GiveBack).await.unwrap();
    let mut came = Vec::new();
    theirs.fetch(Credit::items(1), &mut came).await.unwrap();
    assert_eq!(came[0].token.seq, 1);
    silent.hoards.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(20)).await;
    bus.resume_consumer(&name, None).await.unwrap();
    assert_eq!(handled.recv().await, Some(1));
    settle(1, came[0].token.lease, Settle::Ack).await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(handled.try_recv().ok(), None, "it was done by the other");
    let report = member.stop().await;
    assert!(report.failed.is_none(), "{report:?}");
    bus.close().await.unwrap();
}
