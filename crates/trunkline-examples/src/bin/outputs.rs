//! Guide: outputs and duplicates.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trunkline::core::engine::{Append, AppendMode, Expect};
use trunkline::core::wire::Body;
use trunkline::{Bus, Context, Event, EventId, Failure, Headers, Item, State};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "order_id")]
struct OrderPlaced {
    order_id: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(type = "invoice.made", key = "order_id")]
struct InvoiceMade {
    order_id: String,
}

// guide: handler
async fn bill(order: OrderPlaced, cx: Context, books: State<Books>) -> Result<(), Failure> {
    if books.enter(&cx.idempotency_key(), &order.order_id) {
        println!("{}: invoice made, once", order.order_id);
    }
    let order_id = order.order_id;
    cx.publish(InvoiceMade { order_id }).await?; // staged; stored once this has returned Ok
    Ok(())
}
// guide: end

// guide: books
/// Stands for a database: the effect in one table, and its key in a unique column.
#[derive(Default)]
struct Books(Mutex<(HashSet<String>, Vec<String>)>);

impl Books {
    /// Both in one transaction; false if the key is there already.
    fn enter(&self, key: &str, invoice: &str) -> bool {
        let mut books = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = books.0.insert(key.to_owned());
        if is_new {
            books.1.push(invoice.to_owned());
        }
        is_new
    }
}
// guide: end

#[tokio::main(flavor = "current_thread")]
async fn main() -> trunkline::Result<()> {
    let bus = Bus::connect("memory:").await?;
    let mut invoices = bus.subscribe::<InvoiceMade>().await?;
    bus.state(Books::default());
    // guide: consumer
    let billing = bus
        .consumer("billing")
        .idempotent(Duration::from_secs(60 * 60))
        .on(bill)
        .start()
        .await?;
    // guide: end
    let order_id = "o-1".to_owned();
    let id = EventId::new("o-1-placed")?;
    bus.publish(OrderPlaced { order_id }).id(id).await?;
    if let Some(Item::Event(invoice)) = invoices.recv().await {
        let cause = invoice.meta.causation().map(ToString::to_string);
        println!(
            "invoice of {} because of order {}",
            invoice.order_id,
            cause.unwrap_or_default()
        );
    }
    publish_again(&bus).await?;
    while billing.duplicates() == 0 {
        tokio::task::yield_now().await;
    }
    println!("{} duplicate acknowledged unseen", billing.duplicates());
    bus.close().await
}

/// Stores the first order again, as a publisher would that repeats it after the duplicate window.
async fn publish_again(bus: &Bus) -> trunkline::Result<()> {
    let mut orders = bus.replay::<OrderPlaced>(trunkline::Start::First).await?;
    let Some(Item::Event(order)) = orders.recv().await else {
        return Ok(());
    };
    let again = Append {
        subject: order.meta.published_on().clone(),
        key: None,
        id: None, // the stream is not told the id, and so cannot know it again
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Event(Arc::new((*order.meta).clone())),
    };
    if let Some(stream) = order.meta.stream() {
        let log = bus.engine().log();
        let batch = std::iter::once(again).collect();
        log.append(stream, batch, AppendMode::Each)
            .completed()
            .await?;
    }
    Ok(())
}
