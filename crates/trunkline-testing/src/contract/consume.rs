//! Durable consumers: C1 to C13 and B1, as far as they do not need a second process.

mod beside;
mod counters;
mod divide;
mod failure;
mod held;
mod idempotent;
mod lease;
mod limits;
mod ordered;
mod outputs;
mod share;
mod trouble;

use tokio::sync::mpsc;
use trunkline::{Attempt, Bus, State};

use crate::fixture::Noted;

pub(super) use beside::*;
pub(super) use counters::*;
pub(super) use divide::*;
pub(super) use failure::*;
pub(super) use held::*;
pub(super) use idempotent::*;
pub(super) use lease::*;
pub(super) use limits::*;
pub(super) use ordered::*;
pub(super) use outputs::*;
pub(super) use share::*;
pub(super) use trouble::*;

/// What a handler has seen: the event's number and the attempt.
type Seen = mpsc::UnboundedSender<(u32, u32)>;

/// Gives the bus a channel into which its handlers report.
fn watched(bus: &Bus) -> mpsc::UnboundedReceiver<(u32, u32)> {
    let (seen, handled) = mpsc::unbounded_channel();
    bus.state::<Seen>(seen);
    handled
}

async fn note(event: Noted, attempt: Attempt, State(seen): State<Seen>) {
    seen.send((event.n, attempt.0)).unwrap();
}

async fn numbers(handled: &mut mpsc::UnboundedReceiver<(u32, u32)>, count: usize) -> Vec<u32> {
    let mut numbers = Vec::with_capacity(count);
    for _ in 0..count {
        numbers.push(handled.recv().await.unwrap().0);
    }
    numbers
}

async fn publish(bus: &Bus, numbers: std::ops::Range<u32>) {
    for one in bus
        .publish_batch(numbers.map(|n| Noted { n }))
        .await
        .unwrap()
    {
        one.stored().unwrap();
    }
}
