//! The method: baseline and Trunkline take turns (A B A B …) in one process, each round on a new
//! set-up that has warmed up; a round that others disturbed is thrown away and done again.

use std::process::Command;

use serde::Serialize;

use crate::machine::{self, Others};
use crate::options::{Options, SideName};
use crate::pair::{Contender, Pair, Result};
use crate::pairs;
use crate::report::Row;
use crate::stopwatch::Stopwatch;

/// How much of the machine others may use during a round before it is thrown away.
const OTHERS_LIMIT: f64 = 0.10;
/// A smoke run carries this part of a round's events.
const QUICK_PART: u64 = 100;
/// The warm-up carries this part of a round's events.
const WARM_UP_PART: u64 = 5;

/// The rounds of one side, as medians.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub label: &'static str,
    pub rounds: usize,
    pub events_per_round: u64,
    pub events_per_s: f64,
    /// (fastest − slowest) / median of the rounds.
    pub spread: f64,
    pub ns_per_event: f64,
    /// CPU time of the whole process, producers and consumers, per event.
    pub cpu_ns_per_event: f64,
    /// That of the server which works for this side alone, where there is one.
    pub server_cpu_ns_per_event: Option<f64>,
    pub p50_ns: Option<u64>,
    pub p99_ns: Option<u64>,
    /// Of a process that did nothing but one such round.
    pub peak_memory_bytes: Option<u64>,
    /// The largest share of the machine that others used during a round that counts.
    pub others_share: Option<f64>,
    pub rounds_thrown_away: usize,
}

struct Round {
    events_per_s: f64,
    cpu_ns_per_event: f64,
    server_cpu_ns_per_event: Option<f64>,
    p50_ns: Option<u64>,
    p99_ns: Option<u64>,
    others_share: Option<f64>,
}

/// Rounds of one side so far.
struct Turns<'a> {
    contender: &'a Contender,
    rounds: Vec<Round>,
    thrown_away: usize,
}

/// Runs one comparison.
///
/// # Errors
///
/// When a side cannot be set up or loses an event.
pub fn run(pair: &Pair, options: &Options) -> Result<Row> {
    let mut sides: Vec<Turns<'_>> = std::iter::once(&pair.baseline)
        .chain(pair.ours.as_ref())
        .map(|contender| Turns {
            contender,
            rounds: Vec::new(),
            thrown_away: 0,
        })
        .collect();

    // As many rounds again may be thrown away; after that a busy machine shows in the figures.
    let mut spare = options.rounds;
    while sides[0].rounds.len() < options.rounds {
        let turn = sides
            .iter()
            .map(|side| one_round(side.contender, options.quick))
            .collect::<Result<Vec<Round>>>()?;
        let disturbed = turn
            .iter()
            .any(|round| round.others_share.is_some_and(|share| share > OTHERS_LIMIT));
        if disturbed && !options.quick && spare > 0 {
            spare -= 1;
            eprintln!("    others were busy: this round is thrown away");
            sides.iter_mut().for_each(|side| side.thrown_away += 1);
            continue;
        }
        for (side, round) in sides.iter_mut().zip(turn) {
            eprintln!(
                "    {:<24} {:>9.3} M/s",
                side.contender.label,
                round.events_per_s / 1e6
            );
            side.rounds.push(round);
        }
    }

    let figures = |side: &Turns<'_>, name| {
        let peak = peak_memory_of(&pair.name, name, options.quick);
        figures(side, options.quick, peak)
    };
    let baseline = figures(&sides[0], SideName::Baseline);
    let ours = sides.get(1).map(|side| figures(side, SideName::Ours));
    Ok(Row::new(pair, baseline, ours))
}

fn one_round(contender: &Contender, quick: bool) -> Result<Round> {
    let events = events_of(contender, quick);
    let others = Others::watch();
    let mut side = (contender.build)()?;
    side.round((events / WARM_UP_PART).max(1), &mut Stopwatch::default())?;
    let mut watch = Stopwatch::with_server(side.server());
    side.round(events, &mut watch)?;
    Ok(Round {
        events_per_s: events as f64 / watch.wall().as_secs_f64(),
        cpu_ns_per_event: watch.cpu().as_nanos() as f64 / events as f64,
        server_cpu_ns_per_event: watch
            .server_cpu()
            .map(|cpu| cpu.as_nanos() as f64 / events as f64),
        p50_ns: watch.percentile_ns(50),
        p99_ns: watch.percentile_ns(99),
        others_share: others.share(side.server()),
    })
}

fn events_of(contender: &Contender, quick: bool) -> u64 {
    if quick {
        (contender.events / QUICK_PART).max(10)
    } else {
        contender.events
    }
}

fn figures(side: &Turns<'_>, quick: bool, peak_memory_bytes: Option<u64>) -> Figures {
    let rounds = &side.rounds;
    let rates = sorted(rounds.iter().map(|round| round.events_per_s));
    let middle = rates[rates.len() / 2];
    let latency = |of: fn(&Round) -> Option<u64>| {
        let mut values: Vec<u64> = rounds.iter().filter_map(of).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied()
    };
    let cpu = sorted(rounds.iter().map(|round| round.cpu_ns_per_event));
    let server_cpu = sorted(
        rounds
            .iter()
            .filter_map(|round| round.server_cpu_ns_per_event),
    );
    Figures {
        label: side.contender.label,
        rounds: rounds.len(),
        events_per_round: events_of(side.contender, quick),
        events_per_s: middle,
        spread: (rates[rates.len() - 1] - rates[0]) / middle,
        ns_per_event: 1e9 / middle,
        cpu_ns_per_event: cpu[cpu.len() / 2],
        server_cpu_ns_per_event: server_cpu.get(server_cpu.len() / 2).copied(),
        p50_ns: latency(|round| round.p50_ns),
        p99_ns: latency(|round| round.p99_ns),
        peak_memory_bytes,
        others_share: rounds
            .iter()
            .filter_map(|round| round.others_share)
            .reduce(f64::max),
        rounds_thrown_away: side.thrown_away,
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Asks a new process for the peak of one round: in this one the peaks of all rounds mix.
fn peak_memory_of(pair: &str, side: SideName, quick: bool) -> Option<u64> {
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(["--peak-memory-of", pair, side.as_str()]);
    if quick {
        command.arg("--quick");
    }
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The other end of [`peak_memory_of`].
pub fn print_peak_memory(pair: &str, side: SideName, quick: bool) -> Result<()> {
    let pairs = pairs::all();
    let pair = pairs
        .iter()
        .find(|known| known.name == pair)
        .ok_or("no such pair")?;
    let contender = match side {
        SideName::Baseline => &pair.baseline,
        SideName::Ours => pair
            .ours
            .as_ref()
            .ok_or("Trunkline does not have this path yet")?,
    };
    one_round(contender, quick)?;
    let peak = machine::peak_memory_bytes().ok_or("this system does not tell")?;
    println!("{peak}");
    Ok(())
}
