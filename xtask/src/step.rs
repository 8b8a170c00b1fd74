//! One line of a chore: a name, and what to run for it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::deny::Check;

/// A named step of a chore.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) action: Action,
    pub(crate) env: Vec<(&'static str, &'static str)>,
}

/// What a step runs, always from the root of the workspace.
#[derive(Debug)]
pub(crate) enum Action {
    /// `cargo` with these arguments.
    Cargo(Vec<String>),
    /// The same, with its test results counted.
    CargoTest(Vec<String>),
    /// A script of this repository; where the file is missing, the step says so and passes.
    ScriptIfPresent(&'static str),
    /// A Python script of this repository, with the checks counted that its last line sums up.
    PythonChecks(&'static str),
    /// Makes sure that there is a nats-server, and names it to all later steps.
    NatsServer,
    /// One group of checks of cargo-deny.
    Deny(Check),
}

impl Step {
    pub(crate) fn new(name: &'static str, action: Action) -> Self {
        Self {
            name,
            action,
            env: Vec::new(),
        }
    }

    /// Sets an environment variable for this step alone.
    pub(crate) fn env(mut self, name: &'static str, value: &'static str) -> Self {
        self.env.push((name, value));
        self
    }
}

/// The cargo that runs this chore, so that `cargo +toolchain xtask` keeps its toolchain.
pub(crate) fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    in_root(cargo.as_ref())
}

/// A command that starts in the root of the workspace.
pub(crate) fn in_root(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// The root of the workspace: the folder above this package, wherever it was checked out.
pub(crate) fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}
