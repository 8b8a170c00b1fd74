//! What each verb does, as data. To add a check, add a line here.

use std::process::Command;

use crate::deny::Check;
use crate::step::{self, Action, Step};

/// The manifest of the benchmark: a workspace of its own, so that only those who run it compile
/// the rivals.
const BENCH: &str = "bench/Cargo.toml";

/// Runs the example on real data. It is a step like any other once the file exists.
const REAL_DATA: &str = "examples/real-data/run.sh";

/// Runs the clients that we did not write against the door, and installs them first.
const FOREIGN: &str = "interop/run.py";

/// `cargo xtask test`. The server that tests run comes first, so that no test has to wait for a
/// download and all get the same one. A failure does not hide those after it. Doctests come apart because
/// `--all-targets` leaves them out. The example comes late because it is slow to say what is wrong, and the
/// foreign clients come last because only they need a package registry.
pub(crate) fn test() -> Vec<Step> {
    vec![
        Step::new("nats-server", Action::NatsServer),
        tests(
            "tests",
            &["test", "--workspace", "--all-targets", "--no-fail-fast"],
        ),
        tests("doctests", &["test", "--workspace", "--doc"]),
        Step::new("example on real data", Action::ScriptIfPresent(REAL_DATA)),
        Step::new("foreign clients", Action::PythonChecks(FOREIGN)),
    ]
}

/// `cargo xtask ci`. The cheap checks come first; the tests come last, so that their count closes
/// the log.
pub(crate) fn ci() -> Vec<Step> {
    let mut steps = vec![
        cargo("format", &["fmt", "--all", "--check"]),
        cargo(
            "format of bench",
            &["fmt", "--manifest-path", BENCH, "--check"],
        ),
        cargo(
            "lints",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ),
        cargo(
            "lints of bench",
            &[
                "clippy",
                "--manifest-path",
                BENCH,
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        ),
        cargo(
            "lints without features",
            &[
                "clippy",
                "-p",
                "trunkline",
                "--no-default-features",
                "--",
                "-D",
                "warnings",
            ],
        ),
        cargo("docs", &["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"),
        Step::new("bans, licences and sources", Action::Deny(Check::OfTheTree)),
        Step::new("advisories", Action::Deny(Check::Advisories)),
        bench(&["--quick"]),
        tests("tests of bench", &["test", "--manifest-path", BENCH]),
    ];
    steps.extend(test());
    steps
}

/// `cargo xtask bench`. The arguments go to the benchmark, which knows them and refuses the rest.
pub(crate) fn bench(args: &[&str]) -> Step {
    let mut line = vec!["run", "--release", "--manifest-path", BENCH, "--"];
    line.extend(args);
    cargo("bench", &line)
}

/// `cargo xtask chaos`. Its output is nobody's but its own, so that `--json` is one document.
pub(crate) fn chaos(args: &[&str]) -> Command {
    let mut command = step::cargo();
    command.args(["run", "--quiet", "--package", "trunkline-chaos", "--"]);
    command.args(args);
    command
}

fn cargo(name: &'static str, args: &[&str]) -> Step {
    Step::new(name, Action::Cargo(owned(args)))
}

/// Many a test makes a handler panic; the traces of those would bury what a failure says.
fn tests(name: &'static str, args: &[&str]) -> Step {
    Step::new(name, Action::CargoTest(owned(args))).env("RUST_BACKTRACE", "0")
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}
