//! Beginning anew.

use smol_str::format_smolstr;
use tokio::time::Instant;
use trunkline_core::engine::{Change, ConsumerRef, ConsumerSpec, Op, Position};
use trunkline_core::{Error, ErrorKind, Result};

use super::super::ordered::record::{Definition, Keys};
use super::super::ordered::store::{Known, Store};
use super::super::ordered::{TTL, start};
use super::change::{Change as Whole, Heard};
use super::{Control, remove};
use crate::bus::Bus;

/// What a reset does with events that left the main flow and are not settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beside {
    /// The reset is refused if there are any.
    #[default]
    Refuse,
    /// They are forgotten; what the reset goes back to is handled again.
    Discard,
}

impl Bus {
    /// The members whose heartbeats change while one looks.
    async fn live_members(&self, at: &ConsumerRef) -> Result<usize> {
        let mut heard = Heard::default();
        let Some(before) = self.control_of(at, 0).await? else {
            return Ok(0);
        };
        if before.members.is_empty() {
            return Ok(0);
        }
        heard.hear(&before, Instant::now());
        tokio::time::sleep(TTL).await;
        let Some(after) = self.control_of(at, 0).await? else {
            return Ok(0);
        };
        let now = Instant::now();
        heard.hear(&after, now);
        let members = after.members.iter();
        Ok(members.filter(|(id, ..)| heard.lives(id, now)).count())
    }

    pub(super) async fn reset_ordered(
        &self,
        at: &ConsumerRef,
        control: &Control,
        to: Position,
        beside: Beside,
    ) -> Result<()> {
        self.change_at_rest(at, control, Whole::Reset(to, beside))
            .await?;
        self.forget(at, control.definition.0.generation).await
    }

    /// Removes what a generation left behind.
    async fn forget(&self, at: &ConsumerRef, generation: u64) -> Result<()> {
        let (store, keys) = (self.store(), Keys::new(&at.consumer, &at.stream));
        let old = store.all(&keys.generation(generation)?, 0).await?;
        let old: Vec<_> = old.into_iter().map(|entry| entry.key).collect();
        remove(&store, &old).await
    }

    pub(super) async fn reset_shared(
        &self,
        at: &ConsumerRef,
        control: &Control,
        to: Position,
        beside: Beside,
    ) -> Result<()> {
        let members = self.live_members(at).await?;
        if members > 0 {
            return Err(Error::new(
                ErrorKind::InUse,
                format!(
                    "consumer {} shares its events among {members} live members; stop them before it is reset",
                    at.consumer
                ),
            ));
        }
        let store = self.store();
        // Where its events begin the engine knows.
        let ops = reset(&store, at, control, Position::First, beside).await?;
        if store.commit(Store::commit_id(), Vec::new(), ops).await? == Known::Conflict {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("consumer {} changed meanwhile; try again", at.consumer),
            ));
        }
        self.forget(at, control.definition.0.generation).await?;
        let topology = self.inner.engine.topology();
        let inspection = topology.inspect().await?;
        let found = inspection
            .consumers
            .into_iter()
            .find(|one| one.spec.at == *at);
        let Some(state) = found else {
            return Ok(());
        };
        let spec = ConsumerSpec {
            start: to,
            ..state.spec
        };
        topology
            .apply(vec![
                Change::DeleteConsumer(at.clone()),
                Change::CreateConsumer(spec),
            ])
            .await
    }
}

/// What has to be written so that a consumer begins anew.
pub(super) async fn reset(
    store: &Store,
    at: &ConsumerRef,
    control: &Control,
    to: Position,
    beside: Beside,
) -> Result<Vec<Op>> {
    let keys = Keys::new(&at.consumer, &at.stream);
    let (old, _) = &control.definition;
    let live = store
        .all(&keys.sides(old.generation)?, control.latest())
        .await?;
    if !live.is_empty() && beside == Beside::Refuse {
        return Err(in_use(at, live.len()));
    }
    let made_at = store.engine.topology().made_at(&at.stream).await?;
    let new = Definition {
        generation: old.generation + 1,
        stream_made_at: made_at.map(|at| format_smolstr!("{at}")),
        earlier: Vec::new(),
        start: start(store, &at.stream, &old.filters()?, to).await?,
        ..old.clone()
    };
    let mut ops = control.close(&keys, |_| false)?;
    ops.push(control.define(&keys, new)?);
    Ok(ops)
}

fn in_use(at: &ConsumerRef, beside: usize) -> Error {
    Error::new(
        ErrorKind::InUse,
        format!(
            "{beside} events of consumer {} wait beside stream {} for another attempt; let them end, or reset \
             it and discard them",
            at.consumer, at.stream
        ),
    )
}
