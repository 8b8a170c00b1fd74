//! Events as programs read them, one a line, and what is to be said of what is no event.

use serde::Serialize;
use serde_json::value::RawValue;
use trunkline::core::wire::encode_structured;
use trunkline::{Bus, Error, ErrorKind, Filter, Incoming, Item, Result};

use crate::console::Console;
use crate::figures::grouped;

/// Writes an event as CloudEvents has it: what the HTTP door writes too.
pub(crate) fn event_line(console: &mut Console, event: &Incoming) -> Result<()> {
    let json = encode_structured(&event.envelope)?;
    console.json_text_line(text(&json)?)
}

#[derive(Serialize)]
struct Positioned<'a> {
    stream: Option<&'a str>,
    seq: Option<u64>,
    at: Option<String>,
    event: &'a RawValue,
}

/// Writes an event within what says where and when it was stored.
pub(crate) fn positioned_line(console: &mut Console, event: &Incoming) -> Result<()> {
    let json = encode_structured(&event.envelope)?;
    let raw: &RawValue = serde_json::from_str(text(&json)?).map_err(broken)?;
    let stored = event.stored.as_ref();
    console.json_line(&Positioned {
        stream: stored.map(|stored| stored.stream.as_str()),
        seq: stored.map(|stored| stored.seq),
        at: stored.map(|stored| stored.at.to_string()),
        event: raw,
    })
}

/// Says what came in place of an event.
pub(crate) fn remark<T>(console: &mut Console, item: &Item<T>) {
    match item {
        Item::Event(_) => {}
        Item::Lagged { at_least } => console.note(format_args!(
            "note: too slow: at least {} ephemeral events are lost",
            grouped(*at_least)
        )),
        Item::Gap { stream, gap } => console.note(format_args!(
            "note: stream {stream} no longer has {} to {}: at most {} events were missed",
            gap.from,
            gap.to,
            grouped(gap.at_most())
        )),
        Item::Reset { stream } => console.note(format_args!(
            "note: the bus was restarted and had kept nothing: stream {stream} begins anew"
        )),
        Item::Resumed => console.note(
            "note: the connection was lost and is back; ephemeral events in between are gone",
        ),
        Item::Invalid(error) => console.note(format_args!("note: not an event: {error}")),
        // `Item` may grow; that there was something is all that can be told.
        _ => console.note("note: the bus told something that this version does not know"),
    }
}

/// Says that events come from now on: until one does nothing else tells that all is well, and
/// whoever waits for it may publish without missing any.
pub(crate) fn following(console: &mut Console, filters: &[Filter]) {
    let names: Vec<&str> = filters.iter().map(Filter::as_str).collect();
    let what = match names.as_slice() {
        [">"] => "all events".to_owned(),
        names => names.join(", "),
    };
    console.note(format_args!("following {what}; ctrl-c ends it"));
}

/// Names the filter that was probably meant, where one matches nothing that is stored.
pub(crate) async fn hint(bus: &Bus, filters: &[Filter], console: &mut Console) {
    for filter in filters {
        // A hint that cannot be had is no reason to fail.
        if let Ok(Some(near)) = bus.nearest_filter(filter).await {
            console.note(format_args!(
                "note: {filter} matches no event that is stored; {near} would"
            ));
        }
    }
}

fn text(json: &[u8]) -> Result<&str> {
    str::from_utf8(json).map_err(|error| {
        Error::new(ErrorKind::Internal, "an encoded event is not UTF-8").caused_by(error)
    })
}

fn broken(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Internal, "an encoded event is not JSON").caused_by(error)
}
