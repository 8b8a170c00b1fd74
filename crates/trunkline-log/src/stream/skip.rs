//! Passing over sequences that may have been given to events which a loss of power took.

use trunkline_core::engine::Seq;
use trunkline_core::{Headers, Result, Subject, Timestamp};

use super::Stream;
use crate::segment::index::Place;
use crate::segment::record::{EVENTS, REMOVED, encode_record, put_varint, record_len};

/// The subject of placeholders. Nobody sees it.
pub(crate) const PLACEHOLDER: &str = "x";
/// Bytes that a range takes at most.
const RANGE_BYTES: usize = 20;

impl Stream {
    /// Goes on with `to` as the next sequence, durably, if the next would be a lower one. Those between
    /// are written as events that are removed: readers pass over them. If it fails or a crash
    /// interrupts it, it is to be called again with the same sequence before anything is stored.
    ///
    /// # Errors
    /// [`OverQuota`](trunkline_core::ErrorKind::OverQuota) when the disk is full, and
    /// [`StorageFailed`](trunkline_core::ErrorKind::StorageFailed) when it failed, now or before.
    pub fn skip_to(&mut self, now: Timestamp, to: Seq) -> Result<()> {
        self.check()?;
        if to <= self.tail {
            return Ok(());
        }
        let now = now.max(self.last_at);
        let subject = Subject::new(PLACEHOLDER)?;
        let headers = Headers::new();
        let size = record_len(&subject, None, &headers, 0);
        // First that they are removed: so none of them is ever seen as an event.
        self.reserve(RANGE_BYTES, REMOVED, now)?;
        self.open_group(REMOVED, now).count += 1;
        put_varint(&mut self.buffer, self.tail);
        put_varint(&mut self.buffer, to - self.tail);
        self.removed.insert(self.tail, to);
        self.pending.removed.push((self.tail, to));
        let most = (self.options.group_bytes / size).max(1) as u64;
        while self.tail < to {
            self.finish_group();
            let count = most.min(to - self.tail);
            // Both fit: a group is bounded, and so is a record.
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            self.reserve(count as usize * size, EVENTS, now)?;
            let offset = self.written + self.buffer.len() as u64;
            let seq = self.tail;
            self.open_group(EVENTS, now).count += count;
            self.pending.places.push(Place {
                seq,
                offset,
                at: now,
            });
            for _ in 0..count {
                encode_record(&mut self.buffer, &subject, None, &headers, &[]);
                let size = u32::try_from(size).unwrap_or(u32::MAX);
                self.pending.events.push((subject.clone(), size));
                self.tail += 1;
            }
        }
        self.finish_group();
        self.first = self.removed.skip(self.first);
        self.removed.forget_below(self.first);
        self.commit()
    }
}
