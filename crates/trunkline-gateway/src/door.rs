//! The door: a bus and its routes.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::get;
use tokio::sync::watch;
use trunkline::{Bus, Link, Result};
use trunkline_remote::Server;

use crate::config::DoorConfig;
use crate::guard::{Policy, guard};
use crate::problem::Problem;
use crate::{engine, health, publish, read};

/// An HTTP door to a bus. Clones share everything.
///
/// ```no_run
/// # async fn open(bus: trunkline::Bus) -> trunkline::Result<()> {
/// use trunkline_gateway::{Door, DoorConfig};
///
/// let door = Door::new(bus, DoorConfig::default())?;
/// let app: axum::Router = axum::Router::new().nest("/bus", door.router());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Door {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) bus: Bus,
    pub(crate) config: DoorConfig,
    policy: Policy,
    closing: watch::Sender<bool>,
    /// Serves the engine to programs of this host.
    pub(crate) server: Server,
}

impl Door {
    /// A door to this bus.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](trunkline::ErrorKind::InvalidConfig) for allowed hosts or
    /// origins that are none, all of them named.
    pub fn new(bus: Bus, config: DoorConfig) -> Result<Self> {
        let policy = Policy::new(&config.allow_hosts, &config.allow_origins)?;
        let closing = watch::Sender::new(false);
        let server = Server::new(Arc::clone(bus.engine()));
        Ok(Self {
            shared: Arc::new(Shared {
                bus,
                config,
                policy,
                closing,
                server,
            }),
        })
    }

    /// The routes, to be nested in another program or served by it. They check `Host` and
    /// `Origin` themselves, and answer unknown paths.
    pub fn router(&self) -> Router {
        self.routes(self.shared.policy.clone())
    }

    /// As [`router`](Door::router), and `Host` may be the address listened on.
    pub(crate) fn router_at(&self, listening: SocketAddr) -> Router {
        self.routes(self.shared.policy.clone().and_address(listening))
    }

    fn routes(&self, policy: Policy) -> Router {
        Router::new()
            .route("/v1/events", get(read::read).post(publish::publish))
            .route("/v1/engine", get(engine::engine))
            .route("/healthz", get(health::healthz))
            .route("/readyz", get(health::readyz))
            .fallback(no_route)
            .method_not_allowed_fallback(no_method)
            .layer(from_fn_with_state(Arc::new(policy), guard))
            .layer(map_response(no_sniffing))
            .with_state(self.clone())
    }

    /// Says that the door is about to close: it is no longer ready, and every stream that follows
    /// ends, so that its client can go elsewhere and resume. Requests under way finish.
    pub fn close(&self) {
        self.shared.closing.send_replace(true);
        self.shared.server.close();
    }

    /// Whether [`close`](Door::close) was called, and the moment when it is.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.shared.closing.subscribe()
    }

    /// Yields once the door or its bus is closed.
    pub(crate) async fn closed(&self) {
        let (mut closing, mut link) = (self.closing(), self.shared.bus.link());
        // An error means that the sender is gone, which is as closed as can be.
        tokio::select! {
            _ = closing.wait_for(|closing| *closing) => {}
            _ = link.wait_for(|link| *link == Link::Closed) => {}
        }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door")
            .field("bus", &self.shared.bus)
            .finish_non_exhaustive()
    }
}

async fn no_route(uri: Uri) -> Problem {
    let detail = format!(
        "there is no {}; there are /v1/events, /v1/engine, /healthz and /readyz",
        uri.path()
    );
    Problem::plain(StatusCode::NOT_FOUND, detail)
}

async fn no_method(method: Method, uri: Uri) -> Problem {
    Problem::plain(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
    )
}

/// What is an event to us must not become a script or a page to a browser that guesses.
async fn no_sniffing(mut response: Response) -> Response {
    response.headers_mut().insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}
