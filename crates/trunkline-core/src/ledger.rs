//! Who has what of a shared consumer: one state machine for every engine that keeps its own.
//!
//! No I/O, no clock: every call that depends on time is given `now`, so that it can be simulated.
//!
//! ```text
//!   settled      │  pending: leased or returned, with settled ones between  │  not looked at
//!   1 … floor    │  floor+1 …………………………………………………………………… next-1             │  next …
//! ```
//!
//! A sequence below `next` that is not pending is settled, or never matched. Only what is
//! pending takes memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::engine::{Gap, Seq, Settle, Token};
use crate::error::{Error, ErrorKind, Result};

/// The progress of one shared consumer.
#[derive(Debug)]
pub struct Ledger {
    next: Seq,
    pending: BTreeMap<Seq, Pending>,
    /// Pending and not leased: the keys of `pending` without a lease.
    returned: BTreeSet<Seq>,
    /// Leases in the order in which they end. Every lease lasts equally long and is renewed to a
    /// later end, so a queue is sorted; entries that no longer hold are skipped.
    ends: VecDeque<(Instant, Token)>,
    last_lease: u64,
    lease: Duration,
    lost: u64,
}

#[derive(Debug)]
struct Pending {
    /// The lease that holds it and when that ends; none when returned.
    lease: Option<(u64, Instant)>,
    deliveries: u32,
}

impl Ledger {
    /// A consumer that has looked at nothing below `next` and leases for `lease`.
    pub fn new(next: Seq, lease: Duration) -> Self {
        Self {
            next,
            pending: BTreeMap::new(),
            returned: BTreeSet::new(),
            ends: VecDeque::new(),
            last_lease: 0,
            lease,
            lost: 0,
        }
    }

    /// The first sequence not looked at.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// The sequence up to which everything is settled.
    pub fn floor(&self) -> Seq {
        self.pending.keys().next().copied().unwrap_or(self.next) - 1
    }

    /// How many events are under a lease.
    pub fn in_flight(&self) -> usize {
        self.pending.len() - self.returned.len()
    }

    /// How many events wait to be delivered again.
    pub fn returned(&self) -> usize {
        self.returned.len()
    }

    /// How many sequences retention took before they were settled, at most.
    pub fn lost_at_most(&self) -> u64 {
        self.lost
    }

    /// Changes how long leases given from now on last.
    pub fn set_lease(&mut self, lease: Duration) {
        self.lease = lease;
    }

    /// Passes over everything below `to`: it does not match.
    pub fn pass(&mut self, to: Seq) {
        self.next = self.next.max(to);
    }

    /// Leases a sequence at or above [`next`](Self::next), which passes it.
    pub fn lend(&mut self, seq: Seq, now: Instant) -> (Token, u32) {
        debug_assert!(seq >= self.next, "a sequence is lent as new only once");
        self.pass(seq + 1);
        self.pending.insert(
            seq,
            Pending {
                lease: None,
                deliveries: 0,
            },
        );
        self.lease(seq, now)
    }

    /// The lowest sequence that is to be delivered again.
    pub fn first_returned(&self) -> Option<Seq> {
        self.returned.first().copied()
    }

    /// Leases [`first_returned`](Self::first_returned).
    pub fn lend_again(&mut self, now: Instant) -> Option<(Token, u32)> {
        let seq = self.returned.pop_first()?;
        Some(self.lease(seq, now))
    }

    fn lease(&mut self, seq: Seq, now: Instant) -> (Token, u32) {
        self.last_lease += 1;
        let (token, end) = (
            Token {
                seq,
                lease: self.last_lease,
            },
            now + self.lease,
        );
        let pending = self.pending.entry(seq).or_insert(Pending {
            lease: None,
            deliveries: 0,
        });
        pending.lease = Some((token.lease, end));
        pending.deliveries = pending.deliveries.saturating_add(1);
        let deliveries = pending.deliveries;
        self.ends.push_back((end, token));
        (token, deliveries)
    }

    /// Settles one delivery.
    ///
    /// # Errors
    /// [`ErrorKind::StaleLease`] when it is settled already or under another lease by now.
    pub fn settle(&mut self, token: Token, settle: Settle, now: Instant) -> Result<()> {
        let held = self
            .pending
            .get_mut(&token.seq)
            .and_then(|pending| pending.lease.as_mut());
        let Some((_, end)) = held.filter(|(lease, _)| *lease == token.lease) else {
            return Err(Error::new(
                ErrorKind::StaleLease,
                format!(
                    "the lease on event {} has ended; it was settled or delivered again",
                    token.seq
                ),
            ));
        };
        match settle {
            Settle::Ack => {
                self.pending.remove(&token.seq);
            }
            Settle::GiveBack => self.give_back(token.seq),
            Settle::Extend => {
                *end = now + self.lease;
                let end = *end;
                self.ends.push_back((end, token));
            }
        }
        Ok(())
    }

    fn give_back(&mut self, seq: Seq) {
        if let Some(pending) = self.pending.get_mut(&seq) {
            pending.lease = None;
            self.returned.insert(seq);
        }
    }

    /// Ends every lease whose time has come and says how many events that returned.
    pub fn expire(&mut self, now: Instant) -> usize {
        let before = self.returned.len();
        while let Some((_, token)) = self
            .ends
            .pop_front_if(|(end, token)| *end <= now || !holds(&self.pending, *token, *end))
        {
            if self
                .pending
                .get(&token.seq)
                .and_then(|pending| pending.lease)
                .is_some_and(|(lease, end)| lease == token.lease && end <= now)
            {
                self.give_back(token.seq);
            }
        }
        self.returned.len() - before
    }

    /// When the next lease ends, unless it is renewed or settled before.
    pub fn next_end(&mut self) -> Option<Instant> {
        while self
            .ends
            .pop_front_if(|(end, token)| !holds(&self.pending, *token, *end))
            .is_some()
        {}
        self.ends.front().map(|(end, _)| *end)
    }

    /// Notes that the stream now begins at `first`. What was neither settled nor leased below it
    /// is lost, and told once. A leased event is in a handler's hands and may still be settled.
    pub fn trim(&mut self, first: Seq) -> Option<Gap> {
        let kept = self.returned.split_off(&first);
        let returned = std::mem::replace(&mut self.returned, kept);
        for seq in &returned {
            self.pending.remove(seq);
        }
        let unseen = first.saturating_sub(self.next);
        let from = returned
            .first()
            .copied()
            .or((unseen > 0).then_some(self.next))?;
        let to = if unseen > 0 {
            first - 1
        } else {
            returned.last().copied()?
        };
        self.lost += returned.len() as u64 + unseen;
        self.pass(first);
        Some(Gap { from, to })
    }
}

fn holds(pending: &BTreeMap<Seq, Pending>, token: Token, end: Instant) -> bool {
    pending
        .get(&token.seq)
        .is_some_and(|pending| pending.lease == Some((token.lease, end)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

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
    }
}
