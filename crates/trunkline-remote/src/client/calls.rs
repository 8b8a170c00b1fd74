//! What a client has under way, and what becomes of it when the connection breaks.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use trunkline_core::engine::{Capabilities, Fact, Limits, Link, LinkOptions};
use trunkline_core::{Clock, Error, ErrorKind, Result};

use super::inbox::Inbox;
use crate::codec::{Malformed, read};
use crate::dial::Dial;
use crate::frame::{Answer, Call, CallId, ReaderId, Reply, Request, frame};
use crate::line::Line;
use crate::session::{MAX_FRAME_BYTES, Tag};

/// Calls that may be under way; whoever makes more waits.
pub(super) const MAX_CALLS: usize = 1_024;

/// A connection in use: by the engine, its readers and its routes. With the last of them it ends.
pub(crate) struct Connection(Arc<Shared>);

impl Connection {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl Deref for Connection {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Drop for Connection {
    /// Without `close` nobody waits for what is under way.
    fn drop(&mut self) {
        self.core.lock().closed = true;
        self.leave();
    }
}

/// What the engine, its readers and its driver have in common.
pub(crate) struct Shared {
    pub(super) line: Line,
    pub(super) core: Mutex<Core>,
    pub(super) link: watch::Sender<Link>,
    /// The engine is being closed: the connection ends once everything is sent.
    pub(super) leaving: watch::Sender<bool>,
    /// A call was answered.
    pub(super) idle: Notify,
    /// A fetch was dropped; see [`Inbox`].
    pub(super) dropped: Notify,
    pub(super) dial: Arc<dyn Dial>,
    pub(super) options: LinkOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) capabilities: Capabilities,
    pub(super) limits: Limits,
    /// What the engine at the other end is called.
    pub(super) behind: String,
    pub(super) permits: Arc<Semaphore>,
    pub(super) ids: AtomicU64,
}

/// What changes together with the session.
pub(super) struct Core {
    /// In the order in which they were made.
    pub(super) calls: BTreeMap<CallId, Pending>,
    pub(super) readers: FxHashMap<ReaderId, Arc<Inbox>>,
    /// Readers whose fetch was dropped, to be looked at soon.
    pub(super) dropped: Vec<ReaderId>,
    pub(super) closed: bool,
    /// The session of the present connection, to go on with over the next.
    pub(super) session: Option<String>,
    /// Names what is stored at the other end.
    pub(super) bus: String,
    /// What the other end last said of itself.
    pub(super) facts: Vec<Fact>,
}

impl Core {
    /// Whether anything that was admitted is still to be sent, or somebody waits for its answer.
    pub(super) fn is_awaited(&self) -> bool {
        self.calls.values().any(|pending| pending.answer.is_some())
    }
}

/// A call that is not answered.
pub(super) struct Pending {
    /// Who waits for the answer. Without anybody the call still counts until it comes, so that the
    /// server never has more of them than are allowed.
    answer: Option<oneshot::Sender<Result<Answer, Failed>>>,
    /// The call once more, if it may be made again without knowing what became of it.
    again: Option<Bytes>,
    /// It means nothing to another bus.
    is_bound: bool,
    _permit: OwnedSemaphorePermit,
}

impl Pending {
    fn answer(self, answer: Result<Answer, Failed>) {
        if let Some(sender) = self.answer {
            // Nobody waits for what was given up.
            let _ = sender.send(answer);
        }
    }
}

/// Why a call has no answer of the engine's.
#[derive(Debug)]
pub(super) struct Failed {
    /// Whether it may have been done all the same.
    pub(super) perhaps_done: bool,
    pub(super) error: Error,
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

impl Failed {
    pub(super) fn never_sent(error: Error) -> Self {
        Self {
            perhaps_done: false,
            error,
        }
    }
}

/// Whether a call may be made again when the session is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It changes nothing, or is recognised as a repeat.
    Safe,
    /// Done twice it would be another thing than done once.
    Unsafe,
}

/// A call that was admitted.
pub(super) struct Ticket {
    shared: Arc<Shared>,
    id: CallId,
    answer: oneshot::Receiver<Result<Answer, Failed>>,
    deadline: Instant,
    limit: Duration,
    /// Without that it does not matter whether it happened.
    changes: bool,
}

impl Shared {
    /// Gives a call its place in the order of calls.
    ///
    /// # Cancel safety
    /// Dropped before it yields, nothing was sent.
    pub(super) async fn admit(
        self: &Arc<Self>,
        call: Call,
        repeat: Repeat,
        limit: Duration,
    ) -> Result<Ticket, Failed> {
        let deadline = Instant::now() + limit;
        let permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) if self.line.has_room() => permit,
            permit => {
                let room = async {
                    let permit = match permit {
                        Ok(permit) => permit,
                        Err(_) => Arc::clone(&self.permits).acquire_owned().await.ok()?,
                    };
                    self.line.room().await;
                    Some(permit)
                };
                match timeout_at(deadline, room).await {
                    Ok(Some(permit)) => permit,
                    Ok(None) => return Err(Failed::never_sent(closed())),
                    Err(_) => return Err(Failed::never_sent(self.unsent(limit))),
                }
            }
        };
        let (sender, answer) = oneshot::channel();
        let changes = call.changes();
        let is_bound = call.is_bound();
        let id = self.new_id();
        let request = frame(&Request::Call { id, call });
        if request.len() > MAX_FRAME_BYTES {
            return Err(Failed::never_sent(Error::new(
                ErrorKind::OverLimit,
                format!(
                    "the call has {} bytes, the limit is {MAX_FRAME_BYTES}; split it",
                    request.len()
                ),
            )));
        }
        let again = (repeat == Repeat::Safe).then(|| request.clone());
        let mut core = self.core.lock();
        if core.closed {
            return Err(Failed::never_sent(closed()));
        }
        core.calls.insert(
            id,
            Pending {
                answer: Some(sender),
                again,
                is_bound,
                _permit: permit,
            },
        );
        // Under the lock, so that no session begins between the two.
        self.line.push(Tag::Call(id), request);
        drop(core);
        Ok(Ticket {
            shared: Arc::clone(self),
            id,
            answer,
            deadline,
            limit,
            changes,
        })
    }

    /// Names a call or a reader.
    pub(super) fn new_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a call and waits for its answer.
    pub(super) async fn ask(
        self: &Arc<Self>,
        call: Call,
        repeat: Repeat,
    ) -> Result<Answer, Failed> {
        let limit = self.options.request_timeout;
        self.admit(call, repeat, limit).await?.answer().await
    }

    /// What came in over the line.
    pub(super) fn handle(self: &Arc<Self>, bytes: &[u8]) -> Result<(), Malformed> {
        match read(bytes)? {
            Reply::Answer { id, answer } => {
                let pending = self.core.lock().calls.remove(&id);
                if let Some(pending) = pending {
                    pending.answer(answer.map_err(|error| Failed {
                        // The engine at the other end may be in doubt itself.
                        perhaps_done: matches!(
                            error.kind(),
                            ErrorKind::TimedOut | ErrorKind::Disconnected
                        ),
                        error,
                    }));
                }
                self.idle.notify_waiters();
            }
            Reply::Opened { reader, opened } => {
                if let Some(inbox) = self.inbox(reader) {
                    inbox.opened(opened);
                }
            }
            Reply::Pulled { reader, pulled } => {
                if let Some(inbox) = self.inbox(reader) {
                    inbox.received(self, pulled);
                }
            }
        }
        Ok(())
    }

    fn inbox(&self, reader: ReaderId) -> Option<Arc<Inbox>> {
        self.core.lock().readers.get(&reader).cloned()
    }

    /// Begins another session with the server, because the old one is lost.
    pub(super) fn begin_anew(self: &Arc<Self>, session: String, bus: &str) {
        let mut core = self.core.lock();
        let is_lost = core.bus != bus;
        core.session = Some(session);
        bus.clone_into(&mut core.bus);
        let waiting: Vec<_> = self.line.begin_anew().collect();
        core.readers
            .retain(|_, inbox| inbox.reopen(&self.line, is_lost));
        // Nobody waits for their answers, and those of the old session will never come.
        core.calls.retain(|_, pending| pending.answer.is_some());
        if is_lost {
            // Tokens and revisions are numbers that count from 1 there too.
            let bound = core.calls.extract_if(.., |_, pending| pending.is_bound);
            for (_, pending) in bound {
                pending.answer(Err(Failed::never_sent(lost())));
            }
        }
        let is_call = |(tag, _): &(Tag, Bytes)| match tag {
            Tag::Call(id) => Some(*id),
            _ => None,
        };
        let unsent: FxHashSet<CallId> = waiting.iter().filter_map(is_call).collect();
        let sent = core.calls.keys().filter(|id| !unsent.contains(id));
        let sent: Vec<CallId> = sent.copied().collect();
        for id in sent {
            let again = core
                .calls
                .get_mut(&id)
                .and_then(|pending| pending.again.clone());
            match again {
                Some(request) => self.line.push(Tag::Call(id), request),
                None => {
                    if let Some(pending) = core.calls.remove(&id) {
                        let error = self.perhaps("the server went away before it answered");
                        pending.answer(Err(error));
                    }
                }
            }
        }
        for (tag, frame) in waiting {
            let is_wanted = match tag {
                Tag::Call(id) => core.calls.contains_key(&id),
                Tag::Messages => true,
                Tag::Session => false,
            };
            if is_wanted {
                self.line.push(tag, frame);
            }
        }
        drop(core);
        self.idle.notify_waiters();
    }

    /// Tells the server that this client will not be back, and lets the connection end.
    pub(super) fn leave(&self) {
        if !self.leaving.send_replace(true) {
            self.line.push(Tag::Session, frame(&Request::Leave));
        }
    }

    /// Ends everything that waits: the engine is closed.
    pub(super) fn finish(&self) {
        let (calls, readers) = {
            let mut core = self.core.lock();
            core.closed = true;
            (
                std::mem::take(&mut core.calls),
                std::mem::take(&mut core.readers),
            )
        };
        for (id, pending) in calls {
            let failed = Failed {
                perhaps_done: !self.line.take_back(id),
                error: closed(),
            };
            pending.answer(Err(failed));
        }
        for inbox in readers.values() {
            inbox.close();
        }
        self.permits.close();
        self.line.give_up();
        self.idle.notify_waiters();
        self.link.send_replace(Link::Closed);
    }

    /// Of a call that the server may have got.
    fn perhaps(&self, what: &str) -> Failed {
        Failed {
            perhaps_done: true,
            error: Error::new(
                ErrorKind::TimedOut,
                format!("{what} ({}); it may have happened", self.dial.place()),
            ),
        }
    }

    /// Of something that was asked and not answered in time.
    pub(super) fn unanswered(&self, limit: Duration) -> Error {
        match &*self.link.borrow() {
            Link::Disconnected { reason, .. } => Error::new(
                ErrorKind::Disconnected,
                format!("{} could not be asked within {limit:?}", self.dial.place()),
            )
            .caused_by(reason.clone()),
            _ => Error::new(
                ErrorKind::TimedOut,
                format!("{} did not answer within {limit:?}", self.dial.place()),
            ),
        }
    }

    /// Of a call that waited in vain to be sent.
    pub(super) fn unsent(&self, limit: Duration) -> Error {
        let error = Error::new(
            ErrorKind::Disconnected,
            format!(
                "nothing could be sent to {} within {limit:?}, so it did not happen",
                self.dial.place()
            ),
        );
        match &*self.link.borrow() {
            Link::Disconnected { reason, .. } => error.caused_by(reason.clone()),
            _ => error,
        }
    }
}

impl Ticket {
    /// Waits for the answer, until the call's deadline.
    pub(super) async fn answer(mut self) -> Result<Answer, Failed> {
        let answer = timeout_at(self.deadline, &mut self.answer).await;
        match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failed {
                perhaps_done: true,
                error: closed(),
            }),
            Err(_) => {
                let shared = &self.shared;
                if self.let_go() {
                    return Err(Failed::never_sent(shared.unsent(self.limit)));
                }
                if !self.changes {
                    return Err(Failed::never_sent(shared.unanswered(self.limit)));
                }
                Err(shared.perhaps(&format!("there was no answer within {:?}", self.limit)))
            }
        }
    }
}

impl Ticket {
    /// Waits for the answer no more. It gives true if the call was never sent.
    fn let_go(&self) -> bool {
        let shared = &self.shared;
        let mut core = shared.core.lock();
        let unsent = shared.line.take_back(self.id);
        if unsent {
            core.calls.remove(&self.id);
        } else {
            self.forget(&mut core);
        }
        drop(core);
        shared.idle.notify_waiters();
        unsent
    }

    /// Nobody waits for it: what changes nothing need not be done, and the rest counts until it is.
    fn forget(&self, core: &mut Core) {
        if self.changes {
            if let Some(pending) = core.calls.get_mut(&self.id) {
                pending.answer = None;
            }
        } else if core.calls.remove(&self.id).is_some() {
            let request = Request::Forget { id: self.id };
            self.shared.line.push(Tag::Session, frame(&request));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // What is admitted goes its way, although nobody waits for its end.
        self.forget(&mut self.shared.core.lock());
        self.shared.idle.notify_waiters();
    }
}

/// Of something that was said of a bus that is not there any more.
pub(super) fn lost() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the bus lost what it had and began anew; what this was about is gone",
    )
}

pub(super) fn closed() -> Error {
    Error::new(
        ErrorKind::Closed,
        "this connection to the bus is closed; connect again",
    )
}

/// Of an answer that does not fit its question.
pub(super) fn misfit() -> Error {
    Error::new(
        ErrorKind::Internal,
        "the other end answered something else than what was asked",
    )
}
