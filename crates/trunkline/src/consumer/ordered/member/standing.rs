//! How dead letters stand, as whoever owns their events hears of it.

use smol_str::SmolStr;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use trunkline_core::engine::{Rev, Seq, StateKey, Watched};
use trunkline_core::{ErrorKind, Result};

use super::super::store::Store;
use super::PAUSE;
use crate::dead_letter::{Record, State, keys};

/// What one hears of dead letters.
#[derive(Debug)]
pub(super) enum News {
    /// One of them stands so, since that revision.
    Stands(Seq, Rev, Standing),
    /// All that was known when one began to listen has been told. What was removed before then never is.
    ToldAll,
}

/// How a dead letter stands, as far as its consumer is concerned.
#[derive(Debug)]
pub(super) enum Standing {
    /// Somebody wants it to be run again; with its key.
    Asked(Option<SmolStr>),
    /// It is dealt with, or forgotten.
    Settled,
    Dead,
}

impl Standing {
    pub(super) fn of(record: Option<&Result<Record>>) -> Self {
        match record {
            None => Standing::Settled,
            Some(Ok(record)) if record.is_resolved() => Standing::Settled,
            Some(Ok(Record {
                state: State::Replaying { .. },
                key,
                ..
            })) => Standing::Asked(key.clone()),
            // What cannot be read is not dealt with.
            Some(_) => Standing::Dead,
        }
    }
}

/// A dead letter that somebody wants to be run again.
#[derive(Debug)]
pub(super) struct Asked {
    /// The revision that says so.
    pub(super) rev: Rev,
    pub(super) key: Option<SmolStr>,
}

/// A replay that was taken on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// What was asked for by this revision, or before.
    pub(super) rev: Rev,
    /// By the owner of its partition at that time.
    pub(super) epoch: Rev,
}

/// Tells how every dead letter stands.
#[derive(Debug)]
pub(super) struct Requests {
    news: mpsc::UnboundedReceiver<News>,
    task: AbortHandle,
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Requests {
    pub(super) fn watch(store: Store, dead: &keys::Place) -> Result<Self> {
        let (told, news) = mpsc::unbounded_channel();
        let prefix = dead.prefix()?;
        let task = tokio::spawn(async move {
            loop {
                let ended = watch(&store, &prefix, &told).await;
                if told.is_closed() || ended.is_err_and(|error| error.kind() == ErrorKind::Closed) {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Ok(Self {
            news,
            task: task.abort_handle(),
        })
    }

    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }
}

async fn watch(store: &Store, prefix: &StateKey, told: &mpsc::UnboundedSender<News>) -> Result<()> {
    let mut watch = store
        .engine
        .state()
        .watch(&store.bucket, Some(prefix), 0)
        .await?;
    loop {
        let (key, rev, record) = match watch.next().await? {
            Watched::CaughtUp(_) if told.send(News::ToldAll).is_err() => return Ok(()),
            Watched::CaughtUp(_) => continue,
            Watched::Put(entry) => (entry.key, entry.rev, Some(Record::decode(&entry.value))),
            Watched::Deleted { key, rev, .. } | Watched::Expired { key, rev, .. } => {
                (key, rev, None)
            }
        };
        let seq = key.as_str().rsplit('.').next();
        let Some(seq) = seq.and_then(|seq| seq.parse().ok()) else {
            continue;
        };
        let news = News::Stands(seq, rev, Standing::of(record.as_ref()));
        if told.send(news).is_err() {
            return Ok(());
        }
    }
}
