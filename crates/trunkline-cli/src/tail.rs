//! `trunkline tail`: events as they come, for people.

use clap::Args;
use trunkline::{Bus, Filter, Incoming, Item, Result, Start};

use crate::console::Console;
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::link::LinkNews;
use crate::look;
use crate::replay::parsed_start;
use crate::row::{Payload, Rows};
use crate::sub::{filter, follow, or_all};
use crate::wire_line::{event_line, following, hint, remark};

/// What is taken of what is ready before it is shown.
const AT_ONCE: usize = 256;

#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// Types to watch: `order.placed`, `order.*` or `order.>`; everything unless given.
    #[arg(value_name = "FILTER", value_parser = filter)]
    filters: Vec<Filter>,
    /// The same as an option; may be repeated.
    #[arg(long = "filter", value_name = "FILTER", value_parser = filter)]
    more_filters: Vec<Filter>,
    /// Only events with this key; may be repeated.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// Show what is stored first: since how long ago (`10m`), an RFC 3339 time, `first`,
    /// `last:20` or a sequence.
    #[arg(long, value_name = "POSITION", value_parser = parsed_start)]
    since: Option<Start>,
    /// How much of the data is shown.
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    payload: Payload,
    /// Ephemeral events too; they are marked with `~`.
    #[arg(long)]
    live: bool,
    /// End where the stored events end; without `--since` it shows the last 10.
    #[arg(long, conflicts_with = "live")]
    no_follow: bool,
    /// Times in UTC and not in the zone of this machine.
    #[arg(long)]
    utc: bool,
}

pub(crate) async fn run(
    bus: &Bus,
    options: &Tail,
    console: &mut Console,
    mut interrupt: Interrupt,
) -> Result<Exit> {
    let mut given = options.filters.clone();
    given.extend(options.more_filters.iter().cloned());
    let filters = or_all(&given);
    let mut view = View {
        keys: &options.keys,
        rows: Rows::new(options.payload, options.utc),
    };
    if options.no_follow {
        return tokio::select! {
            shown = stored(bus, options, &filters, &mut view, console) => shown,
            () = interrupt.asked() => Ok(Exit::Done),
        };
    }
    let from = options.since.unwrap_or(Start::New);
    let mut events = follow(bus, &filters, from, options.live).await?;
    if !given.is_empty() && !options.live {
        hint(bus, &filters, console).await;
    }
    following(console, &filters);
    let mut link = LinkNews::of(bus);
    let mut items = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = interrupt.asked() => return Ok(Exit::Done),
            news = link.next() => console.note(news),
            came = events.recv_many(AT_ONCE, &mut items) => if came == 0 {
                console.say("the bus was closed");
                return Ok(Exit::Unreachable);
            },
        }
        if console.on_terminal {
            console.look.width = look::width();
        }
        for item in items.drain(..) {
            view.show(console, &item)?;
        }
        console.out.flush()?;
    }
}

async fn stored(
    bus: &Bus,
    options: &Tail,
    filters: &[Filter],
    view: &mut View<'_>,
    console: &mut Console,
) -> Result<Exit> {
    let last_ten = std::num::NonZeroU64::new(10).map_or(Start::First, Start::Last);
    let from = options.since.unwrap_or(last_ten);
    let mut history = bus.history(filters, from).await?;
    let mut shown = false;
    while let Some(page) = history.next_page().await? {
        for item in page {
            shown |= view.show(console, &item)?;
        }
        console.out.flush()?;
    }
    if !shown {
        hint(bus, filters, console).await;
        if filters == [Filter::all()] && options.keys.is_empty() {
            console.note("no event is stored yet");
        }
    }
    Ok(Exit::Done)
}

struct View<'a> {
    keys: &'a [String],
    rows: Rows,
}

impl View<'_> {
    /// Whether the item was an event that is shown.
    fn show(&mut self, console: &mut Console, item: &Item<Incoming>) -> Result<bool> {
        let Item::Event(event) = item else {
            remark(console, item);
            return Ok(false);
        };
        let key = event.envelope.key();
        if !self.keys.is_empty() && !self.keys.iter().any(|wanted| Some(wanted.as_str()) == key) {
            return Ok(false);
        }
        if console.json {
            event_line(console, event)?;
        } else {
            console.out.text(self.rows.render(event, console.look))?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::kept;
    use crate::filled::{filled, publish};

    async fn shown(bus: &Bus, arguments: &[&str]) -> String {
        let options = crate::parsed::<Tail>(arguments);
        let (mut console, out, _) = kept(80);
        let exit = run(bus, &options, &mut console, Interrupt::never()).await;
        assert_eq!(exit.unwrap(), Exit::Done);
        out.text()
    }

    /// What a test can know of a line: not its time.
    fn without_times(text: &str) -> Vec<&str> {
        text.lines().map(|line| line[12..].trim_start()).collect()
    }

    #[tokio::test]
    async fn stored_events_are_shown_by_filter_and_key() {
        let bus = filled().await;
        let text = shown(&bus, &["--no-follow", "order.>", "--filter", "mail.>"]).await;
        assert_eq!(
            without_times(&text),
            [
                "order.placed  o-1  {\"total\":1}",
                "order.paid    o-1",
                "order.placed  o-2  {\"total\":2}",
                "mail.sent          \"to you\"",
            ]
        );
        let text = shown(&bus, &["--no-follow", "--key", "o-2", "--since", "first"]).await;
        assert_eq!(without_times(&text), ["order.placed  o-2  {\"total\":2}"]);
    }

    #[tokio::test]
    async fn it_shows_what_is_stored_and_then_what_comes() {
        let bus = filled().await;
        let options = crate::parsed::<Tail>(&["--since", "last:1"]);
        let (mut console, out, talk) = kept(80);
        let running = run(&bus, &options, &mut console, Interrupt::never());
        let publishing = async {
            publish(&bus, "order.placed", "e5", Some("\x1b[31m"), "{}").await;
            while !out.text().contains("{}") {
                tokio::task::yield_now().await;
            }
            bus.close().await.unwrap();
        };
        let (exit, ()) = tokio::join!(running, publishing);
        assert_eq!(exit.unwrap(), Exit::Unreachable);
        assert_eq!(
            without_times(&out.text()),
            ["mail.sent  \"to you\"", "order.placed  ␛[31m  {}"]
        );
        assert_eq!(
            talk.text(),
            "following all events; ctrl-c ends it\nthe bus was closed\n"
        );
    }

    #[tokio::test]
    async fn ctrl_c_ends_it_well() {
        let bus = filled().await;
        let options = crate::parsed::<Tail>(&[]);
        let (mut console, _, _) = kept(80);
        let exit = run(&bus, &options, &mut console, Interrupt::asked_already()).await;
        assert_eq!(exit.unwrap(), Exit::Done);
    }
}
