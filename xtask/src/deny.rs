//! Calls cargo-deny: the one tool of the chores that a Rust installation lacks.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::run::{Failure, plain};
use crate::step::{cargo, in_root, root};

/// The version that is installed where none is found; `deny.toml` is written for its series.
const VERSION: &str = "0.20.2";
const SERIES: &str = "0.20.";

/// A group of checks that succeeds or fails as one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Check {
    /// Bans, licences and sources: decided by the dependency tree alone, so always possible.
    OfTheTree,
    /// Known vulnerabilities: needs a database from the network, which not every machine reaches.
    Advisories,
}

/// Runs the checks and says what they showed.
///
/// # Errors
///
/// When cargo-deny cannot be had, or found something. A database of advisories that cannot be
/// fetched is no failure of the tree: then the answer says that nothing was checked.
pub(crate) fn run(check: Check) -> Result<String, Failure> {
    let deny = find_or_install()?;
    match check {
        Check::OfTheTree => {
            plain(in_root(&deny).args(["check", "bans", "licenses", "sources"]))?;
            Ok("all allowed".to_owned())
        }
        Check::Advisories => advisories(&deny),
    }
}

fn advisories(deny: &Path) -> Result<String, Failure> {
    let output = in_root(deny)
        .args(["check", "advisories"])
        .output()
        .map_err(|error| format!("cannot start cargo-deny: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{said}");
    print!("{}", String::from_utf8_lossy(&output.stdout));
    match verdict(output.status.success(), &said) {
        Verdict::Clean => Ok("no known advisory against the tree".to_owned()),
        Verdict::Unreachable => {
            Ok("NOT CHECKED: the advisory database cannot be fetched".to_owned())
        }
        Verdict::Found => Err("cargo-deny found an advisory, see above".to_owned()),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Clean,
    Found,
    Unreachable,
}

/// Cargo-deny ends alike for "found an advisory" and "could not look"; only its words differ.
fn verdict(success: bool, said: &str) -> Verdict {
    if success {
        Verdict::Clean
    } else if said.contains("failed to fetch advisory database") {
        Verdict::Unreachable
    } else {
        Verdict::Found
    }
}

/// The cargo-deny of this checkout, else the one on the path, else a new one for this checkout.
fn find_or_install() -> Result<PathBuf, Failure> {
    let tools = root().join("target").join("tools");
    let own = tools
        .join("bin")
        .join(format!("cargo-deny{}", std::env::consts::EXE_SUFFIX));
    for candidate in [own.clone(), PathBuf::from("cargo-deny")] {
        if fits(&candidate) {
            return Ok(candidate);
        }
    }
    eprintln!(
        "cargo-deny {SERIES}x is neither in target/tools nor on the PATH; building {VERSION}"
    );
    plain(
        cargo()
            .args([
                "install",
                "cargo-deny",
                "--locked",
                "--version",
                VERSION,
                "--root",
            ])
            .arg(&tools),
    )?;
    Ok(own)
}

fn fits(candidate: &Path) -> bool {
    Command::new(candidate)
        .arg("--version")
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| is_of_series(&String::from_utf8_lossy(&output.stdout)))
}

fn is_of_series(version: &str) -> bool {
    version
        .split_whitespace()
        .nth(1)
        .is_some_and(|number| number.starts_with(SERIES))
}

#[cfg(test)]
mod tests {
    use super::{Verdict, is_of_series, verdict};

    #[test]
    fn a_database_out_of_reach_is_told_apart_from_a_finding() {
        let out_of_reach = "[ERROR] failed to fetch advisory database: Could not resolve host";
        assert_eq!(verdict(false, out_of_reach), Verdict::Unreachable);
        assert_eq!(
            verdict(false, "error[vulnerability]: use after free"),
            Verdict::Found
        );
        assert_eq!(verdict(true, ""), Verdict::Clean);
    }

    #[test]
    fn only_the_series_that_deny_toml_is_written_for_fits() {
        assert!(is_of_series("cargo-deny 0.20.2\n"));
        assert!(!is_of_series("cargo-deny 0.19.0\n"));
        assert!(!is_of_series(""));
    }
}
