//! What a watch is told.

use crate::engine::{Rev, StateKey};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Timestamp;

use super::{Held, Kept, Keys, MAX_CHANGE_BYTES, MAX_CHANGES};

/// One change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed<V> {
    /// It was set.
    Put(StateKey, Kept<V>),
    /// It was removed then.
    Deleted(StateKey, Rev, Timestamp),
    /// Its time to live ran out then.
    Expired(StateKey, Rev, Timestamp),
}

impl<V> Changed<V> {
    /// The key that changed.
    pub fn key(&self) -> &StateKey {
        match self {
            Changed::Put(key, _) | Changed::Deleted(key, ..) | Changed::Expired(key, ..) => key,
        }
    }
}

impl<V: Held> Changed<V> {
    fn held(&self) -> usize {
        match self {
            Changed::Put(_, kept) => kept.value.held(),
            Changed::Deleted(..) | Changed::Expired(..) => 0,
        }
    }
}

impl<V: Held> Keys<V> {
    /// Keeps a change for watches, and lets go of the oldest above the limits.
    pub(super) fn note(&mut self, changed: Changed<V>) {
        self.change_bytes += changed.held();
        self.changes.push_back(changed);
        while self.changes.len() > MAX_CHANGES || self.change_bytes > MAX_CHANGE_BYTES {
            let Some(oldest) = self.changes.pop_front() else {
                break;
            };
            self.change_bytes -= oldest.held();
        }
    }

    /// The first change after the revision `seen` of a key at or below `prefix`, and moves `seen`
    /// to it; none, with `seen` at the last revision, when there is no more.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when changes after `seen` are no longer kept; scan anew.
    pub fn changed(&self, prefix: Option<&StateKey>, seen: &mut Rev) -> Result<Option<Changed<V>>> {
        let kept_from = self.rev - self.changes.len() as u64;
        if *seen < kept_from {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "changes after revision {seen} are kept only from {kept_from} on; scan anew"
                ),
            ));
        }
        while *seen < self.rev {
            let changed = usize::try_from(*seen - kept_from)
                .ok()
                .and_then(|index| self.changes.get(index));
            *seen += 1;
            if let Some(changed) = changed.filter(|changed| changed.key().is_below(prefix)) {
                return Ok(Some(changed.clone()));
            }
        }
        Ok(None)
    }
}
