//! Guide: receivers and replay.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use serde::{Deserialize, Serialize};
use trunkline::{Bus, Event, Item, Start};

#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "order_id")]
struct OrderPlaced {
    order_id: String,
}

// guide: ephemeral
#[derive(Debug, Event, Serialize, Deserialize)]
#[event(type = "order.viewed", ephemeral)]
struct OrderViewed {
    order_id: String,
}
// guide: end

#[tokio::main]
async fn main() -> trunkline::Result<()> {
    let bus = Bus::connect("memory:").source("/shop").await?;
    for n in 1..=3 {
        bus.publish(OrderPlaced {
            order_id: format!("o-{n}"),
        })
        .await?;
    }

    // guide: receiver
    let mut orders = bus
        .consumer("shipping")
        .concurrency(1)
        .receiver::<OrderPlaced>()
        .await?;
    for _ in 0..3 {
        match orders.recv().await {
            Some(Item::Event(work)) => {
                println!("ship {}, attempt {}", work.order_id, work.attempt());
                work.done(); // or `work.failed(error)`: then it is tried again, as a handler's event is
            }
            Some(Item::Gap { stream, gap }) => println!("{stream} no longer has {gap:?}"),
            Some(other) => println!("{other:?}"),
            None => break, // the bus was closed
        }
    }
    // guide: end

    // guide: replay
    let mut replay = bus.replay::<OrderPlaced>(Start::First).await?;
    for _ in 0..3 {
        if let Some(Item::Event(order)) = replay.recv().await {
            println!(
                "number {} was {}",
                order.meta.seq().unwrap_or(0),
                order.order_id
            );
        }
    }
    // guide: end

    // guide: subscribe
    let mut viewed = bus.subscribe::<OrderViewed>().await?; // from now on
    bus.emit(OrderViewed {
        order_id: "o-2".into(),
    })
    .await?;
    match viewed.recv().await {
        Some(Item::Event(view)) => println!("somebody looks at {}", view.order_id),
        Some(Item::Lagged { at_least }) => println!("too slow: at least {at_least} are lost"),
        other => println!("{other:?}"),
    }
    // guide: end

    bus.close().await
}
