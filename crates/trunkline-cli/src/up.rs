//! `trunkline up`: a bus and its door.

use std::future::Future;
use std::io::{ErrorKind as IoErrorKind, Write};
use std::net::SocketAddr;

use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;
use trunkline::core::engine::Durability;
use trunkline::{Bus, Error, ErrorKind, Result};
use trunkline_gateway::{Door, DoorConfig, serve};

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// The bus: `memory:` keeps events until it stops.
    #[arg(long, env = "TRUNKLINE_URL", default_value = "memory:")]
    url: String,
    /// Address and port of the HTTP door; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7400", value_parser = address)]
    listen: SocketAddr,
    /// Listen on an address that other hosts can reach. There is no authentication yet.
    #[arg(long)]
    expose: bool,
    /// Serve requests for this host too, as `bus.lan` or `bus.lan:7400`; may be repeated.
    #[arg(long = "allow-host", value_name = "HOST")]
    allow_hosts: Vec<String>,
    /// Let web pages of this origin use the bus, as `https://console.lan`; may be repeated.
    #[arg(long = "allow-origin", value_name = "ORIGIN")]
    allow_origins: Vec<String>,
    /// The `source` of events that are published without one.
    #[arg(long, default_value = "/trunkline")]
    source: String,
    /// The most bytes that one request may have.
    #[arg(long, value_name = "BYTES", default_value_t = DoorConfig::default().max_body_bytes)]
    max_body: usize,
    /// Print one line of JSON on standard output once it listens.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn up(options: Up) -> Result<()> {
    if !options.expose && !options.listen.ip().is_loopback() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "{} can be reached from other hosts, and this door asks nobody who they are; \
                 listen on a loopback address, or add --expose if that is meant",
                options.listen
            ),
        ));
    }
    // In place before anybody learns that it runs, so that whoever stops it at once stops it well.
    let signal = signal()?;
    let bus = Bus::connect(&options.url).source(&options.source).await?;
    let config = DoorConfig {
        allow_hosts: options.allow_hosts,
        allow_origins: options.allow_origins,
        max_body_bytes: options.max_body,
        ..DoorConfig::default()
    };
    let door = Door::new(bus.clone(), config)?;
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|error| unbound(options.listen, error))?;
    let address = listener
        .local_addr()
        .map_err(|error| unbound(options.listen, error))?;
    announce(&bus, address, options.json)?;
    let served = serve(listener, door, signal).await;
    let closed = bus.close().await;
    served.and(closed)?;
    say(&mut std::io::stderr(), "stopped")
}

fn announce(bus: &Bus, address: SocketAddr, json: bool) -> Result<()> {
    let engine = bus.engine();
    let mut text = format!(
        "trunkline listens on http://{address} (engine: {})",
        engine.name()
    );
    if engine.capabilities().durability == Durability::Process {
        text.push_str("\nnothing is kept on disk: events are gone when it stops");
    }
    if address.ip().is_unspecified() {
        text.push_str("\nname the hosts by which others call it with --allow-host");
    }
    say(&mut std::io::stderr(), &text)?;
    if json {
        let line = json!({"listening": format!("http://{address}"), "engine": engine.name()});
        say(&mut std::io::stdout(), &line.to_string())?;
    }
    Ok(())
}

fn say(out: &mut impl Write, text: &str) -> Result<()> {
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|error| {
        Error::new(ErrorKind::Internal, "the output cannot be written").caused_by(error)
    })
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

/// Yields at the first SIGTERM or ctrl-c.
#[cfg(unix)]
fn signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};
    let no_signals =
        |error| Error::new(ErrorKind::Internal, "signals cannot be received").caused_by(error);
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    Ok(async {
        // Without ctrl-c there is nothing to wait for but the end of the process.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    })
}
