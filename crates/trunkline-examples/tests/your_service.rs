//! Guide: testing a service. It is a test, so that it runs with the others.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use trunkline::{Bus, Context, Event, Failure, Retry, State};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "order_id")]
struct OrderPlaced {
    order_id: String,
}

#[derive(Debug, PartialEq, Event, Serialize, Deserialize)]
#[event(type = "order.billed", key = "order_id")]
struct OrderBilled {
    order_id: String,
}

// guide: service
/// What is tested: it takes a bus and does not know which one.
async fn start_billing(bus: &Bus) -> trunkline::Result<()> {
    let hourly = Retry::fixed(24, Duration::from_secs(3600));
    bus.consumer("billing")
        .retry(hourly)
        .on(bill)
        .start()
        .await?;
    Ok(())
}

async fn bill(order: OrderPlaced, cx: Context) -> Result<(), Failure> {
    if cx.attempt() == 1 {
        return Err("the bank is busy".into());
    }
    cx.bus()
        .publish(OrderBilled {
            order_id: order.order_id,
        })
        .caused_by(&cx.meta())
        .await?;
    Ok(())
}
// guide: end

// guide: test
#[tokio::test(start_paused = true)] // waiting takes no time
async fn an_order_is_billed_an_hour_later() -> trunkline::Result<()> {
    let bus = Bus::connect("memory:?encode=always").await?; // also tests Serialize and Deserialize
    let (billed, mut seen) = mpsc::unbounded_channel();
    bus.state(billed);
    bus.consumer("test")
        .on(|event: OrderBilled, State(billed): State<mpsc::UnboundedSender<OrderBilled>>| async move {
            billed.send(event).map_err(|_| "the test is over")
        })
        .start()
        .await?;
    start_billing(&bus).await?;

    bus.publish(OrderPlaced {
        order_id: "o-1".into(),
    })
    .await?;

    assert_eq!(
        seen.recv().await,
        Some(OrderBilled {
            order_id: "o-1".into()
        })
    );
    bus.close().await
}
// guide: end
