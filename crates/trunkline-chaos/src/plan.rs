//! Which faults, when, and on whom: a pure function of the seed.

use std::fmt;

use crate::dice::Dice;

/// Workers that are there from the start.
pub(crate) const WORKERS: u32 = 3;
/// Workers that may join them.
pub(crate) const EXTRA: u32 = 2;
pub(crate) const PUBLISHERS: u32 = 2;

/// Nothing is wrong at first, so that there is work to be disturbed.
const QUIET_MS: u64 = 2_000;

/// What the bus is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum On {
    /// The embedded log, in a process that others attach to.
    File,
    /// One nats-server, which syncs each write.
    Nats,
    /// Three servers with three copies.
    Cluster,
}

impl On {
    pub(crate) fn name(self) -> &'static str {
        match self {
            On::File => "file",
            On::Nats => "nats",
            On::Cluster => "cluster",
        }
    }

    fn nodes(self) -> u64 {
        match self {
            On::File | On::Nats => 1,
            On::Cluster => 3,
        }
    }

    /// How long servers are left in peace after a fault of one: three of them need their majority back.
    fn rest_ms(self) -> u64 {
        match self {
            On::File | On::Nats => 2_500,
            On::Cluster => 10_000,
        }
    }
}

/// Something bad, and how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL; another takes its place after that long.
    KillWorker {
        slot: u32,
        ms: u64,
    },
    /// SIGTERM; another takes its place after that long.
    TermWorker {
        slot: u32,
        ms: u64,
    },
    /// SIGSTOP for that long.
    StopWorker {
        slot: u32,
        ms: u64,
    },
    /// One more, for that long.
    JoinWorker {
        slot: u32,
        ms: u64,
    },
    KillPublisher {
        slot: u32,
        ms: u64,
    },
    /// SIGKILL; it is started again after that long.
    KillServer {
        node: usize,
        ms: u64,
    },
    /// SIGTERM; it is started again after that long.
    RestartServer {
        node: usize,
        ms: u64,
    },
    /// SIGSTOP for that long.
    StopServer {
        node: usize,
        ms: u64,
    },
    /// It sends its clients away and ends; it is started again after that long.
    LameDuck {
        node: usize,
        ms: u64,
    },
    /// Every connection through a proxy breaks.
    Cut,
    /// Every packet through a proxy takes `delay_ms` longer, for that long.
    Slow {
        delay_ms: u64,
        ms: u64,
    },
    /// Nothing passes the proxies, for that long.
    Block {
        ms: u64,
    },
}

/// Whom a fault is of. One that has a fault gets no other until it is over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Worker(u32),
    Publisher(u32),
    Servers,
    Links,
}

impl Fault {
    /// How long it lasts.
    pub(crate) fn ms(self) -> u64 {
        match self {
            Fault::KillWorker { ms, .. }
            | Fault::TermWorker { ms, .. }
            | Fault::StopWorker { ms, .. }
            | Fault::JoinWorker { ms, .. }
            | Fault::KillPublisher { ms, .. }
            | Fault::KillServer { ms, .. }
            | Fault::RestartServer { ms, .. }
            | Fault::StopServer { ms, .. }
            | Fault::LameDuck { ms, .. }
            | Fault::Slow { ms, .. }
            | Fault::Block { ms } => ms,
            Fault::Cut => 0,
        }
    }

    fn target(self) -> Target {
        match self {
            Fault::KillWorker { slot, .. }
            | Fault::TermWorker { slot, .. }
            | Fault::StopWorker { slot, .. }
            | Fault::JoinWorker { slot, .. } => Target::Worker(slot),
            Fault::KillPublisher { slot, .. } => Target::Publisher(slot),
            Fault::KillServer { .. }
            | Fault::RestartServer { .. }
            | Fault::StopServer { .. }
            | Fault::LameDuck { .. } => Target::Servers,
            Fault::Cut | Fault::Slow { .. } | Fault::Block { .. } => Target::Links,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::KillWorker { slot, ms } => {
                write!(f, "worker {slot}: kill -9, another after {ms} ms")
            }
            Fault::TermWorker { slot, ms } => {
                write!(f, "worker {slot}: SIGTERM, another after {ms} ms")
            }
            Fault::StopWorker { slot, ms } => {
                write!(f, "worker {slot}: SIGSTOP, SIGCONT after {ms} ms")
            }
            Fault::JoinWorker { slot, ms } => {
                write!(f, "worker {slot}: joins, SIGTERM after {ms} ms")
            }
            Fault::KillPublisher { slot, ms } => {
                write!(f, "publisher {slot}: kill -9, another after {ms} ms")
            }
            Fault::KillServer { node, ms } => {
                write!(f, "server {node}: kill -9, started again after {ms} ms")
            }
            Fault::RestartServer { node, ms } => {
                write!(f, "server {node}: SIGTERM, started again after {ms} ms")
            }
            Fault::StopServer { node, ms } => {
                write!(f, "server {node}: SIGSTOP, SIGCONT after {ms} ms")
            }
            Fault::LameDuck { node, ms } => {
                write!(f, "server {node}: lame duck, started again after {ms} ms")
            }
            Fault::Cut => f.write_str("proxies: every connection breaks"),
            Fault::Slow { delay_ms, ms } => {
                write!(f, "proxies: {delay_ms} ms slower, for {ms} ms")
            }
            Fault::Block { ms } => write!(f, "proxies: nothing passes, for {ms} ms"),
        }
    }
}

/// A fault and when it begins, from the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) at_ms: u64,
    pub(crate) fault: Fault,
}

/// The faults that there are, each as often as it is in a deck.
#[derive(Clone, Copy)]
enum Card {
    KillWorker,
    TermWorker,
    StopWorker,
    JoinWorker,
    KillPublisher,
    KillServer,
    RestartServer,
    StopServer,
    LameDuck,
    Cut,
    Slow,
    Block,
}

fn deck(on: On) -> Vec<Card> {
    use Card::{
        Block, Cut, JoinWorker, KillPublisher, KillServer, KillWorker, LameDuck, RestartServer,
        Slow, StopServer, StopWorker, TermWorker,
    };
    let mut deck = vec![
        KillWorker,
        KillWorker,
        KillWorker,
        StopWorker,
        StopWorker,
        TermWorker,
        TermWorker,
        JoinWorker,
        KillPublisher,
        KillServer,
        KillServer,
        RestartServer,
        StopServer,
        Cut,
        Cut,
        Slow,
        Block,
    ];
    if on != On::File {
        deck.push(LameDuck);
    }
    deck
}

fn draw(card: Card, on: On, dice: &mut Dice) -> Fault {
    let slot = |dice: &mut Dice, low: u32, high: u32| {
        u32::try_from(dice.from(low.into(), high.into())).unwrap_or(low)
    };
    let node = |dice: &mut Dice| usize::try_from(dice.from(0, on.nodes())).unwrap_or(0);
    match card {
        Card::KillWorker => Fault::KillWorker {
            slot: slot(dice, 0, WORKERS),
            ms: dice.from(50, 6_000),
        },
        Card::TermWorker => Fault::TermWorker {
            slot: slot(dice, 0, WORKERS),
            ms: dice.from(50, 4_000),
        },
        // Most are longer than the lease of 3 s, and some are not.
        Card::StopWorker => Fault::StopWorker {
            slot: slot(dice, 0, WORKERS),
            ms: match dice.from(0, 4) {
                0 => dice.from(300, 3_000),
                _ => dice.from(3_500, 9_000),
            },
        },
        Card::JoinWorker => Fault::JoinWorker {
            slot: slot(dice, WORKERS, WORKERS + EXTRA),
            ms: dice.from(5_000, 15_000),
        },
        Card::KillPublisher => Fault::KillPublisher {
            slot: slot(dice, 0, PUBLISHERS),
            ms: dice.from(50, 1_000),
        },
        // Not for so long that somebody who is attached to a directory takes the owner's place.
        Card::KillServer => Fault::KillServer {
            node: node(dice),
            ms: dice.from(0, 3_000),
        },
        Card::RestartServer => Fault::RestartServer {
            node: node(dice),
            ms: dice.from(0, 2_000),
        },
        Card::StopServer => Fault::StopServer {
            node: node(dice),
            ms: dice.from(500, 6_000),
        },
        Card::LameDuck => Fault::LameDuck {
            node: node(dice),
            ms: dice.from(500, 8_000),
        },
        Card::Cut => Fault::Cut,
        Card::Slow => Fault::Slow {
            delay_ms: dice.from(50, 1_500),
            ms: dice.from(2_000, 8_000),
        },
        Card::Block => Fault::Block {
            ms: dice.from(500, 7_000),
        },
    }
}

/// The plan of a run that lasts so long: faults one after another, most of them while others last, and
/// stretches of peace between, in which nothing may be repeated without a reason.
pub(crate) fn plan(seed: u64, on: On, length_ms: u64) -> Vec<Step> {
    let mut dice = Dice::about(seed, on.name(), 0);
    let mut steps: Vec<Step> = Vec::new();
    let mut cards = Vec::new();
    let mut at_ms = QUIET_MS;
    while at_ms < length_ms {
        let card = cards.pop().unwrap_or_else(|| {
            cards = deck(on);
            dice.shuffle(&mut cards);
            cards.pop().unwrap_or(Card::KillWorker)
        });
        let fault = draw(card, on, &mut dice);
        let is_busy = steps.iter().any(|step| {
            let rest = match step.fault.target() {
                Target::Servers => on.rest_ms(),
                // One that has just begun has nothing to lose.
                _ => 1_500,
            };
            step.fault.target() == fault.target() && step.at_ms + step.fault.ms() + rest > at_ms
        });
        if is_busy || at_ms + fault.ms() > length_ms {
            // Another card, a little later.
            at_ms += 200;
            continue;
        }
        steps.push(Step { at_ms, fault });
        at_ms += match dice.from(0, 7) {
            0 => dice.from(6_000, 10_000),
            _ => dice.from(300, 2_500),
        };
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: u64 = 10 * 60 * 1_000;

    #[test]
    fn a_plan_is_a_function_of_its_seed() {
        for on in [On::File, On::Nats, On::Cluster] {
            assert_eq!(plan(1, on, LONG), plan(1, on, LONG));
            assert_ne!(plan(1, on, LONG), plan(2, on, LONG));
        }
    }

    #[test]
    fn everything_is_over_when_the_run_is() {
        for seed in 0..200 {
            for step in plan(seed, On::Nats, 60_000) {
                assert!(step.at_ms >= QUIET_MS && step.at_ms + step.fault.ms() <= 60_000);
            }
        }
    }

    #[test]
    fn one_target_has_one_fault_at_a_time_and_servers_rest_between() {
        for seed in 0..50 {
            for on in [On::File, On::Nats, On::Cluster] {
                let steps = plan(seed, on, LONG);
                for (index, step) in steps.iter().enumerate() {
                    for later in &steps[index + 1..] {
                        if later.fault.target() == step.fault.target() {
                            assert!(later.at_ms > step.at_ms + step.fault.ms(), "{step:?}");
                        }
                    }
                    if let Fault::KillServer { node, .. } = step.fault {
                        assert!(node < 3 && (on == On::Cluster || node == 0));
                    }
                }
            }
        }
    }

    #[test]
    fn a_long_run_has_every_fault_that_there_is() {
        let has = |on: On, is: fn(&Fault) -> bool| plan(3, on, LONG).iter().any(|s| is(&s.fault));
        let everywhere: [fn(&Fault) -> bool; 11] = [
            |fault| matches!(fault, Fault::KillWorker { .. }),
            |fault| matches!(fault, Fault::TermWorker { .. }),
            |fault| matches!(fault, Fault::StopWorker { ms: 3_500.., .. }),
            |fault| matches!(fault, Fault::JoinWorker { .. }),
            |fault| matches!(fault, Fault::KillPublisher { .. }),
            |fault| matches!(fault, Fault::KillServer { .. }),
            |fault| matches!(fault, Fault::RestartServer { .. }),
            |fault| matches!(fault, Fault::StopServer { .. }),
            |fault| matches!(fault, Fault::Cut),
            |fault| matches!(fault, Fault::Slow { .. }),
            |fault| matches!(fault, Fault::Block { .. }),
        ];
        for on in [On::File, On::Nats, On::Cluster] {
            for (number, is) in everywhere.into_iter().enumerate() {
                assert!(has(on, is), "{on:?} has no fault {number}");
            }
            let is_lame = |fault: &Fault| matches!(fault, Fault::LameDuck { .. });
            assert_eq!(has(on, is_lame), on != On::File, "{on:?}");
        }
    }
}
