//! A handler whose first argument is an extractor.

use serde::{Deserialize, Serialize};
use trunkline::{Bus, Context, Event};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
struct OrderPlaced;

async fn bill(_cx: Context, _order: OrderPlaced) {}

fn start(bus: &Bus) {
    let _ = bus.consumer("billing").on(bill);
}

fn main() {}
