//! A subscription to commands, which go to their one consumer.

use serde::{Deserialize, Serialize};
use trunkline::{Bus, Event};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", command)]
struct OrderPlaced;

async fn wrong(bus: Bus) -> trunkline::Result<()> {
    bus.subscribe::<OrderPlaced>().await?;
    Ok(())
}

fn main() {}
