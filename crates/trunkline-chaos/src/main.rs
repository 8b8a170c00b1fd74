//! `trunkline-chaos`, which `cargo xtask chaos` runs.

use std::process::ExitCode;

fn main() -> ExitCode {
    trunkline_chaos::main()
}
