//! One stream on disk: segments that one thread writes and any thread reads.
//!
//! ```text
//!   stage ──► buffer ──write──► file ──sync──► durable ──publish──► visible to readers
//!     │
//!   refused, with nothing changed
//! ```
//!
//! Nothing is visible before it is durable, or written where whoever writes is content with that, and
//! nothing is answered before it is visible. A write or sync that fails leaves nobody knowing what is on
//! the disk, so the writer then refuses everything until the directory is opened again.

mod append;
mod cache;
pub(crate) mod look;
pub(crate) mod open;
pub(crate) mod ranges;
mod reader;
mod remove;
pub(crate) mod roll;
pub(crate) mod skip;
pub(crate) mod view;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxHashMap;
use trunkline_core::engine::{Seq, StreamSpec};
use trunkline_core::{Error, ErrorKind, Result, Subject, Timestamp};

use crate::frame::{self, GROUP_HEADER_LEN, GroupHeader, OpenGroup};
use crate::segment::Segment;
use crate::segment::bloom::Growing;
use crate::segment::index::{IdPages, Place, Sizes};
use crate::segment::record::{HEAD_LEN, Head};
pub use open::{Report, delete};
use ranges::Ranges;
pub use reader::{Reader, Standing};
use view::Shared;

/// How a stream is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of one segment, unless a single batch needs more. 64 MiB by default.
    pub segment_bytes: u64,
    /// Events are grouped under one checksum up to so many bytes; a batch that is atomic is one
    /// group, whatever its size. 32 KiB by default.
    pub group_bytes: usize,
    /// Bytes of indexes of old segments that are kept in memory. 64 MiB by default.
    pub cache_bytes: usize,
    /// Ids that are remembered at most in sealed segments, however many come within the duplicate
    /// window; 20 bytes on disk and 17 bits in memory each. 4 000 000 by default.
    pub max_ids: u64,
    /// Where the ids of files come from; tests give one. None draws from the operating system.
    pub seed: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            group_bytes: 32 << 10,
            cache_bytes: 64 << 20,
            max_ids: 4_000_000,
            seed: None,
        }
    }
}

/// The write side of a stream. There is one.
#[derive(Debug)]
pub struct Stream {
    shared: Arc<Shared>,
    active: Arc<Segment>,
    options: Options,
    spec: StreamSpec,
    /// Staged and not written; it belongs at `written` of the active segment.
    buffer: Vec<u8>,
    group: Option<Open>,
    written: u64,
    durable: u64,
    /// Whether the last group of the active segment is a closing one.
    is_witnessed: bool,
    capacity: u64,
    /// As staged, like everything below.
    tail: Seq,
    first: Seq,
    /// The first sequence that the groups in the buffer or before say.
    recorded_first: Seq,
    /// The one that the groups say which are durable: files before it are not needed any more.
    durable_first: Seq,
    events: u64,
    bytes: u64,
    last_at: Timestamp,
    removed: Ranges,
    pending: Pending,
    /// Ids in the active segment, counted from its base.
    ids: FxHashMap<u128, u32>,
    /// The ids of the segments that were sealed since the stream was opened: those of the last
    /// `max_ids` are in one of the two.
    sealed_ids: (Growing, Growing),
    /// Sealed segments whose ids are remembered, oldest first.
    recent: VecDeque<Recent>,
    /// The sizes of the segment from which events leave.
    front: Option<(Seq, Seq, Sizes)>,
    /// When the event of that sequence, the first, was stored.
    first_at: Option<(Seq, Timestamp)>,
    spare: Option<u64>,
    poison: Option<Error>,
    random: u64,
}

/// The group at the end of the buffer.
#[derive(Debug)]
struct Open {
    group: OpenGroup,
    kind: u8,
    seq: Seq,
    at: Timestamp,
    count: u32,
}

/// What is staged and not published.
#[derive(Debug, Default)]
struct Pending {
    places: Vec<Place>,
    events: Vec<(Subject, u32)>,
    removed: Vec<(Seq, Seq)>,
}

/// A sealed segment whose ids are remembered, even when its events are gone.
#[derive(Debug)]
struct Recent {
    segment: Segment,
    bloom: Bytes,
    pages: IdPages,
    /// Whether its ids are in the filters over many segments.
    is_covered: bool,
    /// Whether the segment's file is gone and only its index is left.
    is_gone: bool,
}

impl Stream {
    /// A reader. It sees what is published, now and later.
    pub fn reader(&self) -> Reader {
        Reader {
            shared: Arc::clone(&self.shared),
        }
    }

    /// What the stream was told to be.
    pub fn spec(&self) -> &StreamSpec {
        &self.spec
    }

    /// The sequence that the next event will have; what is staged counts.
    pub fn tail(&self) -> Seq {
        self.tail
    }

    /// Whether anything is staged or written and not yet durable.
    pub fn is_dirty(&self) -> bool {
        self.durable < self.written || self.is_staged()
    }

    /// Whether anything is staged and not yet written.
    pub fn is_staged(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Writes what is staged.
    ///
    /// # Errors
    /// [`ErrorKind::StorageFailed`], after which everything is refused.
    pub fn write(&mut self) -> Result<()> {
        self.check()?;
        self.finish_group();
        if self.buffer.is_empty() {
            return Ok(());
        }
        let len = self.buffer.len();
        // The header after the last group is zero, so that old bytes there are not looked at.
        self.buffer.resize(len + GROUP_HEADER_LEN, 0);
        let segment = Arc::clone(&self.active);
        segment
            .file
            .write_at(&self.buffer, self.written)
            .map_err(|error| self.poison("write to", &segment, error))?;
        self.written += len as u64;
        self.is_witnessed = false;
        self.buffer.clear();
        Ok(())
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    /// [`ErrorKind::StorageFailed`], after which everything is refused.
    pub fn sync(&mut self) -> Result<()> {
        self.check()?;
        if self.durable < self.written {
            let segment = Arc::clone(&self.active);
            segment
                .file
                .sync()
                .map_err(|error| self.poison("sync", &segment, error))?;
            self.durable = self.written;
            if !self.is_staged() {
                self.durable_first = self.recorded_first;
            }
        }
        Ok(())
    }

    /// Lets readers see what was synced, and lets go of segments that nobody needs. Nothing may be
    /// staged between [`write`](Self::write) and this.
    ///
    /// # Errors
    /// [`ErrorKind::StorageFailed`] after a failure, and [`ErrorKind::Internal`] when something is
    /// not synced.
    pub fn publish(&mut self) -> Result<()> {
        self.check()?;
        if self.is_dirty() {
            return Err(Error::new(
                ErrorKind::Internal,
                format!(
                    "stream {} was to publish what is not synced",
                    self.spec.name
                ),
            ));
        }
        self.show();
        Ok(())
    }

    /// Lets readers see what was written, for whom it need not survive a loss of power. It survives the
    /// process.
    ///
    /// # Errors
    /// [`ErrorKind::StorageFailed`] after a failure, and [`ErrorKind::Internal`] when something is
    /// not written.
    pub fn publish_written(&mut self) -> Result<()> {
        self.check()?;
        if self.is_staged() {
            return Err(Error::new(
                ErrorKind::Internal,
                format!(
                    "stream {} was to publish what is not written",
                    self.spec.name
                ),
            ));
        }
        self.show();
        Ok(())
    }

    fn show(&mut self) {
        {
            let mut guard = self.shared.view.write();
            let view = &mut *guard;
            view.index.places.append(&mut self.pending.places);
            for (subject, size) in self.pending.events.drain(..) {
                view.index.push(subject.as_str(), size);
            }
            for (start, end) in self.pending.removed.drain(..) {
                view.removed.insert(start, end);
            }
            view.removed.forget_below(self.first);
            view.first = self.first;
            view.events = self.events;
            view.bytes = self.bytes;
            view.end = self.written;
        }
        self.retire();
    }

    /// [`write`](Self::write), [`sync`](Self::sync) and [`publish`](Self::publish).
    ///
    /// # Errors
    /// Theirs.
    pub fn commit(&mut self) -> Result<()> {
        self.write()?;
        self.sync()?;
        self.publish()
    }

    /// Commits what is staged and writes a closing group, so that the last event has a witness:
    /// from then on damage to it is known from a torn write.
    ///
    /// # Errors
    /// [`ErrorKind::StorageFailed`]. What was acknowledged is safe even so.
    pub fn close(mut self) -> Result<()> {
        self.commit()?;
        // Opened and closed without a change, it has its witness, and would grow for nothing.
        let size = 2 * GROUP_HEADER_LEN as u64;
        if self.is_witnessed || self.written + size > self.capacity {
            return Ok(());
        }
        let header = GroupHeader {
            flags: frame::CLOSING,
            durable_end: self.durable,
            ..GroupHeader::default()
        };
        let segment = Arc::clone(&self.active);
        let offset = self.written;
        OpenGroup::begin(&mut self.buffer).finish(
            &mut self.buffer,
            segment.header.file_id,
            offset,
            header,
        );
        self.write()?;
        self.sync()
    }

    /// Ends the group at the end of the buffer: now its header is known.
    fn finish_group(&mut self) {
        let Some(open) = self.group.take() else {
            return;
        };
        let head = Head {
            seq: open.seq,
            at: open.at,
            first: self.first,
            bytes: self.bytes,
        };
        self.recorded_first = self.first;
        let start = open.group.content_start();
        self.buffer[start..start + HEAD_LEN].copy_from_slice(&head.encode());
        let header = GroupHeader {
            count: open.count,
            kind: open.kind,
            durable_end: self.durable,
            ..GroupHeader::default()
        };
        let offset = self.written + (start - GROUP_HEADER_LEN) as u64;
        open.group
            .finish(&mut self.buffer, self.active.header.file_id, offset, header);
    }

    /// The group at the end of the buffer, of that kind and time; begun if there is none.
    fn open_group(&mut self, kind: u8, at: Timestamp) -> &mut Open {
        if self
            .group
            .as_ref()
            .is_some_and(|open| open.kind != kind || open.at != at)
        {
            self.finish_group();
        }
        let seq = self.tail;
        self.last_at = at;
        let Self { group, buffer, .. } = self;
        group.get_or_insert_with(|| {
            let group = OpenGroup::begin(buffer);
            buffer.resize(buffer.len() + HEAD_LEN, 0);
            Open {
                group,
                kind,
                seq,
                at,
                count: 0,
            }
        })
    }

    fn check(&self) -> Result<()> {
        match &self.poison {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    /// Remembers that a write or sync failed, for ever.
    fn poison(&mut self, doing: &str, segment: &Segment, error: std::io::Error) -> Error {
        let error = Error::new(
            ErrorKind::StorageFailed,
            format!(
                "cannot {doing} {}, so stream {} takes nothing more: check the disk and open the directory again",
                segment.path.display(),
                self.spec.name
            ),
        )
        .caused_by(error);
        self.poison = Some(error.clone());
        error
    }

    /// A number that no file had before, as far as chance goes.
    fn next_id(&mut self) -> u64 {
        open::next_id(&mut self.random)
    }
}
