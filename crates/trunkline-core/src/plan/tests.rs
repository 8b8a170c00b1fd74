use std::time::Duration;

use super::*;
use crate::engine::{Retention, StreamState};

fn filters(text: &str) -> Vec<Filter> {
    text.split_whitespace()
        .map(|filter| Filter::new(filter).unwrap())
        .collect()
}

fn stream(name: &str, subjects: &str) -> StreamSpec {
    StreamSpec::new(Name::new(name).unwrap(), filters(subjects))
}

fn placement(filter: &str) -> Placement {
    Placement {
        event_type: "a type".to_owned(),
        filter: Filter::new(filter).unwrap(),
    }
}

fn check(streams: &[(&str, &str)], stored: &[&str], unstored: &[&str]) -> Result<Plan> {
    let declared = Declaration {
        streams: streams
            .iter()
            .map(|(name, subjects)| stream(name, subjects))
            .collect(),
        stored: stored.iter().map(|filter| placement(filter)).collect(),
        unstored: unstored.iter().map(|filter| placement(filter)).collect(),
    };
    plan(&declared, &Inspection::default())
}

#[test]
fn p5_a_type_that_no_stream_stores_is_refused_with_what_would() {
    let error = check(
        &[("EVENTS", "workflow.*")],
        &["workflow.execution.requested"],
        &[],
    )
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotStored);
    assert!(error.message().contains("workflow.> would"), "{error}");
    let error = check(&[("EVENTS", "a.b.*")], &["a.*.*"], &[]).unwrap_err();
    assert!(error.message().contains("only some"), "{error}");
    assert!(
        check(
            &[("EVENTS", "workflow.>")],
            &["workflow.execution.requested"],
            &[]
        )
        .is_ok()
    );
}

#[test]
fn p5_streams_that_overlap_are_refused() {
    let error = check(&[("A", "order.>"), ("B", "*.placed")], &[], &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overlap);
    assert!(check(&[("A", "order.>"), ("B", "user.>")], &[], &[]).is_ok());
}

#[test]
fn p5_an_ephemeral_type_on_a_stored_subject_is_refused() {
    let error = check(&[("A", "events.>")], &[], &["events.tick"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overlap);
    assert!(check(&[("A", "events.>")], &[], &["live.tick"]).is_ok());
}

#[test]
fn p5_roots_within_one_another_are_refused() {
    Roots::default().check().unwrap();
    let events = |text: &str| Roots {
        events: Some(Subject::new(text).unwrap()),
        ..Roots::default()
    };
    assert_eq!(
        events("live").check().unwrap_err().kind(),
        ErrorKind::Overlap
    );
    assert_eq!(
        events("live.events").check().unwrap_err().kind(),
        ErrorKind::Overlap
    );
    events("livestock").check().unwrap();
}

fn found(streams: Vec<StreamSpec>) -> Inspection {
    let state = |spec: StreamSpec| StreamState {
        spec,
        events: 0,
        bytes: 0,
        first: 1,
        tail: 1,
        first_at: None,
    };
    Inspection {
        streams: streams.into_iter().map(state).collect(),
        consumers: Vec::new(),
    }
}

fn declared(streams: Vec<StreamSpec>) -> Declaration {
    Declaration {
        streams,
        ..Declaration::default()
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// As somebody else made it.
fn foreign(spec: StreamSpec) -> StreamSpec {
    StreamSpec {
        metadata: BTreeMap::from([("team".to_owned(), "other".to_owned())]),
        ..spec
    }
}

#[test]
fn what_exists_and_differs_is_drift_and_never_created() {
    let spec = stream("EVENTS", "events.>");
    let old = StreamSpec {
        max_age: Some(Duration::from_millis(604)),
        ..spec.clone()
    };
    let plan = plan(&declared(vec![spec.clone()]), &found(vec![old])).unwrap();
    assert_eq!(plan.changes, []);
    let drift: Vec<&Existing> = plan.drift().collect();
    assert_eq!(
        drift[0].differences[0].to_string(),
        "max_age: 604ms, declared 7d"
    );
    assert!(!drift[0].differences[0].removes_events);
    assert_eq!(drift[0].update, Ok(Change::UpdateStream(spec.clone())));
    assert_eq!(differences(&spec, &spec), []);
}

#[test]
fn each_setting_is_compared_and_written_as_in_the_configuration() {
    let spec = stream("EVENTS", "events.>");
    let other = StreamSpec {
        retention: Retention::RefuseWhenFull,
        max_events: Some(10),
        max_bytes: Some(3 << 20),
        max_age: None,
        max_message: 1_000,
        duplicate_window: Duration::from_secs(90),
        replicas: 1,
        ..stream("EVENTS", "b.> a.>")
    };
    let check = |found: &StreamSpec, declared: &StreamSpec, expected: &[(&str, bool)]| {
        let rows = differences(found, declared).into_iter();
        let rows: Vec<_> = rows
            .map(|row| (row.to_string(), row.removes_events))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(text, removes)| ((*text).to_owned(), *removes))
            .collect();
        assert_eq!(rows, expected);
    };
    check(
        &spec,
        &other,
        &[
            ("subjects: events.>, declared a.> b.>", false),
            ("retention: discard_old, declared refuse_when_full", false),
            ("max_events: unlimited, declared 10", false),
            ("max_bytes: unlimited, declared 3MiB", false),
            ("max_age: 7d, declared unlimited", false),
            ("max_message: 2016KiB, declared 1000", false),
            ("duplicate_window: 2m, declared 1m30s", false),
        ],
    );
    let lower = StreamSpec {
        max_events: Some(10),
        max_age: Some(Duration::from_secs(3_600)),
        ..spec.clone()
    };
    check(
        &spec,
        &lower,
        &[
            ("max_events: unlimited, declared 10", true),
            ("max_age: 7d, declared 1h", true),
        ],
    );
}

#[test]
fn fewer_copies_are_growth_and_more_are_nothing() {
    let spec = stream("EVENTS", "events.>");
    let copies = |replicas| StreamSpec {
        replicas,
        ..spec.clone()
    };
    let growing = plan(&declared(vec![spec.clone()]), &found(vec![copies(1)])).unwrap();
    assert_eq!(growing.drift().count(), 0);
    let growth = Growth {
        found: 1,
        declared: 3,
    };
    assert_eq!(growing.existing[0].growth, Some(growth));
    assert!(!growing.is_empty());
    assert_eq!(
        growing.steps(&[]).unwrap().changes,
        [Change::UpdateStream(copies(3))]
    );
    assert!(growing.without_growth().is_empty());
    let plan = plan(&declared(vec![copies(1)]), &found(vec![copies(3)])).unwrap();
    assert!(plan.is_empty());
    assert_eq!(plan.existing[0].update, Ok(Change::UpdateStream(copies(3))));
}

#[test]
fn foreign_streams_are_changed_only_when_they_are_adopted() {
    let spec = stream("ORDERS", "order.>");
    let theirs = foreign(StreamSpec {
        max_age: None,
        ..spec.clone()
    });
    let other = foreign(stream("OTHER", "other.>"));
    let all = found(vec![theirs, other]);
    let plan = plan(&declared(vec![spec.clone()]), &all).unwrap();
    assert!(!plan.existing[0].is_ours());
    assert_eq!(plan.undeclared, [name("OTHER")]);
    let steps = plan.steps(&[]).unwrap();
    assert_eq!(steps.changes, []);
    assert_eq!(steps.left[0].why, Why::Foreign);
    let steps = plan.steps(&[name("ORDERS")]).unwrap();
    let [Change::UpdateStream(adopted)] = &steps.changes[..] else {
        panic!("{steps:?}")
    };
    assert_eq!(adopted.max_age, spec.max_age);
    assert_eq!(adopted.metadata["team"], "other");
    assert!(is_ours(adopted));
    for (text, kind) in [
        ("OTHER", ErrorKind::InvalidConfig),
        ("NONE", ErrorKind::NoSuchStream),
    ] {
        assert_eq!(plan.steps(&[name(text)]).unwrap_err().kind(), kind);
    }
}

#[test]
fn a_foreign_stream_as_it_is_declared_can_be_adopted_and_need_not_be() {
    let spec = stream("ORDERS", "order.>");
    let all = found(vec![foreign(StreamSpec {
        replicas: 1,
        ..spec.clone()
    })]);
    let plan = plan(&declared(vec![spec]), &all).unwrap();
    assert!(plan.is_empty());
    assert_eq!(plan.steps(&[]).unwrap(), Steps::default());
    assert_eq!(plan.steps(&[name("ORDERS")]).unwrap().changes.len(), 1);
}

#[test]
fn what_would_become_a_work_queue_is_left_with_the_reason() {
    let jobs = stream("JOBS", "job.>");
    let queue = StreamSpec::work_queue(jobs.name.clone(), jobs.subjects.clone());
    for (old, new) in [(&jobs, &queue), (&queue, &jobs)] {
        let plan = plan(&declared(vec![new.clone()]), &found(vec![old.clone()])).unwrap();
        let steps = plan.steps(&[]).unwrap();
        assert_eq!(steps.changes, []);
        let Why::Impossible(why) = &steps.left[0].why else {
            panic!("{steps:?}")
        };
        assert!(why.contains("make a new stream"), "{why}");
    }
}

#[test]
fn subjects_move_from_stream_to_stream_in_an_order_without_overlap() {
    let before = found(vec![stream("A", "a.> b.>"), stream("C", "c.>")]);
    // C takes from A what A gives up first, and D what C had.
    let after = declared(vec![
        stream("C", "b.>"),
        stream("A", "a.>"),
        stream("D", "c.>"),
    ]);
    let steps = plan(&after, &before).unwrap().steps(&[]).unwrap();
    let names: Vec<&str> = steps
        .changes
        .iter()
        .map(|change| match change {
            Change::CreateStream(spec) | Change::UpdateStream(spec) => spec.name.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["A", "C", "D"]);
    // A swap has no such order; nothing is left out all the same.
    let swapped = declared(vec![stream("A", "c.>"), stream("C", "a.> b.>")]);
    let steps = plan(&swapped, &before).unwrap().steps(&[]).unwrap();
    assert_eq!(steps.changes.len(), 2);
}
