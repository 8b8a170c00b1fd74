//! Serving a door on a port of its own.

use std::future::Future;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use trunkline::{Error, ErrorKind, Result};

use crate::door::Door;

/// Serves the door until `stop` yields or the bus closes. Then it accepts no more, ends streams
/// that follow, and lets other requests finish. The bus is left open; close it afterwards.
///
/// # Errors
/// [`ErrorKind::DrainIncomplete`] when requests were still under way after
/// [`drain_deadline_ms`](crate::DoorConfig::drain_deadline_ms); [`ErrorKind::Internal`] when the
/// listener has no address or fails.
pub async fn serve(
    listener: TcpListener,
    door: Door,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let failed = |error| Error::new(ErrorKind::Internal, "the listener failed").caused_by(error);
    let router = door.router_at(listener.local_addr().map_err(failed)?);
    let deadline = Duration::from_millis(door.shared.config.drain_deadline_ms);
    // Events are small and each should leave at once.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection cannot be told to send at once");
        }
    });
    let stopping = door.clone();
    let stopped = async move {
        tokio::select! {
            () = stop => {}
            () = stopping.closed() => {}
        }
        stopping.close();
    };
    let serving = async {
        let served = axum::serve(listener, router)
            .with_graceful_shutdown(stopped)
            .await;
        // Connections of other programs are no requests any more, and have answers to come.
        door.shared.server.drained().await;
        served
    };
    let overdue = async {
        door.closed().await;
        tokio::time::sleep(deadline).await;
    };
    tokio::select! {
        served = serving => served.map_err(failed),
        () = overdue => Err(Error::new(
            ErrorKind::DrainIncomplete,
            format!("requests were still under way {deadline:?} after the door closed; they were cut off"),
        )),
    }
}
