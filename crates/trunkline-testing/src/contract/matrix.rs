//! The capability matrix of the documentation.

use std::fmt::Write;
use std::sync::Arc;

use super::{Harness, PROPERTIES, verdict};

/// Runs every property on every engine, unless this process has already, and writes the table.
///
/// # Panics
/// When an engine does not keep a promise: a matrix is made of a suite that passes.
pub fn matrix(harnesses: &[Arc<dyn Harness>]) -> String {
    let mut text = String::from(
        "# Capabilities\n\n\
         Generated from a run of the contract suite (`cargo test -p trunkline-testing`); do not edit.\n\
         `yes`: declared and kept. `refused`: not declared, and using it is a typed error. \
         `—`: not declared, and there is nothing to use.\n\n",
    );
    let columns: Vec<&str> = harnesses.iter().map(|harness| harness.name()).collect();
    let _ = writeln!(text, "| | property | {} |", columns.join(" | "));
    let _ = writeln!(text, "|---|---|{}", "---|".repeat(columns.len()));
    for property in PROPERTIES {
        let cells: Vec<String> = harnesses
            .iter()
            .map(|harness| match verdict(property, harness) {
                Ok(verdict) => verdict.to_string(),
                Err(failure) => panic!("{} on {}: {failure}", property.name, harness.name()),
            })
            .collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            property.id,
            property.title,
            cells.join(" | ")
        );
    }
    text
}
