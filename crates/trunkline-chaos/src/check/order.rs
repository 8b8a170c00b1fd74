//! Events of a key one after another, whatever dies.
//!
//! A store that fences is what counts: it keeps the highest epoch of a key that it has seen, and what comes
//! with a lower one is nothing to it. That a former owner does come is allowed where something had happened
//! to it, and counted.

use std::collections::{BTreeMap, BTreeSet};

use super::causes::Causes;
use super::{Ended, Evidence, Found, Run};
use crate::record::{Consumer, Epoch, How, What, Who};
use crate::script::Script;

/// One key's events so far.
#[derive(Default)]
struct Lane<'a> {
    /// The numbers that are stored and not settled yet.
    open_numbers: BTreeSet<u32>,
    highest: Option<Epoch>,
    running: Vec<&'a Run>,
    /// Where each event was done last.
    done: BTreeMap<u32, usize>,
}

enum Moment<'a> {
    Begins(&'a Run),
    Ends(&'a Run, Ended),
}

/// Checks the ordered consumer; says how many runs overlapped and were allowed to.
pub(super) fn check(
    evidence: &Evidence,
    runs: &[Run],
    causes: &Causes<'_>,
    found: &mut Found,
) -> usize {
    let mut lanes: BTreeMap<&str, Lane<'_>> = BTreeMap::new();
    let given_up: BTreeSet<u64> = evidence
        .dead
        .iter()
        .filter(|letter| letter.reason == "crash_loop")
        .map(|letter| letter.seq)
        .collect();
    for stored in &evidence.stored {
        // One that was given up without an outcome was so at a time that nobody wrote down.
        if let Some((lane, n)) = crate::event::parts(&stored.id)
            && !given_up.contains(&stored.seq)
        {
            lanes.entry(lane).or_default().open_numbers.insert(n);
        }
    }
    let mut moments: Vec<(usize, Moment<'_>)> = Vec::new();
    for run in runs.iter().filter(|run| run.consumer == Consumer::Ordered) {
        moments.push((run.line, Moment::Begins(run)));
        if let Some(ended) = run.ended {
            moments.push((ended.line, Moment::Ends(run, ended)));
        }
    }
    moments.sort_by_key(|(line, _)| *line);
    let gone = gone(evidence);
    let mut checking = Checking {
        seed: evidence.seed,
        causes,
        gone,
        found,
        overlaps: 0,
    };
    for (_, moment) in moments {
        match moment {
            Moment::Begins(run) => {
                checking.begins(lanes.entry(&run.lane).or_default(), run);
            }
            Moment::Ends(run, ended) => {
                checking.ends(lanes.entry(&run.lane).or_default(), run, ended);
            }
        }
    }
    for (name, lane) in &lanes {
        let mut before: Option<(u32, usize)> = None;
        for (n, line) in &lane.done {
            if let Some((earlier, earlier_line)) = before
                && earlier_line > *line
            {
                checking.found.push(
                    "C10 key order",
                    format!(
                        "{name}: {n} was done for the last time in line {}, and {earlier} before it in line {}",
                        line + 1,
                        earlier_line + 1
                    ),
                );
            }
            before = Some((*n, *line));
        }
    }
    checking.overlaps
}

/// When each process wrote its last line because it ended by itself.
fn gone(evidence: &Evidence) -> BTreeMap<Who, u64> {
    let mut gone = BTreeMap::new();
    for effect in &evidence.effects {
        if let What::Gone { .. } | What::Left { .. } = effect.what {
            gone.insert(effect.who, effect.at);
        }
    }
    gone
}

struct Checking<'a, 'b> {
    seed: u64,
    causes: &'a Causes<'a>,
    gone: BTreeMap<Who, u64>,
    found: &'b mut Found,
    overlaps: usize,
}

impl Checking<'_, '_> {
    fn is_over(&self, run: &Run, by: u64) -> bool {
        let killed = self.causes.killed(run.who);
        let gone = self.gone.get(&run.who).copied();
        killed.into_iter().chain(gone).any(|at| at <= by)
    }

    fn begins<'a>(&mut self, lane: &mut Lane<'a>, run: &'a Run) {
        let Some(epoch) = run.epoch else {
            let text = format!("{} ran under no epoch", run.id);
            self.found.push("C10 ownership", text);
            return;
        };
        if lane.highest.is_some_and(|highest| highest > epoch) {
            self.overlaps += 1;
            // Every member looks at its lease before it begins anything; only one that did not run in between
            // may be late.
            if !self.causes.was_asleep(run.who, run.began) {
                self.found.push(
                    "C10 a former owner begins nothing",
                    format!(
                        "{} began in line {} in worker {} (life {}) under {epoch:?}, after its key was run under {:?}",
                        run.id,
                        run.line + 1,
                        run.who.slot,
                        run.who.life,
                        lane.highest
                    ),
                );
            }
            return;
        }
        lane.highest = Some(epoch);
        let mut running = std::mem::take(&mut lane.running);
        running.retain(|other| !self.is_over(other, run.began));
        for other in &running {
            self.overlap(run, other);
        }
        // Those of former owners are fenced from now on, and were counted.
        running.retain(|other| other.epoch == run.epoch);
        running.push(run);
        lane.running = running;
        if let Some(first) = lane.open_numbers.first()
            && *first < run.n
        {
            self.found.push(
                "C10 no overtaking",
                format!(
                    "{} began in line {} before number {first} was done or given up",
                    run.id,
                    run.line + 1
                ),
            );
            // Said once.
            lane.open_numbers.retain(|n| *n >= run.n);
        }
    }

    fn overlap(&mut self, run: &Run, other: &Run) {
        let what = format!(
            "{} of worker {} (life {}) began in line {} while {} of worker {} (life {}) was running",
            run.id,
            run.who.slot,
            run.who.life,
            run.line + 1,
            other.id,
            other.who.slot,
            other.who.life
        );
        if run.epoch == other.epoch {
            let property = match run.who == other.who {
                true => "C10 one of a key at a time",
                false => "C10 an epoch has one owner",
            };
            self.found.push(property, what);
            return;
        }
        self.overlaps += 1;
        let cause = self
            .causes
            .between(other.who, Consumer::Ordered, other.began, run.began);
        // What happened to it may be longer ago than it runs.
        let cause = cause.or_else(|| {
            self.causes
                .between(other.who, Consumer::Ordered, run.began, run.began)
        });
        if cause.is_none() {
            self.found.push("C10 one owner at a time", what);
        }
    }

    fn ends(&mut self, lane: &mut Lane<'_>, run: &Run, ended: Ended) {
        lane.running.retain(|other| other.line != run.line);
        if run.epoch < lane.highest {
            return;
        }
        let script = Script::of(self.seed, &run.lane, run.n);
        match ended.how {
            How::Ok => {
                lane.open_numbers.remove(&run.n);
                lane.done.insert(run.n, ended.line);
            }
            How::Failed | How::Permanent if script.gives_up_at(run.attempt) => {
                lane.open_numbers.remove(&run.n);
            }
            How::Failed | How::Permanent | How::Cancelled => {}
        }
    }
}
