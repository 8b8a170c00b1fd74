//! Guide: the first event.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

// guide: event
use serde::{Deserialize, Serialize};
use trunkline::{Bus, Context, Event};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "order_id")] // version = 1, durable unless said otherwise
struct OrderPlaced {
    order_id: String,
    total_cents: u64,
}
// guide: end

// guide: first
async fn bill(order: OrderPlaced, cx: Context) -> Result<(), std::io::Error> {
    let OrderPlaced {
        order_id,
        total_cents,
    } = order;
    println!("{order_id}: {total_cents} cents, attempt {}", cx.attempt());
    Ok(())
}

#[tokio::main]
async fn main() -> trunkline::Result<()> {
    let bus = Bus::connect("file:./trunkline-data")
        .source("/shop")
        .await?;
    bus.consumer("billing").on(bill).start().await?;

    let order = OrderPlaced {
        order_id: "o-1".into(),
        total_cents: 4_200,
    };
    let receipt = bus.publish(order).await?;
    println!("stored in {} as number {}", receipt.stream, receipt.seq);

    bus.run().await // until SIGTERM or ctrl-c, then drains
}
// guide: end
