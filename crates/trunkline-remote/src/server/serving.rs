//! One session as the server has it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, OwnedMutexGuard, watch};
use tokio::task::AbortHandle;
use trunkline_core::engine::{Admitted, Batch, Engine, Message};
use trunkline_core::{Error, ErrorKind, Result};

use super::readers::{self, ToReader};
use crate::codec::{Malformed, read};
use crate::frame::{Answer, Call, CallId, Pulled, ReaderId, Reply, Request, frame};
use crate::line::{Broken, Line};
use crate::session::{MAX_FRAME_BYTES, PacketNumber, Tag};
use crate::socket::Socket;

/// Calls that one session may have under way. A client of ours never has as many.
pub(crate) const MAX_CALLS: usize = 4_096;
/// Bytes of live messages that wait for the engine; more are dropped.
const MAX_MESSAGES_BYTES: usize = 16 << 20;
/// Readers that one session may have.
const MAX_READERS: usize = 65_536;

/// One session: its line, its readers, and what must be done in order.
pub(super) struct Serving {
    id: String,
    line: Line,
    engine: Arc<dyn Engine>,
    readers: Mutex<FxHashMap<ReaderId, UnboundedSender<ToReader>>>,
    lanes: Mutex<Option<Lanes>>,
    calls: AtomicUsize,
    /// The last of them is answered.
    answered: Notify,
    /// Calls that may be forgotten.
    asked: Mutex<FxHashMap<CallId, AbortHandle>>,
    left: AtomicBool,
    over: watch::Sender<bool>,
    times_carried: AtomicU64,
    /// Bytes of live messages that the engine has not taken yet.
    messages_bytes: AtomicUsize,
    /// Whether a connection carries it. Readers that lease events wait for one.
    attached: watch::Sender<bool>,
    /// Ends the connection that carries it, because its client has another.
    kick: Notify,
    /// Held by the connection that carries it.
    carried: Arc<tokio::sync::Mutex<()>>,
}

/// What must be handed to the engine in the order of the client. A group that has to wait holds up
/// no other. Their length is bounded by the calls that a session may have, and by the window of
/// its line.
struct Lanes {
    appends: UnboundedSender<(CallId, Call)>,
    commits: UnboundedSender<(CallId, Call)>,
    messages: UnboundedSender<Batch<Message>>,
}

impl Serving {
    pub(super) fn new(id: String, engine: Arc<dyn Engine>) -> Arc<Self> {
        let (appends, in_appends) = unbounded_channel();
        let (commits, in_commits) = unbounded_channel();
        let (messages, in_messages) = unbounded_channel();
        let serving = Arc::new(Self {
            id,
            line: Line::default(),
            engine,
            readers: Mutex::default(),
            lanes: Mutex::new(Some(Lanes {
                appends,
                commits,
                messages,
            })),
            calls: AtomicUsize::new(0),
            answered: Notify::new(),
            asked: Mutex::default(),
            left: AtomicBool::new(false),
            over: watch::Sender::new(false),
            times_carried: AtomicU64::new(0),
            messages_bytes: AtomicUsize::new(0),
            attached: watch::Sender::new(false),
            kick: Notify::new(),
            carried: Arc::default(),
        });
        tokio::spawn(Arc::clone(&serving).in_order(in_appends));
        tokio::spawn(Arc::clone(&serving).in_order(in_commits));
        tokio::spawn(Arc::clone(&serving).send(in_messages));
        serving
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn line(&self) -> &Line {
        &self.line
    }

    pub(super) fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// Whether a connection carries it, and every change of that.
    pub(super) fn attached(&self) -> watch::Receiver<bool> {
        self.attached.subscribe()
    }

    /// Whether its client said that it would not be back.
    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// The right to carry it, to be had by one connection at a time. One that carries it already is
    /// ended.
    pub(super) async fn turn(&self) -> Turn {
        self.kick.notify_waiters();
        Turn(Arc::clone(&self.carried).lock_owned().await)
    }

    /// The right to carry it, unless somebody has it.
    pub(super) fn try_turn(&self) -> Option<Turn> {
        Arc::clone(&self.carried).try_lock_owned().ok().map(Turn)
    }

    /// Goes on after what its client has; gives false if it cannot.
    pub(super) fn resume(&self, _turn: &Turn, received: PacketNumber) -> bool {
        self.lanes.lock().is_some() && self.line.resume(received).is_ok()
    }

    /// Moves frames over this connection until it breaks.
    pub(super) async fn carry(
        self: &Arc<Self>,
        _turn: Turn,
        socket: Socket,
        closing: impl Future<Output = ()>,
    ) -> Broken {
        self.times_carried.fetch_add(1, Ordering::AcqRel);
        let _attached = Attached::new(&self.attached);
        let kicked = self.kick.notified();
        let stop = async {
            tokio::select! {
                () = closing => self.idle().await,
                () = self.gone() => {}
            }
        };
        tokio::select! {
            broken = self.line.carry(socket, stop, |frame| self.handle(&frame)) => broken,
            () = kicked => Broken::Closed,
        }
    }

    /// Yields once its client has left.
    async fn gone(&self) {
        let mut attached = self.attached();
        // An error means that the session is gone, and so is the client.
        let _ = attached.wait_for(|_| self.has_left()).await;
    }

    /// Waits until nothing is under way, but not for what may never come.
    async fn idle(&self) {
        const LONGEST: Duration = Duration::from_secs(5);
        let idle = async {
            loop {
                let answered = self.answered.notified();
                if self.calls.load(Ordering::Acquire) == 0 {
                    return;
                }
                answered.await;
            }
        };
        // What is not done by then stays unanswered, which the client knows how to take.
        let _ = tokio::time::timeout(LONGEST, idle).await;
    }

    /// How often a connection began to carry it.
    pub(super) fn times_carried(&self) -> u64 {
        self.times_carried.load(Ordering::Acquire)
    }

    /// Waits until a connection carries it, or for so long, or until the server closes.
    pub(super) async fn until_back(&self, grace: Duration, closing: impl Future<Output = ()>) {
        let mut attached = self.attached();
        tokio::select! {
            biased;
            // An error means that the session is gone.
            _ = attached.wait_for(|attached| *attached) => {}
            () = closing => {}
            () = tokio::time::sleep(grace) => {}
        }
    }

    /// Yields once the session has ended.
    async fn ended(&self) {
        let mut over = self.over.subscribe();
        // The sender is the session's own, so it is there.
        let _ = over.wait_for(|over| *over).await;
    }

    /// Lets go of everything: readers end, and what was handed over goes its way.
    pub(super) fn end(&self) {
        self.over.send_replace(true);
        self.lanes.lock().take();
        self.readers.lock().clear();
        self.kick.notify_waiters();
    }

    fn handle(self: &Arc<Self>, bytes: &[u8]) -> Result<(), Malformed> {
        match read(bytes)? {
            Request::Call { id, call } => self.call(id, call),
            Request::Forget { id } => {
                let asked = self.asked.lock().remove(&id);
                if let Some(asked) = asked {
                    asked.abort();
                    self.over_with();
                }
            }
            Request::Send { messages } => self.send_later(messages),
            Request::Open { reader, what } => {
                let (sender, commands) = unbounded_channel();
                let mut all = self.readers.lock();
                if all.len() >= MAX_READERS {
                    return Err(Malformed("there are too many readers"));
                }
                all.insert(reader, sender);
                drop(all);
                tokio::spawn(readers::serve(Arc::clone(self), reader, what, commands));
            }
            Request::Pull { reader, credit } => self.tell(reader, ToReader::Pull(credit)),
            Request::Cancel { reader } => self.tell(reader, ToReader::Cancel),
            Request::GiveBack { reader, tokens } => self.tell(reader, ToReader::GiveBack(tokens)),
            Request::Close { reader } => {
                self.readers.lock().remove(&reader);
            }
            Request::Leave => {
                self.left.store(true, Ordering::Release);
                self.attached.send_modify(|_| {});
            }
        }
        Ok(())
    }

    /// A reader that is gone needs to be told nothing.
    fn tell(&self, reader: ReaderId, command: ToReader) {
        if let Some(sender) = self.readers.lock().get(&reader) {
            let _ = sender.send(command);
        }
    }

    fn call(self: &Arc<Self>, id: CallId, call: Call) {
        if self.calls.fetch_add(1, Ordering::AcqRel) >= MAX_CALLS {
            let error = format!("the session has {MAX_CALLS} calls under way already");
            self.answer(id, Err(Error::new(ErrorKind::OverLimit, error)));
            return;
        }
        match call {
            Call::Append { .. } | Call::Commit { .. } => {
                let lanes = self.lanes.lock();
                let lane = lanes.as_ref().map(|lanes| match call {
                    Call::Append { .. } => &lanes.appends,
                    _ => &lanes.commits,
                });
                if let Some(lane) = lane {
                    // The lane is there for as long as the session is.
                    let _ = lane.send((id, call));
                }
            }
            Call::Settle {
                reader,
                batch,
                confirm,
            } => {
                let settle = ToReader::Settle { id, batch, confirm };
                let known = self.readers.lock().get(&reader).cloned();
                if known.is_none_or(|sender| sender.send(settle).is_err()) {
                    let gone = Error::new(ErrorKind::NoSuchConsumer, "the consumer is not open");
                    self.answer(id, Err(gone));
                }
            }
            call => {
                let (serving, changes) = (Arc::clone(self), call.changes());
                // Until it is noted, so that it cannot be done before.
                let mut asked = self.asked.lock();
                let asking = tokio::spawn(async move {
                    // A client that does not read its answers gets no more of them.
                    let ask = async {
                        serving.line.room().await;
                        serving.ask(call).await
                    };
                    let answer = tokio::select! {
                        answer = ask => answer,
                        () = serving.ended() => return,
                    };
                    // Whoever takes it out is the one to end it.
                    if serving.asked.lock().remove(&id).is_some() || changes {
                        serving.answer(id, answer);
                    }
                });
                if !changes {
                    asked.insert(id, asking.abort_handle());
                }
            }
        }
    }

    /// Calls whose order does not matter: whoever cares waits for the answer of one before the next.
    async fn ask(&self, call: Call) -> Result<Answer> {
        let engine = &self.engine;
        match call {
            Call::Read {
                stream,
                from,
                filters,
                max,
            } => {
                let page = engine
                    .log()
                    .read(&stream, from, &filters, readers::page(max));
                page.await.map(Answer::Read)
            }
            Call::Remove { stream, what } => engine
                .log()
                .remove(&stream, what)
                .await
                .map(Answer::Removed),
            Call::Scan {
                bucket,
                prefix,
                after,
                at_least,
                max,
            } => {
                let max = readers::page(max);
                let (prefix, after) = (prefix.as_ref(), after.as_ref());
                let scanned = engine.state().scan(&bucket, prefix, after, at_least, max);
                scanned.await.map(Answer::Scanned)
            }
            Call::Inspect => engine.topology().inspect().await.map(Answer::Inspected),
            Call::Apply { changes } => {
                let applied = engine.topology().apply(changes).await;
                applied.map(|()| Answer::Applied)
            }
            Call::Backlog { consumer } => engine
                .topology()
                .backlog(&consumer)
                .await
                .map(Answer::Backlog),
            Call::Subjects {
                stream,
                filter,
                max,
            } => {
                let subjects = engine.topology().subjects(&stream, &filter, max);
                subjects.await.map(Answer::Subjects)
            }
            Call::Append { .. } | Call::Commit { .. } | Call::Settle { .. } => Err(Error::new(
                ErrorKind::Internal,
                "a call that has an order was asked without it",
            )),
        }
    }

    /// Hands calls to the engine one after another: each is admitted before the next.
    async fn in_order(self: Arc<Self>, mut lane: UnboundedReceiver<(CallId, Call)>) {
        while let Some((id, call)) = lane.recv().await {
            match call {
                Call::Append {
                    stream,
                    batch,
                    mode,
                } => {
                    let appended = self.engine.log().append(&stream, batch, mode);
                    self.admitted(id, appended, Answer::Appended).await;
                }
                Call::Commit { bucket, commit } => {
                    let committed = self.engine.state().commit(&bucket, commit);
                    self.admitted(id, committed, Answer::Committed).await;
                }
                _ => {}
            }
        }
    }

    /// Waits until a call is admitted, and answers when it is done.
    pub(super) async fn admitted<T: Send + 'static>(
        self: &Arc<Self>,
        id: CallId,
        admitted: Admitted<'_, T>,
        answer: fn(T) -> Answer,
    ) {
        match admitted.answered() {
            Ok(result) => self.answer(id, result.map(answer)),
            Err(admitted) => match admitted.await {
                Err(error) => self.answer(id, Err(error)),
                Ok(admission) => {
                    let serving = Arc::clone(self);
                    tokio::spawn(async move {
                        let result = admission.await;
                        serving.answer(id, result.map(answer));
                    });
                }
            },
        }
    }

    /// Puts live messages behind those before. An engine that does not keep up loses some of them,
    /// as a slow listener would, instead of filling the memory.
    fn send_later(&self, messages: Batch<Message>) {
        let bytes = rough_bytes(&messages);
        let before = self.messages_bytes.fetch_add(bytes, Ordering::AcqRel);
        let sent = before < MAX_MESSAGES_BYTES
            && self
                .lanes
                .lock()
                .as_ref()
                .is_some_and(|lanes| lanes.messages.send(messages).is_ok());
        if !sent {
            self.messages_bytes.fetch_sub(bytes, Ordering::AcqRel);
            tracing::warn!("live messages of a client were dropped: the engine does not keep up");
        }
    }

    async fn send(self: Arc<Self>, mut lane: UnboundedReceiver<Batch<Message>>) {
        while let Some(messages) = lane.recv().await {
            let bytes = rough_bytes(&messages);
            self.messages_bytes.fetch_sub(bytes, Ordering::AcqRel);
            if let Err(error) = self.engine.live().send(messages).completed().await {
                tracing::warn!(%error, "live messages of a client were not sent");
            }
        }
    }

    pub(super) fn answer(&self, id: CallId, answer: Result<Answer>) {
        self.over_with();
        // The engine closes because this process ends. The client is to try the next one.
        if answer
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Closed)
        {
            return;
        }
        self.reply(&Reply::Answer { id, answer });
    }

    /// A call is not under way any more.
    fn over_with(&self) {
        if self.calls.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.answered.notify_waiters();
        }
    }

    pub(super) fn reply(&self, reply: &Reply) {
        let mut bytes: Bytes = frame(reply);
        if bytes.len() > MAX_FRAME_BYTES {
            let error = format!("the answer has {} bytes; ask for less at once", bytes.len());
            let error = Error::new(ErrorKind::OverLimit, error);
            bytes = frame(&match reply {
                Reply::Answer { id, .. } => Reply::Answer {
                    id: *id,
                    answer: Err(error),
                },
                Reply::Opened { reader, .. } | Reply::Pulled { reader, .. } => Reply::Pulled {
                    reader: *reader,
                    pulled: Pulled::Failed(error),
                },
            });
        }
        self.line.push(Tag::Session, bytes);
    }
}

fn rough_bytes(messages: &Batch<Message>) -> usize {
    let bytes = |message: &Message| 64 + message.body.rough_bytes() + message.headers.bytes();
    messages.iter().map(bytes).sum()
}

/// The right to carry a session, held from before its ends are compared until the connection breaks,
/// so that no other connection moves them in between.
pub(super) struct Turn(#[expect(dead_code, reason = "it is held")] OwnedMutexGuard<()>);

/// Says for as long as it lives that a connection carries the session.
struct Attached<'a>(&'a watch::Sender<bool>);

impl<'a> Attached<'a> {
    fn new(attached: &'a watch::Sender<bool>) -> Self {
        attached.send_replace(true);
        Self(attached)
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}
