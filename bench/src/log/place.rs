//! The directories that a side writes to, and who fills them beforehand.

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::pair::Result;

/// A new directory below that for temporary files; it goes when this is dropped.
pub struct Place(PathBuf);

impl Place {
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let parent = std::env::temp_dir();
        warn_of_memory(&parent);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("trunkline-bench-{}-{number}", std::process::id()));
        fs::create_dir(&dir)?;
        Ok(Self(dir))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The embedded log in it.
    pub fn url(&self) -> String {
        format!("file:{}", self.0.display())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("    {} stays: {error}", self.0.display());
        }
    }
}

/// Says once when nothing here will be durable: a sync of memory costs nothing, and no row would be
/// what it says.
fn warn_of_memory(dir: &Path) {
    static SAID: AtomicU64 = AtomicU64::new(0);
    const TMPFS: u64 = 0x0102_1994;
    let is_memory = rustix::fs::statfs(dir).is_ok_and(|found| found.f_type as u64 == TMPFS);
    if is_memory && SAID.fetch_add(1, Ordering::Relaxed) == 0 {
        eprintln!(
            "    {} is in memory, so that nothing is durable; set TMPDIR to a directory on a disk",
            dir.display()
        );
    }
}

type Fill = dyn Fn(&Place, u64) -> Result<()>;

/// A directory that several rounds read, and that is filled when the first of them asks.
#[derive(Clone)]
pub struct Filled {
    place: Rc<RefCell<Option<Rc<Place>>>>,
    events: Rc<Cell<u64>>,
    fill: Rc<Fill>,
}

impl Filled {
    /// `fill` adds so many events to what is there, and closes it as a program does that ends.
    pub fn by(fill: impl Fn(&Place, u64) -> Result<()> + 'static) -> Self {
        Self {
            place: Rc::default(),
            events: Rc::default(),
            fill: Rc::new(fill),
        }
    }

    /// The directory, with at least so many events.
    pub fn with(&self, events: u64) -> Result<Rc<Place>> {
        let known = self.place.borrow().clone();
        let place = match known {
            Some(place) => place,
            None => Rc::new(Place::new()?),
        };
        *self.place.borrow_mut() = Some(Rc::clone(&place));
        if let Some(more) = events
            .checked_sub(self.events.get())
            .filter(|more| *more > 0)
        {
            (self.fill)(&place, more)?;
            self.events.set(events);
        }
        Ok(place)
    }
}
