//! Whether what the processes wrote down is what the contract promises: a pure function of their files.

mod causes;
mod ends;
mod order;
mod repeats;
mod take_over;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use crate::event;
use crate::plan::On;
use crate::record::{
    CLOSING, Closing, Consumer, DEAD, Dead, Done, EFFECTS, Effect, Epoch, FAULTS, How, Kind,
    Micros, PUBLISHED, Publishing, STORED, Stored, Told, What, Who, read,
};
use causes::Causes;
use take_over::TakeOvers;

/// Everything that a run left behind.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    pub(crate) seed: u64,
    pub(crate) on: On,
    pub(crate) effects: Vec<Effect>,
    pub(crate) published: Vec<Told>,
    pub(crate) faults: Vec<Done>,
    pub(crate) stored: Vec<Stored>,
    pub(crate) dead: Vec<Dead>,
    pub(crate) closing: Closing,
}

impl Evidence {
    /// Reads the folder of a run.
    ///
    /// # Errors
    /// When a file cannot be read, with its line.
    pub(crate) fn read(seed: u64, on: On, dir: &Path) -> Result<Self, String> {
        let mut closing: Vec<Closing> = read(&dir.join(CLOSING))?;
        Ok(Self {
            seed,
            on,
            effects: read(&dir.join(EFFECTS))?,
            published: read(&dir.join(PUBLISHED))?,
            faults: read(&dir.join(FAULTS))?,
            stored: read(&dir.join(STORED))?,
            dead: read(&dir.join(DEAD))?,
            closing: closing.pop().ok_or_else(|| {
                format!("{} has no {CLOSING}: the run did not end", dir.display())
            })?,
        })
    }
}

/// A run of a handler.
#[derive(Clone, Debug)]
struct Run {
    who: Who,
    consumer: Consumer,
    id: String,
    lane: String,
    n: u32,
    seq: u64,
    epoch: Option<Epoch>,
    attempt: u32,
    began: Micros,
    /// Which line of the file began it; lines are in the order in which things happened.
    line: usize,
    ended: Option<Ended>,
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    at: Micros,
    line: usize,
    how: How,
}

impl Run {
    fn is_ok(&self) -> bool {
        self.ended.is_some_and(|ended| ended.how == How::Ok)
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Violation {
    /// Which one.
    pub(crate) property: &'static str,
    pub(crate) text: String,
}

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) seed: u64,
    pub(crate) on: &'static str,
    pub(crate) seconds: f64,
    pub(crate) acknowledged: usize,
    pub(crate) stored: usize,
    /// Events that a handler worked for.
    pub(crate) handled: usize,
    pub(crate) runs: usize,
    pub(crate) faults: BTreeMap<Kind, usize>,
    /// Runs of events that had worked before, by what had happened.
    pub(crate) repeats: BTreeMap<String, usize>,
    /// Runs of a former owner beside those of the new one, and of two members at once.
    pub(crate) overlaps: usize,
    /// Dead letters, by consumer and reason.
    pub(crate) dead_letters: BTreeMap<String, usize>,
    pub(crate) take_overs: TakeOvers,
    pub(crate) violations: Vec<Violation>,
}

/// What a check found.
#[derive(Debug, Default)]
struct Found(Vec<Violation>);

impl Found {
    fn push(&mut self, property: &'static str, text: String) {
        self.0.push(Violation { property, text });
    }
}

/// Judges a run.
pub(crate) fn judge(evidence: &Evidence) -> Verdict {
    let mut found = Found::default();
    let runs = runs(evidence, &mut found);
    let causes = Causes::of(evidence);
    ends::check_publishing(evidence, &mut found);
    ends::check_ends(evidence, &runs, &mut found);
    ends::check_attempts(evidence, &runs, &mut found);
    check_processes(evidence, &causes, &mut found);
    let overlaps = order::check(evidence, &runs, &causes, &mut found)
        + repeats::check_overlaps(&runs, &causes, &mut found);
    let repeats = repeats::check(&runs, &causes, &mut found);
    for fault in &evidence.closing.faults {
        found.push("F1 all is well again", fault.clone());
    }
    let acknowledged = evidence
        .published
        .iter()
        .filter(|told| matches!(told.what, Publishing::Ack { .. }))
        .count();
    let handled: BTreeSet<&str> = runs
        .iter()
        .filter(|run| run.is_ok())
        .map(|run| run.id.as_str())
        .collect();
    let times = evidence.effects.iter().map(|effect| effect.at);
    let (first, last) = (times.clone().min(), times.max());
    let lasted = last.unwrap_or(0) - first.unwrap_or(0);
    Verdict {
        seed: evidence.seed,
        on: evidence.on.name(),
        seconds: (lasted / 100_000) as f64 / 10.0,
        acknowledged,
        stored: evidence.stored.len(),
        handled: handled.len(),
        runs: runs.len(),
        faults: counted(evidence.faults.iter().map(|done| done.kind)),
        repeats,
        overlaps,
        dead_letters: counted(
            evidence
                .dead
                .iter()
                .map(|dead| format!("{}: {}", dead.consumer, dead.reason)),
        ),
        take_overs: take_over::observed(evidence, &runs),
        violations: found.0,
    }
}

fn counted<T: Ord>(things: impl Iterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    for thing in things {
        *counts.entry(thing).or_default() += 1;
    }
    counts
}

/// The runs in the order in which they began.
fn runs(evidence: &Evidence, found: &mut Found) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut open: BTreeMap<(Who, u64), usize> = BTreeMap::new();
    for (line, effect) in evidence.effects.iter().enumerate() {
        let Effect { at, who, what } = effect;
        match what {
            What::Start(start) => {
                let Some((lane, n)) = event::parts(&start.id) else {
                    found.push("P1 an event is what it was", format!("{:?}", start.id));
                    continue;
                };
                if start.consumer != event::consumer_of(lane) {
                    let text = format!("{} ran in {}", start.id, start.consumer.name());
                    found.push("C1 a consumer gets its own events", text);
                }
                open.insert((*who, start.run), runs.len());
                runs.push(Run {
                    who: *who,
                    consumer: start.consumer,
                    id: start.id.clone(),
                    lane: lane.to_owned(),
                    n,
                    seq: start.seq,
                    epoch: start.epoch,
                    attempt: start.attempt,
                    began: *at,
                    line,
                    ended: None,
                });
            }
            What::End { run, how } => match open.remove(&(*who, *run)) {
                Some(index) => {
                    runs[index].ended = Some(Ended {
                        at: *at,
                        line,
                        how: *how,
                    });
                }
                None => found.push(
                    "the files of the run",
                    format!("line {} ends a run that never began", line + 1),
                ),
            },
            What::Ready { .. }
            | What::Stall { .. }
            | What::Gone { .. }
            | What::Refused { .. }
            | What::Left { .. } => {}
        }
    }
    runs
}

/// Processes end when they are told to, and well.
fn check_processes(evidence: &Evidence, causes: &Causes<'_>, found: &mut Found) {
    for Effect { at, who, what } in &evidence.effects {
        let name = format!("{} (life {})", who.client(), who.life);
        match what {
            What::Gone { consumer, why } => found.push(
                "C13 a member lives as long as its bus",
                format!(
                    "the member of {} in {name} ended by itself: {why}",
                    consumer.name()
                ),
            ),
            What::Refused { why } => found.push(
                "F1 a worker can join at any time",
                format!("{name} could not: {why}"),
            ),
            // While a server is away nothing can be given back.
            What::Left { why: Some(why) } if !causes.is_disturbed(*who, *at) => {
                found.push("C9 stopping", format!("{name} did not stop well: {why}"));
            }
            _ => {}
        }
    }
    for done in &evidence.faults {
        if let (Kind::Died, Some(who)) = (done.kind, done.who) {
            found.push(
                "F1 processes live until they are ended",
                format!(
                    "{} (life {}) ended and nobody had told it to; its log says why",
                    who.client(),
                    who.life
                ),
            );
        }
    }
}
