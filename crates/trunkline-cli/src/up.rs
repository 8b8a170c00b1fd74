//! `trunkline up`: a bus and its door.

mod nats;

use std::io::ErrorKind as IoErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use trunkline::config::Origin;
use trunkline::core::engine::Durability;
use trunkline::{Bus, Config, Error, ErrorKind, Result, config};
use trunkline_gateway::{Door, DoorConfig, serve};

use crate::console::Console;
use crate::exit::Exit;
use crate::global::Global;
use crate::interrupt::Signals;
use crate::open::{configuration, origin};
use nats::{Child, Nats};

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Address and port of the HTTP door; port 0 takes a free one [default: 127.0.0.1:7400].
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Listen on an address that other hosts can reach. There is no authentication yet. With --nats
    /// it is the door that they can reach; NATS stays on loopback.
    #[arg(long)]
    expose: bool,
    /// Serve requests for this host too, as `bus.lan` or `bus.lan:7400`; may be repeated.
    #[arg(long = "allow-host", value_name = "HOST")]
    allow_hosts: Vec<String>,
    /// Let web pages of this origin use the bus, as `https://console.lan`; may be repeated.
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    allow_origins: Vec<String>,
    /// The `source` of events that are published without one [default: /trunkline].
    #[arg(long)]
    source: Option<String>,
    /// The most bytes that one request may have [default: 16 MiB].
    #[arg(long, value_name = "BYTES")]
    max_body: Option<usize>,
    #[command(flatten)]
    nats: Nats,
}

/// The bus that `up` runs unless told otherwise: what is published outlives it.
const DEFAULT_URL: &str = "file:./trunkline-data";

impl Up {
    /// What the file and the environment say, and the arguments over it.
    fn over(self, mut config: Config, global: &Global) -> Config {
        let door = &mut config.door;
        door.listen = self.listen.unwrap_or(door.listen);
        door.expose |= self.expose;
        door.allow_hosts.extend(self.allow_hosts);
        door.allow_origins.extend(self.allow_origins);
        door.max_body = self.max_body.unwrap_or(door.max_body);
        config.source = self.source.unwrap_or(config.source);
        if let Some(url) = &global.url {
            config.url = url.clone().into();
        }
        config
    }
}

/// Runs until SIGTERM or ctrl-c. With `--json` it prints one line on standard output once it
/// listens.
pub(crate) async fn up(options: Up, global: &Global) -> Result<Exit> {
    let mut loaded = configuration(global)?;
    options.nats.alone(global, &loaded)?;
    if origin(&loaded, "url") == Some(&Origin::Default) {
        loaded.config.url = DEFAULT_URL.to_owned().into();
    }
    let nats = options.nats.clone();
    let mut config = options.over(loaded.config, global);
    allowed(&config)?;
    // In place before anybody learns that it runs, so that whoever stops it at once stops it well.
    let signals = Signals::listen()?;
    // First in and last out: until the bus is closed, what drains needs its server.
    let mut child = nats.start(global).await?;
    if let Some(child) = &child {
        config.url = child.url().into();
    }
    let done = run(&config, signals, child.as_mut(), global).await;
    let stopped = match child {
        Some(child) => child.stop().await,
        None => Ok(()),
    };
    // A server that is gone for good is why the rest failed.
    stopped.and(done)?;
    let mut console = Console::standard(global);
    console.note("stopped");
    Ok(Exit::Done)
}

/// Refuses what would attach to another bus, or open this one by accident.
fn allowed(config: &Config) -> Result<()> {
    if config.url.reveal().starts_with("http:") {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "{} is a bus that runs already, and `up` is to run one; name an engine of its own, as file:./trunkline-data, \
                 and see whether TRUNKLINE_URL is meant for other commands",
                config.url
            ),
        ));
    }
    let listen = config.door.listen;
    if !config.door.expose && !listen.ip().is_loopback() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "{listen} can be reached from other hosts, and this door asks nobody who they are; \
                 listen on a loopback address, or add --expose if that is meant"
            ),
        ));
    }
    Ok(())
}

/// Opens the bus and its door, serves until somebody asks for the end, and closes both.
async fn run(
    config: &Config,
    mut signals: Signals,
    mut child: Option<&mut Child>,
    global: &Global,
) -> Result<()> {
    // Before the bus, so that nothing is made on a disk for a door that cannot open.
    let listen = config.door.listen;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| unbound(listen, error))?;
    let bus = tokio::select! {
        bus = async { Bus::from_config(config).await } => bus?,
        // Its own error is told when it is stopped.
        () = gave_up(child.as_deref_mut()) => return Ok(()),
    };
    let door = Door::new(bus.clone(), door_config(&config.door))?;
    let address = listener
        .local_addr()
        .map_err(|error| unbound(listen, error))?;
    announce(&bus, address, child.as_deref(), global)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let served = serve(listener, door, async move {
        // It is dropped, not sent to.
        let _ = stopped.await;
    });
    tokio::pin!(served);
    let served = tokio::select! {
        served = &mut served => served,
        () = signals.next() => {
            drop(stop);
            served.await
        }
        () = gave_up(child) => {
            drop(stop);
            served.await
        }
    };
    let closed = bus.close().await;
    served.and(closed)
}

/// Waits until the server is gone for good; for ever without one.
async fn gave_up(child: Option<&mut Child>) {
    match child {
        Some(child) => child.gave_up().await,
        None => std::future::pending().await,
    }
}

fn door_config(door: &config::Door) -> DoorConfig {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    DoorConfig {
        allow_hosts: door.allow_hosts.clone(),
        allow_origins: door.allow_origins.clone(),
        max_body_bytes: door.max_body,
        max_events: door.max_events,
        keep_alive_ms: millis(door.keep_alive),
        drain_deadline_ms: millis(door.drain_deadline),
    }
}

fn announce(bus: &Bus, address: SocketAddr, child: Option<&Child>, global: &Global) -> Result<()> {
    let engine = bus.engine();
    let mut text = format!(
        "trunkline listens on http://{address} (engine: {})",
        engine.name()
    );
    if engine.capabilities().durability == Durability::Process {
        text.push_str("\nnothing is kept on disk: events are gone when it stops");
    }
    if let Some(child) = child {
        text.push_str(&format!("\n{child}"));
    }
    if address.ip().is_unspecified() {
        text.push_str("\nname the hosts by which others call it with --allow-host");
    }
    let mut console = Console::standard(global);
    console.note(text);
    if console.json {
        let mut line = json!({"listening": format!("http://{address}"), "engine": engine.name()});
        if let Some(child) = child {
            line["nats"] = child.json();
        }
        console.json_line(&line)?;
        console.out.flush()?;
    }
    Ok(())
}

fn unbound(address: SocketAddr, error: std::io::Error) -> Error {
    let (kind, message) = match error.kind() {
        IoErrorKind::AddrInUse => (
            ErrorKind::InUse,
            format!(
                "another process listens on {address}; stop it, or choose another port with --listen (0 takes a free one)"
            ),
        ),
        IoErrorKind::PermissionDenied => (
            ErrorKind::NotPermitted,
            format!("listening on {address} is not allowed; choose a port above 1023"),
        ),
        IoErrorKind::AddrNotAvailable => (
            ErrorKind::InvalidConfig,
            format!("{address} is not an address of this host"),
        ),
        _ => (
            ErrorKind::Internal,
            format!("listening on {address} failed"),
        ),
    };
    Error::new(kind, message).caused_by(error)
}

fn address(text: &str) -> std::result::Result<SocketAddr, String> {
    let numeric = text
        .strip_prefix("localhost:")
        .map(|port| format!("127.0.0.1:{port}"));
    let fault = |_| "use an address and a port, as 127.0.0.1:7400 or [::1]:7400".to_owned();
    numeric.as_deref().unwrap_or(text).parse().map_err(fault)
}
