//! Promises of the seam itself, run directly against an engine: E2 to E11.

mod consume;
mod live;
mod log;
mod state;
mod topology;

use std::sync::Arc;

use bytes::Bytes;
use smallvec::smallvec;
use trunkline::core::engine::{
    Append, AppendMode, Change, Commit, Credit, Engine, Expect, Fetched, Followed, Heard, Message,
    Outcome, Position, StateKey, StoredEvent, StreamSpec, Watched,
};
use trunkline::core::wire::Body;
use trunkline::core::{Headers, Subject};
use trunkline::{ErrorKind, EventId, Filter, Link, Name};

use super::Trial;
use consume::{consumer, with_consumer};
use log::follow;

pub(super) use consume::*;
pub(super) use live::*;
pub(super) use log::*;
pub(super) use state::*;
pub(super) use topology::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn key(text: &str) -> StateKey {
    StateKey::new(text).unwrap()
}

/// An engine with a stream `LOG` over `log.>`.
async fn with_stream(trial: &Trial) -> Arc<dyn Engine> {
    let engine = trial.engine().await;
    let spec = StreamSpec::new(name("LOG"), vec![Filter::new("log.>").unwrap()]);
    engine
        .topology()
        .apply(vec![Change::CreateStream(spec)])
        .await
        .unwrap();
    engine
}

fn item(subject: &str, text: impl Into<String>) -> Append {
    Append {
        subject: Subject::new(subject).unwrap(),
        key: None,
        id: None,
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Bytes(Bytes::from(text.into())),
    }
}

async fn append(
    engine: &Arc<dyn Engine>,
    items: Vec<Append>,
    mode: AppendMode,
) -> Vec<Result<u64, ErrorKind>> {
    let outcomes = engine
        .log()
        .append(&name("LOG"), items.into(), mode)
        .completed()
        .await
        .unwrap();
    let outcome = |outcome| match outcome {
        Outcome::Stored { seq, .. } => Ok(seq),
        Outcome::Refused(error) => Err(error.kind()),
        Outcome::Unknown(error) => panic!("unknown: {error:?}"),
    };
    outcomes.into_iter().map(outcome).collect()
}

async fn fill(engine: &Arc<dyn Engine>, subject: &str, count: usize) {
    let items = (0..count).map(|n| item(subject, n.to_string())).collect();
    assert!(
        append(engine, items, AppendMode::Each)
            .await
            .iter()
            .all(Result::is_ok)
    );
}

fn texts(events: &[StoredEvent]) -> Vec<String> {
    let text =
        |event: &StoredEvent| String::from_utf8(event.body.to_bytes().unwrap().to_vec()).unwrap();
    events.iter().map(text).collect()
}

pub(super) async fn e10_a_closed_engine_says_so(trial: Trial) {
    let engine = with_consumer(&trial).await;
    let mut link = engine.link();
    assert_eq!(*link.borrow(), Link::Connected);
    let mut follow = follow(&engine, Position::New, "log.>").await;
    let (mut feed, settler) = engine.consume().open(&consumer("work")).await.unwrap();
    let mut listener = engine
        .live()
        .listen(&[Filter::new("a.>").unwrap()], None, 10)
        .await
        .unwrap();
    let bucket = name("bucket");
    let mut watch = engine.state().watch(&bucket, None, 0).await.unwrap();
    assert!(matches!(watch.next().await.unwrap(), Watched::CaughtUp(_)));
    let route = engine.live().route(&Subject::new("a.b").unwrap());
    // All of them wait, and all of them are told.
    let followed = tokio::spawn(async move {
        follow
            .next(Credit::items(1), &mut Vec::new())
            .await
            .unwrap()
    });
    let fetched =
        tokio::spawn(async move { feed.fetch(Credit::items(1), &mut Vec::new()).await.unwrap() });
    let heard = tokio::spawn(async move { listener.receive(1, &mut Vec::new()).await });
    let watched = tokio::spawn(async move { watch.next().await.unwrap_err().kind() });
    tokio::task::yield_now().await;
    engine.close().await;
    engine.close().await;
    assert_eq!(followed.await.unwrap(), Followed::Closed);
    assert_eq!(fetched.await.unwrap(), Fetched::Closed);
    assert_eq!(heard.await.unwrap(), Heard::Closed);
    assert_eq!(watched.await.unwrap(), ErrorKind::Closed);
    link.wait_for(|link| *link == Link::Closed).await.unwrap();

    let closed = |error: trunkline::Error| assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    let log = name("LOG");
    let message = Message {
        subject: Subject::new("a.b").unwrap(),
        reply: None,
        headers: Headers::new(),
        body: Body::Bytes(Bytes::new()),
    };
    closed(
        engine
            .live()
            .send(smallvec![message.clone()])
            .completed()
            .await
            .unwrap_err(),
    );
    closed(route.send(message).completed().await.unwrap_err());
    closed(
        engine
            .live()
            .listen(&[Filter::all()], None, 1)
            .await
            .err()
            .unwrap(),
    );
    let appended = engine
        .log()
        .append(&log, smallvec![item("log.a", "")], AppendMode::Each)
        .completed()
        .await;
    closed(appended.unwrap_err());
    closed(
        engine
            .log()
            .read(&log, Position::First, &[Filter::all()], Credit::items(1))
            .await
            .unwrap_err(),
    );
    closed(
        engine
            .log()
            .follow(&log, Position::First, &[Filter::all()])
            .await
            .err()
            .unwrap(),
    );
    closed(
        engine
            .consume()
            .open(&consumer("work"))
            .await
            .err()
            .unwrap(),
    );
    closed(
        settler
            .settle(smallvec![], true)
            .completed()
            .await
            .unwrap_err(),
    );
    let nothing = Commit {
        id: EventId::new("x").unwrap().to_string().into(),
        fences: vec![],
        ops: vec![],
    };
    closed(
        engine
            .state()
            .commit(&bucket, nothing)
            .completed()
            .await
            .unwrap_err(),
    );
    closed(
        engine
            .state()
            .scan(&bucket, None, None, 0, Credit::items(1))
            .await
            .unwrap_err(),
    );
    closed(engine.state().watch(&bucket, None, 0).await.err().unwrap());
    closed(engine.topology().inspect().await.unwrap_err());
    closed(
        engine
            .topology()
            .backlog(&consumer("work"))
            .await
            .unwrap_err(),
    );
    // Other connections to the same place go on.
    let other = trial.engine().await;
    assert_eq!(
        append(&other, vec![item("log.a", "")], AppendMode::Each).await,
        [Ok(1)]
    );
}
