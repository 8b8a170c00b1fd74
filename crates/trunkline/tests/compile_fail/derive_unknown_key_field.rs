//! A key that is no field.

use serde::{Deserialize, Serialize};
use trunkline::Event;

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "orderId")]
struct OrderPlaced {
    order_id: String,
    total_cents: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.changed", key = "order_id")]
enum OrderChanged {
    Paid { order_id: String },
}

fn main() {}
