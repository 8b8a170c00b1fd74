//! Receiving a consumer's events in a loop, with the same guarantees as handlers.

use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::sync::{mpsc, oneshot};
use trunkline_core::Result;

use super::{Consumer, ConsumerHandle, StopReport};
use crate::event::{Event, Stored};
use crate::extract::{Attempt, Meta};
use crate::failure::{Failure, FailureExt};
use crate::receive::Item;

/// A consumer's events of one type in a loop. Dropping it stops the member.
///
/// Each is settled on its own, and up to the consumer's concurrency may be held at once; leases
/// are renewed while they are. Failures, retries and dead letters are those of handlers.
#[derive(Debug)]
pub struct Receiver<E> {
    items: mpsc::UnboundedReceiver<Item<Work<E>>>,
    handle: ConsumerHandle,
}

/// One event to be worked on. Call [`done`](Work::done) or [`failed`](Work::failed); dropped
/// without either, it has failed.
#[derive(Debug)]
#[must_use = "an event that is dropped has failed and comes again"]
pub struct Work<E> {
    event: Arc<E>,
    meta: Meta,
    attempt: u32,
    outcome: oneshot::Sender<Result<(), Failure>>,
}

impl<E> Work<E> {
    /// What came with the event.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The event was handled: never deliver it again.
    pub fn done(self) {
        // If nobody waits any more, the member was stopped and the event given back.
        let _ = self.outcome.send(Ok(()));
    }

    /// The event was not handled; the failure says what is to become of it.
    pub fn failed(self, failure: impl Into<Failure>) {
        let _ = self.outcome.send(Err(failure.into()));
    }
}

impl<E> Deref for Work<E> {
    type Target = E;

    fn deref(&self) -> &E {
        &self.event
    }
}

impl<E: Event> Receiver<E>
where
    E::Delivery: Stored,
{
    pub(super) async fn start(consumer: Consumer) -> Result<Self> {
        // Bounded by the consumer's concurrency: a handler waits for the outcome of what it sent.
        let (sender, items) = mpsc::unbounded_channel();
        let gaps = sender.clone();
        let on_gap = move |stream: &trunkline_core::Name, gap| {
            let _ = gaps.send(Item::Gap {
                stream: stream.clone(),
                gap,
            });
        };
        let handler = move |event: Arc<E>, meta: Meta, Attempt(attempt): Attempt| {
            let sender = sender.clone();
            async move {
                let (outcome, result) = oneshot::channel();
                let work = Work {
                    event,
                    meta,
                    attempt,
                    outcome,
                };
                // What nobody received has not failed: it is given back and counts nothing.
                let unreceived = || Err("nobody received it".snooze(Duration::ZERO));
                if sender.send(Item::Event(work)).is_err() {
                    return unreceived();
                }
                match result.await {
                    Ok(result) => result,
                    Err(_) if sender.is_closed() => unreceived(),
                    Err(_) => Err("the event was dropped without an outcome".into()),
                }
            }
        };
        let handle = consumer
            .on(handler)
            .untimed()
            .start_with(Some(Box::new(on_gap)))
            .await?;
        Ok(Self { items, handle })
    }
}

impl<E> Receiver<E> {
    /// The next item; `None` once the member has stopped.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Option<Item<Work<E>>> {
        self.items.recv().await
    }

    /// Stops the member; see [`ConsumerHandle::stop`]. What was received and is not settled has
    /// until the drain deadline; what was not received is given back at once.
    pub async fn stop(mut self) -> StopReport {
        self.handle.ask_to_stop();
        self.items.close();
        while self.items.try_recv().is_ok() {}
        self.handle.stop().await
    }
}

impl<E> Stream for Receiver<E> {
    type Item = Item<Work<E>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        self.items.poll_recv(cx)
    }
}

impl<E> Drop for Receiver<E> {
    fn drop(&mut self) {
        self.handle.ask_to_stop();
    }
}
