//! What the key of an event holds.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;
use trunkline_core::engine::{Entry, Seq};
use trunkline_core::{Error, ErrorKind, Name, Result, Timestamp};

use crate::handler::{Delivered, Epoch};

/// The version of what is written, and the only one that is read.
const VERSION: u32 = 1;

/// How the handling of an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Running,
    Done,
    Failed,
}

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    v: u32,
    pub(super) state: State,
    pub(super) member: SmolStr,
    pub(super) run: u64,
    /// When it ends, by the clock of who wrote it: for people. The engine's time to live decides.
    until: SmolStr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stream: Option<SmolStr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seq: Option<Seq>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) epoch: Option<u64>,
}

impl Record {
    pub(super) fn new(state: State, run: &Run, until: Timestamp) -> Self {
        // What is run now may be taken over, for which one has to know what it is.
        let is_running = state == State::Running;
        let stream = run.stream.as_ref().map(|name| name.as_str().into());
        Self {
            v: VERSION,
            state,
            member: run.member.clone(),
            run: run.number,
            until: until.to_string().into(),
            stream: stream.filter(|_| is_running),
            seq: run.seq.filter(|_| is_running),
            epoch: run.epoch.map(|epoch| epoch.revision).filter(|_| is_running),
        }
    }

    pub(super) fn bytes(&self) -> Result<Bytes> {
        let bytes = serde_json::to_vec(self).map_err(|error| {
            Error::new(
                ErrorKind::Internal,
                "an idempotency record cannot be written",
            )
            .caused_by(error)
        })?;
        Ok(bytes.into())
    }

    /// # Errors
    /// [`ErrorKind::Decode`] for the record of a version that this program does not know: it may mean
    /// anything, so nothing runs on it.
    pub(super) fn read(entry: &Entry) -> Result<Self> {
        let unread = |fault: String| {
            let key = &entry.key;
            Error::new(
                ErrorKind::Decode,
                format!("idempotency key {key} {fault}; a newer member wrote it, or somebody else"),
            )
        };
        let record: Self = serde_json::from_slice(&entry.value)
            .map_err(|error| unread("has a value that is no record".to_owned()).caused_by(error))?;
        match record.v {
            VERSION => Ok(record),
            other => Err(unread(format!("has a record of version {other}"))),
        }
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
            let value = record.bytes().unwrap();
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
            r#"{"v":1,"state":"running","member":"00c0ffee00c0ffee","run":7,"until":"2023-11-14T22:13:20Z","stream":"EVENTS","seq":41,"epoch":1234}"#,
        );
        check(
            State::Done,
            r#"{"v":1,"state":"done","member":"00c0ffee00c0ffee","run":7,"until":"2023-11-14T22:13:20Z"}"#,
        );
        check(
            State::Failed,
            r#"{"v":1,"state":"failed","member":"00c0ffee00c0ffee","run":7,"until":"2023-11-14T22:13:20Z"}"#,
        );
    }
}
