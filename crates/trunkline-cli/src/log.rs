//! `trunkline log`: the directory of a `file:` bus, looked at from outside.

mod dump;
mod repair;
mod stats;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use trunkline::Result;
use trunkline_log::LogOptions;
use trunkline_log::inspect::{Directory, Finding, Lost, Owner, Progress};

use crate::console::Console;
use crate::exit::Exit;
use crate::figures::{bytes, grouped};

#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// How everything in the directory stands; also while its owner runs.
    Stats(Dir),
    /// Read every byte and say what is damaged, where, and what that costs; also while its owner runs.
    Verify(Dir),
    /// Print events of a stream, or keys and consumers, one object a line; also of a damaged directory.
    Dump(dump::Dump),
    /// Mend what verify calls damaged. What is changed is kept beside as `<name>.damaged`.
    Repair(repair::Repair),
}

#[derive(Debug, Args)]
pub(crate) struct Dir {
    /// The directory, or its `file:` URL.
    #[arg(value_name = "DIR", value_parser = parsed_dir)]
    dir: PathBuf,
}

fn parsed_dir(text: &str) -> Result<PathBuf> {
    match text.starts_with("file:") {
        true => LogOptions::from_url(text).map(|options| options.dir),
        false => Ok(PathBuf::from(text)),
    }
}

impl Dir {
    fn open(&self) -> Result<Directory> {
        Directory::at(&self.dir)
    }
}

pub(crate) fn run(command: &Log, console: &mut Console) -> Result<Exit> {
    let done = match command {
        Log::Stats(dir) => stats::run(&dir.open()?, console),
        Log::Verify(dir) => verify::run(&dir.open()?, console),
        Log::Dump(dump) => dump::run(dump, console),
        Log::Repair(repair) => repair::run(repair, console),
    };
    console.clear_progress();
    let flushed = console.out.flush();
    let exit = done?;
    flushed?;
    Ok(exit)
}

fn progress(console: &mut Console, progress: Progress) {
    console.progress(|| {
        format!(
            "read {} of {}",
            bytes(progress.bytes),
            bytes(progress.of.max(progress.bytes))
        )
    });
}

fn owner(owner: Owner) -> String {
    let process = owner
        .process()
        .map_or_else(String::new, |pid| format!("process {pid}"));
    match owner {
        Owner::Running(Some(_)) => format!("{process}, running"),
        Owner::Running(None) => "a process that runs".to_owned(),
        Owner::Gone(Some(_)) => format!("nobody; the last one was {process}"),
        Owner::Unknown(Some(_)) => format!("{process}, if that runs"),
        _ => "nobody".to_owned(),
    }
}

fn owner_json(owner: Owner) -> Value {
    json!({ "state": owner.as_str(), "process": owner.process() })
}

/// `events 17 to 19 of EVENTS (3)`.
fn lost(lost: &Lost) -> String {
    let of = &lost.stream;
    match (lost.last, lost.events) {
        (Some(last), _) if last == lost.first => format!("event {last} of {of}"),
        (Some(last), Some(events)) => format!(
            "events {} to {last} of {of} ({} at most)",
            lost.first,
            grouped(events)
        ),
        (Some(last), None) => format!("events {} to {last} of {of}", lost.first),
        (None, _) => format!(
            "events of {of} from {} on; how many is not known",
            lost.first
        ),
    }
}

fn lost_json(lost: Option<&Lost>) -> Value {
    lost.map_or(Value::Null, |lost| {
        json!({
            "stream": lost.stream,
            "first": lost.first,
            "last": lost.last,
            "events": lost.events,
        })
    })
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity.as_str(),
        "file": finding.file,
        "offset": finding.offset,
        "what": finding.what,
        "meaning": finding.meaning,
        "lost": lost_json(finding.lost.as_ref()),
        "remedy": finding.remedy.as_str(),
    })
}
