//! Making, changing and describing streams and consumers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use trunkline_core::engine::{
    Backlog, Boxed, Change, ConsumerRef, ConsumerSpec, ConsumerState, Inspection, Position,
    Retention, StreamSpec, SubjectCount, Topology,
};
use trunkline_core::plan::differences;
use trunkline_core::{Error, ErrorKind, Filter, Name, Result};

use crate::MemoryEngine;
use crate::consume::Consumer;
use crate::stream::Stream;

impl MemoryEngine {
    fn apply_now(&self, change: Change) -> Result<()> {
        match change {
            Change::CreateStream(spec) => self.create_stream(spec),
            Change::UpdateStream(spec) => self.update_stream(spec),
            Change::DeleteStream(name) => {
                let stream = self.stream(&name)?;
                self.bus.streams.write().remove(&name);
                let waiters = {
                    let mut stream = stream.lock();
                    stream.deleted = true;
                    stream.consumers.clear();
                    stream.all_waiters()
                };
                waiters.iter().for_each(|waiter| waiter.wake_all());
                Ok(())
            }
            Change::CreateConsumer(spec) => self.create_consumer(spec),
            Change::UpdateConsumer(spec) => {
                check_consumer(&spec)?;
                self.with_consumer(&spec.at.clone(), |consumer, stream| {
                    check_commands(&spec, stream)?;
                    consumer.update(spec, stream);
                    Ok(())
                })?
            }
            Change::DeleteConsumer(at) => {
                let stream = self.stream(&at.stream)?;
                let mut stream = stream.lock();
                let consumer = stream
                    .consumers
                    .remove(&at.consumer)
                    .ok_or_else(|| no_such_consumer(&at))?;
                consumer.retire(&mut stream);
                Ok(())
            }
            other => Err(Error::new(
                ErrorKind::Unsupported,
                format!("the memory engine cannot do {other:?}"),
            )),
        }
    }

    fn create_stream(&self, spec: StreamSpec) -> Result<()> {
        self.check_open()?;
        check_subjects(&spec)?;
        let mut streams = self.bus.streams.write();
        if let Some(found) = streams.get(&spec.name) {
            let differences = differences(&found.lock().spec, &spec);
            if differences.is_empty() {
                return Ok(());
            }
            let differences: Vec<_> = differences.iter().map(ToString::to_string).collect();
            return Err(Error::new(
                ErrorKind::Drift,
                format!(
                    "stream {} exists and differs: {}; update it, or declare what there is",
                    spec.name,
                    differences.join("; ")
                ),
            ));
        }
        apart(&spec, &streams)?;
        let stream = Stream::new(spec.clone(), &self.bus.options);
        streams.insert(spec.name, Arc::new(Mutex::new(stream)));
        Ok(())
    }

    fn update_stream(&self, spec: StreamSpec) -> Result<()> {
        let stream = self.stream(&spec.name)?;
        check_subjects(&spec)?;
        // Held, so that no other stream takes the subjects in the meantime.
        let streams = self.bus.streams.write();
        apart(&spec, &streams)?;
        let waiters = {
            let mut stream = stream.lock();
            stream.update(spec, &self.bus.options, self.bus.clock.now())?;
            stream.all_waiters()
        };
        drop(streams);
        // Who waits for what has left is told of the gap now.
        waiters.iter().for_each(|waiter| waiter.wake_all());
        Ok(())
    }

    fn create_consumer(&self, spec: ConsumerSpec) -> Result<()> {
        check_consumer(&spec)?;
        let stream = self.stream(&spec.at.stream)?;
        let mut stream = stream.lock();
        if let Some(found) = stream.consumers.get(&spec.at.consumer) {
            // Where it started is history: everything else must be as declared.
            let found = ConsumerSpec {
                start: spec.start,
                ..found.spec.clone()
            };
            if found == spec {
                return Ok(());
            }
            return Err(Error::new(
                ErrorKind::Drift,
                format!(
                    "consumer {} exists and differs: found {found:?}, declared {spec:?}",
                    spec.at.consumer
                ),
            ));
        }
        if stream.spec.retention == Retention::WorkQueue && spec.start != Position::First {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "consumer {} starts at {} but {} is a work queue, whose events would be left over; \
                     start at the first",
                    spec.at.consumer, spec.start, spec.at.stream
                ),
            ));
        }
        check_commands(&spec, &stream)?;
        let name = spec.at.consumer.clone();
        let consumer = Consumer::new(spec, &mut stream);
        stream.consumers.insert(name, consumer);
        Ok(())
    }

    fn with_consumer<T>(
        &self,
        at: &ConsumerRef,
        run: impl FnOnce(&mut Consumer, &mut Stream) -> T,
    ) -> Result<T> {
        let stream = self.stream(&at.stream)?;
        let mut stream = stream.lock();
        let mut consumer = stream
            .consumers
            .remove(&at.consumer)
            .ok_or_else(|| no_such_consumer(at))?;
        let result = run(&mut consumer, &mut stream);
        stream.consumers.insert(at.consumer.clone(), consumer);
        Ok(result)
    }
}

fn check_subjects(spec: &StreamSpec) -> Result<()> {
    if !spec.subjects.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidConfig,
        format!(
            "stream {} has no subjects, so it would never store an event; give it some",
            spec.name
        ),
    ))
}

/// Refuses a stream that would share subjects with another.
fn apart(spec: &StreamSpec, streams: &BTreeMap<Name, Arc<Mutex<Stream>>>) -> Result<()> {
    for (name, stream) in streams.iter().filter(|(name, _)| **name != spec.name) {
        let stream = stream.lock();
        let overlaps = |filter: &&Filter| spec.subjects.iter().any(|own| own.overlaps(filter));
        if let Some(subjects) = stream.spec.subjects.iter().find(overlaps) {
            return Err(Error::new(
                ErrorKind::Overlap,
                format!(
                    "stream {} would share subjects with stream {name}, which stores {subjects}; \
                     give each subject to one stream",
                    spec.name
                ),
            ));
        }
    }
    Ok(())
}

fn no_such_consumer(at: &ConsumerRef) -> Error {
    Error::new(
        ErrorKind::NoSuchConsumer,
        format!(
            "there is no consumer {} on stream {}",
            at.consumer, at.stream
        ),
    )
}

/// Refuses two consumers that would share commands of a work queue.
fn check_commands(spec: &ConsumerSpec, stream: &Stream) -> Result<()> {
    if stream.spec.retention != Retention::WorkQueue {
        return Ok(());
    }
    let others = stream
        .consumers
        .values()
        .filter(|other| other.spec.at != spec.at);
    let shares = |other: &&Consumer| {
        spec.filters.iter().any(|filter| {
            other
                .spec
                .filters
                .iter()
                .any(|theirs| theirs.overlaps(filter))
        })
    };
    match others.into_iter().find(shares) {
        None => Ok(()),
        Some(other) => Err(Error::new(
            ErrorKind::Overlap,
            format!(
                "consumers {} and {} would share commands of {}; a command has one consumer",
                spec.at.consumer, other.spec.at.consumer, spec.at.stream
            ),
        )),
    }
}

fn check_consumer(spec: &ConsumerSpec) -> Result<()> {
    let fault = if spec.filters.is_empty() {
        "has no filter, so it would get what nobody meant for it"
    } else if spec.ack_wait.is_zero() || spec.ack_wait > Duration::from_secs(24 * 60 * 60) {
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

impl Topology for MemoryEngine {
    fn inspect(&self) -> Boxed<'_, Result<Inspection>> {
        let inspect = || {
            self.check_open()?;
            let mut inspection = Inspection::default();
            for stream in self.bus.streams.read().values() {
                let mut stream = stream.lock();
                stream.expire(self.bus.clock.now());
                inspection.streams.push(stream.state());
                inspection
                    .consumers
                    .extend(stream.consumers.values().map(|consumer| ConsumerState {
                        spec: consumer.spec.clone(),
                        backlog: consumer.backlog(&stream),
                    }));
            }
            Ok(inspection)
        };
        Box::pin(std::future::ready(inspect()))
    }

    fn apply(&self, changes: Vec<Change>) -> Boxed<'_, Result<()>> {
        let applied = changes
            .into_iter()
            .try_for_each(|change| self.apply_now(change));
        Box::pin(std::future::ready(applied))
    }

    fn backlog<'a>(&'a self, consumer: &'a ConsumerRef) -> Boxed<'a, Result<Backlog>> {
        let backlog = self.with_consumer(consumer, |consumer, stream| consumer.backlog(stream));
        Box::pin(std::future::ready(backlog))
    }

    fn subjects<'a>(
        &'a self,
        stream: &'a Name,
        filter: &'a Filter,
        max: usize,
    ) -> Boxed<'a, Result<Vec<SubjectCount>>> {
        let counts = self
            .stream(stream)
            .map(|stream| stream.lock().subject_counts(filter, max));
        Box::pin(std::future::ready(counts))
    }
}
