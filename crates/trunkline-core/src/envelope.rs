//! The event as CloudEvents 1.0 has it: attributes that everybody reads, data that only handlers do.

mod data;
mod id;

use std::collections::BTreeMap;

use smol_str::SmolStr;

use crate::error::{Error, ErrorKind, Result};
use crate::time::Timestamp;

pub use data::{Data, JsonText, SharedValue, ValueType};
pub use id::EventId;

/// One event with its attributes. The data stays as it came until a handler asks for it.
///
/// Writing is strict and reading liberal: unknown attributes are kept and written again.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    id: EventId,
    source: SmolStr,
    event_type: SmolStr,
    time: Option<Timestamp>,
    version: Option<u32>,
    key: Option<SmolStr>,
    correlation: Correlation,
    data: Data,
    // Boxed, because most events have none of these and every event is moved and stored.
    rare: Option<Box<Rare>>,
}

/// A root event correlates with itself; saying so costs less than a second copy of the id.
#[derive(Clone, Debug, PartialEq)]
enum Correlation {
    Absent,
    Own,
    Other(EventId),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Rare {
    subject: Option<SmolStr>,
    content_type: Option<SmolStr>,
    schema: Option<SmolStr>,
    causation: Option<EventId>,
    traceparent: Option<SmolStr>,
    tracestate: Option<SmolStr>,
    extensions: BTreeMap<SmolStr, Attribute>,
}

impl Envelope {
    /// The most attributes that an event may have besides those that Trunkline has a meaning for.
    pub const MAX_EXTENSIONS: usize = 80;

    /// An event without optional attributes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] for an empty source or type, which CloudEvents forbids.
    pub fn new(
        id: EventId,
        source: impl Into<SmolStr>,
        event_type: impl Into<SmolStr>,
        data: Data,
    ) -> Result<Self> {
        let (source, event_type) = (source.into(), event_type.into());
        for (name, value) in [("source", &source), ("type", &event_type)] {
            if value.is_empty() {
                return Err(Error::new(
                    ErrorKind::InvalidEvent,
                    format!("attribute `{name}` is empty"),
                ));
            }
        }
        Ok(Self {
            id,
            source,
            event_type,
            time: None,
            version: None,
            key: None,
            correlation: Correlation::Absent,
            data,
            rare: None,
        })
    }

    /// A root event as programs publish it, in one go: this is the hot path. That source and type
    /// are not empty is the caller's to know.
    #[inline]
    pub fn root(
        id: EventId,
        source: SmolStr,
        event_type: SmolStr,
        time: Timestamp,
        version: u32,
        key: Option<SmolStr>,
        data: Data,
    ) -> Self {
        debug_assert!(
            !source.is_empty() && !event_type.is_empty(),
            "CloudEvents forbids it"
        );
        Self {
            id,
            source,
            event_type,
            time: Some(time),
            version: Some(version),
            key,
            correlation: Correlation::Own,
            data,
            rare: None,
        }
    }

    /// `id`: unique within its source.
    pub fn id(&self) -> &EventId {
        &self.id
    }

    /// `source`: who made it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// `type`: what kind of event it is.
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// `time`: when it happened.
    pub fn time(&self) -> Option<Timestamp> {
        self.time
    }

    /// `dataversion`: the version of the data's shape.
    pub fn version(&self) -> Option<u32> {
        self.version
    }

    /// `partitionkey`: events of one key keep their order.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The key whose order the event keeps. An empty key is kept as an attribute but orders nothing.
    pub fn ordering_key(&self) -> Option<SmolStr> {
        self.key.clone().filter(|key| !key.is_empty())
    }

    /// `correlationid`: the id of the event that began it all.
    pub fn correlation(&self) -> Option<&EventId> {
        match &self.correlation {
            Correlation::Absent => None,
            Correlation::Own => Some(&self.id),
            Correlation::Other(id) => Some(id),
        }
    }

    /// `causationid`: the id of the event whose handling made this one.
    pub fn causation(&self) -> Option<&EventId> {
        self.rare.as_ref()?.causation.as_ref()
    }

    /// `subject`: belongs to the user; never the subject that the event travels on.
    pub fn subject(&self) -> Option<&str> {
        self.rare.as_ref()?.subject.as_deref()
    }

    /// `datacontenttype`: the media type of the data; JSON when absent.
    pub fn content_type(&self) -> Option<&str> {
        self.rare.as_ref()?.content_type.as_deref()
    }

    /// `dataschema`: where the data's schema is to be found.
    pub fn schema(&self) -> Option<&str> {
        self.rare.as_ref()?.schema.as_deref()
    }

    /// `traceparent` of W3C Trace Context.
    pub fn traceparent(&self) -> Option<&str> {
        self.rare.as_ref()?.traceparent.as_deref()
    }

    /// `tracestate` of W3C Trace Context.
    pub fn tracestate(&self) -> Option<&str> {
        self.rare.as_ref()?.tracestate.as_deref()
    }

    /// Attributes that Trunkline has no meaning for, by name.
    pub fn extensions(&self) -> impl Iterator<Item = (&str, &Attribute)> {
        self.rare
            .iter()
            .flat_map(|rare| &rare.extensions)
            .map(|(name, value)| (name.as_str(), value))
    }

    /// The data.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// About how many bytes the event takes in memory. A shared value counts with its own size.
    pub fn rough_bytes(&self) -> usize {
        let data = match &self.data {
            Data::None => 0,
            Data::Json(json) => json.as_bytes().len(),
            Data::Text(text) => text.len(),
            Data::Binary(bytes) => bytes.len(),
            Data::Value(value) => value.shallow_bytes(),
        };
        let rare = self.rare.as_ref().map_or(0, |rare| {
            let texts = [
                &rare.subject,
                &rare.content_type,
                &rare.schema,
                &rare.traceparent,
                &rare.tracestate,
            ];
            let extensions = rare
                .extensions
                .iter()
                .map(|(name, value)| name.len() + value.rough_bytes());
            size_of::<Rare>()
                + texts.into_iter().flatten().map(SmolStr::len).sum::<usize>()
                + extensions.sum::<usize>()
        });
        let texts =
            self.source.len() + self.event_type.len() + self.key.as_ref().map_or(0, SmolStr::len);
        size_of::<Self>() + data + rare + texts
    }

    /// Sets `id`. A root event still correlates with itself.
    #[must_use]
    pub fn with_id(mut self, id: EventId) -> Self {
        self.id = id;
        self
    }

    /// Sets `time`.
    #[must_use]
    pub fn with_time(mut self, time: Timestamp) -> Self {
        self.set_time(time);
        self
    }

    /// Sets `dataversion`.
    #[must_use]
    pub fn with_version(mut self, version: u32) -> Self {
        self.set_version(version);
        self
    }

    /// Sets `partitionkey`.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<SmolStr>) -> Self {
        self.set_key(key.into());
        self
    }

    /// Sets `correlationid`; the event's own id marks a root event.
    #[must_use]
    pub fn with_correlation(mut self, id: EventId) -> Self {
        self.set_correlation(id);
        self
    }

    /// Makes this a root event: it correlates with itself.
    #[must_use]
    pub fn with_own_correlation(mut self) -> Self {
        self.correlation = Correlation::Own;
        self.forget_unread("correlationid");
        self
    }

    /// Sets `causationid`.
    #[must_use]
    pub fn with_causation(mut self, id: EventId) -> Self {
        self.set_causation(id);
        self
    }

    /// Sets `subject`; an empty one is none, because CloudEvents forbids it.
    #[must_use]
    pub fn with_subject(mut self, subject: impl Into<SmolStr>) -> Self {
        self.set_subject(subject.into());
        self
    }

    /// Sets `datacontenttype`; an empty one is none, because CloudEvents forbids it.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<SmolStr>) -> Self {
        self.set_content_type(content_type.into());
        self
    }

    /// Sets `dataschema`; an empty one is none, because CloudEvents forbids it.
    #[must_use]
    pub fn with_schema(mut self, schema: impl Into<SmolStr>) -> Self {
        self.set_schema(schema.into());
        self
    }

    /// Sets `traceparent`.
    #[must_use]
    pub fn with_traceparent(mut self, traceparent: impl Into<SmolStr>) -> Self {
        self.set_traceparent(traceparent.into());
        self
    }

    /// Sets `tracestate`.
    #[must_use]
    pub fn with_tracestate(mut self, tracestate: impl Into<SmolStr>) -> Self {
        self.set_tracestate(tracestate.into());
        self
    }

    /// Sets an attribute of one's own.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] for a name that is not 1 to 20 characters of `a-z 0-9`, as
    /// CloudEvents asks, or that already has a meaning, and when there would be more than
    /// [`Envelope::MAX_EXTENSIONS`].
    pub fn with_extension(mut self, name: &str, value: Attribute) -> Result<Self> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let refuse = |fault| {
            Err(Error::new(
                ErrorKind::InvalidEvent,
                format!("attribute name {name:?} {fault}"),
            ))
        };
        if name.is_empty() || name.len() > 20 || !name.bytes().all(legal) {
            return refuse("is not 1 to 20 characters of a-z 0-9");
        }
        if RESERVED.contains(&name) {
            return refuse("has a meaning of its own; use its setter");
        }
        let known = |rare: &Rare| rare.extensions.contains_key(name);
        if self.extensions().count() >= Self::MAX_EXTENSIONS
            && !self.rare.as_deref().is_some_and(known)
        {
            return refuse("would be one more than the limit of 80");
        }
        self.insert_extension(name.into(), value);
        Ok(self)
    }

    /// Puts other data in place.
    #[must_use]
    pub fn with_data(mut self, data: Data) -> Self {
        self.data = data;
        self
    }

    // In place, for whoever reads an event attribute by attribute: each of the moves that the
    // public setters make is of the whole event.

    pub(crate) fn set_time(&mut self, time: Timestamp) {
        self.time = Some(time);
        self.forget_unread("time");
    }

    pub(crate) fn set_version(&mut self, version: u32) {
        self.version = Some(version);
        self.forget_unread("dataversion");
    }

    pub(crate) fn set_key(&mut self, key: SmolStr) {
        self.key = Some(key);
    }

    pub(crate) fn set_correlation(&mut self, id: EventId) {
        self.correlation = if id == self.id {
            Correlation::Own
        } else {
            Correlation::Other(id)
        };
        self.forget_unread("correlationid");
    }

    pub(crate) fn set_causation(&mut self, id: EventId) {
        self.forget_unread("causationid");
        self.rare_mut().causation = Some(id);
    }

    pub(crate) fn set_subject(&mut self, subject: SmolStr) {
        self.rare_mut().subject = Some(subject).filter(|subject| !subject.is_empty());
        self.forget_rare();
    }

    pub(crate) fn set_content_type(&mut self, content_type: SmolStr) {
        self.rare_mut().content_type =
            Some(content_type).filter(|content_type| !content_type.is_empty());
        self.forget_rare();
    }

    pub(crate) fn set_schema(&mut self, schema: SmolStr) {
        self.rare_mut().schema = Some(schema).filter(|schema| !schema.is_empty());
        self.forget_rare();
    }

    pub(crate) fn set_traceparent(&mut self, traceparent: SmolStr) {
        self.rare_mut().traceparent = Some(traceparent);
    }

    pub(crate) fn set_tracestate(&mut self, tracestate: SmolStr) {
        self.rare_mut().tracestate = Some(tracestate);
    }

    pub(crate) fn insert_extension(&mut self, name: SmolStr, value: Attribute) {
        self.rare_mut().extensions.insert(name, value);
    }

    /// Drops what was read under this name but not understood, so that it is not written twice.
    fn forget_unread(&mut self, name: &str) {
        if let Some(rare) = &mut self.rare
            && rare.extensions.remove(name).is_some()
        {
            self.forget_rare();
        }
    }

    /// Equal events are equal values: a box with nothing in it is no box.
    fn forget_rare(&mut self) {
        if self.rare.as_deref() == Some(&Rare::default()) {
            self.rare = None;
        }
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

/// Attribute names that have a setter.
pub(crate) const RESERVED: &[&str] = &[
    "specversion",
    "id",
    "source",
    "type",
    "time",
    "subject",
    "datacontenttype",
    "dataschema",
    "dataversion",
    "partitionkey",
    "correlationid",
    "causationid",
    "traceparent",
    "tracestate",
    "data",
    "data_base64",
];

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// true or false
    Boolean(bool),
    /// A whole number of 32 bits.
    Integer(i32),
    /// Text, also for URIs, times and Base64.
    Text(SmolStr),
}

impl Attribute {
    fn rough_bytes(&self) -> usize {
        match self {
            Attribute::Text(text) => size_of::<Self>() + text.len(),
            _ => size_of::<Self>(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_event_correlates_with_itself() {
        let id = EventId::new("e1").unwrap();
        let event = Envelope::new(id.clone(), "/s", "t", Data::None).unwrap();
        assert_eq!(event.correlation(), None);
        assert_eq!(
            event.clone().with_correlation(id.clone()),
            event.clone().with_own_correlation()
        );
        assert_eq!(event.with_own_correlation().correlation(), Some(&id));
    }

    #[test]
    fn what_is_set_replaces_what_was_read_but_not_understood() {
        let bare = Envelope::new(EventId::new("e1").unwrap(), "/s", "t", Data::None).unwrap();
        let mut read = bare.clone();
        read.insert_extension("dataversion".into(), Attribute::Text("1.2".into()));
        assert_eq!(read.with_version(2), bare.clone().with_version(2));
        assert_eq!(bare.clone().with_subject("s").with_subject(""), bare);
    }

    #[test]
    fn extensions_are_limited_so_that_every_event_can_be_read_again() {
        let bare = Envelope::new(EventId::new("e1").unwrap(), "/s", "t", Data::None).unwrap();
        let add = |event: Envelope, index: usize| {
            event.with_extension(&format!("x{index}"), Attribute::Boolean(true))
        };
        let full = (0..Envelope::MAX_EXTENSIONS).try_fold(bare, add).unwrap();
        assert!(
            add(full.clone(), 0).is_ok(),
            "one that is there may be set anew"
        );
        assert!(add(full, Envelope::MAX_EXTENSIONS).is_err());
    }
}
