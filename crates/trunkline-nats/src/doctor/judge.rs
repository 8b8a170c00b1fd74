//! From what was seen to what is wrong. Pure: the same snapshot gives the same findings.

mod consumers;
mod live;
mod server;
mod streams;
mod wiring;

#[cfg(test)]
mod cases;

use super::near::overlap;
use super::snapshot::{Consumer, Snapshot, Stream};
use super::{Finding, Rule, Severity};

/// What is wrong, the most harmful first, then by rule and object.
pub fn judge(snapshot: &Snapshot) -> Vec<Finding> {
    let mut report = Report::default();
    server::judge(snapshot, &mut report);
    for stream in &snapshot.streams {
        streams::judge(snapshot, stream, &mut report);
    }
    for consumer in &snapshot.consumers {
        consumers::judge(snapshot, consumer, &mut report);
    }
    consumers::replicas(snapshot, &mut report);
    wiring::judge(snapshot, &mut report);
    live::judge(snapshot, &mut report);
    let mut findings = report.0;
    findings.sort_by(|a, b| {
        (a.severity, a.code, &a.object, &a.what).cmp(&(b.severity, b.code, &b.object, &b.what))
    });
    findings.dedup();
    findings
}

/// What was found so far.
#[derive(Default)]
struct Report(Vec<Finding>);

impl Report {
    fn add(
        &mut self,
        code: &'static str,
        object: impl Into<String>,
        what: impl Into<String>,
        consequence: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let severity = Rule::of(code).map_or(Severity::Risking, |rule| rule.severity);
        self.0.push(Finding {
            code,
            severity,
            object: object.into(),
            what: what.into(),
            consequence: consequence.into(),
            remedy: remedy.into(),
        });
    }
}

impl Snapshot {
    fn consumers_of<'a>(&'a self, stream: &'a Stream) -> impl Iterator<Item = &'a Consumer> {
        self.consumers
            .iter()
            .filter(move |consumer| consumer.stream_name == stream.name())
    }

    fn stream(&self, name: &str) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.name() == name)
    }

    /// The stream that stores some of what matches.
    fn storing(&self, subject: &str) -> Option<&Stream> {
        self.streams.iter().find(|stream| {
            let mut subjects = stream.config.subjects.iter();
            subjects.any(|filter| overlap(filter, subject))
        })
    }
}

fn stream_object(stream: &Stream) -> String {
    format!("stream {}", stream.name())
}

fn consumer_object(consumer: &Consumer) -> String {
    format!("consumer {}/{}", consumer.stream_name, consumer.name)
}

/// The command that changes a stream: the plan where it is ours, natscli where it is not.
fn edit_stream(stream: &Stream, flags: &str) -> String {
    if stream.is_ours() {
        "trunkline topology plan, then trunkline topology apply".to_owned()
    } else {
        format!("nats stream edit {} {flags}", stream.name())
    }
}

fn edit_consumer(consumer: &Consumer, flags: &str) -> String {
    format!(
        "nats consumer edit {} {} {flags}",
        consumer.stream_name, consumer.name
    )
}

/// All of a stream's subjects as flags, one of them replaced.
fn subjects_flag(stream: &Stream, from: &str, to: &str) -> String {
    let subjects: Vec<&str> = stream
        .config
        .subjects
        .iter()
        .map(|subject| if subject == from { to } else { subject })
        .collect();
    format!("--subjects '{}'", subjects.join(","))
}

/// Nanoseconds as people read them: `604.8 ms`, `2 min`, `7 d`.
fn span(nanos: u64) -> String {
    const UNITS: [(u64, &str); 6] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "min"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "µs"),
    ];
    for (size, unit) in UNITS {
        if nanos >= size {
            let thousandths = (nanos as u128 * 1_000) / u128::from(size);
            let value = thousandths as f64 / 1_000.0;
            return format!("{value} {unit}");
        }
    }
    format!("{nanos} ns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_people_say_them() {
        for (nanos, text) in [
            (604_800_000, "604.8 ms"),
            (604_800_000_000_000, "7 d"),
            (120_000_000_000, "2 min"),
            (0, "0 ns"),
        ] {
            assert_eq!(span(nanos), text);
        }
    }
}
