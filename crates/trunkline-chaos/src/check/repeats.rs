//! What was done again although it had worked, and two members at one event.

use std::collections::BTreeMap;

use super::causes::{Cause, Causes};
use super::{Found, Run};
use crate::record::Consumer;

fn by_event(runs: &[Run]) -> BTreeMap<&str, Vec<&Run>> {
    let mut events: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        events.entry(&run.id).or_default().push(run);
    }
    events
}

/// Counts repeats by their causes; one without a cause is a violation.
pub(super) fn check(
    runs: &[Run],
    causes: &Causes<'_>,
    found: &mut Found,
) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (id, runs) in by_event(runs) {
        let mut highest = None;
        for (index, run) in runs.iter().enumerate() {
            let before = runs[..index]
                .iter()
                .filter(|earlier| earlier.is_ok())
                .filter(|earlier| earlier.ended.is_some_and(|ended| ended.line < run.line))
                .max_by_key(|earlier| earlier.ended.map(|ended| ended.line));
            let is_fenced = run.epoch < highest;
            highest = highest.max(run.epoch);
            let Some((earlier, ended)) = before.and_then(|run| Some((*run, run.ended?))) else {
                continue;
            };
            let cause = causes.between(earlier.who, run.consumer, ended.at, run.began);
            // One that was stopped may do what it held once it goes on, if another has done it meanwhile.
            let cause = cause.or_else(|| {
                let may = is_fenced || run.consumer == Consumer::Shared;
                may.then(|| causes.between(run.who, run.consumer, ended.at, run.began))
                    .flatten()
            });
            let name = cause.map_or("none", Cause::name);
            *counts
                .entry(format!("{}: {name}", run.consumer.name()))
                .or_default() += 1;
            if cause.is_none() {
                found.push(
                    "C2 progress survives",
                    format!(
                        "{id} began again in worker {} (life {}, line {}), {} ms after worker {} (life {}, line {}) \
                         had done it, and nothing had happened that explains it",
                        run.who.slot,
                        run.who.life,
                        run.line + 1,
                        run.began.saturating_sub(ended.at) / 1_000,
                        earlier.who.slot,
                        earlier.who.life,
                        ended.line + 1
                    ),
                );
            }
        }
    }
    counts
}

/// In a shared consumer an event is with one member at a time, unless something happened to the first.
pub(super) fn check_overlaps(runs: &[Run], causes: &Causes<'_>, found: &mut Found) -> usize {
    let mut overlaps = 0;
    for (id, runs) in by_event(runs) {
        for (index, run) in runs.iter().enumerate() {
            if run.consumer != Consumer::Shared {
                continue;
            }
            let still = |other: &&&Run| {
                let killed = causes.killed(other.who).is_some_and(|at| at <= run.began);
                !killed && other.ended.is_none_or(|ended| ended.line > run.line)
            };
            let Some(other) = runs[..index].iter().find(still) else {
                continue;
            };
            overlaps += 1;
            let cause = causes
                .between(other.who, Consumer::Shared, other.began, run.began)
                .or_else(|| causes.between(other.who, Consumer::Shared, run.began, run.began));
            if cause.is_none() {
                found.push(
                    "C1 each event to one member",
                    format!(
                        "{id} began in worker {} (life {}, line {}) while it was running in worker {} (life {})",
                        run.who.slot,
                        run.who.life,
                        run.line + 1,
                        other.who.slot,
                        other.who.life
                    ),
                );
            }
        }
    }
    overlaps
}
