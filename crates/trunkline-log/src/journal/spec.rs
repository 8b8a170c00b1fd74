//! Streams and consumers as bytes.

use std::num::NonZeroU64;
use std::time::Duration;

use trunkline_core::engine::{ConsumerRef, ConsumerSpec, Position, Retention, StreamSpec};

use super::code::{Fault, Put, Take};

fn put_duration(out: &mut Vec<u8>, duration: Duration) {
    out.varint(duration.as_secs());
    out.varint(u64::from(duration.subsec_nanos()));
}

fn take_duration(from: &mut Take<'_>) -> Result<Duration, Fault> {
    let seconds = from.varint()?;
    match u32::try_from(from.varint()?) {
        Ok(nanos) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err("a duration has a second of more than a second"),
    }
}

pub(super) fn put_stream(out: &mut Vec<u8>, spec: &StreamSpec) {
    let StreamSpec {
        name,
        subjects,
        retention,
        max_events,
        max_bytes,
        max_age,
        max_message,
        duplicate_window,
        replicas,
        metadata,
    } = spec;
    out.text(name.as_str());
    out.count(subjects.len());
    for subject in subjects {
        out.text(subject.as_str());
    }
    out.push(match retention {
        Retention::DiscardOld => 0,
        Retention::RefuseWhenFull => 1,
        Retention::WorkQueue => 2,
    });
    out.option(*max_events, Put::varint);
    out.option(*max_bytes, Put::varint);
    out.option(*max_age, put_duration);
    out.count(*max_message);
    put_duration(out, *duplicate_window);
    out.count(*replicas);
    out.count(metadata.len());
    for (key, value) in metadata {
        out.text(key);
        out.text(value);
    }
}

pub(super) fn take_stream(from: &mut Take<'_>) -> Result<StreamSpec, Fault> {
    Ok(StreamSpec {
        name: from.name()?,
        subjects: from.items(Take::filter)?,
        retention: match from.byte()? {
            0 => Retention::DiscardOld,
            1 => Retention::RefuseWhenFull,
            2 => Retention::WorkQueue,
            _ => return Err("a stream has a retention that this version does not know"),
        },
        max_events: from.option(Take::varint)?,
        max_bytes: from.option(Take::varint)?,
        max_age: from.option(take_duration)?,
        max_message: from.size()?,
        duplicate_window: take_duration(from)?,
        replicas: from.size()?,
        metadata: from
            .items(|from| Ok((from.text()?.to_owned(), from.text()?.to_owned())))?
            .into_iter()
            .collect(),
    })
}

pub(super) fn put_at(out: &mut Vec<u8>, at: &ConsumerRef) {
    out.text(at.stream.as_str());
    out.text(at.consumer.as_str());
}

pub(super) fn take_at(from: &mut Take<'_>) -> Result<ConsumerRef, Fault> {
    Ok(ConsumerRef {
        stream: from.name()?,
        consumer: from.name()?,
    })
}

pub(super) fn put_consumer(out: &mut Vec<u8>, spec: &ConsumerSpec) {
    let ConsumerSpec {
        at,
        filters,
        start,
        ack_wait,
        max_in_flight,
    } = spec;
    put_at(out, at);
    out.count(filters.len());
    for filter in filters {
        out.text(filter.as_str());
    }
    let (kind, number) = match start {
        Position::First => (0, None),
        Position::Seq(seq) => (2, Some(*seq)),
        Position::Time(time) => (3, Some(time.as_nanos().cast_unsigned())),
        Position::Last(count) => (4, Some(count.get())),
        Position::LastPerSubject => (5, None),
        // `New`, and whatever may come that starts where the consumer has been put anyway: its
        // sequence is in the record, and this says only what was asked for.
        _ => (1, None),
    };
    out.push(kind);
    if let Some(number) = number {
        out.varint(number);
    }
    put_duration(out, *ack_wait);
    out.count(*max_in_flight);
}

pub(super) fn take_consumer(from: &mut Take<'_>) -> Result<ConsumerSpec, Fault> {
    let (at, filters) = (take_at(from)?, from.items(Take::filter)?);
    let start = match from.byte()? {
        0 => Position::First,
        1 => Position::New,
        2 => Position::Seq(from.varint()?),
        3 => Position::Time(trunkline_core::Timestamp::from_nanos(
            from.varint()?.cast_signed(),
        )),
        4 => Position::Last(NonZeroU64::new(from.varint()?).ok_or("a count is zero")?),
        5 => Position::LastPerSubject,
        _ => return Err("a consumer has a start that this version does not know"),
    };
    Ok(ConsumerSpec {
        at,
        filters,
        start,
        ack_wait: take_duration(from)?,
        max_in_flight: from.size()?,
    })
}
