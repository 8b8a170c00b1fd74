use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn entry() -> Entry {
    let mut headers = Headers::new();
    headers.add("tenant", "größe").unwrap();
    headers.add("empty", "").unwrap();
    Entry {
        consumer: Name::new("billing").unwrap(),
        generation: 2,
        stream: Name::new("EVENTS").unwrap(),
        incarnation: Some("2026-01-01T00:00:00Z".into()),
        seq: 12,
        stored_at: Some(time("2026-01-31T11:59:00Z")),
        subject: Subject::new("events.order.placed").unwrap(),
        key: Some("o-1".into()),
        reason: "failed".into(),
        error: "while charging".to_owned(),
        causes: vec!["the bank\nis closed".to_owned(), "declined".to_owned()],
        failures: 2,
        starts: 1,
        attempts: vec![
            Attempt::new(time("2026-01-31T12:00:00Z"), "panicked", "with a bang"),
            Attempt::new(time("2026-01-31T12:00:01.5Z"), "failed", "while charging"),
        ],
        first_failure: time("2026-01-31T12:00:00Z"),
        last_failure: time("2026-01-31T12:00:01.5Z"),
        service: Some("/shop".into()),
        version: "0.1.0".into(),
        previous: Some(7),
        headers,
        body: Body::Bytes(Bytes::from_static(b"\xff\x00")),
    }
}

fn pairs(headers: &Headers) -> Vec<(String, String)> {
    let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    headers.iter().map(pair).collect()
}

fn headers(pairs: &[(String, String)]) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in pairs {
        headers.restore(name, value).unwrap();
    }
    headers
}

/// An entry as the vectors have it; what is not there is left out.
fn told(entry: &Entry) -> Value {
    let attempt = |attempt: &Attempt| json!({"at": attempt.at.to_string(), "reason": attempt.reason, "error": attempt.error});
    let mut told = json!({
        "consumer": entry.consumer.as_str(),
        "generation": entry.generation,
        "stream": entry.stream.as_str(),
        "seq": entry.seq,
        "subject": entry.subject.as_str(),
        "reason": entry.reason,
        "error": entry.error,
        "causes": entry.causes,
        "failures": entry.failures,
        "starts": entry.starts,
        "attempts": entry.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "first_failure": entry.first_failure.to_string(),
        "last_failure": entry.last_failure.to_string(),
        "version": entry.version,
    });
    let times = |time: Option<Timestamp>| time.map(|time| time.to_string().into());
    for (name, value) in [
        (
            "incarnation",
            entry.incarnation.as_ref().map(|of| json!(of)),
        ),
        ("stored_at", times(entry.stored_at)),
        ("key", entry.key.as_ref().map(|key| json!(key))),
        (
            "service",
            entry.service.as_ref().map(|service| json!(service)),
        ),
        ("previous", entry.previous.map(Value::from)),
    ] {
        if let Some(value) = value {
            told[name] = value;
        }
    }
    told
}

fn read(headers: &Headers) -> Result<Entry> {
    Entry::decode(headers, &Body::Bytes(Bytes::new()))
}

#[test]
fn stories_are_read_and_written_as_the_vectors_say() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../trunkline-core/testdata/dead-letters.json"
    );
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let pairs_of =
        |value: &Value| -> Vec<(String, String)> { serde_json::from_value(value.clone()).unwrap() };
    assert!(!rows.is_empty());
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let given = headers(&pairs_of(&row["headers"]));
        let entry = match read(&given) {
            Ok(entry) => entry,
            Err(error) => {
                let expected = row["error"]
                    .as_str()
                    .unwrap_or_else(|| panic!("{name}: {error}"));
                assert!(error.to_string().contains(expected), "{name}: {error}");
                continue;
            }
        };
        assert_eq!(told(&entry), row["story"], "{name}");
        assert_eq!(pairs(&entry.headers), pairs_of(&row["original"]), "{name}");
        // What an earlier version wrote is not written so any more.
        if row.get("read_only").is_none() {
            let written = pairs(&entry.encode().unwrap());
            assert_eq!(written, pairs(&given), "{name}");
        }
    }
}

#[test]
fn an_entry_is_read_as_it_was_written() {
    let entry = entry();
    let read = Entry::decode(&entry.encode().unwrap(), &entry.body).unwrap();
    assert_eq!(told(&read), told(&entry));
    assert_eq!(read.headers, entry.headers);
    assert_eq!(&read.body.to_bytes().unwrap()[..], b"\xff\x00");
    assert!(read.is_same(&entry));
    assert_eq!(
        read.chain(),
        "while charging: the bank\nis closed: declined"
    );
    let original = read.original();
    assert_eq!(
        (original.seq, original.at),
        (12, time("2026-01-31T11:59:00Z"))
    );
}

#[test]
fn the_dead_letter_of_a_dead_letter_keeps_the_first_story_as_headers() {
    let first = entry();
    let second = Entry {
        headers: first.encode().unwrap(),
        stream: Name::new("EVENTS_DLQ").unwrap(),
        ..entry()
    };
    let third = Entry {
        headers: second.encode().unwrap(),
        ..entry()
    };
    let body = &first.body;
    let second_read = Entry::decode(
        &Entry::decode(&third.encode().unwrap(), body)
            .unwrap()
            .headers,
        body,
    );
    let first_read = Entry::decode(&second_read.unwrap().headers, body).unwrap();
    assert_eq!(told(&first_read), told(&first));
    assert_eq!(first_read.headers, first.headers);
}

#[test]
fn a_story_never_has_more_bytes_than_it_may() {
    let long = |unit: &str| unit.repeat(Entry::MAX_STORY_BYTES);
    for unit in ["x", "%", "\n", "\"", "\u{1}", "ü", "😀"] {
        let entry = Entry {
            incarnation: Some(long(unit).into()),
            subject: Subject::new("x".repeat(512)).unwrap(),
            key: Some(unit.repeat(1_024 / unit.len()).into()),
            reason: long(unit).into(),
            error: long(unit),
            causes: vec![long(unit), long(unit)],
            attempts: (0..40)
                .map(|_| {
                    Attempt::new(
                        time("2026-01-31T12:00:00.123456789Z"),
                        "failed",
                        &long(unit),
                    )
                })
                .collect(),
            service: Some(long(unit).into()),
            version: long(unit).into(),
            headers: Headers::new(),
            ..entry()
        };
        let written = entry.encode().unwrap();
        let bytes = written.bytes();
        assert!(bytes <= Entry::MAX_STORY_BYTES, "{bytes} bytes of {unit:?}");
        let read = read(&written).unwrap();
        assert!(!read.error.is_empty() && entry.error.starts_with(&read.error));
        assert!(!read.causes.is_empty() && entry.causes[0].starts_with(&read.causes[0]));
        let kept = read.attempts.len();
        assert!(
            (1..=Entry::MAX_ATTEMPTS).contains(&kept),
            "{kept} of {unit:?}"
        );
        // Also what was cut is known again.
        let again = self::read(&read.encode().unwrap()).unwrap();
        assert!(read.is_same(&again) && again.id().unwrap() == read.id().unwrap());
    }
}

#[test]
fn a_key_that_does_not_fit_is_left_out_and_never_cut() {
    let with = |bytes: usize| Entry {
        key: Some("k".repeat(bytes).into()),
        ..entry()
    };
    let key = |entry: Entry| read(&entry.encode().unwrap()).unwrap().key;
    assert_eq!(key(with(1_024)).unwrap().len(), 1_024);
    assert_eq!(key(with(1_025)), None);
}

#[test]
fn another_generation_consumer_place_or_stream_is_another_entry() {
    let name = |text| Name::new(text).unwrap();
    let one = entry();
    for other in [
        Entry {
            generation: 3,
            ..entry()
        },
        Entry {
            consumer: name("audit"),
            ..entry()
        },
        Entry { seq: 13, ..entry() },
        Entry {
            stream: name("COMMANDS"),
            ..entry()
        },
        Entry {
            incarnation: Some("2027".into()),
            ..entry()
        },
    ] {
        assert!(!one.is_same(&other));
        assert_ne!(one.id().unwrap(), other.id().unwrap());
    }
    // An entry of a version that did not know of streams made anew is the same one.
    let unknown = Entry {
        incarnation: None,
        ..entry()
    };
    assert!(one.is_same(&unknown) && unknown.is_same(&one));
}

#[test]
fn headers_that_nobody_thought_of_are_read_or_refused() {
    let valid = pairs(&entry().encode().unwrap());
    let pieces = [
        "",
        "%",
        "%0",
        "%ff",
        "-1",
        "99999999999999999999",
        "[",
        "[1,{}]",
        "null",
        "a.b",
        "\u{9b}",
        "Trunkline-Original-",
        "TRUNKLINE-SEQ",
        "trunkline-",
        "2",
        "1",
    ];
    let (mut read_well, mut refused) = (0, 0);
    for seed in 0..20_000 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut some = valid.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..some.len());
            let piece = pieces[random.random_range(0..pieces.len())];
            match random.random_range(0..6) {
                0 => drop(some.remove(at)),
                1 => some[at].1 = piece.to_owned(),
                2 => some[at].1.push_str(piece),
                3 => some.push((some[at].0.clone(), piece.to_owned())),
                4 if !piece.is_empty() && piece.is_ascii() => some[at].0.push_str(piece),
                _ => {
                    let cut = some[at].1.len() / 2;
                    let cut = some[at].1.floor_char_boundary(cut);
                    some[at].1.truncate(cut);
                }
            }
        }
        match read(&headers(&some)) {
            Ok(entry) => {
                read_well += 1;
                // What was read can be written and read again.
                let again = read(&entry.encode().unwrap()).unwrap();
                assert!(again.is_same(&entry), "seed {seed}");
            }
            Err(error) => {
                refused += 1;
                let kind = error.kind();
                let known = [ErrorKind::Decode, ErrorKind::WrongVersion].contains(&kind);
                assert!(known, "seed {seed}: {error}");
            }
        }
    }
    assert!(
        read_well > 1_000 && refused > 1_000,
        "{read_well} {refused}"
    );
}
