//! Commits, scans and watches: E6 to E8.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smol_str::SmolStr;
use tokio::task::JoinSet;
use trunkline::ErrorKind;
use trunkline::core::engine::{
    Commit, Committed, Credit, Engine, Entry, Expectation, Op, StateKey, Watched,
};

use super::super::Trial;
use super::{key, name};

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

pub(in crate::contract) async fn e6_a_commit_happens_whole_or_not_at_all(trial: Trial) {
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
    // One change alone is known again as well, whether or not its expectation still holds.
    let again = commit(&other, "8", vec![], vec![put("a", "4", Absent)]).await;
    assert_eq!(again, Committed::Duplicate);
    let last = done(commit(&engine, "8b", vec![], vec![put("a", "5", Any)]).await);
    for (id, expect) in [("8", Absent), ("8", Rev(last[0])), ("8b", Any)] {
        let again = commit(&other, id, vec![], vec![put("a", "4", expect)]).await;
        assert_eq!(again, Committed::Duplicate, "{id}, {expect:?}");
    }
    assert_eq!(
        commit(&other, "8c", vec![], vec![put("a", "6", Rev(back[0]))]).await,
        conflict("a", Some(last[0]))
    );
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

pub(in crate::contract) async fn e6_racing_commits_behind_one_fence_have_one_winner(trial: Trial) {
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

pub(in crate::contract) async fn e7_a_scan_has_everything_up_to_its_revision(trial: Trial) {
    let (writer, reader) = (trial.engine().await, trial.engine().await);
    let first = commit(
        &writer,
        "first",
        vec![],
        vec![put("k.0", "", Expectation::Absent)],
    );
    let mut written = vec![done(first.await)[0]];
    let writing = tokio::spawn(async move {
        for n in 1..300 {
            let key = format!("k.{n}");
            let ops = vec![put(&key, "", Expectation::Absent)];
            written.push(done(commit(&writer, &key, vec![], ops).await)[0]);
            tokio::task::yield_now().await;
        }
        written
    });
    let mut scans = Vec::new();
    while !writing.is_finished() {
        let (bucket, below) = (name("bucket"), key("k"));
        let state = reader.state();
        let page = state.scan(&bucket, Some(&below), None, 0, Credit::items(1_000));
        let page = page.await.unwrap();
        scans.push((page.rev, page.entries.len()));
        tokio::task::yield_now().await;
    }
    let written = writing.await.unwrap();
    for (rev, found) in scans {
        let there = written.iter().filter(|written| **written <= rev).count();
        assert!(
            found >= there,
            "{found} keys as of {rev}, when there were {there}"
        );
    }
}

pub(in crate::contract) async fn e7_a_scan_pages_through_everything_written(trial: Trial) {
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

pub(in crate::contract) async fn e8_a_watch_misses_nothing(trial: Trial) {
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
    // Every change, also when it comes while nobody asks.
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
    // A watch that begins after a revision is told what came after it and nothing before. What a
    // later change of the same key has replaced may be left out: an engine may keep one a key.
    let mut late = engine
        .state()
        .watch(&bucket, Some(&prefix), last)
        .await
        .unwrap();
    let mut rest = Vec::new();
    while rest.last().is_none_or(|last| last != "caught up") {
        rest.push(told(late.next().await.unwrap()));
    }
    let full = [
        "put w.a 3",
        "deleted w.b",
        "put w.c 1",
        "put w.a 4",
        "expired w.c",
        "caught up",
    ];
    let mut further = full.iter();
    let is_in_order = rest.iter().all(|told| further.any(|change| change == told));
    assert!(is_in_order, "{rest:?} is no part of {full:?} in its order");
    for latest in ["deleted w.b", "put w.a 4", "expired w.c"] {
        assert!(rest.iter().any(|told| told == latest), "{latest}: {rest:?}");
    }
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
