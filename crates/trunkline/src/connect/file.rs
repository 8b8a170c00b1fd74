//! A directory as a bus: in this process, or in that of another program on this host.
//!
//! One process owns the directory. It serves the others by a socket in it, to which they attach; when the
//! owner goes away they wait for the next one, and if none comes one of them takes its place.

use std::sync::Arc;

use trunkline_core::engine::{Engine, LinkOptions};
use trunkline_core::{Clock, Error, ErrorKind, Result};
use trunkline_log::{LogEngine, LogOptions};

/// The engine for a `file:` URL.
pub(super) async fn open(
    url: &str,
    clock: &Arc<dyn Clock>,
    link: LinkOptions,
) -> Result<Arc<dyn Engine>> {
    let options = LogOptions::from_url(url)?;
    #[cfg(all(unix, feature = "remote"))]
    return shared::open(options, clock, link).await;
    #[cfg(not(all(unix, feature = "remote")))]
    {
        let _ = link;
        Ok(Arc::new(own(&options, clock).await?))
    }
}

/// Opens the directory in this process.
async fn own(options: &LogOptions, clock: &Arc<dyn Clock>) -> Result<LogEngine> {
    let (options, clock) = (options.clone(), Arc::clone(clock));
    // Opening reads files, and what a crash left behind is mended first.
    let opening = tokio::task::spawn_blocking(move || LogEngine::connect(&options, clock));
    opening.await.map_err(|error| {
        Error::new(ErrorKind::Internal, "opening the directory ended early").caused_by(error)
    })?
}

#[cfg(all(unix, feature = "remote"))]
mod shared {
    use std::collections::BTreeMap;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Weak};
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio::sync::{oneshot, watch};
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, timeout};
    use trunkline_core::engine::{
        Boxed, Capabilities, Consume, Engine, Fact, Gauges, Limits, Link, LinkOptions, Live, Log,
        Reach, State, Topology,
    };
    use trunkline_core::{Clock, Error, ErrorKind, Result};
    use trunkline_log::{LogEngine, LogOptions, SyncPolicy};
    use trunkline_remote::{
        Dial, RemoteEngine, Server, Socket, connect_unix, listen_unix, serve_unix,
    };

    use super::own;

    /// How long an owner that went away may take to come back, before an attached process takes its
    /// place.
    const COMES_BACK_WITHIN: Duration = Duration::from_secs(5);
    /// How often somebody who is attached looks for an owner at least: looking costs next to nothing.
    const LOOK_EVERY: Duration = Duration::from_millis(200);
    /// How long those who are attached have to get their last answers when the owner closes.
    const DRAIN_WITHIN: Duration = Duration::from_secs(2);

    /// The directories that this process serves.
    static SERVED: Mutex<BTreeMap<PathBuf, Weak<Serving>>> = Mutex::new(BTreeMap::new());

    pub(super) async fn open(
        options: LogOptions,
        clock: &Arc<dyn Clock>,
        link: LinkOptions,
    ) -> Result<Arc<dyn Engine>> {
        match Owner::new(&options, clock).await {
            Ok(owner) => Ok(Arc::new(owner)),
            Err(error) if error.kind() == ErrorKind::InUse => {
                Ok(Arc::new(Attached::new(options, clock, link, error).await?))
            }
            Err(error) => Err(error),
        }
    }

    /// The engine of a directory that this process has.
    #[derive(Debug)]
    struct Owner {
        engine: LogEngine,
        /// Shared by all that this process has open of the directory, gone when this one is closed.
        serving: Mutex<Option<Arc<Serving>>>,
    }

    /// The directory's socket.
    #[derive(Debug)]
    struct Serving {
        /// One more connection, so that closing the others leaves the directory open until those who
        /// are attached have their answers.
        engine: Arc<LogEngine>,
        server: Server,
        /// Ends the thread that serves when it is dropped; none if nobody can attach.
        accepting: Mutex<Option<oneshot::Sender<()>>>,
    }

    impl Owner {
        async fn new(options: &LogOptions, clock: &Arc<dyn Clock>) -> Result<Self> {
            let engine = own(options, clock).await?;
            let socket = LogEngine::socket(options)?;
            let mut served = SERVED.lock();
            served.retain(|_, serving| serving.strong_count() > 0);
            if let Some(serving) = served.get(&socket).and_then(Weak::upgrade) {
                let serving = Mutex::new(Some(serving));
                return Ok(Self { engine, serving });
            }
            let guest = Arc::new(engine.another()?);
            let server = Server::new(Arc::clone(&guest) as Arc<dyn Engine>);
            let serving = Arc::new(Serving {
                engine: guest,
                accepting: Mutex::new(accept(&socket, &server)),
                server,
            });
            served.insert(socket, Arc::downgrade(&serving));
            drop(served);
            let serving = Mutex::new(Some(serving));
            Ok(Self { engine, serving })
        }

        async fn close_gently(&self) {
            let serving = self.serving.lock().take();
            self.engine.close().await;
            if let Some(last) = serving.and_then(Arc::into_inner) {
                last.close().await;
            }
        }
    }

    /// Listens at the socket. A file system without sockets keeps others out, but nobody else.
    fn accept(socket: &Path, server: &Server) -> Option<oneshot::Sender<()>> {
        match serve(socket, server) {
            Ok(accepting) => Some(accepting),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "other processes cannot attach to this directory: no socket {}",
                    socket.display()
                );
                None
            }
        }
    }

    /// Serves at the socket until the sender is dropped, on a runtime of its own: the program may have
    /// several, and end the one on which the directory was opened first.
    fn serve(socket: &Path, server: &Server) -> io::Result<oneshot::Sender<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = {
            let _within = runtime.enter();
            listen_unix(socket)?
        };
        let (accepting, end) = oneshot::channel::<()>();
        let server = server.clone();
        let run = async move {
            tokio::select! {
                () = serve_unix(listener, server.clone()) => {}
                _ = end => {}
            }
            let _ = timeout(DRAIN_WITHIN, server.drained()).await;
        };
        std::thread::Builder::new()
            .name("trunkline-serve".to_owned())
            .spawn(move || runtime.block_on(run))?;
        Ok(accepting)
    }

    impl Serving {
        async fn close(&self) {
            self.stop();
            // Whoever is not gone by then finds out by the end of the connection.
            let _ = timeout(DRAIN_WITHIN, self.server.drained()).await;
            self.engine.close().await;
        }

        fn stop(&self) {
            self.server.close();
            self.accepting.lock().take();
        }
    }

    impl Drop for Serving {
        fn drop(&mut self) {
            self.stop();
        }
    }

    /// The engine of a directory that another process has.
    #[derive(Debug)]
    struct Attached {
        engine: RemoteEngine,
        door: Arc<Door>,
    }

    /// The way to whoever has the directory.
    #[derive(Debug)]
    struct Door {
        options: LogOptions,
        place: String,
        socket: PathBuf,
        clock: Arc<dyn Clock>,
        /// Since when nobody answers.
        unanswered: Mutex<Option<Instant>>,
        /// What this process took over, when nobody had it.
        owner: Mutex<Option<Arc<Owner>>>,
        /// Taking over, which may last longer than a dial waits.
        opening: tokio::sync::Mutex<Option<JoinHandle<Result<Owner>>>>,
        /// When to take it over.
        patience: Duration,
    }

    impl Attached {
        async fn new(
            options: LogOptions,
            clock: &Arc<dyn Clock>,
            link: LinkOptions,
            in_use: Error,
        ) -> Result<Self> {
            let door = Arc::new(Door {
                place: format!("file:{}", options.dir.display()),
                socket: LogEngine::socket(&options)?,
                options,
                clock: Arc::clone(clock),
                unanswered: Mutex::default(),
                owner: Mutex::default(),
                opening: tokio::sync::Mutex::default(),
                patience: COMES_BACK_WITHIN,
            });
            let link = LinkOptions {
                reconnect_wait: link.reconnect_wait.min(LOOK_EVERY),
                ..link
            };
            let dial = Arc::clone(&door) as Arc<dyn Dial>;
            let connected = RemoteEngine::connect_by(dial, link, Arc::clone(clock)).await;
            match connected {
                Ok(engine) => {
                    let attached = Self { engine, door };
                    if let Some(found) = SyncPolicy::told(&attached.facts())
                        && let Err(error) = attached.door.options.check_sync(found)
                    {
                        attached.close().await;
                        return Err(error);
                    }
                    Ok(attached)
                }
                // It is there and serves nobody; who it is helps more than that it does not answer.
                Err(error) if error.kind() == ErrorKind::Disconnected => {
                    Err(in_use.caused_by(error))
                }
                Err(error) => Err(error),
            }
        }
    }

    impl Door {
        async fn connect(&self) -> Result<Socket> {
            let error = match connect_unix(&self.socket).await {
                Ok(socket) => {
                    *self.unanswered.lock() = None;
                    return Ok(socket);
                }
                Err(error) => error,
            };
            let nobody = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
            if error.kind() == io::ErrorKind::PermissionDenied {
                return Err(Error::new(
                    ErrorKind::NotPermitted,
                    format!("{} is of another user", self.socket.display()),
                )
                .caused_by(error));
            }
            // A directory that is gone is not made anew: it may be a volume that is not mounted.
            let is_there = || self.socket.with_file_name("FORMAT").exists();
            if nobody.contains(&error.kind()) && self.is_given_up() && is_there() {
                self.take_over().await?;
                let socket = connect_unix(&self.socket).await;
                return socket.map_err(|error| self.silent(error));
            }
            Err(self.silent(error))
        }

        fn silent(&self, error: io::Error) -> Error {
            Error::new(
                ErrorKind::Disconnected,
                format!("no process that has {} answers", self.place),
            )
            .caused_by(error)
        }

        /// Whether nobody has answered for so long that nobody is expected to.
        fn is_given_up(&self) -> bool {
            let mut unanswered = self.unanswered.lock();
            unanswered.get_or_insert_with(Instant::now).elapsed() >= self.patience
        }

        /// Opens the directory, or waits for an opening that an earlier dial had no time for.
        async fn opened(&self) -> Result<Owner> {
            let mut opening = self.opening.lock().await;
            let opened = opening.get_or_insert_with(|| {
                let (options, clock) = (self.options.clone(), Arc::clone(&self.clock));
                tokio::spawn(async move { Owner::new(&options, &clock).await })
            });
            let opened = opened.await;
            *opening = None;
            opened.map_err(|error| {
                Error::new(ErrorKind::Internal, "opening the directory ended early")
                    .caused_by(error)
            })?
        }

        async fn take_over(&self) -> Result<()> {
            let owner = match self.opened().await {
                Ok(owner) => owner,
                Err(error) if error.kind() == ErrorKind::InUse => {
                    // Somebody has it and will answer, once it is open.
                    *self.unanswered.lock() = None;
                    return Err(Error::new(
                        ErrorKind::Disconnected,
                        format!(
                            "another process has {} and does not answer yet; if that stays so, its socket {} is gone: start it again",
                            self.place,
                            self.socket.display()
                        ),
                    )
                    .caused_by(error));
                }
                Err(error) => {
                    // Opening is dear, and keeps the directory from whoever is to repair it.
                    *self.unanswered.lock() = None;
                    return Err(error);
                }
            };
            tracing::info!(
                place = self.place,
                "nobody had the directory any more; this process has it now and serves the others"
            );
            *self.unanswered.lock() = None;
            *self.owner.lock() = Some(Arc::new(owner));
            Ok(())
        }
    }

    impl Dial for Door {
        fn dial(&self) -> Boxed<'_, Result<Socket>> {
            Box::pin(self.connect())
        }

        fn place(&self) -> &str {
            &self.place
        }
    }

    /// Everything but what is said of it goes to another engine.
    macro_rules! groups_of {
        ($inner:ident) => {
            fn name(&self) -> &'static str {
                "file"
            }

            fn limits(&self) -> Limits {
                self.$inner.limits()
            }

            fn capabilities(&self) -> Capabilities {
                Capabilities {
                    reach: Reach::Host,
                    ..self.$inner.capabilities()
                }
            }

            fn link(&self) -> watch::Receiver<Link> {
                self.$inner.link()
            }

            fn live(&self) -> &dyn Live {
                self.$inner.live()
            }

            fn log(&self) -> &dyn Log {
                self.$inner.log()
            }

            fn consume(&self) -> &dyn Consume {
                self.$inner.consume()
            }

            fn state(&self) -> &dyn State {
                self.$inner.state()
            }

            fn topology(&self) -> &dyn Topology {
                self.$inner.topology()
            }

            fn gauges(&self) -> Option<&dyn Gauges> {
                self.$inner.gauges()
            }
        };
    }

    impl Engine for Owner {
        groups_of!(engine);

        fn facts(&self) -> Vec<Fact> {
            self.engine.facts()
        }

        fn close(&self) -> Boxed<'_, ()> {
            Box::pin(self.close_gently())
        }
    }

    impl Engine for Attached {
        groups_of!(engine);

        fn facts(&self) -> Vec<Fact> {
            // What is behind the connection is this engine too, in another process.
            let is_own = |fact: &Fact| !matches!(fact.name.as_str(), "url" | "bus");
            let facts = self.engine.facts().into_iter().filter(is_own);
            let inner = facts.map(|fact| Fact {
                name: fact.name.strip_prefix("bus ").unwrap_or(&fact.name).into(),
                ..fact
            });
            // Until this process has taken the owner's place.
            let is_attached = self.door.owner.lock().is_none();
            let attached = || Fact::new("attached", "another process has the directory");
            inner.chain(is_attached.then(attached)).collect()
        }

        fn close(&self) -> Boxed<'_, ()> {
            Box::pin(async {
                self.engine.close().await;
                let owner = self.door.owner.lock().take();
                if let Some(owner) = owner {
                    owner.close_gently().await;
                }
                let opening = self.door.opening.lock().await.take();
                if let Some(Ok(Ok(owner))) = async { Some(opening?.await) }.await {
                    owner.close_gently().await;
                }
            })
        }
    }
}
