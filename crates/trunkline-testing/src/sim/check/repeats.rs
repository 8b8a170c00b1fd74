//! What was done again although it had worked, and who is to blame; and what was done twice at once.

use std::time::Duration;

use super::super::faults::Faults;
use super::super::journal::{Ended, Run};
use super::super::members::Sharing;
use super::super::world::{End, Life};
use super::{Evidence, Violation, by_event, end_of, life_of, violation};

/// Runs of events whose handler had succeeded before, by what happened to the process of that run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repeats {
    /// It was killed.
    pub after_kill: usize,
    /// It stood still for a while.
    pub after_freeze: usize,
    /// It was stopped cleanly.
    pub after_stop: usize,
    /// None of these: something was lost or late.
    pub otherwise: usize,
}

/// The life to blame for a repeat: that of the run which worked. Of a shared consumer it may be any that was
/// killed before: it had handed the event over, unseen perhaps, and had not said so, and so the engine gave
/// it to somebody else too.
fn blamed<'a>(evidence: &Evidence<'a>, worked: &Run, again: &Run) -> Option<&'a Life> {
    let was_killed =
        |life: &&Life| matches!(life.end, Some((end, End::Killed)) if end <= again.began);
    let own = life_of(evidence, worked);
    if evidence.scenario.judged == Sharing::Ordered || own.as_ref().is_some_and(was_killed) {
        return own;
    }
    let mut lives = evidence.world.lives().iter();
    lives.find(was_killed).or(own)
}

/// What was done again although it had worked, and why.
pub(super) fn check_repeats(
    evidence: &Evidence<'_>,
    runs: &[Run],
    found: &mut Vec<Violation>,
) -> Repeats {
    let mut repeats = Repeats::default();
    let faults = &evidence.scenario.faults;
    for runs in by_event(runs).values() {
        let mut worked: Option<(&Run, Duration)> = None;
        for run in runs {
            if let Some((first, at)) = worked
                && run.began >= at
            {
                let life = blamed(evidence, first, run);
                let froze = life.is_some_and(|life| life.frozen.iter().any(|(_, to)| *to > at));
                let cause = match life.and_then(|life| life.end) {
                    Some((end, End::Killed)) if end <= run.began => &mut repeats.after_kill,
                    _ if froze => &mut repeats.after_freeze,
                    Some((end, End::Stopped)) if end <= run.began => &mut repeats.after_stop,
                    _ => &mut repeats.otherwise,
                };
                *cause += 1;
                let kills_only = faults.kills > 0.0
                    && Faults {
                        kills: 0.0,
                        ..faults.clone()
                    }
                    .is_calm();
                let killed = life
                    .and_then(|life| life.end)
                    .is_some_and(|(end, how)| how == End::Killed && end <= run.began);
                if faults.is_calm() || (kills_only && !killed) {
                    let text = format!(
                        "event {} ran again at {:?}, having worked at {at:?}",
                        run.n, run.began
                    );
                    found.push(violation("C2 progress survives", Some(run), text));
                }
            }
            if let Some((at, Ended::Ok)) = run.ended {
                worked = Some((run, at));
            }
        }
    }
    repeats
}

/// Who has an event at work does not begin it again, whatever others have come to think of its lease.
pub(super) fn check_twice_at_once(
    evidence: &Evidence<'_>,
    runs: &[Run],
    found: &mut Vec<Violation>,
) {
    for runs in by_event(runs).values() {
        for (index, run) in runs.iter().enumerate() {
            let still = |other: &&&Run| {
                (other.host, other.life) == (run.host, run.life)
                    && end_of(evidence, other) > run.began
            };
            if let Some(other) = runs[..index].iter().find(still) {
                let text = format!(
                    "event {} began in a process that was at work on it since {:?}",
                    run.n, other.began
                );
                found.push(violation("C1 each event to one member", Some(run), text));
            }
        }
    }
}
