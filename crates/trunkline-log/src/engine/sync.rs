//! When what is written is synced, and what is owed to those who saw something that was not.
//!
//! A loss of power takes what was not synced. Consumers, cursors and readers on other hosts may have
//! seen the sequences of events that are gone then, so these must not be given to others. Before
//! sequences are given that are not durable, a file says up to where they may go; after an end that
//! was not clean each stream goes on behind that.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use trunkline_core::engine::{Fact, Seq};
use trunkline_core::{Name, Result};

use super::options::duration;
use crate::disk::{self, Disk, Open};
use crate::frame::{damaged, failed};

/// The file's name. It is there while something may be written that is not synced.
pub(crate) const UNSYNCED: &str = "unsynced";
const MAKING: &str = "unsynced.tmp";
const TITLE: &str = "trunkline-unsynced 1";
/// The line with the checksum of those before it.
const SUM: &str = "crc ";
/// The fact that tells the policy.
const SYNC: &str = "sync";
/// More bytes than the file ever has.
const MOST_BYTES: u64 = 16 << 20;

/// When what is written is synced, so that it survives a loss of power. The end of the process it
/// survives in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Before it is answered.
    Always,
    /// So long after it was answered at the latest.
    Interval(Duration),
    /// When the system gets to it, when a segment or journal is full, and when the directory is closed.
    Os,
}

impl SyncPolicy {
    /// Whether everything that is answered survives a loss of power.
    pub fn survives_power(self) -> bool {
        self == Self::Always
    }

    /// Whether who asks for `other` is content with this.
    pub fn is_as_good_as(self, other: Self) -> bool {
        let longest = |policy| match policy {
            Self::Always => Duration::ZERO,
            Self::Interval(interval) => interval,
            Self::Os => Duration::MAX,
        };
        longest(self) <= longest(other)
    }

    /// The policy that an engine's facts tell of, which may be one in another process; none if they are
    /// not those of a log.
    pub fn told(facts: &[Fact]) -> Option<Self> {
        let told = facts.iter().find(|fact| fact.name == SYNC)?;
        match told.value.split_once(':')?.0.split_once(' ') {
            None if told.value.starts_with("always:") => Some(Self::Always),
            None if told.value.starts_with("os:") => Some(Self::Os),
            Some(("interval", interval)) => duration(interval).map(Self::Interval),
            _ => None,
        }
    }

    /// As it is written in a URL.
    pub(super) fn text(self) -> String {
        match self {
            Self::Always => "always".to_owned(),
            Self::Interval(interval) => format!(
                "interval&sync_interval={}",
                trunkline_core::plan::duration_text(interval)
            ),
            Self::Os => "os".to_owned(),
        }
    }

    /// What `explain` says of it.
    pub(super) fn facts(self) -> Vec<Fact> {
        const LOSS: &str = "loss of power";
        match self {
            Self::Always => vec![Fact::new(
                SYNC,
                "always: what is acknowledged is on the disk",
            )],
            Self::Interval(interval) => {
                let interval = trunkline_core::plan::duration_text(interval);
                vec![
                    Fact::new(
                        SYNC,
                        format!(
                            "interval {interval}: so long after it was acknowledged at the latest"
                        ),
                    ),
                    Fact::new(
                        LOSS,
                        format!("what was acknowledged in the last {interval} may be lost"),
                    ),
                ]
            }
            Self::Os => vec![
                Fact::new(
                    SYNC,
                    "os: when the system gets to it, a segment is full or the bus is closed",
                ),
                Fact::new(
                    LOSS,
                    "unknown: what the system had not written is lost, however long ago it was acknowledged",
                ),
            ],
        }
    }
}

/// The file that says up to where sequences may have been given.
pub(super) struct Unsynced {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// How many are announced at once.
    ahead: u64,
    /// Up to where sequences may be given without another word, by stream.
    ends: BTreeMap<Name, Seq>,
}

impl Unsynced {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, ahead: u64) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
            ahead,
            ends: BTreeMap::new(),
        }
    }

    /// Makes sure that sequences below `end` may be given, durably.
    pub(super) fn announce(&mut self, stream: &Name, end: Seq) -> Result<()> {
        if self.ends.get(stream).is_some_and(|known| end <= *known) {
            return Ok(());
        }
        let before = self
            .ends
            .insert(stream.clone(), end.saturating_add(self.ahead));
        let written = write(&*self.disk, &self.dir, &self.ends);
        if written.is_err() {
            // What was not written was not announced.
            match before {
                Some(before) => self.ends.insert(stream.clone(), before),
                None => self.ends.remove(stream),
            };
        }
        written
    }

    /// One that is gone has given all its sequences; one of the same name begins anew.
    pub(super) fn forget(&mut self, stream: &Name) {
        self.ends.remove(stream);
    }
}

/// What the file says; none if it is not there: then all that was answered is durable.
pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<BTreeMap<Name, Seq>>> {
    let path = dir.join(UNSYNCED);
    let file = match disk.open(&path, Open::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| failed("open", &path, error))?,
    };
    let read = |error| failed("read", &path, error);
    let len = file.len().map_err(read)?.min(MOST_BYTES);
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let got = disk::read_full(&*file, &mut bytes, 0).map_err(read)?;
    bytes.truncate(got);
    decode(&bytes)
        .map(Some)
        .ok_or_else(|| damaged(&path, 0, "it does not match its checksum"))
}

/// Writes the file, durably.
pub(crate) fn write(disk: &dyn Disk, dir: &Path, ends: &BTreeMap<Name, Seq>) -> Result<()> {
    let (path, making) = (dir.join(UNSYNCED), dir.join(MAKING));
    let write = || {
        if let Err(error) = disk.remove(&making)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let file = disk.open(&making, Open::CreateNew)?;
        file.write_at(encode(ends).as_bytes(), 0)?;
        file.sync()?;
        disk.rename(&making, &path)?;
        disk.sync_dir(dir)
    };
    write().map_err(|error| failed("write", &path, error))
}

/// Removes the file, once everything is synced.
pub(super) fn all_synced(disk: &dyn Disk, dir: &Path) -> Result<()> {
    let path = dir.join(UNSYNCED);
    match disk.remove(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed
            .and_then(|()| disk.sync_dir(dir))
            .map_err(|error| failed("remove", &path, error)),
    }
}

fn encode(ends: &BTreeMap<Name, Seq>) -> String {
    let mut text = format!("{TITLE}\n");
    for (name, end) in ends {
        text.push_str(&format!("{name} {end}\n"));
    }
    let sum = crc32c::crc32c(text.as_bytes());
    text.push_str(&format!("{SUM}{sum:08x}\n"));
    text
}

fn decode(bytes: &[u8]) -> Option<BTreeMap<Name, Seq>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let at = text.strip_suffix('\n')?.rfind('\n')? + 1;
    let (lines, sum) = text.split_at(at);
    let sum = sum.strip_prefix(SUM)?.strip_suffix('\n')?;
    if sum != format!("{:08x}", crc32c::crc32c(lines.as_bytes())) {
        return None;
    }
    let end = |line: &str| {
        let (name, end) = line.split_once(' ')?;
        Some((Name::new(name).ok()?, end.parse().ok()?))
    };
    let mut lines = lines.lines();
    (lines.next()? == TITLE).then(|| lines.map(end).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_announced_is_read_and_any_change_of_it_noticed() {
        let ends = BTreeMap::from([
            (Name::new("COMMANDS").unwrap(), 1),
            (Name::new("EVENTS").unwrap(), u64::MAX),
        ]);
        for ends in [ends, BTreeMap::new()] {
            let text = encode(&ends);
            assert_eq!(decode(text.as_bytes()), Some(ends));
            for at in 0..text.len() {
                assert_eq!(decode(&text.as_bytes()[..at]), None, "cut off at {at}");
                for bit in 0..8 {
                    let mut bytes = text.clone().into_bytes();
                    bytes[at] ^= 1 << bit;
                    assert_eq!(decode(&bytes), None, "bit {bit} of {at}");
                }
            }
        }
    }

    #[test]
    fn a_policy_is_known_by_what_is_told_of_it() {
        let interval = |ms| SyncPolicy::Interval(Duration::from_millis(ms));
        for policy in [
            SyncPolicy::Always,
            SyncPolicy::Os,
            interval(1),
            interval(90_500),
        ] {
            assert_eq!(SyncPolicy::told(&policy.facts()), Some(policy));
        }
        assert_eq!(SyncPolicy::told(&[Fact::new("sync", "now and then")]), None);
        assert_eq!(SyncPolicy::told(&[]), None);
    }

    #[test]
    fn policies_are_compared_by_what_they_may_lose() {
        let interval = |ms| SyncPolicy::Interval(Duration::from_millis(ms));
        let rising = [
            SyncPolicy::Os,
            interval(500),
            interval(20),
            SyncPolicy::Always,
        ];
        for (weaker, a) in rising.iter().enumerate() {
            for (stronger, b) in rising.iter().enumerate() {
                assert_eq!(b.is_as_good_as(*a), stronger >= weaker, "{b:?} for {a:?}");
            }
        }
    }
}
