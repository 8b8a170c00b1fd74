//! The wire format of `WIRE.md`, held to the vectors in `testdata/` that other languages use too,
//! and to properties over events that nobody thought of.

#![expect(clippy::unwrap_used, reason = "a test may fail by it")]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use proptest::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use trunkline_core::envelope::JsonText;
use trunkline_core::key::{fnv1a32, slot};
use trunkline_core::plan::Roots;
use trunkline_core::wire::{
    self, Body, ContentMode, decode_binary, decode_structured, encode_binary, encode_structured,
    encoded_len,
};
use trunkline_core::{
    Attribute, Data, Envelope, EventId, EventType, Filter, Headers, Result, Subject, Timestamp,
};

/// One event as the vectors have it: attributes by name, and the data as one of three kinds.
#[derive(Debug, Deserialize)]
struct Vector {
    name: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(alias = "body")]
    input: Option<String>,
    #[serde(alias = "body_base64")]
    input_base64: Option<String>,
    attributes: Option<Map<String, Value>>,
    data: Option<VectorData>,
    error: Option<String>,
    output: Option<String>,
    mode: Option<String>,
    #[serde(default)]
    structured: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum VectorData {
    Json(String),
    Text(String),
    Base64(String),
}

fn vectors<T: DeserializeOwned>(file: &str) -> Vec<T> {
    let path = format!("{}/testdata/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let vectors: Vec<T> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert!(!vectors.is_empty(), "{path} is empty");
    vectors
}

impl Vector {
    fn bytes(&self) -> Bytes {
        match (&self.input, &self.input_base64) {
            (Some(text), None) => text.clone().into(),
            (None, Some(base64)) => BASE64_STANDARD.decode(base64).unwrap().into(),
            _ => panic!("{}: give one of text and base64", self.name),
        }
    }

    fn check(&self, read: Result<Envelope>) {
        match (read, &self.error) {
            (Ok(event), None) => assert_eq!(
                (attributes(&event), data(event.data())),
                (self.attributes.clone().unwrap(), self.data()),
                "{}",
                self.name
            ),
            (Err(error), Some(expected)) => {
                let found = format!("{error:?}");
                assert!(found.contains(expected), "{}: {found}", self.name);
            }
            (read, _) => panic!("{}: {read:?}", self.name),
        }
    }

    fn data(&self) -> Value {
        match &self.data {
            None => Value::Null,
            Some(VectorData::Json(text)) => json!({ "json": text }),
            Some(VectorData::Text(text)) => json!({ "text": text }),
            Some(VectorData::Base64(text)) => json!({ "base64": text }),
        }
    }

    fn event(&self) -> Envelope {
        let data = match &self.data {
            None => Data::None,
            Some(VectorData::Json(json)) => {
                Data::Json(JsonText::new(&json.clone().into()).unwrap())
            }
            Some(VectorData::Text(text)) => Data::Text(text.into()),
            Some(VectorData::Base64(text)) => {
                Data::Binary(BASE64_STANDARD.decode(text).unwrap().into())
            }
        };
        let attributes = self.attributes.as_ref().unwrap();
        let required = |name: &str| attributes[name].as_str().unwrap();
        let id = EventId::new(required("id")).unwrap();
        let event = Envelope::new(id, required("source"), required("type"), data).unwrap();
        attributes.iter().fold(event, |event, (name, value)| {
            let text = value.as_str().unwrap_or_default();
            let id = || EventId::new(text).unwrap();
            match name.as_str() {
                "id" | "source" | "type" => event,
                "time" => event.with_time(text.parse().unwrap()),
                "subject" => event.with_subject(text),
                "datacontenttype" => event.with_content_type(text),
                "dataschema" => event.with_schema(text),
                "dataversion" => {
                    event.with_version(u32::try_from(value.as_u64().unwrap()).unwrap())
                }
                "partitionkey" => event.with_key(text),
                "correlationid" => event.with_correlation(id()),
                "causationid" => event.with_causation(id()),
                "traceparent" => event.with_traceparent(text),
                "tracestate" => event.with_tracestate(text),
                name => event.with_extension(name, attribute(value)).unwrap(),
            }
        })
    }
}

fn attribute(value: &Value) -> Attribute {
    match value {
        Value::Bool(truth) => Attribute::Boolean(*truth),
        Value::Number(number) => Attribute::Integer(number.as_i64().unwrap().try_into().unwrap()),
        other => Attribute::Text(other.as_str().unwrap().into()),
    }
}

fn attributes(event: &Envelope) -> Map<String, Value> {
    let text = |id: &EventId| Value::from(id.to_string());
    let known = [
        ("id", Some(text(event.id()))),
        ("source", Some(event.source().into())),
        ("type", Some(event.event_type().into())),
        ("time", event.time().map(|time| time.to_string().into())),
        ("subject", event.subject().map(Value::from)),
        ("datacontenttype", event.content_type().map(Value::from)),
        ("dataschema", event.schema().map(Value::from)),
        ("dataversion", event.version().map(Value::from)),
        ("partitionkey", event.key().map(Value::from)),
        ("correlationid", event.correlation().map(text)),
        ("causationid", event.causation().map(text)),
        ("traceparent", event.traceparent().map(Value::from)),
        ("tracestate", event.tracestate().map(Value::from)),
    ];
    let known = known
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let others = event.extensions().map(|(name, value)| {
        let value = match value {
            Attribute::Boolean(truth) => (*truth).into(),
            Attribute::Integer(number) => (*number).into(),
            Attribute::Text(text) => text.as_str().into(),
        };
        (name.to_owned(), value)
    });
    known.chain(others).collect()
}

fn data(data: &Data) -> Value {
    match data {
        Data::None => Value::Null,
        Data::Json(json) => json!({ "json": str::from_utf8(json.as_bytes()).unwrap() }),
        Data::Text(text) => json!({ "text": text.as_str() }),
        Data::Binary(bytes) => json!({ "base64": BASE64_STANDARD.encode(bytes) }),
        Data::Value(value) => panic!("nothing shared comes from the wire: {value:?}"),
    }
}

#[test]
fn structured_events_are_read_as_the_vectors_say() {
    for vector in vectors::<Vector>("structured-read.json") {
        let read = decode_structured(&vector.bytes());
        if let Ok(event) = &read {
            survives(event);
        }
        vector.check(read);
    }
}

#[test]
fn structured_events_are_written_byte_for_byte_as_the_vectors_say() {
    for vector in vectors::<Vector>("structured-write.json") {
        let event = vector.event();
        let written = encode_structured(&event).unwrap();
        let text = str::from_utf8(&written).unwrap();
        assert_eq!(text, vector.output.as_deref().unwrap(), "{}", vector.name);
        survives(&event);
    }
}

#[test]
fn binary_events_are_read_as_the_vectors_say() {
    for vector in vectors::<Vector>("binary-read.json") {
        let headers = || vector.headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        let read = decode_binary(headers(), &vector.bytes());
        if let Ok(event) = &read {
            survives(event);
        }
        vector.check(read);
    }
}

#[test]
fn binary_events_are_written_as_the_vectors_say() {
    for vector in vectors::<Vector>("binary-write.json") {
        let event = vector.event();
        let Some((headers, body)) = encode_binary(&event).unwrap() else {
            assert!(vector.structured, "{}", vector.name);
            continue;
        };
        assert!(!vector.structured, "{}", vector.name);
        let headers: Vec<_> = headers.iter().collect();
        let expected = vector.headers.iter();
        let expected: Vec<_> = expected.map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(headers, expected, "{}", vector.name);
        assert_eq!(body, vector.bytes(), "{}", vector.name);
        survives_binary(&event);
    }
}

#[test]
fn the_mode_of_a_message_is_told_as_the_vectors_say() {
    for vector in vectors::<Vector>("modes.json") {
        let mut headers = Headers::new();
        for (name, value) in &vector.headers {
            headers.add(name, value).unwrap();
        }
        // The body says that its id is `s`, the headers that it is `e1`.
        let found = match Body::Bytes(vector.bytes()).to_event(&headers) {
            Ok(event) if event.id().to_string() == "s" => "structured",
            Ok(_) => "binary",
            Err(_) => "refused",
        };
        assert_eq!(Some(found), vector.mode.as_deref(), "{}", vector.name);
    }
}

#[test]
fn types_give_the_subjects_of_the_vectors() {
    #[derive(Deserialize)]
    struct Row {
        r#type: String,
        subject: Option<String>,
        events: Option<String>,
        commands: Option<String>,
        live: Option<String>,
        error: Option<String>,
    }
    let roots = Roots::default();
    for row in vectors::<Row>("subjects.json") {
        let found = EventType::new(&row.r#type);
        if let Some(expected) = row.error {
            let error = format!("{:?}", found.unwrap_err());
            assert!(error.contains(&expected), "{:?}: {error}", row.r#type);
            continue;
        }
        let found = found.unwrap();
        let below = |root: &Subject| found.subject().below(Some(root)).unwrap().to_string();
        assert_eq!(Some(found.subject().to_string()), row.subject);
        assert_eq!(Some(below(roots.events.as_ref().unwrap())), row.events);
        assert_eq!(Some(below(&roots.commands)), row.commands);
        assert_eq!(Some(below(&roots.live)), row.live);
    }
}

#[test]
fn filters_match_as_the_vectors_say() {
    #[derive(Deserialize)]
    struct Row {
        filter: String,
        subject: Option<String>,
        matches: Option<bool>,
        error: Option<String>,
    }
    for row in vectors::<Row>("filters.json") {
        match (Filter::new(&row.filter), row.error) {
            (Ok(filter), None) => {
                let subject = Subject::new(row.subject.unwrap()).unwrap();
                let matches = Some(filter.matches(&subject));
                assert_eq!(matches, row.matches, "{filter} on {subject}");
            }
            (Err(error), Some(expected)) => {
                let error = format!("{error:?}");
                assert!(error.contains(&expected), "{:?}: {error}", row.filter);
            }
            (found, _) => panic!("{:?}: {found:?}", row.filter),
        }
    }
}

#[test]
fn keys_have_the_hash_and_slot_of_the_vectors() {
    #[derive(Deserialize)]
    struct Row {
        key: String,
        fnv1a32: String,
        slot: u8,
    }
    for row in vectors::<Row>("slots.json") {
        let found = (
            format!("{:08x}", fnv1a32(row.key.as_bytes())),
            slot(&row.key),
        );
        assert_eq!(found, (row.fnv1a32, row.slot), "{:?}", row.key);
    }
}

/// The texts of WIRE.md between "```language" and "```".
fn examples<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    let blocks = page.split(open.as_str()).skip(1);
    blocks
        .map(|block| block.split("\n```").next().unwrap())
        .collect()
}

#[test]
fn every_example_of_the_page_is_a_vector() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../WIRE.md");
    let page = std::fs::read_to_string(path).unwrap();

    let mut known: Vec<String> = Vec::new();
    for vector in vectors::<Vector>("structured-read.json") {
        known.extend(vector.input);
    }
    for vector in vectors::<Vector>("structured-write.json") {
        known.extend(vector.output);
    }
    let read = vectors::<Vector>("binary-read.json");
    for vector in read
        .into_iter()
        .chain(vectors::<Vector>("binary-write.json"))
    {
        let headers = vector.headers.iter();
        let headers = headers.map(|(name, value)| format!("{name}: {value}\n"));
        let headers = headers.collect::<String>();
        known.extend(vector.input.map(|body| format!("{headers}\n{body}")));
    }
    let shown = [examples(&page, "json"), examples(&page, "http")].concat();
    assert_eq!(shown.len(), 7);
    for example in shown {
        assert!(known.iter().any(|text| text == example), "{example}");
    }

    // Rows of tables whose cells are code: type and subject, filter and match, key and slot.
    let mut rows = (0, 0, 0);
    let code = |line: &&str| line.starts_with("| `") && line.contains("` | `");
    for line in page.lines().filter(code) {
        let cells = line.trim_matches('|').split('|').map(str::trim);
        let cells = cells.map(|cell| cell.trim_matches('`')).collect::<Vec<_>>();
        match cells[..] {
            [text, subject] if subject.starts_with("events.") => {
                let found = EventType::new(text).unwrap();
                assert_eq!(format!("events.{}", found.subject()), subject);
                rows.0 += 1;
            }
            [filter, subject, matches @ ("yes" | "no")] => {
                let found = Filter::new(filter).unwrap();
                let matched = found.matches(&Subject::new(subject).unwrap());
                assert_eq!(matched, matches == "yes", "{line}");
                rows.1 += 1;
            }
            [key, hash, found] if hash.len() == 8 && found.parse::<u8>().is_ok() => {
                assert_eq!(format!("{:08x}", fnv1a32(key.as_bytes())), hash, "{line}");
                assert_eq!(slot(key).to_string(), found, "{line}");
                rows.2 += 1;
            }
            _ => {}
        }
    }
    assert_eq!(rows, (5, 8, 9));
}

/// Writes the event and reads it back: nothing is lost, but data whose kind contradicts its media
/// type changes its kind; bytes and type never change.
fn survives(event: &Envelope) {
    let written = encode_structured(event).unwrap();
    assert_eq!(encoded_len(event).unwrap(), written.len());
    let read = decode_structured(&written).unwrap_or_else(|error| panic!("{written:?}: {error:?}"));
    assert_eq!(attributes(&read), attributes(event));
    assert_eq!(
        read.data().to_bytes().unwrap(),
        event.data().to_bytes().unwrap()
    );
    let bare = |event: &Envelope| event.clone().with_data(Data::None);
    assert_eq!(bare(&read), bare(event));
    // What was read once stays as it is.
    let again = encode_structured(&read).unwrap();
    assert_eq!(decode_structured(&again).unwrap(), read);
}

/// Writes the event in binary mode and reads it back, if that mode can say it: bytes and attributes
/// are as they were, but that own attributes are texts and that JSON has a media type.
fn survives_binary(event: &Envelope) {
    let body = Body::Event(event.clone().into());
    let (headers, bytes) = body
        .to_message(&Headers::new(), ContentMode::Binary)
        .unwrap();
    let binary = encode_binary(event).unwrap().is_some();
    assert_eq!(wire::is_binary(&headers), binary);
    let read = Body::Bytes(bytes).to_event(&headers);
    let read = read.unwrap_or_else(|error| panic!("{headers:?}: {error:?}"));
    assert!(wire::beside(headers).is_empty());
    assert_eq!(
        read.data().to_bytes().unwrap(),
        event.data().to_bytes().unwrap()
    );
    let texts = |event: &Envelope| -> Vec<(String, String)> {
        let mut all = attributes(event);
        if binary && matches!(event.data(), Data::Json(_)) {
            all.entry("datacontenttype")
                .or_insert("application/json".into());
        }
        let text = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
        let mut all: Vec<_> = all.iter().map(|(n, v)| (n.clone(), text(v))).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(texts(&read), texts(event));
}

const TYPES: &[Option<&str>] = &[
    None,
    Some("application/json"),
    Some("application/vnd.a+json; charset=utf-8"),
    Some("text/plain"),
    Some("image/png"),
];

fn is_json(content_type: Option<&str>) -> bool {
    content_type.is_none_or(|media| media.contains("json"))
}

fn json_text() -> impl Strategy<Value = Data> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(".*", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    (value, any::<bool>()).prop_map(|(value, pretty)| {
        let text = if pretty {
            serde_json::to_vec_pretty(&value)
        } else {
            serde_json::to_vec(&value)
        };
        Data::Json(JsonText::new(&text.unwrap().into()).unwrap())
    })
}

fn any_data() -> impl Strategy<Value = Data> {
    prop_oneof![
        Just(Data::None),
        json_text(),
        "(?s).*".prop_map(|text| Data::Text(text.into())),
        prop::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| Data::Binary(bytes.into())),
    ]
}

fn any_id() -> impl Strategy<Value = EventId> {
    prop_oneof![
        any::<i64>().prop_map(|nanos| EventId::generate(Timestamp::from_nanos(nanos))),
        "\\PC{1,60}".prop_map(|text| EventId::new(text).unwrap()),
        "[0-9A-Fa-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
            .prop_map(|text| EventId::new(text).unwrap()),
    ]
}

fn any_event() -> impl Strategy<Value = Envelope> {
    let maybe = || prop::option::of("(?s).{0,20}");
    let value = prop_oneof![
        any::<bool>().prop_map(Attribute::Boolean),
        any::<i32>().prop_map(Attribute::Integer),
        "(?s).*".prop_map(|text| Attribute::Text(text.into())),
    ];
    let extensions = prop::collection::btree_map("x[a-z0-9]{0,19}", value, 0..5);
    let required = (any_id(), "(?s).{1,20}", "(?s).{1,20}", any_data());
    let ids = (
        prop::option::of(any_id()),
        prop::option::of(any_id()),
        any::<bool>(),
    );
    let texts = (maybe(), maybe(), maybe(), maybe(), maybe());
    let others = (
        prop::option::of(any::<i64>()),
        prop::option::of(any::<u32>()),
        prop::sample::select(TYPES),
        extensions,
    );
    (required, ids, texts, others).prop_map(
        |(
            (id, source, event_type, data),
            (correlation, causation, own),
            (subject, schema, key, traceparent, tracestate),
            (nanos, version, content_type, extensions),
        )| {
            fn set<T>(
                event: Envelope,
                value: Option<T>,
                with: impl FnOnce(Envelope, T) -> Envelope,
            ) -> Envelope {
                match value {
                    Some(value) => with(event, value),
                    None => event,
                }
            }
            let mut event = Envelope::new(id, source, event_type, data).unwrap();
            event = set(event, nanos.map(Timestamp::from_nanos), Envelope::with_time);
            event = set(event, version, Envelope::with_version);
            event = set(event, content_type, Envelope::with_content_type);
            event = set(event, subject, Envelope::with_subject);
            event = set(event, schema, Envelope::with_schema);
            event = set(event, key, Envelope::with_key);
            event = set(event, traceparent, Envelope::with_traceparent);
            event = set(event, tracestate, Envelope::with_tracestate);
            event = set(event, causation, Envelope::with_causation);
            event = match (own, correlation) {
                (true, _) => event.with_own_correlation(),
                (false, correlation) => set(event, correlation, Envelope::with_correlation),
            };
            extensions.into_iter().fold(event, |event, (name, value)| {
                event.with_extension(&name, value).unwrap()
            })
        },
    )
}

/// A valid event with bytes changed, removed or doubled.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..4_u8);
    (any_event(), prop::collection::vec(change, 1..6)).prop_map(|(event, changes)| {
        let mut bytes = encode_structured(&event).unwrap().to_vec();
        for (index, byte, what) in changes {
            let at = index.index(bytes.len());
            match what {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => bytes.truncate(at.max(1)),
                _ => bytes[at] = b"{}[]\",:\\0nu"[usize::from(byte) % 11],
            }
        }
        bytes
    })
}

proptest! {
    #[test]
    fn every_event_survives_being_written_and_read(event in any_event()) {
        survives(&event);
        let read = decode_structured(&encode_structured(&event).unwrap()).unwrap();
        let json = is_json(event.content_type());
        let consistent = match event.data() {
            Data::Json(_) => json,
            Data::Text(_) => !json,
            _ => true,
        };
        if consistent {
            prop_assert_eq!(read, event);
        }
    }

    #[test]
    fn every_event_survives_binary_mode(event in any_event()) {
        survives_binary(&event);
    }

    #[test]
    fn what_is_written_is_one_json_object_for_any_other_parser(event in any_event()) {
        let written = encode_structured(&event).unwrap();
        let object: Map<String, Value> = serde_json::from_slice(&written).unwrap();
        let integers = object.iter().filter(|(name, _)| *name != "data");
        for (name, value) in integers {
            let small = value.as_i64().is_none_or(|number| i32::try_from(number).is_ok());
            prop_assert!(small, "{} is {}", name, value);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_structured(&bytes.into());
    }

    #[test]
    fn a_mutated_event_is_refused_or_survives(bytes in mutated()) {
        if let Ok(event) = decode_structured(&bytes.into()) {
            survives(&event);
        }
    }

    #[test]
    fn arbitrary_headers_never_panic(
        headers in prop::collection::vec(("(?i)(ce-)?[a-z-]{0,12}", "(?s).{0,20}|%[0-9a-fA-F]{2}|\"\\PC*\""), 0..12),
        body in prop::collection::vec(any::<u8>(), 0..40),
        content_type in prop::sample::select(TYPES),
    ) {
        let required = [("ce-specversion", "1.0"), ("ce-id", "e"), ("ce-source", "s"), ("ce-type", "t")];
        let given = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let content_type = content_type.map(|media| ("content-type", media));
        let all = required.into_iter().chain(content_type).chain(given);
        if let Ok(event) = decode_binary(all, &body.into()) {
            survives(&event);
        }
    }
}
