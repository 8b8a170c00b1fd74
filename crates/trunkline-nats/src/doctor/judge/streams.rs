//! What one stream's configuration and state say.

use super::{Report, edit_stream, span, stream_object};
use crate::doctor::near::covers;
use crate::doctor::rules::*;
use crate::doctor::snapshot::{Snapshot, Stream};

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const DAY_MICROS: u64 = 86_400_000_000;
const DAY_MILLIS: u64 = 86_400_000;
/// What a mirror, source or replica may be behind.
const LAG: u64 = 1_000;
/// What a server since 2.15 allows where nothing is set.
const CONSUMERS: u64 = 1_000;

pub(super) fn judge(snapshot: &Snapshot, stream: &Stream, report: &mut Report) {
    placement(stream, report);
    copies(stream, report);
    if stream.is_bucket() {
        return;
    }
    lifetime(stream, report);
    window(stream, report);
    keeping(snapshot, stream, report);
    limits(snapshot, stream, report);
    message_ids(stream, report);
}

fn lifetime(stream: &Stream, report: &mut Report) {
    let age = stream.config.max_age;
    let as_micros =
        age < 60 * MINUTE && age.is_multiple_of(DAY_MICROS) && !age.is_multiple_of(MINUTE);
    if age == 0 || age >= MINUTE && !as_micros {
        return;
    }
    let meant = if age.is_multiple_of(DAY_MILLIS) && age < MINUTE {
        Some((age / DAY_MILLIS, "milliseconds"))
    } else if as_micros {
        Some((age / DAY_MICROS, "microseconds"))
    } else {
        None
    };
    let (what, flag) = match meant {
        Some((days, unit)) => (
            format!(
                "max_age is {}; read as {unit}, {age} would be {days} d, but it is nanoseconds",
                span(age)
            ),
            format!("--max-age {days}d"),
        ),
        None => (
            format!("max_age is {}", span(age)),
            "--max-age 7d".to_owned(),
        ),
    };
    report.add(
        AGE_TOO_SMALL,
        stream_object(stream),
        what,
        "events are gone before anybody who was away for that long reads them",
        edit_stream(stream, &flag),
    );
}

fn window(stream: &Stream, report: &mut Report) {
    let config = &stream.config;
    let wanted = match config.max_age {
        0 => 2 * MINUTE,
        age => age.min(2 * MINUTE),
    };
    if config.duplicate_window < wanted && config.mirror.is_none() {
        report.add(
            WINDOW_TOO_SMALL,
            stream_object(stream),
            format!("ids are remembered for {}", span(config.duplicate_window)),
            "a publish that is repeated after that is stored twice",
            edit_stream(stream, "--dupe-window 2m"),
        );
    }
}

/// Whether events are taken at all, and kept.
fn keeping(snapshot: &Snapshot, stream: &Stream, report: &mut Report) {
    let config = &stream.config;
    let object = || stream_object(stream);
    if config.subjects.len() == 1
        && config.subjects[0] == config.name
        && !stream.is_copy()
        && stream.state.last_seq == 0
    {
        report.add(
            STREAM_WITHOUT_SUBJECTS,
            object(),
            format!("its only subject is its own name, {}", config.name),
            "it was made without subjects: events on others are stored nowhere, and a publisher that awaits no ack does not know",
            edit_stream(stream, &format!("--subjects 'events.{}.>'", config.name.to_lowercase())),
        );
    }
    if config.no_ack {
        report.add(
            NO_ACK,
            object(),
            "no_ack is set",
            "publishers never learn whether an event was stored",
            edit_stream(stream, "--ack"),
        );
    }
    if config.sealed && !config.subjects.is_empty() {
        report.add(
            SEALED,
            object(),
            format!("sealed, with subjects {}", config.subjects.join(", ")),
            "whatever is published there is refused, and sealing cannot be undone",
            format!(
                "make another stream for its subjects: nats stream add {}_2 --subjects '{}'",
                config.name,
                config.subjects.join(",")
            ),
        );
    }
    if config.retention == "interest"
        && stream.state.consumer_count == 0
        && snapshot.consumers_of(stream).next().is_none()
    {
        report.add(
            INTEREST_WITHOUT_CONSUMER,
            object(),
            "interest retention and no consumer",
            "every event is acknowledged to its publisher and dropped at once",
            format!(
                "start its consumers before its publishers, or use limits: nats stream rm {0} and nats stream add {0} --retention limits",
                config.name
            ),
        );
    }
    if config.storage == "memory" && config.num_replicas <= 1 {
        report.add(
            IN_MEMORY,
            object(),
            "kept in memory by one server",
            "a restart of that server loses every event",
            format!(
                "storage cannot be changed: nats stream backup {0} ./{0}, then add it anew with --storage file",
                config.name
            ),
        );
    }
    if config.retention == "workqueue" && stream.state.messages > 0 {
        let taken = |filters: &[&str]| {
            filters.is_empty()
                || match &stream.state.subjects {
                    Some(stored) => stored
                        .keys()
                        .any(|subject| filters.iter().any(|filter| covers(filter, subject))),
                    None => true,
                }
        };
        if !snapshot
            .consumers_of(stream)
            .any(|consumer| taken(&consumer.filters()))
            && !snapshot
                .not_seen
                .iter()
                .any(|not| not.part.contains("consumers"))
        {
            report.add(
                QUEUE_WITHOUT_CONSUMER,
                object(),
                format!("{} messages and no consumer that takes them", stream.state.messages),
                "they wait for ever; a consumer that starts at new or last, or overlaps another, is refused here",
                format!(
                    "nats consumer add {} NAME --pull --deliver all --ack explicit --filter '{}'",
                    config.name,
                    config.subjects.first().map_or(">", String::as_str)
                ),
            );
        }
    }
}

fn limits(snapshot: &Snapshot, stream: &Stream, report: &mut Report) {
    let (config, state) = (&stream.config, &stream.state);
    let object = || stream_object(stream);
    let limit = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0);
    let refuses = config.discard == "new";
    let behind = snapshot
        .consumers_of(stream)
        .any(|consumer| consumer.num_pending + consumer.num_ack_pending > 0);
    for (what, used, limit, slack, flag) in [
        (
            "bytes",
            state.bytes,
            limit(config.max_bytes),
            50,
            "--max-bytes",
        ),
        (
            "messages",
            state.messages,
            limit(config.max_msgs),
            u64::MAX,
            "--max-msgs",
        ),
    ] {
        let Some(limit) = limit else { continue };
        let said = format!("{used} of {limit} {what}");
        if refuses && used >= limit - limit / slack {
            report.add(
                FULL_REFUSES,
                object(),
                said,
                "whatever is published is refused",
                edit_stream(stream, &format!("{flag} {}", limit.saturating_mul(2))),
            );
        } else if used as f64 > limit as f64 * 0.8 && (refuses || behind) {
            report.add(
                NEAR_LIMIT,
                object(),
                said,
                if refuses {
                    "soon whatever is published is refused"
                } else {
                    "soon events leave that a consumer has not read"
                },
                edit_stream(stream, &format!("{flag} {}", limit.saturating_mul(2))),
            );
        }
    }
    if config.retention == "limits"
        && config.max_age == 0
        && limit(config.max_bytes).is_none()
        && limit(config.max_msgs).is_none()
        && !config.sealed
        && config.mirror.is_none()
        && !(super::wiring::is_dead_letters(stream) && state.messages == 0)
    {
        report.add(
            UNLIMITED,
            object(),
            "no limit in age, bytes or messages",
            "it grows until the server's storage is full, and then every stream refuses",
            edit_stream(stream, "--max-age 7d --max-bytes 10GB"),
        );
    }
    let cap = limit(config.max_consumers).unwrap_or(CONSUMERS);
    if state.consumer_count > cap / 5 * 4 && cap >= 5 {
        report.add(
            CONSUMERS_NEAR_CAP,
            object(),
            format!("{} of {cap} consumers", state.consumer_count),
            "the next ones are refused, those of short-lived readers too",
            format!(
                "remove unused ones (nats consumer report {}), or share one among readers",
                config.name
            ),
        );
    }
}

fn message_ids(stream: &Stream, report: &mut Report) {
    let last = &stream.last_messages;
    if last.is_empty() || stream.is_copy() || last.iter().any(|message| message.guarded) {
        return;
    }
    report.add(
        NO_MESSAGE_ID,
        stream_object(stream),
        format!(
            "none of the last {} messages has Nats-Msg-Id, for example on {}",
            last.len(),
            last[0].subject
        ),
        "a publish that is repeated after a time-out is stored twice",
        "send the event's id as the header Nats-Msg-Id with every publish, or publish with `trunkline pub`",
    );
}

/// Leaders and replicas.
fn placement(stream: &Stream, report: &mut Report) {
    let Some(cluster) = &stream.cluster else {
        return;
    };
    let name = stream.name();
    if cluster.leader.as_deref().unwrap_or_default().is_empty() {
        report.add(
            NO_LEADER,
            stream_object(stream),
            "no leader",
            "nothing can be stored or read until most of its servers are back",
            format!("bring its servers back (nats server report jetstream), then look: nats stream info {name}"),
        );
    }
    for peer in &cluster.replicas {
        let what = match peer {
            peer if peer.offline => format!("replica {} is offline", peer.name),
            peer if !peer.current && peer.lag > LAG => {
                format!("replica {} is {} operations behind", peer.name, peer.lag)
            }
            _ => continue,
        };
        report.add(
            REPLICA_BEHIND,
            stream_object(stream),
            what,
            "one more server that fails may stop the stream",
            format!(
                "bring {} back, or replace it: nats stream cluster peer-remove {name} {}",
                peer.name, peer.name
            ),
        );
    }
    if cluster.name.is_some()
        && stream.config.num_replicas <= 1
        && stream.config.storage != "memory"
    {
        report.add(
            ONE_REPLICA,
            stream_object(stream),
            "one replica in a cluster",
            "when its server is away nothing is stored; when its disk is lost the events are",
            edit_stream(stream, "--replicas 3"),
        );
    }
}

fn copies(stream: &Stream, report: &mut Report) {
    for source in stream.mirror.iter().chain(&stream.sources) {
        let what = if let Some(error) = &source.error {
            error.description.clone()
        } else if source.active < 0 {
            "never heard of".to_owned()
        } else if source.active as u64 > MINUTE {
            format!("not heard of for {}", span(source.active as u64))
        } else if source.lag > LAG {
            format!("{} messages behind", source.lag)
        } else {
            continue;
        };
        report.add(
            COPY_BEHIND,
            stream_object(stream),
            format!("its origin {}: {what}", source.name),
            "readers of the copy do not see what is stored at the origin",
            format!(
                "look at both ends: nats stream info {} and nats stream info {}",
                stream.name(),
                source.name
            ),
        );
    }
}
