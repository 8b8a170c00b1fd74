//! The connection: how it is made and looked after.

mod state;

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};
use trunkline_core::engine::{Link, LinkOptions};
use trunkline_core::wire::ContentMode;
use trunkline_core::{Clock, Error, ErrorKind, Result};

use crate::asks::Asks;
use crate::denied::Denied;
use crate::options::{Auth, NatsOptions};
use state::State;

/// The oldest server that has what the engine needs: atomic batches that know duplicates.
const OLDEST_SERVER: (i64, i64, i64) = (2, 12, 2);
/// How soon a silent connection is noticed: after three times this at most.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Commands that may wait for the socket. The publisher has a bound of its own before that.
const COMMANDS: usize = 8_192;
/// Messages of one subscription that may wait for its reader, which does nothing but take them.
const SUBSCRIPTION: usize = 1 << 20;

/// The connection and what stands beside it.
pub(crate) struct Wire {
    pub(crate) client: Client,
    pub(crate) asks: Asks,
    pub(crate) denied: Arc<Denied>,
    pub(crate) patience: LinkOptions,
    /// What the subjects of the JetStream API begin with: `$JS.API`, or with a domain.
    pub(crate) api: String,
    /// What the subjects of answers begin with.
    pub(crate) inbox: String,
    /// How events are written.
    pub(crate) mode: ContentMode,
    state: Arc<State>,
    /// What hears the answers.
    hearing: AbortHandle,
    /// How many are giving back what they hold.
    parting: watch::Sender<usize>,
}

/// Somebody who gives back what it holds; closing waits for it.
pub(crate) struct Parting(Arc<Wire>);

impl Drop for Parting {
    fn drop(&mut self) {
        let Self(wire) = self;
        wire.parting.send_modify(|count| *count -= 1);
    }
}

impl Wire {
    /// Connects, as patiently as the options say.
    pub(crate) async fn connect(
        options: &NatsOptions,
        patience: LinkOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let state = Arc::new(State {
            link: watch::Sender::new(Link::Connected),
            connections: watch::Sender::new(0),
            clock,
            place: options.place(),
            once: patience.reconnect_attempts == Some(0),
        });
        let denied = Arc::new(Denied::default());
        let (events, refusals) = (Arc::clone(&state), Arc::clone(&denied));
        let told = Told {
            event: Arc::new(move |event| events.happened(event, &refusals)),
            link: Some(state.link.subscribe()),
        };
        let client = dial(options, &patience, &told).await?;
        check_server(&client)?;
        let (asks, hearing) = Asks::start(&client).await?;
        denied.watch(&asks);
        // The first connection is told on the side as well, and is not to look like another one.
        let mut connections = state.connections.subscribe();
        let _ = timeout(FIRST_EVENT, connections.wait_for(|count| *count > 0)).await;
        let api = match &options.domain {
            None => API.to_owned(),
            Some(domain) => format!("$JS.{domain}.API"),
        };
        let wire = Arc::new(Self {
            client,
            asks,
            denied,
            patience,
            api,
            inbox: options.inbox_prefix.clone(),
            mode: options.content_mode,
            state,
            hearing,
            parting: watch::Sender::new(0),
        });
        tokio::spawn(look_after(Arc::downgrade(&wire)));
        Ok(wire)
    }

    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.state.link.subscribe()
    }

    /// Changes with each connection.
    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        self.state.connections.subscribe()
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.state.link.borrow() == Link::Closed
    }

    /// # Errors
    /// [`ErrorKind::Closed`].
    pub(crate) fn check_open(&self) -> Result<()> {
        match self.is_closed() {
            true => Err(closed()),
            false => Ok(()),
        }
    }

    /// Refuses at once if there is no connection.
    pub(crate) fn check_connected(&self) -> Result<()> {
        match &*self.state.link.borrow() {
            Link::Connected => Ok(()),
            Link::Closed => Err(closed()),
            Link::Disconnected { reason, .. } => Err(self.disconnected(reason)),
        }
    }

    /// Waits for the connection.
    ///
    /// # Errors
    /// [`ErrorKind::Disconnected`] if there is none by the deadline, [`ErrorKind::Closed`].
    pub(crate) async fn connected(&self, deadline: Instant) -> Result<()> {
        if self.check_connected().is_ok() {
            return Ok(());
        }
        let mut link = self.state.link.subscribe();
        let up = link.wait_for(|link| !matches!(link, Link::Disconnected { .. }));
        let _ = timeout_at(deadline, up).await;
        self.check_connected()
    }

    /// Hands something over to the client, which takes nothing while the server does not read and
    /// its queue is full.
    ///
    /// # Errors
    /// [`ErrorKind::Disconnected`] if it was not taken by the deadline, so that it is not sent;
    /// [`ErrorKind::Closed`].
    pub(crate) async fn hand_over<T, E: std::error::Error>(
        &self,
        deadline: Instant,
        handing: impl Future<Output = Result<T, E>>,
    ) -> Result<T> {
        // Mostly there is room, and then no timer is needed.
        let mut handing = pin!(handing);
        let handed = match handing.as_mut().now_or_never() {
            Some(handed) => Ok(handed),
            None => timeout_at(deadline, handing).await,
        };
        match handed {
            Ok(Ok(taken)) => Ok(taken),
            Ok(Err(_)) | Err(_) if self.is_closed() => Err(closed()),
            Ok(Err(error)) => Err(self.disconnected(&chain(&error))),
            Err(_) => Err(self.disconnected("the server reads nothing, so this was not sent")),
        }
    }

    fn disconnected(&self, reason: &str) -> Error {
        Error::new(
            ErrorKind::Disconnected,
            format!(
                "no connection to NATS at {}: {reason}; it is tried again by itself",
                self.state.place
            ),
        )
    }

    /// Lets a close wait until this is dropped.
    pub(crate) fn parting(self: &Arc<Self>) -> Parting {
        self.parting.send_modify(|count| *count += 1);
        Parting(Arc::clone(self))
    }

    /// Hands over what was published and gives back what was not taken, then closes for good.
    pub(crate) async fn close(&self) {
        if self.is_closed() {
            return;
        }
        let deadline = Instant::now() + self.patience.request_timeout;
        if self.check_connected().is_ok() {
            let mut parting = self.parting.subscribe();
            let _ = timeout_at(deadline, parting.wait_for(|count| *count == 0)).await;
            // What was sent is with the server once it has answered what was sent after it.
            let _ = self.asks.echo(self, deadline).await;
        }
        self.state.link.send_replace(Link::Closed);
        self.asks.interrupt();
        // A client that takes nothing ends all the same, once nobody holds it.
        let _ = timeout(TICK, self.client.drain()).await;
    }

    /// By when a call that stores nothing must have its answer.
    pub(crate) fn request_deadline(&self) -> Instant {
        Instant::now() + self.patience.request_timeout
    }
}

/// Who is told of what happens to a connection.
#[derive(Clone)]
pub(crate) struct Told {
    pub(crate) event: Arc<dyn Fn(&Event) + Send + Sync>,
    /// Whether anybody still wants it.
    pub(crate) link: Option<watch::Receiver<Link>>,
}

/// Makes one connection, as patiently as the options say.
pub(crate) async fn dial(
    options: &NatsOptions,
    patience: &LinkOptions,
    told: &Told,
) -> Result<Client> {
    options.check()?;
    let give_up = patience
        .first_connect
        .map(|patience| Instant::now() + patience);
    loop {
        let prepared = prepare(options, patience, told).await?;
        let error = match prepared.connect(options.servers.as_slice()).await {
            Ok(client) => return Ok(client),
            Err(error) => refusal(&error, options),
        };
        let wait = Instant::now() + jittered(patience.reconnect_wait.min(PATIENT_RETRY));
        if !error.retryable() || give_up.is_some_and(|give_up| wait >= give_up) {
            return Err(error);
        }
        tracing::warn!(url = options.place(), %error, "cannot connect yet");
        tokio::time::sleep_until(wait).await;
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // What still tries to reconnect slows down, and ends when it finds a server.
        self.state.link.send_replace(Link::Closed);
        self.hearing.abort();
    }
}

/// How often the link is compared with the client's own state.
const TICK: Duration = Duration::from_secs(1);
/// How long the first connection's own event may take.
const FIRST_EVENT: Duration = Duration::from_secs(1);
/// The pause between two attempts of a client that nobody wants any more. It cannot be told to stop
/// without a connection.
const CLOSED_RETRY: Duration = Duration::from_secs(10);

/// Compares what the client's events said with how it stands. The client drops events when many come
/// at once, as when a thousand messages are not permitted, and a link that says something false would
/// say so for ever.
async fn look_after(wire: Weak<Wire>) {
    let mut differed = false;
    loop {
        tokio::time::sleep(TICK).await;
        let Some(wire) = wire.upgrade() else {
            return;
        };
        let state = &wire.state;
        let connects = wire.client.statistics().connects.load(Ordering::Relaxed);
        let up = wire.client.connection_state() == async_nats::connection::State::Connected;
        let said = state.link.borrow().clone();
        let said_up = match said {
            Link::Connected => true,
            Link::Disconnected { .. } => false,
            Link::Closed => {
                let _ = timeout(TICK, wire.client.drain()).await;
                return;
            }
        };
        let missed = up != said_up || *state.connections.borrow() < connects;
        // Once may be an event that is on its way.
        if !(missed && std::mem::replace(&mut differed, missed)) {
            differed = missed;
            continue;
        }
        differed = false;
        tracing::warn!(url = %state.place, up, "an event of the NATS client was lost");
        match up {
            true => state.happened(&Event::Connected, &wire.denied),
            false => state.happened(&Event::Disconnected, &wire.denied),
        }
    }
}

/// The pause between two attempts of the first connection, at most.
const PATIENT_RETRY: Duration = Duration::from_millis(500);

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the bus was closed")
}

/// A wait and up to a fifth more, so that many clients do not come back at one moment.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(1.0 + rand::random::<f64>() / 5.0)
}

async fn prepare(
    options: &NatsOptions,
    patience: &LinkOptions,
    told: &Told,
) -> Result<ConnectOptions> {
    let wait = patience.reconnect_wait;
    let Told { event: told, link } = told.clone();
    let closed = move || {
        link.as_ref()
            .is_some_and(|link| *link.borrow() == Link::Closed)
    };
    let servers = options.servers.len();
    let mut prepared = ConnectOptions::new()
        .name(&options.name)
        .connection_timeout(patience.connect_timeout)
        .ping_interval(PING_INTERVAL)
        .subscription_capacity(SUBSCRIPTION)
        .client_capacity(COMMANDS)
        .custom_inbox_prefix(&options.inbox_prefix)
        .max_reconnects(
            patience
                .reconnect_attempts
                .map(|attempts| (attempts as usize).max(1).saturating_mul(servers)),
        )
        // The client counts an attempt for each server. All are tried once before any wait.
        .reconnect_delay_callback(move |attempts| match attempts {
            _ if closed() => CLOSED_RETRY,
            _ if attempts <= servers => Duration::ZERO,
            _ => jittered(wait),
        })
        // Subjects are checked by their own type, once.
        .skip_subject_validation(true)
        .event_callback(move |event| {
            told(&event);
            std::future::ready(())
        })
        .require_tls(options.tls.required);
    if options.tls.first {
        prepared = prepared.tls_first();
    }
    let readable = async |what: &str, path: &std::path::Path| {
        let read = tokio::fs::read_to_string(path).await;
        read.map_err(|error| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "{what} {} cannot be read: {error}; correct the path or its permissions",
                    path.display()
                ),
            )
        })
    };
    let with = async |what: &str, path: &std::path::Path, mark: &str| {
        let text = readable(what, path).await?;
        match text.contains(mark) {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "{what} {} holds no {mark}; name a file in PEM that does",
                    path.display()
                ),
            )),
        }
    };
    if let Some(ca) = &options.tls.ca {
        with("the file of TLS authorities", ca, "BEGIN CERTIFICATE").await?;
        prepared = prepared.add_root_certificates(ca.clone());
    }
    if let (Some(certificate), Some(key)) = (&options.tls.certificate, &options.tls.key) {
        with("the TLS certificate", certificate, "BEGIN CERTIFICATE").await?;
        with("the TLS key", key, "PRIVATE KEY").await?;
        prepared = prepared.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(match &options.auth {
        Auth::Anonymous => prepared,
        Auth::User { user, password } => prepared.user_and_password(user.clone(), password.clone()),
        Auth::Token(token) => prepared.token(token.clone()),
        Auth::Nkey(path) => {
            let text = readable("the nkey seed", path).await?;
            let seed = text.lines().map(str::trim).find(|line| is_seed(line));
            let seed = seed.ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidConfig,
                    format!(
                        "{} holds no nkey seed of a user; name a file with one, which begins with SU",
                        path.display()
                    ),
                )
            })?;
            prepared.nkey(seed.to_owned())
        }
        Auth::Credentials(path) => {
            let text = readable("the credentials file", path).await?;
            prepared.credentials(&text).map_err(|_| {
                Error::new(
                    ErrorKind::InvalidConfig,
                    format!(
                        "{} is no credentials file; it needs a user JWT and a seed",
                        path.display()
                    ),
                )
            })?
        }
    })
}

/// Whether a line looks like the seed of a user. Its checksum is the client's to check.
fn is_seed(line: &str) -> bool {
    let base32 = |byte: u8| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte);
    line.len() == 58 && line.starts_with("SU") && line.bytes().all(base32)
}

/// # Errors
/// [`ErrorKind::WrongVersion`] for a server that is too old, [`ErrorKind::NoJetStream`] for one
/// without JetStream.
fn check_server(client: &Client) -> Result<()> {
    let info = client.server_info();
    let (major, minor, patch) = OLDEST_SERVER;
    if !client.is_server_compatible(major, minor, patch) {
        return Err(Error::new(
            ErrorKind::WrongVersion,
            format!(
                "the NATS server is version {}, and {major}.{minor}.{patch} is the oldest that will do; upgrade it, best to 2.15",
                info.version
            ),
        ));
    }
    if !info.jetstream {
        return Err(no_jetstream(&info.server_name, API));
    }
    Ok(())
}

/// What the subjects of the JetStream API begin with, unless a domain is named.
const API: &str = "$JS.API";

pub(crate) fn no_jetstream(server: &str, api: &str) -> Error {
    if api != API {
        return Error::new(
            ErrorKind::NoJetStream,
            format!(
                "nothing answers {api} at NATS server {server}; check the name of the JetStream domain, \
                 and that the server reaches it"
            ),
        );
    }
    Error::new(
        ErrorKind::NoJetStream,
        format!(
            "JetStream is off at NATS server {server}, or for this account, so nothing can be stored; \
             start the server with `jetstream {{}}` in its configuration or with -js, or enable it for the account"
        ),
    )
}

/// What a failed attempt to connect means. Its own text may name hosts, never credentials.
fn refusal(error: &async_nats::ConnectError, options: &NatsOptions) -> Error {
    let place = options.place();
    let chain = chain(error);
    let tls = [
        "certificate",
        "tls",
        "handshake",
        "alert",
        "corrupt message",
        "InvalidContentType",
    ]
    .iter()
    .any(|word| chain.to_lowercase().contains(&word.to_lowercase()));
    let (kind, what) = match error.kind() {
        ConnectErrorKind::Dns => (
            ErrorKind::UnknownHost,
            format!(
                "a host of {place} does not resolve: {chain}; check the name and the name service"
            ),
        ),
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => (
            ErrorKind::CredentialsRefused,
            format!(
                "NATS at {place} refused {}; check the user, the account and that they belong to this server",
                options.auth.kind()
            ),
        ),
        ConnectErrorKind::ServerParse => (
            ErrorKind::InvalidUrl,
            format!("{place} is no list of NATS servers: {chain}"),
        ),
        ConnectErrorKind::Tls => (ErrorKind::TlsFailed, tls_text(&place, &chain)),
        _ if tls => (ErrorKind::TlsFailed, tls_text(&place, &chain)),
        // Its own words are not repeated: they may be anything.
        _ if ["invalid server operation", "expected INFO"]
            .iter()
            .any(|text| chain.contains(text)) =>
        {
            (
                ErrorKind::Disconnected,
                format!("what answers at {place} speaks another protocol; is it a NATS server?"),
            )
        }
        ConnectErrorKind::TimedOut => (
            ErrorKind::Disconnected,
            format!(
                "NATS at {place} did not answer in time; is it a NATS server, and does it ask for TLS first?"
            ),
        ),
        _ => (
            ErrorKind::Disconnected,
            format!("no NATS server answers at {place}: {chain}; start one, or correct the URL"),
        ),
    };
    Error::new(kind, what)
}

fn tls_text(place: &str, chain: &str) -> String {
    format!(
        "TLS with NATS at {place} failed: {chain}; check the CA, the client certificate, the host name, and whether TLS comes first"
    )
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}
