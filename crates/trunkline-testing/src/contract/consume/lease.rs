//! How long a member keeps an event to itself: C7 and C9.
//!
//! A lease that ends too early hands an event out twice, and one that outlives its member keeps
//! the event from everyone else.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use trunkline::{Attempt, State};

use super::super::Trial;
use super::{Seen, note, numbers, publish, watched};
use crate::fixture::{Noted, OrderPlaced};

pub(in crate::contract) async fn c7_a_long_handler_is_delivered_once(trial: Trial) {
    let (first, second) = (trial.bus().await, trial.bus().await);
    let (seen, mut handled) = mpsc::unbounded_channel();
    for bus in [&first, &second] {
        bus.state::<Seen>(seen.clone());
        // The second event waits in its queue for as long as the first is handled.
        let handler = |event: OrderPlaced, attempt: Attempt, State(seen): State<Seen>| async move {
            seen.send((event.n, attempt.0)).unwrap();
            tokio::time::sleep(Duration::from_millis(3_500)).await;
        };
        let ack_wait = Duration::from_secs(1);
        bus.consumer("long")
            .concurrency(1)
            .ack_wait(ack_wait)
            .on(handler)
            .start()
            .await
            .unwrap();
    }
    for n in 0..4 {
        first
            .publish(OrderPlaced {
                order: "o".into(),
                n,
            })
            .await
            .unwrap();
    }
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(handled.recv().await.unwrap());
    }
    got.sort_unstable();
    assert_eq!(got, [(0, 1), (1, 1), (2, 1), (3, 1)]);
    first.close().await.unwrap();
    second.close().await.unwrap();
    assert!(handled.try_recv().is_err(), "an event was delivered twice");
    let backlog = trial.bus().await.inspect().await.unwrap().consumers[0].backlog;
    assert_eq!((backlog.pending, backlog.in_flight), (0, 0));
}

pub(in crate::contract) async fn c9_stopping_gives_back_at_once(trial: Trial) {
    let (first, second) = (trial.bus().await, trial.bus().await);
    // A lease that nobody gives back would keep its event away for far longer than this test.
    let ack_wait = Duration::from_secs(600);
    let (mut hung, mut handled) = (watched(&first), watched(&second));
    let hangs = |event: Noted, attempt: Attempt, seen: State<Seen>| async move {
        let done = event.n == 0;
        note(event, attempt, seen).await;
        if !done {
            std::future::pending::<()>().await;
        }
    };
    publish(&first, 0..20).await;
    let handle = first
        .consumer("leaving")
        .concurrency(1)
        .ack_wait(ack_wait)
        .on(hangs)
        .start()
        .await
        .unwrap();
    assert_eq!(numbers(&mut hung, 2).await, [0, 1]);
    second
        .consumer("leaving")
        .concurrency(1)
        .ack_wait(ack_wait)
        .on(note)
        .start()
        .await
        .unwrap();
    let start = Instant::now();
    let report = handle.stop_within(Duration::from_secs(1)).await;
    assert_eq!(
        (report.cancelled, report.given_back, report.failed.is_none()),
        (1, 18, true),
        "{report:?}"
    );
    let mut got = numbers(&mut handled, 19).await;
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "events came back after {:?}",
        start.elapsed()
    );
    got.sort_unstable();
    assert_eq!(
        got,
        (1..20).collect::<Vec<_>>(),
        "the finished event came again, or another was lost"
    );
    second.close().await.unwrap();
    assert!(handled.try_recv().is_err());
}
