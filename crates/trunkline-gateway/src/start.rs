//! Where a reader starts, in each stream: a place that it can name, so that it can come back to it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use trunkline::{Bus, Error, ErrorKind, Filter, Name, Result, Seq, Start};

/// The last sequence that a reader has seen of each stream: `EVENTS:17` or `A:17,B:3`. It is the
/// `id` of a server-sent event, so that `Last-Event-ID` resumes exactly after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen(BTreeMap<Name, Seq>);

impl Seen {
    pub(crate) fn set(&mut self, stream: &Name, seq: Seq) {
        match self.0.get_mut(stream) {
            Some(seen) => *seen = seq,
            None => drop(self.0.insert(stream.clone(), seq)),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (stream, seq)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{stream}:{seq}")?;
        }
        Ok(())
    }
}

impl FromStr for Seen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            Error::new(
                ErrorKind::InvalidPosition,
                format!(
                    "last event id {text:?} is not `stream:sequence`, or several of them with commas between"
                ),
            )
        };
        let mut seen = BTreeMap::new();
        for part in text.split(',') {
            let (stream, seq) = part.split_once(':').ok_or_else(refuse)?;
            let stream = Name::new(stream).map_err(|_| refuse())?;
            // One more must be a sequence too: it is where reading goes on.
            let seq = seq
                .parse()
                .ok()
                .filter(|seq| *seq < Seq::MAX)
                .ok_or_else(refuse)?;
            if seen.insert(stream, seq).is_some() {
                return Err(refuse());
            }
        }
        Ok(Self(seen))
    }
}

/// Where reading of one stream begins.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) stream: Name,
    /// What the engine is asked for.
    pub(crate) from: Start,
    /// The sequence at or after which the first event is.
    pub(crate) next: Seq,
    /// The sequence that the next event stored had, when this was looked up.
    pub(crate) tail: Seq,
    /// Whether an event that matches is stored there.
    pub(crate) found: bool,
    /// The reader had seen this sequence, which was never stored: the stream was made anew.
    pub(crate) reset: Option<Seq>,
}

/// A place in every stream that stores what the filter matches.
///
/// # Errors
/// [`ErrorKind::MatchesNothing`], [`ErrorKind::InvalidPosition`] when the reader saw a stream that
/// the filter does not reach, and the engine's own.
pub(crate) async fn places(
    bus: &Bus,
    filter: &Filter,
    from: Start,
    seen: Option<&Seen>,
) -> Result<Vec<Place>> {
    let streams = bus.streams_matching(filter)?;
    if let Some(stray) =
        seen.and_then(|seen| seen.0.keys().find(|stream| !streams.contains(stream)))
    {
        return Err(Error::new(
            ErrorKind::InvalidPosition,
            format!(
                "the last event id names stream {stray}, but {filter} reads {streams:?}; resume with the same filter"
            ),
        ));
    }
    let mut places = Vec::with_capacity(streams.len());
    for stream in streams {
        let resumed = seen.map(|seen| seen.0.get(&stream).copied());
        places.push(match resumed {
            None => place(bus, filter, stream, from).await?,
            Some(Some(seq)) => resume(bus, filter, stream, seq).await?,
            // It came after the reader had left, so all of it is new.
            Some(None) => place(bus, filter, stream, Start::First).await?,
        });
    }
    Ok(places)
}

async fn resume(bus: &Bus, filter: &Filter, stream: Name, seen: Seq) -> Result<Place> {
    let found = place(bus, filter, stream, Start::Seq(seen + 1)).await?;
    if seen < found.tail {
        return Ok(found);
    }
    // A bus in memory that was started again counts from 1. Waiting for sequences to come round
    // again would skip events without a word.
    let again = place(bus, filter, found.stream, Start::First).await?;
    Ok(Place {
        reset: Some(seen),
        ..again
    })
}

async fn place(bus: &Bus, filter: &Filter, stream: Name, from: Start) -> Result<Place> {
    let page = bus.read(&stream, filter, from, 1).await?;
    let next = match from {
        // Kept as asked, so that whoever starts before the first stored event learns of the gap.
        Start::Seq(seq) => seq.max(1),
        _ => page.events.first().map_or(page.next, |(seq, _)| *seq),
    };
    let from = match from {
        Start::LastPerSubject => from,
        _ => Start::Seq(next),
    };
    Ok(Place {
        stream,
        from,
        next,
        tail: page.tail,
        found: !page.events.is_empty(),
        reset: None,
    })
}

/// What a reader at these places has seen.
pub(crate) fn seen(places: &[Place]) -> Seen {
    Seen(
        places
            .iter()
            .map(|place| (place.stream.clone(), place.next - 1))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_read_as_it_is_written() {
        for text in ["EVENTS:0", "EVENTS:17", "A:1,B_2:3"] {
            assert_eq!(text.parse::<Seen>().unwrap().to_string(), text);
        }
        let max = format!("EVENTS:{}", Seq::MAX);
        for bad in [
            "",
            "17",
            "EVENTS",
            "EVENTS:",
            "EVENTS:-1",
            "EVENTS:1,",
            "A:1,A:2",
            "a b:1",
            &max,
        ] {
            assert_eq!(
                bad.parse::<Seen>().unwrap_err().kind(),
                ErrorKind::InvalidPosition,
                "{bad:?}"
            );
        }
    }
}
