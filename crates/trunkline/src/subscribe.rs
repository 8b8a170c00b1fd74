//! Subscribing to a type: everybody who does gets every event from now on.

use trunkline_core::Result;
use trunkline_core::engine::Position;

use crate::bus::Bus;
use crate::event::{Broadcast, Event, Stored};
use crate::receive::{Reader, Received, Subscription};

impl Bus {
    /// Receives every event of a type from now on, in a loop. Lag is reported as a value.
    ///
    /// A durable type is followed through its stream, so nothing is lost while the subscriber is
    /// slow; of an ephemeral one the oldest beyond the listener's capacity are.
    ///
    /// # Errors
    /// Those of [`publisher`](Bus::publisher), and the engine's own.
    pub async fn subscribe<E: Event>(&self) -> Result<Subscription<Received<E>>>
    where
        E::Delivery: Broadcast,
    {
        self.subscribe_from::<E>(Position::New).await
    }

    /// Receives stored events of a type from a position on, then follows: replay. It disturbs no
    /// durable consumer.
    ///
    /// # Errors
    /// Those of [`publisher`](Bus::publisher), and the engine's own.
    pub async fn replay<E: Event>(&self, from: Position) -> Result<Subscription<Received<E>>>
    where
        E::Delivery: Stored + Broadcast,
    {
        self.subscribe_from::<E>(from).await
    }

    async fn subscribe_from<E: Event>(&self, from: Position) -> Result<Subscription<Received<E>>> {
        let destination = self.destination::<E>()?;
        let info = destination.info();
        let filters = [info.filter.below(self.inner.root(info.class))?];
        let decoding = &self.inner.settings.decoding;
        let reader = match destination.stream() {
            Some(stream) => {
                let follow = self
                    .inner
                    .engine
                    .log()
                    .follow(stream, from, &filters)
                    .await?;
                Reader::stored(stream.clone(), follow, decoding)
            }
            None => {
                let capacity = self.inner.settings.listener_capacity;
                let live = self.inner.engine.live();
                Reader::live(live.listen(&filters, None, capacity).await?, decoding)
            }
        };
        Ok(Subscription::typed(self.clone(), vec![reader]))
    }
}
