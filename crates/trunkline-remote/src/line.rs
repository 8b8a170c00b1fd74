//! A session at work: it moves packets over one connection after another.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use trunkline_core::error::Cause;

use crate::codec::Malformed;
use crate::frame::CallId;
use crate::session::{PacketNumber, Session, Tag};
use crate::socket::Socket;

/// How long an end is silent before it shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long the other end may be silent before it counts as gone.
const SILENCE: Duration = Duration::from_secs(15);
/// How long the other end has to take what is left when this end stops.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// Bytes that may wait to be sent and confirmed before whoever adds more has to wait.
const MAX_UNCONFIRMED_BYTES: usize = 8 << 20;

/// A session that both its users and its connection work on.
#[derive(Debug, Default)]
pub(crate) struct Line {
    session: Mutex<Session>,
    /// There is something to send.
    wake: Notify,
    /// There is room again.
    room: Notify,
}

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The other end closed it.
    Closed,
    /// Nothing came for [`SILENCE`].
    Silent,
    Failed(Cause),
    /// What came is not what the protocol says.
    Malformed(Malformed),
    /// This end was told to stop, and has sent everything.
    Stopped,
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("the other end closed the connection"),
            Self::Silent => write!(f, "the other end was silent for {SILENCE:?}"),
            Self::Failed(error) => write!(f, "the connection failed: {error}"),
            Self::Malformed(Malformed(fault)) => {
                write!(f, "the other end does not keep to the protocol: {fault}")
            }
            Self::Stopped => f.write_str("closed"),
        }
    }
}

impl Line {
    /// Adds a frame to be sent.
    pub(crate) fn push(&self, tag: Tag, frame: Bytes) {
        self.session.lock().push(tag, frame);
        self.wake.notify_one();
    }

    /// Takes back a call if it was never sent.
    pub(crate) fn take_back(&self, call: CallId) -> bool {
        let taken = self.session.lock().take_back(call);
        self.room.notify_waiters();
        taken
    }

    /// Wakes whoever waits for room, to see that there will be none.
    pub(crate) fn give_up(&self) {
        self.room.notify_waiters();
    }

    /// Whether there is room for more.
    pub(crate) fn has_room(&self) -> bool {
        self.session.lock().unconfirmed_bytes() < MAX_UNCONFIRMED_BYTES
    }

    /// Waits until there is room for more.
    pub(crate) async fn room(&self) {
        loop {
            let room = self.room.notified();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }

    /// How far this end has received.
    pub(crate) fn received(&self) -> PacketNumber {
        self.session.lock().received()
    }

    /// Counts what came in and what arrived at the other end.
    pub(crate) fn progress(&self) -> u64 {
        self.session.lock().progress()
    }

    /// Goes on over a new connection.
    pub(crate) fn resume(&self, received: PacketNumber) -> Result<(), Malformed> {
        self.session.lock().resume(received)
    }

    /// Begins another session. It gives the frames that were never sent in the old one.
    pub(crate) fn begin_anew(&self) -> impl Iterator<Item = (Tag, Bytes)> + use<> {
        let waiting = std::mem::take(&mut *self.session.lock()).into_waiting();
        self.room.notify_waiters();
        waiting.into_iter()
    }

    /// Moves packets both ways until the connection breaks, or until `stop` yields and everything
    /// is sent.
    pub(crate) async fn carry(
        &self,
        socket: Socket,
        stop: impl Future<Output = ()>,
        mut handle: impl FnMut(Bytes) -> Result<(), Malformed>,
    ) -> Broken {
        let Socket {
            mut outgoing,
            mut incoming,
        } = socket;
        let reading = async {
            loop {
                let packet = match timeout(SILENCE, incoming.next()).await {
                    Err(_) => return Broken::Silent,
                    Ok(None) => return Broken::Closed,
                    Ok(Some(Err(error))) => return Broken::Failed(error),
                    Ok(Some(Ok(packet))) => packet,
                };
                let (frames, due) = {
                    let mut session = self.session.lock();
                    (session.receive(&packet), session.is_due())
                };
                self.room.notify_waiters();
                if due {
                    self.wake.notify_one();
                }
                if let Err(malformed) =
                    frames.and_then(|frames| frames.into_iter().try_for_each(&mut handle))
                {
                    return Broken::Malformed(malformed);
                }
            }
        };
        // It has the sending half, so that the other end sees that go when this is done.
        let writing = async move {
            let mut stop = std::pin::pin!(stop);
            let mut stopping: Option<Instant> = None;
            loop {
                loop {
                    let packet = self.session.lock().next_packet();
                    match packet {
                        Some(packet) => outgoing.feed(packet).await?,
                        None => break,
                    }
                }
                outgoing.flush().await?;
                // With a full window there is more to send, once the other end has confirmed some.
                let overdue = stopping.is_some_and(|until| Instant::now() >= until);
                if overdue || (stopping.is_some() && self.session.lock().is_sent()) {
                    return outgoing.close().await;
                }
                tokio::select! {
                    biased;
                    () = self.wake.notified() => {}
                    () = &mut stop, if stopping.is_none() => stopping = Some(Instant::now() + STOP_WITHIN),
                    () = sleep_until(stopping) => {}
                    () = tokio::time::sleep(HEARTBEAT) => {
                        let alive = self.session.lock().confirmation();
                        outgoing.feed(alive).await?;
                    }
                }
            }
        };
        let mut reading = std::pin::pin!(reading);
        tokio::select! {
            broken = &mut reading => broken,
            written = writing => match written {
                Ok(()) => {
                    // A socket that is closed with something in it to be read resets the connection,
                    // and what the other end has not read yet is lost.
                    let _ = timeout(STOP_WITHIN, reading).await;
                    Broken::Stopped
                }
                Err(error) => Broken::Failed(error),
            },
        }
    }
}
