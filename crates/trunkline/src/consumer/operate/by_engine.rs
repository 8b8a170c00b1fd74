//! Consumers that the engine alone knows: whoever is free is to get the next event, and no member was there
//! yet to make records of its own.

use trunkline_core::engine::{ConsumerState, Credit, Position};
use trunkline_core::{Error, ErrorKind, Name, Result};

use super::ConsumerStatus;
use crate::bus::Bus;

impl Bus {
    /// Why a consumer that has no records cannot be changed: the engine alone knows it, or nobody.
    pub(super) async fn without_records(&self, name: &Name, names: &[String]) -> Result<Error> {
        let inspection = self.inner.engine.topology().inspect().await?;
        let mut consumers = inspection.consumers.iter();
        if consumers.any(|state| state.spec.at.consumer == *name) {
            return Ok(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "consumer {name} has no records of its own, because no member of it was started yet; it can be \
                     shown and deleted"
                ),
            ));
        }
        Ok(Error::new(
            ErrorKind::NoSuchConsumer,
            match names.is_empty() {
                true => format!("there is no consumer {name}, nor any other"),
                false => format!(
                    "there is no consumer {name}; there are {}",
                    names.join(", ")
                ),
            },
        ))
    }

    /// How a consumer stands that has no records.
    pub(super) async fn status_by_engine(&self, state: ConsumerState) -> Result<ConsumerStatus> {
        let ConsumerState { spec, backlog } = state;
        let next = Position::Seq(backlog.floor + 1);
        let one = Credit::items(1);
        let log = self.inner.engine.log();
        let page = log.read(&spec.at.stream, next, &spec.filters, one).await?;
        let pending_at_most = backlog.pending + backlog.in_flight;
        let first = page.events.first().filter(|_| pending_at_most > 0);
        Ok(ConsumerStatus {
            name: spec.at.consumer,
            stream: spec.at.stream,
            ordered: false,
            filters: spec.filters,
            paused: Vec::new(),
            members: Vec::new(),
            has_records: false,
            partitions: 0,
            unowned: 0,
            floor: backlog.floor,
            pending_at_most,
            oldest_pending: first.map(|event| event.at),
            waiting: 0,
            waiting_for: Vec::new(),
            holding: 0,
            full: 0,
            running: 0,
            replaying: 0,
            handled: 0,
            last_progress: None,
            dead: 0,
            expired_at_most: backlog.expired_at_most,
            gauge: None,
        })
    }
}
