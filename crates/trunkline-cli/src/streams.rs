//! `trunkline streams`: what is stored where.

mod cat;

use clap::{Args, Subcommand};
use trunkline::core::engine::Retention;
use trunkline::core::{Clock, SystemClock};
use trunkline::explain::StreamTerms;
use trunkline::{Bus, Error, ErrorKind, Explanation, Name, Result};

use crate::console::Console;
use crate::consumers;
use crate::exit::Exit;
use crate::figures::{bytes, duration, grouped};
use crate::moment::Times;
use crate::replay::name;
use crate::table::{Facts, Table};

#[derive(Debug, Subcommand)]
pub(crate) enum Streams {
    /// Every stream and how it stands.
    List,
    /// One stream: its limits and its consumers.
    Info(Info),
    /// What is stored in a stream, also what is no CloudEvent.
    Cat(cat::Cat),
}

#[derive(Debug, Args)]
pub(crate) struct Info {
    /// The stream.
    #[arg(value_name = "NAME", value_parser = name)]
    stream: Name,
}

pub(crate) async fn run(bus: &Bus, command: &Streams, console: &mut Console) -> Result<Exit> {
    match command {
        Streams::List => list(&bus.explain().await?, console)?,
        Streams::Info(info) => show(&bus.explain().await?, &info.stream, console)?,
        Streams::Cat(cat) => cat::run(bus, cat, console).await?,
    }
    Ok(Exit::Done)
}

fn list(explanation: &Explanation, console: &mut Console) -> Result<()> {
    if console.json {
        return console.json_document(&explanation.streams);
    }
    let mut table = Table::new(&["stream", ">events", ">size", ">oldest", "keeps", "subjects"]);
    for stream in &explanation.streams {
        table.row([
            stream.name.as_str().into(),
            grouped(stream.events).into(),
            bytes(stream.bytes).into(),
            oldest(stream).into(),
            keeps(stream).into(),
            subjects(stream).into(),
        ]);
    }
    console.out.text(table.render(console.look))?;
    console.out.flush()
}

fn show(explanation: &Explanation, name: &Name, console: &mut Console) -> Result<()> {
    let mut streams = explanation.streams.iter();
    let Some(stream) = streams.find(|stream| stream.name == *name) else {
        let known: Vec<&str> = explanation
            .streams
            .iter()
            .map(|stream| stream.name.as_str())
            .collect();
        return Err(Error::new(
            ErrorKind::NoSuchStream,
            format!("there is no stream {name}; there are {}", known.join(", ")),
        ));
    };
    if console.json {
        return console.json_document(stream);
    }
    let mut facts = Facts::default();
    facts.add("stream", stream.name.as_str());
    facts.add("subjects", subjects(stream));
    facts.add("events", grouped(stream.events));
    facts.add("size", bytes(stream.bytes));
    facts.add("first", grouped(stream.first));
    facts.add("next", grouped(stream.tail));
    if let Some(at) = stream.first_at {
        let age = duration(SystemClock.now().since(at));
        facts.add(
            "oldest",
            format!("{} ({age} ago)", Times::local().date_and_clock(at)),
        );
    }
    facts.add("keeps", keeps(stream));
    facts.add("when full", when_full(stream.retention));
    facts.add(
        "message",
        format!("{} at most", bytes(stream.max_message_bytes as u64)),
    );
    facts.add(
        "repeats",
        format!(
            "an id is stored once within {}",
            duration(stream.duplicate_window)
        ),
    );
    facts.add("copies", grouped(stream.replicas as u64));
    facts.add(
        "made by",
        if stream.ours {
            "trunkline"
        } else {
            "others; never changed by trunkline"
        },
    );
    console.out.text(facts.render(console.look))?;
    let mut own = explanation.consumers.iter();
    if own.any(|consumer| consumer.stream == *name) {
        console.out.text("\n")?;
        let table = consumers::table(&explanation.consumers, |consumer| consumer.stream == *name);
        console.out.text(table.render(console.look))?;
    }
    console.out.flush()
}

pub(crate) fn subjects(stream: &StreamTerms) -> String {
    let subjects: Vec<&str> = stream
        .subjects
        .iter()
        .map(trunkline::Filter::as_str)
        .collect();
    subjects.join(", ")
}

fn oldest(stream: &StreamTerms) -> String {
    match stream.first_at {
        Some(at) => duration(SystemClock.now().since(at)),
        None => "-".to_owned(),
    }
}

/// `7 d, 1 000 000 events, 256 MiB`, whichever comes first.
pub(crate) fn keeps(stream: &StreamTerms) -> String {
    let limits = [
        stream.max_age.map(duration),
        stream
            .max_events
            .map(|events| format!("{} events", grouped(events))),
        stream.max_bytes.map(bytes),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    if limits.is_empty() {
        "without a limit of its own".to_owned()
    } else {
        limits.join(", ")
    }
}

/// What happens at a limit, in words.
pub(crate) fn when_full(retention: Retention) -> &'static str {
    match retention {
        Retention::DiscardOld => "the oldest events leave, read or not; who missed them is told",
        Retention::RefuseWhenFull => "new events are refused, and publishers are told",
        Retention::WorkQueue => "new ones are refused; what is done leaves by itself",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::kept;
    use crate::filled::filled;

    #[tokio::test]
    async fn streams_are_listed_for_people_and_programs() {
        let bus = filled().await;
        let (mut console, out, _) = kept(100);
        run(&bus, &Streams::List, &mut console).await.unwrap();
        let text = out.text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("stream      events"), "{text}");
        assert!(lines[2].starts_with("EVENTS           4"), "{text}");
        let (mut console, out, _) = kept(40);
        run(&bus, &Streams::List, &mut console).await.unwrap();
        assert!(
            out.text().contains("\n\nstream:   EVENTS\nevents:   4\n"),
            "{}",
            out.text()
        );
        let (mut console, out, _) = kept(40);
        console.json = true;
        run(&bus, &Streams::List, &mut console).await.unwrap();
        let streams: serde_json::Value = serde_json::from_str(&out.text()).unwrap();
        assert_eq!(streams[1]["name"], "EVENTS");
        assert_eq!(streams[1]["retention"], "discard_old");
    }

    #[tokio::test]
    async fn an_unknown_stream_is_an_error_that_names_the_others() {
        let bus = filled().await;
        let stream = Name::new("ORDERS").unwrap();
        let info = Streams::Info(Info { stream });
        let error = run(&bus, &info, &mut kept(80).0).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSuchStream);
        assert!(error.message().contains("EVENTS"));
    }
}
