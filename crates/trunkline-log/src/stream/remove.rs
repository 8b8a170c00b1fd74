//! What leaves a stream: by age, by count, by size, and because somebody removes it.

use trunkline_core::engine::{Removal, Retention, Seq, StreamSpec};
use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use super::Stream;
use crate::segment::record::{REMOVED, put_varint, varint_len};
use crate::selection::Selection;

/// How many ranges may be missing from the middle of a stream.
const MAX_RANGES: usize = 1_000_000;
/// Bytes that one range takes at most.
const RANGE_BYTES: usize = 20;
/// Ranges that are staged in one group at most.
const GROUP_RANGES: usize = 4_096;

impl Stream {
    /// Stages the leaving of events that are past the age limit.
    ///
    /// # Errors
    /// [`ErrorKind::StorageFailed`] when the disk failed, now or before.
    pub fn stage_expiry(&mut self, now: Timestamp) -> Result<()> {
        self.check()?;
        self.forget_ids(now);
        let Some(max_age) = self.spec.max_age else {
            return Ok(());
        };
        let oldest = now.minus(max_age);
        let snapshot = self.shared.snapshot();
        if self.first >= snapshot.tail {
            return Ok(());
        }
        if self.first_at.is_none_or(|(seq, _)| seq != self.first) {
            self.first_at = Some((self.first, self.shared.at(&snapshot, self.first)?));
        }
        if self.first_at.is_some_and(|(_, at)| at < oldest) {
            let to = self.shared.seq_at(&snapshot, oldest)?;
            self.advance(to)?;
            self.record_first(now)?;
        }
        Ok(())
    }

    /// Stages the removal of events and says how many.
    ///
    /// # Errors
    /// [`ErrorKind::OverLimit`] when there would be too many holes, [`ErrorKind::OverQuota`] when the
    /// disk is full, [`ErrorKind::Damaged`], and [`ErrorKind::StorageFailed`] when the disk failed,
    /// now or before.
    pub fn stage_remove(&mut self, now: Timestamp, what: &Removal) -> Result<u64> {
        self.check()?;
        let before = self.events;
        match what {
            Removal::Seq(seq) => return self.stage_settled(now, &[*seq]),
            Removal::Before(seq) => {
                self.reserve(0, REMOVED, now.max(self.last_at))?;
                self.advance((*seq).min(self.tail))?;
                self.record_first(now)?;
            }
            Removal::Matching(filter) => {
                let selection = Selection::Filters(vec![filter.clone()]);
                let mut seqs = Vec::new();
                for segment in self.shared.snapshot().segments() {
                    seqs.extend(self.reader().matching(segment, &selection)?);
                }
                let start = self.tail - self.pending.events.len() as u64;
                let staged = self.pending.events.iter().zip(start..);
                seqs.extend(
                    staged
                        .filter(|((subject, _), _)| filter.matches(subject))
                        .map(|(_, seq)| seq),
                );
                return self.stage_settled(now, &seqs);
            }
        }
        Ok(before - self.events)
    }

    /// Stages the removal of single events, in any order, and says how many were there: a work queue
    /// removes so what was acknowledged.
    ///
    /// # Errors
    /// As [`stage_remove`](Self::stage_remove); then some of them may have been staged.
    pub fn stage_settled(&mut self, now: Timestamp, seqs: &[Seq]) -> Result<u64> {
        self.check()?;
        let now = now.max(self.last_at);
        let before = self.events;
        let mut seqs: Vec<Seq> = seqs
            .iter()
            .copied()
            .filter(|seq| self.is_staged_live(*seq))
            .collect();
        seqs.sort_unstable();
        seqs.dedup();
        let mut ranges = Vec::new();
        for seq in seqs {
            match ranges.last_mut() {
                Some((_, end)) if *end == seq => *end += 1,
                _ => ranges.push((seq, seq + 1)),
            }
        }
        for ranges in ranges.chunks(GROUP_RANGES) {
            if self.removed.len() + ranges.len() > MAX_RANGES {
                return Err(Error::new(
                    ErrorKind::OverLimit,
                    format!(
                        "stream {} would have more than {MAX_RANGES} holes; remove what is before the first of them",
                        self.spec.name
                    ),
                ));
            }
            let sizes = ranges.iter().try_fold(0, |all, (start, end)| {
                (*start..*end).try_fold(all, |all: u64, seq| {
                    Ok(all.saturating_add(self.size_of(seq)?.into()))
                })
            });
            let sizes: u64 = sizes.map_err(|error: Error| error)?;
            self.reserve(ranges.len() * RANGE_BYTES, REMOVED, now)?;
            self.open_group(REMOVED, now).count += u32::try_from(ranges.len()).unwrap_or(u32::MAX);
            for (start, end) in ranges {
                put_varint(&mut self.buffer, *start);
                put_varint(&mut self.buffer, end - start);
                self.removed.insert(*start, *end);
                self.pending.removed.push((*start, *end));
                self.events -= end - start;
            }
            self.bytes = self.bytes.saturating_sub(sizes);
            self.first = self.removed.skip(self.first);
            self.removed.forget_below(self.first);
        }
        Ok(before - self.events)
    }

    /// Whether it can take over another specification; nothing is changed.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when it would become a work queue or cease to be one, because
    /// what its consumers did until now was done under other rules; [`ErrorKind::StorageFailed`] when
    /// the disk failed before.
    pub fn check_update(&self, spec: &StreamSpec) -> Result<()> {
        self.check()?;
        let is_queue = |spec: &StreamSpec| spec.retention == Retention::WorkQueue;
        if is_queue(&self.spec) != is_queue(spec) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "stream {} cannot change its retention from {:?} to {:?}; make a new stream",
                    spec.name, self.spec.retention, spec.retention
                ),
            ));
        }
        Ok(())
    }

    /// Takes over another specification. What is above its limits leaves as its retention says.
    ///
    /// # Errors
    /// Those of [`check_update`](Self::check_update), and [`ErrorKind::StorageFailed`] when the disk failed,
    /// now or before.
    pub fn stage_update(&mut self, now: Timestamp, spec: StreamSpec) -> Result<()> {
        self.check_update(&spec)?;
        self.spec = spec;
        let left = self.stage_expiry(now).and_then(|()| {
            if self.spec.retention == Retention::DiscardOld {
                self.discard_old()?;
                self.record_first(now)?;
            }
            Ok(())
        });
        if let Err(error) = left {
            self.check()?;
            // What cannot be read cannot leave; that is no reason to keep the limits of before.
            tracing::warn!(stream = %self.spec.name, %error, "events above a limit stay");
        }
        Ok(())
    }

    /// Lets the oldest events go while a limit is passed. Only where the oldest leave can that be.
    pub(super) fn discard_old(&mut self) -> Result<()> {
        let max_events = self.spec.max_events.unwrap_or(u64::MAX);
        let max_bytes = self.spec.max_bytes.unwrap_or(u64::MAX);
        while self.events > 0 && (self.events > max_events || self.bytes > max_bytes) {
            self.advance(self.first + 1)?;
        }
        Ok(())
    }

    /// Lets everything below `to` go. It is recorded with the group that is written next.
    fn advance(&mut self, to: Seq) -> Result<()> {
        while self.first < to {
            let size = u64::from(self.size_of(self.first)?);
            self.bytes = self.bytes.saturating_sub(size);
            self.events -= 1;
            self.first = self.removed.skip(self.first + 1);
        }
        self.removed.forget_below(self.first);
        Ok(())
    }

    /// Has the first sequence written down, if no group that is to be written does so.
    fn record_first(&mut self, now: Timestamp) -> Result<()> {
        if self.first == self.recorded_first || self.group.is_some() {
            return Ok(());
        }
        let now = now.max(self.last_at);
        match self.reserve(0, REMOVED, now) {
            Ok(()) => {
                self.open_group(REMOVED, now);
                Ok(())
            }
            // What left comes back after a crash, and leaves again.
            Err(_) => self.check(),
        }
    }

    fn is_staged_live(&self, seq: Seq) -> bool {
        seq >= self.first && seq < self.tail && !self.removed.contains(seq)
    }

    /// Bytes of an event that is there.
    fn size_of(&mut self, seq: Seq) -> Result<u32> {
        let staged = self.tail - self.pending.events.len() as u64;
        if let Some(number) = seq.checked_sub(staged) {
            let number = usize::try_from(number).unwrap_or(usize::MAX);
            return Ok(self.pending.events.get(number).map_or(0, |(_, size)| *size));
        }
        if let Some((base, end, sizes)) = &self.front
            && (*base..*end).contains(&seq)
        {
            return Ok(sizes.get(seq - base));
        }
        let snapshot = self.shared.snapshot();
        let (segment, end) = snapshot.segment(seq);
        if segment.sealed.is_some() {
            let sizes = self.shared.sizes(segment)?;
            let size = sizes.get(seq - segment.base());
            self.front = Some((segment.base(), end, sizes));
            return Ok(size);
        }
        let view = self.shared.view.read();
        let number = usize::try_from(seq - view.index.base).unwrap_or(usize::MAX);
        Ok(view.index.sizes.get(number).copied().unwrap_or(0))
    }

    /// Bytes of the state of the stream, which every segment begins with.
    pub(super) fn encode_removed(&self, out: &mut Vec<u8>) {
        for (start, end) in self.removed.iter() {
            out.reserve(varint_len(start) + varint_len(end - start));
            put_varint(out, start);
            put_varint(out, end - start);
        }
    }
}
