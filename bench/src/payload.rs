//! What the events carry.

use serde::{Deserialize, Serialize};
use trunkline::Event;

/// 256 bytes without a pointer: the cost of a typed path that copies what it is given.
#[derive(Clone, Debug, Event, Serialize, Deserialize)]
#[event(type = "tick.made", ephemeral)]
pub struct Tick {
    pub sequence: u64,
    pub values: [u64; 31],
}

impl Tick {
    pub fn new(sequence: u64) -> Self {
        Self {
            sequence,
            values: [sequence; 31],
        }
    }
}

/// The answer to a [`Tick`], of another type so that both can travel on one bus.
#[derive(Clone, Debug, Event, Serialize, Deserialize)]
#[event(type = "tick.answered", ephemeral)]
pub struct Tock {
    pub sequence: u64,
    pub values: [u64; 31],
}

impl From<&Tick> for Tock {
    fn from(tick: &Tick) -> Self {
        Self {
            sequence: tick.sequence,
            values: tick.values,
        }
    }
}

/// Two integers: the body of ruststream's own benchmark, whose decoding allocates nothing.
#[derive(Clone, Debug, Event, Serialize, Deserialize)]
#[event(type = "order.small")]
pub struct SmallOrder {
    pub id: u64,
    pub quantity: u32,
}

impl SmallOrder {
    pub fn sample() -> Self {
        Self {
            id: 1_000_000,
            quantity: 37,
        }
    }
}

/// An order as a shop would send it: about 256 bytes as JSON, with strings that decoding allocates.
#[derive(Clone, Debug, Event, Serialize, Deserialize)]
#[event(type = "order.placed")]
pub struct Order {
    pub order_id: String,
    pub customer_id: String,
    pub placed_at: String,
    pub currency: String,
    pub total_cents: u64,
    pub lines: Vec<OrderLine>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OrderLine {
    pub article: String,
    pub quantity: u32,
    pub price_cents: u64,
}

impl Order {
    pub fn sample() -> Self {
        let line = |article: &str, quantity, price_cents| OrderLine {
            article: article.to_owned(),
            quantity,
            price_cents,
        };
        Self {
            order_id: "ord-0192f0c1-7b3e".to_owned(),
            customer_id: "cus-00048812".to_owned(),
            placed_at: "2026-01-05T08:30:00Z".to_owned(),
            currency: "EUR".to_owned(),
            total_cents: 7_350,
            lines: vec![
                line("coffee-beans-1kg", 2, 1_950),
                line("filter-no4", 3, 1_150),
            ],
        }
    }
}

/// An [`Order`] that nothing stores.
#[derive(Clone, Debug, Event, Serialize, Deserialize)]
#[event(type = "order.seen", ephemeral)]
pub struct Glimpse {
    pub order_id: String,
    pub customer_id: String,
    pub placed_at: String,
    pub currency: String,
    pub total_cents: u64,
    pub lines: Vec<OrderLine>,
}

impl Glimpse {
    pub fn sample() -> Self {
        let Order {
            order_id,
            customer_id,
            placed_at,
            currency,
            total_cents,
            lines,
        } = Order::sample();
        Self {
            order_id,
            customer_id,
            placed_at,
            currency,
            total_cents,
            lines,
        }
    }
}

/// About 256 bytes of JSON that is due at a time of its own.
#[derive(Clone, Debug, Event, Serialize, Deserialize)]
#[event(type = "order.due")]
pub struct Due {
    pub sequence: u64,
    pub filler: String,
}

impl Due {
    pub fn new(sequence: u64) -> Self {
        Self {
            sequence,
            filler: "x".repeat(220),
        }
    }
}

/// About 256 bytes of JSON with a key, and a number that decides whether its first attempt fails.
#[derive(Clone, Debug, Event, Serialize, Deserialize)]
#[event(type = "order.numbered", key = "order")]
pub struct Numbered {
    pub order: String,
    pub number: u64,
    pub filler: String,
}

impl Numbered {
    /// Keys that there are.
    const KEYS: u64 = 1_000;

    pub fn new(number: u64) -> Self {
        Self {
            order: format!("order-{:03}", number % Self::KEYS),
            number,
            filler: "x".repeat(202),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Due, Numbered, Order, SmallOrder, Tick};

    #[test]
    fn payloads_have_the_size_that_the_report_states() {
        assert_eq!(size_of::<Tick>(), 256);
        let json = serde_json::to_vec(&Order::sample()).unwrap();
        assert!((250..=262).contains(&json.len()), "{} bytes", json.len());
        let due = serde_json::to_vec(&Due::new(10_000)).unwrap();
        assert!((250..=262).contains(&due.len()), "{} bytes", due.len());
        let numbered = serde_json::to_vec(&Numbered::new(10_000)).unwrap();
        let bytes = numbered.len();
        assert!((250..=262).contains(&bytes), "{bytes} bytes");
        assert_eq!(serde_json::to_vec(&SmallOrder::sample()).unwrap().len(), 28);
    }
}
