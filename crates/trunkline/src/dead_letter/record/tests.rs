use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_nanos(seconds * 1_000_000_000)
}

fn dead() -> Record {
    Record {
        state: State::Dead,
        entry: 3,
        incarnation: None,
        key: Some("o-1".into()),
        event_id: Some("e1".into()),
        event_type: Some("order.placed".into()),
        reason: "failed".into(),
        error: "no \"card\"\n".to_owned(),
        failures: 5,
        first_failure: time(0),
        last_failure: time(60),
        replays: 0,
        history: Vec::new(),
    }
}

fn replaying() -> Record {
    dead().replaying("ann", time(100)).unwrap()
}

/// What is written is pinned, because other versions read it.
#[test]
fn a_record_is_read_as_it_is_written() {
    let discarded = dead().discarded(&Discard::because("a test"), "bob", time(200));
    let again = replaying()
        .dead_again(time(101), "panicked", "bang", 2)
        .unwrap();
    for (record, expected) in [
        (
            dead(),
            r#"{"entry":3,"error":"no \"card\"\n","failures":5,"first_failure":"1970-01-01T00:00:00Z","id":"e1","key":"o-1","last_failure":"1970-01-01T00:01:00Z","reason":"failed","state":"dead","type":"order.placed","v":1}"#,
        ),
        (
            Record {
                key: None,
                event_id: None,
                event_type: None,
                incarnation: Some("x".into()),
                ..replaying()
            },
            r#"{"at":"1970-01-01T00:01:40Z","by":"ann","entry":3,"error":"no \"card\"\n","failures":5,"first_failure":"1970-01-01T00:00:00Z","incarnation":"x","last_failure":"1970-01-01T00:01:00Z","reason":"failed","replays":1,"state":"replaying","v":1}"#,
        ),
        (
            again,
            r#"{"entry":3,"error":"bang","failures":7,"first_failure":"1970-01-01T00:00:00Z","history":[{"at":"1970-01-01T00:01:40Z","by":"ann","ended":"1970-01-01T00:01:41Z","error":"bang","reason":"panicked"}],"id":"e1","key":"o-1","last_failure":"1970-01-01T00:01:41Z","reason":"panicked","replays":1,"state":"dead","type":"order.placed","v":1}"#,
        ),
        (
            replaying().replayed(time(101)).unwrap(),
            r#"{"at":"1970-01-01T00:01:41Z","entry":3,"error":"no \"card\"\n","failures":5,"first_failure":"1970-01-01T00:00:00Z","history":[{"at":"1970-01-01T00:01:40Z","by":"ann","ended":"1970-01-01T00:01:41Z"}],"id":"e1","key":"o-1","last_failure":"1970-01-01T00:01:00Z","reason":"failed","replays":1,"state":"replayed","type":"order.placed","v":1}"#,
        ),
        (
            discarded.unwrap(),
            r#"{"at":"1970-01-01T00:03:20Z","because":"a test","by":"bob","entry":3,"error":"no \"card\"\n","failures":5,"first_failure":"1970-01-01T00:00:00Z","id":"e1","key":"o-1","last_failure":"1970-01-01T00:01:00Z","reason":"failed","state":"discarded","type":"order.placed","v":1}"#,
        ),
    ] {
        assert_eq!(record.encode(), expected);
        assert_eq!(Record::decode(expected.as_bytes()).unwrap(), record);
    }
}

#[test]
fn only_what_is_dead_is_replayed_and_only_what_is_replayed_has_an_outcome() {
    let done = replaying().replayed(time(101)).unwrap();
    let discard = Discard::because("");
    let discarded = dead().discarded(&discard, "bob", time(1)).unwrap();
    // May be: replayed, done, dead again, discarded, discarded although it is replayed.
    for (record, may) in [
        (dead(), [true, false, false, true, true]),
        (replaying(), [false, true, true, false, true]),
        (done, [false; 5]),
        (discarded, [false; 5]),
    ] {
        let moved = [
            record.replaying("x", time(1)).is_some(),
            record.replayed(time(1)).is_some(),
            record.dead_again(time(1), "failed", "", 1).is_some(),
            record.discarded(&discard, "x", time(1)).is_some(),
            record
                .discarded(&discard.clone().also_replaying(), "x", time(1))
                .is_some(),
        ];
        assert_eq!(moved, may, "{:?}", record.state);
    }
}

#[test]
fn the_history_is_that_of_the_last_five_replays() {
    let mut record = dead();
    for round in 0..7 {
        let asked = record.replaying("ann", time(round)).unwrap();
        record = asked.dead_again(time(round), "failed", "no", 1).unwrap();
    }
    assert_eq!((record.replays, record.failures), (7, 12));
    let rounds: Vec<_> = record.history.iter().map(|replay| replay.at).collect();
    assert_eq!(rounds, [2, 3, 4, 5, 6].map(time));
}

#[test]
fn the_largest_record_is_a_small_value() {
    let long = "\u{1}".repeat(100_000);
    let record = Record {
        key: Some(long[..1_024].into()),
        error: long[..1_024].to_owned(),
        ..dead()
    };
    let mut record = record.replaying(&long, time(0)).unwrap();
    for _ in 0..7 {
        record = record.dead_again(time(1), &long, &long, 1).unwrap();
        record = record.replaying(&long, time(2)).unwrap();
    }
    let discard = Discard::because(long.clone()).also_replaying();
    let record = record.discarded(&discard, &long, time(3)).unwrap();
    // Every engine takes values of 64 KiB.
    assert!(
        record.encode().len() < 48 << 10,
        "{}",
        record.encode().len()
    );
    assert_eq!(Record::decode(&record.encode()).unwrap(), record);
}

#[test]
fn what_is_no_record_is_refused_by_kind() {
    for (value, kind) in [
        ("", ErrorKind::Decode),
        ("[]", ErrorKind::Decode),
        ("{}", ErrorKind::Decode),
        (r#"{"v":"1"}"#, ErrorKind::Decode),
        (r#"{"v":1,"state":"asleep"}"#, ErrorKind::Decode),
        (r#"{"v":2}"#, ErrorKind::WrongVersion),
    ] {
        let error = Record::decode(value.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), kind, "{value}: {error}");
    }
    let good = replaying()
        .dead_again(time(1), "failed", "no", 1)
        .unwrap()
        .encode();
    for seed in 0..20_000 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut bad = good.to_vec();
        let at = random.random_range(0..bad.len());
        match random.random_range(0..3) {
            0 => bad[at] = random.random(),
            1 => drop(bad.remove(at)),
            _ => bad.truncate(at),
        }
        // Read or refused, and never anything else.
        if let Ok(record) = Record::decode(&bad) {
            assert_eq!(
                Record::decode(&record.encode()).unwrap(),
                record,
                "seed {seed}"
            );
        }
    }
}

#[test]
fn names_of_states_are_read_as_they_are_written() {
    for state in Stands::ALL {
        assert_eq!(state.to_string().parse::<Stands>().unwrap(), state);
    }
    assert_eq!(
        "lost".parse::<Stands>().unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
}
