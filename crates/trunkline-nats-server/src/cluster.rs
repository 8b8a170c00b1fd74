//! Several servers that are one.

use std::time::Duration;

use crate::config::Routes;
use crate::error::{Error, ErrorKind};
use crate::find::Binary;
use crate::monitor::{self, Meta};
use crate::options::ServerOptions;
use crate::ports;
use crate::server::{NatsServer, until};

/// How long the servers may take to find each other and to agree on a leader.
const LEADER_DEADLINE: Duration = Duration::from_secs(30);

/// How often other ports are tried for the routes.
const PORT_ATTEMPTS: u32 = 5;

/// Servers with JetStream and routes to each other, on loopback.
#[derive(Debug)]
pub struct Cluster {
    servers: Vec<NatsServer>,
}

impl Cluster {
    /// Starts so many servers and waits until they have agreed on a leader. Their names are `n1`,
    /// `n2` and so on, after the name of the options if they have one; a folder of the options gets
    /// one of that name below it for each.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for less than two servers, for a fixed port and without JetStream,
    /// [`ErrorKind::TimedOut`] when there is no leader within 30 s, and those of
    /// [`NatsServer::start`].
    #[expect(
        clippy::needless_pass_by_value,
        reason = "as `NatsServer::start` takes them, so that a test can put one for the other"
    )]
    pub fn start(binary: &Binary, n: usize, options: ServerOptions) -> Result<Self, Error> {
        if n < 2 || options.port != 0 || !options.jetstream {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "a cluster has two servers or more, JetStream and random ports, not {n} servers with {options:?}"
                ),
            ));
        }
        let mut attempt = 1;
        let cluster = loop {
            match Self::servers_of(binary, n, &options) {
                Err(error) if error.kind() == ErrorKind::PortInUse && attempt < PORT_ATTEMPTS => {
                    attempt += 1;
                }
                outcome => break outcome?,
            }
        };
        cluster.wait_for_leader()?;
        Ok(cluster)
    }

    fn servers_of(binary: &Binary, n: usize, options: &ServerOptions) -> Result<Self, Error> {
        // All must know all from the start: the number of routes is the number of votes.
        let mut all: Vec<u16> = Vec::with_capacity(n);
        while all.len() < n {
            let port = ports::candidate();
            if !all.contains(&port) {
                all.push(port);
            }
        }
        let prefix = options.name.as_ref().map(|name| format!("{name}-"));
        let prefix = prefix.unwrap_or_default();
        let server = |(index, &own): (usize, &u16)| {
            let name = format!("{prefix}n{}", index + 1);
            let routes = Routes {
                cluster: format!("{prefix}cluster"),
                own,
                all: all.clone(),
            };
            let options = ServerOptions {
                dir: options.dir.as_ref().map(|dir| dir.join(&name)),
                store_dir: options.store_dir.as_ref().map(|dir| dir.join(&name)),
                name: Some(name),
                monitor: true,
                ..options.clone()
            };
            NatsServer::start_in(binary, options, Some(&routes))
        };
        let servers = all
            .iter()
            .enumerate()
            .map(server)
            .collect::<Result<_, _>>()?;
        Ok(Self { servers })
    }

    /// The servers, in the order of their names.
    pub fn servers(&self) -> &[NatsServer] {
        &self.servers
    }

    /// The servers, to be killed and restarted.
    pub fn servers_mut(&mut self) -> &mut [NatsServer] {
        &mut self.servers
    }

    /// The URLs of all servers, with commas between them.
    pub fn url(&self) -> String {
        let urls: Vec<String> = self.servers.iter().map(NatsServer::url).collect();
        urls.join(",")
    }

    /// The place of the server that leads JetStream's own state, if most servers see it and it answers
    /// itself.
    pub fn meta_leader(&self) -> Option<usize> {
        let views: Vec<View> = self.servers.iter().map(view).collect();
        leader(&self.servers, &views)
    }

    /// Waits until all servers that answer see the same leader, it is one of them, they are the most,
    /// and have what it has: at the start, and again after one was killed or restarted.
    ///
    /// A server whose log is still empty has no vote that counts (it could have lost its disk), so a
    /// leader that dies before the others have its first entry leaves a cluster that elects none.
    ///
    /// # Errors
    /// [`ErrorKind::TimedOut`] after 30 s, with the end of each log.
    pub fn wait_for_leader(&self) -> Result<(), Error> {
        let agreed = || {
            let views: Vec<View> = self.servers.iter().map(view).collect();
            let leader = leader(&self.servers, &views)?;
            let name = self.servers[leader].name()?;
            let same = |view: &View| match view {
                View::Silent => true,
                View::Leaderless => false,
                View::Led(meta) => {
                    meta.leader == name && usize::try_from(meta.size) == Ok(self.servers.len())
                }
            };
            let answer = views.iter().filter(|view| matches!(view, View::Led(_)));
            let current = match &views[leader] {
                View::Led(meta) => meta.current + 1 >= answer.count(),
                View::Silent | View::Leaderless => false,
            };
            (current && views.iter().all(same)).then_some(())
        };
        until(LEADER_DEADLINE, agreed).ok_or_else(|| self.leaderless())
    }

    fn leaderless(&self) -> Error {
        let tail = |server: &NatsServer| {
            let name = server.name().unwrap_or_default();
            format!("{name}:\n{}", server.log_tail(6))
        };
        let logs: Vec<String> = self.servers.iter().map(tail).collect();
        Error::new(
            ErrorKind::TimedOut,
            format!(
                "{} servers have agreed on no leader within {} s; the ends of their logs:\n{}",
                self.servers.len(),
                LEADER_DEADLINE.as_secs(),
                logs.join("\n")
            ),
        )
    }
}

/// What a server says of the leader.
enum View {
    /// It does not answer.
    Silent,
    /// It knows none.
    Leaderless,
    /// It knows one.
    Led(Meta),
}

fn view(server: &NatsServer) -> View {
    match server.monitor_port() {
        Some(port) if monitor::accepts(port) => {
            monitor::meta(port).map_or(View::Leaderless, View::Led)
        }
        _ => View::Silent,
    }
}

/// The server that most see as leader and that answers itself: the others go on naming one that was
/// killed until they have elected another.
fn leader(servers: &[NatsServer], views: &[View]) -> Option<usize> {
    servers.iter().position(|server| {
        let votes = views.iter().filter(
            |view| matches!(view, View::Led(meta) if Some(meta.leader.as_str()) == server.name()),
        );
        let own = server.monitor_port().is_some_and(monitor::accepts);
        own && votes.count() * 2 > servers.len()
    })
}
