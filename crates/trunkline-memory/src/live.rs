//! Live messages: the listeners of core, behind a check of what is sent.

use std::sync::Arc;

use trunkline_core::engine::{Admitted, Batch, Boxed, Engine, Listener, Live, Message, Route};
use trunkline_core::local::Resolved;
use trunkline_core::{Filter, Name, Result, Subject};

use crate::MemoryEngine;

impl MemoryEngine {
    fn admit_live(&self, mut message: Message) -> Result<Message> {
        let limit = self.limits().max_message;
        message.body = self.admit(&message.headers, message.body, limit)?;
        Ok(message)
    }
}

impl Live for MemoryEngine {
    fn send(&self, batch: Batch<Message>) -> Admitted<'_, ()> {
        let send = || {
            self.check_open()?;
            let admitted = batch.into_iter().map(|message| self.admit_live(message));
            let admitted = admitted.collect::<Result<Batch<Message>>>()?;
            admitted
                .into_iter()
                .for_each(|message| self.bus.listeners.send(message));
            Ok(())
        };
        Admitted::done(send())
    }

    fn route(&self, subject: &Subject) -> Arc<dyn Route> {
        Arc::new(MemoryRoute {
            engine: self.clone(),
            resolved: Resolved::new(&self.bus.listeners, subject.clone()),
        })
    }

    fn listen(
        &self,
        filters: &[Filter],
        share: Option<&Name>,
        capacity: usize,
    ) -> Boxed<'_, Result<Box<dyn Listener>>> {
        let listening = self.check_open().and_then(|()| {
            let link = self.link.subscribe();
            self.bus.listeners.listen(filters, share, capacity, link)
        });
        Box::pin(std::future::ready(listening))
    }
}

struct MemoryRoute {
    engine: MemoryEngine,
    resolved: Resolved,
}

impl Route for MemoryRoute {
    fn send(&self, message: Message) -> Admitted<'_, ()> {
        let send = || {
            self.engine.check_open()?;
            self.resolved.send(self.engine.admit_live(message)?);
            Ok(())
        };
        Admitted::done(send())
    }
}
