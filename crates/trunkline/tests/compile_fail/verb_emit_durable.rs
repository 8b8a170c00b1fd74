//! `emit` of an event that is to be stored.

use serde::{Deserialize, Serialize};
use trunkline::{Bus, Event};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
struct OrderPlaced;

async fn wrong(bus: Bus) -> trunkline::Result<()> {
    bus.emit(OrderPlaced).await?;
    Ok(())
}

fn main() {}
