//! What a handler publishes through its context: staged while it runs, sent once it has succeeded.
//!
//! ```text
//! run ── Ok ──► durable outputs, stored ──► ephemeral ones, sent ──► the event is settled
//!     └─ Err, panic, cancelled ──► dropped
//! ```
//!
//! A crash between storing and settling runs the event again, and its outputs are published again.
//! Their ids come from the event and the content, so that the same output is stored once within the
//! duplicate window, while another output never has the id of one that is stored.

mod canonical;
mod id;

use std::sync::Arc;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use trunkline_core::engine::Seq;
use trunkline_core::{Error, ErrorKind, EventId, Name, Result};

use crate::bus::Inner;
use crate::failure::{Disposition, Failure};
use crate::publish::{Outgoing, Published, send_prepared};
use crate::raw::Incoming;
use id::Content;

/// The most outputs of one run. What makes more of one event is a batch job, and belongs into several
/// events.
pub(crate) const MAX_OUTPUTS: usize = 1_000;
/// The most bytes of data of all outputs of one run.
pub(crate) const MAX_OUTPUT_BYTES: usize = 8 << 20;

/// The outputs of one run.
#[derive(Debug, Default)]
pub(crate) struct Outputs(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    staged: Vec<Outgoing>,
    bytes: usize,
    /// How many outputs of the same content there are, by the id of the first of them.
    equals: FxHashMap<EventId, u32>,
    /// Why this run has failed, whatever its handler makes of it.
    over_limit: Option<Error>,
    is_over: bool,
}

/// What the handler set on an output that is otherwise made up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    pub(crate) id: bool,
    pub(crate) time: bool,
}

/// The event whose handling makes the outputs.
struct Source<'a> {
    consumer: &'a Name,
    stream: &'a Name,
    seq: Seq,
    id: &'a EventId,
    correlation: &'a EventId,
}

impl Outputs {
    /// Keeps an output until the run has succeeded, and gives the id that it will have.
    ///
    /// # Errors
    /// [`ErrorKind::RunOver`], [`ErrorKind::OverLimit`] and [`ErrorKind::Encode`].
    pub(crate) fn stage(
        &self,
        consumer: &Name,
        input: &Incoming,
        mut outgoing: Outgoing,
        said: Said,
    ) -> Result<EventId> {
        let Some(stored) = &input.stored else {
            return Err(Error::new(
                ErrorKind::Internal,
                "an event that is not stored has no outputs",
            ));
        };
        let id = input.envelope.id();
        let source = Source {
            consumer,
            stream: &stored.stream,
            seq: stored.seq,
            id,
            correlation: input.envelope.correlation().unwrap_or(id),
        };
        let content = Content::of(&outgoing, said, &source)?;
        let mut state = self.0.lock();
        if state.is_over {
            return Err(Error::new(
                ErrorKind::RunOver,
                format!("the run of event {id} in consumer {consumer} is over"),
            ));
        }
        let bytes = state.bytes + content.bytes();
        let fault = if state.staged.len() >= MAX_OUTPUTS {
            Some(format!("has more than {MAX_OUTPUTS} outputs"))
        } else if bytes > MAX_OUTPUT_BYTES {
            Some(format!("has outputs of more than {MAX_OUTPUT_BYTES} bytes"))
        } else {
            None
        };
        if let Some(fault) = fault {
            let error = Error::new(
                ErrorKind::OverLimit,
                format!(
                    "a run of consumer {consumer} {fault}; publish the rest through the bus, or split the event"
                ),
            );
            state.over_limit.get_or_insert_with(|| error.clone());
            return Err(error);
        }
        state.bytes = bytes;
        if !said.id {
            let first = content.id(&source, 0);
            let before = state.equals.entry(first.clone()).or_default();
            let id = match *before {
                0 => first,
                before => content.id(&source, before),
            };
            *before += 1;
            outgoing.envelope = Arc::new(Arc::unwrap_or_clone(outgoing.envelope).with_id(id));
        }
        outgoing.is_output = true;
        let id = outgoing.envelope.id().clone();
        state.staged.push(outgoing);
        Ok(id)
    }

    /// How many durable outputs wait for the run to succeed.
    pub(crate) fn durable(&self) -> usize {
        let state = self.0.lock();
        let durable = state.staged.iter().filter(|one| one.stream().is_some());
        durable.count()
    }

    /// Ends the run: what it staged is sent if it succeeded, and dropped if not.
    pub(super) async fn finish(
        &self,
        inner: &Inner,
        result: Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (staged, over_limit) = {
            let mut state = self.0.lock();
            state.is_over = true;
            (std::mem::take(&mut state.staged), state.over_limit.take())
        };
        if let Some(error) = over_limit {
            // Another attempt would stage as many.
            return Err(Failure::new(
                Disposition::Permanent,
                "outputs_over_limit",
                error,
            ));
        }
        result?;
        if staged.is_empty() {
            return Ok(());
        }
        let (durable, ephemeral): (Vec<_>, Vec<_>) = staged
            .into_iter()
            .partition(|outgoing| outgoing.stream().is_some());
        store(inner, durable).await?;
        emit(inner, ephemeral).await;
        Ok(())
    }
}

async fn store(inner: &Inner, outputs: Vec<Outgoing>) -> Result<(), Failure> {
    let count = outputs.len();
    if count == 0 {
        return Ok(());
    }
    let published = send_prepared(inner, outputs.into_iter().map(Ok).collect()).await;
    let answers = published.len();
    let mut stored = published.into_iter().map(Published::stored);
    let failed = stored.find_map(Result::err).or_else(|| {
        (answers < count).then(|| {
            Error::new(
                ErrorKind::Internal,
                format!("of {count} outputs {answers} were answered"),
            )
        })
    });
    match failed {
        None => Ok(()),
        Some(error) => Err(Failure::new(
            Disposition::Transient,
            "outputs_not_stored",
            error,
        )),
    }
}

/// At most once: what cannot be sent is no reason to handle the event again.
async fn emit(inner: &Inner, outputs: Vec<Outgoing>) {
    if outputs.is_empty() {
        return;
    }
    let published = send_prepared(inner, outputs.into_iter().map(Ok).collect()).await;
    for one in published {
        if let Published::Refused(error) | Published::Unknown(error) = one {
            tracing::warn!(%error, "an ephemeral output was not sent");
        }
    }
}
