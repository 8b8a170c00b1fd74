//! Many scenarios, over all cores.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{AddAssign, Range};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::check::{Repeats, Verdict};
use super::scenario::Scenario;

/// How long one scenario may take; it takes some hundredths of a second.
const LONGEST: Duration = Duration::from_secs(60);

/// What scenarios that kept every promise came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Scenarios.
    pub scenarios: u64,
    /// Handler runs in them.
    pub runs: usize,
    /// Runs of events whose handler had succeeded before.
    pub repeats: Repeats,
    /// How long their worlds were there.
    pub world_time: Duration,
    /// How long it took.
    pub took: Duration,
}

/// The seeds to be tried: the one of `TRUNKLINE_SEED`, or as many as `TRUNKLINE_SEEDS` says,
/// `otherwise` if it is not set.
pub fn seeds(otherwise: u64) -> Range<u64> {
    let number = |name| {
        let value = std::env::var(name).ok()?;
        value.parse::<u64>().ok()
    };
    match number("TRUNKLINE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TRUNKLINE_SEEDS").unwrap_or(otherwise),
    }
}

/// Lives through the scenario of every seed, on as many threads as there are cores.
///
/// # Errors
/// The first one found in which a promise was broken; the rest is not tried then.
pub fn try_scenarios(
    seeds: Range<u64>,
    scenario: impl Fn(u64) -> Scenario + Sync,
) -> Result<Summary, Box<Verdict>> {
    let next = Mutex::new(seeds);
    let (failed, total) = (Mutex::new(None), Mutex::new(Summary::default()));
    let began = Instant::now();
    let work = || {
        while failed.lock().is_none() {
            let Some(seed) = next.lock().next() else {
                return;
            };
            let watchdog = Watchdog::new(seed);
            let verdict = scenario(seed).run();
            drop(watchdog);
            if !verdict.violations.is_empty() {
                failed.lock().get_or_insert(Box::new(verdict));
                return;
            }
            *total.lock() += &verdict;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    match failed.into_inner() {
        Some(verdict) => Err(verdict),
        None => Ok(Summary {
            took: began.elapsed(),
            ..total.into_inner()
        }),
    }
}

/// In how many scenarios a promise was broken, and which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Scenarios that were tried.
    pub scenarios: u64,
    /// Those in which some promise was broken.
    pub broken: u64,
    /// The seeds of those.
    pub seeds: BTreeSet<u64>,
    /// In how many of them this one was.
    pub by_property: BTreeMap<&'static str, u64>,
}

/// Lives through every scenario, whatever comes of the others, until some promise was broken in `enough` of
/// them: to see how well the judge sees what was broken on purpose.
pub fn tally(scenarios: impl Iterator<Item = Scenario> + Send, enough: u64) -> Tally {
    let (next, tally) = (Mutex::new(scenarios), Mutex::new(Tally::default()));
    let work = || {
        while tally.lock().broken < enough {
            let Some(scenario) = next.lock().next() else {
                return;
            };
            let watchdog = Watchdog::new(scenario.seed);
            let found = scenario.violations();
            drop(watchdog);
            let properties: BTreeSet<_> = found.iter().map(|one| one.property).collect();
            let mut tally = tally.lock();
            tally.scenarios += 1;
            if !properties.is_empty() {
                tally.broken += 1;
                tally.seeds.insert(scenario.seed);
            }
            for property in properties {
                *tally.by_property.entry(property).or_default() += 1;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    tally.into_inner()
}

/// Ends the program if a scenario does not end, because some task of it is busy while no time passes:
/// a runtime whose clock stands still can be stopped by nothing else.
struct Watchdog {
    /// Dropped when the scenario has ended.
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    fn new(seed: u64) -> Self {
        let (alive, ended) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if ended.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout) {
                #[expect(clippy::print_stderr, reason = "nobody else can say it any more")]
                {
                    eprintln!(
                        "seed {seed}: a task has been busy for {LONGEST:?} while no time passed in its world; \
                         replay with TRUNKLINE_SEED={seed} and look at it with a debugger"
                    );
                }
                std::process::abort();
            }
        });
        Self { _alive: alive }
    }
}

impl AddAssign<&Verdict> for Summary {
    fn add_assign(&mut self, verdict: &Verdict) {
        self.scenarios += 1;
        self.runs += verdict.runs;
        self.repeats += verdict.repeats;
        self.world_time += verdict.world_time;
    }
}

impl AddAssign for Repeats {
    fn add_assign(&mut self, other: Self) {
        self.after_kill += other.after_kill;
        self.after_freeze += other.after_freeze;
        self.after_stop += other.after_stop;
        self.otherwise += other.otherwise;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            scenarios,
            runs,
            repeats,
            world_time,
            took,
        } = self;
        let each_second = *scenarios as f64 / took.as_secs_f64().max(0.001);
        write!(
            f,
            "{scenarios} scenarios in {took:.1?} ({each_second:.0} a second), {world_time:.0?} of their time, \
             {runs} runs, {repeats:?}"
        )
    }
}
