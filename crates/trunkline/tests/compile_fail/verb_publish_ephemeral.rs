//! `publish` of an event that is not stored.

use serde::{Deserialize, Serialize};
use trunkline::{Bus, Event};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", ephemeral)]
struct OrderPlaced;

async fn wrong(bus: Bus) -> trunkline::Result<()> {
    bus.publish(OrderPlaced).await?;
    Ok(())
}

fn main() {}
