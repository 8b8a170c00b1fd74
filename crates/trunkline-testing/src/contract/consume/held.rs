//! Held keys: D4.
//!
//! That something does not run is shown by a marker: an event of another key in the same partition,
//! published later. With one permit a member runs what may run in the order of the stream, so that
//! whatever was not held would have run before the marker.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use trunkline::core::key;
use trunkline::dead_letter::{Changed, Discard, Following, Letter, Stands};
use trunkline::{Bus, ErrorKind, FailureExt, Item, Start};

use super::super::Trial;
use crate::fixture::{Noted, OrderPlaced};

/// The key that is held.
const HELD: &str = "order-0";
/// Partitions of every consumer.
const PARTITIONS: u8 = 16;

/// A run: the key and the number.
type Ran = (String, u32);

/// A consumer that holds keys, with one member at a time, and what makes its handler fail.
struct Ledger {
    trial: Trial,
    /// The numbers of the held key whose events are given up at once.
    broken: Arc<Mutex<BTreeSet<u32>>>,
    seen: mpsc::UnboundedSender<Ran>,
    ran: mpsc::UnboundedReceiver<Ran>,
    /// A key in the partition of the held one, and one in another.
    neighbour: String,
    other: String,
}

impl Ledger {
    fn new(trial: Trial) -> Self {
        let (seen, ran) = mpsc::unbounded_channel();
        let partition = |key: &str| key::slot(key) % PARTITIONS;
        let keys = (1..).map(|n| format!("order-{n}"));
        let with = |same: bool| {
            let mut keys = keys.clone();
            keys.find(|key| (partition(key) == partition(HELD)) == same)
                .unwrap()
        };
        Self {
            trial,
            broken: Arc::default(),
            seen,
            ran,
            neighbour: with(true),
            other: with(false),
        }
    }

    async fn start(&self) -> Bus {
        let bus = self.trial.bus().await;
        let (broken, seen) = (Arc::clone(&self.broken), self.seen.clone());
        let handler = move |placed: OrderPlaced| {
            let fails = placed.order == HELD && broken.lock().contains(&placed.n);
            // Nobody may be left to be told, at the end of a property.
            let _ = seen.send((placed.order, placed.n));
            async move {
                match fails {
                    true => Err("the account is locked".permanent()),
                    false => Ok(()),
                }
            }
        };
        let consumer = bus.consumer("ledger").hold_key().concurrency(1);
        consumer.on(handler).start().await.unwrap();
        bus
    }

    async fn publish(&self, bus: &Bus, key: &str, n: u32) {
        let order = key.to_owned();
        bus.publish(OrderPlaced { order, n }).await.unwrap();
    }

    /// The next runs, as numbers of the held key.
    async fn runs_of_held(&mut self, numbers: &[u32]) {
        for n in numbers {
            assert_eq!(self.ran.recv().await.unwrap(), (HELD.to_owned(), *n));
        }
    }

    /// Publishes one event of each other key, which are all that runs.
    async fn only_others_run(&mut self, bus: &Bus, n: u32) {
        for key in [self.other.clone(), self.neighbour.clone()] {
            self.publish(bus, &key, n).await;
            assert_eq!(self.ran.recv().await.unwrap(), (key, n), "it was not held");
        }
    }
}

async fn next(following: &mut Following, bus: &Bus) -> Letter {
    let buried = match following.recv().await {
        Some(Item::Event(buried)) => buried,
        other => panic!("no dead letter: {other:?}"),
    };
    let letters = bus.dead_letters();
    let text = format!("{}/{}/{}", buried.consumer, buried.stream, buried.entry.seq);
    letters.find(&text.parse().unwrap()).await.unwrap()
}

pub(in crate::contract) async fn d4_a_replay_runs_in_its_place_and_what_waited_for_it_after_it(
    trial: Trial,
) {
    let mut ledger = Ledger::new(trial);
    let bus = ledger.start().await;
    let mut following = bus.dead_letters().follow(Start::First).await.unwrap();
    ledger.broken.lock().insert(1);
    for n in 0..4 {
        ledger.publish(&bus, HELD, n).await;
    }
    ledger.runs_of_held(&[0, 1]).await;
    let letter = next(&mut following, &bus).await;
    ledger.only_others_run(&bus, 0).await;
    drop(following);
    bus.close().await.unwrap();

    // Whoever owns the key next holds it too, and what comes then waits as well.
    let bus = ledger.start().await;
    ledger.publish(&bus, HELD, 4).await;
    ledger.only_others_run(&bus, 1).await;
    let status = bus.consumer_status().await.unwrap();
    assert_eq!((status[0].holding, status[0].dead), (1, 1), "{status:?}");

    // A replay that fails holds it again.
    let letters = bus.dead_letters();
    let asked = letters.replay(&letter).await.unwrap();
    assert!(matches!(asked, Changed::Now(_)), "{asked:?}");
    ledger.runs_of_held(&[1]).await;
    ledger.only_others_run(&bus, 2).await;
    bus.close().await.unwrap();

    // One that was asked for while no member ran is done by the next.
    let operator = ledger.trial.bus().await;
    let letters = operator.dead_letters();
    let letter = letters.find(&letter.id).await.unwrap();
    assert_eq!(letter.stands(), Stands::Dead);
    let asked = letters.replay(&letter).await.unwrap();
    assert!(matches!(asked, Changed::Now(_)), "{asked:?}");
    ledger.broken.lock().clear();
    let bus = ledger.start().await;
    ledger.runs_of_held(&[1, 2, 3, 4]).await;
    ledger.publish(&bus, HELD, 5).await;
    ledger.runs_of_held(&[5]).await;
    bus.close().await.unwrap();
    let letter = letters.find(&letter.id).await.unwrap();
    assert_eq!(letter.stands(), Stands::Replayed);
    let status = operator.consumer_status().await.unwrap();
    assert_eq!((status[0].holding, status[0].dead), (0, 1), "{status:?}");
    operator.close().await.unwrap();
}

pub(in crate::contract) async fn d4_discarding_a_dead_letter_lets_go_what_waited_for_it(
    trial: Trial,
) {
    let mut ledger = Ledger::new(trial);
    let bus = ledger.start().await;
    let mut following = bus.dead_letters().follow(Start::First).await.unwrap();
    ledger.broken.lock().extend([1, 3]);
    for n in 0..5 {
        ledger.publish(&bus, HELD, n).await;
    }
    ledger.runs_of_held(&[0, 1]).await;
    let letter = next(&mut following, &bus).await;
    ledger.only_others_run(&bus, 0).await;
    let discard = Discard::because("it was paid by hand");
    let letters = bus.dead_letters();
    let discarded = letters.discard(&letter, &discard).await.unwrap();
    assert!(matches!(discarded, Changed::Now(_)), "{discarded:?}");
    ledger.runs_of_held(&[2, 3]).await;
    let letter = next(&mut following, &bus).await;
    ledger.only_others_run(&bus, 1).await;
    drop(following);
    bus.close().await.unwrap();

    // While no member runs nobody hears of it, so that the next has to find out.
    let operator = ledger.trial.bus().await;
    let letters = operator.dead_letters();
    let discarded = letters.discard(&letter, &discard).await.unwrap();
    assert!(matches!(discarded, Changed::Now(_)), "{discarded:?}");
    let bus = ledger.start().await;
    ledger.runs_of_held(&[4]).await;
    bus.close().await.unwrap();
    operator.close().await.unwrap();
}

pub(in crate::contract) async fn d4_a_consumer_that_stops_holding_lets_go_what_it_held(
    trial: Trial,
) {
    let mut ledger = Ledger::new(trial);
    let bus = ledger.start().await;
    ledger.broken.lock().insert(0);
    for n in 0..3 {
        ledger.publish(&bus, HELD, n).await;
    }
    ledger.runs_of_held(&[0]).await;
    ledger.only_others_run(&bus, 0).await;
    bus.close().await.unwrap();
    let bus = ledger.trial.bus().await;
    let seen = ledger.seen.clone();
    let handler = move |placed: OrderPlaced| {
        let _ = seen.send((placed.order, placed.n));
        async {}
    };
    let member = bus.consumer("ledger").on(handler).start().await.unwrap();
    ledger.runs_of_held(&[1, 2]).await;
    member.stop().await;
    bus.close().await.unwrap();
}

pub(in crate::contract) async fn d4_holding_keys_without_key_order_is_refused(trial: Trial) {
    let bus = trial.bus().await;
    let unordered = bus.consumer("impossible").hold_key().unordered();
    let unkeyed = bus.consumer("impossible").hold_key();
    for (consumer, why) in [
        (unordered.on(|_: OrderPlaced| async {}), "unordered()"),
        (unkeyed.on(|_: Noted| async {}), "has a key"),
    ] {
        let error = consumer.start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.message().contains("`hold_key`"), "{error}");
        assert!(error.message().contains(why), "{error}");
    }
    bus.close().await.unwrap();
}
