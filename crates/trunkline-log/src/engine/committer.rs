//! The one thread that writes: it takes what is queued, stages all of it, writes and syncs each file
//! once, shows readers what is durable, and answers.

mod change;
mod turn;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::sync::{Arc, mpsc::Sender};
use std::thread;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use trunkline_core::engine::{
    Append, AppendMode, Batch, Bucket, Change, Commit, Committed, Outcome, Removal,
};
use trunkline_core::{Error, ErrorKind, Name, Result};

pub(super) use turn::{Staged, Writer};

use super::closed;
use super::connections::Connections;
use super::consume::Consumer;

/// Bytes of jobs that may be queued, in KiB: what more is to be written waits for its turn.
const QUEUE_KIB: u32 = 64 << 10;
/// What a job takes besides what it carries, in KiB.
const JOB_KIB: u32 = 1;

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// Something that is to be written.
pub(super) enum Job {
    Append {
        stream: Name,
        batch: Batch<Result<Append>>,
        mode: AppendMode,
        reply: Reply<Vec<Outcome>>,
    },
    Remove {
        stream: Name,
        what: Removal,
        reply: Reply<u64>,
    },
    /// Events past their age are to leave.
    Age {
        stream: Name,
        reply: Reply<()>,
    },
    /// What the consumer owes is to be written down. It is given itself, because another may have its name
    /// by then.
    Settle {
        consumer: Arc<Consumer>,
        reply: Reply<()>,
    },
    Commit {
        bucket: Bucket,
        commit: Commit,
        reply: Reply<Committed>,
    },
    /// Keys whose time is up are to go.
    Expire {
        reply: Reply<()>,
    },
    Change {
        change: Change,
        reply: Reply<()>,
    },
    /// What was answered is to be synced.
    Sync {
        reply: Reply<()>,
    },
    /// A snapshot of the journal was taken, or failed.
    Copied,
    Close(Option<Reply<()>>),
}

impl Job {
    /// Answers that it is not done.
    fn refuse(self, error: &Error) {
        fn no<T>(reply: Reply<T>, error: &Error) {
            // Whoever asked may have gone.
            let _ = reply.send(Err(error.clone()));
        }
        match self {
            Self::Append { reply, .. } => no(reply, error),
            Self::Remove { reply, .. } => no(reply, error),
            Self::Age { reply, .. }
            | Self::Settle { reply, .. }
            | Self::Expire { reply }
            | Self::Sync { reply }
            | Self::Change { reply, .. } => no(reply, error),
            Self::Commit { reply, .. } => no(reply, error),
            Self::Copied | Self::Close(_) => {}
        }
    }
}

/// A job in the queue, and the room that it takes there.
pub(super) struct Queued {
    pub(super) job: Job,
    _room: Option<OwnedSemaphorePermit>,
}

/// The way to the committer.
pub(super) struct Committer {
    queue: Mutex<Option<Sender<Queued>>>,
    room: Arc<Semaphore>,
    connections: Arc<Connections>,
}

impl Committer {
    /// Starts the thread.
    pub(super) fn start(
        connections: &Arc<Connections>,
        writer: impl FnOnce(Sender<Queued>) -> Writer,
    ) -> Result<Self> {
        let (queue, jobs) = mpsc::channel();
        let mut writer = writer(queue.clone());
        let connected = Arc::clone(connections);
        let run = move || {
            let run = AssertUnwindSafe(|| writer.run(&jobs));
            if let Err(panic) = catch_unwind(run) {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                let text = text.unwrap_or("no message");
                tracing::error!(
                    panic = text,
                    "the thread that writes has panicked; the bus is closed"
                );
                connected.fail(text);
                // The files are as after a crash, and whoever opens them again mends them.
                drop(writer);
            }
        };
        thread::Builder::new()
            .name("trunkline-log".to_owned())
            .spawn(run)
            .map_err(|error| {
                Error::new(ErrorKind::Internal, "cannot start the thread that writes")
                    .caused_by(error)
            })?;
        Ok(Self {
            queue: Mutex::new(Some(queue)),
            room: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
            connections: Arc::clone(connections),
        })
    }

    /// Queues a job of so many bytes, and gives where its answer comes. The place in the queue is the
    /// place in the order.
    pub(super) async fn queue<T>(
        &self,
        bytes: usize,
        job: impl FnOnce(Reply<T>) -> Job,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let kib = u32::try_from(bytes >> 10).unwrap_or(QUEUE_KIB);
        let kib = kib.saturating_add(JOB_KIB).min(QUEUE_KIB);
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await;
        let (reply, answer) = oneshot::channel();
        self.send(job(reply), room.ok())?;
        Ok(answer)
    }

    /// Queues a job and waits for its answer.
    pub(super) async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T> {
        answer(self.queue(0, job).await?).await
    }

    fn send(&self, job: Job, room: Option<OwnedSemaphorePermit>) -> Result<()> {
        let queue = self.queue.lock();
        let queued = Queued { job, _room: room };
        match &*queue {
            Some(queue) if queue.send(queued).is_ok() => Ok(()),
            _ => Err(self.connections.why_closed()),
        }
    }

    /// Has everything that is queued written, then ends the thread.
    pub(super) async fn closed(&self) {
        let (reply, answer) = oneshot::channel();
        if self.send(Job::Close(Some(reply)), None).is_ok() {
            self.queue.lock().take();
            let _ = answer.await;
        }
    }

    /// The same without waiting.
    pub(super) fn end(&self) {
        let _ = self.send(Job::Close(None), None);
        self.queue.lock().take();
    }
}

/// Waits for an answer.
pub(super) async fn answer<T>(answer: oneshot::Receiver<Result<T>>) -> Result<T> {
    // The thread answers every job, unless it has ended.
    answer.await.unwrap_or_else(|_| Err(closed()))
}
