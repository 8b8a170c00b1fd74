//! `trunkline dlq`: what consumers gave up, and what becomes of it.

mod change;
mod json;
mod list;
mod show;

use clap::{Args, Subcommand};
use trunkline::dead_letter::{Discard, Id, Selection, Stands};
use trunkline::{Bus, DeadLetters, Filter, Name, Result, Start, Timestamp};

use crate::console::Console;
use crate::exit::Exit;
use crate::moment::start;
use crate::replay::name;
use crate::sub::filter;

pub(crate) use json::shown;

#[derive(Debug, Subcommand)]
pub(crate) enum Dlq {
    /// Dead letters, the newest first: those that nobody has dealt with.
    List(List),
    /// One dead letter: the event, its story, and how it stands.
    Show(Show),
    /// Ask for dead letters to be run again, by the consumers that gave them up.
    Replay(Replay),
    /// Give up dead letters for good.
    Discard(Discarding),
}

/// Which dead letters are meant.
#[derive(Debug, Args)]
struct Chosen {
    /// Those of this consumer.
    #[arg(long, value_name = "NAME", value_parser = name)]
    consumer: Option<Name>,
    /// Those of events of this stream.
    #[arg(long, value_name = "NAME", value_parser = name)]
    stream: Option<Name>,
    /// Those of events of these types: `order.placed`, `order.*` or `order.>`.
    #[arg(long = "type", value_name = "FILTER", value_parser = filter)]
    event_type: Option<Filter>,
    /// Those given up for this reason: `failed`, `panicked`, `undecodable`, `crash_loop`.
    #[arg(long, value_name = "WORD")]
    reason: Option<String>,
    /// Those that failed last then or later: an RFC 3339 time, or how long ago (`10m`).
    #[arg(long, value_name = "TIME", value_parser = parsed_time)]
    since: Option<Timestamp>,
}

impl Chosen {
    fn selection(&self) -> Selection {
        let mut selection = Selection::new();
        if let Some(consumer) = &self.consumer {
            selection = selection.consumer(consumer.clone());
        }
        if let Some(stream) = &self.stream {
            selection = selection.stream(stream.clone());
        }
        if let Some(filter) = &self.event_type {
            selection = selection.event_type(filter.clone());
        }
        if let Some(reason) = &self.reason {
            selection = selection.reason(reason.as_str());
        }
        if let Some(since) = self.since {
            selection = selection.since(since);
        }
        selection
    }

    /// Whether it chooses at all.
    fn is_any(&self) -> bool {
        let Self {
            consumer,
            stream,
            event_type,
            reason,
            since,
        } = self;
        consumer.is_some()
            || stream.is_some()
            || event_type.is_some()
            || reason.is_some()
            || since.is_some()
    }
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    chosen: Chosen,
    /// Those that stand so: `dead`, `replaying`, `replayed`, `discarded`; several with commas
    /// [default: dead,replaying].
    #[arg(long, value_name = "STATE", value_parser = state, value_delimiter = ',')]
    state: Vec<Stands>,
    /// Show that many at most.
    #[arg(long, short = 'n', value_name = "N", default_value = "100")]
    limit: usize,
    /// The oldest first.
    #[arg(long)]
    oldest_first: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The dead letter: CONSUMER/STREAM/SEQUENCE.
    #[arg(value_name = "ID", value_parser = id)]
    id: Id,
    /// Times in UTC and not in the zone of this machine.
    #[arg(long)]
    utc: bool,
}

/// The dead letters that something is done to.
#[derive(Debug, Args)]
struct These {
    /// The dead letters: CONSUMER/STREAM/SEQUENCE.
    #[arg(value_name = "ID", value_parser = id)]
    ids: Vec<Id>,
    #[command(flatten)]
    chosen: Chosen,
    /// All that are dead.
    #[arg(long)]
    all: bool,
    /// Show which they are, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    #[command(flatten)]
    these: These,
}

#[derive(Debug, Args)]
pub(crate) struct Discarding {
    #[command(flatten)]
    these: These,
    /// Why, for whoever looks later.
    #[arg(long, value_name = "TEXT")]
    because: String,
    /// Also those that somebody asked to replay. If a member of the consumer runs, the event may be
    /// handled all the same.
    #[arg(long)]
    replaying: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

impl Discarding {
    fn discard(&self) -> Discard {
        let discard = Discard::because(self.because.as_str());
        match self.replaying {
            true => discard.also_replaying(),
            false => discard,
        }
    }
}

pub(crate) async fn run(bus: &Bus, command: &Dlq, console: &mut Console) -> Result<Exit> {
    let letters = dead_letters(bus);
    match command {
        Dlq::List(options) => list::run(&letters, options, console).await,
        Dlq::Show(options) => show::run(&letters, options, console).await,
        Dlq::Replay(options) => change::replay(&letters, options, console).await,
        Dlq::Discard(options) => change::discard(&letters, options, console).await,
    }
}

/// Changes say who asked for them: the user of this terminal, where there is one.
fn dead_letters(bus: &Bus) -> DeadLetters {
    let user = ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    match user {
        Some(user) => bus.dead_letters().by(user),
        None => bus.dead_letters(),
    }
}

fn id(text: &str) -> std::result::Result<Id, String> {
    text.parse()
        .map_err(|error: trunkline::Error| error.message().to_owned())
}

fn state(text: &str) -> std::result::Result<Stands, String> {
    text.parse()
        .map_err(|error: trunkline::Error| error.message().to_owned())
}

fn parsed_time(text: &str) -> std::result::Result<Timestamp, String> {
    match start(text) {
        Ok(Start::Time(time)) => Ok(time),
        _ => Err(format!(
            "{text:?} is no time: use an RFC 3339 time, or how long ago, as in 10m"
        )),
    }
}

#[cfg(test)]
mod tests;
