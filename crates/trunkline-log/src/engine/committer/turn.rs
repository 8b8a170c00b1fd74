//! One turn: stage what is queued, write and sync, publish, answer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use trunkline_core::engine::{
    Append, AppendMode, Batch, Bucket, Commit, Committed, Outcome, Retention, Seq,
};
use trunkline_core::plan::legal::no_such_consumer;
use trunkline_core::{Clock, Error, ErrorKind, Name, Result, Subject, Timestamp};

use super::super::consume::Consumer;
use super::super::directory::Lock;
use super::super::streams::Streams;
use super::super::sync::{SyncPolicy, Unsynced, all_synced};
use super::super::{Changed, closed};
use super::{Job, Queued, Reply};
use crate::disk::Disk;
use crate::journal::{Copied, Journal, Published, Record};
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
    pub(in crate::engine) copying: Option<Copying>,
    /// Whether values may have died since they were last looked at.
    pub(in crate::engine) keys_changed: bool,
    pub(in crate::engine) sync: SyncPolicy,
    /// Says up to where sequences may be given that are not durable yet.
    pub(in crate::engine) unsynced: Unsynced,
    /// Since when something is written and not synced.
    pub(in crate::engine) unsynced_since: Option<Instant>,
    /// Held until everything is closed.
    pub(in crate::engine) lock: Lock,
    /// Consumers whose acknowledgements were refused.
    pub(in crate::engine) owing: Vec<Arc<Consumer>>,
    /// What is to be done when the group is durable, or is not.
    pub(in crate::engine) staged: Staged,
    /// What failed: from then on nobody knows what is on the disk, and nothing more is written.
    pub(in crate::engine) failed: Option<Error>,
}

/// A snapshot that another thread takes.
pub(in crate::engine) struct Copying {
    thread: JoinHandle<Result<Copied>>,
    /// Tells it to stop.
    stop: Arc<AtomicBool>,
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
            let mut next = match self.next(jobs) {
                Ok(first) => Some(first),
                Err(RecvTimeoutError::Timeout) => {
                    self.sync_when_due();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.settle_again();
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
            self.sync_when_due();
            self.tidy();
        }
        let closed = self.close();
        if let Some(Some(reply)) = close {
            let _ = reply.send(closed);
        }
        // Whoever queued something behind that finds nobody, and is told so by the end of the queue.
    }

    /// The next job, or that it is time to sync.
    fn next(&self, jobs: &Receiver<Queued>) -> Result<Queued, RecvTimeoutError> {
        match (self.sync, self.unsynced_since) {
            (SyncPolicy::Interval(interval), Some(since)) => {
                jobs.recv_timeout(interval.saturating_sub(since.elapsed()))
            }
            _ => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn sync_when_due(&mut self) {
        let is_due = match (self.sync, self.unsynced_since) {
            (SyncPolicy::Interval(interval), Some(since)) => since.elapsed() >= interval,
            _ => false,
        };
        if is_due && let Err(error) = self.sync() {
            tracing::error!(%error, "syncing failed; what was acknowledged since the last one may not survive a loss of power, and nothing more is taken");
        }
    }

    /// Syncs what was written: streams first, so that keys and progress never speak of events that are
    /// less durable than they are.
    fn sync(&mut self) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.unsynced_since = None;
        let mut streams = self.writing.values_mut();
        let synced = streams
            .try_for_each(Stream::sync)
            .and_then(|()| self.journal.sync());
        synced.inspect_err(|error| self.failed = Some(error.clone()))
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
            Job::Settle { consumer, reply } => {
                let settled = self.settle(&consumer, now);
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
            Job::Sync { reply } => {
                self.finish();
                let _ = reply.send(self.sync());
            }
            Job::Copied => self.end_snapshot(),
            Job::Close(_) => {}
        }
    }

    /// Stages what the consumer has acknowledged and nobody has staged. What is refused is tried again
    /// with the next group.
    fn settle(&mut self, consumer: &Arc<Consumer>, now: Timestamp) -> Result<()> {
        let at = consumer.at();
        let open = self.streams.get(&at.stream)?;
        let present = open.consumer(&at.consumer);
        if present.is_none_or(|present| !Arc::ptr_eq(&present, consumer)) {
            return Err(no_such_consumer(at));
        }
        let is_queue = open.interest().spec.retention == Retention::WorkQueue;
        // Nothing if it was staged with what was acknowledged before it.
        while let Some(owed) = consumer.take_owed() {
            let left = match is_queue {
                true => {
                    let seqs = owed.ranges.iter().flat_map(|(first, end)| *first..*end);
                    let seqs: Vec<Seq> = seqs.collect();
                    self.stream(&at.stream)
                        .and_then(|stream| stream.stage_settled(now, &seqs))
                }
                false => Ok(0),
            };
            let record = Record::Settled {
                at: at.clone(),
                stretches: owed.stretches,
                lost: owed.lost,
            };
            if let Err(error) = left.and_then(|_| self.record(record, now)) {
                tracing::warn!(consumer = %at.consumer, %error, "acknowledgements are not written down yet; that is tried again");
                consumer.owe(owed.ranges);
                if !self.owing.iter().any(|known| Arc::ptr_eq(known, consumer)) {
                    self.owing.push(Arc::clone(consumer));
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Tries again what was refused.
    fn settle_again(&mut self) {
        if self.failed.is_some() || self.owing.is_empty() {
            return;
        }
        let now = self.clock.now();
        for consumer in std::mem::take(&mut self.owing) {
            // What is refused again is owed again, and whoever is gone owes nothing.
            let _ = self.settle(&consumer, now);
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
            .announce(name, items)
            .and_then(|()| self.stream(name)?.stage(now, batch, mode));
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

    /// Says durably that the stream may give so many sequences more, where they are given before they
    /// are durable.
    fn announce(&mut self, name: &Name, items: usize) -> Result<()> {
        if self.sync.survives_power() {
            return Ok(());
        }
        let end = self.stream(name)?.tail().saturating_add(items as u64);
        self.unsynced.announce(name, end)
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
        let published = match self.sync.survives_power() {
            true => self.write_and_sync()?,
            false => self.write_only()?,
        };
        let buckets: BTreeSet<Bucket> = published.buckets.into_iter().collect();
        for bucket in &buckets {
            self.changed.tell(bucket);
        }
        self.keys_changed |= !buckets.is_empty();
        Ok(())
    }

    /// Writes what is staged and shows it. From then on it survives the process, and a loss of power once
    /// it is synced.
    fn write_only(&mut self) -> Result<Published> {
        let staged = self
            .writing
            .values_mut()
            .filter(|stream| stream.is_staged());
        for stream in staged {
            stream.write()?;
            stream.publish_written()?;
        }
        self.journal.write()?;
        let published = self.journal.publish_written()?;
        let mut streams = self.writing.values();
        if self.journal.is_unsynced() || streams.any(Stream::is_dirty) {
            self.unsynced_since.get_or_insert_with(Instant::now);
        }
        Ok(published)
    }

    fn write_and_sync(&mut self) -> Result<Published> {
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
        self.journal.flush()
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
                    let (queue, stop) = (self.queue.clone(), Arc::new(AtomicBool::new(false)));
                    let told = Arc::clone(&stop);
                    let copy = move || {
                        let copied = job.run_unless(&told);
                        let job = Job::Copied;
                        // Without a committer nobody needs it.
                        let _ = queue.send(Queued { job, _room: None });
                        copied
                    };
                    let thread = thread::Builder::new().name("trunkline-snapshot".to_owned());
                    match thread.spawn(copy) {
                        Ok(thread) => self.copying = Some(Copying { thread, stop }),
                        Err(error) => {
                            let error = Error::new(ErrorKind::Internal, "no thread for a snapshot")
                                .caused_by(error);
                            self.end(Err(error));
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
            // Only what was copied is written: what else is not synced yet waits for its time.
            let written = compacted.and_then(|_| match self.journal.staged_bytes() {
                0 => Ok(()),
                _ => self.write_group(),
            });
            if let Err(error) = written {
                tracing::warn!(%error, "dead values stay for now");
            }
        }
    }

    /// Ends the snapshot that is being taken, when all of it is written.
    fn end_snapshot(&mut self) {
        if let Some(Copying { thread, .. }) = self.copying.take() {
            let copied = thread.join().unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Internal,
                    "the thread of a snapshot panicked",
                ))
            });
            self.end(copied);
        }
    }

    fn end(&mut self, copied: Result<Copied>) {
        if let Err(error) = self.journal.end_snapshot(copied)
            && error.kind() != ErrorKind::Closed
        {
            tracing::warn!(%error, "a snapshot of the journal failed; it is tried again later");
        }
    }

    /// Closes every file, so that the next to open knows that nothing was torn.
    fn close(&mut self) -> Result<()> {
        if let Some(copying) = &self.copying {
            copying.stop.store(true, Ordering::Relaxed);
        }
        // Nobody may be at work in the directory when the next one has it.
        self.end_snapshot();
        let mut closed = Ok(());
        for (_, stream) in std::mem::take(&mut self.writing) {
            closed = closed.and(stream.close());
        }
        closed = closed.and(self.journal.close().map(drop));
        if closed.is_ok() && !self.sync.survives_power() {
            closed = all_synced(&*self.disk, &self.dir);
        }
        self.lock.release();
        closed
    }
}

/// Without a close, because it panicked: what is staged is not answered for, and nobody is left at work.
impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(Copying { thread, stop }) = self.copying.take() {
            stop.store(true, Ordering::Relaxed);
            // It did what it could, and the lock is released after it.
            let _ = thread.join();
        }
        let failure = closed();
        for answer in std::mem::take(&mut self.staged.answers) {
            answer(Some(&failure));
        }
    }
}
