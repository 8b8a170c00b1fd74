//! A member's demand, which stands from one call to the next.
//!
//! ```text
//!            a call                        nobody calls for 100 ms
//! nothing ──────────► demand ── messages ──► ready        │
//!                       │                     ▲           ▼
//!                       │                     └──── ending demand: what it still brings
//!                       └─ ends, breaks             │
//!                                                   ▼ for an eighth of the ack wait; then given back
//! ```
//!
//! **Invariant:** a call asks only for what it wants beyond what is ready, asked for, and still to come of a
//! demand that is being ended: else a member would be given more than it has room for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::Instant;
use trunkline_core::Result;
use trunkline_core::engine::{ConsumerRef, Credit, Delivery, Settle};

use super::{Leases, word};
use crate::message::{self, Place};
use crate::pull::{Pull, Pulled};
use crate::wire::Wire;

/// For how long a member that fetches no more keeps its demand standing. After that what comes goes
/// to the others.
const LINGER: Duration = Duration::from_millis(100);
/// For how long it keeps what came until then: an eighth of the ack wait, and at most this.
const LONGEST_HOLD: Duration = Duration::from_secs(4);
/// Events that one demand asks for, at most.
const BATCH: usize = 1_000;
/// Bytes of one demand, if messages are not larger than half of it.
const MAX_BYTES: usize = 8 << 20;

/// Where one member gets its deliveries from.
pub(super) struct Seat {
    pub(super) wire: Arc<Wire>,
    pub(super) consumer: ConsumerRef,
    leases: Arc<Leases>,
    standing: Mutex<Standing>,
    /// A demand that is being ended has brought something, or has ended.
    came: Notify,
    max_bytes: usize,
}

/// A delivery, and since when at the latest its lease may run.
struct Came(Message, Instant);

#[derive(Default)]
struct Standing {
    pull: Option<Pull>,
    ready: VecDeque<Came>,
    /// What a demand that is being ended may still bring.
    ending: usize,
    /// Whether a call has taken the demand and what is ready at the moment.
    at_work: bool,
    /// Rises with each call, so that it shows whether there was another.
    calls: u64,
    /// Whether somebody watches that there is another.
    watched: bool,
    /// Whether there will be no other.
    gone: bool,
}

/// The demand while a call works with it. Dropped, it goes back to where it stands.
pub(super) struct Taken<'a> {
    pull: Option<Pull>,
    ready: VecDeque<Came>,
    seat: &'a Arc<Seat>,
}

impl Seat {
    pub(super) fn new(
        wire: Arc<Wire>,
        consumer: ConsumerRef,
        leases: Arc<Leases>,
        max_message: usize,
    ) -> Self {
        Self {
            wire,
            consumer,
            leases,
            standing: Mutex::default(),
            came: Notify::new(),
            max_bytes: MAX_BYTES.max(2 * max_message),
        }
    }

    pub(super) fn take(self: &Arc<Self>) -> Taken<'_> {
        let mut standing = self.standing.lock();
        standing.calls += 1;
        standing.at_work = true;
        let mut taken = Taken {
            pull: standing.pull.take(),
            ready: std::mem::take(&mut standing.ready),
            seat: self,
        };
        drop(standing);
        taken.drain();
        taken
    }

    /// Ends the demand of a member that does not come back, so that others get what it asked for,
    /// and in the end gives back what it has.
    async fn watch(self: Arc<Self>) {
        let hold = (self.leases.ack_wait / 8).min(LONGEST_HOLD);
        let (mut seen, mut since) = (self.standing.lock().calls, Instant::now());
        loop {
            tokio::time::sleep(LINGER).await;
            let (ending, ready, _parting) = {
                let mut standing = self.standing.lock();
                if standing.at_work || standing.pull.is_none() && standing.ready.is_empty() {
                    // Whoever is at work has it watched again afterwards.
                    standing.watched = false;
                    return;
                }
                if standing.calls != seen {
                    (seen, since) = (standing.calls, Instant::now());
                    continue;
                }
                let parting = self.wire.parting();
                match standing.pull.take() {
                    Some(pull) => {
                        standing.ending = pull.outstanding;
                        (Some(pull), VecDeque::new(), parting)
                    }
                    None if since.elapsed() < hold => continue,
                    None => (None, std::mem::take(&mut standing.ready), parting),
                }
            };
            let Some(pull) = ending else {
                self.release(ready).await;
                continue;
            };
            let mut left = Vec::new();
            {
                let _nothing_after = Ending(&self);
                let tell = |came, outstanding| left.extend(self.keep(came, outstanding));
                pull.end(tell).await;
            }
            self.release(left).await;
        }
    }

    /// Keeps what a demand that is being ended brings, for a member that may come back or has; gives it
    /// if the member never will.
    fn keep(&self, came: Option<(Message, Instant)>, outstanding: usize) -> Option<Came> {
        let came = came.map(|(message, since)| Came(message, since));
        let mut standing = self.standing.lock();
        standing.ending = outstanding;
        if standing.gone {
            return came;
        }
        standing.ready.extend(came);
        drop(standing);
        self.came.notify_waiters();
        None
    }

    /// The member does not come back: gives back what it has and what was asked for.
    pub(super) fn leave(self: &Arc<Self>) {
        let mut standing = self.standing.lock();
        standing.gone = true;
        let (pull, ready) = (standing.pull.take(), std::mem::take(&mut standing.ready));
        drop(standing);
        let parting = self.wire.parting();
        if (pull.is_some() || !ready.is_empty())
            && let Ok(runtime) = Handle::try_current()
        {
            let seat = Arc::clone(self);
            runtime.spawn(async move {
                seat.release(ready).await;
                if let Some(pull) = pull {
                    let mut rest = Vec::new();
                    pull.end(|came, _| rest.extend(came)).await;
                    let rest = rest.into_iter();
                    seat.release(rest.map(|(message, since)| Came(message, since)))
                        .await;
                }
                drop(parting);
            });
        }
    }

    /// Gives back what was delivered and nobody took, unless its lease is half over. The server takes a word
    /// about an old delivery for one about the present one: on a slow way it would give another member's
    /// event away, and what is not given back comes again by itself.
    async fn release(&self, deliveries: impl IntoIterator<Item = Came>) {
        for Came(message, since) in deliveries {
            if since.elapsed() >= self.leases.ack_wait / 2 {
                continue;
            }
            let Some(reply) = message.reply else {
                continue;
            };
            let word = Bytes::from_static(word(Settle::GiveBack));
            let sending = self.wire.client.publish(reply, word);
            let given = self.wire.hand_over(self.wire.request_deadline(), sending);
            if given.await.is_err() {
                return; // They come back when their leases end.
            }
        }
    }

    /// Hands a delivery over, unless its lease is over.
    fn deliver(&self, came: Came, now: Instant, out: &mut Vec<Delivery>) -> bool {
        let Came(mut message, came) = came;
        let leased = Place::of(&message).and_then(|place| {
            let reply = message.reply.take()?;
            let token = self.leases.add(place.seq, reply, came, now)?;
            Some((place, token))
        });
        let Some((place, token)) = leased else {
            return false;
        };
        out.push(Delivery {
            token,
            event: message::delivered(message, &place),
            delivered_hint: place.delivered,
        });
        true
    }
}

/// A demand is being ended. However that goes, nothing is expected of it afterwards.
struct Ending<'a>(&'a Seat);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.standing.lock().ending = 0;
        self.0.came.notify_waiters();
    }
}

impl Taken<'_> {
    /// Takes what waits in the client.
    fn drain(&mut self) {
        while let Some(pull) = &mut self.pull {
            match pull.now() {
                None => break,
                Some(Pulled::Message(message, since)) => self.ready.push_back(Came(message, since)),
                Some(Pulled::Ended) => {}
                Some(Pulled::Broken) => self.pull = None,
            }
        }
    }

    /// Takes what a demand that is being ended has brought, and tells how much it may still bring.
    fn collect(&mut self) -> usize {
        let mut standing = self.seat.standing.lock();
        self.ready.append(&mut standing.ready);
        standing.ending
    }

    /// Waits until something has come; false if the demand is lost.
    pub(super) async fn wait(&mut self, wanted: usize) -> Result<bool> {
        let (seat, wanted) = (self.seat, wanted.clamp(1, BATCH));
        loop {
            // Before one looks, so that nothing comes unheard.
            let came = seat.came.notified();
            let ending = self.collect();
            if !self.ready.is_empty() {
                break;
            }
            let asked = self.pull.as_ref().map_or(0, |pull| pull.outstanding) + ending;
            if asked == 0 || asked < wanted / 2 {
                self.ask(wanted - asked).await?;
            }
            let demand = self.pull.as_mut().filter(|pull| pull.outstanding > 0);
            let next = async {
                match demand {
                    Some(pull) => pull.next().await,
                    None => std::future::pending().await,
                }
            };
            let pulled = tokio::select! {
                pulled = next => pulled,
                () = came => continue,
            };
            match pulled {
                Pulled::Message(message, since) => self.ready.push_back(Came(message, since)),
                Pulled::Ended => {}
                Pulled::Broken => {
                    self.pull = None;
                    return Ok(false);
                }
            }
        }
        self.drain();
        Ok(true)
    }

    /// Asks for so many more.
    async fn ask(&mut self, count: usize) -> Result<()> {
        let seat = self.seat;
        let pull = match &mut self.pull {
            Some(pull) => pull,
            none => {
                seat.wire.connected(seat.wire.request_deadline()).await?;
                let (stream, consumer) = (&seat.consumer.stream, &seat.consumer.consumer);
                let pull = Pull::open(
                    &seat.wire,
                    stream.as_str(),
                    consumer.as_str(),
                    seat.max_bytes,
                );
                none.insert(pull.await?)
            }
        };
        pull.ask(count).await
    }

    /// Hands over what is ready, as far as there is credit, and tells how many. The first goes whatever
    /// its size.
    pub(super) fn give(&mut self, credit: Credit, out: &mut Vec<Delivery>) -> usize {
        let now = Instant::now();
        let (mut count, mut bytes) = (0, 0);
        while count < credit.items.clamp(1, BATCH)
            && let Some(next) = self.ready.front()
            && let size = next.0.payload.len()
            && (bytes + size <= credit.bytes || count == 0)
            && let Some(came) = self.ready.pop_front()
        {
            if self.seat.deliver(came, now, out) {
                bytes += size;
                count += 1;
            }
        }
        count
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let asked = self.pull.as_ref().is_some_and(|pull| pull.outstanding > 0);
        let mut standing = self.seat.standing.lock();
        standing.pull = self.pull.take();
        self.ready.append(&mut standing.ready);
        standing.ready = std::mem::take(&mut self.ready);
        standing.at_work = false;
        let idle = !asked && standing.ready.is_empty();
        if !idle
            && !standing.watched
            && let Ok(runtime) = Handle::try_current()
        {
            standing.watched = true;
            runtime.spawn(Arc::clone(self.seat).watch());
        }
    }
}
