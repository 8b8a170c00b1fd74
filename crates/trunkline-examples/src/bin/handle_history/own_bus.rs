//! A bus of its own, in memory: commits from standard input are published and handled by two
//! consumers of two members each, all in this process.

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;
use trunkline::core::engine::Boxed;
use trunkline::core::wire::decode_structured;
use trunkline::layer::{HandleLayer, HandleNext};
use trunkline::{Bus, ConsumerHandle, Delivered, Error, ErrorKind, Failure, Meta, Result};
use trunkline_examples::GitCommit;

/// How far publishing may be ahead of the slowest consumer, far below what the bus keeps.
const MAX_AHEAD: u64 = 50_000;
/// How long the consumers may take without handling anything.
const PATIENCE: Duration = Duration::from_secs(30);

const CONSUMERS: [&str; 2] = ["authors", "sizes"];
const MEMBERS: usize = 2;

/// What one consumer has handled; its members count together.
#[derive(Default)]
struct Tally {
    events: watch::Sender<u64>,
    bytes: AtomicU64,
}

/// Counts in one member what its handler handled.
struct Count(Arc<AtomicU64>);

impl HandleLayer for Count {
    fn handle<'a>(
        &'a self,
        delivered: Delivered,
        next: HandleNext<'a>,
    ) -> Boxed<'a, Result<(), Failure>> {
        Box::pin(async move {
            next.run(delivered).await?;
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    }
}

/// A consumer with all of its members, seen from outside.
struct Team {
    name: &'static str,
    tally: Arc<Tally>,
    members: Vec<(Arc<AtomicU64>, ConsumerHandle)>,
}

impl Team {
    async fn start(bus: &Bus, name: &'static str) -> Result<Self> {
        let tally = Arc::new(Tally::default());
        let mut members = Vec::new();
        for _ in 0..MEMBERS {
            let tally = Arc::clone(&tally);
            let handler = move |commit: Arc<GitCommit>, meta: Meta| {
                let tally = Arc::clone(&tally);
                async move {
                    let bytes = meta.data().to_bytes()?.len();
                    if commit.hash != meta.id().to_string() {
                        return Err(Failure::from("the event's id is not the commit's hash"));
                    }
                    tally.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                    tally.events.send_modify(|events| *events += 1);
                    Ok(())
                }
            };
            let count = Arc::new(AtomicU64::new(0));
            let layer = Count(Arc::clone(&count));
            members.push((
                count,
                bus.consumer(name).layer(layer).on(handler).start().await?,
            ));
        }
        Ok(Self {
            name,
            tally,
            members,
        })
    }

    /// Waits until at least that many events were handled.
    async fn handled(&self, wanted: u64) -> Result<()> {
        let mut events = self.tally.events.subscribe();
        while *events.borrow_and_update() < wanted {
            // The sender lives as long as `self`, so only the clock can end this badly.
            if tokio::time::timeout(PATIENCE, events.changed())
                .await
                .is_err()
            {
                let seen = *events.borrow();
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!(
                        "consumer {} handled {seen} of {wanted} events and then none for {PATIENCE:?}",
                        self.name
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// Publishes and handles, and says what each consumer and each of its members handled.
pub(crate) async fn run() -> Result<Value> {
    let started = Instant::now();
    let bus = Bus::connect("memory:")
        .source("/history")
        .event::<GitCommit>()
        .await?;
    let mut teams = Vec::new();
    for name in CONSUMERS {
        teams.push(Team::start(&bus, name).await?);
    }

    let mut published = 0;
    for (index, line) in std::io::stdin().lock().split(b'\n').enumerate() {
        let line = line
            .map_err(|error| Error::new(ErrorKind::Internal, "standard input").caused_by(error))?;
        publish(&bus, line.into())
            .await
            .map_err(|error| error.at(format!("line {}", index + 1)))?;
        published += 1;
        for team in &teams {
            team.handled(u64::saturating_sub(published, MAX_AHEAD))
                .await?;
        }
    }

    let mut consumers = serde_json::Map::new();
    for team in &teams {
        team.handled(published).await?;
    }
    let seconds = started.elapsed().as_secs_f64();
    for team in &teams {
        let mut members = Vec::new();
        for (count, handle) in &team.members {
            // Stopped first, so that its count can no longer change.
            if let Some(failed) = handle.stop().await.failed {
                return Err(failed);
            }
            members.push(count.load(Ordering::Relaxed));
        }
        let events = *team.tally.events.borrow();
        let bytes = team.tally.bytes.load(Ordering::Relaxed);
        consumers.insert(
            team.name.to_owned(),
            json!({ "events": events, "bytes": bytes, "members": members }),
        );
    }
    bus.close().await?;
    Ok(json!({ "published": published, "seconds": seconds, "consumers": consumers }))
}

/// Publishes one line under the id and the time that it has already.
async fn publish(bus: &Bus, line: Bytes) -> Result<()> {
    let envelope = decode_structured(&line)?;
    let commit: GitCommit =
        serde_json::from_slice(&envelope.data().to_bytes()?).map_err(|error| {
            Error::new(ErrorKind::Decode, "the data is not a commit").caused_by(error)
        })?;
    let mut sending = bus.publish(commit).id(envelope.id().clone());
    if let Some(time) = envelope.time() {
        sending = sending.time(time);
    }
    let receipt = sending.await?;
    if receipt.duplicate {
        return Err(Error::new(
            ErrorKind::InvalidEvent,
            format!("{} comes twice", envelope.id()),
        ));
    }
    Ok(())
}
