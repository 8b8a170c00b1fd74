//! What was wrong around a process at a time, and what may follow from it.

use std::collections::{BTreeMap, BTreeSet};

use super::Evidence;
use crate::plan::On;
use crate::record::{Consumer, Kind, Micros, Publishing, Role, Told, What, Who};

const SECOND: Micros = 1_000_000;

/// What was done may be done again if it was finished so long before a fault at most: progress is
/// committed every 100 ms, and after half a second without nothing new is begun. The rest is for a machine
/// that has other things to do.
const UNCOMMITTED: Micros = 3 * SECOND;

/// A process that was not scheduled for so long, with a lease of 3 s, may have lost it.
const STALL_MS: u64 = 1_000;

/// How long after it was woken a process may go on with what it had found to be its own before.
const AWAKE: Micros = SECOND;

/// An event that takes longer than this to be stored, with nothing wrong, shows an engine so slow that
/// leases may run out.
const SLOW: Micros = 2 * SECOND;

/// Why something was done again, or twice at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// Its process was killed.
    Kill,
    /// Its process was stopped for a while.
    Stop,
    /// A server was away.
    Server,
    /// Its connection was cut, slow or blocked.
    Link,
    /// The machine was so busy that the process or the engine stood still.
    Machine,
}

impl Cause {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Cause::Kill => "kill",
            Cause::Stop => "stop",
            Cause::Server => "server",
            Cause::Link => "connection",
            Cause::Machine => "machine",
        }
    }

    /// How long it is felt after it is over: connections are made again, leases run out or come back,
    /// leaders are elected.
    fn grace(self, on: On) -> Micros {
        match (self, on) {
            (Cause::Kill, _) => 0,
            (Cause::Server, On::Cluster) => 25 * SECOND,
            (Cause::Server | Cause::Link, _) => 10 * SECOND,
            (Cause::Stop | Cause::Machine, _) => 5 * SECOND,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Span {
    cause: Cause,
    from: Micros,
    to: Micros,
}

pub(crate) struct Causes<'a> {
    evidence: &'a Evidence,
    own: BTreeMap<Who, Vec<Span>>,
    links: Vec<Span>,
    everybody: Vec<Span>,
    /// When each process did not run: from when, to when.
    asleep: BTreeMap<Who, Vec<(Micros, Micros)>>,
}

impl<'a> Causes<'a> {
    pub(crate) fn of(evidence: &'a Evidence) -> Self {
        let mut causes = Self {
            evidence,
            own: BTreeMap::new(),
            links: Vec::new(),
            everybody: Vec::new(),
            asleep: BTreeMap::new(),
        };
        let serves = |told: &&Told| told.what == Publishing::Serves;
        let servers = evidence.published.iter().filter(serves);
        let servers: BTreeSet<Who> = servers.map(|told| told.who).collect();
        for done in &evidence.faults {
            // Whatever ends or stops it takes the bus away from everybody.
            if done.who.is_some_and(|who| servers.contains(&who)) {
                causes.everybody.push(Span {
                    cause: Cause::Server,
                    from: done.from,
                    to: done.to,
                });
            }
            let cause = match done.kind {
                Kind::Kill | Kind::Died => Cause::Kill,
                Kind::Stop => Cause::Stop,
                Kind::ServerKill | Kind::ServerRestart | Kind::ServerStop | Kind::LameDuck => {
                    Cause::Server
                }
                Kind::Cut | Kind::Slow | Kind::Block => Cause::Link,
                // A clean end, or a beginning, is no reason to do anything twice.
                Kind::Term | Kind::Join => continue,
            };
            let span = Span {
                cause,
                from: done.from,
                to: done.to,
            };
            if let (Cause::Stop, Some(who)) = (cause, done.who) {
                let asleep = causes.asleep.entry(who).or_default();
                asleep.push((span.from, span.to));
            }
            match (cause, done.who) {
                (_, Some(who)) => causes.own.entry(who).or_default().push(span),
                (Cause::Link, None) => causes.links.push(span),
                (_, None) => causes.everybody.push(span),
            }
        }
        for effect in &evidence.effects {
            if let What::Stall { ms } = effect.what {
                let (who, to) = (effect.who, effect.at);
                let from = to.saturating_sub(ms * 1_000);
                causes.asleep.entry(who).or_default().push((from, to));
                if ms >= STALL_MS {
                    let cause = Cause::Machine;
                    let span = Span { cause, from, to };
                    causes.own.entry(who).or_default().push(span);
                }
            }
        }
        let slow = slow_times(evidence);
        causes.everybody.extend(slow);
        causes
    }

    /// Why what this process finished at `done`, or was doing since then, may have been done again at
    /// `again`.
    pub(crate) fn between(
        &self,
        who: Who,
        consumer: Consumer,
        done: Micros,
        again: Micros,
    ) -> Option<Cause> {
        let on = self.evidence.on;
        let own = self.own.get(&who).into_iter().flatten();
        let links = self.links.iter().filter(|_| is_proxied(who));
        let mut causes = own.chain(&self.everybody).chain(links).filter(|span| {
            // What a lone nats-server had acknowledged may come back when it was killed, however long
            // ago; that is known, and only of shared consumers.
            let forgets =
                on == On::Nats && consumer == Consumer::Shared && span.cause == Cause::Server;
            span.from <= again
                && done <= span.to + span.cause.grace(on)
                && (forgets || done + UNCOMMITTED >= span.from)
        });
        let first = causes.next()?.cause;
        Some(causes.map(|span| span.cause).fold(first, Cause::min))
    }

    /// Whether this process did not run until shortly before, so that what it begins may be what it had found
    /// to be its own before.
    pub(crate) fn was_asleep(&self, who: Who, at: Micros) -> bool {
        let asleep = self.asleep.get(&who).into_iter().flatten();
        let mut asleep = asleep.map(|(from, to)| (*from, to + AWAKE));
        asleep.any(|(from, to)| (from..=to).contains(&at))
    }

    /// Whether anything but a kill of its own was wrong for this process shortly before.
    pub(crate) fn is_disturbed(&self, who: Who, at: Micros) -> bool {
        let began = at.saturating_sub(30 * SECOND);
        self.between(who, Consumer::Ordered, began, at).is_some()
            || self.between(who, Consumer::Ordered, at, at).is_some()
    }

    /// When this process was killed, if it was.
    pub(crate) fn killed(&self, who: Who) -> Option<Micros> {
        let own = self.own.get(&who)?;
        let kill = own.iter().find(|span| span.cause == Cause::Kill)?;
        Some(kill.from)
    }

    /// Whether anything was wrong for anybody but this process in that time.
    pub(crate) fn others(&self, who: Who, from: Micros, to: Micros) -> bool {
        let others = self.own.iter().filter(|(other, _)| **other != who);
        let spans = others.flat_map(|(_, spans)| spans);
        spans
            .chain(&self.everybody)
            .chain(&self.links)
            .any(|span| span.from <= to && span.to + 2 * SECOND >= from)
    }
}

/// Every second one goes through the proxies.
fn is_proxied(who: Who) -> bool {
    who.slot % 2 == 1
}

/// When the engine took long to store events of publishers that are connected directly.
fn slow_times(evidence: &Evidence) -> Vec<Span> {
    let mut asked: BTreeMap<&str, Micros> = BTreeMap::new();
    let mut slow = Vec::new();
    for told in &evidence.published {
        if told.who.role != Role::Publisher || is_proxied(told.who) {
            continue;
        }
        match &told.what {
            Publishing::Ask { id } => {
                asked.insert(id, told.at);
            }
            Publishing::Ack { id, .. } => {
                if let Some(from) = asked.remove(id.as_str())
                    && told.at > from + SLOW
                {
                    slow.push(Span {
                        cause: Cause::Machine,
                        from,
                        to: told.at,
                    });
                }
            }
            _ => {}
        }
    }
    slow
}
