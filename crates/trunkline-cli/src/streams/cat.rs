//! `trunkline streams cat`: the stream as it is stored, event or not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use trunkline::core::engine::{Credit, StoredEvent};
use trunkline::core::wire::encode_structured;
use trunkline::{Bus, Error, ErrorKind, Filter, Name, Result, Start};

use crate::console::Console;
use crate::figures::bytes;
use crate::look::Style;
use crate::moment::Times;
use crate::payload::short;
use crate::plain::{fit, width, without_controls};
use crate::replay::{name, parsed_start};

/// What is read at once.
const PAGE: Credit = Credit {
    items: 256,
    bytes: 4 << 20,
};

#[derive(Debug, Args)]
pub(crate) struct Cat {
    /// The stream.
    #[arg(value_name = "NAME", value_parser = name)]
    stream: Name,
    /// Where to begin: `first`, a sequence, an RFC 3339 time, how long ago (`10m`) or `last:N`.
    #[arg(long, value_name = "POSITION", default_value = "first", value_parser = parsed_start)]
    from: Start,
    /// Stop after that many.
    #[arg(long, short = 'n', value_name = "N")]
    limit: Option<u64>,
    /// Times in UTC and not in the zone of this machine.
    #[arg(long)]
    utc: bool,
}

/// Something stored, for programs. One of the last three members is there.
#[derive(Serialize)]
struct Entry<'a> {
    stream: &'a str,
    seq: u64,
    at: String,
    subject: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(&'a str, &'a str)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

pub(super) async fn run(bus: &Bus, options: &Cat, console: &mut Console) -> Result<()> {
    let times = if options.utc {
        Times::utc()
    } else {
        Times::local()
    };
    let mut left = options.limit.unwrap_or(u64::MAX);
    let mut from = options.from;
    let mut end = None;
    while left > 0 {
        let all = [Filter::all()];
        let page = bus
            .engine()
            .log()
            .read(&options.stream, from, &all, PAGE)
            .await?;
        // Where the stream ended when this began.
        let tail = *end.get_or_insert(page.tail);
        for event in &page.events {
            if event.seq >= tail || left == 0 {
                break;
            }
            write(bus, console, &options.stream, event, &times)?;
            left -= 1;
        }
        if page.next >= tail {
            break;
        }
        if from == Start::Seq(page.next) {
            let fault = format!("reading {} stands still at {}", options.stream, page.next);
            return Err(Error::new(ErrorKind::Internal, fault));
        }
        from = Start::Seq(page.next);
    }
    console.out.flush()
}

fn write(
    bus: &Bus,
    console: &mut Console,
    stream: &Name,
    event: &StoredEvent,
    times: &Times,
) -> Result<()> {
    let envelope = bus.envelope(stream, event);
    if !console.json {
        let place = format!("{}  {}", event.seq, times.date_and_clock(event.at));
        let subject = without_controls(event.subject.as_str());
        let taken = width(&place) + width(&subject) + 4;
        let (left, subject) = if taken + 10 > console.look.width {
            // Too narrow for one line: the content goes below.
            let room = console.look.width.saturating_sub(2);
            (room, format!("{subject}\n  "))
        } else {
            (console.look.width - taken, format!("{subject}  "))
        };
        let content = match &envelope {
            Ok(envelope) => short(envelope.data(), left),
            Err(_) => fit(&no_event(&event.body.to_bytes()?), left).into_owned(),
        };
        let style = envelope.map_or(Style::Bad, |_| Style::Plain);
        let line = format!(
            "{}  {subject}{}",
            console.look.paint(Style::Faint, &place),
            console.look.paint(style, &content)
        );
        return console.out.line(line.trim_end());
    }
    let body = event.body.to_bytes()?;
    let json = envelope
        .and_then(|envelope| encode_structured(&envelope))
        .ok();
    let event_json = json
        .as_ref()
        .and_then(|json| serde_json::from_slice(json).ok());
    let text = match event_json {
        Some(_) => None,
        None => str::from_utf8(&body).ok(),
    };
    let binary = event_json.is_none() && text.is_none();
    console.json_line(&Entry {
        stream: stream.as_str(),
        seq: event.seq,
        at: event.at.to_string(),
        subject: event.subject.as_str(),
        headers: event.headers.iter().collect(),
        event: event_json,
        text,
        base64: binary.then(|| STANDARD.encode(&body)),
    })
}

fn no_event(body: &[u8]) -> String {
    match str::from_utf8(body) {
        Ok(text) => format!("(no CloudEvent) {}", without_controls(text)),
        Err(_) => format!(
            "(no CloudEvent: {} of binary data)",
            bytes(body.len() as u64)
        ),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trunkline::Headers;
    use trunkline::core::Subject;
    use trunkline::core::engine::{Append, AppendMode, Expect};
    use trunkline::core::wire::Body;

    use super::*;
    use crate::console::tests::kept;
    use crate::filled::filled;

    async fn append(bus: &Bus, body: &'static [u8]) {
        let append = Append {
            subject: Subject::new("events.odd").unwrap(),
            key: None,
            id: None,
            expect: Expect::Any,
            headers: Headers::new(),
            body: Body::Bytes(Bytes::from_static(body)),
        };
        let stream = Name::new("EVENTS").unwrap();
        let log = bus.engine().log();
        let batch = std::iter::once(append).collect();
        log.append(&stream, batch, AppendMode::Each)
            .completed()
            .await
            .unwrap();
    }

    async fn catted(arguments: &[&str], json: bool, width: usize) -> String {
        let bus = filled().await;
        append(&bus, b"\x1b[2Jplain").await;
        append(&bus, b"\xff\x00").await;
        let options = crate::parsed::<Cat>(arguments);
        let (mut console, out, _) = kept(width);
        console.json = json;
        run(&bus, &options, &mut console).await.unwrap();
        out.text()
    }

    #[tokio::test]
    async fn what_is_no_event_is_shown_and_harmless() {
        let text = catted(&["EVENTS", "--from", "4"], false, 80).await;
        let ends: Vec<_> = text.lines().map(|line| &line[28..]).collect();
        assert_eq!(
            ends,
            [
                "events.mail.sent  \"to you\"",
                "events.odd  (no CloudEvent) ␛[2Jplain",
                "events.odd  (no CloudEvent: 2 B of binary data)",
            ]
        );
        let narrow = catted(&["EVENTS", "-n", "1"], false, 40).await;
        assert!(
            narrow.ends_with("events.order.placed\n  {\"total\":1}\n"),
            "{narrow}"
        );
    }

    #[tokio::test]
    async fn programs_get_the_event_or_the_bytes() {
        let text = catted(&["EVENTS", "--from", "last:3"], true, 80).await;
        let entries: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(entries[0]["event"]["data"], "to you");
        assert_eq!(
            (&entries[1]["seq"], &entries[1]["text"]),
            (&5.into(), &"\x1b[2Jplain".into())
        );
        assert_eq!(entries[2]["base64"], "/wA=");
        assert!(!text.contains('\x1b'));
    }
}
