//! What a run tells its user.
#![expect(clippy::print_stdout, reason = "the report is what the command is for")]

use std::fmt::{self, Display};

use crate::check::Verdict;
use crate::plan::Step;

/// Violations that are shown; all of them are in `--json`.
const SHOWN: usize = 20;

/// Prints a plan, one fault a line.
pub(crate) fn plan(steps: &[Step]) {
    for Step { at_ms, fault } in steps {
        println!("{:8.3} s  {fault}", *at_ms as f64 / 1_000.0);
    }
}

/// Prints what came of a run.
pub(crate) fn verdict(verdict: &Verdict, json: bool) {
    match json {
        true => match serde_json::to_string_pretty(verdict) {
            Ok(text) => println!("{text}"),
            Err(error) => println!("{error}"),
        },
        false => println!("{}", Table(verdict)),
    }
}

struct Table<'a>(&'a Verdict);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict {
            seed,
            on,
            seconds,
            acknowledged,
            stored,
            handled,
            runs,
            faults,
            repeats,
            overlaps,
            dead_letters,
            take_overs,
            violations,
        } = self.0;
        let row = |f: &mut fmt::Formatter<'_>, name: &str, value: &dyn Display| {
            writeln!(f, "  {name:<34} {value:>8}")
        };
        writeln!(f, "seed {seed} on {on}, {seconds} s")?;
        writeln!(f, "events")?;
        row(f, "acknowledged", acknowledged)?;
        row(f, "stored", stored)?;
        row(f, "handled", handled)?;
        row(f, "runs of handlers", runs)?;
        writeln!(f, "faults")?;
        for (kind, count) in faults {
            let name = serde_json::to_value(kind).unwrap_or_default();
            row(f, name.as_str().unwrap_or("?"), count)?;
        }
        writeln!(f, "repeats of what had worked, by cause")?;
        for (cause, count) in repeats {
            row(f, cause, count)?;
        }
        row(f, "overlaps, all fenced or explained", overlaps)?;
        writeln!(f, "dead letters")?;
        for (reason, count) in dead_letters {
            row(f, reason, count)?;
        }
        writeln!(f, "take-over after a kill")?;
        row(f, "partitions seen", &take_overs.observed)?;
        let seconds = |ms: Option<u64>| match ms {
            Some(ms) => format!("{:.1} s", ms as f64 / 1_000.0),
            None => "-".to_owned(),
        };
        row(
            f,
            "longest, nothing else wrong",
            &seconds(take_overs.longest_alone_ms),
        )?;
        row(f, "longest", &seconds(take_overs.longest_ms))?;
        write!(f, "violations: {}", violations.len())?;
        for violation in violations.iter().take(SHOWN) {
            write!(f, "\n  {}: {}", violation.property, violation.text)?;
        }
        if violations.len() > SHOWN {
            write!(f, "\n  and {} more", violations.len() - SHOWN)?;
        }
        Ok(())
    }
}
