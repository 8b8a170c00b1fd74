//! What the records of a journal come to: what readers see.
//!
//! Live and when it is opened again, the state changes by [`State::apply`] alone, so the two cannot
//! differ.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use trunkline_core::engine::{
    Bucket, ConsumerRef, ConsumerSpec, Credit, Entries, Entry, Rev, StateKey, StreamSpec, Watched,
};
use trunkline_core::keys::{Changed, Held, Kept, Keys};
use trunkline_core::ledger::Settled;
use trunkline_core::{Error, ErrorKind, Filter, Name, Result, Timestamp};

use super::record::{Place, Record, Value};
use super::values::ValueFiles;

/// How many buckets a directory has at most.
pub const MAX_BUCKETS: usize = 1_024;
/// What a key costs in memory beside its text and its value: itself, its place in two maps, and
/// what a change of it takes while watches may ask for it.
pub const KEY_BYTES: usize = 256;
/// No bucket gets there; a file that says so was not written by a journal.
const MAX_REV: Rev = 1 << 62;
/// How often a value is looked for that is moved meanwhile; files are removed far less often.
const MAX_LOOKS: usize = 64;
/// What a commit that is remembered costs beside its id.
const COMMIT_BYTES: usize = 128;

/// A bucket that readers and the writer share. Locks of it are held for computation only.
pub type SharedKeys = Arc<RwLock<Keys<Value>>>;

/// A stream that was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownStream {
    /// As it is.
    pub spec: StreamSpec,
    /// Every filter by which something in it may have been stored.
    pub stored: Vec<Filter>,
}

/// A shared consumer that was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownConsumer {
    /// As it is.
    pub spec: ConsumerSpec,
    /// How far it has come.
    pub settled: Settled,
    /// Sequences that retention took before they were settled.
    pub lost: u64,
}

/// Streams and consumers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownTopology {
    /// Streams by name.
    pub streams: BTreeMap<Name, KnownStream>,
    /// Consumers by stream and name.
    pub consumers: BTreeMap<(Name, Name), KnownConsumer>,
}

/// The state of a directory, without the events of its streams.
#[derive(Debug)]
pub struct State {
    topology: RwLock<KnownTopology>,
    buckets: RwLock<BTreeMap<Bucket, SharedKeys>>,
    /// Live bytes of each file of values.
    live: Mutex<BTreeMap<u64, Live>>,
    pub(super) values: ValueFiles,
    bytes: AtomicU64,
    /// Everything that can be seen is in the journals below this place: a number and an offset.
    pub(super) reached: Mutex<(u64, u64)>,
}

/// What of a file of values is still a key's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) bytes: u64,
    pub(super) values: u64,
    /// The highest end of a value that was ever live.
    pub(super) end: u64,
}

impl State {
    pub(super) fn new(values: ValueFiles) -> Self {
        Self {
            topology: RwLock::default(),
            buckets: RwLock::default(),
            live: Mutex::default(),
            values,
            bytes: AtomicU64::new(0),
            reached: Mutex::default(),
        }
    }

    /// Streams and consumers as they were published last.
    pub fn topology(&self) -> KnownTopology {
        self.topology.read().clone()
    }

    /// The keys of a bucket. One that nobody wrote to is empty, and takes part from then on.
    ///
    /// # Errors
    /// [`ErrorKind::OverLimit`] for more than [`MAX_BUCKETS`].
    pub fn bucket(&self, name: &Bucket) -> Result<SharedKeys> {
        if let Some(keys) = self.buckets.read().get(name) {
            return Ok(Arc::clone(keys));
        }
        let mut buckets = self.buckets.write();
        if !buckets.contains_key(name) && buckets.len() >= MAX_BUCKETS {
            return Err(Error::new(
                ErrorKind::OverLimit,
                format!("bucket {name} would be one more than {MAX_BUCKETS}; use fewer buckets"),
            ));
        }
        Ok(Arc::clone(buckets.entry(name.clone()).or_default()))
    }

    /// Buckets by name.
    pub fn buckets(&self) -> BTreeMap<Bucket, SharedKeys> {
        self.buckets.read().clone()
    }

    /// When the next key's time to live runs out: then expiry is to be staged.
    pub fn next_end(&self) -> Option<Timestamp> {
        let buckets = self.buckets.read();
        buckets
            .values()
            .filter_map(|keys| keys.read().next_end())
            .min()
    }

    /// Bytes of memory that keys, their small values and remembered commits take, about.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Reads a value; none when it has been moved or removed since, so that its key is to be looked
    /// up again. Holds no lock while reading.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] with file and offset when the value is not as it was written.
    pub fn read(&self, value: &Value) -> Result<Option<bytes::Bytes>> {
        match value {
            Value::Here(bytes) => Ok(Some(bytes.clone())),
            Value::Stored(place) => self.values.read(place),
        }
    }

    /// A page of keys with their values; see [`Keys::scan`].
    ///
    /// # Errors
    /// Those of [`bucket`](Self::bucket) and [`read`](Self::read).
    pub fn scan(
        &self,
        bucket: &Bucket,
        prefix: Option<&StateKey>,
        after: Option<&StateKey>,
        max: Credit,
    ) -> Result<Entries> {
        let keys = self.bucket(bucket)?;
        // A value that is moved meanwhile is where its key says then; a file is removed so rarely
        // that a second look finds everything, but for a writer that does nothing else.
        for _ in 0..MAX_LOOKS {
            let page = keys.read().scan(prefix, after, max, Value::len);
            let entry = |(key, kept): (StateKey, Kept<Value>)| {
                let value = self.read(&kept.value)?;
                Ok(value.map(|value| Entry {
                    key,
                    value,
                    rev: kept.rev,
                    at: kept.at,
                }))
            };
            let entries: Result<Option<Vec<_>>> = page.entries.into_iter().map(entry).collect();
            if let Some(entries) = entries? {
                return Ok(Entries {
                    entries,
                    next: page.next,
                    rev: page.rev,
                });
            }
        }
        Err(Error::new(
            ErrorKind::Internal,
            format!("values of bucket {bucket} moved {MAX_LOOKS} times while they were read"),
        ))
    }

    /// The first change after `seen` for a watch; see [`Keys::changed`]. A large value that a later
    /// change has replaced may be gone, and then only the later change is told.
    ///
    /// # Errors
    /// Those of [`Keys::changed`] and [`read`](Self::read).
    pub fn changed(
        &self,
        keys: &SharedKeys,
        prefix: Option<&StateKey>,
        seen: &mut Rev,
    ) -> Result<Option<Watched>> {
        loop {
            let Some(changed) = keys.read().changed(prefix, seen)? else {
                return Ok(None);
            };
            let (key, kept) = match changed {
                Changed::Put(key, kept) => (key, kept),
                Changed::Deleted(key, rev, at) => {
                    return Ok(Some(Watched::Deleted { key, rev, at }));
                }
                Changed::Expired(key, rev, at) => {
                    return Ok(Some(Watched::Expired { key, rev, at }));
                }
            };
            let Kept { rev, at, .. } = kept;
            if let Some(value) = self.find(keys, &key, kept)? {
                return Ok(Some(Watched::Put(Entry {
                    key,
                    value,
                    rev,
                    at,
                })));
            }
        }
    }

    /// Reads a value of a key where it is now; none when a later change has replaced it.
    fn find(
        &self,
        keys: &SharedKeys,
        key: &StateKey,
        kept: Kept<Value>,
    ) -> Result<Option<bytes::Bytes>> {
        let (rev, mut value) = (kept.rev, kept.value);
        for _ in 0..MAX_LOOKS {
            if let Some(bytes) = self.read(&value)? {
                return Ok(Some(bytes));
            }
            match keys.read().get(key).filter(|now| now.rev == rev) {
                Some(now) => value = now.value.clone(),
                None => return Ok(None),
            }
        }
        Err(Error::new(
            ErrorKind::Internal,
            format!("the value of {key} moved {MAX_LOOKS} times while it was read"),
        ))
    }

    /// Applies a record.
    ///
    /// # Errors
    /// Why it does not follow from what was applied before.
    pub(super) fn apply(&self, record: Record) -> Result<(), &'static str> {
        match record {
            Record::Stream { spec, stored } => {
                let known = KnownStream {
                    spec: spec.clone(),
                    stored,
                };
                self.topology.write().streams.insert(spec.name, known);
            }
            Record::StreamDeleted(name) => {
                let mut topology = self.topology.write();
                topology.streams.remove(&name);
                topology.consumers.retain(|(stream, _), _| *stream != name);
            }
            Record::Consumer { spec, next } => {
                let settled = Settled::up_to(next.saturating_sub(1));
                self.put_consumer(spec, settled, 0);
            }
            Record::ConsumerUpdated(spec) => {
                if let Some(known) = self.topology.write().consumers.get_mut(&place(&spec.at)) {
                    known.spec = spec;
                }
            }
            Record::ConsumerDeleted(at) => {
                self.topology.write().consumers.remove(&place(&at));
            }
            Record::Settled {
                at,
                stretches,
                lost,
            } => {
                if let Some(known) = self.topology.write().consumers.get_mut(&place(&at)) {
                    for (first, last) in stretches {
                        known.settled.add(first, last);
                    }
                    known.lost = lost;
                }
            }
            Record::Keys { bucket, changes } => {
                let keys = self.replayed(&bucket)?;
                let mut keys = keys.write();
                if changes.first > keys.rev() + 1 {
                    return Err("changes of a bucket are missing before it");
                }
                let (mut bytes, ids) = (0, remembered(&keys));
                keys.apply(changes, |key, before, after| {
                    bytes -= before.map_or(0, |kept| cost(key, &kept.value));
                    bytes += after.map_or(0, |kept| cost(key, &kept.value));
                    self.account(
                        before.map(|kept| &kept.value),
                        after.map(|kept| &kept.value),
                    );
                });
                self.add_bytes(bytes + remembered(&keys) - ids);
            }
            Record::Moved { bucket, moves } => {
                let keys = self.replayed(&bucket)?;
                let mut keys = keys.write();
                for (key, rev, place) in moves {
                    let to = Value::Stored(place);
                    if let Ok(from) = keys.swap_value(&key, rev, to.clone()) {
                        self.account(Some(&from), Some(&to));
                        self.add_bytes(cost(&key, &to) - cost(&key, &from));
                    }
                }
            }
            Record::ConsumerStood {
                spec,
                settled,
                lost,
            } => self.put_consumer(spec, settled, lost),
            Record::Bucket { bucket, rev } => {
                let keys = self.replayed(&bucket)?;
                let mut keys = keys.write();
                if rev > MAX_REV {
                    return Err("a revision is too large");
                }
                if keys.rev() != 0 || !keys.is_empty() {
                    return Err("a bucket begins twice");
                }
                *keys = Keys::starting_at(rev);
            }
            Record::Kept { bucket, keys } => {
                let into = self.replayed(&bucket)?;
                let (mut into, mut bytes) = (into.write(), 0);
                for (key, kept) in keys {
                    self.account(None, Some(&kept.value));
                    bytes += cost(&key, &kept.value);
                    if into.put_in(key, kept).is_some() {
                        return Err("a key is kept twice");
                    }
                }
                self.add_bytes(bytes);
            }
            Record::Remembered { bucket, commits } => {
                let keys = self.replayed(&bucket)?;
                let mut keys = keys.write();
                let ids = remembered(&keys);
                for (id, at) in commits {
                    keys.remember(id, at);
                }
                self.add_bytes(remembered(&keys) - ids);
            }
            Record::End { .. } => {}
        }
        Ok(())
    }

    fn put_consumer(&self, spec: ConsumerSpec, settled: Settled, lost: u64) {
        let at = place(&spec.at);
        let known = KnownConsumer {
            spec,
            settled,
            lost,
        };
        self.topology.write().consumers.insert(at, known);
    }

    fn replayed(&self, bucket: &Bucket) -> Result<SharedKeys, &'static str> {
        self.bucket(bucket)
            .map_err(|_| "it is of one bucket too many")
    }

    /// Keeps count of what is live in the files of values.
    fn account(&self, before: Option<&Value>, after: Option<&Value>) {
        let stored = |value: Option<&Value>| match value {
            Some(Value::Stored(place)) => Some(*place),
            _ => None,
        };
        let (before, after) = (stored(before), stored(after));
        if before.is_none() && after.is_none() {
            return;
        }
        let mut live = self.live.lock();
        if let Some(place) = after {
            let live = live.entry(place.file).or_default();
            live.bytes += u64::from(place.len);
            live.values += 1;
            live.end = live.end.max(end_of(&place));
        }
        if let Some(place) = before {
            let live = live.entry(place.file).or_default();
            live.bytes = live.bytes.saturating_sub(u64::from(place.len));
            live.values = live.values.saturating_sub(1);
        }
    }

    pub(super) fn live(&self) -> BTreeMap<u64, Live> {
        self.live.lock().clone()
    }

    /// Up to where each file of values must be there.
    pub(crate) fn live_ends(&self) -> BTreeMap<u64, u64> {
        let live = self.live.lock();
        live.iter().map(|(file, live)| (*file, live.end)).collect()
    }

    pub(super) fn forget_file(&self, file: u64) {
        self.live.lock().remove(&file);
    }

    fn add_bytes(&self, bytes: i64) {
        // Writers are one at a time; what wraps below zero wraps back when it is added.
        self.bytes
            .fetch_add(bytes.cast_unsigned(), Ordering::Relaxed);
    }
}

fn place(at: &ConsumerRef) -> (Name, Name) {
    (at.stream.clone(), at.consumer.clone())
}

fn end_of(place: &Place) -> u64 {
    place.offset.saturating_add(u64::from(place.len))
}

/// What a key costs in memory.
pub(super) fn cost(key: &StateKey, value: &Value) -> i64 {
    signed(KEY_BYTES + key.as_str().len() + value.held())
}

pub(super) fn commit_cost(id: &str) -> i64 {
    signed(COMMIT_BYTES + id.len())
}

fn remembered(keys: &Keys<Value>) -> i64 {
    signed(keys.remembered_len() * COMMIT_BYTES + keys.remembered_bytes())
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
