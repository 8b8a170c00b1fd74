//! The JetStream API: requests and answers as JSON, and what its errors mean.
//!
//! Spoken directly, because three things matter that a wrapper hides: which error came (not only
//! that one did), that a configuration which differs is never accepted in silence, and that fields
//! which this build does not know survive a change.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use crate::asks::Lost;
use crate::wire::{Wire, no_jetstream};

/// How long one attempt waits, where asking again does no harm.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(2);
/// Subjects that the server lists on one page.
const SUBJECTS: usize = 100_000;
/// The pause before the next attempt, where the server said "not now".
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// An error that the server gave as its answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct ApiError {
    #[serde(default)]
    pub(crate) code: u16,
    #[serde(default)]
    pub(crate) err_code: u16,
    #[serde(default)]
    pub(crate) description: String,
}

/// The server's numbers for what it refuses, as far as anything is made of them.
pub(crate) mod code {
    pub(crate) const ACCOUNT_RESOURCES: u16 = 10_002;
    pub(crate) const NO_PEERS: u16 = 10_005;
    pub(crate) const UNAVAILABLE: u16 = 10_008;
    pub(crate) const CONSUMER_NOT_FOUND: u16 = 10_014;
    pub(crate) const INSUFFICIENT_RESOURCES: u16 = 10_023;
    pub(crate) const MAX_CONSUMERS: u16 = 10_026;
    pub(crate) const MAX_STREAMS: u16 = 10_027;
    pub(crate) const MEMORY_EXCEEDED: u16 = 10_028;
    pub(crate) const NO_MESSAGE: u16 = 10_037;
    pub(crate) const NOT_ENABLED: u16 = 10_076;
    pub(crate) const NOT_ENABLED_FOR_ACCOUNT: u16 = 10_039;
    pub(crate) const STORAGE_EXCEEDED: u16 = 10_047;
    pub(crate) const STORE_NOT_MADE: u16 = 10_049;
    pub(crate) const TOO_LARGE: u16 = 10_054;
    pub(crate) const STREAM_NAME_IN_USE: u16 = 10_058;
    pub(crate) const STREAM_NOT_FOUND: u16 = 10_059;
    pub(crate) const OTHER_STREAM: u16 = 10_060;
    pub(crate) const SUBJECTS_OVERLAP: u16 = 10_065;
    pub(crate) const WRONG_LAST_SEQUENCE: u16 = 10_071;
    pub(crate) const REPLICAS_ALONE: u16 = 10_074;
    pub(crate) const STORE_FAILED: u16 = 10_077;
    pub(crate) const QUEUE_UNFILTERED: u16 = 10_099;
    pub(crate) const QUEUE_SHARED: u16 = 10_100;
    pub(crate) const FILTER_NOT_SUBSET: u16 = 10_093;
    pub(crate) const FILTERS_OVERLAP: u16 = 10_138;
    pub(crate) const CONSUMER_EXISTS: u16 = 10_148;
    pub(crate) const STREAM_OFFLINE: u16 = 10_118;
    /// Somebody's event of the same id is on its way to all copies, and not stored yet.
    pub(crate) const ID_IN_PROCESS: u16 = 10_158;
    pub(crate) const WRONG_LAST: u16 = 10_164;
    pub(crate) const BUSY: u16 = 10_167;
    /// A message of a batch was lost with a connection or a server, or was not permitted; nothing of
    /// the batch is stored.
    pub(crate) const BATCH_INCOMPLETE: u16 = 10_176;
    pub(crate) const BATCH_DUPLICATE: u16 = 10_201;
    pub(crate) const BATCHES_OPEN: u16 = 10_210;
}

impl ApiError {
    /// Whether the same may work in a moment, without anything being changed.
    pub(crate) fn is_passing(&self) -> bool {
        match self.err_code {
            code::UNAVAILABLE
            | code::BUSY
            | code::BATCHES_OPEN
            | code::BATCH_INCOMPLETE
            | code::STREAM_OFFLINE
            | code::ID_IN_PROCESS => true,
            // The server removes the folder of its streams a moment after the last of them is
            // deleted, also from under a stream that is being made.
            code::STORE_NOT_MADE => true,
            // A stream that cannot store says so with this code as well.
            0 => self.code == 503,
            _ => false,
        }
    }

    /// What it is to the caller, who was about to do `what`.
    pub(crate) fn meaning(&self, what: &str) -> Error {
        let full = self.description.starts_with("maximum");
        let (kind, remedy) = match self.err_code {
            code::STREAM_NOT_FOUND => (ErrorKind::NoSuchStream, "check its name"),
            code::CONSUMER_NOT_FOUND => (ErrorKind::NoSuchConsumer, "check its name"),
            code::WRONG_LAST_SEQUENCE | code::WRONG_LAST => (
                ErrorKind::Conflict,
                "read the present state and decide anew",
            ),
            code::STORE_FAILED if full => (
                ErrorKind::StreamFull,
                "let its consumers catch up, or raise its limit",
            ),
            code::STORE_FAILED
            | code::INSUFFICIENT_RESOURCES
            | code::STORAGE_EXCEEDED
            | code::MEMORY_EXCEEDED => (
                ErrorKind::OverQuota,
                "free space, or raise the limit of the server (max_file_store) or of the stream",
            ),
            code::STORE_NOT_MADE => (
                ErrorKind::OverQuota,
                "see the server's log; its disk may be full or not writable",
            ),
            code::ACCOUNT_RESOURCES => (
                ErrorKind::OverQuota,
                "remove what the account no longer needs, or raise its limit at the server",
            ),
            code::MAX_STREAMS | code::MAX_CONSUMERS => (
                ErrorKind::OverQuota,
                "remove what is not needed, or raise the limit",
            ),
            code::TOO_LARGE => (
                ErrorKind::TooLarge,
                "send less, or raise the stream's limit",
            ),
            code::OTHER_STREAM => (
                ErrorKind::NotStored,
                "another stream stores this subject; see `trunkline topology show`",
            ),
            code::SUBJECTS_OVERLAP => (
                ErrorKind::Overlap,
                "another stream stores some of these subjects; give each subject to one stream",
            ),
            code::QUEUE_UNFILTERED | code::QUEUE_SHARED => (
                ErrorKind::Overlap,
                "a command has one consumer; give each consumer of a work queue subjects of its own",
            ),
            code::STREAM_NAME_IN_USE | code::CONSUMER_EXISTS => (
                ErrorKind::Drift,
                "it exists with another configuration; change the declaration, or what exists on purpose",
            ),
            code::FILTER_NOT_SUBSET => (
                ErrorKind::MatchesNothing,
                "the stream stores nothing that the filter matches",
            ),
            code::FILTERS_OVERLAP => (
                ErrorKind::InvalidConfig,
                "the consumer's filters overlap one another; name each subject once",
            ),
            code::NO_PEERS | code::REPLICAS_ALONE => (
                ErrorKind::OverQuota,
                "there are not enough servers for so many replicas; ask for fewer, or add servers",
            ),
            code::NOT_ENABLED | code::NOT_ENABLED_FOR_ACCOUNT => (
                ErrorKind::NoJetStream,
                "enable JetStream for this server and account",
            ),
            _ if self.is_passing() => (ErrorKind::Disconnected, "try again in a moment"),
            _ => (ErrorKind::Internal, "see the server's log"),
        };
        Error::new(
            kind,
            format!(
                "NATS refused to {what}: {} ({}); {remedy}",
                self.description, self.err_code
            ),
        )
    }
}

/// What became of a request that the server answered.
pub(crate) type Answer<T> = Result<T, ApiError>;

impl Wire {
    /// Asks the JetStream API, again and again if it is a question that may be repeated, until the
    /// request's deadline.
    ///
    /// # Errors
    /// Outer: there was no answer. Inner: the server's own.
    pub(crate) async fn api<T: DeserializeOwned>(
        &self,
        verb: &str,
        body: &impl Serialize,
    ) -> Result<Answer<T>> {
        let body = serde_json::to_vec(body)
            .map(Bytes::from)
            .map_err(|error| internal("write a request", &error))?;
        let subject = format!("{}.{verb}", self.api);
        let deadline = self.request_deadline();
        loop {
            let attempt = deadline.min(Instant::now() + ATTEMPT);
            let lost = match self
                .ask(&subject, HeaderMap::new(), body.clone(), attempt)
                .await
            {
                Ok(message) => match read_answer(&message.payload, verb)? {
                    Err(error) if error.is_passing() && Instant::now() + PAUSE < deadline => {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                    answer => return Ok(answer),
                },
                Err(lost) => lost,
            };
            self.check_open()?;
            let now = Instant::now();
            match lost {
                Lost::Denied(error) => return Err(error),
                // The server that came back a moment ago serves the API a moment later.
                Lost::NoResponders if now + PAUSE < deadline => tokio::time::sleep(PAUSE).await,
                Lost::NoResponders => {
                    let server = self.client.server_info().server_name;
                    return Err(no_jetstream(&server, &self.api));
                }
                Lost::Interrupted | Lost::TimedOut if now < deadline => {}
                Lost::NotSent(error) => return Err(error),
                Lost::Interrupted | Lost::TimedOut => {
                    return Err(Error::new(
                        ErrorKind::TimedOut,
                        format!(
                            "NATS did not answer {subject} within {:?}; is there a JetStream leader?",
                            self.patience.request_timeout
                        ),
                    ));
                }
            }
        }
    }

    /// As [`api`](Self::api); what the server refuses is an error.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        verb: &str,
        body: &impl Serialize,
        what: &str,
    ) -> Result<T> {
        self.api(verb, body)
            .await?
            .map_err(|error| error.meaning(what))
    }

    /// Asks once, as soon as there is a connection.
    pub(crate) async fn ask(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
        deadline: Instant,
    ) -> Result<async_nats::Message, Lost> {
        self.connected(deadline).await.map_err(Lost::NotSent)?;
        let subject = Subject::from(subject);
        let asked = self.asks.one(subject.clone());
        asked.send(self, subject, headers, body, deadline).await?;
        asked.answer(deadline).await
    }

    /// The state and configuration of a stream, or that there is none.
    pub(crate) async fn stream_info(&self, stream: &str) -> Result<Option<StreamInfo>> {
        match self
            .api(&format!("STREAM.INFO.{stream}"), &json!({}))
            .await?
        {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.err_code == code::STREAM_NOT_FOUND => Ok(None),
            Err(error) => Err(error.meaning(&format!("describe stream {stream}"))),
        }
    }

    /// Events by subject, in the order of the subjects.
    pub(crate) async fn subject_counts(
        &self,
        stream: &str,
        filter: &str,
    ) -> Result<BTreeMap<String, u64>> {
        let mut all = BTreeMap::new();
        loop {
            let request = json!({ "subjects_filter": filter, "offset": all.len() });
            let verb = format!("STREAM.INFO.{stream}");
            let what = format!("list the subjects of stream {stream}");
            let info: StreamInfo = self.call(&verb, &request, &what).await?;
            let before = all.len();
            all.extend(info.state.subjects.unwrap_or_default());
            if all.len() == before || all.len() % SUBJECTS != 0 {
                return Ok(all);
            }
        }
    }

    /// As [`stream_info`](Self::stream_info), where there must be one.
    pub(crate) async fn known_stream(&self, stream: &str) -> Result<StreamInfo> {
        self.check_open()?;
        let info = self.stream_info(stream).await?;
        info.ok_or_else(|| no_such_stream(stream))
    }
}

pub(crate) fn no_such_stream(stream: &str) -> Error {
    Error::new(
        ErrorKind::NoSuchStream,
        format!("there is no stream {stream} on this NATS account"),
    )
}

pub(crate) fn internal(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Internal, format!("cannot {what}: {error}"))
}

/// What is lost, to a caller who only needs to know that it is.
pub(crate) fn lost(lost: Lost, what: &str) -> Error {
    match lost {
        Lost::Denied(error) | Lost::NotSent(error) => error,
        Lost::NoResponders => Error::new(
            ErrorKind::Disconnected,
            format!("nobody answers: {what}; the stream may have no leader at the moment"),
        ),
        Lost::Interrupted | Lost::TimedOut => Error::new(
            ErrorKind::TimedOut,
            format!("no answer came in time: {what}"),
        ),
    }
}

/// Reads an answer: the server's error, or what was asked for.
fn read_answer<T: DeserializeOwned>(payload: &[u8], verb: &str) -> Result<Answer<T>> {
    let unreadable =
        |error: serde_json::Error| internal(&format!("read the answer to {verb}"), &error);
    let mut answer: Map<String, Value> = serde_json::from_slice(payload).map_err(unreadable)?;
    if let Some(error) = answer.remove("error") {
        return Ok(Err(serde_json::from_value(error).map_err(unreadable)?));
    }
    serde_json::from_value(Value::Object(answer))
        .map(Ok)
        .map_err(unreadable)
}

/// What the server says of a stream.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct StreamInfo {
    /// As JSON, so that a change keeps what this build does not know.
    pub(crate) config: Map<String, Value>,
    #[serde(default)]
    pub(crate) created: String,
    pub(crate) state: StreamFigures,
}

impl StreamInfo {
    pub(crate) fn made_at(&self) -> Option<Timestamp> {
        self.created.parse().ok()
    }
}

/// How a stream stands.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct StreamFigures {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    #[serde(default)]
    pub(crate) first_ts: String,
    #[serde(default)]
    pub(crate) subjects: Option<BTreeMap<String, u64>>,
}

impl StreamFigures {
    /// The first sequence there is, or that of the next event.
    pub(crate) fn first(&self) -> u64 {
        match self.messages {
            0 => self.last_seq + 1,
            _ => self.first_seq.max(1),
        }
    }

    pub(crate) fn tail(&self) -> u64 {
        self.last_seq + 1
    }
}

/// What the server says of a consumer.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct ConsumerInfo {
    pub(crate) name: String,
    pub(crate) config: Map<String, Value>,
    pub(crate) delivered: Pair,
    pub(crate) ack_floor: Pair,
    pub(crate) num_ack_pending: u64,
    pub(crate) num_pending: u64,
    #[serde(default)]
    pub(crate) paused: bool,
}

/// A place in the stream, and in the consumer.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize)]
pub(crate) struct Pair {
    #[serde(default)]
    pub(crate) stream_seq: u64,
    #[serde(default)]
    pub(crate) consumer_seq: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_refusals_are_told_apart() {
        let refused = |err_code, description: &str| {
            let error = ApiError {
                code: 503,
                err_code,
                description: description.to_owned(),
            };
            error.meaning("store an event").kind()
        };
        assert_eq!(
            refused(10_077, "maximum messages exceeded"),
            ErrorKind::StreamFull
        );
        assert_eq!(
            refused(10_077, "no space left on device"),
            ErrorKind::OverQuota
        );
        assert_eq!(
            refused(10_002, "resource limits exceeded for account"),
            ErrorKind::OverQuota
        );
        assert_eq!(refused(10_059, "stream not found"), ErrorKind::NoSuchStream);
        assert_eq!(
            refused(10_065, "subjects overlap with an existing stream"),
            ErrorKind::Overlap
        );
        assert_eq!(
            refused(10_008, "temporarily unavailable"),
            ErrorKind::Disconnected
        );
    }
}
