//! The handlers that run, and the permits that they hold.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;
use trunkline_core::engine::{Rev, Seq, StoredEvent};

use super::super::body;
use super::super::claim::Place;
use super::super::partition::{Run, Start};
use crate::consumer::pool::guarded;
use crate::consumer::{Shared, turn};
use crate::failure::Failure;
use crate::handler::MemberContext;

/// How long a handler runs before what is behind it goes on without it.
const LONG: Duration = Duration::from_secs(10);

/// One run, by what it was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RunId {
    pub(super) partition: u16,
    pub(super) epoch: Rev,
    pub(super) seq: Seq,
}

/// What a run came to.
#[derive(Debug)]
pub(super) enum Ran {
    Ok,
    Failed(StoredEvent, Failure),
    /// Its event could not be read from the side record.
    Unread(trunkline_core::Error),
    /// It was cancelled, or the lease had passed before it began.
    Cancelled,
}

pub(super) struct Runs {
    shared: Arc<Shared>,
    place: Place,
    context: Arc<MemberContext>,
    tasks: JoinSet<(RunId, Ran)>,
    running: FxHashMap<Id, RunId>,
    handles: FxHashMap<RunId, AbortHandle>,
    /// Permits of runs that wait for the write that says that they run.
    announced: FxHashMap<RunId, bool>,
    /// The run that has the member for itself.
    alone: Option<RunId>,
    /// When each run becomes a long one, in the order of their starts.
    long: VecDeque<(Instant, RunId)>,
}

impl Runs {
    pub(super) fn new(shared: Arc<Shared>, place: Place, context: Arc<MemberContext>) -> Self {
        Self {
            shared,
            place,
            context,
            tasks: JoinSet::new(),
            running: FxHashMap::default(),
            handles: FxHashMap::default(),
            announced: FxHashMap::default(),
            alone: None,
            long: VecDeque::new(),
        }
    }

    /// Permits in use.
    pub(super) fn taken(&self) -> usize {
        self.handles.len() + self.announced.len()
    }

    /// Whether a run has the member for itself.
    pub(super) fn alone(&self) -> bool {
        self.alone.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.taken() == 0
    }

    /// Whether anything of a partition runs, or has been cancelled and has not ended yet.
    pub(super) fn has_any_of(&self, partition: u16) -> bool {
        self.handles.keys().any(|run| run.partition == partition)
    }

    /// Takes a permit for what a partition started.
    pub(super) fn begin(&mut self, id: RunId, start: Start, alone: bool, now: Instant) {
        match start {
            Start::Run(run) => self.run(id, run, now),
            Start::AfterWrite => {
                self.announced.insert(id, alone);
            }
            Start::GivenUp => return,
        }
        if alone {
            self.alone = Some(id);
        }
    }

    /// Runs what was announced; its permit it has.
    pub(super) fn run(&mut self, id: RunId, run: Run, now: Instant) {
        self.announced.remove(&id);
        let (shared, place) = (Arc::clone(&self.shared), self.place.clone());
        let context = Arc::clone(&self.context);
        let handle = self
            .tasks
            .spawn(async move { (id, handle(&shared, &place, &context, run).await) });
        self.running.insert(handle.id(), id);
        self.handles.insert(id, handle);
        self.long.push_back((now + LONG, id));
    }

    /// What was announced and will not run gives its permit back.
    pub(super) fn forget(&mut self, partition: u16) {
        self.announced.retain(|id, _| id.partition != partition);
        if self
            .alone
            .is_some_and(|id| id.partition == partition && !self.handles.contains_key(&id))
        {
            self.alone = None;
        }
    }

    /// Cancels what runs of a partition, at its next await.
    pub(super) fn cancel(&mut self, partition: u16) {
        for (id, handle) in &self.handles {
            if id.partition == partition {
                handle.abort();
            }
        }
        self.forget(partition);
    }

    /// The runs that have become long ones by now.
    pub(super) fn outlasting(&mut self, now: Instant) -> Vec<RunId> {
        let mut long = Vec::new();
        while let Some((due, id)) = self.long.front()
            && (*due <= now || !self.handles.contains_key(id))
        {
            if self.handles.contains_key(id) {
                long.push(*id);
            }
            self.long.pop_front();
        }
        long
    }

    pub(super) fn next_outlasting(&self) -> Option<Instant> {
        self.long.front().map(|(due, _)| *due)
    }

    /// Waits for the next run to end; for ever if there is none.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> (RunId, Ran) {
        loop {
            match self.tasks.join_next_with_id().await {
                Some(ended) => {
                    if let Some(ended) = self.ended(ended) {
                        return ended;
                    }
                }
                None => return std::future::pending().await,
            }
        }
    }

    pub(super) fn try_next(&mut self) -> Option<(RunId, Ran)> {
        let ended = self.tasks.try_join_next_with_id()?;
        self.ended(ended)
    }

    fn ended(&mut self, ended: Result<(Id, (RunId, Ran)), JoinError>) -> Option<(RunId, Ran)> {
        let (task, ran) = match ended {
            Ok((task, (_, ran))) => (task, ran),
            Err(error) => (error.id(), Ran::Cancelled),
        };
        let id = self.running.remove(&task)?;
        self.handles.remove(&id);
        if self.alone == Some(id) {
            self.alone = None;
        }
        Some((id, ran))
    }
}

async fn handle(shared: &Shared, place: &Place, context: &Arc<MemberContext>, mut run: Run) -> Ran {
    let event = match run.event.take() {
        Some(event) => event,
        None => {
            let (store, keys) = (&place.store, &place.keys);
            match body::load(
                &*store.engine,
                &store.bucket,
                keys,
                run.generation,
                run.seq,
                run.pieces,
            )
            .await
            {
                Ok(event) => event,
                Err(error) => return Ran::Unread(error),
            }
        }
    };
    if !place.lease.holds(Instant::now()) {
        return Ran::Cancelled;
    }
    let stream = place.stream.clone();
    let attempt = run.failures + 1;
    let running = pin!(turn::run(shared, stream, event.clone(), attempt, context));
    match guarded(running).await {
        Ok(()) => Ran::Ok,
        Err(failure) => Ran::Failed(event, failure),
    }
}
