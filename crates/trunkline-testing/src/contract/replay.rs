//! Replay: C14.

use std::num::NonZeroU64;
use std::time::Duration;

use trunkline::core::engine::Removal;
use trunkline::{Bus, Filter, Item, Name, Seq, Start, Timestamp};

use super::Trial;
use super::publish::received;
use crate::fixture::{Noted, Zoned};

/// Publishes events over three zones, at different times, and gives the place and time of each.
async fn history(bus: &Bus, count: u32) -> Vec<(Zoned, Seq, Timestamp)> {
    let mut events = bus.subscribe::<Zoned>().await.unwrap();
    let mut history = Vec::new();
    for n in 0..count {
        let event = Zoned {
            zone: ["eu", "us", "as ia.1"][n as usize % 3].to_owned(),
            n,
        };
        bus.publish(event.clone()).await.unwrap();
        // Something in between that nobody asks for, and a clock that moves on.
        bus.publish(Noted { n }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let Some(Item::Event(received)) = events.recv().await else {
            panic!("no event")
        };
        assert_eq!(*received.event, event);
        history.push((
            event,
            received.meta.seq().unwrap(),
            received.meta.stored_at().unwrap(),
        ));
    }
    history
}

pub(super) async fn c14_replay_from_every_position_is_exact_and_ordered(trial: Trial) {
    let bus = trial.bus().await;
    let history = history(&bus, 60).await;
    let all: Vec<u32> = (0..60).collect();
    let (_, seq, at) = &history[20];
    let since = |time: Timestamp| {
        history
            .iter()
            .filter(move |(_, _, at)| *at >= time)
            .map(|(event, ..)| event.n)
    };
    let between = at.plus(Duration::from_nanos(1));
    let cases = [
        (Start::First, all.clone()),
        (Start::Seq(1), all.clone()),
        (Start::Seq(*seq), all[20..].to_vec()),
        (Start::Seq(seq + 1), all[21..].to_vec()),
        (Start::Time(*at), since(*at).collect()),
        (Start::Time(between), since(between).collect()),
        (Start::Time(Timestamp::from_nanos(0)), all.clone()),
        (Start::Time(at.plus(Duration::from_secs(86_400))), vec![]),
        (Start::Last(NonZeroU64::MIN), all[59..].to_vec()),
        (Start::Last(NonZeroU64::new(7).unwrap()), all[53..].to_vec()),
        (Start::Last(NonZeroU64::new(1_000).unwrap()), all.clone()),
        (Start::LastPerSubject, all[57..].to_vec()),
        (Start::New, vec![]),
    ];
    let mut replays = Vec::new();
    for (from, expected) in cases {
        replays.push((
            from,
            expected,
            trial.bus().await.replay::<Zoned>(from).await.unwrap(),
        ));
    }
    // A marker follows, so that one event too many shows as well as one too few.
    bus.publish(Zoned {
        zone: "marker".into(),
        n: u32::MAX,
    })
    .await
    .unwrap();
    for (from, mut expected, mut events) in replays {
        expected.push(u32::MAX);
        let got = received(&mut events, expected.len(), |event| event.n).await;
        assert_eq!(got, expected, "from {from}");
    }
}

pub(super) async fn c14_filters_apply(trial: Trial) {
    let bus = trial.bus().await;
    let history = history(&bus, 30).await;
    let stream = Name::new("EVENTS").unwrap();
    for (filter, wanted) in [
        ("testing.zoned.eu", &["eu"][..]),
        ("testing.zoned.*", &["eu", "us", "as ia.1"]),
        ("testing.zoned.as%20ia%2E1", &["as ia.1"]),
        ("testing.zoned.>", &["eu", "us", "as ia.1"]),
        ("testing.*.us", &["us"]),
        ("*.zoned.nowhere", &[]),
    ] {
        let filter = Filter::new(filter).unwrap();
        let matching = history
            .iter()
            .filter(|(event, ..)| wanted.contains(&event.zone.as_str()));
        let expected: Vec<Seq> = matching.map(|(_, seq, _)| *seq).collect();
        let mut follow = bus.follow(&filter, Start::First).await.unwrap();
        let mut followed = Vec::new();
        while followed.len() < expected.len() {
            let Some(Item::Event(event)) = follow.recv().await else {
                panic!("no event")
            };
            followed.push(event.stored.unwrap().seq);
        }
        assert_eq!(followed, expected, "{filter}");
        // Read in pages of seven, the same come, and the end says that it is the end.
        let (mut paged, mut next) = (Vec::new(), Start::First);
        loop {
            let range = bus.read(&stream, &filter, next, 7).await.unwrap();
            assert!(range.events.len() <= 7 && range.gap.is_none());
            paged.extend(range.events.iter().map(|(seq, _)| *seq));
            if range.next >= range.tail {
                break;
            }
            next = Start::Seq(range.next);
        }
        assert_eq!(paged, expected, "{filter}");
        let last = bus
            .read(
                &stream,
                &filter,
                Start::Last(NonZeroU64::new(2).unwrap()),
                10,
            )
            .await
            .unwrap();
        let last: Vec<Seq> = last.events.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(
            last,
            expected[expected.len().saturating_sub(2)..],
            "the last two of {filter}"
        );
    }
}

pub(super) async fn c14_replay_disturbs_no_consumer(trial: Trial) {
    let bus = trial.bus().await;
    let (seen, mut handled) = tokio::sync::mpsc::unbounded_channel();
    let handler = move |event: Noted| {
        let seen = seen.clone();
        async move { seen.send(event.n).unwrap() }
    };
    let consume = || {
        bus.consumer("undisturbed")
            .concurrency(1)
            .on(handler.clone())
    };
    for n in 0..20 {
        bus.publish(Noted { n }).await.unwrap();
    }
    let handle = consume().start().await.unwrap();
    for n in 0..20 {
        assert_eq!(handled.recv().await, Some(n));
    }
    handle.stop().await;
    bus.publish(Noted { n: 20 }).await.unwrap();
    let state = async || {
        let consumers = bus.inspect().await.unwrap().consumers;
        consumers
            .into_iter()
            .find(|state| state.spec.at.consumer.as_str() == "undisturbed")
            .unwrap()
    };
    let before = state().await;
    for from in [
        Start::First,
        Start::Last(NonZeroU64::MIN),
        Start::Seq(3),
        Start::LastPerSubject,
    ] {
        let mut events = bus.replay::<Noted>(from).await.unwrap();
        while received(&mut events, 1, |event| event.n).await != [20] {}
    }
    assert_eq!(state().await, before);
    let handle = consume().start().await.unwrap();
    assert_eq!(handled.recv().await, Some(20));
    handle.stop().await;
    assert!(handled.try_recv().is_err());
}

pub(super) async fn c14_a_trimmed_start_is_a_gap(trial: Trial) {
    let bus = trial.bus().await;
    for n in 1..=20 {
        bus.publish(Noted { n }).await.unwrap();
    }
    let stream = Name::new("EVENTS").unwrap();
    let mut early = bus.replay::<Noted>(Start::Seq(1)).await.unwrap();
    let removed = bus
        .engine()
        .log()
        .remove(&stream, Removal::Before(11))
        .await
        .unwrap();
    assert_eq!(removed, 10);
    let gap = |item| match item {
        Some(Item::Gap { stream: at, gap }) if at == stream => (gap.from, gap.to),
        other => panic!("{other:?} where a gap should be"),
    };
    // It was opened before the events left: it has them already, or says that they are gone.
    let mut next = 1;
    while next <= 10 {
        next = match early.recv().await {
            Some(Item::Event(event)) if event.event.n == next => next + 1,
            gone => {
                assert_eq!(gap(gone), (u64::from(next), 10));
                11
            }
        };
    }
    let mut late = bus.replay::<Noted>(Start::Seq(4)).await.unwrap();
    assert_eq!(gap(late.recv().await), (4, 10));
    for events in [&mut early, &mut late] {
        assert_eq!(
            received(events, 10, |event| event.n).await,
            (11..=20).collect::<Vec<_>>()
        );
    }
    let range = bus
        .read(&stream, &Filter::all(), Start::Seq(4), 3)
        .await
        .unwrap();
    assert_eq!(
        range.gap.map(|gap| (gap.from, gap.to, gap.at_most())),
        Some((4, 10, 7))
    );
    assert_eq!(
        range.events.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(),
        [11, 12, 13]
    );
    // Whoever asks for the first is content with whatever is first.
    let mut first = bus.replay::<Noted>(Start::First).await.unwrap();
    assert_eq!(received(&mut first, 1, |event| event.n).await, [11]);
    // A durable consumer that missed some is told in its backlog, and gets the rest.
    let mut receiver = bus
        .consumer("late")
        .concurrency(1)
        .from(Start::Seq(1))
        .receiver::<Noted>()
        .await
        .unwrap();
    assert_eq!(
        match receiver.recv().await {
            Some(Item::Gap { gap, .. }) => (gap.from, gap.to),
            other => panic!("{other:?} where a gap should be"),
        },
        (1, 10)
    );
    for n in 11..=20 {
        let Some(Item::Event(work)) = receiver.recv().await else {
            panic!("no event")
        };
        assert_eq!(work.n, n);
        work.done();
    }
    receiver.stop().await;
    assert_eq!(
        bus.inspect().await.unwrap().consumers[0]
            .backlog
            .expired_at_most,
        10
    );
}
