//! Rules whose states are hard to bring about on a real server, over the server's own JSON. All
//! others are in `tests/doctor.rs`.

use serde_json::{Value, json};

use crate::doctor::rules::RULES;
use crate::doctor::{Snapshot, judge};

/// A healthy server with one stream and one consumer, changed by a JSON pointer.
fn snapshot(changes: &[(&str, Value)]) -> Snapshot {
    let mut value = json!({
        "server": {"name": "n1", "version": "2.15.1", "jetstream": true, "cluster": "c1"},
        "account": {"limits": {"max_storage": -1, "max_memory": -1, "max_streams": -1}},
        "streams": [{
            "config": {
                "name": "EVENTS", "subjects": ["events.>"], "retention": "limits",
                "discard": "old", "storage": "file", "num_replicas": 3,
                "max_age": 604_800_000_000_000_u64, "duplicate_window": 120_000_000_000_u64
            },
            "state": {"messages": 1, "first_seq": 1, "last_seq": 1, "consumer_count": 1,
                      "subjects": {"events.order.placed": 1}},
            "cluster": {"name": "c1", "leader": "n1", "replicas": [
                {"name": "n2", "current": true}, {"name": "n3", "current": true}
            ]},
            "mirror": null, "sources": []
        }],
        "consumers": [{
            "stream_name": "EVENTS", "name": "billing", "created": "2026-01-01T00:00:00Z",
            "config": {
                "durable_name": "billing", "ack_policy": "explicit", "ack_wait": 30_000_000_000_u64,
                "max_deliver": -1, "max_ack_pending": 1000, "num_replicas": 0,
                "filter_subject": "events.order.placed"
            },
            "delivered": {"consumer_seq": 1, "stream_seq": 1, "last_active": "2026-01-01T00:00:00Z"},
            "cluster": {"name": "c1", "leader": "n1"},
            "ts": "2026-01-01T00:10:00Z"
        }],
        "monitor": {"jetstream": {"sync_always": true, "max_storage": 1000}, "subscriptions": []},
        "idle_after_s": 60
    });
    for (pointer, change) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        value.pointer_mut(parent).unwrap()[key] = change.clone();
    }
    serde_json::from_value(value).unwrap()
}

fn check(expected: &[&str], changes: &[(&str, Value)]) {
    let findings = judge(&snapshot(changes));
    let codes: Vec<&str> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, expected, "{changes:?}: {findings:#?}");
}

#[test]
fn a_cluster_is_judged_by_what_its_replicas_say() {
    let peer = |with: Value| {
        let mut peer = json!({"name": "n2", "current": true});
        for (key, value) in with.as_object().unwrap() {
            peer[key] = value.clone();
        }
        [("/streams/0/cluster/replicas", json!([peer]))]
    };
    check(&[], &[]);
    check(
        &["TD-32"],
        &peer(json!({"offline": true, "current": false})),
    );
    check(&["TD-32"], &peer(json!({"current": false, "lag": 5_000})));
    check(&[], &peer(json!({"current": false, "lag": 5})));
    check(&["TD-31"], &[("/streams/0/cluster/leader", json!(""))]);
    check(
        &["TD-31"],
        &[("/consumers/0/cluster", json!({"name": "c1"}))],
    );
    check(&["TD-24"], &[("/streams/0/config/num_replicas", json!(1))]);
    // A lone server has no cluster to spread over.
    check(
        &[],
        &[
            ("/streams/0/config/num_replicas", json!(1)),
            ("/streams/0/cluster", json!({"leader": "n1"})),
        ],
    );
    check(
        &["TD-25"],
        &[("/consumers/0/config/num_replicas", json!(1))],
    );
}

#[test]
fn versions_are_compared_as_numbers() {
    for (version, expected) in [
        ("2.10.29", Some("TD-33")),
        ("2.12.0", Some("TD-33")),
        ("2.12.2", Some("TD-34")),
        ("2.14.6", Some("TD-34")),
        ("2.15.0", None),
        ("2.15.1-dev", None),
        ("3.0.0", None),
        ("unknown", None),
    ] {
        let expected: Vec<&str> = expected.into_iter().collect();
        check(&expected, &[("/server/version", json!(version))]);
    }
}

#[test]
fn a_copy_is_behind_by_lag_silence_or_error() {
    let mirror = |lag: u64, active: i64| {
        [
            ("/streams/0/config/mirror", json!({"name": "ORIGIN"})),
            (
                "/streams/0/mirror",
                json!({"name": "ORIGIN", "lag": lag, "active": active}),
            ),
        ]
    };
    check(&[], &mirror(0, 1_000_000_000));
    check(&["TD-40"], &mirror(5_000, 1_000_000_000));
    check(&["TD-40"], &mirror(0, 120_000_000_000));
    check(&["TD-40"], &mirror(0, -1));
}

#[test]
fn nobody_is_missed_before_the_time_or_while_somebody_works() {
    let pending = ("/consumers/0/num_pending", json!(3));
    check(&["TD-17"], std::slice::from_ref(&pending));
    check(
        &[],
        &[pending.clone(), ("/consumers/0/num_waiting", json!(1))],
    );
    check(
        &[],
        &[pending.clone(), ("/consumers/0/num_ack_pending", json!(1))],
    );
    check(
        &[],
        &[pending, ("/consumers/0/ts", json!("2026-01-01T00:00:30Z"))],
    );
}

#[test]
fn a_gauge_is_read_by_nobody_and_pausing_it_stops_nothing() {
    let gauge = |change: (&str, Value)| {
        let marked = (
            "/consumers/0/config/metadata",
            json!({"trunkline.gauge": "1"}),
        );
        snapshot(&[marked, ("/consumers/0/num_pending", json!(3)), change])
    };
    let asleep = ("/consumers/0/num_waiting", json!(0));
    assert_eq!(judge(&gauge(asleep)), []);
    let paused = judge(&gauge(("/consumers/0/paused", json!(true))));
    assert_eq!(paused[0].code, "TD-35");
    assert!(paused[0].consequence.contains("goes on"), "{paused:?}");
    assert!(
        paused[0]
            .remedy
            .contains("trunkline consumers pause billing"),
        "{paused:?}"
    );
}

#[test]
fn before_2_14_others_do_not_see_every_lag() {
    for (version, blind) in [("2.12.2", true), ("2.13.9", true), ("2.14.0", false)] {
        let findings = judge(&snapshot(&[("/server/version", json!(version))]));
        assert_eq!(findings[0].code, "TD-34");
        assert_eq!(
            findings[0].consequence.contains("natscli"),
            blind,
            "{version}"
        );
    }
}

#[test]
fn limits_warn_only_those_who_have_something_to_lose() {
    let used = |bytes: u64| {
        [
            ("/streams/0/config/max_bytes", json!(1_000)),
            ("/streams/0/state/bytes", json!(bytes)),
        ]
    };
    // A ring that everybody has read is full on purpose.
    check(&[], &used(990));
    let behind = ("/consumers/0/num_ack_pending", json!(1));
    check(
        &["TD-21"],
        &[&used(810)[..], std::slice::from_ref(&behind)].concat(),
    );
    check(&[], &[&used(790)[..], &[behind]].concat());
    let refuses = ("/streams/0/config/discard", json!("new"));
    check(&["TD-23"], &[&used(990)[..], &[refuses]].concat());
    check(
        &["TD-27"],
        &[("/streams/0/state/consumer_count", json!(900))],
    );
    check(&["TD-22"], &[("/monitor/jetstream/storage", json!(900))]);
    check(
        &["TD-26"],
        &[("/monitor/jetstream/sync_always", json!(false))],
    );
}

#[test]
fn floods_beside_durable_events_are_told() {
    let subjects = |tokens: u64| {
        json!({"seconds": 1, "filter": ">", "subjects": {
            "events.token.7": {"messages": tokens},
            "events.order.placed": {"messages": 10}
        }})
    };
    check(&["TD-05"], &[("/traffic", subjects(1_000))]);
    check(&[], &[("/traffic", subjects(20))]);
}

#[test]
fn ours_is_mended_by_our_own_plan() {
    let changes = [
        ("/streams/0/config/metadata", json!({"trunkline": "1"})),
        ("/streams/0/config/max_age", json!(604_800_000)),
    ];
    let findings = judge(&snapshot(&changes));
    assert_eq!(
        findings[0].remedy,
        "trunkline topology plan, then trunkline topology apply"
    );
    assert!(findings[0].what.contains("7 d"), "{findings:?}");
}

#[test]
fn every_rule_has_a_test_that_names_it() {
    let tests = concat!(
        include_str!("cases.rs"),
        include_str!("../../../tests/doctor.rs")
    );
    for rule in RULES {
        let named = format!("\"{}\"", rule.code);
        assert!(tests.contains(&named), "no test expects {}", rule.code);
    }
}
