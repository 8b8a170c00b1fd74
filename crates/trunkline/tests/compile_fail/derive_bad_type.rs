//! Event types that no subject can have.

use serde::{Deserialize, Serialize};
use trunkline::Event;

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order..placed")]
struct EmptyToken;

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order placed")]
struct ForeignCharacter;

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed.7")]
struct LastTokenAllDigits;

fn main() {}
