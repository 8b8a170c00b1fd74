//! Shows tools of the engine's own server how far the consumer is, where there are such tools.
//!
//! The owner of the first partition does it for all, every few seconds. Should two do it for a moment,
//! both show what the records say. Nothing depends on a gauge: what goes wrong with it is told, and the
//! consumer goes on.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use trunkline_core::engine::{ConsumerRef, Gauge, Gauges};
use trunkline_core::{Error, ErrorKind, Result};

use super::claim::Place;
use super::earlier;
use super::membership::View;
use super::record::{Definition, Ownership, Record as _};

/// How often a gauge is moved.
const EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whose it is to move.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long it is left alone after an error that will not pass by itself.
const AFTER_REFUSAL: Duration = Duration::from_secs(60);
/// How long a member that stops waits for its gauge.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Keeps the consumer's gauge, as long as this lives.
#[derive(Debug)]
pub(super) struct Keeper {
    gauge: Arc<Kept>,
    task: AbortHandle,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Keeper {
    pub(super) fn begin(place: Arc<Place>, at: ConsumerRef, view: watch::Receiver<View>) -> Self {
        let gauge = Arc::new(Kept {
            place,
            at,
            told: Mutex::default(),
        });
        let task = tokio::spawn(Arc::clone(&gauge).keep(view)).abort_handle();
        Self { gauge, task }
    }

    /// Shows how far the consumer is as the member leaves: it may have been the last.
    pub(super) async fn last_word(&self) {
        self.task.abort();
        let engine = &self.gauge.place.store.engine;
        if let Some(gauges) = engine.gauges()
            && let Ok(Err(error)) = timeout(LAST_WORD, self.gauge.set(gauges)).await
        {
            self.gauge.failed(&error);
        }
    }
}

#[derive(Debug)]
struct Kept {
    place: Arc<Place>,
    at: ConsumerRef,
    told: Mutex<Told>,
}

/// What was said of the gauge, so that nothing is said twice.
#[derive(Debug, Default)]
struct Told {
    /// How it was found the last time.
    found: Option<Gauge>,
    error: Option<String>,
}

impl Kept {
    async fn keep(self: Arc<Self>, view: watch::Receiver<View>) {
        let mut wait = LOOK_EVERY;
        loop {
            tokio::time::sleep(wait).await;
            let ours = self.is_ours(&view.borrow());
            let engine = &self.place.store.engine;
            // A server that is upgraded has gauges from then on.
            let Some(gauges) = engine.gauges().filter(|_| ours) else {
                wait = LOOK_EVERY;
                continue;
            };
            wait = match self.set(gauges).await {
                Ok(()) => EVERY,
                Err(error) if error.kind() == ErrorKind::Closed => return,
                Err(error) => {
                    self.failed(&error);
                    if error.retryable() {
                        EVERY
                    } else {
                        AFTER_REFUSAL
                    }
                }
            };
        }
    }

    fn is_ours(&self, view: &View) -> bool {
        let layout = view.definition.as_ref().map(|(known, _)| known.layout());
        let first = layout.and_then(|layout| view.owner(layout, 0));
        first.is_some_and(|(owner, _)| {
            owner.state == Ownership::Owned && owner.member == self.place.me
        })
    }

    async fn set(&self, gauges: &dyn Gauges) -> Result<()> {
        let Some(definition) = self.definition().await? else {
            return Ok(());
        };
        let floor = earlier::floor(&self.place.store, &self.place.keys, &definition).await?;
        let found = gauges.set(&self.at, &definition.filters()?, floor).await?;
        if found == Gauge::Absent && self.definition().await?.is_none() {
            // The consumer was deleted while its gauge was made.
            return gauges.remove(&self.at).await;
        }
        self.found(found);
        Ok(())
    }

    /// What the consumer is, if it was not deleted.
    async fn definition(&self) -> Result<Option<Definition>> {
        let key = self.place.keys.definition()?;
        let entry = self.place.store.get(&key, 0).await?;
        entry
            .map(|entry| Definition::decode(&key, &entry.value))
            .transpose()
    }

    /// Says what somebody else did to the gauge, once.
    fn found(&self, found: Gauge) {
        let before = {
            let mut told = self.told.lock();
            told.error = None;
            told.found.replace(found)
        };
        let (consumer, stream) = (&self.at.consumer, &self.at.stream);
        match (before, found) {
            // It was made the last time, if it was not there then.
            (Some(Gauge::Absent | Gauge::Shown | Gauge::Paused), Gauge::Absent) => tracing::warn!(
                %consumer, %stream,
                "somebody deleted the consumer's durable from the server; it only shows how far the consumer is, \
                 and was made again: what is known of its progress is not kept there. To delete the consumer: \
                 trunkline consumers delete {consumer}"
            ),
            (before, Gauge::Paused) if before != Some(Gauge::Paused) => tracing::warn!(
                %consumer, %stream,
                "somebody paused the consumer's durable on the server, which stops nothing: it only shows how far \
                 the consumer is. To pause the consumer: trunkline consumers pause {consumer}"
            ),
            (before, Gauge::Taken) if before != Some(Gauge::Taken) => tracing::warn!(
                %consumer, %stream,
                "a durable of the consumer's name is on the server that does not belong to it, and is left alone: \
                 other tools see that one and not how far this consumer is. Delete it if nobody uses it"
            ),
            (None, Gauge::Unfit) => tracing::info!(
                %consumer, %stream,
                "other tools will not see how far the consumer is: on its stream a durable would keep events"
            ),
            _ => {}
        }
    }

    fn failed(&self, error: &Error) {
        let (consumer, stream) = (&self.at.consumer, &self.at.stream);
        if error.retryable() {
            tracing::debug!(%consumer, %stream, %error, "the consumer's gauge could not be moved");
            return;
        }
        let text = error.to_string();
        let before = self.told.lock().error.replace(text.clone());
        if before.as_ref() != Some(&text) {
            tracing::warn!(
                %consumer, %stream, %error,
                "other tools do not see how far the consumer is, which goes on all the same"
            );
        }
    }
}
