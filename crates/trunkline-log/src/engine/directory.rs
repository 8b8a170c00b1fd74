//! The directory: whose it is, what is in it, and opening all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use trunkline_core::engine::StreamSpec;
use trunkline_core::local::Listeners;
use trunkline_core::{Clock, Error, ErrorKind, Filter, Name, Result};

use super::committer::{Committer, Staged, Writer};
use super::connections::Connections;
use super::consume::Consumer;
use super::options::LogOptions;
use super::streams::{OpenStream, Streams};
use super::sync::{self, SyncPolicy, Unsynced, all_synced};
use super::{Bus, Changed};
use crate::disk::{Disk, RealDisk};
use crate::format::{self, FORMAT};
use crate::journal::{Journal, JournalOptions, KnownTopology};
use crate::stream::{self, Options, Stream};

const MAKING: &str = "FORMAT.tmp";
const LOCK: &str = "lock";
/// What the directory of a stream is called that is being removed.
const ASIDE: &str = ".removing";
/// How long an owner within this process, which is about to close, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The directory by one name, whatever it was called; made if it is missing.
pub(super) fn place(dir: &Path) -> Result<PathBuf> {
    let failed = |error| access("make", dir, error);
    fs::create_dir_all(dir).map_err(failed)?;
    dir.canonicalize().map_err(failed)
}

pub(super) fn stream_dir(root: &Path, name: &Name) -> PathBuf {
    root.join("streams").join(name.as_str())
}

/// Where the directory of a stream goes before it is removed.
pub(super) fn aside(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(ASIDE);
    PathBuf::from(name)
}

/// By which filters something may have been stored, once a stream has this specification too.
pub(super) fn stored_after(before: Vec<Filter>, spec: &StreamSpec) -> Vec<Filter> {
    let mut stored = before;
    for filter in &spec.subjects {
        if !stored.contains(filter) {
            stored.push(filter.clone());
        }
    }
    stored
}

/// Opens a directory that nobody in this process has open.
pub(super) fn open(dir: PathBuf, options: &LogOptions, clock: Arc<dyn Clock>) -> Result<Bus> {
    // Before anything is put there.
    let known = check_format(&dir)?;
    let lock = Lock::take(&dir)?;
    let id = match known {
        Some(id) => id,
        // Somebody may have made it since, and be gone.
        None => match check_format(&dir)? {
            Some(id) => id,
            None => begin(&dir)?,
        },
    };
    open_on(Arc::new(RealDisk), dir, id, lock, options, clock)
}

/// Opens what is on a disk, once it is known whose it is.
pub(super) fn open_on(
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    id: String,
    lock: Lock,
    options: &LogOptions,
    clock: Arc<dyn Clock>,
) -> Result<Bus> {
    let now = clock.now();
    let (journal, report) = Journal::open(Arc::clone(&disk), &dir, JournalOptions::default(), now)?;
    if report.cut_bytes > 0 {
        tracing::warn!(
            bytes = report.cut_bytes,
            groups = report.cut_groups,
            "the journal ended in a write that a crash had torn; it was never acknowledged and is cut off"
        );
    }
    let policy = options.sync.unwrap_or(SyncPolicy::Always);
    let options = Options {
        segment_bytes: options.segment_bytes,
        ..Options::default()
    };
    let may_have_lost = sync::read(&*disk, &dir)?;
    let topology = journal.state().topology();
    put_in_order(&*disk, &dir, &topology)?;
    let (streams, mut writing) = (Arc::new(Streams::default()), BTreeMap::new());
    for (name, known) in topology.streams {
        let path = stream_dir(&dir, &name);
        let disk = Arc::clone(&disk);
        let (mut stream, report) =
            Stream::open(disk, &path, known.spec.clone(), options.clone(), now)?;
        if report.cut_bytes > 0 {
            tracing::warn!(
                stream = %name,
                bytes = report.cut_bytes,
                groups = report.cut_groups,
                "the stream ended in a write that a crash had torn; it was never acknowledged and is cut off"
            );
        }
        if let Some(ends) = &may_have_lost {
            let end = ends.get(&name).copied().unwrap_or(0);
            if end > stream.tail() {
                tracing::warn!(
                    stream = %name,
                    from = stream.tail(),
                    to = end,
                    "the bus was not closed, and not everything was synced: the stream goes on behind what may have been seen of it"
                );
            }
            stream.skip_to(now, end)?;
        }
        streams.insert(OpenStream::new(known.spec, known.stored, stream.reader()));
        writing.insert(name, stream);
    }
    if may_have_lost.is_some() && policy.survives_power() {
        all_synced(&*disk, &dir)?;
    }
    for ((stream, name), known) in topology.consumers {
        let open = streams.get(&stream)?;
        let consumer = Consumer::restored(known, &open);
        open.consumers().insert(name, Arc::new(consumer));
    }
    let (keys, changed) = (Arc::clone(journal.state()), Arc::new(Changed::default()));
    // So that passing over them takes little room.
    let ahead = (options.segment_bytes / 512).max(1);
    let unsynced = Unsynced::new(Arc::clone(&disk), &dir, ahead);
    let connections = Arc::new(Connections::default());
    let committer = Committer::start(&connections, |queue| Writer {
        disk,
        dir: dir.clone(),
        options,
        clock: Arc::clone(&clock),
        journal,
        writing,
        streams: Arc::clone(&streams),
        changed: Arc::clone(&changed),
        queue,
        copying: None,
        keys_changed: false,
        sync: policy,
        unsynced,
        unsynced_since: None,
        lock,
        owing: Vec::new(),
        staged: Staged::default(),
        failed: None,
    })?;
    Ok(Bus {
        dir,
        id,
        sync: policy,
        clock,
        listeners: Listeners::default(),
        streams,
        keys,
        changed,
        committer,
        connections,
    })
}

/// Finishes what a crash interrupted: a stream that was being made or removed.
fn put_in_order(disk: &dyn Disk, dir: &Path, topology: &KnownTopology) -> Result<()> {
    let root = dir.join("streams");
    let failed = |doing: &'static str, path: &Path| {
        let path = path.to_owned();
        move |error| access(doing, &path, error)
    };
    disk.make_dir(&root).map_err(failed("make", &root))?;
    disk.sync_dir(dir).map_err(failed("sync", dir))?;
    for entry in disk.list(&root).map_err(failed("read", &root))? {
        let path = root.join(&entry);
        let is_known = |name: &str| topology.streams.keys().any(|known| known.as_str() == name);
        match entry.strip_suffix(ASIDE) {
            Some(name) if is_known(name) => {
                let back = root.join(name);
                disk.rename(&path, &back).map_err(failed("rename", &path))?;
                disk.sync_dir(&root).map_err(failed("sync", &root))?;
            }
            Some(_) => stream::delete(disk, &path)?,
            // One without events is made anew when its stream is; one with events is refused then.
            None => {}
        }
    }
    Ok(())
}

/// The id of the directory, and none if nothing is in it. It is ours, or it is refused.
fn check_format(dir: &Path) -> Result<Option<String>> {
    let path = dir.join(FORMAT);
    let found = match fs::read(&path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match check_empty(dir) {
                // Another process has made it ours meanwhile.
                Err(_) if path.exists() => check_format(dir),
                checked => checked.map(|()| None),
            };
        }
        Err(error) => return Err(access("read", &path, error)),
    };
    format::read(&path, &found).map(Some)
}

fn check_empty(dir: &Path) -> Result<()> {
    let failed = |error| access("read", dir, error);
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // What a crash leaves of making it ours, and what a new volume has.
        if ![LOCK, MAKING, "lost+found"]
            .iter()
            .any(|ours| name == *ours)
        {
            return Err(foreign(dir, &dir.join(name)));
        }
    }
    Ok(())
}

/// Makes a directory ours that nothing is in. Its id tells it from every other.
fn begin(dir: &Path) -> Result<String> {
    let content = format::write(rand::random());
    let path = dir.join(FORMAT);
    let failed = |error| access("make", &path, error);
    // Complete or not there: a name exists only after its file does.
    let making = dir.join(MAKING);
    let mut file = fs::File::create(&making).map_err(failed)?;
    file.write_all(content.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&making, &path).map_err(failed)?;
    let synced = fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(failed)?;
    format::read(&path, content.as_bytes())
}

fn foreign(dir: &Path, found: &Path) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        format!(
            "{} is no directory of ours: there is {}; name an empty or a new one",
            dir.display(),
            found.display()
        ),
    )
}

fn access(doing: &str, path: &Path, error: io::Error) -> Error {
    let message = format!("cannot {doing} {}", path.display());
    let (kind, remedy) = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (
            ErrorKind::NotPermitted,
            "give this user the right to write there, or name another directory",
        ),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (ErrorKind::OverQuota, "free some space and open it again")
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => (
            ErrorKind::InvalidConfig,
            "something in this path is a file; name a directory",
        ),
        _ => (ErrorKind::StorageFailed, "check the disk"),
    };
    Error::new(kind, format!("{message}: {remedy}")).caused_by(error)
}

/// The directories that this process has locked. A process number in the file does not tell: in another
/// container it may be that of another process.
static LOCKED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// That the directory is ours. It ends with the process, however that ends.
pub(super) struct Lock(Option<(fs::File, PathBuf)>);

impl Lock {
    /// For a disk that nobody else can have.
    #[cfg(feature = "simulation")]
    pub(super) fn none() -> Self {
        Self(None)
    }

    fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK);
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| access("open", &path, error))?;
        let mut waited = Duration::ZERO;
        loop {
            let is_ours = {
                let mut locked = LOCKED.lock();
                match file.try_lock() {
                    Ok(()) => {
                        locked.insert(dir.to_owned());
                        break;
                    }
                    Err(fs::TryLockError::Error(error)) => {
                        return Err(access("lock", &path, error));
                    }
                    Err(fs::TryLockError::WouldBlock) => locked.contains(dir),
                }
            };
            // One of this process is about to close it: nobody could have connected to it else.
            if !is_ours || waited > PATIENCE {
                let mut owner = String::new();
                let read = file.rewind().and_then(|()| file.read_to_string(&mut owner));
                let owner = read.ok().and_then(|_| owner.trim().parse::<u32>().ok());
                let owner = owner.map_or_else(String::new, |pid| format!(" (process {pid})"));
                return Err(Error::new(
                    ErrorKind::InUse,
                    format!(
                        "{} is in use by another process{owner}; use that one, stop it, or name another directory",
                        dir.display()
                    ),
                ));
            }
            thread::sleep(LOOK_EVERY);
            waited += LOOK_EVERY;
        }
        let mut lock = Self(Some((file, dir.to_owned())));
        lock.say()
            .map_err(|error| access("write to", &path, error))?;
        Ok(lock)
    }

    /// Writes down who has it.
    fn say(&mut self) -> io::Result<()> {
        let Some((file, _)) = &mut self.0 else {
            return Ok(());
        };
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    }

    /// Lets the next one have it.
    pub(super) fn release(&mut self) {
        if let Some((file, dir)) = self.0.take() {
            let mut locked = LOCKED.lock();
            drop(file);
            locked.remove(&dir);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.release();
    }
}
