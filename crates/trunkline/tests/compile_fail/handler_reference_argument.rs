//! A handler that borrows its event.

use serde::{Deserialize, Serialize};
use trunkline::{Bus, Event};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
struct OrderPlaced;

async fn bill(_order: &OrderPlaced) {}

fn start(bus: &Bus) {
    let _ = bus.consumer("billing").on(bill);
}

fn main() {}
