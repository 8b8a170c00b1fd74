//! `trunkline consumers`: who reads durably, and how far they are.

use clap::{Args, Subcommand};
use trunkline::explain::ConsumerTerms;
use trunkline::{Bus, Error, ErrorKind, Explanation, Name, Result};

use crate::ask;
use crate::console::Console;
use crate::exit::Exit;
use crate::figures::{duration, grouped};
use crate::look::Style;
use crate::replay::name;
use crate::table::{Cell, Facts, Table};

#[derive(Debug, Subcommand)]
pub(crate) enum Consumers {
    /// Every consumer and what it has before it.
    List,
    /// One consumer, on every stream that it reads.
    Show(Show),
    /// Delete a consumer with its progress.
    Delete(Delete),
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The consumer.
    #[arg(value_name = "NAME", value_parser = name)]
    consumer: Name,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// The consumer.
    #[arg(value_name = "NAME", value_parser = name)]
    consumer: Name,
    /// On this stream only.
    #[arg(long, value_name = "NAME", value_parser = name)]
    stream: Option<Name>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(bus: &Bus, command: &Consumers, console: &mut Console) -> Result<Exit> {
    match command {
        Consumers::List => list(&bus.explain().await?, console)?,
        Consumers::Show(options) => show(&bus.explain().await?, &options.consumer, console)?,
        Consumers::Delete(options) => return delete(bus, options, console).await,
    }
    Ok(Exit::Done)
}

fn list(explanation: &Explanation, console: &mut Console) -> Result<()> {
    if console.json {
        return console.json_document(&explanation.consumers);
    }
    if explanation.consumers.is_empty() {
        console.note("there is no consumer; one is made when it starts");
        return Ok(());
    }
    console
        .out
        .text(table(&explanation.consumers, |_| true).render(console.look))?;
    console.out.flush()
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

fn show(explanation: &Explanation, name: &Name, console: &mut Console) -> Result<()> {
    let found: Vec<&ConsumerTerms> = explanation
        .consumers
        .iter()
        .filter(|consumer| consumer.name == *name)
        .collect();
    if found.is_empty() {
        return Err(unknown(explanation, name));
    }
    if console.json {
        return console.json_document(&found);
    }
    for (index, consumer) in found.iter().enumerate() {
        if index > 0 {
            console.out.text("\n")?;
        }
        let mut facts = Facts::default();
        facts.add("consumer", consumer.name.as_str());
        facts.add("stream", consumer.stream.as_str());
        facts.add("filters", filters(consumer));
        facts.add("began at", &consumer.start);
        facts.add("ack wait", duration(consumer.ack_wait));
        facts.add("pending", grouped(consumer.pending));
        facts.add(
            "in flight",
            format!(
                "{} of {} at most",
                grouped(consumer.in_flight),
                grouped(consumer.max_in_flight as u64)
            ),
        );
        facts.add(
            "floor",
            format!(
                "{}: everything up to it is settled",
                grouped(consumer.floor)
            ),
        );
        match consumer.expired_at_most {
            0 => facts.add("expired", "0"),
            expired => facts.styled(
                "expired",
                Style::Bad,
                format!(
                    "{} at most: retention took them before they were handled",
                    grouped(expired)
                ),
            ),
        }
        console.out.text(facts.render(console.look))?;
    }
    console.out.flush()
}

async fn delete(bus: &Bus, options: &Delete, console: &mut Console) -> Result<Exit> {
    let Delete {
        consumer,
        stream,
        yes,
    } = options;
    if !yes {
        let explanation = bus.explain().await?;
        let at = |found: &&ConsumerTerms| {
            found.name == *consumer && stream.as_ref().is_none_or(|stream| found.stream == *stream)
        };
        let found: Vec<&ConsumerTerms> = explanation.consumers.iter().filter(at).collect();
        if found.is_empty() {
            return Err(unknown(&explanation, consumer));
        }
        let pending: u64 = found.iter().map(|consumer| consumer.pending).sum();
        let question = format!(
            "delete consumer {consumer} with its progress ({} events pending)?",
            grouped(pending)
        );
        let unasked = format!("deleting consumer {consumer} loses its progress");
        if !ask::agreed(console, &question, &unasked).await? {
            console.note("nothing was deleted");
            return Ok(Exit::Failed);
        }
    }
    let deleted = bus.delete_consumer(consumer, stream.as_ref()).await?;
    if console.json {
        let deleted: Vec<_> = deleted
            .iter()
            .map(|at| serde_json::json!({"name": at.consumer.as_str(), "stream": at.stream.as_str()}))
            .collect();
        console.json_document(&deleted)?;
    } else {
        for at in deleted {
            console.out.line(format!(
                "deleted consumer {} of stream {}",
                at.consumer, at.stream
            ))?;
        }
        console.out.flush()?;
    }
    Ok(Exit::Done)
}

fn unknown(explanation: &Explanation, name: &Name) -> Error {
    let mut known: Vec<&str> = explanation
        .consumers
        .iter()
        .map(|consumer| consumer.name.as_str())
        .collect();
    known.dedup();
    let hint = if known.is_empty() {
        "there is none at all".to_owned()
    } else {
        format!("there are {}", known.join(", "))
    };
    Error::new(
        ErrorKind::NoSuchConsumer,
        format!("there is no consumer {name}; {hint}"),
    )
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
        assert_eq!(
            told(&bus, &Consumers::List, 90, false).await,
            "consumer  stream    pending  in flight  floor  expired  filters\n\
             billing   COMMANDS        0          0      0        0  commands.x\n\
             billing   EVENTS          3          0      0        0  events.order.>\n"
        );
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
