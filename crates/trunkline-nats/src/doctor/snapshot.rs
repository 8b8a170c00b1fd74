//! What was seen, as plain data: the server's own JSON, as far as a rule needs it.
//!
//! The names are those of the JetStream API and of the monitoring endpoint, so that a recorded
//! answer is a test case. Whatever is absent takes its default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything that a judgement rests on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// The server that was asked.
    pub server: Server,
    /// The account; none when it could not be seen, or has no JetStream.
    pub account: Option<Account>,
    /// Its streams.
    pub streams: Vec<Stream>,
    /// Their consumers.
    pub consumers: Vec<Consumer>,
    /// What the monitoring endpoint said, if there was one to ask.
    pub monitor: Option<Monitor>,
    /// What was published while the doctor listened, if it did.
    pub traffic: Option<Traffic>,
    /// What the project says it means to do.
    pub expected: Expected,
    /// Seconds without a delivery after which a consumer with events before it counts as idle.
    pub idle_after_s: u64,
    /// What could not be seen.
    pub not_seen: Vec<NotSeen>,
}

/// A part of the picture that is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NotSeen {
    /// Which part.
    pub part: String,
    /// Why.
    pub why: String,
    /// Whether the credentials are the reason.
    pub denied: bool,
}

/// The server that the connection is with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The name of its cluster, if it is in one.
    pub cluster: Option<String>,
    /// Its JetStream domain, if it has one.
    pub domain: Option<String>,
    /// Bytes of a message at most.
    pub max_payload: u64,
    /// Whether this account has JetStream.
    pub jetstream: bool,
}

/// `$JS.API.INFO`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// Bytes in memory.
    pub memory: u64,
    /// Bytes on disk.
    pub storage: u64,
    /// Streams there are.
    pub streams: i64,
    /// What is allowed; below 1 is no limit.
    pub limits: AccountLimits,
}

/// What an account may have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccountLimits {
    /// Bytes in memory.
    pub max_memory: i64,
    /// Bytes on disk.
    pub max_storage: i64,
    /// Streams.
    pub max_streams: i64,
}

/// A stream: how it is configured and how it stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stream {
    /// Its configuration.
    pub config: StreamConfig,
    /// Its state.
    pub state: StreamState,
    /// Its replicas.
    pub cluster: Option<Cluster>,
    /// Where it is copied from.
    pub mirror: Option<Source>,
    /// Where it gathers from.
    pub sources: Vec<Source>,
    /// The server's time when it answered.
    pub ts: String,
    /// The last messages stored, as far as they were looked at.
    pub last_messages: Vec<StoredMessage>,
}

/// A stream's configuration; durations in nanoseconds, limits below 1 are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the server's own")]
pub struct StreamConfig {
    pub name: String,
    pub subjects: Vec<String>,
    pub retention: String,
    pub discard: String,
    pub storage: String,
    pub max_consumers: i64,
    pub max_msgs: i64,
    pub max_bytes: i64,
    pub max_age: u64,
    pub duplicate_window: u64,
    pub num_replicas: u64,
    pub no_ack: bool,
    pub sealed: bool,
    pub mirror: Option<Origin>,
    pub sources: Vec<Origin>,
    pub metadata: BTreeMap<String, String>,
}

/// The stream that another takes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    /// Its name.
    pub name: String,
}

/// How a stream stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the server's own")]
pub struct StreamState {
    pub messages: u64,
    pub bytes: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    pub consumer_count: u64,
    pub num_subjects: u64,
    /// Stored messages by subject; none when there are too many to ask for.
    pub subjects: Option<BTreeMap<String, u64>>,
}

/// The replicas of a stream or consumer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cluster {
    /// The cluster's name; none on a lone server.
    pub name: Option<String>,
    /// Who leads; none or empty while nobody does.
    pub leader: Option<String>,
    /// The followers.
    pub replicas: Vec<Peer>,
}

/// A follower.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// The server.
    pub name: String,
    /// Whether it has everything.
    pub current: bool,
    /// Whether it is away.
    pub offline: bool,
    /// Operations that it is behind.
    pub lag: u64,
}

/// A mirror's or source's progress.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// The stream that it comes from.
    pub name: String,
    /// Messages that it is behind.
    pub lag: u64,
    /// Nanoseconds since it was last heard of; −1 when never.
    pub active: i64,
    /// What is wrong with it.
    pub error: Option<ApiError>,
}

/// An error of the JetStream API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the server's own")]
pub struct ApiError {
    pub code: u64,
    pub err_code: u64,
    pub description: String,
}

/// A message that a stream holds, without its body.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredMessage {
    /// Its subject.
    pub subject: String,
    /// Its sequence.
    pub seq: u64,
    /// Whether a repeat of it would have been recognised: it has a message id or an expectation.
    pub guarded: bool,
}

/// A consumer: how it is configured and how it stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the server's own")]
pub struct Consumer {
    pub stream_name: String,
    pub name: String,
    pub created: String,
    pub config: ConsumerConfig,
    pub delivered: Progress,
    pub ack_floor: Progress,
    pub num_ack_pending: u64,
    pub num_redelivered: u64,
    pub num_waiting: u64,
    pub num_pending: u64,
    pub paused: bool,
    pub push_bound: bool,
    pub cluster: Option<Cluster>,
    pub ts: String,
}

/// A consumer's configuration; durations in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the server's own")]
pub struct ConsumerConfig {
    pub durable_name: Option<String>,
    pub deliver_policy: String,
    pub deliver_subject: Option<String>,
    pub ack_policy: String,
    pub ack_wait: u64,
    pub max_deliver: i64,
    pub max_ack_pending: i64,
    pub backoff: Vec<u64>,
    pub filter_subject: Option<String>,
    pub filter_subjects: Vec<String>,
    pub num_replicas: u64,
    pub inactive_threshold: u64,
    pub pause_until: Option<String>,
    pub metadata: BTreeMap<String, String>,
}

/// How far deliveries or acknowledgements are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are the server's own")]
pub struct Progress {
    pub consumer_seq: u64,
    pub stream_seq: u64,
    pub last_active: Option<String>,
}

/// What the monitoring endpoint of one server says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Monitor {
    /// JetStream's configuration; none when it is off or was not seen.
    pub jetstream: Option<JetStreamSettings>,
    /// The subscriptions of clients; none when they were not seen.
    pub subscriptions: Option<Vec<Subscription>>,
}

/// `/jsz` and what it says of the disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JetStreamSettings {
    /// Whether every write is flushed to disk before it is acknowledged.
    pub sync_always: bool,
    /// Nanoseconds between flushes otherwise.
    pub sync_interval: u64,
    /// Bytes on disk at most.
    pub max_storage: i64,
    /// Bytes on disk.
    pub storage: u64,
}

/// One subscription of one client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subscription {
    /// Its account, where the server says it.
    pub account: String,
    /// The client's number.
    pub cid: u64,
    /// The client's name; empty when it has none.
    pub client: String,
    /// What it listens to.
    pub subject: String,
    /// The group that it shares the messages with.
    pub qgroup: Option<String>,
}

/// What was published while the doctor listened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// How long it listened.
    pub seconds: u64,
    /// What it listened to.
    pub filter: String,
    /// What was published, by subject.
    pub subjects: BTreeMap<String, Published>,
    /// Whether there were more subjects than are kept.
    pub truncated: bool,
}

/// Messages on one subject.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Published {
    /// All of them.
    pub messages: u64,
    /// Those that ask for an answer.
    pub requests: u64,
    /// Requests that a stream answered with its publish ack.
    pub acked: u64,
    /// Requests that somebody answered.
    pub answered: u64,
    /// Requests that both answered.
    pub both: u64,
    /// Requests that nobody answered, though there was time.
    pub unanswered: u64,
}

/// What a project says it means to do; filters with their roots.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expected {
    /// What must be stored.
    pub durable: Vec<String>,
    /// What must not be stored.
    pub ephemeral: Vec<String>,
    /// Requests: what must not be stored either.
    pub requests: Vec<String>,
    /// What must be there to be replayed.
    pub replayed: Vec<String>,
}

impl Stream {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Whether it is the store of a key-value or object bucket, which has rules of its own.
    pub fn is_bucket(&self) -> bool {
        let subjects = &self.config.subjects;
        !subjects.is_empty()
            && subjects
                .iter()
                .all(|subject| subject.starts_with("$KV.") || subject.starts_with("$O."))
            || self.name().starts_with("KV_")
            || self.name().starts_with("OBJ_")
    }

    /// Whether it takes from other streams.
    pub fn is_copy(&self) -> bool {
        self.config.mirror.is_some() || !self.config.sources.is_empty()
    }

    /// Whether Trunkline made it.
    pub fn is_ours(&self) -> bool {
        self.config
            .metadata
            .contains_key(trunkline_core::plan::OWNER_KEY)
    }
}

impl Consumer {
    /// Its filters; none means everything.
    pub fn filters(&self) -> Vec<&str> {
        let several = self.config.filter_subjects.iter();
        let mut filters: Vec<&str> = self
            .config
            .filter_subject
            .iter()
            .chain(several)
            .map(String::as_str)
            .filter(|filter| !filter.is_empty())
            .collect();
        filters.sort_unstable();
        filters
    }

    /// Whether it only shows how far a consumer of Trunkline is that reads the stream itself.
    pub fn is_gauge(&self) -> bool {
        let metadata = &self.config.metadata;
        metadata.contains_key(crate::topology::spec::GAUGE)
    }

    /// Whether its progress outlives its readers.
    pub fn is_durable(&self) -> bool {
        self.config
            .durable_name
            .as_ref()
            .is_some_and(|name| !name.is_empty())
    }
}
