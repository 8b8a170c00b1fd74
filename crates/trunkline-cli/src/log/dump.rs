//! `trunkline log dump`: what is in a directory, one object a line.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use trunkline::Result;
use trunkline::core::engine::StoredEvent;
use trunkline::core::wire::encode_structured;
use trunkline_log::inspect::{Dumped, EventsFrom, StateLine};

use crate::console::Console;
use crate::exit::Exit;

use super::Dir;
use super::stats::spec_json;

#[derive(Debug, Args)]
pub(crate) struct Dump {
    #[command(flatten)]
    dir: Dir,
    /// The stream whose events are printed.
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "state",
        conflicts_with = "state"
    )]
    stream: Option<String>,
    /// The first sequence.
    #[arg(
        long,
        value_name = "SEQ",
        default_value_t = 1,
        conflicts_with = "state"
    )]
    from: u64,
    /// Stop after that many events.
    #[arg(long, short = 'n', value_name = "N", conflicts_with = "state")]
    limit: Option<u64>,
    /// Streams, consumers and keys instead of events.
    #[arg(long)]
    state: bool,
}

/// An event as it is stored. One of the last two members is there.
#[derive(Serialize)]
struct Entry<'a> {
    stream: &'a str,
    seq: u64,
    at: String,
    subject: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(&'a str, &'a str)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

/// Ends with 1 if something was passed over, so that a script does not take a part for all.
pub(super) fn run(options: &Dump, console: &mut Console) -> Result<Exit> {
    let directory = options.dir.open()?;
    let mut is_whole = true;
    match &options.stream {
        None => directory.state(&mut |line| state(line, console, &mut is_whole))?,
        Some(stream) => {
            let wanted = EventsFrom {
                stream: stream.clone(),
                from: options.from,
                limit: options.limit.unwrap_or(u64::MAX),
            };
            directory.events(&wanted, &mut |dumped| match dumped {
                Dumped::Event(event) => write(stream, &event, console),
                Dumped::Skipped {
                    file,
                    offset,
                    first,
                    last,
                    why,
                } => {
                    is_whole = false;
                    let what = match last {
                        Some(last) if last == first => format!("event {first}"),
                        Some(last) => format!("events {first} to {last}"),
                        None => format!("whatever was stored from {first} on"),
                    };
                    // What was printed before it comes before it.
                    console.out.flush()?;
                    let file = file.display();
                    console.say(format_args!(
                        "skipped {what}: {file} at offset {offset}: {why}"
                    ));
                    Ok(())
                }
            })?;
        }
    }
    Ok(match is_whole {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

fn write(stream: &str, event: &StoredEvent, console: &mut Console) -> Result<()> {
    let body = event.body.to_bytes()?;
    let json = event
        .body
        .to_event(&event.headers)
        .and_then(|envelope| encode_structured(&envelope));
    let json = json.ok().and_then(|json| {
        let text = String::from_utf8(json.to_vec()).ok()?;
        RawValue::from_string(text).ok()
    });
    console.json_line(&Entry {
        stream,
        seq: event.seq,
        at: event.at.to_string(),
        subject: event.subject.as_str(),
        headers: event.headers.iter().collect(),
        base64: json.is_none().then(|| STANDARD.encode(&body)),
        event: json,
    })
}

fn state(line: StateLine, console: &mut Console, is_whole: &mut bool) -> Result<()> {
    let value = match line {
        StateLine::Stream(known) => {
            let mut value = spec_json(&known.spec);
            value["kind"] = "stream".into();
            value["name"] = known.spec.name.as_str().into();
            value
        }
        StateLine::Consumer(known) => json!({
            "kind": "consumer",
            "name": known.spec.at.consumer.as_str(),
            "stream": known.spec.at.stream.as_str(),
            "filters": known.spec.filters.iter().map(trunkline::Filter::as_str).collect::<Vec<_>>(),
            "floor": known.settled.floor(),
            "settled_above": known.settled.above().collect::<Vec<_>>(),
            "expired": known.lost,
        }),
        StateLine::Key {
            bucket,
            key,
            value,
            rev,
            at,
            ends,
        } => {
            let mut line = json!({
                "kind": "key",
                "bucket": bucket.as_str(),
                "key": key.as_str(),
                "revision": rev,
                "at": at.to_string(),
                "ends": ends.map(|ends| ends.to_string()),
            });
            match value {
                Ok(value) => match std::str::from_utf8(&value) {
                    Ok(text) => line["text"] = text.into(),
                    Err(_) => line["base64"] = STANDARD.encode(&value).into(),
                },
                Err(error) => {
                    *is_whole = false;
                    console.out.flush()?;
                    console.say(format_args!(
                        "skipped the value of key {key} of bucket {bucket}: {}",
                        error.message()
                    ));
                    line["value"] = serde_json::Value::Null;
                }
            }
            line
        }
        StateLine::Skipped { file, offset, why } => {
            *is_whole = false;
            console.out.flush()?;
            let file = file.display();
            console.say(format_args!("skipped: {file} at offset {offset}: {why}"));
            return Ok(());
        }
        _ => return Ok(()),
    };
    console.json_line(&value)
}
