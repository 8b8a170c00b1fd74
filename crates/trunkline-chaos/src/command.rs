//! The arguments, and what each of them starts.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::check::{self, Evidence};
use crate::client::Process;
use crate::owner::Owner;
use crate::plan::{On, plan};
use crate::record::Role;
use crate::runner::{self, Setup};
use crate::{owner, publisher, report, worker};

/// Kills, stops, cuts and slows real processes of a durable consumer, at times from a seed.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos", args_conflicts_with_subcommands = true)]
struct Chaos {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, clap::Args)]
struct Options {
    /// Which plan; without it one by the time of day.
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults come. What follows, until everything is drained, is not counted.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// What the bus is.
    #[arg(long, value_enum, default_value = "file")]
    on: On,
    /// Print the plan and do nothing.
    #[arg(long)]
    plan: bool,
    /// Print the result as one JSON document.
    #[arg(long)]
    json: bool,
    /// Keep the folder of a run that shows nothing too.
    #[arg(long)]
    keep: bool,
    /// Judge the folder of an earlier run of this seed again, and run nothing.
    #[arg(long, value_name = "FOLDER", requires = "seed")]
    judge: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// A process of a run.
    #[command(hide = true)]
    Process(Process),
    /// The process that owns the directory of a run.
    #[command(hide = true)]
    Owner(Owner),
}

/// Runs what the arguments say. The exit code is 1 for a violation, and 2 if there was no run.
pub fn main() -> ExitCode {
    let chaos = Chaos::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            runner::tell(&format!("no runtime: {error}"));
            return ExitCode::from(2);
        }
    };
    let code = runtime.block_on(async {
        match chaos.part {
            Some(Part::Process(process)) => {
                log();
                match process.role {
                    Role::Worker => worker::run(process).await,
                    Role::Publisher => publisher::run(process).await,
                }
                .map_err(|error| error.to_string())
            }
            Some(Part::Owner(options)) => {
                log();
                owner::run(options).await.map_err(|error| error.to_string())
            }
            None => chaos.options.run().await,
        }
    });
    // A task that blocks its thread must not keep a process that was told to end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code.unwrap_or_else(|error| {
        runner::tell(&error);
        ExitCode::from(2)
    })
}

/// What the library says, to the file that standard error is.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
}

impl Options {
    async fn run(self) -> Result<ExitCode, String> {
        if !(0.05..=24.0 * 60.0).contains(&self.minutes) {
            return Err(format!(
                "--minutes is between 0.05 and 1440, not {}",
                self.minutes
            ));
        }
        let length = Duration::from_secs_f64(self.minutes * 60.0);
        let seed = self.seed.unwrap_or_else(|| crate::record::now() % 100_000);
        if self.plan {
            let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
            report::plan(&plan(seed, self.on, length_ms));
            return Ok(ExitCode::SUCCESS);
        }
        let dir = match &self.judge {
            Some(dir) => dir.clone(),
            None => {
                let setup = Setup {
                    seed,
                    on: self.on,
                    length,
                    dir: runner::folder(seed, self.on)?,
                    program: std::env::current_exe().map_err(|error| error.to_string())?,
                };
                let dir = setup.dir.clone();
                runner::run(&setup)
                    .await
                    .map_err(|error| format!("{error}\nthe folder is {}", dir.display()))?;
                dir
            }
        };
        let evidence = Evidence::read(seed, self.on, &dir)?;
        let verdict = check::judge(&evidence);
        report::verdict(&verdict, self.json);
        if verdict.violations.is_empty() {
            if !self.keep && self.judge.is_none() {
                runner::forget(&dir);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let minutes = self.minutes;
        runner::tell(&format!(
            "{} violations; everything is in {}\nagain:  cargo xtask chaos --seed {seed} --minutes {minutes} --on {}\n\
             judged again:  cargo xtask chaos --seed {seed} --on {} --judge {}",
            verdict.violations.len(),
            dir.display(),
            self.on.name(),
            self.on.name(),
            dir.display()
        ));
        Ok(ExitCode::FAILURE)
    }
}
