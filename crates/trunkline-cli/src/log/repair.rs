//! `trunkline log repair`: a directory that opens again.

use clap::Args;
use serde_json::json;
use trunkline::Result;
use trunkline::core::{Clock, SystemClock};
use trunkline_log::inspect::{Directory, Repair as Repaired, Step};

use crate::console::Console;
use crate::exit::Exit;
use crate::table::Facts;

use super::verify::show;
use super::{Dir, finding_json, lost, lost_json, progress};

#[derive(Debug, Args)]
pub(crate) struct Repair {
    #[command(flatten)]
    dir: Dir,
    /// Do it; without this it only says what it would do, and ends with 3.
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(options: &Repair, console: &mut Console) -> Result<Exit> {
    let directory = options.dir.open()?;
    let now = SystemClock.now();
    let done = directory.repair(now, options.yes, &mut |done| progress(console, done))?;
    console.clear_progress();
    let left = done
        .after
        .as_ref()
        .map_or(done.hopeless.len(), |after| after.damage().count());
    let exit = match (&done.after, done.hopeless.is_empty()) {
        (_, false) => Exit::Failed,
        (Some(_), true) if left > 0 => Exit::Failed,
        (None, true) if !done.steps.is_empty() => Exit::PartlyRefused,
        _ => Exit::Done,
    };
    if console.json {
        console.json_document(&json!({
            "directory": directory.path(),
            "done": done.after.is_some(),
            "steps": done.steps.iter().map(step_json).collect::<Vec<_>>(),
            "hopeless": done.hopeless.iter().map(finding_json).collect::<Vec<_>>(),
            "kept": done.kept,
            "damage_left": done.after.as_ref().map(|_| left),
        }))?;
        return Ok(exit);
    }
    told(&done, &directory, console)?;
    let dir = directory.path().display();
    console.note(match exit {
        Exit::PartlyRefused => {
            format!("nothing was done; add --yes to do it: trunkline log repair {dir} --yes")
        }
        Exit::Failed if done.after.is_none() => {
            "nothing was done: what is above cannot be repaired by any program".to_owned()
        }
        Exit::Failed => format!("damage is left; see trunkline log verify {dir}"),
        _ if done.steps.is_empty() => "nothing is damaged".to_owned(),
        _ => "repaired: the directory opens, and nothing in it is damaged".to_owned(),
    });
    Ok(exit)
}

fn told(done: &Repaired, directory: &Directory, console: &mut Console) -> Result<()> {
    for finding in &done.hopeless {
        show(finding, directory, console)?;
    }
    for step in &done.steps {
        let mut facts = Facts::default();
        facts.add("file", step.file.display().to_string());
        let name = if done.after.is_some() {
            "done"
        } else {
            "to do"
        };
        facts.add(name, &step.what);
        if let Some(sequences) = &step.lost {
            facts.add("lost", lost(sequences));
        }
        if !step.meaning.is_empty() {
            facts.add("meaning", &step.meaning);
        }
        let mut text = facts.render(console.look);
        text.push('\n');
        console.out.text(text)?;
    }
    for path in &done.kept {
        console.out.line(format!("kept: {}", path.display()))?;
    }
    Ok(())
}

fn step_json(step: &Step) -> serde_json::Value {
    json!({
        "file": step.file,
        "what": step.what,
        "meaning": step.meaning,
        "lost": lost_json(step.lost.as_ref()),
    })
}
