//! Waiting for exactly the work that a test caused.

use std::sync::Arc;

use tokio::sync::watch;
use trunkline::core::engine::Boxed;
use trunkline::layer::{HandleLayer, HandleNext, PublishLayer, PublishNext};
use trunkline::{Delivered, Disposition, EventId, Failure, Published};

/// Counts what a test caused and what of it is settled, so that no test sleeps.
///
/// Put into a bus as both layers, it expects one settlement for each stored event and consumer.
/// A run that fails and is tried again does not settle its event; success, a permanent failure
/// and the last attempt do. Of what a handler stages for after its success the same is expected.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> trunkline::Result<()> {
/// use trunkline::Bus;
/// use trunkline_testing::{TrackedSession, fixture::Noted};
///
/// let session = TrackedSession::new(1);
/// let bus = Bus::connect("memory:")
///     .publish_layer(session.clone())
///     .handle_layer(session.clone())
///     .await?;
/// bus.consumer("notes").on(|_: Noted| async {}).start().await?;
/// for n in 0..10 {
///     bus.publish(Noted { n }).await?;
/// }
/// assert_eq!(session.settled().await.len(), 10);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TrackedSession {
    consumers: usize,
    attempts: u32,
    work: Arc<watch::Sender<Work>>,
}

#[derive(Clone, Debug, Default)]
struct Work {
    expected: usize,
    settled: usize,
    runs: Vec<Run>,
}

/// One run of a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The event.
    pub id: EventId,
    /// The consumer.
    pub consumer: String,
    /// Which attempt it was, from 1.
    pub attempt: u32,
    /// How it ended.
    pub verdict: Verdict,
}

/// How a run of a handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Well.
    Handled,
    /// With a failure that is final.
    Refused,
    /// With a failure that may be tried again.
    Failed,
    /// It panicked or was cancelled.
    Cut,
}

impl TrackedSession {
    /// A session in which every stored event is meant for that many consumers, each of which
    /// tries at most 5 times.
    pub fn new(consumers: usize) -> Self {
        Self {
            consumers,
            attempts: 5,
            work: Arc::new(watch::Sender::default()),
        }
    }

    /// Says how often the consumers try at most.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Expects settlements of events that were not published through this session's bus.
    pub fn expect(&self, settlements: usize) {
        self.work.send_modify(|work| work.expected += settlements);
    }

    /// Waits until everything that was caused is settled, and gives every run so far in the order
    /// in which they ended. Runs beyond what was expected end the wait too: compare the runs.
    pub async fn settled(&self) -> Vec<Run> {
        let mut work = self.work.subscribe();
        match work.wait_for(|work| work.settled >= work.expected).await {
            Ok(work) => work.runs.clone(),
            Err(_) => Vec::new(), // The sender is this session's own, so it cannot be gone.
        }
    }

    fn ended(&self, run: Run) {
        let settles = match run.verdict {
            Verdict::Handled | Verdict::Refused => true,
            Verdict::Failed | Verdict::Cut => run.attempt >= self.attempts,
        };
        self.work.send_modify(|work| {
            work.settled += usize::from(settles);
            work.runs.push(run);
        });
    }
}

impl PublishLayer for TrackedSession {
    fn publish<'a>(
        &'a self,
        batch: Vec<trunkline::layer::Outgoing>,
        next: PublishNext<'a>,
    ) -> Boxed<'a, Vec<Published>> {
        Box::pin(async move {
            let stored = batch.iter().filter(|outgoing| outgoing.stream().is_some());
            let (outputs, others): (Vec<_>, Vec<_>) =
                stored.partition(|outgoing| outgoing.is_output());
            let durable = outputs.len() + others.len();
            // Before, because a fast consumer may be done when the publisher hears of it. Outputs are
            // expected since their handler staged them.
            self.expect(others.len() * self.consumers);
            let published = next.run(batch).await;
            let stored = published
                .iter()
                .filter(|one| matches!(one, Published::Stored(receipt) if !receipt.duplicate))
                .count();
            let lost = durable.saturating_sub(stored) * self.consumers;
            self.work.send_modify(|work| work.expected -= lost);
            published
        })
    }
}

impl HandleLayer for TrackedSession {
    fn handle<'a>(
        &'a self,
        delivered: Delivered,
        next: HandleNext<'a>,
    ) -> Boxed<'a, Result<(), Failure>> {
        Box::pin(async move {
            let run = Run {
                id: delivered.incoming().envelope.id().clone(),
                consumer: delivered.consumer().to_string(),
                attempt: delivered.attempt(),
                verdict: Verdict::Cut,
            };
            let mut guard = Guard {
                session: self,
                run: Some(run),
            };
            let result = next.run(delivered.clone()).await;
            if result.is_ok() {
                // Before the run counts as settled, so that nobody takes that for the end.
                self.expect(delivered.outputs() * self.consumers);
            }
            if let Some(run) = &mut guard.run {
                run.verdict = match &result {
                    Ok(()) => Verdict::Handled,
                    Err(failure) if failure.disposition() == Some(Disposition::Permanent) => {
                        Verdict::Refused
                    }
                    Err(_) => Verdict::Failed,
                };
            }
            result
        })
    }
}

/// Reports the run however it ends: a panic or a cancellation drops it.
struct Guard<'a> {
    session: &'a TrackedSession,
    run: Option<Run>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            self.session.ended(run);
        }
    }
}
