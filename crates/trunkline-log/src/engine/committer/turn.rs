//! One turn: stage what is queued, write and sync, publish, answer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread;

use trunkline_core::engine::{Append, AppendMode, Batch, Bucket, Commit, Committed, Outcome, Seq};
use trunkline_core::{Clock, Error, ErrorKind, Name, Result, Subject, Timestamp};

use super::super::directory::Lock;
use super::super::streams::Streams;
use super::super::{Changed, closed};
use super::{Job, Queued, Reply};
use crate::disk::Disk;
use crate::journal::{Journal, Record};
use crate::stream::{Options, Stream};

/// Jobs that share a group at most: their answers wait for all of them.
const MAX_JOBS: usize = 4_096;
/// Bytes that share a group, about.
const MAX_BYTES: usize = 16 << 20;

/// What the thread has.
pub(in crate::engine) struct Writer {
    pub(in crate::engine) disk: Arc<dyn Disk>,
    pub(in crate::engine) dir: PathBuf,
    pub(in crate::engine) options: Options,
    pub(in crate::engine) clock: Arc<dyn Clock>,
    pub(in crate::engine) journal: Journal,
    pub(in crate::engine) writing: BTreeMap<Name, Stream>,
    pub(in crate::engine) streams: Arc<Streams>,
    pub(in crate::engine) changed: Arc<Changed>,
    /// For who takes a snapshot beside it.
    pub(in crate::engine) queue: Sender<Queued>,
    /// Whether values may have died since they were last looked at.
    pub(in crate::engine) keys_changed: bool,
    /// Held until everything is closed.
    pub(in crate::engine) lock: Lock,
    /// What is to be done when the group is durable, or is not.
    pub(in crate::engine) staged: Staged,
    /// What failed: from then on nobody knows what is on the disk, and nothing more is written.
    pub(in crate::engine) failed: Option<Error>,
}

/// What waits for the group to be durable.
#[derive(Default)]
pub(in crate::engine) struct Staged {
    answers: Vec<Answer>,
    /// What was stored on which stream, for those who wait for it.
    events: BTreeMap<Name, Vec<(Subject, Seq)>>,
    bytes: usize,
}

/// Given the failure of the group, if it failed.
type Answer = Box<dyn FnOnce(Option<&Error>) + Send>;

impl Staged {
    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, answer: T) {
        self.then(reply, answer, |_, failure| Err(failure.clone()));
    }

    /// Answers with that, or with what `failed` makes of it if the group fails.
    fn then<T: Send + 'static>(
        &mut self,
        reply: Reply<T>,
        answer: T,
        failed: impl FnOnce(T, &Error) -> Result<T> + Send + 'static,
    ) {
        self.answers.push(Box::new(move |failure| {
            let answer = match failure {
                None => Ok(answer),
                Some(failure) => failed(answer, failure),
            };
            // Whoever asked may have gone.
            let _ = reply.send(answer);
        }));
    }
}

impl Writer {
    /// Works until it is told to close, or nobody is left who could tell it anything.
    pub(super) fn run(&mut self, jobs: &Receiver<Queued>) {
        let mut close = None;
        while close.is_none() {
            let Ok(first) = jobs.recv() else {
                break;
            };
            let mut next = Some(first);
            let mut taken = 0;
            // The room of the jobs in the queue is given back when their group is done.
            let mut rooms = Vec::new();
            while let Some(Queued { job, _room: room }) = next {
                rooms.push(room);
                taken += 1;
                match job {
                    Job::Close(reply) => {
                        close = Some(reply);
                        break;
                    }
                    job => self.stage(job),
                }
                if taken == MAX_JOBS || self.staged.bytes > MAX_BYTES {
                    break;
                }
                next = jobs.try_recv().ok();
            }
            self.finish();
            drop(rooms);
            self.tidy();
        }
        let closed = self.close();
        if let Some(Some(reply)) = close {
            let _ = reply.send(closed);
        }
        // Whoever queued something behind that finds nobody, and is told so by the end of the queue.
    }

    fn stage(&mut self, job: Job) {
        if let Some(error) = &self.failed {
            job.refuse(error);
            return;
        }
        let now = self.clock.now();
        match job {
            Job::Append {
                stream,
                batch,
                mode,
                reply,
            } => self.append(&stream, batch, mode, reply, now),
            Job::Remove {
                stream,
                what,
                reply,
            } => {
                let removed = self
                    .stream(&stream)
                    .and_then(|stream| stream.stage_remove(now, &what));
                self.staged_as(removed, reply);
            }
            Job::Age { stream, reply } => {
                let aged = self
                    .stream(&stream)
                    .and_then(|stream| stream.stage_expiry(now));
                self.staged_as(aged, reply);
            }
            Job::Settle {
                at,
                stretches,
                lost,
                done,
                reply,
            } => {
                let left = match done.as_slice() {
                    [] => Ok(0),
                    done => self
                        .stream(&at.stream)
                        .and_then(|stream| stream.stage_settled(now, done)),
                };
                let record = Record::Settled {
                    at,
                    stretches,
                    lost,
                };
                let settled = left.and_then(|_| self.record(record, now));
                if let Err(error) = &settled {
                    tracing::warn!(%error, "an acknowledgement was not written down; the event comes again after a restart");
                }
                self.staged_as(settled, reply);
            }
            Job::Commit {
                bucket,
                commit,
                reply,
            } => {
                let committed = self.commit(&bucket, commit, now);
                self.staged_as(committed, reply);
            }
            Job::Expire { reply } => {
                let expired = self.journal.expire(now).map(drop);
                self.staged_as(expired, reply);
            }
            Job::Change { change, reply } => {
                // What was asked for before is done before, and is to be seen by it.
                self.finish();
                let _ = reply.send(self.change(change, now));
            }
            Job::Copied(snapshot) => {
                if let Err(error) = self.journal.end_snapshot(snapshot) {
                    tracing::warn!(%error, "a snapshot of the journal failed; it is tried again later");
                }
            }
            Job::Close(_) => {}
        }
    }

    /// What was staged is answered when it is durable; what was refused, at once.
    fn staged_as<T: Send + 'static>(&mut self, staged: Result<T>, reply: Reply<T>) {
        match staged {
            Ok(answer) => self.staged.answer(reply, answer),
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    pub(super) fn stream(&mut self, name: &Name) -> Result<&mut Stream> {
        self.writing.get_mut(name).ok_or_else(|| {
            Error::new(
                ErrorKind::NoSuchStream,
                format!("there is no stream {name} on this bus; check its name"),
            )
        })
    }

    fn append(
        &mut self,
        name: &Name,
        batch: Batch<Result<Append>>,
        mode: AppendMode,
        reply: Reply<Vec<Outcome>>,
        now: Timestamp,
    ) {
        let items = batch.len();
        let subjects: Batch<Option<Subject>> = batch
            .iter()
            .map(|item| Some(item.as_ref().ok()?.subject.clone()))
            .collect();
        let sizes = batch.iter().flatten().map(|item| item.body.rough_bytes());
        self.staged.bytes += sizes.sum::<usize>();
        let staged = self
            .stream(name)
            .and_then(|stream| stream.stage(now, batch, mode));
        let outcomes = match staged {
            Ok(outcomes) => outcomes,
            Err(error) if error.kind() == ErrorKind::StorageFailed => {
                let unknown = vec![Outcome::Unknown(error); items];
                let _ = reply.send(Ok(unknown));
                return;
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let stored = outcomes.iter().zip(subjects);
        let new = stored.filter_map(|(outcome, subject)| match outcome {
            Outcome::Stored {
                seq,
                duplicate: false,
            } => Some((subject?, *seq)),
            _ => None,
        });
        self.staged
            .events
            .entry(name.clone())
            .or_default()
            .extend(new);
        self.staged.then(reply, outcomes, |outcomes, failure| {
            let unknown = |outcome| match outcome {
                Outcome::Stored { .. } => Outcome::Unknown(failure.clone()),
                refused => refused,
            };
            Ok(outcomes.into_iter().map(unknown).collect())
        });
    }

    pub(super) fn record(&mut self, record: Record, now: Timestamp) -> Result<()> {
        if self.journal.is_full() {
            self.finish();
        }
        self.journal.stage(record, now)
    }

    fn commit(&mut self, bucket: &Bucket, commit: Commit, now: Timestamp) -> Result<Committed> {
        if self.journal.is_full() {
            self.finish();
        }
        match self.journal.commit(bucket, commit.clone(), now) {
            // With what was staged before it, it does not fit; alone it may.
            Err(error)
                if error.kind() == ErrorKind::OverLimit && self.journal.staged_bytes() > 0 =>
            {
                self.finish();
                self.journal.commit(bucket, commit, now)
            }
            committed => committed,
        }
    }

    /// Makes durable what is staged, shows it, and answers.
    ///
    /// Streams come before the journal: an acknowledged event that has left its queue and whose
    /// acknowledgement was lost does no harm; one that was settled and stays would, for ever.
    pub(super) fn finish(&mut self) {
        let staged = std::mem::take(&mut self.staged);
        let written = self.write();
        if let Err(error) = &written {
            tracing::error!(%error, "writing failed; nothing that waits for it is acknowledged");
        } else {
            for (name, events) in staged.events {
                if let Ok(stream) = self.streams.get(&name) {
                    stream.appended(&events);
                }
            }
        }
        // What is published is to be seen, also where something else failed.
        for stream in self.streams.all() {
            stream.note_published();
        }
        for answer in staged.answers {
            answer(written.as_ref().err());
        }
    }

    fn write(&mut self) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.write_group()
            .inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn write_group(&mut self) -> Result<()> {
        let dirty = self.writing.values_mut().filter(|stream| stream.is_dirty());
        let mut written: Vec<&mut Stream> = dirty.collect();
        for stream in &mut written {
            stream.write()?;
        }
        for stream in &mut written {
            stream.sync()?;
        }
        for stream in &mut written {
            stream.publish()?;
        }
        let published = self.journal.flush()?;
        let buckets: BTreeSet<Bucket> = published.buckets.into_iter().collect();
        for bucket in &buckets {
            self.changed.tell(bucket);
        }
        self.keys_changed |= !buckets.is_empty();
        Ok(())
    }

    /// What is done between groups: snapshots and the room of dead values.
    fn tidy(&mut self) {
        if self.failed.is_some() {
            return;
        }
        let now = self.clock.now();
        if self.journal.snapshot_due() {
            match self.journal.begin_snapshot(now) {
                Ok(job) => {
                    let queue = self.queue.clone();
                    let copy = move || {
                        let job = Job::Copied(job.run());
                        // Without a committer nobody needs it.
                        let _ = queue.send(Queued { job, _room: None });
                    };
                    let thread = thread::Builder::new().name("trunkline-snapshot".to_owned());
                    if let Err(error) = thread.spawn(copy) {
                        let error = Error::new(ErrorKind::Internal, "no thread for a snapshot")
                            .caused_by(error);
                        if let Err(error) = self.journal.end_snapshot(Err(error)) {
                            tracing::warn!(%error, "a snapshot of the journal failed; it is tried again later");
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "a snapshot of the journal cannot begin"),
            }
        }
        if self.keys_changed {
            let compacted = self.journal.compact(now);
            // While there is more to copy, each turn copies some of it.
            self.keys_changed = *compacted.as_ref().unwrap_or(&false);
            if let Err(error) = compacted.and_then(|_| self.journal.flush().map(drop)) {
                tracing::warn!(%error, "dead values stay for now");
            }
        }
    }

    /// Closes every file, so that the next to open knows that nothing was torn.
    fn close(&mut self) -> Result<()> {
        let mut closed = Ok(());
        for (_, stream) in std::mem::take(&mut self.writing) {
            closed = closed.and(stream.close());
        }
        closed = closed.and(self.journal.close().map(drop));
        self.lock.release();
        closed
    }
}

/// Queued and never looked at: told so by the drop of its reply.
impl Drop for Writer {
    fn drop(&mut self) {
        let failure = closed();
        for answer in std::mem::take(&mut self.staged.answers) {
            answer(Some(&failure));
        }
    }
}
