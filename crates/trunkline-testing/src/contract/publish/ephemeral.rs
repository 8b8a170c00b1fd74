//! What is not stored still reaches exactly those who listen: P2 and P6.
//!
//! Nobody can read an ephemeral event again, so a filter that matches too little or a listener
//! that falls behind must not go unnoticed, nor be paid for by the other listeners.

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use smallvec::smallvec;
use trunkline::core::Headers;
use trunkline::core::engine::{Heard, Message};
use trunkline::core::wire::Body;
use trunkline::{Filter, Item};

use super::super::Trial;
use super::received;
use crate::fixture::Moved;

pub(in crate::contract) async fn p2_ten_thousand_mixed_subscriptions_get_exactly_their_own(
    trial: Trial,
) {
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
    let mut texts = Vec::with_capacity(10_000);
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
        texts.push(filter.join("."));
    }
    // Many at once, because each may be a round trip.
    let mut listeners: Vec<_> = stream::iter(texts)
        .map(async |text| {
            let filters = [Filter::new(&text).unwrap()];
            let listener = receiver.live().listen(&filters, None, 1_000).await;
            (text, listener.unwrap())
        })
        .buffered(64)
        .collect()
        .await;
    // Twice the same: what leaked or came twice in the first round is in the way of the second.
    for round in ["first", "second"] {
        for subject in &subjects {
            let sent = sender.live().send(smallvec![message(subject)]);
            sent.completed().await.unwrap();
        }
        for (filter, listener) in &mut listeners {
            let tokens: Vec<&str> = filter.split('.').collect();
            let own = subjects
                .iter()
                .filter(|subject| matches(&tokens, &subject.split('.').collect::<Vec<_>>()));
            let expected: Vec<&str> = own.map(String::as_str).collect();
            let mut out = Vec::new();
            while out.len() < expected.len() {
                assert!(
                    matches!(listener.receive(1_000, &mut out).await, Heard::Messages(_)),
                    "{filter} lost some"
                );
            }
            let got: Vec<&str> = out.iter().map(|message| message.subject.as_str()).collect();
            assert_eq!(got, expected, "{filter} in the {round} round");
            for message in out {
                // The body says which subject it was sent to, so that a leak shows as one.
                assert_eq!(message.body.to_bytes().unwrap(), message.subject.as_str());
            }
        }
    }
    for (filter, listener) in &mut listeners {
        let mut out = Vec::new();
        let more = listener.receive(1_000, &mut out).now_or_never();
        assert_eq!(more, None, "{filter} got what is not its own: {out:?}");
    }
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

pub(in crate::contract) async fn p6_a_slow_subscriber_loses_its_own_oldest_and_learns_of_it(
    trial: Trial,
) {
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
