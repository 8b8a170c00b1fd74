//! How a directory stands, in numbers.

use std::path::Path;
use std::sync::Arc;

use trunkline_core::engine::{ConsumerSpec, Seq, StreamSpec};
use trunkline_core::{Result, Timestamp};

use super::place::{self, STREAMS};
use super::{Directory, LOOKS, Owner};
use crate::format;
use crate::journal::KnownConsumer;
use crate::journal::look::Look;
use crate::selection::Selection;
use crate::stream::Reader;
use crate::stream::look::{Looked, look};

/// With more stretches than this above its floor, what a consumer has before it is not counted.
const MAX_STRETCHES: usize = 256;

/// A directory in numbers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DirectoryStats {
    /// The version of its format.
    pub format: u64,
    /// Whose it is.
    pub owner: Owner,
    /// Bytes of all files; those that are reserved count.
    pub bytes: u64,
    /// How many files there are.
    pub files: u64,
    /// Streams by name.
    pub streams: Vec<StreamStats>,
    /// Consumers by stream and name.
    pub consumers: Vec<ConsumerStats>,
    /// Buckets by name.
    pub buckets: Vec<BucketStats>,
    /// The journal of all that.
    pub journal: JournalStats,
}

/// A stream in numbers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StreamStats {
    /// Its name.
    pub name: String,
    /// What it was told to be; none if the journal does not know it.
    pub spec: Option<StreamSpec>,
    /// How it stands; none if it cannot be read without a repair.
    pub standing: Option<StreamStanding>,
    /// Why it cannot be read.
    pub problem: Option<String>,
    /// Bytes of its files.
    pub file_bytes: u64,
}

/// How a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamStanding {
    /// The first sequence stored; equal to `tail` when empty.
    pub first: Seq,
    /// The sequence that the next event will have.
    pub tail: Seq,
    /// Events in it.
    pub events: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Segments that have some of them.
    pub segments: u64,
    /// When the first one was stored.
    pub first_at: Option<Timestamp>,
}

/// A consumer in numbers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumerStats {
    /// What it is.
    pub spec: ConsumerSpec,
    /// The sequence up to which everything is settled.
    pub floor: Seq,
    /// The highest sequence that is settled.
    pub highest: Seq,
    /// Events that it wants and has not settled; none if they cannot be counted.
    pub pending: Option<u64>,
    /// Those of them that others have overtaken: they were with a handler, or wait for another try.
    pub waiting: Option<u64>,
    /// Sequences that left the stream before they were settled.
    pub lost: u64,
}

/// A bucket in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BucketStats {
    /// Its name.
    pub name: String,
    /// Keys in it.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Its last revision.
    pub rev: u64,
}

/// The journal in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalStats {
    /// The snapshot that is read when opening.
    pub snapshot: Option<u64>,
    /// Bytes of that.
    pub snapshot_bytes: u64,
    /// The journal that is written.
    pub journal: u64,
    /// Bytes of journals since the snapshot.
    pub since_bytes: u64,
    /// What is damaged in it.
    pub problems: Vec<String>,
}

impl Directory {
    /// How everything in the directory stands. Of the events only the last segment of each stream is read.
    /// What is damaged is told where it is.
    ///
    /// # Errors
    /// Those of [`verify`](Self::verify).
    pub fn stats(&self) -> Result<DirectoryStats> {
        let owner = self.owner();
        let files = place::files(&*self.disk, &self.dir)?;
        let state = again(owner, || {
            Look::at(&*self.disk, &self.dir, false, &mut |_| {})
        })?;
        let topology = state.state.topology();
        let mut names = place::stream_dirs(&*self.disk, &self.dir)?;
        names.retain(|name| !name.ends_with(place::ASIDE));
        for known in topology.streams.keys() {
            if !names.iter().any(|name| name == known.as_str()) {
                names.push(known.to_string());
            }
        }
        names.sort_unstable();
        let (mut streams, mut consumers) = (Vec::new(), Vec::new());
        for name in names {
            let below = Path::new(STREAMS).join(&name);
            let known = topology
                .streams
                .iter()
                .find(|(known, _)| known.as_str() == name);
            let looked = again(owner, || {
                look(Arc::clone(&self.disk), &self.dir.join(&below))
            });
            let own = topology
                .consumers
                .iter()
                .filter(|((stream, _), _)| stream.as_str() == name);
            for (_, consumer) in own {
                let stored = known.map(|(_, known)| known.stored.as_slice());
                let looked = looked.as_ref().ok();
                consumers.push(counted(consumer, stored.unwrap_or(&[]), looked));
            }
            let of_it = files.iter().filter(|(path, _)| path.starts_with(&below));
            let problem = looked
                .as_ref()
                .err()
                .map(|error| error.message().to_owned());
            streams.push(StreamStats {
                spec: known.map(|(_, known)| known.spec.clone()),
                standing: looked.ok().map(|looked| standing(&looked)),
                problem,
                file_bytes: of_it.map(|(_, len)| len).sum(),
                name,
            });
        }
        let problems = state.faults.iter().map(|fault| {
            let file = fault.path.strip_prefix(&self.dir).unwrap_or(&fault.path);
            format!(
                "{} at offset {}: {}",
                file.display(),
                fault.offset,
                fault.what
            )
        });
        Ok(DirectoryStats {
            format: format::VERSION,
            owner,
            bytes: files.iter().map(|(_, len)| len).sum(),
            files: files.len() as u64,
            streams,
            consumers,
            buckets: buckets(&state),
            journal: JournalStats {
                snapshot: state.snapshot.map(|(number, ..)| number),
                snapshot_bytes: state.snapshot.map_or(0, |(_, bytes, _)| bytes),
                journal: state.reached.0,
                since_bytes: state.since,
                problems: problems.collect(),
            },
        })
    }
}

/// What fails while somebody writes may have been removed meanwhile.
fn again<T>(owner: Owner, look: impl Fn() -> Result<T>) -> Result<T> {
    let mut tried = 1;
    loop {
        match look() {
            Err(_) if owner.may_write() && tried < LOOKS => tried += 1,
            looked => return looked,
        }
    }
}

fn standing(looked: &Looked) -> StreamStanding {
    let standing = looked.reader.standing();
    StreamStanding {
        first: standing.first,
        tail: standing.tail,
        events: standing.events,
        bytes: standing.bytes,
        segments: looked.segments,
        // The segment that has it may be damaged.
        first_at: looked.reader.first_at().unwrap_or(None),
    }
}

fn counted(
    known: &KnownConsumer,
    stored: &[trunkline_core::Filter],
    looked: Option<&Looked>,
) -> ConsumerStats {
    let (spec, settled) = (&known.spec, &known.settled);
    let above: Vec<(Seq, Seq)> = settled.above().collect();
    let highest = above.last().map_or(settled.floor(), |(_, last)| *last);
    let selection = Selection::new(&spec.filters, stored);
    let count = |looked: &Looked| {
        let wanted = |reader: &Reader, from: Seq, until: Seq| {
            let (all, rest) = (
                reader.count(&selection, from).ok()?,
                reader.count(&selection, until).ok()?,
            );
            Some(all.saturating_sub(rest))
        };
        let reader = &looked.reader;
        let behind = reader.count(&selection, highest.saturating_add(1)).ok()?;
        let mut waiting = 0;
        let mut from = settled.floor().saturating_add(1);
        for (first, last) in &above {
            waiting += wanted(reader, from, *first)?;
            from = last.saturating_add(1);
        }
        Some((behind + waiting, waiting))
    };
    let counted = looked
        .filter(|_| above.len() <= MAX_STRETCHES)
        .and_then(count);
    ConsumerStats {
        spec: spec.clone(),
        floor: settled.floor(),
        highest,
        pending: counted.map(|(pending, _)| pending),
        waiting: counted.map(|(_, waiting)| waiting),
        lost: known.lost,
    }
}

fn buckets(look: &Look) -> Vec<BucketStats> {
    let buckets = look.state.buckets().into_iter();
    let stats = buckets.map(|(name, keys)| {
        let keys = keys.read();
        let bytes = keys
            .after(None)
            .map(|(key, kept)| (key.as_str().len() + kept.value.len()) as u64);
        BucketStats {
            name: name.to_string(),
            keys: keys.len() as u64,
            bytes: bytes.sum(),
            rev: keys.rev(),
        }
    });
    stats.collect()
}
