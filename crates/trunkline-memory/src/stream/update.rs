//! Other subjects and limits for a stream that has events.

use trunkline_core::engine::{Retention, StreamSpec};
use trunkline_core::{Error, ErrorKind, Filter, Timestamp};

use super::Stream;
use crate::options::MemoryOptions;

impl Stream {
    /// Takes over another specification. What is above its limits leaves as its retention says.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when it would become a work queue or cease to be one, because
    /// what its consumers did until now was done under other rules.
    pub(crate) fn update(
        &mut self,
        spec: StreamSpec,
        options: &MemoryOptions,
        now: Timestamp,
    ) -> Result<(), Error> {
        let is_queue = |spec: &StreamSpec| spec.retention == Retention::WorkQueue;
        if is_queue(&self.spec) != is_queue(&spec) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "stream {} cannot change its retention from {:?} to {:?}; make a new stream",
                    spec.name, self.spec.retention, spec.retention
                ),
            ));
        }
        if self.entries.is_empty() {
            self.stored.clear();
        }
        let is_new = |filter: &&Filter| !self.stored.contains(filter);
        let new: Vec<Filter> = spec.subjects.iter().filter(is_new).cloned().collect();
        self.stored.extend(new);
        self.generation += 1;
        let Self {
            consumers, stored, ..
        } = self;
        for consumer in consumers.values_mut() {
            consumer.select_anew(stored);
        }
        self.max_events = spec.max_events.unwrap_or(u64::MAX).min(options.max_events);
        self.max_bytes = spec.max_bytes.unwrap_or(u64::MAX).min(options.max_bytes);
        self.spec = StreamSpec {
            replicas: 1,
            ..spec
        };
        self.expire(now);
        if self.spec.retention == Retention::DiscardOld {
            self.discard_old();
        }
        Ok(())
    }
}
