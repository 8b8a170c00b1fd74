//! The topology as a pure function: from what a bus declares and what exists to what is to be done.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::engine::{Change, Inspection, Limits, Retention, StreamSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::subject::{Filter, Subject};

/// The key of a stream's metadata that says that Trunkline made it, and so may change it.
pub const OWNER_KEY: &str = "trunkline";

/// The first tokens of each class of subjects. They are apart, so that a stream never swallows a
/// request or an ephemeral event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// Durable events. Without a root, streams are derived from the catalogue type by type.
    pub events: Option<Subject>,
    /// Commands.
    pub commands: Subject,
    /// Ephemeral events.
    pub live: Subject,
    /// Dead letters.
    pub dlq: Subject,
}

impl Default for Roots {
    fn default() -> Self {
        #[expect(
            clippy::expect_used,
            reason = "the four are literals, and a test makes them"
        )]
        let root = |text| Subject::new(text).expect("a legal subject");
        Self {
            events: Some(root("events")),
            commands: root("commands"),
            live: root("live"),
            dlq: root("dlq"),
        }
    }
}

impl Roots {
    /// Refuses roots that lie within one another.
    ///
    /// # Errors
    /// [`ErrorKind::Overlap`] naming both.
    pub fn check(&self) -> Result<()> {
        let mut roots = vec![
            ("commands", &self.commands),
            ("live", &self.live),
            ("dlq", &self.dlq),
        ];
        roots.extend(self.events.iter().map(|events| ("events", events)));
        for (index, (class, root)) in roots.iter().enumerate() {
            for (other_class, other) in &roots[index + 1..] {
                let within = |outer: &Subject, inner: &Subject| {
                    inner == outer || inner.without(Some(outer)).is_some()
                };
                if within(root, other) || within(other, root) {
                    return Err(Error::new(
                        ErrorKind::Overlap,
                        format!(
                            "the roots of {class} ({root}) and {other_class} ({other}) overlap; \
                             give each a first token of its own"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A type of event as the topology sees it: a name to call it by, and where its events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The event type.
    pub event_type: String,
    /// The subjects of its events, root included.
    pub filter: Filter,
}

/// What a bus declares.
#[derive(Clone, Debug, Default)]
pub struct Declaration {
    /// The streams that should exist.
    pub streams: Vec<StreamSpec>,
    /// The types that must be stored, each by exactly one stream.
    pub stored: Vec<Placement>,
    /// The types that must not be stored.
    pub unstored: Vec<Placement>,
}

/// What is to be done, and what stands in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Changes that only create.
    pub changes: Vec<Change>,
    /// Streams that exist and differ from what is declared.
    pub drift: Vec<Drift>,
}

/// A stream that exists and differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The stream.
    pub stream: Name,
    /// Each difference as `setting: found, declared`.
    pub differences: Vec<String>,
}

/// Compares what is declared with what exists.
///
/// # Errors
/// [`ErrorKind::NotStored`] when a durable type lies in no stream, [`ErrorKind::Overlap`] when it
/// lies in two, when two streams overlap, or when an ephemeral type lies in one.
pub fn plan(declared: &Declaration, found: &Inspection) -> Result<Plan> {
    let mut all: BTreeMap<&Name, &StreamSpec> = found
        .streams
        .iter()
        .map(|stream| (&stream.spec.name, &stream.spec))
        .collect();
    let mut plan = Plan::default();
    for spec in &declared.streams {
        match all.insert(&spec.name, spec) {
            None => plan.changes.push(Change::CreateStream(spec.clone())),
            Some(found) => {
                let differences = differences(found, spec);
                if !differences.is_empty() {
                    plan.drift.push(Drift {
                        stream: spec.name.clone(),
                        differences,
                    });
                }
            }
        }
    }
    let streams: Vec<&StreamSpec> = all.into_values().collect();
    apart(&streams)?;
    for placement in &declared.stored {
        stored_once(placement, &streams)?;
    }
    for Placement { event_type, filter } in &declared.unstored {
        if let Some((stream, subjects)) = overlapping(filter, &streams) {
            return Err(Error::new(
                ErrorKind::Overlap,
                format!(
                    "ephemeral type {event_type:?} on {filter} would be stored by stream {stream}, \
                     which takes {subjects}; give it a subject outside that"
                ),
            ));
        }
    }
    Ok(plan)
}

fn apart(streams: &[&StreamSpec]) -> Result<()> {
    for (index, stream) in streams.iter().enumerate() {
        for filter in &stream.subjects {
            if let Some((other, subjects)) = overlapping(filter, &streams[index + 1..]) {
                return Err(Error::new(
                    ErrorKind::Overlap,
                    format!(
                        "streams {} and {other} would both store what matches {filter} and {subjects}; \
                         give each subject to one stream",
                        stream.name
                    ),
                ));
            }
        }
    }
    Ok(())
}

fn stored_once(
    Placement { event_type, filter }: &Placement,
    streams: &[&StreamSpec],
) -> Result<()> {
    let covers = |stream: &&StreamSpec| {
        stream
            .subjects
            .iter()
            .any(|subjects| subjects.covers(filter))
    };
    if streams.iter().any(covers) {
        return Ok(()); // By one only, because streams do not overlap.
    }
    let hint = match overlapping(filter, streams) {
        Some((stream, subjects)) => {
            format!("stream {stream} with {subjects} takes only some of them")
        }
        None => {
            let known: Vec<Filter> = streams
                .iter()
                .flat_map(|stream| stream.subjects.clone())
                .collect();
            match known
                .iter()
                .find_map(|subjects| subjects.nearest([filter]).map(|near| (subjects, near)))
            {
                Some((subjects, near)) => {
                    format!(
                        "{subjects} does not match it, {near} would: `*` is one token, `>` one or more"
                    )
                }
                None => "add a stream for them".to_owned(),
            }
        }
    };
    Err(Error::new(
        ErrorKind::NotStored,
        format!("no stream stores the events of {event_type:?} on {filter}: {hint}"),
    ))
}

fn overlapping<'a>(filter: &Filter, streams: &[&'a StreamSpec]) -> Option<(&'a Name, &'a Filter)> {
    streams.iter().find_map(|stream| {
        stream
            .subjects
            .iter()
            .find(|subjects| subjects.overlaps(filter))
            .map(|subjects| (&stream.name, subjects))
    })
}

/// Every setting in which two specifications differ. Metadata is a mark, not a setting.
pub fn differences(found: &StreamSpec, declared: &StreamSpec) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |setting: &str, found: String, declared: String| {
        if found != declared {
            differences.push(format!("{setting}: {found}, declared {declared}"));
        }
    };
    let subjects = |spec: &StreamSpec| {
        let mut subjects: Vec<_> = spec.subjects.iter().map(Filter::as_str).collect();
        subjects.sort_unstable();
        subjects.join(" ")
    };
    compare("subjects", subjects(found), subjects(declared));
    compare(
        "retention",
        format!("{:?}", found.retention),
        format!("{:?}", declared.retention),
    );
    compare(
        "max_events",
        format!("{:?}", found.max_events),
        format!("{:?}", declared.max_events),
    );
    compare(
        "max_bytes",
        format!("{:?}", found.max_bytes),
        format!("{:?}", declared.max_bytes),
    );
    compare(
        "max_age",
        format!("{:?}", found.max_age),
        format!("{:?}", declared.max_age),
    );
    compare(
        "max_message",
        found.max_message.to_string(),
        declared.max_message.to_string(),
    );
    compare(
        "duplicate_window",
        format!("{:?}", found.duplicate_window),
        format!("{:?}", declared.duplicate_window),
    );
    differences
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl StreamSpec {
    /// A stream of Trunkline's with its defaults: 7 days, no limit in count or bytes, the oldest
    /// leave first, ids remembered for 2 minutes.
    pub fn new(name: Name, subjects: Vec<Filter>) -> Self {
        Self {
            name,
            subjects,
            retention: Retention::DiscardOld,
            max_events: None,
            max_bytes: None,
            max_age: Some(7 * DAY),
            max_message: Limits::default().max_message,
            duplicate_window: Duration::from_secs(120),
            metadata: BTreeMap::from([(OWNER_KEY.to_owned(), "1".to_owned())]),
        }
    }

    /// A stream for dead letters: 30 days, refuses when full, and takes a message of every other
    /// stream together with its story.
    pub fn dead_letters(name: Name, subjects: Vec<Filter>) -> Self {
        let spec = Self::new(name, subjects);
        Self {
            retention: Retention::RefuseWhenFull,
            max_age: Some(30 * DAY),
            max_message: spec.max_message + (32 << 10),
            ..spec
        }
    }

    /// A stream for commands: each leaves when it is done.
    pub fn work_queue(name: Name, subjects: Vec<Filter>) -> Self {
        Self {
            retention: Retention::WorkQueue,
            ..Self::new(name, subjects)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::StreamState;

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

    #[test]
    fn what_exists_and_differs_is_drift_and_never_a_change() {
        let spec = stream("EVENTS", "events.>");
        let state = |spec: StreamSpec| StreamState {
            spec,
            events: 0,
            bytes: 0,
            first: 1,
            tail: 1,
            first_at: None,
        };
        let found = Inspection {
            streams: vec![state(StreamSpec {
                max_age: Some(Duration::from_millis(604)),
                ..spec.clone()
            })],
            consumers: Vec::new(),
        };
        let declared = Declaration {
            streams: vec![spec.clone()],
            ..Declaration::default()
        };
        let plan = plan(&declared, &found).unwrap();
        assert_eq!(plan.changes, []);
        assert_eq!(
            plan.drift[0].differences,
            ["max_age: Some(604ms), declared Some(604800s)"]
        );
        assert_eq!(differences(&spec, &spec), Vec::<String>::new());
    }
}
