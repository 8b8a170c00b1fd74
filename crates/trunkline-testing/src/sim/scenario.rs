//! One consumer's world from a seed: its members, what they are given to do, and what befalls them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use trunkline::core::engine::{Credit, Position};
use trunkline::dead_letter::{Record, Stands};
use trunkline::{Filter, Name, Result, Retry};

use super::check::{self, Dead, Evidence, Verdict, Violation};
use super::controller::{self, controller};
use super::faults::Faults;
use super::host::{Once, Standing};
use super::hub::Hub;
use super::journal::Journal;
use super::members::{CONSUMER, Common, Lens, Planned, Sharing, member, publisher};
use super::operator::{operator, standings};
use super::script::Script;
use super::world::{HostId, World};

/// How long a world that is well again may take to come to rest.
pub(crate) const REST: Duration = Duration::from_secs(600);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(250);
/// Events of each key that are published when all is well again.
const LATER: u32 = 5;
/// Operators, where dead letters are looked after.
const OPERATORS: usize = 2;

/// The world of one consumer. [`from_seed`](Self::from_seed) draws it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Everything that happens is a function of it, and of what follows.
    pub seed: u64,
    /// How members share events.
    pub sharing: Sharing,
    /// As what they are judged: the same, unless somebody wants to see that the judge sees.
    pub judged: Sharing,
    /// Whether members hold the keys of dead letters.
    pub holds_keys: bool,
    /// Whether they are judged as if they did, and operators look after dead letters.
    pub judged_as_holding: bool,
    /// What goes wrong.
    pub faults: Faults,
    /// What is broken on purpose.
    pub lens: Lens,
    /// Members at most.
    pub members: usize,
    /// Keys of the events.
    pub keys: usize,
    /// Events that are published while things go wrong.
    pub events: usize,
    /// Attempts that the retry policy allows.
    pub attempts: u32,
    /// Handlers that a member runs at once.
    pub concurrency: usize,
    /// For how long things go wrong.
    pub troubled: Duration,
    /// How often somebody divides the consumer into another number of partitions meanwhile.
    pub divisions: usize,
    /// How often somebody pauses it for a while.
    pub pauses: usize,
    /// How often somebody resets it, so that it handles everything again.
    pub resets: usize,
}

impl Scenario {
    /// Draws a scenario.
    pub fn from_seed(seed: u64, sharing: Sharing, faults: Faults) -> Self {
        let dice = Hub::new(seed ^ 0x5eed, false);
        let pick = |low: u64, high: u64| usize::try_from(dice.pick(low..=high)).unwrap_or(1);
        Self {
            seed,
            sharing,
            judged: sharing,
            holds_keys: false,
            judged_as_holding: false,
            faults,
            lens: Lens::default(),
            members: pick(1, 4),
            keys: pick(5, 40),
            events: pick(50, 300),
            attempts: u32::try_from(pick(1, 5)).unwrap_or(1),
            concurrency: pick(1, 16),
            troubled: Duration::from_millis(dice.pick(5_000..=20_000)),
            divisions: 0,
            pauses: 0,
            resets: 0,
        }
    }

    /// The same with an ordered consumer that holds the keys of dead letters, which operators replay and
    /// discard.
    pub fn holding(self) -> Self {
        Self {
            sharing: Sharing::Ordered,
            judged: Sharing::Ordered,
            holds_keys: true,
            judged_as_holding: true,
            ..self
        }
    }

    /// Lives through it and judges it, once and without a trace: for whoever only counts.
    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.live(false).violations
    }

    /// Lives through it and judges it.
    pub fn run(&self) -> Verdict {
        let verdict = self.live(false);
        if verdict.violations.is_empty() {
            return verdict;
        }
        // The same again, with a trace that people can read.
        self.live(true)
    }

    /// Lives through it, and tells everything that happens.
    pub fn trace(&self) -> Vec<String> {
        let verdict = self.live(true);
        verdict.lines().iter().map(ToString::to_string).collect()
    }

    fn live(&self, is_verbose: bool) -> Verdict {
        let mut world = World::with_trace(self.seed, self.faults.clone(), is_verbose);
        let common = Arc::new(self.common(world.hub()));
        let members: Vec<HostId> = (0..self.members)
            .map(|index| {
                let common = Arc::clone(&common);
                world.host(&format!("member-{index}"), move |process| {
                    member(process, Arc::clone(&common))
                })
            })
            .collect();
        let source = {
            let common = Arc::clone(&common);
            world.host("publisher", move |process| {
                publisher(process, Arc::clone(&common))
            })
        };
        world.start(source);
        let controller = (!common.orders.is_empty()).then(|| {
            let common = Arc::clone(&common);
            let id = world.host("controller", move |process| {
                controller(process, Arc::clone(&common))
            });
            world.start(id);
            id
        });
        let operators: Vec<HostId> = (0..if self.judged_as_holding { OPERATORS } else { 0 })
            .map(|index| {
                let common = Arc::clone(&common);
                let id = world.host(&format!("operator-{index}"), move |process| {
                    operator(process, Arc::clone(&common))
                });
                world.start(id);
                id
            })
            .collect();
        let operators = operators.into_iter().chain(controller);
        let others: Vec<HostId> = operators.chain([source]).collect();
        // One at once; the others join along the way.
        for (index, id) in members.iter().copied().enumerate() {
            let joins = match index {
                0 => Duration::ZERO,
                _ => world.hub().between(Duration::ZERO, self.troubled),
            };
            world.after(joins, move |world| world.start(id));
        }
        self.trouble(&mut world, &members, controller, &others);
        world.run_for(self.troubled);
        world.heal();
        common.at_last.happen();
        for id in members.iter().copied().chain(controller) {
            world.start(id);
        }
        let mut came_to_rest = self.rest(&mut world, &common);
        if came_to_rest {
            common
                .unpublished
                .store(common.later.len(), Ordering::Release);
            common.well_again.happen();
            came_to_rest = self.rest(&mut world, &common);
        }
        // What comes again although it is done comes by then, and who died is forgotten.
        world.run_for(Duration::from_secs(5));
        let heartbeats = heartbeats(&world).expect("the engine in memory is read");
        for id in members.iter().chain(&others) {
            world.stop(*id);
        }
        let mut stopping = 0;
        while members
            .iter()
            .any(|id| world.standing(*id) != Standing::Down)
            && stopping < 240
        {
            stopping += 1;
            world.run_for(LOOK);
        }
        let evidence = Evidence {
            scenario: self,
            common: &common,
            came_to_rest,
            stored: stored(&world).expect("the engine in memory is read"),
            generation: generation(&world).expect("the engine in memory is read"),
            dead: dead(&world).expect("the engine in memory is read"),
            standings: standings(&world).expect("the engine in memory is read"),
            heartbeats,
            world: &world,
        };
        check::judge(&evidence)
    }

    fn common(&self, hub: &Hub) -> Common {
        let attempts = self.attempts;
        let may_kill = self.faults.kills > 0.0;
        let planned = |n: usize, key: u64, at: Duration, script: Script| Planned {
            n: u32::try_from(n).unwrap_or(u32::MAX),
            key: format!("key-{key:02}"),
            at,
            script,
        };
        let keys = self.keys as u64;
        let mut times: Vec<Duration> = (0..self.events)
            .map(|_| hub.between(Duration::ZERO, self.troubled))
            .collect();
        times.sort_unstable();
        let plan: Vec<_> = times
            .into_iter()
            .enumerate()
            .map(|(n, at)| {
                let script = Script::draw(hub, attempts, may_kill);
                planned(n, hub.pick(0..keys), at, script)
            })
            .collect();
        let later = (0..keys)
            .flat_map(|key| (0..LATER).map(move |_| key))
            .enumerate()
            .map(|(n, key)| {
                let n = self.events + n;
                planned(n, key, Duration::ZERO, Script::Works(Duration::ZERO))
            })
            .collect();
        let pause = hub.between(Duration::from_millis(50), Duration::from_millis(1_500));
        let changes = (self.divisions, self.pauses, self.resets);
        Common {
            journal: Arc::new(Journal::default()),
            unpublished: AtomicUsize::new(plan.len()),
            plan,
            later,
            well_again: Once::default(),
            sharing: self.sharing,
            holds_keys: self.holds_keys,
            at_last: Once::default(),
            lens: self.lens.clone(),
            concurrency: self.concurrency,
            retry: Retry::fixed(attempts, pause),
            ack_wait: hub.between(Duration::from_secs(1), Duration::from_secs(6)),
            orders: controller::draw(hub, changes, self.troubled),
        }
    }

    /// Decides what happens to whom and when, as long as things go wrong.
    fn trouble(
        &self,
        world: &mut World,
        members: &[HostId],
        controller: Option<HostId>,
        others: &[HostId],
    ) {
        let faults = &self.faults;
        let any = |hub: &Hub, hosts: &[HostId]| hosts[hub.pick(0..hosts.len() as u64) as usize];
        let times = |world: &World, rate: f64| {
            let expected = rate * self.troubled.as_secs_f64() / 60.0;
            let whole = expected.floor();
            let more = u64::from(world.hub().chance(expected - whole));
            let count = whole as u64 + more;
            (0..count)
                .map(|_| world.hub().between(Duration::ZERO, self.troubled))
                .collect::<Vec<_>>()
        };
        let millis = |world: &World, low, high| {
            let hub = world.hub();
            hub.between(Duration::from_millis(low), Duration::from_millis(high))
        };
        let rate = members.len() as f64;
        for at in times(world, faults.kills * rate) {
            let id = any(world.hub(), members);
            world.after(at, move |world| world.kill(id));
        }
        // Whoever changes the consumer may be gone at any step of it.
        if let Some(controller) = controller {
            for at in times(world, faults.kills) {
                world.after(at, move |world| world.kill(controller));
            }
        }
        for at in times(world, faults.freezes * rate) {
            let (id, time) = (any(world.hub(), members), millis(world, 1_000, 10_000));
            world.after(at, move |world| {
                world.freeze(id);
                world.after(time, move |world| world.thaw(id));
            });
        }
        for at in times(world, faults.stops * rate) {
            let (id, time) = (any(world.hub(), members), millis(world, 100, 5_000));
            world.after(at, move |world| {
                world.stop(id);
                world.after(time, move |world| world.start(id));
            });
        }
        let everybody: Vec<HostId> = members.iter().chain(others).copied().collect();
        for at in times(world, faults.cuts * everybody.len() as f64) {
            let (id, time) = (any(world.hub(), &everybody), millis(world, 50, 8_000));
            world.after(at, move |world| {
                world.cut(id);
                world.after(time, move |world| world.mend(id));
            });
        }
        for at in times(world, faults.outages) {
            let time = millis(world, 100, 6_000);
            world.after(at, move |world| {
                world.outage(true);
                world.after(time, |world| world.outage(false));
            });
        }
    }

    /// Waits until everything published is handled or dead; false if it takes too long.
    fn rest(&self, world: &mut World, common: &Common) -> bool {
        let end = world.now() + REST;
        while world.now() < end {
            world.run_for(LOOK);
            if common.unpublished.load(Ordering::Acquire) > 0 {
                continue;
            }
            let generation = generation(world).expect("the engine in memory is read");
            let mut open = common.journal.open(generation);
            if self.judged_as_holding {
                let at = common.journal.acknowledged();
                let standings = standings(world).expect("the engine in memory is read");
                open.retain(|n| {
                    let standing = at.get(n).and_then(|seq| standings.get(seq));
                    standing.is_none_or(|record| record.state.stands() != Stands::Discarded)
                });
                if open.is_empty() && standings.values().all(Record::is_resolved) {
                    return true;
                }
                continue;
            }
            if open.iter().any(|n| common.script(*n).dead().is_none()) {
                continue;
            }
            if !open.is_empty() {
                let at = common.journal.acknowledged();
                let dead = dead(world).expect("the engine in memory is read");
                let is_dead = |seq| {
                    let letters: Option<&Vec<Dead>> = dead.get(seq);
                    letters.is_some_and(|all| all.iter().any(|one| one.generation == generation))
                };
                open.retain(|n| !at.get(n).is_some_and(is_dead));
            }
            if open.is_empty() {
                return true;
            }
        }
        false
    }
}

/// What the stream of events has, as the server knows it: the number and key by sequence.
fn stored(world: &World) -> Result<BTreeMap<u64, (u32, String)>> {
    let stream = Name::new("EVENTS")?;
    let mut stored = BTreeMap::new();
    let mut from = 1;
    loop {
        let (name, all) = (stream.clone(), Filter::new(">")?);
        let page = world.at_server(move |engine| {
            Box::pin(async move {
                let log = engine.log();
                log.read(&name, Position::Seq(from), &[all], Credit::items(1_000))
                    .await
            })
        })?;
        for event in &page.events {
            let envelope = event.body.to_event(&event.headers)?;
            let placed: crate::fixture::OrderPlaced =
                serde_json::from_slice(&envelope.data().to_bytes()?).map_err(|error| {
                    trunkline::Error::new(trunkline::ErrorKind::Decode, "a stored event")
                        .caused_by(error)
                })?;
            stored.insert(event.seq, (placed.n, placed.order));
        }
        if page.next >= page.tail {
            return Ok(stored);
        }
        from = page.next;
    }
}

/// Dead letters by the sequence of their events.
fn dead(world: &World) -> Result<BTreeMap<u64, Vec<Dead>>> {
    let (stream, all) = (Name::new("EVENTS_DLQ")?, Filter::new(">")?);
    let page = world.at_server(move |engine| {
        Box::pin(async move {
            let log = engine.log();
            log.read(&stream, Position::First, &[all], Credit::items(10_000))
                .await
        })
    })?;
    let mut dead: BTreeMap<u64, Vec<Dead>> = BTreeMap::new();
    for event in page.events {
        let header = |name: &str| event.headers.get(name).unwrap_or_default().to_owned();
        let Ok(seq) = header("Trunkline-Seq").parse() else {
            continue;
        };
        debug_assert_eq!(header("Trunkline-Consumer"), CONSUMER);
        dead.entry(seq).or_default().push(Dead {
            reason: header("Trunkline-Reason"),
            generation: header("Trunkline-Generation").parse().unwrap_or(0),
        });
    }
    Ok(dead)
}

/// How often the consumer was reset.
fn generation(world: &World) -> Result<u64> {
    let definitions = world.records(Some(&format!("control.{CONSUMER}.EVENTS.def")))?;
    let generation = definitions.first().and_then(|entry| {
        let definition: serde_json::Value = serde_json::from_slice(&entry.value).ok()?;
        definition["generation"].as_u64()
    });
    Ok(generation.unwrap_or(0))
}

/// How many members are on the consumer's list.
fn heartbeats(world: &World) -> Result<usize> {
    let members = world.records(Some(&format!("control.{CONSUMER}.EVENTS.m")))?;
    Ok(members.len())
}
