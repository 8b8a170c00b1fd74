//! Storing an entry, once, however often a crash makes us come here.

use smallvec::smallvec;
use trunkline_core::engine::{
    Append, AppendMode, Credit, Expect, Outcome, Position, Seq, StoredEvent,
};
use trunkline_core::{Error, ErrorKind, Filter, Result, Subject};

use super::Entry;
use super::id::subject;
use crate::bus::Inner;

/// How often others may get between our look and our append.
const TRIES: usize = 8;
/// Entries of one event and consumer, one for each generation, that are looked at.
const SAME_SUBJECT: Credit = Credit::items(1_000);

/// Stores an entry and gives where: now, or where it was stored before. Where the place is taken by
/// an entry of an earlier generation it goes behind that one and says so. Where it is too large for the
/// dead-letter stream it goes without its attempts and causes.
///
/// The state of the dead letter is not written here.
///
/// # Errors
/// [`ErrorKind::StreamFull`] when the dead-letter stream has no room, [`ErrorKind::TimedOut`] when
/// nobody knows whether it is stored (try again), and the engine's own.
pub(crate) async fn bury(inner: &Inner, entry: &Entry) -> Result<(Subject, Seq)> {
    let root = &inner.settings.roots.dlq;
    let subject = subject(root, &entry.stream, &entry.consumer, entry.seq)?;
    let mut entry = entry.clone();
    let mut expect = Expect::Absent;
    for _ in 0..TRIES {
        let headers = entry.encode()?;
        // As it would be read, so that what was cut does not make it look like another.
        let written = Entry::decode(&headers, &entry.body)?;
        let append = Append {
            subject: subject.clone(),
            key: None,
            id: Some(written.id()?),
            expect,
            headers,
            body: entry.body.clone(),
        };
        let log = inner.engine.log();
        let outcomes = log
            .append(
                &inner.settings.dead_letters,
                smallvec![append],
                AppendMode::Each,
            )
            .completed()
            .await?;
        match outcomes.into_iter().next() {
            Some(Outcome::Stored { seq, .. }) => return Ok((subject, seq)),
            Some(Outcome::Refused(error)) if error.kind() == ErrorKind::Conflict => {
                let found = entries(inner, &subject).await?;
                let same = found.iter().find(|stored| {
                    Entry::decode(&stored.headers, &stored.body)
                        .is_ok_and(|other| other.is_same(&written))
                });
                if let Some(same) = same {
                    return Ok((subject, same.seq));
                }
                // None is left when somebody dealt with it meanwhile.
                entry.previous = found.last().map(|last| last.seq);
                expect = entry.previous.map_or(Expect::Absent, Expect::Last);
            }
            // As of an entry that was given up itself, which has two stories.
            Some(Outcome::Refused(error))
                if error.kind() == ErrorKind::TooLarge && entry.has_more_than_needed() =>
            {
                entry.causes.clear();
                entry.attempts.clear();
            }
            Some(Outcome::Refused(error) | Outcome::Unknown(error)) => return Err(error),
            None => {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "the engine gave no outcome",
                ));
            }
        }
    }
    Err(Error::new(
        ErrorKind::TimedOut,
        format!("{subject} keeps being changed by others; try again"),
    ))
}

/// What is stored on a subject of the dead-letter stream, in order.
pub(super) async fn entries(inner: &Inner, subject: &Subject) -> Result<Vec<StoredEvent>> {
    let filter = [Filter::new(subject.as_str())?];
    let log = inner.engine.log();
    let stream = &inner.settings.dead_letters;
    let page = log
        .read(stream, Position::First, &filter, SAME_SUBJECT)
        .await?;
    Ok(page.events)
}
