//! One dead letter.

use trunkline::dead_letter::{Entry, Record, Shown, Stands, State};
use trunkline::{DeadLetters, Result};

use super::{Show, json};
use crate::console::Console;
use crate::exit::Exit;
use crate::figures::{bytes, grouped};
use crate::look::Style;
use crate::moment::Times;
use crate::payload::full;
use crate::plain::without_controls;
use crate::table::{Facts, Table};

pub(super) async fn run(
    letters: &DeadLetters,
    options: &Show,
    console: &mut Console,
) -> Result<Exit> {
    let shown = letters.show(&options.id).await?;
    if console.json {
        console.json_document(&json::shown(letters, &shown)?)?;
        return Ok(Exit::Done);
    }
    let times = match options.utc {
        true => Times::utc(),
        false => Times::local(),
    };
    let entry = shown.entry.as_ref().and_then(|entry| entry.as_ref().ok());
    console
        .out
        .text(facts(&shown, entry, &times).render(console.look))?;
    let record = shown.letter.record.as_ref().ok();
    for text in [
        entry.and_then(|entry| attempts(entry, &times, console)),
        record.and_then(|record| replays(record, &times, console)),
        event(letters, &shown, entry, console)?,
    ]
    .into_iter()
    .flatten()
    {
        console.out.text("\n")?;
        console.out.text(text)?;
    }
    console.out.flush()?;
    Ok(Exit::Done)
}

fn facts(shown: &Shown, entry: Option<&Entry>, times: &Times) -> Facts {
    let mut facts = Facts::default();
    facts.add("dead letter", shown.letter.id.to_string());
    match &shown.letter.record {
        Ok(record) => {
            facts.styled("state", style(record), state(record, times));
            facts.add(
                "event",
                record.event_id.as_deref().unwrap_or("(no CloudEvent)"),
            );
            facts.add("type", record.event_type.as_deref().unwrap_or("-"));
            if let Some(key) = &record.key {
                facts.add("key", key);
            }
            facts.add("reason", &record.reason);
            facts.styled("error", Style::Bad, &record.error);
            facts.add("failures", grouped(record.failures.into()));
            facts.add("first failure", times.date_and_clock(record.first_failure));
            facts.add("last failure", times.date_and_clock(record.last_failure));
        }
        Err(fault) => facts.styled("unreadable", Style::Bad, fault.to_string()),
    }
    if let Some(entry) = entry {
        // Longer than what is listed.
        for cause in &entry.causes {
            facts.add("caused by", cause);
        }
        if entry.starts > 0 {
            facts.add(
                "begun",
                format!("{} times without an outcome", grouped(entry.starts.into())),
            );
        }
        facts.add("subject", entry.subject.as_str());
        if let Some(at) = entry.stored_at {
            facts.add("published", times.date_and_clock(at));
        }
        if entry.generation > 0 {
            facts.add("generation", entry.generation.to_string());
        }
        let service = entry.service.as_deref().unwrap_or("(unknown)");
        facts.add(
            "given up by",
            format!("{service}, trunkline {}", entry.version),
        );
    }
    match (&shown.stored, shown.letter.stands()) {
        (Some(stored), _) => facts.add(
            "entry",
            format!(
                "{} on {}, {}",
                stored.seq,
                stored.subject,
                times.date_and_clock(stored.at)
            ),
        ),
        (None, Stands::Dead | Stands::Replaying) => facts.styled(
            "entry",
            Style::Bad,
            "gone: the dead-letter stream no longer has it, so that it cannot be run again",
        ),
        (None, _) => facts.add("entry", "removed when it was dealt with"),
    }
    facts
}

fn style(record: &Record) -> Style {
    match record.state.stands() {
        Stands::Dead => Style::Bad,
        Stands::Replaying => Style::Warning,
        Stands::Replayed => Style::Good,
        Stands::Discarded => Style::Plain,
    }
}

fn state(record: &Record, times: &Times) -> String {
    let stands = record.state.stands();
    match &record.state {
        State::Replaying { by, at } => format!(
            "{stands}: requested by {by} at {}; no outcome yet",
            times.date_and_clock(*at)
        ),
        State::Replayed { at } => format!("{stands}: done at {}", times.date_and_clock(*at)),
        State::Discarded { by, at, reason } => {
            format!(
                "{stands} by {by} at {}: {reason}",
                times.date_and_clock(*at)
            )
        }
        _ => stands.to_string(),
    }
}

fn attempts(entry: &Entry, times: &Times, console: &Console) -> Option<String> {
    let mut table = Table::new(&["attempt failed", "reason", "error"]);
    for attempt in &entry.attempts {
        table.row([
            times.date_and_clock(attempt.at).into(),
            (&attempt.reason).into(),
            (&attempt.error).into(),
        ]);
    }
    (!entry.attempts.is_empty()).then(|| table.render(console.look))
}

fn replays(record: &Record, times: &Times, console: &Console) -> Option<String> {
    let mut table = Table::new(&["replay requested", "by", "ended", "outcome"]);
    for replay in &record.history {
        let outcome = match &replay.failed {
            None => "done".to_owned(),
            Some((reason, error)) => format!("{reason}: {error}"),
        };
        table.row([
            times.date_and_clock(replay.at).into(),
            (&replay.by).into(),
            times.date_and_clock(replay.ended).into(),
            outcome.into(),
        ]);
    }
    (!record.history.is_empty()).then(|| table.render(console.look))
}

/// Headers and data as they were; of what cannot be read, what is stored.
fn event(
    letters: &DeadLetters,
    shown: &Shown,
    entry: Option<&Entry>,
    console: &Console,
) -> Result<Option<String>> {
    let Some(stored) = &shown.stored else {
        return Ok(None);
    };
    let mut text = String::new();
    let headers = entry.map_or(&stored.headers, |entry| &entry.headers);
    for (name, value) in headers.iter() {
        let line = format!("{name}: {value}");
        text.push_str(&without_controls(&line));
        text.push('\n');
    }
    let event = entry.and_then(|entry| letters.event(entry).ok());
    match event {
        Some(event) => text.push_str(&full(event.data(), console.look)),
        None => {
            let body = stored.body.to_bytes()?;
            match str::from_utf8(&body) {
                Ok(body) => text.push_str(&without_controls(body)),
                Err(_) => text.push_str(&format!("({} of binary data)", bytes(body.len() as u64))),
            }
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    Ok((text.len() > 1).then_some(text))
}
