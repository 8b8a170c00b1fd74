//! The engine's readers, as their users hold them.

use std::collections::VecDeque;
use std::sync::Arc;

use trunkline_core::engine::{
    Admission, Admitted, Batch, Boxed, Credit, Delivery, Feed, Fetched, Follow, Followed, Heard,
    Listener, Message, Settle, Settler, StoredEvent, Token, Watch, Watched,
};
use trunkline_core::{Error, ErrorKind, Result};

use super::calls::{Connection, Repeat, Shared, closed, misfit};
use super::inbox::Inbox;
use crate::frame::{Answer, Call, Open, Pulled};

/// What is asked for ahead of need.
const PREFETCH: Credit = Credit {
    items: 1_024,
    bytes: 1 << 20,
};

/// An open reader; dropping it closes it at the other end.
pub(super) struct Reader {
    shared: Arc<Connection>,
    inbox: Arc<Inbox>,
}

impl Reader {
    /// # Errors
    /// The engine's own; a time-out when the server does not answer.
    pub(super) async fn open(shared: &Arc<Connection>, what: Open) -> Result<Self> {
        let (inbox, opened) = Inbox::open(shared, what);
        // Also closes what nobody waited for.
        let reader = Self {
            shared: Arc::clone(shared),
            inbox,
        };
        let limit = shared.options.request_timeout;
        match tokio::time::timeout(limit, opened).await {
            Ok(Ok(opened)) => opened.map(|()| reader),
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(shared.unanswered(limit)),
        }
    }

    async fn next(&self, credit: Credit) -> Option<Pulled> {
        self.inbox.next(&self.shared.line, credit).await
    }

    fn prefetch(&self) {
        self.inbox.prefetch(&self.shared.line, PREFETCH);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.inbox.drop_it(&self.shared);
    }
}

/// Moves items while there is credit; the first goes whatever its size.
fn give<T>(
    from: &mut VecDeque<T>,
    credit: Credit,
    bytes: impl Fn(&T) -> usize,
    out: &mut Vec<T>,
) -> usize {
    let (mut given, mut used) = (0, 0);
    while given < credit.items
        && let Some(item) = from.front()
    {
        used += bytes(item);
        if given > 0 && used > credit.bytes {
            break;
        }
        out.extend(from.pop_front());
        given += 1;
    }
    given
}

pub(super) struct RemoteListener {
    reader: Reader,
    heard: VecDeque<Message>,
}

impl RemoteListener {
    pub(super) fn new(reader: Reader) -> Self {
        Self {
            reader,
            heard: VecDeque::new(),
        }
    }

    async fn receive(&mut self, max: usize, out: &mut Vec<Message>) -> Heard {
        loop {
            let given = give(&mut self.heard, Credit::items(max), |_| 0, out);
            if given > 0 {
                return Heard::Messages(given);
            }
            // Nothing is asked for ahead of need: what is not received is the listener's own to
            // keep or lose, by the capacity that it was given.
            match self.reader.next(Credit::items(max)).await {
                Some(Pulled::Heard { messages, heard }) => {
                    self.heard.extend(messages);
                    if !matches!(heard, Heard::Messages(_)) {
                        return heard;
                    }
                }
                Some(Pulled::Failed(error)) => {
                    tracing::error!(%error, "a subscription could not be opened again; it ends");
                    return Heard::Closed;
                }
                _ => return Heard::Closed,
            }
        }
    }
}

impl Listener for RemoteListener {
    fn receive<'a>(&'a mut self, max: usize, out: &'a mut Vec<Message>) -> Boxed<'a, Heard> {
        Box::pin(self.receive(max, out))
    }
}

pub(super) struct RemoteFollow {
    reader: Reader,
    events: VecDeque<StoredEvent>,
    /// How far the server was behind when it gave these.
    behind: u64,
}

impl RemoteFollow {
    pub(super) fn new(reader: Reader) -> Self {
        Self {
            reader,
            events: VecDeque::new(),
            behind: 0,
        }
    }

    async fn next(&mut self, credit: Credit, out: &mut Vec<StoredEvent>) -> Result<Followed> {
        loop {
            let given = give(
                &mut self.events,
                credit,
                |event| event.body.rough_bytes(),
                out,
            );
            if given > 0 {
                return Ok(Followed::Events {
                    added: given,
                    behind: self.behind + self.events.len() as u64,
                });
            }
            match self.reader.next(PREFETCH).await {
                Some(Pulled::Followed { events, followed }) => {
                    self.events.extend(events);
                    match followed? {
                        Followed::Events { behind, .. } => {
                            self.behind = behind;
                            self.reader.prefetch();
                        }
                        other => return Ok(other),
                    }
                }
                Some(Pulled::Failed(error)) => return Err(error),
                Some(_) => return Err(misfit()),
                None => return Ok(Followed::Closed),
            }
        }
    }
}

impl Follow for RemoteFollow {
    fn next<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<StoredEvent>,
    ) -> Boxed<'a, Result<Followed>> {
        Box::pin(self.next(credit, out))
    }
}

pub(super) struct RemoteWatch {
    reader: Reader,
    changes: VecDeque<Watched>,
}

impl RemoteWatch {
    pub(super) fn new(reader: Reader) -> Self {
        Self {
            reader,
            changes: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> Result<Watched> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            match self.reader.next(PREFETCH).await {
                Some(Pulled::Watched { changes }) => {
                    self.changes.extend(changes);
                    self.reader.prefetch();
                }
                Some(Pulled::Failed(error)) => return Err(error),
                Some(_) => return Err(misfit()),
                None => return Err(closed()),
            }
        }
    }
}

impl Watch for RemoteWatch {
    fn next(&mut self) -> Boxed<'_, Result<Watched>> {
        Box::pin(self.next())
    }
}

/// The receiving end of a consumer. Its settler may outlive it.
pub(super) struct RemoteFeed {
    reader: Arc<Reader>,
}

impl RemoteFeed {
    pub(super) fn membership(reader: Reader) -> (Box<dyn Feed>, Arc<dyn Settler>) {
        let reader = Arc::new(reader);
        let feed = Self {
            reader: Arc::clone(&reader),
        };
        (Box::new(feed), Arc::new(RemoteSettler { reader }))
    }

    async fn fetch(&mut self, credit: Credit, out: &mut Vec<Delivery>) -> Result<Fetched> {
        let Reader { shared, inbox } = &*self.reader;
        let _attached = Attached::new(shared, inbox);
        match inbox.next(&shared.line, credit).await {
            Some(Pulled::Deliveries { deliveries }) => {
                let mut deliveries = VecDeque::from(deliveries);
                let bytes = |delivery: &Delivery| delivery.event.body.rough_bytes();
                let given = give(&mut deliveries, credit, bytes, out);
                if !deliveries.is_empty() {
                    // The pull was made with the credit of a call that was dropped.
                    inbox.put_back(Pulled::Deliveries {
                        deliveries: deliveries.into(),
                    });
                }
                Ok(Fetched::Deliveries(given))
            }
            Some(Pulled::Gap(gap)) => Ok(Fetched::Gap(gap)),
            Some(Pulled::Gone) => Ok(Fetched::Gone),
            Some(Pulled::Failed(error)) => Err(error),
            Some(_) => Err(misfit()),
            None => Ok(Fetched::Closed),
        }
    }
}

impl Feed for RemoteFeed {
    fn fetch<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<Delivery>,
    ) -> Boxed<'a, Result<Fetched>> {
        Box::pin(self.fetch(credit, out))
    }
}

impl Drop for RemoteFeed {
    fn drop(&mut self) {
        self.reader.inbox.halt(&self.reader.shared.line);
    }
}

/// Somebody fetches.
struct Attached<'a> {
    shared: &'a Shared,
    inbox: &'a Inbox,
}

impl<'a> Attached<'a> {
    fn new(shared: &'a Shared, inbox: &'a Inbox) -> Self {
        inbox.attach(shared, true);
        Self { shared, inbox }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.inbox.attach(self.shared, false);
    }
}

struct RemoteSettler {
    reader: Arc<Reader>,
}

impl Settler for RemoteSettler {
    fn settle(
        &self,
        batch: Batch<(Token, Settle)>,
        confirm: bool,
    ) -> Admitted<'_, Vec<Result<(), Error>>> {
        let reader = Arc::clone(&self.reader);
        Admitted::waiting(async move {
            let shared = &reader.shared;
            if reader.inbox.is_gone() {
                // Its tokens may name deliveries of the bus that came after.
                return Err(Error::new(
                    ErrorKind::NoSuchConsumer,
                    "the bus of this consumer is gone, and its deliveries with it",
                ));
            }
            reader.inbox.open_again(&shared.line);
            let call = Call::Settle {
                reader: reader.inbox.id,
                batch,
                confirm,
            };
            // A lease that was settled already says so, which is all that a repeat can do.
            let limit = shared.options.request_timeout;
            let ticket = shared.admit(call, Repeat::Safe, limit).await?;
            Ok(Admission::waiting(async move {
                let answer = ticket.answer().await;
                drop(reader);
                match answer? {
                    Answer::Settled(results) => Ok(results),
                    _ => Err(misfit()),
                }
            }))
        })
    }
}
