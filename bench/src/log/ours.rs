//! The embedded log itself: the engine's own append, reading and opening. What an application says
//! is in [`stored`](crate::stored).

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use trunkline::core::engine::{
    Append, AppendMode, Batch, Credit, Expect, Followed, Outcome, Position,
};
use trunkline::core::wire::Body;
use trunkline::core::{Clock, Name, Subject, SystemClock};
use trunkline::{Bus, EventId, Filter, Headers};

use super::place::{Filled, Place};
use super::store::SUBJECT;
use crate::pair::{Result, expect_count};
use crate::payload::Order;
use crate::runtime::Flavour;
use crate::site::{Ground, Site, Working};
use crate::stopwatch::Stopwatch;
use crate::stored::{self, STREAM, connect};

/// As much as a reader of the seam would take at once.
const PAGE: Credit = Credit {
    items: 1_000,
    bytes: 8 << 20,
};

/// A new directory, and a program that works with it.
pub fn open_new<W>(work: W) -> Result<Working<W, Opened>> {
    let place = Place::new()?;
    let site = Site::new(place.url())?;
    let url = site.url.clone();
    let owner = site.run(async move { connect(&url).await })?;
    Ok(Working {
        site,
        work,
        ground: Opened {
            owner,
            _place: place,
        },
    })
}

/// A directory that stays open between the warm-up and what is measured, as it does in a program.
pub struct Opened {
    owner: Bus,
    _place: Place,
}

impl Ground for Opened {
    fn server(&self) -> Option<u32> {
        None
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // Its runtime has gone before it, and closing needs one.
        let closed = Flavour::OneThread
            .runtime()
            .and_then(|runtime| Ok(runtime.block_on(self.owner.close())?));
        if let Err(error) = closed {
            eprintln!("    the log did not close: {error}");
        }
    }
}

/// One publisher at the seam below the bus: events that are bytes already, without an envelope.
pub fn appends(size: u64) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let bus = site.run(async move { connect(&url).await })?;
        let appending = bus.clone();
        let took_ns =
            watch.time(|| site.run(async move { append(&appending, events, size).await }))?;
        watch.latencies(took_ns);
        site.run(async move { Ok(bus.close().await?) })
    }
}

/// So many publishers at the seam, one event at a time each.
pub fn concurrent_appends(
    publishers: u64,
) -> impl Fn(&Site, u64, &mut Stopwatch) -> Result<()> + Clone + 'static {
    move |site, events, watch| {
        let url = site.url.clone();
        let bus = site.run(async move { connect(&url).await })?;
        let appending = bus.clone();
        watch.time(|| {
            site.run(async move {
                let mut tasks = Vec::new();
                for task in 0..publishers {
                    let share = events / publishers + u64::from(task < events % publishers);
                    let bus = appending.clone();
                    tasks.push(tokio::spawn(async move { append(&bus, share, 1).await }));
                }
                for task in tasks {
                    task.await??;
                }
                Ok(())
            })
        })?;
        site.run(async move { Ok(bus.close().await?) })
    }
}

/// Gives how long each batch took.
async fn append(bus: &Bus, events: u64, size: u64) -> Result<Vec<u64>> {
    let (stream, subject) = (Name::new(STREAM)?, Subject::new(SUBJECT)?);
    let body = Bytes::from(serde_json::to_vec(&Order::sample())?);
    let mut took_ns = Vec::with_capacity(usize::try_from(events / size + 1)?);
    let mut left = events;
    while left > 0 {
        let began = Instant::now();
        let batch: Batch<Append> = (0..left.min(size))
            .map(|_| Append {
                subject: subject.clone(),
                key: None,
                id: Some(EventId::generate(SystemClock.now())),
                expect: Expect::Any,
                headers: Headers::new(),
                body: Body::Bytes(body.clone()),
            })
            .collect();
        let appending = bus.engine().log().append(&stream, batch, AppendMode::Each);
        for outcome in appending.completed().await? {
            match outcome {
                Outcome::Stored {
                    duplicate: false, ..
                } => left -= 1,
                other => return Err(format!("an event was not stored: {other:?}").into()),
            }
        }
        took_ns.push(u64::try_from(began.elapsed().as_nanos())?);
    }
    Ok(took_ns)
}

/// What a directory is filled with, for those who read it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum With {
    /// What an application publishes.
    Events,
    /// Bytes, at the seam.
    Bytes,
}

pub fn filled(with: With) -> Filled {
    Filled::by(move |place, events| {
        let site = Site::new(place.url())?;
        let url = site.url.clone();
        site.run(async move {
            let bus = connect(&url).await?;
            match with {
                With::Events => stored::fill(&bus, events, stored::BATCH).await?,
                With::Bytes => append(&bus, events, stored::BATCH).await?,
            };
            Ok(bus.close().await?)
        })
    })
}

/// Reads a full log from the first event on: typed, as an application does, or as bytes at the seam.
pub fn scan(filled: Filled, with: With) -> impl FnMut(u64, &mut Stopwatch) -> Result<()> {
    move |events, watch| {
        let place = filled.with(events)?;
        let site = Site::new(place.url())?;
        let url = site.url.clone();
        let bus = site.run(async move { connect(&url).await })?;
        let reading = bus.clone();
        watch.time(|| {
            site.run(async move {
                match with {
                    With::Events => stored::replay(&reading, events).await,
                    With::Bytes => follow(&reading, events).await,
                }
            })
        })?;
        site.run(async move { Ok(bus.close().await?) })
    }
}

async fn follow(bus: &Bus, events: u64) -> Result<()> {
    let (stream, all) = (Name::new(STREAM)?, [Filter::all()]);
    let log = bus.engine().log();
    let mut follow = log.follow(&stream, Position::First, &all).await?;
    let (mut read, mut page) = (0, Vec::with_capacity(PAGE.items));
    while read < events {
        match follow.next(PAGE, &mut page).await? {
            Followed::Events { added, .. } => read += added as u64,
            other => return Err(format!("{other:?} where events belong").into()),
        }
        for event in page.drain(..) {
            black_box(&event.body);
        }
    }
    expect_count(read.min(events), events)
}

/// Opens a full log that was closed, until it takes the next event.
pub fn open(filled: Filled) -> impl FnMut(u64, &mut Stopwatch) -> Result<()> {
    move |events, watch| {
        let place = filled.with(events)?;
        let site = Site::new(place.url())?;
        let url = site.url.clone();
        let began = Instant::now();
        let bus = watch.time(|| site.run(async move { connect(&url).await }))?;
        watch.latencies([u64::try_from(began.elapsed().as_nanos())?]);
        site.run(async move {
            expect_count((stored::tail(&bus).await? - 1).min(events), events)?;
            Ok(bus.close().await?)
        })
    }
}
