//! Staging: deciding what is to happen, refusing what may not, and encoding the rest.

use rustc_hash::FxHashSet;
use trunkline_core::engine::{Bucket, Commit, Committed, Op};
use trunkline_core::keys::{Changes, Step};
use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use super::record::{RECORD_HEADER, Record, Value};
use super::state::{commit_cost, cost};
use super::{Journal, Phase, RESERVE};
use crate::frame::{GROUP_HEADER_LEN, OpenGroup};

/// Keys that expire in one record.
const MAX_EXPIRIES: usize = 1_024;
/// The longest id of a commit.
const MAX_COMMIT_ID: usize = 512;
/// Bytes of a record beside texts and values, and of each of its steps, at most.
const RECORD_ROOM: usize = RECORD_HEADER + 160;
const STEP_ROOM: usize = 64;

impl Journal {
    /// Decides a commit and stages its changes. The answer holds once it is published.
    ///
    /// # Errors
    /// [`ErrorKind::OverLimit`], [`ErrorKind::InvalidConfig`] and [`ErrorKind::TooLarge`] for a
    /// commit that is not within the limits or changes a key twice; [`ErrorKind::OverLimit`] also
    /// when it finds no room in this group: write the group, then stage it again.
    /// [`ErrorKind::OverQuota`] when there is no room on the disk, or for more keys in memory;
    /// nothing was staged, and it may succeed later. [`ErrorKind::StorageFailed`] after a failure.
    pub fn commit(&mut self, bucket: &Bucket, commit: Commit, now: Timestamp) -> Result<Committed> {
        self.stageable()?;
        self.check(&commit)?;
        let keys = self.state.bucket(bucket)?;
        while self.expire_some(bucket, now)? > 0 {}
        let (changes, before) = {
            let keys = keys.read();
            let ahead = self.ahead.entry(bucket.clone()).or_default();
            let changes = match keys.decide(ahead, commit, now).changes() {
                Ok(changes) => changes,
                Err(answer) => return Ok(answer),
            };
            let before = changes.steps.iter().filter_map(|step| {
                let kept = keys.get(step.key())?;
                Some(cost(step.key(), &kept.value))
            });
            let before: i64 = before.sum();
            (changes, before)
        };
        let adds = self.check_memory(&changes, before)?;
        let committed = changes.committed();
        self.has_room_for(&changes)?;
        self.make_room(now)?;
        let changes = self.place_values(changes, now)?;
        self.push_keys(bucket, changes)?;
        self.adds += adds;
        Ok(committed)
    }

    /// Stages the expiry of keys whose time is up, in every bucket, as far as there is room in this
    /// group, and says how many those are. Call it when [`State::next_end`](super::State::next_end)
    /// has come; commits do it for their bucket.
    ///
    /// # Errors
    /// [`ErrorKind::OverQuota`] and [`ErrorKind::StorageFailed`], as for a commit.
    pub fn expire(&mut self, now: Timestamp) -> Result<usize> {
        self.stageable()?;
        let mut expired = 0;
        for (bucket, keys) in self.state.buckets() {
            if keys.read().next_end().is_none_or(|end| end > now) {
                continue;
            }
            while !self.is_full() {
                match self.expire_some(&bucket, now)? {
                    0 => break,
                    more => expired += more,
                }
            }
        }
        Ok(expired)
    }

    /// Stages a change of streams or consumers, or of a consumer's progress. That it is legal is
    /// checked by whoever knows the streams.
    ///
    /// # Errors
    /// Those of [`commit`](Self::commit) but for its limits; [`ErrorKind::Internal`] for a record
    /// that is not staged this way.
    pub fn stage(&mut self, record: Record, now: Timestamp) -> Result<()> {
        self.stageable()?;
        if record.is_of_snapshot() || matches!(record, Record::Keys { .. } | Record::Moved { .. }) {
            return Err(Error::new(
                ErrorKind::Internal,
                "keys change by commits, and records of snapshots are not for a journal",
            ));
        }
        self.make_room(now)?;
        self.push(record)
    }

    fn expire_some(&mut self, bucket: &Bucket, now: Timestamp) -> Result<usize> {
        let keys = self.state.bucket(bucket)?;
        let most = MAX_EXPIRIES.min(self.options.group_bytes / 1_024).max(1);
        let ahead = self.ahead.entry(bucket.clone()).or_default();
        let due = keys.read().due(ahead, now, most);
        let Some(changes) = due else { return Ok(0) };
        self.has_room_for(&changes)?;
        self.make_room(now)?;
        let Changes {
            id,
            at,
            first,
            steps,
        } = changes;
        let steps = steps
            .into_iter()
            .map(|step| step.try_map(|value| Ok(Value::Here(value))));
        let changes = Changes {
            id,
            at,
            first,
            steps: steps.collect::<Result<Vec<_>>>()?,
        };
        let count = changes.steps.len();
        self.push_keys(bucket, changes)?;
        Ok(count)
    }

    /// Encodes changes of keys, and lets what comes after them be decided as if they had happened.
    fn push_keys(&mut self, bucket: &Bucket, changes: Changes<Value>) -> Result<()> {
        let bucket = bucket.clone();
        self.push(Record::Keys { bucket, changes })?;
        if let Some(Record::Keys { bucket, changes }) = self.staged.last() {
            let ahead = self.ahead.entry(bucket.clone()).or_default();
            ahead.note(changes);
        }
        Ok(())
    }

    fn check(&self, commit: &Commit) -> Result<()> {
        let limits = &self.options.limits;
        let refuse = |kind, fault: String| {
            let id: String = commit.id.chars().take(64).collect();
            Err(Error::new(kind, format!("commit {id}: {fault}")))
        };
        let over = |what: &str, has: usize, limit: usize| {
            refuse(
                ErrorKind::OverLimit,
                format!("{has} {what}, the limit is {limit}"),
            )
        };
        if commit.ops.len() > limits.max_batch {
            return over("changes", commit.ops.len(), limits.max_batch);
        }
        if commit.id.len() > MAX_COMMIT_ID {
            return over("bytes of id", commit.id.len(), MAX_COMMIT_ID);
        }
        let mut seen = FxHashSet::default();
        for op in &commit.ops {
            let key = op.key();
            if commit.ops.len() > 1 && !seen.insert(key) {
                return refuse(
                    ErrorKind::InvalidConfig,
                    format!("key {key} occurs twice; a commit changes a key once"),
                );
            }
            if let Op::Put { value, .. } = op
                && value.len() > limits.max_value
            {
                return refuse(
                    ErrorKind::TooLarge,
                    format!(
                        "the value of {key} has {} bytes, the limit is {}",
                        value.len(),
                        limits.max_value
                    ),
                );
            }
        }
        Ok(())
    }

    /// Refuses changes that would take more memory than the state may. What a group replaces that
    /// was staged in the same group counts twice, so that the limit may be met a group early.
    fn check_memory(&self, changes: &Changes, before: i64) -> Result<i64> {
        let after = changes.steps.iter().map(|step| match step {
            Step::Put { key, value, .. } if value.len() <= self.options.inline_bytes => {
                cost(key, &Value::Here(value.clone()))
            }
            Step::Put { key, .. } => cost(key, &Value::Here(bytes::Bytes::new())),
            Step::Delete(_) | Step::Expire(_) => 0,
        });
        let id = changes.id.as_deref().map_or(0, commit_cost);
        let adds = after.sum::<i64>() + id - before;
        let limit = i64::try_from(self.options.state_bytes).unwrap_or(i64::MAX);
        let present = i64::try_from(self.state.bytes()).unwrap_or(i64::MAX);
        if adds > 0 && present.saturating_add(self.adds).saturating_add(adds) > limit {
            return Err(Error::new(
                ErrorKind::OverQuota,
                format!(
                    "keys take {present} of {limit} bytes of memory, and this commit adds {adds}; remove keys, give them a time to live, or raise the limit of the state"
                ),
            ));
        }
        Ok(adds.max(0))
    }

    /// Refuses what finds no room in this group.
    fn has_room_for(&self, changes: &Changes) -> Result<()> {
        let inline = self.options.inline_bytes;
        let step = |step: &Step| {
            let value = match step {
                Step::Put { value, .. } if value.len() <= inline => value.len(),
                _ => 0,
            };
            STEP_ROOM + step.key().as_str().len() + value
        };
        let bytes = RECORD_ROOM
            + changes.id.as_ref().map_or(0, smol_str::SmolStr::len)
            + changes.steps.iter().map(step).sum::<usize>();
        self.fits(bytes)
    }

    pub(super) fn fits(&self, bytes: usize) -> Result<()> {
        let (most, staged) = (self.options.group_bytes, self.buffer.len());
        if bytes + GROUP_HEADER_LEN > most {
            return Err(Error::new(
                ErrorKind::OverLimit,
                format!("it takes {bytes} bytes of the journal, and a group has {most}; split it"),
            ));
        }
        if staged + bytes > most {
            return Err(Error::new(
                ErrorKind::OverLimit,
                format!(
                    "it takes {bytes} bytes, and {staged} of {most} are staged; write them first"
                ),
            ));
        }
        Ok(())
    }

    /// Makes sure that a whole group finds room in the file, before anything of it is staged.
    pub(super) fn make_room(&mut self, now: Timestamp) -> Result<()> {
        if self.group.is_some() {
            return Ok(());
        }
        let left = self.file.reserved.saturating_sub(self.file.end);
        if left < self.options.group_bytes as u64 + RESERVE {
            self.rotate(now)?;
        }
        Ok(())
    }

    /// Puts large values into their files. No room for them is the last thing that can be refused.
    fn place_values(&mut self, changes: Changes, now: Timestamp) -> Result<Changes<Value>> {
        let inline = self.options.inline_bytes;
        let large = changes.steps.iter().filter_map(|step| match step {
            Step::Put { value, .. } if value.len() > inline => Some(value.len() as u64),
            _ => None,
        });
        let large: u64 = large.sum();
        if large > 0 {
            self.reserve_values(large, now)?;
        }
        let values = &mut self.values;
        let mut place = |value: bytes::Bytes| {
            if value.len() > inline {
                values.put(value).map(Value::Stored).ok_or_else(|| {
                    Error::new(ErrorKind::Internal, "no room was reserved for a value")
                })
            } else {
                // A copy, because the value may be a slice of something far larger.
                Ok(Value::Here(bytes::Bytes::copy_from_slice(&value)))
            }
        };
        let steps = changes
            .steps
            .into_iter()
            .map(|step| step.try_map(&mut place));
        Ok(Changes {
            id: changes.id,
            at: changes.at,
            first: changes.first,
            steps: steps.collect::<Result<_>>()?,
        })
    }

    pub(super) fn reserve_values(&mut self, bytes: u64, now: Timestamp) -> Result<()> {
        let reserved = self
            .values
            .reserve(bytes, &*self.disk, &self.state.values, now);
        self.made(reserved)
    }

    /// Encodes a record, which room was made for.
    pub(super) fn push(&mut self, record: Record) -> Result<()> {
        let group = match self.group.take() {
            Some(group) => group,
            None => OpenGroup::begin(&mut self.buffer),
        };
        let before = self.buffer.len();
        record.encode(&mut self.buffer);
        let fits = self.buffer.len() <= self.options.group_bytes;
        if fits {
            self.staged.push(record);
        } else {
            self.buffer.truncate(before);
        }
        if self.staged.is_empty() {
            self.buffer.clear();
        } else {
            self.group = Some(group);
        }
        if fits {
            Ok(())
        } else {
            self.fits(usize::MAX / 2)
        }
    }

    pub(super) fn stageable(&self) -> Result<()> {
        self.usable()?;
        if self.phase != Phase::Staging {
            return Err(Error::new(
                ErrorKind::Internal,
                "a group is on its way to the disk; publish it before more is staged",
            ));
        }
        Ok(())
    }
}
