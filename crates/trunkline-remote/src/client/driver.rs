//! Keeping the connection: the first one, and every one after it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use rand::RngExt;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep};
use trunkline_core::engine::{Link, LinkOptions};
use trunkline_core::{Clock, Error, ErrorKind, Result};

use super::calls::{Core, MAX_CALLS, Shared};
use crate::dial::{Dial, within};
use crate::hello::{Greeting, Hello, SessionState, Welcome};
use crate::line::{Broken, Line};
use crate::socket::Socket;

/// How long a dropped fetch may be taken up again before its pull is cancelled.
const FETCH_AGAIN_WITHIN: Duration = Duration::from_millis(20);
/// Between a break and the first attempt to mend it, so that a server that hangs up at once is not
/// dialled in a busy loop.
const BREATH: Duration = Duration::from_millis(10);

/// Connections in a row over which nothing came or arrived, until a session is given up: something that it keeps
/// sending may be what breaks them.
const MAX_IN_VAIN: u32 = 30;

/// Connects for the first time, and keeps connected from then on.
pub(super) async fn start(
    dial: Arc<dyn Dial>,
    options: LinkOptions,
    clock: Arc<dyn Clock>,
) -> Result<Arc<Shared>> {
    let (socket, welcome) = first(&*dial, &options).await?;
    let shared = Arc::new(Shared {
        line: Line::default(),
        core: Mutex::new(Core {
            calls: BTreeMap::new(),
            readers: FxHashMap::default(),
            dropped: Vec::new(),
            closed: false,
            session: Some(welcome.session.id.clone()),
            bus: welcome.bus.clone(),
            facts: welcome.facts(),
        }),
        link: watch::Sender::new(Link::Connected),
        leaving: watch::Sender::new(false),
        idle: Notify::new(),
        dropped: Notify::new(),
        dial,
        options,
        clock,
        capabilities: welcome.capabilities(),
        limits: welcome.limits(),
        behind: welcome.engine,
        permits: Arc::new(Semaphore::new(MAX_CALLS)),
        ids: AtomicU64::new(1),
    });
    tokio::spawn(drive(Arc::clone(&shared), socket));
    Ok(shared)
}

/// The first connection: says at once what is wrong, and tries again as long as it is told to.
async fn first(dial: &dyn Dial, options: &LinkOptions) -> Result<(Socket, Welcome)> {
    let start = Instant::now();
    let mut told = false;
    loop {
        let error = match connect(dial, options, None).await {
            Ok(connected) => return Ok(connected),
            Err(error) if !error.retryable() => return Err(error),
            Err(error) => error,
        };
        let left = options
            .first_connect
            .map(|limit| limit.saturating_sub(start.elapsed()));
        if left == Some(Duration::ZERO) {
            return Err(error);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(
                cause = %cause(&error), trying_for = ?options.first_connect, "{}", error.message()
            );
        }
        let wait = jittered(options.reconnect_wait).min(Duration::from_secs(1));
        sleep(left.map_or(wait, |left| wait.min(left))).await;
    }
}

/// One attempt: a connection and a handshake.
async fn connect(
    dial: &dyn Dial,
    options: &LinkOptions,
    session: Option<SessionState>,
) -> Result<(Socket, Welcome)> {
    let attempt = async {
        let mut socket = dial.dial().await?;
        let broken = |what: &str| {
            Error::new(
                ErrorKind::Disconnected,
                format!("{} {what} during the handshake", dial.place()),
            )
        };
        let hello = Hello::new(session).to_bytes();
        let sent = socket.outgoing.send(hello).await;
        sent.map_err(|error| broken("broke off").caused_by(error))?;
        let greeting = match socket.incoming.next().await {
            Some(Ok(greeting)) => greeting,
            Some(Err(error)) => return Err(broken("broke off").caused_by(error)),
            None => return Err(broken("closed the connection")),
        };
        let welcome = Greeting::read(&greeting).map_err(|error| error.at(dial.place()))?;
        Ok((socket, welcome))
    };
    within(options.connect_timeout, dial.place(), attempt).await
}

async fn drive(shared: Arc<Shared>, mut socket: Socket) {
    let sweeping = tokio::spawn(sweep(Arc::clone(&shared)));
    let mut in_vain = 0;
    loop {
        let stop = left(&shared);
        let before = shared.line.progress();
        let broken = shared
            .line
            .carry(socket, stop, |frame| shared.handle(&frame))
            .await;
        if *shared.leaving.borrow() {
            break;
        }
        tracing::debug!(place = shared.dial.place(), %broken, "the connection broke");
        in_vain = match shared.line.progress() > before {
            true => 0,
            false => in_vain + 1,
        };
        if matches!(broken, Broken::Malformed(_)) || in_vain >= MAX_IN_VAIN {
            // Nobody can tell what the session has got by now, or it leads nowhere.
            shared.core.lock().session = None;
        }
        shared.link.send_replace(Link::Disconnected {
            since: shared.clock.now(),
            reason: broken.to_string(),
        });
        socket = tokio::select! {
            biased;
            () = left(&shared) => break,
            again = reconnect(&shared) => match again {
                Some(socket) => socket,
                None => break,
            },
        };
        shared.link.send_replace(Link::Connected);
    }
    shared.finish();
    sweeping.abort();
}

/// Yields once the engine is being closed.
async fn left(shared: &Shared) {
    let mut leaving = shared.leaving.subscribe();
    // The sender is the engine's own, so it is there.
    let _ = leaving.wait_for(|leaving| *leaving).await;
}

/// Connects again, as often as the options allow.
async fn reconnect(shared: &Arc<Shared>) -> Option<Socket> {
    sleep(BREATH).await;
    let mut attempts = 0;
    loop {
        let session = shared.core.lock().session.clone().map(|id| SessionState {
            id,
            received: shared.line.received(),
        });
        let error = match connect(&*shared.dial, &shared.options, session).await {
            Ok((socket, welcome)) if welcome.resumed => {
                shared.core.lock().facts = welcome.facts();
                match shared.line.resume(welcome.session.received) {
                    Ok(()) => return Some(socket),
                    // It has another session in mind; the next attempt asks for a new one.
                    Err(_) => shared.core.lock().session = None,
                }
                sleep(BREATH).await;
                continue;
            }
            Ok((socket, welcome)) => {
                tracing::info!(
                    place = shared.dial.place(),
                    "the server does not know this session any more; readers are opened again"
                );
                shared.core.lock().facts = welcome.facts();
                shared.begin_anew(welcome.session.id, &welcome.bus);
                return Some(socket);
            }
            Err(error) => error,
        };
        attempts += 1;
        if shared
            .options
            .reconnect_attempts
            .is_some_and(|limit| attempts >= limit)
        {
            tracing::error!(%error, attempts, "no more attempts to reconnect; the bus is closed");
            return None;
        }
        let reason = format!("{}: {}", error.message(), cause(&error));
        shared.link.send_if_modified(|link| match link {
            Link::Disconnected { reason: known, .. } if *known != reason => {
                *known = reason;
                true
            }
            _ => false,
        });
        sleep(jittered(shared.options.reconnect_wait)).await;
    }
}

/// Looks after fetches that were dropped and not taken up again.
async fn sweep(shared: Arc<Shared>) {
    loop {
        shared.dropped.notified().await;
        sleep(FETCH_AGAIN_WITHIN).await;
        let inboxes: Vec<_> = {
            let mut core = shared.core.lock();
            let dropped = std::mem::take(&mut core.dropped);
            let known = dropped
                .iter()
                .filter_map(|id| core.readers.get(id).cloned());
            known.collect()
        };
        for inbox in inboxes {
            inbox.sweep(&shared.line);
        }
    }
}

/// The time and up to a fifth more, so that clients do not all come at once.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(1.0 + 0.2 * rand::rng().random::<f64>())
}

fn cause(error: &Error) -> String {
    std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default()
}
