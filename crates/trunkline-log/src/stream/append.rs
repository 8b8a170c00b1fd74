//! Staging events: duplicates, expectations, limits.

use bytes::Bytes;
use smallvec::SmallVec;
use smol_str::SmolStr;
use trunkline_core::engine::{Append, AppendMode, Expect, Outcome, Retention, Seq};
use trunkline_core::{Error, ErrorKind, Result, Subject, Timestamp};

use super::Stream;
use crate::segment::bloom;
use crate::segment::index;
use crate::segment::index::{Place, Places};
use crate::segment::record::{EVENTS, encode_record, fingerprint, record_len};

/// Bytes of an atomic batch at most: it is one group, and read as one.
const MAX_ATOMIC_BYTES: usize = 256 << 20;

/// An event whose body is encoded and whose size is known.
struct Checked {
    append: Append,
    body: Bytes,
    id: Option<u128>,
    len: usize,
}

impl Stream {
    /// Stages a batch of events whose sizes were checked, or says why not. What is said to be
    /// stored is so once [`sync`](Stream::sync) has succeeded; if that fails, it is unknown.
    ///
    /// Events that are staged with the same `now` share a group, so whoever stages for many takes
    /// the time once.
    ///
    /// # Errors
    /// [`ErrorKind::StorageFailed`] when the disk failed, now or before: what was staged is unknown.
    pub fn stage(
        &mut self,
        now: Timestamp,
        batch: impl IntoIterator<Item = Result<Append>>,
        mode: AppendMode,
    ) -> Result<Vec<Outcome>> {
        if let Err(error) = self.stage_expiry(now) {
            self.check()?;
            // What cannot be read cannot leave; that is no reason to take nothing new.
            tracing::warn!(stream = %self.spec.name, %error, "events that are too old stay");
        }
        let now = now.max(self.last_at);
        let checked: SmallVec<[Result<Checked>; 1]> = batch
            .into_iter()
            .map(|append| append.and_then(checked))
            .collect();
        if mode == AppendMode::Atomic {
            match self.prepare_atomic(&checked, now) {
                Ok(()) => {}
                Err(refusal) => {
                    self.check()?;
                    let refused = |_| Outcome::Refused(refusal.clone());
                    return Ok(checked.iter().map(refused).collect());
                }
            }
        }
        let mut failed: SmallVec<[SmolStr; 1]> = SmallVec::new();
        let mut outcomes = Vec::with_capacity(checked.len());
        for item in checked {
            let item = match item {
                Ok(item) => item,
                Err(error) => {
                    outcomes.push(Outcome::Refused(error));
                    continue;
                }
            };
            let key = item.append.key.clone();
            let outcome = match &key {
                Some(key) if failed.contains(key) => Err(Error::new(
                    ErrorKind::BehindFailed,
                    format!(
                        "an earlier event of key {key:?} in this batch was not stored; publish that again first"
                    ),
                )),
                _ => self.stage_one(&item, now, mode),
            };
            outcomes.push(match outcome {
                Ok((seq, duplicate)) => Outcome::Stored { seq, duplicate },
                Err(error) => {
                    self.check()?;
                    failed.extend(key);
                    Outcome::Refused(error)
                }
            });
        }
        Ok(outcomes)
    }

    /// Finds the first reason why not all of a batch can be stored, and room for all of it. An item
    /// may not build on another item of the same batch.
    fn prepare_atomic(&mut self, batch: &[Result<Checked>], now: Timestamp) -> Result<()> {
        let (mut bytes, mut events) = (0, 0);
        for (index, item) in batch.iter().enumerate() {
            let item = item.as_ref().map_err(Clone::clone)?;
            if let Some(id) = item.id
                && self.duplicate_of(id, now)?.is_some()
            {
                continue; // Stored before: nothing is left to check.
            }
            let subject = &item.append.subject;
            let mut before = batch[..index].iter().flatten();
            if item.append.expect != Expect::Any
                && before.any(|other| other.append.subject == *subject)
            {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("{subject} is twice in an atomic batch that expects something of it"),
                ));
            }
            bytes += item.len;
            events += 1;
            self.check_append(&item.append)?;
        }
        self.room(events, bytes as u64)?;
        if bytes > MAX_ATOMIC_BYTES {
            return Err(Error::new(
                ErrorKind::OverLimit,
                format!(
                    "the atomic batch has {bytes} bytes, the limit is {MAX_ATOMIC_BYTES}; split it"
                ),
            ));
        }
        // All of it goes into one group, which counts as a whole or not at all.
        self.reserve(bytes, EVENTS, now)
    }

    fn stage_one(
        &mut self,
        item: &Checked,
        now: Timestamp,
        mode: AppendMode,
    ) -> Result<(Seq, bool)> {
        if let Some(id) = item.id
            && let Some(seq) = self.duplicate_of(id, now)?
        {
            return Ok((seq, true));
        }
        // All of an atomic batch was checked and has its room.
        if mode == AppendMode::Each {
            self.check_append(&item.append)?;
            self.room(1, item.len as u64)?;
            self.reserve(item.len, EVENTS, now)?;
        }
        let seq = self.push(item, now);
        // Before the group is ended, which says what the stream begins with.
        if let Err(error) = self.discard_old() {
            tracing::warn!(stream = %self.spec.name, %error, "events above a limit stay");
        }
        let is_full = self
            .group
            .as_ref()
            .is_some_and(|open| open.group.len(&self.buffer) >= self.options.group_bytes);
        if is_full && mode == AppendMode::Each {
            self.finish_group();
        }
        Ok((seq, false))
    }

    fn push(&mut self, item: &Checked, now: Timestamp) -> Seq {
        let seq = self.tail;
        let is_first = self
            .group
            .as_ref()
            .is_none_or(|open| (open.kind, open.at) != (EVENTS, now));
        self.open_group(EVENTS, now).count += 1;
        if is_first {
            let start = self
                .group
                .as_ref()
                .map_or(0, |open| open.group.content_start());
            let offset = self.written + (start - crate::frame::GROUP_HEADER_LEN) as u64;
            self.pending.places.push(Place {
                seq,
                offset,
                at: now,
            });
        }
        let Append {
            subject, headers, ..
        } = &item.append;
        encode_record(&mut self.buffer, subject, item.id, headers, &item.body);
        // A message is bounded far below 4 GiB.
        let size = u32::try_from(item.len).unwrap_or(u32::MAX);
        self.pending.events.push((subject.clone(), size));
        if let Some(id) = item.id {
            let base = self.active.base();
            let number = u32::try_from(seq - base).unwrap_or(u32::MAX);
            self.ids.insert(id, number);
        }
        self.tail += 1;
        self.events += 1;
        self.bytes = self.bytes.saturating_add(size.into());
        seq
    }

    fn check_append(&self, append: &Append) -> Result<()> {
        let subject = &append.subject;
        if !self
            .spec
            .subjects
            .iter()
            .any(|stored| stored.matches(subject))
        {
            return Err(Error::new(
                ErrorKind::NotStored,
                format!(
                    "stream {} does not store {subject}; it stores {:?}",
                    self.spec.name, self.spec.subjects
                ),
            ));
        }
        if append.expect == Expect::Any {
            return Ok(());
        }
        let last = self.last_staged(subject)?;
        let met = match append.expect {
            Expect::Any => true,
            Expect::Absent => last.is_none(),
            Expect::Last(seq) => last == Some(seq),
        };
        if met {
            return Ok(());
        }
        let found = last.map_or_else(
            || "nothing is stored on it".to_owned(),
            |seq| format!("its last event is {seq}"),
        );
        Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "{subject} was expected to be {:?}, but {found}",
                append.expect
            ),
        ))
    }

    /// The last event of a subject, what is staged included.
    fn last_staged(&self, subject: &Subject) -> Result<Option<Seq>> {
        let is_live = |seq: Seq| seq >= self.first && !self.removed.contains(seq);
        let staged = self.pending.events.iter().enumerate().rev();
        let start = self.tail - self.pending.events.len() as u64;
        let mut of_subject = staged.filter(|(_, (of, _))| of == subject);
        if let Some((number, _)) = of_subject.find(|(number, _)| is_live(start + *number as u64)) {
            return Ok(Some(start + number as u64));
        }
        // What readers see may hold events that are staged to leave.
        match self.reader().last_of(subject)? {
            Some(seq) if !is_live(seq) => self.last_live_before(subject, seq),
            found => Ok(found),
        }
    }

    fn last_live_before(&self, subject: &Subject, before: Seq) -> Result<Option<Seq>> {
        let snapshot = self.shared.snapshot();
        let selection = crate::selection::Selection::Subjects(vec![subject.clone()]);
        for segment in snapshot
            .segments()
            .rev()
            .filter(|segment| segment.base() < before)
        {
            let seqs = self.reader().matching(segment, &selection)?;
            let mut seqs = seqs.into_iter().rev();
            if let Some(seq) = seqs.find(|seq| *seq >= self.first && !self.removed.contains(*seq)) {
                return Ok(Some(seq));
            }
        }
        Ok(None)
    }

    fn room(&self, events: u64, bytes: u64) -> Result<()> {
        let max_events = self.spec.max_events.unwrap_or(u64::MAX);
        let max_bytes = self.spec.max_bytes.unwrap_or(u64::MAX);
        let refuses = self.spec.retention != Retention::DiscardOld
            || events > max_events
            || bytes > max_bytes;
        if refuses
            && (self.events + events > max_events || self.bytes.saturating_add(bytes) > max_bytes)
        {
            return Err(Error::new(
                ErrorKind::StreamFull,
                format!(
                    "stream {} is full with {} of {max_events} events and {} of {max_bytes} bytes; let its consumers catch up",
                    self.spec.name, self.events, self.bytes
                ),
            ));
        }
        Ok(())
    }

    /// The event that was stored with that id within the duplicate window.
    fn duplicate_of(&self, id: u128, now: Timestamp) -> Result<Option<Seq>> {
        let oldest = now.minus(self.spec.duplicate_window);
        if let Some(number) = self.ids.get(&id) {
            let seq = self.active.base() + u64::from(*number);
            if self.staged_at(seq) >= oldest {
                return Ok(Some(seq));
            }
            return Ok(None);
        }
        let hash = bloom::hash_id(id);
        let (newer, older) = &self.sealed_ids;
        // One or two looks into memory instead of one for each segment.
        let may_be_covered = newer.may_have(hash) || older.may_have(hash);
        for recent in self.recent.iter().rev() {
            if recent.is_covered && !may_be_covered {
                continue;
            }
            let Some(sealed) = &recent.segment.sealed else {
                continue;
            };
            if sealed.summary.last_at < oldest {
                break;
            }
            if !bloom::may_have(&recent.bloom, hash) {
                continue;
            }
            let number = match recent.segment.find_id(&recent.pages, id) {
                Ok(number) => number,
                // Without its segment an index cannot be made again, and its ids are forgotten.
                Err(_) if recent.is_gone => None,
                Err(_) => self.shared.ids(&recent.segment)?.find(id),
            };
            if let Some(number) = number {
                let seq = recent.segment.base() + u64::from(number);
                let places = match recent.is_gone {
                    false => Some(self.shared.places(&recent.segment)?),
                    true => self
                        .shared
                        .gone_section(&recent.segment, index::PLACES)
                        .map(Places),
                };
                // An index knows the time of its places only. They are at most a second apart, and
                // to remember an id for a second longer harms nobody.
                let place = places.and_then(|places| places.place(seq));
                let latest = place.map_or(sealed.summary.last_at, |place| {
                    place.at.plus(index::PLACE_FOR).min(sealed.summary.last_at)
                });
                return Ok((latest >= oldest).then_some(seq));
            }
        }
        Ok(None)
    }

    /// When an event of the active segment was stored, what is staged included.
    fn staged_at(&self, seq: Seq) -> Timestamp {
        let after = self
            .pending
            .places
            .partition_point(|place| place.seq <= seq);
        match after.checked_sub(1) {
            Some(number) => self.pending.places[number].at,
            None => {
                let place = self.shared.view.read().index.place(seq);
                place.map_or(self.last_at, |place| place.at)
            }
        }
    }
}

fn checked(append: Append) -> Result<Checked> {
    let body = append.body.to_bytes()?;
    let id = append.id.as_ref().map(fingerprint);
    let len = record_len(&append.subject, id, &append.headers, body.len());
    Ok(Checked {
        append,
        body,
        id,
        len,
    })
}
