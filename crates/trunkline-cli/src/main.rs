//! The `trunkline` command.
//!
//! Each command is a file: its arguments, then a function that takes a `&Bus` and a [`Console`]
//! and is tested on a bus in memory. Which engine the bus has is the URL's business.
//!
//! **Invariant:** nothing here is of use to a program; what is belongs to `trunkline`.

mod ask;
mod config;
mod exit;
mod global;
mod interrupt;
mod link;
mod open;

mod console;
mod sink;

mod figures;
mod look;
mod moment;
mod payload;
mod plain;
mod table;

mod lines;
mod publish;

mod replay;
mod row;
mod sub;
mod tail;
mod wire_line;

mod consumers;
mod dlq;
mod doctor;
mod explain;
mod streams;
mod topology;

mod bench;
mod completions;
mod log;
mod up;
#[cfg(unix)]
mod worker;

#[cfg(test)]
mod filled;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use trunkline::Result;

use console::Console;
use exit::Exit;
use global::Global;
use interrupt::Interrupt;

/// One event bus, from a single process to a cluster.
///
/// Data goes to standard output and talk to standard error. It ends with 0 when done, 1 failed,
/// 2 wrong usage, 3 partly refused, 4 unreachable or unknown, 5 not permitted.
#[derive(Debug, Parser)]
#[command(
    name = "trunkline",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "\
First steps, each in a terminal of its own:
  trunkline up
  trunkline tail
  trunkline pub order.placed '{\"total\":1}' --key o-1"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a bus on this host, with an HTTP door.
    Up(up::Up),
    /// Publish an event, or one for each line of a file or of standard input.
    Pub(publish::Pub),
    /// Follow events as one CloudEvent a line, for scripts.
    Sub(sub::Sub),
    /// Watch events, for people.
    Tail(tail::Tail),
    /// Print stored events, oldest first.
    Replay(replay::Replay),
    /// Streams: what is stored where.
    #[command(subcommand)]
    Streams(streams::Streams),
    /// Durable consumers and what they have before them.
    #[command(subcommand)]
    Consumers(consumers::Consumers),
    /// Handle the events of a consumer with a command in any language.
    // Groups of processes and signals are what it is made of.
    #[cfg(unix)]
    Worker(worker::Worker),
    /// Dead letters: what consumers gave up, to be looked at, run again or given up for good.
    #[command(subcommand)]
    Dlq(dlq::Dlq),
    /// The streams themselves: what there is, what the configuration would change, and changing it.
    #[command(subcommand)]
    Topology(topology::Topology),
    /// Say what this bus promises, and where events of a type go.
    Explain(explain::Explain),
    /// Look at a NATS server, any one, and say what is mis-wired, in order of harm.
    Doctor(doctor::Doctor),
    /// Measure the bus at hand in a few seconds.
    Bench(bench::Bench),
    /// Look at the directory of a `file:` bus, also one that does not open, and mend it.
    #[command(subcommand)]
    Log(log::Log),
    /// Print a script that completes this command in a shell.
    Completions(completions::Completions),
    /// Print the configuration in force, and where each value came from.
    Config(config::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { command, global } = Cli::parse();
    log(&command, &global);
    let exit = match run(command, &global).await {
        Ok(exit) => exit,
        Err(error) => exit::failed(&error),
    };
    exit.into()
}

async fn run(command: Command, global: &Global) -> Result<Exit> {
    // These have no bus to open, or open one of their own.
    let command = match command {
        Command::Up(up) => return up::up(up, global).await,
        Command::Config(options) => {
            let mut console = Console::standard(global);
            return config::config(&options, global, &mut console).map(|()| Exit::Done);
        }
        Command::Completions(which) => {
            return completions::run(&which, &mut Console::standard(global));
        }
        Command::Doctor(doctor) => {
            let mut interrupt = Interrupt::listen()?;
            let mut console = Console::standard(global);
            return tokio::select! {
                done = doctor::run(&doctor, global, &mut console) => done,
                () = interrupt.asked() => Ok(Exit::Interrupted),
            };
        }
        Command::Topology(command) => return topology::topology(&command, global).await,
        #[cfg(unix)]
        Command::Worker(options) => return worker::worker(options, global).await,
        // Ctrl-c ends the process: it only reads, and what it mends can be mended again.
        Command::Log(command) => return log::run(&command, &mut Console::standard(global)),
        command => command,
    };
    let mut interrupt = Interrupt::listen()?;
    let mut console = Console::standard(global);
    let bus = tokio::select! {
        bus = open::bus(global) => bus?,
        () = interrupt.asked() => return Ok(Exit::Interrupted),
    };
    let done = match command {
        // What runs until somebody stops it, or has to clean up, ends in its own way.
        Command::Pub(publish) => publish::run(&bus, publish, &mut console, interrupt).await,
        Command::Sub(sub) => sub::run(&bus, &sub, &mut console, interrupt).await,
        Command::Replay(replay) => replay::run(&bus, &replay, &mut console, interrupt).await,
        Command::Tail(tail) => tail::run(&bus, &tail, &mut console, interrupt).await,
        Command::Bench(bench) => bench::run(&bus, &bench, &mut console, interrupt).await,
        // What has an end of its own was not done.
        command => tokio::select! {
            done = ending(command, &bus, &mut console) => done,
            () = interrupt.asked() => Ok(Exit::Interrupted),
        },
    };
    console.clear_progress();
    let flushed = console.out.flush();
    let closed = bus.close().await;
    let exit = done?;
    flushed?;
    closed?;
    Ok(exit)
}

async fn ending(command: Command, bus: &trunkline::Bus, console: &mut Console) -> Result<Exit> {
    match command {
        Command::Streams(streams) => streams::run(bus, &streams, console).await,
        Command::Consumers(consumers) => consumers::run(bus, &consumers, console).await,
        Command::Dlq(dlq) => dlq::run(bus, &dlq, console).await,
        Command::Explain(explain) => explain::run(bus, &explain, console).await,
        Command::Up(_)
        | Command::Topology(_)
        | Command::Config(_)
        | Command::Completions(_)
        | Command::Doctor(_)
        | Command::Log(_)
        | Command::Pub(_)
        | Command::Replay(_)
        | Command::Sub(_)
        | Command::Tail(_)
        | Command::Bench(_) => Ok(Exit::Done), // Were run above.
        #[cfg(unix)]
        Command::Worker(_) => Ok(Exit::Done),
    }
}

/// What is heard of the NATS client's own log, whatever is asked for.
const NATS_CLIENT: &str = "async_nats=warn";

/// The log goes to standard error, so that standard output is for programs. Only a bus that runs
/// tells of what goes well.
fn log(command: &Command, global: &Global) {
    let usual = match command {
        _ if global.quiet => "error",
        Command::Up(_) => "info",
        // What the client is told is in the report or in the error.
        Command::Doctor(_) => "warn,async_nats=off",
        // That the bus is away is told by the commands that wait for it, in words for people.
        _ => "warn,trunkline::lifecycle=error",
    };
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(usual));
    if !matches!(command, Command::Doctor(_)) {
        // Asked for more, the NATS client writes every byte of the wire into the log, passwords
        // included; what it says less of, the engine says in its own words.
        if let Ok(directive) = NATS_CLIENT.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours);
    match command {
        Command::Up(_) => log.init(),
        // Somebody sits in front of it: what is wrong matters, not when and where in the code.
        _ => log.without_time().with_target(false).init(),
    }
}

/// The arguments of one command, as the parser reads them.
#[cfg(test)]
fn parsed<A: clap::Args>(arguments: &[&str]) -> A {
    #[derive(Parser)]
    struct One<A: clap::Args> {
        #[command(flatten)]
        arguments: A,
    }
    One::parse_from(std::iter::once(&"test").chain(arguments)).arguments
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_of_all_commands_fit_together() {
        Cli::command().debug_assert();
    }
}
