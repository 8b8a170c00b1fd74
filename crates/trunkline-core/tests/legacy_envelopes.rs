//! Envelopes from before CloudEvents, as four teams wrote them.

#![expect(clippy::unwrap_used, reason = "a test may fail by it")]

use bytes::Bytes;
use trunkline_core::wire::{Body, Legacy, Place};
use trunkline_core::{Envelope, Headers, Name, Result, Timestamp};

const ALL: [Legacy; 4] = [
    Legacy::MetadataPayload,
    Legacy::FlatData,
    Legacy::Tagged,
    Legacy::MessageFields,
];

fn read_at(forms: &[Legacy], text: &str, subject: &str, seq: u64) -> Result<Envelope> {
    let stream = Name::new("EVENTS").unwrap();
    let place = Place {
        subject,
        stored: Some((&stream, seq)),
        at: Some(stored_at()),
    };
    let body = Body::Bytes(Bytes::copy_from_slice(text.as_bytes()));
    let event = body.to_event_or(&Headers::new(), forms, &place)?;
    Ok((*event).clone())
}

fn stored_at() -> Timestamp {
    "2026-02-01T00:00:00Z".parse().unwrap()
}

/// All that an event says, but for those attributes that are not there.
fn told(event: &Envelope) -> String {
    let mut told = format!("{} {} {}", event.id(), event.source(), event.event_type());
    if let Some(time) = event.time() {
        told.push_str(&format!(" {time}"));
    }
    if let Some(version) = event.version() {
        told.push_str(&format!(" v{version}"));
    }
    for (name, id) in [
        ("correlation", event.correlation()),
        ("causation", event.causation()),
    ] {
        if let Some(id) = id {
            told.push_str(&format!(" {name}={id}"));
        }
    }
    for (name, value) in event.extensions() {
        told.push_str(&format!(" {name}={value:?}"));
    }
    let data = event.data().to_bytes().unwrap();
    format!("{told} {}", str::from_utf8(&data).unwrap())
}

#[track_caller]
fn check(form: Legacy, text: &str, expected: &str) {
    let event = read_at(&[form], text, "task.created", 7).unwrap();
    assert_eq!(told(&event), expected);
    // The same bytes at the same place are the same event, whichever forms stand behind it.
    let mut forms = vec![form];
    forms.extend(ALL);
    assert_eq!(read_at(&forms, text, "task.created", 7).unwrap(), event);
}

#[test]
fn metadata_and_payload() {
    check(
        Legacy::MetadataPayload,
        r#"{"metadata":{"eventId":"9b1d","eventType":"TaskCreated","timestamp":"2026-01-31T12:00:00.123Z","source":"secretary-api","version":"1.0.0","correlationId":"c-1","causationId":null,"userId":"u-1","tags":["a"]},"payload": { "n" : 1.0 } }"#,
        r#"9b1d secretary-api TaskCreated 2026-01-31T12:00:00.123Z correlation=c-1 dataversion=Text("1.0.0") tags=Text("[\"a\"]") userid=Text("u-1") { "n" : 1.0 }"#,
    );
}

#[test]
fn metadata_that_says_little() {
    check(
        Legacy::MetadataPayload,
        r#"{"payload":null,"metadata":{"version":2,"retryCount":3}}"#,
        r#"legacy:EVENTS:7:317861cfbd71b7cb /legacy task.created 2026-02-01T00:00:00Z v2 retrycount=Integer(3) null"#,
    );
}

#[test]
fn flat_with_data() {
    check(
        Legacy::FlatData,
        r#"{"eventId":"e-1","type":"agent.started","timestamp":1769860800123,"source":"map","version":3,"correlationId":"c-1","data":{"agent":"größe"},"priority":"high"}"#,
        r#"e-1 map agent.started 2026-01-31T12:00:00.123Z v3 correlation=c-1 priority=Text("high") {"agent":"größe"}"#,
    );
    check(
        Legacy::FlatData,
        r#"{"eventId":"e-2","eventType":"agent.started","timestamp":"yesterday","data":[1]}"#,
        r#"e-2 /legacy agent.started 2026-02-01T00:00:00Z timestamp=Text("yesterday") [1]"#,
    );
}

#[test]
fn a_tagged_enum() {
    check(
        Legacy::Tagged,
        r#"{"JobCreated":{"job_id":"j-1","id":"x","occurred_at":"2026-01-31T12:00:00Z","correlation_id":"c-1","event_id":"e-1"}}"#,
        r#"e-1 /legacy JobCreated 2026-01-31T12:00:00Z correlation=c-1 {"job_id":"j-1","id":"x","occurred_at":"2026-01-31T12:00:00Z","correlation_id":"c-1","event_id":"e-1"}"#,
    );
    check(
        Legacy::Tagged,
        r#" {"type":"JobCreated","event_id":"e-2","job_id":"j-1"}"#,
        r#"e-2 /legacy JobCreated 2026-02-01T00:00:00Z {"type":"JobCreated","event_id":"e-2","job_id":"j-1"}"#,
    );
}

#[test]
fn message_fields() {
    check(
        Legacy::MessageFields,
        r#"{"id":"m-1","sender":"planner","recipient":"coder","content":"do it","message_type":"request","task_id":"t-1","metadata":{"a":1},"timestamp":"2026-01-31T12:00:00.123456"}"#,
        r#"m-1 planner request 2026-01-31T12:00:00.123456Z recipient=Text("coder") taskid=Text("t-1") {"id":"m-1","sender":"planner","recipient":"coder","content":"do it","message_type":"request","task_id":"t-1","metadata":{"a":1},"timestamp":"2026-01-31T12:00:00.123456"}"#,
    );
    check(
        Legacy::MessageFields,
        r#"{"id":5,"sender":"planner","content":{},"timestamp":1769860800.5}"#,
        r#"5 planner task.created 2026-01-31T12:00:00.5Z {"id":5,"sender":"planner","content":{},"timestamp":1769860800.5}"#,
    );
}

#[test]
fn a_message_without_an_id_has_the_same_one_whenever_and_wherever_it_is_read() {
    let text = r#"{"JobCreated":{"job_id":"j-1"}}"#;
    let read = |seq| read_at(&[Legacy::Tagged], text, "job.created", seq).unwrap();
    assert_eq!(read(1).id(), read(1).id());
    assert_ne!(read(1).id(), read(2).id());
    // A dead letter has another place and says which was that of the original.
    let mut headers = Headers::new();
    headers.restore("Trunkline-Stream", "EVENTS").unwrap();
    headers.restore("Trunkline-Seq", "1").unwrap();
    let dead_letters = Name::new("EVENTS_DLQ").unwrap();
    let place = Place {
        subject: "job.created",
        stored: Some((&dead_letters, 40)),
        at: None,
    };
    let body = Body::Bytes(Bytes::from_static(text.as_bytes()));
    let letter = body.to_event_or(&headers, &[Legacy::Tagged], &place);
    assert_eq!(letter.unwrap().id(), read(1).id());
}

#[test]
fn the_type_is_that_of_the_subject_where_the_message_has_none() {
    let text = r#"{"metadata":{},"payload":{}}"#;
    let event = read_at(&[Legacy::MetadataPayload], text, "gr%C3%B6%C3%9Fe.a", 1).unwrap();
    assert_eq!(event.event_type(), "größe.a");
}

#[test]
fn what_has_none_of_the_forms_or_is_a_broken_cloudevent_is_no_event() {
    for text in [
        r#"{"specversion":"1.0","metadata":{"eventType":"a"},"payload":{}}"#,
        r#"{"metadata":"a","payload":{}}"#,
        r#"{"metadata":{}}"#,
        r#"{"eventId":"a","data":1}"#,
        r#"{"type":"lower","x":1}"#,
        r#"{"lower":{}}"#,
        r#"{"A b":{}}"#,
        r#"{"sender":"a"}"#,
        r#"{"sender":"","content":1}"#,
        "[1]",
        "",
        "{",
        "\u{0}",
    ] {
        let plain = read_at(&[], text, "a", 1).unwrap_err();
        let found = read_at(&ALL, text, "a", 1).unwrap_err();
        assert_eq!(found.to_string(), plain.to_string(), "{text}");
    }
    // One form is not another.
    let flat = r#"{"eventId":"a","type":"a.b","data":1}"#;
    let others = [
        Legacy::MetadataPayload,
        Legacy::Tagged,
        Legacy::MessageFields,
    ];
    assert!(read_at(&others, flat, "a", 1).is_err());
    assert!(read_at(&[Legacy::FlatData], flat, "a", 1).is_ok());
    // Two members that would be one attribute are refused rather than one of them lost.
    let twice = r#"{"metadata":{"user_id":1,"userId":2},"payload":{}}"#;
    let error = read_at(&ALL, twice, "a", 1).unwrap_err();
    assert!(error.to_string().contains("userid"), "{error}");
}

#[test]
fn names_are_read_back() {
    for (name, form) in Legacy::ALL {
        assert_eq!(name.parse::<Legacy>().unwrap(), form);
        assert_eq!(form.to_string(), name);
    }
    assert!("metadata".parse::<Legacy>().is_err());
}
