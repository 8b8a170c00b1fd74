//! A durable consumer of an event that is not stored.

use serde::{Deserialize, Serialize};
use trunkline::{Bus, Event};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", ephemeral)]
struct OrderPlaced;

async fn bill(_order: OrderPlaced) {}

fn start(bus: &Bus) {
    let _ = bus.consumer("billing").on(bill);
}

fn main() {}
