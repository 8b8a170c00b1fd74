//! Reading all of a segment, to know what it has: when opening, and when its index is missing.

use std::path::Path;

use trunkline_core::engine::Seq;
use trunkline_core::{Error, Result, Timestamp};

use super::index::{Index, Place};
use super::record::{EVENTS, Fault, HEAD_LEN, Head, REMOVED, Records, STATE, take_varint};
use crate::frame::{Group, damaged, newer};
use crate::stream::ranges::Ranges;

/// What is known of a segment, group by group.
#[derive(Debug)]
pub(crate) struct Scan<'a> {
    path: &'a Path,
    pub(crate) index: Index,
    pub(crate) ids: Vec<(u128, u32)>,
    /// As of the last group; none before the first.
    pub(crate) head: Option<Head>,
    pub(crate) removed: Ranges,
    pub(crate) last_at: Timestamp,
    pub(crate) is_sealed: bool,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(path: &'a Path, base: Seq) -> Self {
        Self {
            path,
            index: Index::new(base),
            ids: Vec::new(),
            head: None,
            removed: Ranges::default(),
            last_at: Timestamp::from_nanos(i64::MIN),
            is_sealed: false,
        }
    }

    /// Takes the next group in.
    pub(crate) fn group(&mut self, group: &Group) -> Result<()> {
        let fault = |what: &str| damaged(self.path, group.offset, what);
        if group.header.flags != 0 {
            self.is_sealed |= group.header.flags & crate::frame::SEALING != 0;
            return Ok(());
        }
        let head = Head::decode(&group.content).ok_or_else(|| fault("a group without a head"))?;
        if self.head.is_none() && group.header.kind != STATE {
            return Err(fault(
                "the segment does not begin with the state of its stream",
            ));
        }
        if head.seq != self.index.end() || head.at < self.last_at {
            return Err(fault("a group that does not follow the one before it"));
        }
        match group.header.kind {
            EVENTS => self.events(group, head)?,
            STATE | REMOVED => {
                let ranges =
                    ranges(&group.content).ok_or_else(|| fault("ranges that are malformed"))?;
                for (start, end) in ranges {
                    self.removed.insert(start, end);
                }
            }
            kind => {
                let what = format_args!("a group of kind {kind} at offset {}", group.offset);
                return Err(newer(self.path, what));
            }
        }
        self.removed.forget_below(head.first);
        self.last_at = head.at;
        self.head = Some(head);
        Ok(())
    }

    fn events(&mut self, group: &Group, head: Head) -> Result<()> {
        self.index.places.push(Place {
            seq: head.seq,
            offset: group.offset,
            at: head.at,
        });
        let mut records = Records::new(&group.content);
        let mut count = 0;
        while let Some(record) = records
            .next_record()
            .map_err(|fault| explain(fault, self.path, group.offset))?
        {
            let number = u32::try_from(self.index.sizes.len()).unwrap_or(u32::MAX);
            self.ids.extend(record.id.map(|id| (id, number)));
            // A record is part of a group, whose length is 32 bits.
            self.index.push(
                record.subject,
                u32::try_from(record.size).unwrap_or(u32::MAX),
            );
            count += 1;
        }
        if count != group.header.count {
            let what = format_args!("{count} events where {} belong", group.header.count);
            return Err(damaged(self.path, group.offset, what));
        }
        Ok(())
    }
}

/// What a fault of a record means to whoever reads the file.
pub(crate) fn explain(fault: Fault, path: &Path, offset: u64) -> Error {
    match fault {
        Fault::Malformed => damaged(path, offset, "a record contradicts itself"),
        Fault::Newer(flags) => newer(
            path,
            format_args!("a record with flags {flags:#x} in the group at offset {offset}"),
        ),
    }
}

/// The ranges in the content of a group.
fn ranges(content: &[u8]) -> Option<Vec<(Seq, Seq)>> {
    let mut rest = content.get(HEAD_LEN..)?;
    let mut ranges = Vec::new();
    while !rest.is_empty() {
        let start = take_varint(&mut rest)?;
        let len = take_varint(&mut rest)?;
        ranges.push((start, start.checked_add(len)?));
    }
    Some(ranges)
}
