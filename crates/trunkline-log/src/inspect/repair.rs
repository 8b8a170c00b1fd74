//! Making a directory whole that does not open: only what is damaged is touched, and what is touched is
//! kept.

mod keep;
mod state;
mod stream;
mod unsynced;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trunkline_core::{Error, ErrorKind, Result, Timestamp};

use super::owner::Held;
use super::{Directory, Finding, Lost, Owner, Progress, Remedy, Severity, Verification, Watch};
use crate::disk::Disk;
use crate::engine::sync::UNSYNCED;
use keep::Keeper;

/// How often the state is looked at again: what stands behind damage is seen when that is mended.
const PASSES: usize = 6;

/// Something that a repair does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// The file, below the directory.
    pub file: PathBuf,
    /// What is done.
    pub what: String,
    /// What follows from it.
    pub meaning: String,
    /// The sequences that are lost.
    pub lost: Option<Lost>,
}

/// A repair, planned or done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Repair {
    /// What was found before.
    pub before: Verification,
    /// What would be done, or was.
    pub steps: Vec<Step>,
    /// What no repair can mend. Nothing is done while there is any of it.
    pub hopeless: Vec<Finding>,
    /// Where files are that were kept as they were, below the directory; none if nothing was done.
    pub kept: Vec<PathBuf>,
    /// What is found afterwards; none if nothing was done.
    pub after: Option<Verification>,
}

impl Directory {
    /// Finds what is damaged and, if `apply` says so, mends it: takes the lock, keeps every damaged file
    /// as `<name>.damaged`, and makes whole what can be read of it.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`] while somebody has the directory, [`ErrorKind::OverQuota`] without room for
    /// what is kept, [`ErrorKind::NotPermitted`] and [`ErrorKind::StorageFailed`]. A repair that failed can be
    /// tried again.
    pub fn repair(
        &self,
        now: Timestamp,
        apply: bool,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Repair> {
        if let Owner::Running(pid) = self.owner() {
            let pid = pid.map_or_else(String::new, |pid| format!(" (process {pid})"));
            return Err(Error::new(
                ErrorKind::InUse,
                format!(
                    "{} is in use by another process{pid}; stop it before the directory is repaired",
                    self.dir.display()
                ),
            ));
        }
        let _held = apply.then(|| Held::take(&self.dir)).transpose()?;
        self.repair_held(now, apply, tell)
    }

    /// As [`repair`](Self::repair), by whoever knows that nobody else has the directory.
    pub(super) fn repair_held(
        &self,
        now: Timestamp,
        apply: bool,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Repair> {
        let before = self.verify_as(Owner::Nobody, tell)?;
        let (hopeless, mendable): (Vec<&Finding>, Vec<&Finding>) = before
            .damage()
            .partition(|finding| finding.remedy == Remedy::Restore);
        let mut repair = Repair {
            steps: mendable.into_iter().map(step).collect(),
            hopeless: hopeless.into_iter().cloned().collect(),
            kept: Vec::new(),
            after: None,
            before: before.clone(),
        };
        if !apply || repair.steps.is_empty() || !repair.hopeless.is_empty() {
            return Ok(repair);
        }
        let mut keeper = Keeper::new(&*self.disk, &self.dir);
        let (mut quiet, mut looks) = (|_| {}, 0);
        loop {
            let mut watch = watch(&mut quiet);
            let look = super::state::look(&*self.disk, &self.dir, &mut watch)?;
            looks += 1;
            if !state::mend(&self.disk, &self.dir, &look, &mut keeper, now)? || looks == PASSES {
                break;
            }
        }
        let mut watch = watch(&mut quiet);
        let (_, known) = super::state::verify(&self.disk, &self.dir, false, &mut watch)?;
        let topology = known.topology();
        let (_, announced) = super::unsynced::verify(&*self.disk, &self.dir, false)?;
        let mut names: Vec<&Path> = Vec::new();
        for step in &repair.steps {
            let name = step.file.strip_prefix(super::place::STREAMS).ok();
            let name = name.and_then(|below| below.iter().next()).map(Path::new);
            names.extend(name.filter(|name| !names.contains(name)));
        }
        for name in names.iter().filter_map(|name| name.to_str()) {
            let looked = super::stream::look(&*self.disk, &self.dir, name, &mut watch)?;
            let expected = super::stream::Expected::of(&topology, &announced, name);
            stream::mend(&*self.disk, &self.dir, &looked, &expected, &mut keeper, now)?;
        }
        if repair
            .steps
            .iter()
            .any(|step| step.file == Path::new(UNSYNCED))
        {
            unsynced::mend(&*self.disk, &self.dir, &mut keeper)?;
        }
        repair.kept = keeper.kept;
        repair.after = Some(self.verify_as(Owner::Nobody, tell)?);
        Ok(repair)
    }
}

fn watch<'a>(tell: &'a mut dyn FnMut(Progress)) -> Watch<'a> {
    Watch {
        done: 0,
        this: 0,
        of: 0,
        tell,
    }
}

/// What is done about a finding.
fn step(finding: &Finding) -> Step {
    debug_assert_eq!(finding.severity, Severity::Damage);
    let extension = finding.file.extension().and_then(|end| end.to_str());
    let offset = finding.offset.unwrap_or(0);
    let what = match extension {
        Some("idx") => "make the index again from its segment, or set it aside if that is gone".to_owned(),
        Some("seg") => "keep the file as it is beside it, and go on with what can be read; sequences that are lost become a gap".to_owned(),
        Some("journal") => {
            format!("keep the file as it is beside it, end the journal at offset {offset}, and set later ones aside")
        }
        Some("snapshot") => "keep the file as it is beside it, and go on with what can be read".to_owned(),
        Some("values") => "keep the file as it is beside it, and remove the keys whose values cannot be read".to_owned(),
        _ if finding.file == Path::new(UNSYNCED) => "keep the file beside it, and have each stream go on behind all that may have been stored in it".to_owned(),
        _ => "remove the consumer".to_owned(),
    };
    Step {
        file: finding.file.clone(),
        what,
        meaning: finding.meaning.clone(),
        lost: finding.lost.clone(),
    }
}

/// What a repair cannot do.
fn hopeless(path: &Path, why: &str) -> Error {
    Error::new(
        ErrorKind::Damaged,
        format!(
            "{} cannot be repaired: {why}; restore it from a backup",
            path.display()
        ),
    )
}

/// A disk that a repair works on.
type AnyDisk = Arc<dyn Disk>;
