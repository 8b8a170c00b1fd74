//! Finds the subscriptions that match a subject, without trying each of them.
//!
//! Filters without a wildcard are one look-up of the whole subject; the others form a tree of
//! tokens. The cost grows with the tokens of the subject and the wildcards on its path, not with
//! the number of subscriptions.

use rustc_hash::FxHashMap;
use smol_str::SmolStr;

use crate::subject::{Filter, Subject};

/// A set of filters, each with a value.
#[derive(Debug)]
pub struct Matcher<T> {
    literal: FxHashMap<SmolStr, Vec<(Key, T)>>,
    wild: Node<T>,
    last_key: u64,
    generation: u64,
}

/// Names one insertion, to take it out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64);

#[derive(Debug)]
struct Node<T> {
    tokens: FxHashMap<SmolStr, Node<T>>,
    any: Option<Box<Node<T>>>,
    /// Filters that end at this node.
    here: Vec<(Key, T)>,
    /// Filters that end in `>` below this node.
    rest: Vec<(Key, T)>,
}

impl<T> Default for Matcher<T> {
    fn default() -> Self {
        Self {
            literal: FxHashMap::default(),
            wild: Node::default(),
            last_key: 0,
            generation: 0,
        }
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self {
            tokens: FxHashMap::default(),
            any: None,
            here: Vec::new(),
            rest: Vec::new(),
        }
    }
}

impl<T> Matcher<T> {
    /// Changes with every insertion and removal, so that a kept result can be told stale.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Adds a filter with its value.
    pub fn insert(&mut self, filter: &Filter, value: T) -> Key {
        self.last_key += 1;
        self.generation += 1;
        let entry = (Key(self.last_key), value);
        match filter.literal() {
            Some(_) => self
                .literal
                .entry(SmolStr::new(filter.as_str()))
                .or_default()
                .push(entry),
            None => self.wild.insert(filter.as_str().split('.'), entry),
        }
        Key(self.last_key)
    }

    /// Takes out what [`insert`](Self::insert) put in under this filter and key.
    pub fn remove(&mut self, filter: &Filter, key: Key) -> Option<T> {
        let removed = match filter.literal() {
            Some(_) => {
                let entries = self.literal.get_mut(filter.as_str())?;
                let removed = take(entries, key);
                if entries.is_empty() {
                    self.literal.remove(filter.as_str());
                }
                removed
            }
            None => self.wild.remove(filter.as_str().split('.'), key),
        };
        self.generation += u64::from(removed.is_some());
        removed
    }

    /// Calls `found` with the value of every filter that matches `subject`.
    pub fn each<'a>(&'a self, subject: &Subject, mut found: impl FnMut(&'a T)) {
        if let Some(entries) = self.literal.get(subject.as_str()) {
            entries.iter().for_each(|(_, value)| found(value));
        }
        self.wild.each(subject.as_str(), &mut found);
    }

    /// Calls `found` with every value.
    pub fn all<'a>(&'a self, mut found: impl FnMut(&'a T)) {
        self.literal
            .values()
            .flatten()
            .for_each(|(_, value)| found(value));
        self.wild.all(&mut found);
    }
}

impl<T> Node<T> {
    fn insert<'f>(&mut self, mut tokens: impl Iterator<Item = &'f str>, entry: (Key, T)) {
        match tokens.next() {
            None => self.here.push(entry),
            Some(">") => self.rest.push(entry),
            Some("*") => self.any.get_or_insert_default().insert(tokens, entry),
            Some(token) => {
                self.tokens
                    .entry(SmolStr::new(token))
                    .or_default()
                    .insert(tokens, entry);
            }
        }
    }

    fn remove<'f>(&mut self, mut tokens: impl Iterator<Item = &'f str>, key: Key) -> Option<T> {
        match tokens.next() {
            None => take(&mut self.here, key),
            Some(">") => take(&mut self.rest, key),
            Some("*") => {
                let node = self.any.as_mut()?;
                let removed = node.remove(tokens, key);
                if node.is_empty() {
                    self.any = None;
                }
                removed
            }
            Some(token) => {
                let node = self.tokens.get_mut(token)?;
                let removed = node.remove(tokens, key);
                if node.is_empty() {
                    self.tokens.remove(token);
                }
                removed
            }
        }
    }

    /// `rest` is what is left of the subject below this node, never empty.
    fn each<'a>(&'a self, rest: &str, found: &mut impl FnMut(&'a T)) {
        self.rest.iter().for_each(|(_, value)| found(value));
        let (token, below) = match rest.split_once('.') {
            Some((token, below)) => (token, Some(below)),
            None => (rest, None),
        };
        let literal = if self.tokens.is_empty() {
            None
        } else {
            self.tokens.get(token)
        };
        for node in literal.into_iter().chain(self.any.as_deref()) {
            match below {
                Some(below) => node.each(below, found),
                None => node.here.iter().for_each(|(_, value)| found(value)),
            }
        }
    }

    fn all<'a>(&'a self, found: &mut impl FnMut(&'a T)) {
        self.here
            .iter()
            .chain(&self.rest)
            .for_each(|(_, value)| found(value));
        self.tokens
            .values()
            .chain(self.any.as_deref())
            .for_each(|node| node.all(found));
    }

    fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.any.is_none() && self.here.is_empty() && self.rest.is_empty()
    }
}

fn take<T>(entries: &mut Vec<(Key, T)>, key: Key) -> Option<T> {
    let index = entries
        .iter()
        .position(|(candidate, _)| *candidate == key)?;
    Some(entries.remove(index).1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(matcher: &Matcher<usize>, subject: &Subject) -> Vec<usize> {
        let mut found = Vec::new();
        matcher.each(subject, |value| found.push(*value));
        found.sort_unstable();
        found
    }

    fn subjects() -> impl Strategy<Value = Subject> {
        prop::collection::vec("[abc]", 1..5)
            .prop_map(|tokens| Subject::new(tokens.join(".")).unwrap())
    }

    fn filters() -> impl Strategy<Value = Filter> {
        (prop::collection::vec("[abc*]", 0..4), "[abc*>]").prop_map(|(mut tokens, last)| {
            tokens.push(last);
            Filter::new(tokens.join(".")).unwrap()
        })
    }

    proptest! {
        /// P2, the matcher's share: it agrees with trying every filter, before and after removals.
        #[test]
        fn p2_matcher_agrees_with_trying_every_filter(
            filters in prop::collection::vec(filters(), 0..40),
            subjects in prop::collection::vec(subjects(), 1..20),
            keep in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut matcher = Matcher::default();
            let keys: Vec<_> = filters.iter().enumerate().map(|(i, f)| matcher.insert(f, i)).collect();
            for subject in &subjects {
                let naive: Vec<_> = (0..filters.len()).filter(|&i| filters[i].matches(subject)).collect();
                prop_assert_eq!(found(&matcher, subject), naive);
            }
            for (i, filter) in filters.iter().enumerate().filter(|(i, _)| !keep[*i]) {
                let before = matcher.generation();
                prop_assert_eq!(matcher.remove(filter, keys[i]), Some(i));
                prop_assert_ne!(matcher.generation(), before);
                prop_assert_eq!(matcher.remove(filter, keys[i]), None);
            }
            for subject in &subjects {
                let naive: Vec<_> =
                    (0..filters.len()).filter(|&i| keep[i] && filters[i].matches(subject)).collect();
                prop_assert_eq!(found(&matcher, subject), naive);
            }
        }
    }

    #[test]
    fn an_emptied_matcher_keeps_nothing() {
        let mut matcher = Matcher::default();
        let all = ["a.b", "a.*.c", "a.>", "*.*"].map(|text| Filter::new(text).unwrap());
        let keys = all.each_ref().map(|filter| matcher.insert(filter, ()));
        for (filter, key) in all.iter().zip(keys) {
            matcher.remove(filter, key);
        }
        assert!(matcher.literal.is_empty() && matcher.wild.is_empty());
    }
}
