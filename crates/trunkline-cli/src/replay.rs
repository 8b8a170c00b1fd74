//! `trunkline replay`: what is stored, oldest first.

use clap::Args;
use trunkline::history::{End, Progress};
use trunkline::{Bus, Filter, History, Incoming, Item, Name, Result, Start};

use crate::console::Console;
use crate::exit::Exit;
use crate::figures::grouped;
use crate::interrupt::Interrupt;
use crate::link::LinkNews;
use crate::moment::{end, start};
use crate::row::{Payload, Rows};
use crate::sub::{filter, or_all};
use crate::wire_line::{event_line, following, hint, positioned_line, remark};

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Types to read: `order.placed`, `order.*` or `order.>`; everything unless given.
    #[arg(value_name = "FILTER", value_parser = filter)]
    filters: Vec<Filter>,
    /// Where to begin: `first`, a sequence, an RFC 3339 time, how long ago (`10m`), `last:N`, or
    /// `last-per-subject`.
    #[arg(long, value_name = "POSITION", default_value = "first", value_parser = parsed_start)]
    from: Start,
    /// Where to end, included: a sequence, an RFC 3339 time, or how long ago [default: the end as
    /// it was when this began].
    #[arg(long, value_name = "POSITION", value_parser = parsed_end)]
    to: Option<End>,
    /// Go on with what comes.
    #[arg(long, conflicts_with = "to")]
    follow: bool,
    /// Read this stream only.
    #[arg(long, value_name = "NAME", value_parser = name)]
    stream: Option<Name>,
    /// Write JSON, with each event in an object that says where and when it was stored.
    #[arg(long)]
    with_position: bool,
    /// Times in UTC and not in the zone of this machine.
    #[arg(long)]
    utc: bool,
}

pub(crate) async fn run(
    bus: &Bus,
    options: &Replay,
    console: &mut Console,
    mut interrupt: Interrupt,
) -> Result<Exit> {
    let mut writer = Writer::new(options, console);
    let history = tokio::select! {
        history = stored(bus, options, console, &mut writer) => history?,
        () = interrupt.asked() => return Ok(Exit::Interrupted),
    };
    if options.follow {
        follow(bus, options, history, console, &mut writer, interrupt).await
    } else {
        Ok(Exit::Done)
    }
}

/// What there was when it began.
async fn stored(
    bus: &Bus,
    options: &Replay,
    console: &mut Console,
    writer: &mut Writer,
) -> Result<History> {
    let filters = or_all(&options.filters);
    let mut history = bus.history(&filters, options.from).await?;
    if let Some(stream) = &options.stream {
        history = history.only(stream)?;
    }
    if let Some(end) = options.to {
        history = history.until(end);
    }
    // A terminal that shows the events needs no other progress.
    let draws = !console.on_terminal;
    let mut count = 0;
    while let Some(page) = history.next_page().await? {
        for item in page {
            count += writer.write(console, &item)?;
        }
        if draws {
            console.progress(|| done(count, history.progress()));
        }
    }
    console.out.flush()?;
    console.clear_progress();
    if count == 0 && !options.filters.is_empty() {
        hint(bus, &filters, console).await;
    }
    Ok(history)
}

/// What comes after it.
async fn follow(
    bus: &Bus,
    options: &Replay,
    history: History,
    console: &mut Console,
    writer: &mut Writer,
    mut interrupt: Interrupt,
) -> Result<Exit> {
    let mut events = history.follow().await?;
    following(console, &or_all(&options.filters));
    let mut link = LinkNews::of(bus);
    let mut items = Vec::new();
    loop {
        tokio::select! {
            biased;
            // There is no other way to end it.
            () = interrupt.asked() => return Ok(Exit::Done),
            news = link.next() => console.note(news),
            came = events.recv_many(256, &mut items) => if came == 0 {
                console.say("the bus was closed");
                return Ok(Exit::Unreachable);
            },
        }
        for item in items.drain(..) {
            writer.write(console, &item)?;
        }
        console.out.flush()?;
    }
}

fn done(count: u64, Progress { done, total }: Progress) -> String {
    let percent = (done * 100).checked_div(total).unwrap_or(100);
    format!("{percent} % · {} events", grouped(count))
}

/// Writes events in the form that was asked for.
enum Writer {
    Rows(Rows),
    Lines,
    Positioned,
}

impl Writer {
    fn new(options: &Replay, console: &Console) -> Self {
        if options.with_position {
            Self::Positioned
        } else if console.json {
            Self::Lines
        } else {
            Self::Rows(Rows::new(Payload::Short, options.utc))
        }
    }

    /// How many events it was: one or none.
    fn write(&mut self, console: &mut Console, item: &Item<Incoming>) -> Result<u64> {
        let Item::Event(event) = item else {
            remark(console, item);
            return Ok(0);
        };
        match self {
            Self::Rows(rows) => console.out.text(rows.render(event, console.look))?,
            Self::Lines => event_line(console, event)?,
            Self::Positioned => positioned_line(console, event)?,
        }
        Ok(1)
    }
}

pub(crate) fn parsed_start(text: &str) -> std::result::Result<Start, String> {
    start(text).map_err(|error| error.message().to_owned())
}

fn parsed_end(text: &str) -> std::result::Result<End, String> {
    end(text).map_err(|error| error.message().to_owned())
}

pub(crate) fn name(text: &str) -> std::result::Result<Name, String> {
    Name::new(text).map_err(|error| error.message().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::kept;
    use crate::filled::{filled, publish};

    async fn replayed(bus: &Bus, arguments: &[&str]) -> (String, String) {
        let options = crate::parsed::<Replay>(arguments);
        let (mut console, out, talk) = kept(80);
        console.json = true;
        let exit = run(bus, &options, &mut console, Interrupt::never())
            .await
            .unwrap();
        assert_eq!(exit, Exit::Done);
        (out.text(), talk.text())
    }

    fn ids(lines: &str) -> Vec<String> {
        let id = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            let event = value.get("event").unwrap_or(&value);
            event["id"].as_str().unwrap().to_owned()
        };
        lines.lines().map(id).collect()
    }

    #[tokio::test]
    async fn it_begins_and_ends_where_it_is_told() {
        let bus = filled().await;
        for (arguments, expected) in [
            (&[][..], &["e1", "e2", "e3", "e4"][..]),
            (&["order.placed"], &["e1", "e3"]),
            (&["order.placed", "mail.>"], &["e1", "e3", "e4"]),
            (&["--from", "3"], &["e3", "e4"]),
            (&["--from", "2", "--to", "3"], &["e2", "e3"]),
            (&["--from", "last:1"], &["e4"]),
            (&["--from", "last-per-subject"], &["e2", "e3", "e4"]),
            (&["--from", "1h", "--to", "1m"], &[]),
            (&["--stream", "EVENTS"], &["e1", "e2", "e3", "e4"]),
        ] {
            let (out, _) = replayed(&bus, arguments).await;
            assert_eq!(ids(&out), expected, "{arguments:?}");
        }
    }

    #[tokio::test]
    async fn positions_are_beside_the_event_and_not_in_it() {
        let bus = filled().await;
        let (out, _) = replayed(&bus, &["--with-position", "--from", "4"]).await;
        let value: serde_json::Value = serde_json::from_str(out.trim_end()).unwrap();
        assert_eq!(
            (&value["stream"], &value["seq"]),
            (&"EVENTS".into(), &4.into())
        );
        assert!(value["at"].is_string() && value["event"]["specversion"] == "1.0");
    }

    #[tokio::test]
    async fn a_filter_that_matches_nothing_is_told_the_nearest() {
        let bus = filled().await;
        let (out, talk) = replayed(&bus, &["order"]).await;
        assert_eq!(out, "");
        assert_eq!(
            talk,
            "note: order matches no event that is stored; order.> would\n"
        );
    }

    #[tokio::test]
    async fn an_unknown_stream_is_an_error() {
        let bus = filled().await;
        let options = crate::parsed::<Replay>(&["--stream", "NONE"]);
        let error = run(&bus, &options, &mut kept(80).0, Interrupt::never())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), trunkline::ErrorKind::NoSuchStream);
    }

    #[tokio::test]
    async fn following_goes_on_after_the_end() {
        let bus = filled().await;
        let options = crate::parsed::<Replay>(&["--follow", "--from", "4"]);
        let (mut console, out, _) = kept(80);
        console.json = true;
        let running = run(&bus, &options, &mut console, Interrupt::never());
        let publishing = async {
            publish(&bus, "order.paid", "e5", None, "{}").await;
            // What is shown is the sign that it follows; closing ends it.
            while !out.text().contains("e5") {
                tokio::task::yield_now().await;
            }
            bus.close().await.unwrap();
        };
        let (exit, ()) = tokio::join!(running, publishing);
        assert_eq!(exit.unwrap(), Exit::Unreachable);
        assert_eq!(ids(&out.text()), ["e4", "e5"]);
    }
}
