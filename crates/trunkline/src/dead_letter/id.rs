//! What a dead letter is called.

use std::fmt;
use std::str::FromStr;

use trunkline_core::engine::Seq;
use trunkline_core::{Error, ErrorKind, Filter, Name, Result, Subject};

/// Names a dead letter, as people type it and programs keep it.
///
/// ```
/// use trunkline::dead_letter::Id;
///
/// let id: Id = "billing/EVENTS/12".parse()?;
/// assert_eq!(id.consumer().unwrap().as_str(), "billing");
/// assert_eq!(id.to_string(), "billing/EVENTS/12");
/// # Ok::<(), trunkline::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Id {
    /// `CONSUMER/STREAM/SEQUENCE`: the event of that sequence, given up by that consumer. With
    /// `@GENERATION` behind it the one of an earlier generation of the consumer; without, the latest.
    Event {
        /// Who gave it up.
        consumer: Name,
        /// The stream of the event.
        stream: Name,
        /// Its place in there.
        seq: Seq,
        /// Which generation of the consumer; none means the latest that gave it up.
        generation: Option<u64>,
    },
    /// `entry/SEQUENCE`: what has that place in the dead-letter stream and is no dead letter of ours.
    Entry(Seq),
}

/// What an [`Id::Entry`] begins with; no consumer's letter has two parts.
const ENTRY: &str = "entry";

impl Id {
    /// The consumer, but for what is no dead letter of ours.
    pub fn consumer(&self) -> Option<&Name> {
        match self {
            Id::Event { consumer, .. } => Some(consumer),
            Id::Entry(_) => None,
        }
    }

    /// The stream of the event, but for what is no dead letter of ours.
    pub fn stream(&self) -> Option<&Name> {
        match self {
            Id::Event { stream, .. } => Some(stream),
            Id::Entry(_) => None,
        }
    }
}

/// The subject of the entries of an event and a consumer.
pub(crate) fn subject(root: &Subject, stream: &Name, consumer: &Name, seq: Seq) -> Result<Subject> {
    Subject::new(format!("{root}.{stream}.{consumer}.{seq}"))
}

/// The subjects of all entries of a stream or a consumer, or of both.
pub(super) fn subjects(
    root: &Subject,
    stream: Option<&Name>,
    consumer: Option<&Name>,
) -> Result<Filter> {
    if stream.is_none() && consumer.is_none() {
        // What is no dead letter of ours too.
        return Filter::new(format!("{root}.>"));
    }
    let token = |name: Option<&Name>| name.map_or("*".to_owned(), ToString::to_string);
    Filter::new(format!("{root}.{}.{}.*", token(stream), token(consumer)))
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Id::Event {
                consumer,
                stream,
                seq,
                generation,
            } => {
                write!(f, "{consumer}/{stream}/{seq}")?;
                generation.map_or(Ok(()), |generation| write!(f, "@{generation}"))
            }
            Id::Entry(seq) => write!(f, "{ENTRY}/{seq}"),
        }
    }
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let id = match parts.as_slice() {
            [ENTRY, seq] => number(seq).map(Id::Entry),
            [consumer, stream, place] => {
                let (seq, generation) = match place.split_once('@') {
                    None => (number(place), Some(None)),
                    Some((seq, generation)) => (number(seq), number(generation).map(Some)),
                };
                let names = Name::new(consumer).ok().zip(Name::new(stream).ok());
                names
                    .zip(seq.zip(generation))
                    .map(|((consumer, stream), (seq, generation))| Id::Event {
                        consumer,
                        stream,
                        seq,
                        generation,
                    })
            }
            _ => None,
        };
        id.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidName,
                format!(
                    "{text:?} names no dead letter: write CONSUMER/STREAM/SEQUENCE, as in billing/EVENTS/12"
                ),
            )
        })
    }
}

/// Digits only: one number has one text.
fn number(text: &str) -> Option<u64> {
    let plain = !text.starts_with('+') && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written_and_nothing_else_is() {
        for text in [
            "billing/EVENTS/12",
            "billing/EVENTS/12@0",
            "a/b/18446744073709551615@3",
            "entry/17",
        ] {
            assert_eq!(text.parse::<Id>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "billing",
            "billing/EVENTS",
            "entry/x",
            "billing/EVENTS/x",
            "billing/EVENTS/+1",
            "billing/EVENTS/01",
            "billing/EVENTS/1@",
            "bil ling/EVENTS/1",
            "billing/EVENTS/1/2",
        ] {
            let error = bad.parse::<Id>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidName, "{bad:?}");
        }
    }

    #[test]
    fn subjects_are_by_stream_then_consumer() {
        let root = Subject::new("dlq").unwrap();
        let name = |text| Name::new(text).unwrap();
        let made = subject(&root, &name("EVENTS"), &name("billing"), 12).unwrap();
        assert_eq!(made.as_str(), "dlq.EVENTS.billing.12");
        let filter = |stream, consumer| subjects(&root, stream, consumer).unwrap().to_string();
        assert_eq!(filter(None, None), "dlq.>");
        let (stream, consumer) = (name("EVENTS"), name("billing"));
        assert_eq!(filter(None, Some(&consumer)), "dlq.*.billing.*");
        assert_eq!(filter(Some(&stream), None), "dlq.EVENTS.*.*");
        let both = filter(Some(&stream), Some(&consumer));
        assert_eq!(both, "dlq.EVENTS.billing.*");
    }
}
