//! How a stream stands.

use trunkline_core::Filter;
use trunkline_core::engine::{StreamState, SubjectCount};

use super::Stream;

impl Stream {
    pub(crate) fn state(&self) -> StreamState {
        StreamState {
            spec: self.spec.clone(),
            events: self.events,
            bytes: self.bytes,
            first: self.first(),
            tail: self.tail,
            first_at: self.entries.first_key_value().map(|(_, entry)| entry.at),
        }
    }

    pub(crate) fn subject_counts(&self, filter: &Filter, max: usize) -> Vec<SubjectCount> {
        let matching = self
            .subjects
            .iter()
            .filter(|(subject, _)| filter.matches(subject));
        let mut counts: Vec<_> = matching
            .map(|(subject, index)| SubjectCount {
                subject: subject.clone(),
                events: index.seqs.len() as u64,
            })
            .collect();
        counts.sort_unstable_by(|a, b| a.subject.cmp(&b.subject));
        counts.truncate(max);
        counts
    }
}
