//! What one consumer's configuration and state say, and several of them together.

use std::collections::BTreeMap;
use std::time::Duration;

use trunkline_core::Timestamp;

use super::{Report, consumer_object, edit_consumer, span};
use crate::doctor::near::{covers, meant, overlap, without_replica};
use crate::doctor::rules::*;
use crate::doctor::snapshot::{Consumer, Snapshot, Stream};

const SECOND: u64 = 1_000_000_000;

pub(super) fn judge(snapshot: &Snapshot, consumer: &Consumer, report: &mut Report) {
    let stream = snapshot.stream(&consumer.stream_name);
    if stream.is_some_and(Stream::is_bucket) {
        return;
    }
    if let Some(stream) = stream {
        filters(stream, consumer, report);
        replicas_of(stream, consumer, report);
    }
    flow(snapshot, consumer, report);
    if consumer.is_durable() {
        terms(consumer, report);
    }
}

fn filters(stream: &Stream, consumer: &Consumer, report: &mut Report) {
    let object = || consumer_object(consumer);
    let subjects = &stream.config.subjects;
    let filters = consumer.filters();
    if !stream.is_copy() && !subjects.is_empty() {
        for filter in &filters {
            if subjects.iter().any(|subject| overlap(subject, filter)) {
                continue;
            }
            // The stream's own slip is told by TD-01, once for all who ask for it.
            if super::wiring::shorter(stream, filter).is_some() {
                continue;
            }
            report.add(
                FILTER_OUTSIDE_STREAM,
                object(),
                format!(
                    "it asks for {filter}, the stream stores {}",
                    subjects.join(", ")
                ),
                "nothing will ever arrive, and nobody is told",
                edit_consumer(
                    consumer,
                    &format!(
                        "--filter '{}'",
                        subjects.first().map_or(">", String::as_str)
                    ),
                ),
            );
        }
    }
    if let Some(stored) = &stream.state.subjects
        && consumer.delivered.consumer_seq == 0
        && consumer.num_pending == 0
    {
        for filter in &filters {
            let inside = subjects.iter().any(|subject| overlap(subject, filter));
            if let Some((meant, subject)) = meant(filter, stored.keys().map(String::as_str))
                && (inside || subjects.is_empty())
            {
                report.add(
                    FILTER_A_TOKEN_OFF,
                    object(),
                    format!(
                        "{filter} matches nothing stored; {subject} is, and {meant} would match it"
                    ),
                    "nothing arrives: `*` is one token, `>` one or more",
                    edit_consumer(consumer, &format!("--filter '{meant}'")),
                );
            }
        }
    }
    let kinds = stream
        .state
        .subjects
        .as_ref()
        .map_or(stream.state.num_subjects, |subjects| subjects.len() as u64)
        .max(subjects.len() as u64);
    let queue = stream.config.retention == "workqueue";
    let everything = filters.is_empty()
        || !subjects.is_empty()
            && subjects
                .iter()
                .all(|subject| filters.iter().any(|filter| covers(filter, subject)));
    let wide = subjects.len() > 1 || subjects.iter().any(|subject| subject.contains(['*', '>']));
    if queue && everything && wide {
        report.add(
            QUEUE_TAKEN,
            object(),
            format!("it takes all of {}, a work queue", subjects.join(", ")),
            "the server refuses every other consumer: a second service cannot have these events",
            format!(
                "give each consumer its own type: {}; or use limits retention, where all get everything",
                edit_consumer(consumer, &format!("--filter '{}'", example(stream)))
            ),
        );
    } else if !queue && filters.is_empty() && consumer.is_durable() && kinds > 1 {
        report.add(
            DURABLE_WITHOUT_FILTER,
            object(),
            format!("no filter, on a stream of {kinds} subjects"),
            "a handler of one type receives every type",
            format!(
                "{}; or --filter '>' if it is meant to get all",
                edit_consumer(consumer, &format!("--filter '{}'", example(stream)))
            ),
        );
    }
}

/// A subject that a consumer of the stream could ask for.
fn example(stream: &Stream) -> &str {
    let stored = stream.state.subjects.iter().flatten();
    stored
        .map(|(subject, _)| subject.as_str())
        .chain(stream.config.subjects.iter().map(String::as_str))
        .next()
        .unwrap_or(">")
}

/// Whether it moves.
fn flow(snapshot: &Snapshot, consumer: &Consumer, report: &mut Report) {
    let object = || consumer_object(consumer);
    let (stream, name) = (&consumer.stream_name, &consumer.name);
    if consumer.paused {
        let until = consumer.config.pause_until.as_deref();
        report.add(
            PAUSED,
            object(),
            format!("paused until {}", until.unwrap_or("it is resumed")),
            match consumer.is_gauge() {
                true => "nothing waits: it only shows how far a consumer of Trunkline is, which goes on".to_owned(),
                false => format!("{} events wait", consumer.num_pending),
            },
            match consumer.is_gauge() {
                true => format!(
                    "nats consumer resume {stream} {name}; if it was meant: trunkline consumers pause {name}"
                ),
                false => format!("nats consumer resume {stream} {name}"),
            },
        );
        return;
    }
    let most = u64::try_from(consumer.config.max_ack_pending).unwrap_or(0);
    if most > 0 && consumer.num_ack_pending >= most && consumer.num_pending > 0 {
        report.add(
            STALLED,
            object(),
            format!(
                "{} of {most} in flight, {} pending",
                consumer.num_ack_pending, consumer.num_pending
            ),
            "nothing more is delivered until its members acknowledge",
            format!(
                "look at what its members do (trunkline consumers show {name}); raise the limit if they are merely slow: {}",
                edit_consumer(consumer, &format!("--max-pending {}", most.saturating_mul(2)))
            ),
        );
    }
    let pushed = consumer
        .config
        .deliver_subject
        .as_ref()
        .is_some_and(|subject| !subject.is_empty());
    let waiting = if pushed {
        consumer.push_bound
    } else {
        consumer.num_waiting > 0
    };
    // Nobody ever asks for what a gauge counts.
    if consumer.is_durable()
        && !consumer.is_gauge()
        && !waiting
        && consumer.num_pending > 0
        && consumer.num_ack_pending == 0
        && idle(snapshot, consumer)
    {
        let last = match &consumer.delivered.last_active {
            Some(at) => format!("the last delivery was at {at}"),
            None => "nothing was ever delivered".to_owned(),
        };
        report.add(
            NOBODY_PULLS,
            object(),
            format!(
                "{} pending, nobody asks for them, {last}",
                consumer.num_pending
            ),
            "its handler ended or was never started: events wait until they expire",
            format!(
                "start the service again; if it is gone for good: nats consumer rm {stream} {name}"
            ),
        );
    }
    if let Some(cluster) = &consumer.cluster
        && cluster.leader.as_deref().unwrap_or_default().is_empty()
    {
        report.add(
            NO_LEADER,
            object(),
            "no leader",
            "nothing is delivered until most of its servers are back",
            format!("bring its servers back, then look: nats consumer info {stream} {name}"),
        );
    }
}

/// Whether nothing was delivered for so long that it is no pause between two pulls.
fn idle(snapshot: &Snapshot, consumer: &Consumer) -> bool {
    let last = consumer
        .delivered
        .last_active
        .as_deref()
        .unwrap_or(&consumer.created);
    match (consumer.ts.parse::<Timestamp>(), last.parse::<Timestamp>()) {
        (Ok(now), Ok(last)) => now.since(last) >= Duration::from_secs(snapshot.idle_after_s),
        _ => false,
    }
}

/// What a durable consumer promises its handler.
fn terms(consumer: &Consumer, report: &mut Report) {
    let config = &consumer.config;
    let object = || consumer_object(consumer);
    if config.max_deliver > 0 {
        report.add(
            GIVES_UP,
            object(),
            format!(
                "max_deliver is {}; {} are being delivered again now",
                config.max_deliver, consumer.num_redelivered
            ),
            "after that an event is skipped for ever, and only an advisory that nobody stores says so",
            format!(
                "{}, and count attempts where dead letters are written, as trunkline's consumers do",
                edit_consumer(consumer, "--max-deliver=-1")
            ),
        );
    }
    if !config.backoff.is_empty() {
        let steps: Vec<String> = config.backoff.iter().map(|step| span(*step)).collect();
        report.add(
            BACKOFF,
            object(),
            format!("backoff is {}", steps.join(", ")),
            "it adds to the delay of a negative ack and does nothing for a plain one",
            edit_consumer(consumer, "--backoff none --wait 30s"),
        );
    }
    let acknowledged = matches!(config.ack_policy.as_str(), "explicit" | "all");
    if acknowledged && config.ack_wait < SECOND && config.backoff.is_empty() {
        report.add(
            ACK_WAIT_TOO_SMALL,
            object(),
            format!(
                "ack_wait is {} (it is given in nanoseconds)",
                span(config.ack_wait)
            ),
            "events are delivered again while they are still being handled",
            edit_consumer(consumer, "--wait 30s"),
        );
    }
    if config.ack_policy != "explicit" && !config.ack_policy.is_empty() {
        report.add(
            NOT_EXPLICIT,
            object(),
            format!("ack policy {}", config.ack_policy),
            if config.ack_policy == "all" {
                "an ack settles earlier events that are still being handled"
            } else {
                "what its handler fails at is never delivered again"
            },
            format!(
                "it cannot be changed: nats consumer add {} {}_2 --pull --ack explicit, then move its readers",
                consumer.stream_name, consumer.name
            ),
        );
    }
    if config.inactive_threshold > 0 {
        report.add(
            DURABLE_EXPIRES,
            object(),
            format!(
                "deleted after {} without a reader",
                span(config.inactive_threshold)
            ),
            "a service that is down for longer loses its progress",
            edit_consumer(consumer, "--inactive-threshold 0s"),
        );
    }
}

fn replicas_of(stream: &Stream, consumer: &Consumer, report: &mut Report) {
    let (own, streams) = (consumer.config.num_replicas, stream.config.num_replicas);
    if own > 0 && own < streams && consumer.is_durable() {
        report.add(
            CONSUMER_REPLICAS,
            consumer_object(consumer),
            format!("{own} replicas, its stream has {streams}"),
            "its progress is lost with fewer servers than its events",
            edit_consumer(consumer, "--replicas 0"),
        );
    }
}

/// Several durables that differ by a replica's number only.
pub(super) fn replicas(snapshot: &Snapshot, report: &mut Report) {
    let mut alike: BTreeMap<(&str, &str, Vec<&str>), Vec<&str>> = BTreeMap::new();
    for consumer in snapshot.consumers.iter().filter(|one| one.is_durable()) {
        if let Some(stem) = without_replica(&consumer.name) {
            alike
                .entry((&consumer.stream_name, stem, consumer.filters()))
                .or_default()
                .push(&consumer.name);
        }
    }
    for ((stream, stem, _), names) in alike {
        if names.len() < 2 {
            continue;
        }
        report.add(
            DURABLE_PER_REPLICA,
            format!("stream {stream}"),
            format!(
                "{} durables with equal filters: {}",
                names.len(),
                names.join(", ")
            ),
            format!("each event is handled {} times", names.len()),
            format!(
                "let all replicas share one durable named {stem}, then remove these: {}",
                names
                    .iter()
                    .map(|name| format!("nats consumer rm {stream} {name} -f"))
                    .collect::<Vec<_>>()
                    .join("; ")
            ),
        );
    }
}
