//! How an explanation is written: names that stay, lengths of time in milliseconds.
//!
//! By hand, because what a derive with functions for single members adds would be listed to every
//! user whose event type lacks `Serialize`.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use trunkline_core::engine::{Durability, Reach};
use trunkline_core::plan::retention_text;

use super::{ConsumerTerms, Explanation, StreamTerms, TypeTerms};

impl Serialize for Explanation {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // A promise that this version has no name for is written as the weakest.
        let durability = match self.durability {
            Durability::Crash => "crash",
            Durability::Power => "power",
            _ => "process",
        };
        let reach = match self.reach {
            Reach::Host => "host",
            Reach::Network => "network",
            _ => "process",
        };
        let facts = self.facts.iter();
        let facts: BTreeMap<&str, &str> = facts
            .map(|fact| (fact.name.as_str(), fact.value.as_str()))
            .collect();
        let mut out = to.serialize_struct("Explanation", 13)?;
        out.serialize_field("engine", &self.engine)?;
        out.serialize_field("facts", &facts)?;
        out.serialize_field("durability", durability)?;
        out.serialize_field("reach", reach)?;
        out.serialize_field("max_message_bytes", &self.max_message_bytes)?;
        out.serialize_field("max_batch", &self.max_batch)?;
        out.serialize_field("source", &self.source)?;
        out.serialize_field("roots", &self.roots)?;
        out.serialize_field("catalogue", &self.catalogue)?;
        out.serialize_field("streams", &self.streams)?;
        out.serialize_field("consumers", &self.consumers)?;
        out.serialize_field("dead_letters", self.dead_letters.as_str())?;
        out.serialize_field("types", &self.types)?;
        out.end()
    }
}

impl Serialize for StreamTerms {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("StreamTerms", 16)?;
        out.serialize_field("name", self.name.as_str())?;
        out.serialize_field("subjects", &texts(&self.subjects))?;
        out.serialize_field("retention", retention_text(self.retention))?;
        out.serialize_field("max_events", &self.max_events)?;
        out.serialize_field("max_bytes", &self.max_bytes)?;
        out.serialize_field("max_age_ms", &self.max_age.map(millis))?;
        out.serialize_field("max_message_bytes", &self.max_message_bytes)?;
        out.serialize_field("duplicate_window_ms", &millis(self.duplicate_window))?;
        out.serialize_field("replicas", &self.replicas)?;
        out.serialize_field("replicas_declared", &self.replicas_declared)?;
        out.serialize_field("ours", &self.ours)?;
        out.serialize_field("events", &self.events)?;
        out.serialize_field("bytes", &self.bytes)?;
        out.serialize_field("first", &self.first)?;
        out.serialize_field("tail", &self.tail)?;
        out.serialize_field("first_at", &self.first_at.map(|at| at.to_string()))?;
        out.end()
    }
}

impl Serialize for ConsumerTerms {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("ConsumerTerms", 10)?;
        out.serialize_field("name", self.name.as_str())?;
        out.serialize_field("stream", self.stream.as_str())?;
        out.serialize_field("filters", &texts(&self.filters))?;
        out.serialize_field("start", &self.start)?;
        out.serialize_field("ack_wait_ms", &millis(self.ack_wait))?;
        out.serialize_field("max_in_flight", &self.max_in_flight)?;
        out.serialize_field("pending", &self.pending)?;
        out.serialize_field("in_flight", &self.in_flight)?;
        out.serialize_field("floor", &self.floor)?;
        out.serialize_field("expired_at_most", &self.expired_at_most)?;
        out.end()
    }
}

impl Serialize for TypeTerms {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut out = to.serialize_struct("TypeTerms", 6)?;
        out.serialize_field("type", &self.event_type)?;
        out.serialize_field("class", &self.class.to_string())?;
        out.serialize_field("subject", self.subject.as_str())?;
        out.serialize_field(
            "stream",
            &self.stream.as_ref().map(trunkline_core::Name::as_str),
        )?;
        out.serialize_field("refused", &self.refused)?;
        out.serialize_field("consumers", &texts(&self.consumers))?;
        out.end()
    }
}

fn texts(values: &[impl Display]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
