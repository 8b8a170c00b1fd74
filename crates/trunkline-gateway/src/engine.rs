//! The door for programs of this host that use the bus as their own: the engine over a WebSocket.

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, TryStreamExt, future};
use trunkline::core::error::Cause;
use trunkline_remote::{MAX_MESSAGE_BYTES, READ_BUFFER_BYTES, Socket};

use crate::door::Door;
use crate::problem::Problem;

/// Serves one connection. Whoever asks was checked already, as for every other request.
pub(crate) async fn engine(
    State(door): State<Door>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else {
        let what = "this is for programs that connect with the URL of this door; it takes WebSocket and nothing else";
        return Problem::plain(StatusCode::UPGRADE_REQUIRED, what).into_response();
    };
    let server = door.shared.server.clone();
    upgrade
        .max_message_size(MAX_MESSAGE_BYTES)
        .max_frame_size(MAX_MESSAGE_BYTES)
        .read_buffer_size(READ_BUFFER_BYTES)
        .on_upgrade(|socket| async move { server.serve(adapted(socket)).await })
}

/// Only binary messages count.
fn adapted(socket: WebSocket) -> Socket {
    let (outgoing, incoming) = socket.split();
    let outgoing = outgoing
        .with(|packet: Bytes| future::ok::<_, Cause>(Message::Binary(packet)))
        .sink_map_err(Cause::from);
    let incoming = incoming.map_err(Cause::from).try_filter_map(|message| {
        future::ok(match message {
            Message::Binary(packet) => Some(packet),
            // Pings are answered by the library.
            _ => None,
        })
    });
    Socket::new(outgoing, incoming)
}
