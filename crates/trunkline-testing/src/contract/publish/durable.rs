//! What was confirmed stays, once: P4, P5 and P7.
//!
//! A publisher forgets an event when it has its receipt. So neither a retry, a crash, a close nor
//! a topology that stores less than the program thinks may make that receipt untrue.

use std::num::NonZeroU64;

use trunkline::core::engine::StreamSpec;
use trunkline::{ErrorKind, EventId, Filter, Name, Start};

use super::super::Trial;
use super::received;
use crate::fixture::{Moved, Noted, OrderPlaced, Ship, Zoned};

pub(in crate::contract) async fn p4_a_repeated_id_is_stored_once(trial: Trial) {
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

pub(in crate::contract) async fn p4_stored_events_survive_a_crash(trial: Trial) {
    let bus = trial.bus().await;
    for n in 0..100 {
        bus.publish(Noted { n }).await.unwrap();
    }
    trial.crash().await;
    for n in 100..200 {
        bus.publish(Noted { n }).await.unwrap();
    }
    bus.close().await.unwrap();
    trial.let_go().await;
    trial.crash().await;
    let mut events = trial
        .bus()
        .await
        .replay::<Noted>(Start::First)
        .await
        .unwrap();
    assert_eq!(
        received(&mut events, 200, |event| event.n).await,
        (0..200).collect::<Vec<_>>()
    );
}

pub(in crate::contract) async fn p5_a_topology_that_would_lose_events_is_refused_at_start(
    trial: Trial,
) {
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

pub(in crate::contract) async fn p7_closing_after_the_last_publish_loses_nothing(trial: Trial) {
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
