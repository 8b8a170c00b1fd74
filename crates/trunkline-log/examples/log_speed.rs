//! How fast a stream is on this disk, beside the least that any log must do.
//!
//! `cargo run --release -p trunkline-log --example log_speed -- DIRECTORY [MILLIONS]`
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people, on their own disk"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trunkline_core::engine::{Append, AppendMode, Credit, Expect, Retention, StreamSpec};
use trunkline_core::wire::Body;
use trunkline_core::{Clock, EventId, Filter, Headers, Name, Subject, SystemClock};
use trunkline_log::stream::{Options, Stream, delete};
use trunkline_log::{Disk, Open, RealDisk, Selection};

const BODY: usize = 256;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().unwrap_or_else(|| "log-speed".to_owned());
    let dir = Path::new(&dir);
    let millions: u64 = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10);
    RealDisk.make_dir(dir).unwrap();
    for group in [1, 10, 100, 1_000] {
        let count = (group * 4_000).min(1_000_000);
        let raw = raw(dir, group, count);
        let stream = appended(dir, group, count);
        println!(
            "groups of {group:>5}: {stream:>10.0} events/s, raw {raw:>10.0}/s, {:.2} of raw",
            stream / raw
        );
    }
    read_back(dir, millions * 1_000_000);
}

/// The same bytes by pwrite and fdatasync into a file that was preallocated.
fn raw(dir: &Path, group: usize, count: usize) -> f64 {
    let path = dir.join("raw");
    let file = RealDisk.open(&path, Open::CreateNew).unwrap();
    file.allocate((count * (BODY + 64)) as u64).unwrap();
    let bytes = vec![7; group * BODY];
    let start = Instant::now();
    for number in 0..count / group {
        file.write_at(&bytes, (number * bytes.len()) as u64)
            .unwrap();
        file.sync().unwrap();
    }
    let elapsed = start.elapsed();
    RealDisk.remove(&path).unwrap();
    count as f64 / elapsed.as_secs_f64()
}

fn spec() -> StreamSpec {
    StreamSpec {
        name: Name::new("speed").unwrap(),
        subjects: vec![Filter::new("speed.>").unwrap()],
        retention: Retention::DiscardOld,
        max_events: None,
        max_bytes: None,
        max_age: None,
        max_message: 1 << 20,
        duplicate_window: Duration::from_secs(120),
        replicas: 1,
        metadata: BTreeMap::new(),
    }
}

fn create(dir: &Path) -> Stream {
    let now = SystemClock.now();
    Stream::create(Arc::new(RealDisk), dir, spec(), Options::default(), now)
        .unwrap()
        .0
}

/// So many events with ids, of a hundred subjects.
fn batch(count: usize, subjects: &[Subject], body: &Bytes) -> Vec<Append> {
    let now = SystemClock.now();
    let append = |number: usize| Append {
        subject: subjects[number % subjects.len()].clone(),
        key: None,
        id: Some(EventId::generate(now)),
        expect: Expect::Any,
        headers: Headers::new(),
        body: Body::Bytes(body.clone()),
    };
    (0..count).map(append).collect()
}

fn subjects() -> Vec<Subject> {
    (0..100)
        .map(|number| Subject::new(format!("speed.subject.{number}")).unwrap())
        .collect()
}

fn appended(dir: &Path, group: usize, count: usize) -> f64 {
    let dir = dir.join("stream");
    let mut stream = create(&dir);
    let (subjects, body) = (subjects(), Bytes::from(vec![7; BODY]));
    let mut elapsed = Duration::ZERO;
    for _ in 0..count / group {
        // Making the events is the caller's work.
        let batch = batch(group, &subjects, &body);
        let start = Instant::now();
        stream
            .stage(
                SystemClock.now(),
                batch.into_iter().map(Ok),
                AppendMode::Each,
            )
            .unwrap();
        stream.commit().unwrap();
        elapsed += start.elapsed();
    }
    drop(stream);
    delete(&RealDisk, &dir).unwrap();
    count as f64 / elapsed.as_secs_f64()
}

fn read_back(dir: &Path, count: u64) {
    let dir = dir.join("stream");
    let mut stream = create(&dir);
    let (subjects, body) = (subjects(), Bytes::from(vec![7; BODY]));
    let rare = Subject::new("speed.rare").unwrap();
    let start = Instant::now();
    for number in 0..count / 1_000 {
        let mut batch = batch(1_000, &subjects, &body);
        if number % 100 == 0 {
            batch[0].subject = rare.clone();
        }
        stream
            .stage(
                SystemClock.now(),
                batch.into_iter().map(Ok),
                AppendMode::Each,
            )
            .unwrap();
        stream.commit().unwrap();
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    println!("{count} events stored, {rate:.0}/s with the making of events");
    drop(stream);
    let start = Instant::now();
    let opened = Stream::open(
        Arc::new(RealDisk),
        &dir,
        spec(),
        Options::default(),
        SystemClock.now(),
    );
    let (stream, report) = opened.unwrap();
    println!("opened in {:?}: {report:?}", start.elapsed());
    let reader = stream.reader();
    let read = |selection: &Selection| {
        let (mut next, mut events, mut page) = (1, 0, Vec::new());
        let start = Instant::now();
        while next < reader.standing().tail {
            next = reader
                .read(next, selection, Credit::items(4_096), &mut page)
                .unwrap();
            events += page.len();
            page.clear();
        }
        (events, start.elapsed())
    };
    let (events, elapsed) = read(&Selection::All);
    println!(
        "replayed {events} events, decoded, {:.0}/s",
        events as f64 / elapsed.as_secs_f64()
    );
    let (events, elapsed) = read(&Selection::Subjects(vec![rare]));
    println!("read {events} events of a rare subject in {elapsed:?}");
    drop(stream);
    delete(&RealDisk, &dir).unwrap();
}
