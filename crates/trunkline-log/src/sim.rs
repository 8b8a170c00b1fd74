//! A disk in memory that crashes, fails, lies and fills up, the same way for the same seed.
//!
//! ```text
//!   write ──► visible ──► pending ──sync──► durable
//!                            │
//!                          crash: of each 512-byte sector, some first part of its pending writes
//! ```
//!
//! What it promises is what POSIX promises and no more: without a sync nothing has an order, and
//! without a sync of the directory a name may be the old one, the new one or none.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::disk::{Disk, File, Open};

mod node;
mod random;

use node::Node;
pub use random::Random;

/// A simulated disk. Clones share it.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Told when directories are not held any more.
    released: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// What happens at one operation. Operations are those that change something: making, writing,
/// resizing, allocating, syncing, renaming and removing, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails; a write may have been done in part, and of what a sync was to make
    /// durable some is lost for good.
    Fail,
    /// This operation and all later ones fail.
    FailFromHereOn,
    /// A sync says that it was done and makes nothing durable. Other operations are not harmed.
    Lie,
    /// There is no room from here on, for what takes some.
    FullFromHereOn,
    /// The power goes: this operation and all others fail, reading too, until
    /// [`crash`](SimDisk::crash) brings the disk back.
    PowerCut,
    /// Whoever does the operation panics: there is a defect in the program.
    Panic,
}

#[derive(Debug)]
struct State {
    /// Whether syncs of directories wait.
    is_held: bool,
    nodes: Vec<Node>,
    dirs: BTreeSet<PathBuf>,
    visible: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    pending: Vec<(PathBuf, Change)>,
    /// Handles of an earlier one are of a process that is no more.
    epoch: u64,
    operations: u64,
    fault: Option<(u64, Fault)>,
    is_off: bool,
    capacity: Option<u64>,
    random: Random,
}

/// A change of a directory that is not durable yet.
#[derive(Debug)]
enum Change {
    Make(PathBuf, usize),
    Rename(PathBuf, PathBuf, usize),
    Remove(PathBuf, usize),
}

impl State {
    /// Directories themselves are durable at once, here as in [`make_dir`](Disk::make_dir); what is
    /// pending in them stays so.
    fn move_dir(&mut self, from: &Path, to: &Path) {
        let moved = |path: &Path| match path.strip_prefix(from) {
            Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
            Ok(rest) => to.join(rest),
            Err(_) => path.to_owned(),
        };
        self.dirs = self.dirs.iter().map(|dir| moved(dir)).collect();
        for names in [&mut self.visible, &mut self.durable] {
            *names = std::mem::take(names)
                .into_iter()
                .map(|(path, node)| (moved(&path), node))
                .collect();
        }
        for (dir, change) in &mut self.pending {
            *dir = moved(dir);
            match change {
                Change::Make(path, _) | Change::Remove(path, _) => *path = moved(path),
                Change::Rename(old, new, _) => {
                    *old = moved(old);
                    *new = moved(new);
                }
            }
        }
    }
}

impl SimDisk {
    /// An empty disk. The seed decides what is left of a write that fails.
    pub fn new(seed: u64) -> Self {
        let state = State {
            is_held: false,
            nodes: Vec::new(),
            dirs: BTreeSet::from([PathBuf::from("/")]),
            visible: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending: Vec::new(),
            epoch: 0,
            operations: 0,
            fault: None,
            is_off: false,
            capacity: None,
            random: Random::new(seed),
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            released: Condvar::new(),
        }))
    }

    /// Has whoever syncs a directory wait until that is taken back, so that a test can do something
    /// meanwhile.
    pub fn hold_directories(&self, is_held: bool) {
        self.0.lock().is_held = is_held;
        self.0.released.notify_all();
    }

    /// How many operations there were.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// Arms one fault for the operation of that number, in place of any other.
    pub fn fault_at(&self, operation: u64, fault: Fault) {
        self.0.lock().fault = Some((operation, fault));
    }

    /// Takes back the fault that is armed; a disk that failed from some operation on is well again.
    pub fn mend(&self) {
        self.0.lock().fault = None;
    }

    /// Bytes that may be taken at most; none means no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// How many writes a loss of power might take.
    pub fn unsynced(&self) -> usize {
        let state = self.0.lock();
        state.nodes.iter().map(Node::unsynced).sum()
    }

    /// Lets the power fail and come back: what was not synced is there, or not, or in part.
    /// Whatever was open is closed, and faults are mended.
    pub fn crash(&self, seed: u64) {
        let mut random = Random::new(seed);
        let state = &mut *self.0.lock();
        for (_, change) in std::mem::take(&mut state.pending) {
            // Each on its own: nothing orders them.
            if random.coin() {
                change.apply(&mut state.durable);
            }
        }
        for node in &mut state.nodes {
            node.crash(&mut random);
        }
        state.visible = state.durable.clone();
        state.fault = None;
        state.is_off = false;
        state.epoch += 1;
    }

    /// Ends the process but not the machine: all that was written is there, nothing was synced.
    pub fn kill(&self) {
        let mut state = self.0.lock();
        state.fault = None;
        state.is_off = false;
        state.epoch += 1;
    }

    /// All files and what is in them.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.0.lock();
        let content = |(path, node): (&PathBuf, &usize)| {
            (path.clone(), state.nodes[*node].visible().to_vec())
        };
        state.visible.iter().map(content).collect()
    }

    /// Puts a file there, durably, as somebody else would who restores or damages it.
    pub fn put(&self, path: &Path, content: Vec<u8>) {
        let mut state = self.0.lock();
        let node = state.nodes.len();
        state.nodes.push(Node::durable(content));
        let mut parent = path.parent();
        while let Some(dir) = parent {
            state.dirs.insert(dir.to_owned());
            parent = dir.parent();
        }
        state.visible.insert(path.to_owned(), node);
        state.durable.insert(path.to_owned(), node);
    }

    /// Changes bits of one byte, durably. False where there is no such byte.
    pub fn flip(&self, path: &Path, offset: u64, bits: u8) -> bool {
        self.damage(path, |content| {
            let byte = usize::try_from(offset)
                .ok()
                .and_then(|at| content.get_mut(at));
            byte.map(|byte| *byte ^= bits).is_some()
        })
    }

    /// Cuts a file off, durably. False where there is no such file, or it is shorter.
    pub fn truncate(&self, path: &Path, len: u64) -> bool {
        self.damage(path, |content| {
            let is_longer = content.len() as u64 > len;
            content.truncate(usize::try_from(len).unwrap_or(usize::MAX));
            is_longer
        })
    }

    fn damage(&self, path: &Path, how: impl Fn(&mut Vec<u8>) -> bool) -> bool {
        let state = &mut *self.0.lock();
        let Some(node) = state.visible.get(path) else {
            return false;
        };
        state.nodes[*node].damage(how)
    }
}

impl State {
    fn used(&self) -> u64 {
        self.visible
            .values()
            .map(|node| self.nodes[*node].taken())
            .sum()
    }

    /// Counts an operation and says what goes wrong at it.
    fn step(&mut self) -> io::Result<Option<Fault>> {
        if self.is_off {
            return Err(io::Error::other("the power is off"));
        }
        self.operations += 1;
        let due = match self.fault {
            Some((at, fault @ (Fault::FailFromHereOn | Fault::FullFromHereOn)))
                if self.operations >= at =>
            {
                Some(fault)
            }
            Some((at, fault)) if self.operations == at => Some(fault),
            _ => None,
        };
        if due == Some(Fault::PowerCut) {
            self.is_off = true;
        }
        assert!(
            due != Some(Fault::Panic),
            "the simulated disk was told to panic here"
        );
        Ok(due)
    }

    /// As `step`, for operations that only fail or do not.
    fn step_plain(&mut self) -> io::Result<()> {
        match self.step()? {
            None | Some(Fault::Lie | Fault::FullFromHereOn) => Ok(()),
            Some(_) => Err(failed()),
        }
    }

    /// Refuses what would take more room than there is.
    fn take(&self, node: usize, end: u64, is_full: bool) -> io::Result<()> {
        let more = end.saturating_sub(self.nodes[node].taken());
        let lacks = |capacity| self.used().saturating_add(more) > capacity;
        if more > 0 && (is_full || self.capacity.is_some_and(lacks)) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn change(&mut self, dir: &Path, change: Change) {
        change.apply(&mut self.visible);
        self.pending.push((dir.to_owned(), change));
    }
}

impl Change {
    fn apply(&self, entries: &mut BTreeMap<PathBuf, usize>) {
        let mut forget = |path: &PathBuf, node: usize| {
            if entries.get(path) == Some(&node) {
                entries.remove(path);
            }
        };
        match self {
            Change::Make(path, node) => {
                entries.insert(path.clone(), *node);
            }
            Change::Rename(from, to, node) => {
                forget(from, *node);
                entries.insert(to.clone(), *node);
            }
            Change::Remove(path, node) => forget(path, *node),
        }
    }
}

fn failed() -> io::Error {
    io::Error::other("the simulated disk fails here")
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

impl Disk for SimDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        if state.is_off {
            return Err(failed());
        }
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let all = state.visible.keys().chain(&state.dirs);
        let within = all.filter(|path| path.parent() == Some(dir));
        let names = within.filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        let names: BTreeSet<String> = names.collect();
        Ok(names.into_iter().collect())
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step_plain()?;
        for dir in dir.ancestors() {
            state.dirs.insert(dir.to_owned());
        }
        Ok(())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn File>> {
        let mut state = self.0.lock();
        let dir = parent(path)?;
        if state.is_off {
            return Err(failed());
        }
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let found = state.visible.get(path).copied();
        let node = match (how, found) {
            (Open::CreateNew, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Open::CreateNew, None) => {
                state.step_plain()?;
                let node = state.nodes.len();
                state.nodes.push(Node::default());
                state.change(dir, Change::Make(path.to_owned(), node));
                node
            }
            (_, Some(node)) => node,
            (_, None) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            node,
            epoch: state.epoch,
            is_writable: how != Open::Read,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step_plain()?;
        if state.dirs.contains(from) {
            state.move_dir(from, to);
            return Ok(());
        }
        let Some(node) = state.visible.get(from).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let change = Change::Rename(from.to_owned(), to.to_owned(), node);
        state.change(parent(to)?, change);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step_plain()?;
        let Some(node) = state.visible.get(path).copied() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        state.change(parent(path)?, Change::Remove(path.to_owned(), node));
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step_plain()?;
        let below = |path: &PathBuf| path.parent() == Some(dir);
        if state.visible.keys().any(below) || state.dirs.iter().any(below) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        match state.dirs.remove(dir) {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        while state.is_held {
            self.0.released.wait(&mut state);
        }
        let state = &mut *state;
        match state.step()? {
            None | Some(Fault::FullFromHereOn) => {}
            Some(Fault::Lie) => return Ok(()),
            Some(_) => return Err(failed()),
        }
        let (now, later) = std::mem::take(&mut state.pending)
            .into_iter()
            .partition(|(of, _)| of == dir);
        state.pending = later;
        let now: Vec<(PathBuf, Change)> = now;
        for (_, change) in now {
            change.apply(&mut state.durable);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    node: usize,
    epoch: u64,
    is_writable: bool,
}

impl SimFile {
    fn with<T>(&self, run: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        if state.epoch != self.epoch || state.is_off {
            return Err(io::Error::other("this file was opened before the crash"));
        }
        run(&mut state)
    }

    fn change<T>(&self, run: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        if !self.is_writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.with(run)
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|state| {
            let content = state.nodes[self.node].visible();
            let from = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(content.len());
            let len = buf.len().min(content.len() - from);
            buf[..len].copy_from_slice(&content[from..from + len]);
            Ok(len)
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(|state| {
            let fault = state.step()?;
            let is_full = fault == Some(Fault::FullFromHereOn);
            state.take(self.node, offset + bytes.len() as u64, is_full)?;
            let done = match fault {
                Some(Fault::Fail | Fault::FailFromHereOn | Fault::PowerCut) => {
                    state.random.below(bytes.len() as u64 + 1)
                }
                _ => bytes.len() as u64,
            };
            let part = usize::try_from(done).unwrap_or(bytes.len());
            state.nodes[self.node].write(&bytes[..part], offset);
            if part < bytes.len()
                || matches!(
                    fault,
                    Some(Fault::Fail | Fault::FailFromHereOn | Fault::PowerCut)
                )
            {
                return Err(failed());
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|state| Ok(state.nodes[self.node].visible().len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|state| {
            state.step_plain()?;
            state.nodes[self.node].set_len(len);
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.change(|state| {
            let fault = state.step()?;
            state.take(self.node, len, fault == Some(Fault::FullFromHereOn))?;
            match fault {
                None | Some(Fault::Lie | Fault::FullFromHereOn) => {
                    state.nodes[self.node].allocate(len);
                    Ok(())
                }
                Some(_) => Err(failed()),
            }
        })
    }

    fn data_end(&self) -> io::Result<u64> {
        self.with(|state| {
            let content = state.nodes[self.node].visible();
            let last = content.iter().rposition(|byte| *byte != 0);
            Ok(last.map_or(0, |last| last as u64 + 1))
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| {
            let fault = state.step()?;
            let State { nodes, random, .. } = state;
            match fault {
                None | Some(Fault::FullFromHereOn) => nodes[self.node].sync(),
                Some(Fault::Lie) => {}
                Some(Fault::PowerCut | Fault::Panic) => return Err(failed()),
                Some(Fault::Fail | Fault::FailFromHereOn) => {
                    nodes[self.node].fail_sync(random);
                    return Err(failed());
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
