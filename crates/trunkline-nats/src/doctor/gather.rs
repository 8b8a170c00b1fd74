//! Asking the server. Every question has a time limit, and what is not answered is listed.

mod monitor;
mod traffic;

use std::sync::Arc;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::connection::State;
use async_nats::{Client, Event, Request};
use base64::Engine as _;
use parking_lot::Mutex;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use trunkline_core::engine::LinkOptions;
use trunkline_core::{Error, ErrorKind, Filter, Result};

use crate::options::NatsOptions;
use crate::wire::{Told, dial};

use super::snapshot::{
    Account, ApiError, Consumer, Expected, NotSeen, Server, Snapshot, StoredMessage, Stream,
};

/// Subjects of a stream that are asked for.
const SUBJECTS: u64 = 10_000;
/// Streams whose last messages are looked at, and how many messages.
const STREAMS_READ: usize = 100;
const MESSAGES_READ: u64 = 5;

/// What is looked at, and how long at most.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How long one answer may take. 2 s by default.
    pub answer_within: Duration,
    /// How long everything but the sample may take. 60 s by default.
    pub all_within: Duration,
    /// Streams at most. 1 000 by default.
    pub max_streams: usize,
    /// Consumers at most. 10 000 by default.
    pub max_consumers: usize,
    /// The monitoring endpoint, `http://HOST:8222`. None by default.
    pub monitor: Option<String>,
    /// What to listen to. Everything by default.
    pub watch: Filter,
    /// How long to listen. Not at all by default. While it lasts a request that nobody hears
    /// times out for its sender, because the doctor hears it.
    pub sample: Duration,
    /// Subjects of the sample at most. 10 000 by default.
    pub max_subjects: usize,
    /// What the project says it means to do.
    pub expected: Expected,
    /// For how long nothing may be delivered before nobody is there. 60 s by default.
    pub idle_after: Duration,
    /// Where the connection tells of what it may not do; without it that shows as silence.
    pub denials: Option<Denials>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            answer_within: Duration::from_secs(2),
            all_within: Duration::from_secs(60),
            max_streams: 1_000,
            max_consumers: 10_000,
            monitor: None,
            watch: Filter::all(),
            sample: Duration::ZERO,
            max_subjects: 10_000,
            expected: Expected::default(),
            idle_after: Duration::from_secs(60),
            denials: None,
        }
    }
}

/// What a connection was told that it may not do. A denial reaches only the connection's event
/// callback; the question itself would wait until its time is over.
#[derive(Clone, Debug, Default)]
pub struct Denials(Arc<Heard>);

#[derive(Debug, Default)]
struct Heard {
    texts: Mutex<Vec<String>>,
    more: Notify,
}

impl Denials {
    /// Denials that are kept; the rest says nothing new.
    const MOST: usize = 1_000;

    /// Makes a connection that tells them.
    ///
    /// # Errors
    /// Those of [`NatsEngine::connect`](crate::NatsEngine::connect), but for what the doctor is to find
    /// out: a server of any version, with JetStream or without, will do.
    pub async fn connect(&self, options: &NatsOptions, link: &LinkOptions) -> Result<Client> {
        let heard = self.clone();
        let told = Told {
            event: Arc::new(move |event| heard.hear(event)),
            link: None,
        };
        dial(options, link, &told).await
    }

    /// Takes one event of a connection.
    pub fn hear(&self, event: &Event) {
        let Event::ServerError(error) = event else {
            return;
        };
        let text = error.to_string().to_lowercase();
        if text.contains("permissions violation") {
            let mut texts = self.0.texts.lock();
            if texts.len() < Self::MOST {
                texts.push(text);
            }
            drop(texts);
            self.0.more.notify_waiters();
        }
    }

    /// Waits until the subject was denied. Dropping the future loses nothing.
    async fn of(&self, subject: &str) {
        let quoted = format!("\"{}\"", subject.to_lowercase());
        loop {
            let more = self.0.more.notified();
            if self
                .0
                .texts
                .lock()
                .iter()
                .any(|text| text.contains(&quoted))
            {
                return;
            }
            more.await;
        }
    }
}

/// Why there is no answer.
enum Missing {
    /// Nobody there serves it: JetStream is off.
    NoResponders,
    Denied(String),
    Why(String),
}

impl Missing {
    fn not_seen(self, part: impl Into<String>) -> NotSeen {
        let (why, denied) = match self {
            Self::NoResponders => ("nobody answers there".to_owned(), false),
            Self::Denied(subject) => (format!("not permitted: publish to {subject}"), true),
            Self::Why(why) => (why, false),
        };
        NotSeen {
            part: part.into(),
            why,
            denied,
        }
    }
}

/// Looks at everything that there is, and changes nothing.
///
/// # Errors
/// [`ErrorKind::Disconnected`] when the server is not there. What it does not answer, or does not
/// permit, is no error but listed in [`Snapshot::not_seen`].
///
/// # Cancel safety
/// Dropping the future leaves nothing behind on the server.
pub async fn examine(client: &Client, options: Options) -> Result<Snapshot> {
    let info = client.server_info();
    let mut snapshot = Snapshot {
        server: Server {
            name: info.server_name.clone(),
            version: info.version.clone(),
            cluster: info.cluster.clone().filter(|cluster| !cluster.is_empty()),
            domain: info.domain.clone(),
            max_payload: info.max_payload as u64,
            jetstream: info.jetstream,
        },
        expected: options.expected.clone(),
        idle_after_s: options.idle_after.as_secs(),
        ..Snapshot::default()
    };
    let asking = Asking {
        client,
        options: &options,
        until: Instant::now() + options.all_within,
    };
    match asking.api::<Account>("$JS.API.INFO", "").await {
        Ok(account) => {
            snapshot.server.jetstream = true;
            snapshot.account = Some(account);
        }
        Err(Missing::NoResponders) => snapshot.server.jetstream = false,
        Err(missing) => snapshot.not_seen.push(missing.not_seen("the account")),
    }
    if client.connection_state() != State::Connected {
        return Err(Error::new(
            ErrorKind::Disconnected,
            "the NATS server went away while it was looked at; try again when it is back",
        ));
    }
    if snapshot.server.jetstream {
        asking.streams(&mut snapshot).await;
        asking.consumers(&mut snapshot).await;
    }
    match &options.monitor {
        Some(url) => {
            let own = info.client_id;
            snapshot.monitor = Some(monitor::look(&asking, url, own, &mut snapshot.not_seen).await);
        }
        None => snapshot.not_seen.push(NotSeen {
            part: "live subscriptions, disk settings".to_owned(),
            why: "only the monitoring endpoint tells them; name it with --monitor".to_owned(),
            denied: false,
        }),
    }
    if options.sample.is_zero() {
        snapshot.not_seen.push(NotSeen {
            part: "what is published".to_owned(),
            why: "nothing was sampled; listen for a while with --seconds".to_owned(),
            denied: false,
        });
    } else {
        match traffic::sample(&asking).await {
            Ok(traffic) => snapshot.traffic = Some(traffic),
            Err(missing) => snapshot
                .not_seen
                .push(missing.not_seen("what is published")),
        }
    }
    Ok(snapshot)
}

struct Asking<'a> {
    client: &'a Client,
    options: &'a Options,
    until: Instant,
}

#[derive(Deserialize)]
struct Page<T> {
    #[serde(default)]
    total: usize,
    #[serde(alias = "streams", alias = "consumers", default = "Vec::new")]
    rows: Vec<T>,
}

impl Asking<'_> {
    /// One question to the JetStream API.
    async fn api<T: DeserializeOwned>(&self, subject: &str, body: &str) -> Result<T, Missing> {
        let until = self.until.min(Instant::now() + self.options.answer_within);
        let late = || Missing::Why("no answer in time".to_owned());
        if Instant::now() >= self.until {
            return Err(Missing::Why("the time for looking was over".to_owned()));
        }
        let request = Request::new().payload(body.to_owned().into()).timeout(None);
        let answer = tokio::select! {
            answer = timeout_at(until, self.client.send_request(subject.to_owned(), request)) => {
                answer.map_err(|_| late())?
            }
            () = self.denied(subject) => return Err(Missing::Denied(subject.to_owned())),
        };
        let message = answer.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => Missing::NoResponders,
            RequestErrorKind::TimedOut => late(),
            _ => Missing::Why(error.to_string()),
        })?;
        let unreadable = |error| Missing::Why(format!("the answer cannot be read: {error}"));
        let value: serde_json::Value =
            serde_json::from_slice(&message.payload).map_err(unreadable)?;
        if let Some(error) = value.get("error") {
            let error = ApiError::deserialize(error).map_err(unreadable)?;
            // JetStream is off on this server, or for this account.
            return Err(match error.err_code {
                10_039 | 10_076 => Missing::NoResponders,
                _ => Missing::Why(error.description),
            });
        }
        T::deserialize(value).map_err(unreadable)
    }

    async fn denied(&self, subject: &str) {
        match &self.options.denials {
            Some(denials) => denials.of(subject).await,
            None => std::future::pending().await,
        }
    }

    /// All rows of a list, page by page, and whether there are more than `most`.
    async fn list<T: DeserializeOwned>(
        &self,
        subject: &str,
        most: usize,
    ) -> Result<(Vec<T>, bool), Missing> {
        let mut rows: Vec<T> = Vec::new();
        loop {
            let body = format!("{{\"offset\":{}}}", rows.len());
            let page: Page<T> = self.api(subject, &body).await?;
            let empty = page.rows.is_empty();
            rows.extend(page.rows);
            if rows.len() >= most {
                let more = rows.len() > most || page.total > rows.len();
                rows.truncate(most);
                return Ok((rows, more));
            }
            if empty || rows.len() >= page.total {
                return Ok((rows, false));
            }
        }
    }

    async fn streams(&self, snapshot: &mut Snapshot) {
        let most = self.options.max_streams;
        let found = self.list::<Stream>("$JS.API.STREAM.LIST", most).await;
        let (streams, more) = match found {
            Ok(found) => found,
            Err(missing) => {
                let not_seen = missing.not_seen("streams and their consumers");
                snapshot.not_seen.push(not_seen);
                return;
            }
        };
        if more {
            snapshot
                .not_seen
                .push(beyond("streams", format!("there are more than {most}")));
        }
        for mut stream in streams {
            let name = stream.name().to_owned();
            if stream.state.num_subjects <= SUBJECTS {
                let subject = format!("$JS.API.STREAM.INFO.{name}");
                match self
                    .api::<Stream>(&subject, r#"{"subjects_filter":">"}"#)
                    .await
                {
                    Ok(full) => {
                        stream = full;
                        // An empty stream has none, which is known.
                        stream.state.subjects.get_or_insert_default();
                    }
                    Err(missing) => {
                        let part = format!("the subjects of stream {name}");
                        snapshot.not_seen.push(missing.not_seen(part));
                    }
                }
            } else {
                let why = format!("there are more than {SUBJECTS}");
                snapshot
                    .not_seen
                    .push(beyond(format!("the subjects of stream {name}"), why));
            }
            if snapshot.streams.len() < STREAMS_READ {
                self.last_messages(&mut stream, snapshot).await;
            }
            snapshot.streams.push(stream);
        }
        if snapshot.streams.len() > STREAMS_READ {
            let why = format!("only {STREAMS_READ} streams are read");
            snapshot
                .not_seen
                .push(beyond("the last messages of the other streams", why));
        }
    }

    async fn last_messages(&self, stream: &mut Stream, snapshot: &mut Snapshot) {
        #[derive(Deserialize)]
        struct Answer {
            message: Message,
        }
        #[derive(Deserialize)]
        struct Message {
            subject: String,
            seq: u64,
            #[serde(default)]
            hdrs: String,
        }
        if stream.is_bucket() || stream.is_copy() || stream.state.messages == 0 {
            return;
        }
        let subject = format!("$JS.API.STREAM.MSG.GET.{}", stream.name());
        let last = stream.state.last_seq;
        let first = stream
            .state
            .first_seq
            .max((last + 1).saturating_sub(MESSAGES_READ));
        for seq in (first..=last).rev() {
            match self
                .api::<Answer>(&subject, &format!("{{\"seq\":{seq}}}"))
                .await
            {
                Ok(Answer { message }) => {
                    let headers = base64::engine::general_purpose::STANDARD
                        .decode(&message.hdrs)
                        .unwrap_or_default();
                    let headers = String::from_utf8_lossy(&headers).to_lowercase();
                    stream.last_messages.push(StoredMessage {
                        subject: message.subject,
                        seq: message.seq,
                        guarded: ["nats-msg-id:", "nats-expected-last-"]
                            .iter()
                            .any(|name| headers.contains(name)),
                    });
                }
                Err(denied @ Missing::Denied(_)) => {
                    let part = format!("the last messages of stream {}", stream.name());
                    snapshot.not_seen.push(denied.not_seen(part));
                    return;
                }
                // Removed in the meantime.
                Err(_) => {}
            }
        }
    }

    async fn consumers(&self, snapshot: &mut Snapshot) {
        let names: Vec<String> = snapshot
            .streams
            .iter()
            .filter(|stream| stream.state.consumer_count > 0)
            .map(|stream| stream.name().to_owned())
            .collect();
        for name in names {
            let part = format!("the consumers of stream {name}");
            let most = self
                .options
                .max_consumers
                .saturating_sub(snapshot.consumers.len());
            let subject = format!("$JS.API.CONSUMER.LIST.{name}");
            match self.list::<Consumer>(&subject, most).await {
                Ok((consumers, more)) => {
                    snapshot.consumers.extend(consumers);
                    if more {
                        let why = format!("there are more than {}", self.options.max_consumers);
                        snapshot.not_seen.push(beyond(part, why));
                    }
                }
                Err(missing) => snapshot.not_seen.push(missing.not_seen(part)),
            }
        }
    }
}

fn beyond(part: impl Into<String>, why: String) -> NotSeen {
    Missing::Why(why).not_seen(part)
}
