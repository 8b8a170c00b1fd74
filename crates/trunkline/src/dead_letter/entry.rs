//! A dead letter as it is stored: the original as it was, and its story beside it.
//!
//! `WIRE.md` states it for other languages; `testdata/dead-letters.json` of the core has the vectors.

use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Value, json};
use smol_str::SmolStr;
use trunkline_core::engine::{Seq, StoredEvent};
use trunkline_core::wire::Body;
use trunkline_core::{Error, ErrorKind, EventId, Headers, Name, Result, Subject, Timestamp};

use super::text::{abridged, escaped, unescaped};

/// What begins the names of all headers of a story.
const OWN: &str = "trunkline-";
/// Stands before a header of the original whose name begins as those of a story do.
const ORIGINAL: &str = "Trunkline-Original-";
/// The form of a story; what versions before it wrote had none.
const FORM: &str = "1";
/// Bytes of the message of the error, and of its causes together, as they are written.
const MAX_ERROR_BYTES: usize = 4 << 10;
const MAX_CAUSES_BYTES: usize = 4 << 10;
/// Bytes of all attempts as they are written; the oldest are left out above it.
const MAX_ATTEMPTS_BYTES: usize = 4 << 10;
/// Bytes of one attempt's error.
const MAX_ATTEMPT_ERROR_BYTES: usize = 120;
/// A longer key is in the event only.
const MAX_KEY_BYTES: usize = 1 << 10;
/// Bytes of a reason, a name of a service or version: bounded because they come from outside.
const MAX_WORD_BYTES: usize = 200;

/// An event that a consumer gave up: the event byte for byte, and what happened to it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Who gave it up.
    pub consumer: Name,
    /// How often the consumer had been reset by then.
    pub generation: u64,
    /// Where the original is stored, or was.
    pub stream: Name,
    /// What tells the stream from another of its name, where the engine knows.
    pub incarnation: Option<SmolStr>,
    /// The place of the original in its stream.
    pub seq: Seq,
    /// When the original was stored; stories of versions before do not say.
    pub stored_at: Option<Timestamp>,
    /// Where the original was published, root included.
    pub subject: Subject,
    /// The key whose order it kept.
    pub key: Option<SmolStr>,
    /// Why it was given up, in a word: `failed`, `panicked`, `undecodable`, `crash_loop`.
    pub reason: SmolStr,
    /// What the last attempt failed with.
    pub error: String,
    /// What caused that, and what caused the cause, and so on.
    pub causes: Vec<String>,
    /// How often a handler said no.
    pub failures: u32,
    /// How often it was begun since and had no outcome, because its member died.
    pub starts: u32,
    /// The last attempts, oldest first: at most [`Entry::MAX_ATTEMPTS`].
    pub attempts: Vec<Attempt>,
    /// When it failed first.
    pub first_failure: Timestamp,
    /// When it failed last.
    pub last_failure: Timestamp,
    /// The `source` of the program that gave it up.
    pub service: Option<SmolStr>,
    /// The version of Trunkline that wrote the story.
    pub version: SmolStr,
    /// The sequence of an entry for the same place in a stream that was there before: of an earlier
    /// generation, or of another stream of the same name.
    pub previous: Option<Seq>,
    /// The headers of the original, as they were.
    pub headers: Headers,
    /// The original, as it was.
    pub body: Body,
}

/// One attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it failed.
    pub at: Timestamp,
    /// Why, in a word.
    pub reason: SmolStr,
    /// The error and its causes in one line, shortened.
    pub error: String,
}

impl Attempt {
    /// An attempt with its error in short.
    pub fn new(at: Timestamp, reason: &str, error: &str) -> Self {
        Self {
            at,
            reason: abridged(reason, MAX_WORD_BYTES).into(),
            error: abridged(error, MAX_ATTEMPT_ERROR_BYTES).to_owned(),
        }
    }
}

impl Entry {
    /// The most attempts that a story has.
    pub const MAX_ATTEMPTS: usize = 20;
    /// The most bytes that names and values of a story have together.
    pub const MAX_STORY_BYTES: usize = 16 << 10;

    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        let causes = self.causes.iter().map(String::as_str);
        let all: Vec<&str> = std::iter::once(self.error.as_str()).chain(causes).collect();
        all.join(": ")
    }

    /// Whether it has what only explains.
    pub(crate) fn has_more_than_needed(&self) -> bool {
        !self.causes.is_empty() || !self.attempts.is_empty()
    }

    /// The original, as the stream had it. Its time is that of the first failure where the story
    /// does not say when it was stored.
    pub fn original(&self) -> StoredEvent {
        StoredEvent {
            seq: self.seq,
            at: self.stored_at.unwrap_or(self.first_failure),
            subject: self.subject.clone(),
            headers: self.headers.clone(),
            body: self.body.clone(),
        }
    }

    /// The same for every entry of this event, consumer, generation and stream, so that it is
    /// stored once however often one comes here.
    ///
    /// # Errors
    /// None in practice: names and numbers always make an id.
    pub(crate) fn id(&self) -> Result<EventId> {
        let Self {
            consumer,
            stream,
            seq,
            generation,
            ..
        } = self;
        let of = self.incarnation.as_deref().map_or_else(String::new, |of| {
            format!(":{:08x}", trunkline_core::key::fnv1a32(of.as_bytes()))
        });
        EventId::new(format!("dlq:{consumer}:{stream}:{seq}:{generation}{of}"))
    }

    /// Whether both are about the same event, given up by the same generation of a consumer. A
    /// stream that is not known to be another is taken to be the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let stream = match (&self.incarnation, &other.incarnation) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        stream
            && (&self.consumer, self.generation, &self.stream, self.seq)
                == (&other.consumer, other.generation, &other.stream, other.seq)
    }

    /// Headers that hold those of the original and the story, which has at most
    /// [`Entry::MAX_STORY_BYTES`]: what is too long is cut, and the oldest attempts are left out.
    ///
    /// # Errors
    /// None in practice: headers that exist are legal.
    pub fn encode(&self) -> Result<Headers> {
        let mut headers = Headers::new();
        if self.headers.iter().any(|(name, _)| is_own(name)) {
            for (name, value) in self.headers.iter() {
                match is_own(name) {
                    true => headers.restore(&format!("{ORIGINAL}{name}"), value)?,
                    false => headers.restore(name, value)?,
                }
            }
        } else {
            headers = self.headers.clone();
        }
        let mut story = |name, value: &str| headers.add_own(name, value);
        story("Trunkline-Entry", FORM);
        story("Trunkline-Consumer", self.consumer.as_str());
        story("Trunkline-Generation", &self.generation.to_string());
        story("Trunkline-Stream", self.stream.as_str());
        if let Some(incarnation) = &self.incarnation {
            story(
                "Trunkline-Incarnation",
                &escaped(incarnation, MAX_WORD_BYTES),
            );
        }
        story("Trunkline-Seq", &self.seq.to_string());
        if let Some(at) = self.stored_at {
            story("Trunkline-Stored-At", &at.to_string());
        }
        story("Trunkline-Subject", self.subject.as_str());
        if let Some(key) = &self.key {
            let key = escaped(key, usize::MAX);
            // Half a key is another key.
            if key.len() <= MAX_KEY_BYTES {
                story("Trunkline-Key", &key);
            }
        }
        story("Trunkline-Reason", &escaped(&self.reason, MAX_WORD_BYTES));
        story("Trunkline-Error", &escaped(&self.error, MAX_ERROR_BYTES));
        if !self.causes.is_empty() {
            story("Trunkline-Causes", &self.causes_text());
        }
        story("Trunkline-Failures", &self.failures.to_string());
        story("Trunkline-Starts", &self.starts.to_string());
        if !self.attempts.is_empty() {
            story("Trunkline-Attempts", &self.attempts_text());
        }
        story("Trunkline-First-Failure", &self.first_failure.to_string());
        story("Trunkline-Last-Failure", &self.last_failure.to_string());
        if let Some(service) = &self.service {
            story("Trunkline-Service", &escaped(service, MAX_WORD_BYTES));
        }
        story("Trunkline-Version", &escaped(&self.version, MAX_WORD_BYTES));
        if let Some(previous) = self.previous {
            story("Trunkline-Previous", &previous.to_string());
        }
        Ok(headers)
    }

    /// The causes as a JSON array; those that do not fit are left out, the last first.
    fn causes_text(&self) -> String {
        let mut causes: Vec<&str> = self.causes.iter().map(String::as_str).collect();
        loop {
            let text = json!(causes).to_string();
            if text.len() <= MAX_CAUSES_BYTES {
                return text;
            }
            match causes.as_mut_slice() {
                // A cause alone is cut, by more if escapes make it longer.
                [alone] => *alone = abridged(alone, alone.len().min(MAX_CAUSES_BYTES) / 2),
                _ => causes.truncate(causes.len() - 1),
            }
        }
    }

    /// The last attempts as a JSON array.
    fn attempts_text(&self) -> String {
        let mut kept = Vec::new();
        let mut bytes = "[]".len();
        for attempt in self.attempts.iter().rev().take(Self::MAX_ATTEMPTS) {
            let Attempt { at, reason, error } = attempt;
            let text = json!({
                "at": at.to_string(),
                "reason": abridged(reason, MAX_WORD_BYTES),
                "error": abridged(error, MAX_ATTEMPT_ERROR_BYTES),
            });
            let text = text.to_string();
            bytes += text.len() + ",".len();
            if bytes > MAX_ATTEMPTS_BYTES {
                break;
            }
            kept.push(text);
        }
        kept.reverse();
        format!("[{}]", kept.join(","))
    }

    /// Reads what is stored in the dead-letter stream.
    ///
    /// What only explains (attempts, causes) and is not of its form is left out; what is needed to
    /// know which event of which consumer it was is not.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] naming the header that is missing or broken, and
    /// [`ErrorKind::WrongVersion`] for a story of a form that this version does not know.
    pub fn decode(headers: &Headers, body: &Body) -> Result<Self> {
        let read = Story::of(headers)?;
        let causes = read.json("Trunkline-Causes");
        let causes = causes.iter().filter_map(Value::as_str);
        let attempts = read.json("Trunkline-Attempts");
        Ok(Self {
            consumer: Name::new(read.needed("Trunkline-Consumer")?)
                .map_err(|error| broken("Trunkline-Consumer").caused_by(error))?,
            generation: read.parsed("Trunkline-Generation")?.unwrap_or(0),
            stream: Name::new(read.needed("Trunkline-Stream")?)
                .map_err(|error| broken("Trunkline-Stream").caused_by(error))?,
            incarnation: read.text("Trunkline-Incarnation").map(SmolStr::from),
            seq: read.parsed_needed("Trunkline-Seq")?,
            stored_at: read.parsed("Trunkline-Stored-At")?,
            subject: Subject::new(read.needed("Trunkline-Subject")?)
                .map_err(|error| broken("Trunkline-Subject").caused_by(error))?,
            key: read.text("Trunkline-Key").map(SmolStr::from),
            reason: read.text_needed("Trunkline-Reason")?.into(),
            error: read.text_needed("Trunkline-Error")?,
            causes: causes.map(str::to_owned).collect(),
            failures: read.parsed_needed("Trunkline-Failures")?,
            starts: read.parsed("Trunkline-Starts")?.unwrap_or(0),
            attempts: attempts.iter().filter_map(attempt).collect(),
            first_failure: read.parsed_needed("Trunkline-First-Failure")?,
            last_failure: read.parsed_needed("Trunkline-Last-Failure")?,
            service: read.text("Trunkline-Service").map(SmolStr::from),
            version: read.text("Trunkline-Version").unwrap_or_default().into(),
            previous: read.parsed("Trunkline-Previous")?,
            headers: originals(headers)?,
            body: body.clone(),
        })
    }
}

fn is_own(name: &str) -> bool {
    name.get(..OWN.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(OWN))
}

/// The name of a header of the original that stands behind [`ORIGINAL`].
fn of_original(name: &str) -> Option<&str> {
    let (start, rest) = name.split_at_checked(ORIGINAL.len())?;
    (start.eq_ignore_ascii_case(ORIGINAL) && !rest.is_empty()).then_some(rest)
}

/// The headers of the original.
fn originals(headers: &Headers) -> Result<Headers> {
    let mut kept = Headers::new();
    for (name, value) in headers.iter() {
        match of_original(name) {
            Some(name) => kept.restore(name, value)?,
            None if is_own(name) => {}
            None => kept.restore(name, value)?,
        }
    }
    Ok(kept)
}

fn attempt(value: &Value) -> Option<Attempt> {
    let text = |name: &str| value.get(name)?.as_str();
    Some(Attempt {
        at: text("at")?.parse().ok()?,
        reason: text("reason")?.into(),
        error: text("error")?.to_owned(),
    })
}

fn broken(name: &str) -> Error {
    Error::new(
        ErrorKind::Decode,
        format!("header {name} of a dead letter is missing or not of its form"),
    )
}

/// Headers read as a story.
struct Story<'a> {
    headers: &'a Headers,
    /// Whether free text is percent-encoded; before stories had a form it was not.
    escapes: bool,
}

impl<'a> Story<'a> {
    fn of(headers: &'a Headers) -> Result<Self> {
        let form = headers.get("Trunkline-Entry");
        match form {
            None | Some(FORM) => Ok(Self {
                headers,
                escapes: form.is_some(),
            }),
            Some(other) => Err(Error::new(
                ErrorKind::WrongVersion,
                format!(
                    "a dead letter has form {:?}, and this version knows {FORM}; use a newer one",
                    abridged(other, MAX_WORD_BYTES)
                ),
            )),
        }
    }

    fn needed(&self, name: &str) -> Result<&'a str> {
        self.headers.get(name).ok_or_else(|| broken(name))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.headers.get(name).map(|value| match self.escapes {
            true => unescaped(value),
            false => value.to_owned(),
        })
    }

    fn text_needed(&self, name: &str) -> Result<String> {
        self.text(name).ok_or_else(|| broken(name))
    }

    fn parsed<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>> {
        let Some(value) = self.headers.get(name) else {
            return Ok(None);
        };
        let parsed = value.trim().parse();
        let fault = |error: T::Err| broken(name).caused_by(error.to_string());
        parsed.map(Some).map_err(fault)
    }

    fn parsed_needed<T: FromStr<Err: Display>>(&self, name: &str) -> Result<T> {
        self.parsed(name)?.ok_or_else(|| broken(name))
    }

    /// The items of a JSON array; none of what is no such thing.
    fn json(&self, name: &str) -> Vec<Value> {
        let text = self.headers.get(name).unwrap_or("[]");
        serde_json::from_str(text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
