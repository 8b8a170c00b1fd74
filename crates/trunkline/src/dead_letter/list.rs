//! Which dead letters there are.
//!
//! The keys say it. An entry without a key is one too: a crash came between the two, or a version
//! that wrote no keys stored it. What cannot be read, of either kind, is listed as such.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

use rustc_hash::{FxHashMap, FxHashSet};
use smol_str::SmolStr;
use trunkline_core::engine::{Credit, Position, Rev, Seq, StoredEvent};
use trunkline_core::{Error, ErrorKind, EventType, Filter, Name, Result, Subject, Timestamp};

use super::id::{Id, subject, subjects};
use super::keys::{self, Kept, Place};
use super::read_entry;
use super::record::{Record, Stands};
use crate::bus::Inner;

/// Entries without a key that are read at once.
const UNNOTED: usize = 32;
/// How much of them is read at once.
const CREDIT: Credit = Credit {
    items: 256,
    bytes: 8 << 20,
};
/// Far above what a dead-letter stream can hold.
const MAX_SUBJECTS: usize = u32::MAX as usize;
/// Letters that are kept above those asked for before they are sorted and cut.
const SLACK: usize = 1_024;

/// Which dead letters are meant. Unless told otherwise: all that nobody has dealt with, which are
/// those that are dead or being replayed.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Selection {
    consumer: Option<Name>,
    stream: Option<Name>,
    event_type: Option<Filter>,
    reason: Option<SmolStr>,
    states: Vec<Stands>,
    since: Option<Timestamp>,
}

impl Selection {
    /// All that nobody has dealt with.
    pub fn new() -> Self {
        Self::default()
    }

    /// Those of this consumer.
    pub fn consumer(mut self, consumer: Name) -> Self {
        self.consumer = Some(consumer);
        self
    }

    /// Those of events of this stream.
    pub fn stream(mut self, stream: Name) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Those of events whose type matches: `order.placed`, `order.>`.
    pub fn event_type(mut self, filter: Filter) -> Self {
        self.event_type = Some(filter);
        self
    }

    /// Those given up for this reason: `failed`, `panicked`, `undecodable`.
    pub fn reason(mut self, reason: impl Into<SmolStr>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Those that stand so; called again, also those that stand so.
    pub fn state(mut self, state: Stands) -> Self {
        self.states.push(state);
        self
    }

    /// Those that failed last at that time or later.
    pub fn since(mut self, since: Timestamp) -> Self {
        self.since = Some(since);
        self
    }

    fn has(&self, letter: &Letter) -> bool {
        let stands = letter.stands();
        let wanted = match self.states.as_slice() {
            [] => matches!(stands, Stands::Dead | Stands::Replaying),
            states => states.contains(&stands),
        };
        let record = letter.record.as_ref().ok();
        let of_type = |filter: &Filter| {
            let event_type = record.and_then(|record| record.event_type.as_deref());
            let event_type = event_type.and_then(|event_type| EventType::new(event_type).ok());
            event_type.is_some_and(|event_type| filter.matches(event_type.subject()))
        };
        let for_reason = |reason: &SmolStr| record.is_some_and(|record| record.reason == *reason);
        wanted
            && self.event_type.as_ref().is_none_or(of_type)
            && self.reason.as_ref().is_none_or(for_reason)
            && self.since.is_none_or(|since| letter.at >= since)
    }
}

/// Which part of a list is wanted.
#[derive(Clone, Debug)]
pub struct Page {
    /// Dead letters at most. 100 unless set.
    pub limit: usize,
    /// Whether the oldest come first, and not the newest.
    pub oldest_first: bool,
    /// Behind the last page.
    pub after: Option<Cursor>,
}

impl Default for Page {
    fn default() -> Self {
        Self {
            limit: 100,
            oldest_first: false,
            after: None,
        }
    }
}

/// Where a page ended. It has a text, for programs that keep it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    at: Timestamp,
    id: Id,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.at.as_nanos(), self.id)
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = text.split_once(',').and_then(|(at, id)| {
            Some(Self {
                at: Timestamp::from_nanos(at.parse().ok()?),
                id: id.parse().ok()?,
            })
        });
        read.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidPosition,
                format!("{text:?} is no place in a list of dead letters; use one that a page gave"),
            )
        })
    }
}

/// A part of the list.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct List {
    /// The dead letters, in order.
    pub letters: Vec<Letter>,
    /// Where the next page begins, if there is more.
    pub next: Option<Cursor>,
    /// How many the selection has, on all pages.
    pub total: usize,
}

/// A dead letter as it stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Letter {
    /// What it is called.
    pub id: Id,
    /// When it failed last; when it was stored, if that cannot be read.
    pub at: Timestamp,
    /// How it stands, and its story in short; or why that cannot be read.
    pub record: Result<Record>,
    /// Whether its entry was in the dead-letter stream. Retention may have taken it, and with it
    /// the event; of one that is dealt with it is removed.
    pub has_entry: bool,
    /// Where its key is; none for what is no dead letter of ours.
    pub(super) key: Option<Key>,
}

/// Where the key of a dead letter is.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) seq: Seq,
    /// Its revision; none if nobody noted the dead letter down.
    pub(super) rev: Option<Rev>,
}

impl Letter {
    /// How it stands. What cannot be read counts as dead, so that it is not forgotten.
    pub fn stands(&self) -> Stands {
        self.record
            .as_ref()
            .map_or(Stands::Dead, |record| record.state.stands())
    }

    /// Its place in a list. Its id has its generation still, which is what tells equal ones apart.
    fn cursor(&self) -> Cursor {
        Cursor {
            at: self.at,
            id: self.id.clone(),
        }
    }

    pub(super) fn kept(kept: Kept, has_entry: bool) -> Self {
        let Kept {
            place,
            seq,
            rev,
            at,
            record,
        } = kept;
        Self {
            id: Id::Event {
                consumer: place.consumer.clone(),
                stream: place.stream.clone(),
                seq,
                generation: Some(place.generation),
            },
            at: record.as_ref().map_or(at, |record| record.last_failure),
            record,
            has_entry,
            key: Some(Key {
                place,
                seq,
                rev: Some(rev),
            }),
        }
    }

    /// One that is stored and not noted down.
    pub(super) fn stored(inner: &Inner, stored: &StoredEvent) -> Self {
        match read_entry(inner, stored) {
            Ok(entry) => {
                let place = Place::of(&entry);
                let original = entry.original();
                let decoding = &inner.settings.decoding;
                let event = decoding.stored(&entry.stream, &original).ok();
                Self {
                    id: Id::Event {
                        consumer: place.consumer.clone(),
                        stream: place.stream.clone(),
                        seq: entry.seq,
                        generation: Some(place.generation),
                    },
                    at: entry.last_failure,
                    record: Ok(Record::dead(&entry, stored.seq, event.as_deref())),
                    has_entry: true,
                    key: Some(Key {
                        place,
                        seq: entry.seq,
                        rev: None,
                    }),
                }
            }
            Err(error) => Self {
                id: Id::Entry(stored.seq),
                at: stored.at,
                record: Err(error),
                has_entry: true,
                key: None,
            },
        }
    }

    /// Names it without its generation where that is the latest.
    pub(super) fn latest(mut self, latest: Option<u64>) -> Self {
        if let Id::Event { generation, .. } = &mut self.id
            && latest <= *generation
        {
            *generation = None;
        }
        self
    }
}

/// Everything that is known of the dead letters of a consumer or stream, or of all.
pub(super) struct Census {
    places: Vec<Place>,
    /// Every dead letter that is noted down, or was found without a key.
    known: FxHashSet<(Place, Seq)>,
    /// Keys of dead letters whose entries should be there, by their subject.
    open: FxHashMap<Subject, u64>,
    /// Entries by subject.
    stored: FxHashMap<Subject, u64>,
}

impl Census {
    /// Reads all keys, gives the letters to `each`, then those without a key.
    pub(super) async fn take(
        inner: &Inner,
        consumer: Option<&Name>,
        stream: Option<&Name>,
        mut each: impl FnMut(Letter),
    ) -> Result<Self> {
        let root = &inner.settings.roots.dlq;
        let mut census = Self {
            places: keys::places(inner, consumer, stream).await?,
            known: FxHashSet::default(),
            open: FxHashMap::default(),
            stored: FxHashMap::default(),
        };
        for place in &census.places {
            let (known, open) = (&mut census.known, &mut census.open);
            keys::each(inner, place, |kept| {
                let is_open = kept
                    .record
                    .as_ref()
                    .map_or(true, |record| !record.is_resolved());
                if is_open
                    && let Ok(subject) = subject(root, &place.stream, &place.consumer, kept.seq)
                {
                    *open.entry(subject).or_default() += 1;
                }
                known.insert((place.clone(), kept.seq));
                each(Letter::kept(kept, false));
            })
            .await?;
        }
        // After the keys: an entry comes before its key, so that none seems to be gone which is not.
        let filter = subjects(root, stream, consumer)?;
        let topology = inner.engine.topology();
        let stored = topology
            .subjects(&inner.settings.dead_letters, &filter, MAX_SUBJECTS)
            .await?;
        census.stored = stored
            .into_iter()
            .map(|count| (count.subject, count.events))
            .collect();
        census.unnoted(inner, &mut each).await?;
        Ok(census)
    }

    /// Entries without a key.
    async fn unnoted(&mut self, inner: &Inner, each: &mut impl FnMut(Letter)) -> Result<()> {
        let more = |(subject, events): &(&Subject, &u64)| {
            **events > self.open.get(*subject).copied().unwrap_or(0)
        };
        let subjects: Vec<&Subject> = self
            .stored
            .iter()
            .filter(more)
            .map(|(subject, _)| subject)
            .collect();
        for some in subjects.chunks(UNNOTED) {
            let filters: Vec<Filter> = some
                .iter()
                .map(|subject| Filter::new(subject.as_str()))
                .collect::<Result<_>>()?;
            let mut from = Position::First;
            loop {
                let log = inner.engine.log();
                let stream = &inner.settings.dead_letters;
                let page = log.read(stream, from, &filters, CREDIT).await?;
                for stored in &page.events {
                    let letter = Letter::stored(inner, stored);
                    // What is known may be dealt with already, its entry about to be removed.
                    let is_new = letter.key.as_ref().is_none_or(|Key { place, seq, .. }| {
                        if !self.places.contains(place) {
                            self.places.push(place.clone());
                        }
                        self.known.insert((place.clone(), *seq))
                    });
                    if is_new {
                        each(letter);
                    }
                }
                if page.next >= page.tail || from == Position::Seq(page.next) {
                    break;
                }
                from = Position::Seq(page.next);
            }
        }
        Ok(())
    }

    /// Whether an entry of a dead letter is stored.
    pub(super) fn has_entry(&self, inner: &Inner, key: &Key) -> bool {
        let Key { place, seq, .. } = key;
        let root = &inner.settings.roots.dlq;
        subject(root, &place.stream, &place.consumer, *seq)
            .is_ok_and(|subject| self.stored.contains_key(&subject))
    }

    /// The letter as it is listed.
    fn listed(&self, inner: &Inner, letter: Letter) -> Letter {
        let Some(Key { place, seq, rev }) = &letter.key else {
            return letter;
        };
        let others = self.places.iter().filter(|other| {
            (&other.consumer, &other.stream) == (&place.consumer, &place.stream)
                && self.known.contains(&((*other).clone(), *seq))
        });
        let latest = others.map(|other| other.generation).max();
        let has_entry = rev.is_none()
            || letter
                .key
                .as_ref()
                .is_some_and(|key| self.has_entry(inner, key));
        Letter {
            has_entry,
            ..letter.latest(latest)
        }
    }
}

/// The page that is asked for of all that the selection has.
pub(super) async fn list(inner: &Inner, selection: &Selection, page: &Page) -> Result<List> {
    let (mut letters, mut total) = (Vec::new(), 0);
    let (consumer, stream) = (selection.consumer.as_ref(), selection.stream.as_ref());
    let mut more = false;
    let census = Census::take(inner, consumer, stream, |letter| {
        if !selection.has(&letter) {
            return;
        }
        total += 1;
        let cursor = letter.cursor();
        let is_behind = match &page.after {
            None => true,
            Some(after) if page.oldest_first => cursor > *after,
            Some(after) => cursor < *after,
        };
        if is_behind {
            letters.push(letter);
        }
        // There may be many more than anybody asked for.
        if letters.len() >= page.limit.saturating_mul(2).saturating_add(SLACK) {
            more |= cut(&mut letters, page);
        }
    })
    .await?;
    more |= cut(&mut letters, page);
    let next = letters.last().filter(|_| more).map(Letter::cursor);
    let letters = letters.into_iter();
    Ok(List {
        letters: letters.map(|letter| census.listed(inner, letter)).collect(),
        next,
        total,
    })
}

/// Sorts, keeps what was asked for, and gives whether there was more.
fn cut(letters: &mut Vec<Letter>, page: &Page) -> bool {
    match page.oldest_first {
        true => letters.sort_by_cached_key(Letter::cursor),
        false => letters.sort_by_cached_key(|letter| Reverse(letter.cursor())),
    }
    let more = letters.len() > page.limit;
    letters.truncate(page.limit);
    more
}
