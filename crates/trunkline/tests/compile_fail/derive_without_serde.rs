//! An event that serde cannot write or read.

use trunkline::Event;

#[derive(Event)]
#[event(type = "order.placed")]
struct OrderPlaced {
    order_id: String,
}

fn main() {}
