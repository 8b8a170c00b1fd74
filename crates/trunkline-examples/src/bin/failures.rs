//! Guide: handlers and failures.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trunkline::consumer::TimedOut;
use trunkline::core::engine::{Credit, Followed};
use trunkline::{
    Attempt, Breaker, Bus, Classify, Disposition, Event, Failure, FailureExt, Filter, Name, Policy,
    Retry, Start, State,
};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "order_id")]
struct OrderPlaced {
    order_id: String,
    card: String,
}

// guide: policy
/// What this service does about failures, in one place, for all of its consumers.
fn policy() -> Policy {
    Policy::default()
        .classify::<BankError>()
        .retry(Retry::fixed(3, Duration::from_millis(50)))
        .retry_for::<TimedOut>(Retry::never()) // what hangs once hangs again
        .time_out(Duration::from_secs(1)) // 5 minutes unless set; `None` for ever
        .breaker(Breaker::default().share(0.8)) // half of the last 100 runs unless set
}
// guide: end

// guide: handler
struct Bank;

impl Bank {
    async fn charge(&self, card: &str) -> Result<(), BankError> {
        match card {
            "stolen" => Err(BankError::Refused),
            "" => Err(BankError::Unreachable),
            "slow" => std::future::pending().await, // it never answers
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
    let billing = bus
        .consumer("billing")
        .policy(policy())
        .on(bill)
        .start()
        .await?;
    // guide: end

    let cards = ["good", "stolen", "", "slow"];
    for (order_id, card) in ["o-1", "o-2", "o-3", "o-4"].into_iter().zip(cards) {
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
    while found.len() < 3 {
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

    // guide: health
    let health = billing.health();
    for stuck in &health.stuck {
        println!(
            "event {} blocks its thread since {:?}",
            stuck.seq, stuck.running_for
        );
    }
    println!("well: {}, breaker: {:?}", health.is_well(), health.breaker);
    // guide: end

    bus.close().await
}
