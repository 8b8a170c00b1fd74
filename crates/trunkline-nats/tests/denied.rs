//! What a user may not do: said at once, by the subject, and never as a time-out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics where it fails"
)]

mod servers;

use trunkline_core::engine::{
    AppendMode, Commit, Engine, Expectation, Heard, Message, Op, StateKey,
};
use trunkline_core::wire::Body;
use trunkline_core::{Error, ErrorKind, Headers, Result, Subject};
use trunkline_nats::{Auth, NatsEngine, NatsOptions};
use trunkline_nats_server::NatsServer;

use servers::{
    append, append_as, at, connect, error_of, event, filter, is, make, name, refused, soon, spec,
};

const KIND: ErrorKind = ErrorKind::NotPermitted;

/// A server with a user `owner` who may do all, and a user `guest` with these permissions.
fn server(permissions: &str) -> NatsServer {
    servers::server(&format!(
        "authorization {{ users: [ {{ user: owner, password: s3cret-w0rd }}, \
         {{ user: guest, password: s3cret-w0rd, permissions: {{ {permissions} }} }} ] }}"
    ))
}

fn options(server: &NatsServer, user: &str) -> NatsOptions {
    NatsOptions {
        auth: Auth::User {
            user: user.to_owned(),
            password: servers::SECRET.to_owned(),
        },
        ..at(&server.url())
    }
}

async fn both(server: &NatsServer) -> (NatsEngine, NatsEngine) {
    let owner = connect(&options(server, "owner")).await.unwrap();
    let guest = connect(&options(server, "guest")).await.unwrap();
    (owner, guest)
}

fn message(subject: &str) -> Message {
    Message {
        subject: Subject::new(subject).unwrap(),
        reply: None,
        headers: Headers::new(),
        body: Body::Bytes("x".into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_to_a_stream() {
    let server = server("publish: { deny: [\"log.closed\"] }");
    let (owner, guest) = both(&server).await;
    make(&owner, spec("LOG", "log.*")).await.unwrap();
    // Alone, and among others, which are stored.
    let alone = append(&guest, "LOG", vec![event("log.closed", 0, 10)]).await;
    is(error_of(&alone[0]), KIND, &["log.closed", "grant"]);
    let mixed = ["log.a", "log.closed", "log.b"].map(|subject| event(subject, 1, 10));
    let mixed = append(&guest, "LOG", mixed.into()).await;
    is(error_of(&mixed[1]), KIND, &["log.closed"]);
    for stored in [0, 2] {
        assert!(
            matches!(
                mixed[stored],
                trunkline_core::engine::Outcome::Stored { .. }
            ),
            "{:?}",
            mixed[stored]
        );
    }
    // All or none: none, wherever the one is that may not be.
    for place in 0..3 {
        let mut whole: Vec<_> = ["log.a", "log.b"]
            .map(|subject| event(subject, 2 + place, 10))
            .into();
        whole.insert(place, event("log.closed", 2 + place, 10));
        for outcome in append_as(&guest, "LOG", whole, AppendMode::Atomic).await {
            is(error_of(&outcome), KIND, &["log.closed"]);
        }
    }
    // Very many at once: more than the client tells of.
    let many = (0..1_000)
        .map(|n| event("log.closed", 10 + n, 10))
        .collect();
    for outcome in append(&guest, "LOG", many).await {
        let error = error_of(&outcome);
        assert!(
            [KIND, ErrorKind::BehindFailed].contains(&error.kind()),
            "{error}"
        );
    }
    let after = append(&guest, "LOG", vec![event("log.a", 9_999, 10)]).await;
    assert!(
        matches!(after[0], trunkline_core::engine::Outcome::Stored { .. }),
        "{after:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn live_subjects() {
    let server = server("publish: { deny: [\"live.mute\"] }, subscribe: { deny: [\"live.deaf\"] }");
    let (_owner, guest) = both(&server).await;
    let mut late = 0;
    for round in 0..20 {
        let deaf = guest.live().listen(&[filter("live.deaf")], None, 10);
        match soon(deaf).await {
            Err(error) => is(&error, KIND, &["subscribe to live.deaf"]),
            // On a machine that is busy it is told later, which ends it.
            Ok(mut listener) => {
                let heard = soon(listener.receive(10, &mut Vec::new())).await;
                assert!(matches!(heard, Heard::Closed), "round {round}: {heard:?}");
                late += 1;
            }
        }
    }
    assert!(late < 20, "it is never told at once");
    soon(guest.live().listen(&[filter("live.fine")], None, 10))
        .await
        .unwrap();
    // At most once: the first goes out and is refused on the side; then it is known.
    let send = || async {
        soon(
            guest
                .live()
                .send([message("live.mute")].into_iter().collect())
                .completed(),
        )
        .await
    };
    let error = loop {
        match send().await {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    is(&error, KIND, &["publish to live.mute"]);
}

fn commit(n: u32, keys: &[&str]) -> Commit {
    Commit {
        id: format!("commit-{n}").into(),
        fences: vec![],
        ops: keys
            .iter()
            .map(|key| Op::Put {
                key: StateKey::new(key).unwrap(),
                value: "x".into(),
                expect: Expectation::Any,
                ttl: None,
            })
            .collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jetstream_api() {
    let server = server(
        "publish: { deny: [\"$JS.API.STREAM.CREATE.>\", \"$JS.API.CONSUMER.CREATE.>\", \"$KV.closed.>\", \
         \"$KV.half.shut\", \"$JS.API.DIRECT.GET.LOG\", \"$JS.API.STREAM.PURGE.LOG\"] }",
    );
    let (owner, guest) = both(&server).await;
    let error = make(&guest, spec("OTHER", "other")).await.unwrap_err();
    is(&error, KIND, &["$JS.API.STREAM.CREATE.OTHER"]);
    make(&owner, spec("LOG", "log.*")).await.unwrap();
    append(&owner, "LOG", vec![event("log.a", 0, 10)]).await;
    let stream = name("LOG");
    let from = trunkline_core::engine::Position::First;
    let follow = soon(guest.log().follow(&stream, from, &[])).await;
    is(
        &follow.err().unwrap(),
        KIND,
        &["$JS.API.CONSUMER.CREATE.LOG"],
    );
    let credit = trunkline_core::engine::Credit::items(10);
    let page = soon(guest.log().read(&stream, from, &[], credit)).await;
    is(&page.unwrap_err(), KIND, &["$JS.API.DIRECT.GET.LOG"]);
    let all = trunkline_core::engine::Removal::Before(10);
    is(
        &soon(guest.log().remove(&stream, all)).await.unwrap_err(),
        KIND,
        &["$JS.API.STREAM.PURGE.LOG"],
    );

    let put = async |engine: &NatsEngine, bucket: &str, commits: Commit| -> Result<_> {
        let bucket = name(bucket);
        soon(engine.state().commit(&bucket, commits).completed()).await
    };
    let denied = |outcome: Result<_>, subject: &str| {
        let error: Error = outcome
            .map(|_: trunkline_core::engine::Committed| ())
            .unwrap_err();
        is(&error, KIND, &[subject]);
    };
    denied(
        put(&guest, "closed", commit(0, &["a"])).await,
        "$JS.API.STREAM.CREATE.KV_closed",
    );
    put(&owner, "closed", commit(1, &["a"])).await.unwrap();
    put(&owner, "half", commit(2, &["a"])).await.unwrap();
    denied(
        put(&guest, "closed", commit(3, &["a"])).await,
        "$KV.closed.a",
    );
    for (n, keys) in [(4, ["shut", "open"]), (5, ["open", "shut"])] {
        denied(put(&guest, "half", commit(n, &keys)).await, "$KV.half.shut");
    }
    put(&guest, "half", commit(6, &["open"])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_and_the_api_at_all() {
    let deaf = server("subscribe: { deny: [\"_INBOX.>\"] }");
    refused(&options(&deaf, "guest"), KIND, &["subscribe to _INBOX."]).await;
    let own = NatsOptions {
        inbox_prefix: "_INBOX_guest".to_owned(),
        ..options(&deaf, "guest")
    };
    connect(&own).await.unwrap();
    let mute = server("publish: { deny: [\"$JS.API.>\"] }");
    refused(&options(&mute, "guest"), KIND, &["publish to $JS.API.INFO"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_into_a_bucket_that_nobody_made() {
    let server = server("publish: { deny: [\"$JS.API.STREAM.CREATE.>\"] }");
    let (owner, guest) = both(&server).await;
    let bucket = name("trunkline");
    let credit = trunkline_core::engine::Credit::items(10);
    let empty = soon(guest.state().scan(&bucket, None, None, 0, credit)).await;
    assert!(empty.unwrap().entries.is_empty());
    // And whoever only looked has made none, although they might.
    soon(owner.state().scan(&bucket, None, None, 0, credit))
        .await
        .unwrap();
    let commit = Commit {
        id: "1".into(),
        fences: Vec::new(),
        ops: vec![Op::Put {
            key: StateKey::new("a").unwrap(),
            value: "1".into(),
            expect: Expectation::Any,
            ttl: None,
        }],
    };
    let made = soon(guest.state().commit(&bucket, commit.clone()).completed()).await;
    is(&made.unwrap_err(), KIND, &["STREAM.CREATE.KV_trunkline"]);
    // Known by whoever looked before it was made.
    soon(owner.state().commit(&bucket, commit).completed())
        .await
        .unwrap();
    let found = soon(guest.state().scan(&bucket, None, None, 0, credit))
        .await
        .unwrap();
    assert_eq!(found.entries.len(), 1);
}
