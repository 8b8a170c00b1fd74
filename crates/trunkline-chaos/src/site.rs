//! The bus itself: a process of ours that owns a directory, a nats-server, or three.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use trunkline_nats_server::{Cluster, NatsServer, ServerOptions, obtain};

use crate::plan::On;

/// How long an owner may take until it listens, and until it has ended.
const OWNER_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) enum Site {
    File(Owner),
    Nats(Box<NatsServer>),
    Cluster(Box<Cluster>),
}

impl Site {
    /// Starts it; what it keeps goes below that folder, or into a temporary one of its own.
    ///
    /// # Errors
    /// In words, when there is no server to be had or none starts.
    pub(crate) fn start(on: On, program: &Path, dir: &Path) -> Result<Self, String> {
        let words = |error: trunkline_nats_server::Error| error.to_string();
        match on {
            On::File => Owner::start(program, dir).map(Site::File),
            On::Nats => {
                let options = ServerOptions {
                    // Without it a killed server may forget what it acknowledged.
                    sync_always: true,
                    ..ServerOptions::default()
                };
                let server = NatsServer::start(&obtain().map_err(words)?, options);
                Ok(Site::Nats(Box::new(server.map_err(words)?)))
            }
            On::Cluster => {
                let options = ServerOptions::default();
                let cluster = Cluster::start(&obtain().map_err(words)?, 3, options);
                Ok(Site::Cluster(Box::new(cluster.map_err(words)?)))
            }
        }
    }

    /// Where its servers listen.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        match self {
            Site::File(owner) => vec![owner.address],
            Site::Nats(server) => vec![local(server.port())],
            Site::Cluster(cluster) => {
                let servers = cluster.servers().iter();
                servers.map(|server| local(server.port())).collect()
            }
        }
    }

    /// The URL for clients that do not go through proxies.
    pub(crate) fn direct(&self) -> String {
        match self {
            Site::File(owner) => format!("file:{}", owner.data.display()),
            Site::Nats(_) | Site::Cluster(_) => self.through(&self.addresses()),
        }
    }

    /// The URL by these addresses.
    pub(crate) fn through(&self, addresses: &[SocketAddr]) -> String {
        let scheme = match self {
            Site::File(_) => "http",
            Site::Nats(_) | Site::Cluster(_) => "nats",
        };
        let urls: Vec<_> = addresses
            .iter()
            .map(|address| format!("{scheme}://{address}"))
            .collect();
        urls.join(",")
    }

    fn server(&mut self, node: usize) -> Option<&mut NatsServer> {
        match self {
            Site::File(_) => None,
            Site::Nats(server) => Some(server),
            Site::Cluster(cluster) => cluster.servers_mut().get_mut(node),
        }
    }

    /// One thing to one server, whatever it is.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn does(&mut self, act: Act, node: usize) -> Result<(), String> {
        if let Site::File(owner) = self {
            return owner.does(act);
        }
        let Some(server) = self.server(node) else {
            return Err(format!("there is no server {node}"));
        };
        let done = match act {
            Act::Kill => server.kill(),
            Act::Terminate => server.stop(),
            Act::Stop => server.pause(),
            Act::Resume => server.resume(),
            Act::LameDuck => server.lame_duck(),
            // One that still sends its clients away is not waited for.
            Act::Start => server.kill().and_then(|()| server.restart()),
        };
        done.map_err(|error| error.to_string())
    }
}

/// What can be done to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Kill,
    Terminate,
    Stop,
    Resume,
    LameDuck,
    Start,
}

/// A process that owns a directory and has a door, as `trunkline up`.
#[derive(Debug)]
pub(crate) struct Owner {
    program: PathBuf,
    data: PathBuf,
    log: PathBuf,
    address: SocketAddr,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// Its end is how the owner learns that we are gone.
    _stdin: Option<ChildStdin>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Owner {
    fn start(program: &Path, dir: &Path) -> Result<Self, String> {
        let mut owner = Self {
            program: program.to_owned(),
            data: dir.join("data"),
            log: dir.join("log").join("owner.log"),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            running: None,
        };
        owner.launch()?;
        Ok(owner)
    }

    fn launch(&mut self) -> Result<(), String> {
        let end = Instant::now() + OWNER_WITHIN;
        loop {
            let failed = |error: std::io::Error| format!("starting the owner: {error}");
            let log = File::options()
                .create(true)
                .append(true)
                .open(&self.log)
                .map_err(failed)?;
            let mut child = Command::new(&self.program)
                .arg("owner")
                .arg("--data")
                .arg(&self.data)
                .args(["--listen", &self.address.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(log)
                .spawn()
                .map_err(failed)?;
            let (stdout, stdin) = (child.stdout.take(), child.stdin.take());
            let running = Running {
                child,
                _stdin: stdin,
            };
            let (said, line) = mpsc::channel();
            thread::spawn(move || {
                let mut line = String::new();
                if let Some(stdout) = stdout {
                    let _ = BufReader::new(stdout).read_line(&mut line);
                }
                let _ = said.send(line);
            });
            let line = line
                .recv_timeout(end.saturating_duration_since(Instant::now()))
                .unwrap_or_default();
            match line.trim().parse() {
                Ok(address) => {
                    self.address = address;
                    self.running = Some(running);
                    return Ok(());
                }
                // Its log says why; a port or a directory may be free a moment later.
                Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(200)),
                Err(_) => {
                    return Err(format!(
                        "the owner does not listen; {} says why",
                        self.log.display()
                    ));
                }
            }
        }
    }

    fn does(&mut self, act: Act) -> Result<(), String> {
        let signal = |running: &Option<Running>, signal| {
            if let Some(running) = running {
                // One that has ended is not reaped yet, so the id is still its own.
                let _ = kill_process(Pid::from_child(&running.child), signal);
            }
        };
        match act {
            Act::Kill => self.running = None,
            Act::Stop => signal(&self.running, Signal::STOP),
            Act::Resume => signal(&self.running, Signal::CONT),
            Act::Terminate | Act::LameDuck => {
                signal(&self.running, Signal::TERM);
                let end = Instant::now() + OWNER_WITHIN;
                if let Some(running) = &mut self.running {
                    while matches!(running.child.try_wait(), Ok(None)) && Instant::now() < end {
                        thread::sleep(Duration::from_millis(10));
                    }
                }
                self.running = None;
            }
            Act::Start => {
                self.running = None;
                self.launch()?;
            }
        }
        Ok(())
    }
}
