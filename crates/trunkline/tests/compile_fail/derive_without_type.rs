//! An event without a type.

use serde::{Deserialize, Serialize};
use trunkline::Event;

#[derive(Event, Serialize, Deserialize)]
struct OrderPlaced {
    order_id: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(key = "order_id")]
struct OrderPaid {
    order_id: String,
}

fn main() {}
