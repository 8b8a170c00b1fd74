//! Which subjects meet which streams.

use std::collections::{BTreeMap, BTreeSet};

use super::{Report, edit_stream, stream_object, subjects_flag};
use crate::doctor::near::{covers, meant, overlap};
use crate::doctor::rules::*;
use crate::doctor::snapshot::{Snapshot, Stream};

/// Subjects that are named in one finding.
const NAMED: usize = 3;
/// First tokens of dead letters.
const DEAD: [&str; 4] = ["dlq", "dead", "deadletter", "dead-letter"];

pub(super) fn judge(snapshot: &Snapshot, report: &mut Report) {
    short(snapshot, report);
    dead_letters(snapshot, report);
    ephemeral(snapshot, report);
    declared_requests(snapshot, report);
    replay(snapshot, report);
}

/// The filter of a stream that is a token short of `subject`, and what it should have been.
pub(super) fn shorter<'a>(stream: &'a Stream, subject: &str) -> Option<(&'a str, String)> {
    stream.config.subjects.iter().find_map(|filter| {
        // A literal is what somebody wrote on purpose; a star is what people miscount.
        let star = filter.strip_suffix(".*")?;
        let (meant, _) = meant(filter, [subject])?;
        (meant == format!("{star}.>")).then_some((filter.as_str(), meant))
    })
}

/// TD-01, and TD-44 for what is declared and has no near filter.
fn short(snapshot: &Snapshot, report: &mut Report) {
    let stored = |subject: &str| {
        let mut streams = snapshot.streams.iter();
        streams.any(|stream| {
            let mut filters = stream.config.subjects.iter();
            filters.any(|filter| covers(filter, subject))
        })
    };
    let mut near: BTreeMap<(&str, &str, String), BTreeSet<&str>> = BTreeMap::new();
    let published = snapshot.traffic.iter().flat_map(|traffic| {
        let subjects = traffic.subjects.iter();
        subjects.map(|(subject, _)| subject.as_str())
    });
    let declared: Vec<&str> = snapshot
        .expected
        .durable
        .iter()
        .map(String::as_str)
        .collect();
    let ephemeral = |subject: &str| {
        let expected = &snapshot.expected;
        let mut unstored = expected.ephemeral.iter().chain(&expected.requests);
        unstored.any(|filter| covers(filter, subject))
    };
    for subject in published.chain(declared.iter().copied()) {
        if stored(subject) || ephemeral(subject) {
            continue;
        }
        let slip = snapshot
            .streams
            .iter()
            .filter(|stream| !is_dead_letters(stream) || DEAD.contains(&first(subject)))
            .find_map(|stream| Some((stream.name(), shorter(stream, subject)?)));
        if let Some((stream, (filter, meant))) = slip {
            near.entry((stream, filter, meant))
                .or_default()
                .insert(subject);
        } else if declared.contains(&subject) {
            let partly = snapshot.storing(subject);
            report.add(
                EXPECTED_NOT_STORED,
                format!("subject {subject}"),
                match partly {
                    Some(stream) => format!(
                        "declared durable, but {} of stream {} takes only some of it",
                        stream.config.subjects.join(", "),
                        stream.name()
                    ),
                    None => "declared durable, but no stream stores it".to_owned(),
                },
                "its events are lost, or refused where publishers wait for the ack",
                "trunkline topology plan, then trunkline topology apply",
            );
        }
    }
    for consumer in &snapshot.consumers {
        let Some(stream) = snapshot.stream(&consumer.stream_name) else {
            continue;
        };
        for filter in consumer.filters() {
            let subjects = &stream.config.subjects;
            if subjects.iter().any(|subject| overlap(subject, filter)) || stored(filter) {
                continue;
            }
            if let Some((short, meant)) = shorter(stream, filter) {
                near.entry((stream.name(), short, meant))
                    .or_default()
                    .insert(filter);
            }
        }
    }
    for ((name, filter, meant), subjects) in near {
        let Some(stream) = snapshot.stream(name) else {
            continue;
        };
        report.add(
            STREAM_SHORT,
            stream_object(stream),
            format!("{filter} does not take {}; {meant} would", named(&subjects)),
            "these events are stored nowhere: `*` is one token",
            edit_stream(stream, &subjects_flag(stream, filter, &meant)),
        );
    }
}

fn named(subjects: &BTreeSet<&str>) -> String {
    let mut text = subjects
        .iter()
        .take(NAMED)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    if subjects.len() > NAMED {
        text.push_str(&format!(" and {} more", subjects.len() - NAMED));
    }
    text
}

fn first(subject: &str) -> &str {
    subject.split('.').next().unwrap_or(subject)
}

/// Whether a stream is there for dead letters.
pub(super) fn is_dead_letters(stream: &Stream) -> bool {
    let subjects = &stream.config.subjects;
    !subjects.is_empty()
        && subjects
            .iter()
            .all(|subject| DEAD.contains(&first(subject).to_ascii_lowercase().as_str()))
}

fn dead_letters(snapshot: &Snapshot, report: &mut Report) {
    // What would be dead-lettered: whatever other streams store.
    let deep = snapshot
        .streams
        .iter()
        .filter(|stream| !is_dead_letters(stream) && !stream.is_bucket())
        .flat_map(|stream| {
            let stored = stream.state.subjects.iter().flatten();
            let stored = stored.map(|(subject, _)| subject.as_str());
            stored.chain(stream.config.subjects.iter().map(String::as_str))
        })
        .find(|subject| subject.contains('.'));
    let Some(example) = deep else { return };
    for stream in snapshot.streams.iter().filter(|one| is_dead_letters(one)) {
        for filter in &stream.config.subjects {
            // With more tokens it has a scheme of its own, such as `dlq.<stream>.<consumer>.*`.
            let Some(root) = filter.strip_suffix(".*").filter(|root| !root.contains('.')) else {
                continue;
            };
            let letter = format!("{root}.{example}");
            if stream.state.last_seq > 0 || snapshot.storing(&letter).is_some() {
                continue;
            }
            report.add(
                DLQ_SHORT,
                stream_object(stream),
                format!("{filter} takes one more token, a dead letter such as {letter} has more"),
                "the dead letter is not stored, and the original is lost once it is acknowledged",
                edit_stream(stream, &subjects_flag(stream, filter, &format!("{root}.>"))),
            );
        }
    }
}

/// Words for what comes in floods.
const FLOODS: [&str; 6] = [
    "token",
    "tokens",
    "chunk",
    "chunks",
    "heartbeat",
    "heartbeats",
];

fn ephemeral(snapshot: &Snapshot, report: &mut Report) {
    for stream in snapshot.streams.iter().filter(|one| !one.is_bucket()) {
        let mut faults = BTreeSet::new();
        for filter in &stream.config.subjects {
            if filter == ">" || filter == "*" {
                faults.insert(format!(
                    "{filter} takes everything, requests and ephemeral events too"
                ));
            } else if first(filter) == "live" || first(filter) == "*" && overlap(filter, "live.>") {
                faults.insert(format!(
                    "{filter} takes subjects below live, the root of ephemeral events"
                ));
            }
            for declared in &snapshot.expected.ephemeral {
                if overlap(filter, declared) {
                    faults.insert(format!(
                        "{filter} takes {declared}, which is declared ephemeral"
                    ));
                }
            }
        }
        if faults.is_empty() {
            faults.extend(flood(snapshot, stream));
        }
        for what in faults {
            report.add(
                EPHEMERAL_STORED,
                stream_object(stream),
                what,
                "they are stored all the same, and at a limit they push durable events out",
                edit_stream(stream, "--subjects 'events.>' # its durable subjects only"),
            );
        }
    }
}

/// What was seen to fill a stream that is there for something else as well.
fn flood(snapshot: &Snapshot, stream: &Stream) -> Option<String> {
    let traffic = snapshot.traffic.as_ref()?;
    let taken = |subject: &str| {
        let mut filters = stream.config.subjects.iter();
        filters.any(|filter| covers(filter, subject))
    };
    let (mut all, mut flood, mut example) = (0, 0, None);
    for (subject, seen) in traffic.subjects.iter().filter(|(one, _)| taken(one)) {
        all += seen.messages;
        if subject.split('.').any(|token| FLOODS.contains(&token)) {
            flood += seen.messages;
            example.get_or_insert(subject);
        }
    }
    let other = stream
        .state
        .subjects
        .as_ref()?
        .keys()
        .any(|subject| !subject.split('.').any(|token| FLOODS.contains(&token)));
    (other && flood >= 100 && flood as f64 >= all as f64 * 0.9).then(|| {
        format!(
            "{flood} of {all} messages seen were such as {}",
            example.map_or("", String::as_str)
        )
    })
}

fn declared_requests(snapshot: &Snapshot, report: &mut Report) {
    for subject in &snapshot.expected.requests {
        if let Some(stream) = snapshot.storing(subject) {
            report.add(
                REQUEST_STORED,
                format!("subject {subject}"),
                format!("declared a request, and stored by stream {}", stream.name()),
                "the stream's publish ack arrives as the answer",
                edit_stream(
                    stream,
                    "--subjects 'events.>' # its events, without the requests",
                ),
            );
        }
    }
}

fn replay(snapshot: &Snapshot, report: &mut Report) {
    for stream in &snapshot.streams {
        let retention = stream.config.retention.as_str();
        if !matches!(retention, "workqueue" | "interest") || stream.is_bucket() {
            continue;
        }
        let expected = &snapshot.expected;
        let subjects = &stream.config.subjects;
        let declared = expected
            .replayed
            .iter()
            .chain(&expected.durable)
            .find(|wanted| subjects.iter().any(|subject| overlap(subject, wanted)));
        let named = subjects
            .iter()
            .find(|subject| matches!(first(subject), "events" | "event"));
        let what = match (declared, named) {
            (Some(wanted), _) if first(wanted) != "commands" => {
                format!("{retention} retention, and {wanted} is declared durable")
            }
            (_, Some(subject)) => format!("{retention} retention on {subject}"),
            _ => continue,
        };
        report.add(
            NOTHING_TO_REPLAY,
            stream_object(stream),
            what,
            "an event is removed once it is handled: there is nothing to replay, and a new service starts with nothing",
            format!(
                "retention cannot be changed: nats stream add {}_2 with other subjects and --retention limits, then move its publishers",
                stream.name()
            ),
        );
    }
}
