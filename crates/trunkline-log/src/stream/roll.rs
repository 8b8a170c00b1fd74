//! Going on to the next segment, and letting old ones go.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use trunkline_core::engine::Seq;
use trunkline_core::{ErrorKind, Result, Timestamp};

use super::view::Shared;
use super::{Recent, Stream};
use crate::disk::{self, Disk, Open};
use crate::frame::{
    self, FILE_HEADER_LEN, FileHeader, FileKind, GROUP_HEADER_LEN, GroupHeader, OpenGroup,
};
use crate::segment::bloom::{self, Growing};
use crate::segment::index::{self, ID_BLOOM, ID_PAGES, IdPages};
use crate::segment::record::{EVENTS, HEAD_LEN, Head, STATE};
use crate::segment::{Segment, segment_name, write_index};

/// What every group needs beside its content, with the zeros that may follow it.
const GROUP_OVERHEAD: u64 = (GROUP_HEADER_LEN + HEAD_LEN + frame::ALIGN) as u64;
/// The zeros after the last group, and the sealing or closing group.
const END_OVERHEAD: u64 = 2 * GROUP_HEADER_LEN as u64;

/// A segment that was just made.
pub(crate) struct Made {
    pub(crate) segment: Segment,
    /// Where its first group of events goes.
    pub(crate) end: u64,
}

impl Stream {
    /// Has room for so many bytes in one group of the active segment; goes on to the next segment
    /// if there is none. Afterwards nothing of this kind fails for want of room.
    pub(super) fn reserve(&mut self, bytes: usize, kind: u8, at: Timestamp) -> Result<()> {
        let joins = self
            .group
            .as_ref()
            .is_some_and(|open| (open.kind, open.at) == (kind, at));
        let group = if joins { 0 } else { GROUP_OVERHEAD };
        // The group that is open may need zeros after it.
        let used = self.written + self.buffer.len() as u64 + frame::ALIGN as u64;
        // When the disk is full, removing must still find room to be written down.
        let kept = if kind == EVENTS {
            kept_for_removals(self.capacity)
        } else {
            0
        };
        if used + group + bytes as u64 + END_OVERHEAD + kept <= self.capacity {
            return Ok(());
        }
        let usual = self.options.segment_bytes;
        match self.roll(bytes as u64, at, usual) {
            // A small segment may find room where a usual one does not, and removing is what makes
            // room again.
            Err(error) if kind != EVENTS && error.kind() == ErrorKind::OverQuota => {
                self.roll(bytes as u64, at, 0)
            }
            done => done,
        }
    }

    /// Seals the active segment and goes on with a new one. What is staged is committed on the way.
    ///
    /// # Errors
    /// [`OverQuota`](trunkline_core::ErrorKind::OverQuota) when there is no room for another: then
    /// all goes on as it was. Else the writer is poisoned.
    fn roll(&mut self, need: u64, now: Timestamp, usual: u64) -> Result<()> {
        self.commit()?;
        let old = Arc::clone(&self.active);
        let made = match self.make_segment(self.tail, need, now, usual) {
            Ok(made) => made,
            Err(error) if disk::is_full(&error) => {
                return Err(frame::failed("make a segment after", &old.path, error));
            }
            Err(error) => return Err(self.poison("make a segment after", &old, error)),
        };
        let data_end = self.written;
        let replaces_old = old.base() == self.tail;
        // A segment without events had the name that the new one has now.
        let sealed = (!replaces_old).then(|| self.seal(&old, data_end));
        self.capacity = made.segment.header.reserved;
        self.written = made.end;
        self.durable = made.end;
        self.is_witnessed = false;
        self.recorded_first = self.first;
        self.durable_first = self.first;
        self.active = Arc::new(made.segment);
        let mut view = self.shared.view.write();
        // Usually nobody reads just now, so that the list is changed in place.
        Arc::make_mut(&mut view.sealed).extend(sealed);
        view.index = index::Index::new(self.active.base());
        view.active = Arc::clone(&self.active);
        view.end = made.end;
        drop(view);
        self.retire();
        Ok(())
    }

    /// Seals a segment that has another after it by now, and writes its index.
    fn seal(&mut self, old: &Segment, data_end: u64) -> Arc<Segment> {
        self.buffer.clear();
        let header = GroupHeader {
            flags: frame::SEALING,
            durable_end: self.durable,
            ..GroupHeader::default()
        };
        OpenGroup::begin(&mut self.buffer).finish(
            &mut self.buffer,
            old.header.file_id,
            data_end,
            header,
        );
        let sealed = old
            .file
            .write_at(&self.buffer, data_end)
            .and_then(|()| old.file.sync());
        self.buffer.clear();
        if let Err(error) = sealed {
            // Everything in it is durable already; the seal only tells that a segment is missing.
            tracing::warn!(file = %old.path.display(), %error, "cannot seal a segment");
        }
        let mut ids: Vec<(u128, u32)> = self.ids.drain().collect();
        let (summary, image) = {
            let view = self.shared.view.read();
            index::encode(&old.header, &view.index, &mut ids, data_end, self.last_at)
        };
        let path = old.index_path();
        let file = write_index(&*self.shared.disk, &path, &image);
        if let Err(error) = &file {
            // It can be made again from the segment.
            tracing::warn!(%error, "cannot write the index of a segment");
        }
        let file = file.ok();
        for (id, _) in &ids {
            if self.sealed_ids.0.is_full() {
                let newer = Growing::new(self.options.max_ids);
                self.sealed_ids.1 = std::mem::replace(&mut self.sealed_ids.0, newer);
            }
            self.sealed_ids.0.insert(bloom::hash_id(*id));
        }
        let image = Bytes::from(image);
        let section = |kind| old.section_of(&image, &summary, kind);
        if let (Some(bloom), Some(pages)) = (section(ID_BLOOM), section(ID_PAGES))
            && !ids.is_empty()
        {
            self.recent.push_back(Recent {
                segment: old.seal(summary, file.clone()),
                bloom: Bytes::copy_from_slice(&bloom),
                pages: IdPages(Bytes::copy_from_slice(&pages)),
                is_covered: true,
                is_gone: false,
            });
        }
        Arc::new(old.seal(summary, file))
    }

    fn make_segment(
        &mut self,
        base: Seq,
        need: u64,
        now: Timestamp,
        usual: u64,
    ) -> io::Result<Made> {
        let file_id = self.next_id();
        let mut state = Vec::new();
        let group = OpenGroup::begin(&mut state);
        let head = Head {
            seq: base,
            at: now.max(self.last_at),
            first: self.first,
            bytes: self.bytes,
        };
        state.extend_from_slice(&head.encode());
        self.encode_removed(&mut state);
        let header = GroupHeader {
            count: u32::try_from(self.removed.len()).unwrap_or(u32::MAX),
            kind: STATE,
            ..GroupHeader::default()
        };
        group.finish(&mut state, file_id, FILE_HEADER_LEN, header);
        let spare = self.spare.take();
        make_segment(
            &self.shared,
            &FileHeader {
                kind: FileKind::Segment,
                file_id,
                base,
                created: now,
                reserved: usual,
            },
            &state,
            need,
            spare,
        )
    }

    /// Lets go of segments whose events are all gone. What cannot be removed now is removed when
    /// the stream is opened again.
    pub(super) fn retire(&mut self) {
        let first = self.durable_first;
        let gone: Vec<Arc<Segment>> = {
            let mut view = self.shared.view.write();
            let count = view
                .sealed
                .partition_point(|segment| segment.end() <= first);
            if count == 0 {
                return;
            }
            Arc::make_mut(&mut view.sealed).drain(..count).collect()
        };
        for segment in gone {
            let recent = self
                .recent
                .iter_mut()
                .find(|recent| recent.segment.header.file_id == segment.header.file_id);
            let remembers = recent.is_some();
            if let Some(recent) = recent {
                recent.is_gone = true;
            }
            if let Err(error) = self.discard(&segment, remembers) {
                tracing::warn!(stream = %self.spec.name, %error, "cannot remove an old segment");
            }
        }
    }

    fn discard(&mut self, segment: &Arc<Segment>, remembers: bool) -> io::Result<()> {
        let disk = &*self.shared.disk;
        if !remembers
            && let Err(error) = disk.remove(&segment.index_path())
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        // Whoever still reads it must not see it written over.
        // A reading may hold the file by this segment, or by the one that it was before it was sealed.
        let holders = 1 + usize::from(remembers);
        let is_unused =
            Arc::strong_count(segment) == 1 && Arc::strong_count(&segment.file) == holders;
        let is_usual = segment.header.reserved == self.options.segment_bytes;
        if self.spare.is_some() || !is_unused || !is_usual {
            return disk.remove(&segment.path);
        }
        disk.rename(&segment.path, &spare_path(&self.shared))?;
        // Before it is written over: else its old name might come back with new content.
        disk.sync_dir(&self.shared.dir)?;
        self.spare = Some(segment.header.reserved);
        Ok(())
    }

    /// Forgets ids that are past the duplicate window, or too many.
    pub(super) fn forget_ids(&mut self, now: Timestamp) {
        let oldest = now.minus(self.spec.duplicate_window);
        let count = |recent: &Recent| recent.segment.ids();
        while let Some(recent) = self.recent.front() {
            let is_past = recent
                .segment
                .sealed
                .as_ref()
                .is_none_or(|sealed| sealed.summary.last_at < oldest);
            if !is_past && self.recent.iter().map(count).sum::<u64>() <= self.options.max_ids {
                break;
            }
            if let Some(recent) = self.recent.pop_front()
                && recent.is_gone
                && let Err(error) = self.shared.disk.remove(&recent.segment.index_path())
            {
                tracing::warn!(stream = %self.spec.name, %error, "cannot remove an old index");
            }
        }
    }
}

/// Bytes at the end of a segment that events leave alone.
fn kept_for_removals(capacity: u64) -> u64 {
    (capacity / 16).min(64 << 10)
}

fn spare_path(shared: &Shared) -> PathBuf {
    shared.dir.join("spare.tmp")
}

/// Makes a segment, durably, with its first group.
pub(super) fn make_segment(
    shared: &Shared,
    header: &FileHeader,
    state: &[u8],
    need: u64,
    spare: Option<u64>,
) -> io::Result<Made> {
    make_segment_in(&*shared.disk, &shared.dir, header, state, need, spare)
}

/// As `make_segment`, for a stream that is not open yet.
pub(crate) fn make_segment_in(
    disk: &dyn Disk,
    dir: &std::path::Path,
    header: &FileHeader,
    state: &[u8],
    need: u64,
    spare: Option<u64>,
) -> io::Result<Made> {
    let end = FILE_HEADER_LEN + state.len() as u64;
    let needed = end + GROUP_OVERHEAD + need + END_OVERHEAD + frame::ALIGN as u64;
    // What is kept for removals is a sixteenth at most.
    let needed = (needed + needed / 15 + 16).next_multiple_of(4 << 10);
    let mut reserved = header.reserved.max(needed);
    let (tmp, made) = (dir.join("new.tmp"), dir.join("spare.tmp"));
    let (tmp, file) = match spare {
        Some(spare) if spare >= reserved => {
            reserved = spare;
            let file = disk.open(&made, Open::Write)?;
            (made, file)
        }
        _ => {
            if let Err(error) = disk.remove(&tmp)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            let file = disk.open(&tmp, Open::CreateNew)?;
            if let Err(error) = file.allocate(reserved) {
                // So that it takes no room.
                let _ = disk.remove(&tmp);
                return Err(error);
            }
            (tmp, file)
        }
    };
    let header = FileHeader {
        reserved,
        ..*header
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(state);
    bytes.resize(bytes.len() + GROUP_HEADER_LEN, 0);
    file.write_at(&bytes, 0)?;
    file.sync()?;
    let path = dir.join(segment_name(header.base));
    // From here on it may have its name after a crash, so that nobody may go on without it, whatever
    // the reason of a failure is.
    disk.rename(&tmp, &path)
        .and_then(|()| disk.sync_dir(dir))
        .map_err(io::Error::other)?;
    let segment = Segment {
        file,
        path,
        header,
        sealed: None,
    };
    Ok(Made { segment, end })
}
