//! Guide: dead letters.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use trunkline::dead_letter::{Buried, Changed, Discard, Id, Page, Selection};
use trunkline::{Bus, Event, Failure, FailureExt, Item, Start, State};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "order_id")]
struct OrderPlaced {
    order_id: String,
    card: String,
}

async fn bill(order: OrderPlaced) -> Result<(), Failure> {
    match order.card.as_str() {
        "good" => Ok(()),
        card => Err(format!("the bank refused the card {card:?}").permanent()),
    }
}

// guide: handle
async fn alert(dead: Arc<Buried>, State(pager): State<Pager>) -> Result<(), Failure> {
    let text = format!(
        "{} gave up {}: {}",
        dead.consumer,
        dead.subject,
        dead.chain()
    );
    pager.page(text).await?;
    Ok(())
}
// guide: end

/// Stands for whatever wakes somebody.
struct Pager(mpsc::UnboundedSender<String>);

impl Pager {
    async fn page(&self, text: String) -> Result<(), String> {
        self.0.send(text).map_err(|error| error.to_string())
    }
}

#[tokio::main]
async fn main() -> trunkline::Result<()> {
    let bus = Bus::connect("memory:").source("/shop").await?;
    bus.consumer("billing").on(bill).start().await?;
    for (order_id, card) in [("o-1", "good"), ("o-2", "stolen"), ("o-3", "test")] {
        bus.publish(OrderPlaced {
            order_id: order_id.into(),
            card: card.into(),
        })
        .await?;
    }

    let (pages, mut paged) = mpsc::unbounded_channel();
    // guide: start
    bus.state(Pager(pages));
    bus.consumer("alerts").on_dead_letter(alert).start().await?;
    // guide: end
    for _ in 0..2 {
        println!("paged: {}", paged.recv().await.unwrap_or_default());
    }

    // guide: follow
    let mut following = bus.dead_letters().follow(Start::First).await?;
    let mut alerts = 0;
    while let Some(item) = following.recv().await {
        match item {
            Item::Event(dead) => {
                let event = bus.dead_letters().event(&dead)?;
                println!(
                    "{} gave up {} after {} failures: {}",
                    dead.consumer,
                    event.event_type(),
                    dead.failures,
                    dead.chain()
                );
            }
            // What is no dead letter and lies among them: told, and it goes on.
            other => println!("{other:?}"),
        }
        alerts += 1;
        if alerts == 2 {
            break; // a service would go on
        }
    }
    // guide: end

    // guide: list
    let dead_letters = bus.dead_letters();
    let page = Page {
        oldest_first: true,
        ..Page::default()
    };
    let list = dead_letters
        .list(&Selection::new().reason("failed"), &page)
        .await?;
    for letter in &list.letters {
        let record = letter.record.as_ref().map_err(Clone::clone)?;
        println!("{}: {} ({})", letter.id, record.error, letter.stands());
    }
    // guide: end

    // guide: deal
    let refused: Id = "billing/EVENTS/2".parse()?;
    let refused = dead_letters.find(&refused).await?;
    match dead_letters.replay(&refused).await? {
        Changed::Now(record) => println!("asked for, {} time(s)", record.replays),
        Changed::Already(record) => println!("is {} already", record.state.stands()),
        Changed::Removed => println!("was no dead letter"),
    }

    let test: Id = "billing/EVENTS/3".parse()?;
    let test = dead_letters.find(&test).await?;
    let reason = Discard::because("the card of a test");
    let discarded = dead_letters.discard(&test, &reason).await?;
    // guide: end
    if let Changed::Now(record) = discarded {
        println!("{} is {}", test.id, record.state.stands());
    }

    bus.close().await
}
