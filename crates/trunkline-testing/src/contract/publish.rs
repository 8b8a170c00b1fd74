//! Publishing and subscribing: P1 to P8.

use std::fmt::Debug;
use std::num::NonZeroU64;
use std::sync::Arc;

use bytes::Bytes;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use smallvec::smallvec;
use trunkline::core::Headers;
use trunkline::core::engine::{Credit, Heard, Message, Retention, StreamSpec};
use trunkline::core::envelope::JsonText;
use trunkline::core::wire::Body;
use trunkline::{
    Attribute, Data, Envelope, ErrorKind, Event, EventId, Filter, Item, Name, Published, RawEvent,
    Start, Subscription, Timestamp,
};

use super::Trial;
use crate::fixture::{Moved, Noted, OrderPlaced, Ship, Unwritable, Zoned};

pub(super) async fn p1_a_published_event_arrives_once_and_whole(trial: Trial) {
    let bus = trial.bus().await;
    let mut events = trial.bus().await.subscribe::<OrderPlaced>().await.unwrap();
    let order = OrderPlaced {
        order: "o-1 größe".into(),
        n: 7,
    };
    let [id, root, cause] = ["id-1", "root-1", "cause-1"].map(|text| EventId::new(text).unwrap());
    let time = Timestamp::from_nanos(1_700_000_000_123_456_789);
    let cause = Envelope::new(cause, "/cause", "testing.cause", Data::None)
        .unwrap()
        .with_correlation(root.clone());
    let mut causes = bus
        .follow(&Filter::new("testing.cause").unwrap(), Start::First)
        .await
        .unwrap();
    stored(bus.publish_raw(vec![cause.clone().into()]).await);
    let Some(Item::Event(incoming)) = causes.recv().await else {
        panic!("the cause did not arrive")
    };
    assert_eq!(incoming.envelope.correlation(), Some(&root));

    let receipt = bus
        .publish(order.clone())
        .id(id.clone())
        .time(time)
        .correlation(root.clone())
        .subject("order 1")
        .attribute("mine", Attribute::Integer(-5))
        .header("Tenant", "größe 日本 🦀")
        .header("empty", "")
        .header("twice", "1")
        .header("twice", "2")
        .await
        .unwrap();
    assert_eq!((&receipt.id, receipt.duplicate), (&id, false));
    let Some(Item::Event(received)) = events.recv().await else {
        panic!("the event did not arrive")
    };
    let meta = &received.meta;
    assert_eq!(*received.event, order);
    assert_eq!(
        (meta.id(), meta.event_type(), meta.version()),
        (&id, OrderPlaced::TYPE, Some(1))
    );
    assert_eq!(
        (meta.source(), meta.time(), meta.key()),
        ("/trial", Some(time), Some("o-1 größe"))
    );
    assert_eq!(
        (meta.correlation(), meta.causation(), meta.subject()),
        (Some(&root), None, Some("order 1"))
    );
    assert_eq!(
        meta.extensions().collect::<Vec<_>>(),
        [("mine", &Attribute::Integer(-5))]
    );
    assert_eq!(
        (meta.seq(), meta.stream()),
        (Some(receipt.seq), Some(&receipt.stream))
    );
    let headers: Vec<_> = meta.headers().iter().collect();
    assert_eq!(
        headers,
        [
            ("Tenant", "größe 日本 🦀"),
            ("empty", ""),
            ("twice", "1"),
            ("twice", "2")
        ]
    );

    // What a handler publishes says what caused it, and correlates with what that correlates with.
    bus.publish(OrderPlaced {
        order: "o-2".into(),
        n: 8,
    })
    .caused_by(meta)
    .key("another")
    .await
    .unwrap();
    // Had the first event come twice, it would come before this one.
    let Some(Item::Event(second)) = events.recv().await else {
        panic!("the event did not arrive")
    };
    assert_eq!((second.n, second.meta.key()), (8, Some("another")));
    assert_eq!(
        (second.meta.causation(), second.meta.correlation()),
        (Some(&id), Some(&root))
    );
    assert_ne!(second.meta.id(), &id);

    // The same for what is not stored.
    let mut moves = trial.bus().await.subscribe::<Moved>().await.unwrap();
    let id = bus
        .emit(Moved { n: 1 })
        .header("tenant", "ü")
        .await
        .unwrap();
    bus.emit(Moved { n: 2 }).await.unwrap();
    let (Some(Item::Event(first)), Some(Item::Event(second))) =
        (moves.recv().await, moves.recv().await)
    else {
        panic!("the ephemeral events did not arrive")
    };
    assert_eq!(
        (first.n, first.meta.id(), first.meta.headers().get("tenant")),
        (1, &id, Some("ü"))
    );
    assert_eq!((second.n, first.meta.seq()), (2, None));
}

pub(super) async fn p1_sizes_up_to_the_limit_pass_and_one_byte_more_is_refused(trial: Trial) {
    let bus = trial.bus().await;
    let mut events = trial
        .bus()
        .await
        .follow(&Filter::new("testing.blob").unwrap(), Start::New)
        .await
        .unwrap();
    for size in [0, 1, 64 << 10] {
        let bytes: Vec<u8> = (0..size).map(|n: u32| n.to_le_bytes()[0]).collect();
        let data = Data::Binary(Bytes::from(bytes));
        stored(bus.publish_raw(vec![blob(data.clone()).into()]).await);
        let Some(Item::Event(received)) = events.recv().await else {
            panic!("{size} bytes did not arrive")
        };
        assert_eq!(
            received.envelope.data().to_bytes().unwrap(),
            data.to_bytes().unwrap()
        );
    }
    let limit = bus.engine().limits().max_message;
    let mut headers = Headers::new();
    headers.add("counts", "too").unwrap();
    let of_size = |size: usize| {
        let json = |length| {
            Data::Json(JsonText::new(&Bytes::from(format!("\"{}\"", "x".repeat(length)))).unwrap())
        };
        let encoded = |envelope: Envelope| {
            Body::Event(Arc::new(envelope)).to_bytes().unwrap().len() + headers.bytes()
        };
        let envelope = blob(json(size - encoded(blob(json(0)))));
        assert_eq!(encoded(envelope.clone()), size);
        RawEvent {
            envelope,
            headers: headers.clone(),
        }
    };
    for size in [limit - 1, limit] {
        let event = of_size(size);
        let data = event.envelope.data().clone();
        stored(bus.publish_raw(vec![event]).await);
        let Some(Item::Event(received)) = events.recv().await else {
            panic!("{size} bytes did not arrive")
        };
        assert_eq!(*received.envelope.data(), data);
    }
    let event = of_size(limit + 1);
    let id = event.envelope.id().to_string();
    match bus.publish_raw(vec![event]).await.as_slice() {
        [Published::Refused(error)] => {
            assert_eq!(
                (error.kind(), error.event_id()),
                (ErrorKind::TooLarge, Some(id.as_str()))
            );
        }
        other => panic!("one byte above the limit was {other:?}"),
    }
    // The connection works on, and nothing of the refused event was stored.
    let marker = blob(Data::Text("marker".into()));
    stored(bus.publish_raw(vec![marker.clone().into()]).await);
    let Some(Item::Event(received)) = events.recv().await else {
        panic!("nothing arrives any more")
    };
    assert_eq!(received.envelope.id(), marker.id());
}

fn blob(data: Data) -> Envelope {
    let id = EventId::generate(Timestamp::from_nanos(0));
    Envelope::new(id, "/trial", "testing.blob", data)
        .unwrap()
        .with_time(Timestamp::from_nanos(0))
}

pub(super) async fn p1_line_breaks_in_headers_are_refused(trial: Trial) {
    let bus = trial.bus().await;
    let mut events = bus.subscribe::<Noted>().await.unwrap();
    for value in ["\r", "\n", "a\r\nX-Injected: b", "a\nb"] {
        let error = bus
            .publish(Noted { n: 1 })
            .header("name", value)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidHeader, "{value:?}");
        let error = bus
            .emit(Moved { n: 1 })
            .header("name", value)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidHeader, "{value:?}");
    }
    let error = bus
        .publish(Noted { n: 1 })
        .header("na\nme", "value")
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidHeader);
    bus.publish(Noted { n: 2 }).await.unwrap();
    assert_eq!(received(&mut events, 1, |event| event.n).await, [2]);
}

/// The matcher as the rule reads, to compare with.
fn matches(filter: &[&str], subject: &[&str]) -> bool {
    match (filter, subject) {
        ([], []) => true,
        ([">"], [_, ..]) => true,
        (["*", filter @ ..], [_, subject @ ..]) => matches(filter, subject),
        ([token, filter @ ..], [other, subject @ ..]) if token == other => matches(filter, subject),
        _ => false,
    }
}

pub(super) async fn p2_ten_thousand_mixed_subscriptions_get_exactly_their_own(trial: Trial) {
    let (sender, receiver) = (trial.engine().await, trial.engine().await);
    let mut random = rand::rngs::StdRng::seed_from_u64(2);
    let tokens = ["a", "b", "c", "d%20", "e_f-g"];
    let mut subjects = std::collections::BTreeSet::new();
    while subjects.len() < 300 {
        let depth = random.random_range(1..=5);
        subjects.insert(
            (0..depth)
                .map(|_| *tokens.choose(&mut random).unwrap())
                .collect::<Vec<_>>()
                .join("."),
        );
    }
    let subjects: Vec<String> = subjects.into_iter().collect();
    let marker = Filter::new("marker").unwrap();
    let mut listeners = Vec::with_capacity(10_000);
    for index in 0..10_000 {
        let mut filter: Vec<&str> = subjects.choose(&mut random).unwrap().split('.').collect();
        match index % 4 {
            0 => {}
            1 => *filter.choose_mut_of(&mut random) = "*",
            2 => {
                filter.truncate(random.random_range(1..=filter.len()));
                filter.push(">");
            }
            _ => {
                *filter.choose_mut_of(&mut random) = "*";
                *filter.last_mut().unwrap() = ">";
            }
        }
        let text = filter.join(".");
        let filters = [Filter::new(&text).unwrap(), marker.clone()];
        listeners.push((
            text,
            receiver.live().listen(&filters, None, 1_000).await.unwrap(),
        ));
    }
    for subject in subjects.iter().map(String::as_str).chain(["marker"]) {
        sender
            .live()
            .send(smallvec![message(subject)])
            .completed()
            .await
            .unwrap();
    }
    for (filter, listener) in &mut listeners {
        let tokens: Vec<&str> = filter.split('.').collect();
        let own = subjects
            .iter()
            .filter(|subject| matches(&tokens, &subject.split('.').collect::<Vec<_>>()));
        let mut expected: Vec<&str> = own.map(String::as_str).collect();
        expected.push("marker");
        let mut out = Vec::new();
        while out
            .last()
            .is_none_or(|last: &Message| last.subject.as_str() != "marker")
        {
            assert!(
                matches!(listener.receive(1_000, &mut out).await, Heard::Messages(_)),
                "{filter} lost some"
            );
        }
        let got: Vec<&str> = out.iter().map(|message| message.subject.as_str()).collect();
        assert_eq!(got, expected, "{filter}");
        for message in out {
            // The body says which subject it was sent to, so that a leak shows as one.
            assert_eq!(message.body.to_bytes().unwrap(), message.subject.as_str());
        }
    }
}

trait ChooseMut<T> {
    fn choose_mut_of(&mut self, random: &mut rand::rngs::StdRng) -> &mut T;
}

impl<T> ChooseMut<T> for [T] {
    fn choose_mut_of(&mut self, random: &mut rand::rngs::StdRng) -> &mut T {
        let index = random.random_range(0..self.len());
        &mut self[index]
    }
}

fn message(subject: &str) -> Message {
    Message {
        subject: trunkline::core::Subject::new(subject).unwrap(),
        reply: None,
        headers: Headers::new(),
        body: Body::Bytes(Bytes::copy_from_slice(subject.as_bytes())),
    }
}

pub(super) async fn p3_a_batch_keeps_its_order_and_each_item_its_outcome(trial: Trial) {
    let bus = trial.bus().await;
    let mut events = bus.subscribe::<OrderPlaced>().await.unwrap();
    // More than an engine takes at once, so that the order holds across its batches too.
    let count = u32::try_from(bus.engine().limits().max_batch)
        .unwrap()
        .saturating_mul(2)
        .min(5_000)
        + 10;
    let order = |n: u32| OrderPlaced {
        order: format!("o-{}", n % 7),
        n,
    };
    let published = bus.publish_batch((0..count).map(order)).await.unwrap();
    let seqs: Vec<_> = published
        .into_iter()
        .map(|one| one.stored().unwrap().seq)
        .collect();
    assert!(seqs.is_sorted_by(|a, b| a < b) && seqs.len() == count as usize);
    let got = received(&mut events, count as usize, |event| event.n).await;
    assert_eq!(got, (0..count).collect::<Vec<_>>());

    // Of a mixed batch only the malformed and the too large are refused, also not their key.
    let raw = |event_type: &str, n: u32, data: Data| {
        let id = EventId::new(format!("mixed-{n}")).unwrap();
        RawEvent::from(
            Envelope::new(id, "/trial", event_type, data)
                .unwrap()
                .with_key("k"),
        )
    };
    let good = |n: u32| {
        let json = Bytes::from(format!("{{\"order\":\"k\",\"n\":{n}}}"));
        raw(
            OrderPlaced::TYPE,
            n,
            Data::Json(JsonText::new(&json).unwrap()),
        )
    };
    let huge = Bytes::from(vec![b'x'; bus.engine().limits().max_message]);
    let batch = vec![
        good(0),
        raw(&"x".repeat(300), 1, Data::None),
        good(2),
        raw(OrderPlaced::TYPE, 3, Data::Binary(huge)),
        good(4),
    ];
    let published = bus.publish_raw(batch).await;
    let refusal = |one| match one {
        &Published::Stored(_) => None,
        Published::Refused(error) => Some((error.kind(), error.event_id())),
        other => panic!("{other:?}"),
    };
    let kinds: Vec<_> = published.iter().map(refusal).collect();
    let malformed = Some((ErrorKind::InvalidEventType, Some("mixed-1")));
    assert_eq!(
        kinds,
        [
            None,
            malformed,
            None,
            Some((ErrorKind::TooLarge, Some("mixed-3"))),
            None
        ]
    );
    assert_eq!(received(&mut events, 3, |event| event.n).await, [0, 2, 4]);
}

pub(super) async fn p3_behind_a_refused_event_its_key_waits(trial: Trial) {
    let subjects = vec![Filter::new("events.>").unwrap()];
    let small = StreamSpec {
        retention: Retention::RefuseWhenFull,
        max_events: Some(3),
        ..StreamSpec::new(Name::new("SMALL").unwrap(), subjects)
    };
    let bus = trial.connect().await.stream(small).await.unwrap();
    let keys = ["a", "b", "a", "b", "b", "a", "c"];
    let order = |(key, n): (&&str, u32)| OrderPlaced {
        order: (*key).to_owned(),
        n,
    };
    let published = bus
        .publish_batch(keys.iter().zip(0..).map(order))
        .await
        .unwrap();
    let kinds: Vec<_> = published
        .into_iter()
        .map(|one| one.stored().err().map(|error| error.kind()))
        .collect();
    let (full, behind) = (Some(ErrorKind::StreamFull), Some(ErrorKind::BehindFailed));
    assert_eq!(kinds, [None, None, None, full, behind, full, full]);
    let removed = trunkline::core::engine::Removal::Before(3);
    assert_eq!(
        bus.engine()
            .log()
            .remove(&Name::new("SMALL").unwrap(), removed)
            .await
            .unwrap(),
        2
    );
    // A batch that is published anew starts without a past.
    for n in [3, 4] {
        bus.publish(OrderPlaced {
            order: "b".into(),
            n,
        })
        .await
        .unwrap();
    }
    let error = bus
        .publish(OrderPlaced {
            order: "b".into(),
            n: 9,
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StreamFull);
    let mut events = bus.replay::<OrderPlaced>(Start::First).await.unwrap();
    assert_eq!(received(&mut events, 3, |event| event.n).await, [2, 3, 4]);
}

pub(super) async fn p4_a_repeated_id_is_stored_once(trial: Trial) {
    let bus = trial.bus().await;
    let id = EventId::new("once").unwrap();
    let first = bus.publish(Noted { n: 1 }).id(id.clone()).await.unwrap();
    // A retry may come by another connection, and with other content it is the same event still.
    let again = trial
        .bus()
        .await
        .publish(Noted { n: 2 })
        .id(id.clone())
        .await
        .unwrap();
    assert_eq!(
        (again.seq, again.duplicate, first.duplicate),
        (first.seq, true, false)
    );
    let other = bus.publish(Noted { n: 3 }).await.unwrap();
    assert!(!other.duplicate && other.seq > first.seq);
    let mut events = bus.replay::<Noted>(Start::First).await.unwrap();
    assert_eq!(received(&mut events, 2, |event| event.n).await, [1, 3]);
}

pub(super) async fn p4_stored_events_survive_a_crash(trial: Trial) {
    let bus = trial.bus().await;
    for n in 0..100 {
        bus.publish(Noted { n }).await.unwrap();
    }
    bus.close().await.unwrap();
    trial.let_go().await;
    let mut events = trial
        .bus()
        .await
        .replay::<Noted>(Start::First)
        .await
        .unwrap();
    assert_eq!(
        received(&mut events, 100, |event| event.n).await,
        (0..100).collect::<Vec<_>>()
    );
}

pub(super) async fn p5_a_topology_that_would_lose_events_is_refused_at_start(trial: Trial) {
    let spec = |name: &str, filter: &str| {
        StreamSpec::new(Name::new(name).unwrap(), vec![Filter::new(filter).unwrap()])
    };
    // One token where two are needed: the mistake that is easiest to make.
    let narrow = trial
        .connect()
        .await
        .stream(spec("NARROW", "events.testing.*"))
        .event::<OrderPlaced>();
    assert_eq!(narrow.await.unwrap_err().kind(), ErrorKind::NotStored);
    let partly = trial
        .connect()
        .await
        .stream(spec("PARTLY", "events.testing.zoned.eu"))
        .event::<Zoned>();
    assert_eq!(partly.await.unwrap_err().kind(), ErrorKind::NotStored);
    let twice = trial
        .connect()
        .await
        .stream(spec("ONE", "events.>"))
        .stream(spec("TWO", "events.testing.*"));
    assert_eq!(twice.await.unwrap_err().kind(), ErrorKind::Overlap);
    let live = trial
        .connect()
        .await
        .stream(spec("LIVE", "live.testing.moved"))
        .event::<Moved>();
    assert_eq!(live.await.unwrap_err().kind(), ErrorKind::Overlap);
    for prefix in ["live", "commands.own", "dlq"] {
        let error = trial.connect().await.prefix(prefix).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Overlap, "{prefix}");
    }
    let missing = trial
        .connect()
        .await
        .topology(trunkline::TopologyMode::Verify);
    assert_eq!(missing.await.unwrap_err().kind(), ErrorKind::NoSuchStream);
    let found = trial.engine().await.topology().inspect().await.unwrap();
    assert_eq!(
        found.streams.len(),
        0,
        "a start that was refused has made something: {found:?}"
    );

    let bus = trial
        .connect()
        .await
        .event::<Noted>()
        .event::<Moved>()
        .event::<Ship>()
        .await
        .unwrap();
    assert_eq!(
        bus.publish(OrderPlaced {
            order: "o".into(),
            n: 1
        })
        .await
        .unwrap_err()
        .kind(),
        ErrorKind::NotInCatalogue
    );
    let error = bus
        .follow(&Filter::new("testing.*.noted").unwrap(), Start::New)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MatchesNothing);
    let other = StreamSpec {
        max_events: Some(5),
        ..spec("EVENTS", "events.>")
    };
    assert_eq!(
        trial
            .connect()
            .await
            .stream(other)
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Drift
    );
}

pub(super) async fn p6_a_slow_subscriber_loses_its_own_oldest_and_learns_of_it(trial: Trial) {
    let sender = trial.bus().await;
    let mut slow = trial
        .connect()
        .await
        .listener_capacity(8)
        .await
        .unwrap()
        .subscribe::<Moved>()
        .await
        .unwrap();
    let mut fast = trial.bus().await.subscribe::<Moved>().await.unwrap();
    let count = 50_000;
    for n in 0..count {
        sender.emit(Moved { n }).await.unwrap();
        assert_eq!(
            received(&mut fast, 1, |event| event.n).await,
            [n],
            "the fast one waits for the slow one"
        );
    }
    let (mut got, mut told) = (Vec::new(), 0);
    while got.last() != Some(&(count - 1)) {
        match slow.recv().await {
            Some(Item::Event(event)) => got.push(event.n),
            Some(Item::Lagged { at_least }) => told += at_least,
            other => panic!("{other:?}"),
        }
    }
    let lost = u64::from(count) - got.len() as u64;
    assert!(got.is_sorted_by(|a, b| a < b), "{got:?}");
    assert!(
        (1..=lost).contains(&told),
        "{lost} were lost, it was told of {told}"
    );
    let newest: Vec<u32> = (count - u32::try_from(got.len().min(8)).unwrap()..count).collect();
    assert!(got.ends_with(&newest), "the newest are kept, not {got:?}");
}

pub(super) async fn p7_closing_after_the_last_publish_loses_nothing(trial: Trial) {
    let (bus, other) = (trial.bus().await, trial.bus().await);
    let mut moves = other.subscribe::<Moved>().await.unwrap();
    for n in 0..100 {
        bus.publish(Noted { n }).await.unwrap();
        bus.emit(Moved { n }).await.unwrap();
    }
    bus.close().await.unwrap();
    bus.close().await.unwrap();
    let mut events = other.replay::<Noted>(Start::First).await.unwrap();
    let all: Vec<u32> = (0..100).collect();
    assert_eq!(received(&mut events, 100, |event| event.n).await, all);
    assert_eq!(received(&mut moves, 100, |event| event.n).await, all);
    let closed = |error: trunkline::Error| assert_eq!(error.kind(), ErrorKind::Closed);
    closed(bus.publish(Noted { n: 0 }).await.unwrap_err());
    closed(bus.emit(Moved { n: 0 }).await.unwrap_err());
    closed(bus.subscribe::<Noted>().await.unwrap_err());
    closed(bus.subscribe::<Moved>().await.unwrap_err());
    closed(
        bus.replay::<Noted>(Start::Last(NonZeroU64::MIN))
            .await
            .unwrap_err(),
    );
    closed(
        bus.consumer("late")
            .on(|_: Noted| async {})
            .start()
            .await
            .unwrap_err(),
    );
    closed(bus.inspect().await.unwrap_err());
    other.publish(Noted { n: 100 }).await.unwrap();
}

pub(super) async fn p8_fifty_publishers_and_ten_subscribers_at_once(trial: Trial) {
    const PUBLISHERS: u32 = 50;
    const EACH: u32 = 5_000;
    let mut subscribers = tokio::task::JoinSet::new();
    // Eight of the ten count sequences without decoding anything, so that this is about the bus
    // and not about JSON: every event once and in order, by its place in the stream.
    let all = u64::from(PUBLISHERS * EACH) + 1;
    for _ in 0..8 {
        let bus = trial.bus().await;
        let stream = Name::new("EVENTS").unwrap();
        let mut follow = bus
            .engine()
            .log()
            .follow(&stream, Start::New, &[Filter::all()])
            .await
            .unwrap();
        subscribers.spawn(async move {
            let (mut events, mut last) = (Vec::new(), 0);
            while last < all {
                follow
                    .next(Credit::items(1_000), &mut events)
                    .await
                    .unwrap();
                for event in events.drain(..) {
                    assert_eq!(event.seq, last + 1);
                    last = event.seq;
                }
            }
            PUBLISHERS * EACH
        });
    }
    for _ in 0..2 {
        let mut events = trial.bus().await.subscribe::<OrderPlaced>().await.unwrap();
        subscribers.spawn(async move {
            // In order and without repeats: each publisher's next number is the only one allowed.
            let mut next = vec![0; PUBLISHERS as usize];
            let (mut items, mut got, mut open) = (Vec::new(), 0, true);
            while open {
                let received = events.recv_many(1_000, &mut items).await;
                assert_ne!(received, 0, "the bus closed");
                for item in items.drain(..) {
                    let Item::Event(event) = item else {
                        panic!("{item:?}")
                    };
                    // The marker ends it: whatever comes twice or late is missing before it.
                    open = event.order != "marker";
                    if open {
                        let publisher: usize = event.order.parse().unwrap();
                        assert_eq!(event.n, next[publisher], "publisher {publisher}");
                        next[publisher] += 1;
                        got += 1;
                    }
                }
            }
            got
        });
    }
    let mut publishers = tokio::task::JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let bus = trial.bus().await;
        publishers.spawn(async move {
            let order = publisher.to_string();
            let publisher = bus.publisher::<OrderPlaced>().unwrap();
            for n in 0..EACH {
                publisher
                    .publish(OrderPlaced {
                        order: order.clone(),
                        n,
                    })
                    .await
                    .unwrap();
            }
        });
    }
    publishers.join_all().await;
    let marker = OrderPlaced {
        order: "marker".into(),
        n: u32::MAX,
    };
    trial.bus().await.publish(marker).await.unwrap();
    for got in subscribers.join_all().await {
        assert_eq!(got, PUBLISHERS * EACH);
    }
}

pub(super) async fn p8_twenty_subjects_at_once(trial: Trial) {
    let bus = trial.bus().await;
    let mut subscribers = tokio::task::JoinSet::new();
    for zone in 0..20 {
        let filter = Filter::new(format!("testing.zoned.z{zone}")).unwrap();
        let mut events = bus.follow(&filter, Start::New).await.unwrap();
        subscribers.spawn(async move {
            let expected: Vec<String> = (0..=100)
                .map(|n| format!("{{\"zone\":\"z{zone}\",\"n\":{n}}}"))
                .collect();
            let mut got = Vec::new();
            while got.len() < expected.len() {
                let Some(Item::Event(event)) = events.recv().await else {
                    panic!("z{zone}: no event")
                };
                got.push(
                    String::from_utf8(event.envelope.data().to_bytes().unwrap().to_vec()).unwrap(),
                );
            }
            assert_eq!(got, expected); // Number 100 is the marker that nothing else may precede.
        });
    }
    let mut publishers = tokio::task::JoinSet::new();
    for zone in 0..20 {
        let bus = trial.bus().await;
        publishers.spawn(async move {
            for n in 0..=100 {
                bus.publish(Zoned {
                    zone: format!("z{zone}"),
                    n,
                })
                .await
                .unwrap();
            }
        });
    }
    publishers.join_all().await;
    subscribers.join_all().await;
}

pub(super) async fn p9_shared_values_are_never_encoded(trial: Trial) {
    let bus = trial.bus().await;
    let mut events = bus.subscribe::<Unwritable>().await.unwrap();
    bus.publish(Unwritable { n: 5 }).await.unwrap();
    assert_eq!(received(&mut events, 1, |event| event.n).await, [5]);
}

pub(super) async fn an_unwritable_event_is_refused(trial: Trial) {
    let bus = trial.bus().await;
    let error = bus.publish(Unwritable { n: 5 }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Encode);
    bus.publish(Noted { n: 1 }).await.unwrap();
}

pub(super) fn stored(published: Vec<Published>) {
    for one in published {
        one.stored().unwrap();
    }
}

/// The next events, seen through `view`; anything but an event is a failure.
pub(super) async fn received<E: Event + Debug, T>(
    events: &mut Subscription<trunkline::Received<E>>,
    count: usize,
    view: impl Fn(&E) -> T,
) -> Vec<T> {
    let mut got = Vec::with_capacity(count);
    while got.len() < count {
        match events.recv().await {
            Some(Item::Event(event)) => got.push(view(&event)),
            other => panic!("{other:?} after {} events", got.len()),
        }
    }
    got
}
