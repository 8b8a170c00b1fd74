//! Readers of a process: followers, watches, listeners and feeds whose other half is at the server.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, timeout};
use trunkline::core::Filter;
use trunkline::core::engine::{
    Admission, Admitted, Batch, Boxed, Bucket, ConsumerRef, Credit, Delivery, Feed, Fetched,
    Follow, Followed, Heard, Listener, Message, Position, Rev, Settle, Settler, StateKey,
    StoredEvent, Token, Watch, Watched,
};
use trunkline::{Error, ErrorKind, Name, Result};

use super::hub::Call;
use super::net::SimNet;
use super::site::Events;

/// How long a member waits for deliveries before it asks again: its demand or the answer is lost.
const ASK_AGAIN: Duration = Duration::from_secs(2);

pub(crate) struct SimFollow {
    net: SimNet,
    lane: u64,
    demands: UnboundedSender<Credit>,
    told: UnboundedReceiver<Result<Events>>,
    /// Whether an answer is under way.
    asked: bool,
    ready: VecDeque<StoredEvent>,
    behind: u64,
}

impl SimFollow {
    pub(crate) async fn open(
        net: &SimNet,
        stream: Name,
        from: Position,
        filters: Vec<Filter>,
    ) -> Result<Self> {
        let (demands, demanded) = unbounded_channel();
        let (tell, told) = unbounded_channel();
        let (port, lane) = (Arc::clone(&net.port), net.port.hub.lane());
        net.ask(Call::Open, format!("follow from {from}"), move |site| {
            Box::pin(async move {
                let follow = site.engine.log().follow(&stream, from, &filters).await?;
                let serving = site.follow((port.host, port.life), lane, follow, demanded, tell);
                tokio::spawn(async move { port.while_alive(serving).await });
                Ok(())
            })
        })
        .await?;
        Ok(Self {
            net: net.clone(),
            lane,
            demands,
            told,
            asked: false,
            ready: VecDeque::new(),
            behind: 0,
        })
    }

    fn take(&mut self, credit: Credit, out: &mut Vec<StoredEvent>) -> Followed {
        let (before, mut bytes) = (out.len(), 0);
        while let Some(event) = self.ready.front() {
            let size = event.body.rough_bytes() + event.headers.bytes();
            let full = out.len() - before >= credit.items || bytes + size > credit.bytes;
            if full && out.len() > before {
                break;
            }
            bytes += size;
            out.extend(self.ready.pop_front());
        }
        Followed::Events {
            added: out.len() - before,
            behind: self.behind + self.ready.len() as u64,
        }
    }
}

impl Follow for SimFollow {
    fn next<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<StoredEvent>,
    ) -> Boxed<'a, Result<Followed>> {
        Box::pin(async move {
            loop {
                if !self.ready.is_empty() {
                    return Ok(self.take(credit, out));
                }
                if !std::mem::replace(&mut self.asked, true) {
                    let demands = self.demands.clone();
                    let port = &self.net.port;
                    port.tell(Call::Demand, Some(self.lane), String::new, move |_| {
                        let _ = demands.send(credit);
                        Box::pin(std::future::ready(()))
                    });
                }
                let told = tokio::select! {
                    biased;
                    () = self.net.closed.wait() => return Ok(Followed::Closed),
                    told = self.told.recv() => told,
                };
                match told {
                    Some(Ok((followed, events))) => {
                        self.asked = false;
                        match followed {
                            Followed::Events { behind, .. } => {
                                self.behind = behind;
                                self.ready.extend(events);
                            }
                            other => return Ok(other),
                        }
                    }
                    Some(Err(error)) => return Err(error),
                    None => return Ok(Followed::Closed),
                }
            }
        })
    }
}

pub(crate) struct SimWatch {
    net: SimNet,
    told: UnboundedReceiver<Result<Watched>>,
}

impl SimWatch {
    pub(crate) async fn open(
        net: &SimNet,
        bucket: Bucket,
        prefix: Option<StateKey>,
        from: Rev,
    ) -> Result<Self> {
        let (tell, told) = unbounded_channel();
        let (port, lane) = (Arc::clone(&net.port), net.port.hub.lane());
        net.ask(Call::Open, format!("watch from {from}"), move |site| {
            Box::pin(async move {
                let state = site.engine.state();
                let watch = state.watch(&bucket, prefix.as_ref(), from).await?;
                let serving = site.watch((port.host, port.life), lane, watch, tell);
                tokio::spawn(async move { port.while_alive(serving).await });
                Ok(())
            })
        })
        .await?;
        Ok(Self {
            net: net.clone(),
            told,
        })
    }
}

impl Watch for SimWatch {
    fn next(&mut self) -> Boxed<'_, Result<Watched>> {
        Box::pin(async move {
            let closed = || Err(Error::new(ErrorKind::Closed, "the bus is closed"));
            tokio::select! {
                biased;
                () = self.net.closed.wait() => closed(),
                told = self.told.recv() => told.unwrap_or_else(closed),
            }
        })
    }
}

pub(crate) struct SimListener {
    net: SimNet,
    told: UnboundedReceiver<(Heard, Vec<Message>)>,
    ready: VecDeque<Message>,
}

impl SimListener {
    pub(crate) async fn open(
        net: &SimNet,
        filters: Vec<Filter>,
        share: Option<Name>,
        capacity: usize,
    ) -> Result<Self> {
        let (tell, told) = unbounded_channel();
        let (port, lane) = (Arc::clone(&net.port), net.port.hub.lane());
        net.ask(Call::Open, format!("listen to {filters:?}"), {
            let filters = filters.clone();
            move |site| {
                Box::pin(async move {
                    let live = site.engine.live();
                    let listener = live.listen(&filters, share.as_ref(), capacity).await?;
                    let serving = site.listen((port.host, port.life), lane, listener, tell);
                    tokio::spawn(async move { port.while_alive(serving).await });
                    Ok(())
                })
            }
        })
        .await?;
        Ok(Self {
            net: net.clone(),
            told,
            ready: VecDeque::new(),
        })
    }
}

impl Listener for SimListener {
    fn receive<'a>(&'a mut self, max: usize, out: &'a mut Vec<Message>) -> Boxed<'a, Heard> {
        Box::pin(async move {
            loop {
                if !self.ready.is_empty() {
                    let count = max.min(self.ready.len());
                    out.extend(self.ready.drain(..count));
                    return Heard::Messages(count);
                }
                let told = tokio::select! {
                    biased;
                    () = self.net.closed.wait() => return Heard::Closed,
                    told = self.told.recv() => told,
                };
                match told {
                    Some((Heard::Messages(_), messages)) => self.ready.extend(messages),
                    Some((heard, _)) => return heard,
                    None => return Heard::Closed,
                }
            }
        })
    }
}

pub(crate) struct SimFeed {
    net: SimNet,
    demands: UnboundedSender<Credit>,
    told: UnboundedReceiver<Result<(Fetched, Vec<Delivery>)>>,
    asked: Option<Instant>,
    /// What came, and until when its lease holds at the latest.
    ready: VecDeque<(Delivery, Instant)>,
    /// When somebody last waited here: what has come since may be as old.
    waited: Instant,
    ack_wait: Duration,
    settler: Arc<SimSettler>,
}

impl SimFeed {
    pub(crate) async fn open(net: &SimNet, at: ConsumerRef) -> Result<(Self, Arc<SimSettler>)> {
        let (demands, demanded) = unbounded_channel();
        let (tell, told) = unbounded_channel();
        let port = Arc::clone(&net.port);
        let (settler, ack_wait) = net
            .ask(Call::Open, format!("consumer {}", at.consumer), {
                let at = at.clone();
                move |site| {
                    Box::pin(async move {
                        let found = site.engine.topology().inspect().await?;
                        let known =
                            |state: &&trunkline::core::engine::ConsumerState| state.spec.at == at;
                        let ack_wait = found.consumers.iter().find(known);
                        let ack_wait = ack_wait.map_or(Duration::ZERO, |s| s.spec.ack_wait);
                        let (feed, settler) = site.engine.consume().open(&at).await?;
                        let serving = site.feed((port.host, port.life), feed, demanded, tell);
                        tokio::spawn(async move { port.while_alive(serving).await });
                        Ok((settler, ack_wait))
                    })
                }
            })
            .await?;
        let settler = net.settler(settler);
        let feed = Self {
            net: net.clone(),
            demands,
            told,
            asked: None,
            ready: VecDeque::new(),
            waited: Instant::now(),
            ack_wait,
            settler: Arc::clone(&settler),
        };
        Ok((feed, settler))
    }

    fn take(&mut self, credit: Credit, out: &mut Vec<Delivery>) -> usize {
        let (before, mut bytes) = (out.len(), 0);
        let now = Instant::now();
        while let Some((delivery, end)) = self.ready.front() {
            let size = delivery.event.body.rough_bytes();
            let full = out.len() - before >= credit.items || bytes + size > credit.bytes;
            if full && out.len() > before {
                break;
            }
            let holds = *end > now;
            let taken = self.ready.pop_front();
            if holds {
                bytes += size;
                out.extend(taken.map(|(delivery, _)| delivery));
            }
        }
        out.len() - before
    }
}

impl Feed for SimFeed {
    fn fetch<'a>(
        &'a mut self,
        credit: Credit,
        out: &'a mut Vec<Delivery>,
    ) -> Boxed<'a, Result<Fetched>> {
        Box::pin(async move {
            loop {
                while let Ok(told) = self.told.try_recv() {
                    self.asked = None;
                    match told? {
                        (Fetched::Deliveries(_), deliveries) => {
                            let end = self.waited + self.ack_wait;
                            let ready = deliveries.into_iter().map(|delivery| (delivery, end));
                            self.ready.extend(ready);
                        }
                        (fetched, _) => return Ok(fetched),
                    }
                }
                self.waited = Instant::now();
                let taken = self.take(credit, out);
                if taken > 0 {
                    return Ok(Fetched::Deliveries(taken));
                }
                let now = Instant::now();
                if self.asked.is_none_or(|asked| now >= asked + ASK_AGAIN) {
                    self.asked = Some(now);
                    let demands = self.demands.clone();
                    let port = &self.net.port;
                    port.tell(Call::Deliveries, None, String::new, move |_| {
                        let _ = demands.send(credit);
                        Box::pin(std::future::ready(()))
                    });
                }
                let told = tokio::select! {
                    biased;
                    () = self.net.closed.wait() => return Ok(Fetched::Closed),
                    told = timeout(ASK_AGAIN, self.told.recv()) => told,
                };
                match told {
                    Ok(Some(Ok((Fetched::Deliveries(_), deliveries)))) => {
                        self.asked = None;
                        let end = Instant::now() + self.ack_wait;
                        self.ready
                            .extend(deliveries.into_iter().map(|delivery| (delivery, end)));
                    }
                    Ok(Some(Ok((fetched, _)))) => {
                        self.asked = None;
                        return Ok(fetched);
                    }
                    Ok(Some(Err(error))) => return Err(error),
                    Ok(None) => return Ok(Fetched::Closed),
                    // Asks again.
                    Err(_) => {}
                }
            }
        })
    }
}

impl Drop for SimFeed {
    /// What nobody took goes back at once, as far as the word of it arrives.
    fn drop(&mut self) {
        while let Ok(told) = self.told.try_recv() {
            let now = Instant::now();
            if let Ok((_, deliveries)) = told {
                self.ready
                    .extend(deliveries.into_iter().map(|delivery| (delivery, now)));
            }
        }
        let back: Batch<_> = self
            .ready
            .drain(..)
            .map(|(delivery, _)| (delivery.token, Settle::GiveBack))
            .collect();
        if !back.is_empty() {
            self.settler.tell(back);
        }
    }
}

pub(crate) struct SimSettler {
    pub(crate) net: SimNet,
    pub(crate) settler: Arc<dyn Settler>,
}

impl SimSettler {
    fn tell(&self, batch: Batch<(Token, Settle)>) {
        let settler = Arc::clone(&self.settler);
        let text = || format!("{} settlements", batch.len());
        let text = text();
        self.net.port.tell(
            Call::Ack,
            None,
            || text,
            move |_| {
                Box::pin(async move {
                    // A stale lease is known to nobody: the word was not waited for.
                    let _ = settler.settle(batch, false).completed().await;
                })
            },
        );
    }
}

impl Settler for SimSettler {
    fn settle(
        &self,
        batch: Batch<(Token, Settle)>,
        confirm: bool,
    ) -> Admitted<'_, Vec<Result<()>>> {
        if self.net.closed.has_happened() {
            return Admitted::done(Err(Error::new(ErrorKind::Closed, "the bus is closed")));
        }
        if !confirm {
            if !self.net.port.is_connected() {
                return Admitted::done(Err(self.net.port.disconnected()));
            }
            let settled = batch.iter().map(|_| Ok(())).collect();
            self.tell(batch);
            return Admitted::done(Ok(settled));
        }
        let settler = Arc::clone(&self.settler);
        Admitted::waiting(async move {
            let asked = self.net.port.ask(Call::Settle, String::new(), move |_| {
                Box::pin(async move { settler.settle(batch, true).completed().await })
            });
            Ok(Admission::waiting(asked.await?))
        })
    }
}
