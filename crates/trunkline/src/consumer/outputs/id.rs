//! The id of an output: the same for the same content, whoever makes it and however often.
//! `WIRE.md` states it, so that other languages can make the same.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use trunkline_core::{Attribute, EventId, Result};
use uuid::Builder;

use super::canonical::canonical;
use super::{Said, Source};
use crate::publish::Outgoing;

/// Where a field is not there, which an empty one is.
const ABSENT: u32 = u32::MAX;

/// What makes an output itself, apart from how many equal ones came before it.
pub(super) struct Content {
    key: Option<String>,
    event_type: String,
    data: Vec<u8>,
    more: Option<Vec<u8>>,
}

impl Content {
    /// # Errors
    /// [`ErrorKind::Encode`](trunkline_core::ErrorKind::Encode) for data that cannot be written as
    /// JSON.
    pub(super) fn of(outgoing: &Outgoing, said: Said, source: &Source<'_>) -> Result<Self> {
        let envelope = &outgoing.envelope;
        Ok(Self {
            key: envelope.key().map(str::to_owned),
            event_type: envelope.event_type().to_owned(),
            data: canonical(&envelope.data().to_bytes()?)?,
            more: more(outgoing, said, source)?,
        })
    }

    /// Bytes that a run holds for it.
    pub(super) fn bytes(&self) -> usize {
        self.data.len() + self.more.as_ref().map_or(0, Vec::len)
    }

    /// The id of the output that follows that many equal ones in its run.
    pub(super) fn id(&self, source: &Source<'_>, ordinal: u32) -> EventId {
        let mut hash = Sha256::new();
        let mut field = |bytes: Option<&[u8]>| {
            let length = bytes.map_or(ABSENT, |bytes| {
                u32::try_from(bytes.len()).unwrap_or(ABSENT - 1)
            });
            hash.update(length.to_be_bytes());
            hash.update(bytes.unwrap_or_default());
        };
        field(Some(source.consumer.as_str().as_bytes()));
        field(Some(source.stream.as_str().as_bytes()));
        field(Some(source.seq.to_string().as_bytes()));
        field(Some(self.event_type.as_bytes()));
        field(self.key.as_deref().map(str::as_bytes));
        field(Some(ordinal.to_string().as_bytes()));
        field(Some(&self.data));
        if let Some(more) = &self.more {
            field(Some(more));
        }
        let digest: [u8; 32] = hash.finalize().into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        EventId::from(Builder::from_custom_bytes(bytes).into_uuid())
    }
}

/// What the handler said of the event besides its data; most say nothing.
fn more(outgoing: &Outgoing, said: Said, source: &Source<'_>) -> Result<Option<Vec<u8>>> {
    let envelope = &outgoing.envelope;
    let mut attributes: Map<String, Value> = envelope
        .extensions()
        .map(|(name, value)| {
            let value = match value {
                Attribute::Boolean(value) => json!(value),
                Attribute::Integer(value) => json!(value),
                Attribute::Text(value) => json!(value.as_str()),
            };
            (name.to_owned(), value)
        })
        .collect();
    let mut set = |name: &str, value: Value| attributes.insert(name.to_owned(), value);
    if let Some(version) = envelope.version().filter(|version| *version != 1) {
        set("dataversion", json!(version));
    }
    if let Some(subject) = envelope.subject() {
        set("subject", json!(subject));
    }
    if let Some(time) = envelope.time().filter(|_| said.time) {
        set("time", json!(time.to_string()));
    }
    let others = [
        ("correlationid", envelope.correlation(), source.correlation),
        ("causationid", envelope.causation(), source.id),
    ];
    for (name, found, expected) in others {
        if let Some(id) = found.filter(|id| *id != expected) {
            set(name, json!(id.to_string()));
        }
    }
    let headers: Vec<_> = outgoing
        .headers
        .iter()
        .map(|(name, value)| json!([name, value]))
        .collect();
    let mut more = Map::new();
    if !attributes.is_empty() {
        more.insert("attributes".to_owned(), Value::Object(attributes));
    }
    if !headers.is_empty() {
        more.insert("headers".to_owned(), Value::Array(headers));
    }
    if more.is_empty() {
        return Ok(None);
    }
    canonical(Value::Object(more).to_string().as_bytes()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_core::Name;

    #[derive(serde::Deserialize)]
    struct Row {
        name: String,
        consumer: String,
        stream: String,
        seq: u64,
        #[serde(rename = "type")]
        event_type: String,
        key: Option<String>,
        ordinal: u32,
        data: String,
        more: Option<String>,
        id: String,
    }

    #[test]
    fn ids_are_those_of_the_wire_format() {
        let rows = include_str!("../../../../trunkline-core/testdata/output-ids.json");
        let rows: Vec<Row> = serde_json::from_str(rows).unwrap();
        assert!(rows.len() > 10);
        for row in rows {
            let content = Content {
                key: row.key,
                event_type: row.event_type,
                data: canonical(row.data.as_bytes()).unwrap(),
                more: row.more.map(|more| canonical(more.as_bytes()).unwrap()),
            };
            let (consumer, stream) = (
                Name::new(row.consumer).unwrap(),
                Name::new(row.stream).unwrap(),
            );
            let id = EventId::new("cause").unwrap();
            let source = Source {
                consumer: &consumer,
                stream: &stream,
                seq: row.seq,
                id: &id,
                correlation: &id,
            };
            assert_eq!(
                content.id(&source, row.ordinal).to_string(),
                row.id,
                "{}",
                row.name
            );
        }
    }
}
