//! `trunkline pub`: one event, or one for each line.

mod many;
mod outcome;
mod told;

use std::fs;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use trunkline::core::envelope::JsonText;
use trunkline::core::wire::{decode_structured, essence};
use trunkline::core::{Clock, SystemClock};
use trunkline::{Bus, Data, Envelope, Error, ErrorKind, EventId, Published, RawEvent, Result};

use crate::console::Console;
use crate::exit::Exit;
use crate::interrupt::Interrupt;
use crate::payload::member;
use outcome::{Outcome, Report};

/// What is read as an event at most, before the bus says what it takes.
const MAX_LINE_FACTOR: usize = 2;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  trunkline pub order.placed '{\"total\":1}' --key o-1
  trunkline pub photo.taken @photo.jpg --content-type image/jpeg
  trunkline pub --file events.ndjson
  tail -f log.ndjson | trunkline pub - --type log.written --key-field host")]
pub(crate) struct Pub {
    /// The event's type; `-` reads events from standard input, one CloudEvent a line.
    #[arg(value_name = "TYPE")]
    event_type: Option<String>,
    /// Its data: JSON, or `@file` for what a file holds, or `@-` for standard input.
    data: Option<String>,
    /// Read events from a file, one a line; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    file: Option<PathBuf>,
    /// Lines are no CloudEvents but the data of events of this type.
    #[arg(long = "type", value_name = "TYPE")]
    lines_type: Option<String>,
    /// Take each line's key from this member of its data.
    #[arg(
        long,
        value_name = "NAME",
        requires = "lines_type",
        conflicts_with = "key"
    )]
    key_field: Option<String>,
    /// The key, within which events keep their order.
    #[arg(long)]
    key: Option<String>,
    /// Who made the event; `/trunkline/cli` unless given.
    #[arg(long)]
    source: Option<String>,
    /// The id; a new one unless given. Publishing an id again stores it once.
    #[arg(long)]
    id: Option<String>,
    /// The media type of the data, if it is not JSON.
    #[arg(long, value_name = "MEDIA-TYPE")]
    content_type: Option<String>,
}

/// What the arguments ask for.
enum What {
    /// One event of this type.
    One(String),
    /// One for each line of a file, or of standard input.
    Lines(Option<PathBuf>),
}

impl Pub {
    fn what(&self) -> Result<What> {
        let wrong = |fault: &str| Err(Error::new(ErrorKind::InvalidConfig, fault));
        let standard_input = self.event_type.as_deref() == Some("-");
        if self.file.is_none() && !standard_input {
            return match &self.event_type {
                Some(_) if self.lines_type.is_some() => wrong(
                    "`--type` is for lines; with one event the type stands alone: trunkline pub TYPE DATA",
                ),
                Some(event_type) => Ok(What::One(event_type.clone())),
                None => wrong("nothing to publish; give TYPE and DATA, `-`, or `--file FILE`"),
            };
        }
        if self.file.is_some() && self.event_type.is_some() {
            return wrong("with `--file`, give the type of bare JSON lines as `--type TYPE`");
        }
        if self.data.is_some() || self.id.is_some() || self.content_type.is_some() {
            return wrong(
                "lines are events of their own: leave out DATA, `--id` and `--content-type`",
            );
        }
        if self.lines_type.is_none() && (self.key.is_some() || self.source.is_some()) {
            return wrong(
                "a CloudEvent says its own key and source; `--key` and `--source` go with `--type`",
            );
        }
        let dash = |file: &PathBuf| file.as_os_str() == "-";
        Ok(What::Lines(self.file.clone().filter(|file| !dash(file))))
    }
}

pub(crate) async fn run(
    bus: &Bus,
    options: Pub,
    console: &mut Console,
    mut interrupt: Interrupt,
) -> Result<Exit> {
    match options.what()? {
        What::One(event_type) => {
            let publishing = async {
                let data = data(&options).await?;
                let event = one(&options, &event_type, bus.source(), data)?;
                publish_one(bus, event, console).await
            };
            tokio::select! {
                exit = publishing => exit,
                () = interrupt.asked() => Ok(Exit::Interrupted),
            }
        }
        What::Lines(file) => {
            let max_bytes = bus.engine().limits().max_message * MAX_LINE_FACTOR;
            let input = match file {
                None => {
                    if std::io::stdin().is_terminal() {
                        console.note("reading events from the terminal, one a line; ctrl-d ends");
                    }
                    crate::lines::read(std::io::stdin(), max_bytes)
                }
                Some(path) => {
                    let file = fs::File::open(&path)
                        .map_err(|error| unreadable(&path.to_string_lossy(), error))?;
                    crate::lines::read(file, max_bytes)
                }
            };
            many::run(bus, &options, input, console, interrupt).await
        }
    }
}

async fn publish_one(bus: &Bus, event: Envelope, console: &mut Console) -> Result<Exit> {
    let published = bus.publish_raw(vec![RawEvent::from(event)]).await;
    let mut report = Report::default();
    for published in published {
        report.count(&published);
        if console.json {
            console.json_line(&Outcome::of(None, &published))?;
            continue;
        }
        match &published {
            Published::Stored(receipt) => {
                let again = if receipt.duplicate {
                    ", where it was already"
                } else {
                    ""
                };
                console.out.line(format!(
                    "stored in {} as number {}{again} · id {}",
                    receipt.stream,
                    receipt.seq,
                    crate::plain::without_controls(&receipt.id.to_string())
                ))?;
            }
            Published::Sent(id) => console.out.line(format!(
                "sent to whoever listens · id {}",
                crate::plain::without_controls(&id.to_string())
            ))?,
            other => {
                let outcome = Outcome::of(None, other);
                console.say(format_args!("{outcome}"));
                if let Published::Refused(error) = other {
                    console.say(format_args!(
                        "  remedy: {}",
                        crate::exit::remedy(error.kind())
                    ));
                }
            }
        }
    }
    console.out.flush()?;
    Ok(report.exit())
}

/// The event that the arguments describe.
fn one(options: &Pub, event_type: &str, bus_source: &str, data: Data) -> Result<Envelope> {
    let id = match &options.id {
        Some(id) => EventId::new(id)?,
        None => EventId::generate(SystemClock.now()),
    };
    let source = options.source.as_deref().unwrap_or(bus_source);
    let mut event = Envelope::new(id, source, event_type, data)?.with_own_correlation();
    if let Some(key) = &options.key {
        event = event.with_key(key.as_str());
    }
    if let Some(content_type) = &options.content_type {
        event = event.with_content_type(content_type.as_str());
    }
    Ok(event)
}

async fn data(options: &Pub) -> Result<Data> {
    let Some(text) = &options.data else {
        return Ok(Data::None);
    };
    let bytes = match text.strip_prefix('@') {
        None => Bytes::copy_from_slice(text.as_bytes()),
        Some("-") => standard_input().await?,
        Some(path) => fs::read(path)
            .map_err(|error| unreadable(path, error))?
            .into(),
    };
    let media_type = options.content_type.as_deref().map(essence);
    let json = |media_type: &str| media_type.ends_with("/json") || media_type.ends_with("+json");
    if media_type.is_none_or(json) {
        return JsonText::new(&bytes).map(Data::Json).map_err(|error| {
            error.at("DATA (text is JSON in double quotes; for other data give --content-type)")
        });
    }
    Ok(match str::from_utf8(&bytes) {
        Ok(text) if media_type.is_some_and(|media_type| media_type.starts_with("text/")) => {
            Data::Text(text.into())
        }
        _ => Data::Binary(bytes),
    })
}

/// All of standard input, read on a thread of its own: ctrl-c must end a command that waits for it.
async fn standard_input() -> Result<Bytes> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = std::io::stdin().read_to_end(&mut bytes);
        // Whoever asked may have been interrupted.
        let _ = sender.send(read.map(|_| bytes.into()));
    });
    let lost = |_| Error::new(ErrorKind::Internal, "standard input was lost");
    let read = receiver.await.map_err(lost)?;
    read.map_err(|error| unreadable("standard input", error))
}

/// The event of one line.
fn of_line(options: &Pub, line: &Bytes, bus_source: &str) -> Result<Envelope> {
    let Some(event_type) = &options.lines_type else {
        return decode_structured(line);
    };
    let data = Data::Json(JsonText::new(line)?);
    let id = EventId::generate(SystemClock.now());
    let source = options.source.as_deref().unwrap_or(bus_source);
    let event = Envelope::new(id, source, event_type.as_str(), data)?.with_own_correlation();
    let key = match &options.key_field {
        None => options.key.clone(),
        Some(name) => Some(member(line, name).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidEvent,
                format!("the data has no member {name:?} with a text or a number, which the key should be"),
            )
        })?),
    };
    Ok(match key {
        Some(key) => event.with_key(key),
        None => event,
    })
}

fn unreadable(what: &str, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::PermissionDenied => ErrorKind::NotPermitted,
        _ => ErrorKind::InvalidConfig,
    };
    Error::new(kind, format!("{what} cannot be read")).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::kept;

    async fn envelope(arguments: &[&str]) -> Result<Envelope> {
        let options = crate::parsed::<Pub>(arguments);
        one(&options, "a.b", "/bus", data(&options).await?)
    }

    #[test]
    fn the_arguments_say_one_event_or_lines() {
        let kind = |arguments: &[&str]| match crate::parsed::<Pub>(arguments).what() {
            Ok(What::One(_)) => "one",
            Ok(What::Lines(None)) => "standard input",
            Ok(What::Lines(Some(_))) => "file",
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidConfig);
                "wrong"
            }
        };
        for (arguments, expected) in [
            (&["a.b"][..], "one"),
            (&["a.b", "1", "--key", "k", "--source", "/s"], "one"),
            (&["-"], "standard input"),
            (&["--file", "-"], "standard input"),
            (
                &["--file", "x", "--type", "a.b", "--key-field", "id"],
                "file",
            ),
            (&["-", "--type", "a.b", "--key", "k"], "standard input"),
            (&[], "wrong"),
            (&["a.b", "--type", "a.b"], "wrong"),
            (&["a.b", "--file", "x"], "wrong"),
            (&["-", "1"], "wrong"),
            (&["-", "--key", "k"], "wrong"),
            (&["-", "--id", "k"], "wrong"),
        ] {
            assert_eq!(kind(arguments), expected, "{arguments:?}");
        }
    }

    #[tokio::test]
    async fn data_is_json_unless_told_otherwise() {
        let event = envelope(&["a.b", " {\"n\":1} ", "--key", "k", "--id", "x"])
            .await
            .unwrap();
        assert_eq!(event.data().to_bytes().unwrap().as_ref(), b"{\"n\":1}");
        assert_eq!((event.key(), event.source()), (Some("k"), "/bus"));
        assert_eq!(envelope(&["a.b"]).await.unwrap().data(), &Data::None);
        let event = envelope(&["a.b", "hello", "--content-type", "text/plain"])
            .await
            .unwrap();
        assert_eq!(event.data(), &Data::Text("hello".into()));
        let event = envelope(&["a.b", "hello", "--content-type", "image/png"])
            .await
            .unwrap();
        assert_eq!(event.data(), &Data::Binary(Bytes::from_static(b"hello")));
        let error = envelope(&["a.b", "hello"]).await.unwrap_err();
        assert!(error.message().contains("--content-type"), "{error}");
        let error = envelope(&["a.b", "@/no/such/file"]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }

    #[tokio::test]
    async fn one_event_is_stored_and_told() {
        let bus = Bus::connect("memory:").await.unwrap();
        for (json, expected) in [
            (false, "stored in EVENTS as number 1 · id x\n"),
            (
                true,
                "{\"status\":\"stored\",\"id\":\"x\",\"stream\":\"EVENTS\",\"seq\":1,\"duplicate\":true}\n",
            ),
        ] {
            let options = crate::parsed::<Pub>(&["a.b", "1", "--id", "x"]);
            let (mut console, out, _) = kept(80);
            console.json = json;
            let exit = run(&bus, options, &mut console, Interrupt::never()).await;
            assert_eq!(exit.unwrap(), Exit::Done);
            assert_eq!(out.text(), expected);
        }
        let options = crate::parsed::<Pub>(&["a.1"]);
        let (mut console, _, talk) = kept(80);
        let exit = run(&bus, options, &mut console, Interrupt::never()).await;
        assert_eq!(exit.unwrap(), Exit::Failed);
        assert!(
            talk.text().starts_with("refused: TL-0004: "),
            "{}",
            talk.text()
        );
    }
}
