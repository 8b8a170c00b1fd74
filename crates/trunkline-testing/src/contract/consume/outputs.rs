//! What handlers publish: C12.
//!
//! An event that leads to others is done when they are stored: neither may they be lost with it nor
//! stored for a run that failed, and a run that is repeated must not double them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use trunkline::core::engine::Boxed;
use trunkline::layer::{Outgoing, PublishLayer, PublishNext};
use trunkline::{
    Attempt, Bus, Context, Error, ErrorKind, EventId, Item, Published, Received, Retry, Start,
};

use super::super::Trial;
use super::super::publish::received;
use super::{letters, story};
use crate::fixture::{Moved, Noted, OrderPlaced};

fn placed(order: &str, n: u32) -> OrderPlaced {
    OrderPlaced {
        order: order.to_owned(),
        n,
    }
}

/// Every order that is stored up to a marker, with its number.
async fn stored(bus: &Bus) -> Vec<(String, u32)> {
    bus.publish(placed("marker", 0)).await.unwrap();
    let mut orders = bus.replay::<OrderPlaced>(Start::First).await.unwrap();
    let mut found = Vec::new();
    loop {
        match orders.recv().await {
            Some(Item::Event(event)) if event.order == "marker" => return found,
            Some(Item::Event(event)) => found.push((event.order.clone(), event.n)),
            other => panic!("{other:?} after {found:?}"),
        }
    }
}

pub(in crate::contract) async fn c12_outputs_follow_success_with_their_cause(trial: Trial) {
    let bus = trial.bus().await;
    let mut orders = bus.subscribe::<OrderPlaced>().await.unwrap();
    let mut moves = bus.subscribe::<Moved>().await.unwrap();
    let (staged, mut ids) = mpsc::unbounded_channel();
    let handler = move |event: Noted, cx: Context| {
        let staged = staged.clone();
        async move {
            cx.emit(Moved { n: event.n }).await?;
            for n in 0..3 {
                let sending = cx.publish(placed("a", n)).header("tenant", "acme");
                staged.send(sending.await?).unwrap();
            }
            // Equal content twice in one run is two outputs.
            staged.send(cx.publish(placed("b", 3)).await?).unwrap();
            staged.send(cx.publish(placed("b", 3)).await?).unwrap();
            Ok::<_, Error>(())
        }
    };
    let (id, root) = (
        EventId::new("cause").unwrap(),
        EventId::new("root").unwrap(),
    );
    bus.consumer("making").on(handler).start().await.unwrap();
    let sending = bus.publish(Noted { n: 7 }).id(id.clone());
    sending.correlation(root.clone()).await.unwrap();
    let mut got = Vec::new();
    for _ in 0..5 {
        let Some(Item::Event(Received { event, meta, .. })) = orders.recv().await else {
            panic!("no output after {got:?}");
        };
        assert_eq!(ids.recv().await.as_ref(), Some(meta.id()));
        assert_eq!(
            (meta.causation(), meta.correlation()),
            (Some(&id), Some(&root))
        );
        assert_eq!(meta.id().to_string().as_bytes()[14], b'8', "{}", meta.id());
        let tenant = (event.order == "a").then_some("acme");
        assert_eq!(meta.headers().get("tenant"), tenant);
        got.push((event.order.clone(), event.n));
    }
    let expected = [("a", 0), ("a", 1), ("a", 2), ("b", 3), ("b", 3)];
    assert_eq!(got, expected.map(|(order, n)| (order.to_owned(), n)));
    assert_eq!(received(&mut moves, 1, |event| event.n).await, [7]);
    bus.close().await.unwrap();
}

pub(in crate::contract) async fn c12_outputs_of_a_failed_run_are_dropped(trial: Trial) {
    let bus = trial.bus().await;
    let mut moves = bus.subscribe::<Moved>().await.unwrap();
    let handler = |_: Noted, cx: Context, Attempt(attempt): Attempt| async move {
        cx.publish(placed("output", attempt)).await?;
        cx.emit(Moved { n: attempt }).await?;
        match attempt {
            1 => Err(Error::new(ErrorKind::Internal, "not yet")),
            2 => panic!("on purpose"),
            _ => Ok(()),
        }
    };
    bus.consumer("failing")
        .retry(Retry::fixed(3, Duration::from_millis(20)))
        .on(handler)
        .start()
        .await
        .unwrap();
    bus.publish(Noted { n: 1 }).await.unwrap();
    // Ephemeral outputs follow the durable ones.
    assert_eq!(received(&mut moves, 1, |event| event.n).await, [3]);
    assert_eq!(stored(&bus).await, [("output".to_owned(), 3)]);
    bus.close().await.unwrap();
}

/// Lets outputs be stored and tells nobody, as a process does that dies just then.
struct DiesAfterStoring(Arc<Notify>);

impl PublishLayer for DiesAfterStoring {
    fn publish<'a>(
        &'a self,
        batch: Vec<Outgoing>,
        next: PublishNext<'a>,
    ) -> Boxed<'a, Vec<Published>> {
        Box::pin(async move {
            let is_output = batch.iter().any(Outgoing::is_output);
            let published = next.run(batch).await;
            if is_output {
                self.0.notify_one();
                std::future::pending::<()>().await;
            }
            published
        })
    }
}

pub(in crate::contract) async fn c12_a_crash_between_output_and_ack_stores_it_once(trial: Trial) {
    let stored_now = Arc::new(Notify::new());
    let layer = DiesAfterStoring(Arc::clone(&stored_now));
    let dying = trial.connect().await.publish_layer(layer).await.unwrap();
    let heir = trial.bus().await;
    let mut moves = heir.subscribe::<Moved>().await.unwrap();
    let start = async |bus: &Bus, who: u32| {
        let handler = move |_: Noted, cx: Context| async move {
            // What differs from run to run comes first, and must not shift the others.
            cx.publish(placed("different", who)).await?;
            cx.publish(placed("same", 1)).await?;
            cx.publish(placed("same", 1)).await?;
            cx.publish(placed("same", 2)).header("by", "all").await?;
            cx.publish(placed("same", 2))
                .header("by", who.to_string())
                .await?;
            cx.emit(Moved { n: who }).await?;
            Ok::<_, Error>(())
        };
        let consumer = bus.consumer("making").ack_wait(Duration::from_secs(1));
        consumer.on(handler).start().await.unwrap()
    };
    heir.publish(Noted { n: 1 }).await.unwrap();
    let member = start(&dying, 1).await;
    stored_now.notified().await;
    dying.engine().close().await;
    assert!(member.ended().await.failed.is_some());
    start(&heir, 2).await;
    assert_eq!(received(&mut moves, 1, |event| event.n).await, [2]);
    let expected = [
        ("different", 1),
        ("same", 1),
        ("same", 1),
        ("same", 2),
        ("same", 2),
        ("different", 2),
        ("same", 2),
    ];
    assert_eq!(
        stored(&heir).await,
        expected.map(|(order, n)| (order.to_owned(), n))
    );
    heir.close().await.unwrap();
}

/// Refuses outputs until it is told to let them pass.
struct Refuses(Arc<AtomicBool>);

impl PublishLayer for Refuses {
    fn publish<'a>(
        &'a self,
        batch: Vec<Outgoing>,
        next: PublishNext<'a>,
    ) -> Boxed<'a, Vec<Published>> {
        Box::pin(async move {
            let refuses = self.0.load(Ordering::Relaxed) && batch.iter().any(Outgoing::is_output);
            if !refuses {
                return next.run(batch).await;
            }
            let refused = |_| Published::Refused(Error::new(ErrorKind::StreamFull, "no room"));
            batch.into_iter().map(refused).collect()
        })
    }
}

pub(in crate::contract) async fn c12_outputs_that_are_not_stored_fail_the_run(trial: Trial) {
    let refuses = Arc::new(AtomicBool::new(true));
    let layer = Refuses(Arc::clone(&refuses));
    let bus = trial.connect().await.publish_layer(layer).await.unwrap();
    let (seen, mut attempts) = mpsc::unbounded_channel();
    let handler = move |event: Noted, cx: Context, Attempt(attempt): Attempt| {
        let (seen, refuses) = (seen.clone(), Arc::clone(&refuses));
        async move {
            cx.publish(placed("output", event.n)).await?;
            refuses.store(event.n == 2 || attempt < 3, Ordering::Relaxed);
            seen.send((event.n, attempt)).unwrap();
            Ok::<_, Error>(())
        }
    };
    let handle = bus
        .consumer("making")
        .concurrency(1)
        .retry(Retry::fixed(3, Duration::from_millis(20)))
        .on(handler)
        .start()
        .await
        .unwrap();
    for n in [1, 2] {
        bus.publish(Noted { n }).await.unwrap();
        for attempt in 1..=3 {
            assert_eq!(attempts.recv().await, Some((n, attempt)));
        }
    }
    let letters = letters(&bus, 1).await;
    let [_, reason, failures, error] = story(&letters[0]);
    assert_eq!((reason, failures), ("outputs_not_stored", "3"));
    assert!(error.contains("no room"), "{error}");
    handle.stop().await;
    assert_eq!(stored(&bus).await, [("output".to_owned(), 1)]);
    bus.close().await.unwrap();
}

pub(in crate::contract) async fn c12_too_many_outputs_are_a_dead_letter(trial: Trial) {
    let bus = trial.bus().await;
    let refused = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&refused);
    let handler = move |event: Noted, cx: Context| {
        let refused = Arc::clone(&counted);
        async move {
            let many = match event.n {
                0 => 1_001,
                _ => 1_000,
            };
            for n in 0..many {
                // A handler that does not look at the error is not done either.
                if let Err(error) = cx.publish(placed(&event.n.to_string(), n)).await {
                    assert_eq!((error.kind(), n), (ErrorKind::OverLimit, 1_000));
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    };
    bus.consumer("flooding")
        .concurrency(1)
        .on(handler)
        .start()
        .await
        .unwrap();
    bus.publish(Noted { n: 0 }).await.unwrap();
    let letters = letters(&bus, 1).await;
    let [_, reason, failures, _] = story(&letters[0]);
    assert_eq!((reason, failures), ("outputs_over_limit", "1"));
    assert_eq!(refused.load(Ordering::Relaxed), 1);
    let mut orders = bus.replay::<OrderPlaced>(Start::First).await.unwrap();
    bus.publish(Noted { n: 1 }).await.unwrap();
    let got = received(&mut orders, 1_000, |event| (event.order.clone(), event.n)).await;
    let expected: Vec<_> = (0..1_000).map(|n| ("1".to_owned(), n)).collect();
    assert_eq!(
        got, expected,
        "an output of the dead letter was stored, or one was lost"
    );
    bus.close().await.unwrap();
}
