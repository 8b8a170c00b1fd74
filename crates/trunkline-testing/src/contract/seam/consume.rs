//! Leases: E4 and E5.

use std::sync::Arc;
use std::time::Duration;

use smallvec::smallvec;
use tokio::task::JoinSet;
use tokio::time::Instant;
use trunkline::core::engine::{
    Change, ConsumerRef, ConsumerSpec, Credit, Delivery, Engine, Feed, Fetched, Position, Settle,
    StreamSpec,
};
use trunkline::{ErrorKind, Filter};

use super::super::Trial;
use super::{fill, name, with_stream};

pub(super) const ACK_WAIT: Duration = Duration::from_secs(2);

pub(super) fn consumer(text: &str) -> ConsumerRef {
    ConsumerRef {
        stream: name("LOG"),
        consumer: name(text),
    }
}

pub(super) async fn with_consumer(trial: &Trial) -> Arc<dyn Engine> {
    let engine = with_stream(trial).await;
    let spec = ConsumerSpec {
        at: consumer("work"),
        filters: vec![Filter::new("log.>").unwrap()],
        start: Position::First,
        ack_wait: ACK_WAIT,
        max_in_flight: 10,
    };
    engine
        .topology()
        .apply(vec![Change::CreateConsumer(spec)])
        .await
        .unwrap();
    engine
}

async fn fetch(feed: &mut Box<dyn Feed>, items: usize) -> Vec<Delivery> {
    let mut out = Vec::new();
    match feed.fetch(Credit::items(items), &mut out).await.unwrap() {
        Fetched::Deliveries(count) => assert_eq!(count, out.len()),
        other => panic!("{other:?}"),
    }
    out
}

/// Fetches until so many have come; an engine may give them one after the other.
async fn fetch_all(feed: &mut Box<dyn Feed>, items: usize, count: usize) -> Vec<Delivery> {
    let mut out = Vec::new();
    while out.len() < count {
        out.extend(fetch(feed, items - out.len()).await);
    }
    assert_eq!(out.len(), count);
    out
}

fn seqs(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries
        .iter()
        .map(|delivery| delivery.event.seq)
        .collect()
}

pub(in crate::contract) async fn e4_a_lease_that_ends_moves_the_event_to_whoever_waits(
    trial: Trial,
) {
    let engine = with_consumer(&trial).await;
    let open = async || engine.consume().open(&consumer("work")).await.unwrap();
    // Both wait before there is anything; the one that gets it then dies without a word.
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let (mut feed, settler) = open().await;
        waiting.spawn(async move {
            let delivery = fetch(&mut feed, 10).await.remove(0);
            (feed, settler, delivery)
        });
    }
    tokio::task::yield_now().await;
    let start = Instant::now();
    fill(&engine, "log.a", 1).await;
    let (dying, _, delivery) = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(delivery.event.seq, 1);
    drop(dying);
    let (mut second, settler, delivery) = waiting.join_next().await.unwrap().unwrap();
    assert!(
        start.elapsed() >= ACK_WAIT / 2,
        "it was delivered to two at once"
    );
    assert_eq!(delivery.event.seq, 1);
    assert!(
        start.elapsed() < 3 * ACK_WAIT,
        "taken over only after {:?}",
        start.elapsed()
    );
    let acked = settler
        .settle(smallvec![(delivery.token, Settle::Ack)], true)
        .completed()
        .await
        .unwrap();
    assert!(acked[0].is_ok());
    fill(&engine, "log.b", 1).await;
    assert_eq!(
        seqs(&fetch(&mut second, 10).await),
        [2],
        "what was acknowledged came again"
    );
}

pub(in crate::contract) async fn e4_leases_are_extended_given_back_and_never_settled_twice(
    trial: Trial,
) {
    let engine = with_consumer(&trial).await;
    let (mut feed, settler) = engine.consume().open(&consumer("work")).await.unwrap();
    let settle = async |tokens: &[(trunkline::core::engine::Token, Settle)]| {
        let settled = settler
            .settle(tokens.iter().copied().collect(), true)
            .completed()
            .await
            .unwrap();
        settled
            .into_iter()
            .map(|one| one.err().map(|error| error.kind()))
            .collect::<Vec<_>>()
    };
    fill(&engine, "log.a", 4).await;
    let deliveries = fetch_all(&mut feed, 3, 3).await;
    assert_eq!(seqs(&deliveries), [1, 2, 3]);
    let [a, b, c] = [0, 1, 2].map(|index| deliveries[index].token);
    let stale = Some(ErrorKind::StaleLease);
    assert_eq!(
        settle(&[(a, Settle::Ack), (a, Settle::Ack), (b, Settle::GiveBack)]).await,
        [None, stale, None]
    );
    let again = fetch_all(&mut feed, 10, 2).await;
    assert_eq!(
        seqs(&again),
        [2, 4],
        "what is given back comes at once, before what is new"
    );
    assert!(again[0].token != b && again[0].delivered_hint >= 1);
    assert_eq!(
        settle(&[(b, Settle::Ack)]).await,
        [stale],
        "an old lease settled a new delivery"
    );
    assert_eq!(
        settle(&[(again[0].token, Settle::Ack), (again[1].token, Settle::Ack)]).await,
        [None, None]
    );

    // The last one held is renewed well past its ack wait, and nobody else is given it.
    for _ in 0..4 {
        tokio::time::sleep(ACK_WAIT / 2).await;
        assert_eq!(settle(&[(c, Settle::Extend)]).await, [None]);
    }
    fill(&engine, "log.b", 1).await;
    let marker = fetch(&mut feed, 10).await;
    assert_eq!(seqs(&marker), [5], "an extended lease ended");
    let backlog = engine.topology().backlog(&consumer("work")).await.unwrap();
    assert_eq!(
        (backlog.pending, backlog.in_flight, backlog.floor),
        (0, 2, 2)
    );
    assert_eq!(
        settle(&[(marker[0].token, Settle::Ack), (c, Settle::Ack)]).await,
        [None, None]
    );

    // No more than the consumer's limit is ever out at once, over all who opened it.
    fill(&engine, "log.c", 30).await;
    let (mut other, _) = engine.consume().open(&consumer("work")).await.unwrap();
    let held = fetch_all(&mut feed, 6, 6).await;
    fetch_all(&mut other, 100, 4).await;
    let mut out = Vec::new();
    tokio::select! {
        biased;
        fetched = other.fetch(Credit::items(1), &mut out) => panic!("{fetched:?} beyond the limit"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(settle(&[(held[0].token, Settle::Ack)]).await, [None]);
    assert_eq!(fetch(&mut other, 100).await.len(), 1);
}

pub(in crate::contract) async fn e4_a_cancelled_fetch_leases_nothing(trial: Trial) {
    let engine = with_consumer(&trial).await;
    let open = async || engine.consume().open(&consumer("work")).await.unwrap().0;
    let (mut fickle, mut steady) = (open().await, open().await);
    for round in 1..=20 {
        let mut out = Vec::new();
        tokio::select! {
            biased;
            fetched = fickle.fetch(Credit::items(10), &mut out) => panic!("{fetched:?} of nothing"),
            () = tokio::task::yield_now() => {}
        }
        assert!(out.is_empty());
        fill(&engine, "log.a", 1).await;
        let start = Instant::now();
        let got = fetch(&mut steady, 10).await;
        assert!(
            got.iter().any(|delivery| delivery.event.seq == round),
            "event {round} went to a dropped call"
        );
        assert!(
            start.elapsed() < ACK_WAIT,
            "event {round} was leased by a call that was dropped"
        );
        let (_, settler) = engine.consume().open(&consumer("work")).await.unwrap();
        let acks = got
            .iter()
            .map(|delivery| (delivery.token, Settle::Ack))
            .collect();
        settler.settle(acks, true).completed().await.unwrap();
    }
}

pub(in crate::contract) async fn e5_a_work_queue_forgets_what_is_done(trial: Trial) {
    let engine = trial.engine().await;
    let stream = StreamSpec::work_queue(name("LOG"), vec![Filter::new("log.>").unwrap()]);
    let spec = |text: &str, filter: &str| ConsumerSpec {
        at: consumer(text),
        filters: vec![Filter::new(filter).unwrap()],
        start: Position::First,
        ack_wait: ACK_WAIT,
        max_in_flight: 10,
    };
    let changes = vec![
        Change::CreateStream(stream),
        Change::CreateConsumer(spec("work", "log.a")),
    ];
    engine.topology().apply(changes).await.unwrap();
    // A command has one consumer: a second one for the same subjects is refused.
    let second = engine
        .topology()
        .apply(vec![Change::CreateConsumer(spec("greedy", "log.>"))])
        .await;
    assert_eq!(second.unwrap_err().kind(), ErrorKind::Overlap);
    engine
        .topology()
        .apply(vec![Change::CreateConsumer(spec("other", "log.b"))])
        .await
        .unwrap();
    fill(&engine, "log.a", 3).await;
    let events = async || engine.topology().inspect().await.unwrap().streams[0].events;
    let (mut feed, settler) = engine.consume().open(&consumer("work")).await.unwrap();
    let deliveries = fetch_all(&mut feed, 3, 3).await;
    assert_eq!(
        events().await,
        3,
        "a command left before it was acknowledged"
    );
    let settles = [Settle::Ack, Settle::GiveBack, Settle::Ack];
    let batch = deliveries
        .iter()
        .map(|delivery| delivery.token)
        .zip(settles)
        .collect();
    settler.settle(batch, true).completed().await.unwrap();
    assert_eq!(events().await, 1);
    let again = fetch(&mut feed, 3).await;
    assert_eq!(seqs(&again), [2]);
    settler
        .settle(smallvec![(again[0].token, Settle::Ack)], true)
        .completed()
        .await
        .unwrap();
    assert_eq!(events().await, 0);
}
