//! What readers see: published by the writer, looked up under a lock that nobody holds during I/O.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use trunkline_core::Result;
use trunkline_core::engine::Seq;

use super::cache::{Cache, Key, Part};
use super::ranges::Ranges;
use crate::disk::Disk;
use crate::frame::{FILE_HEADER_LEN, damaged};
use crate::segment::Segment;
use crate::segment::bloom;
use crate::segment::index::{self, Ids, Index, Places, SUBJECTS, Sizes, Subjects, Summary};
use crate::segment::scan::Scan;
use crate::selection::Selection;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) view: RwLock<View>,
    pub(crate) cache: Cache,
}

/// The published state of a stream.
#[derive(Debug)]
pub(crate) struct View {
    /// Sealed segments in order.
    pub(crate) sealed: Arc<Vec<Arc<Segment>>>,
    pub(crate) active: Arc<Segment>,
    /// What the active segment has.
    pub(crate) index: Index,
    /// Where the active segment's groups end.
    pub(crate) end: u64,
    /// The first sequence that is there.
    pub(crate) first: Seq,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    /// What was removed from the middle: all of it at or after `first`.
    pub(crate) removed: Ranges,
}

impl View {
    pub(crate) fn tail(&self) -> Seq {
        self.index.end()
    }

    pub(crate) fn is_live(&self, seq: Seq) -> bool {
        seq >= self.first && seq < self.tail() && !self.removed.contains(seq)
    }

    /// How many events there are from `from` on.
    pub(crate) fn live_from(&self, from: Seq) -> u64 {
        let from = from.max(self.first);
        let all = self.tail().saturating_sub(from);
        all - self.removed.count(from, self.tail())
    }

    /// The events of the active segment that are selected, in order, counted from its base.
    pub(crate) fn matching(&self, selection: &Selection) -> Vec<u32> {
        let wanted = self
            .index
            .subjects
            .iter()
            .filter(|(subject, _)| match selection {
                Selection::All => true,
                Selection::Subjects(subjects) => subjects
                    .iter()
                    .any(|wanted| wanted.as_str() == subject.as_str()),
                Selection::Filters(filters) => {
                    filters.iter().any(|filter| matches_text(filter, subject))
                }
            });
        let mut numbers: Vec<u32> = wanted.flat_map(|(_, numbers)| numbers).copied().collect();
        numbers.sort_unstable();
        numbers
    }
}

/// Whether a subject that is known to be one matches.
pub(crate) fn matches_text(filter: &trunkline_core::Filter, subject: &str) -> bool {
    trunkline_core::Subject::new(subject).is_ok_and(|subject| filter.matches(&subject))
}

/// What one reading sees, from its beginning to its end.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) sealed: Arc<Vec<Arc<Segment>>>,
    pub(crate) active: Arc<Segment>,
    pub(crate) end: u64,
    pub(crate) first: Seq,
    pub(crate) tail: Seq,
}

impl Snapshot {
    /// The segment that has `seq`, and the sequence after its last event.
    pub(crate) fn segment(&self, seq: Seq) -> (&Arc<Segment>, Seq) {
        let after = self.sealed.partition_point(|segment| segment.end() <= seq);
        match self.sealed.get(after) {
            Some(segment) => (segment, segment.end()),
            None => (&self.active, self.tail),
        }
    }

    /// All segments in order, the active one last.
    pub(crate) fn segments(&self) -> impl DoubleEndedIterator<Item = &Arc<Segment>> {
        let sealed = self
            .sealed
            .iter()
            .filter(|segment| segment.end() > self.first);
        sealed.chain(std::iter::once(&self.active))
    }
}

impl Shared {
    pub(crate) fn snapshot(&self) -> Snapshot {
        let view = self.view.read();
        Snapshot {
            sealed: Arc::clone(&view.sealed),
            active: Arc::clone(&view.active),
            end: view.end,
            first: view.first,
            tail: view.tail(),
        }
    }

    /// A section of a sealed segment's index, out of memory, its file, or the segment itself.
    pub(crate) fn section(&self, segment: &Segment, kind: u8) -> Result<Bytes> {
        let key = Key::Section(segment.header.file_id, kind);
        if let Some(Part::Section(bytes)) = self.cache.get(&key) {
            return Ok(bytes);
        }
        let bytes = match segment.section(kind) {
            Some(bytes) => bytes,
            None => {
                let (summary, image) = rebuild(segment)?;
                let missing = || damaged(&segment.path, FILE_HEADER_LEN, "it cannot be indexed");
                segment
                    .section_of(&image, &summary, kind)
                    .ok_or_else(missing)?
            }
        };
        self.cache.put(key, Part::Section(bytes.clone()));
        Ok(bytes)
    }

    /// A section of the index of a segment that is gone; none if it cannot be read, for there is
    /// nothing left to make it of.
    pub(crate) fn gone_section(&self, segment: &Segment, kind: u8) -> Option<Bytes> {
        let key = Key::Section(segment.header.file_id, kind);
        if let Some(Part::Section(bytes)) = self.cache.get(&key) {
            return Some(bytes);
        }
        let bytes = segment.section(kind)?;
        self.cache.put(key, Part::Section(bytes.clone()));
        Some(bytes)
    }

    pub(crate) fn places(&self, segment: &Segment) -> Result<Places> {
        self.section(segment, index::PLACES).map(Places)
    }

    pub(crate) fn sizes(&self, segment: &Segment) -> Result<Sizes> {
        self.section(segment, index::SIZES).map(Sizes)
    }

    pub(crate) fn subjects(&self, segment: &Segment) -> Result<Subjects> {
        self.section(segment, SUBJECTS).map(Subjects)
    }

    pub(crate) fn ids(&self, segment: &Segment) -> Result<Ids> {
        self.section(segment, index::IDS).map(Ids)
    }

    /// Whether a sealed segment may have events of the subject. If not, it certainly has none.
    pub(crate) fn may_have_subject(&self, segment: &Segment, subject: &str) -> Result<bool> {
        let filter = self.section(segment, index::SUBJECT_BLOOM)?;
        Ok(bloom::may_have(&filter, bloom::hash_text(subject)))
    }

    /// The events of a sealed segment that are selected, in order, counted from its base.
    pub(crate) fn matching(&self, segment: &Segment, selection: &Selection) -> Result<Arc<[u32]>> {
        let key = Key::Matching(segment.header.file_id, selection.clone());
        if let Some(Part::Matching(numbers)) = self.cache.get(&key) {
            return Ok(numbers);
        }
        let mut numbers: Vec<u32> = Vec::new();
        match selection {
            Selection::Subjects(wanted) => {
                for subject in wanted {
                    if self.may_have_subject(segment, subject.as_str())? {
                        let subjects = self.subjects(segment)?;
                        let found = subjects.find(subject.as_str());
                        numbers.extend(found.iter().flat_map(index::SubjectEntry::numbers));
                    }
                }
            }
            Selection::Filters(filters) => {
                for entry in self.subjects(segment)?.iter() {
                    if filters
                        .iter()
                        .any(|filter| matches_text(filter, entry.subject))
                    {
                        numbers.extend(entry.numbers());
                    }
                }
            }
            Selection::All => {
                for entry in self.subjects(segment)?.iter() {
                    numbers.extend(entry.numbers());
                }
            }
        }
        numbers.sort_unstable();
        // The same subject may be wanted twice.
        numbers.dedup();
        let numbers: Arc<[u32]> = numbers.into();
        self.cache.put(key, Part::Matching(Arc::clone(&numbers)));
        Ok(numbers)
    }
}

/// The index of a sealed segment, found by reading all of it.
fn rebuild(segment: &Segment) -> Result<(Summary, Bytes)> {
    let end = segment.data_end(FILE_HEADER_LEN);
    let mut scan = Scan::new(&segment.path, segment.base());
    let mut walk = segment.walk(FILE_HEADER_LEN, end);
    while let Some(group) = walk.next_group()? {
        scan.group(&group)?;
    }
    if walk.offset() != end {
        return Err(damaged(
            &segment.path,
            walk.offset(),
            "the group here is not as it was written",
        ));
    }
    let Scan {
        index,
        mut ids,
        last_at,
        ..
    } = scan;
    let (summary, image) = index::encode(&segment.header, &index, &mut ids, end, last_at);
    Ok((summary, Bytes::from(image)))
}
