//! An event that travels in two ways.

use serde::{Deserialize, Serialize};
use trunkline::Event;

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.place", ephemeral, command)]
struct PlaceOrder;

fn main() {}
