//! A publisher that remembers what it tried and what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_core::engine::{AppendMode, Outcome, Removal, Retention, Seq, StreamSpec};
use trunkline_core::{Error, ErrorKind, Filter, Subject};
use trunkline_log::Selection;
use trunkline_log::sim::{Random, SimDisk};
use trunkline_log::stream::Stream;

use super::{append, body, id, read_all, spec, subject, time};

/// What a publisher knows: what it tried, and what was acknowledged.
pub(crate) struct Known {
    pub(crate) spec: StreamSpec,
    pub(crate) tried: BTreeMap<Seq, (Subject, Vec<u8>)>,
    /// Everything below is acknowledged.
    pub(crate) acknowledged: Seq,
    pub(crate) removed: BTreeSet<Seq>,
    /// Staged to be removed, and perhaps so.
    pub(crate) leaving: BTreeSet<Seq>,
    /// Below this the oldest may have left at the limit.
    pub(crate) perhaps: Seq,
    /// Whether some removal was refused, so that only the stream knows what it removed.
    pub(crate) in_doubt: bool,
    pub(crate) number: u64,
    pub(crate) now: i64,
    pub(crate) rolls: u64,
}

impl Known {
    pub(crate) fn new(random: &mut Random) -> Self {
        let retention = [Retention::DiscardOld, Retention::WorkQueue][random.index(2)];
        let mut spec = spec(retention);
        if retention == Retention::DiscardOld {
            spec.max_events = Some(40 + random.below(200));
        }
        Self {
            spec,
            tried: BTreeMap::new(),
            acknowledged: 1,
            removed: BTreeSet::new(),
            leaving: BTreeSet::new(),
            perhaps: 1,
            in_doubt: false,
            number: 0,
            now: 0,
            rolls: 0,
        }
    }

    pub(crate) fn live(&self) -> Vec<Seq> {
        let gone = |seq: &Seq| self.removed.contains(seq) || self.leaving.contains(seq);
        self.tried
            .keys()
            .copied()
            .filter(|seq| !gone(seq))
            .collect()
    }

    /// One commit of several things. An error means that the outcome of all of it is unknown.
    pub(crate) fn commit(&mut self, stream: &mut Stream, random: &mut Random) -> Result<(), Error> {
        for _ in 0..=random.index(3) {
            self.now += i64::from(random.coin());
            match random.below(5) {
                0 => self.remove(stream, random)?,
                _ => self.append(stream, random)?,
            }
        }
        stream.commit()?;
        self.acknowledged = stream.tail();
        let (reader, in_doubt) = (stream.reader(), std::mem::take(&mut self.in_doubt));
        for seq in std::mem::take(&mut self.leaving) {
            if !in_doubt || reader.event(seq)?.is_none() {
                self.removed.insert(seq);
            }
        }
        self.removed.extend(1..stream.reader().standing().first);
        Ok(())
    }

    pub(crate) fn append(&mut self, stream: &mut Stream, random: &mut Random) -> Result<(), Error> {
        let mut batch = Vec::new();
        for _ in 0..=random.index(10) {
            self.number += 1;
            let mut item = append(subject(random.next_u64()), body(self.number, random));
            item.id = random.coin().then(|| id(self.number));
            batch.push(item);
        }
        let mode = if random.coin() {
            AppendMode::Atomic
        } else {
            AppendMode::Each
        };
        let bodies: Vec<_> = batch
            .iter()
            .map(|item| (item.subject.clone(), item.body.to_bytes().unwrap().to_vec()))
            .collect();
        // Before the answer: what is not answered may be stored too.
        let mut next = stream.tail();
        for tried in &bodies {
            self.tried.insert(next, tried.clone());
            next += 1;
        }
        let outcomes = stream.stage(time(self.now), batch.into_iter().map(Ok), mode);
        // Removed ones do not count, so that some of these may stay.
        let max = self.spec.max_events.unwrap_or(u64::MAX);
        self.perhaps = self.perhaps.max(next.saturating_sub(max));
        let outcomes = outcomes?;
        let mut stored = outcomes.iter().zip(&bodies).filter(|(outcome, _)| {
            matches!(
                outcome,
                Outcome::Stored {
                    duplicate: false,
                    ..
                }
            )
        });
        // A refusal in the middle moves the later ones.
        self.tried
            .retain(|seq, _| *seq < next - bodies.len() as u64);
        for (outcome, tried) in stored.by_ref() {
            if let Outcome::Stored { seq, .. } = outcome {
                self.tried.insert(*seq, tried.clone());
            }
        }
        for outcome in outcomes {
            if let Outcome::Refused(error) = outcome {
                // Without power nothing can be read either.
                let kinds = [ErrorKind::OverQuota, ErrorKind::StorageFailed];
                assert!(kinds.contains(&error.kind()), "{error:?}");
            }
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, stream: &mut Stream, random: &mut Random) -> Result<(), Error> {
        let live = self.live();
        let Some(seq) = live.get(random.index(live.len())).copied() else {
            return Ok(());
        };
        let now = time(self.now);
        let done = match random.below(8) {
            0 => {
                self.leaving.extend(live.iter().filter(|at| **at < seq));
                stream.stage_remove(now, &Removal::Before(seq))
            }
            1 => {
                let rare = Filter::new("s.rare").unwrap();
                let is_rare = |seq: &&Seq| rare.matches(&self.tried[*seq].0);
                self.leaving.extend(live.iter().filter(is_rare));
                stream.stage_remove(now, &Removal::Matching(rare))
            }
            _ => {
                let some: Vec<Seq> = live.iter().copied().take(1 + random.index(12)).collect();
                let some = if random.coin() { some } else { vec![seq] };
                self.leaving.extend(&some);
                stream.stage_settled(now, &some)
            }
        };
        match done {
            Err(error) if error.kind() == ErrorKind::OverQuota => {
                self.in_doubt = true;
                Ok(())
            }
            done => done.map(drop),
        }
    }

    /// Compares what is there with what may be, and takes it for the truth from now on.
    pub(crate) fn check(&mut self, stream: &Stream, context: &str) -> Result<(), Error> {
        let found = match read_all(&stream.reader(), &Selection::All) {
            // The power went while opening, at something that could be done without.
            Err(error) if error.kind() == ErrorKind::StorageFailed => return Err(error),
            found => found.unwrap_or_else(|error| panic!("{context}: {error:?}")),
        };
        let tail = stream.tail();
        assert!(
            tail >= self.acknowledged,
            "{context}: {tail} is before {}",
            self.acknowledged
        );
        let mut there = BTreeSet::new();
        for event in found {
            let (subject, body) = self
                .tried
                .get(&event.seq)
                .unwrap_or_else(|| panic!("{context}: {} was never tried", event.seq));
            assert_eq!(
                (&event.subject, &event.body.to_bytes().unwrap()[..]),
                (subject, &body[..]),
                "{context}: {}",
                event.seq
            );
            assert!(
                !self.removed.contains(&event.seq),
                "{context}: {} came back",
                event.seq
            );
            there.insert(event.seq);
        }
        for seq in 1..tail {
            let may_miss =
                seq < self.perhaps || self.removed.contains(&seq) || self.leaving.contains(&seq);
            assert!(
                there.contains(&seq) || may_miss,
                "{context}: {seq} of {tail} is lost"
            );
        }
        let events = stream.reader().standing().events;
        assert_eq!(events, there.len() as u64, "{context}: the count is wrong");
        self.tried.retain(|seq, _| *seq < tail);
        self.acknowledged = tail;
        self.leaving.clear();
        self.removed = (1..tail).filter(|seq| !there.contains(seq)).collect();
        Ok(())
    }
}

/// A disk with a stream, some of its life behind it.
pub(crate) fn begin(seed: u64) -> (SimDisk, Known, Random) {
    let mut random = Random::new(seed);
    let disk = SimDisk::new(seed);
    let known = Known::new(&mut random);
    let made = super::create(&disk, known.spec.clone(), random.next_u64(), time(0));
    drop(made.unwrap());
    (disk, known, random)
}
