//! What was acknowledged is stored, and what is stored is handled, or dead where it should be.

use std::collections::{BTreeMap, BTreeSet};

use super::{Evidence, Found, Run};
use crate::event;
use crate::record::{Consumer, How, Publishing};
use crate::script::{ATTEMPTS, Script};

/// Runs that an event needs to have had before it may be dead as a crash loop: five starts without an
/// outcome, of which two may have been noted and not begun.
const CRASH_LOOP_RUNS: usize = 3;

/// Acknowledged ⊆ stored, once each, and each lane in the order in which it was published.
pub(super) fn check_publishing(evidence: &Evidence, found: &mut Found) {
    let mut stored: BTreeMap<&str, u64> = BTreeMap::new();
    let mut last: BTreeMap<&str, u32> = BTreeMap::new();
    let mut asked: BTreeSet<&str> = BTreeSet::new();
    for told in &evidence.published {
        if let Publishing::Ask { id } = &told.what {
            asked.insert(id);
        }
    }
    for event in &evidence.stored {
        if let Some(before) = stored.insert(&event.id, event.seq) {
            let text = format!("{} is stored at {before} and at {}", event.id, event.seq);
            found.push("P4 stored once", text);
        }
        if !asked.contains(event.id.as_str()) {
            let text = format!("{} is stored, and nobody published it", event.id);
            found.push("P4 stored is published", text);
        }
        let Some((lane, n)) = event::parts(&event.id) else {
            continue;
        };
        if let Some(before) = last.insert(lane, n)
            && before >= n
        {
            let text = format!("{} is stored behind number {before}", event.id);
            found.push("P3 stored in order", text);
        }
    }
    for told in &evidence.published {
        match &told.what {
            Publishing::Ack { id, seq } => match stored.get(id.as_str()) {
                Some(at) if at == seq => {}
                Some(at) => {
                    let text = format!("{id} was acknowledged at {seq} and is at {at}");
                    found.push("P4 acknowledged is stored", text);
                }
                None => {
                    let text = format!("{id} was acknowledged at {seq} and is not stored");
                    found.push("P4 acknowledged is stored", text);
                }
            },
            Publishing::Refused { id, why } => {
                found.push("P4 published", format!("{id} was refused: {why}"));
            }
            Publishing::Ask { .. }
            | Publishing::Stopped
            | Publishing::After { .. }
            | Publishing::Serves => {}
        }
    }
}

/// Stored ⊆ handled or dead, as the scripts say, and nothing else.
pub(super) fn check_ends(evidence: &Evidence, runs: &[Run], found: &mut Found) {
    let mut of_event: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        of_event.entry(&run.id).or_default().push(run);
    }
    let mut dead: BTreeMap<u64, Vec<(&str, &str)>> = BTreeMap::new();
    for letter in &evidence.dead {
        let letters = dead.entry(letter.seq).or_default();
        letters.push((&letter.consumer, &letter.reason));
    }
    let nothing = Vec::new();
    for event in &evidence.stored {
        let Some((lane, n)) = event::parts(&event.id) else {
            continue;
        };
        let consumer = event::consumer_of(lane);
        let script = Script::of(evidence.seed, lane, n);
        let runs = of_event.remove(event.id.as_str()).unwrap_or_default();
        let letters = dead.remove(&event.seq).unwrap_or_default();
        let letters = if letters.is_empty() {
            &nothing
        } else {
            &letters
        };
        let worked = runs.iter().any(|run| run.is_ok());
        let is_crash_loop = |reason: &str| {
            reason == "crash_loop" && consumer == Consumer::Ordered && runs.len() >= CRASH_LOOP_RUNS
        };
        let fault = match letters.as_slice() {
            [] if script.dies() => "is not dead although it should be",
            [] if !worked => "was never handled",
            [] => "",
            [(of, _)] if *of != consumer.name() => "is dead in a consumer that is not its own",
            [(_, reason)] if is_crash_loop(reason) => "",
            [(_, "failed")] if script.dies() => "",
            [_] if script.dies() => "is dead for another reason",
            [_] => "is dead although it should work",
            _ => "is dead more than once",
        };
        if !fault.is_empty() {
            found.push(
                "C1, D1 each event ends as it should",
                format!(
                    "{} (sequence {}, {:?}, {} runs) {fault}: {letters:?}",
                    event.id,
                    event.seq,
                    script.ending,
                    runs.len()
                ),
            );
        }
        if let Some(run) = runs.iter().find(|run| run.seq != event.seq) {
            let text = format!("{} is at {} and ran as {}", event.id, event.seq, run.seq);
            found.push("P1 an event is what it was", text);
        }
    }
    for id in of_event.keys() {
        found.push(
            "P4 handled is stored",
            format!("{id} ran and is not stored"),
        );
    }
    for (seq, letters) in &dead {
        let text = format!("there are dead letters of {seq}, which is not stored: {letters:?}");
        found.push("P4 dead is stored", text);
    }
}

/// Attempts are counted by all members together.
pub(super) fn check_attempts(evidence: &Evidence, runs: &[Run], found: &mut Found) {
    let mut of_event: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    for run in runs {
        of_event.entry(&run.id).or_default().push(run);
        if run.attempt == 0 || run.attempt > ATTEMPTS {
            let text = format!("{} ran as attempt {} of {ATTEMPTS}", run.id, run.attempt);
            found.push("C4 attempts", text);
        }
    }
    let dead: BTreeSet<u64> = evidence
        .dead
        .iter()
        .filter(|letter| letter.reason == "failed")
        .map(|letter| letter.seq)
        .collect();
    for (id, runs) in of_event {
        let Some(first) = runs.first() else {
            continue;
        };
        let script = Script::of(evidence.seed, &first.lane, first.n);
        let failed = |run: &&&Run| {
            let how = run.ended.map(|ended| ended.how);
            matches!(how, Some(How::Failed | How::Permanent))
        };
        let last = runs.iter().filter(failed).map(|run| run.attempt).max();
        if dead.contains(&first.seq)
            && script.dies()
            && !last.is_some_and(|last| script.gives_up_at(last))
        {
            let text = format!("{id} is dead, and its last failed attempt is {last:?}");
            found.push("C5 dead at its last attempt", text);
        }
        // What a shared member could not write before its lease ended counts for nobody, and nothing here
        // tells how often that was.
        if first.consumer == Consumer::Shared {
            continue;
        }
        // A failure that could not be noted before its owner changed counts for nobody.
        let epochs: BTreeSet<_> = runs.iter().map(|run| run.epoch).collect();
        let most = (1..=ATTEMPTS)
            .take_while(|attempt| !script.works(*attempt))
            .find(|attempt| script.gives_up_at(*attempt));
        let most = most.unwrap_or(ATTEMPTS) as usize + epochs.len() - 1;
        let times = runs.iter().filter(failed).count();
        if times > most {
            let text = format!(
                "{id} failed {times} times under {} owners, and {most} is the most",
                epochs.len()
            );
            found.push("C4 attempts", text);
        }
    }
}
