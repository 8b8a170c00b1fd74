use proptest::prelude::*;

use super::*;

const LEASE: Duration = Duration::from_secs(30);
const MAX_PENDING: usize = 6;

fn ledger() -> (Ledger, Instant) {
    (Ledger::new(1, LEASE), Instant::now())
}

#[test]
fn the_floor_stays_below_what_is_pending() {
    let (mut ledger, now) = ledger();
    let first = ledger.lend(1, now).0;
    let third = ledger.lend(3, now).0;
    ledger.settle(third, Settle::Ack, now).unwrap();
    assert_eq!(
        (ledger.floor(), ledger.next(), ledger.in_flight()),
        (0, 4, 1)
    );
    ledger.settle(first, Settle::Ack, now).unwrap();
    assert_eq!(ledger.floor(), 3);
}

#[test]
fn a_lease_that_ended_settles_nothing() {
    let (mut ledger, now) = ledger();
    let old = ledger.lend(1, now).0;
    assert_eq!(ledger.expire(now + LEASE), 1);
    assert_eq!(
        ledger.settle(old, Settle::Ack, now).unwrap_err().kind(),
        ErrorKind::StaleLease
    );
    let (new, deliveries) = ledger.lend_again(now + LEASE).unwrap();
    assert_eq!(deliveries, 2);
    assert_eq!(
        ledger.settle(old, Settle::Ack, now).unwrap_err().kind(),
        ErrorKind::StaleLease
    );
    ledger.settle(new, Settle::Ack, now).unwrap();
    assert_eq!(
        ledger.settle(new, Settle::Ack, now).unwrap_err().kind(),
        ErrorKind::StaleLease
    );
}

#[test]
fn an_extended_lease_ends_later() {
    let (mut ledger, now) = ledger();
    let token = ledger.lend(1, now).0;
    let later = now + LEASE / 2;
    ledger.settle(token, Settle::Extend, later).unwrap();
    assert_eq!(ledger.expire(now + LEASE), 0);
    assert_eq!(ledger.next_end(), Some(later + LEASE));
    assert_eq!(ledger.expire(later + LEASE), 1);
}

#[test]
fn what_retention_takes_is_told_once_and_leases_are_left_alone() {
    let (mut ledger, now) = ledger();
    let leased = ledger.lend(1, now).0;
    let returned = ledger.lend(2, now).0;
    ledger.settle(returned, Settle::GiveBack, now).unwrap();
    assert_eq!(ledger.trim(6), Some(Gap { from: 2, to: 5 }));
    assert_eq!(ledger.lost_at_most(), 4);
    assert_eq!(ledger.trim(6), None);
    ledger.settle(leased, Settle::Ack, now).unwrap();
    assert_eq!((ledger.floor(), ledger.next()), (5, 6));
}

proptest! {
    /// Whatever happens in whatever order, an event is settled or pending, never both or
    /// neither, and one that is never settled keeps coming back.
    #[test]
    fn every_event_is_settled_or_comes_back(
        steps in prop::collection::vec((0u8..6, 0usize..8, 0u64..40), 1..200),
    ) {
        let (mut ledger, mut now) = ledger();
        let mut held: Vec<Token> = Vec::new();
        let mut acked = BTreeSet::new();
        let mut lent = 0;
        for (what, which, seconds) in steps {
            match what {
                0 => {
                    lent = ledger.next();
                    held.push(ledger.lend(lent, now).0);
                }
                1 => held.extend(ledger.lend_again(now).map(|(token, _)| token)),
                2 => {
                    now += Duration::from_secs(seconds);
                    ledger.expire(now);
                }
                _ if held.is_empty() => {}
                _ => {
                    let token = held[which % held.len()];
                    let settle = [Settle::Ack, Settle::GiveBack, Settle::Extend][usize::from(what) % 3];
                    if ledger.settle(token, settle, now).is_ok() && settle == Settle::Ack {
                        prop_assert!(acked.insert(token.seq), "{} was settled twice", token.seq);
                    }
                }
            }
            prop_assert_eq!(ledger.in_flight() + ledger.returned() + acked.len(), lent as usize);
            prop_assert!(acked.iter().take_while(|seq| **seq <= ledger.floor()).count() as u64 == ledger.floor());
        }
        while ledger.floor() < lent {
            now += LEASE;
            ledger.expire(now);
            while let Some((token, _)) = ledger.lend_again(now) {
                ledger.settle(token, Settle::Ack, now).unwrap();
            }
        }
    }

    /// Restarted at any time, from what is settled or from what its acknowledgements wrote down, a
    /// consumer sees no acknowledged event again and every other one that its filter wants, and
    /// what it keeps is never more than what was pending.
    #[test]
    fn a_restart_repeats_what_was_not_acknowledged_and_nothing_else(
        steps in prop::collection::vec((0u8..10, 0usize..8, 0u64..40), 1..200),
        sparse in 1u64..4,
    ) {
        let (mut ledger, mut now) = ledger();
        let (mut held, mut acked, mut first, mut tail): (Vec<Token>, _, _, _) = (Vec::new(), BTreeSet::new(), 1, 20);
        let mut written = Settled::default();
        let matches = |seq: Seq| seq.is_multiple_of(sparse);
        let mut lost = 0;
        for (what, which, number) in steps {
            match what {
                0..=2 => {
                    let mut seq = ledger.next();
                    while seq < tail && ledger.in_flight() + ledger.returned() < MAX_PENDING {
                        if let Some(after) = ledger.settled_before(seq) {
                            seq = after;
                        } else if matches(seq) && seq >= first {
                            held.push(ledger.lend(seq, now).0);
                            prop_assert!(!acked.contains(&seq), "{} was acknowledged", seq);
                            break;
                        } else {
                            seq += 1;
                        }
                        ledger.pass(seq);
                        seq = ledger.next();
                    }
                }
                3 => held.extend(ledger.lend_again(now).map(|(token, _)| token)),
                4 => {
                    now += Duration::from_secs(number);
                    ledger.expire(now);
                }
                5 => tail += number,
                6 if number < 10 => {
                    first = (first + number).min(tail);
                    if let Some(gap) = ledger.trim(first) {
                        prop_assert!(gap.from <= gap.to && gap.to < first);
                        prop_assert!(ledger.lost_at_most() > lost);
                        lost = ledger.lost_at_most();
                        written = ledger.settled();
                    }
                }
                7 => {
                    let pending = ledger.in_flight() + ledger.returned();
                    let settled = ledger.settled();
                    prop_assert_eq!(settled.floor(), ledger.floor());
                    prop_assert!(settled.above().len() <= pending + ledger.settled_ahead().count());
                    // What was written down lacks at most what was passed over since.
                    for (from, to) in written.above() {
                        prop_assert_eq!(ledger.settled_around(from).map(|around| around.0 <= from && around.1 >= to), Some(true));
                    }
                    prop_assert!(written.above().len() <= MAX_PENDING + 1);
                    let settled = if which % 2 == 0 { settled } else { written.clone() };
                    held.clear();
                    written = settled.clone();
                    ledger = Ledger::restore(settled.clone(), lost, LEASE);
                    prop_assert_eq!(ledger.settled(), settled);
                }
                _ if held.is_empty() => {}
                _ => {
                    let token = held[which % held.len()];
                    if ledger.settle(token, Settle::Ack, now).is_ok() {
                        prop_assert!(acked.insert(token.seq), "{} was settled twice", token.seq);
                        let (from, to) = ledger.settled_around(token.seq).unwrap();
                        prop_assert!((from..=to).contains(&token.seq));
                        written.add(from, to);
                    }
                }
            }
        }
        // Everything that matches and is there is acknowledged in the end, without a restart's help.
        let mut seq = first;
        while seq < tail {
            now += LEASE;
            ledger.expire(now);
            ledger.trim(first);
            while let Some((token, _)) = ledger.lend_again(now) {
                ledger.settle(token, Settle::Ack, now).unwrap();
                prop_assert!(acked.insert(token.seq));
            }
            seq = ledger.next();
            match ledger.settled_before(seq) {
                Some(after) => ledger.pass(after),
                None if seq < tail && matches(seq) => {
                    let token = ledger.lend(seq, now).0;
                    ledger.settle(token, Settle::Ack, now).unwrap();
                    prop_assert!(acked.insert(token.seq), "{} was acknowledged", token.seq);
                }
                None => ledger.pass(seq + 1),
            }
        }
        for seq in (first..tail).filter(|seq| matches(*seq)) {
            prop_assert!(acked.contains(&seq), "{} never came", seq);
        }
    }

    /// Stretches are a set of numbers, kept apart and in order.
    #[test]
    fn what_is_settled_is_a_set(adds in prop::collection::vec((1u64..60, 0u64..8), 0..40)) {
        let (mut settled, mut naive) = (Settled::default(), BTreeSet::new());
        for (from, len) in adds {
            settled.add(from, from + len);
            naive.extend(from..=from + len);
            let floor = (1..).take_while(|seq| naive.contains(seq)).last().unwrap_or(0);
            prop_assert_eq!(settled.floor(), floor);
            let above: BTreeSet<_> = settled.above().flat_map(|(from, to)| from..=to).collect();
            prop_assert_eq!(above, naive.iter().copied().filter(|seq| *seq > floor).collect::<BTreeSet<_>>());
            prop_assert!(settled.above().zip(settled.above().skip(1)).all(|(a, b)| a.1 + 1 < b.0));
        }
    }
}
