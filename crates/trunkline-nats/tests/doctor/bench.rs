//! Building a set-up on a real server, and looking at it.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap};
use futures_util::StreamExt;
use serde_json::{Value, json};
use trunkline_nats::doctor::{Options, Snapshot, examine, judge};

use trunkline_nats_server::ServerOptions;

use super::server::Server;
use Step::{Bare, Consumer, Fetch, Publish, Stream, Update};

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const DAY: u64 = 86_400 * SECOND;
const STORE_NOT_MADE: u64 = 10_049;

/// One thing that is done to build a set-up.
pub(super) enum Step {
    /// Makes a stream: a healthy one with these settings in place of its own.
    Stream(Value),
    /// Changes a stream.
    Update(Value),
    /// Makes a consumer: a healthy one with these settings.
    Consumer(&'static str, Value),
    /// Stores so many messages, each with an id.
    Publish(&'static str, u64),
    /// Publishes without an id or a wait.
    Bare(&'static str),
    /// Fetches so many messages without acknowledging.
    Fetch(&'static str, &'static str, u64),
}

pub(super) struct Bench {
    _server: Server,
    pub(super) monitor: String,
    pub(super) url: String,
    pub(super) client: Client,
}

impl Bench {
    pub(super) async fn new(options: ServerOptions) -> Self {
        let server = Server::start(options);
        let client = async_nats::connect(&server.url).await.unwrap();
        Self {
            monitor: server.monitor.clone(),
            url: server.url.clone(),
            _server: server,
            client,
        }
    }

    pub(super) async fn named(&self, name: &str) -> Client {
        let options = ConnectOptions::new().name(name);
        options.connect(&self.url).await.unwrap()
    }

    pub(super) async fn api(&self, subject: &str, body: &Value) -> Value {
        let body = body.to_string();
        let answer = self.client.request(subject.to_owned(), body.into()).await;
        serde_json::from_slice(&answer.unwrap().payload).unwrap()
    }

    pub(super) async fn done(&self, subject: &str, body: &Value) {
        let mut answer = self.api(subject, body).await;
        // The server may remove the folder of its streams, after the last one is deleted, from
        // under the next that is made.
        while answer["error"]["err_code"] == STORE_NOT_MADE {
            answer = self.api(subject, body).await;
        }
        assert!(answer.get("error").is_none(), "{subject} {body}: {answer}");
    }

    pub(super) async fn build(&self, steps: &[Step]) {
        let listed = self.api("$JS.API.STREAM.NAMES", &json!({})).await;
        for name in listed["streams"].as_array().into_iter().flatten() {
            let subject = format!("$JS.API.STREAM.DELETE.{}", name.as_str().unwrap());
            self.done(&subject, &json!({})).await;
        }
        for (index, step) in steps.iter().enumerate() {
            match step {
                Stream(with) => {
                    let config = stream(with);
                    let subject =
                        format!("$JS.API.STREAM.CREATE.{}", config["name"].as_str().unwrap());
                    self.done(&subject, &config).await;
                }
                Update(with) => {
                    let config = stream(with);
                    let subject =
                        format!("$JS.API.STREAM.UPDATE.{}", config["name"].as_str().unwrap());
                    self.done(&subject, &config).await;
                }
                Consumer(stream, with) => {
                    let mut config = json!({"durable_name": "billing", "ack_policy": "explicit"});
                    merge(&mut config, with);
                    let name = config["durable_name"].as_str().unwrap();
                    let subject = format!("$JS.API.CONSUMER.CREATE.{stream}.{name}");
                    let body = json!({"stream_name": stream, "config": config});
                    self.done(&subject, &body).await;
                }
                Publish(subject, count) => {
                    for n in 0..*count {
                        let mut headers = HeaderMap::new();
                        headers.insert("Nats-Msg-Id", format!("{index}-{n}-{subject}"));
                        let publish =
                            self.client
                                .request_with_headers(*subject, headers, "{}".into());
                        let ack: Value =
                            serde_json::from_slice(&publish.await.unwrap().payload).unwrap();
                        assert!(ack.get("seq").is_some(), "{subject}: {ack}");
                    }
                }
                Bare(subject) => {
                    self.client.publish(*subject, "{}".into()).await.unwrap();
                    self.client.flush().await.unwrap();
                }
                Fetch(stream, consumer, count) => {
                    let inbox = self.client.new_inbox();
                    let mut messages = self.client.subscribe(inbox.clone()).await.unwrap();
                    let body = json!({"batch": count, "expires": SECOND}).to_string();
                    let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
                    self.client
                        .publish_with_reply(next, inbox, body.into())
                        .await
                        .unwrap();
                    for _ in 0..*count {
                        messages.next().await.unwrap();
                    }
                }
            }
        }
    }

    pub(super) fn options(&self) -> Options {
        let mut options = Options::default();
        options.monitor = Some(self.monitor.clone());
        options.idle_after = Duration::ZERO;
        options
    }

    pub(super) async fn seen(&self, options: Options) -> Snapshot {
        // A connection of its own, as the command has.
        let client = async_nats::connect(&self.url).await.unwrap();
        examine(&client, options).await.unwrap()
    }

    pub(super) async fn check(&self, code: &str, wrong: Vec<Step>, right: Vec<Step>) {
        self.build(&wrong).await;
        found(&self.seen(self.options()).await, &[code]);
        self.build(&right).await;
        found(&self.seen(self.options()).await, &[]);
    }
}

pub(super) fn stream(with: &Value) -> Value {
    let mut config = json!({
        "name": "EVENTS",
        "subjects": ["events.>"],
        "max_age": 7 * DAY,
        "duplicate_window": 120 * SECOND,
    });
    merge(&mut config, with);
    config
}

pub(super) fn merge(into: &mut Value, with: &Value) {
    for (key, value) in with.as_object().unwrap() {
        into[key] = value.clone();
    }
}

/// Exactly these codes, and every finding is complete.
#[track_caller]
pub(super) fn found(snapshot: &Snapshot, codes: &[&str]) {
    let findings = judge(snapshot);
    let seen: BTreeSet<&str> = findings.iter().map(|finding| finding.code).collect();
    let expected: BTreeSet<&str> = codes.iter().copied().collect();
    assert_eq!(seen, expected, "{findings:#?}");
    for finding in &findings {
        for text in [
            &finding.object,
            &finding.what,
            &finding.consequence,
            &finding.remedy,
        ] {
            assert!(!text.is_empty(), "{finding:?}");
        }
    }
    assert!(findings.is_sorted_by_key(|finding| finding.severity));
}
