//! What whoever is free gets: events that the engine leases to this member.
//!
//! What is handled is acknowledged. What fails is handed over: it is written beside the main flow for
//! the owner of its partition, and acknowledged once that is stored. What this member cannot have at
//! work goes back for another.
//!
//! ```text
//! fetch ──► queue ──► run ── ok ─────────────────────────────────► ack
//!   │                  ├── failed, lease holds ──► side record ──► ack
//!   │ suspicious ──────┼──────────────────▲
//!   │                  └── of a type or version unknown here ──┐
//!   └── still at work here, its lease having ended ────────────┴─► later ──► given back
//! ```
//!
//! **Invariant:** an event is acknowledged only when its handler has done it, or a record has it.

use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio::time::Instant;
use trunkline_core::engine::{
    Batch, Credit, Delivery, Feed, Fetched, Seq, Settle, Settler, StoredEvent, Token,
};
use trunkline_core::{Error, ErrorKind, Result};

use super::super::partition::Ended;
use super::super::record::{Side, SideState, millis};
use super::handovers::Handover;
use super::leases::{RENEWALS, Wait};
use super::runs::Ran;
use super::tasks::Done;
use super::{Member, PAUSE};
use crate::consumer::policy::Counters;
use crate::consumer::pool::Appetite;
use crate::failure::Failure;
use crate::raw::Incoming;

/// How much longer each time an event that this member cannot have at work waits before another
/// member may have it, and how long at most.
const HAND_ON: Duration = Duration::from_secs(1);
const LONGEST_HAND_ON: Duration = Duration::from_secs(30);
/// From this delivery on an event is run beside the main flow, where its starts are counted: it may be
/// what its members die of. A stop that gives it back unstarted raises the number too, which costs some
/// writes and harms nobody.
const SUSPECT_FROM: u32 = 5;
/// Events that may wait to be given back; beyond it nothing is fetched.
const MAX_LATER: usize = 10_000;

/// Where a member of a shared consumer gets its events from.
pub(in crate::consumer) struct Intake {
    feed: Box<dyn Feed>,
    pub(super) settler: Arc<dyn Settler>,
    pub(super) fetched: Vec<Delivery>,
    /// The highest sequence that has come.
    highest: Seq,
    /// Queued, at work or being handed over.
    held: FxHashMap<Token, Leased>,
    held_bytes: usize,
    /// For other members, by when they are given back.
    later: BTreeSet<(Instant, Token)>,
    /// Decided and not yet told to the engine, and whether it is being told of others.
    settling: Batch<(Token, Settle)>,
    is_settling: bool,
    pub(super) handovers: VecDeque<Handover>,
    /// Those that are being written.
    pub(super) handing: Vec<Token>,
    /// Dead letters that are stored for whoever will own them.
    pub(super) burying: usize,
    /// Not before then is the engine asked for more, or told what was decided: it failed a moment ago.
    fetch_from: Instant,
    settle_from: Instant,
    pub(super) renew_at: Instant,
    pub(super) is_renewing: bool,
    pub(super) ack_wait: Duration,
    wait: Wait,
    /// Whether one asks of what came if it is still this member's; nothing is fetched until it is known.
    pub(super) is_in_doubt: bool,
    /// Bytes of the largest event that there may be.
    largest: usize,
}

struct Leased {
    event: StoredEvent,
    delivered_hint: u32,
}

impl Intake {
    pub(in crate::consumer) fn new(
        feed: Box<dyn Feed>,
        settler: Arc<dyn Settler>,
        ack_wait: Duration,
        largest: usize,
    ) -> Self {
        let now = Instant::now();
        Self {
            feed,
            settler,
            fetched: Vec::new(),
            highest: 0,
            held: FxHashMap::default(),
            held_bytes: 0,
            later: BTreeSet::new(),
            settling: Batch::new(),
            is_settling: false,
            handovers: VecDeque::new(),
            handing: Vec::new(),
            burying: 0,
            fetch_from: now,
            settle_from: now,
            renew_at: now + ack_wait / RENEWALS,
            is_renewing: false,
            ack_wait,
            wait: Wait::new(now),
            is_in_doubt: false,
            largest,
        }
    }

    /// Waits for events, as many as there is credit for.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn fetch(&mut self, credit: Credit) -> Result<Fetched> {
        let patience = self.ack_wait / RENEWALS;
        let mut fetching = pin!(self.feed.fetch(credit, &mut self.fetched));
        poll_fn(|cx| {
            self.wait.look(credit.items, patience, Instant::now());
            let fetched = fetching.as_mut().poll(cx);
            self.wait.looked(fetched.is_pending());
            fetched
        })
        .await
    }

    fn take(&mut self, token: Token) -> Option<Leased> {
        let leased = self.held.remove(&token)?;
        self.held_bytes -= leased.event.body.rough_bytes();
        Some(leased)
    }

    /// Whether it has this delivery still.
    pub(super) fn has(&self, token: Token) -> bool {
        self.held.contains_key(&token) || self.later.iter().any(|(_, later)| *later == token)
    }

    /// What it keeps beside what waits for a handler and what runs.
    pub(super) fn each_kept(&self, mut each: impl FnMut(Token)) {
        self.later.iter().for_each(|(_, token)| each(*token));
        self.handovers.iter().for_each(|one| each(one.token));
        self.handing.iter().copied().for_each(each);
    }

    /// Forgets deliveries that are somebody else's by now.
    pub(super) fn lose(&mut self, lost: &[Token]) {
        for token in lost {
            self.take(*token);
        }
        self.later.retain(|(_, token)| !lost.contains(token));
        self.handovers.retain(|one| !lost.contains(&one.token));
    }

    pub(super) fn settle(&mut self, token: Token, settle: Settle) {
        self.take(token);
        self.settling.push((token, settle));
    }

    /// Keeps an event that is for others, until it is given back.
    fn hand_on(&mut self, token: Token, due: Instant) {
        self.take(token);
        self.later.insert((due, token));
    }

    /// The earliest moment at which there is something to do.
    fn next_due(&self) -> Option<Instant> {
        let later = self.later.first().map(|(due, _)| *due);
        let settle = (!self.settling.is_empty() && !self.is_settling).then_some(self.settle_from);
        let renew = (!self.is_renewing).then_some(self.renew_at);
        let now = Instant::now();
        let fetch = (now < self.fetch_from).then_some(self.fetch_from);
        [later, settle, renew, fetch].into_iter().flatten().min()
    }

    /// Whether everything that was decided is told.
    fn is_quiet(&self) -> bool {
        self.settling.is_empty()
            && !self.is_settling
            && self.handovers.is_empty()
            && self.handing.is_empty()
            && self.burying == 0
            && !self.is_in_doubt
    }
}

/// Waits for the next events of the intake; for ever if there is no credit or no intake.
pub(super) async fn fetch(intake: &mut Option<Intake>, credit: Credit) -> Result<Fetched> {
    match intake {
        Some(intake) if credit.items > 0 => intake.fetch(credit).await,
        _ => std::future::pending().await,
    }
}

impl Member {
    /// How much to fetch: enough to keep the handlers busy while the next batch comes.
    pub(super) fn credit(&self, now: Instant) -> Credit {
        let none = Credit { items: 0, bytes: 0 };
        let Some(intake) = &self.intake else {
            return none;
        };
        let (events, bytes) = self.control.borrow().window();
        let held = intake.held.len();
        let room = Credit {
            items: events.saturating_sub(held),
            bytes: bytes.saturating_sub(intake.held_bytes),
        };
        // Half a window at least, so that a fetch is worth its while. A fetch gives one event even if
        // that is larger than the credit, so the largest that there may be must fit, or be alone.
        let is_worth = room.items >= events.div_ceil(2)
            && (held == 0 || room.bytes >= intake.largest.max(bytes.div_ceil(2)));
        if self.is_paused()
            || !self.place.lease.holds(now)
            || now < intake.fetch_from
            || intake.is_in_doubt
            || intake.later.len() >= MAX_LATER
            || self.handovers_are_full()
            || !self.shared.buries()
        {
            return none;
        }
        match self.runs.appetite() {
            Appetite::One => Credit {
                items: room.items.min(1),
                ..room
            },
            Appetite::Any if is_worth => room,
            Appetite::Any | Appetite::None => none,
        }
    }

    /// The engine has answered a fetch.
    pub(super) fn came(&mut self, fetched: Result<Fetched>, now: Instant) -> Result<()> {
        let Some(intake) = &mut self.intake else {
            return Ok(());
        };
        match fetched {
            Err(error) if error.retryable() => {
                tracing::warn!(
                    consumer = %self.shared.name, stream = %self.place.stream, %error, again_in = ?PAUSE,
                    "nothing could be fetched"
                );
                intake.fetch_from = now + PAUSE;
                Ok(())
            }
            Err(error) => Err(error),
            Ok(Fetched::Deliveries(_)) => {
                self.delivered(now);
                Ok(())
            }
            Ok(Fetched::Gap(gap)) => {
                self.missed(gap);
                Ok(())
            }
            Ok(Fetched::Gone) => Err(Error::new(
                ErrorKind::NoSuchConsumer,
                format!(
                    "consumer {} was deleted from stream {}",
                    self.shared.name, self.place.stream
                ),
            )),
            Ok(Fetched::Closed) => Err(Error::new(
                ErrorKind::Closed,
                "the bus was closed under the member",
            )),
        }
    }

    /// Takes what came; also by a fetch that was given up a moment before it would have said so.
    pub(super) fn delivered(&mut self, now: Instant) {
        let Some(intake) = &mut self.intake else {
            return;
        };
        let is_doubtful = intake.wait.brought(intake.fetched.len());
        if intake.fetched.is_empty() {
            return;
        }
        match is_doubtful {
            true => self.doubt(),
            false => self.take_in(now),
        }
    }

    /// Takes what is surely this member's.
    pub(super) fn take_in(&mut self, now: Instant) {
        let Some(intake) = &mut self.intake else {
            return;
        };
        let mut queue: Vec<(Token, StoredEvent)> = Vec::with_capacity(intake.fetched.len());
        for delivery in std::mem::take(&mut intake.fetched) {
            let Delivery {
                token,
                event,
                delivered_hint,
            } = delivery;
            // An engine that was killed may have forgotten that it comes again; its sequence tells.
            if token.seq <= intake.highest {
                // What is still at work here, its lease having ended, is for others: a handler that
                // blocks its thread would block the next one too.
                if self.runs.has_at_work(token.seq) {
                    intake.later.insert((now + hand_on(delivered_hint), token));
                    continue;
                }
                let waits = queue.extract_if(.., |(before, _)| before.seq == token.seq);
                let mut before: Vec<Token> = waits.map(|(token, _)| token).collect();
                before.extend(self.runs.drop_leased(token.seq));
                for before in before {
                    intake.take(before);
                }
            }
            intake.highest = intake.highest.max(token.seq);
            let leased = Leased {
                event: event.clone(),
                delivered_hint,
            };
            intake.held_bytes += event.body.rough_bytes();
            intake.held.insert(token, leased);
            if delivered_hint >= SUSPECT_FROM && handles(&self.shared, &self.place.stream, &event) {
                let side = Side::handed(SideState::Waiting { delay_ms: 0 });
                intake.handovers.push_back(Handover { token, event, side });
                continue;
            }
            queue.push((token, event));
        }
        self.runs.push_leased(queue.into_iter());
    }

    /// The handler of a delivery is done.
    pub(super) fn leased_ran(&mut self, token: Token, ran: Ran, now: Instant) {
        let stopping = *self.stopping.borrow();
        let Some(intake) = &mut self.intake else {
            return;
        };
        // Its lease is gone or was let go: another member has the event, or will.
        let Some(leased) = intake.held.get(&token) else {
            return;
        };
        if stopping {
            match ran {
                Ran::Cancelled => self.report.cancelled += 1,
                _ => self.report.finished += 1,
            }
        }
        match ran {
            Ran::Ok => intake.settle(token, Settle::Ack),
            Ran::Cancelled => intake.settle(token, Settle::GiveBack),
            Ran::Failed(_, failure) => {
                let (event, hint) = (leased.event.clone(), leased.delivered_hint);
                self.leased_failed(token, event, hint, &failure, now);
            }
        }
    }

    fn leased_failed(
        &mut self,
        token: Token,
        event: StoredEvent,
        delivered_hint: u32,
        failure: &Failure,
        now: Instant,
    ) {
        let for_others = failure.is_for_others();
        let is_stopped = self.control.borrow().stop.is_some();
        let rests = is_stopped || !self.place.lease.lets_start(now);
        let counters = Counters {
            // Who hands an event on does not see what others counted; the engine does, roughly.
            failures: match for_others {
                true => delivered_hint.saturating_sub(1),
                false => 0,
            },
            starts: 0,
        };
        let mut side = Side::handed(SideState::Dying);
        side.failures = counters.failures;
        let fault = match self.judge(token.seq, Some(&event), counters, failure) {
            Ended::Again { delay, counts, .. } if for_others => {
                let delay = match counts {
                    true => delay,
                    // A type that nobody here knows is known to another member, or will be.
                    false => delay.min(hand_on(delivered_hint)),
                };
                if let Some(intake) = &mut self.intake {
                    intake.hand_on(token, now + delay);
                }
                return;
            }
            // Nothing was said of it, and whoever has it next may have it at once.
            Ended::Again { delay, counts, .. } if rests && !counts && delay.is_zero() => {
                self.report.given_back += usize::from(is_stopped);
                if let Some(intake) = &mut self.intake {
                    intake.settle(token, Settle::GiveBack);
                }
                return;
            }
            Ended::Again {
                delay,
                counts,
                fault,
            } => {
                side.state = SideState::Waiting {
                    delay_ms: millis(delay),
                };
                side.failures += u32::from(counts);
                fault
            }
            Ended::Dead(fault) => {
                side.failures += 1;
                fault
            }
            Ended::Done | Ended::Cancelled => return,
        };
        side.failed(fault.at, &fault.reason, &fault.error, &fault.causes);
        if let Some(intake) = &mut self.intake {
            intake.handovers.push_back(Handover { token, event, side });
        }
    }

    /// Gives back what has not begun: nothing of it may, until the pause is over or for good.
    pub(super) fn put_back(&mut self) -> usize {
        let Some(intake) = &mut self.intake else {
            return 0;
        };
        let queued = self.runs.take_leased();
        for token in &queued {
            intake.settle(*token, Settle::GiveBack);
        }
        let came = std::mem::take(&mut intake.fetched);
        for delivery in &came {
            intake.settling.push((delivery.token, Settle::GiveBack));
        }
        queued.len() + came.len()
    }

    /// Gives back what was kept for others.
    pub(super) fn put_back_later(&mut self) -> usize {
        let Some(intake) = &mut self.intake else {
            return 0;
        };
        let later = std::mem::take(&mut intake.later);
        let count = later.len();
        for (_, token) in later {
            intake.settle(token, Settle::GiveBack);
        }
        count
    }

    /// Tells the engine what was decided, renews what is at work and writes what is handed over.
    pub(super) fn tend(&mut self, now: Instant) -> Result<()> {
        let Some(intake) = &mut self.intake else {
            return Ok(());
        };
        while let Some((due, token)) = intake.later.first().copied()
            && due <= now
        {
            intake.later.pop_first();
            intake.settling.push((token, Settle::GiveBack));
        }
        if !intake.settling.is_empty() && !intake.is_settling && intake.settle_from <= now {
            intake.is_settling = true;
            let batch = std::mem::take(&mut intake.settling);
            let settler = Arc::clone(&intake.settler);
            self.tasks.spawn(async move {
                let settled = settler.settle(batch.clone(), false).completed().await;
                Done::Told(batch, settled)
            });
        }
        if !intake.is_renewing && intake.renew_at <= now {
            self.renew(now);
        }
        self.hand_over()
    }

    /// What the engine said to what was decided. What could not be told is kept, unless there is no
    /// hope: an engine that is away for a while must not cost a member what its handlers did.
    pub(super) fn told(
        &mut self,
        batch: Batch<(Token, Settle)>,
        settled: Result<Vec<Result<()>>>,
        now: Instant,
    ) -> Result<()> {
        let Some(intake) = &mut self.intake else {
            return Ok(());
        };
        intake.is_settling = false;
        match settled {
            Err(error) if error.retryable() => {
                tracing::warn!(
                    consumer = %self.shared.name, stream = %self.place.stream, %error, again_in = ?PAUSE,
                    "what was decided could not be settled"
                );
                let since = std::mem::replace(&mut intake.settling, batch);
                intake.settling.extend(since);
                intake.settle_from = now + PAUSE;
            }
            Err(error) => return Err(error),
            Ok(settled) => {
                for error in settled.into_iter().filter_map(Result::err) {
                    tracing::warn!(
                        consumer = %self.shared.name, stream = %self.place.stream, %error, "settled too late"
                    );
                }
            }
        }
        Ok(())
    }

    /// Whether all that came under leases is settled.
    pub(super) fn intake_is_quiet(&self) -> bool {
        self.intake.as_ref().is_none_or(Intake::is_quiet)
    }

    pub(super) fn intake_due(&self) -> Option<Instant> {
        self.intake.as_ref().and_then(Intake::next_due)
    }
}

/// How long an event that is for other members is kept: a little at first.
fn hand_on(delivered_hint: u32) -> Duration {
    HAND_ON.saturating_mul(delivered_hint).min(LONGEST_HAND_ON)
}

/// Whether this member has a handler for an event; also for one that is none, whose turn finds out.
fn handles(
    shared: &crate::consumer::Shared,
    stream: &trunkline_core::Name,
    event: &StoredEvent,
) -> bool {
    let decoding = &shared.bus.inner.settings.decoding;
    let incoming = Incoming::stored(decoding, stream, event.clone());
    incoming.map_or(true, |incoming| shared.handler_of(&incoming).is_some())
}
