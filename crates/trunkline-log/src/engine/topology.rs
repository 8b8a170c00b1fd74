//! What streams and consumers there are. The committer changes them.

use trunkline_core::engine::{
    Backlog, Boxed, Change, ConsumerRef, ConsumerState, Inspection, StreamState, SubjectCount,
    Topology,
};
use trunkline_core::plan::legal::no_such_consumer;
use trunkline_core::{Filter, Name, Result};

use super::LogEngine;
use super::committer::Job;
use super::log::reading;

impl Topology for LogEngine {
    fn inspect(&self) -> Boxed<'_, Result<Inspection>> {
        Box::pin(async move {
            self.check_open()?;
            let all = self.bus.streams.all();
            for stream in &all {
                self.bus.age(stream).await?;
            }
            reading(false, move || {
                let mut inspection = Inspection::default();
                for stream in all {
                    let standing = stream.reader.standing();
                    inspection.streams.push(StreamState {
                        spec: stream.interest().spec.clone(),
                        events: standing.events,
                        bytes: standing.bytes,
                        first: standing.first,
                        tail: standing.tail,
                        first_at: stream.reader.first_at()?,
                    });
                    let consumers: Vec<_> = stream.consumers().values().cloned().collect();
                    for consumer in consumers {
                        inspection.consumers.push(ConsumerState {
                            backlog: consumer.backlog(&stream)?,
                            spec: consumer.spec(),
                        });
                    }
                }
                Ok(inspection)
            })
            .await
        })
    }

    fn apply(&self, changes: Vec<Change>) -> Boxed<'_, Result<()>> {
        Box::pin(async move {
            self.check_open()?;
            for change in changes {
                let job = |reply| Job::Change { change, reply };
                self.bus.committer.ask(job).await?;
            }
            Ok(())
        })
    }

    fn backlog<'a>(&'a self, at: &'a ConsumerRef) -> Boxed<'a, Result<Backlog>> {
        Box::pin(async move {
            let stream = self.stream(&at.stream)?;
            self.bus.age(&stream).await?;
            let consumer = stream.consumer(&at.consumer);
            let consumer = consumer.ok_or_else(|| no_such_consumer(at))?;
            reading(false, move || consumer.backlog(&stream)).await
        })
    }

    fn subjects<'a>(
        &'a self,
        stream: &'a Name,
        filter: &'a Filter,
        max: usize,
    ) -> Boxed<'a, Result<Vec<SubjectCount>>> {
        Box::pin(async move {
            let stream = self.stream(stream)?;
            self.bus.age(&stream).await?;
            let filter = filter.clone();
            reading(false, move || stream.reader.subjects(&filter, max)).await
        })
    }
}
