//! What workers and publishers have in common: who they are, their bus, and how they publish.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Stdin};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;
use trunkline::core::engine::{Engine, LinkOptions};
use trunkline::{Bus, ErrorKind, EventId};

use crate::event::{self, Note, Step};
use crate::record::{Consumer, Lines, PUBLISHED, Publishing, Role, Told, Who, now};

/// So many operations of each kind every client does when all is well again.
pub(crate) const AFTER_EVENTS: u32 = 5;
/// What the runner writes to make them do so.
pub(crate) const AFTER_COMMAND: &str = "after";
/// What the runner writes to end publishing.
pub(crate) const STOP_COMMAND: &str = "stop";

/// Between two attempts at the same thing.
const AGAIN: Duration = Duration::from_millis(150);

/// The arguments of a process of a run; the runner writes them.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Process {
    #[arg(long)]
    pub(crate) dir: PathBuf,
    #[arg(long)]
    pub(crate) role: Role,
    #[arg(long)]
    pub(crate) slot: u32,
    #[arg(long)]
    pub(crate) life: u32,
    #[arg(long)]
    pub(crate) seed: u64,
    #[arg(long)]
    pub(crate) url: String,
}

impl Process {
    pub(crate) fn who(&self) -> Who {
        Who {
            role: self.role,
            slot: self.slot,
            life: self.life,
        }
    }

    /// Connects, for as long as it takes.
    ///
    /// # Errors
    /// One that no second attempt will mend.
    pub(crate) async fn connect(&self) -> trunkline::Result<Bus> {
        loop {
            let connecting = Bus::connect(&self.url)
                .source(format!("/chaos/{}", self.who().client()))
                .event::<Step>()
                .event::<Note>()
                .link(patient());
            match connecting.await {
                Ok(bus) => {
                    let engine = Arc::downgrade(bus.engine());
                    tokio::spawn(tell_that_it_serves(engine, self.clone()));
                    return Ok(bus);
                }
                Err(error) if is_passing(&error) => {
                    tracing_note(&format!("connecting again: {error}"));
                    sleep(AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Writes down that this process is the server of the others, once it is. It becomes so when it opens the
/// directory, or later, while the owner is away.
async fn tell_that_it_serves(engine: Weak<dyn Engine>, process: Process) {
    let serves = |engine: Arc<dyn Engine>| {
        engine.name() == "file" && engine.facts().iter().all(|fact| fact.name != "attached")
    };
    loop {
        match engine.upgrade().map(serves) {
            None => return,
            Some(true) => break,
            Some(false) => sleep(AGAIN).await,
        }
    }
    match Lines::open(&process.dir.join(PUBLISHED)) {
        Ok(lines) => lines.write(&Told {
            at: now(),
            who: process.who(),
            what: Publishing::Serves,
        }),
        Err(error) => tracing_note(&format!("cannot write that it serves: {error}")),
    }
}

/// Impatient about reconnecting, so that a short run has time for many faults.
pub(crate) fn patient() -> LinkOptions {
    LinkOptions {
        connect_timeout: Duration::from_secs(3),
        first_connect: Some(Duration::from_secs(20)),
        reconnect_wait: Duration::from_millis(200),
        ..LinkOptions::default()
    }
}

/// Whether it may well work another time. What many make at once is found differing, or in use, once.
pub(crate) fn is_passing(error: &trunkline::Error) -> bool {
    error.retryable()
        || matches!(
            error.kind(),
            ErrorKind::BehindFailed | ErrorKind::Conflict | ErrorKind::InUse
        )
}

#[expect(clippy::print_stderr, reason = "it is the log of a process of a run")]
pub(crate) fn tracing_note(text: &str) {
    eprintln!("{text}");
}

/// Publishes, and writes down what it was told.
#[derive(Debug)]
pub(crate) struct Voice {
    pub(crate) bus: Bus,
    who: Who,
    lines: Lines,
}

impl Voice {
    pub(crate) fn new(bus: Bus, process: &Process) -> std::io::Result<Self> {
        Ok(Self {
            bus,
            who: process.who(),
            lines: Lines::open(&process.dir.join(PUBLISHED))?,
        })
    }

    pub(crate) fn tell(&self, what: Publishing) {
        self.lines.write(&Told {
            at: now(),
            who: self.who,
            what,
        });
    }

    /// Publishes it again and again under the same id, until the bus says what became of it.
    pub(crate) async fn publish(&self, lane: &str, n: u32) {
        let id = event::id(lane, n);
        self.tell(Publishing::Ask { id: id.clone() });
        let lane = lane.to_owned();
        loop {
            let outcome = match EventId::new(id.as_str()) {
                Err(error) => Err(error),
                Ok(event_id) => match event::consumer_of(&lane) {
                    Consumer::Ordered => {
                        let event = Step {
                            lane: lane.clone(),
                            n,
                        };
                        self.bus.publish(event).id(event_id).await
                    }
                    Consumer::Shared => {
                        let event = Note {
                            lane: lane.clone(),
                            n,
                        };
                        self.bus.publish(event).id(event_id).await
                    }
                },
            };
            match outcome {
                Ok(receipt) => {
                    let seq = receipt.seq;
                    return self.tell(Publishing::Ack { id, seq });
                }
                Err(error) if is_passing(&error) => sleep(AGAIN).await,
                Err(error) => {
                    let why = error.to_string();
                    return self.tell(Publishing::Refused { id, why });
                }
            }
        }
    }

    /// What every client does when all is well again: each event has a lane of its own, so that every
    /// partition gets some.
    pub(crate) async fn after(&self, round: u32) {
        let client = format!(
            "{}.{}.{}.{round}",
            crate::script::AFTER,
            self.who.client(),
            self.who.life
        );
        for number in 0..AFTER_EVENTS {
            for consumer in [Consumer::Ordered, Consumer::Shared] {
                self.publish(&event::lane(consumer, &client, number), 0)
                    .await;
            }
        }
        self.tell(Publishing::After {
            events: 2 * AFTER_EVENTS,
        });
    }
}

/// What a process is told: lines on its standard input, whose end is the end of its runner, and SIGTERM.
#[derive(Debug)]
pub(crate) struct Orders {
    lines: tokio::io::Lines<BufReader<Stdin>>,
    terminate: Signal,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Command(String),
    Terminate,
    /// Nobody is there any more who would want to know.
    Orphaned,
}

impl Orders {
    /// # Errors
    /// When signals cannot be had.
    pub(crate) fn listen() -> std::io::Result<Self> {
        Ok(Self {
            lines: BufReader::new(tokio::io::stdin()).lines(),
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The next one. Cancelling it loses none.
    pub(crate) async fn next(&mut self) -> Order {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Order::Terminate,
            line = self.lines.next_line() => match line {
                Ok(Some(command)) => Order::Command(command),
                Ok(None) | Err(_) => Order::Orphaned,
            },
        }
    }
}
