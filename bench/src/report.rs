//! What a run shows: a table for people, JSON for everything else, both from the same rows.

use std::fmt;

use serde::Serialize;

use crate::alternate::Figures;
use crate::machine;
use crate::options::Options;
use crate::pair::{Pair, Target};

#[derive(Serialize)]
pub struct Report {
    /// True for a smoke run, whose figures mean nothing.
    quick: bool,
    cores: usize,
    rows: Vec<Row>,
}

/// One comparison.
#[derive(Serialize)]
pub struct Row {
    name: String,
    payload: &'static str,
    durability: &'static str,
    window: &'static str,
    baseline: Figures,
    ours: Option<Figures>,
    /// Median rate of Trunkline over median rate of the baseline.
    ratio: Option<f64>,
    target: String,
    verdict: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Met,
    /// Closer to the baseline than the spread of the rounds: neither ahead nor behind.
    Equal,
    Missed,
}

impl Report {
    pub fn new(options: &Options, rows: Vec<Row>) -> Self {
        Self {
            quick: options.quick,
            cores: machine::cores(),
            rows,
        }
    }
}

impl Row {
    pub fn new(pair: &Pair, baseline: Figures, ours: Option<Figures>) -> Self {
        let ratio = ours
            .as_ref()
            .map(|ours| ours.events_per_s / baseline.events_per_s);
        let verdict = ours
            .as_ref()
            .and_then(|ours| verdict(pair.target, &baseline, ours));
        Self {
            name: pair.name.clone(),
            payload: pair.payload,
            durability: pair.durability,
            window: pair.window,
            baseline,
            ours,
            ratio,
            target: pair.target.to_string(),
            verdict,
        }
    }
}

fn verdict(target: Target, baseline: &Figures, ours: &Figures) -> Option<Verdict> {
    let ratio = ours.events_per_s / baseline.events_per_s;
    let equal = (ratio - 1.0).abs() < baseline.spread.max(ours.spread);
    let met = match target {
        Target::Ratio(least) => ratio >= least,
        Target::NotSet => return None,
        Target::Ahead if equal => return Some(Verdict::Equal),
        Target::Ahead => ratio > 1.0,
        Target::NsPerEvent(most) => ours.ns_per_event <= most,
        Target::LatencyRatio { p50, p99 } => {
            let within = |ours: Option<u64>, baseline: Option<u64>, most: f64| {
                ours.zip(baseline)
                    .is_some_and(|(ours, baseline)| ours as f64 <= baseline as f64 * most)
            };
            within(ours.p50_ns, baseline.p50_ns, p50) && within(ours.p99_ns, baseline.p99_ns, p99)
        }
        Target::Latency { p50_ns, p99_ns } => {
            ours.p50_ns.is_some_and(|ns| ns <= p50_ns) && ours.p99_ns.is_some_and(|ns| ns <= p99_ns)
        }
    };
    Some(match (met, target) {
        (true, _) => Verdict::Met,
        (false, Target::Ratio(1.0)) if equal => Verdict::Equal,
        (false, _) => Verdict::Missed,
    })
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ratio(least) => write!(f, "≥ {least}×"),
            Self::Ahead => f.write_str("ahead"),
            Self::NsPerEvent(most) => write!(f, "≤ {most} ns"),
            Self::LatencyRatio { p50, p99 } => write!(f, "p50 ≤ {p50}×, p99 ≤ {p99}×"),
            Self::NotSet => f.write_str("none set"),
            Self::Latency { p50_ns, p99_ns } => write!(f, "p50 ≤ {p50_ns} ns, p99 ≤ {p99_ns} ns"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.quick {
            writeln!(f, "Smoke run: it works, and its figures mean nothing.\n")?;
        }
        writeln!(
            f,
            "{:<46} {:<21} {:>9} {:>7} {:>9} {:>9} {:>9} {:>8} {:>8} {:>8} {:>7} {:>6}  target",
            "",
            "median of rounds",
            "M/s",
            "spread",
            "ns/event",
            "CPU ns/ev",
            "server",
            "p50 ns",
            "p99 ns",
            "peak MiB",
            "others",
            "ratio"
        )?;
        for row in &self.rows {
            line(f, &row.name, &row.baseline)?;
            writeln!(f)?;
            match &row.ours {
                Some(ours) => {
                    line(f, "", ours)?;
                    let verdict = row.verdict.map_or("", Verdict::word);
                    writeln!(
                        f,
                        " {:>6.2}  {} {verdict}",
                        row.ratio.unwrap_or(f64::NAN),
                        row.target
                    )?;
                }
                None => writeln!(
                    f,
                    "{:<46} Trunkline: not there yet (to reach: {})",
                    "", row.target
                )?,
            }
        }
        writeln!(f)?;
        for row in &self.rows {
            writeln!(
                f,
                "{}: payload {}; durability {}; window {}",
                row.name, row.payload, row.durability, row.window
            )?;
        }
        writeln!(
            f,
            "\n{} cores, shared by producers and consumers. Ratios of one run carry over to other machines; \
             absolute figures do not.",
            self.cores
        )
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Equal => "equal",
            Self::Missed => "MISSED",
        }
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, figures: &Figures) -> fmt::Result {
    let whole =
        |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let peak = figures.peak_memory_bytes.map_or_else(
        || "-".to_owned(),
        |bytes| format!("{:.1}", bytes as f64 / (1 << 20) as f64),
    );
    let others = figures
        .others_share
        .map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0));
    write!(
        f,
        "{name:<46} {:<21} {:>9.3} {:>6.0}% {:>9.1} {:>9.1} {:>9} {:>8} {:>8} {peak:>8} {others:>7}",
        figures.label,
        figures.events_per_s / 1e6,
        figures.spread * 100.0,
        figures.ns_per_event,
        figures.cpu_ns_per_event,
        figures
            .server_cpu_ns_per_event
            .map_or_else(|| "-".to_owned(), |ns| format!("{ns:.1}")),
        whole(figures.p50_ns),
        whole(figures.p99_ns),
    )
}
