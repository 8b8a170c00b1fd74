//! Trunkline beside its rivals, in one process run.
//!
//! Read in this order: [`pair`] says what is compared, [`pairs`] lists it, [`rivals`] and [`ours`]
//! are the two sides ([`remote`], [`nats`] and [`log`] have both of their own, and [`stored`] is what
//! Trunkline does in the last two), [`alternate`] is the method, [`report`] the output. Progress goes
//! to standard error, data to standard output.

mod pair;
mod pairs;

mod log;
mod nats;
mod ours;
mod remote;
mod rivals;
mod stored;

mod countdown;
mod payload;
mod runtime;
mod schedule;
mod site;
mod subjects;

mod alternate;
mod machine;
mod stopwatch;

mod options;
mod report;

use std::process::ExitCode;

use options::{Command, Options};
use pair::Result;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let command = match options::parse(&args) {
        Ok(command) => command,
        Err(problem) => {
            eprintln!("{problem}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    let outcome = match command {
        Command::Help => {
            print!("{}", options::USAGE);
            Ok(())
        }
        Command::List => {
            pairs::all()
                .iter()
                .for_each(|pair| println!("{}", pair.name));
            Ok(())
        }
        Command::PeakMemory { pair, side, quick } => {
            alternate::print_peak_memory(&pair, side, quick)
        }
        Command::Compare(options) => compare(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trunkline-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options) -> Result<()> {
    let pairs: Vec<_> = pairs::all()
        .into_iter()
        .filter(|pair| pair.name.contains(&options.only))
        .collect();
    if pairs.is_empty() {
        return Err(format!(
            "no pair has {:?} in its name; --list names them",
            options.only
        )
        .into());
    }
    let mut rows = Vec::with_capacity(pairs.len());
    let count = pairs.len();
    // One after the other they go, and with the last that needs it what was stored for them.
    for (at, pair) in pairs.into_iter().enumerate() {
        eprintln!("[{}/{count}] {}", at + 1, pair.name);
        rows.push(
            alternate::run(&pair, options).map_err(|error| format!("{}: {error}", pair.name))?,
        );
    }
    let report = report::Report::new(options, rows);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
