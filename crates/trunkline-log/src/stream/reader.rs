//! Reading what is published, from any thread.

use std::sync::Arc;

use trunkline_core::engine::{Credit, Seq, StoredEvent};
use trunkline_core::{Result, Subject, Timestamp};

use super::view::{Shared, Snapshot};
use crate::frame::{Group, Walk, damaged};
use crate::segment::Segment;
use crate::segment::index::Place;
use crate::segment::record::{EVENTS, Head, Records};
use crate::segment::scan::explain;
use crate::selection::Selection;

mod positions;

pub use positions::Standing;

/// How many events one reading looks up, before whoever reads lets others go on.
const MAX_LOOKED_UP: usize = 4_096;
/// How many bytes one reading goes through in search of what matches.
const MAX_SCANNED: u64 = 8 << 20;
/// With fewer events than one in so many, each is looked up; else all are gone through.
const SPARSE: u64 = 8;
/// Bytes that are read to get at one event.
const LOOK_UP_CHUNK: usize = 64 << 10;
/// With more subjects than this in the active segment, filters are tried on events instead.
const MAX_TRIED_SUBJECTS: usize = 1_024;

/// Reads a stream while its writer goes on. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) shared: Arc<Shared>,
}

impl Reader {
    /// Adds selected events from `from` on to `out`, as far as the credit goes, and gives where to
    /// go on. That is before the tail when the credit is used up, or when it has looked at enough
    /// for once.
    ///
    /// # Errors
    /// [`Damaged`](trunkline_core::ErrorKind::Damaged) with file and offset; what is in `out` then
    /// is right, and may be kept.
    pub fn read(
        &self,
        from: Seq,
        selection: &Selection,
        credit: Credit,
        out: &mut Vec<StoredEvent>,
    ) -> Result<Seq> {
        let snapshot = self.shared.snapshot();
        let mut next = self
            .shared
            .view
            .read()
            .removed
            .skip(from.max(snapshot.first));
        let mut reading = Reading {
            shared: &self.shared,
            snapshot: &snapshot,
            selection,
            credit,
            added: 0,
            bytes: 0,
            scanned: 0,
            looked_up: 0,
            subjects: Subjects::default(),
            out,
        };
        while next < snapshot.tail && credit.items > 0 {
            let (segment, end) = snapshot.segment(next);
            match reading.segment(segment, next, end)? {
                Some(stopped) => return Ok(stopped),
                None => next = end,
            }
        }
        Ok(next)
    }

    /// Whether an event is there.
    pub fn is_live(&self, seq: Seq) -> bool {
        self.shared.view.read().is_live(seq)
    }

    /// Whether what is at or above `seq` is in the segment that is written, so that it has only just
    /// been and need not be looked for on the disk.
    pub fn is_recent(&self, seq: Seq) -> bool {
        seq >= self.shared.view.read().index.base
    }

    /// One event, if it is there.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn event(&self, seq: Seq) -> Result<Option<StoredEvent>> {
        let snapshot = self.shared.snapshot();
        if !self.shared.view.read().is_live(seq) || seq >= snapshot.tail || seq < snapshot.first {
            return Ok(None);
        }
        let (segment, end) = snapshot.segment(seq);
        let mut out = Vec::new();
        let mut reading = Reading {
            shared: &self.shared,
            snapshot: &snapshot,
            selection: &Selection::All,
            credit: Credit::items(1),
            added: 0,
            bytes: 0,
            scanned: 0,
            looked_up: 0,
            subjects: Subjects::default(),
            out: &mut out,
        };
        reading.look_up(segment, std::iter::once(seq), end)?;
        Ok(out.pop())
    }
}

/// One reading under way.
struct Reading<'a> {
    shared: &'a Shared,
    snapshot: &'a Snapshot,
    selection: &'a Selection,
    credit: Credit,
    added: usize,
    bytes: usize,
    scanned: u64,
    looked_up: usize,
    subjects: Subjects,
    out: &'a mut Vec<StoredEvent>,
}

impl Reading<'_> {
    /// Reads within one segment. Gives where it stopped, if it stopped before the end.
    fn segment(&mut self, segment: &Segment, from: Seq, end: Seq) -> Result<Option<Seq>> {
        let Some(numbers) = self.matching(segment)? else {
            return self.scan(segment, from, end);
        };
        let base = segment.base();
        let start = numbers.partition_point(|number| base + u64::from(*number) < from);
        let numbers = &numbers[start..];
        let wanted = numbers.len() as u64;
        if wanted > 0 && wanted * SPARSE >= end - from {
            return self.scan(segment, from, end);
        }
        let seqs = numbers.iter().map(|number| base + u64::from(*number));
        self.look_up(segment, seqs, end)
    }

    /// Which events of the segment match; none where going through all of them is better.
    fn matching(&self, segment: &Segment) -> Result<Option<Arc<[u32]>>> {
        if *self.selection == Selection::All {
            return Ok(None);
        }
        if segment.sealed.is_some() {
            return self.shared.matching(segment, self.selection).map(Some);
        }
        let view = self.shared.view.read();
        let few = view.index.subjects.len() <= MAX_TRIED_SUBJECTS;
        let is_active = view.active.header.file_id == segment.header.file_id;
        // It may have been sealed since this reading began.
        if !is_active {
            return Ok(None);
        }
        Ok(match self.selection {
            Selection::Subjects(subjects) => {
                let found = subjects
                    .iter()
                    .filter_map(|subject| view.index.subjects.get(subject.as_str()));
                let mut numbers: Vec<u32> = found.flatten().copied().collect();
                numbers.sort_unstable();
                numbers.dedup();
                Some(numbers.into())
            }
            _ if few => Some(view.matching(self.selection).into()),
            _ => None,
        })
    }

    /// Goes through all events from `from` on.
    fn scan(&mut self, segment: &Segment, from: Seq, end: Seq) -> Result<Option<Seq>> {
        let place = self.shared.place(segment, from)?;
        let mut walk = segment.walk(place.offset, segment.data_end(self.snapshot.end));
        let mut next = place.seq;
        while next < end {
            if next > from && self.scanned > MAX_SCANNED {
                return Ok(Some(next));
            }
            let (group, head) = events_group(&mut walk, segment)?;
            self.scanned += group.header.size();
            next = head.seq.saturating_add(group.header.count.into());
            if let Some(stopped) = self.group(segment, &group, head, from, end)? {
                return Ok(Some(stopped));
            }
        }
        Ok(None)
    }

    /// Takes the selected events of one group.
    fn group(
        &mut self,
        segment: &Segment,
        group: &Group,
        head: Head,
        from: Seq,
        end: Seq,
    ) -> Result<Option<Seq>> {
        // Held for one group, without I/O.
        let view = self.shared.view.read();
        let mut records = Records::new(&group.content);
        let mut seq = head.seq;
        while seq < end {
            if seq < from && records.skip().is_some() {
                seq += 1;
                continue;
            }
            let record = records.next_record();
            let Some(record) =
                record.map_err(|fault| explain(fault, &segment.path, group.offset))?
            else {
                break;
            };
            let subject = self.subjects.get(record.subject).map_err(|_| {
                let what = "a record has a subject that is none";
                damaged(&segment.path, group.offset, what)
            })?;
            let is_wanted = *self.selection == Selection::All || self.selection.matches(&subject);
            if is_wanted && seq >= from && view.is_live(seq) {
                if self.added == self.credit.items {
                    return Ok(Some(seq));
                }
                let event = record
                    .event(seq, head.at, subject, &group.content)
                    .map_err(|error| damaged(&segment.path, group.offset, error.message()))?;
                let size = event.body.rough_bytes();
                if self.added > 0 && self.bytes + size > self.credit.bytes {
                    return Ok(Some(seq));
                }
                self.bytes += size;
                self.added += 1;
                self.out.push(event);
            }
            seq += 1;
        }
        Ok(None)
    }

    /// Takes events one by one, in order.
    fn look_up(
        &mut self,
        segment: &Segment,
        seqs: impl Iterator<Item = Seq>,
        end: Seq,
    ) -> Result<Option<Seq>> {
        let data_end = segment.data_end(self.snapshot.end);
        let mut walk: Option<Walk<'_>> = None;
        let mut at: Option<(Group, Head)> = None;
        for seq in seqs.take_while(|seq| *seq < end) {
            if self.added == self.credit.items || self.looked_up == MAX_LOOKED_UP {
                return Ok(Some(seq));
            }
            if !self.shared.view.read().is_live(seq) {
                continue;
            }
            self.looked_up += 1;
            let has = |(group, head): &(Group, Head)| {
                (head.seq..head.seq.saturating_add(group.header.count.into())).contains(&seq)
            };
            if !at.as_ref().is_some_and(has) {
                let place = self.shared.place(segment, seq)?;
                let walk = walk.get_or_insert_with(|| {
                    segment
                        .walk(place.offset, data_end)
                        .in_chunks_of(LOOK_UP_CHUNK)
                });
                if place.offset > walk.offset() {
                    walk.go_to(place.offset);
                }
                at = None;
                while at.is_none() {
                    at = Some(events_group(walk, segment)?).filter(has);
                }
            }
            let Some((group, head)) = &at else { continue };
            if let Some(stopped) = self.group(segment, group, *head, seq, seq + 1)? {
                return Ok(Some(stopped));
            }
        }
        Ok(None)
    }
}

/// The next group that has events. There must be one, because it was published.
fn events_group(walk: &mut Walk<'_>, segment: &Segment) -> Result<(Group, Head)> {
    loop {
        let Some(group) = walk.next_group()? else {
            let what = "the group here is not as it was written";
            return Err(damaged(&segment.path, walk.offset(), what));
        };
        if group.header.kind == EVENTS && group.header.flags == 0 {
            let head = Head::decode(&group.content)
                .ok_or_else(|| damaged(&segment.path, group.offset, "a group without a head"))?;
            return Ok((group, head));
        }
    }
}

impl Shared {
    /// The last known group at or before `seq`.
    pub(super) fn place(&self, segment: &Segment, seq: Seq) -> Result<Place> {
        let place = match &segment.sealed {
            Some(_) => self.places(segment)?.place(seq),
            None => {
                let view = self.view.read();
                match view.active.header.file_id == segment.header.file_id {
                    true => view.index.place(seq),
                    false => None,
                }
            }
        };
        // Sealed since the reading began: then from the start of the segment.
        Ok(place.unwrap_or(Place {
            seq: segment.base(),
            offset: crate::frame::FILE_HEADER_LEN,
            at: segment.header.created,
        }))
    }

    /// When an event was stored.
    pub(super) fn at(&self, snapshot: &Snapshot, seq: Seq) -> Result<Timestamp> {
        let (segment, _) = snapshot.segment(seq);
        let place = self.place(segment, seq)?;
        let mut walk = segment
            .walk(place.offset, segment.data_end(snapshot.end))
            .in_chunks_of(LOOK_UP_CHUNK);
        loop {
            let (group, head) = events_group(&mut walk, segment)?;
            if seq < head.seq.saturating_add(group.header.count.into()) {
                return Ok(head.at);
            }
        }
    }

    /// The first sequence that was stored at or after `time`, removed or not; the tail if none.
    pub(super) fn seq_at(&self, snapshot: &Snapshot, time: Timestamp) -> Result<Seq> {
        for segment in snapshot.segments() {
            let place = match &segment.sealed {
                Some(sealed) if sealed.summary.last_at < time => continue,
                Some(_) => self.places(segment)?.place_before(time),
                None => {
                    let view = self.view.read();
                    let is_it = view.active.header.file_id == segment.header.file_id;
                    is_it.then(|| view.index.place_before(time)).flatten()
                }
            };
            let from = place.map_or(crate::frame::FILE_HEADER_LEN, |place| place.offset);
            let end = segment.data_end(snapshot.end);
            let mut walk = segment.walk(from, end).in_chunks_of(LOOK_UP_CHUNK);
            while walk.offset() < end {
                let Some(group) = walk.next_group()? else {
                    let what = "the group here is not as it was written";
                    return Err(damaged(&segment.path, walk.offset(), what));
                };
                let head = Head::decode(&group.content);
                if let Some(head) =
                    head.filter(|head| group.header.kind == EVENTS && head.at >= time)
                {
                    return Ok(head.seq);
                }
            }
        }
        Ok(snapshot.tail)
    }
}

/// Subjects that came lately, so that each is checked once and then shared.
#[derive(Default)]
struct Subjects {
    recent: Vec<Subject>,
    oldest: usize,
}

impl Subjects {
    const KEPT: usize = 16;

    fn get(&mut self, text: &str) -> Result<Subject> {
        if let Some(known) = self.recent.iter().find(|known| known.as_str() == text) {
            return Ok(known.clone());
        }
        let subject = Subject::new(text)?;
        if self.recent.len() < Self::KEPT {
            self.recent.push(subject.clone());
        } else {
            self.recent[self.oldest] = subject.clone();
            self.oldest = (self.oldest + 1) % Self::KEPT;
        }
        Ok(subject)
    }
}
