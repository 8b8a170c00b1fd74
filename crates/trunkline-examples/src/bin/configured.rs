//! Guide: configuration.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use serde::{Deserialize, Serialize};
// guide: use
use trunkline::config::Origin;
use trunkline::{Bus, Config, Event, Item, Retry};
// guide: end

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "order_id")]
struct OrderPlaced {
    order_id: String,
}

// guide: configured
#[tokio::main]
async fn main() -> trunkline::Result<()> {
    let loaded = Config::load()?; // the file, and TRUNKLINE_* variables over it
    for setting in &loaded.values {
        if setting.origin != Origin::Default {
            println!("{} = {} ({})", setting.key, setting.value, setting.origin);
        }
    }

    let bus = Bus::from_config(&loaded.config).await?;
    let order_id = "o-1".to_owned();
    bus.publish(OrderPlaced { order_id }).await?;

    // The code says `never`; the section of `billing` says 2 attempts, and goes before it.
    let billing = bus.consumer("billing").retry(Retry::never());
    let mut orders = billing.receiver::<OrderPlaced>().await?;
    while let Some(Item::Event(order)) = orders.recv().await {
        println!("{} at attempt {}", order.order_id, order.attempt());
        if order.attempt() == 2 {
            order.done();
            break;
        }
        order.failed("the bank is closed");
    }
    bus.close().await
}
// guide: end
