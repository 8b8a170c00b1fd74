//! `list`, `show` and `lag`: how consumers stand.

use trunkline::{Bus, Filter, Name, Result};

use super::standing::{Standing, State, all, of_name};
use crate::console::Console;
use crate::figures::{duration, grouped};
use crate::look::Style;
use crate::table::{Cell, Facts, Table};

pub(super) async fn list(bus: &Bus, console: &mut Console) -> Result<()> {
    let all = all(bus).await?;
    if console.json {
        return document(&all, console);
    }
    if all.is_empty() {
        console.note("there is no consumer; one is made when it starts");
        return Ok(());
    }
    let mut table = Table::new(&[
        "consumer", "stream", "mode", "state", ">members", ">lag", ">behind", "filters",
    ]);
    for one in &all {
        table.row([
            one.status.name.as_str().into(),
            one.status.stream.as_str().into(),
            one.mode().into(),
            Cell::styled(style(one.state()), one.state().name()),
            one.members()
                .map_or_else(|| "-".to_owned(), |members| members.to_string())
                .into(),
            bound(one, "≤ ").into(),
            duration(one.behind()).into(),
            filters(&one.status.filters).into(),
        ]);
    }
    console.out.text(table.render(console.look))?;
    console.out.flush()
}

pub(super) async fn show(bus: &Bus, name: &Name, console: &mut Console) -> Result<()> {
    let found = of_name(all(bus).await?, name)?;
    if console.json {
        return document(&found, console);
    }
    for (index, one) in found.iter().enumerate() {
        if index > 0 {
            console.out.text("\n")?;
        }
        console.out.text(facts(one).render(console.look))?;
        if !one.status.members.is_empty() {
            console.out.text("\n")?;
            console.out.text(members(one).render(console.look))?;
        }
    }
    console.out.flush()
}

/// One line a consumer and stream: its name, the stream, events and seconds.
pub(super) async fn lags(bus: &Bus, name: Option<&Name>, console: &mut Console) -> Result<()> {
    let all = all(bus).await?;
    let all = match name {
        Some(name) => of_name(all, name)?,
        None => all,
    };
    for one in &all {
        let (name, stream) = (&one.status.name, &one.status.stream);
        if console.json {
            console.json_line(&serde_json::json!({
                "name": name.as_str(),
                "stream": stream.as_str(),
                "events": one.lag(),
                "at_most": one.lag_is_at_most(),
                "seconds": one.behind().as_secs_f64(),
            }))?;
        } else {
            let seconds = one.behind().as_secs_f64();
            console
                .out
                .line(format!("{name} {stream} {} {seconds:.1}", one.lag()))?;
        }
    }
    console.out.flush()
}

fn document(all: &[Standing], console: &mut Console) -> Result<()> {
    let all: Vec<_> = all.iter().map(Standing::json).collect::<Result<_>>()?;
    console.json_document(&all)
}

fn facts(one: &Standing) -> Facts {
    let (status, terms) = (&one.status, &one.terms);
    let mut facts = Facts::default();
    facts.add("consumer", status.name.as_str());
    facts.add("stream", status.stream.as_str());
    facts.add("filters", filters(&status.filters));
    facts.add(
        "mode",
        match status.ordered {
            true => "ordered: the events of a key one after another",
            false => "shared: whoever is free gets the next event",
        },
    );
    let state = one.state();
    match state {
        State::Paused => facts.styled(
            "state",
            style(state),
            format!("paused: {}", status.paused.join(", ")),
        ),
        state => facts.styled("state", style(state), state.name()),
    }
    facts.add("began at", &terms.start);
    let behind = match one.behind() {
        behind if behind.is_zero() => String::new(),
        behind => format!(", the first stored {} ago", duration(behind)),
    };
    facts.add("lag", format!("{}{behind}", bound(one, "at most ")));
    facts.add(
        "floor",
        format!("{}: everything up to it is settled", grouped(status.floor)),
    );
    if status.has_records {
        facts.add(
            "beside",
            format!(
                "{} waiting for another attempt or behind one, {} running, {} dead letters running again",
                grouped(status.waiting),
                grouped(status.running),
                grouped(status.replaying)
            ),
        );
        for waiting in &status.waiting_for {
            facts.styled(
                "waiting for",
                Style::Warning,
                format!(
                    "{}: events {}, the last of them {}, {} ago: {}",
                    waiting.reason,
                    grouped(waiting.events),
                    waiting.seq,
                    duration(one.since(Some(waiting.at))),
                    waiting.error
                ),
            );
        }
        if status.holding > 0 {
            facts.styled(
                "held",
                Style::Warning,
                format!(
                    "{} keys, whose later events wait until a dead letter is replayed or discarded",
                    grouped(status.holding)
                ),
            );
        }
        if status.full > 0 {
            facts.styled(
                "full",
                Style::Bad,
                format!(
                    "{} partitions stopped reading, with 10 000 events each beside the main flow",
                    status.full
                ),
            );
        }
        if status.ordered {
            facts.add("handled", grouped(status.handled));
        }
        if status.last_progress.is_some() {
            let ago = duration(one.since(status.last_progress));
            facts.add("progress", format!("last written {ago} ago"));
        }
        let dead = match status.dead {
            0 => Style::Plain,
            _ => Style::Bad,
        };
        facts.styled("dead letters", dead, grouped(status.dead));
        facts.add("partitions", status.partitions.to_string());
        match status.unowned {
            0 => facts.add("unowned", "0 partitions"),
            unowned => facts.styled("unowned", Style::Warning, format!("{unowned} partitions")),
        }
    }
    if !status.ordered {
        facts.add("ack wait", duration(terms.ack_wait));
        facts.add(
            "in flight",
            format!(
                "{} of {} at most",
                grouped(terms.in_flight),
                grouped(terms.max_in_flight as u64)
            ),
        );
    }
    match status.expired_at_most {
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
    facts
}

fn members(one: &Standing) -> Table {
    let mut table = Table::new(&["member", "state", ">heard of", "partitions"]);
    for member in &one.status.members {
        let (style, state) = match (one.is_alive(member), member.leaving, member.confirmed) {
            (false, ..) => (Style::Bad, "silent"),
            (_, true, _) => (Style::Warning, "leaving"),
            (.., false) => (Style::Warning, "catching up"),
            (.., true) => (Style::Good, "alive"),
        };
        table.row([
            member.id.as_str().into(),
            Cell::styled(style, state),
            format!("{} ago", duration(one.silent(member))).into(),
            ranges(&member.partitions).into(),
        ]);
    }
    table
}

fn style(state: State) -> Style {
    match state {
        State::Paused | State::Waiting => Style::Warning,
        State::NoMembers => Style::Bad,
        State::Idle | State::Running => Style::Good,
    }
}

/// The lag, and in front of it that it is a bound where it is one.
fn bound(one: &Standing, at_most: &str) -> String {
    let at_most = if one.lag_is_at_most() { at_most } else { "" };
    format!("{at_most}{}", grouped(one.lag()))
}

fn filters(filters: &[Filter]) -> String {
    let filters: Vec<&str> = filters.iter().map(Filter::as_str).collect();
    filters.join(", ")
}

/// `0-3, 7`, of numbers in order.
fn ranges(numbers: &[u16]) -> String {
    let mut parts: Vec<(u16, u16)> = Vec::new();
    for &number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => parts.push((number, number)),
        }
    }
    let parts: Vec<String> = parts
        .into_iter()
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        })
        .collect();
    match parts.is_empty() {
        true => "none".to_owned(),
        false => parts.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_written_as_ranges() {
        for (numbers, text) in [
            (&[][..], "none"),
            (&[3], "3"),
            (&[0, 1, 2, 5, 7, 8], "0-2, 5, 7-8"),
        ] {
            assert_eq!(ranges(numbers), text);
        }
    }
}
