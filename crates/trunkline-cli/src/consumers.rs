//! `trunkline consumers`: who reads durably, how far they are, what holds them up, and what operators
//! do about it.

mod change;
mod divide;
mod shown;
mod standing;
mod why;

use clap::{Args, Subcommand};
use trunkline::explain::ConsumerTerms;
use trunkline::{Bus, Name, Result};

use crate::console::Console;
use crate::exit::Exit;
use crate::figures::grouped;
use crate::look::Style;
use crate::replay::name;
use crate::table::{Cell, Table};

#[derive(Debug, Subcommand)]
pub(crate) enum Consumers {
    /// Every consumer, who works on it, and what it has before it.
    List,
    /// One consumer with its members, on every stream that it reads.
    Show(Show),
    /// Say what holds a consumer up, and what to do. Ends with 1 if something does.
    Why(Show),
    /// One line a consumer: name, stream, events and seconds that it is behind.
    Lag(Lag),
    /// Let a consumer start nothing until it is resumed.
    Pause(change::Pause),
    /// Take back a pause.
    Resume(change::Resume),
    /// Let a consumer handle everything from a position on again.
    Reset(change::Reset),
    /// Divide the keys of a consumer into another number of partitions; members may run meanwhile.
    Divide(divide::Divide),
    /// Delete a consumer with its progress.
    Delete(change::Delete),
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The consumer.
    #[arg(value_name = "NAME", value_parser = name)]
    consumer: Name,
}

#[derive(Debug, Args)]
pub(crate) struct Lag {
    /// This consumer only.
    #[arg(value_name = "NAME", value_parser = name)]
    consumer: Option<Name>,
}

pub(crate) async fn run(bus: &Bus, command: &Consumers, console: &mut Console) -> Result<Exit> {
    match command {
        Consumers::List => shown::list(bus, console).await?,
        Consumers::Show(options) => shown::show(bus, &options.consumer, console).await?,
        Consumers::Lag(options) => shown::lags(bus, options.consumer.as_ref(), console).await?,
        Consumers::Why(options) => return why::why(bus, &options.consumer, console).await,
        Consumers::Pause(options) => return change::pause(bus, options, console).await,
        Consumers::Resume(options) => return change::resume(bus, options, console).await,
        Consumers::Reset(options) => return change::reset(bus, options, console).await,
        Consumers::Divide(options) => return divide::divide(bus, options, console).await,
        Consumers::Delete(options) => return change::delete(bus, options, console).await,
    }
    Ok(Exit::Done)
}

/// The consumers that are wanted, one a row.
pub(crate) fn table(consumers: &[ConsumerTerms], wanted: impl Fn(&ConsumerTerms) -> bool) -> Table {
    let mut table = Table::new(&[
        "consumer",
        "stream",
        ">pending",
        ">in flight",
        ">floor",
        ">expired",
        "filters",
    ]);
    for consumer in consumers.iter().filter(|consumer| wanted(consumer)) {
        table.row([
            consumer.name.as_str().into(),
            consumer.stream.as_str().into(),
            grouped(consumer.pending).into(),
            grouped(consumer.in_flight).into(),
            grouped(consumer.floor).into(),
            expired(consumer),
            filters(consumer).into(),
        ]);
    }
    table
}

fn expired(consumer: &ConsumerTerms) -> Cell {
    let style = if consumer.expired_at_most > 0 {
        Style::Bad
    } else {
        Style::Plain
    };
    Cell::styled(style, grouped(consumer.expired_at_most))
}

fn filters(consumer: &ConsumerTerms) -> String {
    let filters: Vec<&str> = consumer
        .filters
        .iter()
        .map(trunkline::Filter::as_str)
        .collect();
    filters.join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use trunkline::core::engine::{Change, ConsumerRef, ConsumerSpec};
    use trunkline::{Filter, Start};

    use trunkline::ErrorKind;

    use super::*;
    use crate::console::tests::kept;
    use crate::filled::filled;

    async fn consumed() -> Bus {
        let bus = filled().await;
        for (stream, filter) in [("EVENTS", "events.order.>"), ("COMMANDS", "commands.x")] {
            let spec = ConsumerSpec {
                at: ConsumerRef {
                    stream: Name::new(stream).unwrap(),
                    consumer: Name::new("billing").unwrap(),
                },
                filters: vec![Filter::new(filter).unwrap()],
                start: Start::First,
                ack_wait: Duration::from_secs(30),
                max_in_flight: 100,
            };
            let changes = vec![Change::CreateConsumer(spec)];
            bus.engine().topology().apply(changes).await.unwrap();
        }
        bus
    }

    async fn told(bus: &Bus, command: &Consumers, width: usize, json: bool) -> String {
        let (mut console, out, _) = kept(width);
        console.json = json;
        run(bus, command, &mut console).await.unwrap();
        out.text()
    }

    #[tokio::test]
    async fn a_consumer_is_shown_on_every_stream() {
        let bus = consumed().await;
        let list = told(&bus, &Consumers::List, 90, false).await;
        let cells: Vec<Vec<&str>> = list
            .lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|cell| !cell.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            cells[0],
            [
                "consumer", "stream", "mode", "state", "members", "lag", "behind", "filters"
            ]
        );
        let (commands, events) = (&cells[1], &cells[2]);
        assert_eq!(commands[..4], ["billing", "COMMANDS", "shared", "idle"]);
        assert_eq!(events[..4], ["billing", "EVENTS", "shared", "running"]);
        assert_eq!((events[5].trim(), events[7]), ("3", "events.order.>"));
        let show = Consumers::Show(crate::parsed(&["billing"]));
        let text = told(&bus, &show, 40, false).await;
        assert!(
            text.contains("\n\nconsumer:  billing\nstream:    EVENTS\n"),
            "{text}"
        );
        let json = told(&bus, &show, 40, true).await;
        let consumers: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&consumers[1]["pending"], &consumers[1]["ack_wait_ms"]),
            (&3.into(), &30_000.into())
        );
    }

    #[tokio::test]
    async fn deleting_needs_a_yes_and_a_consumer() {
        let bus = consumed().await;
        let delete = |arguments: &[&str]| Consumers::Delete(crate::parsed(arguments));
        let text = told(
            &bus,
            &delete(&["billing", "--yes", "--stream", "EVENTS"]),
            80,
            false,
        )
        .await;
        assert_eq!(text, "deleted consumer billing of stream EVENTS\n");
        let error = run(&bus, &delete(&["billng", "--yes"]), &mut kept(80).0).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::NoSuchConsumer);
        told(&bus, &delete(&["billing", "-y"]), 80, false).await;
        assert!(bus.inspect().await.unwrap().consumers.is_empty());
    }
}
