//! A socket in the file system: for processes of one host that share a directory, without a port.
//!
//! Who may connect is a matter of the rights of the directory and of the socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Error as WebSocketError;
use tokio_tungstenite::{accept_async_with_config, client_async_with_config};

use crate::server::{HELLO_WITHIN, Server};
use crate::socket::{Socket, websocket_config};

/// What a WebSocket is asked for; nothing looks at it, because the socket serves nothing else.
const REQUEST: &str = "ws://localhost/v1/engine";
/// Bytes of a path that every Unix takes for a socket.
const PATH_BYTES: usize = 100;
/// Before the next connection is accepted when one could not be, for want of files, say.
const BREATH: Duration = Duration::from_millis(50);

/// A socket by a name that is short enough, and what must live for as long as the name is used.
#[derive(Debug)]
struct Short {
    path: PathBuf,
    _dir: Option<std::fs::File>,
}

impl Short {
    /// The path itself, or, on Linux, one by way of its directory, held open.
    fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= PATH_BYTES {
            return Ok(Self {
                path: path.to_owned(),
                _dir: None,
            });
        }
        let parts = (path.parent(), path.file_name());
        #[cfg(target_os = "linux")]
        if let (Some(parent), Some(name)) = parts {
            use std::os::fd::AsRawFd;
            let dir = std::fs::File::open(parent)?;
            let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
            return Ok(Self {
                path,
                _dir: Some(dir),
            });
        }
        let _ = parts;
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a socket's path has at most {PATH_BYTES} bytes on this system"),
        ))
    }
}

/// Connects to the socket there, as far as the point where the handshake of the engine begins.
///
/// # Errors
/// [`NotFound`](io::ErrorKind::NotFound) and [`ConnectionRefused`](io::ErrorKind::ConnectionRefused)
/// when nobody listens; others when something else does.
pub async fn connect_unix(path: &Path) -> io::Result<Socket> {
    let short = Short::new(path)?;
    let stream = UnixStream::connect(&short.path).await?;
    let upgraded = client_async_with_config(REQUEST, stream, Some(websocket_config())).await;
    match upgraded {
        Ok((socket, _)) => Ok(Socket::from_websocket(socket)),
        Err(WebSocketError::Io(error)) => Err(error),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Listens there, in the place of whoever did so before: the caller knows that nobody does any more.
///
/// # Errors
/// Those of the file system, and a path that is too long, which none is on Linux.
pub fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let short = Short::new(path)?;
    let listener = UnixListener::bind(&short.path)?;
    // Who may write to the directory may connect, whatever the process's mask says.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let rights = std::fs::metadata(dir.unwrap_or(Path::new(".")))?.permissions();
    let mode = std::os::unix::fs::PermissionsExt::mode(&rights) & 0o777;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(path, mode)?;
    Ok(listener)
}

/// Serves whoever connects, until it is dropped. Connections go on then, until the server closes.
pub async fn serve_unix(listener: UnixListener, server: Server) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                sleep(BREATH).await;
                continue;
            }
        };
        let server = server.clone();
        tokio::spawn(async move {
            let handshake = accept_async_with_config(stream, Some(websocket_config()));
            // Whoever breaks off here, or says nothing, was no client.
            if let Ok(Ok(socket)) = timeout(HELLO_WITHIN, handshake).await {
                server.serve(Socket::from_websocket(socket)).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use trunkline_core::SystemClock;
    use trunkline_core::engine::{Boxed, Engine, LinkOptions};
    use trunkline_memory::{MemoryEngine, MemoryOptions};

    use super::*;
    use crate::{Dial, RemoteEngine};

    #[derive(Debug)]
    struct To(PathBuf);

    impl Dial for To {
        fn dial(&self) -> Boxed<'_, trunkline_core::Result<Socket>> {
            Box::pin(async {
                connect_unix(&self.0).await.map_err(|error| {
                    trunkline_core::Error::new(trunkline_core::ErrorKind::Disconnected, "no")
                        .caused_by(error)
                })
            })
        }

        fn place(&self) -> &'static str {
            "here"
        }
    }

    #[tokio::test]
    async fn a_socket_is_reached_however_long_its_path_is() {
        let root = std::env::temp_dir().join(format!("trunkline-unix-{}", std::process::id()));
        for dir in [root.clone(), root.join("deep".repeat(40))] {
            if !cfg!(target_os = "linux") && dir != root {
                continue;
            }
            std::fs::create_dir_all(&dir).unwrap();
            let path = dir.join("bus.sock");
            let missing = connect_unix(&path).await.unwrap_err();
            assert_eq!(missing.kind(), io::ErrorKind::NotFound);
            // What another process left there is no hindrance.
            drop(listen_unix(&path).unwrap());
            let refused = connect_unix(&path).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            let options = MemoryOptions::from_url("memory:").unwrap();
            let clock = Arc::new(SystemClock);
            let engine = Arc::new(MemoryEngine::connect(options, clock.clone()).unwrap());
            let serving = tokio::spawn(serve_unix(
                listen_unix(&path).unwrap(),
                Server::new(engine.clone()),
            ));
            let dial = Arc::new(To(path));
            let remote = RemoteEngine::connect_by(dial, LinkOptions::default(), clock);
            let remote = remote.await.unwrap();
            assert_eq!(remote.behind(), "memory");
            let streams = remote.topology().inspect().await.unwrap().streams;
            assert!(streams.is_empty());
            serving.abort();
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}
