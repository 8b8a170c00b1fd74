//! `trunkline completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use trunkline::Result;

use crate::Cli;
use crate::console::Console;
use crate::exit::Exit;

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

pub(crate) fn run(options: &Completions, console: &mut Console) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "trunkline", &mut script);
    console.out.text(script)?;
    console.out.flush()?;
    Ok(Exit::Done)
}
