//! Options that there are not, or not twice: all of them are reported.

use serde::{Deserialize, Serialize};
use trunkline::Event;

#[derive(Event, Serialize, Deserialize)]
#[event(
    type = "order.placed",
    partition_key = "order_id",
    version = 1,
    version = 2,
    durable
)]
struct OrderPlaced {
    order_id: String,
}

fn main() {}
