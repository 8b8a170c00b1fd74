//! Looking at a directory from outside: how it stands, whether every byte is as it was written, what is in
//! it; and making one whole again that does not open.
//!
//! ```text
//!   Directory ──stats──► how it stands          \
//!             ──verify─► findings                } read only, also while its owner writes
//!             ──dump───► events, keys, consumers /
//!             ──repair─► takes the lock, keeps what it changes as *.damaged
//! ```
//!
//! **Invariant.** Everything but `repair` opens files for reading, takes no lock and makes nothing. What a
//! running owner is writing at the end of a file is no damage.

mod dump;
mod index;
mod owner;
mod place;
mod repair;
mod segment;
mod state;
mod stats;
mod stream;
#[cfg(test)]
mod tests;
mod unsynced;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trunkline_core::Result;
use trunkline_core::engine::Seq;

use crate::disk::{Disk, RealDisk};

pub use dump::{Dumped, EventsFrom, StateLine};
pub use owner::Owner;
pub use repair::{Repair, Step};
pub use stats::{
    BucketStats, ConsumerStats, DirectoryStats, JournalStats, StreamStanding, StreamStats,
};

/// How often a part of a directory whose owner writes is looked at again before what was found there
/// counts.
const LOOKS: usize = 3;

/// The directory of a log.
#[derive(Clone, Debug)]
pub struct Directory {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing, and nothing to do.
    Note,
    /// Something that opening the directory clears away.
    Leftover,
    /// A write that was torn at the end of a file. It was never acknowledged, and opening cuts it off.
    CutTail,
    /// Something that was stored is not as it was written, or not there.
    Damage,
}

impl Severity {
    /// Its name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Leftover => "leftover",
            Severity::CutTail => "cut tail",
            Severity::Damage => "damage",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Sequences of a stream that cannot be read any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The stream.
    pub stream: String,
    /// The first of them.
    pub first: Seq,
    /// The last of them; none if nothing says how many there were.
    pub last: Option<Seq>,
    /// How many of them were still in the stream; none if nothing says it.
    pub events: Option<u64>,
}

/// What can be done about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing needs to be done.
    Nothing,
    /// Opening the directory does it.
    Opening,
    /// [`Directory::repair`] does it.
    Repair,
    /// No program can: the directory is to be copied again, or restored from a backup.
    Restore,
}

impl Remedy {
    /// Its name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Remedy::Nothing => "nothing",
            Remedy::Opening => "opening",
            Remedy::Repair => "repair",
            Remedy::Restore => "restore",
        }
    }
}

/// Something that was found in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// The file, below the directory.
    pub file: PathBuf,
    /// Where in the file; none if it is about all of it.
    pub offset: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// What follows from it.
    pub meaning: String,
    /// Sequences that cannot be read any more.
    pub lost: Option<Lost>,
    /// What can be done about it.
    pub remedy: Remedy,
}

impl Finding {
    fn new(severity: Severity, file: impl Into<PathBuf>, what: impl fmt::Display) -> Self {
        Self {
            severity,
            file: file.into(),
            offset: None,
            what: what.to_string(),
            meaning: String::new(),
            lost: None,
            remedy: match severity {
                Severity::Note => Remedy::Nothing,
                Severity::Leftover | Severity::CutTail => Remedy::Opening,
                Severity::Damage => Remedy::Repair,
            },
        }
    }

    fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    fn means(mut self, meaning: impl fmt::Display) -> Self {
        self.meaning = meaning.to_string();
        self
    }

    fn losing(mut self, lost: Option<Lost>) -> Self {
        self.lost = lost;
        self
    }

    fn needs(mut self, remedy: Remedy) -> Self {
        self.remedy = remedy;
        self
    }
}

/// How far reading is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were read.
    pub bytes: u64,
    /// Bytes that there are.
    pub of: u64,
}

/// What [`Directory::verify`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Verification {
    /// What was found, by file.
    pub findings: Vec<Finding>,
    /// Bytes that were read.
    pub bytes: u64,
    /// Files that were read.
    pub files: u64,
    /// Streams whose events were read.
    pub streams: u64,
    /// Whose the directory is.
    pub owner: Owner,
}

impl Verification {
    /// What is damaged.
    pub fn damage(&self) -> impl Iterator<Item = &Finding> {
        let all = self.findings.iter();
        all.filter(|finding| finding.severity == Severity::Damage)
    }
}

impl Directory {
    /// The directory there.
    ///
    /// # Errors
    /// [`InvalidConfig`](trunkline_core::ErrorKind::InvalidConfig) for what is no directory of ours,
    /// [`WrongVersion`](trunkline_core::ErrorKind::WrongVersion) for a newer format,
    /// [`NotPermitted`](trunkline_core::ErrorKind::NotPermitted) without the right to read it, and
    /// [`Damaged`](trunkline_core::ErrorKind::Damaged) for one that was copied in part.
    pub fn at(dir: impl Into<PathBuf>) -> Result<Self> {
        Self::on(Arc::new(RealDisk), dir)
    }

    /// The directory there, on any disk.
    ///
    /// # Errors
    /// Those of [`at`](Self::at).
    pub fn on(disk: Arc<dyn Disk>, dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        place::check(&*disk, &dir)?;
        Ok(Self { disk, dir })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Whose it is at the moment.
    pub fn owner(&self) -> Owner {
        Owner::of(&self.dir)
    }

    /// Reads every byte that means something, and gives what is not as it should be. `tell` hears how far
    /// it is.
    ///
    /// # Errors
    /// [`StorageFailed`](trunkline_core::ErrorKind::StorageFailed) and
    /// [`NotPermitted`](trunkline_core::ErrorKind::NotPermitted) where something cannot be read; what is
    /// damaged is no error, but a finding.
    pub fn verify(&self, tell: &mut dyn FnMut(Progress)) -> Result<Verification> {
        self.verify_as(self.owner(), tell)
    }

    fn verify_as(&self, owner: Owner, tell: &mut dyn FnMut(Progress)) -> Result<Verification> {
        let (of, files) = place::size(&*self.disk, &self.dir)?;
        let mut watch = Watch {
            done: 0,
            this: 0,
            of,
            tell,
        };
        let is_live = owner.may_write();
        let mut findings = place::strangers(&*self.disk, &self.dir, is_live)?;
        let mut known = None;
        findings.extend(confirmed(is_live, || {
            let (found, state) = state::verify(&self.disk, &self.dir, is_live, &mut watch)?;
            known = Some(state);
            Ok(found)
        })?);
        let (found, announced) = unsynced::verify(&*self.disk, &self.dir, is_live)?;
        findings.extend(found);
        let names = place::stream_dirs(&*self.disk, &self.dir)?;
        if !place::has_journals(&*self.disk, &self.dir)? {
            findings.extend(state::forgotten(&names));
        }
        let topology = known.map(|known| known.topology()).unwrap_or_default();
        for name in &names {
            findings.extend(confirmed(is_live, || {
                let of = stream::Expected::of(&topology, &announced, name);
                let looked = stream::look(&*self.disk, &self.dir, name, &mut watch)?;
                if is_live && !place::stream_dirs(&*self.disk, &self.dir)?.contains(name) {
                    // Its owner has removed it meanwhile.
                    return Ok(Vec::new());
                }
                Ok(stream::findings(&looked, &of, is_live))
            })?);
        }
        let missing = topology.streams.keys().filter(|name| {
            let is_it = |found: &String| {
                found == name.as_str() || found.strip_suffix(place::ASIDE) == Some(name.as_str())
            };
            !names.iter().any(is_it)
        });
        for name in missing {
            if is_live {
                // One is made before its record is written, and gone before the next one is.
                let now = state::look(&*self.disk, &self.dir, &mut watch)?;
                if !now.state.topology().streams.contains_key(name) {
                    continue;
                }
            }
            findings.push(
                Finding::new(
                    Severity::Damage,
                    Path::new(place::STREAMS).join(name.as_str()),
                    "the directory of the stream is missing",
                )
                .means("all events of the stream are missing; the directory was probably copied in part")
                .needs(Remedy::Restore),
            );
        }
        findings.sort_by(|a, b| (&a.file, a.offset).cmp(&(&b.file, b.offset)));
        Ok(Verification {
            findings,
            bytes: watch.done,
            files,
            streams: names.len() as u64,
            owner,
        })
    }
}

/// Looks again where somebody may be writing: what one look found and the next did not was under way.
fn confirmed(
    is_live: bool,
    mut look: impl FnMut() -> Result<Vec<Finding>>,
) -> Result<Vec<Finding>> {
    let mut tried = 0;
    let mut before: Option<Vec<Finding>> = None;
    loop {
        tried += 1;
        let found = match look() {
            // A file that was listed and is gone by now.
            Err(_) if is_live && tried < LOOKS => continue,
            found => found?,
        };
        let is_damage = |finding: &Finding| finding.severity == Severity::Damage;
        if !is_live || !found.iter().any(is_damage) {
            return Ok(found);
        }
        if let Some(before) = before {
            let was_there = |finding: &Finding| {
                let is_it = |other: &Finding| {
                    (&other.file, other.offset) == (&finding.file, finding.offset)
                };
                !is_damage(finding) || before.iter().any(is_it)
            };
            let mut found = found;
            found.retain(was_there);
            return Ok(found);
        }
        before = Some(found);
    }
}

/// Counts bytes and tells of them.
struct Watch<'a> {
    done: u64,
    /// Where the file ends that is read.
    this: u64,
    of: u64,
    tell: &'a mut dyn FnMut(Progress),
}

impl Watch<'_> {
    fn begin(&mut self, bytes: u64) {
        self.this = self.done + bytes;
    }

    fn read(&mut self, bytes: u64) {
        self.done = (self.done + bytes).min(self.this);
        (self.tell)(Progress {
            bytes: self.done.min(self.of),
            of: self.of,
        });
    }

    fn finish(&mut self) {
        self.read(self.this - self.done.min(self.this));
    }
}
