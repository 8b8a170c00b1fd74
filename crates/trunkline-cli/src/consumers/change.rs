//! `pause`, `resume`, `reset` and `delete`: what operators do to consumers.

use clap::Args;
use trunkline::explain::ConsumerTerms;
use trunkline::{Beside, Bus, Error, MemberStatus, Name, Result, Start};

use super::standing::unknown;
use crate::ask;
use crate::console::Console;
use crate::exit::{self, Exit};
use crate::figures::grouped;
use crate::plain::without_controls;
use crate::replay::{name, parsed_start};

#[derive(Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    which: Which,
    /// Why. A consumer runs again once every reason is taken back.
    #[arg(long, value_name = "TEXT", default_value = "by hand", value_parser = reason)]
    reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    which: Which,
    /// Only the pause for this reason; every one unless given.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// The consumer.
    #[arg(value_name = "NAME", value_parser = name)]
    consumer: Option<Name>,
    /// Every consumer of the bus.
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Reset {
    /// The consumer.
    #[arg(value_name = "NAME", value_parser = name)]
    consumer: Name,
    /// From where it handles everything again: first, new, a sequence, a time, how long ago, or
    /// last:N.
    #[arg(long, value_name = "POSITION", value_parser = parsed_start)]
    to: Start,
    /// Forget what failed and waits for another attempt; it is refused while there is any.
    #[arg(long)]
    discard_waiting: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
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

/// The longest reason; it is kept with the consumer and shown in tables.
const MAX_REASON_BYTES: usize = 200;

fn reason(text: &str) -> std::result::Result<String, String> {
    match text.trim() {
        "" => Err("say in a few words why".to_owned()),
        text if text.len() > MAX_REASON_BYTES => {
            Err(format!("it is longer than {MAX_REASON_BYTES} bytes"))
        }
        text => Ok(text.to_owned()),
    }
}

pub(super) async fn pause(bus: &Bus, options: &Pause, console: &mut Console) -> Result<Exit> {
    let Pause { which, reason } = options;
    let mut done = Changed::default();
    for name in which.names(bus).await? {
        let members = bus.pause_consumer(&name, reason).await;
        let says = |members: &[MemberStatus]| {
            format!(
                "paused consumer {name} ({reason}); {} members confirmed, what runs is let be",
                members.len()
            )
        };
        done.one(which, &name, members, says, console)?;
    }
    done.end("is paused", console)
}

pub(super) async fn resume(bus: &Bus, options: &Resume, console: &mut Console) -> Result<Exit> {
    let Resume { which, reason } = options;
    let mut done = Changed::default();
    for name in which.names(bus).await? {
        let members = bus.resume_consumer(&name, reason.as_deref()).await;
        let left = left_paused(bus, &name).await?;
        let says = |members: &[MemberStatus]| match left.is_empty() {
            true => format!(
                "resumed consumer {name}; {} members confirmed",
                members.len()
            ),
            false => format!("consumer {name} is still paused: {}", left.join(", ")),
        };
        done.one(which, &name, members, says, console)?;
    }
    done.end("is resumed", console)
}

async fn left_paused(bus: &Bus, name: &Name) -> Result<Vec<String>> {
    let all = bus.consumer_status().await?;
    let mut left: Vec<String> = all
        .into_iter()
        .filter(|status| status.name == *name)
        .flat_map(|status| status.paused)
        .collect();
    left.sort();
    left.dedup();
    Ok(left)
}

impl Which {
    async fn names(&self, bus: &Bus) -> Result<Vec<Name>> {
        if let Some(name) = &self.consumer {
            return Ok(vec![name.clone()]);
        }
        let all = bus.consumer_status().await?;
        let mut names: Vec<Name> = all.into_iter().map(|status| status.name).collect();
        names.dedup();
        Ok(names)
    }
}

/// What was changed of several consumers.
#[derive(Default)]
struct Changed {
    documents: Vec<serde_json::Value>,
    refused: bool,
}

impl Changed {
    /// One answer. Of all of them one that is refused keeps none of the others from it.
    fn one(
        &mut self,
        which: &Which,
        name: &Name,
        members: Result<Vec<MemberStatus>>,
        says: impl FnOnce(&[MemberStatus]) -> String,
        console: &mut Console,
    ) -> Result<()> {
        match members {
            Ok(members) if console.json => {
                let ids: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
                let document = serde_json::json!({"name": name.as_str(), "members": ids});
                self.documents.push(document);
                Ok(())
            }
            // A reason may come from anybody.
            Ok(members) => {
                let text = says(&members);
                console.out.line(without_controls(&text).as_bytes())
            }
            Err(error) if which.all => {
                self.refused = true;
                exit::failed(&error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn end(self, nothing: &str, console: &mut Console) -> Result<Exit> {
        if console.json {
            console.json_document(&self.documents)?;
        }
        console.out.flush()?;
        if self.refused {
            console.note(format_args!("not every consumer {nothing}"));
            return Ok(Exit::Failed);
        }
        Ok(Exit::Done)
    }
}

pub(super) async fn reset(bus: &Bus, options: &Reset, console: &mut Console) -> Result<Exit> {
    let Reset {
        consumer,
        to,
        discard_waiting,
        yes,
    } = options;
    let status = bus.consumer_status().await?;
    let found: Vec<_> = status.iter().filter(|one| one.name == *consumer).collect();
    if found.is_empty() {
        let mut known: Vec<String> = status.iter().map(|one| one.name.to_string()).collect();
        known.dedup();
        return Err(unknown(&known, consumer));
    }
    let beside = match discard_waiting {
        true => Beside::Discard,
        false => Beside::Refuse,
    };
    if !yes {
        let waiting: u64 = found
            .iter()
            .map(|one| one.waiting + one.holding + one.running)
            .sum();
        let forgets = match (discard_waiting, waiting) {
            (true, 1..) => format!(", and forget {} events beside it", grouped(waiting)),
            _ => String::new(),
        };
        let question =
            format!("let consumer {consumer} handle everything from {to} on again{forgets}?");
        let unasked = format!("resetting consumer {consumer} to {to} loses its progress");
        if !ask::agreed(console, &question, &unasked).await? {
            console.note("nothing was reset");
            return Ok(Exit::Failed);
        }
    }
    bus.reset_consumer(consumer, *to, beside).await?;
    if console.json {
        console.json_document(&serde_json::json!({
            "name": consumer.as_str(),
            "to": to.to_string(),
        }))?;
    } else {
        console
            .out
            .line(format!("reset consumer {consumer} to {to}"))?;
        console.out.flush()?;
    }
    Ok(Exit::Done)
}

pub(super) async fn delete(bus: &Bus, options: &Delete, console: &mut Console) -> Result<Exit> {
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
            return Err(unknown_of(&explanation.consumers, consumer));
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

fn unknown_of(consumers: &[ConsumerTerms], name: &Name) -> Error {
    let mut known: Vec<String> = consumers.iter().map(|one| one.name.to_string()).collect();
    known.dedup();
    unknown(&known, name)
}
