//! Reaching a running bus by its URL.

use std::fmt;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::{Error as WebSocketError, http};
use trunkline_core::engine::Boxed;
use trunkline_core::{Error, ErrorKind, Result};

use crate::socket::{Socket, websocket_config};

/// The path of the engine below that of the door.
pub const PATH: &str = "/v1/engine";

/// A way to a server. Time-outs are its user's.
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// Connects, as far as the point where the handshake of the engine begins.
    ///
    /// # Errors
    /// [`ErrorKind::Disconnected`] when it may work later; [`ErrorKind::WrongProtocol`] and
    /// [`ErrorKind::NotPermitted`] when it will not.
    fn dial(&self) -> Boxed<'_, Result<Socket>>;

    /// What is dialled, for messages; without credentials.
    fn place(&self) -> &str;
}

/// A bus behind an `http:` URL.
#[derive(Clone, Debug)]
pub(crate) struct HttpDial {
    url: String,
    host: String,
    port: u16,
    request: http::Uri,
}

impl HttpDial {
    /// Reads `http://host[:port][/path]`. The port is 7400 unless named.
    pub(crate) fn new(url: &str) -> Result<Self> {
        // Nothing of the URL is quoted before it is known that no password is in it.
        let invalid = |fault: &str| {
            Error::new(
                ErrorKind::InvalidUrl,
                format!("{fault}; use http://HOST[:PORT], as `trunkline up` prints it"),
            )
        };
        let uri: http::Uri = url.parse().map_err(|_| invalid("this is not a URL"))?;
        let authority = uri
            .authority()
            .ok_or_else(|| invalid("the URL names no host"))?;
        if uri.scheme_str() != Some("http") {
            return Err(invalid("the URL does not begin with `http://`"));
        }
        if authority.as_str().contains('@') {
            return Err(invalid("a bus behind HTTP takes no user and no password"));
        }
        if uri.query().is_some() {
            return Err(invalid("a bus behind HTTP has no options"));
        }
        let (host, port) = (authority.host(), authority.port_u16().unwrap_or(7400));
        let path = uri.path().trim_end_matches('/');
        let request = format!("ws://{host}:{port}{path}{PATH}");
        Ok(Self {
            url: format!("http://{host}:{port}{path}"),
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port,
            request: request.parse().map_err(|_| invalid("this is not a URL"))?,
        })
    }

    async fn connect(&self) -> Result<Socket> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| {
                Error::new(
                    ErrorKind::Disconnected,
                    format!("cannot reach {}", self.url),
                )
                .caused_by(error)
            })?;
        // Packets are gathered here already; to gather them once more would only delay them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "the connection cannot be told to send at once");
        }
        let upgraded =
            client_async_with_config(self.request.clone(), stream, Some(websocket_config())).await;
        match upgraded {
            Ok((socket, _)) => Ok(Socket::from_websocket(socket)),
            Err(error) => Err(self.not_upgraded(error)),
        }
    }

    /// What answered, if it is not a bus.
    fn not_upgraded(&self, error: WebSocketError) -> Error {
        let url = &self.url;
        match error {
            WebSocketError::Http(response) => {
                let status = response.status();
                let body = response.body().as_deref().unwrap_or_default();
                let told = serde_json::from_slice::<serde_json::Value>(body).ok();
                let detail = told
                    .as_ref()
                    .and_then(|told| told["detail"].as_str())
                    .unwrap_or_default();
                if status == StatusCode::FORBIDDEN {
                    return Error::new(ErrorKind::NotPermitted, format!("{url} refuses: {detail}"));
                }
                if status == StatusCode::SERVICE_UNAVAILABLE {
                    return Error::new(
                        ErrorKind::Disconnected,
                        format!("{url} is not ready: {detail}"),
                    );
                }
                Error::new(
                    ErrorKind::WrongProtocol,
                    format!(
                        "{url} is a web server but no Trunkline bus: it answers {status} to {PATH}"
                    ),
                )
            }
            WebSocketError::Io(error) if error.kind() != std::io::ErrorKind::InvalidData => {
                Error::new(
                    ErrorKind::Disconnected,
                    format!(
                        "{url} takes connections but breaks them off; if that stays so, it is no Trunkline bus"
                    ),
                )
                .caused_by(error)
            }
            // A bus that is just going away does so too, so it is worth another try.
            WebSocketError::Protocol(ProtocolError::HandshakeIncomplete) => Error::new(
                ErrorKind::Disconnected,
                format!(
                    "{url} takes connections but closes them without an answer; if that stays so, it is no Trunkline bus"
                ),
            ),
            error => Error::new(
                ErrorKind::WrongProtocol,
                format!("{url} is no Trunkline bus: it speaks something else than HTTP"),
            )
            .caused_by(error),
        }
    }
}

impl Dial for HttpDial {
    fn dial(&self) -> Boxed<'_, Result<Socket>> {
        Box::pin(self.connect())
    }

    fn place(&self) -> &str {
        &self.url
    }
}

/// Gives up on an attempt that takes too long.
pub(crate) async fn within<T>(
    limit: Duration,
    place: &str,
    attempt: impl Future<Output = Result<T>>,
) -> Result<T> {
    match timeout(limit, attempt).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::Disconnected,
            format!(
                "{place} takes connections but did not answer as a Trunkline bus within {limit:?}"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_faults_named_without_quoting_a_password() {
        for (url, request) in [
            ("http://127.0.0.1:7400", "ws://127.0.0.1:7400/v1/engine"),
            ("http://localhost", "ws://localhost:7400/v1/engine"),
            ("http://[::1]:9/", "ws://[::1]:9/v1/engine"),
            ("http://bus.lan:80/bus/", "ws://bus.lan:80/bus/v1/engine"),
        ] {
            assert_eq!(HttpDial::new(url).unwrap().request.to_string(), request);
        }
        for (url, fault) in [
            ("http://", "not a URL"),
            ("http:7400", "does not begin with"),
            ("https://bus.lan", "does not begin with"),
            ("http://me:hunter2@bus.lan", "no password"),
            ("http://bus.lan?a=hunter2", "no options"),
            ("http://bus lan", "not a URL"),
        ] {
            let error = HttpDial::new(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl);
            assert!(error.message().contains(fault), "{url}: {error}");
            assert!(!error.message().contains("hunter2"), "{error}");
        }
    }
}
