//! `trunkline explain`: the delivery contract in force.

use clap::Args;
use trunkline::core::engine::{Durability, Fact, Reach};
use trunkline::explain::{StreamTerms, TypeTerms};
use trunkline::{Bus, Explanation, Result};

use crate::console::Console;
use crate::consumers;
use crate::exit::Exit;
use crate::figures::{bytes, duration, grouped};
use crate::look::{Look, Style};
use crate::streams::{keeps, subjects, when_full};
use crate::table::{Facts, wrapped};

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Types to follow through the bus, as `order.placed`; those of the catalogue unless given.
    #[arg(value_name = "TYPE")]
    types: Vec<String>,
}

pub(crate) async fn run(bus: &Bus, options: &Explain, console: &mut Console) -> Result<Exit> {
    let explanation = if options.types.is_empty() {
        bus.explain().await?
    } else {
        bus.explain_types(&options.types).await?
    };
    if console.json {
        console.json_document(&explanation)?;
    } else {
        console.out.text(render(&explanation, console.look))?;
        console.out.flush()?;
    }
    Ok(Exit::Done)
}

fn render(explanation: &Explanation, look: Look) -> String {
    let mut text = String::new();
    let mut section = |title: &str, body: String| {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&look.paint(Style::Strong, title));
        text.push('\n');
        text.push_str(&body);
    };
    section("The bus", bus(explanation, look));
    section("What is promised", promises(explanation, look));
    for stream in &explanation.streams {
        section(
            &format!("Stream {}", stream.name),
            stream_facts(stream, explanation, look),
        );
    }
    if !explanation.consumers.is_empty() {
        let table = consumers::table(&explanation.consumers, |_| true);
        section("Consumers", table.render(look));
    }
    for terms in &explanation.types {
        // A type is text from outside; the title must not act on the terminal.
        let title = crate::plain::without_controls(&terms.event_type).into_owned();
        section(
            &format!("Type {title}"),
            type_facts(terms, explanation, look),
        );
    }
    text
}

fn bus(explanation: &Explanation, look: Look) -> String {
    let mut facts = Facts::default();
    facts.add("engine", &explanation.engine);
    for fact in &explanation.facts {
        facts.add(fact.name.to_string(), &fact.value);
    }
    facts.add("reach", reach(explanation.reach));
    facts.styled(
        "stored means",
        if explanation.durability == Durability::Process {
            Style::Warning
        } else {
            Style::Plain
        },
        survives(explanation),
    );
    facts.add(
        "limits",
        format!(
            "{} a message, {} events a batch",
            bytes(explanation.max_message_bytes as u64),
            grouped(explanation.max_batch as u64)
        ),
    );
    let roots = &explanation.roots;
    facts.add(
        "roots",
        format!(
            "{} are durable, {}.> commands, {}.> ephemeral, {}.> dead letters",
            roots.events.as_ref().map_or_else(
                || "types without a root".to_owned(),
                |root| format!("{root}.>")
            ),
            roots.commands,
            roots.live,
            roots.dlq
        ),
    );
    facts.add(
        "catalogue",
        match &explanation.catalogue {
            None => "none: every valid event type is accepted".to_owned(),
            Some(types) => format!("in force: only {} are accepted", types.join(", ")),
        },
    );
    facts.add("source", &explanation.source);
    facts.render(look)
}

/// What holds on every engine, in a sentence each.
fn promises(explanation: &Explanation, look: Look) -> String {
    let repeats = explanation
        .streams
        .iter()
        .map(|stream| stream.duplicate_window)
        .max();
    let sentences = [
        "A published event is stored before the publisher hears of it.".to_owned(),
        format!(
            "An id that is published again within {} is stored once.",
            duration(repeats.unwrap_or_default())
        ),
        "A consumer gets each event at least once, and acknowledges it after its handler.".to_owned(),
        "A failed event is tried again, five times in all unless its consumer says otherwise, then kept as a dead letter.".to_owned(),
        "Events of a stream are read in the order in which they are stored; retention that meets an unread event is told as a gap.".to_owned(),
        "Ephemeral events reach whoever listens, at most once, and are not stored.".to_owned(),
    ];
    let mut text = String::new();
    for sentence in sentences {
        for (index, line) in wrapped(&sentence, look.width.saturating_sub(2))
            .iter()
            .enumerate()
        {
            text.push_str(if index == 0 { "- " } else { "  " });
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn stream_facts(stream: &StreamTerms, explanation: &Explanation, look: Look) -> String {
    let mut facts = Facts::default();
    if stream.name == explanation.dead_letters {
        facts.add(
            "purpose",
            "dead letters: what consumers gave up, with the story of the failure",
        );
    }
    facts.add("subjects", subjects(stream));
    facts.add(
        "holds",
        format!("{} events, {}", grouped(stream.events), bytes(stream.bytes)),
    );
    facts.add("keeps", keeps(stream));
    facts.add("when full", when_full(stream.retention));
    match stream.replicas_declared {
        Some(declared) if stream.replicas < declared => facts.styled(
            "copies",
            Style::Warning,
            format!(
                "{} of {declared}; `trunkline topology apply` grows it once there are peers",
                stream.replicas
            ),
        ),
        // On an engine of one host there is nothing to say.
        _ if stream.replicas == 1 && explanation.reach != Reach::Network => {}
        _ => facts.add("copies", grouped(stream.replicas as u64)),
    }
    if !stream.ours {
        facts.add("made by", "others; never changed by trunkline");
    }
    facts.render(look)
}

fn type_facts(terms: &TypeTerms, explanation: &Explanation, look: Look) -> String {
    let mut facts = Facts::default();
    facts.add("class", terms.class.to_string());
    facts.add("subject", terms.subject.as_str());
    match (&terms.refused, &terms.stream) {
        (Some(refused), _) => facts.styled("published", Style::Bad, format!("refused: {refused}")),
        (None, Some(stream)) => {
            facts.styled("published", Style::Good, format!("stored in {stream}"));
        }
        (None, None) => facts.add("published", "sent to whoever listens, not stored"),
    }
    if terms.stream.is_some() {
        let consumers: Vec<String> = terms
            .consumers
            .iter()
            .map(|name| {
                let own = |consumer: &&trunkline::explain::ConsumerTerms| {
                    consumer.name == *name && Some(&consumer.stream) == terms.stream.as_ref()
                };
                let pending = explanation
                    .consumers
                    .iter()
                    .find(own)
                    .map_or(0, |own| own.pending);
                format!("{name} ({} pending)", grouped(pending))
            })
            .collect();
        if consumers.is_empty() {
            facts.styled(
                "consumers",
                Style::Warning,
                "none: it is stored, and no durable consumer gets it",
            );
        } else {
            facts.add("consumers", consumers.join(", "));
        }
    }
    facts.render(look)
}

fn survives(explanation: &Explanation) -> &'static str {
    // Of a bus behind a connection it has another name.
    let told = |fact: &Fact| fact.name.trim_start_matches("bus ") == "loss of power";
    match explanation.durability {
        Durability::Power => "kept on disk: it survives the process, a crash and a loss of power",
        Durability::Crash if explanation.facts.iter().any(told) => {
            "it survives the process and a crash of it; of a loss of power see above"
        }
        Durability::Crash => "it survives the process and a crash of it, not a loss of power",
        _ => "kept in memory: it is gone when the process that owns the bus ends",
    }
}

fn reach(reach: Reach) -> &'static str {
    match reach {
        Reach::Network => "many hosts",
        Reach::Host => "the processes of this host",
        _ => "this process only",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::kept;
    use crate::filled::filled;

    async fn explained(types: &[&str], width: usize) -> String {
        let bus = filled().await;
        let (mut console, out, _) = kept(width);
        let options = crate::parsed::<Explain>(types);
        run(&bus, &options, &mut console).await.unwrap();
        out.text()
    }

    #[tokio::test]
    async fn it_says_what_is_in_force_and_fits_on_the_terminal() {
        for width in [80, 40] {
            let text = explained(&["order.placed", "a b"], width).await;
            let longest = text.lines().map(crate::plain::width).max().unwrap();
            assert!(longest <= width, "{width}: {text}");
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            for part in [
                "engine: memory capacity: 1000000 events and 256MiB a stream at most",
                "gone when the process that owns the bus ends",
                "none: every valid event type is accepted",
                "Stream EVENTS_DLQ",
                "the oldest events leave",
                "subject: events.order.placed",
                "stored in EVENTS",
                "no durable consumer gets it",
                "events.a%20b",
            ] {
                assert!(words.contains(part), "{part:?} is not in {text}");
            }
        }
    }

    #[tokio::test]
    async fn programs_get_stable_names() {
        let bus = filled().await;
        let (mut console, out, _) = kept(80);
        console.json = true;
        let options = crate::parsed::<Explain>(&["order.placed"]);
        run(&bus, &options, &mut console).await.unwrap();
        let json: serde_json::Value = serde_json::from_str(&out.text()).unwrap();
        assert_eq!(
            (&json["engine"], &json["durability"]),
            (&"memory".into(), &"process".into())
        );
        let capacity = &json["facts"]["capacity"];
        assert!(
            capacity.as_str().unwrap().starts_with("1000000 "),
            "{capacity}"
        );
        assert_eq!(json["types"][0]["stream"], "EVENTS");
        assert!(json["catalogue"].is_null());
    }
}
