//! A journal on a simulated disk, driven at random, with everything that it should come to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smol_str::SmolStr;
use trunkline_core::engine::{
    Bucket, Commit, Committed, ConsumerRef, ConsumerSpec, Expectation, Limits, Op, Position, Rev,
    StateKey, StreamSpec,
};
use trunkline_core::keys::COMMIT_WINDOW;
use trunkline_core::{ErrorKind, Filter, Name, Result, Timestamp};

use crate::journal::state::State;
use crate::journal::values::ValueFiles;
use crate::journal::{Journal, JournalOptions, KnownTopology, Record, Report, SnapshotJob, Value};
use crate::sim::{Random, SimDisk};

pub(super) const OPTIONS: JournalOptions = JournalOptions {
    file_bytes: 5 << 10,
    group_bytes: 2 << 10,
    snapshot_bytes: 1 << 10,
    value_file_bytes: 4 << 10,
    inline_bytes: 64,
    state_bytes: 1 << 20,
    limits: Limits {
        max_message: 1 << 20,
        max_batch: 8,
        max_value: 900,
    },
};

/// A bucket as it stands: its revision, its keys with length and sum of their values, commits
/// that count.
type BucketDump = (
    Rev,
    Vec<(StateKey, (usize, u32), Rev, Timestamp, Option<Timestamp>)>,
    Vec<(SmolStr, Timestamp)>,
);

/// Everything that must survive.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dump {
    topology: KnownTopology,
    buckets: BTreeMap<Bucket, BucketDump>,
    stored: (u64, u64),
}

pub(super) struct World {
    pub(super) disk: SimDisk,
    pub(super) root: PathBuf,
    pub(super) journal: Option<Journal>,
    pub(super) now: Timestamp,
    pub(super) random: Random,
    job: Option<SnapshotJob>,
    /// Every record that was published, and where its group ended.
    pub(super) published: Vec<Record>,
    pub(super) boundaries: Vec<usize>,
    /// What is on its way and may be there after a failure or not.
    pub(super) in_flight: Vec<Record>,
    /// What was put with each revision.
    content: BTreeMap<(Bucket, StateKey, Rev), Bytes>,
    pub(super) counts: Counts,
    /// Whether what is written is published before it is synced.
    pub(super) is_relaxed: bool,
    /// How many groups are known to be synced then.
    pub(super) synced: usize,
    /// Snapshots that could not be read where older files could: only a disk that lies makes them.
    pub(super) damaged_snapshots: u64,
}

/// What happened, so that a test can say that it did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) commits: u64,
    pub(super) conflicts: u64,
    pub(super) duplicates: u64,
    pub(super) snapshots: u64,
    pub(super) snapshots_read: u64,
    pub(super) moves: u64,
    pub(super) expired: u64,
    pub(super) opens: u64,
    pub(super) cuts: u64,
    pub(super) full: u64,
    pub(super) failures: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Counts) {
        self.commits += other.commits;
        self.conflicts += other.conflicts;
        self.duplicates += other.duplicates;
        self.snapshots += other.snapshots;
        self.snapshots_read += other.snapshots_read;
        self.moves += other.moves;
        self.expired += other.expired;
        self.opens += other.opens;
        self.cuts += other.cuts;
        self.full += other.full;
        self.failures += other.failures;
    }
}

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn open(disk: &SimDisk, root: &Path, now: Timestamp) -> Result<(Journal, Report)> {
    Journal::open(Arc::new(disk.clone()), root, OPTIONS, now)
}

impl World {
    /// A world whose directory is not made yet.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(seed),
            root: PathBuf::from("/data"),
            journal: None,
            now: Timestamp::from_nanos(1_000_000_000_000),
            random: Random::new(seed ^ 0x7a11),
            job: None,
            published: Vec::new(),
            boundaries: vec![0],
            in_flight: Vec::new(),
            content: BTreeMap::new(),
            counts: Counts::default(),
            is_relaxed: false,
            synced: 0,
            damaged_snapshots: 0,
        }
    }

    pub(super) fn open(&mut self) -> Result<()> {
        let (journal, report) = open(&self.disk, &self.root, self.now)?;
        self.counts.opens += 1;
        self.counts.cuts += u64::from(report.cut_groups > 0);
        self.counts.snapshots_read += u64::from(report.snapshot.is_some());
        self.damaged_snapshots += u64::from(report.damaged_snapshot.is_some());
        self.journal = Some(journal);
        Ok(())
    }

    pub(super) fn journal(&mut self) -> &mut Journal {
        self.journal.as_mut().unwrap()
    }

    /// What the journal's state is.
    pub(super) fn actual(&self) -> Dump {
        let state = self.journal.as_ref().unwrap().state();
        self.dump(state, |_, _, _, value| {
            state.read(value).unwrap().expect("its file is there")
        })
    }

    /// What records come to.
    pub(super) fn expected(&self, records: &[Record]) -> Dump {
        let state = State::new(ValueFiles::default());
        for record in records {
            state.apply(record.clone()).unwrap();
        }
        self.dump(&state, |bucket, key, rev, _| {
            self.content[&(bucket.clone(), key.clone(), rev)].clone()
        })
    }

    fn dump(&self, state: &State, read: impl Fn(&Bucket, &StateKey, Rev, &Value) -> Bytes) -> Dump {
        let mut buckets = BTreeMap::new();
        for (bucket, shared) in state.buckets() {
            let shared = shared.read();
            let keys = shared.after(None).map(|(key, kept)| {
                let value = read(&bucket, key, kept.rev, &kept.value);
                (
                    key.clone(),
                    (value.len(), crc32c::crc32c(&value)),
                    kept.rev,
                    kept.at,
                    kept.ends,
                )
            });
            let keys = keys.collect();
            let oldest = self.now.minus(COMMIT_WINDOW);
            let mut ids: Vec<_> = shared.remembered(0).1.cloned().collect();
            ids.retain(|(_, at)| *at >= oldest);
            ids.sort();
            let ends = shared.after(None).filter_map(|(_, kept)| kept.ends).min();
            assert_eq!(shared.next_end(), ends);
            if shared.rev() > 0 || !ids.is_empty() {
                buckets.insert(bucket, (shared.rev(), keys, ids));
            }
        }
        let live = state.live();
        Dump {
            topology: state.topology(),
            buckets,
            stored: (
                live.values().map(|live| live.values).sum(),
                live.values().map(|live| live.bytes).sum(),
            ),
        }
    }

    fn key(&mut self) -> StateKey {
        StateKey::new(format!(
            "k{}.{}",
            self.random.below(3),
            self.random.below(5)
        ))
        .unwrap()
    }

    fn expectation(&mut self) -> Expectation {
        match self.random.below(30) {
            0 => Expectation::Absent,
            1 => Expectation::Rev(self.random.below(60)),
            _ => Expectation::Any,
        }
    }

    pub(super) fn commit(&mut self) -> Result<()> {
        let bucket = name(["one", "two"][self.random.index(2)]);
        let mut ops = BTreeMap::new();
        for _ in 0..self.random.below(4) {
            let (key, expect) = (self.key(), self.expectation());
            let len = match self.random.below(3) {
                0 => self.random.index(900),
                _ => self.random.index(60),
            };
            let byte = self.random.next_u64().to_le_bytes()[0];
            let ttl =
                (self.random.below(4) == 0).then(|| Duration::from_secs(self.random.below(60)));
            let op = match self.random.below(5) {
                0 => Op::Delete {
                    key: key.clone(),
                    expect,
                },
                _ => Op::Put {
                    key: key.clone(),
                    value: vec![byte; len].into(),
                    expect,
                    ttl,
                },
            };
            ops.insert(key, op);
        }
        let fence = self.random.coin();
        let commit = Commit {
            id: SmolStr::new(format!("c{}", self.random.below(200))),
            fences: if fence {
                vec![(self.key(), self.expectation())]
            } else {
                Vec::new()
            },
            ops: ops.into_values().collect(),
        };
        let now = self.now;
        match self.journal().commit(&bucket, commit.clone(), now)? {
            Committed::Done(revs) => {
                self.counts.commits += 1;
                for (op, rev) in commit.ops.into_iter().zip(revs) {
                    if let Op::Put { key, value, .. } = op {
                        self.content.insert((bucket.clone(), key, rev), value);
                    }
                }
            }
            Committed::Duplicate => self.counts.duplicates += 1,
            Committed::Conflict { .. } => self.counts.conflicts += 1,
        }
        Ok(())
    }

    fn topology(&mut self) -> Result<()> {
        let at = ConsumerRef {
            stream: name(["EVENTS", "COMMANDS"][self.random.index(2)]),
            consumer: name(["a", "b"][self.random.index(2)]),
        };
        let filters = vec![Filter::new("events.>").unwrap()];
        let spec = ConsumerSpec {
            at: at.clone(),
            filters: filters.clone(),
            start: Position::First,
            ack_wait: Duration::from_millis(1 + self.random.below(90_000)),
            max_in_flight: 1 + self.random.index(100),
        };
        let record = match self.random.below(12) {
            0 => Record::StreamDeleted(at.stream),
            1 => Record::ConsumerDeleted(at),
            2 | 3 => Record::Stream {
                spec: StreamSpec {
                    max_events: self.random.coin().then(|| self.random.next_u64()),
                    ..StreamSpec::new(at.stream, filters.clone())
                },
                stored: filters,
            },
            4 => Record::ConsumerUpdated(spec),
            5 => Record::Consumer {
                spec,
                next: 1 + self.random.below(20),
            },
            _ => Record::Settled {
                at,
                stretches: (0..self.random.below(4))
                    .map(|_| {
                        let from = 1 + self.random.below(300);
                        (from, from + self.random.below(9))
                    })
                    .collect(),
                lost: self.random.below(9),
            },
        };
        let now = self.now;
        self.journal().stage(record, now)
    }

    /// Does one thing.
    pub(super) fn step(&mut self) -> Result<()> {
        self.now = self.now.plus(Duration::from_secs(self.random.below(8)));
        let now = self.now;
        match self.random.below(20) {
            0..=8 => self.commit()?,
            9..=11 => self.topology()?,
            12 => self.counts.expired += self.journal().expire(now)? as u64,
            13 => {
                self.flush()?;
                self.journal().compact(now)?;
                let staged = self.journal().staged.len() as u64;
                self.counts.moves += staged;
            }
            14..=16 => self.snapshot_step()?,
            _ => self.flush()?,
        }
        if self.journal().is_full() {
            self.flush()?;
        }
        Ok(())
    }

    fn snapshot_step(&mut self) -> Result<()> {
        let now = self.now;
        let Some(mut job) = self.job.take() else {
            self.flush()?;
            if self.journal().snapshot_due() {
                self.job = Some(self.journal().begin_snapshot(now)?);
            }
            return Ok(());
        };
        for _ in 0..=self.random.below(4) {
            match job.step() {
                Ok(None) => {}
                Ok(Some(copied)) => {
                    self.counts.snapshots += 1;
                    return self.journal().end_snapshot(Ok(copied));
                }
                Err(error) => return self.journal().end_snapshot(Err(error)),
            }
        }
        self.job = Some(job);
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.in_flight = self.journal().staged.clone();
        let published = if self.is_relaxed {
            self.journal().write()?;
            self.journal().publish_written()?
        } else {
            self.journal().flush()?
        };
        assert_eq!(published.records, self.in_flight.len());
        self.settle();
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        self.journal().sync()?;
        self.synced = self.boundaries.len() - 1;
        Ok(())
    }

    fn settle(&mut self) {
        self.published.append(&mut self.in_flight);
        self.boundaries.push(self.published.len());
    }

    /// The journal is gone, with whatever was on its way.
    pub(super) fn lose(&mut self) {
        // What was staged after the last write is lost for certain.
        self.journal = None;
        self.job = None;
    }

    /// Opens the journal again: it must have everything that was published, and of what was on
    /// its way all or nothing.
    pub(super) fn recover(&mut self) {
        self.open().unwrap();
        assert_eq!(self.damaged_snapshots, 0);
        let actual = self.actual();
        if actual != self.expected(&self.published) {
            let mut with = self.published.clone();
            with.extend(self.in_flight.iter().cloned());
            assert_eq!(actual, self.expected(&with));
            self.settle();
        }
        self.in_flight.clear();
    }

    /// What a step may be refused with while the journal goes on.
    pub(super) fn is_refusal(kind: ErrorKind) -> bool {
        matches!(kind, ErrorKind::OverQuota | ErrorKind::OverLimit)
    }
}
