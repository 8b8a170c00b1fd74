//! Dead letters: the original event and its story, stored before the original is settled.

use smallvec::smallvec;
use trunkline_core::engine::{Append, AppendMode, Expect, Outcome};
use trunkline_core::{Error, ErrorKind, EventId, Name, Result, Subject};

use super::turn::Turn;
use crate::bus::Inner;
use crate::failure::Failure;

/// The most bytes of one error text in a story; the whole story has at most 16 KiB.
const MAX_ERROR_BYTES: usize = 8 * 1024;

/// Stores the entry of an event that is given up. `Ok` means that it is stored, now or before.
pub(super) async fn store(
    inner: &Inner,
    consumer: &Name,
    stream: &Name,
    turn: &Turn,
    failure: &Failure,
) -> Result<Subject> {
    let root = &inner.settings.roots.dlq;
    let subject = Subject::new(format!("{root}.{stream}.{consumer}.{}", turn.event.seq))?;
    let mut headers = turn.event.headers.clone();
    let now = inner.clock.now();
    let mut story = |name, value: &str| headers.add_own(name, value);
    story("Trunkline-Consumer", consumer.as_str());
    story("Trunkline-Stream", stream.as_str());
    story("Trunkline-Seq", &turn.event.seq.to_string());
    story("Trunkline-Subject", turn.event.subject.as_str());
    story("Trunkline-Reason", failure.reason());
    story("Trunkline-Error", abridged(&failure.chain()));
    story("Trunkline-Failures", &turn.failures.to_string());
    story(
        "Trunkline-First-Failure",
        &turn.first_failure.unwrap_or(now).to_string(),
    );
    story(
        "Trunkline-Last-Failure",
        &turn.last_failure.unwrap_or(now).to_string(),
    );
    story("Trunkline-Version", env!("CARGO_PKG_VERSION"));
    let append = Append {
        // One entry for each event and consumer, however often a crash makes us come here.
        id: Some(EventId::new(subject.as_str())?),
        subject: subject.clone(),
        key: None,
        expect: Expect::Absent,
        headers,
        body: turn.event.body.clone(),
    };
    let stream = &inner.settings.dead_letters;
    let outcomes = inner
        .engine
        .log()
        .append(stream, smallvec![append], AppendMode::Each)
        .completed()
        .await?;
    match outcomes.into_iter().next() {
        Some(Outcome::Stored { .. }) => Ok(subject),
        Some(Outcome::Refused(error)) if error.kind() == ErrorKind::Conflict => Ok(subject),
        Some(Outcome::Refused(error) | Outcome::Unknown(error)) => Err(error),
        None => Err(Error::new(
            ErrorKind::Internal,
            "the engine gave no outcome",
        )),
    }
}

fn abridged(text: &str) -> &str {
    match text
        .char_indices()
        .take_while(|(at, _)| *at < MAX_ERROR_BYTES - 4)
        .last()
    {
        Some((at, _)) if text.len() > MAX_ERROR_BYTES => &text[..at],
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_errors_are_cut_at_a_character() {
        assert_eq!(abridged("short"), "short");
        let long = "ü".repeat(MAX_ERROR_BYTES);
        assert!(abridged(&long).len() <= MAX_ERROR_BYTES);
    }
}
