//! Telling changes of keys as they happen.

use std::sync::Arc;
use std::time::Duration;

use trunkline_core::engine::{Boxed, Bucket, Entry, Rev, StateKey, Watch, Watched};
use trunkline_core::{Error, ErrorKind, Result};

use super::{Stands, key_of, stands, stream_of, subject_of};
use crate::reader::{From, Read, Reader};
use crate::wire::{Wire, closed};

pub(super) struct NatsWatch {
    reader: Reader,
    bucket: Bucket,
    /// Until then it tells the state as it was; none once that is told.
    catching_up: Option<Rev>,
}

impl NatsWatch {
    /// A watch for which deletions are kept for as long as `told`.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when some that came after `from` may not be kept any more.
    pub(super) async fn open(
        wire: &Arc<Wire>,
        bucket: &Bucket,
        prefix: Option<&StateKey>,
        from: Rev,
        told: Duration,
    ) -> Result<Self> {
        let filters = match prefix {
            None => vec![subject_of(bucket, ">")],
            Some(key) => vec![
                subject_of(bucket, key.as_str()),
                subject_of(bucket, &format!("{key}.>")),
            ],
        };
        let from = match from {
            0 => From::LastPerSubject,
            from => From::Seq(from + 1),
        };
        let mut reader = Reader::new(wire, &stream_of(bucket), filters, from, false);
        // A bucket keeps one value a key: what is missing before it was replaced, not lost.
        reader.reads_what_stands(told);
        reader.open().await?;
        Ok(Self {
            catching_up: Some(reader.tail().saturating_sub(1)),
            reader,
            bucket: bucket.clone(),
        })
    }
}

impl Watch for NatsWatch {
    fn next(&mut self) -> Boxed<'_, Result<Watched>> {
        Box::pin(async move {
            loop {
                if let Some(rev) = self.catching_up
                    && self.reader.pending() == 0
                    && self.reader.is_drained()
                {
                    self.catching_up = None;
                    return Ok(Watched::CaughtUp(rev.max(self.reader.last())));
                }
                let (message, place) = match self.reader.next().await? {
                    Read::Message(message, place) => (message, place),
                    Read::Gap(_) | Read::Nothing => continue,
                    Read::Closed => return Err(closed_or_gone(&self.bucket)),
                };
                let Some(key) = key_of(&self.bucket, &message.subject) else {
                    continue;
                };
                let (rev, at) = (place.seq, place.at);
                let first = self.catching_up.is_some();
                return Ok(match stands(message.headers.as_ref()) {
                    Stands::Put => Watched::Put(Entry {
                        key,
                        value: message.payload,
                        rev,
                        at,
                    }),
                    // The state as it is has no keys that are not.
                    _ if first && self.reader.tells_lasts() => continue,
                    Stands::Deleted => Watched::Deleted { key, rev, at },
                    Stands::Expired => Watched::Expired { key, rev, at },
                });
            }
        })
    }
}

fn closed_or_gone(bucket: &Bucket) -> Error {
    let error = closed();
    Error::new(
        ErrorKind::Closed,
        format!("{}, or bucket {bucket} was deleted", error.message()),
    )
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics where it fails"
)]
mod tests {
    use trunkline_core::SystemClock;
    use trunkline_core::engine::{Commit, Committed, Engine, Expectation, LinkOptions, Op};
    use trunkline_nats_server::{NatsServer, ServerOptions, obtain};

    use super::*;
    use crate::{NatsEngine, NatsOptions};

    /// What a tombstone's age is here.
    const TOLD: Duration = Duration::from_secs(2);

    async fn put(engine: &NatsEngine, bucket: &Bucket, key: &str) -> Rev {
        let put = Op::Put {
            key: StateKey::new(key).unwrap(),
            value: key.to_owned().into(),
            expect: Expectation::Any,
            ttl: None,
        };
        let commit = Commit {
            id: key.into(),
            fences: Vec::new(),
            ops: vec![put],
        };
        match engine.state().commit(bucket, commit).completed().await {
            Ok(Committed::Done(revs)) => revs[0],
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_was_away_for_longer_than_deletions_are_told_begins_anew() {
        let server = NatsServer::start(&obtain().unwrap(), ServerOptions::default()).unwrap();
        let options = NatsOptions::default().with_url(&server.url()).unwrap();
        let clock = Arc::new(SystemClock);
        let engine = NatsEngine::connect(&options, LinkOptions::default(), clock).await;
        let engine = engine.unwrap();
        let bucket = Bucket::new("bucket").unwrap();
        let after = |from| NatsWatch::open(&engine.wire, &bucket, None, from, TOLD);
        let old = put(&engine, &bucket, "a").await;
        tokio::time::sleep(TOLD + Duration::from_millis(500)).await;
        // Nothing came since, however long ago that was.
        after(old).await.unwrap();
        let second = put(&engine, &bucket, "b").await;
        // What came since is young enough.
        let mut watch = after(old).await.unwrap();
        match watch.next().await.unwrap() {
            Watched::Put(entry) => assert_eq!(entry.rev, second),
            other => panic!("{other:?}"),
        }
        tokio::time::sleep(TOLD + Duration::from_millis(500)).await;
        put(&engine, &bucket, "c").await;
        // What came first since then may have been a deletion of which nothing is left.
        let error = after(old).await.err().expect("it watches on");
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        after(second).await.unwrap();
        after(0).await.unwrap();
    }
}
