//! Runs a table of steps: says what runs, how long it took, and stops at the first failure.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::deny;
use crate::nats;
use crate::step::{self, Action, Step};
use crate::tally::Tally;

/// Why a chore ended early, in words for the person who ran it.
pub(crate) type Failure = String;

/// What a step that passed has to say in the summary.
enum Passed {
    Done,
    Counted(Tally),
    /// Passed, but not in the plain way; the summary says how.
    Noted(String),
    /// Passed, with a variable for the environment of all later steps.
    Provided {
        name: &'static str,
        value: OsString,
        note: String,
    },
}

/// What earlier steps provided for the environment of later ones.
type Provided = Vec<(&'static str, OsString)>;

/// Runs all steps in order.
///
/// # Errors
///
/// The first step that fails ends the chore. So does a chore that was to run tests and ran none:
/// an empty test run proves nothing.
pub(crate) fn all(steps: &[Step]) -> Result<(), Failure> {
    let started = Instant::now();
    let mut summary: Vec<(&str, Duration, String)> = Vec::new();
    let mut tally: Option<Tally> = None;
    let mut provided = Provided::new();

    for (at, step) in steps.iter().enumerate() {
        eprintln!("\n=== {} ({} of {})", step.name, at + 1, steps.len());
        let began = Instant::now();
        let outcome = run(step, &provided);
        let took = began.elapsed();
        let note = match outcome {
            Ok(Passed::Done) => String::new(),
            Ok(Passed::Noted(note)) => note,
            Ok(Passed::Provided { name, value, note }) => {
                provided.push((name, value));
                note
            }
            Ok(Passed::Counted(counted)) => {
                tally = Some(tally.unwrap_or_default() + counted);
                counted.to_string()
            }
            Err(failure) => {
                print_summary(&summary);
                println!("  FAILED {:<30} {:>8.1} s", step.name, took.as_secs_f64());
                return Err(format!("`{}` failed: {failure}", step.name));
            }
        };
        eprintln!("=== {} took {:.1} s", step.name, took.as_secs_f64());
        summary.push((step.name, took, note));
    }

    print_summary(&summary);
    println!(
        "  all    {:<30} {:>8.1} s",
        "",
        started.elapsed().as_secs_f64()
    );
    match tally {
        Some(tally) if tally.passed == 0 => Err("no test was run".to_owned()),
        Some(tally) => {
            println!("tests: {tally}");
            Ok(())
        }
        None => Ok(()),
    }
}

fn print_summary(summary: &[(&str, Duration, String)]) {
    println!();
    for (name, took, note) in summary {
        println!("  ok     {name:<30} {:>8.1} s  {note}", took.as_secs_f64());
    }
}

fn run(step: &Step, provided: &Provided) -> Result<Passed, Failure> {
    // What the step itself sets goes before what others provided.
    let environment = |command: &mut Command| {
        command
            .envs(provided.iter().cloned())
            .envs(step.env.iter().copied());
    };
    match &step.action {
        Action::Cargo(args) => {
            let mut command = step::cargo();
            environment(command.args(args));
            plain(&mut command).map(|()| Passed::Done)
        }
        Action::CargoTest(args) => {
            let mut command = step::cargo();
            environment(command.args(args));
            counted(&mut command, Tally::of_line).map(Passed::Counted)
        }
        Action::ScriptIfPresent(script) => {
            let path = step::root().join(script);
            if !path.exists() {
                return Ok(Passed::Noted(format!("skipped: there is no {script}")));
            }
            let mut command = step::in_root(&path);
            environment(&mut command);
            plain(&mut command).map(|()| Passed::Done)
        }
        Action::PythonChecks(script) => {
            let mut command = step::in_root("python3".as_ref());
            environment(command.arg(script));
            match counted(&mut command, Tally::of_summary)? {
                tally if tally.passed == 0 => Err(format!("{script} made no check")),
                tally => Ok(Passed::Counted(tally)),
            }
        }
        Action::NatsServer => Ok(match nats::server()? {
            Some(server) => {
                println!("{}", server.line);
                Passed::Provided {
                    name: server.variable,
                    value: server.path.into(),
                    note: server.line,
                }
            }
            None => Passed::Noted("skipped: not on this platform".to_owned()),
        }),
        Action::Deny(check) => deny::run(*check).map(Passed::Noted),
    }
}

/// Runs a command that shares our output.
///
/// # Errors
///
/// When it cannot be started, or ends with anything but 0.
pub(crate) fn plain(command: &mut Command) -> Result<(), Failure> {
    let status = command
        .status()
        .map_err(|error| cannot_start(command, &error))?;
    expect_success(command, status)
}

/// Runs a command, passes its standard output on line by line, and counts the results in it.
fn counted(command: &mut Command, results: fn(&str) -> Tally) -> Result<Tally, Failure> {
    if std::io::stderr().is_terminal() {
        // Cargo itself still writes to the terminal; only the results go through the pipe.
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| cannot_start(command, &error))?;

    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        let mut out = std::io::stdout().lock();
        for line in BufReader::new(output).split(b'\n') {
            let line =
                line.map_err(|error| format!("reading the output of {command:?}: {error}"))?;
            tally = tally + results(&String::from_utf8_lossy(&line));
            // A closed pipe (`| head`) must not end the tests themselves.
            let _ = out.write_all(&line).and_then(|()| out.write_all(b"\n"));
        }
    }
    let status = child
        .wait()
        .map_err(|error| format!("waiting for {command:?}: {error}"))?;
    expect_success(command, status).map(|()| tally)
}

fn expect_success(command: &Command, status: ExitStatus) -> Result<(), Failure> {
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} ended with {status}", line_of(command)))
    }
}

fn cannot_start(command: &Command, error: &std::io::Error) -> Failure {
    format!("cannot start {}: {error}", line_of(command))
}

/// The command as one would type it.
fn line_of(command: &Command) -> String {
    let program = command.get_program();
    let name = std::path::Path::new(program).file_stem().unwrap_or(program);
    let mut line = format!("`{}", name.to_string_lossy());
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line.push('`');
    line
}
