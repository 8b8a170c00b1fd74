//! Dead letters for programs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use trunkline::core::wire::encode_structured;
use trunkline::dead_letter::{Entry, Id, Letter, Shown};
use trunkline::{DeadLetters, Error, Result};

/// A dead letter as it stands. The members of its state are those of its key in the bucket.
pub(super) fn letter(letter: &Letter) -> Value {
    let mut object = match &letter.record {
        Ok(record) => serde_json::from_slice(&record.encode()).unwrap_or_default(),
        Err(_) => json!({}),
    };
    if let Some(members) = object.as_object_mut() {
        members.remove("v");
    }
    object["dead_letter"] = letter.id.to_string().into();
    object["state"] = letter.stands().as_str().into();
    object["last_failure"] = letter.at.to_string().into();
    object["has_entry"] = letter.has_entry.into();
    if let Id::Event {
        consumer,
        stream,
        seq,
        ..
    } = &letter.id
    {
        object["consumer"] = consumer.as_str().into();
        object["stream"] = stream.as_str().into();
        object["seq"] = (*seq).into();
    }
    if let Err(fault) = &letter.record {
        object["fault"] = error(fault);
    }
    object
}

/// With the event and its story.
pub(crate) fn shown(letters: &DeadLetters, shown: &Shown) -> Result<Value> {
    let mut object = letter(&shown.letter);
    if let Some(stored) = &shown.stored {
        object["stored_at"] = stored.at.to_string().into();
        let event = match &shown.entry {
            Some(Ok(entry)) => {
                story(&mut object, entry);
                object["headers"] = entry
                    .headers
                    .iter()
                    .map(|(name, value)| json!([name, value]))
                    .collect();
                letters
                    .event(entry)
                    .and_then(|event| encode_structured(&event))
                    .ok()
            }
            _ => {
                object["headers"] = stored
                    .headers
                    .iter()
                    .map(|(name, value)| json!([name, value]))
                    .collect();
                None
            }
        };
        let event: Option<Value> = event.and_then(|event| serde_json::from_slice(&event).ok());
        let body = stored.body.to_bytes()?;
        match (event, str::from_utf8(&body)) {
            (Some(event), _) => object["event"] = event,
            (None, Ok(text)) => object["text"] = text.into(),
            (None, Err(_)) => object["base64"] = STANDARD.encode(&body).into(),
        }
    }
    Ok(object)
}

fn story(object: &mut Value, entry: &Entry) {
    let attempts = entry.attempts.iter().map(
        |attempt| json!({"at": attempt.at.to_string(), "reason": attempt.reason.as_str(), "error": attempt.error}),
    );
    object["subject"] = entry.subject.as_str().into();
    object["generation"] = entry.generation.into();
    object["causes"] = entry.causes.as_slice().into();
    object["starts"] = entry.starts.into();
    object["attempts"] = attempts.collect();
    object["service"] = entry.service.as_deref().into();
    object["version"] = entry.version.as_str().into();
}

pub(super) fn error(error: &Error) -> Value {
    json!({"code": error.code(), "message": error.message()})
}
