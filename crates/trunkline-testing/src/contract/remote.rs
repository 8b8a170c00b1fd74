//! The engine in another process, as the suite gets at it: over channels in virtual time, and over
//! real connections, whole or cut at random.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use trunkline::Result;
use trunkline::core::Clock;
use trunkline::core::engine::{Boxed, Engine, LinkOptions};
use trunkline_memory::{MemoryEngine, MemoryOptions};
use trunkline_remote::{Dial, RemoteEngine, Server, Socket, websocket_config};

use super::Harness;
use crate::cut::{Channel, Cuts, Proxy};

/// The engine behind a connection, served by the engine in memory.
pub struct RemoteHarness {
    name: String,
    way: Way,
    places: Mutex<HashMap<String, Place>>,
}

/// What carries the connection.
#[derive(Clone, Debug)]
enum Way {
    /// Channels of this process, so that time may be virtual.
    Channel(Option<Cuts>),
    /// A socket of this host, with a proxy in between that cuts it.
    Tcp(Option<Cuts>),
}

#[derive(Clone)]
struct Place {
    server: Server,
    /// Where it listens, or the proxy in front of it.
    address: Option<SocketAddr>,
}

impl RemoteHarness {
    /// Over channels in virtual time.
    pub fn in_virtual_time() -> Self {
        Self::new("remote", Way::Channel(None))
    }

    /// Over channels in virtual time, each cut after a random number of messages.
    pub fn cut_in_virtual_time(seed: u64) -> Self {
        Self::new(
            &format!("remote, cut (seed {seed})"),
            Way::Channel(Some(Cuts::new(seed))),
        )
    }

    /// Over TCP and WebSocket, in real time.
    pub fn over_tcp() -> Self {
        Self::new("remote, TCP", Way::Tcp(None))
    }

    /// Over TCP and WebSocket, through a proxy that cuts each connection after a random number of
    /// bytes.
    pub fn cut_over_tcp(seed: u64) -> Self {
        Self::new(
            &format!("remote, TCP cut (seed {seed})"),
            Way::Tcp(Some(Cuts::new(seed))),
        )
    }

    fn new(name: &str, way: Way) -> Self {
        Self {
            name: name.to_owned(),
            way,
            places: Mutex::default(),
        }
    }

    /// The server of a place, made when it is first asked for.
    async fn place(&self, place: &str, clock: &Arc<dyn Clock>) -> Result<Place> {
        if let Some(known) = self.places.lock().get(place) {
            return Ok(known.clone());
        }
        let options = MemoryOptions::from_url(&format!("memory:remote-{place}?encode=always"))?;
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::connect(options, Arc::clone(clock))?);
        let server = Server::new(engine);
        let address = match &self.way {
            Way::Channel(_) => None,
            Way::Tcp(cuts) => {
                let served = serve(server.clone()).await;
                Some(match cuts {
                    Some(cuts) => Proxy::start(served, cuts.clone()).await,
                    None => served,
                })
            }
        };
        let made = Place { server, address };
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
            let Place { server, address } = self.place(place, &clock).await?;
            let options = LinkOptions {
                reconnect_wait: std::time::Duration::from_millis(20),
                ..LinkOptions::default()
            };
            let engine = match (&self.way, address) {
                (_, Some(address)) => {
                    RemoteEngine::connect(&format!("http://{address}"), options, clock).await?
                }
                (Way::Channel(cuts) | Way::Tcp(cuts), None) => {
                    let channel: Arc<dyn Dial> = Arc::new(Channel::new(server, cuts.clone()));
                    RemoteEngine::connect_by(channel, options, clock).await?
                }
            };
            let engine: Arc<dyn Engine> = Arc::new(engine);
            Ok(engine)
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
