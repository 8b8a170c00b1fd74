//! Publishing and subscribing: P1 to P9.

mod durable;
mod ephemeral;
mod load;
mod order;
mod round_trip;

use std::fmt::Debug;

use trunkline::{Event, Item, Published, Subscription};

pub(super) use durable::*;
pub(super) use ephemeral::*;
pub(super) use load::*;
pub(super) use order::*;
pub(super) use round_trip::*;

pub(super) fn stored(published: Vec<Published>) {
    for one in published {
        one.stored().unwrap();
    }
}

/// The next events, seen through `view`; anything but an event is a failure.
pub(super) async fn received<E: Event + Debug, T>(
    events: &mut Subscription<trunkline::Received<E>>,
    count: usize,
    view: impl Fn(&E) -> T,
) -> Vec<T> {
    let mut got = Vec::with_capacity(count);
    while got.len() < count {
        match events.recv().await {
            Some(Item::Event(event)) => got.push(view(&event)),
            other => panic!("{other:?} after {} events", got.len()),
        }
    }
    got
}
