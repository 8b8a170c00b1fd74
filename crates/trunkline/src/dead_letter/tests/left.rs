//! What a crash or retention leaves behind, and who follows.

use super::*;
use crate::Item;

#[tokio::test]
async fn a_sweep_removes_what_a_crash_and_retention_left() {
    let bus = bus().await;
    let letters = bus.dead_letters();
    for seq in 1..=5 {
        buried(&bus, &entry("billing", seq, "a")).await;
    }
    // Retention took the second; the third is being replayed and lost its entry too.
    let three = letters.find(&id("billing/EVENTS/3")).await.unwrap();
    assert!(matches!(
        letters.replay(&three).await.unwrap(),
        Changed::Now(_)
    ));
    for seq in [2, 3] {
        remove(&bus.inner, seq).await.unwrap();
    }
    let two = letters.find(&id("billing/EVENTS/2")).await.unwrap();
    assert!(!two.has_entry);
    let refused = letters.replay(&two).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSuchDeadLetter);
    // The key of the fourth says that it is dealt with, and the entry is there still.
    let four = letters.find(&id("billing/EVENTS/4")).await.unwrap();
    let now = bus.inner.clock.now();
    let asked = four.record.unwrap().replaying("ann", now);
    let done = asked.unwrap().replayed(now).unwrap();
    put(&bus, "billing.EVENTS.0.dlq.4", &done.encode()).await;
    assert_eq!(
        letters.sweep().await.unwrap(),
        Swept {
            entries: 1,
            keys: 1
        }
    );
    assert_eq!(stored(&bus).await, [1, 5]);
    assert_eq!(
        listed(&bus, Selection::new()).await,
        [
            "billing/EVENTS/1 dead",
            "billing/EVENTS/3 replaying",
            "billing/EVENTS/5 dead"
        ]
    );
    assert_eq!(letters.sweep().await.unwrap(), Swept::default());
}

#[tokio::test]
async fn an_entry_that_took_the_place_of_another_is_not_removed_with_it() {
    let bus = bus().await;
    let kept = buried(&bus, &entry("billing", 1, "a")).await;
    // The key of a letter from before the dead-letter stream was made anew.
    let old = entry("audit", 5, "a");
    note(&bus, &old, &Record::dead(&old, kept, None)).await;
    let letters = bus.dead_letters();
    let letter = letters.find(&id("audit/EVENTS/5")).await.unwrap();
    assert!(matches!(
        letters
            .discard(&letter, &Discard::because("old"))
            .await
            .unwrap(),
        Changed::Now(_)
    ));
    assert_eq!(stored(&bus).await, [kept]);
}

#[tokio::test]
async fn followers_are_told_of_every_dead_letter_and_of_what_is_none() {
    let bus = bus().await;
    buried(&bus, &entry("billing", 1, "a")).await;
    let mut following = bus.dead_letters().follow(Position::First).await.unwrap();
    let Some(Item::Event(first)) = following.recv().await else {
        panic!("no dead letter")
    };
    assert_eq!(
        (first.seq, first.consumer.as_str(), first.error.as_str()),
        (1, "billing", "no 1")
    );
    let event = bus.dead_letters().event(&first).unwrap();
    assert_eq!(event.event_type(), "a");
    stray(&bus, "dlq.odd", Headers::new()).await;
    buried(&bus, &entry("billing", 2, "a")).await;
    let Some(Item::Invalid(error)) = following.recv().await else {
        panic!("no error")
    };
    assert!(
        error.to_string().contains("entry 2 of EVENTS_DLQ"),
        "{error}"
    );
    // It goes on where somebody left off.
    let mut resumed = bus
        .dead_letters()
        .follow(Position::Seq(first.seq + 2))
        .await
        .unwrap();
    for following in [&mut following, &mut resumed] {
        let Some(Item::Event(second)) = following.recv().await else {
            panic!("no dead letter")
        };
        assert_eq!(second.entry.seq, 2);
    }
    bus.close().await.unwrap();
    assert!(following.recv().await.is_none());
}
