//! Readers of the engine's, each a task that gives what its client pulls.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use trunkline_core::engine::{
    Batch, Credit, Engine, Feed, Fetched, Follow, Followed, Heard, Link, Listener, Message,
    Position, Settle, Settler, Token, Watch, Watched,
};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

use super::serving::Serving;
use crate::frame::{Answer, CallId, Open, Pulled, ReaderId, Reply, Start};

/// The most that one pull or one page gives, whatever was asked for; one item always.
const MAX_CREDIT: Credit = Credit {
    items: 1_024,
    bytes: 1 << 20,
};

/// Live messages that are received at once, before their bytes are counted.
const FEW: usize = 32;
/// The most that one page gives.
const MAX_PAGE: Credit = Credit {
    items: 65_536,
    bytes: 16 << 20,
};

/// What a reader is told.
pub(super) enum ToReader {
    Pull(Credit),
    Cancel,
    GiveBack(Vec<Token>),
    Settle {
        id: CallId,
        batch: Batch<(Token, Settle)>,
        confirm: bool,
    },
}

/// Bounds what is to be held in memory for one answer.
fn at_most(most: Credit, credit: Credit) -> Credit {
    Credit {
        items: credit.items.min(most.items),
        bytes: credit.bytes.min(most.bytes),
    }
}

/// How much of a page one answer has.
pub(super) fn page(credit: Credit) -> Credit {
    at_most(MAX_PAGE, credit)
}

/// Opens a reader and serves it until its client closes it or its session ends.
pub(super) async fn serve(
    serving: Arc<Serving>,
    id: ReaderId,
    what: Open,
    mut commands: UnboundedReceiver<ToReader>,
) {
    let mut reader = match open(serving.engine().as_ref(), what).await {
        Ok((reader, start)) => {
            serving.reply(&Reply::Opened {
                reader: id,
                opened: Ok(start),
            });
            reader
        }
        Err(error) => {
            // If the process ends, the client is to try the next one.
            if error.kind() != ErrorKind::Closed {
                serving.reply(&Reply::Opened {
                    reader: id,
                    opened: Err(error.clone()),
                });
            }
            return refuse(&serving, &mut commands, &error).await;
        }
    };
    let settler = reader.settler();
    let mut attached = serving.attached();
    let mut pull: Option<Credit> = None;
    let reply = |pulled| serving.reply(&Reply::Pulled { reader: id, pulled });
    loop {
        let pulled = tokio::select! {
            biased;
            command = commands.recv() => {
                match command {
                    None => return,
                    Some(ToReader::Pull(credit)) => pull = Some(at_most(MAX_CREDIT, credit)),
                    Some(ToReader::Cancel) => {
                        if pull.take().is_some() {
                            reply(Pulled::Cancelled);
                        }
                    }
                    Some(ToReader::GiveBack(tokens)) => give_back(settler.as_ref(), tokens).await,
                    Some(ToReader::Settle { id, batch, confirm }) => {
                        settle(&serving, settler.as_ref(), id, batch, confirm).await;
                    }
                }
                continue;
            }
            pulled = async {
                // A client that does not read gets no more.
                serving.line().room().await;
                reader.pull(serving.engine(), pull.unwrap_or(MAX_CREDIT), &mut attached).await
            }, if pull.is_some() => pulled,
        };
        pull = None;
        match pulled {
            Some(pulled) => reply(pulled),
            // The engine closed because this process ends; nothing more is to be said.
            None => {
                let closed = Error::new(ErrorKind::Closed, "the engine is closed");
                return refuse(&serving, &mut commands, &closed).await;
            }
        }
    }
}

/// Answers what can be answered of a reader that is none, until its client closes it.
async fn refuse(serving: &Arc<Serving>, commands: &mut UnboundedReceiver<ToReader>, error: &Error) {
    while let Some(command) = commands.recv().await {
        if let ToReader::Settle { id, .. } = command {
            serving.answer(id, Err(error.clone()));
        }
    }
}

async fn give_back(settler: Option<&Arc<dyn Settler>>, tokens: Vec<Token>) {
    let Some(settler) = settler else { return };
    let batch = tokens.into_iter().map(|token| (token, Settle::GiveBack));
    if let Err(error) = settler.settle(batch.collect(), false).completed().await {
        tracing::warn!(%error, "deliveries were not given back; their leases have to run out");
    }
}

async fn settle(
    serving: &Arc<Serving>,
    settler: Option<&Arc<dyn Settler>>,
    id: CallId,
    batch: Batch<(Token, Settle)>,
    confirm: bool,
) {
    let Some(settler) = settler else {
        let none = Error::new(ErrorKind::NoSuchConsumer, "the reader is of no consumer");
        return serving.answer(id, Err(none));
    };
    let settled = settler.settle(batch, confirm);
    serving.admitted(id, settled, Answer::Settled).await;
}

/// A reader of the engine's.
enum Reader {
    Listener {
        listener: Option<Box<dyn Listener>>,
        filters: Vec<Filter>,
        share: Option<Name>,
        capacity: usize,
        /// What it heard behind the messages that were given last.
        then: Option<Heard>,
    },
    Follow(Box<dyn Follow>),
    Consumer(Box<dyn Feed>, Arc<dyn Settler>),
    /// With what came behind the changes that were given last.
    Watch(Box<dyn Watch>, Option<Error>),
}

async fn open(engine: &dyn Engine, what: Open) -> Result<(Reader, Option<Start>)> {
    Ok(match what {
        Open::Listen {
            filters,
            share,
            capacity,
        } => {
            let listener = engine
                .live()
                .listen(&filters, share.as_ref(), capacity)
                .await?;
            let reader = Reader::Listener {
                listener: Some(listener),
                filters,
                share,
                capacity,
                then: None,
            };
            (reader, None)
        }
        Open::Follow {
            stream,
            from,
            filters,
        } => {
            let start = start(engine, &stream, from, &filters).await?;
            let from = match from {
                Position::First | Position::LastPerSubject | Position::Seq(_) => from,
                _ => Position::Seq(start.next),
            };
            let follow = engine.log().follow(&stream, from, &filters).await?;
            (Reader::Follow(follow), Some(start))
        }
        Open::Consume { consumer } => {
            let (feed, settler) = engine.consume().open(&consumer).await?;
            (Reader::Consumer(feed, settler), None)
        }
        Open::Watch {
            bucket,
            prefix,
            from,
        } => {
            let watch = engine.state().watch(&bucket, prefix.as_ref(), from).await?;
            (Reader::Watch(watch, None), None)
        }
    })
}

/// What a position means now.
async fn start(
    engine: &dyn Engine,
    stream: &Name,
    from: Position,
    filters: &[Filter],
) -> Result<Start> {
    let page = engine
        .log()
        .read(stream, from, filters, Credit::items(1))
        .await?;
    Ok(Start {
        next: page.events.first().map_or(page.next, |event| event.seq),
        tail: page.tail,
    })
}

impl Reader {
    fn settler(&self) -> Option<Arc<dyn Settler>> {
        match self {
            Self::Consumer(_, settler) => Some(Arc::clone(settler)),
            _ => None,
        }
    }

    /// Waits for something; `None` once the engine is closed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing, as with the engine's own.
    async fn pull(
        &mut self,
        engine: &Arc<dyn Engine>,
        credit: Credit,
        attached: &mut watch::Receiver<bool>,
    ) -> Option<Pulled> {
        match self {
            Self::Listener {
                listener,
                filters,
                share,
                capacity,
                then,
            } => {
                let shared = share.is_some();
                let mut messages = Vec::new();
                if let Some(heard) = then.take() {
                    return (heard != Heard::Closed).then_some(Pulled::Heard { messages, heard });
                }
                let present = match listener {
                    Some(present) => present,
                    None => {
                        reattached(attached).await;
                        let again = engine
                            .live()
                            .listen(filters, share.as_ref(), *capacity)
                            .await;
                        match again {
                            Ok(again) => {
                                *listener = Some(again);
                                return Some(Pulled::Heard {
                                    messages,
                                    heard: Heard::Resumed,
                                });
                            }
                            Err(error) => return Some(Pulled::Failed(error)),
                        }
                    }
                };
                let heard = tokio::select! {
                    heard = present.receive(credit.items.min(FEW), &mut messages) => heard,
                    // Its turns go to others in the group while nobody takes them here.
                    () = detached(attached), if shared => {
                        *listener = None;
                        reattached(attached).await;
                        return Some(Pulled::Heard { messages, heard: Heard::Messages(0) });
                    }
                };
                // As many as fit, a few at a time, because any of them may be large.
                let rough =
                    |message: &Message| message.body.rough_bytes() + message.headers.bytes();
                let mut bytes: usize = messages.iter().map(rough).sum();
                while matches!(heard, Heard::Messages(_))
                    && messages.len() < credit.items
                    && bytes < credit.bytes
                {
                    let before = messages.len();
                    let few = FEW.min(credit.items - before);
                    match present.receive(few, &mut messages).now_or_never() {
                        Some(Heard::Messages(_)) => {
                            bytes += messages[before..].iter().map(rough).sum::<usize>();
                        }
                        other => {
                            *then = other;
                            break;
                        }
                    }
                }
                let heard = match heard {
                    Heard::Messages(_) => Heard::Messages(messages.len()),
                    other => other,
                };
                (heard != Heard::Closed).then_some(Pulled::Heard { messages, heard })
            }
            Self::Follow(follow) => {
                let mut events = Vec::new();
                let followed = follow.next(credit, &mut events).await;
                match followed {
                    Ok(Followed::Closed) if *engine.link().borrow() == Link::Closed => None,
                    Err(error) if error.kind() == ErrorKind::Closed => None,
                    followed => Some(Pulled::Followed { events, followed }),
                }
            }
            Self::Consumer(feed, _) => {
                let mut deliveries = Vec::new();
                loop {
                    reattached(attached).await;
                    let fetched = tokio::select! {
                        fetched = feed.fetch(credit, &mut deliveries) => fetched,
                        // Nothing is leased for a client that may be dead.
                        () = detached(attached) => continue,
                    };
                    return Some(match fetched {
                        Ok(Fetched::Deliveries(_)) => Pulled::Deliveries { deliveries },
                        Ok(Fetched::Gap(gap)) => Pulled::Gap(gap),
                        Ok(Fetched::Gone) => Pulled::Gone,
                        Ok(Fetched::Closed) => return None,
                        Err(error) if error.kind() == ErrorKind::Closed => return None,
                        Err(error) => Pulled::Failed(error),
                    });
                }
            }
            Self::Watch(watch, then) => {
                let (mut changes, mut bytes) = (Vec::new(), 0);
                let first = match then.take() {
                    Some(error) => Err(error),
                    None => watch.next().await,
                };
                let mut next = match first {
                    Ok(change) => Some(Ok(change)),
                    Err(error) if error.kind() == ErrorKind::Closed => return None,
                    Err(error) => return Some(Pulled::Failed(error)),
                };
                while let Some(change) = next {
                    match change {
                        Ok(change) => {
                            if let Watched::Put(entry) = &change {
                                bytes += entry.value.len();
                            }
                            changes.push(change);
                        }
                        Err(error) => {
                            *then = Some(error);
                            break;
                        }
                    }
                    let is_enough = changes.len() >= credit.items || bytes >= credit.bytes;
                    next = if is_enough {
                        None
                    } else {
                        watch.next().now_or_never()
                    };
                }
                Some(Pulled::Watched { changes })
            }
        }
    }
}

/// Yields when no connection carries the session. An error means that the session is gone; its
/// reader is then about to be told.
async fn detached(attached: &mut watch::Receiver<bool>) {
    let _ = attached.wait_for(|attached| !attached).await;
}

async fn reattached(attached: &mut watch::Receiver<bool>) {
    let _ = attached.wait_for(|attached| *attached).await;
}
