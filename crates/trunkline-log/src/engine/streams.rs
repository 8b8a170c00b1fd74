//! The streams of a directory as those see them who read: what is published, and who waits for more.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard, RwLock};
use smallvec::SmallVec;
use trunkline_core::engine::{Seq, StreamSpec};
use trunkline_core::local::Waiter;
use trunkline_core::matcher::{Key, Matcher};
use trunkline_core::{Error, ErrorKind, Filter, Name, Result, Subject, Timestamp};

use super::consume::Consumer;
use crate::stream::Reader;

/// The streams by name.
#[derive(Default)]
pub(super) struct Streams(RwLock<BTreeMap<Name, Arc<OpenStream>>>);

impl Streams {
    pub(super) fn get(&self, name: &Name) -> Result<Arc<OpenStream>> {
        self.0.read().get(name).cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::NoSuchStream,
                format!("there is no stream {name} on this bus; check its name"),
            )
        })
    }

    pub(super) fn all(&self) -> Vec<Arc<OpenStream>> {
        self.0.read().values().cloned().collect()
    }

    pub(super) fn insert(&self, stream: OpenStream) {
        let name = stream.name.clone();
        self.0.write().insert(name, Arc::new(stream));
    }

    pub(super) fn remove(&self, name: &Name) {
        if let Some(stream) = self.0.write().remove(name) {
            stream.end();
        }
    }
}

/// One stream.
pub(super) struct OpenStream {
    pub(super) name: Name,
    pub(super) reader: Reader,
    interest: Mutex<Interest>,
    consumers: Mutex<BTreeMap<Name, Arc<Consumer>>>,
    /// When the event of that sequence, the first, was stored: looked up once.
    first_at: Mutex<Option<(Seq, Timestamp)>>,
}

/// Who waits for what. The committer notes here what it published, after it was.
pub(super) struct Interest {
    pub(super) spec: StreamSpec,
    /// Every filter by which something in it may have been stored, those of former days too.
    pub(super) stored: Vec<Filter>,
    /// How often its subjects changed, for readers that have a selection.
    pub(super) generation: u64,
    pub(super) deleted: bool,
    /// Everything below this was noted with the waiters that it matches.
    pub(super) noted: Seq,
    waiters: Matcher<Arc<Waiter>>,
}

impl OpenStream {
    pub(super) fn new(spec: StreamSpec, stored: Vec<Filter>, reader: Reader) -> Self {
        Self {
            name: spec.name.clone(),
            interest: Mutex::new(Interest {
                spec,
                stored,
                generation: 0,
                deleted: false,
                noted: reader.standing().tail,
                waiters: Matcher::default(),
            }),
            reader,
            consumers: Mutex::default(),
            first_at: Mutex::default(),
        }
    }

    pub(super) fn interest(&self) -> MutexGuard<'_, Interest> {
        self.interest.lock()
    }

    pub(super) fn consumers(&self) -> MutexGuard<'_, BTreeMap<Name, Arc<Consumer>>> {
        self.consumers.lock()
    }

    pub(super) fn consumer(&self, name: &Name) -> Option<Arc<Consumer>> {
        self.consumers.lock().get(name).cloned()
    }

    /// Whether its first event is past its age, so that it is to leave.
    pub(super) fn is_due(&self, now: Timestamp) -> Result<bool> {
        let Some(max_age) = self.interest().spec.max_age else {
            return Ok(false);
        };
        let standing = self.reader.standing();
        if standing.first >= standing.tail {
            return Ok(false);
        }
        let known = *self.first_at.lock();
        let at = match known {
            Some((seq, at)) if seq == standing.first => Some(at),
            _ => {
                let at = self.reader.first_at()?;
                *self.first_at.lock() = at.map(|at| (standing.first, at));
                at
            }
        };
        Ok(at.is_some_and(|at| at < now.minus(max_age)))
    }

    /// Wakes who waits for what was published.
    pub(super) fn appended(&self, events: &[(Subject, Seq)]) {
        let mut wakes: SmallVec<[Arc<Waiter>; 4]> = SmallVec::new();
        {
            let mut interest = self.interest();
            for (subject, seq) in events {
                interest.waiters.each(subject, |waiter| {
                    waiter.note(*seq);
                    if waiter.is_awaited() && !wakes.iter().any(|other| Arc::ptr_eq(other, waiter))
                    {
                        wakes.push(Arc::clone(waiter));
                    }
                });
            }
            if let Some((_, last)) = events.last() {
                interest.noted = interest.noted.max(last + 1);
            }
        }
        wakes.iter().for_each(|waiter| waiter.wake());
    }

    /// Has everybody look at what is published and was noted for nobody: its group failed half-way.
    pub(super) fn note_published(&self) {
        let tail = self.reader.standing().tail;
        {
            let mut interest = self.interest();
            let from = interest.noted;
            if from >= tail {
                return;
            }
            interest.waiters.all(|waiter| waiter.note(from));
            interest.noted = tail;
        }
        self.wake_everyone();
    }

    /// Takes over another specification; who waits for what has left is told of the gap now.
    pub(super) fn update(&self, spec: StreamSpec, stored: Vec<Filter>) {
        {
            let mut interest = self.interest();
            interest.spec = spec;
            interest.stored = stored;
            interest.generation += 1;
        }
        self.wake_everyone();
    }

    fn end(&self) {
        self.interest().deleted = true;
        let consumers = std::mem::take(&mut *self.consumers());
        consumers.values().for_each(|consumer| consumer.end());
        self.wake_everyone();
    }

    fn wake_everyone(&self) {
        let mut all: Vec<Arc<Waiter>> = Vec::new();
        self.interest()
            .waiters
            .all(|waiter| all.push(Arc::clone(waiter)));
        all.iter().for_each(|waiter| waiter.wake_all());
    }
}

impl Interest {
    /// Registers a reader that waits for events matching the filters.
    pub(super) fn register(
        &mut self,
        filters: &[Filter],
        waiter: &Arc<Waiter>,
    ) -> Vec<(Filter, Key)> {
        let insert = |filter: &Filter| {
            (
                filter.clone(),
                self.waiters.insert(filter, Arc::clone(waiter)),
            )
        };
        filters.iter().map(insert).collect()
    }

    pub(super) fn unregister(&mut self, keys: &[(Filter, Key)]) {
        for (filter, key) in keys {
            self.waiters.remove(filter, *key);
        }
    }
}
