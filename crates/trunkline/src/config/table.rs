//! Every setting there is: its key, what it takes, its default, what it is for, and its place in
//! the configuration. Reading, hints, the example file and what is printed all come from here.

use std::ops::RangeInclusive;
use std::time::Duration;

use trunkline_core::Filter;
use trunkline_core::engine::{Retention, StreamSpec};

use super::given::{Kind, Raw};
use super::problem::{Fault, quoted};
use super::units::{duration_text, size_value};
use super::{Config, ConsumerSettings};
use crate::connect::{TopologyMode, checked_source, roots};
use crate::consumer::{LONGEST_DELAY, Retry};

/// One setting of `S`: of the whole configuration, of a stream, or of a consumer.
pub(super) struct Row<S> {
    /// Its key; within its section for a stream or consumer.
    pub(super) key: &'static str,
    pub(super) kind: Kind,
    /// Its default, as it is written in TOML. For a stream, that of `EVENTS`.
    pub(super) default: &'static str,
    pub(super) doc: &'static str,
    /// Whether its value may hold credentials; it is then masked, and never quoted by an error.
    pub(super) secret: bool,
    pub(super) write: fn(&mut S, &Raw) -> Result<(), Fault>,
    /// Its value as it is written in TOML; none if nothing is said of it.
    pub(super) read: fn(&S) -> Option<String>,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// For how long a call may wait: long enough for anybody, short enough to come to an end.
const CALL: RangeInclusive<Duration> = Duration::from_millis(1)..=DAY;
const RETENTIONS: [(&str, Retention); 3] = [
    ("discard_old", Retention::DiscardOld),
    ("refuse_when_full", Retention::RefuseWhenFull),
    ("work_queue", Retention::WorkQueue),
];
const TOPOLOGIES: [(&str, TopologyMode); 2] = [
    ("ensure", TopologyMode::Ensure),
    ("verify", TopologyMode::Verify),
];

/// Settings of the bus, its connection and its door.
pub(super) const BUS: &[Row<Config>] = &[
    Row {
        key: "url",
        kind: Kind::Url,
        default: r#""memory:""#,
        doc: "The bus: `memory:` is a fresh one in this process, `memory:name` one that the process shares. \
              Its password is masked wherever it is printed.",
        secret: true,
        write: |config, raw| set(&mut config.url, raw.url()),
        read: |config| Some(text(&config.url.to_string())),
    },
    Row {
        key: "source",
        kind: Kind::Text,
        default: r#""/trunkline""#,
        doc: "What this program writes as `source` of its events; name the service, as in \"/billing\".",
        secret: false,
        write: |config, raw| set(&mut config.source, raw.text().and_then(source)),
        read: |config| Some(text(&config.source)),
    },
    Row {
        key: "prefix",
        kind: Kind::Text,
        default: r#""events""#,
        doc: "The first tokens of durable subjects; \"\" is none, and then the registered types say what is stored.",
        secret: false,
        write: |config, raw| set(&mut config.prefix, raw.text().and_then(prefix)),
        read: |config| Some(text(&config.prefix)),
    },
    Row {
        key: "topology",
        kind: Kind::Choice(&["ensure", "verify"]),
        default: r#""ensure""#,
        doc: "What connecting may do: \"ensure\" makes streams that are missing and changes none, \"verify\" only looks.",
        secret: false,
        write: |config, raw| set(&mut config.topology, raw.choice(&TOPOLOGIES)),
        read: |config| word(&TOPOLOGIES, config.topology),
    },
    Row {
        key: "listener_capacity",
        kind: Kind::Count,
        default: "10000",
        doc: "Ephemeral events that a subscription keeps until they are received; beyond it the oldest are lost, and it learns of that.",
        secret: false,
        write: |config, raw| set(&mut config.listener_capacity, raw.count(1..=100_000_000)),
        read: |config| Some(config.listener_capacity.to_string()),
    },
    Row {
        key: "drain_deadline",
        kind: Kind::Duration,
        default: r#""25s""#,
        doc: "How long handlers may go on when the bus closes; then they are cancelled and their events given back.",
        secret: false,
        write: |config, raw| {
            set(
                &mut config.drain_deadline,
                raw.duration(Duration::ZERO..=DAY),
            )
        },
        read: |config| Some(duration(config.drain_deadline)),
    },
    Row {
        key: "connection.connect_timeout",
        kind: Kind::Duration,
        default: r#""5s""#,
        doc: "How long one attempt to connect may take.",
        secret: false,
        write: |config, raw| set(&mut config.link.connect_timeout, raw.duration(CALL)),
        read: |config| Some(duration(config.link.connect_timeout)),
    },
    Row {
        key: "connection.request_timeout",
        kind: Kind::Duration,
        default: r#""5s""#,
        doc: "How long a call that stores nothing waits for its answer.",
        secret: false,
        write: |config, raw| set(&mut config.link.request_timeout, raw.duration(CALL)),
        read: |config| Some(duration(config.link.request_timeout)),
    },
    Row {
        key: "connection.publish_timeout",
        kind: Kind::Duration,
        default: r#""10s""#,
        doc: "How long a durable publish waits to be told that the event is stored. \
              It must be shorter than the duplicate window of every stream.",
        secret: false,
        write: |config, raw| set(&mut config.link.publish_timeout, raw.duration(CALL)),
        read: |config| Some(duration(config.link.publish_timeout)),
    },
    Row {
        key: "connection.first_connect",
        kind: Kind::DurationOr(FOREVER),
        default: r#""10s""#,
        doc: "How long the first connection is tried before the program is told that there is none.",
        secret: false,
        write: |config, raw| {
            let range = Duration::ZERO..=DAY;
            set(
                &mut config.link.first_connect,
                raw.duration_or(range, FOREVER),
            )
        },
        read: |config| Some(config.link.first_connect.map_or(text(FOREVER), duration)),
    },
    Row {
        key: "connection.reconnect_wait",
        kind: Kind::Duration,
        default: r#""2s""#,
        doc: "The pause between two attempts to connect again; jitter is added to it.",
        secret: false,
        write: |config, raw| {
            // Less would be a loop that does nothing but connect.
            let range = Duration::from_millis(10)..=DAY;
            set(&mut config.link.reconnect_wait, raw.duration(range))
        },
        read: |config| Some(duration(config.link.reconnect_wait)),
    },
    Row {
        key: "connection.reconnect_attempts",
        kind: Kind::CountOr(FOREVER),
        default: r#""forever""#,
        doc: "How often connecting again is tried before the bus counts as closed; -1 is for ever too.",
        secret: false,
        write: |config, raw| {
            set(
                &mut config.link.reconnect_attempts,
                raw.attempts_or(FOREVER),
            )
        },
        read: |config| {
            let attempts = config.link.reconnect_attempts;
            Some(attempts.map_or(text(FOREVER), |attempts| attempts.to_string()))
        },
    },
    Row {
        key: "door.listen",
        kind: Kind::Address,
        default: r#""127.0.0.1:7400""#,
        doc: "Where the HTTP door of `trunkline up` listens; port 0 takes a free one.",
        secret: false,
        write: |config, raw| set(&mut config.door.listen, raw.address()),
        read: |config| Some(text(&config.door.listen.to_string())),
    },
    Row {
        key: "door.expose",
        kind: Kind::Flag,
        default: "false",
        doc: "Whether the door may listen where other hosts can reach it. There is no authentication yet.",
        secret: false,
        write: |config, raw| set(&mut config.door.expose, raw.flag()),
        read: |config| Some(config.door.expose.to_string()),
    },
    Row {
        key: "door.allow_hosts",
        kind: Kind::Texts,
        default: "[]",
        doc: "Hosts to serve besides loopback and the address listened on: \"bus.lan\" for any port, or \"bus.lan:7400\".",
        secret: false,
        write: |config, raw| set(&mut config.door.allow_hosts, raw.texts()),
        read: |config| Some(list(&config.door.allow_hosts, |host| text(host))),
    },
    Row {
        key: "door.allow_origins",
        kind: Kind::Texts,
        default: "[]",
        doc: "Origins whose web pages may use the door, as \"https://console.lan\".",
        secret: false,
        write: |config, raw| set(&mut config.door.allow_origins, raw.texts()),
        read: |config| Some(list(&config.door.allow_origins, |origin| text(origin))),
    },
    Row {
        key: "door.max_body",
        kind: Kind::Size,
        default: r#""16MiB""#,
        doc: "The most bytes that one request may have.",
        secret: false,
        write: |config, raw| set(&mut config.door.max_body, raw.size(1..=1 << 30)),
        read: |config| Some(bytes(config.door.max_body)),
    },
    Row {
        key: "door.max_events",
        kind: Kind::Count,
        default: "10000",
        doc: "The most events that one request may have.",
        secret: false,
        write: |config, raw| set(&mut config.door.max_events, raw.count(1..=1_000_000)),
        read: |config| Some(config.door.max_events.to_string()),
    },
    Row {
        key: "door.keep_alive",
        kind: Kind::Duration,
        default: r#""15s""#,
        doc: "How long a stream of server-sent events is silent before it gets a comment.",
        secret: false,
        write: |config, raw| {
            let range = Duration::from_millis(100)..=DAY;
            set(&mut config.door.keep_alive, raw.duration(range))
        },
        read: |config| Some(duration(config.door.keep_alive)),
    },
    Row {
        key: "door.drain_deadline",
        kind: Kind::Duration,
        default: r#""25s""#,
        doc: "How long requests under way get to finish when the door closes.",
        secret: false,
        write: |config, raw| {
            set(
                &mut config.door.drain_deadline,
                raw.duration(Duration::ZERO..=DAY),
            )
        },
        read: |config| Some(duration(config.door.drain_deadline)),
    },
];

/// Settings of one stream, below `streams.NAME`.
pub(super) const STREAM: &[Row<StreamSpec>] = &[
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
];

/// Settings of every consumer, below `consumers`, and of one, below `consumers.NAME`.
pub(super) const CONSUMER: &[Row<ConsumerSettings>] = &[
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
        key: "start",
        kind: Kind::Position,
        default: r#""first""#,
        doc: "Where a consumer starts when it is made; later starts go on where it was.",
        secret: false,
        write: |consumer, raw| set(&mut consumer.start, raw.position().map(Some)),
        read: |consumer| consumer.start.map(|start| text(&start.to_string())),
    },
];

/// The word for no limit in time or attempts, and in quantity.
const FOREVER: &str = "forever";
const UNLIMITED: &str = "unlimited";

/// What fits the signed integers of every engine and of TOML.
const fn i64_max() -> u64 {
    i64::MAX.unsigned_abs()
}

fn set<T>(place: &mut T, value: Result<T, Fault>) -> Result<(), Fault> {
    *place = value?;
    Ok(())
}

fn source(source: String) -> Result<String, Fault> {
    match checked_source(&source) {
        Ok(_) => Ok(source),
        Err(_) => Err(Fault::new(
            format!("{} is no source", quoted(&source)),
            "write 1 to 200 characters without white space, as \"/billing\"",
        )),
    }
}

fn prefix(prefix: String) -> Result<String, Fault> {
    match roots(Some(&prefix)) {
        Ok(_) => Ok(prefix),
        Err(error) => Err(Fault::new(
            format!("{} is no prefix: {}", quoted(&prefix), error.message()),
            "write tokens of one's own with dots between, as \"events\", or \"\" for none",
        )),
    }
}

/// A text as a basic string of TOML, which is one of JSON too.
pub(super) fn text(text: &str) -> String {
    let mut written = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => written.extend(['\\', c]),
            c if c.is_control() => written.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => written.push(c),
        }
    }
    written.push('"');
    written
}

fn duration(duration: Duration) -> String {
    text(&duration_text(duration))
}

fn bytes(bytes: usize) -> String {
    size_value(u64::try_from(bytes).unwrap_or(u64::MAX))
}

fn list<T>(items: &[T], written: impl Fn(&T) -> String) -> String {
    let items: Vec<_> = items.iter().map(written).collect();
    format!("[{}]", items.join(", "))
}

fn word<T: PartialEq + Copy>(words: &[(&str, T)], value: T) -> Option<String> {
    let known = words.iter().find(|(_, known)| *known == value);
    known.map(|(word, _)| text(word))
}
