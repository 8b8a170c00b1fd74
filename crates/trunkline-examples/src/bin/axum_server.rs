//! Guide: the bus inside an axum server.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use serde::{Deserialize, Serialize};
use trunkline::{Bus, Event};

#[derive(Event, Serialize, Deserialize)]
#[event(type = "order.placed", key = "order_id")]
struct OrderPlaced {
    order_id: String,
}

// guide: handlers
use axum::extract::{Json, State};
use axum::http::StatusCode;

async fn place(
    State(bus): State<Bus>,
    Json(order): Json<OrderPlaced>,
) -> Result<String, (StatusCode, String)> {
    match bus.publish(order).await {
        Ok(receipt) => Ok(receipt.id.to_string()), // it is stored: only now say yes
        Err(error) if error.retryable() => {
            Err((StatusCode::SERVICE_UNAVAILABLE, error.to_string()))
        }
        Err(error) => Err((StatusCode::BAD_REQUEST, error.to_string())),
    }
}

async fn ship(order: OrderPlaced) {
    println!("ship {}", order.order_id);
}
// guide: end

// guide: main
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bus = Bus::connect("memory:").source("/shop").await?;
    bus.consumer("shipping").on(ship).start().await?;

    let app = axum::Router::new()
        .route("/orders", axum::routing::post(place))
        .with_state(bus.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let stopped = stopped()?;
    println!("listening on {}", listener.local_addr()?);
    let server = axum::serve(listener, app).with_graceful_shutdown(stopped);

    // First the server: when it is done no request is running, so nobody publishes any more.
    // Then the bus: running handlers finish, the rest is given back.
    let mut served = Ok(());
    bus.run_until(async { served = server.await }).await?;
    println!("closed");
    Ok(served?)
}
// guide: end

/// Yields at SIGTERM, which is how a supervisor asks. The handler is in place once this returns.
#[cfg(unix)]
fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        terminate.recv().await;
    })
}

#[cfg(not(unix))]
fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        // Without ctrl-c there is nothing to wait for but the end of the process.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    })
}
