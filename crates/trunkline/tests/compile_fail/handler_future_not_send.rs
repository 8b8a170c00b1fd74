//! A handler that holds an `Rc` while it waits.

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use trunkline::{Bus, Event};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
struct OrderPlaced;

async fn bill(_order: OrderPlaced) {
    let total = Rc::new(0_u64);
    std::future::ready(()).await;
    drop(total);
}

fn start(bus: &Bus) {
    let _ = bus.consumer("billing").on(bill);
}

fn main() {}
