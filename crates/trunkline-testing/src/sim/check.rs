//! Whether what happened is what the contract promises.

mod order;
mod repeats;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use trunkline::dead_letter::{Record, Stands};

use super::hub::Line;
use super::journal::{Ended, Run};
use super::members::{Common, Sharing};
use super::scenario::Scenario;
use super::world::{Life, World};
use order::check_order;
use repeats::{check_repeats, check_twice_at_once};

pub use repeats::Repeats;

/// The most lines of a trace that a report shows.
const SHOWN: usize = 120;

/// What a scenario left behind.
pub(crate) struct Evidence<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) common: &'a Common,
    pub(crate) came_to_rest: bool,
    pub(crate) stored: BTreeMap<u64, (u32, String)>,
    /// How often the consumer was reset.
    pub(crate) generation: u64,
    pub(crate) dead: BTreeMap<u64, Vec<Dead>>,
    /// How dead letters stand, those that are dealt with among them.
    pub(crate) standings: BTreeMap<u64, Record>,
    /// Members on the consumer's list, before any was told to stop.
    pub(crate) heartbeats: usize,
    pub(crate) world: &'a World,
}

/// A dead letter.
pub(crate) struct Dead {
    pub(crate) reason: String,
    pub(crate) generation: u64,
}

/// A promise that was not kept.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which property of the contract.
    pub property: &'static str,
    /// The key that it is about, if it is about one.
    pub key: Option<String>,
    /// When, if that can be told.
    pub at: Option<Duration>,
    /// What was seen.
    pub text: String,
}

/// How a scenario ended.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The scenario.
    pub scenario: Scenario,
    /// Promises that were not kept.
    pub violations: Vec<Violation>,
    /// What was done more than once.
    pub repeats: Repeats,
    /// Handler runs in all.
    pub runs: usize,
    /// How long the world was there.
    pub world_time: Duration,
    /// A number that another run has too if and only if the same happened in it.
    pub fingerprint: u64,
    lines: Vec<Line>,
}

impl Verdict {
    pub(crate) fn lines(&self) -> &[Line] {
        &self.lines
    }
}

pub(crate) fn judge(evidence: &Evidence<'_>) -> Verdict {
    let runs = evidence.common.journal.runs();
    let mut found = Vec::new();
    check_publishing(evidence, &mut found);
    check_ends(evidence, &runs, &mut found);
    check_attempts(evidence, &runs, &mut found);
    check_concurrency(evidence, &runs, &mut found);
    check_changes(evidence, &runs, &mut found);
    if evidence.scenario.judged == Sharing::Ordered {
        check_order(evidence, &runs, &mut found);
        check_members(evidence, &mut found);
    }
    let repeats = check_repeats(evidence, &runs, &mut found);
    check_twice_at_once(evidence, &runs, &mut found);
    Verdict {
        scenario: evidence.scenario.clone(),
        violations: found,
        repeats,
        runs: runs.len(),
        world_time: evidence.world.now(),
        fingerprint: evidence.world.fingerprint(),
        lines: evidence.world.lines(),
    }
}

fn violation(property: &'static str, run: Option<&Run>, text: String) -> Violation {
    Violation {
        property,
        key: run.map(|run| run.key.clone()),
        at: run.map(|run| run.began),
        text,
    }
}

/// Acknowledged ⊆ stored, once each, and in the order in which each key was published.
fn check_publishing(evidence: &Evidence<'_>, found: &mut Vec<Violation>) {
    for (n, why) in evidence.common.journal.refused() {
        found.push(violation(
            "P4 published",
            None,
            format!("event {n} was refused: {why}"),
        ));
    }
    for (n, seq) in evidence.common.journal.acknowledged() {
        if evidence.stored.get(&seq).map(|(stored, _)| *stored) != Some(n) {
            let is = evidence.stored.get(&seq);
            found.push(violation(
                "P4 acknowledged is stored",
                None,
                format!("event {n} was acknowledged as {seq}, where there is {is:?}"),
            ));
        }
    }
    let mut last: BTreeMap<&str, u32> = BTreeMap::new();
    for (seq, (n, key)) in &evidence.stored {
        if let Some(before) = last.insert(key, *n)
            && before >= *n
        {
            let text = format!("sequence {seq} has event {n}, after event {before}");
            let key = Some(key.clone());
            found.push(Violation {
                key,
                ..violation("P3 stored in order, once", None, text)
            });
        }
    }
}

/// Every stored event is handled or dead in the end, as its script says.
fn check_ends(evidence: &Evidence<'_>, runs: &[Run], found: &mut Vec<Violation>) {
    let is_shared = evidence.scenario.judged == Sharing::Shared;
    let worked: BTreeSet<u64> = runs
        .iter()
        .filter(|run| run.generation() == evidence.generation)
        .filter(|run| matches!(run.ended, Some((_, Ended::Ok))))
        .map(|run| run.seq)
        .collect();
    if !evidence.came_to_rest {
        found.push(violation(
            "C1 everything is handled",
            None,
            format!(
                "the world did not come to rest within {:?} after it was well; {} events were not published",
                super::scenario::REST,
                evidence.common.unpublished.load(std::sync::atomic::Ordering::Acquire)
            ),
        ));
    }
    for (seq, (n, key)) in &evidence.stored {
        let script = evidence.common.script(*n);
        if evidence.scenario.judged_as_holding {
            let standing = evidence.standings.get(seq).map(|one| one.state.stands());
            let fault = match (script.dead(), standing, worked.contains(seq)) {
                (None, None, true)
                | (Some(_), Some(Stands::Replayed), true)
                | (Some(_), Some(Stands::Discarded), _) => continue,
                (None, None, false) => "was never handled",
                (None, Some(_), _) => "is dead although it should work",
                (Some(_), None, _) => "is not dead although it should be",
                (Some(_), Some(_), _) => "stands otherwise than it was handled",
            };
            found.push(Violation {
                key: Some(key.clone()),
                ..violation(
                    "C1, D3 each event ends as it should",
                    None,
                    format!("event {n} (sequence {seq}, {script:?}) {fault}: {standing:?}"),
                )
            });
            continue;
        }
        // What should work is never given up; what should not, once by each generation that came to it.
        let reasons: Vec<&str> = evidence
            .dead
            .get(seq)
            .into_iter()
            .flatten()
            .filter(|dead| script.dead().is_none() || dead.generation == evidence.generation)
            .map(|dead| dead.reason.as_str())
            .collect();
        let fault = match (script.dead(), reasons.as_slice(), worked.contains(seq)) {
            (None, [], true) => continue,
            (Some(reason), [is], false) if reason == *is => continue,
            // Where whoever is free gets an event, its first starts are told by a hint that may be lost.
            (Some("crash_loop"), [], true) if is_shared => continue,
            // Whose starts were divided among generations works in the last one.
            (Some("crash_loop"), [], true) if evidence.generation > 0 => continue,
            (None, [], false) => "was never handled",
            (None, _, _) => "is dead although it should work",
            (Some(_), [], _) => "is not dead although it should be",
            (Some(_), [_], true) => "was handled although it should be dead",
            (Some(_), [_], false) => "is dead for another reason",
            (Some(_), _, _) => "is dead more than once",
        };
        found.push(Violation {
            key: Some(key.clone()),
            ..violation(
                "C1, D1 each event ends as it should",
                None,
                format!(
                    "event {n} (sequence {seq}, {script:?}) {fault}; dead letters: {reasons:?}"
                ),
            )
        });
    }
    for seq in evidence.dead.keys().chain(&worked) {
        if !evidence.stored.contains_key(seq) {
            found.push(violation(
                "P4 handled is stored",
                None,
                format!("sequence {seq} was handled or is dead, and is not stored"),
            ));
        }
    }
}

/// No attempt is above the policy's, and members together make no more than one alone would.
fn check_attempts(evidence: &Evidence<'_>, runs: &[Run], found: &mut Vec<Violation>) {
    let most = evidence.scenario.attempts;
    for run in runs.iter().filter(|run| run.attempt > most) {
        let text = format!("event {} has attempt {} of {most}", run.n, run.attempt);
        found.push(violation("C4 attempts", Some(run), text));
    }
    if evidence.scenario.judged != Sharing::Ordered {
        return;
    }
    for ((_, n), runs) in by_event(runs) {
        // A replay has as many attempts again.
        if runs
            .iter()
            .any(|run| evidence.standings.contains_key(&run.seq))
            && evidence.scenario.judged_as_holding
        {
            continue;
        }
        let failed = runs
            .iter()
            .filter(|run| matches!(run.ended, Some((_, Ended::Failed))));
        // A failure that could not be noted before its owner changed counts for nobody.
        let epochs: BTreeSet<_> = runs.iter().map(|run| run.epoch).collect();
        let (failed, allowed) = (failed.count(), most as usize + epochs.len() - 1);
        if failed > allowed {
            let text = format!("event {n} failed {failed} times; its policy has {most} attempts");
            found.push(violation("C4 attempts", runs.last().copied(), text));
        }
        if evidence.scenario.faults.is_calm() && evidence.scenario.resets == 0 {
            let script = evidence.common.script(n);
            let (ran, expected) = (runs.len(), script.runs(most) as usize);
            if ran != expected {
                let text = format!("event {n} ({script:?}) ran {ran} times, not {expected}");
                found.push(violation("C2, C4 exact runs", runs.last().copied(), text));
            }
        }
    }
}

/// By generation and number: a reset begins anew with every event.
fn by_event(runs: &[Run]) -> BTreeMap<(u64, u32), Vec<&Run>> {
    let mut events: BTreeMap<_, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        let event = (run.generation(), run.n);
        events.entry(event).or_default().push(run);
    }
    events
}

/// When a run ended at the latest: a killed one with its process.
fn end_of(evidence: &Evidence<'_>, run: &Run) -> Duration {
    let killed = || {
        life_of(evidence, run)
            .and_then(|life| life.end)
            .map(|(at, _)| at)
    };
    run.ended
        .map(|(at, _)| at)
        .or_else(killed)
        .unwrap_or(evidence.world.now())
}

fn life_of<'a>(evidence: &Evidence<'a>, run: &Run) -> Option<&'a Life> {
    let lives = evidence.world.lives().iter();
    lives
        .rev()
        .find(|life| (life.host, life.life) == (run.host, run.life))
}

/// No member runs more at once than it was told.
fn check_concurrency(evidence: &Evidence<'_>, runs: &[Run], found: &mut Vec<Violation>) {
    let most = evidence.scenario.concurrency;
    /// When a run began, or ended, of each life of a host.
    type Steps<'a> = BTreeMap<(usize, u32), Vec<(Duration, bool, &'a Run)>>;
    let mut steps = Steps::new();
    for run in runs {
        let steps = steps.entry((run.host, run.life)).or_default();
        steps.push((run.began, true, run));
        steps.push((end_of(evidence, run), false, run));
    }
    for steps in steps.values_mut() {
        // At equal times the ends come first.
        steps.sort_by_key(|(at, begins, _)| (*at, *begins));
        let mut running = 0_i64;
        for (_, begins, run) in steps {
            running += if *begins { 1 } else { -1 };
            if running > most as i64 && end_of(evidence, run) > run.began {
                let text = format!("{running} handlers run at once, {most} are allowed");
                found.push(violation("C3 concurrency", Some(run), text));
                break;
            }
        }
    }
}

/// Nothing begins while everybody was told that the consumer is paused, nor by what it was before it was
/// reset.
fn check_changes(evidence: &Evidence<'_>, runs: &[Run], found: &mut Vec<Violation>) {
    let journal = &evidence.common.journal;
    for (from, until) in journal.pauses() {
        let rests = |run: &&Run| run.began > from && until.is_none_or(|until| run.began < until);
        if let Some(run) = runs.iter().find(rests) {
            let text = format!(
                "sequence {} began, and the consumer was paused from {from:?} to {until:?}",
                run.seq
            );
            found.push(violation("C13 nothing starts in a pause", Some(run), text));
        }
    }
    for (before, at) in (1..).zip(journal.resets()) {
        let is_old = |run: &&Run| run.began > at && run.generation() < before;
        if let Some(run) = runs.iter().find(is_old) {
            let text = format!(
                "sequence {} began under {:?}, and the consumer was reset {before} times by {at:?}",
                run.seq, run.epoch
            );
            found.push(violation("C13 a reset is one", Some(run), text));
        }
    }
}

/// Whoever died is taken off the list by those who live.
fn check_members(evidence: &Evidence<'_>, found: &mut Vec<Violation>) {
    let (listed, members) = (evidence.heartbeats, evidence.scenario.members);
    // A heartbeat that was on its way for long brings the dead back, for a while.
    let are_late = evidence.scenario.faults.late > 0.0;
    if evidence.came_to_rest && !are_late && listed > members {
        let text = format!("{listed} members are on the list, and {members} live");
        found.push(violation("C1 the dead are forgotten", None, text));
    }
}

impl fmt::Display for Verdict {
    /// What went wrong, what came before it, and how to see it again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, .. } = self;
        writeln!(f, "{scenario:?}")?;
        for violation in self.violations.iter().take(10) {
            let Violation {
                property,
                key,
                at,
                text,
            } = violation;
            let key = key.as_deref().unwrap_or("no key");
            writeln!(f, "VIOLATED {property} ({key}, at {at:?}): {text}")?;
        }
        let about = self.violations.iter().find(|one| one.key.is_some());
        if let Some(about) = about.or(self.violations.first()) {
            let whole = std::env::var_os("TRUNKLINE_TRACE").is_some();
            let lines: Vec<_> = self
                .lines
                .iter()
                .filter(|line| whole || concerns(line, about))
                .collect();
            let shown = if whole { lines.len() } else { SHOWN };
            for line in &lines[lines.len().saturating_sub(shown)..] {
                writeln!(f, "{line}")?;
            }
        }
        write!(
            f,
            "replay: TRUNKLINE_SEED={} cargo nextest run -p trunkline-testing --test simulation",
            scenario.seed
        )
    }
}

/// Whether a line of the trace helps to understand a violation.
fn concerns(line: &Line, about: &Violation) -> bool {
    /// What befalls a whole process, or everybody.
    const GENERAL: [&str; 10] = [
        "starts",
        "ends:",
        "stands",
        "goes on",
        "is told",
        "is away",
        "is back",
        "is connected",
        "loses",
        "everything",
    ];
    let text = line.text.as_str();
    let until = about.at.map(|at| at + Duration::from_secs(1));
    if until.is_some_and(|until| line.at > until) || text.contains("\"beat\"") {
        return false;
    }
    let Some(key) = about.key.as_deref() else {
        return !text.starts_with("sends");
    };
    let slot = trunkline::core::key::slot(key);
    // The records of the key's partition, and those of its slot.
    let mut records = vec![format!(".s.{slot:03}."), format!(".s.{slot}.")];
    let numbers = (0..=8).map(|power| 1_u16 << power);
    records.extend(numbers.map(|of| format!(".P{of}.{:03}", u16::from(slot) % of)));
    GENERAL.iter().any(|general| text.starts_with(general))
        || text.contains(key)
        || records.iter().any(|record| text.contains(record))
        || text.contains("gives up")
        || text.contains("its member")
}
