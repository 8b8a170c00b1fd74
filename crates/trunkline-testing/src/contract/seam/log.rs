//! Appending and following: E2 and E3.

use std::sync::Arc;
use std::time::Duration;

use smallvec::smallvec;
use tokio::task::JoinSet;
use tokio::time::Instant;
use trunkline::core::engine::{
    Append, AppendMode, Credit, Engine, Expect, Follow, Followed, Position,
};
use trunkline::core::wire::Body;
use trunkline::{ErrorKind, Filter};

use super::super::Trial;
use super::{append, item, name, texts, with_stream};

pub(in crate::contract) async fn e2_append_keeps_expectations_and_atomic_batches_whole(
    trial: Trial,
) {
    let engine = with_stream(&trial).await;
    let expecting = |subject, expect| Append {
        expect,
        ..item(subject, "x")
    };
    let one = async |append_item| {
        append(&engine, vec![append_item], AppendMode::Each)
            .await
            .remove(0)
    };
    assert_eq!(one(expecting("log.a", Expect::Absent)).await, Ok(1));
    assert_eq!(
        one(expecting("log.a", Expect::Absent)).await,
        Err(ErrorKind::Conflict)
    );
    assert_eq!(
        one(expecting("log.b", Expect::Last(1))).await,
        Err(ErrorKind::Conflict)
    );
    assert_eq!(one(item("log.b", "x")).await, Ok(2));
    // It is the subject's last event that counts, not the stream's.
    assert_eq!(one(expecting("log.a", Expect::Last(1))).await, Ok(3));
    assert_eq!(
        one(expecting("log.a", Expect::Last(1))).await,
        Err(ErrorKind::Conflict)
    );
    assert_eq!(one(item("other.a", "x")).await, Err(ErrorKind::NotStored));

    // Behind a refused item its key waits; other keys go on.
    let keyed = |key: &str, expect| Append {
        key: Some(key.into()),
        ..expecting("log.c", expect)
    };
    let (a, b) = (keyed("a", Expect::Any), keyed("b", Expect::Any));
    let batch = vec![
        a.clone(),
        keyed("a", Expect::Last(1)),
        a.clone(),
        b,
        a.clone(),
    ];
    let (conflict, behind) = (Err(ErrorKind::Conflict), Err(ErrorKind::BehindFailed));
    assert_eq!(
        append(&engine, batch, AppendMode::Each).await,
        [Ok(4), conflict, behind, Ok(5), behind]
    );

    let huge = Append {
        body: Body::Bytes(vec![b'x'; engine.limits().max_message + 1].into()),
        ..item("log.d", "")
    };
    for (bad, kind) in [
        (expecting("log.d", Expect::Last(9)), ErrorKind::Conflict),
        (item("other.d", ""), ErrorKind::NotStored),
        (huge, ErrorKind::TooLarge),
    ] {
        let batch = vec![item("log.d", "1"), item("log.d", "2"), bad];
        assert_eq!(
            append(&engine, batch, AppendMode::Atomic).await,
            vec![Err(kind); 3]
        );
    }
    // Side by side, also while others append.
    let mut racing = JoinSet::new();
    for writer in 0..8 {
        let engine = trial.engine().await;
        racing.spawn(async move {
            for _ in 0..20 {
                let batch = (0..5)
                    .map(|n| item("log.e", format!("{writer}-{n}")))
                    .collect();
                let seqs: Vec<u64> = append(&engine, batch, AppendMode::Atomic)
                    .await
                    .into_iter()
                    .map(Result::unwrap)
                    .collect();
                assert!(
                    seqs.windows(2).all(|pair| pair[1] == pair[0] + 1),
                    "{seqs:?}"
                );
                tokio::task::yield_now().await;
            }
        });
    }
    racing.join_all().await;
    let filters = [Filter::new("log.d").unwrap(), Filter::new("log.e").unwrap()];
    let page = engine
        .log()
        .read(
            &name("LOG"),
            Position::First,
            &filters,
            Credit::items(10_000),
        )
        .await
        .unwrap();
    assert_eq!(
        (page.events.len(), page.events[0].seq, page.tail),
        (800, 6, 806)
    );
    for batch in page.events.chunks(5) {
        let texts = texts(batch);
        let writer = texts[0].split('-').next().unwrap();
        assert_eq!(
            texts,
            (0..5).map(|n| format!("{writer}-{n}")).collect::<Vec<_>>()
        );
    }

    let too_many = vec![item("log.f", ""); engine.limits().max_batch + 1];
    let refused = engine
        .log()
        .append(&name("LOG"), too_many.into(), AppendMode::Each)
        .completed()
        .await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::OverLimit);
    let nowhere = engine
        .log()
        .append(
            &name("NOWHERE"),
            smallvec![item("log.a", "")],
            AppendMode::Each,
        )
        .completed();
    assert_eq!(nowhere.await.unwrap_err().kind(), ErrorKind::NoSuchStream);
}

pub(super) async fn follow(
    engine: &Arc<dyn Engine>,
    from: Position,
    filter: &str,
) -> Box<dyn Follow> {
    engine
        .log()
        .follow(&name("LOG"), from, &[Filter::new(filter).unwrap()])
        .await
        .unwrap()
}

/// How long events may take that are stored already, or about to be.
const PATIENCE: Duration = Duration::from_secs(20);

pub(in crate::contract) async fn e3_follow_has_no_gaps_and_dropping_it_loses_nothing(trial: Trial) {
    let engine = with_stream(&trial).await;
    let mut reader = follow(&engine, Position::New, "log.*").await;
    let writer = tokio::spawn({
        let engine = trial.engine().await;
        async move {
            for n in 0..500 {
                let batch = vec![
                    item("log.a", n.to_string()),
                    item("log.too.deep", "no"),
                    item("log.b", n.to_string()),
                ];
                append(&engine, batch, AppendMode::Each).await;
                tokio::task::yield_now().await;
            }
        }
    });
    let (mut out, mut cancelled, start) = (Vec::new(), 0, Instant::now());
    while out.len() < 1_000 {
        // Every other call is given no time at all.
        tokio::select! {
            biased;
            followed = reader.next(Credit { items: 7, bytes: 5 }, &mut out) => {
                assert!(matches!(followed.unwrap(), Followed::Events { added: 1..=7, .. }));
            }
            () = tokio::task::yield_now() => {
                cancelled += 1;
                if cancelled % 1_000 == 0 {
                    // Who only spins keeps virtual time from moving, and with it what waits.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    let waited = start.elapsed() < PATIENCE;
                    assert!(waited, "only {} of 1 000 events came", out.len());
                }
            }
        }
    }
    writer.await.unwrap();
    assert!(cancelled > 0, "no call was cancelled, so nothing was tried");
    let expected: Vec<String> = (0..500)
        .flat_map(|n| [n.to_string(), n.to_string()])
        .collect();
    assert_eq!(texts(&out), expected);
    assert!(out.is_sorted_by(|a, b| a.seq < b.seq && a.at <= b.at));
    // What it is behind by is said, and reaches nothing at the end.
    let mut again = follow(&engine, Position::First, "log.>").await;
    let (mut seen, mut behind) = (Vec::new(), u64::MAX);
    while behind > 0 {
        match again.next(Credit::items(400), &mut seen).await.unwrap() {
            Followed::Events { behind: now, .. } => behind = now,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen.len(), 1_500);
    assert_eq!(
        engine.topology().inspect().await.unwrap().consumers.len(),
        0,
        "a follower made a consumer"
    );
}
