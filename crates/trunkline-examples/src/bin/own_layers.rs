//! Guide: layers of one's own.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use trunkline::{Bus, Event, State};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
struct OrderPlaced {
    order_id: String,
}

// guide: handle
use trunkline::core::engine::Boxed;
use trunkline::layer::{HandleLayer, HandleNext};
use trunkline::{Delivered, Failure};

struct Log;

impl HandleLayer for Log {
    fn handle<'a>(
        &'a self,
        delivered: Delivered,
        next: HandleNext<'a>,
    ) -> Boxed<'a, Result<(), Failure>> {
        Box::pin(async move {
            let event_type = delivered.incoming().envelope.event_type().to_owned();
            let consumer = delivered.consumer().clone();
            let result = next.run(delivered).await;
            println!(
                "{consumer} handled {event_type}: {}",
                if result.is_ok() { "ok" } else { "failed" }
            );
            result
        })
    }
}
// guide: end

// guide: publish
use trunkline::Published;
use trunkline::layer::{Outgoing, PublishLayer, PublishNext};

struct Tenant(&'static str);

impl PublishLayer for Tenant {
    fn publish<'a>(
        &'a self,
        mut batch: Vec<Outgoing>,
        next: PublishNext<'a>,
    ) -> Boxed<'a, Vec<Published>> {
        Box::pin(async move {
            let mut refused = Vec::new();
            for (at, item) in batch.iter_mut().enumerate() {
                if let Err(error) = item.headers.add("tenant", self.0) {
                    refused.push((at, error));
                }
            }
            // One answer for each item, in its place: what was refused is taken out and put back.
            for (at, _) in refused.iter().rev() {
                batch.remove(*at);
            }
            let mut answers = next.run(batch).await;
            for (at, error) in refused {
                answers.insert(at, Published::Refused(error));
            }
            answers
        })
    }
}
// guide: end

async fn show(order: OrderPlaced, meta: trunkline::Meta, State(done): State<Arc<Notify>>) {
    println!(
        "{} of {}",
        order.order_id,
        meta.headers().get("tenant").unwrap_or("nobody")
    );
    done.notify_one();
}

#[tokio::main]
async fn main() -> trunkline::Result<()> {
    // guide: connect
    let bus = Bus::connect("memory:")
        .publish_layer(Tenant("acme"))
        .handle_layer(Log)
        .await?;
    // guide: end
    let done = Arc::new(Notify::new());
    bus.state(Arc::clone(&done));
    bus.consumer("display").on(show).start().await?;
    bus.publish(OrderPlaced {
        order_id: "o-1".into(),
    })
    .await?;
    done.notified().await;
    bus.close().await
}
