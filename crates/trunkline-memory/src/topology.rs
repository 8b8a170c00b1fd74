//! Making, changing and describing streams and consumers.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use trunkline_core::engine::{
    Backlog, Boxed, Change, ConsumerRef, ConsumerSpec, ConsumerState, Inspection, StreamSpec,
    SubjectCount, Topology,
};
use trunkline_core::plan::differences;
use trunkline_core::plan::legal::{
    check_consumer, check_same, check_start, check_stream, no_such_consumer,
};
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
                self.with_consumer(&spec.at.clone(), |consumer, stream| {
                    let others = stream.consumers.values().map(|other| &other.spec);
                    check_consumer(&spec, &stream.spec, others)?;
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
        check(&spec, &streams)?;
        let stream = Stream::new(spec.clone(), &self.bus.options);
        streams.insert(spec.name, Arc::new(Mutex::new(stream)));
        Ok(())
    }

    fn update_stream(&self, spec: StreamSpec) -> Result<()> {
        let stream = self.stream(&spec.name)?;
        // Held, so that no other stream takes the subjects in the meantime.
        let streams = self.bus.streams.write();
        check(&spec, &streams)?;
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
        let stream = self.stream(&spec.at.stream)?;
        let mut stream = stream.lock();
        let others = stream.consumers.values().map(|other| &other.spec);
        check_consumer(&spec, &stream.spec, others)?;
        if let Some(found) = stream.consumers.get(&spec.at.consumer) {
            return check_same(&found.spec, &spec);
        }
        check_start(&spec, &stream.spec)?;
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

/// Refuses a stream that could store nothing, or would share subjects with another.
fn check(spec: &StreamSpec, streams: &BTreeMap<Name, Arc<Mutex<Stream>>>) -> Result<()> {
    let specs: Vec<StreamSpec> = streams
        .values()
        .map(|stream| stream.lock().spec.clone())
        .collect();
    check_stream(spec, &specs)
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
