//! One member of a durable consumer, attached to a bus that runs in another process. It ends by
//! itself when the consumer has handled everything, whichever of its members did.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline::core::engine::{Backlog, Inspection};
use trunkline::{Bus, ConsumerHandle, Error, ErrorKind, Failure, Meta, Result, State};
use trunkline_examples::GitCommit;

use crate::say;

/// How often the bus is asked how far the consumer is.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long the consumer may stand still. Longer than the longest ack wait that is of use here.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the arguments say.
#[derive(Default)]
pub(crate) struct Member {
    pub(crate) url: String,
    pub(crate) consumer: String,
    /// What it is called in what it prints.
    pub(crate) name: String,
    /// Where it writes what it handled, an object a line.
    pub(crate) out: PathBuf,
    /// Events that the consumer handles over all of its members.
    pub(crate) expect: u64,
    pub(crate) ack_wait: Duration,
    /// Handles that many and then hangs in its handlers, so that it can be killed with events
    /// written down but not acknowledged: what a crash at the worst moment leaves.
    pub(crate) hang_after: Option<u64>,
}

/// What the handlers of this member share.
struct Handled {
    out: File,
    events: Arc<AtomicU64>,
    hang_after: Option<u64>,
}

async fn handle(
    commit: Arc<GitCommit>,
    meta: Meta,
    State(handled): State<Handled>,
) -> Result<(), Failure> {
    if commit.hash != meta.id().to_string() {
        return Err(Failure::from("the event's id is not the commit's hash"));
    }
    let mut line = serde_json::to_vec(&json!({
        "seq": meta.seq(), "id": commit.hash, "key": meta.key(),
    }))?;
    line.push(b'\n');
    // In one write and before the acknowledgement, so that no kill can come between the two and
    // lose what was acknowledged.
    (&handled.out).write_all(&line)?;
    let count = handled.events.fetch_add(1, Ordering::Relaxed) + 1;
    if handled.hang_after.is_some_and(|after| count > after) {
        std::future::pending::<()>().await;
    }
    Ok(())
}

/// Attaches, says that it is ready, handles until all is done, leaves, and says what it did.
pub(crate) async fn run(member: Member) -> Result<Value> {
    let out = File::options()
        .create_new(true)
        .append(true)
        .open(&member.out)
        .map_err(|error| {
            let file = member.out.display();
            Error::new(ErrorKind::InvalidConfig, format!("cannot make {file}")).caused_by(error)
        })?;
    let events = Arc::new(AtomicU64::new(0));
    let bus = Bus::connect(&member.url)
        .source("/history")
        .event::<GitCommit>()
        .await?;
    bus.state(Handled {
        out,
        events: Arc::clone(&events),
        hang_after: member.hang_after,
    });
    let handle = bus
        .consumer(&member.consumer)
        .ack_wait(member.ack_wait)
        .on(handle)
        .start()
        .await?;
    say(&json!({ "member": member.name, "ready": true }))?;
    let started = Instant::now();
    all_handled(&bus, &handle, &member).await?;
    let seconds = started.elapsed().as_secs_f64();
    let stopped = handle.stop().await;
    if let Some(failed) = stopped.failed {
        return Err(failed);
    }
    bus.close().await?;
    Ok(json!({
        "consumer": member.consumer, "member": member.name,
        "events": events.load(Ordering::Relaxed), "seconds": seconds,
    }))
}

/// Waits until as many events as expected are stored and the consumer has none of them before it.
async fn all_handled(bus: &Bus, handle: &ConsumerHandle, member: &Member) -> Result<()> {
    let mut ask = tokio::time::interval(ASK_EVERY);
    let (mut last, mut moved) = (None, Instant::now());
    loop {
        ask.tick().await;
        let now = match bus.inspect().await {
            Ok(inspection) => standing(&inspection, handle),
            // A bus that is away for a moment is asked again; one that stays away stands still.
            Err(error) if error.retryable() => last,
            Err(error) => return Err(error),
        };
        if let Some((stored, backlog)) = now
            && stored >= member.expect
            && backlog.pending == 0
            && backlog.in_flight == 0
        {
            return Ok(());
        }
        if now != last {
            (last, moved) = (now, Instant::now());
        }
        if moved.elapsed() > PATIENCE {
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "consumer {} stood still for {PATIENCE:?} at {last:?}",
                    handle.name()
                ),
            ));
        }
    }
}

/// How many events its stream has ever stored, and what the consumer has before it.
fn standing(inspection: &Inspection, handle: &ConsumerHandle) -> Option<(u64, Backlog)> {
    let consumer = inspection
        .consumers
        .iter()
        .find(|state| state.spec.at.consumer == *handle.name())?;
    let stream = inspection
        .streams
        .iter()
        .find(|state| state.spec.name == consumer.spec.at.stream)?;
    // Sequences begin at 1, and the example stores nothing but commits.
    Some((stream.tail - 1, consumer.backlog))
}
