//! Live messages: the listeners of core, behind a check of what is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use trunkline_core::engine::{Admitted, Batch, Boxed, Engine, Listener, Live, Message, Route};
use trunkline_core::local::Resolved;
use trunkline_core::{Filter, Name, Result, Subject};

use super::{LogEngine, closed, encoded};

fn admitted(message: Message, max_message: usize) -> Result<Message> {
    let body = encoded(&message.headers, &message.body, max_message)?;
    Ok(Message { body, ..message })
}

impl Live for LogEngine {
    fn send(&self, batch: Batch<Message>) -> Admitted<'_, ()> {
        let send = || {
            self.check_open()?;
            let limit = self.limits().max_message;
            let batch = batch.into_iter().map(|message| admitted(message, limit));
            let batch = batch.collect::<Result<Batch<Message>>>()?;
            batch
                .into_iter()
                .for_each(|message| self.bus.listeners.send(message));
            Ok(())
        };
        Admitted::done(send())
    }

    fn route(&self, subject: &Subject) -> Arc<dyn Route> {
        Arc::new(LogRoute {
            closed: Arc::clone(&self.closed),
            max_message: self.limits().max_message,
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

struct LogRoute {
    closed: Arc<AtomicBool>,
    max_message: usize,
    resolved: Resolved,
}

impl Route for LogRoute {
    fn send(&self, message: Message) -> Admitted<'_, ()> {
        let send = || {
            if self.closed.load(Ordering::Acquire) {
                return Err(closed());
            }
            self.resolved.send(admitted(message, self.max_message)?);
            Ok(())
        };
        Admitted::done(send())
    }
}
