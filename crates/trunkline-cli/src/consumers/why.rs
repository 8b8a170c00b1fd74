//! `why`: what holds a consumer up, in plain words, and what to do about it.

use std::time::Duration;

use serde::Serialize;
use trunkline::core::engine::Gauge;
use trunkline::{Bus, ConsumerStatus, Name, Result};

use super::standing::{BETWEEN_LOOKS, Standing, all_moving, of_name};
use crate::console::Console;
use crate::exit::Exit;
use crate::figures::{duration, grouped};
use crate::plain::without_controls;
use crate::table::wrapped;

/// How long it takes at most until what was handled is told of: members write how far they are every
/// 5 s where nothing else is to be written.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);

/// One thing that is to be said.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Reason {
    /// In a word, for programs.
    pub(super) reason: &'static str,
    /// Whether it holds the consumer up.
    pub(super) holds_up: bool,
    pub(super) says: String,
    /// Commands.
    pub(super) remedies: Vec<String>,
}

/// Says why a consumer does not get on. Ends with 1 if something holds it up.
pub(super) async fn why(bus: &Bus, name: &Name, console: &mut Console) -> Result<Exit> {
    let (before, now) = all_moving(bus).await?;
    let found = of_name(now, name)?;
    let mut held_up = false;
    let mut documents = Vec::new();
    for (index, one) in found.iter().enumerate() {
        let is_it = |status: &&ConsumerStatus| {
            status.name == one.status.name && status.stream == one.status.stream
        };
        let reasons = reasons(one, before.iter().find(is_it));
        held_up |= reasons.iter().any(|reason| reason.holds_up);
        if console.json {
            documents.push(serde_json::json!({
                "name": one.status.name.as_str(),
                "stream": one.status.stream.as_str(),
                "state": one.state().name().replace(' ', "_"),
                "reasons": reasons,
            }));
            continue;
        }
        if index > 0 {
            console.out.text("\n")?;
        }
        let said = sentences(reasons.iter().map(|reason| reason.says.as_str()));
        let text = format!("{} on {}: {said}", one.status.name, one.status.stream);
        for line in wrapped(&text, console.look.width) {
            console.out.line(without_controls(&line).as_bytes())?;
        }
        for remedy in reasons.iter().flat_map(|reason| &reason.remedies) {
            let remedy = format!("  {remedy}");
            console.out.line(without_controls(&remedy).as_bytes())?;
        }
    }
    if console.json {
        console.json_document(&documents)?;
    }
    console.out.flush()?;
    Ok(if held_up { Exit::Failed } else { Exit::Done })
}

/// What is to be said of it, the most telling first; never nothing.
fn reasons(one: &Standing, before: Option<&ConsumerStatus>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let status = &one.status;
    let name = &status.name;
    let mut say = |reason, holds_up, says: String, remedies: Vec<String>| {
        reasons.push(Reason {
            reason,
            holds_up,
            says,
            remedies,
        });
    };
    for reason in &status.paused {
        let resume = format!(
            "trunkline consumers resume {name} --reason {}",
            quoted(reason)
        );
        match reason.as_str() {
            ConsumerStatus::CHANGING => say(
                "changing",
                true,
                "it is being reset or divided, or somebody who did so did not come to the end: the same command \
                 once more ends it, or it goes on as it was"
                    .to_owned(),
                vec![resume],
            ),
            reason => say("paused", true, format!("it is paused: {reason}"), vec![resume]),
        }
    }
    if one.members() == Some(0) {
        let silent = status.members.len();
        let says = match silent {
            0 => "no member lives: nobody runs it".to_owned(),
            silent => format!("no member lives; {silent} went silent without leaving"),
        };
        // Without anything to do nobody is missed.
        let holds_up = one.lag() > 0;
        let filters: Vec<String> = one
            .asked
            .iter()
            .map(|filter| format!("--filter {}", quoted(filter)))
            .collect();
        let start = format!(
            "trunkline worker --consumer {name} {} --exec COMMAND   # or start the program that has it",
            filters.join(" ")
        );
        say("no_members", holds_up, says, vec![start]);
    } else if let Some(alive) = one.members() {
        let silent = status.members.iter().filter(|member| !one.is_alive(member));
        let held: usize = silent.map(|member| member.partitions.len()).sum();
        if held + status.unowned > 0 {
            say(
                "unowned",
                one.lag() > 0,
                format!(
                    "{} partitions have no owner that lives; {alive} members take them over within 5 s",
                    held + status.unowned
                ),
                vec![format!(
                    "trunkline consumers why {name}   # once more, then the members' log"
                )],
            );
        }
        let behind = status.members.iter().filter(|member| !member.confirmed);
        let behind = behind.filter(|member| one.is_alive(member)).count();
        if behind > 0 {
            say(
                "unconfirmed",
                false,
                format!("{behind} members do not work by the last change yet"),
                Vec::new(),
            );
        }
    }
    let moved = before.map_or(0, |before| {
        status.handled.saturating_sub(before.handled) + status.dead.saturating_sub(before.dead)
    });
    let floor = before.map_or(0, |before| status.floor.saturating_sub(before.floor));
    if one.lag() == 0 {
        say(
            "at_tail",
            false,
            "nothing that it handles is before it: it is at the end of the stream".to_owned(),
            Vec::new(),
        );
    } else if moved > 0 {
        say(
            "progressing",
            false,
            format!(
                "it gets on: {} handled in {}, {} before it",
                grouped(moved),
                duration(BETWEEN_LOOKS),
                bound(one)
            ),
            Vec::new(),
        );
    } else if !status.paused.is_empty() || one.members() == Some(0) {
        // That was said, and is enough.
    } else if status.pending_at_most == 0 && status.running == 0 {
        say(
            "waiting",
            true,
            format!(
                "all {} events left wait beside the main flow, for another attempt or behind one of their key; {}",
                grouped(status.waiting),
                match status.holding {
                    0 => "they come by themselves",
                    _ => "those behind a dead letter come when that is dealt with",
                }
            ),
            vec![format!("trunkline consumers show {name}")],
        );
    } else if floor > 0 || one.behind() < SETTLED_WITHIN {
        // Without counts of its own only the floor tells that it gets on, and that is written late.
        say(
            "progressing",
            false,
            format!("{} are before it, and nothing looks wrong", bound(one)),
            Vec::new(),
        );
    } else {
        let running = match status.running {
            0 => String::new(),
            running => format!(", {} of them running", grouped(running)),
        };
        say(
            "no_progress",
            true,
            format!(
                "{} are before it{running}, the first stored {} ago, and none was finished in {}: handlers are slow \
                 or hang, or its members stopped reading because too many fail, which only their log tells",
                bound(one),
                duration(one.behind()),
                duration(BETWEEN_LOOKS)
            ),
            vec![format!(
                "trunkline consumers show {name}   # then the members' log"
            )],
        );
    }
    if status.full > 0 {
        say(
            "full",
            true,
            format!(
                "{} partitions stopped reading: 10 000 events of each wait beside the main flow, for another attempt or \
                 behind one of their key",
                status.full
            ),
            vec![format!(
                "trunkline consumers show {name}   # what they wait for"
            )],
        );
    }
    if status.holding > 0 {
        say(
            "holding",
            status.waiting > 0,
            format!(
                "{} keys are held: their later events wait until a dead letter is replayed or discarded",
                grouped(status.holding)
            ),
            vec![
                format!("trunkline dlq list --consumer {name}"),
                format!("trunkline dlq replay --consumer {name}"),
            ],
        );
    }
    if status.dead > 0 {
        say(
            "dead_letters",
            false,
            format!(
                "{} events were given up since it was made or reset",
                grouped(status.dead)
            ),
            vec![format!("trunkline dlq list --consumer {name}")],
        );
    }
    if status.expired_at_most > 0 {
        say(
            "expired",
            false,
            format!(
                "retention took {} events at most before they were handled",
                grouped(status.expired_at_most)
            ),
            Vec::new(),
        );
    }
    reasons.extend(seen_by_others(one));
    reasons
}

/// What keeps tools of the bus's own server from seeing how far it is, or misleads whoever used them.
fn seen_by_others(one: &Standing) -> Option<Reason> {
    let (name, stream) = (&one.status.name, &one.status.stream);
    let (reason, says, remedies) = match one.status.gauge? {
        Gauge::Shown | Gauge::Unfit => return None,
        Gauge::Paused => (
            "paused_elsewhere",
            "somebody paused its durable on the NATS server, which stops nothing: that only shows how far it is",
            vec![
                format!("nats consumer resume {stream} {name}"),
                format!("trunkline consumers pause {name}   # if it was meant"),
            ],
        ),
        Gauge::Taken => (
            "hidden_elsewhere",
            "a durable of its name on the NATS server does not belong to it: natscli, exporters and autoscalers \
             see that one and not how far it is",
            vec![format!(
                "nats consumer rm {stream} {name}   # if nobody uses it"
            )],
        ),
        // Its members make it.
        Gauge::Absent if one.members() == Some(0) => return None,
        Gauge::Absent => (
            "hidden_elsewhere",
            "natscli, exporters and autoscalers do not see how far it is: its durable is not on the NATS server; \
             its members make it within 5 s, and if not, their log says why",
            Vec::new(),
        ),
    };
    Some(Reason {
        reason,
        holds_up: false,
        says: says.to_owned(),
        remedies,
    })
}

fn bound(one: &Standing) -> String {
    let at_most = if one.lag_is_at_most() { " at most" } else { "" };
    format!("{} events{at_most}", grouped(one.lag()))
}

/// One after another, each but the first with a capital letter.
fn sentences<'a>(all: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for (index, one) in all.enumerate() {
        let mut characters = one.chars();
        match characters.next() {
            Some(first) if index > 0 => {
                text.push(' ');
                text.extend(first.to_uppercase());
            }
            first => text.extend(first),
        }
        text.push_str(characters.as_str());
        text.push('.');
    }
    text
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./:@".contains(character);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_sentences() {
        let all = ["it is paused: by hand", "no member lives"];
        assert_eq!(
            sentences(all.into_iter()),
            "it is paused: by hand. No member lives."
        );
    }

    #[test]
    fn a_remedy_can_be_pasted() {
        for (text, word) in [
            ("deploy-7", "deploy-7"),
            ("by hand", "'by hand'"),
            ("it's me", r"'it'\''s me'"),
            ("", "''"),
            ("$(reboot)", "'$(reboot)'"),
        ] {
            assert_eq!(quoted(text), word);
        }
    }
}
