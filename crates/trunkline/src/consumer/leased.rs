//! The consumer as the engine keeps it, for events that whoever is free gets.

use trunkline_core::engine::{Change, ConsumerRef, ConsumerSpec, ConsumerState};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

use super::ordered::Intake;
use super::{Consumer, MAX_WINDOW};

impl Consumer {
    /// Where the events of one stream come from that whoever is free gets.
    pub(super) async fn open(
        &self,
        name: &Name,
        stream: &Name,
        filters: &[Filter],
    ) -> Result<Intake> {
        let at = ConsumerRef {
            stream: stream.clone(),
            consumer: name.clone(),
        };
        self.ensure(&at, filters).await?;
        let engine = &self.bus.inner.engine;
        let (feed, settler) = engine.consume().open(&at).await?;
        let largest = engine.limits().max_message;
        Ok(Intake::new(feed, settler, self.ack_wait, largest))
    }

    /// Makes the consumer, or adds this member's filters to the one that exists: members of
    /// different versions may know different types, and none of them may be left out. Its ack wait
    /// may grow but not shrink, because members that run already renew by the longer one.
    async fn ensure(&self, at: &ConsumerRef, filters: &[Filter]) -> Result<()> {
        /// How often others may get between our look and our change.
        const TRIES: usize = 10;
        let topology = self.bus.inner.engine.topology();
        let mut made = false;
        for _ in 0..TRIES {
            let found = topology
                .inspect()
                .await?
                .consumers
                .into_iter()
                .find(|state| state.spec.at == *at);
            let change = match found {
                None => Change::CreateConsumer(ConsumerSpec {
                    at: at.clone(),
                    filters: filters.to_vec(),
                    start: self.from,
                    ack_wait: self.ack_wait,
                    max_in_flight: MAX_WINDOW,
                }),
                Some(ConsumerState { mut spec, backlog }) => {
                    let known = spec.clone();
                    for filter in filters {
                        if !spec.filters.iter().any(|known| known.covers(filter)) {
                            spec.filters.push(filter.clone());
                        }
                    }
                    spec.ack_wait = spec.ack_wait.max(self.ack_wait);
                    if spec == known {
                        tracing::info!(
                            consumer = %at.consumer, stream = %at.stream, made, from = %self.from,
                            pending = backlog.pending, "consumer starts"
                        );
                        return Ok(());
                    }
                    Change::UpdateConsumer(spec)
                }
            };
            made |= matches!(change, Change::CreateConsumer(_));
            match topology.apply(vec![change]).await {
                // Another member made it between our look and our change; look again.
                Err(error) if error.kind() == ErrorKind::Drift => {}
                result => result?,
            }
        }
        Err(Error::new(
            ErrorKind::Drift,
            format!(
                "consumer {} keeps being changed by others; start this member again",
                at.consumer
            ),
        ))
    }
}
