//! From a plan to changes that an engine can make one after another.

use std::collections::BTreeMap;

use super::{Existing, Plan};
use crate::engine::{Change, StreamSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::subject::Filter;

/// What carries out a plan, and what of it is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// In an order in which no two streams overlap in between, where there is one.
    pub changes: Vec<Change>,
    /// Streams that differ and stay as they are.
    pub left: Vec<Left>,
}

/// A stream that differs and stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// The stream.
    pub stream: Name,
    /// Why.
    pub why: Why,
}

/// Why a stream stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Others made it, and it was not adopted.
    Foreign,
    /// No change makes one of the other; in words that follow the stream's name.
    Impossible(String),
}

impl Plan {
    /// What carries out the plan: creates what is missing and changes what is ours. Of foreign
    /// streams only those named in `adopt` are changed, and become ours.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchStream`] and [`ErrorKind::InvalidConfig`] when one that is to be adopted
    /// does not exist or is not declared.
    pub fn steps(&self, adopt: &[Name]) -> Result<Steps> {
        for name in adopt {
            self.check_adopted(name)?;
        }
        let mut left = Vec::new();
        let mut wanted = Vec::new();
        for existing in &self.existing {
            let is_adopted = !existing.is_ours() && adopt.contains(existing.name());
            if existing.is_as_declared() && !is_adopted {
                continue;
            }
            match (&existing.update, existing.is_ours() || is_adopted) {
                (Ok(update), true) => wanted.push(update.clone()),
                (Ok(_), false) => left.push(existing.left(Why::Foreign)),
                (Err(why), _) => left.push(existing.left(Why::Impossible(why.clone()))),
            }
        }
        wanted.extend(self.changes.iter().cloned());
        Ok(Steps {
            changes: self.in_order(wanted),
            left,
        })
    }

    fn check_adopted(&self, name: &Name) -> Result<()> {
        let creates = |change: &Change| spec(change).is_some_and(|spec| spec.name == *name);
        if self.existing.iter().any(|known| known.name() == name)
            || self.changes.iter().any(creates)
        {
            return Ok(());
        }
        Err(if self.undeclared.contains(name) {
            Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "stream {name} is to be adopted, but nothing declares it; declare it first, \
                     with the subjects and limits that it is to have"
                ),
            )
        } else {
            Error::new(
                ErrorKind::NoSuchStream,
                format!("there is no stream {name} to adopt; check its name"),
            )
        })
    }

    /// Each change as soon as nobody else has the subjects that it takes. What cannot be put in
    /// order, as two streams that swap theirs, comes last and is the engine's to refuse.
    fn in_order(&self, mut wanted: Vec<Change>) -> Vec<Change> {
        let mut held: BTreeMap<&Name, Vec<Filter>> = self
            .existing
            .iter()
            .map(|existing| (existing.name(), existing.found.subjects.clone()))
            .collect();
        let mut ordered = Vec::new();
        let mut made: Vec<StreamSpec> = Vec::new();
        loop {
            let is_free = |change: &Change| {
                let Some(spec) = spec(change) else {
                    return true;
                };
                let clash = |filters: &[Filter]| {
                    let taken = |filter: &Filter| filters.iter().any(|own| own.overlaps(filter));
                    spec.subjects.iter().any(taken)
                };
                !held
                    .iter()
                    .any(|(name, filters)| **name != spec.name && clash(filters))
                    && !made.iter().any(|other| clash(&other.subjects))
            };
            let Some(at) = wanted.iter().position(is_free) else {
                ordered.extend(wanted);
                return ordered;
            };
            let change = wanted.remove(at);
            if let Some(spec) = spec(&change) {
                held.remove(&spec.name);
                made.push(spec.clone());
            }
            ordered.push(change);
        }
    }
}

impl Existing {
    fn left(&self, why: Why) -> Left {
        Left {
            stream: self.name().clone(),
            why,
        }
    }
}

fn spec(change: &Change) -> Option<&StreamSpec> {
    match change {
        Change::CreateStream(spec) | Change::UpdateStream(spec) => Some(spec),
        _ => None,
    }
}
