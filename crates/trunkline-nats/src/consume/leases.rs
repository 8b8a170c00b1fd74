//! What this process holds of a consumer's deliveries, and until when.

use std::time::Duration;

use async_nats::Subject;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::time::Instant;
use trunkline_core::engine::{Seq, Settle, Token};
use trunkline_core::{Error, ErrorKind, Result};

/// The part of the ack wait by which a lease is taken to end early, so that nobody settles what the
/// server gives to another at that moment: a 20th, and at least this.
const MARGIN: Duration = Duration::from_millis(50);

/// What is under a lease of one consumer in this process: whoever opened it may settle it.
pub(crate) struct Leases {
    pub(super) ack_wait: Duration,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    leases: FxHashMap<Token, Lease>,
}

struct Lease {
    reply: Subject,
    until: Instant,
}

impl Leases {
    pub(super) fn new(ack_wait: Duration) -> Self {
        Self {
            ack_wait,
            open: Mutex::default(),
        }
    }

    /// A lease that began when the delivery came; none if it is over, and the event another's.
    pub(super) fn add(
        &self,
        seq: Seq,
        reply: Subject,
        came: Instant,
        now: Instant,
    ) -> Option<Token> {
        let until = self.until(came);
        if until <= now {
            return None;
        }
        let mut open = self.open.lock();
        open.last += 1;
        let lease = open.last;
        if open.leases.len() >= 16_384 && lease.is_multiple_of(4_096) {
            // What was never settled is somebody else's by now.
            open.leases.retain(|_, lease| lease.until > now);
        }
        let token = Token { seq, lease };
        open.leases.insert(token, Lease { reply, until });
        Some(token)
    }

    fn until(&self, from: Instant) -> Instant {
        let margin = (self.ack_wait / 20).max(MARGIN).min(self.ack_wait / 2);
        from + self.ack_wait - margin
    }

    /// Where a delivery is settled, if its lease holds; a lease that goes on is renewed.
    pub(super) fn reply(&self, token: Token, settle: Settle) -> Result<Subject> {
        let open = &mut self.open.lock().leases;
        let stale = |what: &str| {
            Error::new(
                ErrorKind::StaleLease,
                format!("the delivery of event {} {what}", token.seq),
            )
        };
        let Some(lease) = open.get_mut(&token) else {
            return Err(stale("was settled already, or is not of this process"));
        };
        let now = Instant::now();
        if lease.until <= now {
            open.remove(&token);
            return Err(stale("outlived its lease"));
        }
        if settle == Settle::Extend {
            lease.until = self.until(now);
        }
        Ok(lease.reply.clone())
    }

    pub(super) fn close(&self, token: Token) {
        self.open.lock().leases.remove(&token);
    }
}
