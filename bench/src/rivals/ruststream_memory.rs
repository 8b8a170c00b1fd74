//! ruststream 0.7 on its memory broker: the closest rival, measured as its own benchmark does it.
//!
//! Its scenarios publish a body that is already JSON and let the framework decode it. "One
//! consumer" fills the queue outside the timing, 1 000 events at a time, and times the drain;
//! "across threads" and "workers" time publishing and handling together. We add what an
//! application really does: publish a struct, and get a struct.

use std::convert::Infallible;
use std::hint::black_box;

use ruststream::OutgoingMessage;
use ruststream::memory::MemoryPublisher;
use ruststream::memory::prelude::*;
use ruststream::runtime::{BrokerScope, Identity};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::countdown::Countdown;
use crate::pair::{Result, Side};
use crate::payload::{self, OrderLine};
use crate::runtime::Flavour;
use crate::stopwatch::Stopwatch;

/// The name every subscriber below listens to; its attribute takes only a literal.
const NAME: &str = "orders";
/// How many events the drain scenario puts into the queue at once, as in ruststream's benchmark.
pub const FILL: u64 = 1_000;

/// Which of its handlers gets the events.
#[derive(Clone, Copy, Debug)]
pub enum Handler {
    /// Two integers, one at a time.
    Small,
    /// Two integers, four workers.
    SmallWorkers,
    /// 256 bytes of JSON, one at a time.
    Order,
    /// 256 bytes of JSON, four workers.
    OrderWorkers,
}

/// What the producer does inside the timing.
#[derive(Clone, Copy, Debug)]
pub enum Producing {
    /// Nothing: the queue is full before the clock starts.
    Before,
    /// It publishes bytes that are JSON already.
    Bytes,
    /// It publishes the struct, which the framework encodes.
    Struct,
}

/// `payload::Order` with the derive that ruststream wants for typed publishing.
#[derive(Debug, Serialize, Deserialize, Outgoing)]
#[outgoing(name = "orders")]
struct Order {
    order_id: String,
    customer_id: String,
    placed_at: String,
    currency: String,
    total_cents: u64,
    lines: Vec<OrderLine>,
}

#[derive(Debug, Deserialize)]
struct SmallOrder {
    id: u64,
    quantity: u32,
}

#[subscriber("orders")]
async fn count_small(order: &SmallOrder, ctx: &mut Context<'_, (), Countdown>) -> HandlerOutcome {
    black_box((order.id, order.quantity));
    ctx.state().handled();
    HandlerOutcome::ack()
}

#[subscriber("orders", workers(4))]
async fn count_small_workers(
    order: &SmallOrder,
    ctx: &mut Context<'_, (), Countdown>,
) -> HandlerOutcome {
    black_box((order.id, order.quantity));
    ctx.state().handled();
    HandlerOutcome::ack()
}

#[subscriber("orders")]
async fn count_order(order: &Order, ctx: &mut Context<'_, (), Countdown>) -> HandlerOutcome {
    black_box((&order.order_id, order.total_cents));
    ctx.state().handled();
    HandlerOutcome::ack()
}

#[subscriber("orders", workers(4))]
async fn count_order_workers(
    order: &Order,
    ctx: &mut Context<'_, (), Countdown>,
) -> HandlerOutcome {
    black_box((&order.order_id, order.total_cents));
    ctx.state().handled();
    HandlerOutcome::ack()
}

/// Starts the service with one handler.
pub fn service(flavour: Flavour, handler: Handler, producing: Producing) -> Result<impl Side> {
    let runtime = flavour.runtime()?;
    let countdown = Countdown::default();
    let broker = MemoryBroker::new();
    let state = countdown.clone();
    let app = RustStream::new(AppInfo::new("bench", "0.0.0"))
        .on_startup(async move |()| Ok::<_, Infallible>(state))
        .with_broker(broker.clone(), |scope| mount(handler, scope));
    let app = runtime.block_on(app.start())?;
    let body = match handler {
        Handler::Small | Handler::SmallWorkers => {
            serde_json::to_vec(&payload::SmallOrder::sample())?
        }
        Handler::Order | Handler::OrderWorkers => serde_json::to_vec(&payload::Order::sample())?,
    };
    Ok(Service {
        app: Some(app),
        publisher: broker.publisher(),
        order: serde_json::from_slice(&serde_json::to_vec(&payload::Order::sample())?)?,
        runtime,
        countdown,
        body,
        producing,
    })
}

fn mount(handler: Handler, scope: &mut BrokerScope<MemoryBroker, Identity, (), Countdown>) {
    match handler {
        Handler::Small => drop(scope.include(count_small)),
        Handler::SmallWorkers => drop(scope.include(count_small_workers)),
        Handler::Order => drop(scope.include(count_order)),
        Handler::OrderWorkers => drop(scope.include(count_order_workers)),
    }
}

struct Service {
    /// Taken only when the service ends.
    app: Option<RunningApp>,
    publisher: MemoryPublisher,
    order: Order,
    runtime: Runtime,
    countdown: Countdown,
    body: Vec<u8>,
    producing: Producing,
}

impl Side for Service {
    fn round(&mut self, events: u64, watch: &mut Stopwatch) -> Result<()> {
        match self.producing {
            Producing::Before => self.fill_and_drain(events, watch),
            Producing::Bytes => watch.time(|| {
                self.runtime.block_on(async {
                    self.countdown.expect(events);
                    self.publish_bytes(events).await?;
                    self.countdown.done().await;
                    Ok(())
                })
            }),
            Producing::Struct => watch.time(|| {
                self.runtime.block_on(async {
                    self.countdown.expect(events);
                    for _ in 0..events {
                        self.publisher.message(&self.order).publish().await?;
                    }
                    self.countdown.done().await;
                    Ok(())
                })
            }),
        }
    }
}

impl Service {
    fn fill_and_drain(&self, events: u64, watch: &mut Stopwatch) -> Result<()> {
        let mut left = events;
        while left > 0 {
            let fill = left.min(FILL);
            self.countdown.expect(fill);
            self.runtime.block_on(self.publish_bytes(fill))?;
            if self.countdown.remaining() != fill {
                return Err("events were handled before the clock started".into());
            }
            watch.time(|| self.runtime.block_on(self.countdown.done()));
            left -= fill;
        }
        Ok(())
    }

    async fn publish_bytes(&self, events: u64) -> Result<()> {
        for _ in 0..events {
            self.publisher
                .publish(OutgoingMessage::new(NAME, &self.body), None)
                .await?;
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(app) = self.app.take() {
            // A service that cannot end has nothing left to measure.
            let _ = self.runtime.block_on(app.shutdown());
        }
    }
}
