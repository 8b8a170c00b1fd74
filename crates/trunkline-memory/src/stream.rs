//! One stream: its events, the index over their subjects, the ids it remembers, its consumers.
//!
//! Plain computation under one lock. Whoever adds events is told which waiters to wake, and does
//! so after releasing the lock.

mod standing;
mod update;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use smol_str::SmolStr;
use trunkline_core::engine::{
    Append, AppendMode, Credit, Expect, Gap, Outcome, Position, Removal, Retention, Seq,
    StoredEvent, StreamSpec,
};
use trunkline_core::matcher::{Key, Matcher};
use trunkline_core::wire::Body;
use trunkline_core::{Error, ErrorKind, EventId, Filter, Headers, Name, Subject, Timestamp};

use crate::consume::Consumer;
use crate::options::MemoryOptions;
use crate::selection::Selection;
use trunkline_core::local::Waiter;

/// How many ids a stream remembers at most, however many come within its duplicate window.
const MAX_REMEMBERED_IDS: usize = 1_000_000;

/// How many events one reader looks at under the lock before it lets others go on.
pub(crate) const MAX_LOOKED_AT: usize = 4_096;

/// What an entry costs beside its body: the entry itself, its place in the index and its id.
const ENTRY_BYTES: usize = size_of::<Entry>() + 96;

pub(crate) type Wakes = SmallVec<[Arc<Waiter>; 4]>;

pub(crate) struct Stream {
    pub(crate) spec: StreamSpec,
    /// Every filter by which something in it may have been stored, those of former days too.
    pub(crate) stored: Vec<Filter>,
    /// How often its subjects changed, for readers that have a selection.
    pub(crate) generation: u64,
    max_events: u64,
    max_bytes: u64,
    /// By sequence. A map, so that what leaves the middle of a work queue leaves no hole behind.
    entries: BTreeMap<Seq, Entry>,
    tail: Seq,
    /// When the last event was stored: store times never fall, even if the clock is set back.
    last_at: Timestamp,
    events: u64,
    bytes: u64,
    subjects: FxHashMap<Subject, SubjectIndex>,
    remembered: FxHashMap<EventId, Seq>,
    remembered_order: VecDeque<(Timestamp, EventId)>,
    readers: Matcher<Arc<Waiter>>,
    pub(crate) consumers: BTreeMap<Name, Consumer>,
    /// Set when the stream is deleted, for those who hold it still.
    pub(crate) deleted: bool,
    /// Whether it was said that a limit is near.
    warned: bool,
}

struct Entry {
    at: Timestamp,
    subject: Subject,
    headers: Headers,
    body: Body,
    bytes: usize,
}

#[derive(Default)]
struct SubjectIndex {
    seqs: VecDeque<Seq>,
    /// Who waits for this subject, as of that generation of `readers`.
    waiters: (u64, SmallVec<[Arc<Waiter>; 2]>),
}

impl Stream {
    pub(crate) fn new(spec: StreamSpec, options: &MemoryOptions) -> Self {
        Self {
            max_events: spec.max_events.unwrap_or(u64::MAX).min(options.max_events),
            max_bytes: spec.max_bytes.unwrap_or(u64::MAX).min(options.max_bytes),
            stored: spec.subjects.clone(),
            generation: 0,
            // Whoever asks for more is told what there is.
            spec: StreamSpec {
                replicas: 1,
                ..spec
            },
            entries: BTreeMap::new(),
            tail: 1,
            last_at: Timestamp::from_nanos(i64::MIN),
            events: 0,
            bytes: 0,
            subjects: FxHashMap::default(),
            remembered: FxHashMap::default(),
            remembered_order: VecDeque::new(),
            readers: Matcher::default(),
            consumers: BTreeMap::new(),
            deleted: false,
            warned: false,
        }
    }

    pub(crate) fn tail(&self) -> Seq {
        self.tail
    }

    pub(crate) fn first(&self) -> Seq {
        self.entries
            .first_key_value()
            .map_or(self.tail, |(seq, _)| *seq)
    }

    fn entry(&self, seq: Seq) -> Option<&Entry> {
        self.entries.get(&seq)
    }

    pub(crate) fn event(&self, seq: Seq) -> Option<StoredEvent> {
        let Entry {
            at,
            subject,
            headers,
            body,
            ..
        } = self.entry(seq)?;
        Some(StoredEvent {
            seq,
            at: *at,
            subject: subject.clone(),
            headers: headers.clone(),
            body: body.clone(),
        })
    }

    /// Stores a batch of events whose bodies have been checked already, or says why not.
    pub(crate) fn append(
        &mut self,
        batch: impl IntoIterator<Item = Result<Append, Error>>,
        mode: AppendMode,
        now: Timestamp,
        wakes: &mut Wakes,
    ) -> Vec<Outcome> {
        self.expire(now);
        let now = now.max(self.last_at);
        self.last_at = now;
        let checked: SmallVec<[Result<Append, Error>; 1]> = batch.into_iter().collect();
        if mode == AppendMode::Atomic
            && let Some(refusal) = self.atomic_refusal(&checked)
        {
            return checked
                .iter()
                .map(|_| Outcome::Refused(refusal.clone()))
                .collect();
        }
        let mut failed: SmallVec<[SmolStr; 1]> = SmallVec::new();
        let mut outcome = |append: Result<Append, Error>| {
            let append = match append {
                Ok(append) => append,
                Err(error) => return Outcome::Refused(error),
            };
            let Some(key) = append.key.clone() else {
                return self.append_one(append, now, wakes);
            };
            if failed.contains(&key) {
                return Outcome::Refused(Error::new(
                    ErrorKind::BehindFailed,
                    format!(
                        "an earlier event of key {key:?} in this batch was not stored; publish that again first"
                    ),
                ));
            }
            let outcome = self.append_one(append, now, wakes);
            if matches!(outcome, Outcome::Refused(_)) {
                failed.push(key);
            }
            outcome
        };
        checked.into_iter().map(&mut outcome).collect()
    }

    /// The first reason why not all of a batch can be stored. An item may not build on another
    /// item of the same batch.
    fn atomic_refusal(&self, batch: &[Result<Append, Error>]) -> Option<Error> {
        let (mut bytes, mut events) = (0, 0);
        for (index, append) in batch.iter().enumerate() {
            let append = match append {
                Ok(append) => append,
                Err(error) => return Some(error.clone()),
            };
            if append
                .id
                .as_ref()
                .is_some_and(|id| self.remembered.contains_key(id))
            {
                continue; // Stored before: nothing is left to check.
            }
            let before = batch[..index].iter().flatten();
            if append.expect != Expect::Any
                && before.clone().any(|other| other.subject == append.subject)
            {
                return Some(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "{} is twice in an atomic batch that expects something of it",
                        append.subject
                    ),
                ));
            }
            bytes += entry_bytes(append);
            events += 1;
            if let Err(error) = self.check(append) {
                return Some(error);
            }
        }
        self.room(events, bytes as u64).err()
    }

    fn append_one(&mut self, append: Append, now: Timestamp, wakes: &mut Wakes) -> Outcome {
        if let Some(seq) = append.id.as_ref().and_then(|id| self.remembered.get(id)) {
            return Outcome::Stored {
                seq: *seq,
                duplicate: true,
            };
        }
        let bytes = entry_bytes(&append);
        if let Err(error) = self
            .check(&append)
            .and_then(|()| self.room(1, bytes as u64))
        {
            return Outcome::Refused(error);
        }
        let Append {
            subject,
            id,
            headers,
            body,
            ..
        } = append;
        let seq = self.tail;
        if let Some(id) = id {
            self.remembered_order.push_back((now, id.clone()));
            self.remembered.insert(id, seq);
        }
        let index = self.subjects.entry(subject.clone()).or_default();
        index.seqs.push_back(seq);
        if index.waiters.0 != self.readers.generation() {
            let mut waiters = SmallVec::new();
            self.readers
                .each(&subject, |waiter| waiters.push(Arc::clone(waiter)));
            index.waiters = (self.readers.generation(), waiters);
        }
        for waiter in &index.waiters.1 {
            waiter.note(seq);
            if waiter.is_awaited() && !wakes.iter().any(|other| Arc::ptr_eq(other, waiter)) {
                wakes.push(Arc::clone(waiter));
            }
        }
        self.entries.insert(
            seq,
            Entry {
                at: now,
                subject,
                headers,
                body,
                bytes,
            },
        );
        self.tail += 1;
        self.events += 1;
        self.bytes += bytes as u64;
        self.discard_old();
        Outcome::Stored {
            seq,
            duplicate: false,
        }
    }

    fn check(&self, append: &Append) -> Result<(), Error> {
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
        let last = self
            .subjects
            .get(subject)
            .and_then(|index| index.seqs.back().copied());
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

    fn room(&self, events: u64, bytes: u64) -> Result<(), Error> {
        let (after, bytes_after) = (self.events + events, self.bytes + bytes);
        let refuses = self.spec.retention != Retention::DiscardOld
            || events > self.max_events
            || bytes > self.max_bytes;
        if refuses && (after > self.max_events || bytes_after > self.max_bytes) {
            return Err(Error::new(
                ErrorKind::StreamFull,
                format!(
                    "stream {} is full with {} of {} events and {} of {} bytes; let its consumers catch up",
                    self.spec.name, self.events, self.max_events, self.bytes, self.max_bytes
                ),
            ));
        }
        Ok(())
    }

    fn discard_old(&mut self) {
        let near = self.events * 5 > self.max_events.saturating_mul(4)
            || self.bytes > self.max_bytes / 5 * 4;
        if near && !self.warned {
            tracing::warn!(
                stream = %self.spec.name, events = self.events, bytes = self.bytes,
                "the stream is four fifths full; soon its oldest events leave, read or not"
            );
        }
        self.warned = near;
        while self.events > self.max_events || self.bytes > self.max_bytes {
            self.remove(self.first());
        }
    }

    /// Lets go of what is past its age and of ids past the duplicate window.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        if let Some(max_age) = self.spec.max_age {
            let oldest = now.minus(max_age);
            while self
                .entries
                .first_key_value()
                .is_some_and(|(_, entry)| entry.at < oldest)
            {
                self.remove(self.first());
            }
        }
        let oldest = now.minus(self.spec.duplicate_window);
        while self
            .remembered_order
            .front()
            .is_some_and(|(at, _)| *at < oldest)
            || self.remembered_order.len() > MAX_REMEMBERED_IDS
        {
            if let Some((_, id)) = self.remembered_order.pop_front() {
                self.remembered.remove(&id);
            }
        }
    }

    /// Removes one event and says whether it was there.
    pub(crate) fn remove(&mut self, seq: Seq) -> bool {
        let Some(entry) = self.entries.remove(&seq) else {
            return false;
        };
        self.events -= 1;
        self.bytes -= entry.bytes as u64;
        if let Some(index) = self.subjects.get_mut(&entry.subject) {
            if index.seqs.front() == Some(&seq) {
                index.seqs.pop_front();
            } else if let Ok(at) = index.seqs.binary_search(&seq) {
                index.seqs.remove(at);
            }
            if index.seqs.is_empty() {
                self.subjects.remove(&entry.subject);
            }
        }
        true
    }

    pub(crate) fn remove_all(&mut self, what: &Removal) -> u64 {
        let seqs: Vec<Seq> = match what {
            Removal::Seq(seq) => vec![*seq],
            Removal::Before(seq) => self.entries.range(..*seq).map(|(seq, _)| *seq).collect(),
            Removal::Matching(filter) => {
                let matching = self
                    .subjects
                    .iter()
                    .filter(|(subject, _)| filter.matches(subject));
                matching
                    .flat_map(|(_, index)| index.seqs.iter().copied())
                    .collect()
            }
        };
        seqs.into_iter().filter(|seq| self.remove(*seq)).count() as u64
    }

    /// The first sequence at or after `from` that is selected, looking at no more than
    /// [`MAX_LOOKED_AT`]; else the sequence up to which there is none.
    pub(crate) fn next_match(&self, selection: &Selection, from: Seq) -> Result<Seq, Seq> {
        let from = from.max(self.first());
        // A reader may ask for what is yet to come.
        let end = self.tail.max(from);
        match selection {
            Selection::Subjects(subjects) => {
                let firsts = subjects.iter().filter_map(|subject| {
                    let seqs = &self.subjects.get(subject)?.seqs;
                    seqs.get(seqs.partition_point(|seq| *seq < from)).copied()
                });
                firsts.min().ok_or(end)
            }
            _ => {
                let mut looked_at = self.entries.range(from..).take(MAX_LOOKED_AT);
                let mut last = None;
                let found = looked_at.find(|(seq, entry)| {
                    last = Some(**seq);
                    selection.matches(&entry.subject)
                });
                match (found, last) {
                    (Some((seq, _)), _) => Ok(*seq),
                    (None, Some(last)) if self.entries.range(last + 1..).next().is_some() => {
                        Err(last + 1)
                    }
                    (None, _) => Err(end),
                }
            }
        }
    }

    /// Adds selected events from `from` on to `out` and gives where to go on. That is before the
    /// tail when the credit is used up or when it has looked at enough for once.
    pub(crate) fn read(
        &self,
        selection: &Selection,
        from: Seq,
        credit: Credit,
        out: &mut Vec<StoredEvent>,
    ) -> Seq {
        let (mut next, mut bytes, mut added) = (from.max(self.first()), 0, 0);
        while added < credit.items.min(MAX_LOOKED_AT) {
            match self.next_match(selection, next) {
                Err(end) => return end,
                Ok(seq) => {
                    let Some(event) = self.event(seq) else { break };
                    let size = event.body.rough_bytes();
                    if added > 0 && bytes + size > credit.bytes {
                        return seq;
                    }
                    bytes += size;
                    added += 1;
                    next = seq + 1;
                    out.push(event);
                }
            }
        }
        next
    }

    /// Where a reader begins, and, for a last-per-subject reading, the sequences to give first.
    pub(crate) fn start(&self, position: Position, selection: &Selection) -> (Seq, Vec<Seq>) {
        let start = match position {
            Position::First => self.first(),
            Position::Seq(seq) => seq.max(1),
            Position::Time(time) => self.first_at(time),
            Position::Last(count) => self.last(selection, count),
            Position::LastPerSubject => {
                let mut lasts: Vec<Seq> = self
                    .subjects
                    .iter()
                    .filter(|(subject, _)| selection.matches(subject))
                    .filter_map(|(_, index)| index.seqs.back().copied())
                    .collect();
                lasts.sort_unstable();
                return (self.tail(), lasts);
            }
            _ => self.tail(), // Position::New, and whatever may come that this engine does not know.
        };
        (start, Vec::new())
    }

    /// The first sequence stored at or after `time`: store times rise with sequences.
    fn first_at(&self, time: Timestamp) -> Seq {
        let (mut low, mut high) = (self.first(), self.tail);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entries.range(middle..high).next() {
                Some((seq, entry)) if entry.at < time => low = seq + 1,
                _ => high = middle,
            }
        }
        low
    }

    fn last(&self, selection: &Selection, count: NonZeroU64) -> Seq {
        let mut matching = self
            .entries
            .iter()
            .rev()
            .filter(|(_, entry)| selection.matches(&entry.subject));
        let back = usize::try_from(count.get() - 1).unwrap_or(usize::MAX);
        matching.nth(back).map_or(self.first(), |(seq, _)| *seq)
    }

    /// What a reader at `from` has missed.
    pub(crate) fn gap(&self, from: Seq) -> Option<Gap> {
        let first = self.first();
        (from < first).then(|| Gap {
            from,
            to: first - 1,
        })
    }

    /// How many selected events are at or after `from`.
    pub(crate) fn count(&self, selection: &Selection, from: Seq) -> u64 {
        let after = |index: &SubjectIndex| {
            (index.seqs.len() - index.seqs.partition_point(|seq| *seq < from)) as u64
        };
        let selected = self
            .subjects
            .iter()
            .filter(|(subject, _)| selection.matches(subject));
        selected.map(|(_, index)| after(index)).sum()
    }

    /// Registers a reader that waits for events matching the filters.
    pub(crate) fn register(
        &mut self,
        filters: &[Filter],
        waiter: &Arc<Waiter>,
    ) -> Vec<(Filter, Key)> {
        let insert = |filter: &Filter| {
            (
                filter.clone(),
                self.readers.insert(filter, Arc::clone(waiter)),
            )
        };
        filters.iter().map(insert).collect()
    }

    pub(crate) fn unregister(&mut self, keys: &[(Filter, Key)]) {
        for (filter, key) in keys {
            self.readers.remove(filter, *key);
        }
    }

    /// Everyone who waits for anything of this stream.
    pub(crate) fn all_waiters(&self) -> Wakes {
        let mut wakes = Wakes::new();
        self.readers.all(|waiter| wakes.push(Arc::clone(waiter)));
        wakes
    }
}

fn entry_bytes(append: &Append) -> usize {
    ENTRY_BYTES + append.subject.as_str().len() + append.headers.bytes() + append.body.rough_bytes()
}
