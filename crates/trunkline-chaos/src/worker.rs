//! A worker: a member of both consumers, which writes down what it does.

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use trunkline::{Bus, ConsumerHandle, Context, Failure, FailureExt};

use crate::client::{AFTER_COMMAND, Order, Orders, Process, Voice, is_passing, tracing_note};
use crate::event::{self, Note, Step};
use crate::record::{Consumer, EFFECTS, Effect, How, Lines, Start, What, now};
use crate::script::{Ending, Script, retry};

/// How long the engine waits for a shared member that went silent: short, so that a short run sees it.
const ACK_WAIT: Duration = Duration::from_secs(5);

/// A process that was not scheduled for so long is told of: it may have found its lease good, and begin what
/// it found too late.
const STALL: Duration = Duration::from_millis(250);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The notebook of this process, and what it knows of its events.
#[derive(Debug)]
struct Work {
    seed: u64,
    process: Process,
    lines: Lines,
    runs: AtomicU64,
}

impl Work {
    fn write(&self, what: What) {
        self.lines.write(&Effect {
            at: now(),
            who: self.process.who(),
            what,
        });
    }

    fn begin(self: &Arc<Self>, consumer: Consumer, id: String, cx: &Context) -> Run {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        self.write(What::Start(Start {
            run,
            consumer,
            id,
            seq: cx.meta().seq().unwrap_or(0),
            epoch: cx.epoch().map(|epoch| (epoch.generation, epoch.revision)),
            attempt: cx.attempt(),
        }));
        Run {
            work: Arc::clone(self),
            run,
            how: How::Cancelled,
        }
    }
}

/// A handler at work; what ends it is written down, its cancellation too.
struct Run {
    work: Arc<Work>,
    run: u64,
    how: How,
}

impl Drop for Run {
    fn drop(&mut self) {
        let (run, how) = (self.run, self.how);
        self.work.write(What::End { run, how });
    }
}

async fn handle(
    work: Arc<Work>,
    consumer: Consumer,
    lane: String,
    n: u32,
    cx: Context,
) -> Result<(), Failure> {
    let mut run = work.begin(consumer, event::id(&lane, n), &cx);
    let script = Script::of(work.seed, &lane, n);
    if !script.work.is_zero() {
        sleep(script.work).await;
    }
    if script.works(cx.attempt()) {
        run.how = How::Ok;
        return Ok(());
    }
    match script.ending {
        Ending::Permanent => {
            run.how = How::Permanent;
            Err("scripted, for good".permanent())
        }
        _ => {
            run.how = How::Failed;
            Err("scripted".into())
        }
    }
}

/// Starts a member of each consumer, for as long as it takes.
async fn join(bus: &Bus, work: &Arc<Work>) -> trunkline::Result<[ConsumerHandle; 2]> {
    let steps = {
        let work = Arc::clone(work);
        move |step: Step, cx: Context| {
            handle(Arc::clone(&work), Consumer::Ordered, step.lane, step.n, cx)
        }
    };
    let notes = {
        let work = Arc::clone(work);
        move |note: Note, cx: Context| {
            handle(Arc::clone(&work), Consumer::Shared, note.lane, note.n, cx)
        }
    };
    let ordered = insisting(|| {
        let consumer = bus.consumer(Consumer::Ordered.name()).ordered();
        consumer.retry(retry()).on(steps.clone()).start()
    });
    let shared = insisting(|| {
        let consumer = bus.consumer(Consumer::Shared.name()).ack_wait(ACK_WAIT);
        consumer.retry(retry()).on(notes.clone()).start()
    });
    Ok([ordered.await?, shared.await?])
}

async fn insisting<F: Future<Output = trunkline::Result<ConsumerHandle>>>(
    start: impl Fn() -> F,
) -> trunkline::Result<ConsumerHandle> {
    loop {
        match start().await {
            Err(error) if is_passing(&error) => {
                tracing_note(&format!("joining again: {error}"));
                sleep(Duration::from_millis(150)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Writes down when the process did not get to run.
async fn watch(work: Arc<Work>) {
    loop {
        let began = Instant::now();
        sleep(LOOK_EVERY).await;
        let took = began.elapsed();
        if took > STALL {
            let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            work.write(What::Stall { ms });
        }
    }
}

/// Works until it is told to end.
///
/// # Errors
/// When the files of the run cannot be written.
pub(crate) async fn run(process: Process) -> std::io::Result<ExitCode> {
    let mut orders = Orders::listen()?;
    let work = Arc::new(Work {
        seed: process.seed,
        lines: Lines::open(&process.dir.join(EFFECTS))?,
        runs: AtomicU64::new(0),
        process: process.clone(),
    });
    let joining = async {
        let bus = process.connect().await?;
        let members = join(&bus, &work).await?;
        Ok((bus, members))
    };
    let joined: trunkline::Result<_> = tokio::select! {
        joined = joining => joined,
        // Nothing was begun, or it comes again.
        _ = orders.next() => {
            work.write(What::Left { why: None });
            return Ok(ExitCode::SUCCESS);
        }
    };
    let (bus, members) = match joined {
        Ok(joined) => joined,
        Err(error) => {
            let why = error.to_string();
            work.write(What::Refused { why });
            return Ok(ExitCode::FAILURE);
        }
    };
    let pid = std::process::id();
    work.write(What::Ready { pid });
    tokio::spawn(watch(Arc::clone(&work)));
    let voice = Voice::new(bus.clone(), &process)?;
    let mut round = 0;
    loop {
        let [ordered, shared] = &members;
        let (consumer, report) = tokio::select! {
            order = orders.next() => match order {
                Order::Command(command) => {
                    if command == AFTER_COMMAND {
                        voice.after(round).await;
                        round += 1;
                    }
                    continue;
                }
                Order::Terminate => break,
                Order::Orphaned => return Ok(ExitCode::FAILURE),
            },
            report = ordered.ended() => (Consumer::Ordered, report),
            report = shared.ended() => (Consumer::Shared, report),
        };
        let why = format!("{:?}", report.failed);
        work.write(What::Gone { consumer, why });
        return Ok(ExitCode::FAILURE);
    }
    let why = bus.close().await.err().map(|error| error.to_string());
    work.write(What::Left { why });
    Ok(ExitCode::SUCCESS)
}
