//! What the journal and its snapshots are made of.

use bytes::Bytes;
use smol_str::SmolStr;
use trunkline_core::engine::{Bucket, ConsumerRef, ConsumerSpec, Rev, Seq, StateKey, StreamSpec};
use trunkline_core::keys::{Changes, Held, Kept, Step};
use trunkline_core::ledger::Settled;
use trunkline_core::{Filter, Name, Timestamp};

use super::code::{Fault, Put, Take};
use super::spec;

/// The version of records that this code writes, and the highest that it reads.
pub const RECORD_VERSION: u8 = 1;
/// Bytes before the fields of a record: its length, its version and its kind.
pub(super) const RECORD_HEADER: usize = 6;

/// Where the value of a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// In memory, in the journal and in snapshots.
    Here(Bytes),
    /// In a file of values.
    Stored(Place),
}

/// A place in a file of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the file.
    pub file: u64,
    /// Where the value begins.
    pub offset: u64,
    /// How many bytes it has.
    pub len: u32,
    /// CRC of the file's id, the offset and the value.
    pub crc: u32,
}

impl Value {
    /// How many bytes the value has.
    pub fn len(&self) -> usize {
        match self {
            Value::Here(bytes) => bytes.len(),
            Value::Stored(place) => place.len as usize,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Held for Value {
    fn held(&self) -> usize {
        match self {
            Value::Here(bytes) => bytes.len(),
            Value::Stored(_) => 0,
        }
    }
}

/// One change that is written down. Applied in order, records give the state, and nothing else does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A stream is made, or given another specification.
    Stream {
        /// As it is from now on.
        spec: StreamSpec,
        /// Every filter by which something in it may have been stored, those of former days too.
        stored: Vec<Filter>,
    },
    /// A stream and its consumers are removed.
    StreamDeleted(Name),
    /// A consumer is made. One that is there already loses its progress.
    Consumer {
        /// As it is.
        spec: ConsumerSpec,
        /// The first sequence that it looks at: what its start came to.
        next: Seq,
    },
    /// A consumer is given another specification; its progress stays.
    ConsumerUpdated(ConsumerSpec),
    /// A consumer is removed with its progress.
    ConsumerDeleted(ConsumerRef),
    /// Stretches of a consumer's stream are settled, first and last. Of a consumer that is not
    /// there it says nothing.
    Settled {
        /// The consumer.
        at: ConsumerRef,
        /// What is settled in addition: see
        /// [`Ledger::settled_around`](trunkline_core::ledger::Ledger::settled_around).
        stretches: Vec<(Seq, Seq)>,
        /// Sequences that retention took before they were settled, since the consumer was made.
        lost: u64,
    },
    /// Keys change together.
    Keys {
        /// Their bucket.
        bucket: Bucket,
        /// What happens.
        changes: Changes<Value>,
    },
    /// Values were copied to other places; keys that have changed since stay as they are.
    Moved {
        /// The bucket of the keys.
        bucket: Bucket,
        /// Each key, the revision that was copied, and its new place.
        moves: Vec<(StateKey, Rev, Place)>,
    },
    /// Of a snapshot: a consumer as it stands.
    ConsumerStood {
        /// As it is.
        spec: ConsumerSpec,
        /// How far it has come.
        settled: Settled,
        /// Sequences that retention took before they were settled.
        lost: u64,
    },
    /// Of a snapshot: a bucket that had seen every change up to a revision when it was copied.
    Bucket {
        /// Its name.
        bucket: Bucket,
        /// That revision.
        rev: Rev,
    },
    /// Of a snapshot: keys of a bucket as they stand.
    Kept {
        /// The bucket.
        bucket: Bucket,
        /// The keys.
        keys: Vec<(StateKey, Kept<Value>)>,
    },
    /// Of a snapshot: commits that are remembered.
    Remembered {
        /// The bucket.
        bucket: Bucket,
        /// Each commit's id and when it happened.
        commits: Vec<(SmolStr, Timestamp)>,
    },
    /// Of a snapshot, the last record: it may have seen what is in the journals below this place, so
    /// they must reach it.
    End {
        /// The number of the journal.
        journal: u64,
        /// The offset in it.
        offset: u64,
        /// Records before this one.
        records: u64,
    },
}

/// Why bytes are no record of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotARecord {
    /// They are of a version or kind that this one does not know.
    Newer(u8, u8),
    /// They are not as any version writes them.
    Damaged(&'static str),
}

impl From<Fault> for NotARecord {
    fn from(fault: Fault) -> Self {
        Self::Damaged(fault)
    }
}

impl Record {
    /// Appends the record: length, version, kind, fields.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0, 0, 0, 0, RECORD_VERSION, self.kind()]);
        self.put_fields(out);
        // Whoever writes refuses records far below 4 GiB.
        let len = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
    }

    /// Takes a record off the front of `content`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(content: &mut &[u8]) -> Result<Self, NotARecord> {
        let mut take = Take(content);
        let len = take.u32()?;
        let bytes = take.bytes(usize::try_from(len).unwrap_or(usize::MAX))?;
        *content = take.0;
        let mut fields = Take(bytes);
        let (version, kind) = (fields.byte()?, fields.byte()?);
        if version == 0 {
            return Err(NotARecord::Damaged("no record has version 0"));
        }
        if version > RECORD_VERSION {
            return Err(NotARecord::Newer(version, kind));
        }
        let record = Self::take_fields(kind, &mut fields)?;
        let record = record.ok_or(NotARecord::Newer(version, kind))?;
        fields.end()?;
        Ok(record)
    }

    fn kind(&self) -> u8 {
        match self {
            Record::Stream { .. } => 1,
            Record::StreamDeleted(_) => 2,
            Record::Consumer { .. } => 3,
            Record::ConsumerUpdated(_) => 4,
            Record::ConsumerDeleted(_) => 5,
            Record::Settled { .. } => 6,
            Record::Keys { .. } => 7,
            Record::Moved { .. } => 8,
            Record::ConsumerStood { .. } => 9,
            Record::Bucket { .. } => 10,
            Record::Kept { .. } => 11,
            Record::Remembered { .. } => 12,
            Record::End { .. } => 13,
        }
    }

    /// Whether it belongs into a snapshot and not into a journal.
    pub(super) fn is_of_snapshot(&self) -> bool {
        self.kind() >= 9
    }

    fn put_fields(&self, out: &mut Vec<u8>) {
        match self {
            Record::Stream { spec, stored } => {
                spec::put_stream(out, spec);
                out.count(stored.len());
                for filter in stored {
                    out.text(filter.as_str());
                }
            }
            Record::StreamDeleted(name) => out.text(name.as_str()),
            Record::Consumer { spec, next } => {
                spec::put_consumer(out, spec);
                out.varint(*next);
            }
            Record::ConsumerUpdated(spec) => spec::put_consumer(out, spec),
            Record::ConsumerDeleted(at) => spec::put_at(out, at),
            Record::Settled {
                at,
                stretches,
                lost,
            } => {
                spec::put_at(out, at);
                put_stretches(out, stretches.len(), stretches.iter().copied());
                out.varint(*lost);
            }
            Record::Keys { bucket, changes } => {
                out.text(bucket.as_str());
                out.option(changes.id.as_ref(), |out, id| out.text(id));
                out.time(changes.at);
                out.varint(changes.first);
                out.count(changes.steps.len());
                for step in &changes.steps {
                    put_step(out, step);
                }
            }
            Record::Moved { bucket, moves } => {
                out.text(bucket.as_str());
                out.count(moves.len());
                for (key, rev, place) in moves {
                    out.text(key.as_str());
                    out.varint(*rev);
                    put_place(out, place);
                }
            }
            Record::ConsumerStood {
                spec,
                settled,
                lost,
            } => {
                spec::put_consumer(out, spec);
                out.varint(settled.floor());
                put_stretches(out, settled.above().len(), settled.above());
                out.varint(*lost);
            }
            Record::Bucket { bucket, rev } => {
                out.text(bucket.as_str());
                out.varint(*rev);
            }
            Record::Kept { bucket, keys } => {
                out.text(bucket.as_str());
                out.count(keys.len());
                for (key, kept) in keys {
                    out.text(key.as_str());
                    put_value(out, &kept.value);
                    out.varint(kept.rev);
                    out.time(kept.at);
                    out.option(kept.ends, Put::time);
                }
            }
            Record::Remembered { bucket, commits } => {
                out.text(bucket.as_str());
                out.count(commits.len());
                for (id, at) in commits {
                    out.text(id);
                    out.time(*at);
                }
            }
            Record::End {
                journal,
                offset,
                records,
            } => {
                out.varint(*journal);
                out.varint(*offset);
                out.varint(*records);
            }
        }
    }

    fn take_fields(kind: u8, from: &mut Take<'_>) -> Result<Option<Self>, Fault> {
        Ok(Some(match kind {
            1 => Record::Stream {
                spec: spec::take_stream(from)?,
                stored: from.items(Take::filter)?,
            },
            2 => Record::StreamDeleted(from.name()?),
            3 => Record::Consumer {
                spec: spec::take_consumer(from)?,
                next: from.varint()?,
            },
            4 => Record::ConsumerUpdated(spec::take_consumer(from)?),
            5 => Record::ConsumerDeleted(spec::take_at(from)?),
            6 => Record::Settled {
                at: spec::take_at(from)?,
                stretches: take_stretches(from)?,
                lost: from.varint()?,
            },
            7 => Record::Keys {
                bucket: from.name()?,
                changes: Changes {
                    id: from.option(Take::short)?,
                    at: from.time()?,
                    first: from.varint()?,
                    steps: from.items(take_step)?,
                },
            },
            8 => Record::Moved {
                bucket: from.name()?,
                moves: from.items(|from| Ok((from.key()?, from.varint()?, take_place(from)?)))?,
            },
            9 => Record::ConsumerStood {
                spec: spec::take_consumer(from)?,
                settled: {
                    let mut settled = Settled::up_to(from.varint()?);
                    for (first, last) in take_stretches(from)? {
                        settled.add(first, last);
                    }
                    settled
                },
                lost: from.varint()?,
            },
            10 => Record::Bucket {
                bucket: from.name()?,
                rev: from.varint()?,
            },
            11 => Record::Kept {
                bucket: from.name()?,
                keys: from.items(|from| {
                    let (key, value) = (from.key()?, take_value(from)?);
                    let kept = Kept {
                        value,
                        rev: from.varint()?,
                        at: from.time()?,
                        ends: from.option(Take::time)?,
                    };
                    Ok((key, kept))
                })?,
            },
            12 => Record::Remembered {
                bucket: from.name()?,
                commits: from.items(|from| Ok((from.short()?, from.time()?)))?,
            },
            13 => Record::End {
                journal: from.varint()?,
                offset: from.varint()?,
                records: from.varint()?,
            },
            _ => return Ok(None),
        }))
    }
}

fn put_stretches(out: &mut Vec<u8>, count: usize, stretches: impl Iterator<Item = (Seq, Seq)>) {
    out.count(count);
    for (first, last) in stretches {
        out.varint(first);
        out.varint(last);
    }
}

fn take_stretches(from: &mut Take<'_>) -> Result<Vec<(Seq, Seq)>, Fault> {
    from.items(|from| match (from.varint()?, from.varint()?) {
        (0, _) => Err("a stretch begins with 0"),
        (first, last) if first > last => Err("a stretch ends before it begins"),
        stretch => Ok(stretch),
    })
}

fn put_step(out: &mut Vec<u8>, step: &Step<Value>) {
    out.push(match step {
        Step::Put { .. } => 0,
        Step::Delete(_) => 1,
        Step::Expire(_) => 2,
    });
    out.text(step.key().as_str());
    if let Step::Put { value, ends, .. } = step {
        put_value(out, value);
        out.option(*ends, Put::time);
    }
}

fn take_step(from: &mut Take<'_>) -> Result<Step<Value>, Fault> {
    let (what, key) = (from.byte()?, from.key()?);
    Ok(match what {
        0 => Step::Put {
            key,
            value: take_value(from)?,
            ends: from.option(Take::time)?,
        },
        1 => Step::Delete(key),
        2 => Step::Expire(key),
        _ => return Err("a key changes in a way that this version does not know"),
    })
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Here(bytes) => {
            out.push(0);
            out.blob(bytes);
        }
        Value::Stored(place) => {
            out.push(1);
            put_place(out, place);
        }
    }
}

fn take_value(from: &mut Take<'_>) -> Result<Value, Fault> {
    match from.byte()? {
        0 => from.value().map(Value::Here),
        1 => take_place(from).map(Value::Stored),
        _ => Err("a value is kept in a way that this version does not know"),
    }
}

fn put_place(out: &mut Vec<u8>, place: &Place) {
    out.varint(place.file);
    out.varint(place.offset);
    out.varint(u64::from(place.len));
    out.extend_from_slice(&place.crc.to_le_bytes());
}

fn take_place(from: &mut Take<'_>) -> Result<Place, Fault> {
    let place = Place {
        file: from.varint()?,
        offset: from.varint()?,
        len: u32::try_from(from.varint()?).map_err(|_| "a value is longer than 4 GiB")?,
        crc: from.u32()?,
    };
    match place.offset.checked_add(u64::from(place.len)) {
        Some(_) => Ok(place),
        None => Err("a value lies beyond every file"),
    }
}
