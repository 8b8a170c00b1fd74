//! Making, changing and removing streams and consumers.
//!
//! A stream's directory is made before the journal knows it, and set aside before the journal forgets
//! it: so a crash in between leaves a directory that opening can tell from a stream.

use std::sync::Arc;

use trunkline_core::engine::{Change, ConsumerRef, ConsumerSpec, StreamSpec};
use trunkline_core::plan::differences;
use trunkline_core::plan::legal::{
    check_consumer, check_same, check_start, check_stream, no_such_consumer,
};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result, Timestamp};

use super::super::consume::Consumer;
use super::super::directory::{self, stored_after};
use super::super::streams::OpenStream;
use super::turn::Writer;
use crate::journal::Record;
use crate::selection::Selection;
use crate::stream::{self, Stream};

impl Writer {
    pub(super) fn change(&mut self, change: Change, now: Timestamp) -> Result<()> {
        match change {
            Change::CreateStream(spec) => self.create_stream(spec, now),
            Change::UpdateStream(spec) => self.update_stream(spec, now),
            Change::DeleteStream(name) => self.delete_stream(&name, now),
            Change::CreateConsumer(spec) => self.create_consumer(spec, now),
            Change::UpdateConsumer(spec) => self.update_consumer(spec, now),
            Change::DeleteConsumer(at) => self.delete_consumer(&at, now),
            other => Err(Error::new(
                ErrorKind::Unsupported,
                format!("the embedded log cannot do {other:?}"),
            )),
        }
    }

    /// Waits for the disk. What fails there ends all writing.
    fn flush(&mut self) -> Result<()> {
        let flushed = self.journal.flush().map(drop);
        flushed.inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// Writes a record and waits for the disk.
    fn written(&mut self, record: Record, now: Timestamp) -> Result<()> {
        self.record(record, now)?;
        self.flush()
    }

    fn create_stream(&mut self, spec: StreamSpec, now: Timestamp) -> Result<()> {
        let known = self.journal.state().topology().streams;
        check_stream(&spec, known.values().map(|known| &known.spec))?;
        if let Some(found) = known.get(&spec.name) {
            let differences = differences(&found.spec, &spec);
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
        // Whoever asks for more copies is told what there is.
        let spec = StreamSpec {
            replicas: 1,
            ..spec
        };
        let dir = directory::stream_dir(&self.dir, &spec.name);
        let disk = Arc::clone(&self.disk);
        let (stream, _) = Stream::create(disk, &dir, spec.clone(), self.options.clone(), now)?;
        let stored = spec.subjects.clone();
        self.written(
            Record::Stream {
                spec: spec.clone(),
                stored: stored.clone(),
            },
            now,
        )?;
        self.streams
            .insert(OpenStream::new(spec.clone(), stored, stream.reader()));
        self.writing.insert(spec.name, stream);
        Ok(())
    }

    fn update_stream(&mut self, spec: StreamSpec, now: Timestamp) -> Result<()> {
        let known = self.journal.state().topology().streams;
        let open = self.streams.get(&spec.name)?;
        check_stream(&spec, known.values().map(|known| &known.spec))?;
        let spec = StreamSpec {
            replicas: 1,
            ..spec
        };
        let is_empty = open.reader.standing().events == 0;
        let before: Vec<Filter> = match known.get(&spec.name) {
            Some(known) if !is_empty => known.stored.clone(),
            _ => Vec::new(),
        };
        let stored = stored_after(before, &spec);
        self.stream(&spec.name)?.check_update(&spec)?;
        // First what may be refused: then nothing has changed.
        self.record(
            Record::Stream {
                spec: spec.clone(),
                stored: stored.clone(),
            },
            now,
        )?;
        let stream = self.stream(&spec.name)?;
        let committed = stream
            .stage_update(now, spec.clone())
            .and_then(|()| stream.commit());
        committed.inspect_err(|error| self.failed = Some(error.clone()))?;
        self.flush()?;
        open.update(spec, stored.clone());
        for consumer in open.consumers().values() {
            consumer.select_anew(&stored);
        }
        Ok(())
    }

    fn delete_stream(&mut self, name: &Name, now: Timestamp) -> Result<()> {
        self.streams.get(name)?;
        let dir = directory::stream_dir(&self.dir, name);
        let aside = directory::aside(&dir);
        let failed = |error| {
            Error::new(
                ErrorKind::StorageFailed,
                format!("cannot set {} aside, so stream {name} stays", dir.display()),
            )
            .caused_by(error)
        };
        // Nobody writes to it any more; who reads it reads on from files that are open.
        let stream = self.writing.remove(name);
        let set_aside = self.disk.rename(&dir, &aside).and_then(|()| {
            // Before the record: a stream that is known to be deleted must not be there again.
            self.disk.sync_dir(&self.dir.join("streams"))
        });
        let deleted = set_aside
            .map_err(failed)
            .and_then(|()| self.written(Record::StreamDeleted(name.clone()), now));
        if let Err(error) = deleted {
            // It goes on as it was; what cannot be undone is put in order at the next opening.
            if self.failed.is_none() {
                let _ = self.disk.rename(&aside, &dir);
            }
            self.writing
                .extend(stream.map(|stream| (name.clone(), stream)));
            return Err(error);
        }
        drop(stream);
        self.unsynced.forget(name);
        self.streams.remove(name);
        if let Err(error) = stream::delete(&*self.disk, &aside) {
            tracing::warn!(stream = %name, %error, "what is left of the stream is removed at the next opening");
        }
        Ok(())
    }

    fn create_consumer(&mut self, spec: ConsumerSpec, now: Timestamp) -> Result<()> {
        let open = self.streams.get(&spec.at.stream)?;
        let topology = self.journal.state().topology();
        let (stream, stored) = {
            let interest = open.interest();
            (interest.spec.clone(), interest.stored.clone())
        };
        let others = topology.consumers.values().map(|known| &known.spec);
        let others = others.filter(|other| other.at.stream == spec.at.stream);
        check_consumer(&spec, &stream, others)?;
        let at = (spec.at.stream.clone(), spec.at.consumer.clone());
        if let Some(found) = topology.consumers.get(&at) {
            return check_same(&found.spec, &spec);
        }
        check_start(&spec, &stream)?;
        let selection = Selection::new(&spec.filters, &stored);
        let (next, _) = open.reader.start(spec.start, &selection)?;
        self.written(
            Record::Consumer {
                spec: spec.clone(),
                next,
            },
            now,
        )?;
        let name = spec.at.consumer.clone();
        let consumer = Consumer::begin(spec, next, &open);
        open.consumers().insert(name, Arc::new(consumer));
        Ok(())
    }

    fn update_consumer(&mut self, spec: ConsumerSpec, now: Timestamp) -> Result<()> {
        let open = self.streams.get(&spec.at.stream)?;
        let consumer = open.consumer(&spec.at.consumer);
        let consumer = consumer.ok_or_else(|| no_such_consumer(&spec.at))?;
        let topology = self.journal.state().topology();
        let others = topology.consumers.values().map(|known| &known.spec);
        let others = others.filter(|other| other.at.stream == spec.at.stream);
        let stream = open.interest().spec.clone();
        check_consumer(&spec, &stream, others)?;
        self.written(Record::ConsumerUpdated(spec.clone()), now)?;
        consumer.update(spec, &open);
        Ok(())
    }

    fn delete_consumer(&mut self, at: &ConsumerRef, now: Timestamp) -> Result<()> {
        let open = self.streams.get(&at.stream)?;
        if open.consumer(&at.consumer).is_none() {
            return Err(no_such_consumer(at));
        }
        self.written(Record::ConsumerDeleted(at.clone()), now)?;
        let consumer = open.consumers().remove(&at.consumer);
        if let Some(consumer) = consumer {
            consumer.retire(&open);
        }
        Ok(())
    }
}
