//! The capability matrix of the documentation.

use std::fmt::Write;
use std::sync::Arc;

use super::{Harness, PROPERTIES, Trial};

/// Writes the table from what the engines declare.
///
/// It runs no property: the suites do, each on its engine, and decide by the same
/// [`verdict`](super::Property::verdict) which of them are to be kept and which refused.
///
/// # Panics
/// When an engine cannot be made.
pub fn matrix(harnesses: &[Arc<dyn Harness>]) -> String {
    let mut text = String::from(
        "# Capabilities\n\n\
         Generated from what the engines declare; the contract suite, a part of the same tests \
         (`cargo test -p trunkline-testing`), fails where one of them is not as this table says. Do not edit.\n\
         `yes`: declared and kept. `refused`: not declared, and using it is a typed error. \
         `—`: not declared, and there is nothing to use.\n\n",
    );
    let columns: Vec<&str> = harnesses.iter().map(|harness| harness.name()).collect();
    let _ = writeln!(text, "| | property | {} |", columns.join(" | "));
    let _ = writeln!(text, "|---|---|{}", "---|".repeat(columns.len()));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let capabilities: Vec<_> = harnesses
        .iter()
        .map(|harness| {
            let engine = async {
                let trial = Trial::new(Arc::clone(harness), false);
                trial.engine().await.capabilities()
            };
            runtime.block_on(engine)
        })
        .collect();
    for property in PROPERTIES {
        let verdicts = capabilities.iter().map(|has| property.verdict(has));
        let cells: Vec<String> = verdicts.map(|verdict| verdict.to_string()).collect();
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
