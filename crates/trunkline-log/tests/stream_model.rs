//! A stream against the simplest thing that could be one: a vector.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps in vain")]

mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::time::Duration;

use support::{append, body, id, open, options, read_all, spec, subject, time};
use trunkline_core::engine::{
    Append, AppendMode, Credit, Expect, Outcome, Position, Removal, Retention, Seq, StreamSpec,
};
use trunkline_core::{ErrorKind, EventId, Filter, Headers, Subject, Timestamp};
use trunkline_log::Selection;
use trunkline_log::sim::{Random, SimDisk};
use trunkline_log::stream::Stream;

struct Event {
    at: Timestamp,
    subject: Subject,
    headers: Headers,
    body: Vec<u8>,
    bytes: u64,
}

struct Model {
    spec: StreamSpec,
    events: BTreeMap<Seq, Event>,
    tail: Seq,
    ids: HashMap<EventId, (Seq, Timestamp)>,
    last_at: Timestamp,
}

impl Model {
    fn first(&self) -> Seq {
        self.events.keys().next().copied().unwrap_or(self.tail)
    }

    fn bytes(&self) -> u64 {
        self.events.values().map(|event| event.bytes).sum()
    }

    fn last_of(&self, subject: &Subject) -> Option<Seq> {
        let mut of = self
            .events
            .iter()
            .filter(|(_, event)| event.subject == *subject);
        of.next_back().map(|(seq, _)| *seq)
    }

    fn expire(&mut self, now: Timestamp) {
        if let Some(age) = self.spec.max_age {
            self.events.retain(|_, event| event.at >= now.minus(age));
        }
    }

    fn duplicate(&self, append: &Append, now: Timestamp) -> Option<Seq> {
        let (seq, at) = self.ids.get(append.id.as_ref()?)?;
        (*at >= now.minus(self.spec.duplicate_window)).then_some(*seq)
    }

    fn refusal(&self, append: &Append, events: u64, bytes: u64) -> Option<ErrorKind> {
        if !self.spec.subjects[0].matches(&append.subject) {
            return Some(ErrorKind::NotStored);
        }
        let last = self.last_of(&append.subject);
        let met = match append.expect {
            Expect::Any => true,
            Expect::Absent => last.is_none(),
            Expect::Last(seq) => last == Some(seq),
        };
        if !met {
            return Some(ErrorKind::Conflict);
        }
        self.full(events, bytes)
    }

    fn full(&self, events: u64, bytes: u64) -> Option<ErrorKind> {
        let max_events = self.spec.max_events.unwrap_or(u64::MAX);
        let max_bytes = self.spec.max_bytes.unwrap_or(u64::MAX);
        let refuses = self.spec.retention != Retention::DiscardOld
            || events > max_events
            || bytes > max_bytes;
        let is_over =
            self.events.len() as u64 + events > max_events || self.bytes() + bytes > max_bytes;
        (refuses && is_over).then_some(ErrorKind::StreamFull)
    }

    /// What becomes of each item: its sequence and whether it is a duplicate, or the refusal.
    fn append(
        &mut self,
        now: Timestamp,
        batch: &[Append],
        mode: AppendMode,
    ) -> Vec<Result<(Seq, bool), ErrorKind>> {
        self.expire(now);
        let now = now.max(self.last_at);
        if mode == AppendMode::Atomic {
            let (mut events, mut bytes, mut refusal) = (0, 0, None);
            for (index, item) in batch.iter().enumerate() {
                if self.duplicate(item, now).is_some() {
                    continue;
                }
                let mut before = batch[..index].iter();
                if item.expect != Expect::Any && before.any(|other| other.subject == item.subject) {
                    refusal = refusal.or(Some(ErrorKind::Conflict));
                }
                events += 1;
                bytes += size(item);
                refusal = refusal.or(self.refusal(item, 0, 0));
            }
            if let Some(refusal) = refusal.or(self.full(events, bytes)) {
                return batch.iter().map(|_| Err(refusal)).collect();
            }
        }
        let mut failed = BTreeSet::new();
        let mut outcomes = Vec::new();
        for item in batch {
            if item.key.as_ref().is_some_and(|key| failed.contains(key)) {
                outcomes.push(Err(ErrorKind::BehindFailed));
                continue;
            }
            if let Some(seq) = self.duplicate(item, now) {
                outcomes.push(Ok((seq, true)));
                continue;
            }
            let refusal = self.refusal(item, 1, size(item));
            if let Some(refusal) = refusal.filter(|_| mode == AppendMode::Each) {
                failed.extend(item.key.clone());
                outcomes.push(Err(refusal));
                continue;
            }
            let seq = self.tail;
            self.tail += 1;
            self.last_at = now;
            if let Some(id) = &item.id {
                self.ids.insert(id.clone(), (seq, now));
            }
            let event = Event {
                at: now,
                subject: item.subject.clone(),
                headers: item.headers.clone(),
                body: item.body.to_bytes().unwrap().to_vec(),
                bytes: size(item),
            };
            self.events.insert(seq, event);
            while self.events.len() as u64 > self.spec.max_events.unwrap_or(u64::MAX)
                || self.bytes() > self.spec.max_bytes.unwrap_or(u64::MAX)
            {
                self.events.pop_first();
            }
            outcomes.push(Ok((seq, false)));
        }
        outcomes
    }

    fn remove(&mut self, what: &Removal) -> u64 {
        let before = self.events.len();
        match what {
            Removal::Seq(seq) => drop(self.events.remove(seq)),
            Removal::Before(seq) => self.events.retain(|at, _| at >= seq),
            Removal::Matching(filter) => {
                self.events
                    .retain(|_, event| !filter.matches(&event.subject));
            }
        }
        (before - self.events.len()) as u64
    }
}

/// Bytes of a record, as `FORMAT.md` says.
fn size(item: &Append) -> u64 {
    let subject = item.subject.as_str().len();
    let mut size = 4 + 1 + 1 + subject + item.body.to_bytes().unwrap().len();
    if item.id.is_some() {
        size += 16;
    }
    if !item.headers.is_empty() {
        size += 1 + 2 * item.headers.len() + item.headers.bytes();
    }
    size as u64
}

struct Run {
    random: Random,
    disk: SimDisk,
    stream: Option<Stream>,
    model: Model,
    now: i64,
    number: u64,
    seed: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let retention = [
            Retention::DiscardOld,
            Retention::RefuseWhenFull,
            Retention::WorkQueue,
        ][random.index(3)];
        let mut spec = spec(retention);
        spec.max_events = random.coin().then(|| 1 + random.below(200));
        spec.max_bytes = random.coin().then(|| 200 + random.below(30_000));
        spec.max_age = random
            .coin()
            .then(|| Duration::from_secs(4 * (1 + random.below(6)) + 2));
        let disk = SimDisk::new(seed);
        let stream = support::create(&disk, spec.clone(), seed, time(0)).unwrap();
        Self {
            random,
            disk,
            stream: Some(stream),
            model: Model {
                spec,
                events: BTreeMap::new(),
                tail: 1,
                ids: HashMap::new(),
                last_at: time(0),
            },
            now: 0,
            number: 0,
            seed,
        }
    }

    fn stream(&mut self) -> &mut Stream {
        self.stream.as_mut().unwrap()
    }

    fn step(&mut self) {
        // In steps that are no part of the window, so that nothing hangs on the last second.
        if self.random.below(4) == 0 {
            self.now += 4;
        }
        match self.random.below(10) {
            0 => self.remove(),
            1 => self.settle(),
            2 if self.random.below(3) == 0 => self.reopen(),
            3 => self.check_reading(),
            _ => self.append(),
        }
        let standing = self.stream().reader().standing();
        let model = &self.model;
        let expected = (
            model.events.len() as u64,
            model.bytes(),
            model.first(),
            model.tail,
        );
        let found = (
            standing.events,
            standing.bytes,
            standing.first,
            standing.tail,
        );
        assert_eq!(found, expected, "seed {}", self.seed);
    }

    fn append(&mut self) {
        let random = &mut self.random;
        let mut batch = Vec::new();
        for _ in 0..=random.index(12) {
            self.number += 1;
            let mut item = append(subject(random.next_u64()), body(self.number, random));
            if random.below(40) == 0 {
                item.subject = Subject::new("elsewhere").unwrap();
            }
            if random.coin() {
                let again = random.below(4) == 0 && self.number > 40;
                let number = if again {
                    self.number - random.below(40)
                } else {
                    self.number
                };
                item.id = Some(id(number));
            }
            item.key = random
                .coin()
                .then(|| format!("key-{}", random.below(3)).into());
            if random.below(4) == 0 {
                item.headers
                    .add("name", format!("value {}", random.below(9)))
                    .unwrap();
                item.headers.add("x", "").unwrap();
            }
            item.expect = match random.below(12) {
                0 => Expect::Absent,
                1 => Expect::Last(random.below(self.model.tail)),
                2 => self
                    .model
                    .last_of(&item.subject)
                    .map_or(Expect::Absent, Expect::Last),
                _ => Expect::Any,
            };
            batch.push(item);
        }
        let mode = if random.below(4) == 0 {
            AppendMode::Atomic
        } else {
            AppendMode::Each
        };
        let now = time(self.now);
        let expected = self.model.append(now, &batch, mode);
        let outcomes = self
            .stream()
            .stage(now, batch.into_iter().map(Ok), mode)
            .unwrap();
        let outcomes: Vec<_> = outcomes
            .iter()
            .map(|outcome| match outcome {
                Outcome::Stored { seq, duplicate } => Ok((*seq, *duplicate)),
                Outcome::Refused(error) | Outcome::Unknown(error) => Err(error.kind()),
            })
            .collect();
        assert_eq!(outcomes, expected, "seed {} {mode:?}", self.seed);
        self.stream().commit().unwrap();
    }

    fn remove(&mut self) {
        let what = match self.random.below(4) {
            0 => Removal::Matching(self.filter()),
            1 => Removal::Before(self.any_seq()),
            _ => Removal::Seq(self.any_seq()),
        };
        let expected = self.model.remove(&what);
        let now = time(self.now);
        assert_eq!(
            self.stream().stage_remove(now, &what).unwrap(),
            expected,
            "{what:?}"
        );
        self.stream().commit().unwrap();
    }

    fn settle(&mut self) {
        let seqs: Vec<Seq> = (0..self.random.below(20)).map(|_| self.any_seq()).collect();
        let mut expected = 0;
        for seq in &seqs {
            expected += self.model.remove(&Removal::Seq(*seq));
        }
        let now = time(self.now);
        assert_eq!(self.stream().stage_settled(now, &seqs).unwrap(), expected);
        self.stream().commit().unwrap();
    }

    fn reopen(&mut self) {
        let stream = self.stream.take().unwrap();
        match self.random.below(3) {
            0 => stream.close().unwrap(),
            1 => drop(stream),
            _ => {
                drop(stream);
                // Everything is committed, so that a crash costs nothing.
                self.disk.crash(self.random.next_u64());
            }
        }
        if self.random.below(4) == 0 {
            // Indexes are made again.
            for path in self.disk.files().into_keys() {
                if path.extension().is_some_and(|kind| kind == "idx") && self.random.coin() {
                    let segment = path.with_extension("seg");
                    if self.disk.files().contains_key(&segment) {
                        self.disk.flip(&path, self.random.below(3_000), 1);
                    }
                }
            }
        }
        let seed = self.random.next_u64();
        let (stream, report) =
            open(&self.disk, self.model.spec.clone(), seed, time(self.now)).unwrap();
        assert_eq!((report.cut_groups, report.cut_bytes), (0, 0));
        self.stream = Some(stream);
    }

    fn any_seq(&mut self) -> Seq {
        let first = self.model.first().saturating_sub(2);
        first + self.random.below(self.model.tail + 2 - first)
    }

    fn filter(&mut self) -> Filter {
        let texts = ["s.a.*", "s.*", "s.rare", "s.b.>", "nowhere", "s.>", "s.*.b"];
        let weighted = self.random.index(texts.len() * 2).min(texts.len() - 1);
        Filter::new(texts[weighted]).unwrap()
    }

    fn check_reading(&mut self) {
        let filters: Vec<Filter> = (0..=self.random.index(2)).map(|_| self.filter()).collect();
        let selection = Selection::new(&filters, &self.model.spec.subjects);
        let reader = self.stream().reader();
        let from = self.any_seq();
        let credit = Credit {
            items: 1 + self.random.index(60),
            bytes: 1 + self.random.index(5_000),
        };
        let (seed, model) = (self.seed, &self.model);
        let is_wanted = |subject: &Subject| filters.iter().any(|filter| filter.matches(subject));
        let matching: Vec<(Seq, &Event)> = model
            .events
            .iter()
            .filter(|(_, event)| is_wanted(&event.subject))
            .map(|(seq, event)| (*seq, event))
            .collect();
        // One page: a first part of what matches, within the credit, and the right place to go on.
        let mut page = Vec::new();
        let next = reader.read(from, &selection, credit, &mut page).unwrap();
        let mut expected = matching.iter().filter(|(seq, _)| *seq >= from);
        let mut bytes = 0;
        for event in &page {
            let (seq, is) = expected.next().unwrap();
            assert_eq!((event.seq, event.at), (*seq, is.at), "seed {seed}");
            assert_eq!(event.subject, is.subject);
            assert_eq!(event.headers, is.headers);
            assert_eq!(event.body.to_bytes().unwrap(), is.body);
            bytes += is.body.len();
        }
        assert!(
            page.len() <= credit.items
                && (page.len() == 1 || bytes <= credit.bytes || page.is_empty())
        );
        match expected.next() {
            Some((seq, _)) => assert!(
                next <= *seq && (!page.is_empty() || next > from.max(model.first())),
                "seed {seed}"
            ),
            None => assert!(next <= model.tail.max(from)),
        }
        let all = read_all(&reader, &selection).unwrap();
        assert!(
            all.iter()
                .map(|event| event.seq)
                .eq(matching.iter().map(|(seq, _)| *seq))
        );
        // Counts and positions.
        let from_on = matching.iter().filter(|(seq, _)| *seq >= from).count() as u64;
        assert_eq!(
            reader.count(&selection, from).unwrap(),
            from_on,
            "seed {seed}"
        );
        let start = |position| reader.start(position, &selection).unwrap();
        assert_eq!(start(Position::First).0, model.first());
        assert_eq!(start(Position::New).0, model.tail);
        let back = NonZeroU64::new(1 + self.random.below(20)).unwrap();
        let nth = matching
            .iter()
            .rev()
            .nth(usize::try_from(back.get()).unwrap() - 1);
        let expected = nth.map_or(model.first(), |(seq, _)| *seq);
        assert_eq!(start(Position::Last(back)).0, expected, "seed {seed}");
        let moment =
            time(i64::try_from(self.random.below(u64::try_from(self.now).unwrap() + 9)).unwrap());
        let at = model.events.iter().find(|(_, event)| event.at >= moment);
        let expected = at.map_or(model.tail, |(seq, _)| *seq);
        assert_eq!(
            start(Position::Time(moment)).0,
            expected,
            "seed {seed} {moment}"
        );
        let mut lasts = BTreeMap::new();
        let mut counts: BTreeMap<&Subject, u64> = BTreeMap::new();
        for (seq, event) in &matching {
            lasts.insert(&event.subject, *seq);
            *counts.entry(&event.subject).or_default() += 1;
        }
        let expected: BTreeSet<Seq> = lasts.values().copied().collect();
        assert!(
            start(Position::LastPerSubject).1.into_iter().eq(expected),
            "seed {seed}"
        );
        for number in 0..7 {
            let subject = subject(number);
            assert_eq!(reader.last_of(&subject).unwrap(), model.last_of(&subject));
        }
        if filters.len() == 1 {
            let found = reader.subjects(&filters[0], 3).unwrap();
            let found: Vec<_> = found
                .iter()
                .map(|count| (&count.subject, count.events))
                .collect();
            let expected: Vec<_> = counts.into_iter().take(3).collect();
            assert_eq!(found, expected, "seed {seed}");
        }
        let event = reader.event(from).unwrap();
        assert_eq!(event.is_some(), model.events.contains_key(&from));
        let first_at = model.events.values().next().map(|event| event.at);
        assert_eq!(reader.first_at().unwrap(), first_at);
    }
}

#[test]
fn a_stream_is_what_a_vector_says_it_is() {
    let mut rolled = 0;
    for seed in 0..2_000 {
        let mut run = Run::new(seed);
        for _ in 0..120 {
            run.step();
        }
        run.check_reading();
        rolled += u32::from(
            run.disk
                .files()
                .keys()
                .filter(|path| path.extension().is_some_and(|kind| kind == "idx"))
                .count()
                > 1,
        );
    }
    assert!(rolled > 500, "{rolled} runs had several sealed segments");
}

#[test]
fn an_atomic_batch_larger_than_a_segment_gets_one_of_its_own() {
    let disk = SimDisk::new(1);
    let spec = spec(Retention::DiscardOld);
    let mut stream = support::create(&disk, spec.clone(), 1, time(0)).unwrap();
    let batch = (0..50u8).map(|number| Ok(append(subject(0), vec![number; 1_000])));
    let outcomes = stream.stage(time(1), batch, AppendMode::Atomic).unwrap();
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Stored { .. }))
    );
    stream.commit().unwrap();
    assert!(50_000 > options(1).segment_bytes);
    disk.crash(7);
    let (stream, _) = open(&disk, spec, 2, time(2)).unwrap();
    assert_eq!(
        read_all(&stream.reader(), &Selection::All).unwrap().len(),
        50
    );
}
