//! The few ways in which a consumer touches its records, each repeated until its outcome is known.

use std::sync::Arc;
use std::time::Duration;

use smol_str::{SmolStr, format_smolstr};
use trunkline_core::engine::{
    Bucket, Commit, Committed, Credit, Engine, Entry, Expectation, Op, Position, Rev, Seq, StateKey,
};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

/// How long to wait before a call is repeated: twice as long each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The bucket of an engine.
#[derive(Clone, Debug)]
pub(in crate::consumer) struct Store {
    pub(in crate::consumer) engine: Arc<dyn Engine>,
    pub(in crate::consumer) bucket: Bucket,
}

/// What became of a commit that was repeated until that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::consumer) enum Known {
    Done(Vec<Rev>),
    /// It was done, by a call whose answer was lost. That says nothing of how things stand now.
    DoneBefore,
    /// It was not done, because something was not as expected.
    Conflict,
}

impl Store {
    /// A name for a commit, by which a repeat is known.
    pub(in crate::consumer) fn commit_id() -> SmolStr {
        format_smolstr!("{:032x}", trunkline_core::random::random::<u128>())
    }

    /// Commits, and repeats the same commit under the same id until its outcome is known.
    ///
    /// # Errors
    /// What repeating would not mend.
    pub(in crate::consumer) async fn commit(
        &self,
        id: SmolStr,
        fences: Vec<(StateKey, Expectation)>,
        ops: Vec<Op>,
    ) -> Result<Known> {
        Ok(match self.outcome(id, fences, ops).await? {
            Committed::Done(revs) => Known::Done(revs),
            Committed::Duplicate => Known::DoneBefore,
            Committed::Conflict { .. } => Known::Conflict,
        })
    }

    /// As [`commit`](Self::commit), and says what was not as expected.
    pub(in crate::consumer) async fn outcome(
        &self,
        id: SmolStr,
        fences: Vec<(StateKey, Expectation)>,
        ops: Vec<Op>,
    ) -> Result<Committed> {
        let commit = Commit { id, fences, ops };
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = self
                .engine
                .state()
                .commit(&self.bucket, commit.clone())
                .completed()
                .await;
            match answer {
                Ok(committed) => return Ok(committed),
                Err(error) if error.retryable() => {
                    tracing::debug!(id = %commit.id, %error, again_in = ?pause, "a commit is repeated");
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One key, as it stands at that revision or later.
    pub(in crate::consumer) async fn get(
        &self,
        key: &StateKey,
        at_least: Rev,
    ) -> Result<Option<Entry>> {
        let page = self.page(key, None, at_least, 1).await?;
        Ok(page.entries.into_iter().find(|entry| entry.key == *key))
    }

    /// Every key below a prefix, as they stand at that revision or later.
    pub(in crate::consumer) async fn all(
        &self,
        prefix: &StateKey,
        at_least: Rev,
    ) -> Result<Vec<Entry>> {
        let (all, _) = self.all_and_rev(prefix, at_least).await?;
        Ok(all)
    }

    /// As [`all`](Self::all), and the revision up to which nothing is missing.
    pub(in crate::consumer) async fn all_and_rev(
        &self,
        prefix: &StateKey,
        at_least: Rev,
    ) -> Result<(Vec<Entry>, Rev)> {
        let mut page = self.page(prefix, None, at_least, 1_000).await?;
        // The other pages are as new as this one, or newer.
        let (mut all, rev) = (page.entries, page.rev);
        while let Some(after) = page.next {
            page = self.page(prefix, Some(&after), rev, 1_000).await?;
            all.append(&mut page.entries);
        }
        Ok((all, rev))
    }

    async fn page(
        &self,
        prefix: &StateKey,
        after: Option<&StateKey>,
        at_least: Rev,
        items: usize,
    ) -> Result<trunkline_core::engine::Entries> {
        let mut pause = FIRST_PAUSE;
        loop {
            let page = self
                .engine
                .state()
                .scan(
                    &self.bucket,
                    Some(prefix),
                    after,
                    at_least,
                    Credit::items(items),
                )
                .await;
            match page {
                Err(error) if error.retryable() => {
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
                page => return page,
            }
        }
    }

    /// The sequence that the stream's next event will have, as a read from there on says.
    pub(in crate::consumer) async fn tail(
        &self,
        stream: &Name,
        filters: &[Filter],
        from: Seq,
    ) -> Result<Seq> {
        let mut pause = FIRST_PAUSE;
        loop {
            let log = self.engine.log();
            let read = log.read(stream, Position::Seq(from), filters, Credit::items(1));
            match read.await {
                Err(error) if error.retryable() => {
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
                page => return page.map(|page| page.tail),
            }
        }
    }

    /// Changes one key by what it holds, as often as others get in between.
    ///
    /// `change` gives the new value, or none to leave it as it is; what was there is answered with
    /// its revision.
    pub(in crate::consumer) async fn update(
        &self,
        key: &StateKey,
        mut change: impl FnMut(Option<&Entry>) -> Result<Option<bytes::Bytes>>,
    ) -> Result<Option<Rev>> {
        /// How often others may get in between.
        const TRIES: usize = 20;
        for _ in 0..TRIES {
            let found = self.get(key, 0).await?;
            let Some(value) = change(found.as_ref())? else {
                return Ok(found.map(|entry| entry.rev));
            };
            let expect = found.map_or(Expectation::Absent, |entry| Expectation::Rev(entry.rev));
            let put = Op::Put {
                key: key.clone(),
                value,
                expect,
                ttl: None,
            };
            match self
                .commit(Self::commit_id(), Vec::new(), vec![put])
                .await?
            {
                Known::Done(revs) => return Ok(revs.first().copied()),
                // Somebody may have changed it since; look at how it stands.
                Known::DoneBefore | Known::Conflict => tokio::time::sleep(FIRST_PAUSE).await,
            }
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("{key} keeps being changed by others; try again"),
        ))
    }

    /// As [`update`](Self::update), and what is left as it is is so for sure: a copy of the bucket that
    /// lags may show what was, where there is nothing to change.
    pub(in crate::consumer) async fn update_surely(
        &self,
        key: &StateKey,
        mut change: impl FnMut(Option<&Entry>) -> Result<Option<bytes::Bytes>>,
    ) -> Result<Option<Rev>> {
        loop {
            let Some(rev) = self.update(key, &mut change).await? else {
                return Ok(None);
            };
            let fence = vec![(key.clone(), Expectation::Rev(rev))];
            let stands = self.commit(Self::commit_id(), fence, Vec::new()).await?;
            if stands != Known::Conflict {
                return Ok(Some(rev));
            }
            tokio::time::sleep(FIRST_PAUSE).await;
        }
    }
}
