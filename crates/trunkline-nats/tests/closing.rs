//! Ending: closed or only dropped, with a server, without one, and with one that does not answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics where it fails"
)]

mod servers;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;
use trunkline_core::engine::{AppendMode, Engine, Link, LinkOptions, Outcome, Position};
use trunkline_core::{ErrorKind, SystemClock};
use trunkline_nats::NatsEngine;

use servers::{append, at, connect, event, filter, make, name, server, soon, spec};

/// Waits until nothing runs any more. Whatever ends does so on its own time, which nobody tells.
async fn nothing_runs() {
    let metrics = Handle::current().metrics();
    let quiet = async {
        while metrics.num_alive_tasks() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let quiet = tokio::time::timeout(Duration::from_secs(10), quiet).await;
    assert!(quiet.is_ok(), "{} tasks go on", metrics.num_alive_tasks());
}

/// An engine that has done a bit of everything.
async fn used(url: &str) -> NatsEngine {
    let engine = connect(&at(url)).await.unwrap();
    make(&engine, spec("LOG", "log.*")).await.unwrap();
    let outcomes = append(
        &engine,
        "LOG",
        vec![event("log.a", 0, 10), event("log.b", 0, 10)],
    )
    .await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Stored { .. }))
    );
    let stream = name("LOG");
    let mut follow = engine
        .log()
        .follow(&stream, Position::First, &[])
        .await
        .unwrap();
    let credit = trunkline_core::engine::Credit::items(10);
    soon(follow.next(credit, &mut Vec::new())).await.unwrap();
    drop(
        engine
            .live()
            .listen(&[filter("live")], None, 10)
            .await
            .unwrap(),
    );
    engine
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_without_being_closed_leaves_nothing_behind() {
    let server = server("");
    for _ in 0..3 {
        drop(used(&server.url()).await);
        nothing_runs().await;
    }
    let engine = used(&server.url()).await;
    soon(engine.close()).await;
    soon(engine.close()).await;
    let closed = append_error(&engine).await;
    assert_eq!(closed, ErrorKind::Closed);
    drop(engine);
    nothing_runs().await;
}

async fn append_error(engine: &NatsEngine) -> ErrorKind {
    let stream = name("LOG");
    let batch = [event("log.a", 9, 10)].into_iter().collect();
    let appended = engine.log().append(&stream, batch, AppendMode::Each);
    match soon(appended.completed()).await {
        Err(error) => error.kind(),
        Ok(outcomes) => servers::error_of(&outcomes[0]).kind(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_does_not_wait_for_a_server_that_is_gone() {
    let mut server = server("");
    let engine = used(&server.url()).await;
    server.kill().unwrap();
    let mut link = engine.link();
    let lost = link.wait_for(|link| matches!(link, Link::Disconnected { .. }));
    drop(soon(lost).await.unwrap());
    soon(engine.close()).await;
    assert_eq!(append_error(&engine).await, ErrorKind::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_holds_nobody_beyond_the_deadline() {
    let mut server = server("");
    let engine = Arc::new(used(&server.url()).await);
    server.pause().unwrap();
    // More than the sockets and the client's own queue take.
    let mut appends = JoinSet::new();
    for n in 0..60 {
        let engine = Arc::clone(&engine);
        appends.spawn(async move {
            let stream = name("LOG");
            let batch = (0..500)
                .map(|k| event(&format!("log.{n}-{k}"), n, 2_000))
                .collect();
            engine
                .log()
                .append(&stream, batch, AppendMode::Each)
                .completed()
                .await
        });
    }
    let (mut refused, mut unknown) = (0, 0);
    while let Some(outcomes) = soon(appends.join_next()).await {
        for outcome in outcomes.unwrap().unwrap() {
            match outcome {
                Outcome::Refused(error) => {
                    assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
                    refused += 1;
                }
                Outcome::Unknown(error) => {
                    assert!(error.retryable(), "{error}");
                    unknown += 1;
                }
                Outcome::Stored { .. } => panic!("the server is paused"),
            }
        }
    }
    assert_eq!(refused + unknown, 30_000);
    assert!(
        refused > 0 && unknown > 0,
        "{refused} refused, {unknown} unknown"
    );
    // It goes on by itself, on the same connection.
    server.resume().unwrap();
    let stored = async {
        loop {
            let again = append(&engine, "LOG", vec![event("log.again", 0, 10)]).await;
            if matches!(again[0], Outcome::Stored { .. }) {
                break;
            }
        }
    };
    soon(stored).await;
    server.pause().unwrap();
    soon(engine.close()).await;
    assert_eq!(append_error(&engine).await, ErrorKind::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_to_reconnect_are_counted() {
    for attempts in [0, 1, 3] {
        let mut server = server("");
        let link = LinkOptions {
            reconnect_attempts: Some(attempts),
            ..servers::impatient()
        };
        // The first of them is never there.
        let options = at(&format!("nats://127.0.0.1:1,{}", server.url()));
        let engine = NatsEngine::connect(&options, link, Arc::new(SystemClock));
        let engine = soon(engine).await.unwrap();
        let mut link = engine.link();
        assert_eq!(*link.borrow(), Link::Connected);
        server.kill().unwrap();
        drop(
            soon(link.wait_for(|link| *link == Link::Closed))
                .await
                .unwrap(),
        );
        assert_eq!(append_error(&engine).await, ErrorKind::Closed);
        soon(engine.close()).await;
    }
}
