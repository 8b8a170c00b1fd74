//! On the bus in memory; the contract suite runs the same paths through consumers on every engine.

mod left;

use std::collections::BTreeSet;

use bytes::Bytes;
use smallvec::smallvec;
use trunkline_core::engine::{
    Append, AppendMode, Commit, Committed, Expect, Op, Outcome, StateKey,
};
use trunkline_core::wire::Body;
use trunkline_core::{Headers, Name, Subject, Timestamp};

use super::*;

async fn bus() -> Bus {
    Bus::connect("memory:").source("/ops").await.unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

fn entry(consumer: &str, seq: Seq, event_type: &str) -> Entry {
    let body = format!(
        r#"{{"specversion":"1.0","id":"e{seq}","source":"/s","type":"{event_type}","data":{seq}}}"#
    );
    let at = |seconds: u64| {
        Timestamp::from_nanos(1_700_000_000_000_000_000)
            .plus(std::time::Duration::from_secs(seconds))
    };
    Entry {
        consumer: name(consumer),
        generation: 0,
        stream: name("EVENTS"),
        incarnation: None,
        seq,
        stored_at: None,
        subject: Subject::new(format!("events.{event_type}")).unwrap(),
        key: None,
        reason: "failed".into(),
        error: format!("no {seq}"),
        causes: Vec::new(),
        failures: 5,
        starts: 0,
        attempts: Vec::new(),
        first_failure: at(0),
        last_failure: at(seq),
        service: None,
        version: "0.1.0".into(),
        previous: None,
        headers: Headers::new(),
        body: Body::Bytes(Bytes::from(body)),
    }
}

async fn buried(bus: &Bus, entry: &Entry) -> Seq {
    let (_, seq) = bury(&bus.inner, entry).await.unwrap();
    let event = bus.dead_letters().event(entry).ok();
    let record = Record::dead(entry, seq, event.as_deref());
    note(bus, entry, &record).await;
    seq
}

/// Notes down how the dead letter of an entry stands, as its consumer does.
async fn note(bus: &Bus, entry: &Entry, record: &Record) {
    let place = Place::of(entry);
    let noted = keys::write(&bus.inner, &place, entry.seq, record, Expectation::Any).await;
    assert!(noted.unwrap());
}

/// Puts bytes into the dead-letter stream as nobody should.
async fn stray(bus: &Bus, subject: &str, headers: Headers) -> Seq {
    let append = Append {
        subject: Subject::new(subject).unwrap(),
        key: None,
        id: None,
        expect: Expect::Any,
        headers,
        body: Body::Bytes(Bytes::from_static(b"\xff")),
    };
    let (log, stream) = (bus.inner.engine.log(), &bus.inner.settings.dead_letters);
    let outcomes = log
        .append(stream, smallvec![append], AppendMode::Each)
        .completed()
        .await
        .unwrap();
    let [Outcome::Stored { seq, .. }] = outcomes.as_slice() else {
        panic!("{outcomes:?}")
    };
    *seq
}

async fn put(bus: &Bus, key: &str, value: &[u8]) {
    let op = Op::Put {
        key: StateKey::new(key).unwrap(),
        value: Bytes::copy_from_slice(value),
        expect: Expectation::Any,
        ttl: None,
    };
    let commit = Commit {
        id: key.into(),
        fences: Vec::new(),
        ops: vec![op],
    };
    let state = bus.inner.engine.state();
    let committed = state
        .commit(&name("trunkline"), commit)
        .completed()
        .await
        .unwrap();
    assert!(matches!(committed, Committed::Done(_)));
}

async fn stored(bus: &Bus) -> Vec<Seq> {
    let (log, stream) = (bus.inner.engine.log(), &bus.inner.settings.dead_letters);
    let page = log
        .read(
            stream,
            Position::First,
            &[Filter::all()],
            Credit::items(1_000),
        )
        .await
        .unwrap();
    page.events.iter().map(|event| event.seq).collect()
}

async fn listed(bus: &Bus, selection: Selection) -> Vec<String> {
    let page = Page {
        oldest_first: true,
        ..Page::default()
    };
    let list = bus.dead_letters().list(&selection, &page).await.unwrap();
    assert_eq!((list.total, list.next), (list.letters.len(), None));
    list.letters
        .iter()
        .map(|letter| format!("{} {}", letter.id, letter.stands()))
        .collect()
}

#[tokio::test]
async fn an_entry_is_buried_once_and_one_of_a_later_generation_behind_it() {
    let bus = bus().await;
    let first = entry("billing", 7, "a");
    let (subject, seq) = bury(&bus.inner, &first).await.unwrap();
    assert_eq!(subject.as_str(), "dlq.EVENTS.billing.7");
    // Another story of the same death: the first one stays.
    let again = Entry {
        error: "another".to_owned(),
        ..first.clone()
    };
    assert_eq!(
        bury(&bus.inner, &again).await.unwrap(),
        (subject.clone(), seq)
    );
    let later = Entry {
        generation: 1,
        ..first.clone()
    };
    let (_, behind) = bury(&bus.inner, &later).await.unwrap();
    assert!(behind > seq);
    for (entry, place) in [(&first, seq), (&later, behind), (&first, seq)] {
        assert_eq!(bury(&bus.inner, entry).await.unwrap().1, place);
    }
    let entries = bury::entries(&bus.inner, &subject).await.unwrap();
    let previous: Vec<_> = entries
        .iter()
        .map(|stored| read_entry(&bus.inner, stored).unwrap().previous)
        .collect();
    assert_eq!(previous, [None, Some(seq)]);
}

#[tokio::test]
async fn an_event_of_a_stream_that_was_made_anew_is_another_dead_letter() {
    let bus = bus().await;
    let of = |incarnation: &str| Entry {
        incarnation: Some(incarnation.into()),
        ..entry("billing", 7, "a")
    };
    let (old, new) = (
        buried(&bus, &of("one")).await,
        buried(&bus, &of("two")).await,
    );
    assert!(new > old);
    let letter = bus
        .dead_letters()
        .find(&id("billing/EVENTS/7"))
        .await
        .unwrap();
    assert_eq!(letter.record.unwrap().entry, new);
}

#[tokio::test]
async fn lists_are_selected_sorted_and_paged() {
    let bus = bus().await;
    for (consumer, seq, event_type) in [
        ("billing", 3, "order.placed"),
        ("audit", 1, "order.placed"),
        ("billing", 20, "order.paid"),
        ("billing", 100, "mail.sent"),
    ] {
        let mut entry = entry(consumer, seq, event_type);
        if seq == 100 {
            entry.reason = "panicked".into();
        }
        buried(&bus, &entry).await;
    }
    // Keys of other kinds lie between.
    for other in [
        "audit.EVENTS.0.P16.p01.owner",
        "audit.EVENTS.0.s7.ab.1.body",
        "billing.EVENTS.def",
        "billing.EVENTS.0.dlq",
        "billing.EVENTS.0.dlq.3.note",
        "billing.EVENTS.0.dlq.03",
        "zeta",
    ] {
        put(&bus, other, b"{}").await;
    }
    let all = [
        "audit/EVENTS/1 dead",
        "billing/EVENTS/3 dead",
        "billing/EVENTS/20 dead",
        "billing/EVENTS/100 dead",
    ];
    assert_eq!(listed(&bus, Selection::new()).await, all);
    let filter = |text| Filter::new(text).unwrap();
    for (selection, expected) in [
        (Selection::new().consumer(name("audit")), &all[..1]),
        (Selection::new().consumer(name("nobody")), &[]),
        (Selection::new().stream(name("EVENTS")), &all),
        (Selection::new().stream(name("COMMANDS")), &[]),
        (
            Selection::new()
                .consumer(name("billing"))
                .stream(name("EVENTS")),
            &all[1..],
        ),
        (Selection::new().event_type(filter("order.*")), &all[..3]),
        (
            Selection::new().event_type(filter("order.paid")),
            &all[2..3],
        ),
        (Selection::new().reason("panicked"), &all[3..]),
        (
            Selection::new().since(entry("x", 20, "a").last_failure),
            &all[2..],
        ),
        (Selection::new().state(Stands::Replayed), &[]),
    ] {
        assert_eq!(
            listed(&bus, selection.clone()).await,
            expected,
            "{selection:?}"
        );
    }
    for oldest_first in [true, false] {
        let mut page = Page {
            limit: 3,
            oldest_first,
            after: None,
        };
        let mut seen = Vec::new();
        loop {
            let list = bus
                .dead_letters()
                .list(&Selection::new(), &page)
                .await
                .unwrap();
            assert_eq!(list.total, 4);
            seen.extend(
                list.letters
                    .iter()
                    .map(|letter| format!("{} dead", letter.id)),
            );
            let Some(next) = list.next else { break };
            page.after = Some(next.to_string().parse().unwrap());
        }
        if !oldest_first {
            seen.reverse();
        }
        assert_eq!(seen, all);
    }
}

#[tokio::test]
async fn what_nobody_noted_down_is_dead_and_gets_its_key_when_it_is_dealt_with() {
    let bus = bus().await;
    let (one, two) = (
        entry("billing", 1, "order.placed"),
        entry("billing", 2, "order.placed"),
    );
    bury(&bus.inner, &one).await.unwrap();
    bury(&bus.inner, &two).await.unwrap();
    assert_eq!(
        listed(&bus, Selection::new()).await,
        ["billing/EVENTS/1 dead", "billing/EVENTS/2 dead"]
    );
    let letters = bus.dead_letters().by("ann");
    let letter = letters.find(&id("billing/EVENTS/1")).await.unwrap();
    assert_eq!(
        letter.record.as_ref().unwrap().event_type.as_deref(),
        Some("order.placed")
    );
    // Two operators at once who both saw no key: one is first, and the event is asked for once.
    let other = bus.dead_letters().by("bob");
    let (a, b) = tokio::join!(letters.replay(&letter), other.replay(&letter));
    let (Changed::Now(now), Changed::Already(already)) = (a.unwrap(), b.unwrap()) else {
        panic!("both, or none")
    };
    assert_eq!((now.replays, &now), (1, &already));
    let again = letters
        .replay(&letters.find(&letter.id).await.unwrap())
        .await;
    assert!(matches!(again.unwrap(), Changed::Already(_)));
    let all = ["billing/EVENTS/1 replaying", "billing/EVENTS/2 dead"];
    assert_eq!(listed(&bus, Selection::new()).await, all);
}

#[tokio::test]
async fn discarding_notes_the_reason_down_and_removes_the_entry() {
    let bus = bus().await;
    for seq in 1..=2 {
        buried(&bus, &entry("billing", seq, "a")).await;
    }
    let letters = bus.dead_letters();
    let letter = letters.find(&id("billing/EVENTS/1")).await.unwrap();
    let discard = Discard::because("a test order");
    let Changed::Now(record) = letters.discard(&letter, &discard).await.unwrap() else {
        panic!("not discarded")
    };
    let State::Discarded { by, reason, .. } = &record.state else {
        panic!("{record:?}")
    };
    assert_eq!((by.as_str(), reason.as_str()), ("/ops", "a test order"));
    assert_eq!(stored(&bus).await, [2]);
    assert_eq!(
        listed(&bus, Selection::new()).await,
        ["billing/EVENTS/2 dead"]
    );
    let dealt_with = Selection::new().state(Stands::Discarded);
    assert_eq!(
        listed(&bus, dealt_with).await,
        ["billing/EVENTS/1 discarded"]
    );
    let shown = letters.show(&letter.id).await.unwrap();
    assert!(shown.stored.is_none() && shown.entry.is_none() && !shown.letter.has_entry);
    for changed in [
        letters.discard(&letter, &discard).await,
        letters.replay(&letter).await,
    ] {
        assert_eq!(changed.unwrap(), Changed::Already(record.clone()));
    }
    // One that is being replayed is let be, unless that is meant.
    let letter = letters.find(&id("billing/EVENTS/2")).await.unwrap();
    assert!(matches!(
        letters.replay(&letter).await.unwrap(),
        Changed::Now(_)
    ));
    assert!(matches!(
        letters.discard(&letter, &discard).await.unwrap(),
        Changed::Already(_)
    ));
    let also = discard.also_replaying();
    assert!(matches!(
        letters.discard(&letter, &also).await.unwrap(),
        Changed::Now(_)
    ));
    assert_eq!(stored(&bus).await, [] as [Seq; 0]);
}

#[tokio::test]
async fn d5_what_cannot_be_read_is_listed_and_hides_nothing() {
    let bus = bus().await;
    buried(&bus, &entry("billing", 1, "a")).await;
    let foreign = stray(&bus, "dlq.anything", Headers::new()).await;
    let unread = stray(&bus, "dlq.EVENTS.billing.9", Headers::new()).await;
    // A good story in a place that is another's.
    let misplaced = stray(
        &bus,
        "dlq.EVENTS.billing.8",
        entry("billing", 7, "a").encode().unwrap(),
    )
    .await;
    // The key of a letter whose entry is there is broken; that of another is of a later version.
    buried(&bus, &entry("billing", 2, "a")).await;
    put(&bus, "billing.EVENTS.0.dlq.2", b"{").await;
    buried(&bus, &entry("billing", 3, "a")).await;
    put(&bus, "billing.EVENTS.0.dlq.3", br#"{"v":2}"#).await;
    let list = bus
        .dead_letters()
        .list(&Selection::new(), &Page::default())
        .await
        .unwrap();
    let ids: BTreeSet<String> = list
        .letters
        .iter()
        .map(|letter| letter.id.to_string())
        .collect();
    let strays = [foreign, unread, misplaced].map(|seq| format!("entry/{seq}"));
    let mut expected: BTreeSet<String> =
        (1..=3).map(|seq| format!("billing/EVENTS/{seq}")).collect();
    expected.extend(strays.clone());
    assert_eq!(ids, expected);
    let readable: Vec<_> = list
        .letters
        .iter()
        .filter(|letter| letter.record.is_ok())
        .collect();
    assert_eq!(readable.len(), 1, "{readable:?}");

    let letters = bus.dead_letters();
    let shown = letters.show(&id(&strays[1])).await.unwrap();
    assert_eq!(&shown.stored.unwrap().body.to_bytes().unwrap()[..], b"\xff");
    assert_eq!(shown.entry.unwrap().unwrap_err().kind(), ErrorKind::Decode);
    let discard = Discard::because("noise");
    for stray in strays {
        let letter = letters.find(&id(&stray)).await.unwrap();
        let refused = letters.replay(&letter).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Decode);
        assert_eq!(
            letters.discard(&letter, &discard).await.unwrap(),
            Changed::Removed
        );
        assert_eq!(
            letters.find(&letter.id).await.unwrap_err().kind(),
            ErrorKind::NoSuchDeadLetter
        );
    }
    // A broken key is made anew from the entry, one of a later version is left alone.
    let broken = letters.find(&id("billing/EVENTS/2")).await.unwrap();
    let Changed::Now(record) = letters.replay(&broken).await.unwrap() else {
        panic!("not asked for")
    };
    assert_eq!((record.error.as_str(), record.replays), ("no 2", 1));
    let later = letters.find(&id("billing/EVENTS/3")).await.unwrap();
    for refused in [
        letters.replay(&later).await,
        letters.discard(&later, &discard).await,
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::WrongVersion);
    }
}

#[tokio::test]
async fn generations_are_told_apart_and_the_latest_is_meant() {
    let bus = bus().await;
    for generation in [0, 1] {
        buried(
            &bus,
            &Entry {
                generation,
                ..entry("billing", 7, "a")
            },
        )
        .await;
    }
    // A third that nobody noted down.
    let last = Entry {
        generation: 2,
        ..entry("billing", 7, "a")
    };
    bury(&bus.inner, &last).await.unwrap();
    assert_eq!(
        listed(&bus, Selection::new()).await,
        [
            "billing/EVENTS/7@0 dead",
            "billing/EVENTS/7@1 dead",
            "billing/EVENTS/7 dead"
        ]
    );
    let letters = bus.dead_letters();
    for (text, place) in [
        ("billing/EVENTS/7@0", 1),
        ("billing/EVENTS/7@1", 2),
        ("billing/EVENTS/7", 3),
        ("billing/EVENTS/7@2", 3),
    ] {
        let shown = letters.show(&id(text)).await.unwrap();
        assert_eq!(shown.letter.record.unwrap().entry, place, "{text}");
        assert_eq!(shown.stored.unwrap().seq, place);
    }
    let none = letters.find(&id("billing/EVENTS/7@3")).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NoSuchDeadLetter);
    let first = letters.find(&id("billing/EVENTS/7@0")).await.unwrap();
    assert!(matches!(
        letters
            .discard(&first, &Discard::because("old"))
            .await
            .unwrap(),
        Changed::Now(_)
    ));
    assert_eq!(stored(&bus).await, [2, 3]);
    assert_eq!(
        letters.find(&id("entry/3")).await.unwrap().id,
        id("billing/EVENTS/7")
    );
}

#[tokio::test(start_paused = true)]
async fn a_story_that_does_not_fit_is_stored_without_what_only_explains() {
    let bus = bus().await;
    let found = bus.inner.engine.topology().inspect().await.unwrap();
    let mut specs = found.streams.into_iter().map(|state| state.spec);
    let spec = specs.find(|spec| spec.name == bus.inner.settings.dead_letters);
    let room = spec.unwrap().max_message;
    let mut entry = entry("billing", 1, "order.placed");
    entry.causes = vec!["x".repeat(1_000)];
    entry.body = Body::Bytes(Bytes::from(vec![b'x'; room - 1_000]));
    let (_, seq) = bury(&bus.inner, &entry).await.unwrap();
    let stored = entry_at(&bus.inner, seq).await.unwrap().unwrap();
    let read = read_entry(&bus.inner, &stored).unwrap();
    assert_eq!((read.causes.len(), read.error.as_str()), (0, "no 1"));
    // And what does not fit even so is told.
    entry.seq = 2;
    entry.body = Body::Bytes(Bytes::from(vec![b'x'; room]));
    let refused = bury(&bus.inner, &entry).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused}");
}
