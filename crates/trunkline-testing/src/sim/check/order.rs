//! Whether each key was handled in order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::journal::{Ended, Run};
use super::super::script::Script;
use super::{Evidence, Violation, end_of, violation};

/// Each key in order, counting for each event the runs of its newest owner.
pub(super) fn check_order(evidence: &Evidence<'_>, runs: &[Run], found: &mut Vec<Violation>) {
    let mut keys: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        keys.entry(&run.key).or_default().push(run);
    }
    for runs in keys.values() {
        check_overlap(evidence, runs, found);
        check_superseded(runs, found);
        let mut generations: BTreeMap<u64, Vec<&Run>> = BTreeMap::new();
        for run in runs {
            generations.entry(run.generation()).or_default().push(run);
        }
        for runs in generations.values() {
            check_newest(runs, found);
            check_overtaking(evidence, runs, found);
        }
    }
}

/// What a store would have that fences: of each event, what its newest owner did.
fn check_newest(runs: &[&Run], found: &mut Vec<Violation>) {
    let mut newest: BTreeMap<u64, (&Run, Duration)> = BTreeMap::new();
    for run in runs {
        let Some((at, Ended::Ok)) = run.ended else {
            continue;
        };
        let known = newest.entry(run.seq).or_insert((run, at));
        if run.epoch >= known.0.epoch {
            *known = (run, at);
        }
    }
    let mut last: Option<(&Run, Duration)> = None;
    for (run, at) in newest.into_values() {
        if let Some((before, before_at)) = last
            && before_at > at
        {
            let text = format!(
                "sequence {} was done at {at:?} under {:?}, and {} before it only at {before_at:?} under {:?}",
                run.seq, run.epoch, before.seq, before.epoch
            );
            found.push(violation("C10 key order", Some(run), text));
        }
        last = Some((run, at));
    }
}

/// One at a time under one owner.
fn check_overlap(evidence: &Evidence<'_>, runs: &[&Run], found: &mut Vec<Violation>) {
    for (index, run) in runs.iter().enumerate() {
        let overlaps = |other: &&&Run| {
            other.epoch == run.epoch
                && (other.host, other.life) == (run.host, run.life)
                && end_of(evidence, other) > run.began
        };
        if let Some(other) = runs[..index].iter().find(overlaps) {
            let text = format!(
                "sequence {} began while {} was still running under {:?}",
                run.seq, other.seq, run.epoch
            );
            found.push(violation("C10 one of a key at a time", Some(run), text));
        }
    }
}

/// Nothing begins in the hands of one who was the owner, once its successor has begun. What it was running
/// then may go on: nobody can stop that from outside.
fn check_superseded(runs: &[&Run], found: &mut Vec<Violation>) {
    for run in runs {
        let succeeds = |other: &&&Run| other.epoch > run.epoch && other.began < run.began;
        if let Some(other) = runs.iter().find(succeeds) {
            let text = format!(
                "sequence {} began under {:?}, and {} had begun under {:?} at {:?}",
                run.seq, run.epoch, other.seq, other.epoch, other.began
            );
            found.push(violation(
                "C10 no start under an old epoch",
                Some(run),
                text,
            ));
            return;
        }
    }
}

/// Nothing begins before what is in front of it is done or given up.
fn check_overtaking(evidence: &Evidence<'_>, runs: &[&Run], found: &mut Vec<Violation>) {
    let scenario = evidence.scenario;
    let discards = evidence.common.journal.discards();
    let holds = scenario.judged_as_holding;
    let settled = |seq: u64, by: Duration| {
        let Some((n, _)) = evidence.stored.get(&seq) else {
            return true;
        };
        let script = evidence.common.script(*n);
        let before = runs.iter().filter(|run| run.seq == seq && run.began <= by);
        let (mut failures, mut starts) = (0, 0);
        for run in before {
            starts += 1;
            match run.ended {
                Some((at, Ended::Ok)) if at <= by => return true,
                Some((at, Ended::Failed)) if at <= by => failures = failures.max(run.attempt),
                _ => {}
            }
        }
        match script {
            // What was given up is in front until its dead letter is dealt with.
            _ if holds => discards.get(&seq).is_some_and(|at| *at <= by),
            Script::Permanent => failures > 0,
            Script::NeverWorks => failures >= scenario.attempts,
            // Starts that were written down count, also those that others kept from beginning.
            Script::Kills(_) => script.dead().is_some() && starts > 0,
            _ => false,
        }
    };
    let seqs: BTreeSet<u64> = runs.iter().map(|run| run.seq).collect();
    for run in runs {
        for seq in seqs.range(..run.seq) {
            if !settled(*seq, run.began) {
                let text = format!(
                    "sequence {} began (attempt {}, epoch {:?}) before {seq} was done or given up",
                    run.seq, run.attempt, run.epoch
                );
                let property = match holds && evidence.standings.contains_key(seq) {
                    true => "D4 held keys",
                    false => "C10 no overtaking",
                };
                found.push(violation(property, Some(run), text));
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs of one key, each as sequence, epoch and when it succeeded.
    fn found(runs: &[(u64, u64, u64)]) -> usize {
        let run = |(seq, epoch, at): &(u64, u64, u64)| Run {
            host: 0,
            life: 1,
            seq: *seq,
            n: 0,
            key: "key".to_owned(),
            attempt: 1,
            epoch: Some((0, *epoch)),
            began: Duration::from_secs(*at),
            ended: Some((Duration::from_secs(*at), Ended::Ok)),
        };
        let runs: Vec<_> = runs.iter().map(run).collect();
        let mut found = Vec::new();
        check_newest(&runs.iter().collect::<Vec<_>>(), &mut found);
        found.len()
    }

    #[test]
    fn c10_counts_for_each_event_what_its_newest_owner_did() {
        assert_eq!(found(&[(1, 5, 1), (2, 5, 2), (3, 5, 3)]), 0);
        // What was done and not committed is done again, in order.
        assert_eq!(found(&[(1, 5, 1), (2, 5, 2), (1, 9, 4), (2, 9, 5)]), 0);
        // One that was taken for dead is late, and its store has fenced it.
        assert_eq!(found(&[(1, 9, 4), (2, 9, 5), (1, 5, 6)]), 0);
        assert_eq!(found(&[(2, 5, 1), (1, 5, 2)]), 1);
        assert_eq!(found(&[(1, 5, 1), (3, 9, 4), (2, 9, 5)]), 1);
    }
}
