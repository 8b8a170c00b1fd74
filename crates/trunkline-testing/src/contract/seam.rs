//! Promises of the seam itself, run directly against an engine: E2 to E10.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;
use smol_str::SmolStr;
use tokio::task::JoinSet;
use tokio::time::Instant;
use trunkline::core::engine::{
    Append, AppendMode, Change, Commit, Committed, ConsumerRef, ConsumerSpec, Credit, Delivery,
    Engine, Entry, Expect, Expectation, Feed, Fetched, Follow, Followed, Heard, Message, Op,
    Outcome, Position, Settle, StateKey, StoredEvent, StreamSpec, Watched,
};
use trunkline::core::wire::Body;
use trunkline::core::{Headers, Subject};
use trunkline::{ErrorKind, EventId, Filter, Link, Name};

use super::Trial;

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

pub(super) async fn e2_append_keeps_expectations_and_atomic_batches_whole(trial: Trial) {
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

async fn follow(engine: &Arc<dyn Engine>, from: Position, filter: &str) -> Box<dyn Follow> {
    engine
        .log()
        .follow(&name("LOG"), from, &[Filter::new(filter).unwrap()])
        .await
        .unwrap()
}

pub(super) async fn e3_follow_has_no_gaps_and_dropping_it_loses_nothing(trial: Trial) {
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
    let mut out = Vec::new();
    let mut cancelled = 0;
    while out.len() < 1_000 {
        // Every other call is given no time at all.
        tokio::select! {
            biased;
            followed = reader.next(Credit { items: 7, bytes: 5 }, &mut out) => {
                assert!(matches!(followed.unwrap(), Followed::Events { added: 1..=7, .. }));
            }
            () = tokio::task::yield_now() => cancelled += 1,
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

const ACK_WAIT: Duration = Duration::from_secs(2);

fn consumer(text: &str) -> ConsumerRef {
    ConsumerRef {
        stream: name("LOG"),
        consumer: name(text),
    }
}

async fn with_consumer(trial: &Trial) -> Arc<dyn Engine> {
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

fn seqs(deliveries: &[Delivery]) -> Vec<u64> {
    deliveries
        .iter()
        .map(|delivery| delivery.event.seq)
        .collect()
}

pub(super) async fn e4_a_lease_that_ends_moves_the_event_to_whoever_waits(trial: Trial) {
    let engine = with_consumer(&trial).await;
    let open = async || engine.consume().open(&consumer("work")).await.unwrap();
    let ((mut first, _), (mut second, settler)) = (open().await, open().await);
    // Both wait before there is anything; the one that gets it then dies without a word.
    let dying = tokio::spawn(async move { seqs(&fetch(&mut first, 10).await) });
    tokio::task::yield_now().await;
    let waiting = tokio::spawn(async move {
        let delivery = fetch(&mut second, 10).await.remove(0);
        (second, delivery)
    });
    tokio::task::yield_now().await;
    let start = Instant::now();
    fill(&engine, "log.a", 1).await;
    let (mut second, delivery) = match dying.await {
        Ok(seqs) => {
            assert_eq!(seqs, [1]);
            let moved = waiting.await.unwrap();
            assert!(
                start.elapsed() >= ACK_WAIT / 2,
                "it was delivered to two at once"
            );
            moved
        }
        Err(error) => panic!("{error}"),
    };
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

pub(super) async fn e4_leases_are_extended_given_back_and_never_settled_twice(trial: Trial) {
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
    let deliveries = fetch(&mut feed, 3).await;
    assert_eq!(seqs(&deliveries), [1, 2, 3]);
    let [a, b, c] = [0, 1, 2].map(|index| deliveries[index].token);
    let stale = Some(ErrorKind::StaleLease);
    assert_eq!(
        settle(&[(a, Settle::Ack), (a, Settle::Ack), (b, Settle::GiveBack)]).await,
        [None, stale, None]
    );
    let again = fetch(&mut feed, 10).await;
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
    let held = fetch(&mut feed, 6).await;
    assert_eq!(fetch(&mut other, 100).await.len() + held.len(), 10);
    let mut out = Vec::new();
    tokio::select! {
        biased;
        fetched = other.fetch(Credit::items(1), &mut out) => panic!("{fetched:?} beyond the limit"),
        () = tokio::task::yield_now() => {}
    }
    assert_eq!(settle(&[(held[0].token, Settle::Ack)]).await, [None]);
    assert_eq!(fetch(&mut other, 100).await.len(), 1);
}

pub(super) async fn e4_a_cancelled_fetch_leases_nothing(trial: Trial) {
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

pub(super) async fn e5_a_work_queue_forgets_what_is_done(trial: Trial) {
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
    let deliveries = fetch(&mut feed, 3).await;
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

fn put(key_text: &str, value: &str, expect: Expectation) -> Op {
    Op::Put {
        key: key(key_text),
        value: Bytes::copy_from_slice(value.as_bytes()),
        expect,
        ttl: None,
    }
}

fn delete(key_text: &str, expect: Expectation) -> Op {
    Op::Delete {
        key: key(key_text),
        expect,
    }
}

async fn commit(
    engine: &Arc<dyn Engine>,
    id: &str,
    fences: Vec<(&str, Expectation)>,
    ops: Vec<Op>,
) -> Committed {
    let fences = fences
        .into_iter()
        .map(|(text, expect)| (key(text), expect))
        .collect();
    engine
        .state()
        .commit(
            &name("bucket"),
            Commit {
                id: SmolStr::new(id),
                fences,
                ops,
            },
        )
        .completed()
        .await
        .unwrap()
}

fn done(committed: Committed) -> Vec<u64> {
    match committed {
        Committed::Done(revs) => revs,
        other => panic!("{other:?}"),
    }
}

/// Every entry below a prefix, read in pages.
async fn scan(
    engine: &Arc<dyn Engine>,
    prefix: Option<&str>,
    at_least: u64,
    page: usize,
) -> Vec<Entry> {
    let prefix = prefix.map(key);
    let (mut entries, mut after) = (Vec::new(), None);
    loop {
        let bucket = name("bucket");
        let credit = Credit::items(page);
        let found = engine
            .state()
            .scan(&bucket, prefix.as_ref(), after.as_ref(), at_least, credit)
            .await
            .unwrap();
        assert!(found.entries.len() <= page && found.rev >= at_least);
        entries.extend(found.entries);
        match found.next {
            Some(next) => after = Some(next),
            None => return entries,
        }
    }
}

pub(super) async fn e6_a_commit_happens_whole_or_not_at_all(trial: Trial) {
    use Expectation::{Absent, Any, Rev};
    let (engine, other) = (trial.engine().await, trial.engine().await);
    let revs = done(
        commit(
            &engine,
            "1",
            vec![("owner", Absent)],
            vec![put("owner", "me", Any), put("a", "1", Absent)],
        )
        .await,
    );
    assert!(revs[0] < revs[1]);
    let owner = revs[0];
    let conflict = |text: &str, found| Committed::Conflict {
        key: key(text),
        found,
    };
    // Whichever expectation fails, of a fence or of any change, nothing at all happens.
    let fenced = |expect| vec![("owner", expect)];
    let cases = [
        (
            "2",
            fenced(Rev(owner + 100)),
            vec![put("a", "2", Any)],
            conflict("owner", Some(owner)),
        ),
        (
            "3",
            fenced(Absent),
            vec![put("a", "2", Any)],
            conflict("owner", Some(owner)),
        ),
        (
            "4",
            vec![("nobody", Rev(owner))],
            vec![put("a", "2", Any)],
            conflict("nobody", None),
        ),
        (
            "5",
            fenced(Rev(owner)),
            vec![put("b", "2", Any), put("a", "2", Absent)],
            conflict("a", Some(revs[1])),
        ),
        (
            "6",
            fenced(Rev(owner)),
            vec![delete("owner", Any), delete("a", Rev(owner))],
            conflict("a", Some(revs[1])),
        ),
    ];
    for (id, fences, ops, expected) in cases {
        assert_eq!(
            commit(&other, id, fences, ops).await,
            expected,
            "commit {id}"
        );
        let found: Vec<_> = scan(&engine, None, 0, 10)
            .await
            .into_iter()
            .map(|entry| (entry.key, entry.value))
            .collect();
        assert_eq!(
            found,
            [
                (key("a"), Bytes::from("1")),
                (key("owner"), Bytes::from("me"))
            ],
            "commit {id} did something"
        );
    }
    // A conflict is no commit: its id may be used again. A repeat is recognised whatever its fences say by now.
    let moved = done(
        commit(
            &other,
            "2",
            fenced(Rev(owner)),
            vec![put("owner", "you", Any), delete("a", Any)],
        )
        .await,
    );
    assert!(
        moved.iter().all(|rev| *rev > revs[1]),
        "a revision was used twice"
    );
    let repeated = commit(
        &engine,
        "2",
        fenced(Rev(owner)),
        vec![put("owner", "you", Any), delete("a", Any)],
    )
    .await;
    assert_eq!(repeated, Committed::Duplicate);
    assert_eq!(
        commit(&engine, "7", fenced(Rev(owner)), vec![put("a", "3", Any)]).await,
        conflict("owner", Some(moved[0]))
    );
    // A deleted key is absent, and gets a revision that no key ever had.
    let back = done(commit(&engine, "8", vec![], vec![put("a", "4", Absent)]).await);
    assert!(back[0] > moved[1]);
    let large = vec![b'x'; engine.limits().max_value + 1];
    let large = Op::Put {
        key: key("large"),
        value: large.into(),
        expect: Any,
        ttl: None,
    };
    let ops = vec![put("b", "1", Any), large];
    let refused = Commit {
        id: "9".into(),
        fences: vec![],
        ops,
    };
    let refused = engine
        .state()
        .commit(&name("bucket"), refused)
        .completed()
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    assert_eq!(scan(&engine, Some("b"), 0, 10).await, []);
}

pub(super) async fn e6_racing_commits_behind_one_fence_have_one_winner(trial: Trial) {
    const RACERS: usize = 16;
    let engine = trial.engine().await;
    let mut fence = done(
        commit(
            &engine,
            "start",
            vec![],
            vec![put("fence", "", Expectation::Absent)],
        )
        .await,
    )[0];
    for round in 0..50 {
        let mut racers = JoinSet::new();
        for racer in 0..RACERS {
            let engine = trial.engine().await;
            racers.spawn(async move {
                let ops = vec![
                    put("fence", "", Expectation::Any),
                    put("winner", &racer.to_string(), Expectation::Any),
                ];
                let id = format!("{round}-{racer}");
                (
                    racer,
                    commit(&engine, &id, vec![("fence", Expectation::Rev(fence))], ops).await,
                )
            });
        }
        let mut winners = Vec::new();
        for (racer, committed) in racers.join_all().await {
            match committed {
                Committed::Done(revs) => winners.push((racer, revs)),
                Committed::Conflict { .. } => {}
                Committed::Duplicate => panic!("a commit was taken for another"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        fence = winners[0].1[0];
        let stands = scan(&engine, Some("winner"), winners[0].1[1], 10).await;
        assert_eq!(stands[0].value, winners[0].0.to_string());
    }
}

pub(super) async fn e7_a_scan_pages_through_everything_written(trial: Trial) {
    let (writer, reader) = (trial.engine().await, trial.engine().await);
    let mut expected = BTreeMap::new();
    for n in 0..300 {
        // Keys between `a` and `a.…` in the order of bytes, which are not below `a`.
        let text = match n % 3 {
            0 => format!("a.{n}"),
            1 => format!("a-{n}"),
            _ => format!("b.{n}.c"),
        };
        let revs = done(
            commit(
                &writer,
                &n.to_string(),
                vec![],
                vec![put(&text, &text, Expectation::Absent)],
            )
            .await,
        );
        expected.insert(key(&text), revs[0]);
        // Whoever wrote knows the revision, and asks for it: another connection sees it at once.
        let seen = scan(&reader, Some(&text), revs[0], 10).await;
        assert_eq!(seen.iter().map(|entry| entry.rev).collect::<Vec<_>>(), revs);
    }
    done(
        commit(
            &writer,
            "a",
            vec![],
            vec![put("a", "a", Expectation::Absent)],
        )
        .await,
    );
    for page in [1, 7, 100, 1_000] {
        for prefix in [None, Some("a"), Some("b"), Some("c")] {
            let found = scan(&reader, prefix, 0, page).await;
            let prefix = prefix.map(key);
            let mut wanted: Vec<StateKey> = expected
                .keys()
                .filter(|key| key.is_below(prefix.as_ref()))
                .cloned()
                .collect();
            wanted.extend(Some(key("a")).filter(|key| key.is_below(prefix.as_ref())));
            wanted.sort_unstable();
            let keys: Vec<StateKey> = found.iter().map(|entry| entry.key.clone()).collect();
            assert_eq!(keys, wanted, "{prefix:?} in pages of {page}");
            for entry in found {
                assert_eq!(entry.value, entry.key.as_str());
                assert!(
                    entry.at <= trial.now()
                        && expected.get(&entry.key).is_none_or(|rev| *rev == entry.rev)
                );
            }
        }
    }
}

pub(super) async fn e8_a_watch_misses_nothing(trial: Trial) {
    use Expectation::Any;
    let (engine, writer) = (trial.engine().await, trial.engine().await);
    done(
        commit(
            &writer,
            "0",
            vec![],
            vec![
                put("w.a", "1", Any),
                put("x", "no", Any),
                put("w.b", "1", Any),
            ],
        )
        .await,
    );
    let last = done(commit(&writer, "1", vec![], vec![put("w.a", "2", Any)]).await)[0];
    let prefix = key("w");
    let bucket = name("bucket");
    let mut watch = engine
        .state()
        .watch(&bucket, Some(&prefix), 0)
        .await
        .unwrap();
    let told = |watched: Watched| match watched {
        Watched::Put(entry) => format!(
            "put {} {}",
            entry.key,
            String::from_utf8_lossy(&entry.value)
        ),
        Watched::Deleted { key, .. } => format!("deleted {key}"),
        Watched::Expired { key, .. } => format!("expired {key}"),
        Watched::CaughtUp(_) => "caught up".to_owned(),
    };
    let mut present = Vec::new();
    for _ in 0..3 {
        present.push(told(watch.next().await.unwrap()));
    }
    assert_eq!(present, ["put w.b 1", "put w.a 2", "caught up"]);
    // Every change, not only the last of each key, also when it comes while nobody asks.
    done(
        commit(
            &writer,
            "2",
            vec![],
            vec![
                put("w.a", "3", Any),
                delete("w.b", Any),
                put("x", "no", Any),
            ],
        )
        .await,
    );
    let short = Op::Put {
        key: key("w.c"),
        value: "1".into(),
        expect: Any,
        ttl: Some(Duration::from_secs(1)),
    };
    done(commit(&writer, "3", vec![], vec![short, put("w.a", "4", Any)]).await);
    let mut changes = Vec::new();
    for _ in 0..4 {
        changes.push(told(watch.next().await.unwrap()));
    }
    assert_eq!(
        changes,
        ["put w.a 3", "deleted w.b", "put w.c 1", "put w.a 4"]
    );
    let waiting = tokio::spawn(async move { (told(watch.next().await.unwrap()), watch) });
    let (expired, mut watch) = waiting.await.unwrap();
    assert_eq!(expired, "expired w.c");
    assert_eq!(scan(&engine, Some("w"), 0, 10).await.len(), 1);
    // A watch that begins after a revision is told what came after it and nothing before.
    let mut late = engine
        .state()
        .watch(&bucket, Some(&prefix), last)
        .await
        .unwrap();
    let mut rest = Vec::new();
    while rest.last().is_none_or(|last| last != "caught up") {
        rest.push(told(late.next().await.unwrap()));
    }
    assert_eq!(
        rest,
        [
            "put w.a 3",
            "deleted w.b",
            "put w.c 1",
            "put w.a 4",
            "expired w.c",
            "caught up"
        ]
    );
    // Cancelling a call loses nothing.
    for n in 10..30 {
        tokio::select! {
            biased;
            watched = watch.next() => panic!("{watched:?}"),
            () = tokio::task::yield_now() => {}
        }
        done(
            commit(
                &writer,
                &n.to_string(),
                vec![],
                vec![put("w.n", &n.to_string(), Any)],
            )
            .await,
        );
        assert_eq!(told(watch.next().await.unwrap()), format!("put w.n {n}"));
    }
}

pub(super) async fn e9_live_groups_share_and_askers_learn_that_nobody_listens(trial: Trial) {
    let (sender, receiver) = (trial.engine().await, trial.engine().await);
    let filters = [
        Filter::new("work.*").unwrap(),
        Filter::new("work.>").unwrap(),
    ];
    let group = name("group");
    let mut members = Vec::new();
    for share in [Some(&group), Some(&group), None] {
        members.push(
            receiver
                .live()
                .listen(&filters, share, 1_000)
                .await
                .unwrap(),
        );
    }
    let message = |subject: &str, reply: Option<&str>, n: usize| Message {
        subject: Subject::new(subject).unwrap(),
        reply: reply.map(|reply| Subject::new(reply).unwrap()),
        headers: Headers::new(),
        body: Body::Bytes(n.to_string().into()),
    };
    let route = sender.live().route(&Subject::new("work.a").unwrap());
    for n in 0..100 {
        // By either way the same.
        match n % 2 {
            0 => sender
                .live()
                .send(smallvec![message("work.a", None, n)])
                .completed()
                .await
                .unwrap(),
            _ => route
                .send(message("work.a", None, n))
                .completed()
                .await
                .unwrap(),
        }
    }
    let mut got: Vec<Vec<usize>> = Vec::new();
    let mut alone = Vec::new();
    while alone.len() < 100 {
        assert!(matches!(
            members[2].receive(1_000, &mut alone).await,
            Heard::Messages(_)
        ));
    }
    for member in &mut members[..2] {
        let mut out = Vec::new();
        assert!(
            matches!(member.receive(1_000, &mut out).await, Heard::Messages(_)),
            "a member was given nothing"
        );
        let number = |message: &Message| {
            String::from_utf8_lossy(&message.body.to_bytes().unwrap())
                .parse()
                .unwrap()
        };
        got.push(out.iter().map(number).collect());
    }
    assert_eq!(alone.len(), 100);
    assert!(got.iter().all(|numbers| numbers.is_sorted()));
    let mut all: Vec<usize> = got.concat();
    all.sort_unstable();
    assert_eq!(
        all,
        (0..100).collect::<Vec<_>>(),
        "each message goes to one of those who share"
    );

    let inbox = [Filter::new("inbox.1").unwrap()];
    let mut asker = sender.live().listen(&inbox, None, 10).await.unwrap();
    let mut out = Vec::new();
    sender
        .live()
        .send(smallvec![message("nobody.here", Some("inbox.1"), 0)])
        .completed()
        .await
        .unwrap();
    assert_eq!(asker.receive(10, &mut out).await, Heard::NoResponders);
    // With a listener it is asked, and sees where to answer; when that is gone, nobody is there again.
    let mut answering = receiver
        .live()
        .listen(&[Filter::new("nobody.*").unwrap()], None, 10)
        .await
        .unwrap();
    sender
        .live()
        .send(smallvec![message("nobody.here", Some("inbox.1"), 1)])
        .completed()
        .await
        .unwrap();
    assert_eq!(answering.receive(10, &mut out).await, Heard::Messages(1));
    let reply = out.remove(0).reply.unwrap();
    receiver
        .live()
        .send(smallvec![message(reply.as_str(), None, 2)])
        .completed()
        .await
        .unwrap();
    assert_eq!(asker.receive(10, &mut out).await, Heard::Messages(1));
    drop(answering);
    let route = sender.live().route(&Subject::new("nobody.here").unwrap());
    route
        .send(message("nobody.here", Some("inbox.1"), 3))
        .completed()
        .await
        .unwrap();
    assert_eq!(asker.receive(10, &mut out).await, Heard::NoResponders);
}

pub(super) async fn e10_a_closed_engine_says_so(trial: Trial) {
    let engine = with_consumer(&trial).await;
    let mut link = engine.link();
    assert_eq!(*link.borrow(), Link::Connected);
    let mut follow = follow(&engine, Position::New, "log.>").await;
    let (mut feed, settler) = engine.consume().open(&consumer("work")).await.unwrap();
    let mut listener = engine
        .live()
        .listen(&[Filter::all()], None, 10)
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
