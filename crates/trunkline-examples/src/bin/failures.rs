//! Guide: handlers and failures.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trunkline::core::engine::{Credit, Followed};
use trunkline::{
    Attempt, Bus, Classify, Disposition, Event, Failure, FailureExt, Filter, Name, Retry, Start,
    State,
};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "order_id")]
struct OrderPlaced {
    order_id: String,
    card: String,
}

// guide: handler
struct Bank;

impl Bank {
    async fn charge(&self, card: &str) -> Result<(), BankError> {
        match card {
            "stolen" => Err(BankError::Refused),
            "" => Err(BankError::Unreachable),
            _ => Ok(()),
        }
    }
}

async fn bill(order: OrderPlaced, bank: State<Bank>, attempt: Attempt) -> Result<(), Failure> {
    if order.order_id.is_empty() {
        return Err("an order has no id".permanent()); // a dead letter at once
    }
    bank.charge(&order.card).await?; // any error: another attempt, unless it says otherwise
    println!("billed {} at attempt {}", order.order_id, attempt.0);
    Ok(())
}
// guide: end

// guide: classify
#[derive(Debug)]
enum BankError {
    Refused,
    Unreachable,
}

impl fmt::Display for BankError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BankError::Refused => "the bank refused the card",
            BankError::Unreachable => "the bank cannot be reached",
        })
    }
}

impl std::error::Error for BankError {}

impl Classify for BankError {
    fn disposition(&self) -> Disposition {
        match self {
            BankError::Refused => Disposition::Permanent,
            BankError::Unreachable => Disposition::Transient,
        }
    }
}
// guide: end

#[tokio::main]
async fn main() -> trunkline::Result<()> {
    let bus = Bus::connect("memory:").source("/shop").await?;

    // guide: consumer
    bus.state(Bank);
    bus.consumer("billing")
        .classify::<BankError>()
        .retry(Retry::fixed(3, Duration::from_millis(50)))
        .on(bill)
        .start()
        .await?;
    // guide: end

    for (order_id, card) in [("o-1", "good"), ("o-2", "stolen"), ("o-3", "")] {
        bus.publish(OrderPlaced {
            order_id: order_id.into(),
            card: card.into(),
        })
        .await?;
    }

    // guide: dead-letters
    let letters = Name::new("EVENTS_DLQ")?;
    let mut letters = bus
        .engine()
        .log()
        .follow(&letters, Start::First, &[Filter::all()])
        .await?;
    let mut found = Vec::new();
    while found.len() < 2 {
        let Followed::Events { .. } = letters.next(Credit::items(10), &mut found).await? else {
            break;
        };
    }
    for letter in &found {
        let story = |name| letter.headers.get(name).unwrap_or("?");
        println!(
            "{}: {} ({} failures)",
            letter.subject,
            story("Trunkline-Error"),
            story("Trunkline-Failures")
        );
    }
    // guide: end

    bus.close().await
}
