//! Every frame is read as it was written, and no bytes at all make reading panic.

use std::time::Duration;

use proptest::prelude::*;
use smallvec::smallvec;
use trunkline_core::engine::{
    ConsumerSpec, Entry, Expect, Expectation, Gap, Op, Retention, StreamSpec, StreamState,
};
use trunkline_core::wire::Body;
use trunkline_core::{ErrorKind, EventId, Headers, Subject, Timestamp};

use super::*;
use crate::codec::read;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn filters() -> Vec<Filter> {
    vec![Filter::new("a.*").unwrap(), Filter::all()]
}

fn at(nanos: i64) -> Timestamp {
    Timestamp::from_nanos(nanos)
}

fn headers() -> Headers {
    let mut headers = Headers::new();
    headers.add("Tenant", "größe").unwrap();
    headers.add("empty", "").unwrap();
    headers
}

fn body() -> Body {
    Body::Bytes(vec![0, 255, 13, 10].into())
}

fn stored(seq: Seq) -> StoredEvent {
    StoredEvent {
        seq,
        at: at(-1),
        subject: Subject::new("a.b").unwrap(),
        headers: headers(),
        body: body(),
    }
}

fn message() -> Message {
    Message {
        subject: Subject::new("a.b").unwrap(),
        reply: Some(Subject::new("inbox.1").unwrap()),
        headers: headers(),
        body: body(),
    }
}

fn append(expect: Expect) -> Append {
    Append {
        subject: Subject::new("a.b").unwrap(),
        key: Some("k".into()),
        id: Some(EventId::new("01890a5d-ac96-774b-bcce-b302099a8057").unwrap()),
        expect,
        headers: headers(),
        body: body(),
    }
}

fn key(text: &str) -> StateKey {
    StateKey::new(text).unwrap()
}

fn error() -> Error {
    Error::new(ErrorKind::StreamFull, "full of 7")
        .about("id-1")
        .caused_by("a cause")
}

fn consumer() -> ConsumerRef {
    ConsumerRef {
        stream: name("EVENTS"),
        consumer: name("billing"),
    }
}

fn specs() -> (StreamSpec, ConsumerSpec) {
    let mut stream = StreamSpec::new(name("EVENTS"), filters());
    stream.retention = Retention::RefuseWhenFull;
    stream.max_events = Some(u64::MAX);
    stream.max_age = Some(Duration::new(7, 999_999_999));
    stream.metadata.insert("trunkline".into(), "1".into());
    let consumer = ConsumerSpec {
        at: consumer(),
        filters: filters(),
        start: Position::Time(at(i64::MIN)),
        ack_wait: Duration::from_millis(1_500),
        max_in_flight: usize::MAX,
    };
    (stream, consumer)
}

fn calls() -> Vec<Call> {
    let (stream, consumer_spec) = specs();
    let token = Token { seq: 7, lease: 300 };
    let changes = vec![
        Change::CreateStream(stream),
        Change::DeleteStream(name("EVENTS")),
        Change::CreateConsumer(consumer_spec.clone()),
        Change::UpdateConsumer(consumer_spec),
        Change::DeleteConsumer(consumer()),
    ];
    let ops = vec![
        Op::Put {
            key: key("a.b"),
            value: vec![1, 2].into(),
            expect: Expectation::Rev(128),
            ttl: Some(Duration::from_secs(1)),
        },
        Op::Delete {
            key: key("a.c"),
            expect: Expectation::Absent,
        },
    ];
    let commit = Commit {
        id: "commit".into(),
        fences: vec![(key("f"), Expectation::Any)],
        ops,
    };
    vec![
        Call::Append {
            stream: name("EVENTS"),
            batch: smallvec![
                append(Expect::Any),
                append(Expect::Absent),
                append(Expect::Last(9))
            ],
            mode: AppendMode::Atomic,
        },
        Call::Read {
            stream: name("EVENTS"),
            from: Position::Last(3.try_into().unwrap()),
            filters: filters(),
            max: Credit::items(5),
        },
        Call::Remove {
            stream: name("EVENTS"),
            what: Removal::Matching(Filter::all()),
        },
        Call::Settle {
            reader: 1,
            batch: smallvec![
                (token, Settle::Ack),
                (token, Settle::GiveBack),
                (token, Settle::Extend)
            ],
            confirm: true,
        },
        Call::Commit {
            bucket: name("bucket"),
            commit,
        },
        Call::Scan {
            bucket: name("bucket"),
            prefix: Some(key("a")),
            after: None,
            at_least: 3,
            max: Credit::items(5),
        },
        Call::Inspect,
        Call::Apply { changes },
        Call::Backlog {
            consumer: consumer(),
        },
        Call::Subjects {
            stream: name("EVENTS"),
            filter: Filter::all(),
            max: 10,
        },
    ]
}

fn requests() -> Vec<Request> {
    let opens = vec![
        Open::Listen {
            filters: filters(),
            share: Some(name("group")),
            capacity: 10,
        },
        Open::Follow {
            stream: name("EVENTS"),
            from: Position::LastPerSubject,
            filters: filters(),
        },
        Open::Consume {
            consumer: consumer(),
        },
        Open::Watch {
            bucket: name("bucket"),
            prefix: None,
            from: 0,
        },
    ];
    let calls = calls()
        .into_iter()
        .map(|call| Request::Call { id: 1 << 40, call });
    let opens = opens
        .into_iter()
        .map(|what| Request::Open { reader: 2, what });
    let others = vec![
        Request::Send {
            messages: smallvec![message()],
        },
        Request::Pull {
            reader: 2,
            credit: Credit::items(0),
        },
        Request::Cancel { reader: 2 },
        Request::GiveBack {
            reader: 2,
            tokens: vec![Token { seq: 1, lease: 2 }],
        },
        Request::Close { reader: 2 },
        Request::Leave,
        Request::Forget { id: 300 },
    ];
    calls.chain(opens).chain(others).collect()
}

fn replies() -> Vec<Reply> {
    let (stream, consumer_spec) = specs();
    let page = Page {
        events: vec![stored(1), stored(u64::MAX)],
        next: 3,
        tail: 4,
        gap: Some(Gap { from: 1, to: 2 }),
    };
    let entry = Entry {
        key: key("a.b"),
        value: vec![].into(),
        rev: 9,
        at: at(1),
    };
    let inspection = Inspection {
        streams: vec![StreamState {
            spec: stream,
            events: 1,
            bytes: 2,
            first: 3,
            tail: 4,
            first_at: Some(at(5)),
        }],
        consumers: vec![trunkline_core::engine::ConsumerState {
            spec: consumer_spec,
            backlog: Backlog {
                pending: 1,
                in_flight: 2,
                floor: 3,
                expired_at_most: 4,
            },
        }],
    };
    let answers = vec![
        Ok(Answer::Appended(vec![
            Outcome::Stored {
                seq: 1,
                duplicate: true,
            },
            Outcome::Refused(error()),
            Outcome::Unknown(error()),
        ])),
        Ok(Answer::Read(page)),
        Ok(Answer::Removed(3)),
        Ok(Answer::Settled(vec![Ok(()), Err(error())])),
        Ok(Answer::Committed(Committed::Done(vec![1, 2]))),
        Ok(Answer::Committed(Committed::Duplicate)),
        Ok(Answer::Committed(Committed::Conflict {
            key: key("f"),
            found: None,
        })),
        Ok(Answer::Scanned(Entries {
            entries: vec![entry.clone()],
            next: Some(key("z")),
            rev: 9,
        })),
        Ok(Answer::Inspected(inspection)),
        Ok(Answer::Applied),
        Ok(Answer::Backlog(Backlog::default())),
        Ok(Answer::Subjects(vec![SubjectCount {
            subject: Subject::new("a.b").unwrap(),
            events: 2,
        }])),
        Err(error()),
    ];
    let delivery = Delivery {
        token: Token { seq: 1, lease: 2 },
        event: stored(1),
        delivered_hint: 3,
    };
    let pulled = vec![
        Pulled::Heard {
            messages: vec![message()],
            heard: Heard::Lagged { at_least: 5 },
        },
        Pulled::Heard {
            messages: vec![],
            heard: Heard::NoResponders,
        },
        Pulled::Followed {
            events: vec![stored(1)],
            followed: Ok(Followed::Events {
                added: 1,
                behind: 2,
            }),
        },
        Pulled::Followed {
            events: vec![],
            followed: Ok(Followed::Reset),
        },
        Pulled::Followed {
            events: vec![],
            followed: Err(error()),
        },
        Pulled::Deliveries {
            deliveries: vec![delivery],
        },
        Pulled::Gap(Gap { from: 1, to: 2 }),
        Pulled::Gone,
        Pulled::Cancelled,
        Pulled::Watched {
            changes: vec![
                Watched::Put(entry),
                Watched::Deleted {
                    key: key("a"),
                    rev: 1,
                    at: at(0),
                },
                Watched::Expired {
                    key: key("a"),
                    rev: 1,
                    at: at(0),
                },
                Watched::CaughtUp(7),
            ],
        },
        Pulled::Failed(error()),
    ];
    let answers = answers
        .into_iter()
        .map(|answer| Reply::Answer { id: 1, answer });
    let opened = [Ok(Some(Start { next: 1, tail: 2 })), Ok(None), Err(error())]
        .map(|opened| Reply::Opened { reader: 1, opened });
    let pulled = pulled
        .into_iter()
        .map(|pulled| Reply::Pulled { reader: 1, pulled });
    answers.chain(opened).chain(pulled).collect()
}

/// Reads what was written, and nothing that is cut short or longer.
fn check<T: Wire + std::fmt::Debug>(value: &T) {
    let bytes = frame(value);
    let again: T = read(&bytes).unwrap();
    assert_eq!(format!("{again:?}"), format!("{value:?}"));
    for length in 0..bytes.len() {
        assert!(
            read::<T>(&bytes[..length]).is_err(),
            "{length} bytes of {value:?}"
        );
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(read::<T>(&longer).is_err(), "{value:?} with a byte more");
}

#[test]
fn every_frame_is_read_as_it_was_written() {
    requests().iter().for_each(check);
    replies().iter().for_each(check);
}

proptest! {
    #[test]
    fn bytes_that_are_no_frame_are_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read::<Request>(&bytes);
        let _ = read::<Reply>(&bytes);
    }

    #[test]
    fn a_frame_with_a_byte_changed_makes_nothing_panic(which in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (requests, replies) = (requests(), replies());
        for bytes in [frame(which.get(&requests)), frame(which.get(&replies))] {
            let mut bytes = bytes.to_vec();
            let place = place.index(bytes.len());
            bytes[place] = byte;
            let _ = read::<Request>(&bytes);
            let _ = read::<Reply>(&bytes);
        }
    }
}
