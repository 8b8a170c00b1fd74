//! The engine in another process beside the engine in this one: the same work, written once, over
//! two sorts of connection. What the ratio tells is the price of the connection.

mod publish;
mod receive;

use std::future::Future;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use trunkline::Bus;
use trunkline::core::Name;
use trunkline_gateway::{Door, DoorConfig, serve};

use crate::pair::{Contender, Pair, Result, Target};
use crate::runtime::Flavour;
use crate::stopwatch::Stopwatch;

/// Both sides: events are encoded, as they must be to leave a process.
const ENGINE: &str = "memory:?encode=always";
const ORDER: &str = "struct that is JSON of 256 B";
const TICK: &str = "struct of 256 B, encoded as JSON";
/// The engine keeps no promise beyond its own process, over whatever connection.
const STORED: &str = "stored in the server's memory, no disk";
const NONE: &str = "none (ephemeral)";

/// Work that one program does, or two with one another.
type Work = fn(&Ends, u64, &mut Stopwatch) -> Result<()>;

/// Every comparison of the group.
pub fn pairs() -> Vec<Pair> {
    let pair = |name: &str, payload, durability, window, near: u64, far: u64, work: Work| Pair {
        name: format!("remote {name}"),
        payload,
        durability,
        window,
        baseline: contender("in process", Place::InProcess, near, work),
        ours: Some(contender("over http", Place::OverHttp, far, work)),
        target: Target::NotSet,
    };
    vec![
        pair(
            "publish, one at a time",
            ORDER,
            STORED,
            "1 event in flight",
            200_000,
            20_000,
            publish::one_at_a_time,
        ),
        pair(
            "publish, 64 in flight",
            ORDER,
            STORED,
            "64 tasks, 1 event each",
            200_000,
            100_000,
            publish::in_flight,
        ),
        pair(
            "publish, batches of 1000",
            ORDER,
            STORED,
            "1 batch in flight",
            200_000,
            200_000,
            publish::batches,
        ),
        pair(
            "ping-pong",
            TICK,
            NONE,
            "1 event in flight; over http 2 clients, 4 hops a round trip",
            100_000,
            20_000,
            receive::ping_pong,
        ),
        pair(
            "consume with acks",
            ORDER,
            STORED,
            "one member as by default: 16 handlers at once; filled before the clock starts",
            100_000,
            100_000,
            receive::consume,
        ),
        pair(
            "replay, typed",
            ORDER,
            STORED,
            "one follower, 256 events a pull; filled before the clock starts",
            200_000,
            200_000,
            receive::replay,
        ),
        pair(
            "history, not decoded",
            ORDER,
            STORED,
            "one page of 256 events after the other; filled before the clock starts",
            200_000,
            200_000,
            receive::history,
        ),
    ]
}

fn contender(label: &'static str, place: Place, events: u64, work: Work) -> Contender {
    Contender::new(label, events, move || {
        let ends = Ends::open(place)?;
        Ok(move |events: u64, watch: &mut Stopwatch| work(&ends, events, watch))
    })
}

#[derive(Clone, Copy)]
enum Place {
    InProcess,
    /// Behind a door on a loopback port, served by a runtime of its own in this process, so that
    /// CPU time and memory are those of both ends.
    OverHttp,
}

/// Two programs' ends of one bus. Fields are dropped in this order: connections, then who serves.
struct Ends {
    one: Bus,
    /// Another connection where there are any, else the same bus.
    other: Bus,
    programs: Runtime,
    _server: Option<Runtime>,
}

impl Ends {
    fn open(place: Place) -> Result<Self> {
        let programs = Flavour::AcrossThreads.runtime()?;
        let connect = |url: String| programs.block_on(async { Bus::connect(url).await });
        match place {
            Place::InProcess => {
                let one = connect(ENGINE.to_owned())?;
                Ok(Self {
                    other: one.clone(),
                    one,
                    programs,
                    _server: None,
                })
            }
            Place::OverHttp => {
                let server = Flavour::AcrossThreads.runtime()?;
                let url = server.block_on(start_door())?;
                Ok(Self {
                    one: connect(url.clone())?,
                    other: connect(url)?,
                    programs,
                    _server: Some(server),
                })
            }
        }
    }

    /// Runs a program's work where its connection runs too, as an application would.
    fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.programs
            .block_on(async { self.programs.spawn(work).await? })
    }

    /// The sequence that the next event will have.
    fn tail(&self) -> Result<u64> {
        let streams = self.programs.block_on(self.one.inspect())?.streams;
        let events = Name::new("EVENTS")?;
        let stream = streams.iter().find(|state| state.spec.name == events);
        Ok(stream.ok_or("there is no stream EVENTS")?.tail)
    }
}

async fn start_door() -> Result<String> {
    let bus = Bus::connect(ENGINE).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let door = Door::new(bus, DoorConfig::default())?;
    tokio::spawn(serve(listener, door, std::future::pending()));
    Ok(url)
}
