//! Connections that break: what networks and proxies do, at random but from a seed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{sink, stream};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use trunkline::core::engine::{Boxed, Engine};
use trunkline::core::error::Cause;
use trunkline::{Error, ErrorKind};
use trunkline_remote::{Dial, Server, Socket};

/// When connections are cut. Clones draw from one source, so that a seed says it for all of them.
#[derive(Clone, Debug)]
pub struct Cuts {
    random: Arc<Mutex<SmallRng>>,
    made: Arc<AtomicU64>,
}

impl Cuts {
    /// Cuts by this seed.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))),
            made: Arc::default(),
        }
    }

    /// How many connections were cut so far.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// After how many steps the next one comes. Some come at once, in the middle of a handshake, and
    /// some let a large message pass; most are in between.
    fn next(&self, longest: u64) -> u64 {
        let mut random = self.random.lock();
        let shortest = if random.random_ratio(1, 8) { 1 } else { 2 };
        let magnitude = random.random_range(longest.ilog2() * shortest / 3..longest.ilog2());
        random.random_range(1..=2 << magnitude)
    }

    fn count(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
    }
}

/// A server that can be killed and started again under its clients, as a process would be: what it
/// knew of its sessions is gone, and its engine lives or not, as the test says.
#[derive(Debug)]
pub struct Restarts {
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    server: Server,
    connections: JoinSet<()>,
}

impl Restarts {
    /// A server of this engine, running.
    pub fn of(engine: Arc<dyn Engine>) -> Arc<Self> {
        let restarts = Self {
            running: Mutex::default(),
        };
        restarts.start(engine);
        Arc::new(restarts)
    }

    /// Breaks every connection in the middle of whatever is under way; nobody listens any more.
    pub fn kill(&self) {
        if let Some(running) = self.running.lock().take() {
            // So that its sessions do not wait for clients that will find another server.
            running.server.close();
        }
    }

    /// Listens again, with this engine.
    pub fn start(&self, engine: Arc<dyn Engine>) {
        *self.running.lock() = Some(Running {
            server: Server::new(engine),
            connections: JoinSet::new(),
        });
    }
}

impl Dial for Restarts {
    fn dial(&self) -> Boxed<'_, trunkline::Result<Socket>> {
        let refused = || Error::new(ErrorKind::Disconnected, "nobody listens");
        let dialled = match &mut *self.running.lock() {
            None => Err(refused()),
            Some(Running {
                server,
                connections,
            }) => {
                let (ours, theirs) = Channel::sockets();
                let server = server.clone();
                connections.spawn(async move { server.serve(theirs).await });
                Ok(ours)
            }
        };
        Box::pin(std::future::ready(dialled))
    }

    fn place(&self) -> &str {
        "a server that restarts"
    }
}

/// A connection made of two channels. What is in them when it is cut is lost.
#[derive(Debug)]
pub struct Channel {
    server: Server,
    cuts: Option<Cuts>,
}

/// Whether a channel was cut, and the moment when it is.
#[derive(Debug, Default)]
struct Wire {
    is_cut: AtomicBool,
    cut: Notify,
}

impl Wire {
    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.cut.notify_waiters();
    }

    async fn until_cut(&self) {
        let cut = self.cut.notified();
        if !self.is_cut.load(Ordering::Acquire) {
            cut.await;
        }
    }
}

impl Channel {
    /// A way to this server, whole or cut.
    pub fn new(server: Server, cuts: Option<Cuts>) -> Self {
        Self { server, cuts }
    }

    /// The two ends of a channel that is never cut, for a server that a test runs itself.
    pub fn sockets() -> (Socket, Socket) {
        Self::pair(None)
    }

    fn pair(cuts: Option<&Cuts>) -> (Socket, Socket) {
        const DEPTH: usize = 16;
        const LONGEST: u64 = 1 << 8;
        let wire = Arc::new(Wire::default());
        let (there, from_client) = mpsc::channel(DEPTH);
        let (back, from_server) = mpsc::channel(DEPTH);
        let left = || match cuts {
            Some(cuts) => cuts.next(LONGEST),
            None => u64::MAX,
        };
        let socket = |to, from| {
            let outgoing = outgoing(to, left(), Arc::clone(&wire), cuts.cloned());
            Socket::new(outgoing, incoming(from, Arc::clone(&wire)))
        };
        (socket(there, from_server), socket(back, from_client))
    }
}

fn outgoing(
    to: mpsc::Sender<Bytes>,
    left: u64,
    wire: Arc<Wire>,
    cuts: Option<Cuts>,
) -> impl futures_util::Sink<Bytes, Error = Cause> {
    sink::unfold((to, left), move |(to, left), packet: Bytes| {
        let (wire, cuts) = (Arc::clone(&wire), cuts.clone());
        async move {
            if left == 0 {
                if let Some(cuts) = &cuts
                    && !wire.is_cut.load(Ordering::Acquire)
                {
                    cuts.count();
                }
                wire.cut();
            }
            let gone = || Err(Cause::from("the connection was cut"));
            if wire.is_cut.load(Ordering::Acquire) {
                return gone();
            }
            tokio::select! {
                sent = to.send(packet) => match sent {
                    Ok(()) => Ok((to, left - 1)),
                    Err(_) => gone(),
                },
                () = wire.until_cut() => gone(),
            }
        }
    })
}

fn incoming(
    from: mpsc::Receiver<Bytes>,
    wire: Arc<Wire>,
) -> impl futures_util::Stream<Item = Result<Bytes, Cause>> {
    stream::unfold((from, wire), |(mut from, wire)| async move {
        let packet = tokio::select! {
            biased;
            () = wire.until_cut() => None,
            packet = from.recv() => packet,
        };
        packet.map(|packet| (Ok(packet), (from, wire)))
    })
}

impl Dial for Channel {
    fn dial(&self) -> Boxed<'_, trunkline::Result<Socket>> {
        let (ours, theirs) = Self::pair(self.cuts.as_ref());
        let server = self.server.clone();
        tokio::spawn(async move { server.serve(theirs).await });
        Box::pin(std::future::ready(Ok(ours)))
    }

    fn place(&self) -> &str {
        "channel"
    }
}

/// A TCP proxy on this host that cuts each connection after a random number of bytes.
#[derive(Debug)]
pub struct Proxy;

impl Proxy {
    /// Listens on a port of its own, for as long as the runtime lives, and gives its address.
    ///
    /// # Panics
    /// When there is no port to be had.
    #[expect(clippy::expect_used, reason = "a test without a port cannot go on")]
    pub async fn start(to: SocketAddr, cuts: Cuts) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let cuts = cuts.clone();
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(to).await {
                        forward(client, server, &cuts).await;
                    }
                });
            }
        });
        address
    }
}

/// Moves bytes both ways until either end closes, or until the cut: then both see a reset, or an
/// end, in the middle of a message.
async fn forward(client: TcpStream, server: TcpStream, cuts: &Cuts) {
    const LONGEST: u64 = 1 << 23;
    for stream in [&client, &server] {
        // A delay would not change what is tested, only how long it takes.
        let _ = stream.set_nodelay(true);
    }
    let (there, back) = (cuts.next(LONGEST), cuts.next(LONGEST));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cut = tokio::select! {
        cut = copy(from_client, to_server, there) => cut,
        cut = copy(from_server, to_client, back) => cut,
    };
    if cut {
        cuts.count();
    }
}

/// Whether it ended because the bytes were used up.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut left: u64) -> bool {
    let mut buffer = vec![0; 8 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return false;
        };
        let passed = read.min(usize::try_from(left).unwrap_or(usize::MAX));
        if to.write_all(&buffer[..passed]).await.is_err() {
            return false;
        }
        left -= passed as u64;
        if passed < read {
            return true;
        }
    }
}
