//! `trunkline worker`: a member of a consumer whose handler is a command, in any language.
//!
//! ```text
//! an event as JSON ──► its standard input      it ends with   0 ──► done
//!                      its standard output ──► ours          65 ──► a dead letter
//!                      its standard error  ──► ours; the     75 ──► again, when it says so
//!                      end of it is the error         all others ──► again
//! ```
//!
//! **Invariant:** no process of a command's group outlives the run that it was started for, as long
//! as this process lives.

mod child;
mod program;
mod relay;
mod said;
mod tally;

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;
use trunkline::core::wire::encode_structured;
use trunkline::dead_letter::Buried;
use trunkline::{
    Bus, ConsumerHandle, Context, ErrorKind, Failure, FailureExt, Filter, Incoming, Name, Result,
    Retry, Start,
};

use crate::console::Console;
use crate::dlq;
use crate::exit::Exit;
use crate::figures::{duration as length, grouped};
use crate::global::Global;
use crate::interrupt::Signals;
use crate::link::LinkNews;
use crate::moment::duration;
use crate::open;
use crate::replay::{name, parsed_start};
use crate::sub::filter;
use child::{End, GRACE, Group};
use program::Program;
use relay::Relay;
use tally::Tally;

/// How long an event waits whose command could not even be started: the host's fault, so that it
/// does not count.
const NOT_STARTED: Duration = Duration::from_secs(10);
/// How long after the last command was killed the member gets for writing that down.
const LAST_WORDS: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(crate) struct Worker {
    /// The consumer. Workers and programs of one name share its events.
    #[arg(long, value_name = "NAME", value_parser = name)]
    consumer: Name,
    /// Types to handle: `order.placed`, `order.*` or `order.>`; may be given several times.
    #[arg(long = "filter", value_name = "FILTER", value_parser = filter, required_unless_present = "dead_letters")]
    filters: Vec<Filter>,
    /// Handle what consumers give up, in place of events: each as the document of `dlq show --json`.
    #[arg(long, conflicts_with_all = ["filters", "ordered"])]
    dead_letters: bool,
    /// Where the consumer starts when it is made: first, new, a sequence, a time, how long ago, or
    /// last:N [default: first].
    #[arg(long, value_name = "POSITION", value_parser = parsed_start)]
    from: Option<Start>,
    /// Commands that run at once [default: 16].
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,
    /// Stop a command that runs for longer: SIGTERM, 5 s later SIGKILL; its event is tried again.
    #[arg(long, alias = "timeout", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    time_out: Duration,
    /// How often an event is tried, the first time included [default: 5, or one more than there are
    /// `--delays`].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(Retry::MAX_ATTEMPTS)))]
    attempts: Option<u32>,
    /// The pauses between attempts, one after another; the last for all that follow
    /// [default: 1s,5s,30s,5m].
    #[arg(long, value_name = "DURATIONS", value_delimiter = ',', value_parser = duration)]
    delays: Vec<Duration>,
    /// Keep the order of keys, which is the default.
    #[arg(long, conflicts_with = "unordered")]
    ordered: bool,
    /// Give every event to whoever is free, without any order.
    #[arg(long)]
    unordered: bool,
    /// The command that handles an event, with its arguments; everything after it is theirs.
    #[arg(long, value_name = "CMD", num_args = 1.., required = true, allow_hyphen_values = true)]
    exec: Vec<OsString>,
}

impl Worker {
    /// How often and when, where anything is said of it.
    fn retry(&self) -> Option<Retry> {
        const USUAL: [u64; 4] = [1, 5, 30, 300];
        if self.attempts.is_none() && self.delays.is_empty() {
            return None;
        }
        let delays = match self.delays.as_slice() {
            [] => USUAL.map(Duration::from_secs).to_vec(),
            delays => delays.to_vec(),
        };
        let retries = match self.attempts {
            Some(attempts) => usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX),
            None => delays.len(),
        };
        let last = delays.last().copied().into_iter();
        let delays = delays.iter().copied().chain(last.cycle());
        Some(Retry::list(delays.take(retries)))
    }
}

/// What every run of the command needs.
struct Hands {
    program: Program,
    time_out: Duration,
    /// Whether what runs is to be stopped.
    cut: watch::Sender<bool>,
    tally: Tally,
    relay: Relay,
}

/// Runs a member until SIGTERM or ctrl-c, then lets what runs end within the drain deadline. A
/// second signal is that deadline.
pub(crate) async fn worker(options: Worker, global: &Global) -> Result<Exit> {
    let program = Program::find(&options.exec)?;
    // In place before anything is started, so that whoever stops it at once stops it well.
    let mut signals = Signals::listen()?;
    let mut console = Console::standard(global);
    let bus = tokio::select! {
        bus = open::bus(global) => bus?,
        () = signals.next() => return Ok(Exit::Interrupted),
    };
    let hands = Arc::new(Hands {
        program,
        time_out: options.time_out,
        cut: watch::Sender::new(false),
        tally: Tally::default(),
        relay: Relay::start()?,
    });
    let done = work(&bus, &options, &hands, &mut console, signals).await;
    let closed = bus.close().await;
    let exit = done?;
    closed?;
    Ok(exit)
}

async fn work(
    bus: &Bus,
    options: &Worker,
    hands: &Arc<Hands>,
    console: &mut Console,
    mut signals: Signals,
) -> Result<Exit> {
    let handle = start(bus, options, hands).await?;
    let what = match options.dead_letters {
        true => "dead letters".to_owned(),
        false => {
            let filters: Vec<&str> = options.filters.iter().map(Filter::as_str).collect();
            filters.join(", ")
        }
    };
    console.note(format_args!(
        "consumer {} handles {what} with {}; ctrl-c ends it",
        options.consumer, hands.program
    ));
    let mut link = LinkNews::of(bus);
    let report = loop {
        tokio::select! {
            biased;
            report = handle.ended() => break report,
            () = signals.next() => break drain(bus, &handle, hands, console, &mut signals).await,
            news = link.next() => console.note(news),
        }
    };
    // The member has ended; commands that it left behind are being stopped.
    hands.tally.idle(GRACE + LAST_WORDS).await;
    let lost = hands.relay.end().await;
    let cut = report.cancelled as u64 + hands.tally.cut();
    if console.json {
        console.json_document(&serde_json::json!({
            "consumer": options.consumer.as_str(),
            "done": hands.tally.done(),
            "failed": hands.tally.failed(),
            "cut": cut,
            "given_back": report.given_back,
        }))?;
    }
    if lost > 0 {
        console.note(format_args!(
            "note: {} bytes of what commands wrote to standard error are not shown; nobody took them in time",
            grouped(lost)
        ));
    }
    console.note(format_args!(
        "consumer {}: {} done, {} failed runs, {} cut short, {} given back",
        options.consumer,
        grouped(hands.tally.done()),
        grouped(hands.tally.failed()),
        grouped(cut),
        grouped(report.given_back as u64),
    ));
    match report.failed {
        Some(error) => Err(error),
        None if cut > 0 => Ok(Exit::Failed),
        None => Ok(Exit::Done),
    }
}

async fn start(bus: &Bus, options: &Worker, hands: &Arc<Hands>) -> Result<ConsumerHandle> {
    // Beyond ours, so that the event of a command that is being stopped waits until it is.
    let time_out = options.time_out.saturating_add(GRACE + LAST_WORDS);
    let mut consumer = bus.consumer(options.consumer.as_str()).time_out(time_out);
    for filter in &options.filters {
        let hands = Arc::clone(hands);
        consumer = consumer.on_raw(
            filter.clone(),
            move |event: Arc<Incoming>, context: Context| {
                let hands = Arc::clone(&hands);
                async move {
                    let json = encode_structured(&event.envelope)?;
                    hands.handle(&json, &context).await
                }
            },
        );
    }
    if options.dead_letters {
        let hands = Arc::clone(hands);
        consumer = consumer.on_dead_letter(move |dead: Arc<Buried>, context: Context| {
            let hands = Arc::clone(&hands);
            async move {
                match document(&dead, &context).await? {
                    Some(json) => hands.handle(&json, &context).await,
                    None => Ok(()),
                }
            }
        });
    }
    if let Some(from) = options.from {
        consumer = consumer.from(from);
    }
    if let Some(concurrency) = options.concurrency {
        consumer = consumer.concurrency(concurrency);
    }
    if let Some(retry) = options.retry() {
        consumer = consumer.retry(retry);
    }
    if options.unordered {
        consumer = consumer.unordered();
    } else if options.ordered {
        consumer = consumer.ordered();
    }
    consumer.start().await
}

/// Stops reading, lets what runs end, and cuts it short at the deadline or the next signal.
async fn drain(
    bus: &Bus,
    handle: &ConsumerHandle,
    hands: &Hands,
    console: &mut Console,
    signals: &mut Signals,
) -> trunkline::consumer::StopReport {
    let deadline = bus.drain_deadline();
    console.note(format_args!(
        "stopping: {} commands run and have {} to end; another ctrl-c stops them at once",
        grouped(hands.tally.running() as u64),
        length(deadline)
    ));
    // What is cut short takes its time to end, and only then may its event go to another member.
    let stopped = handle.stop_within(deadline + GRACE + LAST_WORDS);
    tokio::pin!(stopped);
    let deadline = tokio::time::sleep(deadline);
    tokio::pin!(deadline);
    let mut cut = false;
    loop {
        tokio::select! {
            report = &mut stopped => return report,
            () = &mut deadline, if !cut => cut = true,
            () = signals.next() => cut = true,
        }
        if cut {
            hands.cut.send_replace(true);
        }
    }
}

/// What `dlq show --json` says of a dead letter; none once it is dealt with and forgotten.
async fn document(dead: &Buried, context: &Context) -> Result<Option<Vec<u8>>> {
    let letters = context.bus().dead_letters();
    match letters.show(&dead.id()).await {
        Ok(shown) => Ok(Some(dlq::shown(&letters, &shown)?.to_string().into_bytes())),
        Err(error) if error.kind() == ErrorKind::NoSuchDeadLetter => Ok(None),
        Err(error) => Err(error),
    }
}

impl Hands {
    /// Runs the command for one event, which it gets as JSON.
    async fn handle(&self, json: &[u8], context: &Context) -> std::result::Result<(), Failure> {
        // With an end of line, for those who read by lines.
        let json = [json, b"\n"].concat();
        let command = self.program.command(context);
        let group = match Group::start(command, json.into(), &self.tally) {
            Ok(group) => group,
            Err(error) => {
                self.tally.one_failed();
                let text = format!("{} could not be started: {error}", self.program);
                return Err(text.throttled(NOT_STARTED));
            }
        };
        let ended = group
            .run(self.time_out, self.cut.subscribe(), &self.relay)
            .await;
        let outcome = self.judge(ended);
        match &outcome {
            Ok(()) => self.tally.one_done(),
            Err(failure) if failure.disposition() == Some(CUT) => self.tally.one_cut(),
            Err(_) => self.tally.one_failed(),
        }
        outcome
    }

    /// What the end of a command says of its event.
    fn judge(&self, ended: child::Ended) -> std::result::Result<(), Failure> {
        /// Not now, as in `sysexits.h`.
        const TEMPORARY: i32 = 75;
        /// The data is wrong, and will be the next time.
        const DATA: i32 = 65;
        let said = &ended.said;
        match ended.end {
            End::Exited(0) => Ok(()),
            End::Exited(DATA) => Err(said.with("it exited with 65").permanent()),
            End::Exited(TEMPORARY) => {
                let text = said.with("it exited with 75");
                match said.retry_after() {
                    Some(after) => Err(text.throttled(after)),
                    None => Err(text.into()),
                }
            }
            End::Exited(code) => Err(said.with(&format!("it exited with {code}")).into()),
            End::Killed(signal) => Err(said.with(&format!("it was killed by {signal}")).into()),
            End::TimedOut(after) => {
                let text = format!("it ran for more than {} and was stopped", length(after));
                Err(said.with(&text).into())
            }
            End::Cut => Err(Failure::from("it was stopped with its worker").snooze(Duration::ZERO)),
            End::Unknown(error) => Err(format!("its end cannot be told: {error}").into()),
        }
    }
}

/// What is said of an event whose command was stopped with the worker: at once again, uncounted.
const CUT: trunkline::Disposition = trunkline::Disposition::Snooze(Duration::ZERO);

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(arguments: &[&str]) -> Worker {
        let all = ["--consumer", "c", "--filter", "a.>", "--exec", "true"];
        crate::parsed(&[arguments, &all].concat())
    }

    #[test]
    fn attempts_and_delays_make_one_policy() {
        let check = |arguments: &[&str], expected: Option<&[u64]>| {
            let expected =
                expected.map(|delays| Retry::list(delays.iter().copied().map(Duration::from_secs)));
            assert_eq!(worker(arguments).retry(), expected, "{arguments:?}");
        };
        check(&[], None);
        check(&["--attempts", "1"], Some(&[]));
        check(&["--attempts", "3"], Some(&[1, 5]));
        check(&["--attempts", "7"], Some(&[1, 5, 30, 300, 300, 300]));
        check(&["--delays", "2s,3s"], Some(&[2, 3]));
        check(&["--delays", "2s", "--attempts", "4"], Some(&[2, 2, 2]));
    }

    #[test]
    fn everything_behind_the_command_is_its_own() {
        let options: Worker = crate::parsed(&[
            "--consumer",
            "c",
            "--filter",
            "a.>",
            "--filter",
            "b",
            "--exec",
            "sh",
            "-c",
            "exit 3",
            "--consumer",
        ]);
        assert_eq!(options.exec, ["sh", "-c", "exit 3", "--consumer"]);
        assert_eq!(options.filters.len(), 2);
    }
}
