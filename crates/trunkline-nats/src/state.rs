//! Small keys: one KV bucket of NATS each.
//!
//! A bucket is the stream `KV_<bucket>` with one message a key, as every client of NATS knows it. A
//! commit of one change is one message, any other an atomic batch: the first message carries the commit's id, which the server knows
//! again before it looks at any fence; each message carries one expectation at most, so that fences
//! beyond that travel on messages of their own, to a key that nobody reads.

mod commit;
mod watch;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use trunkline_core::engine::{
    Admission, Admitted, Boxed, Bucket, Commit, Committed, Credit, Entries, Entry, Rev, State,
    StateKey, Watch,
};
use trunkline_core::{Error, ErrorKind, Result};

use crate::NatsEngine;
use crate::api::{ATTEMPT, PAUSE, StreamInfo, code, internal, lost};
use crate::asks::Lost;
use crate::message::header;
use crate::pull::nanos;
use crate::topology::{fewer, too_few_servers};
use crate::wire::Wire;

/// For how long a deletion, or the end of a key's time, is told to who watches late. Every scan passes
/// over the tombstones that there are. But it must not be short: when a tombstone has ended and the
/// server is killed, it finds the values that the tombstone had replaced again, unless it has compacted
/// the block that they were in.
const TOMBSTONE: Duration = Duration::from_secs(24 * 60 * 60);
/// For how long the id of a commit is known.
const REMEMBERED: Duration = Duration::from_secs(120);
/// Keys that one direct get may name.
const KEYS: usize = 500;
/// Direct gets of one scan that are under way at once.
const GETS: usize = 8;
/// The key that fences travel to which no change carries. No key of a caller begins with a dot's
/// worth of `_trunkline`.
const FENCES: &str = "_trunkline.fence";

const OPERATION: &str = "KV-Operation";
const MARKER: &str = "Nats-Marker-Reason";

/// The stream behind a bucket.
fn stream_of(bucket: &Bucket) -> String {
    format!("KV_{bucket}")
}

/// The subject of a key.
fn subject_of(bucket: &Bucket, key: &str) -> String {
    format!("$KV.{bucket}.{key}")
}

/// The key of a subject; none for what is not a caller's.
fn key_of(bucket: &Bucket, subject: &str) -> Option<StateKey> {
    let key = subject
        .strip_prefix("$KV.")?
        .strip_prefix(bucket.as_str())?;
    let key = key.strip_prefix('.')?;
    (key != FENCES).then(|| StateKey::new(key).ok())?
}

/// What a stored message says of its key.
enum Stands {
    Put,
    Deleted,
    Expired,
}

fn stands(headers: Option<&HeaderMap>) -> Stands {
    match (header(headers, MARKER), header(headers, OPERATION)) {
        (Some("MaxAge"), _) => Stands::Expired,
        (Some(_), _) | (None, Some("DEL" | "PURGE")) => Stands::Deleted,
        (None, _) => Stands::Put,
    }
}

impl State for NatsEngine {
    fn commit(&self, bucket: &Bucket, commit: Commit) -> Admitted<'_, Committed> {
        let (kv, bucket) = (Arc::clone(&self.kv), bucket.clone());
        Admitted::waiting(async move {
            kv.wire.check_open()?;
            // On a task of its own: it goes on when nobody waits for it any more.
            let commit = tokio::spawn(async move { commit::commit(&kv, &bucket, commit).await });
            Ok(Admission::waiting(async {
                commit.await.map_err(|error| internal("commit", &error))?
            }))
        })
    }

    fn scan<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        after: Option<&'a StateKey>,
        at_least: Rev,
        max: Credit,
    ) -> Boxed<'a, Result<Entries>> {
        Box::pin(self.kv.scan(bucket, prefix, after, at_least, max))
    }

    fn watch<'a>(
        &'a self,
        bucket: &'a Bucket,
        prefix: Option<&'a StateKey>,
        from: Rev,
    ) -> Boxed<'a, Result<Box<dyn Watch>>> {
        Box::pin(async move {
            self.kv.bucket(bucket).await?;
            let watch = watch::NatsWatch::open(&self.wire, bucket, prefix, from).await?;
            let watch: Box<dyn Watch> = Box::new(watch);
            Ok(watch)
        })
    }
}

/// The buckets of a connection.
pub(crate) struct Kv {
    wire: Arc<Wire>,
    max_value: usize,
    /// Copies of a bucket that are asked for.
    replicas: usize,
    /// Buckets that are known to be there.
    known: Mutex<HashSet<Bucket>>,
}

impl Kv {
    pub(crate) fn new(wire: Arc<Wire>, max_value: usize, replicas: usize) -> Self {
        Self {
            wire,
            max_value,
            replicas,
            known: Mutex::default(),
        }
    }

    /// Makes sure that a bucket is there, once.
    async fn bucket(&self, bucket: &Bucket) -> Result<()> {
        if !self.has_bucket(bucket).await? {
            self.make_bucket(bucket, &stream_of(bucket)).await?;
            self.known.lock().insert(bucket.clone());
        }
        Ok(())
    }

    /// Whether a bucket is there.
    async fn has_bucket(&self, bucket: &Bucket) -> Result<bool> {
        self.wire.check_open()?;
        if self.known.lock().contains(bucket) {
            return Ok(true);
        }
        let Some(found) = self.wire.stream_info(&stream_of(bucket)).await? else {
            return Ok(false);
        };
        check_bucket(bucket, &found.config)?;
        self.known.lock().insert(bucket.clone());
        Ok(true)
    }

    async fn make_bucket(&self, bucket: &Bucket, name: &str) -> Result<()> {
        for replicas in fewer(self.replicas) {
            let config = json!({
                "name": name,
                "subjects": [format!("$KV.{bucket}.>")],
                "description": "state of Trunkline",
                "storage": "file",
                "retention": "limits",
                "discard": "new",
                "num_replicas": replicas,
                "max_msgs": -1,
                "max_bytes": -1,
                "max_age": 0,
                "max_consumers": -1,
                "max_msgs_per_subject": 1,
                "duplicate_window": nanos(REMEMBERED),
                "allow_direct": true,
                "allow_atomic": true,
                "allow_msg_ttl": true,
                "allow_rollup_hdrs": true,
                "deny_delete": true,
                "subject_delete_marker_ttl": nanos(TOMBSTONE),
                "metadata": { trunkline_core::plan::OWNER_KEY: "1" },
            });
            let verb = format!("STREAM.CREATE.{name}");
            match self.wire.api::<StreamInfo>(&verb, &config).await? {
                Ok(_) => return Ok(()),
                Err(error) if too_few_servers(&error) && replicas > 1 => {}
                Err(error) if error.err_code == code::STREAM_NAME_IN_USE => {
                    // Somebody else made it at the same moment.
                    let found = self.wire.known_stream(name).await?;
                    return check_bucket(bucket, &found.config);
                }
                Err(error) => return Err(error.meaning(&format!("make bucket {bucket}"))),
            }
        }
        Ok(())
    }

    async fn scan(
        &self,
        bucket: &Bucket,
        prefix: Option<&StateKey>,
        after: Option<&StateKey>,
        at_least: Rev,
        max: Credit,
    ) -> Result<Entries> {
        // Who only looks makes nothing, and need not be permitted to.
        if at_least == 0 && !self.has_bucket(bucket).await? {
            return Ok(Entries {
                entries: Vec::new(),
                next: None,
                rev: 0,
            });
        }
        self.bucket(bucket).await?;
        let stream = stream_of(bucket);
        let deadline = self.wire.request_deadline();
        let rev = loop {
            let rev = self.wire.known_stream(&stream).await?.state.last_seq;
            if rev >= at_least {
                break rev;
            }
            if Instant::now() + PAUSE >= deadline {
                return Err(Error::new(
                    ErrorKind::TimedOut,
                    format!(
                        "bucket {bucket} is at revision {rev} and did not reach {at_least} in time"
                    ),
                ));
            }
            tokio::time::sleep(PAUSE).await;
        };
        // The leader lists the keys, and after it was asked how far it is: so none is missing that was
        // written by then.
        let below = subject_of(
            bucket,
            &prefix.map_or(">".to_owned(), |key| format!("{key}.>")),
        );
        let mut keys: Vec<StateKey> = self
            .wire
            .subject_counts(&stream, &below)
            .await?
            .into_keys()
            .filter_map(|subject| key_of(bucket, &subject))
            .collect();
        keys.extend(prefix.cloned());
        keys.retain(|key| after.is_none_or(|after| key > after));
        keys.sort_unstable();
        keys.dedup();
        let mut entries = Entries {
            entries: Vec::new(),
            next: None,
            rev,
        };
        let (mut bytes, mut last) = (0, None);
        let mut gets: Vec<_> = keys
            .chunks(KEYS)
            .map(|some| self.values(bucket, &stream, some, rev))
            .collect();
        // The first may have all that is wanted; of the others most may be tombstones.
        let mut at_once = 1;
        while !gets.is_empty() {
            let others = gets.split_off(at_once.min(gets.len()));
            let some = try_join_all(std::mem::replace(&mut gets, others)).await?;
            at_once = GETS.min(2 * at_once);
            for entry in some.into_iter().flatten() {
                bytes += entry.value.len() + entry.key.as_str().len();
                let full = entries.entries.len() >= max.items || bytes > max.bytes;
                if full && !entries.entries.is_empty() {
                    entries.next = last;
                    return Ok(entries);
                }
                last = Some(entry.key.clone());
                entries.entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// The values of keys, in the order of the keys, as a replica has them that has seen `rev`.
    async fn values(
        &self,
        bucket: &Bucket,
        stream: &str,
        keys: &[StateKey],
        rev: Rev,
    ) -> Result<Vec<Entry>> {
        let what = "reading a bucket";
        // Each has its own: a scan takes as long as it has keys.
        let deadline = self.wire.request_deadline();
        let subjects: Vec<_> = keys
            .iter()
            .map(|key| subject_of(bucket, key.as_str()))
            .collect();
        let request = json!({ "multi_last": subjects, "batch": KEYS });
        'again: loop {
            self.wire.connected(deadline).await?;
            let subject = Subject::from(format!("{}.DIRECT.GET.{stream}", self.wire.api));
            let mut asked = self.wire.asks.many(subject.clone());
            let body = Bytes::from(request.to_string());
            asked
                .send(&self.wire, subject, HeaderMap::new(), body, deadline)
                .await
                .map_err(|error| lost(error, what))?;
            let mut found = Vec::new();
            loop {
                let again = Instant::now() + PAUSE < deadline;
                let message = match asked.next(deadline.min(Instant::now() + ATTEMPT)).await {
                    Ok(message) => message,
                    Err(Lost::Interrupted | Lost::NoResponders | Lost::TimedOut) if again => {
                        tokio::time::sleep(PAUSE).await;
                        continue 'again;
                    }
                    Err(error) => return Err(lost(error, what)),
                };
                let headers = message.headers.as_ref();
                match message.status {
                    None => {
                        if matches!(stands(headers), Stands::Put)
                            && let Some(entry) = entry(bucket, &message)
                        {
                            found.push(entry);
                        }
                    }
                    // None of the keys, or the end of the batch, and how far the replica is.
                    Some(status) if [204, 404].contains(&status.as_u16()) => {
                        let seen =
                            header(headers, "Nats-UpTo-Sequence").and_then(|seq| seq.parse().ok());
                        if seen.is_some_and(|seen: Rev| seen < rev) && again {
                            tokio::time::sleep(PAUSE).await;
                            continue 'again;
                        }
                        found.sort_by(|a: &Entry, b| a.key.cmp(&b.key));
                        return Ok(found);
                    }
                    Some(status) => {
                        let text = message.description.unwrap_or_default();
                        return Err(internal(what, &format!("{status} {text}")));
                    }
                }
            }
        }
    }
}

fn entry(bucket: &Bucket, message: &async_nats::Message) -> Option<Entry> {
    let headers = message.headers.as_ref();
    Some(Entry {
        key: key_of(bucket, header(headers, "Nats-Subject")?)?,
        value: message.payload.clone(),
        rev: header(headers, "Nats-Sequence")?.parse().ok()?,
        at: header(headers, "Nats-Time-Stamp")?.parse().ok()?,
    })
}

/// # Errors
/// [`ErrorKind::Drift`] for a bucket that somebody made without what commits need.
fn check_bucket(bucket: &Bucket, config: &Map<String, Value>) -> Result<()> {
    let missing = [
        "allow_direct",
        "allow_atomic",
        "allow_msg_ttl",
        "allow_rollup_hdrs",
    ]
    .into_iter()
    .find(|key| config.get(*key) != Some(&Value::Bool(true)));
    match missing {
        None => Ok(()),
        Some(missing) => Err(Error::new(
            ErrorKind::Drift,
            format!(
                "bucket {bucket} exists without {missing}, which commits need; enable it on stream KV_{bucket}, or use another bucket"
            ),
        )),
    }
}

/// A time to live as the server takes it: whole seconds, one at least.
fn ttl(duration: Duration) -> String {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    format!("{}s", seconds.max(1))
}
