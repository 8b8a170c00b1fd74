//! Giving back what dead values take: a file of which more than half is dead is copied and removed.

use trunkline_core::engine::{Bucket, StateKey};
use trunkline_core::{Result, Timestamp};

use super::Journal;
use super::record::{Record, Value};

/// Keys that are looked at in one step, under a short lock.
const SLICE: usize = 1_024;
/// Bytes that one step copies, about.
const STEP_BYTES: usize = 1 << 20;
/// Bytes that a move takes in a record, at most: key, revision and place.
const MOVE_BYTES: usize = 640;

/// How far the copying of a file is.
#[derive(Debug)]
pub(super) struct Compaction {
    file: u64,
    bucket: Option<Bucket>,
    after: Option<StateKey>,
}

impl Journal {
    /// Removes files of values in which nothing lives, and copies, in a step of about 1 MiB, what
    /// lives in a file of which more than half is dead. What is copied is staged, and to be flushed.
    /// It is to be called between groups, now and then, and again at once while it says true.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`](trunkline_core::ErrorKind::Damaged) when a value cannot be read: its
    /// file is left alone from then on. [`ErrorKind::OverQuota`](trunkline_core::ErrorKind::OverQuota)
    /// when there is no room, and [`ErrorKind::StorageFailed`](trunkline_core::ErrorKind::StorageFailed).
    pub fn compact(&mut self, now: Timestamp) -> Result<bool> {
        self.stageable()?;
        if self.group.is_some() {
            return Ok(true);
        }
        self.remove_dead_files()?;
        let Some(compaction) = self.compaction.take().or_else(|| self.choose()) else {
            return Ok(false);
        };
        let file = compaction.file;
        match self.copy_some(compaction, now) {
            Ok(more) => {
                self.compaction = more;
                Ok(true)
            }
            Err(error) => {
                if error.kind() == trunkline_core::ErrorKind::Damaged {
                    self.stuck.push(file);
                }
                Err(error)
            }
        }
    }

    fn remove_dead_files(&mut self) -> Result<()> {
        let live = self.state.live();
        for number in self.state.values.numbers() {
            let lives = live.get(&number).is_some_and(|live| live.values > 0);
            if !lives && self.values.current() != Some(number) {
                // What says that nothing lives there any more must not be lost after the file.
                self.sync()?;
                self.state.values.remove(&*self.disk, number)?;
                self.state.forget_file(number);
                self.compaction
                    .take_if(|compaction| compaction.file == number);
            }
        }
        Ok(())
    }

    /// A file of which more than half is dead.
    fn choose(&self) -> Option<Compaction> {
        let chosen = self.state.live().into_iter().find(|(number, live)| {
            let size = self.state.values.get(*number).map_or(0, |file| file.size);
            self.values.current() != Some(*number)
                && !self.stuck.contains(number)
                && live.bytes < size / 2
        });
        chosen.map(|(file, _)| Compaction {
            file,
            bucket: None,
            after: None,
        })
    }

    /// Copies what lives in the file among the next keys; none when there are no more.
    fn copy_some(&mut self, at: Compaction, now: Timestamp) -> Result<Option<Compaction>> {
        let Compaction {
            file,
            bucket,
            mut after,
        } = at;
        let buckets = self.state.buckets();
        let here = match bucket {
            Some(bucket) => buckets.range(bucket..).next(),
            None => buckets.iter().next(),
        };
        let Some((bucket, shared)) = here else {
            return Ok(None);
        };
        let most = (self.options.group_bytes / MOVE_BYTES / 2).clamp(1, SLICE);
        let (mut found, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
        let from = after.take();
        for (key, kept) in shared.read().after(from.as_ref()).take(SLICE) {
            looked_at += 1;
            after = Some(key.clone());
            if let Value::Stored(place) = kept.value
                && place.file == file
            {
                bytes += place.len as usize;
                found.push((key.clone(), kept.rev, place));
                if bytes >= STEP_BYTES || found.len() == most {
                    break;
                }
            }
        }
        if looked_at == 0 {
            let next = buckets
                .range((
                    std::ops::Bound::Excluded(bucket),
                    std::ops::Bound::Unbounded,
                ))
                .next();
            return Ok(next.map(|(next, _)| Compaction {
                file,
                bucket: Some(next.clone()),
                after: None,
            }));
        }
        let bucket = bucket.clone();
        if !found.is_empty() {
            let mut values = Vec::with_capacity(found.len());
            for (key, rev, place) in found {
                if let Some(value) = self.state.values.read(&place)? {
                    values.push((key, rev, value));
                }
            }
            self.make_room(now)?;
            self.reserve_values(bytes as u64, now)?;
            let moves = values
                .into_iter()
                .filter_map(|(key, rev, value)| Some((key, rev, self.values.put(value)?)));
            let moves = moves.collect();
            self.push(Record::Moved {
                bucket: bucket.clone(),
                moves,
            })?;
        }
        Ok(Some(Compaction {
            file,
            bucket: Some(bucket),
            after,
        }))
    }
}
