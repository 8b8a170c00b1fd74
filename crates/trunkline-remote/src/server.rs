//! The serving end: an engine of this process, for clients in others.
//!
//! **Invariant.** Nothing here decides anything: every frame becomes one call of the engine's, in
//! the order in which a client sent them, and its result goes back as it is.

mod readers;
mod serving;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use rand::RngExt;
use rustc_hash::FxHashMap;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;
use trunkline_core::engine::{Durability, Engine, Fact, Link};
use trunkline_core::{Error, ErrorKind, Result};

use crate::hello::{Greeting, Hello, SessionState, Told, Verdict, Welcome, durability, reach};
use crate::line::Broken;
use crate::socket::Socket;
use serving::{Serving, Turn};

/// How long a client has for its part of the handshake.
pub(crate) const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// How long a session waits for its client to come back.
const GRACE: Duration = Duration::from_secs(10);
/// Sessions at once; more are refused.
const MAX_SESSIONS: usize = 1_024;

/// Serves an engine to other processes. Clones share everything.
///
/// It has no listener of its own: whoever has one hands over each connection, after checking who
/// asks.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<dyn Engine>,
    /// Names what is stored.
    bus: String,
    sessions: Mutex<FxHashMap<String, Arc<Serving>>>,
    closing: watch::Sender<bool>,
    connections: watch::Sender<usize>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        for serving in self.sessions.get_mut().values() {
            serving.end();
        }
    }
}

/// Sees to the end of a session whose connection ended.
struct GraceWatch {
    server: Server,
    serving: Arc<Serving>,
    /// Nobody will come back to it.
    is_over: bool,
}

impl Drop for GraceWatch {
    fn drop(&mut self) {
        let (server, serving) = (self.server.clone(), Arc::clone(&self.serving));
        match Handle::try_current() {
            Ok(runtime) if !self.is_over => {
                runtime.spawn(server.wait_for(serving));
            }
            _ => server.end(&serving),
        }
    }
}

/// Counts a connection for as long as it lives.
struct Counted<'a>(&'a watch::Sender<usize>);

impl<'a> Counted<'a> {
    fn new(connections: &'a watch::Sender<usize>) -> Self {
        connections.send_modify(|connections| *connections += 1);
        Self(connections)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|connections| *connections -= 1);
    }
}

impl Server {
    /// Serves this engine. Make one server for an engine: of an engine whose events are gone with its
    /// process, a second one counts as another bus, and readers that come to it begin anew.
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        let bus = match engine.capabilities().durability {
            // What is stored is gone with the engine, so every engine is a bus of its own.
            Durability::Process => random_id(),
            _ => {
                let facts = engine.facts();
                let id = facts.into_iter().find(|fact| fact.name == Fact::ID);
                id.map_or_else(|| "durable".to_owned(), |fact| fact.value)
            }
        };
        Self {
            shared: Arc::new(Shared {
                engine,
                bus,
                sessions: Mutex::default(),
                closing: watch::Sender::new(false),
                connections: watch::Sender::new(0),
            }),
        }
    }

    /// Serves one connection until it breaks or the server closes.
    ///
    /// A client that comes back within 10 s goes on where it was, with nothing lost or repeated.
    ///
    /// # Cancel safety
    /// Dropping the future breaks the connection, as any other fault would.
    pub async fn serve(&self, mut socket: Socket) {
        let _counted = Counted::new(&self.shared.connections);
        match self.greet(&mut socket).await {
            Ok((serving, turn)) => self.carry(&serving, turn, socket).await,
            Err(error) => {
                tracing::info!(%error, "an engine connection was refused");
                let refusal = Greeting::refusal(&error).to_bytes();
                // Whoever is refused may be gone, and then need not be told.
                let _ = socket.outgoing.send(refusal).await;
                let _ = socket.outgoing.close().await;
            }
        }
    }

    /// Ends every connection once what it asked for is answered, and takes no more. Clients notice
    /// and try to connect again.
    pub fn close(&self) {
        self.shared.closing.send_replace(true);
    }

    /// Waits until no connection is left. Call [`close`](Self::close) first.
    pub async fn drained(&self) {
        let mut connections = self.shared.connections.subscribe();
        // The sender is the server's own, so it is there.
        let _ = connections.wait_for(|connections| *connections == 0).await;
    }

    /// How many sessions there are, those included whose client may come back.
    pub fn sessions(&self) -> usize {
        self.shared.sessions.lock().len()
    }

    async fn greet(&self, socket: &mut Socket) -> Result<(Arc<Serving>, Turn)> {
        let silent = || {
            // It may be slow, or its packets are: another attempt may be faster.
            let said = format!("the client said nothing within {HELLO_WITHIN:?}; try again");
            Error::new(ErrorKind::Disconnected, said)
        };
        let hello = match timeout(HELLO_WITHIN, socket.incoming.next()).await {
            Ok(Some(Ok(hello))) => hello,
            _ => return Err(silent()),
        };
        let (hello, version) = Hello::read(&hello)?;
        let (serving, turn, resumed) = self.session(hello.session.as_ref()).await?;
        let engine = &self.shared.engine;
        let (capabilities, limits) = (engine.capabilities(), engine.limits());
        let told = |fact: Fact| Told {
            name: fact.name.into(),
            value: fact.value,
        };
        let welcome = Welcome {
            version,
            session: SessionState {
                id: serving.id().to_owned(),
                received: serving.line().received(),
            },
            resumed,
            bus: self.shared.bus.clone(),
            engine: engine.name().to_owned(),
            durability: durability(capabilities.durability).to_owned(),
            reach: reach(capabilities.reach).to_owned(),
            max_message: limits.max_message,
            max_batch: limits.max_batch,
            max_value: limits.max_value,
            facts: engine.facts().into_iter().map(told).collect(),
        };
        let greeting = Greeting::new(Verdict::Welcome(welcome)).to_bytes();
        if let Err(error) = socket.outgoing.send(greeting).await {
            if !resumed {
                // Nobody knows of it, so nobody will come back to it.
                self.end(&serving);
            }
            return Err(Error::new(ErrorKind::Disconnected, "the client left").caused_by(error));
        }
        Ok((serving, turn))
    }

    /// The session that the client asks for, if it can go on, else a new one.
    async fn session(&self, asked: Option<&SessionState>) -> Result<(Arc<Serving>, Turn, bool)> {
        if *self.shared.closing.borrow() {
            return Err(Error::new(
                ErrorKind::Disconnected,
                "the server is shutting down; try again",
            ));
        }
        if let Some(asked) = asked {
            let known = self.shared.sessions.lock().get(&asked.id).cloned();
            if let Some(serving) = known {
                let turn = serving.turn().await;
                if serving.resume(&turn, asked.received) {
                    return Ok((serving, turn, true));
                }
            }
        }
        let serving = {
            let mut sessions = self.shared.sessions.lock();
            if sessions.len() >= MAX_SESSIONS {
                return Err(Error::new(
                    ErrorKind::Disconnected,
                    format!("there are {MAX_SESSIONS} sessions already; try again later"),
                ));
            }
            let serving = Serving::new(random_id(), Arc::clone(&self.shared.engine));
            sessions.insert(serving.id().to_owned(), Arc::clone(&serving));
            serving
        };
        let turn = serving.turn().await;
        Ok((serving, turn, false))
    }

    async fn carry(&self, serving: &Arc<Serving>, turn: Turn, socket: Socket) {
        // From here on the session ends in its time, also when this future is dropped.
        let mut watch = GraceWatch {
            server: self.clone(),
            serving: Arc::clone(serving),
            is_over: false,
        };
        let broken = serving.carry(turn, socket, self.closing()).await;
        match &broken {
            Broken::Malformed(_) => tracing::warn!(%broken, "an engine connection ends"),
            _ => tracing::debug!(%broken, "an engine connection ends"),
        }
        watch.is_over =
            matches!(broken, Broken::Malformed(_) | Broken::Stopped) || serving.has_left();
    }

    /// Waits for the client to come back, and ends the session if it does not.
    async fn wait_for(self, serving: Arc<Serving>) {
        let carried = serving.times_carried();
        serving.until_back(GRACE, self.closing()).await;
        // Whoever carries it, or is about to, has the right to do so and keeps it.
        if let Some(_turn) = serving.try_turn()
            && serving.times_carried() == carried
        {
            self.end(&serving);
        }
    }

    /// Yields once the server or its engine closes.
    fn closing(&self) -> impl Future<Output = ()> + use<> {
        let mut closing = self.shared.closing.subscribe();
        let mut link = self.shared.engine.link();
        async move {
            // An error means that the sender is gone, which is as closed as can be.
            tokio::select! {
                _ = closing.wait_for(|closing| *closing) => {}
                _ = link.wait_for(|link| *link == Link::Closed) => {}
            }
        }
    }

    fn end(&self, serving: &Serving) {
        self.shared.sessions.lock().remove(serving.id());
        serving.end();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("engine", &self.shared.engine)
            .field("sessions", &self.sessions())
            .finish_non_exhaustive()
    }
}

/// 128 random bits: whoever knows a session's id can go on with it.
fn random_id() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use futures_util::{sink, stream};
    use tokio::sync::mpsc;
    use tokio::time::{Instant, sleep};
    use trunkline_core::engine::{Boxed, LinkOptions};
    use trunkline_core::error::Cause;
    use trunkline_core::{Clock, SystemClock};
    use trunkline_memory::{MemoryEngine, MemoryOptions};

    use super::*;
    use crate::{Dial, RemoteEngine};

    /// Ways to a server of which the first is slower than a handshake may be.
    #[derive(Debug)]
    struct SlowAtFirst {
        server: Server,
        dials: AtomicUsize,
    }

    fn socket(to: mpsc::Sender<Bytes>, from: mpsc::Receiver<Bytes>, late: Duration) -> Socket {
        let outgoing = sink::unfold(to, |to, packet| async move {
            to.send(packet).await.map_err(Cause::from)?;
            Ok(to)
        });
        let incoming = stream::unfold(from, move |mut from| async move {
            let packet = from.recv().await?;
            sleep(late).await;
            Some((Ok(packet), from))
        });
        Socket::new(outgoing, incoming)
    }

    impl Dial for SlowAtFirst {
        fn dial(&self) -> Boxed<'_, Result<Socket>> {
            let late = match self.dials.fetch_add(1, Ordering::Relaxed) {
                0 => HELLO_WITHIN + Duration::from_secs(1),
                _ => Duration::ZERO,
            };
            let ((there, from_client), (back, from_server)) =
                (mpsc::channel(16), mpsc::channel(16));
            let (server, theirs) = (self.server.clone(), socket(back, from_client, late));
            tokio::spawn(async move { server.serve(theirs).await });
            Box::pin(std::future::ready(Ok(socket(
                there,
                from_server,
                Duration::ZERO,
            ))))
        }

        fn place(&self) -> &'static str {
            "slow at first"
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_hello_is_late_tries_again() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let engine = MemoryEngine::connect(MemoryOptions::default(), clock.clone()).unwrap();
        let dial = Arc::new(SlowAtFirst {
            server: Server::new(Arc::new(engine)),
            dials: AtomicUsize::new(0),
        });
        let options = LinkOptions {
            connect_timeout: Duration::from_secs(30),
            ..LinkOptions::default()
        };
        let began = Instant::now();
        RemoteEngine::connect_by(dial.clone(), options, clock)
            .await
            .unwrap();
        assert!(
            began.elapsed() >= HELLO_WITHIN,
            "it was not refused at first"
        );
        assert_eq!(dial.dials.load(Ordering::Relaxed), 2);
    }
}
