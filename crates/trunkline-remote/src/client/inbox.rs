//! A reader as the client has it: what was pulled and not taken yet, and how to open it again.
//!
//! ```text
//!   handle ── start ──► Pull ──► server            one pull at a time
//!      ▲                           │
//!      └── next ◄── pulled ◄───────┘
//! ```
//!
//! A fetch that its caller drops leaves its pull open for a moment, because most callers fetch again
//! at once. If nobody does, the pull is cancelled, and what came all the same is given back.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use trunkline_core::engine::{Credit, Followed, Heard, Position, Seq, StoredEvent, Token, Watched};
use trunkline_core::{Error, ErrorKind, Result};

use super::calls::Shared;
use crate::frame::{Open, Pulled, ReaderId, Request, Start, frame};
use crate::line::Line;
use crate::session::Tag;

/// What a reader and the driver share.
pub(crate) struct Inbox {
    pub(super) id: ReaderId,
    state: Mutex<State>,
    ready: Notify,
}

struct State {
    /// How it is opened, and opened again: a follower's position moves on.
    open: Open,
    opening: Option<oneshot::Sender<Result<()>>>,
    /// The pull that is under way.
    pulling: Option<Credit>,
    /// It was cancelled and that is not confirmed.
    cancelling: bool,
    pulled: VecDeque<Pulled>,
    /// Somebody waits for more.
    attached: bool,
    /// Nobody will ever take anything from it again.
    halted: bool,
    /// Nobody will ever use it again.
    over: bool,
    closed: bool,
    /// A reading that began with the last event of each subject.
    lasts: Option<Lasts>,
    /// A watch has told something, and the state as it was when it began.
    told: bool,
    caught_up: bool,
    /// It could not be opened again.
    unopened: bool,
    /// What it reads is gone for good, and so it is not opened again.
    gone: bool,
}

/// A reading that began with the last event of each subject, and is still at those. When it has to
/// be opened again, each subject's last event may be another.
#[derive(Clone, Copy)]
struct Lasts {
    /// Where events began that came after it was opened: from here on it wants all of them.
    tail: Seq,
    /// The last event that it gave.
    given: Seq,
    /// It was opened again since.
    again: bool,
}

fn followed_events(events: Vec<StoredEvent>, behind: u64) -> Pulled {
    let added = events.len();
    Pulled::Followed {
        events,
        followed: Ok(Followed::Events { added, behind }),
    }
}

impl Inbox {
    /// A reader to be opened; the receiver tells when it is.
    pub(super) fn open(shared: &Shared, open: Open) -> (Arc<Self>, oneshot::Receiver<Result<()>>) {
        let (opening, opened) = oneshot::channel();
        let inbox = Arc::new(Self {
            id: shared.new_id(),
            state: Mutex::new(State {
                open: open.clone(),
                opening: Some(opening),
                pulling: None,
                cancelling: false,
                pulled: VecDeque::new(),
                attached: false,
                halted: false,
                over: false,
                closed: false,
                lasts: None,
                told: false,
                caught_up: false,
                unopened: false,
                gone: false,
            }),
            ready: Notify::new(),
        });
        let mut core = shared.core.lock();
        if core.closed {
            inbox.close();
        } else {
            core.readers.insert(inbox.id, Arc::clone(&inbox));
            let request = Request::Open {
                reader: inbox.id,
                what: open,
            };
            shared.line.push(Tag::Session, frame(&request));
        }
        drop(core);
        (inbox, opened)
    }

    /// Opens it again in a new session. `is_lost` says that what was stored is gone. Gives false if
    /// nobody needs it any more.
    pub(super) fn reopen(&self, line: &Line, is_lost: bool) -> bool {
        let mut state = self.state.lock();
        if state.over {
            return false;
        }
        if state.halted || (state.cancelling && !state.attached) {
            state.pulling = None;
        }
        state.cancelling = false;
        state.unopened = false;
        if state.opening.is_none() {
            state.after_loss(is_lost);
        }
        if state.gone {
            state.pulling = None;
            drop(state);
            self.ready.notify_one();
            return true;
        }
        line.push(Tag::Session, self.request_to_open(&state));
        if let Some(credit) = state.pulling {
            line.push(Tag::Session, self.pull(credit));
        }
        drop(state);
        self.ready.notify_one();
        true
    }

    /// Opens it once more, if it could not be opened when the session began.
    pub(super) fn open_again(&self, line: &Line) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.unopened) {
            line.push(Tag::Session, self.request_to_open(&state));
        }
    }

    /// Whether what it reads went away with the bus that had it. What it gave means nothing now.
    pub(super) fn is_gone(&self) -> bool {
        self.state.lock().gone
    }

    fn request_to_open(&self, state: &State) -> bytes::Bytes {
        frame(&Request::Open {
            reader: self.id,
            what: state.open.clone(),
        })
    }

    fn pull(&self, credit: Credit) -> bytes::Bytes {
        frame(&Request::Pull {
            reader: self.id,
            credit,
        })
    }

    /// The server opened it, or refused to.
    pub(super) fn opened(&self, opened: Result<Option<Start>>) {
        let mut state = self.state.lock();
        let opening = state.opening.take();
        let opened = match opened {
            Ok(start) => {
                if let (Some(start), true) = (start, opening.is_some()) {
                    state.begins_at(start);
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        match (opening, opened) {
            // Whoever gave up waiting closes it.
            (Some(opening), opened) => drop(opening.send(opened)),
            (None, Ok(())) => {}
            (None, Err(error)) => {
                state.pulling = None;
                state.cancelling = false;
                // Whoever asks again has it opened once more.
                state.unopened = true;
                let failed = state.no_longer_there(error);
                state.pulled.push_back(failed);
            }
        }
        drop(state);
        self.ready.notify_one();
    }

    /// What a pull brought.
    pub(super) fn received(&self, shared: &Shared, pulled: Pulled) {
        let mut state = self.state.lock();
        state.pulling = None;
        let unwanted = state.halted || (state.cancelling && !state.attached);
        state.cancelling = false;
        match pulled {
            Pulled::Cancelled => {}
            Pulled::Deliveries { deliveries } if unwanted => {
                let tokens = deliveries.into_iter().map(|delivery| delivery.token);
                self.give_back(&shared.line, tokens.collect());
            }
            Pulled::Followed { events, followed } => {
                if let Some(pulled) = self.followed(&mut state, &shared.line, events, followed) {
                    state.pulled.push_back(pulled);
                }
            }
            Pulled::Watched { changes } => {
                state.watched(&changes);
                state.pulled.push_back(Pulled::Watched { changes });
            }
            pulled => state.pulled.push_back(pulled),
        }
        let over = state.over;
        drop(state);
        self.ready.notify_one();
        if over {
            self.end(shared);
        }
    }

    /// Notes how far a follower is. While it still has to tell its first events apart, some of them
    /// are not what it asked for; `None` then, if nothing is left.
    fn followed(
        &self,
        state: &mut State,
        line: &Line,
        mut events: Vec<StoredEvent>,
        followed: Result<Followed>,
    ) -> Option<Pulled> {
        if let Some(lasts) = state.lasts {
            events.retain(|event| event.seq > lasts.given);
            match events.iter().position(|event| event.seq >= lasts.tail) {
                None => {
                    let given = events.last().map_or(lasts.given, |event| event.seq);
                    state.lasts = Some(Lasts { given, ..lasts });
                }
                Some(_) if !lasts.again => state.lasts = None,
                Some(new) => {
                    // From here on it wants every event, not only the last of each subject.
                    events.truncate(new);
                    state.lasts = None;
                    state.move_to(lasts.tail);
                    line.push(Tag::Session, frame(&Request::Close { reader: self.id }));
                    line.push(Tag::Session, self.request_to_open(state));
                    return (!events.is_empty()).then(|| followed_events(events, 0));
                }
            }
            if let (Ok(Followed::Events { behind, .. }), true) = (&followed, state.lasts.is_some())
            {
                return (!events.is_empty()).then(|| followed_events(events, *behind));
            }
        }
        if let Some(last) = events.last() {
            state.move_to(last.seq + 1);
        }
        if let Ok(Followed::Gap(gap)) = &followed {
            state.lasts = None;
            state.move_to(gap.to + 1);
        }
        Some(Pulled::Followed { events, followed })
    }

    /// The next thing that was pulled; pulls if there is nothing. `None` once closed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub(super) async fn next(&self, line: &Line, credit: Credit) -> Option<Pulled> {
        loop {
            {
                let mut state = self.state.lock();
                match state.pulled.pop_front() {
                    Some(pulled) => return Some(pulled),
                    None if state.closed => return None,
                    None => self.start(&mut state, line, credit),
                }
            }
            self.ready.notified().await;
        }
    }

    /// Pulls what will be asked for next, while its user is at what it has.
    pub(super) fn prefetch(&self, line: &Line, credit: Credit) {
        let mut state = self.state.lock();
        if state.pulled.is_empty() {
            self.start(&mut state, line, credit);
        }
    }

    fn start(&self, state: &mut State, line: &Line, credit: Credit) {
        if state.gone {
            let gone = state.is_gone_as();
            state.pulled.push_back(gone);
            self.ready.notify_one();
        } else if state.pulling.is_none() && !state.cancelling && !state.closed {
            if std::mem::take(&mut state.unopened) {
                line.push(Tag::Session, self.request_to_open(state));
            }
            state.pulling = Some(credit);
            line.push(Tag::Session, self.pull(credit));
        }
    }

    /// Puts back what its caller had no room for.
    pub(super) fn put_back(&self, pulled: Pulled) {
        self.state.lock().pulled.push_front(pulled);
    }

    /// Says whether somebody waits. One who goes leaves a note, so that somebody looks after what
    /// is still under way.
    pub(super) fn attach(&self, shared: &Shared, attached: bool) {
        let mut state = self.state.lock();
        state.attached = attached;
        let leaves_something = state.pulling.is_some() || !state.pulled.is_empty();
        drop(state);
        if !attached && leaves_something {
            shared.core.lock().dropped.push(self.id);
            shared.dropped.notify_one();
        }
    }

    /// Cancels the pull that nobody came back for, and gives back what it brought.
    pub(super) fn sweep(&self, line: &Line) {
        let mut state = self.state.lock();
        if state.attached {
            return;
        }
        self.let_go(&mut state, line);
    }

    /// Its user will take nothing more, but may settle what it has.
    pub(super) fn halt(&self, line: &Line) {
        let mut state = self.state.lock();
        state.halted = true;
        self.let_go(&mut state, line);
    }

    fn let_go(&self, state: &mut State, line: &Line) {
        let mut tokens = Vec::new();
        state.pulled.retain(|pulled| match pulled {
            Pulled::Deliveries { deliveries } => {
                tokens.extend(deliveries.iter().map(|delivery| delivery.token));
                false
            }
            _ => true,
        });
        if !tokens.is_empty() {
            self.give_back(line, tokens);
        }
        if state.pulling.is_some() && !state.cancelling {
            state.cancelling = true;
            line.push(Tag::Session, frame(&Request::Cancel { reader: self.id }));
        }
    }

    fn give_back(&self, line: &Line, tokens: Vec<Token>) {
        let request = Request::GiveBack {
            reader: self.id,
            tokens,
        };
        line.push(Tag::Session, frame(&request));
    }

    /// Nobody will use it again. What is on its way still has to come in, to be given back.
    pub(super) fn drop_it(&self, shared: &Shared) {
        let mut state = self.state.lock();
        state.over = true;
        let waits = state.cancelling;
        drop(state);
        if !waits {
            self.end(shared);
        }
    }

    fn end(&self, shared: &Shared) {
        let known = shared.core.lock().readers.remove(&self.id);
        if known.is_some() {
            let request = Request::Close { reader: self.id };
            shared.line.push(Tag::Session, frame(&request));
        }
    }

    /// The engine is closed.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.opening = None;
        drop(state);
        self.ready.notify_one();
    }
}

impl State {
    /// What a position meant when the reader was opened, so that it means the same the next time.
    fn begins_at(&mut self, start: Start) {
        if let Open::Follow { from, .. } = &mut self.open {
            match from {
                // The first event may have gone by the next time, and that would be no gap.
                Position::First | Position::Seq(_) => {}
                Position::LastPerSubject => {
                    self.lasts = Some(Lasts {
                        tail: start.tail,
                        given: 0,
                        again: false,
                    });
                }
                _ => *from = Position::Seq(start.next),
            }
        }
    }

    fn move_to(&mut self, next: Seq) {
        if let Open::Follow { from, .. } = &mut self.open {
            *from = Position::Seq(next);
        }
    }

    fn watched(&mut self, changes: &[Watched]) {
        self.told = true;
        for change in changes {
            let rev = match change {
                Watched::Put(entry) => entry.rev,
                Watched::Deleted { rev, .. } | Watched::Expired { rev, .. } => *rev,
                Watched::CaughtUp(rev) => {
                    self.caught_up = true;
                    *rev
                }
            };
            // Before that, an older key may still be to come; it then begins once more.
            if let (true, Open::Watch { from, .. }) = (self.caught_up, &mut self.open) {
                *from = rev;
            }
        }
    }

    /// What its user has to know when the session was lost, and where it goes on.
    fn after_loss(&mut self, is_lost: bool) {
        if let Some(lasts) = &mut self.lasts {
            lasts.again = true;
        }
        match &mut self.open {
            Open::Listen { .. } => self.pulled.push_back(Pulled::Heard {
                messages: Vec::new(),
                heard: Heard::Resumed,
            }),
            Open::Follow { from, .. } if is_lost => {
                *from = Position::First;
                self.lasts = None;
                self.pulled.push_back(Pulled::Followed {
                    events: Vec::new(),
                    followed: Ok(Followed::Reset),
                });
            }
            // Keys that were told and are deleted meanwhile would never be told as deleted.
            Open::Watch { .. } if self.told && (is_lost || !self.caught_up) => self.gone = true,
            Open::Consume { .. } if is_lost => {
                self.pulled.clear();
                self.gone = true;
            }
            _ => {}
        }
    }

    /// What its user is told who asks a reader that is gone.
    fn is_gone_as(&self) -> Pulled {
        match &self.open {
            Open::Consume { .. } => Pulled::Gone,
            _ => Pulled::Failed(Error::new(
                ErrorKind::Conflict,
                "the server went away in the middle of the watch, and changes may be missing; scan anew",
            )),
        }
    }

    /// What its user is told of something that was there and is not any more.
    fn no_longer_there(&self, error: Error) -> Pulled {
        match (&self.open, error.kind()) {
            (Open::Consume { .. }, ErrorKind::NoSuchConsumer | ErrorKind::NoSuchStream) => {
                Pulled::Gone
            }
            (Open::Follow { .. }, ErrorKind::NoSuchStream) => Pulled::Followed {
                events: Vec::new(),
                followed: Ok(Followed::Closed),
            },
            _ => Pulled::Failed(error),
        }
    }
}
