//! Changing a stream that is in use: E11.

use std::sync::Arc;

use trunkline::core::engine::{
    AppendMode, Batch, Change, Credit, Engine, Fetched, Position, Retention, Settle, StreamSpec,
    StreamState,
};
use trunkline::core::plan::is_ours;
use trunkline::{ErrorKind, Filter};

use super::super::Trial;
use super::{append, consumer, fill, item, name, with_consumer};

async fn update(engine: &Arc<dyn Engine>, spec: StreamSpec) -> Result<(), ErrorKind> {
    let updated = engine
        .topology()
        .apply(vec![Change::UpdateStream(spec)])
        .await;
    updated.map_err(|error| error.kind())
}

async fn log(engine: &Arc<dyn Engine>) -> StreamState {
    let found = engine.topology().inspect().await.unwrap().streams;
    let mut logs = found
        .into_iter()
        .filter(|state| state.spec.name.as_str() == "LOG");
    logs.next().unwrap()
}

pub(in crate::contract) async fn e11_a_stream_is_updated_in_place(trial: Trial) {
    let engine = with_consumer(&trial).await;
    let filters = |text: &str| -> Vec<Filter> {
        let filters = text.split_whitespace();
        filters.map(|filter| Filter::new(filter).unwrap()).collect()
    };
    let other = StreamSpec::new(name("OTHER"), filters("other.>"));
    let create = vec![Change::CreateStream(other.clone())];
    engine.topology().apply(create).await.unwrap();
    fill(&engine, "log.a", 5).await;
    fill(&engine, "log.b", 1).await;
    let (mut feed, settler) = engine.consume().open(&consumer("work")).await.unwrap();
    let mut leased = Vec::new();
    let fetched = feed.fetch(Credit::items(2), &mut leased).await.unwrap();
    assert!(matches!(fetched, Fetched::Deliveries(_)), "{fetched:?}");
    let acked = leased.remove(0).token;
    assert_eq!(acked.seq, 1);
    let mut back = vec![(acked, Settle::Ack)];
    back.extend(leased.drain(..).map(|left| (left.token, Settle::GiveBack)));
    settler.settle(back.into(), true).completed().await.unwrap();

    // What is not there, what others have, and what would be another kind of stream is refused.
    let found = log(&engine).await.spec;
    let missing = StreamSpec::new(name("MISSING"), filters("missing.>"));
    let greedy = StreamSpec {
        subjects: filters("log.> other.x"),
        ..found.clone()
    };
    let queue = StreamSpec {
        retention: Retention::WorkQueue,
        ..found.clone()
    };
    for (spec, kind) in [
        (missing, ErrorKind::NoSuchStream),
        (greedy, ErrorKind::Overlap),
        (queue, ErrorKind::Unsupported),
    ] {
        assert_eq!(update(&engine, spec).await, Err(kind));
    }
    assert_eq!(log(&engine).await.spec, found);

    // Other subjects and limits: events, sequences and progress go on.
    let mut spec = StreamSpec {
        subjects: filters("log.a more.>"),
        max_events: Some(100),
        ..found
    };
    spec.metadata.insert("team".to_owned(), "orders".to_owned());
    assert_eq!(update(&engine, spec.clone()).await, Ok(()));
    assert_eq!(update(&engine, spec.clone()).await, Ok(()), "once more");
    let state = log(&engine).await;
    assert_eq!(
        (
            &state.spec.subjects,
            state.spec.max_events,
            state.events,
            state.tail
        ),
        (&spec.subjects, Some(100), 6, 7)
    );
    assert_eq!(
        state.spec.metadata.get("team").map(String::as_str),
        Some("orders")
    );
    assert!(is_ours(&state.spec));
    assert_eq!(
        append(
            &engine,
            vec![item("log.b", "x"), item("more.b", "x"), item("log.a", "x")],
            AppendMode::Each
        )
        .await,
        [Err(ErrorKind::NotStored), Ok(7), Ok(8)]
    );
    // The same feed goes on: the acknowledged one does not return, of the new ones those come
    // that match, and what is stored on a former subject stays.
    let mut got = Vec::new();
    while got.last() != Some(&8) {
        let mut out = Vec::new();
        feed.fetch(Credit::items(10), &mut out).await.unwrap();
        let batch = out.iter().map(|got| (got.token, Settle::Ack));
        let batch: Batch<_> = batch.collect();
        got.extend(batch.iter().map(|(token, _)| token.seq));
        settler.settle(batch, true).completed().await.unwrap();
    }
    got.sort_unstable();
    assert_eq!(got, [2, 3, 4, 5, 6, 8]);
    let backlog = engine.topology().backlog(&consumer("work")).await.unwrap();
    assert_eq!((backlog.pending, backlog.in_flight), (0, 0));
    let page = engine
        .log()
        .read(
            &name("LOG"),
            Position::First,
            &filters("log.>"),
            Credit::items(100),
        )
        .await
        .unwrap();
    let seqs: Vec<u64> = page.events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4, 5, 6, 8]);

    // A lower limit takes the oldest, and a full stream refuses once it is told to.
    let tight = StreamSpec {
        max_events: Some(3),
        ..spec.clone()
    };
    assert_eq!(update(&engine, tight.clone()).await, Ok(()));
    let state = log(&engine).await;
    assert_eq!((state.events, state.first, state.tail), (3, 6, 9));
    let refusing = StreamSpec {
        retention: Retention::RefuseWhenFull,
        ..tight.clone()
    };
    assert_eq!(update(&engine, refusing).await, Ok(()));
    let one = || vec![item("log.a", "x")];
    let full = append(&engine, one(), AppendMode::Each).await;
    assert_eq!(full, [Err(ErrorKind::StreamFull)]);
    assert_eq!(update(&engine, tight).await, Ok(()));
    assert_eq!(append(&engine, one(), AppendMode::Each).await, [Ok(9)]);
    assert_eq!(log(&engine).await.first, 7);

    // What was given up is free for others, and a stream that is gone is not made again.
    let wider = StreamSpec {
        subjects: filters("other.> log.b"),
        ..other
    };
    assert_eq!(update(&engine, wider.clone()).await, Ok(()));
    let gone = vec![Change::DeleteStream(name("OTHER"))];
    engine.topology().apply(gone).await.unwrap();
    assert_eq!(update(&engine, wider).await, Err(ErrorKind::NoSuchStream));
}
