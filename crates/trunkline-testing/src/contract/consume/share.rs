//! Who gets which event: C1 and C2.
//!
//! Consumers are independent and the members of one share its work, also while members come and
//! go. An event that falls between two members is lost, and one that both get is handled twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Barrier, mpsc};
use trunkline::{Attempt, State};

use super::super::Trial;
use super::{Seen, note, numbers, publish, watched};
use crate::fixture::Noted;
use crate::{RunVerdict, TrackedSession};

pub(in crate::contract) async fn c1_two_consumers_each_get_every_event(trial: Trial) {
    let session = TrackedSession::new(2);
    let bus = trial
        .connect()
        .await
        .publish_layer(session.clone())
        .handle_layer(session.clone())
        .await
        .unwrap();
    publish(&bus, 0..50).await;
    let first = bus
        .consumer("first")
        .on(|_: Noted| async {})
        .start()
        .await
        .unwrap();
    bus.consumer("second")
        .on(|_: Noted| async {})
        .start()
        .await
        .unwrap();
    publish(&bus, 50..100).await;
    let runs = session.settled().await;
    let mut each: BTreeMap<_, usize> = BTreeMap::new();
    for run in &runs {
        assert_eq!((run.attempt, run.verdict), (1, RunVerdict::Handled));
        *each
            .entry((run.consumer.clone(), run.id.clone()))
            .or_default() += 1;
    }
    assert!(
        each.len() == 200 && each.values().all(|runs| *runs == 1),
        "{each:?}"
    );
    // One consumer's progress is its own: the other goes on when it is stopped.
    first.stop().await;
    publish(&bus, 100..101).await;
    session.expect(0);
    let marker = bus.inspect().await.unwrap();
    assert_eq!(marker.consumers.len(), 2);
    bus.close().await.unwrap();
}

pub(in crate::contract) async fn c1_members_of_a_consumer_share_its_events(trial: Trial) {
    // The first event of each member waits for that of the other: both must be given some.
    let both = Arc::new(Barrier::new(2));
    let (seen, mut handled) = mpsc::unbounded_channel();
    let mut buses = Vec::new();
    for member in 0..2 {
        let bus = trial.bus().await;
        if member == 0 {
            publish(&bus, 0..500).await;
        }
        let (both, seen, runs) = (
            Arc::clone(&both),
            seen.clone(),
            Arc::new(AtomicUsize::new(0)),
        );
        let handler = move |event: Noted| {
            let (both, seen, runs) = (Arc::clone(&both), seen.clone(), Arc::clone(&runs));
            async move {
                if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                    both.wait().await;
                }
                seen.send((event.n, member)).unwrap();
            }
        };
        bus.consumer("shared")
            .concurrency(1)
            .on(handler)
            .start()
            .await
            .unwrap();
        buses.push(bus);
    }
    let mut got = numbers(&mut handled, 500).await;
    got.sort_unstable();
    assert_eq!(got, (0..500).collect::<Vec<_>>());
    publish(&buses[0], 500..501).await;
    assert_eq!(
        numbers(&mut handled, 1).await,
        [500],
        "an event went to two members"
    );
    for bus in buses {
        bus.close().await.unwrap();
    }
    assert!(handled.try_recv().is_err());
}

pub(in crate::contract) async fn c1_members_added_and_stopped_in_turn_lose_nothing(trial: Trial) {
    let bus = trial.bus().await;
    let mut handled = watched(&bus);
    let slowly = |event: Noted, attempt: Attempt, seen: State<Seen>| async move {
        tokio::time::sleep(Duration::from_millis(1)).await;
        note(event, attempt, seen).await;
    };
    let start = async || {
        let consumer = bus.consumer("turns").concurrency(4).on(slowly);
        // No lease ends or is renewed while this runs, so that nothing can wait for that unseen: not
        // a stop for a worker, and not a member for what another gave back.
        let consumer = consumer.ack_wait(Duration::from_secs(24 * 60 * 60));
        consumer.start().await.unwrap()
    };
    let mut members = vec![start().await];
    let mut given_back = 0;
    for round in 0..20 {
        let events = round * 100..(round + 1) * 100;
        // Some are handled before and some after the change of members. Where a start takes long, all of
        // them may be handled by its end, so every other time it comes first.
        if round % 2 == 0 {
            publish(&bus, events).await;
            members.push(start().await);
        } else {
            members.push(start().await);
            publish(&bus, events).await;
        }
        let leaving = members.remove(0);
        given_back += leaving.stop().await.given_back;
    }
    let mut got = numbers(&mut handled, 2_000).await;
    got.sort_unstable();
    assert_eq!(got, (0..2_000).collect::<Vec<_>>());
    assert!(
        given_back > 0,
        "no member was stopped with events in hand, so nothing was tried"
    );
    for member in members {
        member.stop().await;
    }
    assert!(handled.try_recv().is_err(), "an event was handled twice");
    let backlog = bus.inspect().await.unwrap().consumers[0].backlog;
    assert_eq!(
        (backlog.pending, backlog.in_flight, backlog.floor),
        (0, 0, 2_000)
    );
}

pub(in crate::contract) async fn c2_a_cleanly_restarted_consumer_sees_no_finished_event_again(
    trial: Trial,
) {
    for round in 0..3 {
        let bus = trial.bus().await;
        let mut handled = watched(&bus);
        // The first thing to be handled is the last round's marker, or something came again.
        let handle = bus
            .consumer("progress")
            .concurrency(1)
            .on(note)
            .start()
            .await
            .unwrap();
        publish(&bus, round * 1_000..(round + 1) * 1_000).await;
        let got = numbers(&mut handled, 1_000).await;
        assert_eq!(
            got,
            (round * 1_000..(round + 1) * 1_000).collect::<Vec<_>>()
        );
        let report = handle.stop().await;
        assert_eq!((report.given_back, report.cancelled), (0, 0));
        bus.close().await.unwrap();
        assert!(handled.try_recv().is_err());
    }
}
