//! Layers of one's own around publishing and handling.
//!
//! The order is the one in which they were added: the first is the outermost. Around a handler:
//!
//! ```text
//! layers of the bus → layers of the consumer → decoding and extractors → the handler
//! ```
//!
//! ```
//! use trunkline::core::engine::Boxed;
//! use trunkline::layer::{HandleLayer, HandleNext};
//! use trunkline::{Bus, Delivered, Failure};
//!
//! struct Log;
//!
//! impl HandleLayer for Log {
//!     fn handle<'a>(&'a self, delivered: Delivered, next: HandleNext<'a>) -> Boxed<'a, Result<(), Failure>> {
//!         Box::pin(async move {
//!             let id = delivered.incoming().envelope.id().clone();
//!             let result = next.run(delivered).await;
//!             println!("{id}: {}", if result.is_ok() { "ok" } else { "failed" });
//!             result
//!         })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> trunkline::Result<()> {
//! let bus = Bus::connect("memory:").handle_layer(Log).await?;
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;

use trunkline_core::engine::Boxed;

use crate::bus::Inner;
use crate::failure::Failure;
use crate::handler::{Delivered, Handles};
use crate::publish::{Published, send_all};

pub use crate::publish::Outgoing;

/// Something around publishing and emitting: it sees whole batches, may change or refuse items,
/// and learns what became of them.
pub trait PublishLayer: Send + Sync + 'static {
    /// Publishes a batch through `next`. The answer has one entry for each item, in its place.
    fn publish<'a>(
        &'a self,
        batch: Vec<Outgoing>,
        next: PublishNext<'a>,
    ) -> Boxed<'a, Vec<Published>>;
}

/// The rest of the way of a batch.
pub struct PublishNext<'a> {
    pub(crate) layers: &'a [Arc<dyn PublishLayer>],
    pub(crate) inner: &'a Inner,
}

impl<'a> PublishNext<'a> {
    /// Goes on.
    pub fn run(self, batch: Vec<Outgoing>) -> Boxed<'a, Vec<Published>> {
        match self.layers.split_first() {
            Some((layer, layers)) => layer.publish(
                batch,
                PublishNext {
                    layers,
                    inner: self.inner,
                },
            ),
            None => Box::pin(send_all(self.inner, batch)),
        }
    }
}

/// Something around handling: it may run before and after, refuse, or not go on at all.
pub trait HandleLayer: Send + Sync + 'static {
    /// Handles an event through `next`.
    fn handle<'a>(
        &'a self,
        delivered: Delivered,
        next: HandleNext<'a>,
    ) -> Boxed<'a, Result<(), Failure>>;
}

/// The rest of the way of an event to its handler.
pub struct HandleNext<'a> {
    pub(crate) layers: &'a [Arc<dyn HandleLayer>],
    pub(crate) handler: &'a dyn Handles,
}

impl<'a> HandleNext<'a> {
    /// Goes on.
    pub fn run(self, delivered: Delivered) -> Boxed<'a, Result<(), Failure>> {
        match self.layers.split_first() {
            Some((layer, layers)) => layer.handle(
                delivered,
                HandleNext {
                    layers,
                    handler: self.handler,
                },
            ),
            None => self.handler.call(delivered),
        }
    }
}
