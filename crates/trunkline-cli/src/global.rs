//! What every command takes.

use clap::{Args, ValueEnum};

#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// The bus: the address of one that runs, `file:DIRECTORY` for one on disk, or `memory:` for a
    /// fresh one in this process
    /// [env: TRUNKLINE_URL] [default: http://127.0.0.1:7400; file:./trunkline-data for `up`].
    // Read with the configuration, and not shown: a URL may hold a password.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// The configuration [env: TRUNKLINE_CONFIG] [default: trunkline.toml, if there is one].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<String>,
    /// Write JSON for programs: one document, or one object a line for events.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Whether to colour what is written.
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t)]
    pub(crate) color: Color,
    /// Say nothing on standard error but errors.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Also into files and pipes.
    Always,
    /// Never.
    Never,
}
