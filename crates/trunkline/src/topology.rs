//! The streams themselves: what there is, what a configuration or a program would change, and
//! changing it.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> trunkline::Result<()> {
//! use trunkline::Bus;
//!
//! let topology = Bus::connect("memory:").manage().await?;
//! let plan = topology.plan().await?;
//! assert_eq!(plan.changes.len(), 3); // EVENTS, COMMANDS and EVENTS_DLQ are missing
//! let applied = topology.apply(&plan, &[]).await?;
//! assert_eq!(applied.done.len(), 3);
//! assert!(topology.plan().await?.is_empty());
//! # topology.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Trunkline marks the streams that it makes. Those it changes; what others made it changes only
//! when it is adopted by name, which marks it. What nobody declares is never touched, and nothing is
//! ever deleted.

use std::sync::Arc;

use trunkline_core::engine::{Change, Engine, Fact};
use trunkline_core::plan::{Growth, Left, Plan};
use trunkline_core::{Error, ErrorKind, Name, Result};

use crate::connect::Declared;
use crate::explain::{ConsumerTerms, StreamTerms, standing};

/// A connection to the streams of a bus, made by [`Connect::manage`](crate::Connect::manage).
#[derive(Debug)]
pub struct Topology {
    engine: Arc<dyn Engine>,
    declared: Declared,
}

/// What there is, as it stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Standing {
    /// The engine's short name.
    pub engine: String,
    /// What the engine knows of itself and of the server behind it.
    pub facts: Vec<Fact>,
    /// Every stream, by name.
    pub streams: Vec<StreamTerms>,
    /// Every consumer, by stream and name.
    pub consumers: Vec<ConsumerTerms>,
    /// Streams that exist and are not declared.
    pub undeclared: Vec<Name>,
}

/// What became of a plan.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use = "a change may have failed"]
pub struct Applied {
    /// What was done, in this order.
    pub done: Vec<Change>,
    /// The change that failed, and why. Nothing after it was tried.
    pub failed: Option<(Change, Error)>,
    /// Streams that differ from what is declared and were not to be changed.
    pub left: Vec<Left>,
    /// Streams of ours that have fewer copies than they should all the same: there are no hosts.
    pub short: Vec<(Name, Growth)>,
}

impl Topology {
    pub(crate) fn new(engine: Arc<dyn Engine>, declared: Declared) -> Self {
        Self { engine, declared }
    }

    /// The engine below, for tools.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Every stream and consumer, who made each stream, and which of them nobody declares.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`], and the engine's own.
    pub async fn show(&self) -> Result<Standing> {
        let found = self.engine.topology().inspect().await?;
        let mut undeclared: Vec<Name> = found
            .streams
            .iter()
            .map(|state| state.spec.name.clone())
            .filter(|name| !self.declared.has(name))
            .collect();
        undeclared.sort_unstable();
        let copies = self.declared.copies(self.engine.capabilities().reach);
        let (streams, consumers) = standing(found, &copies);
        Ok(Standing {
            engine: self.engine.name().to_owned(),
            facts: self.engine.facts(),
            streams,
            consumers,
            undeclared,
        })
    }

    /// What is to be done so that the bus is as it is declared.
    ///
    /// As when a bus connects, a stream that is not declared by name is wanted as it is, as long as
    /// it stores what the default one would.
    ///
    /// # Errors
    /// [`ErrorKind::NotStored`] and [`ErrorKind::Overlap`] when what is declared cannot be,
    /// [`ErrorKind::Closed`], and the engine's own.
    pub async fn plan(&self) -> Result<Plan> {
        let found = self.engine.topology().inspect().await?;
        let reach = self.engine.capabilities().reach;
        self.declared.plan(&found, reach).map(|(plan, _)| plan)
    }

    /// Carries out a plan, one change after the other: makes what is missing and changes what is
    /// ours. What others made is changed only if `adopt` has its name, and is ours from then on.
    /// Events stay, but for those above a new limit.
    ///
    /// Buses that are connected go on as they are; they know of new streams and subjects when they
    /// connect again.
    ///
    /// # Errors
    /// Before anything is done: [`ErrorKind::Conflict`] when the streams changed since the plan was
    /// made, [`ErrorKind::NoSuchStream`] and [`ErrorKind::InvalidConfig`] for a name to be adopted
    /// that does not exist or is not declared, and those of [`plan`](Self::plan). Later the error is
    /// in [`Applied::failed`], beside what was done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves done what was done, and one change perhaps done.
    pub async fn apply(&self, plan: &Plan, adopt: &[Name]) -> Result<Applied> {
        let steps = plan.steps(adopt)?;
        if self.plan().await? != *plan {
            return Err(Error::new(
                ErrorKind::Conflict,
                "somebody changed the streams since the plan was made, and nothing was done; \
                 look at the plan again",
            ));
        }
        let mut applied = Applied {
            done: Vec::new(),
            failed: None,
            left: steps.left,
            short: Vec::new(),
        };
        for change in steps.changes {
            match self.engine.topology().apply(vec![change.clone()]).await {
                Ok(()) => applied.done.push(change),
                Err(error) => {
                    applied.failed = Some((change, error));
                    break;
                }
            }
        }
        // That it cannot be looked at once more changes nothing about what was done.
        if !applied.done.is_empty()
            && let Ok(plan) = self.plan().await
        {
            let ours = plan.existing.iter().filter(|existing| existing.is_ours());
            let short = ours.filter_map(|own| Some((own.name().clone(), own.growth?)));
            applied.short = short.collect();
        }
        Ok(applied)
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.engine.close().await;
    }
}
