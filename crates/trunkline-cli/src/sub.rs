//! `trunkline sub`: events as they come, one a line, for scripts.

use std::num::NonZeroU64;
use std::time::Duration;

use clap::Args;
use trunkline::{Bus, ErrorKind, Filter, Incoming, Item, Result, Start, Subscription};

use crate::console::Console;
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::link::LinkNews;
use crate::moment::duration;
use crate::wire_line::{event_line, following, hint, remark};

/// What is taken of what is ready before it is shown.
const AT_ONCE: usize = 256;

#[derive(Debug, Args)]
pub(crate) struct Sub {
    /// Types to follow: `order.placed`, `order.*` or `order.>`; everything unless given.
    #[arg(value_name = "FILTER", value_parser = filter)]
    filters: Vec<Filter>,
    /// Ephemeral events too.
    #[arg(long)]
    live: bool,
    /// End after that many events.
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<NonZeroU64>,
    /// End after that long, as in 30s; with 1 if fewer events came than `--count` says, or none.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    timeout: Option<Duration>,
}

pub(crate) fn filter(text: &str) -> std::result::Result<Filter, String> {
    Filter::new(text).map_err(|error| error.message().to_owned())
}

/// The filters that were given, or all there is.
pub(crate) fn or_all(filters: &[Filter]) -> Vec<Filter> {
    if filters.is_empty() {
        vec![Filter::all()]
    } else {
        filters.to_vec()
    }
}

pub(crate) async fn run(
    bus: &Bus,
    options: &Sub,
    console: &mut Console,
    mut interrupt: Interrupt,
) -> Result<Exit> {
    let filters = or_all(&options.filters);
    let mut events = follow(bus, &filters, Start::New, options.live).await?;
    if !options.filters.is_empty() && !options.live {
        hint(bus, &filters, console).await;
    }
    let timeout = async {
        match options.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(timeout);
    following(console, &filters);
    let mut link = LinkNews::of(bus);
    let mut count = 0;
    let mut items = Vec::new();
    let wanted = options.count.map(NonZeroU64::get);
    loop {
        let room = wanted.map_or(AT_ONCE as u64, |wanted| wanted - count);
        let room = usize::try_from(room).unwrap_or(AT_ONCE).min(AT_ONCE);
        tokio::select! {
            biased;
            () = interrupt.asked() => return Ok(Exit::Done),
            // Before the events: a busy bus must not put it off.
            () = &mut timeout => return Ok(if count >= wanted.unwrap_or(1) { Exit::Done } else { Exit::Failed }),
            news = link.next() => console.note(news),
            came = events.recv_many(room, &mut items) => if came == 0 {
                console.say("the bus was closed");
                return Ok(Exit::Unreachable);
            },
        }
        for item in items.drain(..) {
            match &item {
                Item::Event(event) => {
                    event_line(console, event)?;
                    count += 1;
                }
                other => remark(console, other),
            }
        }
        console.out.flush()?;
        if wanted == Some(count) {
            return Ok(Exit::Done);
        }
    }
}

/// Stored events that match, from a position on, and with `live` ephemeral ones too.
pub(crate) async fn follow(
    bus: &Bus,
    filters: &[Filter],
    from: Start,
    live: bool,
) -> Result<Subscription<Incoming>> {
    let stored = bus.follow_any(filters, from).await;
    if !live {
        return stored;
    }
    let heard = bus.listen_any(filters).await?;
    match stored {
        Ok(stored) => Ok(stored.and(heard)),
        // What no stream stores may still be heard.
        Err(error) if error.kind() == ErrorKind::MatchesNothing => Ok(heard),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::kept;
    use crate::filled::{filled, publish};

    /// What it shows of two events that are published once it follows.
    async fn followed(bus: &Bus, arguments: &[&str]) -> (Exit, String) {
        let options = crate::parsed::<Sub>(arguments);
        let (mut console, out, _) = kept(80);
        let running = run(bus, &options, &mut console, Interrupt::never());
        let publishing = async {
            publish(bus, "order.placed", "n1", None, "\"\u{9b}\"").await;
            publish(bus, "order.paid", "n2", None, "").await;
        };
        // The subscription is there when `run` first waits, which is before the other begins.
        let (exit, ()) = tokio::join!(biased; running, publishing);
        (exit.unwrap(), out.text())
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_by_count_or_by_time() {
        for (arguments, exit, lines) in [
            (&["--count", "2"][..], Exit::Done, 2),
            (&["order.paid", "--count", "1"], Exit::Done, 1),
            (&["--count", "3", "--timeout", "10s"], Exit::Failed, 2),
            (&["--timeout", "10s"], Exit::Done, 2),
            (&["mail.>", "--timeout", "10s"], Exit::Failed, 0),
            (&["--live", "-n", "2"], Exit::Done, 2),
        ] {
            let (ended, out) = followed(&filled().await, arguments).await;
            assert_eq!((ended, out.lines().count()), (exit, lines), "{arguments:?}");
        }
    }

    #[tokio::test]
    async fn events_are_written_as_they_are() {
        let (_, out) = followed(&filled().await, &["-n", "1"]).await;
        let event: serde_json::Value = serde_json::from_str(out.trim_end()).unwrap();
        assert_eq!(
            (&event["id"], &event["data"]),
            (&"n1".into(), &"\u{9b}".into())
        );
    }

    #[tokio::test]
    async fn ctrl_c_and_a_closed_bus_end_it_differently() {
        let bus = filled().await;
        let options = crate::parsed::<Sub>(&[]);
        let (mut console, _, _) = kept(80);
        let exit = run(&bus, &options, &mut console, Interrupt::asked_already()).await;
        assert_eq!(exit.unwrap(), Exit::Done);
        let running = run(&bus, &options, &mut console, Interrupt::never());
        let (exit, closed) = tokio::join!(biased; running, bus.close());
        assert_eq!(exit.unwrap(), Exit::Unreachable);
        closed.unwrap();
    }
}
