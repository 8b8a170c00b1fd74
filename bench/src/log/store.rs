//! What a rival is, as a careful program would use it: how it keeps an event, and the work that is
//! done with any of them.

use std::hint::black_box;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::oneshot;
use trunkline::core::random::random;

use super::place::{Filled, Place};
use crate::pair::{Result, expect_count};
use crate::payload::Order;
use crate::runtime::Flavour;
use crate::stopwatch::Stopwatch;

/// Root included, as Trunkline has it.
pub const SUBJECT: &str = "events.order.placed";
/// Events that share a sync at most, as with Trunkline.
const MAX_GROUP: usize = 4_096;
/// Events that are stored at once where nobody measures.
const FILL: u64 = 1_000;

/// A millisecond and chance, as in a UUID of version 7.
pub type Id = [u8; 16];

/// What is kept of an event.
pub struct Record {
    pub subject: &'static str,
    pub id: Id,
    pub body: Bytes,
}

/// A library, or a file.
pub trait Store: Send + Sized + 'static {
    /// What it is called, and whether it knows a repeat when it sees one.
    const LABEL: &'static str;

    /// Opens what is in the directory, or makes it; the next event follows those that are there.
    fn open(dir: &Path) -> Result<Self>;

    /// Stores all of them, in order, and syncs once.
    fn append(&mut self, group: &[Record]) -> Result<()>;

    /// Shows the bodies of the first `events` events in order, and says how many there were.
    fn scan(&self, events: u64, each: impl FnMut(&[u8]) -> Result<()>) -> Result<u64>;

    /// How many events it has. Whoever goes on has to know.
    fn count(&self) -> u64;
}

/// What an event is given as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A struct that becomes JSON, which is part of the work.
    Struct,
    /// The same JSON, encoded before.
    Bytes,
}

/// Makes events.
pub struct Maker {
    form: Form,
    encoded: Bytes,
    random: u64,
}

impl Maker {
    pub fn new(form: Form) -> Result<Self> {
        Ok(Self {
            form,
            encoded: serde_json::to_vec(&Order::sample())?.into(),
            // Not the time: two that begin in the same nanosecond would make the same ids.
            random: random(),
        })
    }

    pub fn record(&mut self) -> Result<Record> {
        let body = match self.form {
            Form::Struct => serde_json::to_vec(&Order::sample())?.into(),
            Form::Bytes => self.encoded.clone(),
        };
        Ok(Record {
            subject: SUBJECT,
            id: self.id(),
            body,
        })
    }

    fn id(&mut self) -> Id {
        let mut id = [0; 16];
        let millis = u64::try_from(now().as_millis()).unwrap_or(u64::MAX);
        id[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        id[6..14].copy_from_slice(&self.draw().to_be_bytes());
        id[14..].copy_from_slice(&self.draw().to_be_bytes()[..2]);
        id
    }

    /// SplitMix64, which is fast and good enough for ids to differ.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn now() -> std::time::Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// A record as bytes, where a store has but one value for it.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    out.extend_from_slice(&record.id);
    let len = u8::try_from(record.subject.len()).unwrap_or(u8::MAX);
    out.push(len);
    out.extend_from_slice(&record.subject.as_bytes()[..usize::from(len)]);
    out.extend_from_slice(&record.body);
}

/// The body of such a record.
pub fn body(encoded: &[u8]) -> Result<&[u8]> {
    let subject = encoded.get(16).ok_or("a record without a subject")?;
    let start = 17 + usize::from(*subject);
    Ok(encoded.get(start..).ok_or("a record without a body")?)
}

/// One writer, who stores the next events once the last ones are stored, without a thread between
/// them; each wait is timed.
pub fn groups<S: Store>(
    size: u64,
    form: Form,
) -> Result<impl FnMut(u64, &mut Stopwatch) -> Result<()>> {
    let place = Place::new()?;
    let mut store = S::open(place.path())?;
    Ok(move |events: u64, watch: &mut Stopwatch| {
        // The directory stays for as long as this does.
        let _ = &place;
        let before = store.count();
        let mut maker = Maker::new(form)?;
        let took_ns = watch.time(|| write(&mut store, &mut maker, events, size))?;
        watch.latencies(took_ns);
        expect_count(store.count() - before, events)
    })
}

/// Gives how long each group took.
fn write<S: Store>(store: &mut S, maker: &mut Maker, events: u64, size: u64) -> Result<Vec<u64>> {
    let mut took_ns = Vec::with_capacity(usize::try_from(events / size + 1)?);
    let mut group = Vec::with_capacity(usize::try_from(size)?);
    let mut left = events;
    while left > 0 {
        let began = Instant::now();
        group.clear();
        for _ in 0..left.min(size) {
            group.push(maker.record()?);
        }
        store.append(&group)?;
        took_ns.push(u64::try_from(began.elapsed().as_nanos())?);
        left -= group.len() as u64;
    }
    Ok(took_ns)
}

/// Fills a directory, for those who read it.
pub fn filled<S: Store>() -> Filled {
    Filled::by(|place, events| {
        let mut store = S::open(place.path())?;
        write(&mut store, &mut Maker::new(Form::Bytes)?, events, FILL)?;
        Ok(())
    })
}

/// So many tasks, each of which waits for its event to be stored. A thread writes for all of them:
/// it takes what is queued, and syncs once for that.
pub fn concurrent<S: Store>(
    publishers: u64,
    form: Form,
) -> Result<impl FnMut(u64, &mut Stopwatch) -> Result<()>> {
    let place = Place::new()?;
    let runtime = Flavour::AcrossThreads.runtime()?;
    let mut writer = Some(Writer::start(S::open(place.path())?));
    Ok(move |events: u64, watch: &mut Stopwatch| {
        let _ = &place;
        let running = writer.take().ok_or("the last round failed")?;
        let before = running.count;
        watch.time(|| {
            runtime.block_on(async {
                let mut tasks = Vec::new();
                for task in 0..publishers {
                    let share = events / publishers + u64::from(task < events % publishers);
                    tasks.push(runtime.spawn(publish(running.queue.clone(), share, form)));
                }
                for task in tasks {
                    task.await??;
                }
                Result::Ok(())
            })
        })?;
        let store = running.stop()?;
        expect_count(store.count() - before, events)?;
        writer = Some(Writer::start(store));
        Ok(())
    })
}

async fn publish(queue: Sender<Queued>, events: u64, form: Form) -> Result<()> {
    let mut maker = Maker::new(form)?;
    for _ in 0..events {
        let (stored, answer) = oneshot::channel();
        queue.send((maker.record()?, stored))?;
        answer.await??;
    }
    Ok(())
}

type Queued = (Record, oneshot::Sender<Result<()>>);

struct Writer<S> {
    queue: Sender<Queued>,
    thread: JoinHandle<S>,
    count: u64,
}

impl<S: Store> Writer<S> {
    fn start(mut store: S) -> Self {
        let (queue, queued) = mpsc::channel();
        let count = store.count();
        let thread = thread::spawn(move || {
            serve(&mut store, &queued);
            store
        });
        Self {
            queue,
            thread,
            count,
        }
    }

    fn stop(self) -> Result<S> {
        drop(self.queue);
        self.thread
            .join()
            .map_err(|_| "the thread that writes panicked".into())
    }
}

fn serve<S: Store>(store: &mut S, queued: &Receiver<Queued>) {
    let (mut group, mut answers) = (Vec::new(), Vec::new());
    while let Ok(first) = queued.recv() {
        let rest = std::iter::from_fn(|| queued.try_recv().ok());
        for (record, stored) in std::iter::once(first).chain(rest).take(MAX_GROUP) {
            group.push(record);
            answers.push(stored);
        }
        let done = store.append(&group).map_err(|error| error.to_string());
        group.clear();
        for stored in answers.drain(..) {
            // Whoever asked may have failed meanwhile.
            let _ = stored.send(done.clone().map_err(Into::into));
        }
    }
}

/// Reads a full store from the first event on.
pub fn scan<S: Store>(
    filled: Filled,
    decoded: bool,
) -> impl FnMut(u64, &mut Stopwatch) -> Result<()> {
    move |events, watch| {
        let place = filled.with(events)?;
        let store = S::open(place.path())?;
        let each = |body: &[u8]| {
            match decoded {
                true => drop(black_box(serde_json::from_slice::<Order>(body)?)),
                false => _ = black_box(body),
            }
            Ok(())
        };
        let read = watch.time(|| store.scan(events, each))?;
        expect_count(read, events)
    }
}

/// Opens a full store that was closed, until it can go on.
pub fn open<S: Store>(filled: Filled) -> impl FnMut(u64, &mut Stopwatch) -> Result<()> {
    move |events, watch| {
        let place = filled.with(events)?;
        let began = Instant::now();
        let store = watch.time(|| S::open(place.path()))?;
        watch.latencies([u64::try_from(began.elapsed().as_nanos())?]);
        expect_count(store.count().min(events), events)
    }
}
