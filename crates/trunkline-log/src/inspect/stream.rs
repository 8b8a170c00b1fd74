//! A stream, every byte of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use trunkline_core::engine::{Position, Seq};
use trunkline_core::{Name, Result};

use super::index::{self, Checked};
use super::place::{ASIDE, STREAMS, list, stranger};
use super::segment::{Surveyed, survey};
use super::{Finding, Lost, Remedy, Severity, Watch};
use crate::disk::{Disk, Open};
use crate::frame::pieces::{Tail, brief};
use crate::journal::KnownTopology;
use crate::segment::{base_of, segment_name};
use crate::stream::ranges::Ranges;
use crate::stream::skip::PLACEHOLDER;
use crate::stream::view::matches_text;

/// What is known of a stream from elsewhere.
#[derive(Debug, Default)]
pub(super) struct Expected {
    is_known: bool,
    is_aside: bool,
    /// The consumer that has settled the highest sequence, and that.
    settled: Option<(String, Seq)>,
    /// Whether an event may have the subject of placeholders.
    stores_placeholders: bool,
    /// Opening goes on behind this, because what is missing before it was not synced.
    announced: Seq,
}

impl Expected {
    /// What the journal says of the stream in the directory of that name.
    pub(super) fn of(
        topology: &KnownTopology,
        announced: &BTreeMap<Name, Seq>,
        name: &str,
    ) -> Self {
        let stream = name.strip_suffix(ASIDE).unwrap_or(name);
        let consumers = topology
            .consumers
            .iter()
            .filter(|((of, _), _)| of.as_str() == stream);
        let settled = consumers.filter_map(|((_, name), known)| {
            let floor = known.settled.floor();
            // One may begin beyond the end.
            let begins = match known.spec.start {
                Position::Seq(seq) => seq.saturating_sub(1),
                _ => 0,
            };
            let above = known.settled.above().last().map(|(_, last)| last);
            let highest = above.or((floor > begins).then_some(floor))?;
            Some((name.to_string(), highest))
        });
        Self {
            is_known: topology.streams.keys().any(|name| name.as_str() == stream),
            is_aside: stream != name,
            stores_placeholders: topology
                .streams
                .values()
                .filter(|known| known.spec.name.as_str() == stream)
                .flat_map(|known| &known.stored)
                .any(|filter| matches_text(filter, PLACEHOLDER)),
            settled: settled.max_by_key(|(_, highest)| *highest),
            announced: announced
                .iter()
                .find(|(name, _)| name.as_str() == stream)
                .map_or(0, |(_, end)| *end),
        }
    }

    /// The highest sequence that somebody has settled.
    pub(super) fn settled(&self) -> Seq {
        self.settled.as_ref().map_or(0, |(_, highest)| *highest)
    }
}

/// A segment without what takes memory.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) segment: Surveyed,
    /// The first sequence of the one after it.
    pub(super) until: Option<Seq>,
    pub(super) index: Checked,
    /// Bytes of the events that are there still.
    pub(super) live_bytes: u64,
    /// Sequences that only fill a gap, and the one after the last of them.
    filled: Vec<(Seq, Seq)>,
}

/// A stream as far as it can be read.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) name: String,
    /// Below the directory of the log.
    pub(super) below: PathBuf,
    /// In order; the last one is written to.
    pub(super) parts: Vec<Part>,
    /// Segments whose events are all gone.
    pub(super) gone: Vec<Seq>,
    /// Indexes that outlived their segments.
    pub(super) indexes: Vec<(Seq, Checked)>,
    pub(super) strangers: Vec<String>,
    pub(super) first: Seq,
    pub(super) removed: Ranges,
    /// Whether the segment that follows a sealed last one has come meanwhile.
    went_on: bool,
}

impl Looked {
    /// What of these sequences was in the stream and is lost; none if all of it had left.
    fn lost(&self, first: Seq, until: Option<Seq>) -> Option<Lost> {
        let from = first.max(self.first);
        let events = until.map(|until| {
            let all = until.saturating_sub(from);
            all.saturating_sub(self.removed.count(from, until))
        });
        if until.is_some_and(|until| until <= from) || events == Some(0) {
            return None;
        }
        Some(Lost {
            stream: self.name.clone(),
            first: from,
            last: until.map(|until| until - 1),
            events,
        })
    }
}

/// Reads all of a stream.
pub(super) fn look(
    disk: &dyn Disk,
    root: &Path,
    name: &str,
    watch: &mut Watch<'_>,
) -> Result<Looked> {
    let below = Path::new(STREAMS).join(name);
    let dir = root.join(&below);
    let names = list(disk, &dir)?;
    let bases: Vec<Seq> = names.iter().filter_map(|name| base_of(name)).collect();
    let index_base = |name: &str| base_of(&format!("{}.seg", name.strip_suffix(".idx")?));
    let mut looked = Looked {
        name: name.strip_suffix(ASIDE).unwrap_or(name).to_owned(),
        below,
        parts: Vec::new(),
        gone: Vec::new(),
        indexes: Vec::new(),
        strangers: names
            .iter()
            .filter(|name| base_of(name).is_none() && index_base(name).is_none())
            .cloned()
            .collect(),
        first: 1,
        removed: Ranges::default(),
        went_on: false,
    };
    let Some((last, before)) = bases.split_last() else {
        return Ok(looked);
    };
    // The last one first: it says which sequences have left the stream.
    let active = survey(disk, &dir, *last, false, watch)?;
    if let Some(head) = &active.head {
        looked.removed = active.removed.clone();
        looked.first = looked.removed.skip(head.first);
    }
    let says_all = active.head.is_some() && active.holes.is_empty();
    let ends = before.iter().skip(1).copied().chain([*last]);
    for (base, end) in before.iter().copied().zip(ends) {
        if end <= looked.first {
            looked.gone.push(base);
            continue;
        }
        let mut segment = survey(disk, &dir, base, true, watch)?;
        let is_complete = segment.next == end;
        let path = dir.join(segment_name(base)).with_extension("idx");
        let index = {
            let of = is_complete.then_some(&segment);
            index::check(disk, &path, base, of, watch)?
        };
        if !says_all {
            // What is known of removals is in the older ones then.
            for (start, end) in segment.removed.iter() {
                looked.removed.insert(start, end);
            }
            let first = segment.head.map_or(0, |head| head.first);
            looked.first = looked.removed.skip(looked.first.max(first));
        }
        let live_bytes = live_bytes(&segment, &looked);
        let filled = filled(&segment, &looked);
        forget(&mut segment);
        looked.parts.push(Part {
            segment,
            until: Some(end),
            index,
            live_bytes,
            filled,
        });
    }
    looked.went_on = active.is_sealed
        && disk
            .open(&dir.join(segment_name(active.next)), Open::Read)
            .is_ok();
    let live_bytes = live_bytes(&active, &looked);
    let filled = filled(&active, &looked);
    looked.parts.push(Part {
        segment: active,
        until: None,
        index: Checked::Missing,
        live_bytes,
        filled,
    });
    let there: BTreeSet<Seq> = bases.iter().copied().collect();
    for base in names.iter().filter_map(|name| index_base(name)) {
        if !there.contains(&base) {
            let path = dir.join(segment_name(base)).with_extension("idx");
            let checked = index::check(disk, &path, base, None, watch)?;
            looked.indexes.push((base, checked));
        }
    }
    Ok(looked)
}

fn live_bytes(segment: &Surveyed, looked: &Looked) -> u64 {
    let sizes = (segment.base..).zip(&segment.index.sizes);
    let live = sizes.filter(|(seq, _)| *seq >= looked.first && !looked.removed.contains(*seq));
    live.map(|(_, size)| u64::from(*size)).sum()
}

/// The placeholders of a segment: removed, of the subject that they have, and without an id.
fn filled(segment: &Surveyed, looked: &Looked) -> Vec<(Seq, Seq)> {
    let numbers = segment
        .index
        .subjects
        .get(PLACEHOLDER)
        .into_iter()
        .flatten();
    let ids: BTreeSet<u32> = segment.ids.iter().map(|(_, number)| *number).collect();
    let mut ranges = Ranges::default();
    for number in numbers.filter(|number| !ids.contains(number)) {
        let seq = segment.base + u64::from(*number);
        if seq >= looked.first && looked.removed.contains(seq) {
            ranges.insert(seq, seq + 1);
        }
    }
    ranges.iter().collect()
}

/// That nobody has these sequences, although events before and behind them are there.
fn gap(file: PathBuf, (first, end): (Seq, Seq)) -> Finding {
    let what = match end - 1 {
        last if last == first => format!("sequence {first} is no event"),
        last => format!("sequences {first} to {last} are no events"),
    };
    Finding::new(Severity::Note, file, what).means(
        "a repair has filled in what could not be read, or a loss of power may have taken what was not synced; readers pass over it",
    )
}

/// Lets go of what was only needed for the index.
fn forget(segment: &mut Surveyed) {
    segment.index = crate::segment::index::Index::new(segment.base);
    segment.ids = Vec::new();
}

/// What is to be told of a stream.
pub(super) fn findings(looked: &Looked, expected: &Expected, is_live: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    if expected.is_aside {
        let what = "a stream that was being removed";
        found.push(Finding::new(Severity::Leftover, &looked.below, what));
        return found;
    }
    if !expected.is_known {
        let what = "the journal knows no stream of this name";
        found.push(
            Finding::new(Severity::Note, &looked.below, what).means(
                "its files are kept and nobody reads them; declaring the stream anew is refused while it has events",
            ),
        );
    }
    for name in &looked.strangers {
        found.extend(stranger(&looked.below, name, is_live));
    }
    let file = |base: Seq| looked.below.join(segment_name(base));
    for base in &looked.gone {
        if !is_live {
            let what = "all events of this segment have left the stream";
            found.push(Finding::new(Severity::Leftover, file(*base), what));
        }
    }
    for (base, checked) in &looked.indexes {
        if let Checked::Wrong((at, what)) = checked {
            found.push(
                Finding::new(Severity::Damage, file(*base).with_extension("idx"), what)
                    .at(*at)
                    .means("no event is lost; an event of the last few minutes that is published again may be stored twice"),
            );
        }
    }
    if !expected.stores_placeholders {
        for part in &looked.parts {
            let filled = part.filled.iter();
            found.extend(filled.map(|filled| gap(file(part.segment.base), *filled)));
        }
    }
    let Some(first_part) = looked.parts.first() else {
        if expected.is_known {
            let what = "the segments of the stream are missing";
            found.push(
                Finding::new(Severity::Damage, &looked.below, what)
                    .means("all its events are missing; the directory was probably copied in part")
                    .needs(Remedy::Restore),
            );
        }
        return found;
    };
    if first_part.segment.base > looked.first {
        let what = "a segment is missing here";
        let lost = looked.lost(looked.first, Some(first_part.segment.base));
        found.push(
            Finding::new(Severity::Damage, file(looked.first), what)
                .means(
                    "events of this stream are missing; the directory was probably copied in part",
                )
                .losing(lost),
        );
    }
    for part in &looked.parts {
        about_segment(looked, part, &mut found, is_live);
    }
    at_the_end(looked, expected, &mut found);
    found
}

fn about_segment(looked: &Looked, part: &Part, found: &mut Vec<Finding>, is_live: bool) {
    let segment = &part.segment;
    let file = looked.below.join(segment_name(segment.base));
    let damage =
        |at: u64, what: &dyn std::fmt::Display| Finding::new(Severity::Damage, &file, what).at(at);
    if let Some((at, error)) = &segment.bad_header {
        let finding = damage(*at, &brief(error));
        found.push(match segment.header {
            Some(_) if part.until.is_none() && segment.is_cut_off() => finding
                .means("how many events stood behind the end is not known")
                .losing(looked.lost(segment.next, None)),
            Some(_) => finding.means("its events can still be read"),
            None => finding
                .means("nothing in it can be told from other bytes")
                .losing(looked.lost(segment.base, part.until)),
        });
        if segment.header.is_none() {
            return;
        }
    }
    for lacking in &segment.holes {
        // At the end of the stream the headers that are left say how many events there were.
        let counted = lacking
            .hole
            .records
            .map(|count| lacking.first.saturating_add(count));
        let until = lacking.until.or(part.until).or(counted);
        let lost = looked.lost(lacking.first, until);
        let bytes = lacking.hole.to - lacking.hole.from;
        let what = format!("{bytes} bytes here are not as they were written");
        found.push(match lost {
            Some(lost) => damage(lacking.hole.from, &what).losing(Some(lost)),
            None => damage(lacking.hole.from, &what)
                .means("no event was there; what was removed at this place may come back"),
        });
    }
    let ends_in_hole = segment
        .holes
        .last()
        .is_some_and(|last| last.until.is_none());
    if let Some((at, error)) = &segment.contradiction {
        found.push(
            damage(*at, &brief(error))
                .means("its checksum is right, so that this is no fault of the disk; nothing behind it is read")
                .losing(looked.lost(segment.next, part.until))
                .needs(Remedy::Restore),
        );
        return;
    }
    match part.until {
        Some(until) if segment.next < until && !ends_in_hole => {
            let lost = looked.lost(segment.next, Some(until));
            found.push(if segment.is_sealed {
                let missing = looked.below.join(segment_name(segment.next));
                Finding::new(Severity::Damage, missing, "this segment is missing")
                    .means("its events are missing; the directory was probably copied in part")
                    .losing(lost)
            } else {
                let last = segment.next.saturating_sub(1);
                let what = format!(
                    "its events end here with {last}, and the next segment begins with {until}"
                );
                damage(segment.end, &what).losing(lost)
            });
        }
        Some(until) if segment.next > until => {
            let what = format!(
                "its events go on to {}, and the next segment begins with {until}",
                segment.next.saturating_sub(1)
            );
            found.push(
                damage(segment.end, &what)
                    .means("two files have the same events; one of them does not belong here")
                    .needs(Remedy::Restore),
            );
        }
        Some(_) => {
            if let Tail::Torn { .. } = segment.tail {
                let what = "the seal of the segment, or a removal before it, cannot be read";
                found.push(
                    Finding::new(Severity::Note, &file, what)
                        .at(segment.end)
                        .means("nothing is lost: the next segment begins with the same"),
                );
            }
        }
        None => {
            if let Tail::Torn { bytes } = segment.tail {
                found.push(torn(&file, segment.end, bytes, is_live));
            }
        }
    }
    let file = file.with_extension("idx");
    match &part.index {
        Checked::Wrong((at, what)) => found.push(
            Finding::new(Severity::Damage, file, what)
                .at(*at)
                .means("no event is lost: it can be made again from its segment"),
        ),
        Checked::Missing if part.until.is_some() && !is_live => {
            found.push(
                Finding::new(Severity::Note, file, "this index is missing")
                    .means("it is made again from its segment when the directory is opened"),
            );
        }
        Checked::Missing | Checked::Right => {}
    }
}

/// A write at the end of a file that is not whole.
pub(super) fn torn(file: &Path, at: u64, bytes: u64, is_live: bool) -> Finding {
    if is_live {
        let what = format!("{bytes} bytes here are being written");
        return Finding::new(Severity::Note, file, what).at(at);
    }
    let what = format!("{bytes} bytes of a write that was torn");
    Finding::new(Severity::CutTail, file, what)
        .at(at)
        .means("nobody was told that it is stored; it is cut off when the directory is opened")
}

fn at_the_end(looked: &Looked, expected: &Expected, found: &mut Vec<Finding>) {
    let Some(last) = looked.parts.last().map(|part| &part.segment) else {
        return;
    };
    let file = looked.below.join(segment_name(last.base));
    let ends = last.contradiction.is_none() && last.header.is_some();
    let has_open_hole =
        last.is_cut_off() || last.holes.last().is_some_and(|last| last.until.is_none());
    if last.is_sealed && !looked.went_on && ends {
        let missing = looked.below.join(segment_name(last.next));
        let what = "this segment is missing: the one before it says that it has a successor";
        let lost = Lost {
            stream: looked.name.clone(),
            first: last.next,
            last: None,
            events: None,
        };
        found.push(
            Finding::new(Severity::Damage, missing, what)
                .means("the newest events are missing; the directory was probably copied in part, or before its owner had closed it")
                .losing(Some(lost))
                .needs(Remedy::Restore),
        );
        return;
    }
    if last.head.is_some_and(|head| head.first > last.next) && !has_open_hole {
        found.push(
            Finding::new(Severity::Damage, &file, "the stream begins after its end")
                .at(last.end)
                .needs(Remedy::Restore),
        );
    }
    if let Some((consumer, highest)) = &expected.settled
        && *highest >= last.next.max(expected.announced)
        && !last.is_sealed
        && ends
        && !has_open_hole
    {
        let what = format!(
            "the stream ends here with {}, and consumer {consumer} has settled events up to {highest}",
            last.next.saturating_sub(1)
        );
        found.push(
            Finding::new(Severity::Damage, &file, what)
                .at(last.end)
                .means("events at the end had been stored and are missing")
                .losing(Some(Lost {
                    stream: looked.name.clone(),
                    first: last.next,
                    last: Some(*highest),
                    events: Some(highest.saturating_add(1) - last.next),
                })),
        );
    }
}
