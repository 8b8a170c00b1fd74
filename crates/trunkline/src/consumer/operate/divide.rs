//! Another number of partitions. What was settled is found where it was written, by
//! [`Earlier`](super::super::ordered::earlier::Earlier).

use trunkline_core::engine::{ConsumerRef, Op};
use trunkline_core::{Error, ErrorKind, Name, Result};

use super::super::ordered::earlier::is_abandoned;
use super::super::ordered::record::{Definition, Keys, Mode};
use super::super::partitions;
use super::Control;
use super::change::Change;
use crate::bus::Bus;

/// A consumer that was divided into other partitions, on one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Divided {
    /// The stream.
    pub stream: Name,
    /// How many partitions it had.
    pub from: u16,
    /// How many it has: as many as before if nothing had to be done.
    pub to: u16,
}

impl Bus {
    /// Divides the keys of a consumer into another number of partitions: a power of two from 1 to 256.
    ///
    /// Members may run meanwhile. They start nothing more, finish what they run and begin again with
    /// the new partitions; nothing that is done is run again, and every key stays in order. What still
    /// runs after this bus's drain deadline is cancelled and runs again. A consumer that is paused
    /// stays so.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for another number, [`ErrorKind::NoSuchConsumer`],
    /// [`ErrorKind::Unsupported`] for a consumer that gives its events to whoever is free,
    /// [`ErrorKind::OverLimit`] when the engine cannot close so many partitions with one commit,
    /// [`ErrorKind::Conflict`] when others reset it or kept changing it; and the engine's own.
    pub async fn divide_consumer(&self, name: &Name, partitions: u16) -> Result<Vec<Divided>> {
        partitions::check(partitions)?;
        let mut all = self.of_name(name).await?;
        all.retain(|(_, control)| control.definition.0.mode == Mode::Ordered);
        if all.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "consumer {name} gives its events to whoever is free and has no partitions; start more \
                     members, or let them run more handlers at once"
                ),
            ));
        }
        let mut divided = Vec::with_capacity(all.len());
        for (at, control) in all {
            divided.push(self.divide_ordered(&at, &control, partitions).await?);
        }
        Ok(divided)
    }

    async fn divide_ordered(
        &self,
        at: &ConsumerRef,
        control: &Control,
        partitions: u16,
    ) -> Result<Divided> {
        let mut divided = Divided {
            stream: at.stream.clone(),
            from: partitions,
            to: partitions,
        };
        if control.definition.0.partitions == partitions {
            return Ok(divided);
        }
        let change = Change::Divide(partitions);
        if let Some(before) = self.change_at_rest(at, control, change).await? {
            divided.from = before.definition.0.partitions;
        }
        Ok(divided)
    }
}

/// What has to be written so that a consumer is divided anew.
pub(super) fn divide(at: &ConsumerRef, control: &Control, partitions: u16) -> Result<Vec<Op>> {
    let keys = &Keys::new(&at.consumer, &at.stream);
    let (old, _) = &control.definition;
    let of = |layout, partition| control.owner(layout, partition).map(|(owner, _)| owner);
    let mut ops = control.close(keys, |partition| is_abandoned(old, partition, of))?;
    let mut new = Definition {
        partitions,
        ..old.clone()
    };
    // One that comes back goes on with what it had written.
    new.earlier.retain(|earlier| *earlier != partitions);
    new.earlier.push(old.partitions);
    ops.push(control.define(keys, new)?);
    Ok(ops)
}
