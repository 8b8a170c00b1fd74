//! Handlers that say themselves which consumer they belong to.

use std::collections::BTreeMap;

use trunkline_core::Result;

use super::{Consumer, ConsumerHandle};
use crate::bus::Bus;

/// A handler with its consumer; `#[handler]` implements it beside the function.
pub trait Declare {
    /// The consumer's name.
    const CONSUMER: &'static str;

    /// Adds the handler to its consumer.
    fn add(consumer: Consumer) -> Consumer;
}

/// [`Declare`] as a value; [`handlers!`](crate::handlers) makes them.
#[derive(Clone, Copy, Debug)]
pub struct Declared {
    consumer: &'static str,
    add: fn(Consumer) -> Consumer,
}

impl Declared {
    /// The handler `D`.
    pub fn of<D: Declare>() -> Self {
        Self {
            consumer: D::CONSUMER,
            add: D::add,
        }
    }
}

/// The handlers of that name that `#[handler]` was put on, for [`Bus::start`](crate::Bus::start).
#[macro_export]
macro_rules! handlers {
    ($($handler:path),* $(,)?) => {
        [$($crate::consumer::Declared::of::<$handler>()),*]
    };
}

impl Bus {
    /// Starts the consumers that these handlers belong to, with the defaults of
    /// [`consumer`](Bus::consumer): handlers of one name share a consumer.
    ///
    /// ```
    /// use serde::{Deserialize, Serialize};
    /// use trunkline::{Bus, Event, handler, handlers};
    ///
    /// #[derive(Event, Serialize, Deserialize)]
    /// #[event(type = "order.placed")]
    /// struct OrderPlaced {}
    ///
    /// #[handler(consumer = "billing")]
    /// async fn bill(order: OrderPlaced) {}
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> trunkline::Result<()> {
    /// let bus = Bus::connect("memory:").await?;
    /// bus.start(handlers![bill]).await?;
    /// # bus.close().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Consumer::start`], at the first consumer that cannot start; those before it run.
    pub async fn start(
        &self,
        handlers: impl IntoIterator<Item = Declared>,
    ) -> Result<Vec<ConsumerHandle>> {
        let mut consumers: BTreeMap<&str, Consumer> = BTreeMap::new();
        for Declared { consumer, add } in handlers {
            let begun = consumers
                .remove(consumer)
                .unwrap_or_else(|| self.consumer(consumer));
            consumers.insert(consumer, add(begun));
        }
        let mut handles = Vec::with_capacity(consumers.len());
        for consumer in consumers.into_values() {
            handles.push(consumer.start().await?);
        }
        Ok(handles)
    }
}
