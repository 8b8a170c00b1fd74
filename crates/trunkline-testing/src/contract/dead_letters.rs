//! Dead letters: D1 to D3, and D5.
//!
//! They die through a consumer, as they do in production, and are looked at from another connection,
//! as operators do.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use trunkline::core::Subject;
use trunkline::core::engine::{
    Append, AppendMode, Commit, Credit, Expect, Expectation, Op, StateKey,
};
use trunkline::core::wire::Body;
use trunkline::dead_letter::{
    Buried, Changed, Discard, Following, Id, Page, Selection, Stands, State,
};
use trunkline::{
    Bus, Context, DeadLetters, ErrorKind, Event, FailureExt, Filter, Headers, Item, Name, Retry,
    Start,
};

use super::Trial;
use crate::fixture::{Noted, OrderPlaced};

#[derive(Debug)]
struct Charging(std::io::Error);

impl fmt::Display for Charging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("while charging")
    }
}

impl std::error::Error for Charging {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

async fn next(following: &mut Following) -> Buried {
    match following.recv().await {
        Some(Item::Event(buried)) => buried,
        other => panic!("no dead letter: {other:?}"),
    }
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

/// Publishes as many events and lets a consumer give up every one that there is.
async fn died(bus: &Bus, consumer: &str, count: u32) {
    let events = Name::new("EVENTS").unwrap();
    let mut following = bus.dead_letters().follow(Start::New).await.unwrap();
    for n in 0..count {
        bus.publish(Noted { n }).await.unwrap();
    }
    let handler =
        |event: Noted| async move { Err::<(), _>(format!("never {}", event.n).permanent()) };
    let member = bus.consumer(consumer).concurrency(1).on(handler);
    let member = member.start().await.unwrap();
    let (log, all) = (bus.engine().log(), [Filter::all()]);
    let page = log.read(&events, Start::First, &all, Credit::items(1_000));
    for _ in page.await.unwrap().events {
        next(&mut following).await;
    }
    member.stop().await;
}

async fn ids(letters: &DeadLetters, selection: Selection) -> Vec<String> {
    let page = Page {
        oldest_first: true,
        ..Page::default()
    };
    let list = letters.list(&selection, &page).await.unwrap();
    assert_eq!(list.total, list.letters.len());
    list.letters
        .iter()
        .map(|letter| letter.id.to_string())
        .collect()
}

/// What is stored in the dead-letter stream, by its sequences.
async fn entries(bus: &Bus) -> Vec<u64> {
    let stream = Name::new("EVENTS_DLQ").unwrap();
    let (log, all) = (bus.engine().log(), [Filter::all()]);
    let page = log.read(&stream, Start::First, &all, Credit::items(1_000));
    page.await
        .unwrap()
        .events
        .iter()
        .map(|event| event.seq)
        .collect()
}

pub(super) async fn d1_an_entry_is_the_event_and_its_story(trial: Trial) {
    let bus = trial.bus().await;
    let mut following = bus.dead_letters().follow(Start::First).await.unwrap();
    let handler = |_: OrderPlaced| async {
        let cause = std::io::Error::other("the bank is\nclosed");
        Err::<(), _>(Charging(cause))
    };
    let member = bus
        .consumer("billing")
        .retry(Retry::fixed(2, Duration::from_millis(50)).jitter(0.0))
        .on(handler)
        .start()
        .await
        .unwrap();
    let order = OrderPlaced {
        order: "größe 1".to_owned(),
        n: 7,
    };
    let receipt = bus
        .publish(order)
        .header("tenant", "acme")
        .header("empty", "")
        .await
        .unwrap();
    let buried = next(&mut following).await;
    member.stop().await;
    let place = (
        buried.consumer.as_str(),
        buried.stream.as_str(),
        buried.seq,
        buried.entry.seq,
    );
    assert_eq!(place, ("billing", "EVENTS", 1, 1));
    assert_eq!(buried.subject.as_str(), "events.testing.order.placed");
    assert_eq!(buried.key.as_deref(), Some("größe 1"));
    let story = (
        buried.reason.as_str(),
        buried.error.as_str(),
        buried.failures,
    );
    assert_eq!(story, ("failed", "while charging", 2));
    assert_eq!(buried.causes, ["the bank is\nclosed"]);
    let attempts: Vec<_> = buried.attempts.iter().map(|attempt| attempt.at).collect();
    assert_eq!(attempts, [buried.first_failure, buried.last_failure]);
    assert!(buried.last_failure.since(buried.first_failure) >= Duration::from_millis(50));
    assert!(buried.stored_at.is_some() && buried.service.is_some() && !buried.version.is_empty());
    let mut headers: Vec<_> = buried.headers.iter().collect();
    headers.retain(|(name, _)| ["tenant", "empty"].contains(name));
    headers.sort_unstable();
    assert_eq!(headers, [("empty", ""), ("tenant", "acme")]);

    // Another connection sees the same, and the event itself byte for byte.
    let other = trial.bus().await;
    let letters = other.dead_letters();
    let shown = letters.show(&id("billing/EVENTS/1")).await.unwrap();
    let record = shown.letter.record.unwrap();
    assert_eq!((record.state, record.entry), (State::Dead, buried.seq));
    assert_eq!(record.event_type.as_deref(), Some(OrderPlaced::TYPE));
    assert_eq!(record.event_id.unwrap(), receipt.id.to_string());
    assert_eq!(record.error, "while charging: the bank is\nclosed");
    let entry = shown.entry.unwrap().unwrap();
    let events = Name::new("EVENTS").unwrap();
    let (log, all) = (other.engine().log(), [Filter::all()]);
    let original = log
        .read(&events, Start::First, &all, Credit::items(1))
        .await
        .unwrap();
    let original = &original.events[0];
    assert_eq!(
        entry.body.to_bytes().unwrap(),
        original.body.to_bytes().unwrap()
    );
    assert_eq!(entry.stored_at, Some(original.at));
    let event = letters.event(&entry).unwrap();
    assert_eq!(event.id(), &receipt.id);
}

/// What a handler of dead letters was told: the consumer and the event, the attempt, and its own id.
type Told = (String, u64, u32, String);

/// A member that is told of dead letters; while the word is `false`, it fails for one of them.
async fn alerts(bus: &Bus, works: &Arc<AtomicBool>, told: &mpsc::UnboundedSender<Told>) {
    let (works, told) = (Arc::clone(works), told.clone());
    let alert = move |dead: Arc<Buried>, cx: Context| {
        let (consumer, seq) = (dead.consumer.to_string(), dead.entry.seq);
        let fails = !works.load(Ordering::Relaxed) && (consumer.as_str(), seq) == ("mail", 2);
        told.send((consumer, seq, cx.attempt(), cx.meta().id().to_string()))
            .unwrap();
        async move {
            match fails {
                true => Err("nobody answers the phone"),
                false => Ok(()),
            }
        }
    };
    bus.consumer("alerts")
        .idempotent(Duration::from_secs(60 * 60))
        .retry(Retry::fixed(2, Duration::from_millis(20)).jitter(0.0))
        .on_dead_letter(alert)
        .start()
        .await
        .unwrap();
}

pub(super) async fn d1_a_handler_is_told_of_dead_letters_until_it_is_done(trial: Trial) {
    let bus = trial.bus().await;
    let (seen, mut told) = mpsc::unbounded_channel();
    let mut next = async |count: usize| {
        let mut all = Vec::with_capacity(count);
        for _ in 0..count {
            all.push(told.recv().await.unwrap());
        }
        all.sort_unstable();
        all
    };
    let letter = |consumer: &str, seq: u64, attempt: u32| {
        let id = format!("dlq:{consumer}:EVENTS:{seq}:0");
        (consumer.to_owned(), seq, attempt, id)
    };
    // Two consumers give up the same events, and nobody is there to be told.
    died(&bus, "billing", 2).await;
    died(&bus, "mail", 0).await;
    let works = Arc::new(AtomicBool::new(false));
    let first = trial.bus().await;
    alerts(&first, &works, &seen).await;
    let expected = [
        letter("billing", 1, 1),
        letter("billing", 2, 1),
        letter("mail", 1, 1),
        letter("mail", 2, 1),
        letter("mail", 2, 2),
    ];
    assert_eq!(next(5).await, expected);
    // What it gives up is listed, and told to nobody: it would never end.
    let letters = bus.dead_letters();
    let own = Selection::new().consumer(Name::new("alerts").unwrap());
    while ids(&letters, own.clone()).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    first.close().await.unwrap();

    // One that comes back goes on where it was.
    died(&bus, "late", 0).await;
    let second = trial.bus().await;
    works.store(true, Ordering::Relaxed);
    alerts(&second, &works, &seen).await;
    assert_eq!(next(2).await, [letter("late", 1, 1), letter("late", 2, 1)]);
    let own = ids(&letters, own).await;
    assert!(
        own.len() == 1 && own[0].starts_with("alerts/EVENTS_DLQ/"),
        "{own:?}"
    );
    let again = letters.find(&id(&own[0])).await.unwrap();
    let _ = letters.replay(&again).await.unwrap();
    assert_eq!(next(1).await, [letter("mail", 2, 1)]);
    second.close().await.unwrap();
    assert!(told.try_recv().is_err(), "one was told twice");
}

pub(super) async fn d2_they_are_listed_shown_and_discarded(trial: Trial) {
    let bus = trial.bus().await;
    died(&bus, "billing", 3).await;
    died(&bus, "audit", 1).await;
    let other = trial.bus().await;
    let letters = other.dead_letters().by("ann");
    // The second consumer had all four.
    let of = |consumer: &str| Selection::new().consumer(Name::new(consumer).unwrap());
    let expected: Vec<_> = (1..=3).map(|seq| format!("billing/EVENTS/{seq}")).collect();
    assert_eq!(ids(&letters, of("billing")).await, expected);
    assert_eq!(ids(&letters, of("audit")).await.len(), 4);
    assert_eq!(ids(&letters, of("nobody")).await, [] as [&str; 0]);
    let all = Page {
        limit: 2,
        ..Page::default()
    };
    let newest = letters.list(&Selection::new(), &all).await.unwrap();
    assert_eq!((newest.letters.len(), newest.total), (2, 7));
    assert!(newest.letters[0].at >= newest.letters[1].at && newest.next.is_some());

    let letter = letters.find(&id("billing/EVENTS/2")).await.unwrap();
    let discard = Discard::because("an order for a test");
    let discarded = letters.discard(&letter, &discard).await.unwrap();
    assert!(matches!(discarded, Changed::Now(_)), "{discarded:?}");
    assert_eq!(
        ids(&letters, of("billing")).await,
        ["billing/EVENTS/1", "billing/EVENTS/3"]
    );
    // Whoever looks later learns who did it and why, and the entry is gone.
    let again = bus.dead_letters().find(&letter.id).await.unwrap();
    let record = again.record.unwrap();
    let State::Discarded { by, reason, .. } = &record.state else {
        panic!("{record:?}")
    };
    assert_eq!(
        (by.as_str(), reason.as_str()),
        ("ann", "an order for a test")
    );
    assert!(!again.has_entry && !entries(&bus).await.contains(&record.entry));
    let done = of("billing").state(Stands::Discarded);
    assert_eq!(ids(&letters, done).await, ["billing/EVENTS/2"]);
    let none = letters.find(&id("billing/EVENTS/9")).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NoSuchDeadLetter);
}

pub(super) async fn d3_of_operators_who_ask_at_once_one_is_first(trial: Trial) {
    const OPERATORS: usize = 4;
    let bus = trial.bus().await;
    died(&bus, "billing", 3).await;
    for seq in 1..=3 {
        let id = id(&format!("billing/EVENTS/{seq}"));
        let mut asked = JoinSet::new();
        for operator in 0..OPERATORS {
            let letters = trial
                .bus()
                .await
                .dead_letters()
                .by(format!("op-{operator}"));
            // All of them have seen it dead.
            let letter = letters.find(&id).await.unwrap();
            asked.spawn(async move { letters.replay(&letter).await.unwrap() });
        }
        let (mut first, mut others) = (Vec::new(), Vec::new());
        while let Some(changed) = asked.join_next().await {
            match changed.unwrap() {
                Changed::Now(record) => first.push(record),
                Changed::Already(record) => others.push(record),
                Changed::Removed => panic!("it was removed"),
            }
        }
        assert_eq!((first.len(), others.len()), (1, OPERATORS - 1));
        let stands = bus.dead_letters().find(&id).await.unwrap().record.unwrap();
        assert!(others.iter().all(|other| *other == first[0]) && stands == first[0]);
        assert_eq!(stands.replays, 1);
        // It cannot be discarded under whoever runs it.
        let letters = bus.dead_letters();
        let letter = letters.find(&id).await.unwrap();
        let refused = letters
            .discard(&letter, &Discard::because("late"))
            .await
            .unwrap();
        assert_eq!(refused, Changed::Already(stands));
    }
    assert_eq!(entries(&bus).await.len(), 3);
}

pub(super) async fn d5_what_cannot_be_read_hides_no_other(trial: Trial) {
    let bus = trial.bus().await;
    let stray = |subject: &'static str| {
        let append = Append {
            subject: Subject::new(subject).unwrap(),
            key: None,
            id: None,
            expect: Expect::Any,
            headers: Headers::new(),
            body: Body::Bytes(Bytes::from_static(b"\x00\xff no event\r\n")),
        };
        let engine = bus.engine().clone();
        async move {
            let stream = Name::new("EVENTS_DLQ").unwrap();
            let stored = engine
                .log()
                .append(&stream, smallvec![append], AppendMode::Each);
            stored.completed().await.unwrap();
        }
    };
    stray("dlq.anything").await;
    // In the place where the first dead letter is to be.
    stray("dlq.EVENTS.billing.1").await;
    died(&bus, "billing", 2).await;
    let other = trial.bus().await;
    let letters = other.dead_letters();
    let mut listed = ids(&letters, Selection::new()).await;
    listed.sort_unstable();
    assert_eq!(
        listed,
        ["billing/EVENTS/1", "billing/EVENTS/2", "entry/1", "entry/2"]
    );
    for seq in 1..=2 {
        let shown = letters.show(&id(&format!("entry/{seq}"))).await.unwrap();
        let body = shown.stored.unwrap().body.to_bytes().unwrap();
        assert_eq!(&body[..], b"\x00\xff no event\r\n");
        assert_eq!(shown.entry.unwrap().unwrap_err().kind(), ErrorKind::Decode);
        let removed = letters
            .discard(&shown.letter, &Discard::because("noise"))
            .await;
        assert_eq!(removed.unwrap(), Changed::Removed);
    }
    // The one behind it says what was in its place.
    let shown = letters.show(&id("billing/EVENTS/1")).await.unwrap();
    assert_eq!(shown.entry.unwrap().unwrap().previous, Some(2));
    assert_eq!(
        ids(&letters, Selection::new()).await,
        ["billing/EVENTS/1", "billing/EVENTS/2"]
    );
}

pub(super) async fn d5_what_is_stored_and_not_noted_down_is_dead(trial: Trial) {
    let bus = trial.bus().await;
    died(&bus, "billing", 40).await;
    // As a crash between the two, or a version that wrote no keys, leaves them: without keys.
    let bucket = Name::new("trunkline").unwrap();
    let keys = StateKey::new("billing.EVENTS.0.dlq").unwrap();
    let state = bus.engine().state();
    let page = state
        .scan(&bucket, Some(&keys), None, 0, Credit::items(1_000))
        .await
        .unwrap();
    assert_eq!(page.entries.len(), 40);
    for (index, entry) in page.entries.into_iter().enumerate() {
        let op = Op::Delete {
            key: entry.key,
            expect: Expectation::Any,
        };
        let commit = Commit {
            id: format!("forget-{index}").into(),
            fences: Vec::new(),
            ops: vec![op],
        };
        state.commit(&bucket, commit).completed().await.unwrap();
    }
    let other = trial.bus().await;
    let letters = other.dead_letters();
    let mut listed = ids(&letters, Selection::new()).await;
    assert_eq!(listed.len(), 40);
    listed.truncate(2);
    let asked = letters.find(&id(&listed[0])).await.unwrap();
    let changed = letters.replay(&asked).await.unwrap();
    assert!(matches!(changed, Changed::Now(_)));
    let given_up = letters.find(&id(&listed[1])).await.unwrap();
    let changed = letters
        .discard(&given_up, &Discard::because("old"))
        .await
        .unwrap();
    assert!(matches!(changed, Changed::Now(_)));
    let stands = |state| ids(&letters, Selection::new().state(state));
    assert_eq!(stands(Stands::Replaying).await, listed[..1]);
    assert_eq!(stands(Stands::Discarded).await, listed[1..]);
    assert_eq!(stands(Stands::Dead).await.len(), 38);
    assert_eq!(letters.sweep().await.unwrap(), Default::default());
}
