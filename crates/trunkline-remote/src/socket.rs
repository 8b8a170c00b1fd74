//! A connection that carries messages whole and in order, until it breaks.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt, TryStreamExt, future};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use trunkline_core::error::Cause;

use crate::session::PACKET_BYTES;

/// Bytes of one message at most: a packet, with room to spare.
pub const MAX_MESSAGE_BYTES: usize = 4 * PACKET_BYTES;

pub(crate) type Outgoing = Pin<Box<dyn Sink<Bytes, Error = Cause> + Send>>;
pub(crate) type Incoming = Pin<Box<dyn Stream<Item = Result<Bytes, Cause>> + Send>>;

/// A connection that carries messages whole and in order, until it breaks. Which protocol does so is
/// no concern of those who use it.
pub struct Socket {
    pub(crate) outgoing: Outgoing,
    pub(crate) incoming: Incoming,
}

impl Socket {
    /// A connection from its two ends.
    pub fn new(
        outgoing: impl Sink<Bytes, Error = Cause> + Send + 'static,
        incoming: impl Stream<Item = Result<Bytes, Cause>> + Send + 'static,
    ) -> Self {
        Self {
            outgoing: Box::pin(outgoing),
            incoming: Box::pin(incoming),
        }
    }

    /// A WebSocket whose handshake is done. Only binary messages count.
    pub fn from_websocket<S>(socket: WebSocketStream<S>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (outgoing, incoming) = socket.split();
        let outgoing = outgoing
            .with(|packet| future::ok::<_, Cause>(Message::Binary(packet)))
            .sink_map_err(Cause::from);
        let incoming = incoming.map_err(Cause::from).try_filter_map(|message| {
            future::ok(match message {
                Message::Binary(packet) => Some(packet),
                // Pings are answered by the library; nothing else is sent by us.
                _ => None,
            })
        });
        Self::new(outgoing, incoming)
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").finish_non_exhaustive()
    }
}

/// Bytes that a WebSocket reads at once. It clears as many before every read, so that more would cost
/// more than it saves.
pub const READ_BUFFER_BYTES: usize = 16 << 10;

/// How a WebSocket for an engine is to be configured on either end.
pub fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
}
