//! In what two specifications of a stream differ, and what would make one of the other.

use std::time::Duration;

use super::OWNER_KEY;
use crate::engine::{Retention, StreamSpec};
use crate::subject::Filter;

/// A setting in which a stream differs from what is declared. Values are written as in the
/// configuration, without quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The setting's key, as the configuration has it.
    pub setting: &'static str,
    /// What there is.
    pub found: String,
    /// What is declared.
    pub declared: String,
    /// Whether events that are stored may leave when it is made as declared.
    pub removes_events: bool,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            setting,
            found,
            declared,
            ..
        } = self;
        write!(f, "{setting}: {found}, declared {declared}")
    }
}

/// Every setting in which two specifications differ. Metadata is a mark, not a setting, and copies
/// depend on the hosts that there are.
pub fn differences(found: &StreamSpec, declared: &StreamSpec) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut compare = |setting, found: String, declared: String, removes_events| {
        if found != declared {
            differences.push(Difference {
                setting,
                found,
                declared,
                removes_events,
            });
        }
    };
    let subjects = |spec: &StreamSpec| {
        let mut subjects: Vec<_> = spec.subjects.iter().map(Filter::as_str).collect();
        subjects.sort_unstable();
        subjects.join(" ")
    };
    let discards = declared.retention == Retention::DiscardOld;
    compare("subjects", subjects(found), subjects(declared), false);
    compare(
        "retention",
        retention_text(found.retention).to_owned(),
        retention_text(declared.retention).to_owned(),
        false,
    );
    compare(
        "max_events",
        limit(found.max_events, |events| events.to_string()),
        limit(declared.max_events, |events| events.to_string()),
        discards && is_lower(found.max_events, declared.max_events),
    );
    compare(
        "max_bytes",
        limit(found.max_bytes, size_text),
        limit(declared.max_bytes, size_text),
        discards && is_lower(found.max_bytes, declared.max_bytes),
    );
    compare(
        "max_age",
        limit(found.max_age, duration_text),
        limit(declared.max_age, duration_text),
        is_lower(found.max_age, declared.max_age),
    );
    compare(
        "max_message",
        size_text(found.max_message as u64),
        size_text(declared.max_message as u64),
        false,
    );
    compare(
        "duplicate_window",
        duration_text(found.duplicate_window),
        duration_text(declared.duplicate_window),
        false,
    );
    differences
}

/// The specification that makes what was found ours and as it is declared. It never takes copies
/// away, and keeps what others wrote into the metadata.
///
/// # Errors
/// Why there is none, in words that follow the stream's name.
pub fn reconciled(found: &StreamSpec, declared: &StreamSpec) -> Result<StreamSpec, String> {
    let is_queue = |spec: &StreamSpec| spec.retention == Retention::WorkQueue;
    if is_queue(found) != is_queue(declared) {
        return Err(format!(
            "cannot change from {} to {}; make a new stream of another name, or delete this one with its events",
            retention_text(found.retention),
            retention_text(declared.retention)
        ));
    }
    let mut metadata = found.metadata.clone();
    metadata.extend(declared.metadata.clone());
    metadata
        .entry(OWNER_KEY.to_owned())
        .or_insert_with(|| "1".to_owned());
    Ok(StreamSpec {
        replicas: declared.replicas.max(found.replicas),
        metadata,
        ..declared.clone()
    })
}

/// Whether the second limit is the lower one. None is no limit.
fn is_lower<T: PartialOrd>(found: Option<T>, declared: Option<T>) -> bool {
    match (found, declared) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(found), Some(declared)) => declared < found,
    }
}

fn limit<T>(limit: Option<T>, text: impl Fn(T) -> String) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), text)
}

/// A retention as the configuration has it.
pub fn retention_text(retention: Retention) -> &'static str {
    match retention {
        Retention::DiscardOld => "discard_old",
        Retention::RefuseWhenFull => "refuse_when_full",
        Retention::WorkQueue => "work_queue",
    }
}

/// A duration as the configuration has it, to the millisecond: `7d`, `1h30m`, `250ms`.
pub fn duration_text(duration: Duration) -> String {
    const UNITS: [(&str, u64); 5] = [
        ("d", 24 * 60 * 60 * 1_000),
        ("h", 60 * 60 * 1_000),
        ("m", 60 * 1_000),
        ("s", 1_000),
        ("ms", 1),
    ];
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, each) in UNITS {
        if millis >= each {
            text.push_str(&format!("{}{unit}", millis / each));
            millis %= each;
        }
    }
    text
}

/// A size as the configuration has it: in the largest unit of two that divides it, or in bytes.
pub fn size_text(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let divides = |(_, each): &&(&str, u64)| bytes >= *each && bytes.is_multiple_of(*each);
    match UNITS.iter().find(divides) {
        Some((unit, each)) => format!("{}{unit}", bytes / each),
        None => bytes.to_string(),
    }
}
