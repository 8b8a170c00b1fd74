//! What the key of an event holds.
//!
//! Written and read by hand: a derive would put these types into what the compiler tells the user
//! whose own event lacks one.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use smol_str::SmolStr;
use trunkline_core::engine::{Entry, Seq};
use trunkline_core::{Error, ErrorKind, Name, Result, Timestamp};

use crate::handler::{Delivered, Epoch};

/// The version of what is written, and the only one that is read.
const VERSION: u64 = 1;

/// How the handling of an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Done,
    Failed,
}

const STATES: [(State, &str); 3] = [
    (State::Running, "running"),
    (State::Done, "done"),
    (State::Failed, "failed"),
];

/// One run of a handler.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) member: SmolStr,
    /// Which run of the member it is.
    pub(super) number: u64,
    /// The event that is run: of two with the same identity, one.
    pub(super) stream: Option<Name>,
    pub(super) seq: Option<Seq>,
    pub(super) epoch: Option<Epoch>,
}

impl Run {
    pub(super) fn new(delivered: &Delivered, member: SmolStr, number: u64) -> Self {
        let stored = delivered.incoming().stored.as_ref();
        Self {
            member,
            number,
            stream: stored.map(|stored| stored.stream.clone()),
            seq: stored.map(|stored| stored.seq),
            epoch: delivered.epoch(),
        }
    }
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) state: State,
    pub(super) member: SmolStr,
    pub(super) run: u64,
    /// When it ends, by the clock of who wrote it: for people. The engine's time to live decides.
    until: SmolStr,
    pub(super) stream: Option<SmolStr>,
    pub(super) seq: Option<Seq>,
    pub(super) epoch: Option<u64>,
}

impl Record {
    pub(super) fn new(state: State, run: &Run, until: Timestamp) -> Self {
        // What is run now may be taken over, for which one has to know what it is.
        let is_running = state == State::Running;
        let stream = run.stream.as_ref().map(|name| name.as_str().into());
        Self {
            state,
            member: run.member.clone(),
            run: run.number,
            until: until.to_string().into(),
            stream: stream.filter(|_| is_running),
            seq: run.seq.filter(|_| is_running),
            epoch: run.epoch.map(|epoch| epoch.revision).filter(|_| is_running),
        }
    }

    pub(super) fn bytes(&self) -> Bytes {
        let state = STATES.iter().find(|(state, _)| *state == self.state);
        let mut record = json!({
            "v": VERSION,
            "state": state.map(|(_, word)| word),
            "member": self.member.as_str(),
            "run": self.run,
            "until": self.until.as_str(),
        });
        if let Some(stream) = &self.stream {
            record["stream"] = stream.as_str().into();
        }
        if let Some(seq) = self.seq {
            record["seq"] = seq.into();
        }
        if let Some(epoch) = self.epoch {
            record["epoch"] = epoch.into();
        }
        record.to_string().into()
    }

    /// # Errors
    /// [`ErrorKind::Decode`] for the record of a version that this program does not know: it may mean
    /// anything, so nothing runs on it.
    pub(super) fn read(entry: &Entry) -> Result<Self> {
        let refuse = |fault: String| {
            let key = &entry.key;
            Error::new(
                ErrorKind::Decode,
                format!("idempotency key {key} {fault}; a newer member wrote it, or somebody else"),
            )
        };
        let no_record = || refuse("has a value that is no record".to_owned());
        let members: Map<String, Value> =
            serde_json::from_slice(&entry.value).map_err(|error| no_record().caused_by(error))?;
        let number = |name: &str| members.get(name).and_then(Value::as_u64);
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        match number("v") {
            Some(VERSION) => {}
            Some(other) => return Err(refuse(format!("has a record of version {other}"))),
            None => return Err(no_record()),
        }
        let state = |word| STATES.iter().find(|(_, known)| *known == word);
        let (state, _) = text("state").and_then(state).ok_or_else(no_record)?;
        Ok(Self {
            state: *state,
            member: text("member").ok_or_else(no_record)?.into(),
            run: number("run").ok_or_else(no_record)?,
            until: text("until").ok_or_else(no_record)?.into(),
            stream: text("stream").map(SmolStr::from),
            seq: number("seq"),
            epoch: number("epoch"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_core::engine::StateKey;

    #[test]
    fn a_record_is_read_as_it_was_written_and_no_other_version_is() {
        let run = Run {
            member: "00c0ffee00c0ffee".into(),
            number: 7,
            stream: Some(Name::new("EVENTS").unwrap()),
            seq: Some(41),
            epoch: Some(Epoch {
                generation: 2,
                revision: 1_234,
            }),
        };
        let until = Timestamp::from_nanos(1_700_000_000_000_000_000);
        let check = |state, expected: &str| {
            let record = Record::new(state, &run, until);
            let value = record.bytes();
            assert_eq!(std::str::from_utf8(&value).unwrap(), expected);
            let entry = |value| Entry {
                key: StateKey::new("billing.2.idem.00").unwrap(),
                value,
                rev: 1,
                at: until,
            };
            assert_eq!(Record::read(&entry(value)).unwrap(), record);
            let newer = expected.replace("\"v\":1", "\"v\":2");
            let error = Record::read(&entry(newer.into())).unwrap_err();
            assert!(error.message().contains("record of version 2"), "{error}");
            assert!(Record::read(&entry(Bytes::from_static(b"done"))).is_err());
        };
        check(
            State::Running,
            r#"{"epoch":1234,"member":"00c0ffee00c0ffee","run":7,"seq":41,"state":"running","stream":"EVENTS","until":"2023-11-14T22:13:20Z","v":1}"#,
        );
        check(
            State::Done,
            r#"{"member":"00c0ffee00c0ffee","run":7,"state":"done","until":"2023-11-14T22:13:20Z","v":1}"#,
        );
        check(
            State::Failed,
            r#"{"member":"00c0ffee00c0ffee","run":7,"state":"failed","until":"2023-11-14T22:13:20Z","v":1}"#,
        );
    }
}
