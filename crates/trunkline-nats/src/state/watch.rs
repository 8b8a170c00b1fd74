//! Telling changes of keys as they happen.

use std::sync::Arc;

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
    pub(super) async fn open(
        wire: &Arc<Wire>,
        bucket: &Bucket,
        prefix: Option<&StateKey>,
        from: Rev,
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
        reader.tells_no_gaps();
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
                    Read::Reset | Read::Closed => return Err(closed_or_gone(&self.bucket)),
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
