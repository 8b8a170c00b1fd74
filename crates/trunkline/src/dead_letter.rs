//! Dead letters: what consumers gave up, and what becomes of it.
//!
//! ```text
//!   consumer ── gives up ──► entry, in the dead-letter stream      the event and its story; never changes
//!                └─────────► key, in the bucket                    how it stands
//!   operator ── list, show, replay, discard ──► key, by compare-and-set
//! ```
//!
//! The entry is stored before the event is settled, and the key after it, so a crash in between
//! leaves an entry without a key: a dead letter all the same. Keys decide what is listed.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> trunkline::Result<()> {
//! use trunkline::Bus;
//! use trunkline::dead_letter::{Discard, Page, Selection};
//!
//! let bus = Bus::connect("memory:").await?;
//! let dead_letters = bus.dead_letters();
//! let list = dead_letters.list(&Selection::new(), &Page::default()).await?;
//! for letter in &list.letters {
//!     dead_letters.discard(letter, &Discard::because("tested")).await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **Invariant:** an operator's call writes the key of a dead letter and removes entries that are
//! dealt with. It writes nothing that a consumer's member writes while it runs events.

mod entry;
mod record;

mod bury;
mod id;
pub(crate) mod keys;

mod follow;
mod list;

mod text;

use std::sync::Arc;

use smol_str::SmolStr;
use trunkline_core::engine::{Credit, Expectation, Position, Removal, Seq, StoredEvent};
use trunkline_core::{Envelope, Error, ErrorKind, Filter, Result};

use crate::bus::{Bus, Inner};
use keys::Place;
use list::{Census, Key};

pub(crate) use bury::bury;
pub use entry::{Attempt, Entry};
pub use follow::{Buried, Following};
pub use id::Id;
pub use list::{Cursor, Letter, List, Page, Selection};
pub use record::{Discard, Record, Replay, Stands, State};

/// How often others may get between our look and our change of a key.
const TRIES: usize = 8;

/// The dead letters of a bus, made by [`Bus::dead_letters`].
#[derive(Clone, Debug)]
pub struct DeadLetters {
    bus: Bus,
    by: SmolStr,
}

/// A dead letter with all that there is of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Shown {
    /// How it stands.
    pub letter: Letter,
    /// Its entry as it is stored; none once retention or whoever dealt with it has removed it.
    pub stored: Option<StoredEvent>,
    /// That entry read, or why it cannot be.
    pub entry: Option<Result<Entry>>,
}

/// What became of a dead letter that was to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Changed {
    /// It stands so since this call.
    Now(Record),
    /// It stood so already, or somebody else was first: nothing was changed.
    Already(Record),
    /// It was no dead letter of ours, and is removed without a trace.
    Removed,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Entries of dead letters that are dealt with.
    pub entries: u64,
    /// Keys of dead letters whose entries retention had removed.
    pub keys: u64,
}

impl Bus {
    /// What consumers gave up: to be looked at, run again or given up for good.
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters {
            bus: self.clone(),
            by: self.inner.settings.source.clone(),
        }
    }
}

impl DeadLetters {
    /// Says who asks for what is asked for here; the bus's source unless set.
    #[must_use]
    pub fn by(mut self, who: impl Into<SmolStr>) -> Self {
        self.by = who.into();
        self
    }

    /// A page of those that are selected, the newest first unless told otherwise.
    ///
    /// What cannot be read is in it too, with the reason, and hides nothing else.
    ///
    /// # Errors
    /// The engine's own.
    pub async fn list(&self, selection: &Selection, page: &Page) -> Result<List> {
        list::list(&self.bus.inner, selection, page).await
    }

    /// One of them, as it stands.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchDeadLetter`], and the engine's own.
    pub async fn find(&self, id: &Id) -> Result<Letter> {
        self.show(id).await.map(|shown| shown.letter)
    }

    /// One of them with its event and its story.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchDeadLetter`], and the engine's own.
    pub async fn show(&self, id: &Id) -> Result<Shown> {
        let inner = &self.bus.inner;
        let (found, stored) = match id {
            Id::Event {
                consumer,
                stream,
                seq,
                generation,
            } => {
                let subject = id::subject(&inner.settings.roots.dlq, stream, consumer, *seq)?;
                let mut letters = Vec::new();
                for place in keys::places(inner, Some(consumer), Some(stream)).await? {
                    let kept = keys::read(inner, &place, *seq).await?;
                    letters.extend(kept.map(|kept| Letter::kept(kept, false)));
                }
                let stored = bury::entries(inner, &subject).await?;
                // Those without a key.
                for entry in stored.iter().map(|stored| Letter::stored(inner, stored)) {
                    if entry.key.is_some() && letters.iter().all(|letter| letter.id != entry.id) {
                        letters.push(entry);
                    }
                }
                let latest = letters.iter().filter_map(generation_of).max();
                let wanted = generation.or(latest);
                let found = letters
                    .into_iter()
                    .find(|letter| generation_of(letter) == wanted);
                (found.map(|letter| letter.latest(latest)), stored)
            }
            Id::Entry(seq) => {
                let stored = entry_at(inner, *seq).await?;
                let found = stored.as_ref().map(|stored| Letter::stored(inner, stored));
                if let Some(Letter {
                    id: known @ Id::Event { .. },
                    ..
                }) = found
                {
                    return Box::pin(self.show(&known)).await;
                }
                (found, stored.into_iter().collect())
            }
        };
        let Some(letter) = found else {
            return Err(Error::new(
                ErrorKind::NoSuchDeadLetter,
                format!("there is no dead letter {id}"),
            ));
        };
        let stored = stored.into_iter().find(|stored| match &letter.key {
            None => true,
            Some(key) => {
                read_entry(inner, stored).is_ok_and(|entry| Place::of(&entry) == key.place)
            }
        });
        let entry = stored.as_ref().map(|stored| read_entry(inner, stored));
        Ok(Shown {
            letter: Letter {
                has_entry: stored.is_some(),
                ..letter
            },
            stored,
            entry,
        })
    }

    /// The event of a dead letter, its data not decoded.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidEvent`] for what is no event, which may be why it died.
    pub fn event(&self, entry: &Entry) -> Result<Arc<Envelope>> {
        self.bus.envelope(&entry.stream, &entry.original())
    }

    /// Asks for a dead letter to be run again, by the consumer that gave it up and by no other.
    ///
    /// This changes how it stands to [`State::Replaying`] and nothing else; a member of the consumer
    /// sees that, runs the event with its attempts counted from one, and notes down what came of it.
    /// Of several who ask at once one does, so that the event runs once.
    ///
    /// Where the consumer holds keys it runs in its place, before everything of its key that waits for
    /// it; elsewhere behind what is there, and later events of the key have run already.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchDeadLetter`] when its entry is gone, and the event with it;
    /// [`ErrorKind::Conflict`] when the consumer was reset since, so that nobody runs it any more;
    /// [`ErrorKind::Decode`] or [`ErrorKind::WrongVersion`] when it cannot be read;
    /// [`ErrorKind::TimedOut`] when nobody knows whether it was asked for, which makes it safe to ask
    /// again; and the engine's own.
    pub async fn replay(&self, letter: &Letter) -> Result<Changed> {
        let now = self.bus.inner.clock.now();
        let key = letter_key(letter)?;
        if !letter.has_entry && letter.stands() == Stands::Dead {
            return Err(gone(&letter.id));
        }
        let Place {
            consumer,
            stream,
            generation,
        } = &key.place;
        let present = self.bus.generation_of(consumer, stream).await?;
        if present.is_some_and(|present| *generation < present) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "dead letter {} was given up before consumer {consumer} was reset, and its members run only what \
                     they gave up since; publish its event again if the reset did not go back that far, then discard it",
                    letter.id
                ),
            ));
        }
        self.change(letter, key, |record| record.replaying(&self.by, now))
            .await
    }

    /// Gives up a dead letter for good: notes that down with the reason, then removes its entry.
    ///
    /// What is no dead letter of ours is removed and leaves no trace.
    ///
    /// # Errors
    /// [`ErrorKind::WrongVersion`] when it was written by a newer version;
    /// [`ErrorKind::TimedOut`] when nobody knows whether it happened, which makes it safe to repeat;
    /// and the engine's own. If the entry cannot be removed it is noted down all the same.
    pub async fn discard(&self, letter: &Letter, discard: &Discard) -> Result<Changed> {
        let inner = &self.bus.inner;
        let now = inner.clock.now();
        let Some(key) = &letter.key else {
            if let Id::Entry(seq) = letter.id {
                remove(inner, seq).await?;
            }
            return Ok(Changed::Removed);
        };
        let changed = self
            .change(letter, key, |record| {
                record.discarded(discard, &self.by, now)
            })
            .await?;
        // Also if it was discarded already: whoever did may have died before this.
        if let Changed::Now(record) | Changed::Already(record) = &changed
            && record.state.stands() == Stands::Discarded
        {
            remove_of(inner, &key.place, key.seq, record.entry).await?;
        }
        Ok(changed)
    }

    /// Dead letters from a position of the dead-letter stream on, as they come and without end: for
    /// whoever is to be told. It makes no consumer and changes nothing.
    ///
    /// # Errors
    /// The engine's own.
    pub async fn follow(&self, from: Position) -> Result<Following> {
        Following::open(&self.bus, from).await
    }

    /// Removes what a crash left behind: entries of dead letters that are dealt with, and keys of dead
    /// ones whose entries retention has taken, so that nothing can be done for them.
    ///
    /// # Errors
    /// The engine's own; what was removed by then stays removed.
    pub async fn sweep(&self) -> Result<Swept> {
        let inner = &self.bus.inner;
        let mut letters = Vec::new();
        let census = Census::take(inner, None, None, |letter| {
            if let (Some(key @ Key { rev: Some(rev), .. }), Ok(record)) =
                (letter.key, letter.record)
            {
                let entry = record.is_resolved().then_some(record.entry);
                if entry.is_some() || record.state == State::Dead {
                    letters.push((key, rev, entry));
                }
            }
        })
        .await?;
        let mut swept = Swept::default();
        for (key, rev, resolved) in &letters {
            match (resolved, census.has_entry(inner, key)) {
                (Some(entry), true) => {
                    swept.entries += remove_of(inner, &key.place, key.seq, *entry).await?;
                }
                (None, false) => {
                    let removed = keys::remove(inner, &key.place, key.seq, *rev).await?;
                    swept.keys += u64::from(removed);
                }
                (Some(_), false) | (None, true) => {}
            }
        }
        Ok(swept)
    }

    /// Moves a key by compare-and-set; `change` gives none where it may not be moved.
    async fn change(
        &self,
        letter: &Letter,
        key: &Key,
        change: impl Fn(&Record) -> Option<Record>,
    ) -> Result<Changed> {
        let inner = &self.bus.inner;
        let Key { place, seq, rev } = key;
        let mut found = letter.record.clone();
        let mut expect = rev.map_or(Expectation::Absent, Expectation::Rev);
        for _ in 0..TRIES {
            let record = match found {
                Ok(record) => record,
                Err(error) if error.kind() == ErrorKind::WrongVersion => return Err(error),
                // What cannot be read is made anew from the entry.
                Err(error) => self.made_anew(&letter.id, key, error).await?,
            };
            let Some(changed) = change(&record) else {
                return Ok(Changed::Already(record));
            };
            if keys::write(inner, place, *seq, &changed, expect).await? {
                return Ok(Changed::Now(changed));
            }
            // Somebody was there since it was looked at.
            let Some(kept) = keys::read(inner, place, *seq).await? else {
                return Err(gone(&letter.id));
            };
            expect = Expectation::Rev(kept.rev);
            found = kept.record;
        }
        Err(Error::new(
            ErrorKind::TimedOut,
            format!(
                "dead letter {} keeps being changed by others; try again",
                letter.id
            ),
        ))
    }

    /// How a dead letter stood when it was buried.
    async fn made_anew(&self, id: &Id, key: &Key, fault: Error) -> Result<Record> {
        let inner = &self.bus.inner;
        let Place {
            stream, consumer, ..
        } = &key.place;
        let subject = id::subject(&inner.settings.roots.dlq, stream, consumer, key.seq)?;
        let stored = bury::entries(inner, &subject).await?;
        let letters = stored.iter().map(|stored| Letter::stored(inner, stored));
        let same = letters.filter(|letter| {
            letter
                .key
                .as_ref()
                .is_some_and(|other| other.place == key.place)
        });
        let records = same.filter_map(|letter| letter.record.ok());
        let fault = || fault.at(format_args!("dead letter {id}, whose entry is gone too"));
        records.last().ok_or_else(fault)
    }
}

fn generation_of(letter: &Letter) -> Option<u64> {
    letter.key.as_ref().map(|key| key.place.generation)
}

fn letter_key(letter: &Letter) -> Result<&Key> {
    letter.key.as_ref().ok_or_else(|| match &letter.record {
        Err(error) => error.clone(),
        Ok(_) => gone(&letter.id),
    })
}

fn gone(id: &Id) -> Error {
    Error::new(
        ErrorKind::NoSuchDeadLetter,
        format!("dead letter {id} has no entry any more, so that there is no event to run"),
    )
}

/// Reads what is stored in the dead-letter stream: an entry on the subject that it should be on.
pub(crate) fn read_entry(inner: &Inner, stored: &StoredEvent) -> Result<Entry> {
    let place = |error: Error| {
        error.at(format_args!(
            "entry {} of {}",
            stored.seq, inner.settings.dead_letters
        ))
    };
    let entry = Entry::decode(&stored.headers, &stored.body).map_err(place)?;
    let root = &inner.settings.roots.dlq;
    let expected = id::subject(root, &entry.stream, &entry.consumer, entry.seq)?;
    if expected != stored.subject {
        return Err(place(Error::new(
            ErrorKind::Decode,
            format!(
                "it is stored on {}, and its story belongs to {expected}",
                stored.subject
            ),
        )));
    }
    Ok(entry)
}

/// What has that place in the dead-letter stream.
pub(crate) async fn entry_at(inner: &Inner, seq: Seq) -> Result<Option<StoredEvent>> {
    let below = [Filter::all().below(Some(&inner.settings.roots.dlq))?];
    let stream = &inner.settings.dead_letters;
    let log = inner.engine.log();
    let page = log
        .read(stream, Position::Seq(seq), &below, Credit::items(1))
        .await?;
    Ok(page.events.into_iter().find(|stored| stored.seq == seq))
}

/// Removes the entry of a dead letter, if that is what is there: the dead-letter stream may have been
/// made anew since, and another entry be in its place.
pub(crate) async fn remove_of(inner: &Inner, place: &Place, seq: Seq, entry: Seq) -> Result<u64> {
    let root = &inner.settings.roots.dlq;
    let subject = id::subject(root, &place.stream, &place.consumer, seq)?;
    match entry_at(inner, entry).await? {
        Some(stored) if stored.subject == subject => remove(inner, entry).await,
        _ => Ok(0),
    }
}

async fn remove(inner: &Inner, entry: Seq) -> Result<u64> {
    let stream = &inner.settings.dead_letters;
    inner.engine.log().remove(stream, Removal::Seq(entry)).await
}

#[cfg(test)]
mod tests;
