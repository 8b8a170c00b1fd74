//! The value of the key, as JSON.
//!
//! Read and written by hand: what a derive adds would be listed to every user whose event type
//! lacks `Serialize`.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use smol_str::SmolStr;
use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use super::{Record, Replay, State};

/// The form that is written, and the only one that is read.
const FORM: u64 = 1;

impl Record {
    /// As it is stored.
    pub fn encode(&self) -> Bytes {
        let mut object = match &self.state {
            State::Dead => json!({"state": "dead"}),
            State::Replaying { by, at } => json!({
                "state": "replaying", "by": by, "at": at.to_string(),
            }),
            State::Replayed { at } => json!({"state": "replayed", "at": at.to_string()}),
            State::Discarded { by, at, reason } => json!({
                "state": "discarded", "by": by, "at": at.to_string(), "because": reason,
            }),
        };
        object["v"] = FORM.into();
        object["entry"] = self.entry.into();
        for (name, text) in [
            ("incarnation", &self.incarnation),
            ("key", &self.key),
            ("id", &self.event_id),
            ("type", &self.event_type),
        ] {
            if let Some(text) = text {
                object[name] = text.as_str().into();
            }
        }
        object["reason"] = self.reason.as_str().into();
        object["error"] = self.error.as_str().into();
        object["failures"] = self.failures.into();
        object["first_failure"] = self.first_failure.to_string().into();
        object["last_failure"] = self.last_failure.to_string().into();
        if self.replays > 0 {
            object["replays"] = self.replays.into();
        }
        if !self.history.is_empty() {
            object["history"] = self.history.iter().map(replay_json).collect();
        }
        object.to_string().into()
    }

    /// Reads what is stored.
    ///
    /// # Errors
    /// [`ErrorKind::WrongVersion`] for a form that this version does not know, and
    /// [`ErrorKind::Decode`] for what is no record.
    pub fn decode(value: &[u8]) -> Result<Self> {
        let object: Map<String, Value> =
            serde_json::from_slice(value).map_err(|error| no_record("").caused_by(error))?;
        let read = Object(&object);
        match read.number("v")? {
            FORM => {}
            other => {
                return Err(Error::new(
                    ErrorKind::WrongVersion,
                    format!(
                        "the state of a dead letter has form {other}, and this version knows {FORM}; use a newer one"
                    ),
                ));
            }
        }
        let state = match read.text("state")? {
            "dead" => State::Dead,
            "replaying" => State::Replaying {
                by: read.text("by")?.into(),
                at: read.time("at")?,
            },
            "replayed" => State::Replayed {
                at: read.time("at")?,
            },
            "discarded" => State::Discarded {
                by: read.text("by")?.into(),
                at: read.time("at")?,
                reason: read.text("because")?.to_owned(),
            },
            _ => return Err(no_record("state")),
        };
        Ok(Self {
            state,
            entry: read.number("entry")?,
            incarnation: read.text_if_any("incarnation")?,
            key: read.text_if_any("key")?,
            event_id: read.text_if_any("id")?,
            event_type: read.text_if_any("type")?,
            reason: read.text("reason")?.into(),
            error: read.text("error")?.to_owned(),
            failures: read.count("failures")?,
            first_failure: read.time("first_failure")?,
            last_failure: read.time("last_failure")?,
            replays: match object.contains_key("replays") {
                true => read.count("replays")?,
                false => 0,
            },
            history: match object.get("history") {
                None => Vec::new(),
                Some(Value::Array(items)) => items.iter().map(replay).collect::<Result<_>>()?,
                Some(_) => return Err(no_record("history")),
            },
        })
    }
}

fn replay_json(replay: &Replay) -> Value {
    let mut object = json!({
        "by": replay.by.as_str(),
        "at": replay.at.to_string(),
        "ended": replay.ended.to_string(),
    });
    if let Some((reason, error)) = &replay.failed {
        object["reason"] = reason.as_str().into();
        object["error"] = error.as_str().into();
    }
    object
}

fn replay(value: &Value) -> Result<Replay> {
    let Value::Object(object) = value else {
        return Err(no_record("history"));
    };
    let read = Object(object);
    let failed = match read.text_if_any("reason")? {
        Some(reason) => Some((reason, read.text("error")?.to_owned())),
        None => None,
    };
    Ok(Replay {
        by: read.text("by")?.into(),
        at: read.time("at")?,
        ended: read.time("ended")?,
        failed,
    })
}

fn no_record(member: &str) -> Error {
    let what = match member {
        "" => "is no JSON object".to_owned(),
        member => format!("lacks {member:?}, or has another kind of value there"),
    };
    Error::new(
        ErrorKind::Decode,
        format!("what is stored as the state of a dead letter {what}"),
    )
}

struct Object<'a>(&'a Map<String, Value>);

impl<'a> Object<'a> {
    fn text(&self, member: &str) -> Result<&'a str> {
        let value = self.0.get(member).and_then(Value::as_str);
        value.ok_or_else(|| no_record(member))
    }

    fn text_if_any(&self, member: &str) -> Result<Option<SmolStr>> {
        match self.0.get(member) {
            None => Ok(None),
            Some(_) => self.text(member).map(|text| Some(text.into())),
        }
    }

    fn number(&self, member: &str) -> Result<u64> {
        let value = self.0.get(member).and_then(Value::as_u64);
        value.ok_or_else(|| no_record(member))
    }

    fn count(&self, member: &str) -> Result<u32> {
        u32::try_from(self.number(member)?).map_err(|_| no_record(member))
    }

    fn time(&self, member: &str) -> Result<Timestamp> {
        let time = self.text(member)?.parse();
        time.map_err(|error: Error| no_record(member).caused_by(error))
    }
}
