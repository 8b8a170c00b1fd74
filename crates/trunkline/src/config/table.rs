//! Every setting there is: its key, what it takes, its default, what it is for, and its place in
//! the configuration. Reading, hints, the example file and what is printed all come from here.

mod sections;

use std::ops::RangeInclusive;
use std::time::Duration;

use trunkline_core::wire::{ContentMode, Legacy};

use super::Config;
use super::given::{Kind, Raw};
use super::problem::{Fault, quoted};
use super::units::{duration_text, size_value};
use crate::connect::{TopologyMode, checked_source, roots};

pub(super) use sections::{CONSUMER, STREAM};

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
const TOPOLOGIES: [(&str, TopologyMode); 2] = [
    ("ensure", TopologyMode::Ensure),
    ("verify", TopologyMode::Verify),
];
const MODES: [(&str, ContentMode); 2] = [
    ("structured", ContentMode::Structured),
    ("binary", ContentMode::Binary),
];

/// Settings of the bus, its connection and its door.
pub(super) const BUS: &[Row<Config>] = &[
    Row {
        key: "url",
        kind: Kind::Url,
        default: r#""memory:""#,
        doc: "The bus: `file:PATH` keeps it in a directory, `nats://HOST:4222` is one on NATS, `memory:` a fresh one \
              in this process. `file:PATH?sync=interval&sync_interval=200ms` and `?sync=os` acknowledge before the disk has it. \
              `trunkline up` takes file:./trunkline-data where nothing is said. Its password is masked wherever it is printed.",
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
        key: "legacy",
        kind: Kind::Texts,
        default: "[]",
        doc: "Envelopes from before CloudEvents that are read as well, in this order: \"metadata-payload\", \"flat-data\", \"tagged\" and \"message-fields\". Without one of them such a message is no event.",
        secret: false,
        write: |config, raw| {
            set(
                &mut config.legacy,
                raw.texts().and_then(|names| legacy(&names)),
            )
        },
        read: |config| Some(list(&config.legacy, |form| text(&form.to_string()))),
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
        key: "nats.name",
        kind: Kind::Text,
        default: r#""trunkline""#,
        doc: "What this connection is called in the server's monitoring.",
        secret: false,
        write: |config, raw| set(&mut config.nats.name, raw.text()),
        read: |config| Some(text(&config.nats.name)),
    },
    Row {
        key: "nats.user",
        kind: Kind::Text,
        default: r#""""#,
        doc: "The user, with a password. At most one of user, token, nkey_file and credentials_file may be given; a user in the URL goes before them.",
        secret: false,
        write: |config, raw| set(&mut config.nats.user, raw.text()),
        read: |config| Some(text(&config.nats.user)),
    },
    Row {
        key: "nats.password",
        kind: Kind::Text,
        default: r#""""#,
        doc: "The user's password.",
        secret: true,
        write: |config, raw| set(&mut config.nats.password, raw.text()),
        read: |config| masked(&config.nats.password),
    },
    Row {
        key: "nats.token",
        kind: Kind::Text,
        default: r#""""#,
        doc: "A token, in place of a user.",
        secret: true,
        write: |config, raw| set(&mut config.nats.token, raw.text()),
        read: |config| masked(&config.nats.token),
    },
    Row {
        key: "nats.nkey_file",
        kind: Kind::Text,
        default: r#""""#,
        doc: "The file with the seed of an nkey.",
        secret: false,
        write: |config, raw| set(&mut config.nats.nkey_file, raw.text()),
        read: |config| Some(text(&config.nats.nkey_file)),
    },
    Row {
        key: "nats.credentials_file",
        kind: Kind::Text,
        default: r#""""#,
        doc: "The .creds file of a user that an operator has signed.",
        secret: false,
        write: |config, raw| set(&mut config.nats.credentials_file, raw.text()),
        read: |config| Some(text(&config.nats.credentials_file)),
    },
    Row {
        key: "nats.tls",
        kind: Kind::Flag,
        default: "false",
        doc: "Whether to encrypt even if the server does not ask for it; a URL with tls:// says so too.",
        secret: false,
        write: |config, raw| set(&mut config.nats.tls, raw.flag()),
        read: |config| Some(config.nats.tls.to_string()),
    },
    Row {
        key: "nats.tls_first",
        kind: Kind::Flag,
        default: "false",
        doc: "Whether to encrypt before the server says a word; it must have handshake_first.",
        secret: false,
        write: |config, raw| set(&mut config.nats.tls_first, raw.flag()),
        read: |config| Some(config.nats.tls_first.to_string()),
    },
    Row {
        key: "nats.tls_ca",
        kind: Kind::Text,
        default: r#""""#,
        doc: "Certificates of one's own authority, in PEM, besides those of the system.",
        secret: false,
        write: |config, raw| set(&mut config.nats.tls_ca, raw.text()),
        read: |config| Some(text(&config.nats.tls_ca)),
    },
    Row {
        key: "nats.tls_certificate",
        kind: Kind::Text,
        default: r#""""#,
        doc: "A certificate to show to the server, in PEM, with its key.",
        secret: false,
        write: |config, raw| set(&mut config.nats.tls_certificate, raw.text()),
        read: |config| Some(text(&config.nats.tls_certificate)),
    },
    Row {
        key: "nats.tls_key",
        kind: Kind::Text,
        default: r#""""#,
        doc: "The file with the key of the certificate, in PEM.",
        secret: false,
        write: |config, raw| set(&mut config.nats.tls_key, raw.text()),
        read: |config| Some(text(&config.nats.tls_key)),
    },
    Row {
        key: "nats.inbox_prefix",
        kind: Kind::Text,
        default: r#""_INBOX""#,
        doc: "What the subjects of answers begin with. One for each service keeps them from reading one another's.",
        secret: false,
        write: |config, raw| set(&mut config.nats.inbox_prefix, raw.text()),
        read: |config| Some(text(&config.nats.inbox_prefix)),
    },
    Row {
        key: "nats.domain",
        kind: Kind::Text,
        default: r#""""#,
        doc: "The JetStream domain, where the server is a leaf node and the streams are elsewhere.",
        secret: false,
        write: |config, raw| set(&mut config.nats.domain, raw.text()),
        read: |config| Some(text(&config.nats.domain)),
    },
    Row {
        key: "nats.content_mode",
        kind: Kind::Choice(&["structured", "binary"]),
        default: r#""structured""#,
        doc: "How events are written: \"structured\" is one JSON object, \"binary\" has attributes in ce- headers and the data alone as the body, which is less where data is large or no JSON. Both are read.",
        secret: false,
        write: |config, raw| set(&mut config.nats.content_mode, raw.choice(&MODES)),
        read: |config| word(&MODES, config.nats.content_mode),
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

/// An even number of copies survives no more hosts than one copy less.
fn replicas(raw: &Raw) -> Result<usize, Fault> {
    match raw.count(1..=5)? {
        copies @ (1 | 3 | 5) => Ok(copies),
        copies => Err(Fault::new(
            format!("{copies} copies have no majority when they are split in halves"),
            "write 1, 3 or 5",
        )),
    }
}

fn legacy(names: &[String]) -> Result<Vec<Legacy>, Fault> {
    let read = |name: &String| {
        name.parse().map_err(|_| {
            let known: Vec<_> = Legacy::ALL.map(|(name, _)| quoted(name)).into();
            Fault::new(
                format!("{} is no legacy form", quoted(name)),
                format!("write some of {}", known.join(", ")),
            )
        })
    };
    names.iter().map(read).collect()
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
/// A secret, hidden; that there is none may be seen.
fn masked(secret: &str) -> Option<String> {
    let shown = match secret.is_empty() {
        true => "",
        false => "***",
    };
    Some(text(shown))
}

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
