//! Keys and placeholders whose text is not the same in every language.

use serde::{Deserialize, Serialize};
use trunkline::Event;

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "order_id")]
struct OptionalKey {
    order_id: Option<String>,
}

#[derive(Event, Serialize, Deserialize)]
#[event(type = "price.changed", subject = "price.{cents}")]
struct FractionInSubject {
    cents: f64,
}

fn main() {}
