//! Handlers of whatever a filter matches: what they want of the streams, and whose an event is.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

use super::{Consumer, Shared, Sharing};
use crate::event::Class;
use crate::handler::Handles;
use crate::raw::Incoming;

/// What a consumer wants of one stream.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) filters: Vec<Filter>,
    /// Whether the events of a key have to be handled one after another.
    pub(super) ordered: bool,
}

impl Consumer {
    /// Adds what the handlers without a type want to what the others do, and gives those handlers
    /// with the filters, roots included, by which their events are known.
    pub(super) fn want_raw(
        &self,
        wanted: &mut BTreeMap<Name, Wanted>,
    ) -> Result<Vec<(Filter, Arc<dyn Handles>)>> {
        let inner = &self.bus.inner;
        let mut handlers = Vec::with_capacity(self.raw.len());
        for raw in &self.raw {
            raw.handler.check(&self.bus)?;
            let below = raw.filter.below(inner.root(Class::Durable))?;
            let mut streams = self.bus.streams_matching(&raw.filter)?;
            // Without a root everything lies below it; what was given up is nobody's to handle.
            streams.retain(|stream| *stream != inner.settings.dead_letters);
            for stream in streams {
                let spec = inner.streams.iter().find(|spec| spec.name == stream);
                let wanted = wanted.entry(stream).or_default();
                wanted.ordered |= self.sharing != Sharing::Unordered;
                for subjects in spec.iter().flat_map(|spec| &spec.subjects) {
                    if below.covers(subjects) {
                        wanted.add(subjects);
                    } else if subjects.overlaps(&below) {
                        wanted.add(&below);
                    }
                }
            }
            handlers.push((below, Arc::clone(&raw.handler)));
        }
        if !handlers.is_empty() {
            for (stream, wanted) in &*wanted {
                wanted.check(stream)?;
            }
        }
        Ok(handlers)
    }
}

impl Wanted {
    /// Adds a filter unless what it matches is wanted already, and drops those that are part of it.
    fn add(&mut self, filter: &Filter) {
        if !self.filters.iter().any(|known| known.covers(filter)) {
            self.filters.retain(|known| !filter.covers(known));
            self.filters.push(filter.clone());
        }
    }

    /// Refuses filters that match the same events, neither being part of the other: no engine could
    /// tell which of them an event is delivered for.
    fn check(&self, stream: &Name) -> Result<()> {
        for (at, filter) in self.filters.iter().enumerate() {
            let others = &self.filters[at + 1..];
            if let Some(other) = others.iter().find(|other| other.overlaps(filter)) {
                return Err(Error::new(
                    ErrorKind::InvalidFilter,
                    format!(
                        "{filter} and {other} match the same events of stream {stream}; give one filter \
                         that covers both, or each a consumer of its own"
                    ),
                ));
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Whose the event is: that of its type before that of a filter.
    pub(super) fn handler_of(&self, incoming: &Incoming) -> Option<&dyn Handles> {
        if let Some(handler) = self.handlers.get(incoming.envelope.event_type()) {
            return Some(handler.as_ref());
        }
        let mut raw = self.raw.iter();
        raw.find(|(filter, _)| filter.matches(&incoming.subject))
            .map(|(_, handler)| handler.as_ref())
    }
}
