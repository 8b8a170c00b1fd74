//! The engine in another process, as the suite gets at it: over channels in virtual time, and over
//! real connections, whole or cut at random.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use trunkline::Result;
use trunkline::core::Clock;
use trunkline::core::engine::{Boxed, Engine, LinkOptions};
use trunkline::{Error, ErrorKind};
use trunkline_memory::{MemoryEngine, MemoryOptions};
use trunkline_remote::{
    Dial, RemoteEngine, Server, Socket, connect_unix, listen_unix, serve_unix, websocket_config,
};

use super::{Harness, LogHarness};
use crate::cut::{Channel, Cuts, Proxy};

/// The engine behind a connection, served by the engine in memory.
pub struct RemoteHarness {
    name: String,
    way: Way,
    /// What is served.
    behind: Behind,
    places: Mutex<HashMap<String, Place>>,
}

/// What the server has.
#[derive(Debug)]
enum Behind {
    Memory,
    Log(LogHarness),
}

/// What carries the connection.
#[derive(Clone, Debug)]
enum Way {
    /// Channels of this process, so that time may be virtual.
    Channel(Option<Cuts>),
    /// A socket of this host, with a proxy in between that cuts it.
    Tcp(Option<Cuts>),
    /// A socket in the file system.
    Unix,
}

/// Where a server listens.
#[derive(Clone, Debug)]
enum At {
    Here,
    /// Its port, or that of the proxy in front of it.
    Port(SocketAddr),
    Socket(PathBuf),
}

#[derive(Clone)]
struct Place {
    server: Server,
    at: At,
}

/// The way to a socket in the file system.
#[derive(Debug)]
struct Unix(PathBuf);

impl Dial for Unix {
    fn dial(&self) -> Boxed<'_, Result<Socket>> {
        Box::pin(async {
            connect_unix(&self.0).await.map_err(|error| {
                Error::new(ErrorKind::Disconnected, "nobody is at the socket").caused_by(error)
            })
        })
    }

    fn place(&self) -> &'static str {
        "a socket"
    }
}

impl RemoteHarness {
    /// Over channels in virtual time.
    pub fn in_virtual_time() -> Self {
        Self::new("remote", Way::Channel(None), Behind::Memory)
    }

    /// Over channels in virtual time, each cut after a random number of messages.
    pub fn cut_in_virtual_time(seed: u64) -> Self {
        Self::new(
            &format!("remote, cut (seed {seed})"),
            Way::Channel(Some(Cuts::new(seed))),
            Behind::Memory,
        )
    }

    /// Over TCP and WebSocket, in real time.
    pub fn over_tcp() -> Self {
        Self::new("remote, TCP", Way::Tcp(None), Behind::Memory)
    }

    /// The embedded log of another process, over a Unix socket, in real time.
    pub fn attached() -> Self {
        let behind = Behind::Log(LogHarness::new());
        Self::new("file: attached", Way::Unix, behind)
    }

    /// Over TCP and WebSocket, through a proxy that cuts each connection after a random number of
    /// bytes.
    pub fn cut_over_tcp(seed: u64) -> Self {
        Self::new(
            &format!("remote, TCP cut (seed {seed})"),
            Way::Tcp(Some(Cuts::new(seed))),
            Behind::Memory,
        )
    }

    fn new(name: &str, way: Way, behind: Behind) -> Self {
        Self {
            name: name.to_owned(),
            way,
            behind,
            places: Mutex::default(),
        }
    }

    /// The server of a place, made when it is first asked for.
    async fn place(&self, place: &str, clock: &Arc<dyn Clock>) -> Result<Place> {
        if let Some(known) = self.places.lock().get(place) {
            return Ok(known.clone());
        }
        let engine: Arc<dyn Engine> = match &self.behind {
            Behind::Memory => {
                let url = format!("memory:remote-{place}?encode=always");
                let options = MemoryOptions::from_url(&url)?;
                Arc::new(MemoryEngine::connect(options, Arc::clone(clock))?)
            }
            Behind::Log(harness) => harness.connect(place, Arc::clone(clock)).await?,
        };
        let server = Server::new(engine);
        let at = match &self.way {
            Way::Channel(_) => At::Here,
            Way::Tcp(cuts) => {
                let served = serve(server.clone()).await;
                At::Port(match cuts {
                    Some(cuts) => Proxy::start(served, cuts.clone()).await,
                    None => served,
                })
            }
            Way::Unix => {
                let name = format!("{place}.sock");
                let path = match &self.behind {
                    Behind::Log(harness) => harness.beside(&name),
                    Behind::Memory => std::env::temp_dir().join(name),
                };
                let listener = listen_unix(&path).expect("a place for a socket");
                tokio::spawn(serve_unix(listener, server.clone()));
                At::Socket(path)
            }
        };
        let made = Place { server, at };
        let mut places = self.places.lock();
        Ok(places.entry(place.to_owned()).or_insert(made).clone())
    }
}

/// Serves on a port of its own for as long as the runtime lives.
async fn serve(server: Server) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("a socket");
            let server = server.clone();
            tokio::spawn(async move {
                let config = Some(websocket_config());
                // A connection that is cut in the middle of its handshake is no server's concern.
                if let Ok(socket) =
                    tokio_tungstenite::accept_async_with_config(stream, config).await
                {
                    server.serve(Socket::from_websocket(socket)).await;
                }
            });
        }
    });
    address
}

impl Harness for RemoteHarness {
    fn name(&self) -> &str {
        &self.name
    }

    fn connect<'a>(
        &'a self,
        place: &'a str,
        clock: Arc<dyn Clock>,
    ) -> Boxed<'a, Result<Arc<dyn Engine>>> {
        Box::pin(async move {
            let Place { server, at } = self.place(place, &clock).await?;
            let options = LinkOptions {
                reconnect_wait: std::time::Duration::from_millis(20),
                ..LinkOptions::default()
            };
            let dial: Arc<dyn Dial> = match at {
                At::Port(address) => {
                    let url = format!("http://{address}");
                    let engine = RemoteEngine::connect(&url, options, clock).await?;
                    return Ok(Arc::new(engine) as Arc<dyn Engine>);
                }
                At::Socket(path) => Arc::new(Unix(path)),
                At::Here => {
                    let cuts = match &self.way {
                        Way::Channel(cuts) | Way::Tcp(cuts) => cuts.clone(),
                        Way::Unix => None,
                    };
                    Arc::new(Channel::new(server, cuts))
                }
            };
            let engine = RemoteEngine::connect_by(dial, options, clock).await?;
            Ok(Arc::new(engine) as Arc<dyn Engine>)
        })
    }

    fn crash<'a>(&'a self, _: &'a str) -> Boxed<'a, ()> {
        Box::pin(async {})
    }

    fn allows_virtual_time(&self) -> bool {
        matches!(self.way, Way::Channel(_))
    }
}

impl fmt::Debug for RemoteHarness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteHarness")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
