//! Parts of sealed segments that were read lately, within a budget of bytes.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use crate::selection::Selection;

/// Which part of which segment: the file id tells segments apart, also those that used one file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Section(u64, u8),
    Matching(u64, Selection),
}

#[derive(Clone, Debug)]
pub(crate) enum Part {
    Section(Bytes),
    /// Events counted from the base of the segment.
    Matching(Arc<[u32]>),
}

impl Part {
    fn bytes(&self) -> usize {
        // The entry itself counts too, so that many empty parts are not free.
        256 + match self {
            Part::Section(bytes) => bytes.len(),
            Part::Matching(numbers) => 4 * numbers.len(),
        }
    }
}

/// What was used least lately leaves first.
#[derive(Debug)]
pub(crate) struct Cache {
    parts: Mutex<Parts>,
    budget: usize,
}

#[derive(Debug, Default)]
struct Parts {
    by_key: FxHashMap<Key, (Part, u64)>,
    bytes: usize,
    uses: u64,
}

impl Cache {
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            parts: Mutex::new(Parts::default()),
            budget,
        }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Part> {
        let mut parts = self.parts.lock();
        parts.uses += 1;
        let uses = parts.uses;
        let (part, used) = parts.by_key.get_mut(key)?;
        *used = uses;
        Some(part.clone())
    }

    pub(crate) fn put(&self, key: Key, part: Part) {
        let mut parts = self.parts.lock();
        parts.uses += 1;
        parts.bytes += part.bytes();
        let entry = (part, parts.uses);
        if let Some((before, _)) = parts.by_key.insert(key, entry) {
            parts.bytes -= before.bytes();
        }
        while parts.bytes > self.budget && parts.by_key.len() > 1 {
            let oldest = parts.by_key.iter().min_by_key(|(_, (_, used))| *used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else {
                break;
            };
            if let Some((part, _)) = parts.by_key.remove(&key) {
                parts.bytes -= part.bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_least_lately_leaves_when_the_budget_is_spent() {
        let cache = Cache::new(4 * (256 + 1000));
        let section = |number| Key::Section(number, 1);
        for number in 0..4 {
            cache.put(section(number), Part::Section(Bytes::from(vec![0; 1000])));
        }
        assert!(cache.get(&section(0)).is_some());
        cache.put(section(4), Part::Section(Bytes::from(vec![0; 1000])));
        let left: Vec<_> = (0..5)
            .filter(|number| cache.get(&section(*number)).is_some())
            .collect();
        assert_eq!(left, [0, 2, 3, 4]);
    }
}
