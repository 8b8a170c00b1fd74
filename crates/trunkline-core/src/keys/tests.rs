use proptest::prelude::*;

use super::*;
use crate::engine::{Commit, Committed, Expectation, Op};

/// The keys of one bucket in the plainest way: everything is looked through at every step.
#[derive(Default)]
struct Naive {
    rev: Rev,
    keys: Vec<(StateKey, Kept)>,
    ids: Vec<(SmolStr, Timestamp)>,
}

impl Naive {
    fn expire(&mut self, now: Timestamp) {
        let mut due: Vec<_> = self
            .keys
            .iter()
            .filter_map(|(key, kept)| Some((kept.ends.filter(|end| *end <= now)?, key.clone())))
            .collect();
        due.sort();
        for (_, key) in due {
            self.rev += 1;
            self.keys.retain(|(other, _)| *other != key);
        }
    }

    fn commit(&mut self, commit: &Commit, now: Timestamp) -> Committed {
        self.expire(now);
        let remembers =
            |(id, at): &(SmolStr, Timestamp)| *id == commit.id && now.since(*at) <= COMMIT_WINDOW;
        if self.ids.iter().any(remembers) {
            return Committed::Duplicate;
        }
        let found = |key: &StateKey| {
            let kept = self.keys.iter().find(|(other, _)| other == key);
            kept.map(|(_, kept)| kept.rev)
        };
        let ops = commit.ops.iter().map(|op| (op.key(), op.expect()));
        for (key, expect) in commit.fences.iter().map(|(key, e)| (key, *e)).chain(ops) {
            let conflict = match expect {
                Expectation::Any => false,
                Expectation::Absent => found(key).is_some(),
                Expectation::Rev(rev) => found(key) != Some(rev),
            };
            if conflict {
                return Committed::Conflict {
                    key: key.clone(),
                    found: found(key),
                };
            }
        }
        self.ids.push((commit.id.clone(), now));
        let mut revs = Vec::new();
        for op in &commit.ops {
            self.rev += 1;
            revs.push(self.rev);
            self.keys.retain(|(key, _)| key != op.key());
            if let Op::Put {
                key, value, ttl, ..
            } = op
            {
                let kept = Kept {
                    value: value.clone(),
                    rev: self.rev,
                    at: now,
                    ends: ttl.map(|ttl| now.plus(ttl)),
                };
                self.keys.push((key.clone(), kept));
            }
        }
        Committed::Done(revs)
    }

    fn sorted(&self) -> Vec<(StateKey, Kept)> {
        let mut keys = self.keys.clone();
        keys.sort_by(|a, b| a.0.cmp(&b.0));
        keys
    }
}

fn key(number: u8) -> StateKey {
    StateKey::new(["a", "a.b", "a.b.c", "a-b", "b", "c.d"][usize::from(number % 6)]).unwrap()
}

fn expectation() -> impl Strategy<Value = Expectation> {
    prop_oneof![
        4 => Just(Expectation::Any),
        1 => Just(Expectation::Absent),
        2 => (1u64..30).prop_map(Expectation::Rev),
    ]
}

fn commit() -> impl Strategy<Value = Commit> {
    let op = (
        any::<u8>(),
        expectation(),
        0u8..3,
        prop::option::of(0u64..90),
    );
    let fence = (any::<u8>(), expectation());
    let ops = prop::collection::vec(op, 0..4);
    (0u8..40, prop::collection::vec(fence, 0..2), ops).prop_map(|(id, fences, ops)| {
        let mut seen = BTreeSet::new();
        let ops = ops
            .into_iter()
            .filter(|(which, ..)| seen.insert(key(*which)))
            .map(|(which, expect, what, ttl)| match what {
                0 => Op::Delete {
                    key: key(which),
                    expect,
                },
                _ => Op::Put {
                    key: key(which),
                    value: Bytes::copy_from_slice(&[which, what]),
                    expect,
                    ttl: ttl.map(Duration::from_secs),
                },
            });
        Commit {
            id: SmolStr::new(format!("c{id}")),
            fences: fences
                .into_iter()
                .map(|(which, expect)| (key(which), expect))
                .collect(),
            ops: ops.collect(),
        }
    })
}

fn all(keys: &Keys) -> Vec<(StateKey, Kept)> {
    keys.after(None)
        .map(|(key, kept)| (key.clone(), kept.clone()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Decided ahead or applied at once, in groups of any size: the answers and the keys are those
    /// of the plainest model, and a watch that looks now and then ends with the same keys.
    #[test]
    fn keys_do_what_a_naive_model_does(
        steps in prop::collection::vec((commit(), 0u64..40, prop::bool::weighted(0.3)), 1..60),
    ) {
        let (mut keys, mut naive, mut now) = (Keys::default(), Naive::default(), Timestamp::from_nanos(0));
        let (mut ahead, mut staged) = (Ahead::default(), Vec::new());
        let (mut seen, mut watched) = (0, BTreeMap::new());
        for (commit, seconds, flush) in steps {
            now = now.plus(Duration::from_secs(seconds));
            let expected = naive.commit(&commit, now);
            while let Some(due) = keys.due(&mut ahead, now, 2) {
                ahead.note(&due);
                staged.push(due);
            }
            let answer = match keys.decide(&ahead, commit, now).changes() {
                Ok(changes) => {
                    let answer = changes.committed();
                    ahead.note(&changes);
                    staged.push(changes);
                    answer
                }
                Err(answer) => answer,
            };
            prop_assert_eq!(answer, expected);
            if flush {
                for changes in staged.drain(..) {
                    keys.apply(changes, |_, _, _| {});
                }
                ahead = Ahead::default();
                prop_assert_eq!(all(&keys), naive.sorted());
                prop_assert_eq!(keys.rev(), naive.rev);
                let first = naive.keys.iter().filter_map(|(_, kept)| kept.ends).min();
                prop_assert_eq!(keys.next_end(), first);
                while let Some(changed) = keys.changed(None, &mut seen).unwrap() {
                    match changed {
                        Changed::Put(key, kept) => watched.insert(key, kept),
                        Changed::Deleted(key, ..) | Changed::Expired(key, ..) => watched.remove(&key),
                    };
                }
                prop_assert_eq!(watched.iter().map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>(), all(&keys));
            }
        }
    }

    /// A copy that was taken key by key while the bucket went on, with the changes since its start
    /// applied, is the bucket.
    #[test]
    fn a_copy_taken_meanwhile_catches_up(
        steps in prop::collection::vec((commit(), 0u64..40), 1..80),
        start in 0usize..60,
        every in 1usize..5,
    ) {
        let (mut keys, mut now) = (Keys::default(), Timestamp::from_nanos(0));
        let (mut journal, mut copy, mut cursor, mut copying) = (Vec::new(), Keys::default(), None, false);
        for (index, (commit, seconds)) in steps.into_iter().enumerate() {
            now = now.plus(Duration::from_secs(seconds));
            if index == start {
                (copy, copying) = (Keys::starting_at(keys.rev()), true);
                journal.clear();
            }
            if copying && index % every == 0 {
                let next = keys.after(cursor.as_ref()).next();
                if let Some((key, kept)) = next {
                    copy.put_in(key.clone(), kept.clone());
                    cursor = Some(key.clone());
                }
            }
            if let Some(changes) = keys.due(&mut Ahead::default(), now, usize::MAX) {
                journal.push(changes.clone());
                keys.apply(changes, |_, _, _| {});
            }
            if let Decision::Change(changes) = keys.decide(&Ahead::default(), commit, now) {
                journal.push(changes.clone());
                keys.apply(changes, |_, _, _| {});
            }
        }
        if copying {
            for (key, kept) in keys.after(cursor.as_ref()) {
                copy.put_in(key.clone(), kept.clone());
            }
        }
        for changes in journal {
            copy.apply(changes, |_, _, _| {});
        }
        prop_assert_eq!(all(&copy), all(&keys));
        prop_assert_eq!(copy.rev(), keys.rev());
        prop_assert_eq!(copy.next_end(), keys.next_end());
    }
}

#[test]
fn a_watch_that_is_too_far_behind_is_told_to_scan_anew() {
    let mut keys: Keys = Keys::starting_at(7);
    let error = keys.changed(None, &mut 6).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Conflict);
    assert_eq!(keys.changed(None, &mut 7).unwrap(), None);
    for number in 0..=MAX_CHANGES as u64 {
        keys.apply(
            Changes {
                id: None,
                at: Timestamp::from_nanos(0),
                first: 8 + number,
                steps: vec![Step::Delete(key(0))],
            },
            |_, _, _| {},
        );
    }
    assert!(keys.changed(None, &mut 7).is_err());
    assert!(keys.changed(None, &mut 8).unwrap().is_some());
}

#[test]
fn changes_are_kept_within_a_limit_of_bytes() {
    let mut keys: Keys = Keys::default();
    for number in 0..40 {
        let step = Step::Put {
            key: key(0),
            value: Bytes::from(vec![0; 1 << 20]),
            ends: None,
        };
        keys.apply(
            Changes {
                id: None,
                at: Timestamp::from_nanos(0),
                first: 1 + number,
                steps: vec![step],
            },
            |_, _, _| {},
        );
    }
    assert!(keys.changed(None, &mut 7).is_err());
    assert!(keys.changed(None, &mut 8).unwrap().is_some());
    assert_eq!(keys.change_bytes, MAX_CHANGE_BYTES);
}
