//! The topology as a pure function: from what a bus declares and what exists to what is to be done.

mod difference;
pub mod legal;
mod spec;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::engine::{Change, Inspection, StreamSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::subject::{Filter, Subject};

pub use difference::{
    Difference, differences, duration_text, reconciled, retention_text, size_text,
};
pub use steps::{Left, Steps, Why};

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

/// What is to be done so that what exists is what is declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is missing: changes that only create.
    pub changes: Vec<Change>,
    /// Each declared stream that exists, in the order of the declaration.
    pub existing: Vec<Existing>,
    /// Streams that exist and are not declared. Nothing is ever done to them.
    pub undeclared: Vec<Name>,
}

/// A declared stream that exists, beside what is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// As it was found.
    pub found: StreamSpec,
    /// Every setting in which it differs. Copies and metadata are none.
    pub differences: Vec<Difference>,
    /// The copies that it lacks.
    pub growth: Option<Growth>,
    /// The [`Change::UpdateStream`] that makes it ours and as it is declared, or why there is none.
    pub update: Result<Change, String>,
}

/// Copies that a stream lacks. That is no drift: there may be no host yet to keep them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Copies that there are.
    pub found: usize,
    /// Copies that are declared.
    pub declared: usize,
}

impl Existing {
    /// The stream.
    pub fn name(&self) -> &Name {
        &self.found.name
    }

    /// Whether Trunkline made or adopted it. Only then it may be changed.
    pub fn is_ours(&self) -> bool {
        is_ours(&self.found)
    }

    /// Whether nothing is to be done. Copies of a foreign stream are for others to make.
    pub fn is_as_declared(&self) -> bool {
        self.differences.is_empty() && (self.growth.is_none() || !self.is_ours())
    }
}

impl Plan {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.existing.iter().all(Existing::is_as_declared)
    }

    /// The streams that differ from what is declared.
    pub fn drift(&self) -> impl Iterator<Item = &Existing> {
        let differs = |existing: &&Existing| !existing.differences.is_empty();
        self.existing.iter().filter(differs)
    }

    /// The plan on an engine of one host, which has nowhere to keep a second copy.
    pub fn without_growth(mut self) -> Self {
        for existing in &mut self.existing {
            existing.growth = None;
        }
        self
    }
}

/// Whether a stream has Trunkline's mark.
pub fn is_ours(stream: &StreamSpec) -> bool {
    stream.metadata.contains_key(OWNER_KEY)
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
            Some(found) => plan.existing.push(Existing {
                differences: differences(found, spec),
                growth: (found.replicas < spec.replicas).then_some(Growth {
                    found: found.replicas,
                    declared: spec.replicas,
                }),
                update: reconciled(found, spec).map(Change::UpdateStream),
                found: found.clone(),
            }),
        }
    }
    let is_declared = |name: &Name| declared.streams.iter().any(|spec| spec.name == *name);
    let others = all.keys().filter(|name| !is_declared(name));
    plan.undeclared = others.map(|name| (*name).clone()).collect();
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
