//! Where reading starts, and how much there is.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use smol_str::SmolStr;
use trunkline_core::engine::{Position, Seq, SubjectCount};
use trunkline_core::{Filter, Result, Subject, Timestamp};

use super::super::view::{Snapshot, matches_text};
use super::Reader;
use crate::segment::Segment;
use crate::selection::Selection;

/// How a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Events in it.
    pub events: u64,
    /// Bytes that they take on disk.
    pub bytes: u64,
    /// The first sequence stored; equal to `tail` when empty.
    pub first: Seq,
    /// The sequence that the next event will have.
    pub tail: Seq,
}

impl Reader {
    /// How the stream stands.
    pub fn standing(&self) -> Standing {
        let view = self.shared.view.read();
        Standing {
            events: view.events,
            bytes: view.bytes,
            first: view.first,
            tail: view.tail(),
        }
    }

    /// When its first event was stored.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn first_at(&self) -> Result<Option<Timestamp>> {
        let snapshot = self.shared.snapshot();
        if snapshot.first == snapshot.tail {
            return Ok(None);
        }
        self.shared.at(&snapshot, snapshot.first).map(Some)
    }

    /// Where a reader begins, and, for a last-per-subject reading, the sequences to give first.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn start(&self, position: Position, selection: &Selection) -> Result<(Seq, Vec<Seq>)> {
        self.settled(|snapshot| self.start_in(snapshot, position, selection))
    }

    fn start_in(
        &self,
        snapshot: &Snapshot,
        position: Position,
        selection: &Selection,
    ) -> Result<(Seq, Vec<Seq>)> {
        let start = match position {
            Position::First => snapshot.first,
            Position::Seq(seq) => seq.max(1),
            Position::Time(time) => {
                let seq = self.shared.seq_at(snapshot, time)?.max(snapshot.first);
                self.shared.view.read().removed.skip(seq)
            }
            Position::Last(count) => self.last(snapshot, selection, count)?,
            Position::LastPerSubject => {
                let lasts = self.last_per_subject(snapshot, selection)?;
                return Ok((snapshot.tail, lasts));
            }
            // Position::New, and whatever may come that this engine does not know.
            _ => snapshot.tail,
        };
        Ok((start, Vec::new()))
    }

    /// The last event of a subject, if there is one.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn last_of(&self, subject: &Subject) -> Result<Option<Seq>> {
        self.settled(|snapshot| self.last_of_in(snapshot, subject))
    }

    fn last_of_in(&self, snapshot: &Snapshot, subject: &Subject) -> Result<Option<Seq>> {
        for segment in snapshot.segments().rev() {
            let base = segment.base();
            if segment.sealed.is_none() {
                let view = self.shared.view.read();
                let numbers = view.index.subjects.get(subject.as_str());
                let mut seqs = numbers
                    .into_iter()
                    .flatten()
                    .rev()
                    .map(|n| view.index.base + u64::from(*n));
                if let Some(seq) = seqs.find(|seq| view.is_live(*seq)) {
                    return Ok(Some(seq));
                }
                continue;
            }
            if !self.shared.may_have_subject(segment, subject.as_str())? {
                continue;
            }
            let subjects = self.shared.subjects(segment)?;
            if let Some(entry) = subjects.find(subject.as_str()) {
                let seqs: Vec<Seq> = entry
                    .numbers()
                    .map(|number| base + u64::from(number))
                    .collect();
                let view = self.shared.view.read();
                if let Some(seq) = seqs.into_iter().rfind(|seq| view.is_live(*seq)) {
                    return Ok(Some(seq));
                }
            }
        }
        Ok(None)
    }

    /// How many selected events are at or after `from`.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn count(&self, selection: &Selection, from: Seq) -> Result<u64> {
        if *selection == Selection::All {
            return Ok(self.shared.view.read().live_from(from));
        }
        self.settled(|snapshot| self.count_in(snapshot, selection, from))
    }

    fn count_in(&self, snapshot: &Snapshot, selection: &Selection, from: Seq) -> Result<u64> {
        let from = from.max(snapshot.first);
        let mut count = 0;
        for segment in snapshot.segments() {
            if segment.sealed.is_some() && segment.end() <= from {
                continue;
            }
            let seqs = self.matching(segment, selection)?;
            let view = self.shared.view.read();
            let live = seqs
                .into_iter()
                .filter(|seq| *seq >= from && view.is_live(*seq));
            count += live.count() as u64;
        }
        Ok(count)
    }

    /// Subjects that match and have events, at most `max`, in order.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn subjects(&self, filter: &Filter, max: usize) -> Result<Vec<SubjectCount>> {
        let counts = self.settled(|snapshot| {
            let mut counts: BTreeMap<SmolStr, u64> = BTreeMap::new();
            let is_wanted = |subject: &str| matches_text(filter, subject);
            self.each_subject(snapshot, is_wanted, |subject, seqs| {
                let view = self.shared.view.read();
                let live = seqs.iter().filter(|seq| view.is_live(**seq)).count() as u64;
                if live > 0 {
                    *counts.entry(SmolStr::new(subject)).or_default() += live;
                }
            })?;
            Ok(counts)
        })?;
        let counted = |(subject, events): (SmolStr, u64)| {
            let subject = Subject::new(subject)?;
            Ok(SubjectCount { subject, events })
        };
        counts.into_iter().take(max).map(counted).collect()
    }

    /// Runs with a snapshot, and again if the active segment was sealed meanwhile: what its index had
    /// was not found then.
    fn settled<T>(&self, run: impl Fn(&Snapshot) -> Result<T>) -> Result<T> {
        loop {
            let snapshot = self.shared.snapshot();
            let result = run(&snapshot)?;
            if Arc::ptr_eq(&self.shared.view.read().active, &snapshot.active) {
                return Ok(result);
            }
        }
    }

    /// The sequences of a segment's events that are selected, in order.
    pub(in crate::stream) fn matching(
        &self,
        segment: &Segment,
        selection: &Selection,
    ) -> Result<Vec<Seq>> {
        let base = segment.base();
        let seqs = |numbers: &[u32]| {
            numbers
                .iter()
                .map(|number| base + u64::from(*number))
                .collect()
        };
        if segment.sealed.is_some() {
            return Ok(seqs(&self.shared.matching(segment, selection)?));
        }
        let view = self.shared.view.read();
        if view.active.header.file_id == segment.header.file_id {
            return Ok(seqs(&view.matching(selection)));
        }
        // Sealed meanwhile; whoever asks asks again.
        Ok(Vec::new())
    }

    /// Gives each wanted subject of each segment, newest segment first, with its sequences.
    fn each_subject(
        &self,
        snapshot: &Snapshot,
        is_wanted: impl Fn(&str) -> bool,
        mut each: impl FnMut(&str, &[Seq]),
    ) -> Result<()> {
        for segment in snapshot.segments().rev() {
            let base = segment.base();
            let mut of_active = Vec::new();
            if segment.sealed.is_none() {
                let view = self.shared.view.read();
                if view.active.header.file_id == segment.header.file_id {
                    let wanted = view
                        .index
                        .subjects
                        .iter()
                        .filter(|(subject, _)| is_wanted(subject));
                    of_active.extend(wanted.map(|(subject, numbers)| {
                        let seqs = numbers.iter().map(|number| base + u64::from(*number));
                        (subject.clone(), seqs.collect::<Vec<Seq>>())
                    }));
                }
            } else {
                let subjects = self.shared.subjects(segment)?;
                for entry in subjects.iter().filter(|entry| is_wanted(entry.subject)) {
                    let seqs: Vec<Seq> = entry
                        .numbers()
                        .map(|number| base + u64::from(number))
                        .collect();
                    each(entry.subject, &seqs);
                }
            }
            for (subject, seqs) in of_active {
                each(&subject, &seqs);
            }
        }
        Ok(())
    }

    fn last(&self, snapshot: &Snapshot, selection: &Selection, count: NonZeroU64) -> Result<Seq> {
        let mut left = count.get();
        if *selection == Selection::All {
            let view = self.shared.view.read();
            let removed: Vec<_> = view.removed.within(snapshot.first, snapshot.tail).collect();
            let mut end = snapshot.tail;
            for (start, removed_end) in removed.into_iter().rev() {
                let live = end - removed_end;
                if live >= left {
                    return Ok(end - left);
                }
                left -= live;
                end = start;
            }
            return Ok(end.saturating_sub(left).max(snapshot.first));
        }
        for segment in snapshot.segments().rev() {
            let seqs = self.matching(segment, selection)?;
            let view = self.shared.view.read();
            for seq in seqs.into_iter().rev().filter(|seq| view.is_live(*seq)) {
                left -= 1;
                if left == 0 {
                    return Ok(seq);
                }
            }
        }
        Ok(snapshot.first)
    }

    fn last_per_subject(&self, snapshot: &Snapshot, selection: &Selection) -> Result<Vec<Seq>> {
        let mut lasts: BTreeMap<SmolStr, Seq> = BTreeMap::new();
        let is_wanted =
            |subject: &str| Subject::new(subject).is_ok_and(|subject| selection.matches(&subject));
        self.each_subject(snapshot, is_wanted, |subject, seqs| {
            // Newest segment first: what is known is later.
            if !lasts.contains_key(subject) {
                let view = self.shared.view.read();
                if let Some(seq) = seqs.iter().rfind(|seq| view.is_live(**seq)) {
                    lasts.insert(SmolStr::new(subject), *seq);
                }
            }
        })?;
        let mut lasts: Vec<Seq> = lasts.into_values().collect();
        lasts.sort_unstable();
        Ok(lasts)
    }
}
