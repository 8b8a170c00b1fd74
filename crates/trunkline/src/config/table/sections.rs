//! The settings of streams and of consumers.

use std::time::Duration;

use trunkline_core::Filter;
use trunkline_core::engine::{Retention, StreamSpec};

use super::super::ConsumerSettings;
use super::super::given::{Kind, Raw};
use super::super::problem::Fault;
use super::super::units::size_value;
use super::{
    AUTO, DAY, FOREVER, OFF, Row, UNLIMITED, bytes, duration, i64_max, list, replicas, set, text,
    word,
};
use crate::consumer::{Breaker, Idempotency, LONGEST_DELAY, MAX_WINDOW, MAX_WINDOW_BYTES, Retry};

const RETENTIONS: [(&str, Retention); 3] = [
    ("discard_old", Retention::DiscardOld),
    ("refuse_when_full", Retention::RefuseWhenFull),
    ("work_queue", Retention::WorkQueue),
];

/// Settings of one stream, below `streams.NAME`.
pub(in crate::config) const STREAM: &[Row<StreamSpec>] = &[
    Row {
        key: "subjects",
        kind: Kind::Filters,
        default: r#"["events.>"]"#,
        doc: "What it stores, the root included. A stream of another name than EVENTS, COMMANDS or EVENTS_DLQ must say it.",
        secret: false,
        write: |stream, raw| set(&mut stream.subjects, raw.filters()),
        read: |stream| {
            Some(list(&stream.subjects, |subjects: &Filter| {
                text(subjects.as_str())
            }))
        },
    },
    Row {
        key: "retention",
        kind: Kind::Choice(&["discard_old", "refuse_when_full", "work_queue"]),
        default: r#""discard_old""#,
        doc: "What happens at a limit: the oldest leave, read or not, or new ones are refused; \
              an event of a work queue leaves when it is done.",
        secret: false,
        write: |stream, raw| set(&mut stream.retention, raw.choice(&RETENTIONS)),
        read: |stream| word(&RETENTIONS, stream.retention),
    },
    Row {
        key: "max_events",
        kind: Kind::CountOr(UNLIMITED),
        default: r#""unlimited""#,
        doc: "Events at most.",
        secret: false,
        write: |stream, raw| {
            set(
                &mut stream.max_events,
                raw.count_or(1..=i64_max(), UNLIMITED),
            )
        },
        read: |stream| {
            let events = stream.max_events;
            Some(events.map_or(text(UNLIMITED), |events| events.to_string()))
        },
    },
    Row {
        key: "max_bytes",
        kind: Kind::SizeOr(UNLIMITED),
        default: r#""unlimited""#,
        doc: "Bytes at most, for all events together.",
        secret: false,
        write: |stream, raw| set(&mut stream.max_bytes, raw.size_or(1..=i64_max(), UNLIMITED)),
        read: |stream| Some(stream.max_bytes.map_or(text(UNLIMITED), size_value)),
    },
    Row {
        key: "max_age",
        kind: Kind::DurationOr(UNLIMITED),
        default: r#""7d""#,
        doc: "How long events are kept.",
        secret: false,
        write: |stream, raw| {
            let range = Duration::from_millis(100)..=36_500 * DAY;
            set(&mut stream.max_age, raw.duration_or(range, UNLIMITED))
        },
        read: |stream| Some(stream.max_age.map_or(text(UNLIMITED), duration)),
    },
    Row {
        key: "max_message",
        kind: Kind::Size,
        default: r#""2016KiB""#,
        doc: "Bytes of one encoded message at most, headers included; the engine may accept less.",
        secret: false,
        write: |stream, raw| set(&mut stream.max_message, raw.size(1_024..=64 << 20)),
        read: |stream| Some(bytes(stream.max_message)),
    },
    Row {
        key: "duplicate_window",
        kind: Kind::Duration,
        default: r#""2m""#,
        doc: "How long an id is remembered, so that an event that is published again is stored once.",
        secret: false,
        write: |stream, raw| {
            let range = Duration::from_millis(100)..=365 * DAY;
            set(&mut stream.duplicate_window, raw.duration(range))
        },
        read: |stream| Some(duration(stream.duplicate_window)),
    },
    Row {
        key: "replicas",
        kind: Kind::Count,
        default: "3",
        doc: "Copies on different hosts: 1, 3 or 5. An engine of one host has one, and a lone server too, until it has peers.",
        secret: false,
        write: |stream, raw| set(&mut stream.replicas, replicas(raw)),
        read: |stream| Some(stream.replicas.to_string()),
    },
];

/// A share that is not nothing.
fn some_share(raw: &Raw) -> Result<f64, Fault> {
    match raw.share()? {
        0.0 => Err(Fault::new(
            "0 is out of range",
            "write more than 0, up to 1, or breaker = false",
        )),
        share => Ok(share),
    }
}

/// Settings of every consumer, below `consumers`, and of one, below `consumers.NAME`.
pub(in crate::config) const CONSUMER: &[Row<ConsumerSettings>] = &[
    Row {
        key: "ack_wait",
        kind: Kind::Duration,
        default: r#""30s""#,
        doc: "How long the engine waits for a member that went silent before its events go to others. Members that live renew in time.",
        secret: false,
        write: |consumer, raw| {
            let range = Duration::from_secs(1)..=DAY;
            set(&mut consumer.ack_wait, raw.duration(range).map(Some))
        },
        read: |consumer| consumer.ack_wait.map(duration),
    },
    Row {
        key: "concurrency",
        kind: Kind::Count,
        default: "16",
        doc: "How many handlers run at once in one member.",
        secret: false,
        write: |consumer, raw| set(&mut consumer.concurrency, raw.count(1..=10_000).map(Some)),
        read: |consumer| {
            consumer
                .concurrency
                .map(|concurrency| concurrency.to_string())
        },
    },
    Row {
        key: "window_events",
        kind: Kind::CountOr(AUTO),
        default: r#""auto""#,
        doc: "How many events one member holds at most, those that run included; by itself 256, or twice the concurrency if that is more; in key order 2 048 of each partition that it owns.",
        secret: false,
        write: |consumer, raw| {
            let range = 1..=MAX_WINDOW as u64;
            set(
                &mut consumer.window_events,
                raw.count_or(range, AUTO).map(Some),
            )
        },
        read: |consumer| {
            let events = consumer.window_events?;
            Some(events.map_or(text(AUTO), |events| events.to_string()))
        },
    },
    Row {
        key: "window_bytes",
        kind: Kind::Size,
        default: r#""16MiB""#,
        doc: "How many bytes the events that one member holds have at most; a larger event is held alone.",
        secret: false,
        write: |consumer, raw| {
            let range = 1..=MAX_WINDOW_BYTES as u64;
            set(&mut consumer.window_bytes, raw.size(range).map(Some))
        },
        read: |consumer| consumer.window_bytes.map(bytes),
    },
    Row {
        key: "partitions",
        kind: Kind::Count,
        default: "16",
        doc: "Into how many partitions the keys of a consumer are divided when it is made: a power of two from 1 to 256. `trunkline consumers divide` changes that of one that is there.",
        secret: false,
        write: |consumer, raw| set(&mut consumer.partitions, raw.partitions().map(Some)),
        read: |consumer| consumer.partitions.map(|partitions| partitions.to_string()),
    },
    Row {
        key: "attempts",
        kind: Kind::Count,
        default: "5",
        doc: "How often an event is tried, the first time included; then it is a dead letter.",
        secret: false,
        write: |consumer, raw| {
            let range = 1..=u64::from(Retry::MAX_ATTEMPTS);
            set(&mut consumer.attempts, raw.count(range).map(Some))
        },
        read: |consumer| consumer.attempts.map(|attempts| attempts.to_string()),
    },
    Row {
        key: "delays",
        kind: Kind::Durations,
        default: r#"["1s", "5s", "30s", "5m"]"#,
        doc: "The pauses between attempts, one after another; the last is used for all that follow.",
        secret: false,
        write: |consumer, raw| {
            let range = Duration::ZERO..=LONGEST_DELAY;
            set(&mut consumer.delays, raw.durations(&range).map(Some))
        },
        read: |consumer| {
            let delays = consumer.delays.as_ref()?;
            Some(list(delays, |delay: &Duration| duration(*delay)))
        },
    },
    Row {
        key: "jitter",
        kind: Kind::Share,
        default: "0.2",
        doc: "By how much a pause is lengthened at most, as a share of it, so that many failures do not come back at once.",
        secret: false,
        write: |consumer, raw| set(&mut consumer.jitter, raw.share().map(Some)),
        // `Debug` keeps the point that makes it a float in TOML.
        read: |consumer| consumer.jitter.map(|jitter| format!("{jitter:?}")),
    },
    Row {
        key: "time_out",
        kind: Kind::DurationOr(FOREVER),
        default: r#""5m""#,
        doc: "How long a handler may run; then it is cancelled at its next await, and the event is tried again. \
              Without it a handler that hangs keeps its place until the process ends.",
        secret: false,
        write: |consumer, raw| {
            let range = Duration::from_millis(1)..=LONGEST_DELAY;
            set(
                &mut consumer.time_out,
                raw.duration_or(range, FOREVER).map(Some),
            )
        },
        read: |consumer| {
            let time_out = consumer.time_out?;
            Some(time_out.map_or(text(FOREVER), duration))
        },
    },
    Row {
        key: "breaker",
        kind: Kind::Flag,
        default: "true",
        doc: "Whether a member pauses when too much fails, rather than use up the attempts of every event.",
        secret: false,
        write: |consumer, raw| set(&mut consumer.breaker, raw.flag().map(Some)),
        read: |consumer| consumer.breaker.map(|breaker| breaker.to_string()),
    },
    Row {
        key: "breaker_runs",
        kind: Kind::Count,
        default: "100",
        doc: "How many of the latest runs the breaker looks at.",
        secret: false,
        write: |consumer, raw| {
            let range = 1..=u64::from(Breaker::MAX_RUNS);
            set(&mut consumer.breaker_runs, raw.count(range).map(Some))
        },
        read: |consumer| consumer.breaker_runs.map(|runs| runs.to_string()),
    },
    Row {
        key: "breaker_share",
        kind: Kind::Share,
        default: "0.5",
        doc: "The share of them that must have failed for it to open.",
        secret: false,
        write: |consumer, raw| set(&mut consumer.breaker_share, some_share(raw).map(Some)),
        read: |consumer| consumer.breaker_share.map(|share| format!("{share:?}")),
    },
    Row {
        key: "breaker_first_pause",
        kind: Kind::Duration,
        default: r#""1s""#,
        doc: "How long nothing starts before one event is tried; twice as long each time that fails.",
        secret: false,
        write: |consumer, raw| {
            let range = Duration::from_millis(1)..=DAY;
            set(
                &mut consumer.breaker_first_pause,
                raw.duration(range).map(Some),
            )
        },
        read: |consumer| consumer.breaker_first_pause.map(duration),
    },
    Row {
        key: "breaker_longest_pause",
        kind: Kind::Duration,
        default: r#""1m""#,
        doc: "The longest that this becomes.",
        secret: false,
        write: |consumer, raw| {
            let range = Duration::from_millis(1)..=DAY;
            set(
                &mut consumer.breaker_longest_pause,
                raw.duration(range).map(Some),
            )
        },
        read: |consumer| consumer.breaker_longest_pause.map(duration),
    },
    Row {
        key: "idempotent",
        kind: Kind::DurationOr(OFF),
        default: r#""off""#,
        doc: "For how long an event that was done is acknowledged unseen when it comes again. Every event leaves a key in the state for that long; it must be no shorter than all attempts of an event may take.",
        secret: false,
        write: |consumer, raw| {
            let given = raw.duration_or(Duration::from_secs(1)..=30 * DAY, OFF);
            let idempotency = given.map(|ttl| ttl.map_or(Idempotency::Off, Idempotency::For));
            set(&mut consumer.idempotency, idempotency.map(Some))
        },
        read: |consumer| match consumer.idempotency? {
            Idempotency::Off => Some(text(OFF)),
            Idempotency::For(ttl) => Some(duration(ttl)),
        },
    },
    Row {
        key: "hold_key",
        kind: Kind::Flag,
        default: "false",
        doc: "Whether later events of a key wait for a dead letter of it until that is replayed or discarded. Only consumers in key order can; set for every consumer it holds for those.",
        secret: false,
        write: |consumer, raw| set(&mut consumer.hold_key, raw.flag().map(Some)),
        read: |consumer| consumer.hold_key.map(|holds| holds.to_string()),
    },
    Row {
        key: "start",
        kind: Kind::Position,
        default: r#""first""#,
        doc: "Where a consumer starts when it is made; later starts go on where it was.",
        secret: false,
        write: |consumer, raw| set(&mut consumer.start, raw.position().map(Some)),
        read: |consumer| consumer.start.map(|start| text(&start.to_string())),
    },
];
