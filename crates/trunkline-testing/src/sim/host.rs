//! One simulated process: a runtime of its own, its clock, and its end of the network.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use trunkline::core::Clock;
use trunkline::core::engine::{Boxed, Engine, Link, LinkOptions};
use trunkline::{Error, ErrorKind, Result, Timestamp};

use super::hub::{Arrival, Call, Cargo, Hub, Packet};
use super::site::Site;
use super::world::HostId;

/// What a process does from its start to its end.
pub(crate) type Program = Arc<dyn Fn(Process) -> Boxed<'static, ()> + Send + Sync>;

/// What a program is given: its engine, its clock and its end.
#[derive(Clone)]
pub struct Process {
    pub(crate) port: Arc<Port>,
    engine: Arc<dyn Engine>,
    clock: Arc<dyn Clock>,
}

impl Process {
    pub(crate) fn new(port: Arc<Port>, engine: Arc<dyn Engine>, clock: Arc<dyn Clock>) -> Self {
        Self {
            port,
            engine,
            clock,
        }
    }

    /// The engine, as this process reaches it.
    pub fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine)
    }

    /// The time of day in this process, which is not that of others.
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// Waits until the process is told to end, as by SIGTERM.
    pub async fn told_to_stop(&self) {
        self.port.stop.wait().await;
    }

    /// Dies at once, as by SIGKILL.
    pub async fn die(&self) {
        self.port.die();
        std::future::pending::<()>().await;
    }

    /// How long the world has been there.
    pub fn now(&self) -> Duration {
        self.port.now()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Process").field(&self.port.name).finish()
    }
}

/// Something that happens once, and whoever waits for it learns it in the order in which they came.
#[derive(Default)]
pub(crate) struct Once {
    happened: AtomicBool,
    waiting: Notify,
}

impl Once {
    pub(crate) fn happen(&self) {
        self.happened.store(true, Ordering::Release);
        self.waiting.notify_waiters();
    }

    pub(crate) fn has_happened(&self) -> bool {
        self.happened.load(Ordering::Acquire)
    }

    pub(crate) async fn wait(&self) {
        let waiting = self.waiting.notified();
        let mut waiting = std::pin::pin!(waiting);
        waiting.as_mut().enable();
        if !self.has_happened() {
            waiting.await;
        }
    }
}

/// How a host's clock stands to the world's.
#[derive(Clone, Copy)]
struct Anchor {
    local: Instant,
    world: Duration,
    rate: f64,
}

/// A process's end of the network, and all that the world and the process know together.
pub(crate) struct Port {
    pub(crate) host: HostId,
    pub(crate) life: u32,
    pub(crate) name: String,
    pub(crate) hub: Arc<Hub>,
    pub(crate) patience: LinkOptions,
    pub(crate) stop: Once,
    /// Whether it was killed: nothing that it does from now on reaches anybody.
    dead: Once,
    pub(crate) ended: Once,
    anchor: Anchor,
    connection: Mutex<Connection>,
    changed: Notify,
}

struct Connection {
    link: Link,
    /// One for each who looks: a shared one would wake its waiters in an order of its own.
    watchers: Vec<watch::Sender<Link>>,
}

impl Port {
    pub(crate) fn now(&self) -> Duration {
        let since = Instant::now().saturating_duration_since(self.anchor.local);
        self.anchor.world + since.div_f64(self.anchor.rate)
    }

    fn local(&self, at: Duration) -> Instant {
        let since = at.saturating_sub(self.anchor.world);
        self.anchor.local + since.mul_f64(self.anchor.rate)
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.has_happened()
    }

    pub(crate) fn die(&self) {
        self.dead.happen();
    }

    /// Serves this process, at the server's end, for as long as it lives.
    pub(crate) async fn while_alive(&self, serving: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = self.dead.wait() => {}
            () = serving => {}
        }
    }

    pub(crate) fn note(&self, what: u64, text: impl FnOnce() -> String) {
        if !self.is_dead() {
            self.hub.note(self.now(), &self.name, what, text);
        }
    }

    /// The connection, for one who wants to know of every change.
    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        let mut connection = self.connection.lock();
        connection.watchers.retain(|watcher| !watcher.is_closed());
        let (watcher, link) = watch::channel(connection.link.clone());
        connection.watchers.push(watcher);
        link
    }

    pub(crate) fn set_link(&self, link: &Link) {
        let mut connection = self.connection.lock();
        connection.link = link.clone();
        for watcher in &connection.watchers {
            watcher.send_replace(link.clone());
        }
        drop(connection);
        self.changed.notify_waiters();
    }

    /// Connects again, unless the process has closed the connection for good.
    pub(crate) fn mend_link(&self) {
        if self.connection.lock().link != Link::Closed {
            self.set_link(&Link::Connected);
        }
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.lock().link == Link::Connected
    }

    /// Waits for the connection.
    async fn connected(&self, deadline: Instant) -> Result<()> {
        while !self.is_connected() {
            if timeout_at(deadline, self.changed.notified()).await.is_err() {
                return Err(self.disconnected());
            }
        }
        Ok(())
    }

    pub(crate) fn disconnected(&self) -> Error {
        Error::new(
            ErrorKind::Disconnected,
            format!("{} is not connected to the engine", self.name),
        )
    }

    /// Sends something to the server that nobody waits for.
    pub(crate) fn tell<F>(
        &self,
        call: Call,
        lane: Option<u64>,
        text: impl FnOnce() -> String,
        work: F,
    ) where
        F: FnOnce(Arc<Site>) -> Boxed<'static, ()> + Send + 'static,
    {
        if self.is_dead() {
            return;
        }
        self.note(call as u64, || format!("sends {call:?} {}", text()));
        self.hub.send(Packet {
            host: self.host,
            life: self.life,
            sent: self.now(),
            call,
            lane,
            cargo: Cargo::Up(Box::new(work)),
        });
    }

    /// Asks the server once there is a connection: the first stage, in which the question gets its
    /// place, yields the second.
    ///
    /// # Errors
    /// [`ErrorKind::Disconnected`] of the first stage: it was not sent. [`ErrorKind::TimedOut`] of
    /// the second: perhaps it was carried out.
    pub(crate) async fn ask<T, F>(
        self: &Arc<Self>,
        call: Call,
        text: String,
        work: F,
    ) -> Result<impl Future<Output = Result<T>> + Send + use<T, F>>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Site>) -> Boxed<'static, Result<T>> + Send + 'static,
    {
        let patience = match call {
            Call::Append => self.patience.publish_timeout,
            _ => self.patience.request_timeout,
        };
        let deadline = Instant::now() + patience;
        self.connected(deadline).await?;
        let (answer, answered) = oneshot::channel();
        let asker = (self.host, self.life);
        self.tell(
            call,
            None,
            || text,
            move |site| {
                Box::pin(async move {
                    let result = work(Arc::clone(&site)).await;
                    site.answer(asker, call, None, move |_: Arrival| {
                        let _ = answer.send(result);
                    });
                })
            },
        );
        let name = self.name.clone();
        let unknown = move |why: &str| {
            let text = format!("{why} of {name}; {call:?} may have happened");
            Err(Error::new(ErrorKind::TimedOut, text))
        };
        Ok(async move {
            match timeout_at(deadline, answered).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => unknown("the connection broke"),
                Err(_) => unknown("nobody answered in time"),
            }
        })
    }
}

/// How it goes for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Runs,
    /// Since then.
    Frozen(Duration),
    /// Not started yet, or ended.
    Down,
}

/// A host and the process on it, if there is one.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) program: Program,
    pub(crate) standing: Standing,
    /// Whether a process that ends is to be started again.
    pub(crate) is_wanted: bool,
    pub(crate) lives: u32,
    pub(crate) running: Option<Running>,
    /// What arrived while it stood still.
    pub(crate) mail: Vec<Packet>,
    /// What its readers are told or ask for once it is connected again.
    pub(crate) held: Vec<Packet>,
    /// When it is let run next.
    pub(crate) tick: Option<Duration>,
    pub(crate) is_cut: bool,
}

pub(crate) struct Running {
    pub(crate) runtime: Runtime,
    pub(crate) port: Arc<Port>,
}

/// What a process is born with.
pub(crate) struct Birth {
    pub(crate) host: HostId,
    pub(crate) life: u32,
    pub(crate) name: String,
    pub(crate) at: Duration,
    pub(crate) rate: f64,
    pub(crate) link: Link,
    pub(crate) patience: LinkOptions,
}

impl Running {
    pub(crate) fn new(birth: Birth, hub: &Arc<Hub>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without threads and sockets");
        let anchor = {
            let _entered = runtime.enter();
            Anchor {
                local: Instant::now(),
                world: birth.at,
                rate: birth.rate,
            }
        };
        let port = Port {
            host: birth.host,
            life: birth.life,
            name: birth.name,
            hub: Arc::clone(hub),
            patience: birth.patience,
            stop: Once::default(),
            dead: Once::default(),
            ended: Once::default(),
            anchor,
            connection: Mutex::new(Connection {
                link: birth.link,
                watchers: Vec::new(),
            }),
            changed: Notify::new(),
        };
        Self {
            runtime,
            port: Arc::new(port),
        }
    }

    /// Lets it run until the world is that old, or until it dies.
    pub(crate) fn run_to(&self, at: Duration) {
        let until = self.port.local(at);
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.port.dead.wait() => {}
                () = sleep_until(until) => {}
            }
        });
    }

    /// Lets its clock go on to where it would be, after it stood still.
    pub(crate) fn catch_up(&self, at: Duration) {
        let until = self.port.local(at);
        self.runtime.block_on(async {
            let behind = until.saturating_duration_since(Instant::now());
            tokio::time::advance(behind).await;
        });
    }
}

/// The time of day on a host: the world's, off by as much as the host's clock is.
#[derive(Debug)]
pub(crate) struct HostClock {
    pub(crate) base: Timestamp,
    pub(crate) start: Instant,
}

impl Clock for HostClock {
    fn now(&self) -> Timestamp {
        self.base
            .plus(Instant::now().saturating_duration_since(self.start))
    }
}
