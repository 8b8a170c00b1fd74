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
//!
//! What has to outlive the process is [`Settled`]: leases and delivery counts do not, so that after
//! [`Ledger::restore`] whatever was lent and not acknowledged is delivered again. What lay above the
//! floor and is settled is then passed over, as stretches of sequences of which there are never
//! more than there were events pending.

mod settled;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::engine::{Gap, Seq, Settle, Token};
use crate::error::{Error, ErrorKind, Result};

pub use settled::Settled;

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
    /// Stretches above `next` that were settled before a restart.
    before: Settled,
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
            before: Settled::default(),
        }
    }

    /// A consumer that had come so far before a restart. What is not settled is looked at again.
    pub fn restore(settled: Settled, lost: u64, lease: Duration) -> Self {
        let mut ledger = Self::new(settled.floor.saturating_add(1), lease);
        ledger.lost = lost;
        ledger.before = settled;
        ledger
    }

    /// What is settled: where a consumer that is restored goes on.
    pub fn settled(&self) -> Settled {
        let mut settled = self.before.clone();
        let mut from = 1;
        for seq in self.pending.keys() {
            settled.add(from, seq.saturating_sub(1));
            from = seq.saturating_add(1);
        }
        settled.add(from, self.next.saturating_sub(1));
        settled
    }

    /// The longest stretch of settled sequences around one that is settled, for an engine that
    /// writes down what an acknowledgement has changed: first and last. It begins with 1 when
    /// everything before it is settled, and goes up to `next`, so that sequences that never matched
    /// are in it and the stretches of a consumer stay few.
    pub fn settled_around(&self, seq: Seq) -> Option<(Seq, Seq)> {
        if seq >= self.next || self.pending.contains_key(&seq) {
            return self.before.stretch(seq);
        }
        let (before, after) = (
            self.pending.range(..seq).next_back(),
            self.pending.range(seq..).next(),
        );
        Some((
            before.map_or(1, |(seq, _)| seq.saturating_add(1)),
            after.map_or(self.next, |(seq, _)| *seq).saturating_sub(1),
        ))
    }

    /// If a sequence at or above [`next`](Self::next) was settled before a restart, the first after
    /// it that was not: [`pass`](Self::pass) goes there.
    pub fn settled_before(&self, seq: Seq) -> Option<Seq> {
        let (_, to) = self.before.stretch(seq)?;
        (seq >= self.next).then_some(to.saturating_add(1))
    }

    /// Stretches at or above [`next`](Self::next) that were settled before a restart, first and
    /// last, so that a backlog can be counted without them.
    pub fn settled_ahead(&self) -> impl Iterator<Item = (Seq, Seq)> {
        self.before.above()
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
        while let Some(stretch) = self.before.above.first_entry()
            && *stretch.key() <= self.next
        {
            self.next = self.next.max(stretch.remove().saturating_add(1));
        }
    }

    /// Leases a sequence at or above [`next`](Self::next), which passes it.
    pub fn lend(&mut self, seq: Seq, now: Instant) -> (Token, u32) {
        debug_assert!(seq >= self.next, "a sequence is lent as new only once");
        debug_assert!(
            self.settled_before(seq).is_none(),
            "what was settled before a restart is passed over"
        );
        self.pass(seq.saturating_add(1));
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
        let mut unseen = first.saturating_sub(self.next);
        for (from, to) in self.before.above() {
            unseen -= first.min(to.saturating_add(1)).saturating_sub(from);
        }
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
mod tests;
