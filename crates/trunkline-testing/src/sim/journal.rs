//! What handlers did and publishers were told, kept outside of the engine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use trunkline::Seq;

use super::host::Port;
use super::world::HostId;

/// One run of a handler.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where.
    pub host: HostId,
    /// In which process of that host.
    pub life: u32,
    /// The event's place in its stream.
    pub seq: Seq,
    /// Which event.
    pub n: u32,
    /// Its key.
    pub key: String,
    /// Which attempt it was said to be.
    pub attempt: u32,
    /// Under which ownership, if its consumer has that: the generation and the revision.
    pub epoch: Option<(u64, u64)>,
    /// When it began.
    pub began: Duration,
    /// When and how it ended; none if its process was killed.
    pub ended: Option<(Duration, Ended)>,
}

impl Run {
    /// How often its consumer had been reset; 0 if it has no such thing.
    pub(crate) fn generation(&self) -> u64 {
        self.epoch.map_or(0, |(generation, _)| generation)
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The handler succeeded.
    Ok,
    /// It failed, or panicked.
    Failed,
    /// It was cancelled.
    Cancelled,
}

/// What handlers did and publishers were told.
#[derive(Default)]
pub struct Journal {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    runs: Vec<Run>,
    /// Events that were acknowledged to their publisher, and where they are stored.
    acknowledged: BTreeMap<u32, Seq>,
    /// Events that were refused for good, and why.
    refused: Vec<(u32, String)>,
    /// In which generation of the consumer the handler of an event succeeded last.
    worked: BTreeMap<u32, u64>,
    /// From when on the consumer was paused, and when it was to be resumed.
    pauses: Vec<(Duration, Option<Duration>)>,
    /// When somebody was told that it was reset.
    resets: Vec<Duration>,
    /// Sequences whose handler works from now on, whatever its script says.
    mended: BTreeSet<Seq>,
    /// Sequences that somebody wanted to discard, and when first.
    discards: BTreeMap<Seq, Duration>,
    starts: BTreeMap<u32, u32>,
}

impl Journal {
    /// Every run in the order of its beginning.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs = self.kept.lock().runs.clone();
        runs.sort_by_key(|run| run.began);
        runs
    }

    pub(crate) fn acknowledge(&self, n: u32, seq: Seq) {
        self.kept.lock().acknowledged.insert(n, seq);
    }

    pub(crate) fn refuse(&self, n: u32, why: String) {
        self.kept.lock().refused.push((n, why));
    }

    pub(crate) fn acknowledged(&self) -> BTreeMap<u32, Seq> {
        self.kept.lock().acknowledged.clone()
    }

    pub(crate) fn refused(&self) -> Vec<(u32, String)> {
        self.kept.lock().refused.clone()
    }

    /// Lets the handler of an event work from now on.
    pub(crate) fn mend(&self, seq: Seq) {
        self.kept.lock().mended.insert(seq);
    }

    pub(crate) fn is_mended(&self, seq: Seq) -> bool {
        self.kept.lock().mended.contains(&seq)
    }

    /// Notes that somebody is about to discard the dead letter of an event.
    pub(crate) fn discard(&self, seq: Seq, at: Duration) {
        self.kept.lock().discards.entry(seq).or_insert(at);
    }

    /// When somebody first wanted to discard which dead letters.
    pub(crate) fn discards(&self) -> BTreeMap<Seq, Duration> {
        self.kept.lock().discards.clone()
    }

    /// Acknowledged events whose handler has not succeeded yet in that generation of the consumer.
    pub(crate) fn open(&self, generation: u64) -> BTreeSet<u32> {
        let kept = self.kept.lock();
        let worked = |n: &u32| kept.worked.get(n).is_some_and(|last| *last >= generation);
        let events = kept.acknowledged.keys().copied();
        events.filter(|n| !worked(n)).collect()
    }

    /// Notes that somebody was told that the consumer is paused.
    pub(crate) fn pause(&self, at: Duration) {
        self.kept.lock().pauses.push((at, None));
    }

    /// Notes that somebody is about to resume it.
    pub(crate) fn resume(&self, at: Duration) {
        for (_, until) in &mut self.kept.lock().pauses {
            until.get_or_insert(at);
        }
    }

    /// From when until when it was paused.
    pub(crate) fn pauses(&self) -> Vec<(Duration, Option<Duration>)> {
        self.kept.lock().pauses.clone()
    }

    /// Notes that somebody was told that the consumer is reset.
    pub(crate) fn reset(&self, at: Duration) {
        self.kept.lock().resets.push(at);
    }

    /// When somebody was told so.
    pub(crate) fn resets(&self) -> Vec<Duration> {
        self.kept.lock().resets.clone()
    }

    /// Notes that a run begins; also how often the event had started before.
    pub(crate) fn begin(self: &Arc<Self>, port: &Arc<Port>, run: Run) -> (Running, u32) {
        let mut kept = self.kept.lock();
        let starts = kept.starts.entry(run.n).or_default();
        let before = *starts;
        *starts += 1;
        port.note(100 + u64::from(run.n), || {
            let Run {
                n,
                key,
                seq,
                attempt,
                epoch,
                ..
            } = &run;
            format!("begins event {n} of {key}, sequence {seq}, attempt {attempt}, epoch {epoch:?}")
        });
        let place = kept.runs.len();
        kept.runs.push(run);
        drop(kept);
        let running = Running {
            journal: Arc::clone(self),
            port: Arc::clone(port),
            place,
            is_over: false,
        };
        (running, before)
    }
}

/// A run under way. Dropped, it was cancelled, or killed with its process.
pub(crate) struct Running {
    journal: Arc<Journal>,
    port: Arc<Port>,
    place: usize,
    is_over: bool,
}

impl Running {
    pub(crate) fn end(mut self, how: Ended) {
        self.note(how);
    }

    fn note(&mut self, how: Ended) {
        self.is_over = true;
        if self.port.is_dead() {
            return;
        }
        let at = self.port.now();
        let mut kept = self.journal.kept.lock();
        let run = &mut kept.runs[self.place];
        run.ended = Some((at, how));
        let (n, generation) = (run.n, run.generation());
        self.port.note(how as u64 + 20, || {
            format!("ends event {n} of {}: {how:?}", run.key)
        });
        if how == Ended::Ok {
            let last = kept.worked.entry(n).or_default();
            *last = generation.max(*last);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            self.note(Ended::Cancelled);
        }
    }
}
