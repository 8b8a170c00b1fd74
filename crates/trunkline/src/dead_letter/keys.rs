//! The keys that say how dead letters stand: `<consumer>.<stream>.<generation>.dlq.<sequence>` in
//! the bucket of the bus.

use std::time::Duration;

use smol_str::SmolStr;
use trunkline_core::engine::{
    Commit, Committed, Credit, Entries, Entry, Expectation, Op, Rev, Seq, StateKey,
};
use trunkline_core::{EventId, Name, Result, Timestamp};

use super::record::Record;
use crate::bus::Inner;

/// The token before the sequence.
const DEAD: &str = "dlq";
/// How long it is known that a dead letter was dealt with, and how.
const RESOLVED_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// What is read at once.
const PAGE: Credit = Credit {
    items: 1_000,
    bytes: 4 << 20,
};
/// How often a commit whose outcome is unknown is repeated, with its id.
const TRIES: usize = 3;

/// The place of a key: a consumer on a stream, in one of its generations.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) consumer: Name,
    pub(crate) stream: Name,
    pub(crate) generation: u64,
}

/// A key as it stands.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) place: Place,
    pub(crate) seq: Seq,
    pub(crate) rev: Rev,
    pub(crate) at: Timestamp,
    /// What it says; an error that says why it cannot be read hides no other key.
    pub(crate) record: Result<Record>,
}

impl Place {
    /// Of an entry.
    pub(crate) fn of(entry: &super::Entry) -> Self {
        Self {
            consumer: entry.consumer.clone(),
            stream: entry.stream.clone(),
            generation: entry.generation,
        }
    }

    /// The key of the dead letter of an event.
    pub(crate) fn key(&self, seq: Seq) -> Result<StateKey> {
        StateKey::new(format!("{}.{seq}", self.prefix()?))
    }

    /// What is above all keys of the place. Whoever serves replays watches what is below.
    pub(crate) fn prefix(&self) -> Result<StateKey> {
        let Self {
            consumer,
            stream,
            generation,
        } = self;
        StateKey::new(format!("{consumer}.{stream}.{generation}.{DEAD}"))
    }

    /// The change that makes a dead letter stand so. One that is dealt with is forgotten after a
    /// while.
    pub(crate) fn put(&self, seq: Seq, record: &Record, expect: Expectation) -> Result<Op> {
        Ok(Op::Put {
            key: self.key(seq)?,
            value: record.encode(),
            expect,
            ttl: record.is_resolved().then_some(RESOLVED_FOR),
        })
    }

    /// Of a key of any kind below a consumer, a stream and a generation.
    fn above(key: &StateKey) -> Option<Self> {
        let mut tokens = key.as_str().split('.');
        let place = Self {
            consumer: Name::new(tokens.next()?).ok()?,
            stream: Name::new(tokens.next()?).ok()?,
            generation: tokens.next()?.parse().ok()?,
        };
        // Something must be below it.
        tokens.next().map(|_| place)
    }

    /// A key that no other of this place comes after.
    fn last(&self) -> Result<StateKey> {
        let Self {
            consumer,
            stream,
            generation,
        } = self;
        let last = "z".repeat(Name::MAX_LEN);
        StateKey::new(format!("{consumer}.{stream}.{generation}.{last}"))
    }
}

/// The generations of consumers that have keys, of this consumer and stream if they are given.
///
/// Other keys lie between those of dead letters, a hundred thousand of them perhaps, so that this
/// leaps from one generation to the next.
pub(crate) async fn places(
    inner: &Inner,
    consumer: Option<&Name>,
    stream: Option<&Name>,
) -> Result<Vec<Place>> {
    let prefix = match (consumer, stream) {
        (Some(consumer), Some(stream)) => Some(StateKey::new(format!("{consumer}.{stream}"))?),
        (Some(consumer), None) => Some(StateKey::new(consumer.as_str())?),
        (None, _) => None,
    };
    let mut places = Vec::new();
    let mut after: Option<StateKey> = None;
    loop {
        let page = scan(inner, prefix.as_ref(), after.as_ref(), Credit::items(1)).await?;
        let Some(first) = page.entries.first() else {
            return Ok(places);
        };
        after = Some(match Place::above(&first.key) {
            None => first.key.clone(),
            Some(place) => {
                let last = place.last()?;
                if stream.is_none_or(|stream| place.stream == *stream) {
                    places.push(place);
                }
                last
            }
        });
    }
}

/// Every key of a place, given to `each`.
pub(crate) async fn each(inner: &Inner, place: &Place, mut each: impl FnMut(Kept)) -> Result<()> {
    let prefix = place.prefix()?;
    let mut after: Option<StateKey> = None;
    loop {
        let page = scan(inner, Some(&prefix), after.as_ref(), PAGE).await?;
        for entry in page.entries {
            let seq = entry.key.as_str().rsplit('.').next();
            // What others may put below the prefix is not ours to read.
            if let Some(seq) = seq.and_then(|seq| seq.parse().ok())
                && place.key(seq).is_ok_and(|key| key == entry.key)
            {
                each(kept(place, seq, &entry));
            }
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// One key.
pub(crate) async fn read(inner: &Inner, place: &Place, seq: Seq) -> Result<Option<Kept>> {
    read_since(inner, place, seq, 0).await
}

/// One key, as it stands at that revision or later.
pub(crate) async fn read_since(
    inner: &Inner,
    place: &Place,
    seq: Seq,
    at_least: Rev,
) -> Result<Option<Kept>> {
    let key = place.key(seq)?;
    let (bucket, one) = (&inner.settings.bucket, Credit::items(1));
    let state = inner.engine.state();
    let found = state.scan(bucket, Some(&key), None, at_least, one).await?;
    let found = found.entries.into_iter().find(|entry| entry.key == key);
    Ok(found.map(|entry| kept(place, seq, &entry)))
}

fn kept(place: &Place, seq: Seq, entry: &Entry) -> Kept {
    Kept {
        place: place.clone(),
        seq,
        rev: entry.rev,
        at: entry.at,
        record: Record::decode(&entry.value)
            .map_err(|error| error.at(format_args!("key {}", entry.key))),
    }
}

async fn scan(
    inner: &Inner,
    prefix: Option<&StateKey>,
    after: Option<&StateKey>,
    credit: Credit,
) -> Result<Entries> {
    let bucket = &inner.settings.bucket;
    let state = inner.engine.state();
    state.scan(bucket, prefix, after, 0, credit).await
}

/// Writes a key if it is as expected, and gives whether it was.
pub(crate) async fn write(
    inner: &Inner,
    place: &Place,
    seq: Seq,
    record: &Record,
    expect: Expectation,
) -> Result<bool> {
    commit(inner, place.put(seq, record, expect)?).await
}

/// Removes a key if it is as it was read.
pub(crate) async fn remove(inner: &Inner, place: &Place, seq: Seq, rev: Rev) -> Result<bool> {
    let op = Op::Delete {
        key: place.key(seq)?,
        expect: Expectation::Rev(rev),
    };
    commit(inner, op).await
}

async fn commit(inner: &Inner, op: Op) -> Result<bool> {
    let bucket = &inner.settings.bucket;
    let commit = Commit {
        id: SmolStr::from(EventId::generate(inner.clock.now()).to_string()),
        fences: Vec::new(),
        ops: vec![op],
    };
    let mut tries = 1;
    loop {
        let state = inner.engine.state();
        let committed = state.commit(bucket, commit.clone()).completed().await;
        match committed {
            // A repeat of ours that had happened.
            Ok(Committed::Done(_) | Committed::Duplicate) => return Ok(true),
            Ok(Committed::Conflict { .. }) => return Ok(false),
            // Perhaps it happened; with its id it is safe to say it again.
            Err(error) if error.retryable() && tries < TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_from_other_keys() {
        let above = |key: &str| Place::above(&StateKey::new(key).unwrap());
        let place = above("billing.EVENTS.3.dlq.12").unwrap();
        assert_eq!(place.prefix().unwrap().as_str(), "billing.EVENTS.3.dlq");
        assert_eq!(above("billing.EVENTS.3.s12.ab.7.body"), Some(place.clone()));
        for other in [
            "billing",
            "billing.EVENTS.def",
            "billing.EVENTS.m.one",
            "billing.EVENTS.3",
        ] {
            assert_eq!(above(other), None, "{other}");
        }
        // Nothing of the place comes after its last key, and nothing of the next before.
        let last = place.last().unwrap();
        for of_it in ["P16.p00.cur", "dlq.1", "s255.zz.9", "zz"] {
            let key = StateKey::new(format!("billing.EVENTS.3.{of_it}")).unwrap();
            assert!(key < last, "{key}");
        }
        for next in [
            "billing.EVENTS.30.dlq.1",
            "billing.EVENTS.4.dlq.1",
            "billing.F.3.dlq.1",
        ] {
            assert!(StateKey::new(next).unwrap() > last, "{next}");
        }
    }
}
