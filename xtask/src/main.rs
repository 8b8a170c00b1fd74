//! The chores of this repository, as Rust, so that they run alike on every machine that has cargo.
//!
//! [`chores`] is the part to read and to edit: every verb is a table of steps there. The rest only
//! runs such a table ([`run`]), knows what a step is ([`step`]), and knows how to get what is not
//! part of a Rust installation: one tool ([`deny`]) and one server ([`nats`]).

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a chore's whole output is what it prints for the person or the CI log that ran it"
)]

mod chores;
mod step;

mod deny;
mod nats;
mod run;
mod tally;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <verb>

  test             run every test of the workspace, doctests and examples on real data included
  bench [args]     compare Trunkline with its rivals; --quick is a smoke run, --help lists the rest
  chaos [args]     faults from a seed on real processes of a consumer; --help lists the arguments
  ci               everything that CI checks: format, lints, docs, dependencies, then `test`
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match args.as_slice() {
        ["test"] => run::all(&chores::test()),
        ["ci"] => run::all(&chores::ci()),
        ["bench", rest @ ..] => run::all(&[chores::bench(rest)]),
        ["chaos", rest @ ..] => run::plain(&mut chores::chaos(rest)),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}
