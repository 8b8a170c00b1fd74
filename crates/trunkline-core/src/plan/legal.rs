//! What no engine may make, whoever asks for it.

use std::time::Duration;

use crate::engine::{ConsumerRef, ConsumerSpec, Position, Retention, StreamSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::subject::Filter;

/// The longest ack wait.
const MAX_ACK_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Refuses a stream without subjects, and one that would share subjects with another.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] and [`ErrorKind::Overlap`].
pub fn check_stream<'a>(
    spec: &StreamSpec,
    all: impl IntoIterator<Item = &'a StreamSpec>,
) -> Result<()> {
    if spec.subjects.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidConfig,
            format!(
                "stream {} has no subjects, so it would never store an event; give it some",
                spec.name
            ),
        ));
    }
    let overlaps = |filter: &&Filter| spec.subjects.iter().any(|own| own.overlaps(filter));
    for other in all.into_iter().filter(|other| other.name != spec.name) {
        if let Some(subjects) = other.subjects.iter().find(overlaps) {
            return Err(Error::new(
                ErrorKind::Overlap,
                format!(
                    "stream {} would share subjects with stream {}, which stores {subjects}; \
                     give each subject to one stream",
                    spec.name, other.name
                ),
            ));
        }
    }
    Ok(())
}

/// Refuses a consumer that could never work.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`].
pub fn check_limits(spec: &ConsumerSpec) -> Result<()> {
    let fault = if spec.filters.is_empty() {
        "has no filter, so it would get what nobody meant for it"
    } else if spec.ack_wait.is_zero() || spec.ack_wait > MAX_ACK_WAIT {
        "has an ack wait of zero or of more than a day"
    } else if spec.max_in_flight == 0 {
        "may have nothing in flight, so it would never get an event"
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::InvalidConfig,
        format!("consumer {} {fault}", spec.at.consumer),
    ))
}

/// As [`check_limits`], and refuses one that would share commands of a work queue with another.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`] and [`ErrorKind::Overlap`].
pub fn check_consumer<'a>(
    spec: &ConsumerSpec,
    stream: &StreamSpec,
    all: impl IntoIterator<Item = &'a ConsumerSpec>,
) -> Result<()> {
    check_limits(spec)?;
    check_commands(spec, stream, all)
}

fn check_commands<'a>(
    spec: &ConsumerSpec,
    stream: &StreamSpec,
    all: impl IntoIterator<Item = &'a ConsumerSpec>,
) -> Result<()> {
    if stream.retention != Retention::WorkQueue {
        return Ok(());
    }
    let theirs = |theirs: &Filter| spec.filters.iter().any(|filter| theirs.overlaps(filter));
    let shares = |other: &&ConsumerSpec| other.at != spec.at && other.filters.iter().any(theirs);
    match all.into_iter().find(shares) {
        None => Ok(()),
        Some(other) => Err(Error::new(
            ErrorKind::Overlap,
            format!(
                "consumers {} and {} would share commands of {}; a command has one consumer",
                spec.at.consumer, other.at.consumer, spec.at.stream
            ),
        )),
    }
}

/// Refuses a consumer of a work queue that would leave events over.
///
/// # Errors
/// [`ErrorKind::InvalidConfig`].
pub fn check_start(spec: &ConsumerSpec, stream: &StreamSpec) -> Result<()> {
    if stream.retention != Retention::WorkQueue || spec.start == Position::First {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidConfig,
        format!(
            "consumer {} starts at {} but {} is a work queue, whose events would be left over; \
             start at the first",
            spec.at.consumer, spec.start, spec.at.stream
        ),
    ))
}

/// That a consumer exists already: fine if it is as declared. Where it started is history.
///
/// # Errors
/// [`ErrorKind::Drift`].
pub fn check_same(found: &ConsumerSpec, declared: &ConsumerSpec) -> Result<()> {
    let found = ConsumerSpec {
        start: declared.start,
        ..found.clone()
    };
    if found == *declared {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Drift,
        format!(
            "consumer {} exists and differs: found {found:?}, declared {declared:?}",
            declared.at.consumer
        ),
    ))
}

/// That there is no such consumer.
pub fn no_such_consumer(at: &ConsumerRef) -> Error {
    Error::new(
        ErrorKind::NoSuchConsumer,
        format!(
            "there is no consumer {} on stream {}",
            at.consumer, at.stream
        ),
    )
}
