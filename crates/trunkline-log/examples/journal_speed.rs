//! How fast the journal is on this disk: commits of one key, and opening many keys.
//!
//! `cargo run --release -p trunkline-log --example journal_speed -- DIRECTORY [KEYS]`
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for people, on their own disk"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trunkline_core::engine::{Commit, Expectation, Op, StateKey};
use trunkline_core::{Clock, Name, SystemClock};
use trunkline_log::RealDisk;
use trunkline_log::journal::{Journal, JournalOptions};

const VALUE: usize = 100;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().unwrap_or_else(|| "journal-speed".into());
    let dir = Path::new(&dir);
    let keys: usize = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1_000_000);
    let options = JournalOptions {
        state_bytes: 4 << 30,
        ..JournalOptions::default()
    };
    let open = || {
        let now = SystemClock.now();
        Journal::open(Arc::new(RealDisk), dir, options, now).unwrap()
    };
    let (mut journal, _) = open();
    let bucket = Name::new("speed").unwrap();
    let commits: Vec<Commit> = (0..keys).map(|number| commit(number, 0)).collect();

    let mut staging = Duration::ZERO;
    let mut slowest = Duration::ZERO;
    let start = Instant::now();
    for group in commits.chunks(1_000) {
        let group = group.to_vec();
        let began = Instant::now();
        for commit in group {
            journal.commit(&bucket, commit, SystemClock.now()).unwrap();
        }
        staging += began.elapsed();
        let began = Instant::now();
        let _ = journal.flush().unwrap();
        slowest = slowest.max(began.elapsed());
    }
    report("commits in groups of 1000, staged", keys, staging);
    report("commits in groups of 1000, durable", keys, start.elapsed());
    println!("slowest write, sync and publish: {slowest:?}");

    let began = Instant::now();
    let job = journal.begin_snapshot(SystemClock.now()).unwrap();
    println!("beginning a snapshot: {:?}", began.elapsed());
    let began = Instant::now();
    let copying = std::thread::spawn(move || job.run());
    let (mut slowest, mut meanwhile) = (Duration::ZERO, 0);
    while !copying.is_finished() {
        let began = Instant::now();
        let commit = commit(meanwhile, 1);
        journal.commit(&bucket, commit, SystemClock.now()).unwrap();
        let _ = journal.flush().unwrap();
        slowest = slowest.max(began.elapsed());
        meanwhile += 1;
    }
    let snapshot = copying.join().unwrap().unwrap();
    println!(
        "a snapshot: {:?}; {meanwhile} commits meanwhile, the slowest {slowest:?}",
        began.elapsed()
    );
    journal.end_snapshot(Ok(snapshot)).unwrap();

    for group in [1, 10, 100] {
        let count = group * 1_000;
        let start = Instant::now();
        for round in 0..count / group {
            for number in 0..group {
                let commit = commit(round * group + number, 2 + group);
                journal.commit(&bucket, commit, SystemClock.now()).unwrap();
            }
            let _ = journal.flush().unwrap();
        }
        let what = format!("commits in groups of {group}, durable");
        report(&what, count, start.elapsed());
    }
    let _ = journal.close().unwrap();
    drop(journal);
    let began = Instant::now();
    let (journal, read) = open();
    println!("open: {:?}, {read:?}", began.elapsed());
    println!(
        "memory by its own account: {} MiB",
        journal.state().bytes() >> 20
    );
}

fn commit(number: usize, turn: usize) -> Commit {
    Commit {
        id: format!("{turn}-{number}").into(),
        fences: Vec::new(),
        ops: vec![Op::Put {
            key: StateKey::new(format!("consumer.side.{number:08}")).unwrap(),
            value: Bytes::from(vec![7; VALUE]),
            expect: Expectation::Any,
            ttl: None,
        }],
    }
}

fn report(what: &str, count: usize, elapsed: Duration) {
    let rate = count as f64 / elapsed.as_secs_f64();
    println!("{what}: {rate:.0}/s");
}
