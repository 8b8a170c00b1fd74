//! What is in a directory, also in one that does not open.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use trunkline_core::engine::{Bucket, Rev, Seq, StateKey, StoredEvent};
use trunkline_core::{Error, ErrorKind, Result, Subject, Timestamp};

use super::place::{STREAMS, list};
use super::segment::survey;
use super::{Directory, Watch};
use crate::disk::Open;
use crate::frame::pieces::{Header, Piece, Pieces, brief, header};
use crate::frame::{FileHeader, FileKind, Group, failed};
use crate::journal::look::Look;
use crate::journal::{KnownConsumer, KnownStream, Value};
use crate::segment::record::{EVENTS, Head, Records};
use crate::segment::{base_of, segment_name};
use crate::stream::ranges::Ranges;

/// Which events are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsFrom {
    /// The stream.
    pub stream: String,
    /// The first sequence.
    pub from: Seq,
    /// Events at most.
    pub limit: u64,
}

/// What stands next in a stream.
#[derive(Debug)]
pub enum Dumped {
    /// An event.
    Event(Box<StoredEvent>),
    /// Something that cannot be read.
    Skipped {
        /// The file, below the directory.
        file: PathBuf,
        /// Where in the file.
        offset: u64,
        /// The first sequence that is missing.
        first: Seq,
        /// The last one; none if nothing says how many there were.
        last: Option<Seq>,
        /// What is wrong.
        why: String,
    },
}

/// Something of the state.
#[derive(Debug)]
#[non_exhaustive]
pub enum StateLine {
    /// A stream.
    Stream(Box<KnownStream>),
    /// A consumer.
    Consumer(Box<KnownConsumer>),
    /// A key; an error if its value cannot be read.
    Key {
        /// Its bucket.
        bucket: Bucket,
        /// Itself.
        key: StateKey,
        /// Its value.
        value: Result<Bytes>,
        /// Its last change.
        rev: Rev,
        /// When that was.
        at: Timestamp,
        /// When its time to live runs out.
        ends: Option<Timestamp>,
    },
    /// Something in the journal that cannot be read.
    Skipped {
        /// The file, below the directory.
        file: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        why: String,
    },
}

impl Directory {
    /// Gives the events of a stream in order, as far as they can be read, until `each` refuses one.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchStream`] with those that there are, those of `each`, and
    /// [`ErrorKind::StorageFailed`].
    pub fn events(
        &self,
        wanted: &EventsFrom,
        each: &mut dyn FnMut(Dumped) -> Result<()>,
    ) -> Result<()> {
        let names = super::place::stream_dirs(&*self.disk, &self.dir)?;
        if !names.contains(&wanted.stream) {
            return Err(Error::new(
                ErrorKind::NoSuchStream,
                format!(
                    "there is no stream {} in {}; there are {}",
                    wanted.stream,
                    self.dir.display(),
                    names.join(", ")
                ),
            ));
        }
        let below = Path::new(STREAMS).join(&wanted.stream);
        let dir = self.dir.join(&below);
        let names = list(&*self.disk, &dir)?;
        let bases: Vec<Seq> = names.iter().filter_map(|name| base_of(name)).collect();
        let Some(last) = bases.last().copied() else {
            return Ok(());
        };
        let mut quiet = |_| {};
        let mut watch = Watch {
            done: 0,
            this: 0,
            of: 0,
            tell: &mut quiet,
        };
        // The last one says which events have left the stream.
        let active = survey(&*self.disk, &dir, last, false, &mut watch)?;
        let first = active.head.map_or(1, |head| head.first);
        let mut removed = active.removed.clone();
        if !active.is_sound() {
            // It may not say all of them, and the older ones say those of before.
            for (base, end) in bases.iter().zip(bases.iter().skip(1)) {
                if *end > first {
                    let older = survey(&*self.disk, &dir, *base, true, &mut watch)?;
                    for (start, end) in older.removed.iter() {
                        removed.insert(start, end);
                    }
                }
            }
        }
        let mut dumping = Dumping {
            expected: wanted.from.max(first),
            left: wanted.limit,
            removed,
            fault: None,
            each,
        };
        let ends = bases.iter().skip(1).copied().map(Some).chain([None]);
        for (base, end) in bases.iter().copied().zip(ends) {
            if end.is_some_and(|end| end <= dumping.expected) || dumping.left == 0 {
                continue;
            }
            self.dump_segment(&mut dumping, &below, base, end)?;
        }
        if let Some((file, offset, why)) = dumping.fault.take()
            && dumping.left > 0
        {
            let first = dumping.expected;
            (dumping.each)(Dumped::Skipped {
                file,
                offset,
                first,
                last: None,
                why,
            })?;
        }
        Ok(())
    }

    fn dump_segment(
        &self,
        dumping: &mut Dumping<'_>,
        below: &Path,
        base: Seq,
        end: Option<Seq>,
    ) -> Result<()> {
        let file_name = below.join(segment_name(base));
        let path = self.dir.join(&file_name);
        let file = match self.disk.open(&path, Open::Read) {
            // Its events have left meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(|error| failed("open", &path, error))?,
        };
        let beside = || {
            let path = path.with_extension("idx");
            let file = self.disk.open(&path, Open::Read).ok()?;
            FileHeader::read(&*file, &path, FileKind::Index).ok()
        };
        dumping.pass(base, &file_name, 0, "a segment is missing before this one")?;
        let header = match header(&*file, &path, FileKind::Segment, base, beside)? {
            Header::Good(header) => Some(header),
            Header::Bad { error, likely, .. } => {
                if likely.is_none() {
                    dumping.fault = Some((file_name.clone(), 0, brief(&error)));
                }
                likely
            }
        };
        if let Some(header) = header {
            let mut pieces = Pieces::new(&*file, &path, header.file_id, end.is_some())?;
            while dumping.left > 0 {
                match pieces.next_piece() {
                    Ok(Piece::Group(group)) => dumping.group(&group, &file_name)?,
                    Ok(Piece::Hole(hole)) => {
                        let bytes = hole.to - hole.from;
                        let why = format!("{bytes} bytes here are not as they were written");
                        dumping.fault = Some((file_name.clone(), hole.from, why));
                    }
                    Ok(Piece::End(_)) => break,
                    Err(error) if error.kind() == ErrorKind::StorageFailed => return Err(error),
                    Err(error) => {
                        dumping.fault = Some((file_name.clone(), pieces.offset(), brief(&error)));
                        break;
                    }
                }
            }
            if let Some(end) = end {
                dumping.pass(end, &file_name, pieces.offset(), "its events end here")?;
            }
        } else if let Some(end) = end {
            dumping.pass(end, &file_name, 0, "its header is not valid")?;
        }
        Ok(())
    }

    /// Gives streams, consumers and keys as the journal has them, and what of it cannot be read.
    ///
    /// # Errors
    /// Those of `each`, and [`ErrorKind::StorageFailed`].
    pub fn state(&self, each: &mut dyn FnMut(StateLine) -> Result<()>) -> Result<()> {
        let look = Look::at(&*self.disk, &self.dir, true, &mut |_| {})?;
        for fault in &look.faults {
            let file = fault.path.strip_prefix(&self.dir).unwrap_or(&fault.path);
            each(StateLine::Skipped {
                file: file.to_owned(),
                offset: fault.offset,
                why: fault.what.clone(),
            })?;
        }
        let topology = look.state.topology();
        for known in topology.streams.into_values() {
            each(StateLine::Stream(Box::new(known)))?;
        }
        for known in topology.consumers.into_values() {
            each(StateLine::Consumer(Box::new(known)))?;
        }
        for (bucket, keys) in look.state.buckets() {
            let keys: Vec<_> = {
                let keys = keys.read();
                let all = keys.after(None);
                all.map(|(key, kept)| (key.clone(), kept.clone())).collect()
            };
            for (key, kept) in keys {
                let value = read(&look.state, &kept.value);
                each(StateLine::Key {
                    bucket: bucket.clone(),
                    key,
                    value,
                    rev: kept.rev,
                    at: kept.at,
                    ends: kept.ends,
                })?;
            }
        }
        Ok(())
    }
}

fn read(state: &Arc<crate::journal::State>, value: &Value) -> Result<Bytes> {
    let missing = || Error::new(ErrorKind::Damaged, "the file that has the value is missing");
    state.read(value)?.ok_or_else(missing)
}

/// A dump under way.
struct Dumping<'a> {
    /// The sequence that comes next, if nothing is missing.
    expected: Seq,
    left: u64,
    removed: Ranges,
    /// What was in the way since the last event.
    fault: Option<(PathBuf, u64, String)>,
    each: &'a mut dyn FnMut(Dumped) -> Result<()>,
}

impl Dumping<'_> {
    /// Says what is missing before `to`, if anything is.
    fn pass(&mut self, to: Seq, file: &Path, offset: u64, why: &str) -> Result<()> {
        let fault = self.fault.take();
        if to <= self.expected {
            return Ok(());
        }
        let first = std::mem::replace(&mut self.expected, to);
        let missing = (to - first).saturating_sub(self.removed.count(first, to));
        if missing == 0 || self.left == 0 {
            return Ok(());
        }
        let (file, offset, why) =
            fault.unwrap_or_else(|| (file.to_owned(), offset, why.to_owned()));
        (self.each)(Dumped::Skipped {
            file,
            offset,
            first,
            last: Some(to - 1),
            why,
        })
    }

    fn group(&mut self, group: &Group, file: &Path) -> Result<()> {
        if group.header.flags != 0 {
            return Ok(());
        }
        let Some(head) = Head::decode(&group.content) else {
            return Ok(());
        };
        self.pass(
            head.seq,
            file,
            group.offset,
            "events are missing before this place",
        )?;
        if group.header.kind != EVENTS {
            return Ok(());
        }
        let mut records = Records::new(&group.content);
        let end = head.seq.saturating_add(u64::from(group.header.count));
        for seq in head.seq..end {
            if self.left == 0 {
                return Ok(());
            }
            let Ok(Some(record)) = records.next_record() else {
                let why = "a record contradicts itself".to_owned();
                self.fault = Some((file.to_owned(), group.offset, why));
                return self.pass(end, file, group.offset, "");
            };
            let is_wanted = seq >= self.expected && !self.removed.contains(seq);
            self.expected = self.expected.max(seq.saturating_add(1));
            if !is_wanted {
                continue;
            }
            let event = Subject::new(record.subject)
                .and_then(|subject| record.event(seq, head.at, subject, &group.content));
            match event {
                Ok(event) => {
                    self.left -= 1;
                    (self.each)(Dumped::Event(Box::new(event)))?;
                }
                Err(error) => (self.each)(Dumped::Skipped {
                    file: file.to_owned(),
                    offset: group.offset,
                    first: seq,
                    last: Some(seq),
                    why: error.message().to_owned(),
                })?,
            }
        }
        Ok(())
    }
}
