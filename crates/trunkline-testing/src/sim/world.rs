//! The world: its time, its hosts, and whatever falls due.

mod packets;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use trunkline::core::engine::{Boxed, Credit, Engine, Entry, Link, LinkOptions, StateKey};
use trunkline::{Name, Result, Timestamp};
use trunkline_memory::{MemoryEngine, MemoryOptions};

use super::faults::Faults;
use super::host::{Birth, Host, HostClock, Process, Program, Running, Standing};
use super::hub::{Hub, Line, Packet};
use super::net::SimNet;
use super::site::Site;

/// One of a world's hosts.
pub type HostId = usize;

/// When every world begins: 2026-01-01T00:00:00Z.
const BEGINNING: Timestamp = Timestamp::from_nanos(1_767_225_600_000_000_000);
/// How long a host runs before others do, at least and at most.
const SLICE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(40));
/// Where consumers keep their records.
const BUCKET: &str = "trunkline";
/// How soon what has arrived is looked at.
const AT_ONCE: Duration = Duration::from_millis(1);

/// A world of simulated processes over one engine.
pub struct World {
    hub: Arc<Hub>,
    site: Arc<Site>,
    server: Running,
    server_tick: Duration,
    hosts: Vec<Host>,
    now: Duration,
    due: BinaryHeap<Reverse<Due>>,
    order: u64,
    faults: Faults,
    patience: LinkOptions,
    lanes: Lanes,
    /// Packets that never arrive; who waits for them learns it when the connection breaks.
    lost: Vec<Packet>,
    is_out: bool,
    lives: Vec<Life>,
    /// Processes that have ended. A runtime drops its tasks in an order that depends on what else this
    /// program does, and others would notice; so they are dropped with the world.
    over: Vec<Running>,
}

/// A process from its start to its end.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    pub(crate) host: HostId,
    pub(crate) life: u32,
    pub(crate) end: Option<(Duration, End)>,
    pub(crate) frozen: Vec<(Duration, Duration)>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Killed,
    /// It was told to.
    Stopped,
    /// By itself.
    Exited,
}

struct Due {
    at: Duration,
    /// Keeps equal times apart, in the order in which they were made.
    order: u64,
    what: What,
}

enum What {
    Packet(Packet),
    Tick(HostId),
    ServerTick,
    Do(Box<dyn FnOnce(&mut World) + Send>),
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// When the last packet of each lane arrives.
type Lanes = BTreeMap<u64, Duration>;

impl World {
    /// A world without processes, with an engine in memory. What happens in it is a function of
    /// `seed`, as long as its thread does nothing else.
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self::with_trace(seed, faults, false)
    }

    /// As [`new`](Self::new), with a trace of what happens, for people.
    pub(crate) fn with_trace(seed: u64, faults: Faults, is_verbose: bool) -> Self {
        trunkline::core::random::simulate(seed);
        let hub = Arc::new(Hub::new(seed, is_verbose));
        let birth = Birth {
            host: HostId::MAX,
            life: 0,
            name: "server".to_owned(),
            at: Duration::ZERO,
            rate: 1.0,
            link: Link::Connected,
            patience: LinkOptions::default(),
        };
        let server = Running::new(birth, &hub);
        let engine = {
            let _entered = server.runtime.enter();
            let clock = HostClock {
                base: BEGINNING,
                start: tokio::time::Instant::now(),
            };
            let options = MemoryOptions {
                encode: true,
                ..MemoryOptions::default()
            };
            MemoryEngine::connect(options, Arc::new(clock)).expect("an engine in memory")
        };
        let site = Site::new(Arc::new(engine), Arc::clone(&server.port), faults.clone());
        let patience = LinkOptions {
            request_timeout: hub.between(Duration::from_secs(1), Duration::from_secs(5)),
            publish_timeout: hub.between(Duration::from_secs(2), Duration::from_secs(10)),
            ..LinkOptions::default()
        };
        let mut world = Self {
            site: Arc::new(site),
            hub,
            server,
            server_tick: Duration::ZERO,
            hosts: Vec::new(),
            now: Duration::ZERO,
            due: BinaryHeap::new(),
            order: 0,
            faults,
            patience,
            lanes: Lanes::new(),
            lost: Vec::new(),
            is_out: false,
            lives: Vec::new(),
            over: Vec::new(),
        };
        world.wake_server(Duration::ZERO);
        world
    }

    /// Adds a host whose process runs `program`. It is started by [`start`](Self::start).
    pub fn host<F>(&mut self, name: &str, program: F) -> HostId
    where
        F: Fn(Process) -> Boxed<'static, ()> + Send + Sync + 'static,
    {
        self.hosts.push(Host {
            name: name.to_owned(),
            program: Arc::new(program) as Program,
            standing: Standing::Down,
            is_wanted: false,
            lives: 0,
            running: None,
            mail: Vec::new(),
            held: Vec::new(),
            tick: None,
            is_cut: false,
        });
        self.hosts.len() - 1
    }

    /// How long the world has been there.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// A number that another run has too if and only if the same happened in it.
    pub fn fingerprint(&self) -> u64 {
        self.hub.fingerprint()
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    pub(crate) fn lives(&self) -> &[Life] {
        &self.lives
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        self.hub.lines()
    }

    pub(crate) fn standing(&self, host: HostId) -> Standing {
        self.hosts[host].standing
    }

    /// Does something later.
    pub(crate) fn after(&mut self, wait: Duration, what: impl FnOnce(&mut World) + Send + 'static) {
        self.push(self.now + wait, What::Do(Box::new(what)));
    }

    /// Asks the server's engine directly: no packet, nothing goes wrong.
    pub(crate) fn at_server<T>(
        &self,
        ask: impl FnOnce(Arc<dyn Engine>) -> Boxed<'static, Result<T>>,
    ) -> Result<T> {
        self.server
            .runtime
            .block_on(ask(Arc::clone(&self.site.engine)))
    }

    /// The keys of the bucket of consumers below that prefix, or all, as the server knows them.
    pub(crate) fn records(&self, prefix: Option<&str>) -> Result<Vec<Entry>> {
        let bucket = Name::new(BUCKET)?;
        let prefix = prefix.map(StateKey::new).transpose()?;
        let page = self.at_server(move |engine| {
            Box::pin(async move {
                let (state, all) = (engine.state(), Credit::items(100_000));
                state.scan(&bucket, prefix.as_ref(), None, 0, all).await
            })
        })?;
        Ok(page.entries)
    }

    /// Starts a process on a host that has none, and again whenever it ends, until the host is
    /// told to stop.
    pub fn start(&mut self, id: HostId) {
        self.hosts[id].is_wanted = true;
        if self.hosts[id].running.is_some() {
            return;
        }
        let drift = 1.0 + self.faults.drift * self.hub.spread();
        let host = &mut self.hosts[id];
        host.lives += 1;
        host.standing = Standing::Runs;
        let link = match host.is_cut || self.is_out {
            true => self.broken_link(),
            false => Link::Connected,
        };
        let host = &mut self.hosts[id];
        let birth = Birth {
            host: id,
            life: host.lives,
            name: host.name.clone(),
            at: self.now,
            rate: drift,
            link,
            patience: self.patience,
        };
        let (life, running) = (host.lives, Running::new(birth, &self.hub));
        self.lives.push(Life {
            host: id,
            life,
            end: None,
            frozen: Vec::new(),
        });
        let skew = self.hub.between(Duration::ZERO, Duration::from_secs(4));
        {
            let _entered = running.runtime.enter();
            let clock = HostClock {
                base: BEGINNING.plus(self.now).plus(skew),
                start: tokio::time::Instant::now(),
            };
            let port = Arc::clone(&running.port);
            port.note(3, || format!("starts, life {life}"));
            let engine = Arc::new(SimNet::new(Arc::clone(&port)));
            let process = Process::new(Arc::clone(&port), engine, Arc::new(clock));
            let program = (host.program)(process);
            running.runtime.spawn(async move {
                program.await;
                port.ended.happen();
            });
        }
        host.running = Some(running);
        self.wake(id, self.now + AT_ONCE);
    }

    /// Kills a host's process; it is started again some time later if the host is wanted.
    pub fn kill(&mut self, id: HostId) {
        self.end(id, End::Killed);
    }

    /// Tells a host's process to end, and starts no other.
    pub fn stop(&mut self, id: HostId) {
        let now = self.now;
        let host = &mut self.hosts[id];
        host.is_wanted = false;
        if let Some(running) = &host.running {
            self.hub
                .note(now, &host.name, 4, || "is told to stop".to_owned());
            running.port.stop.happen();
            self.wake(id, now + AT_ONCE);
        }
    }

    /// Stops a host's process where it stands; its clock goes on.
    pub fn freeze(&mut self, id: HostId) {
        if self.hosts[id].standing != Standing::Runs {
            return;
        }
        self.run(id);
        let (now, host) = (self.now, &mut self.hosts[id]);
        if host.standing == Standing::Runs {
            self.hub
                .note(now, &host.name, 5, || "stands still".to_owned());
            host.standing = Standing::Frozen(now);
        }
    }

    /// Lets a process go on that stood still.
    pub fn thaw(&mut self, id: HostId) {
        let Standing::Frozen(since) = self.hosts[id].standing else {
            return;
        };
        let now = self.now;
        // Which of the two it sees first, the time that has passed or what came meanwhile.
        let mail_first = self.hub.chance(0.5);
        let host = &mut self.hosts[id];
        self.hub.note(now, &host.name, 6, || "goes on".to_owned());
        host.standing = Standing::Runs;
        let mail = std::mem::take(&mut host.mail);
        let current = host.lives;
        if let Some(life) = self
            .lives
            .iter_mut()
            .rfind(|life| life.host == id && life.life == current)
        {
            life.frozen.push((since, now));
        }
        let catch_up = |world: &mut Self| {
            if let Some(running) = &world.hosts[id].running {
                running.catch_up(now);
            }
            world.collect();
            world.look_after(id);
        };
        if !mail_first {
            catch_up(self);
        }
        // It is there already, whatever has become of the connection.
        for packet in mail {
            self.deliver(packet);
        }
        if mail_first {
            catch_up(self);
        }
        self.wake(id, now + AT_ONCE);
    }

    /// Takes a host's connection away.
    pub fn cut(&mut self, id: HostId) {
        self.hosts[id].is_cut = true;
        self.break_link(id);
    }

    /// Gives it back.
    pub fn mend(&mut self, id: HostId) {
        self.hosts[id].is_cut = false;
        if !self.is_out {
            self.mend_link(id);
        }
    }

    /// Takes the server away from everybody, or gives it back.
    pub fn outage(&mut self, is_out: bool) {
        self.hub.note(self.now, "server", 7, || match is_out {
            true => "is away".to_owned(),
            false => "is back".to_owned(),
        });
        self.is_out = is_out;
        for id in 0..self.hosts.len() {
            match is_out {
                true => self.break_link(id),
                false if self.hosts[id].is_cut => {}
                false => self.mend_link(id),
            }
        }
    }

    /// Ends everything that is wrong, and starts what is wanted.
    pub fn heal(&mut self) {
        self.hub
            .note(self.now, "world", 8, || "everything is well".to_owned());
        self.faults = Faults {
            latency: self.faults.latency,
            drift: self.faults.drift,
            ..Faults::none()
        };
        *self.site.faults.lock() = self.faults.clone();
        if self.is_out {
            self.outage(false);
        }
        for id in 0..self.hosts.len() {
            self.mend(id);
            self.thaw(id);
        }
    }

    /// Lets the world go on for that long.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.due.peek().is_some_and(|Reverse(due)| due.at <= end)
            && let Some(Reverse(due)) = self.due.pop()
        {
            self.now = self.now.max(due.at);
            match due.what {
                What::Packet(packet) => self.arrive(packet),
                What::Tick(id) if self.hosts[id].tick == Some(due.at) => {
                    self.hosts[id].tick = None;
                    self.run(id);
                    let (low, high) = SLICE;
                    let next = self.now + self.hub.between(low, high);
                    self.wake(id, next);
                }
                What::ServerTick if self.server_tick == due.at => {
                    self.run_server();
                    let next = self.now + self.hub.between(SLICE.1, 2 * SLICE.1);
                    self.server_tick = next;
                    self.push(next, What::ServerTick);
                }
                // Another took its place.
                What::Tick(_) | What::ServerTick => {}
                What::Do(what) => what(self),
            }
        }
        self.now = end;
    }

    fn push(&mut self, at: Duration, what: What) {
        self.order += 1;
        let order = self.order;
        self.due.push(Reverse(Due { at, order, what }));
    }

    /// Lets a host run at that time at the latest.
    fn wake(&mut self, id: HostId, at: Duration) {
        let host = &mut self.hosts[id];
        if host.standing == Standing::Runs && host.tick.is_none_or(|tick| at < tick) {
            host.tick = Some(at);
            self.push(at, What::Tick(id));
        }
    }

    fn wake_server(&mut self, at: Duration) {
        if self.server_tick <= self.now || at < self.server_tick {
            self.server_tick = at;
            self.push(at, What::ServerTick);
        }
    }

    /// Lets a host run until now.
    fn run(&mut self, id: HostId) {
        let host = &self.hosts[id];
        if host.standing != Standing::Runs {
            return;
        }
        if let Some(running) = &host.running {
            running.run_to(self.now);
        }
        self.collect();
        self.look_after(id);
    }

    fn run_server(&mut self) {
        self.server.run_to(self.now);
        self.collect();
    }

    /// Buries a process that died or ended.
    fn look_after(&mut self, id: HostId) {
        let Some(running) = &self.hosts[id].running else {
            return;
        };
        if running.port.is_dead() {
            self.end(id, End::Killed);
        } else if running.port.ended.has_happened() {
            let end = match running.port.stop.has_happened() {
                true => End::Stopped,
                false => End::Exited,
            };
            self.end(id, end);
        }
    }

    fn end(&mut self, id: HostId, end: End) {
        let (now, host) = (self.now, &mut self.hosts[id]);
        let Some(running) = host.running.take() else {
            return;
        };
        self.hub
            .note(now, &host.name, 9, || format!("ends: {end:?}"));
        running.port.die();
        self.over.push(running);
        host.standing = Standing::Down;
        host.tick = None;
        host.mail.clear();
        let (is_wanted, current) = (host.is_wanted, host.lives);
        if let Some(life) = self
            .lives
            .iter_mut()
            .rfind(|life| life.host == id && life.life == current)
        {
            life.end = Some((now, end));
        }
        if is_wanted {
            let pause = self
                .hub
                .between(Duration::from_millis(100), Duration::from_secs(3));
            self.after(pause, move |world| {
                if world.hosts[id].is_wanted {
                    world.start(id);
                }
            });
        }
    }

    fn broken_link(&self) -> Link {
        Link::Disconnected {
            since: BEGINNING.plus(self.now),
            reason: "the simulated network is cut".to_owned(),
        }
    }

    fn break_link(&mut self, id: HostId) {
        let link = self.broken_link();
        let Some(running) = &self.hosts[id].running else {
            return;
        };
        if !running.port.is_connected() {
            return;
        }
        self.hub.note(self.now, &self.hosts[id].name, 10, || {
            "loses its connection".to_owned()
        });
        running.port.set_link(&link);
        // Whoever waited for one of these is told that nobody knows what became of it.
        self.lost.retain(|packet| packet.host != id);
        self.wake(id, self.now + AT_ONCE);
    }

    fn mend_link(&mut self, id: HostId) {
        let held = std::mem::take(&mut self.hosts[id].held);
        self.connect_again(id);
        // At once: what comes behind them in their lanes may be due already.
        for packet in held {
            self.arrive(packet);
        }
    }

    fn connect_again(&mut self, id: HostId) {
        let Some(running) = &self.hosts[id].running else {
            return;
        };
        if running.port.is_connected() {
            return;
        }
        self.hub.note(self.now, &self.hosts[id].name, 11, || {
            "is connected again".to_owned()
        });
        running.port.mend_link();
        self.wake(id, self.now + AT_ONCE);
    }
}
