//! `trunkline log stats`: a directory in numbers.

use std::path::Path;

use serde_json::{Value, json};
use trunkline::Result;
use trunkline::core::engine::{Retention, StreamSpec};
use trunkline_log::inspect::{ConsumerStats, Directory, DirectoryStats, StreamStats};

use crate::console::Console;
use crate::exit::Exit;
use crate::figures::{bytes, duration, grouped};
use crate::table::{Facts, Table};

use super::{owner, owner_json};

pub(super) fn run(directory: &Directory, console: &mut Console) -> Result<Exit> {
    let stats = directory.stats()?;
    if console.json {
        console.json_document(&as_json(directory.path(), &stats))?;
    } else {
        show(directory.path(), &stats, console)?;
    }
    Ok(Exit::Done)
}

fn show(dir: &Path, stats: &DirectoryStats, console: &mut Console) -> Result<()> {
    let mut facts = Facts::default();
    facts.add("directory", dir.display().to_string());
    facts.add("format", stats.format.to_string());
    facts.add("owner", owner(stats.owner));
    facts.add(
        "size",
        format!("{} in {} files", bytes(stats.bytes), grouped(stats.files)),
    );
    let journal = &stats.journal;
    let since = format!(
        "number {}, {} since",
        journal.journal,
        bytes(journal.since_bytes)
    );
    facts.add(
        "journal",
        match journal.snapshot {
            Some(number) => format!(
                "{since} snapshot {number} of {}",
                bytes(journal.snapshot_bytes)
            ),
            None => format!("{since} the beginning"),
        },
    );
    for problem in &journal.problems {
        facts.add("damaged", problem);
    }
    for stream in &stats.streams {
        if let Some(problem) = &stream.problem {
            facts.add("damaged", format!("stream {}: {problem}", stream.name));
        }
    }
    let mut text = facts.render(console.look);
    if !stats.streams.is_empty() {
        text.push('\n');
        text.push_str(&streams(&stats.streams).render(console.look));
    }
    if !stats.consumers.is_empty() {
        text.push('\n');
        text.push_str(&consumers(&stats.consumers).render(console.look));
    }
    if !stats.buckets.is_empty() {
        text.push('\n');
        let mut table = Table::new(&["bucket", ">keys", ">size", ">revision"]);
        for bucket in &stats.buckets {
            table.row([
                bucket.name.as_str().into(),
                grouped(bucket.keys).into(),
                bytes(bucket.bytes).into(),
                grouped(bucket.rev).into(),
            ]);
        }
        text.push_str(&table.render(console.look));
    }
    console.out.text(text)
}

fn streams(streams: &[StreamStats]) -> Table {
    let titles = [
        "stream",
        ">first",
        ">last",
        ">events",
        ">size",
        ">segments",
        ">on disk",
        "keeps",
    ];
    let mut table = Table::new(&titles);
    for stream in streams {
        let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), grouped);
        let standing = stream.standing.as_ref();
        let has_events = standing.filter(|standing| standing.events > 0);
        let range = |number: Option<u64>| match (standing, has_events) {
            (Some(_), None) => "-".to_owned(),
            _ => number.map_or_else(|| "?".to_owned(), |number| number.to_string()),
        };
        table.row([
            stream.name.as_str().into(),
            range(standing.map(|standing| standing.first)).into(),
            range(standing.map(|standing| standing.tail.saturating_sub(1))).into(),
            number(standing.map(|standing| standing.events)).into(),
            standing
                .map_or_else(|| "?".to_owned(), |standing| bytes(standing.bytes))
                .into(),
            number(standing.map(|standing| standing.segments)).into(),
            bytes(stream.file_bytes).into(),
            keeps(stream.spec.as_ref()).into(),
        ]);
    }
    table
}

fn keeps(spec: Option<&StreamSpec>) -> String {
    let Some(spec) = spec else {
        return "not known to the journal".to_owned();
    };
    let limits = [
        spec.max_age.map(duration),
        spec.max_events
            .map(|events| format!("{} events", grouped(events))),
        spec.max_bytes.map(bytes),
        (spec.retention == Retention::WorkQueue).then(|| "until done".to_owned()),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    match limits.is_empty() {
        true => "everything".to_owned(),
        false => limits.join(", "),
    }
}

fn consumers(consumers: &[ConsumerStats]) -> Table {
    let titles = [
        "consumer",
        "stream",
        ">floor",
        ">settled to",
        ">pending",
        ">waiting",
        ">expired",
    ];
    let mut table = Table::new(&titles);
    for consumer in consumers {
        let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), grouped);
        table.row([
            consumer.spec.at.consumer.as_str().into(),
            consumer.spec.at.stream.as_str().into(),
            consumer.floor.to_string().into(),
            consumer.highest.to_string().into(),
            number(consumer.pending).into(),
            number(consumer.waiting).into(),
            grouped(consumer.lost).into(),
        ]);
    }
    table
}

/// A stream's specification, for programs.
pub(super) fn spec_json(spec: &StreamSpec) -> Value {
    json!({
        "subjects": spec.subjects.iter().map(trunkline::Filter::as_str).collect::<Vec<_>>(),
        "retention": match spec.retention {
            Retention::DiscardOld => "discard_old",
            Retention::RefuseWhenFull => "refuse_when_full",
            Retention::WorkQueue => "work_queue",
        },
        "max_events": spec.max_events,
        "max_bytes": spec.max_bytes,
        "max_age_ms": spec.max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        "max_message_bytes": spec.max_message,
        "metadata": spec.metadata,
    })
}

fn as_json(dir: &Path, stats: &DirectoryStats) -> Value {
    let stream = |stream: &StreamStats| {
        let standing = stream.standing.as_ref();
        json!({
            "name": stream.name,
            "first": standing.map(|standing| standing.first),
            "tail": standing.map(|standing| standing.tail),
            "events": standing.map(|standing| standing.events),
            "bytes": standing.map(|standing| standing.bytes),
            "segments": standing.map(|standing| standing.segments),
            "first_at": standing.and_then(|standing| standing.first_at).map(|at| at.to_string()),
            "file_bytes": stream.file_bytes,
            "problem": stream.problem,
            "spec": stream.spec.as_ref().map(spec_json),
        })
    };
    let consumer = |consumer: &ConsumerStats| {
        let spec = &consumer.spec;
        json!({
            "name": spec.at.consumer.as_str(),
            "stream": spec.at.stream.as_str(),
            "filters": spec.filters.iter().map(trunkline::Filter::as_str).collect::<Vec<_>>(),
            "floor": consumer.floor,
            "highest": consumer.highest,
            "pending": consumer.pending,
            "waiting": consumer.waiting,
            "expired": consumer.lost,
        })
    };
    json!({
        "directory": dir,
        "format": stats.format,
        "owner": owner_json(stats.owner),
        "bytes": stats.bytes,
        "files": stats.files,
        "streams": stats.streams.iter().map(stream).collect::<Vec<_>>(),
        "consumers": stats.consumers.iter().map(consumer).collect::<Vec<_>>(),
        "buckets": stats.buckets.iter().map(|bucket| json!({
            "name": bucket.name,
            "keys": bucket.keys,
            "bytes": bucket.bytes,
            "revision": bucket.rev,
        })).collect::<Vec<_>>(),
        "journal": {
            "snapshot": stats.journal.snapshot,
            "snapshot_bytes": stats.journal.snapshot_bytes,
            "journal": stats.journal.journal,
            "since_bytes": stats.journal.since_bytes,
            "problems": stats.journal.problems,
        },
    })
}
