//! What a bus declares, and how that stands beside what exists.

use std::collections::BTreeMap;

use smol_str::SmolStr;
use trunkline_core::engine::{Inspection, Reach, StreamSpec, StreamState};
use trunkline_core::plan::{Declaration, Placement, Plan, Roots, plan};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result, Subject};

use super::TopologyMode;
use crate::bus::{Catalogue, root};
use crate::event::Class;

/// The stream of durable events, of commands, and of dead letters.
pub(crate) const EVENTS: &str = "EVENTS";
pub(crate) const COMMANDS: &str = "COMMANDS";
pub(crate) const DEAD_LETTERS: &str = "EVENTS_DLQ";
/// The bucket in which consumers keep what they know of their events.
pub(crate) const BUCKET: &str = "trunkline";

/// What a program or a configuration declares.
#[derive(Debug)]
pub(crate) struct Declared {
    declaration: Declaration,
    /// The streams that it names itself. The others are those of every bus.
    own: Vec<Name>,
}

impl Declared {
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for a stream without subjects, and for one that is declared
    /// where everything is to be taken as found: it would be ignored.
    pub(crate) fn new(
        roots: &Roots,
        streams: Vec<StreamSpec>,
        catalogue: &Catalogue,
        mode: TopologyMode,
    ) -> Result<Self> {
        let own = streams.iter().map(|spec| spec.name.clone()).collect();
        let declaration = match mode {
            TopologyMode::AsFound => nothing_declared(&streams)?,
            TopologyMode::Ensure | TopologyMode::Verify => declare(roots, streams, catalogue)?,
        };
        Ok(Self { declaration, own })
    }

    /// What is to be done, and every stream as it should then be.
    pub(crate) fn plan(&self, found: &Inspection, reach: Reach) -> Result<(Plan, Vec<StreamSpec>)> {
        let mut declaration = self.declaration.clone();
        keep_as_found(&mut declaration.streams, &self.own, found);
        let plan = plan(&declaration, found)?;
        let plan = match reach {
            Reach::Network => plan,
            // A copy is worth something on another host only.
            _ => plan.without_growth(),
        };
        Ok((plan, declaration.streams))
    }

    /// Whether a stream of that name is declared.
    pub(crate) fn has(&self, name: &Name) -> bool {
        self.declaration
            .streams
            .iter()
            .any(|spec| spec.name == *name)
    }

    /// The copies that are asked for of each stream, where there can be some.
    pub(crate) fn copies(&self, reach: Reach) -> BTreeMap<Name, usize> {
        let streams = self.declaration.streams.iter();
        let asked = streams.map(|spec| (spec.name.clone(), spec.replicas));
        asked.filter(|_| reach == Reach::Network).collect()
    }
}

pub(crate) fn checked_source(source: &str) -> Result<SmolStr> {
    if source.is_empty()
        || source.len() > 200
        || source.chars().any(|c| c.is_whitespace() || c.is_control())
    {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "source {source:?} is not 1 to 200 characters without white space; name the service, as in /billing"
            ),
        ));
    }
    Ok(source.into())
}

pub(crate) fn roots(prefix: Option<&str>) -> Result<Roots> {
    let mut roots = Roots::default();
    match prefix {
        None => {}
        Some("") => roots.events = None,
        Some(prefix) => roots.events = Some(Subject::new(prefix.trim_end_matches('.'))?),
    }
    roots.check()?;
    Ok(roots)
}

/// The stream of that name as it is declared where nobody says otherwise. One for durable events
/// has no subjects without a root, and none under any name but `EVENTS`.
pub(crate) fn default_stream(name: Name, roots: &Roots) -> Result<StreamSpec> {
    let below = |root: &Subject| Ok::<_, Error>(vec![Filter::new(format!("{root}.>"))?]);
    Ok(match name.as_str() {
        COMMANDS => StreamSpec::work_queue(name, below(&roots.commands)?),
        DEAD_LETTERS => StreamSpec::dead_letters(name, below(&roots.dlq)?),
        EVENTS => {
            let subjects = roots.events.as_ref().map(below).transpose()?;
            StreamSpec::new(name, subjects.unwrap_or_default())
        }
        _ => StreamSpec::new(name, Vec::new()),
    })
}

/// # Errors
/// [`ErrorKind::InvalidConfig`] for a stream that is declared all the same: it would be ignored.
fn nothing_declared(own: &[StreamSpec]) -> Result<Declaration> {
    match own.first() {
        None => Ok(Declaration::default()),
        Some(spec) => Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "stream {} is declared, but the topology is to be taken as found; leave out one of the two",
                spec.name
            ),
        )),
    }
}

/// A stream that exists and that this program does not declare itself is taken as it is, as long as
/// it stores what the default one would: its limits are for others to say.
/// Copies are asked for all the same.
fn keep_as_found(declared: &mut [StreamSpec], own: &[Name], found: &Inspection) {
    for spec in declared {
        let stores_all = |found: &StreamSpec| {
            let stored = |subjects: &Filter| found.subjects.iter().any(|by| by.covers(subjects));
            spec.subjects.iter().all(stored) && found.retention == spec.retention
        };
        let same_name = |state: &&StreamState| state.spec.name == spec.name;
        if !own.contains(&spec.name)
            && let Some(state) = found.streams.iter().find(same_name)
            && stores_all(&state.spec)
        {
            *spec = StreamSpec {
                replicas: spec.replicas,
                ..state.spec.clone()
            };
        }
    }
}

fn declare(roots: &Roots, own: Vec<StreamSpec>, catalogue: &Catalogue) -> Result<Declaration> {
    let mut declaration = Declaration::default();
    let mut unrooted = Vec::new();
    for entry in catalogue.types.values() {
        let info = &entry.info;
        let filter = info.filter.below(root(roots, info.class))?;
        if info.class == Class::Durable && roots.events.is_none() {
            unrooted.push(filter.clone());
        }
        let placement = Placement {
            event_type: info.event_type.as_str().to_owned(),
            filter,
        };
        match info.class {
            Class::Ephemeral => declaration.unstored.push(placement),
            Class::Durable | Class::Command => declaration.stored.push(placement),
        }
    }
    let (mut events, mut others): (Vec<_>, Vec<_>) = own
        .into_iter()
        .partition(|spec| ![COMMANDS, DEAD_LETTERS].contains(&spec.name.as_str()));
    if events.is_empty() {
        events.push(default_stream(Name::new(EVENTS)?, roots)?);
    }
    for name in [COMMANDS, DEAD_LETTERS] {
        if !others.iter().any(|spec| spec.name.as_str() == name) {
            others.push(default_stream(Name::new(name)?, roots)?);
        }
    }
    for mut spec in events.into_iter().chain(others) {
        if spec.subjects.is_empty() {
            spec.subjects = default_stream(spec.name.clone(), roots)?.subjects;
        }
        if spec.subjects.is_empty() && spec.name.as_str() == EVENTS {
            // Without a root the types say what is stored, and without types nothing is.
            if unrooted.is_empty() {
                continue;
            }
            spec.subjects.clone_from(&unrooted);
        }
        if spec.subjects.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "stream {} has no subjects; give it those that it is to store, as events.order.>",
                    spec.name
                ),
            ));
        }
        declaration.streams.push(spec);
    }
    declaration.unstored.push(Placement {
        event_type: "(every ephemeral type)".to_owned(),
        filter: Filter::new(format!("{}.>", roots.live))?,
    });
    Ok(declaration)
}
