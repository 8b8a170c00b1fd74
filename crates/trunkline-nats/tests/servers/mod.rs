//! Servers of one's own, and what every refusal must be.

#![allow(dead_code, reason = "each test file takes what it needs")]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use trunkline_core::engine::{
    Append, AppendMode, Change, Engine, Expect, LinkOptions, Outcome, StreamSpec,
};
use trunkline_core::wire::Body;
use trunkline_core::{
    Error, ErrorKind, EventId, Filter, Headers, Name, Result, Subject, SystemClock,
};
use trunkline_nats::{NatsEngine, NatsOptions};
use trunkline_nats_server::{NatsServer, ServerOptions, obtain};

/// What no error may print.
pub(crate) const SECRET: &str = "s3cret-w0rd";

/// A server with this at the end of its configuration.
pub(crate) fn server(extra: &str) -> NatsServer {
    server_with(ServerOptions {
        extra: extra.to_owned(),
        ..ServerOptions::default()
    })
}

pub(crate) fn server_with(options: ServerOptions) -> NatsServer {
    NatsServer::start(&obtain().unwrap(), options).unwrap()
}

/// Fails instead of hanging.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), future)
        .await
        .expect("it hangs")
}

/// One attempt, and short time-outs.
pub(crate) fn impatient() -> LinkOptions {
    LinkOptions {
        connect_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(5),
        publish_timeout: Duration::from_secs(5),
        first_connect: Some(Duration::ZERO),
        reconnect_wait: Duration::from_millis(50),
        ..LinkOptions::default()
    }
}

pub(crate) async fn connect(options: &NatsOptions) -> Result<NatsEngine> {
    soon(NatsEngine::connect(
        options,
        impatient(),
        Arc::new(SystemClock),
    ))
    .await
}

pub(crate) fn at(url: &str) -> NatsOptions {
    NatsOptions::default().with_url(url).unwrap()
}

/// It is refused for this reason, says these words, says what to do, and nothing that is secret.
pub(crate) async fn refused(options: &NatsOptions, kind: ErrorKind, words: &[&str]) {
    let error = connect(options).await.expect_err("this cannot work");
    is(&error, kind, words);
}

pub(crate) fn is(error: &Error, kind: ErrorKind, words: &[&str]) {
    let text = format!("{error} {error:?}");
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word} is missing: {text}");
    }
    assert!(!text.contains(SECRET), "a secret is printed: {text}");
    assert!(!text.contains("SUA"), "a seed is printed: {text}");
    let remedy = error.message().contains(';') || error.message().contains(" or ");
    assert!(remedy, "it does not say what to do: {text}");
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn filter(text: &str) -> Filter {
    Filter::new(text).unwrap()
}

/// One that refuses what it has no room for.
pub(crate) fn spec(stream: &str, subjects: &str) -> StreamSpec {
    StreamSpec {
        retention: trunkline_core::engine::Retention::RefuseWhenFull,
        ..StreamSpec::new(name(stream), vec![filter(subjects)])
    }
}

pub(crate) async fn make(engine: &NatsEngine, spec: StreamSpec) -> Result<()> {
    soon(engine.topology().apply(vec![Change::CreateStream(spec)])).await
}

pub(crate) fn event(subject: &str, n: usize, bytes: usize) -> Append {
    Append {
        subject: Subject::new(subject).unwrap(),
        key: Some(subject.into()),
        id: Some(EventId::new(format!("{subject}-{n}")).unwrap()),
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Bytes(vec![b'x'; bytes].into()),
    }
}

pub(crate) async fn append(engine: &NatsEngine, stream: &str, events: Vec<Append>) -> Vec<Outcome> {
    append_as(engine, stream, events, AppendMode::Each).await
}

pub(crate) async fn append_as(
    engine: &NatsEngine,
    stream: &str,
    events: Vec<Append>,
    mode: AppendMode,
) -> Vec<Outcome> {
    let stream = name(stream);
    let appended = engine
        .log()
        .append(&stream, events.into_iter().collect(), mode);
    soon(appended.completed()).await.unwrap()
}

/// What became of an event that was not stored.
pub(crate) fn error_of(outcome: &Outcome) -> &Error {
    match outcome {
        Outcome::Refused(error) => error,
        other => panic!("it should have been refused: {other:?}"),
    }
}
