//! One event bus from a single process to a cluster: typed events and async handlers, one tested
//! delivery contract on every engine, the engine chosen by a URL.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use trunkline::{Bus, Context, Event};
//!
//! #[derive(Event, Serialize, Deserialize)]
//! #[event(type = "order.placed", key = "order_id")] // version = 1, durable unless said otherwise
//! struct OrderPlaced {
//!     order_id: String,
//!     total_cents: u64,
//! }
//!
//! async fn bill(order: OrderPlaced, cx: Context) -> Result<(), std::io::Error> {
//!     println!("{}: {} cents, attempt {}", order.order_id, order.total_cents, cx.attempt());
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> trunkline::Result<()> {
//! let bus = Bus::connect("memory:").await?;
//! bus.consumer("billing").on(bill).start().await?; // retries, dead letters: by default
//! bus.publish(OrderPlaced { order_id: "o-1".into(), total_cents: 1_200 }).await?; // Ok means stored
//! bus.close().await?; // or `bus.run().await?`: until SIGTERM or ctrl-c, then drains
//! # Ok(())
//! # }
//! ```

pub mod event;

mod bus;
#[cfg(feature = "config")]
pub mod config;
mod connect;

mod publish;
pub mod raw;
mod receive;
mod subscribe;

pub mod history;

pub mod explain;

pub mod topology;

mod extract;
mod failure;
mod handler;
pub mod layer;

pub mod consumer;

pub mod dead_letter;

mod lifecycle;

pub use trunkline_core as core;
pub use trunkline_core::engine::{Gap, Link, Position as Start, Seq};
pub use trunkline_core::{
    Attribute, Data, Envelope, Error, ErrorKind, EventId, Filter, Headers, Name, Result, Timestamp,
};
#[cfg(feature = "macros")]
pub use trunkline_macros::{Event, handler};

pub use bus::Bus;
#[cfg(feature = "config")]
pub use config::Config;
pub use connect::{Connect, Nats, TopologyMode};
pub use consumer::{
    Beside, Breaker, Consumer, ConsumerHandle, ConsumerStatus, Divided, Idempotency, MemberStatus,
    Policy, Retry,
};
pub use dead_letter::DeadLetters;
pub use event::{Class, Command, Durable, Ephemeral, Event, EventInfo, KeyText, Template, Token};
pub use explain::Explanation;
pub use extract::{Attempt, Context, FromDelivery, Meta, Raw, State};
pub use failure::{Classify, Disposition, Failure, FailureExt};
pub use handler::{DeadLetterHandler, Delivered, Epoch, Handler, RawHandler};
pub use history::History;
pub use publish::{Published, Publisher, Receipt, Sending};
pub use raw::{Incoming, RawEvent};
pub use receive::{Item, Received, Subscription};
pub use topology::Topology;
